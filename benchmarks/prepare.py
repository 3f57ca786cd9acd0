"""How fast `prepare` is and how much memory it takes, beside merely reading the file and beside pandas.

Run as `python -m benchmarks.prepare`. Every figure comes from a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from benchmarks.table import emit, parser
from recsys.data.prepare import prepare
from recsys.data.sources import Csv, Parquet, Source, Tables
from recsys.data.synthetic import Synthetic

COLUMNS = ["user_id", "item_id", "time", "event"]


def write(log: Path, rows: int) -> None:
    """Writes a synthetic log: 20 rows a user, 100 rows an item."""
    shop = Synthetic(users=max(rows // 20, 1), items=max(rows // 100, 10), interactions=rows)
    batches = (batch.columns for batch in shop.interactions.batches(COLUMNS))
    first = next(batches)
    # Plain strings, as a log has them; the dictionary that the generator uses would flatter us.
    schema = pa.schema([field.with_type(pa.string()) if field.name == "event" else field for field in first.schema])
    with contextlib.ExitStack() as stack:
        if log.suffix == ".csv":
            writer = stack.enter_context(pa.csv.CSVWriter(log, schema))
        else:
            writer = stack.enter_context(pq.ParquetWriter(log, schema))
        for batch in itertools.chain([first], batches):
            writer.write_batch(batch.cast(schema))


def ours(log: Path, rows: int) -> None:
    """Prepares the log, with the catalogue of the same shop."""
    shop = Synthetic(users=max(rows // 20, 1), items=max(rows // 100, 10), interactions=0)
    source: Source = Csv(str(log)) if log.suffix == ".csv" else Parquet(str(log))
    tables = Tables(shop.schema, source, shop.items)
    with tempfile.TemporaryDirectory(dir=log.parent) as out:
        prepare(tables, Path(out) / "dataset")


def floor(log: Path, rows: int) -> None:
    """Reads every batch of the log with pyarrow and does nothing with it."""
    if log.suffix == ".csv":
        read = sum(batch.num_rows for batch in pa.csv.open_csv(log))
    else:
        read = sum(batch.num_rows for batch in pq.ParquetFile(log).iter_batches())
    if read != rows:
        raise ValueError(f"{log} has {read} rows, not {rows}")


def pandas(log: Path, rows: int) -> None:
    """What one would write by hand: codes for ids and a stable sort, without a check on any row."""
    frame = pd.read_csv(log) if log.suffix == ".csv" else pd.read_parquet(log)
    for column in ("user_id", "item_id", "event"):
        frame[column] = pd.factorize(frame[column])[0]
    frame.sort_values(["user_id", "time"], kind="stable")


TASKS: dict[str, Callable[[Path, int], None]] = {"write": write, "ours": ours, "floor": floor, "pandas": pandas}
NAMES = {
    "floor": "floor: read it, pyarrow",
    "ours": "recsys prepare",
    "pandas": "pandas: read, factorize, sort",
}


def _measured(task: str, log: Path, rows: int) -> dict[str, float]:
    """Runs a task in a fresh process; seconds without the imports, peak memory with them."""
    command = [sys.executable, "-m", "benchmarks.prepare", "--task", task, "--log", str(log), "--rows", str(rows)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def _task(task: str, log: Path, rows: int) -> None:
    started = time.perf_counter()
    TASKS[task](log, rows)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


def main() -> None:
    """Measures, each in a process of its own, and prints."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--rows", type=int, default=20_000_000, help="rows of the Parquet log; the CSV has a tenth")
    arguments.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    arguments.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    said = arguments.parse_args()
    if said.task:
        _task(said.task, said.log, said.rows)
        return
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in (("log.parquet", said.rows), ("log.csv", said.rows // 10)):
            log = Path(folder) / name
            print(f"writing {rows:,} rows to {name} …", file=sys.stderr)
            _measured("write", log, rows)
            for task, what in NAMES.items():
                print(f"{what} …", file=sys.stderr)
                figures = _measured(task, log, rows)
                table.append(
                    {
                        "format": log.suffix[1:],
                        "rows": rows,
                        "what": what,
                        "seconds": round(figures["seconds"], 2),
                        "rows/s": round(rows / figures["seconds"]),
                        "peak GB": round(figures["peak"] / 1e9, 2),
                    }
                )
            log.unlink()
    emit("prepare: rows a second and peak memory", table, as_json=said.json)


if __name__ == "__main__":
    main()
