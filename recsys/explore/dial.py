"""One dial: what each dimension and each kind of index costs, and what it finds."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from recsys.artifacts import ArtifactError
from recsys.data.dataset import Dataset
from recsys.data.split import Split, split_of
from recsys.evaluate.ranking import evaluate
from recsys.explore.space import Space, spread
from recsys.index.advise import Trial, measure
from recsys.index.build import Flat, HalfPrecision, Hnsw, Ivf, Kind
from recsys.indexes import named
from recsys.model.embed import TowerScorer, Trained

KINDS: tuple[tuple[Kind, ...], ...] = ((Flat(),), (HalfPrecision(),), (Ivf(),))
SLOW: tuple[tuple[Kind, ...], ...] = ((Hnsw(),),)  # to build, so over the full vectors only
QUERIES = 300  # users who ask for latency and recall
ASKED = 2000  # held-out queries that NDCG is a mean of


def dial(
    space: Space,
    dataset: Dataset | None = None,
    *,
    dimensions: Sequence[int] = (),
    kinds: Sequence[Sequence[Kind]] = KINDS,
    slow: Sequence[Sequence[Kind]] = SLOW,
    split: Split | None = None,
    asked: int = ASKED,
) -> pd.DataFrame:
    """What each dimension costs and finds, beside each kind of index.

    Recall counts against the ten best by the full vectors and exact search, for users where there are any, else for
    items; NDCG@10 is measured on the test part of a dataset, with exact search. Latency and memory are those of one
    query on one thread; see `recsys.index.advise.measure`.

    Args:
        space: whose vectors.
        dataset: with the test part; NDCG is left out without one.
        dimensions: to cut vectors to; those that training trained, and where it trained only one, halves of it.
        kinds: of index, rows of those that differ in effort only.
        slow: further kinds, over the first of the dimensions alone.
        split: of the dataset; that of the bundle's evaluation if left out.
        asked: held-out queries, at most.

    Returns:
        DataFrame, a trial a row: dimension, trained (whether the loss trained this prefix), index, recall@10, ndcg@10,
        p50_us, p99_us, memory_mb, build_s; the index is "X @ q" for the floor, one pass of BLAS that chooses nothing.
    """
    full = space.vectors.shape[1]
    trained = space.dimensions or (full,)
    sizes = tuple(dimensions) or (trained if len(trained) > 1 else tuple(_halves(full)))
    queries = space.user_vectors[spread(space.users, QUERIES)] if len(space.users) else None
    if queries is None:
        queries = space.vectors[spread(np.arange(len(space)), QUERIES)]
    asking = np.ascontiguousarray(queries)
    trials: list[Trial] = []
    for some, families in ((sizes[:1], (*kinds, *slow)), (sizes[1:], kinds)):
        if some and families:
            # The floor, at the full dimension, comes first; once is enough.
            made = measure(space.vectors, asking, dimensions=some, unit=space.unit, families=families, say=space.say)
            trials += made[bool(trials) :]
    ndcg = {size: _ndcg(space, dataset, size, split, asked) for size in sizes} if dataset is not None else {}
    return pd.DataFrame(
        [
            {
                "dimension": trial.dimension,
                "trained": trial.dimension in trained,
                "index": "X @ q" if trial.kind is None else named(trial.kind),
                "recall@10": trial.recall,
                "ndcg@10": ndcg.get(trial.dimension),
                "p50_us": trial.p50 * 1e6,
                "p99_us": trial.p99 * 1e6,
                "memory_mb": trial.memory / 1e6,
                "build_s": trial.build,
            }
            for trial in trials
        ]
    ).astype({"ndcg@10": float})


def split_said(space: Space) -> Split | None:
    """The split that a bundle's evaluation was measured under; None if it was not evaluated, or its cuts were given.

    The manifest holds it as it is written in Python, such as "TimeSplit(validation=0.1, test=0.1)".
    """
    if space.bundle is None:
        return None
    results = (space.bundle.manifest.content.get("evaluation") or {}).get("results", {})
    found = re.fullmatch(r"(\w+)\((.*)\)", results.get("conditions", {}).get("split", ""))
    if found is None:
        return None
    try:
        call = ast.parse(f"_({found[2]})", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            return None
        said = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
        return split_of({"kind": found[1], **said})
    except (KeyError, SyntaxError, TypeError, ValueError):
        return None


def scorer_of(space: Space, dataset: Dataset, dimension: int | None = None) -> TowerScorer:
    """A bundle's towers as an evaluation asks them, over a dataset with the same item ids.

    Raises:
        ValueError: the space is of no bundle.
        ArtifactError: the dataset has other item ids.
    """
    bundle = space.bundle
    if bundle is None:
        raise ValueError("these vectors are of no bundle, so there are no towers to ask")
    content = bundle.manifest.content
    if dataset.item_ids.digest != bundle.item_ids.digest:
        raise ArtifactError(f"{dataset.path} and {bundle.id} number their items differently; give its own dataset")
    return TowerScorer(
        Trained(
            towers=bundle.towers,
            trained=bundle.trained,
            item_encoder=bundle.item_encoder,
            user_encoder=bundle.user_encoder,
            dataset=content["dataset"],
            item_ids=bundle.item_ids.digest,
            split={},
            dimensions=space.dimensions,
            trained_until=content.get("trained_until"),
        ),
        dataset,
        dimension,
    )


def _ndcg(space: Space, dataset: Dataset, size: int, split: Split | None, asked: int) -> float | None:
    split = split or split_said(space)
    if split is None or space.bundle is None or dataset.item_ids.digest != space.bundle.item_ids.digest:
        return None
    space.say(f"NDCG@10 at {size} dimensions")
    try:
        found = evaluate(scorer_of(space, dataset, size), dataset, split.cut(dataset), "test", max_queries=asked)
    except ValueError:  # nothing is held out
        return None
    return found.accuracy["ndcg@10"].value


def _halves(full: int) -> list[int]:
    sizes = [full]
    while sizes[-1] % 2 == 0 and sizes[-1] > 8:
        sizes.append(sizes[-1] // 2)
    return sizes[:4]
