"""What the two towers stand beside, measured here: baselines of ours, and peers in an environment of their own.

A peer and we meet in files, since their libraries want other versions than ours. A folder of questions holds

    asked.json                num_users, num_items, depth: how long lists are to be
    train_user.npy, _item.npy int32 [n], what may be learnt from: users in turn, each one's interactions oldest first
    PART_user.npy             int32 [num_queries], the user row of each query of the part, validation or test
    PART_offsets.npy, _items  int64 [num_queries + 1] and int32 [m], the histories: what the user took before the query

and nothing of what is to be predicted; a test query's history holds the user's validation part, as everywhere. The peer
writes PART.npy, int32 [num_queries, depth], and said.json; here the lists are checked, and measured by the `evaluate`
that measures everybody. Settings are chosen on validation.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quality.data import dataset
from benchmarks.quality.rows import ROWS, Row, named
from benchmarks.quality.runs import RESULTS, code_digest, figures_of, write
from recsys.data.dataset import Dataset
from recsys.data.split import Cuts, GivenSplit, HeldOut, LeaveOneOut, Queries, in_training, queries_of
from recsys.evaluate.baselines import ItemKNN, Popular, PopularRecent, Scorer, history_positions

DEPTH = 100
LARGE = (
    20_000  # items from which on one inverse takes EASE a quarter of an hour on a core, so that it is given no choice
)
PARTS: tuple[HeldOut, ...] = ("validation", "test")
PYTHON = Path(".venv-peers/bin/python")
SCRIPT = Path("benchmarks/peers/answer.py")
BASELINES: dict[str, tuple[Callable[..., Scorer], dict[str, Any]]] = {
    "popular": (Popular, {}),
    "popular-recent": (PopularRecent, {"days": 7}),
    "item-knn": (ItemKNN, {"neighbours": 500}),
    "item-knn-last-5": (ItemKNN, {"neighbours": 500, "last": 5}),
}
EXAMPLES = """
examples:
  python -m benchmarks.quality.peers --row beauty
  python -m benchmarks.quality.peers --row gowalla --model item-knn ials
  python -m benchmarks.quality.peers --row ml-1m-time-blind --model sasrec --minutes 90
"""


class PeerError(Exception):
    """A peer is not there, failed, or answered what cannot be measured."""


@dataclass(frozen=True)
class Peer:
    """A model of somebody else's.

    Args:
        name: of the model, and of its result.
        command: what to run; it is given --asked, --answered, --settings and --threads.
        grid: the settings to choose among, on validation.
        options: further arguments of the command.
    """

    name: str
    command: tuple[str, ...]
    grid: tuple[Mapping[str, Any], ...]
    options: tuple[str, ...] = ()


class Listed:
    """Lists that were made elsewhere, as a scorer.

    Args:
        ends: int64 [num_queries], ascending: `Queries.end` of each list's query, which no two queries share.
        lists: int [num_queries, depth], item rows, best first, −1 behind.
        num_items: the size of the catalogue.
    """

    def __init__(self, ends: np.ndarray, lists: np.ndarray, num_items: int) -> None:
        self._ends, self._lists, self._num_items = ends, lists, num_items

    def scores(self, queries: Queries) -> np.ndarray:
        """As `Scorer.scores`; −inf for what is not in the list."""
        lists = self._lists[np.searchsorted(self._ends, queries.end)]
        scores = np.full((len(queries), self._num_items), -np.inf, dtype=np.float32)
        query, place = np.nonzero(lists >= 0)
        scores[query, lists[query, place]] = -place
        return scores


def ask(data: Dataset, cuts: Cuts, folder: Path) -> None:
    """Writes the questions; see the module's text."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = in_training(data, cuts)
    arrays = {"train_user": data.user_rows[trained], "train_item": np.asarray(data.items)[trained]}
    for part in PARTS:
        queries = queries_of(data, cuts, part)
        owner, position = history_positions(data, queries)
        counts = np.bincount(owner, minlength=len(queries))
        arrays[f"{part}_user"] = queries.user.astype(np.int32)
        arrays[f"{part}_offsets"] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        arrays[f"{part}_items"] = np.asarray(data.items)[position]
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    sizes = {"num_users": data.num_users, "num_items": data.num_items, "depth": DEPTH}
    (folder / "asked.json").write_text(json.dumps(sizes), encoding="utf-8")


