"""Two nights of a small shop: what is new on the second comes after what the first knew, as where a dataset grows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from recsys.data.prepare import prepare
from recsys.data.sources import Parquet, Tables

SCHEMA: dict[str, Any] = {
    "interactions": {"user": "user", "item": "item", "time": "time", "event": "event"},
    "items": {"id": "item", "features": {"brand": "categorical", "tags": "multi", "price": "numeric"}},
    "users": {"id": "user", "features": {"country": "categorical"}},
}
ITEMS, USERS = 10, 14
ARCHITECTURE: dict[str, Any] = {
    "dimension": 8,
    "max_length": 6,
    "blocks": 1,
    "heads": 2,
    "dropout": 0.2,
    "id_dropout": 0.2,
}


@dataclass(frozen=True)
class Nights:
    """Where they lie, and a configuration of each."""

    first: Path
    second: Path
    config: Path
    config_2: Path


def tables(night: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Log, items and users of night 1 or 2.

    Nobody took "cold" before the second night, whose catalogue also has "new", of a new brand; "bare" stands in the
    log alone, without features, as item 0 always did. Users 0 to 3 and a new one have something new, user 13 one item.
    """
    events = ("view", "cart")
    log: list[dict[str, Any]] = [
        {
            "user": f"u{user}", "item": f"i{(user + 3 * step) % ITEMS}", "event": events[(user + step) % 2],
            "time": 1_000_000 + 60 * step + user,
        }
        for user in range(USERS) for step in range(4 + user % 7 if user < 13 else 1)
    ]  # fmt: skip
    items: list[dict[str, Any]] = [
        {"item": f"i{i}", "brand": f"b{i % 3}", "tags": [f"t{i % 2}", f"t{i % 5}"], "price": 10.0 * i}
        for i in range(1, ITEMS)
    ]
    items.append({"item": "cold", "brand": "b1", "tags": ["t0"], "price": 5.0})
    users = [{"user": f"u{user}", "country": f"c{user % 3}"} for user in range(USERS)]
    if night == 2:
        taken = ("cold", "new", "bare", "i1", "i2")
        for user in ("u0", "u1", "u2", "u3", "someone"):
            log += [
                {"user": user, "item": item, "event": "zoom", "time": 2_000_000 + 60 * step}
                for step, item in enumerate(taken)
            ]
        items.append({"item": "new", "brand": "a new one", "tags": ["t0", "a new one"], "price": 7.0})
        users.append({"user": "someone", "country": "a new one"})
    return log, items, users


def prepared(folder: Path, night: int, schema: dict[str, Any] | None = None) -> Path:
    """The path of the dataset of one night."""
    paths = []
    for name, rows in zip(("log", "items", "users"), tables(night), strict=True):
        paths.append(folder / f"{name}-{night}.parquet")
        pq.write_table(pa.Table.from_pylist(rows), paths[-1])
    return prepare(Tables(schema or SCHEMA, *(Parquet(str(path)) for path in paths)), folder / f"dataset-{night}").path


def two_nights(folder: Path) -> Nights:
    """Prepares both."""
    datasets = [prepared(folder, night) for night in (1, 2)]
    configs = []
    for dataset in datasets:
        config = {
            "trainer": {"max_epochs": 6, "check_val_every_n_epoch": 2, "precision": "32-true"},
            "data": {
                "dataset": str(dataset),
                "split": {"class_path": "recsys.data.split.LeaveOneOut"},
                "batch_positions": 30,
            },
            "model": {"architecture": ARCHITECTURE, "learning_rate": 0.02, "warmup_steps": 3},
            "out": str(folder / "run"),
        }
        configs.append(folder / f"{dataset.name}.yaml")
        configs[-1].write_text(yaml.safe_dump(config))
    return Nights(*datasets, *configs)
