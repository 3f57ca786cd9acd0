"""`prepare`: from raw tables to a Dataset, with every row that it could not use counted and kept aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.artifacts import writing
from recsys.data.catalogue import read_catalogue
from recsys.data.dataset import FORMAT_VERSION, KIND, Dataset
from recsys.data.log import Log, read_log
from recsys.data.merge import among, inserted, places
from recsys.data.order import by_first_appearance, repeats, stable_order
from recsys.data.progress import Progress
from recsys.data.quarantine import Quarantine, as_text
from recsys.data.sources import Tables
from recsys.data.summary import summary
from recsys.ids import IdMap


class PrepareError(Exception):
    """The tables cannot be prepared; the message says what was wrong with most rows and where to see them."""


def prepare(tables: Tables, out: Path, *, max_rejected: float = 0.01, base: Path | None = None) -> Dataset:
    """Turns raw tables into a Dataset.

    Interactions are sorted by user, then time; ties keep the log's order, and so does a log without times. Rows of
    users and items are numbered by first appearance in time; those that only the catalogue or the user table lists
    follow. Of interactions equal in user, item, time, event and part the first is kept. Items that the log has and the
    catalogue has not are kept, without features, and counted. A feature's value that cannot be read becomes null and
    is counted.

    With a base, the log holds only what is new; the rest is taken from there without being parsed again. Old users,
    items and kinds of event keep their rows and codes, new ones follow; an interaction older than some of the base
    takes its place in time, and one that the base has is a duplicate. Features are those of the tables given; who was
    in the base's table and is gone from this one keeps the old features, and is counted. But for the numbering of rows
    the result is what preparing the whole log at once would give. `rejected.parquet` holds the new rejected rows only.

    Args:
        tables: the schema and the sources.
        out: the directory to write; it must not exist.
        max_rejected: the largest share of a table's rows that may be rejected; the base's rows do not count, or half a
            broken day would hide in a long log.
        base: the dataset to add to, of the same schema; it stays as it is.

    Returns:
        The dataset, opened.

    Raises:
        PrepareError: too many rows were rejected, none is left, or base and tables do not belong together. The
            rejected rows are then left beside `out`, in `<out>.rejected.parquet`, and nothing at `out`.
        SourceError: a source cannot be read.
        ArtifactError: `out` exists, or the base is no dataset or damaged.
    """
    out = Path(out)
    beside = out.with_name(f"{out.name}.rejected.parquet")
    beside.unlink(missing_ok=True)  # of a run before
    with writing(out, KIND, FORMAT_VERSION) as draft:
        old = None if base is None else _opened(base, tables)
        rejected = draft.path / "rejected.parquet"
        quarantine = Quarantine(rejected)
        try:
            draft.content.update(_prepare(tables, draft.path, max_rejected, quarantine, old))
        except PrepareError as error:
            quarantine.close()
            rejected.rename(beside)
            raise PrepareError(f"{error}; all rejected rows are in {beside}") from None
        finally:
            quarantine.close()
    dataset = Dataset.open(out, check=False)
    print(summary(dataset))
    return dataset


def _opened(path: Path, tables: Tables) -> Dataset:
    """The base, opened, if such tables can be added to it."""
    if tables.whole:
        raise PrepareError(f"the tables hold everything, not only what is new ({tables.whole}); prepare without base")
    base = Dataset.open(path)
    if base.schema != tables.schema:
        before, now = (dict(_leaves(schema.to_dict())) for schema in (base.schema, tables.schema))
        key = next(key for key in {**now, **before} if before.get(key) != now.get(key))
        raise PrepareError(
            f"{path} was prepared by another schema: there {key} is {before.get(key)!r}, here {now.get(key)!r}; "
            "prepare everything, without base"
        )
    return base


def _leaves(said: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in said.items():
        yield from _leaves(value, f"{above}{key}.") if value and isinstance(value, dict) else [(above + key, value)]


def _prepare(
    tables: Tables, into: Path, max_rejected: float, quarantine: Quarantine, base: Dataset | None
) -> dict[str, Any]:
    schema, declared = tables.schema, tables.schema.interactions
    if base is not None:  # ids stay of the type that they were first found to be
        declared = replace(
            declared,
            user_type="integer" if base.user_ids.is_integer else "string",
            item_type="integer" if base.item_ids.is_integer else "string",
        )
    with Progress("interactions") as progress:
        log = read_log(tables.interactions, declared, quarantine, progress.add, base.event_names if base else ())
    in_time = np.arange(len(log)) if log.times is None else stable_order(log.times)
    user_rows, user_ids = _numbered(log.users, log.user_ids, in_time, None if base is None else base.user_ids)
    item_rows, item_ids = _numbered(log.items, log.item_ids, in_time, None if base is None else base.item_ids)
    order = _sorted(log, in_time, user_rows)
    repeated = np.zeros(len(order), dtype=bool)
    if log.times is not None:  # without times nothing tells a repeat from one who came back
        repeated[_repeats(log, order)] = True
    if base is not None:
        parts, times, events = (None if of is None else of[order] for of in (log.parts, log.times, log.events))
        first, end = places(base, user_rows[log.users[order]], parts, times)
        if log.times is not None:
            repeated |= among(base, first, end, item_rows[log.items[order]], events)
        end = end[~repeated]
    left_out, order = order[repeated], order[~repeated]
    _put_aside(log, left_out, quarantine)
    _refuse_too_many("interactions", log.read, quarantine.counts, max_rejected, quarantine)
    if base is None and not len(order):
        raise PrepareError(f"no row of the log can be used ({log.read} were read)")

    def whole(column: str, new: np.ndarray) -> np.ndarray:
        return new if base is None else inserted(getattr(base, column), new, end)

    lengths = np.zeros(len(user_ids), dtype=np.int64)
    # In the log's order, not the sorted one: gathering tens of millions of rows from all over memory takes seconds.
    lengths[user_rows] = np.bincount(log.users, minlength=len(log.user_ids))
    lengths -= np.bincount(user_rows[log.users[left_out]], minlength=len(lengths))
    if base is not None:
        lengths[: base.num_users] += np.diff(base.user_offsets)
    items = whole("items", item_rows[log.items[order]])
    np.save(into / "items.npy", items)
    taken = {"users": lengths, "items": np.bincount(items, minlength=len(item_ids))}
    for column in ("times", "events", "weights", "parts"):
        if (values := getattr(log, column)) is not None:
            np.save(into / f"{column}.npy", whole(column, values[order]))

    # Of the log all that was ever read counts. The tables are read whole each time, so of them what is now.
    said: dict[str, Any] = {} if base is None else base.manifest.content
    of_new_log = quarantine.counts.copy()
    rejected = of_new_log + Counter(said["log"]["rejected"] if said else {})
    decoded = log.decoded_as_cp1252 + (said["log"]["decoded_as_cp1252"] if said else 0)
    of_log = {"rejected": dict(rejected.most_common()), "decoded_as_cp1252": decoded}
    counts: dict[str, Any] = {
        "interactions_read": log.read + (said["counts"]["interactions_read"] if said else 0),
        "interactions": len(items),
        "users": 0,
        "items": 0,
    }
    values_not_read: Counter[str] = Counter()
    tables_read: dict[str, Any] = {}
    all_ids = {"users": user_ids, "items": item_ids}
    for name, source, entity in (("users", tables.users, schema.users), ("items", tables.items, schema.items)):
        if source is not None and entity is not None:
            before, kind = quarantine.counts.copy(), pa.int64() if all_ids[name].is_integer else pa.string()
            with Progress(name) as progress:
                catalogue = read_catalogue(source, entity, kind, name, quarantine, progress.add)
            of_table = quarantine.counts - before
            _refuse_too_many(name, catalogue.read, of_table, max_rejected, quarantine)
            all_ids[name] = all_ids[name].appended(catalogue.ids)
            gone, file = 0, f"{name.removesuffix('s')}_features.parquet"
            if entity.features:
                gone = catalogue.write(into / file, all_ids[name].array, base.path / file if base else None)
            counts[f"{name}_without_a_row_in_their_table"] = len(all_ids[name]) - len(catalogue.ids)
            counts[f"{name}_gone_from_their_table"] = gone
            counts[f"{name}_without_interactions"] = len(all_ids[name]) - int(np.count_nonzero(taken[name]))
            values_not_read.update(catalogue.values_not_read)
            tables_read[name] = {"read": catalogue.read, "rejected": dict(of_table.most_common())}
            rejected += of_table
            decoded += catalogue.decoded_as_cp1252
        counts[name] = len(all_ids[name])
    counts["decoded_as_cp1252"] = decoded
    counts["values_not_read"] = dict(values_not_read.most_common())
    counts["rejected"] = dict(rejected.most_common())

    lengths = np.append(lengths, np.zeros(counts["users"] - len(lengths), dtype=np.int64))
    np.save(into / "user_offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))
    new_span = _span(log.times, order)
    spans = [span for span in (new_span, said.get("time_range")) if span]
    content: dict[str, Any] = {
        "schema": schema.to_dict(),
        "event_names": log.event_names,
        "counts": counts,
        "time_range": [min(a for a, _ in spans), max(b for _, b in spans)] if spans else None,
        "log": of_log,
        "base": base.manifest.digest if base else None,
        "added": {
            "interactions_read": log.read,
            "interactions": len(order),
            "users": counts["users"] - (base.num_users if base else 0),
            "items": counts["items"] - (base.num_items if base else 0),
            "rejected": dict(of_new_log.most_common()),
            "time_range": new_span,
            "tables": tables_read,
        },
    }
    for name, id_map in (("user_ids", all_ids["users"]), ("item_ids", all_ids["items"])):
        id_map.save(into / f"{name}.arrow")
        content[name] = id_map.digest
    return content


def _numbered(codes: np.ndarray, ids: pa.Array, in_time: np.ndarray, known: IdMap | None) -> tuple[np.ndarray, IdMap]:
    """The row of each code, int32 [number of ids], and all ids by row: the known, then by first appearance in time."""
    by_row = by_first_appearance(codes[in_time], len(ids))
    ordered = ids.take(pa.array(by_row))
    if known is not None:
        grown = known.appended(ordered)
        return grown.rows(ids).astype(np.int32), grown
    rows = np.empty(len(ids), dtype=np.int32)
    rows[by_row] = np.arange(len(ids), dtype=np.int32)
    return rows, IdMap(ordered)


def _span(times: np.ndarray | None, rows: np.ndarray) -> list[int] | None:
    return None if times is None or not len(rows) else [int(times[rows].min()), int(times[rows].max())]


def _sorted(log: Log, in_time: np.ndarray, user_rows: np.ndarray) -> np.ndarray:
    """int64 [n]: the log's rows by user, then part if there is one, then time."""
    order = in_time
    if log.parts is not None:
        order = order[stable_order(log.parts[order])]
    return order[stable_order(user_rows[log.users[order]])]


