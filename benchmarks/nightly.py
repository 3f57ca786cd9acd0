"""What a night of `recsys nightly` costs beside its floors: the same work, done raw. Needs RECSYS_DATA_DIR.

Nights of MovieLens 1M, the first trained in full, those after going on from it; of these, the median night. Each step
stands beside the least that must be done for it: rows read and written by pyarrow, factorised and sorted by pandas; the
towers trained by a plain PyTorch loop over the same batches, with the same validations; a forward pass; FAISS fed the
same vectors; the same questions embedded, scored, and their ten best chosen by NumPy; a bundle's bytes copied. What is
above the floors is the job's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.csv
import pyarrow.parquet as pq
import torch
import yaml
from torch.nn import functional as F

from benchmarks.replay import FIRST, between, configured, ratings
from benchmarks.table import emit, parser
from recsys.data.batches import query_loader
from recsys.data.dataset import Dataset
from recsys.data.module import HistoryData
from recsys.data.split import TimeSplit, queries_of, split_of
from recsys.index.engine import faiss
from recsys.model.embed import Catalogue, Trained, query_vectors
from recsys.model.losses import FullSoftmax, Step
from recsys.model.towers import Sizes, Towers
from recsys.nightly.measured import CANDIDATE, LIVE, opened
from recsys.nightly.night import nights
from recsys.seal import embed
from recsys.train import bf16_pays


def main() -> None:
    """Prints a row a step, for a night in full and for the median of the warm ones."""
    options = parser(__doc__.split("\n", 1)[0])
    options.add_argument("--out", type=Path, default=Path("build/nightly"), help="made anew")
    options.add_argument("--warm", type=int, default=3, help="how many nights are warm")
    said = options.parse_args()
    shutil.rmtree(said.out, ignore_errors=True)
    source = Path(os.environ["RECSYS_DATA_DIR"]) / "ml-1m"
    config, log = configured(said.out, source), ratings(source)
    warm: list[list[dict[str, Any]]] = []
    for number in range(1 + said.warm):
        begins = FIRST + timedelta(days=number)
        today = between(log, begins if number else FIRST - timedelta(days=365), begins + timedelta(days=1))
        today.to_csv(said.out / "log" / f"{number}.csv", index=False)
        began = time.perf_counter()
        command = [sys.executable, "-m", "recsys.cli", "nightly", "--config", str(config)]
        with open(said.out / "nights.log", "a") as printed:
            subprocess.run(command, stdout=printed, stderr=subprocess.STDOUT, check=True)
        rows = _rows(said.out, config, time.perf_counter() - began, number)
        if number:
            warm.append(rows)
        else:
            emit("a night of MovieLens 1M, in full", rows, as_json=said.json)
    warm.sort(key=lambda rows: rows[-1]["own share %"])
    shares = ", ".join(f"{rows[-1]['own share %']:.1f}" for rows in warm)
    emit(f"a night of MovieLens 1M, warm: the median of own shares {shares} %", warm[len(warm) // 2], as_json=said.json)


def _rows(out: Path, config: Path, wall: float, number: int) -> list[dict[str, Any]]:
    night = nights(out / "nights")[-1]
    folder, took = night.folder, night.seconds
    with tempfile.TemporaryDirectory() as scratch:
        floors: dict[str, Callable[[], object]] = {
            "snapshot": lambda: _copied(out / "log" / f"{number}.csv", Path(scratch)),
            "prepare": lambda: _sorted(Path(scratch), nights(out / "nights")[-2].folder if number else None),
            "fit": lambda: _trained(folder, config, warm=bool(number)),
            "embed": lambda: embed(Trained.open(folder / "fit" / "best.ckpt"), Dataset.open(folder / "prepare")),
            "index": lambda: _indexed(folder),
            "evaluate": lambda: _asked(folder),
            "seal": lambda: shutil.copytree(folder / "seal", Path(scratch) / "sealed"),
            "publish": lambda: shutil.copytree(folder / "publish", Path(scratch) / "published"),
            "starting": _imported,
        }
        rows: list[dict[str, Any]] = []
        for step in ("starting", *took):
            seconds = wall - sum(took.values()) if step == "starting" else took[step]
            floor = _timed(floors[step]) if step in floors else 0.0
            rows.append({"step": step, "seconds": seconds, "floor s": floor, "above it s": seconds - floor})
    total: dict[str, float] = {
        column: sum(row[column] for row in rows) for column in ("seconds", "floor s", "above it s")
    }
    rows.append({"step": "all", **total})
    return [row | {"own share %": 100 * row["above it s"] / total["seconds"]} for row in rows]


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _imported() -> None:
    libraries = "import torch, pytorch_lightning, jsonargparse, faiss, pyarrow.parquet, pandas, scipy.stats, matplotlib"
    subprocess.run([sys.executable, "-c", libraries], check=True)


def _copied(file: Path, to: Path) -> None:
    pq.write_table(pyarrow.csv.read_csv(file), to / "log.parquet")


def _sorted(folder: Path, before: Path | None) -> None:
    """The log's new rows factorised, put to what was there, and all sorted."""
    table = pd.read_parquet(folder / "log.parquet")
    users, _ = pd.factorize(table.user_id)
    items, _ = pd.factorize(table.item_id)
    times = table.time.to_numpy()
    if before is not None:
        base = Dataset.open(before / "prepare", check=False)
        users, items = np.concatenate([base.user_rows, users]), np.concatenate([base.items, items])
        times = np.concatenate([base.times, times])
    order = np.lexsort((times, users))
    for values, name in ((users, "users"), (items, "items"), (times, "times")):
        np.save(folder / f"{name}.npy", values[order])


