"""One peer of the quality table: fits on the interactions that it is handed, and answers every query with a list.

Runs with the interpreter that `make benchmarks-peers` makes, imports nothing of ours, and is started by
`python -m benchmarks.quality.peers`, which wrote the questions, reads the answers and measures them:

    .venv-peers/bin/python benchmarks/peers/answer.py ease --asked DIR --answered DIR --settings '{"regularization": 9}'

What it reads below --asked is described in benchmarks/quality/peers.py. Below --answered it writes validation.npy and
test.npy, int32 [num_queries, depth], item rows, best first, those of the query's history left out, −1 behind a shorter
list; and said.json with settings, versions, threads and seconds. Progress goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

PARTS = ("validation", "test")
Answer = Callable[["Histories"], np.ndarray]


@dataclass(frozen=True)
class Histories:
    """What the users of some queries took before them, oldest first.

    Attributes:
        offsets: int64 [num_queries + 1]; query q's history stands between offsets q and q + 1.
        items: int32 [n], item rows.
        num_items: the size of the catalogue.
    """

    offsets: np.ndarray
    items: np.ndarray
    num_items: int

    @property
    def owner(self) -> np.ndarray:
        """int64 [n]: the query of each item."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @property
    def taken(self) -> sparse.csr_matrix:
        """float32 [num_queries, num_items]: 1 where the history has the item."""
        return binary(self.owner, self.items, (len(self.offsets) - 1, self.num_items))


@dataclass(frozen=True)
class Asked:
    """Training interactions, users in turn and each one's oldest first, and how long lists are to be."""

    folder: Path
    users: np.ndarray
    items: np.ndarray
    num_users: int
    num_items: int
    depth: int

    @classmethod
    def read(cls, folder: Path) -> Asked:
        """What may be learnt from; queries are read when the model is fitted."""
        said = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
        return cls(folder, np.load(folder / "train_user.npy"), np.load(folder / "train_item.npy"), **said)

    @property
    def taken(self) -> sparse.csr_matrix:
        """float32 [num_users, num_items]: 1 where the user took the item in training."""
        return binary(self.users, self.items, (self.num_users, self.num_items))

    def histories(self, part: str) -> Histories:
        """Those of a held-out part's queries."""
        offsets, items = (np.load(self.folder / f"{part}_{name}.npy") for name in ("offsets", "items"))
        return Histories(offsets, items, self.num_items)


def binary(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    """1 wherever a pair occurs, however often."""
    matrix = sparse.csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=shape)
    matrix.data[:] = 1
    return matrix


def ease(asked: Asked, *, regularization: float) -> Answer:
    """EASE: an item is scored by a regression on the history, its own weight held at nought.

    Steck 2019, arXiv 1905.03375, equation 8: B = I − P · diag(1 / P), P = (XᵀX + λI)⁻¹, and scores X · B. The identity
    only matters to items of the history, which are left out. RecTools 0.19's EASEModel finds the same B, but answers
    only users whom it was fitted on, ranks by X · Bᵀ, and holds several matrices [N, N] where this holds one.
    """
    from scipy.linalg import lapack

    tell(f"inverting {asked.num_items:,} × {asked.num_items:,}, {4 * asked.num_items**2 / 1e9:.1f} GB")
    inverse = (asked.taken.T @ asked.taken).toarray(order="F")
    inverse[np.diag_indices(asked.num_items)] += regularization
    inverse, failed = lapack.spotrf(inverse, lower=1, overwrite_a=1)  # in place, the lower triangle alone
    if failed:
        raise SystemExit(f"XᵀX + {regularization} I is not positive definite in float32; raise regularization")
    inverse, _ = lapack.spotri(inverse, lower=1, overwrite_c=1)
    for start in range(0, asked.num_items, 1024):
        stop = start + 1024
        inverse[start:stop, start:stop] = np.tril(inverse[start:stop, start:stop])
        inverse[start:stop, start:stop] += np.tril(inverse[start:stop, start:stop], -1).T
        inverse[start:stop, stop:] = inverse[stop:, start:stop].T
    rows = inverse.T  # the same, in the order of memory that sparse products take without a copy
    own = np.diagonal(inverse).copy()

    def answer(histories: Histories) -> np.ndarray:
        taken, lists = histories.taken, []
        for start in range(0, taken.shape[0], 512):
            some = taken[start : start + 512]
            lists.append(best(-(some @ rows) / own, some, asked.depth))
        return np.concatenate(lists)

    return answer


def best(scores: np.ndarray, taken: sparse.csr_matrix, depth: int) -> np.ndarray:
    """The best items of each row of scores [Q, N], but for those taken; int32 [Q, depth], −1 behind."""
    scores[taken.nonzero()] = -np.inf
    kept = min(depth, scores.shape[1])
    top = np.argpartition(-scores, kept - 1, axis=1)[:, :kept]
    of_top = np.take_along_axis(scores, top, axis=1)
    order = np.argsort(-of_top, axis=1, kind="stable")
    lists = np.full((len(scores), depth), -1, dtype=np.int32)
    found = np.take_along_axis(top, order, axis=1)
    lists[:, :kept] = np.where(np.isneginf(np.take_along_axis(of_top, order, axis=1)), -1, found)
    return lists


