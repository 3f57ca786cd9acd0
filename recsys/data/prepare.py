"""`prepare`: from raw tables to a Dataset, with every row that it could not use counted and kept aside."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.artifacts import writing
from recsys.data.catalogue import read_catalogue
from recsys.data.dataset import FORMAT_VERSION, KIND, Dataset
from recsys.data.log import Log, read_log
from recsys.data.order import by_first_appearance, repeats, stable_order
from recsys.data.progress import Progress
from recsys.data.quarantine import Quarantine, as_text
from recsys.data.sources import Tables
from recsys.ids import IdMap


class PrepareError(Exception):
    """The tables cannot be prepared; the message says what was wrong with most rows and where to see them."""


def prepare(tables: Tables, out: Path, *, max_rejected: float = 0.01) -> Dataset:
    """Turns raw tables into a Dataset.

    Interactions are sorted by user, then time; ties keep the log's order, and so does a log without times. Rows of
    users and items are numbered by first appearance in time; those that only the catalogue or the user table lists
    follow. Of interactions equal in user, item, time, event and part the first is kept. Items that the log has and the
    catalogue has not are kept, without features, and counted. A feature's value that cannot be read becomes null and
    is counted.

    Args:
        tables: the schema and the sources.
        out: the directory to write; it must not exist.
        max_rejected: the largest share of a table's rows that may be rejected.

    Returns:
        The dataset, opened.

    Raises:
        PrepareError: too many rows were rejected, or none is left. The rejected rows are then left beside `out`, in
            `<out>.rejected.parquet`, and nothing at `out`.
        SourceError: a source cannot be read.
        ArtifactError: `out` exists.
    """
    out = Path(out)
    beside = out.with_name(f"{out.name}.rejected.parquet")
    beside.unlink(missing_ok=True)  # of a run before
    with writing(out, KIND, FORMAT_VERSION) as draft:
        rejected = draft.path / "rejected.parquet"
        quarantine = Quarantine(rejected)
        try:
            draft.content.update(_prepare(tables, draft.path, max_rejected, quarantine))
        except PrepareError as error:
            quarantine.close()
            rejected.rename(beside)
            raise PrepareError(f"{error}; all rejected rows are in {beside}") from None
        finally:
            quarantine.close()
    dataset = Dataset.open(out, check=False)
    print(summary(dataset))
    return dataset


def summary(dataset: Dataset) -> str:
    """What `prepare` counted, as a small table."""
    counts = dataset.manifest.content["counts"]
    lines: list[tuple[str, Any]] = [
        (f"  {name.replace('_', ' ')}", counts[name]) for name in counts if isinstance(counts[name], int)
    ]
    for group in ("rejected", "values_not_read"):
        lines.append((f"  {group.replace('_', ' ')}", sum(counts[group].values())))
        lines += [(f"    {reason}", number) for reason, number in counts[group].items()]
    if moments := dataset.manifest.content["time_range"]:
        said = (datetime.fromtimestamp(moment / 1000, UTC).isoformat(" ", "seconds")[:19] for moment in moments)
        lines += zip(("  from", "  to"), said, strict=True)
    texts = [(name, f"{value:,}" if isinstance(value, int) else value) for name, value in lines]
    left, right = (max(len(line[side]) for line in texts) for side in (0, 1))
    return "\n".join([str(dataset.path), *(f"{name.ljust(left)}  {value.rjust(right)}" for name, value in texts)])


def _prepare(tables: Tables, into: Path, max_rejected: float, quarantine: Quarantine) -> dict[str, Any]:
    schema = tables.schema
    with Progress("interactions") as progress:
        log = read_log(tables.interactions, schema.interactions, quarantine, progress.add)
    in_time = np.arange(len(log)) if log.times is None else stable_order(log.times)
    user_rows, user_ids = _numbered(log.users, log.user_ids, in_time)
    item_rows, item_ids = _numbered(log.items, log.item_ids, in_time)
    order = _sorted(log, in_time, user_rows)
    repeated = np.empty(0, dtype=np.int64)
    if log.times is not None and len(order):
        order, repeated = _without_repeats(log, order, quarantine)
    _refuse_too_many("interactions", log.read, quarantine.counts, max_rejected, quarantine)
    if not len(order):
        raise PrepareError(f"no row of the log can be used ({log.read} were read)")

    counts: dict[str, Any] = {"interactions_read": log.read, "interactions": len(order), "users": 0, "items": 0}
    values_not_read: Counter[str] = Counter()
    decoded = log.decoded_as_cp1252
    all_ids = {"users": user_ids, "items": item_ids}
    for name, source, entity in (("users", tables.users, schema.users), ("items", tables.items, schema.items)):
        if source is not None and entity is not None:
            before, ids = quarantine.counts.copy(), all_ids[name]
            with Progress(name) as progress:
                catalogue = read_catalogue(source, entity, ids.type, name, quarantine, progress.add)
            _refuse_too_many(name, catalogue.read, quarantine.counts - before, max_rejected, quarantine)
            beyond = catalogue.beyond(ids)
            counts[f"{name}_without_a_row_in_their_table"] = len(ids) + len(beyond) - len(catalogue.ids)
            counts[f"{name}_without_interactions"] = len(beyond)
            all_ids[name] = pa.concat_arrays([ids, beyond])
            if entity.features:
                catalogue.write(into / f"{name.removesuffix('s')}_features.parquet", all_ids[name])
            values_not_read.update(catalogue.values_not_read)
            decoded += catalogue.decoded_as_cp1252
        counts[name] = len(all_ids[name])
    counts["decoded_as_cp1252"] = decoded
    counts["values_not_read"] = dict(values_not_read.most_common())
    counts["rejected"] = dict(quarantine.counts.most_common())

    lengths = np.zeros(counts["users"], dtype=np.int64)
    # In the log's order, not the sorted one: gathering tens of millions of rows from all over memory takes seconds.
    lengths[user_rows] = np.bincount(log.users, minlength=len(user_ids))
    lengths -= np.bincount(user_rows[log.users[repeated]], minlength=len(lengths))
    np.save(into / "user_offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))
    np.save(into / "items.npy", item_rows[log.items[order]])
    for column in ("times", "events", "weights", "parts"):
        if (values := getattr(log, column)) is not None:
            np.save(into / f"{column}.npy", values[order])
    content: dict[str, Any] = {
        "schema": schema.to_dict(),
        "event_names": log.event_names,
        "counts": counts,
        "time_range": None if log.times is None else [int(log.times.min()), int(log.times.max())],
    }
    for name, ids in (("user_ids", all_ids["users"]), ("item_ids", all_ids["items"])):
        id_map = IdMap(ids)
        id_map.save(into / f"{name}.arrow")
        content[name] = id_map.digest
    return content


def _numbered(codes: np.ndarray, ids: pa.Array, in_time: np.ndarray) -> tuple[np.ndarray, pa.Array]:
    """The row of each code, int32 [number of ids], and the ids in row order: by first appearance in time."""
    code_of_row = by_first_appearance(codes[in_time], len(ids))
    row_of_code = np.empty(len(ids), dtype=np.int32)
    row_of_code[code_of_row] = np.arange(len(ids), dtype=np.int32)
    return row_of_code, ids.take(pa.array(code_of_row))


def _sorted(log: Log, in_time: np.ndarray, user_rows: np.ndarray) -> np.ndarray:
    """int64 [n]: the log's rows by user, then part if there is one, then time."""
    order = in_time
    if log.parts is not None:
        order = order[stable_order(log.parts[order])]
    return order[stable_order(user_rows[log.users[order]])]