def _repeats(log: Log, order: np.ndarray) -> np.ndarray:
    """int64 [m]: places in the order [n] of rows that equal an earlier one in all but weight."""
    grouping = [column for column in (log.users, log.times, log.parts) if column is not None]
    differing = [column for column in (log.items, log.events) if column is not None]
    return repeats(order, grouping, differing)


def _put_aside(log: Log, repeated: np.ndarray, quarantine: Quarantine) -> None:
    """Takes repeated rows of the log [m] to the quarantine."""
    for start in range(0, len(repeated), 1 << 16):
        rows = repeated[start : start + (1 << 16)]
        said = {"user": log.user_ids.take(log.users[rows]), "item": log.item_ids.take(log.items[rows])}
        if log.times is not None:
            said["time in ms"] = pa.array(log.times[rows])
        raw = as_text(pa.RecordBatch.from_pydict(said))
        sources, numbers = zip(*(log.origins.of(row) for row in rows), strict=True)
        quarantine.add(sources, numbers, ["duplicate"] * len(rows), raw)


def _refuse_too_many(name: str, read: int, rejected: Counter[str], max_rejected: float, quarantine: Quarantine) -> None:
    if rejected.total() <= max_rejected * read:
        return
    reason, number = rejected.most_common(1)[0]
    raise PrepareError(
        f"{rejected.total()} of {read} rows of {name} were rejected, more than max_rejected={max_rejected:g} allows; "
        f"the leading reason is {reason!r} with {number}, such as {quarantine.examples[reason]}"
    )
