"""A checkpoint measured: its towers beside the baselines, under the very split that it was trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recsys.artifacts import ArtifactError, sha256_of
from recsys.data.dataset import Dataset
from recsys.data.split import HeldOut, split_of
from recsys.evaluate.baselines import ItemKNN, Popular, PopularRecent, Scorer
from recsys.evaluate.ranking import Result, evaluate
from recsys.evaluate.report import to_json
from recsys.model.embed import TowerScorer, Trained


def evaluate_checkpoint(
    checkpoint: Path,
    dataset: Path,
    *,
    part: HeldOut = "test",
    baselines: bool = True,
    dimensions: Sequence[int] = (),
    max_queries: int | None = None,
    progress: bool = True,
) -> dict[str, Result]:
    """Ranks all items for the held-out queries.

    Args:
        checkpoint: from `recsys fit`.
        dataset: the one it was trained on; the split comes from the checkpoint, so that nothing it learnt is asked.
        part: which held-out part.
        baselines: whether Popular, Popular of the last week and item-kNN (from all of the history, and from
            its last items) are measured beside it.
        dimensions: shorter prefixes of the vectors to measure, too.
        max_queries: at most so many queries, drawn at random.
        progress: whether to show a bar, rather than a line for each of them.

    Returns:
        Results by name, the towers' first.
    """
    data = Dataset.open(dataset)
    trained = Trained.open(checkpoint)
    if trained.dataset != data.manifest.digest:
        raise ArtifactError(
            f"the checkpoint was trained on another dataset ({trained.dataset[:12]}) than {dataset} "
            f"({data.manifest.digest[:12]}): cut anew, it may ask what was learnt; use the one it was trained on"
        )
    split = split_of(trained.split)
    cuts = split.cut(data)
    scorers: dict[str, Scorer] = {"two towers": TowerScorer(trained, data)}
    for dimension in dimensions:
        scorers[f"two towers, {dimension} dimensions"] = TowerScorer(trained, data, dimension)
    if baselines:
        scorers["popular"] = Popular(data, cuts)
        if data.times is not None:
            scorers["popular, last 7 days"] = PopularRecent(data, cuts)
        scorers["item-kNN"] = ItemKNN(data, cuts)
        scorers["item-kNN, last 5 items"] = ItemKNN(data, cuts, last=5)  # three times as good on MovieLens
    results = {}
    for name, scorer in scorers.items():
        results[name] = evaluate(scorer, data, cuts, part, split=split, max_queries=max_queries, progress=progress)
        if not progress:  # no bar, so a line tells that it goes on
            print(f"measured {name} in {results[name].seconds:.0f} s", flush=True)
    return results


def evaluation_of(checkpoint: Path, results: dict[str, Result]) -> dict[str, Any]:
    """Results as JSON values that name the checkpoint, so that no bundle takes another one's."""
    return {"checkpoint": sha256_of(checkpoint), "results": json.loads(to_json(results))}