def answered(data: Dataset, cuts: Cuts, part: HeldOut, folder: Path) -> Listed:
    """The answers of a peer, checked.

    Raises:
        PeerError: a file is missing, or a list is not one of distinct items that the history does not hold.
    """
    path, queries = folder / f"{part}.npy", queries_of(data, cuts, part)
    if not path.is_file():
        raise PeerError(f"{path} is missing: the peer has not answered; see what it printed, and run it again")
    lists = np.load(path)
    if lists.shape != (len(queries), DEPTH) or not np.issubdtype(lists.dtype, np.integer):
        raise PeerError(
            f"{path} holds {lists.dtype} {list(lists.shape)}; expected integers [{len(queries)}, {DEPTH}], a row for "
            "each query, in the order in which they were asked"
        )
    if ((lists < -1) | (lists >= data.num_items)).any():
        raise PeerError(f"{path} holds {lists.min()} to {lists.max()}; item rows are 0 to {data.num_items - 1}, and -1")
    rows = np.sort(lists, axis=1)
    repeated = ((rows[:, 1:] == rows[:, :-1]) & (rows[:, 1:] >= 0)).any(axis=1)
    if repeated.any():
        raise PeerError(f"{path}: query {repeated.argmax()} lists an item twice; list each once")
    query, place = np.nonzero(lists >= 0)
    owner, position = history_positions(data, queries)
    listed = query * data.num_items + lists[query, place]
    seen = np.isin(listed, owner * data.num_items + data.items[position])
    if seen.any():
        at = int(listed[seen][0])
        raise PeerError(
            f"{path}: query {at // data.num_items} lists item {at % data.num_items}, which stands in its history; the "
            "peer must leave out what was seen"
        )
    return Listed(queries.end, lists, data.num_items)


def chosen(peer: Peer, row: Row, data: Dataset, split: LeaveOneOut | GivenSplit, work: Path) -> dict[str, Any]:
    """Runs a peer with each of its settings and measures the one that is best on validation.

    Args:
        peer: what to run.
        row: whose metrics count; the last one decides.
        data: the row's dataset.
        split: how it is cut.
        work: where questions and answers go.

    Returns:
        The result, without what is said of all results.

    Raises:
        PeerError: the command fails, or its answers cannot be measured.
    """
    cuts = split.cut(data)
    ask(data, cuts, work / "asked")
    tried = []
    for settings in peer.grid:
        folder = work / f"{peer.name}-{_digest(data, settings)}"
        tell(f"{peer.name} with {json.dumps(dict(settings))}")
        run_peer(peer, settings, work / "asked", folder)
        figures = measured(answered(data, cuts, "validation", folder), row, data, split, "validation")
        tell(f"  validation {_said(figures)}")
        tried.append((_means(figures)[row.metrics[-1]], figures, folder, settings))
    _, validation, folder, _ = max(tried, key=lambda one: one[0])
    said = json.loads((folder / "said.json").read_text(encoding="utf-8"))
    return {
        "validation": validation,
        "test": measured(answered(data, cuts, "test", folder), row, data, split, "test"),
        "seconds": round(sum(said["seconds"].values())),
        "threads": said["threads"],
        "config": said["settings"],
        "tried": [{"settings": dict(settings), "validation": _means(figures)} for _, figures, _, settings in tried],
        "versions": said["versions"],
    }


def run_peer(peer: Peer, settings: Mapping[str, Any], asked: Path, folder: Path) -> None:
    """Runs a peer once; PeerError if it fails."""
    for part in PARTS:  # of an earlier run, which must not pass for this one's
        (folder / f"{part}.npy").unlink(missing_ok=True)
    command = [*peer.command, "--asked", str(asked), "--answered", str(folder)]
    command += ["--settings", json.dumps(dict(settings)), "--threads", str(torch.get_num_threads()), *peer.options]
    if code := subprocess.run(command).returncode:
        raise PeerError(f"{peer.name} stopped with exit status {code}; what it printed above says why")


def _digest(data: Dataset, settings: Mapping[str, Any]) -> str:
    """Of all that a stopped run must share with the one that goes on from it."""
    said = json.dumps([data.manifest.digest, dict(settings)], sort_keys=True)
    return hashlib.sha256(said.encode() + SCRIPT.read_bytes()).hexdigest()[:16]


def baseline(name: str, row: Row, data: Dataset, split: LeaveOneOut | GivenSplit) -> dict[str, Any]:
    """A baseline of ours, fitted on training and measured as a peer is."""
    began, (make, settings) = time.perf_counter(), BASELINES[name]
    scorer = make(data, split.cut(data), **settings)
    return {
        **{str(part): measured(scorer, row, data, split, part) for part in PARTS},
        "seconds": round(time.perf_counter() - began),
        "threads": torch.get_num_threads(),
        "config": settings,
    }


def measured(scorer: Scorer, row: Row, data: Dataset, split: LeaveOneOut | GivenSplit, part: HeldOut) -> dict[str, Any]:
    """The metrics of the row on a held-out part as a run of ours has them; 0 dimensions, since lists have none."""
    queries, figures = figures_of(scorer, row, data, split, part)
    return {"queries": queries, "dimensions": {"0": figures}}