def ials(
    asked: Asked, *, factors: int, regularization: float, alpha: float, iterations: int, seed: int, threads: int
) -> Answer:
    """Implicit-feedback ALS of the library `implicit`; a query's vector is solved for from its history."""
    from implicit.cpu.als import AlternatingLeastSquares  # type: ignore[import-not-found]

    model = AlternatingLeastSquares(
        factors, regularization, alpha, iterations=iterations, num_threads=threads, random_state=seed
    )
    model.fit(asked.taken, show_progress=False)

    def answer(histories: Histories) -> np.ndarray:
        taken, lists = histories.taken, []
        for start in range(0, taken.shape[0], 4096):
            some = taken[start : start + 4096]
            found, scores = model.recommend(
                np.arange(some.shape[0]), some, N=min(asked.depth, asked.num_items), recalculate_user=True
            )
            listed = np.full((some.shape[0], asked.depth), -1, dtype=np.int32)
            # What it leaves out, it gives the least number there is.
            listed[:, : found.shape[1]] = np.where(scores > np.finfo(np.float32).min, found, -1)
            lists.append(listed)
        return np.concatenate(lists)

    return answer


def trainer(precision: str) -> Any:
    """What RecTools trains with; by name, since it writes the name into checkpoints."""
    import pytorch_lightning as pl

    return pl.Trainer(
        precision=precision,  # type: ignore[arg-type]
        devices=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def sasrec(
    asked: Asked, last: Path, *, epochs: int, minutes: float | None, precision: str, seed: int, **sizes: Any
) -> tuple[Answer, int]:
    """RecTools' SASRec, which goes on from `last` if a stopped run left it; so many epochs were trained."""
    import pandas as pd
    import pytorch_lightning as pl
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    def as_dataset(users: np.ndarray, items: np.ndarray) -> Any:
        order = pd.to_datetime(
            np.arange(len(items)), unit="s"
        )  # they stand oldest first, and the order is all it reads
        columns = {Columns.User: users, Columns.Item: items, Columns.Weight: 1.0, Columns.Datetime: order}
        return Dataset.construct(pd.DataFrame(columns))

    began = time.perf_counter()
    data = as_dataset(asked.users, asked.items)
    pl.seed_everything(seed)
    if last.exists():
        model = SASRecModel.load_from_checkpoint(last)
    else:
        model = SASRecModel(
            epochs=epochs, get_trainer_func=trainer, get_trainer_func_kwargs={"precision": precision}, **sizes
        )
    done = model.fit_trainer.fit_loop.epoch_progress.current.ready if last.exists() else 0
    pl.seed_everything(seed + done)  # so that what is gone on with does not draw the first epochs' order again
    while done < epochs and (minutes is None or done == 0 or time.perf_counter() - began < 60 * minutes):
        started = time.perf_counter()
        model.fit_partial(data, min_epochs=1, max_epochs=1)
        done += 1
        beside = last.with_suffix(".part")
        model.fit_trainer.save_checkpoint(beside)
        beside.replace(last)
        tell(f"epoch {done}/{epochs}  {time.perf_counter() - started:.0f} s")

    def answer(histories: Histories) -> np.ndarray:
        queries = np.arange(len(histories.offsets) - 1)
        lists = np.full((len(queries), asked.depth), -1, dtype=np.int32)
        found = model.recommend(
            users=queries,
            dataset=as_dataset(histories.owner, histories.items),
            k=asked.depth,
            filter_viewed=True,
            on_unsupported_targets="ignore",  # nothing of the history was in training: the list stays empty
        )
        lists[found[Columns.User].to_numpy(np.int64), found[Columns.Rank].to_numpy(np.int64) - 1] = found[Columns.Item]
        return lists

    return answer, done


def tell(line: str) -> None:
    """A line of progress."""
    print(f"  {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Fits, answers and writes; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=["ease", "ials", "sasrec"], help="which library's model")
    parser.add_argument("--asked", type=Path, required=True, help="the folder with the questions")
    parser.add_argument("--answered", type=Path, required=True, help="where lists go, and SASRec's checkpoint")
    parser.add_argument("--settings", type=json.loads, default={}, help="arguments of the model, as JSON")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random (0)")
    parser.add_argument("--threads", type=int, default=1, help="threads that compute (1)")
    parser.add_argument("--minutes", type=float, help="SASRec begins no epoch after so many; no bound if left out")
    said = parser.parse_args()
    warnings.filterwarnings("ignore")
    said.answered.mkdir(parents=True, exist_ok=True)
    asked, reached = Asked.read(said.asked), {}
    began = time.perf_counter()
    with threadpool_limits(said.threads):
        if said.peer == "ease":
            answer, libraries = ease(asked, **said.settings), ["scipy"]
        elif said.peer == "ials":
            answer = ials(asked, **said.settings, seed=said.seed, threads=said.threads)
            libraries = ["pm-implicit"]
        else:
            import torch

            torch.set_num_threads(said.threads)
            last = said.answered / "last.ckpt"
            answer, epochs = sasrec(asked, last, **said.settings, minutes=said.minutes, seed=said.seed)
            libraries, reached = ["rectools", "torch", "pytorch_lightning"], {"epochs": epochs}
        fitted = time.perf_counter()
        for part in PARTS:
            np.save(said.answered / f"{part}.npy", answer(asked.histories(part)))
    seconds = {"fit": round(fitted - began, 1), "answer": round(time.perf_counter() - fitted, 1)}
    tell(f"fitted in {seconds['fit']} s, answered in {seconds['answer']} s")
    result = {
        "settings": {**said.settings, **reached},
        "versions": {name: version(name) for name in (*libraries, "numpy")},
        "seconds": seconds,
        "threads": said.threads,
    }
    (said.answered / "said.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
