"""The news row: a model that follows the hour, and what it stands beside, all asked the same questions.

    RECSYS_DATA_DIR=… python -m benchmarks.quality --row news           ours
    RECSYS_DATA_DIR=… python -m benchmarks.quality.news                 the baselines

Training is everything before 14 October 2017, 03:00 UTC (midnight where the readers are); validation is the two days
after, a weekend; test is everything from the 16th on. A query is every click of the part but a user's first ever, and
but those on an article that the user had clicked before; what the user clicked before is left out of the lists. All
46,033 articles are ranked. Measured are 20,000 of a part's queries, drawn once, the same for every model. A model may
read whatever anybody clicked strictly before the query's own time; ours reads what was known at the last turn of
`minutes`, popular of the last hours what was known at the query itself.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.quality.data import dataset
from benchmarks.quality.peers import DEPTH, PARTS, PYTHON, SCRIPT, Listed, Peer, run_peer, tell
from benchmarks.quality.rows import Row, named
from benchmarks.quality.runs import CODE, MODEL, RESULTS, code_digest, write
from recsys.data.dataset import Dataset
from recsys.data.split import HeldOut, Queries, TimeSplit, in_training, queries_of, unseen_targets
from recsys.evaluate.baselines import ItemKNN, Popular, PopularNow, Scorer, history_positions
from recsys.evaluate.ranking import evaluate
from recsys.trends.model import Trends
from recsys.trends.moment import Settings

SPLIT = TimeSplit("2017-10-14T03:00", "2017-10-16T03:00")
FITTED_ON = TimeSplit("2017-10-12T03:00", "2017-10-14T03:00")  # its validation part: the last two days of training
QUERIES = 20_000
HOURS = (0.25, 0.5, 1.0, 2.0)


def solved(row: Row, seed: int, raw: Path, work: Path) -> dict[str, Any]:
    """Fits our model on training's last days, measures both parts and writes the result; nothing is drawn but queries.

    Args:
        row: the news row.
        seed: of which of training's queries the weights are fitted on.
        raw: the folder that holds the public data.
        work: where the dataset goes.
    """
    data = Dataset.open(dataset(row.tables, raw, work), check=False)
    config = row.config.read_text(encoding="utf-8")
    said = yaml.safe_load(config)
    began, worked = time.perf_counter(), time.process_time()
    trends = Trends(data, minutes=said["minutes"], settings=Settings(**said["settings"]))
    weights = trends.fitted(fitting_queries(data, said["fitted_on"], seed))
    more = {"config": config, "weights": weights.of.tolist()}
    figures: dict[str, Any] = {}
    for part in reversed(PARTS):  # what is published first, since it takes longest
        asked = sampled(data, part)
        lists = Listed(asked.end, trends.lists(asked, weights, DEPTH), data.num_items)
        figures[part] = measured(lists, row, data, part)
        result = _written(row, MODEL, seed, data, figures, began, worked, more)
    return result


def sampled(data: Dataset, part: HeldOut) -> Queries:
    """The queries that `measured` asks, as `evaluate` draws them."""
    asked, _ = unseen_targets(data, queries_of(data, SPLIT.cut(data), part))
    if len(asked) <= QUERIES:
        return asked
    return asked.take(np.sort(np.random.default_rng(0).choice(len(asked), QUERIES, replace=False)))


def fitting_queries(data: Dataset, count: int, seed: int) -> Queries:
    """So many of the last two training days' queries, from ten minutes of every two hours, that moments may be few."""
    asked, _ = unseen_targets(data, queries_of(data, FITTED_ON.cut(data), "validation"))
    assert data.times is not None
    turn = np.asarray(data.times)[asked.end] // 600_000
    some = np.flatnonzero(turn % 12 == 0)
    return asked.take(np.sort(np.random.default_rng(seed).choice(some, min(count, len(some)), replace=False)))


def measured(scorer: Scorer, row: Row, data: Dataset, part: HeldOut) -> dict[str, Any]:
    """The metrics of the row on a held-out part, and what was asked."""
    result = evaluate(scorer, data, SPLIT.cut(data), part, split=SPLIT, ks=row.cut_offs, max_queries=QUERIES)
    figures = {name: result.accuracy[name].value for name in row.metrics}
    tell(f"  {part} {figures}")
    widths = {name: result.accuracy[name].half_width for name in row.metrics}
    cold = {name: mean.value for name, mean in result.slices["cold items"].metrics.items()}
    said = result.conditions
    return {
        "queries": said.num_queries,
        "users": said.num_users,
        "period": said.period,
        "cold_queries": result.slices["cold items"].num_queries,
        "cold": cold,
        "dimensions": {"0": {"mean": figures, "half_width": widths}},
    }


def popular_now(row: Row, data: Dataset) -> tuple[dict[str, Any], dict[str, Any]]:
    """Popular of the last hours, how many being chosen on validation: figures, and what was chosen."""
    tried = {hours: measured(PopularNow(data, hours=hours), row, data, "validation") for hours in HOURS}
    best = max(tried, key=lambda hours: tried[hours]["dimensions"]["0"]["mean"][row.metrics[-1]])
    figures = {"validation": tried[best], "test": measured(PopularNow(data, hours=best), row, data, "test")}
    of = {str(hours): each["dimensions"]["0"]["mean"] for hours, each in tried.items()}
    return figures, {"config": {"hours": best}, "tried": of}


def fixed(scorer: Callable[[Dataset], Scorer]) -> Callable[[Row, Dataset], tuple[dict[str, Any], dict[str, Any]]]:
    """A baseline with nothing to choose."""

    def run(row: Row, data: Dataset) -> tuple[dict[str, Any], dict[str, Any]]:
        made = scorer(data)
        return {part: measured(made, row, data, part) for part in PARTS}, {"config": {}}

    return run