def peers_of(row: Row, data: Dataset, minutes: float | None = None) -> dict[str, Peer]:
    """The peers that the data allow, by name: SASRec needs the order of histories, which sets do not have."""
    start = (str(PYTHON), str(SCRIPT))
    strengths = (10, 20, 50, 100, 200, 500, 1000) if data.num_items < LARGE else (200,)
    made = {"ease": Peer("ease", (*start, "ease"), tuple({"regularization": each} for each in strengths))}
    names, grid = ("factors", "regularization", "alpha"), product((128,), (1.0, 10.0, 100.0), (1.0, 4.0, 16.0, 64.0))
    settings = tuple({**dict(zip(names, each, strict=True)), "iterations": 15} for each in grid)
    made["ials"] = Peer("ials", (*start, "ials"), settings)
    if not split_of_row(data).cut(data).grouped:
        options = () if minutes is None else ("--minutes", str(minutes))
        made["sasrec"] = Peer("sasrec", (*start, "sasrec"), (_sasrec(row),), options)
    return made


def _sasrec(row: Row) -> dict[str, Any]:
    """What the best published SASRec of the data was trained with, as RecTools names it."""
    same = {
        "n_factors": 64,
        "n_heads": 1,
        "dropout_rate": 0.2,
        "batch_size": 128,
        "lr": 1e-3,
        "precision": "bf16-mixed",
    }
    if row.name == "beauty":
        # The published one reads the newest 50, of which it pads 43: 96 % of histories are no longer than 20.
        sampled = {"loss": "sampled_softmax", "n_negatives": 256}
        return {**same, **sampled, "n_blocks": 1, "session_max_len": 20, "epochs": 50}
    return {**same, "loss": "softmax", "n_blocks": 2, "session_max_len": 200, "epochs": 50}


def split_of_row(data: Dataset) -> LeaveOneOut | GivenSplit:
    """The split that the log says, or each user's last two interactions held out."""
    return GivenSplit(grouped=True) if data.parts is not None else LeaveOneOut()


def tell(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def _means(figures: dict[str, Any]) -> dict[str, float]:
    return dict(figures["dimensions"]["0"]["mean"])


def _said(figures: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in _means(figures).items())


def _missing(models: Sequence[str], row: Row, data: Dataset) -> str | None:
    """Why the models cannot be run, if so."""
    peers = peers_of(row, data)
    for name in models:
        if name not in (*BASELINES, *peers):
            return f"{name} needs the order of histories, which the data of {row.name} do not have; leave it out"
        if name == "popular-recent" and data.times is None:
            return f"popular-recent needs times, which the data of {row.name} do not have; leave it out"
    if not PYTHON.is_file() and any(name in peers for name in models):
        return (
            f"{PYTHON} is not there; `make benchmarks-peers` makes it, or choose --model among {', '.join(BASELINES)}"
        )
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.peers",
        description=__doc__.splitlines()[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--row", required=True, choices=[row.name for row in ROWS], help="data and protocol")
    parser.add_argument(
        "--model",
        nargs="+",
        choices=[*BASELINES, "ease", "ials", "sasrec"],
        help="which ones; if left out, all that the data allow but sasrec, which takes hours",
    )
    parser.add_argument(
        "--minutes", type=float, help="sasrec begins no epoch after so many, and goes on when run again"
    )
    parser.add_argument("--work", type=Path, default=Path("build/quality"), help="for datasets, questions and answers")
    said = parser.parse_args(arguments)
    if "RECSYS_DATA_DIR" not in os.environ:
        parser.error("RECSYS_DATA_DIR is not set; let it name the folder that holds the public data")
    row = named(said.row)
    data = Dataset.open(dataset(row.tables, Path(os.environ["RECSYS_DATA_DIR"]), said.work), check=False)
    split, peers = split_of_row(data), peers_of(row, data, said.minutes)
    timely = [name for name in BASELINES if name != "popular-recent" or data.times is not None]
    models = said.model or [*timely, "ease", "ials"]
    if why := _missing(models, row, data):
        parser.error(why)
    for name in models:
        tell(f"{name} on {row.name}: {row.what}")
        try:
            work = said.work / "peers" / row.name
            result = chosen(peers[name], row, data, split, work) if name in peers else baseline(name, row, data, split)
        except PeerError as error:
            tell(f"error: {error}")
            return 1
        whole = {
            "row": row.name,
            "model": name,
            "seed": 0,
            **result,
            "cores": os.cpu_count(),
            "date": datetime.now(UTC).date().isoformat(),
            "dataset": data.manifest.digest,
            "code": code_digest(),
        }
        write(whole, RESULTS / row.name / f"{name}.json")
        tell(f"  test {_said(result['test'])}  {result['seconds']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
