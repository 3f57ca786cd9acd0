"""One run of one row: prepared, trained through `recsys fit`, measured on validation and test, and written down."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.quality.data import dataset
from benchmarks.quality.rows import ALONE, SHARE, Row
from recsys.data.dataset import Dataset
from recsys.data.split import Cuts, HeldOut, Queries, Split, split_of, train_counts
from recsys.evaluate.baselines import Scorer
from recsys.evaluate.ranking import evaluate
from recsys.model.embed import TowerScorer, Trained
from recsys.train import run

MODEL = "two towers"
RESULTS = Path(__file__).parent / "results"
CODE = ("recsys/data", "recsys/model", "recsys/evaluate")


def fitted(row: Row, seed: int, path: Path, work: Path) -> tuple[Path, bool]:
    """Trains one seed, or goes on from where a stopped run of the same configuration and code was.

    Args:
        row: what to train.
        seed: of all that is drawn.
        path: the dataset.
        work: where checkpoints go.

    Returns:
        The checkpoint that is best on validation, and whether a stopped run was gone on with.
    """
    out = work / "runs" / row.name / str(seed)
    mark = out / "made-of.json"
    made_of = json.dumps({"config": row.config.read_text(encoding="utf-8"), "code": code_digest()})
    if not mark.exists() or mark.read_text(encoding="utf-8") != made_of:  # nothing of another make is gone on with
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        mark.write_text(made_of, encoding="utf-8")
    last = out / "last.ckpt"
    goes_on = last.exists()
    options = ["--config", str(row.config), "--data.dataset", str(path), "--out", str(out)]
    options += ["--seed_everything", str(seed), "--data.seed", str(seed)]
    run(["fit", *options, *(["--ckpt_path", str(last)] if goes_on else [])])
    return out / "best.ckpt", goes_on


def trained(row: Row, seed: int, raw: Path, work: Path) -> dict[str, Any]:
    """Fits one seed and measures it.

    Args:
        row: what to train.
        seed: of all that is drawn.
        raw: the folder that holds the public data.
        work: where datasets and checkpoints go.

    Returns:
        The result, as it is also written to RESULTS.
    """
    path, config, code = dataset(row.tables, raw, work), row.config.read_text(encoding="utf-8"), code_digest()
    began, worked = time.perf_counter(), time.process_time()
    best, goes_on = fitted(row, seed, path, work)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - worked
    said = measured(row, path, best)
    result = {
        "row": row.name,
        "model": MODEL,
        "seed": seed,
        **said,
        "seconds": round(seconds),
        "cpu_seconds": round(cpu_seconds),  # of all threads; what other work on the machine does not stretch
        "goes_on": goes_on,  # from where a stopped run was: then the seconds are those of the rest
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).date().isoformat(),
        "dataset": Dataset.open(path, check=False).manifest.digest,
        "code": code,
        "config": config,
    }
    write(result, RESULTS / row.name / f"seed-{seed}.json")
    return result


def measured(row: Row, path: Path, checkpoint: Path) -> dict[str, Any]:
    """Every metric of the row on both held-out parts, and the cut dimensions if the loss trained any."""
    data, made = Dataset.open(path, check=False), Trained.open(checkpoint)
    split = split_of(made.split)
    parts: tuple[HeldOut, ...] = ("validation", "test")
    said: dict[str, Any] = {}
    for part in parts:
        for dimension in made.dimensions:
            queries, figures = figures_of(TowerScorer(made, data, dimension), row, data, split, part)
            here = said.setdefault(part, {"queries": queries, "dimensions": {}})
            here["dimensions"][str(dimension)] = figures
    said["epochs"] = int(torch.load(checkpoint, map_location="cpu", weights_only=True)["epoch"]) + 1
    return said


def figures_of(scorer: Scorer, row: Row, data: Dataset, split: Split, part: HeldOut) -> tuple[int, dict[str, Any]]:
    """How many queries a part asks, and the `mean` and `half_width` of every metric of the row."""
    cuts = split.cut(data)
    result = evaluate(scorer, data, cuts, part, split=split, ks=row.cut_offs)
    means: dict[str, tuple[float | None, float | None]]
    means = {name: (result.accuracy[name].value, result.accuracy[name].half_width) for name in row.metrics}
    if row.cold:
        alone = evaluate(OnlyCold(scorer, data, cuts), data, cuts, part, split=split, ks=row.cut_offs).accuracy
        for name in row.metrics:
            kind, k = name.split("@")
            means[ALONE.format(kind, k)] = (alone[name].value, alone[name].half_width)
            means[SHARE.format(kind, k)] = (result.catalogue[f"cold_share@{k}"], None)
    figures = {"mean": {name: one for name, (one, _) in means.items()}}
    return result.conditions.num_queries, figures | {"half_width": {name: half for name, (_, half) in means.items()}}


class OnlyCold:
    """A scorer's scores of the items that training did not see; the others do not compete.

    Args:
        scorer: whose.
        dataset: the interactions.
        cuts: what training saw.
    """

    def __init__(self, scorer: Scorer, dataset: Dataset, cuts: Cuts) -> None:
        self._scorer, self._known = scorer, train_counts(dataset, cuts) > 0

    def scores(self, queries: Queries) -> np.ndarray:
        """As `Scorer.scores`."""
        return np.where(self._known, -np.inf, self._scorer.scores(queries))


def code_digest(folders: Sequence[str] = CODE) -> str:
    """sha256 over the sources that a figure depends on."""
    files = sorted(file for folder in folders for file in Path(folder).rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def write(result: dict[str, Any], path: Path) -> None:
    """A result as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(result, indent=1, default=float) + "\n", encoding="utf-8")
    beside.replace(path)


def saved(row: Row) -> list[dict[str, Any]]:
    """The results of a row, by model and seed."""
    files = sorted((RESULTS / row.name).glob("*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def mean(values: list[float]) -> tuple[float, float | None]:
    """The mean over seeds and the half width of its 95 % interval by Student's t; None with one seed."""
    if len(values) < 2:
        return float(np.mean(values)), None
    half = float(stats.t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return float(np.mean(values)), half
