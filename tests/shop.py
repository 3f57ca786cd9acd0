"""A shop whose log and tables have every kind of column there is, and gaps in each."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.prepare import prepare
from recsys.data.sources import Parquet, Tables

USERS, ITEMS = 12, 20
SCHEMA: dict[str, Any] = {
    "interactions": {"user": "user", "item": "item", "time": "time", "event": "event"},
    "items": {
        "id": "item",
        "features": {
            "brand": "categorical",
            "tags": "multi",
            "price": "numeric",
            "title": "text",
            "added": "timestamp",
            "picture": "vector",
            "items.sold": "numeric",  # a name that no attribute of a module could have
        },
    },
    "users": {"id": "user", "features": {"country": "categorical", "age": "numeric"}},
}


def tables(folder: Path) -> list[Parquet]:
    """Item 0 has no features at all; item 19 is taken first at the end, and its brand is seen nowhere else."""
    rng = np.random.default_rng(0)
    log: list[dict[str, Any]] = [
        {
            "user": f"u{user}", "item": f"i{(3 * user + 7 * step) % (ITEMS - 1)}",
            "time": 1_000_000 + 100 * step + user, "event": ("view", "cart", "buy")[(user + step) % 3],
        }
        for user in range(USERS)
        for step in range(3 + user)
    ]  # fmt: skip
    log.append({"user": "u0", "item": "i19", "time": 2_000_000, "event": "buy"})
    items: list[dict[str, Any]] = [{"item": "i0"}] + [
        {
            "item": f"i{item}", "brand": "late" if item == 19 else f"b{item % 4}",
            "tags": [f"t{item % 3}", f"t{item % 5}"],
            "price": None if item == 5 else 10.0 * item, "title": f"thing number {item}", "added": 1_000 * item,
            "picture": None if item == 6 else rng.normal(size=4).tolist(), "items.sold": float(item),
        }
        for item in range(1, ITEMS)
    ]  # fmt: skip
    users = [
        {"user": f"u{user}", "country": f"c{user % 3}", "age": None if user == 2 else 20.0 + user}
        for user in range(USERS)
    ]
    paths = []
    for name, rows in (("log", log), ("items", items), ("users", users)):
        paths.append(folder / f"{name}.parquet")
        columns = list(dict.fromkeys(key for row in rows for key in row))
        pq.write_table(pa.table({c: [row.get(c) for row in rows] for c in columns}), paths[-1])
    return [Parquet(str(path)) for path in paths]


def prepared(folder: Path) -> Path:
    """The path of the prepared dataset."""
    return prepare(Tables(SCHEMA, *tables(folder)), folder / "dataset").path


def prepared_bare(folder: Path) -> Path:
    """The same log with neither times nor events nor features."""
    plain = Tables({"interactions": {"user": "user", "item": "item"}}, tables(folder)[0])
    return prepare(plain, folder / "dataset", max_rejected=1).path
