"""The evaluate step: tonight's towers, the live bundle and what is popular, asked the same newest questions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.artifacts import Manifest, verify, writing
from recsys.bundle import Bundle
from recsys.data.dataset import Dataset
from recsys.data.split import split_of
from recsys.evaluate.baselines import Popular, PopularRecent, Scorer
from recsys.evaluate.metrics import Mean
from recsys.evaluate.ranking import Conditions, Result, Slice, evaluate
from recsys.model.embed import TowerScorer, Trained
from recsys.nightly.live import BundleScorer
from recsys.nightly.measures import flattened, grouping

CANDIDATE, LIVE = "two towers", "live bundle"
_KIND, _VERSION = "measured", 1
_LARGE = 0.05  # of the interactions: a category of at least this share is watched on its own
_MOST = 12  # categories of one attribute


def measure(checkpoint: Path, dataset: Path, live: Bundle | None, out: Path, *, max_queries: int) -> None:
    """Ranks all items for the newest held-out interactions.

    Args:
        checkpoint: tonight's.
        dataset: tonight's.
        live: what it has to measure up to, if anything is live.
        out: the directory to write.
        max_queries: at most so many queries, the same for all.
    """
    data, trained = Dataset.open(dataset, check=False), Trained.open(checkpoint)
    split = split_of(trained.split)
    cuts = split.cut(data)
    scorers: dict[str, Scorer] = {CANDIDATE: TowerScorer(trained, data)}
    if live is not None:
        scorers[LIVE] = BundleScorer(live, data)
    scorers["popular"] = Popular(data, cuts)
    if data.times is not None:
        scorers["popular, last 7 days"] = PopularRecent(data, cuts)
    groups = large_categories(data)
    with writing(out, _KIND, _VERSION) as draft:
        results = {}
        for name, scorer in scorers.items():
            results[name] = evaluate(
                scorer, data, cuts, "test", split=split, max_queries=max_queries, groups=groups, ks=(10,)
            )
        said = {name: _plain(result) for name, result in results.items()}
        (draft.path / "results.json").write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
        draft.content["asked_from"] = _asked_from(data, cuts.test_start)


def opened(path: Path) -> tuple[dict[str, Result], Manifest]:
    """What `measure` wrote: the results by name, and the manifest."""
    manifest = verify(path, _KIND, _VERSION)
    said = json.loads((path / "results.json").read_text(encoding="utf-8"))
    return {name: _result(one) for name, one in said.items()}, manifest


def large_categories(data: Dataset) -> dict[str, np.ndarray]:
    """`attribute: value` to bool [N], for the values that make up a good share of the interactions each."""
    table = data.item_features()
    counts = np.bincount(np.asarray(data.items), minlength=data.num_items)
    groups: dict[str, np.ndarray] = {}
    for feature in grouping(data.schema.items):
        values, rows = flattened(table.column(feature.name))
        encoded = values.dictionary_encode()
        codes = pc.fill_null(encoded.indices, pa.scalar(-1, encoded.indices.type)).to_numpy()
        taken = np.bincount(codes[codes >= 0], counts[rows[codes >= 0]], minlength=len(encoded.dictionary))
        largest = np.argsort(-taken, kind="stable")[:_MOST]
        for code in largest[taken[largest] >= _LARGE * counts.sum()].tolist():
            items = np.zeros(data.num_items, dtype=np.bool_)
            items[rows[codes == code]] = True
            groups[f"{feature.name}: {encoded.dictionary[code]}"] = items
    return groups


def _asked_from(data: Dataset, test_start: np.ndarray) -> int | None:
    """When the first held-out interaction happened: who learnt from anything later knows answers."""
    if data.times is None:
        return None
    asked = test_start < data.user_offsets[1:]
    return int(np.asarray(data.times)[test_start[asked]].min()) if asked.any() else None


def _plain(result: Result) -> dict[str, Any]:
    said = dataclasses.asdict(result)
    return said | {"each": result.each.tolist(), "users": result.users.tolist()}


def _result(said: dict[str, Any]) -> Result:
    def means(given: dict[str, Any]) -> dict[str, Mean]:
        return {name: Mean(**mean) for name, mean in given.items()}

    conditions = said["conditions"]
    for name in ("period", "sample"):
        conditions[name] = None if conditions[name] is None else tuple(conditions[name])
    return Result(
        conditions=Conditions(**conditions),
        accuracy=means(said["accuracy"]),
        catalogue=said["catalogue"],
        slices={
            name: Slice(one["num_queries"], one["num_users"], means(one["metrics"]))
            for name, one in said["slices"].items()
        },
        seconds=said["seconds"],
        each=np.array(said["each"]),
        users=np.array(said["users"], dtype=np.int64),
    )