def _without_repeats(log: Log, order: np.ndarray, quarantine: Quarantine) -> tuple[np.ndarray, np.ndarray]:
    """The order [n] without rows that equal an earlier one in all but weight, and those; they go to the quarantine."""
    grouping = [column for column in (log.users, log.times, log.parts) if column is not None]
    differing = [column for column in (log.items, log.events) if column is not None]
    places = repeats(order, grouping, differing)
    repeated = order[places]
    for start in range(0, len(repeated), 1 << 16):
        rows = repeated[start : start + (1 << 16)]
        said = {"user": log.user_ids.take(log.users[rows]), "item": log.item_ids.take(log.items[rows])}
        if log.times is not None:
            said["time in ms"] = pa.array(log.times[rows])
        raw = as_text(pa.RecordBatch.from_pydict(said))
        sources, numbers = zip(*(log.origins.of(row) for row in rows), strict=True)
        quarantine.add(sources, numbers, ["duplicate"] * len(rows), raw)
    return (np.delete(order, places) if len(places) else order), repeated


def _refuse_too_many(name: str, read: int, rejected: Counter[str], max_rejected: float, quarantine: Quarantine) -> None:
    if rejected.total() <= max_rejected * read:
        return
    reason, number = rejected.most_common(1)[0]
    raise PrepareError(
        f"{rejected.total()} of {read} rows of {name} were rejected, more than max_rejected={max_rejected:g} allows; "
        f"the leading reason is {reason!r} with {number}, such as {quarantine.examples[reason]}"
    )