def _trained(folder: Path, config: Path, *, warm: bool) -> None:
    """The same towers, batches, steps and validations, in a plain loop."""
    said = yaml.safe_load(config.read_text())
    fit, changed = said["fit"], said["warm_start"]["fit"] if warm else {}
    epochs = (changed.get("trainer") or fit["trainer"])["max_epochs"]
    data = HistoryData(folder / "prepare", TimeSplit("1d", "1d"))
    old = Trained.open(folder / "fit" / "best.ckpt")
    towers = Towers(
        Sizes(data.num_items, data.item_inputs, data.user_inputs, data.num_events, data.has_times),
        old.towers.architecture,
    )
    optimizer = torch.optim.AdamW(towers.parameters(), lr=1e-3, fused=True)
    loss, catalogue = FullSoftmax(), Catalogue(data.item_codes, data.trained)
    known = torch.from_numpy(np.flatnonzero(data.trained))
    asked = data.queries("validation")
    for epoch in range(epochs):
        towers.train()
        for batch in data.train_dataloader():
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16_pays()):
                item_UD = towers.item(catalogue.take(known))
                history = F.embedding(torch.searchsorted(known, batch.history.items_BL), item_UD)
                query_PD = towers.user(history, batch.history).flatten(0, 1)[batch.position_P]
                value = loss(Step(query_PD, item_UD, known, batch.target_T), None)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        if (epoch + 1) % fit["trainer"]["check_val_every_n_epoch"] == 0:
            towers.eval()
            item_ND = catalogue.embed(towers)
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16_pays()):
                for queries in data.query_loader(asked):
                    vectors = towers.user(F.embedding(queries.history.items_BL, item_ND), queries.history)
                    (vectors.flatten(0, 1)[queries.position_Q] @ item_ND.T).topk(10)


def _indexed(folder: Path) -> None:
    vectors = np.load(folder / "embed" / "item_vectors.npy")
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)


def _asked(folder: Path) -> None:
    """For each scorer that was measured, the ten best of the same questions; for towers, after a pass of theirs."""
    results, _ = opened(folder / "evaluate")
    data, trained = Dataset.open(folder / "prepare", check=False), Trained.open(folder / "fit" / "best.ckpt")
    queries = queries_of(data, split_of(trained.split).cut(data), "test")
    profiles = trained.user_encoder.encode(data.user_features())
    items = np.load(folder / "embed" / "item_vectors.npy")
    for name in results:
        vectors = np.ones((len(queries), items.shape[1]), dtype=np.float32)
        if name in (CANDIDATE, LIVE):
            batches = query_loader(data, queries, profiles, trained.towers.architecture.max_length)
            vectors = query_vectors(trained.towers, torch.from_numpy(items), batches, len(queries))
        for start in range(0, len(queries), 256):
            np.argpartition(vectors[start : start + 256] @ items.T, 10, axis=1)


if __name__ == "__main__":
    main()
