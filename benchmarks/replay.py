"""A week of MovieLens 1M replayed as seven unattended nights, four of them poisoned first. Needs RECSYS_DATA_DIR.

Every night the day's ratings arrive as one more file and `recsys nightly` runs in a process of its own, as a scheduler
would start it. On four days the file first arrives poisoned, or the configuration is wrong: that night must be refused
by the gate meant for it, with the live bundle as it was. Then the job runs again on the day as it should have been.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from benchmarks.table import emit, parser
from recsys.data.movielens import MovieLens
from recsys.nightly.measured import CANDIDATE, LIVE
from recsys.registry import Registry

FIRST = datetime(2000, 12, 3, tzinfo=UTC)  # the last day of the log that the first night finds
POISONS = {  # by night: what is wrong, and the gates that may say so
    2: ("half the rows broken", ("rejected rows",)),
    3: ("labels shuffled", ("popularity", "live")),
    4: ("one category gone", ("categories",)),
    5: ("exploding learning rate", ("training", "vectors")),
}
GONE = "Drama"


def main() -> None:
    """Replays the week; exits with 1 unless every night ended as it should."""
    options = parser(__doc__.split("\n", 1)[0])
    options.add_argument("--nights", type=int, default=7, help="how many days to replay")
    options.add_argument("--out", type=Path, default=Path("build/replay"), help="made anew; reports stay there")
    said = options.parse_args()
    source = Path(os.environ["RECSYS_DATA_DIR"]) / "ml-1m"
    shutil.rmtree(said.out, ignore_errors=True)
    log = ratings(source)
    config = configured(said.out, source)
    rows: list[dict[str, Any]] = []
    live: str | None = None
    for night in range(1, said.nights + 1):
        day = FIRST + timedelta(days=night - 1)
        begins = day if night > 1 else datetime(2000, 1, 1, tzinfo=UTC)
        today = between(log, begins, day + timedelta(days=1))
        file = said.out / "log" / f"{day:%Y-%m-%d}.csv"
        poison, gates = POISONS.get(night, (None, ()))
        if poison is not None:
            _poisoned(today, poison, source).to_csv(file, index=False)
            more = ["--fit.model.learning_rate", "1e4", "--warm_start", "null"] if "rate" in poison else []
            row = _night(config, said.out, more)
            refused = row["outcome"] == "refused" and bool(set(row["failed"].split(", ")) & set(gates))
            row["as it should be"] = "yes" if refused and row.pop("live now") == live else "NO"
            rows.append({"day": f"{day:%Y-%m-%d}", "what": poison} | row)
        today.to_csv(file, index=False)
        row = _night(config, said.out, [])
        live = row.pop("live now")
        row["as it should be"] = "yes" if row["outcome"] == "promoted" else "NO"
        rows.append({"day": f"{day:%Y-%m-%d}", "what": "as it was"} | row)
    emit(f"{said.nights} nights of MovieLens 1M; reports below {said.out / 'nights'}", rows, as_json=said.json)
    promoted = Registry(said.out / "registry").log()
    print(f"promotions logged: {len(promoted)}; live: {promoted[-1].bundle if promoted else None}")
    if any(row["as it should be"] != "yes" for row in rows):
        sys.exit(1)


def _night(config: Path, out: Path, more: list[str]) -> dict[str, Any]:
    """Runs the job; what its last line and its verdict say."""
    with open(out / "nights.log", "a") as log:
        ran = subprocess.run(
            [sys.executable, "-m", "recsys.cli", "nightly", "--config", str(config), *more],
            stdout=subprocess.PIPE, stderr=log, text=True, check=False,
        )  # fmt: skip
        log.write(ran.stdout)
    said = json.loads(ran.stdout.splitlines()[-1])
    row = {"mode": None, "outcome": said["outcome"], "failed": ", ".join(said.get("failed", []))}
    row |= {"NDCG@10": None, "live's": None, "popular's": None, "queries": None}
    if said.get("report"):
        verdict = json.loads((Path(said["report"]).parent / "verdict.json").read_text())
        row["mode"] = verdict["mode"] if verdict["mode_why"] else None
        results = verdict["results"].get("results", {})
        for column, name in (("NDCG@10", CANDIDATE), ("live's", LIVE), ("popular's", "popular")):
            if name in results:
                row[column] = results[name]["accuracy"]["ndcg@10"]["value"]
        if results:
            row["queries"] = verdict["results"]["conditions"]["num_queries"]
    return row | {"seconds": said.get("seconds"), "live now": said.get("live")}


def ratings(source: Path) -> pd.DataFrame:
    """All of MovieLens 1M's."""
    columns = ["user_id", "item_id", "rating", "time"]
    return pd.read_csv(source / "ratings.dat", sep="::", engine="python", names=columns)


def between(log: pd.DataFrame, begins: datetime, ends: datetime) -> pd.DataFrame:
    """What was rated from one moment to before another."""
    return log[(log.time >= begins.timestamp()) & (log.time < ends.timestamp())]


def _poisoned(today: pd.DataFrame, poison: str, source: Path) -> pd.DataFrame:
    today = today.copy()
    if poison == "half the rows broken":
        today["time"] = today["time"].astype(str)
        today.iloc[::2, today.columns.get_loc("time")] = "yesterday"
    elif poison == "labels shuffled":
        today["item_id"] = np.random.default_rng(0).permutation(today["item_id"].to_numpy())
    elif poison == "one category gone":
        films = pd.read_csv(
            source / "movies.dat", sep="::", engine="python", names=["item_id", "title", "genres"], encoding="latin-1"
        )
        gone = set(films[films.genres.str.contains(GONE)].item_id)
        today = today[~today.item_id.isin(gone)]
    return today


def configured(out: Path, source: Path) -> Path:
    """Writes the configuration: a log of a file a day, MovieLens's own catalogue, the demo's training."""
    (out / "log").mkdir(parents=True)
    schema = MovieLens(str(source)).schema.to_dict()
    del schema["items"]["features"]["year"]  # which MovieLens's own reader takes from the title
    csv = "recsys.data.sources.Csv"
    dat = {"delimiter": "::", "encoding": "latin-1", "quote": ""}
    films, users = ["item_id", "title", "genres"], ["user_id", "gender", "age", "occupation", "zip_code"]
    fit = yaml.safe_load(Path("configs/ml-1m.yaml").read_text())
    span = {"validation": "1d", "test": "1d"}
    config = {
        "tables": {
            "class_path": "recsys.data.sources.Tables",
            "init_args": {
                "schema": schema,
                "interactions": {"class_path": csv, "init_args": {"path": str(out / "log")}},
                "items": {"class_path": csv, "init_args": {"path": str(source / "movies.dat"), "columns": films} | dat},
                "users": {"class_path": csv, "init_args": {"path": str(source / "users.dat"), "columns": users} | dat},
            },
        },
        "registry": str(out / "registry"),
        "work": str(out / "nights"),
        "keep": 20,
        "fit": {
            "trainer": fit["trainer"],
            "model": fit["model"],
            "data": {"split": {"class_path": "recsys.data.split.TimeSplit", "init_args": span}},
        },
        "warm_start": {"fit": {"trainer": {"max_epochs": 2}, "model": {"learning_rate": 2e-3}}},
    }
    (out / "nightly.yaml").write_text(yaml.safe_dump(config))
    return out / "nightly.yaml"


if __name__ == "__main__":
    main()