def peer(
    name: str, settings: dict[str, Any], days: float, most: int, options: tuple[str, ...] = ()
) -> Callable[[Row, Dataset], tuple[dict[str, Any], dict[str, Any]]]:
    """A peer in its own environment, fitted on the last days of training and the items taken most in them.

    Args:
        name: as benchmarks/peers/answer.py has it.
        settings: of the model, chosen by hand.
        days: how much of training it learns from, back from validation.
        most: how many items it knows; the others it never lists.
        options: of the command.
    """

    def run(row: Row, data: Dataset) -> tuple[dict[str, Any], dict[str, Any]]:
        work = Path("build/quality/peers") / row.name / f"{days}-{most}"
        known = ask_some(data, work / "asked", days, most)
        one = Peer(name, (str(PYTHON), str(SCRIPT), name), (settings,), options)
        run_peer(one, settings, work / "asked", work / name)
        figures: dict[str, Any] = {}
        for part in PARTS:
            lists = np.load(work / name / f"{part}.npy")
            listed = Listed(sampled(data, part).end, np.where(lists >= 0, known[lists], -1), data.num_items)
            figures[part] = measured(listed, row, data, part)
        said = json.loads((work / name / "said.json").read_text(encoding="utf-8"))
        config = {**said["settings"], "days": days, "items": most}
        return figures, {"config": config, "versions": said["versions"], "peer_seconds": said["seconds"]}

    return run


def ask_some(data: Dataset, folder: Path, days: float, most: int) -> np.ndarray:
    """Writes questions as benchmarks/quality/peers.py describes them, about some of the items; int64, which they are.

    What the others were clicked on is left out of histories, too; the peer could do nothing with it.
    """
    assert data.times is not None
    folder.mkdir(parents=True, exist_ok=True)
    trained = in_training(data, SPLIT.cut(data))
    times, items = np.asarray(data.times), np.asarray(data.items)
    trained &= times > times[trained].max() - days * 24 * 3_600_000
    counts = np.bincount(items[trained], minlength=data.num_items)
    known = np.sort(np.argsort(-counts, kind="stable")[: min(most, np.count_nonzero(counts))])
    place = np.full(data.num_items, -1, dtype=np.int32)
    place[known] = np.arange(len(known))
    trained &= place[items] >= 0
    _, users = np.unique(data.user_rows[trained], return_inverse=True)
    arrays = {"train_user": users.astype(np.int32), "train_item": place[items[trained]]}
    for part in PARTS:
        asked = sampled(data, part)
        owner, position = history_positions(data, asked)
        at = place[items[position]]
        counts = np.bincount(owner[at >= 0], minlength=len(asked))
        arrays[f"{part}_user"] = np.arange(len(asked), dtype=np.int32)
        arrays[f"{part}_offsets"] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        arrays[f"{part}_items"] = at[at >= 0]
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    sizes = {"num_users": int(users.max()) + 1, "num_items": len(known), "depth": DEPTH}
    (folder / "asked.json").write_text(json.dumps(sizes), encoding="utf-8")
    return known


SASREC = {
    "loss": "sampled_softmax", "n_negatives": 256, "n_factors": 64, "n_heads": 1, "n_blocks": 2, "session_max_len": 20,
    "dropout_rate": 0.2, "batch_size": 128, "lr": 1e-3, "precision": "32-true", "epochs": 10,
}  # fmt: skip

BASELINES = {
    "popular-now": popular_now,
    "popular": fixed(lambda data: Popular(data, SPLIT.cut(data))),
    "item-knn": fixed(lambda data: ItemKNN(data, SPLIT.cut(data), neighbours=200)),
    "item-knn-last-1": fixed(lambda data: ItemKNN(data, SPLIT.cut(data), neighbours=200, last=1)),
    "ease": peer("ease", {"regularization": 200.0}, days=4, most=8000),
    "sasrec": peer("sasrec", SASREC, days=2, most=8000, options=("--minutes", "8")),
}


def _written(
    row: Row,
    model: str,
    seed: int,
    data: Dataset,
    figures: dict[str, Any],
    began: float,
    worked: float,
    more: dict[str, Any],
) -> dict[str, Any]:
    result = {
        "row": row.name,
        "model": model,
        "seed": seed,
        **figures,
        "seconds": round(time.perf_counter() - began),
        "cpu_seconds": round(time.process_time() - worked),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).date().isoformat(),
        "dataset": data.manifest.digest,
        "code": code_digest((*CODE, "recsys/trends")),
        **more,
    }
    write(result, RESULTS / row.name / (f"seed-{seed}.json" if model == MODEL else f"{model}.json"))
    return result


def main() -> int:
    """Measures the baselines, and peers that `make benchmarks-peers` has installed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.news",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", nargs="+", choices=list(BASELINES), default=list(BASELINES), help="which ones")
    parser.add_argument("--work", type=Path, default=Path("build/quality"), help="for the dataset")
    said = parser.parse_args()
    if "RECSYS_DATA_DIR" not in os.environ:
        parser.error("RECSYS_DATA_DIR is not set; let it name the folder that holds the public data")
    row = named("news")
    data = Dataset.open(dataset(row.tables, Path(os.environ["RECSYS_DATA_DIR"]), said.work), check=False)
    for model in said.model:
        tell(model)
        began, worked = time.perf_counter(), time.process_time()
        figures, more = BASELINES[model](row, data)
        _written(row, model, 0, data, figures, began, worked, more)
    return 0


if __name__ == "__main__":
    sys.exit(main())
