import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.artifacts import ArtifactError
from recsys.data.dataset import Dataset
from recsys.data.prepare import PrepareError, prepare
from recsys.data.sources import Csv, Parquet, SourceError, Tables
from recsys.data.summary import summary
from recsys.data.synthetic import Synthetic

DECLARED = {"user": "user", "item": "item", "time": "time"}
EVENTS = {**DECLARED, "event": "event"}


def told(dataset):
    """The interactions by external id: {user: [(item, milliseconds)]}."""
    items = dataset.item_ids.ids(dataset.items)
    times = [None] * len(items) if dataset.times is None else dataset.times.tolist()
    pairs, offsets = list(zip(items, times, strict=True)), dataset.user_offsets
    return {dataset.user_ids.id(row): pairs[offsets[row] : offsets[row + 1]] for row in range(dataset.num_users)}


def rejected(dataset):
    return pq.read_table(dataset.path / "rejected.parquet").to_pylist()


def counts(dataset):
    return dataset.manifest.content["counts"]


def test_rows_are_sorted_by_user_and_time_and_numbered_by_first_appearance_in_time(prepared):
    dataset = prepared([("u2", "c", 30), ("u1", "a", 20), ("u2", "b", 10), ("u1", "c", 20), ("u1", "b", 5)])
    assert dataset.user_ids.array.to_pylist() == ["u1", "u2"]
    assert dataset.item_ids.array.to_pylist() == ["b", "a", "c"]
    assert told(dataset) == {"u1": [("b", 5000), ("a", 20000), ("c", 20000)], "u2": [("b", 10000), ("c", 30000)]}
    assert dataset.items.tolist() == [0, 1, 2, 0, 2]
    assert dataset.manifest.content["time_range"] == [5000, 30000]


def test_without_times_the_order_of_the_log_counts_and_repeats_stay(prepared):
    dataset = prepared(
        [("u", "b"), ("v", "a"), ("u", "a"), ("u", "b")], ("user", "item"), {"user": "user", "item": "item"}
    )
    assert dataset.times is None
    assert told(dataset) == {"u": [("b", None), ("a", None), ("b", None)], "v": [("a", None)]}


def test_every_unusable_row_is_kept_aside_with_its_reason(prepared):
    rows = [
        ("u", "a", "10", "view", "1"),
        ("", "a", "10", "view", "1"),
        ("u", " ", "10", "view", "1"),
        ("u", "a", "", "view", "1"),
        ("u", "a", "tomorrow", "view", "1"),
        ("u", "a", "20", "", "1"),
        ("u", "a", "20", "view", "inf"),
        ("u", "a", "20", "view", "much"),
        ("u", "a", "20", "view", ""),
        ("", "", "", "", ""),
        ("u", "a", "10"),
        ("u", "a", "10", "view", "2"),
        ("u", "a", "10", "buy", "1"),
        ("line\nbreak", "a", "10", "buy", "1"),
    ]
    dataset = prepared(rows, ("user", "item", "time", "event", "weight"), {**EVENTS, "weight": "weight"})
    assert [(row["row"], row["reason"]) for row in sorted(rejected(dataset), key=lambda row: row["row"])] == [
        (3, "missing user id"),
        (4, "missing item id"),
        (5, "missing time"),
        (6, "unreadable time"),
        (7, "missing event"),
        (8, "unreadable weight"),
        (9, "unreadable weight"),
        (10, "missing weight"),
        (11, "empty row"),
        (12, "wrong number of columns"),
        (13, "duplicate"),
        (15, "unreadable user id"),
    ]
    raw = {row["row"]: row["raw"] for row in rejected(dataset)}
    assert raw[6] == '{"user": "u", "item": "a", "time": "tomorrow", "event": "view", "weight": "1"}'
    assert raw[12] == "u,a,10"
    assert raw[13] == '{"user": "u", "item": "a", "time in ms": 10000}'
    assert all(row["source"].endswith("log.csv") for row in rejected(dataset))
    assert counts(dataset)["rejected"]["unreadable weight"] == 2
    assert dataset.event_names == ["view", "buy"]
    assert dataset.events.tolist() == [0, 1]
    assert dataset.weights.tolist() == [1.0, 1.0]


CELL = st.text('ab é,"\n ☃', max_size=3)
TIME = st.one_of(st.integers(0, 3).map(str), st.sampled_from(["", "tomorrow", "1e0"]))
ROW = st.tuples(CELL, CELL, TIME, st.sampled_from(["view", "buy", ""]))


@given(st.lists(ROW, max_size=30))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_equals_a_plain_twin_on_wild_rows(prepared, rows):
    usable: list[tuple[str, str, float, str]] = []
    reasons: Counter[str] = Counter()
    for user, item, time, event in rows:
        if not (user.strip() or item.strip() or time or event):
            reasons["empty row"] += 1
        elif not user.strip():
            reasons["missing user id"] += 1
        elif "\n" in user:
            reasons["unreadable user id"] += 1
        elif not item.strip():
            reasons["missing item id"] += 1
        elif "\n" in item:
            reasons["unreadable item id"] += 1
        elif not time:
            reasons["missing time"] += 1
        elif time == "tomorrow":
            reasons["unreadable time"] += 1
        elif not event:
            reasons["missing event"] += 1
        elif (user, item, float(time), event) in usable:
            reasons["duplicate"] += 1
        else:
            usable.append((user, item, float(time), event))
    if not usable:
        with pytest.raises(PrepareError, match="no row of the log can be used"):
            prepared(rows, ("user", "item", "time", "event"), EVENTS)
        return
    dataset = prepared(rows, ("user", "item", "time", "event"), EVENTS)
    in_time = sorted(usable, key=lambda row: row[2])
    users = list(dict.fromkeys(row[0] for row in in_time))
    assert dataset.user_ids.array.to_pylist() == users
    assert dataset.item_ids.array.to_pylist() == list(dict.fromkeys(row[1] for row in in_time))
    expected = {user: [(item, time * 1000) for who, item, time, _ in in_time if who == user] for user in users}
    assert told(dataset) == expected
    events = [dataset.event_names[code] for code in dataset.events]
    assert events == [event for user in users for who, _, _, event in in_time if who == user]
    assert counts(dataset)["rejected"] == reasons
    assert len(rejected(dataset)) == reasons.total()
    shutil.rmtree(dataset.path)


def test_too_many_rejected_rows_stop_the_job_and_the_message_says_which_led(prepared, tmp_path):
    rows = [("u", "a", str(number)) for number in range(96)]
    rows += [("u", "a", "tomorrow")] * 3 + [("", "a", "1")]
    out = tmp_path / "out"
    with pytest.raises(PrepareError) as error:
        prepared(rows, max_rejected=0.03, out=out)
    message = str(error.value)
    assert "4 of 100 rows of interactions were rejected, more than max_rejected=0.03 allows" in message
    assert "the leading reason is 'unreadable time' with 3, such as" in message
    assert 'log.csv, row 98: {"user": "u", "item": "a", "time": "tomorrow"}' in message
    beside = tmp_path / "out.rejected.parquet"
    assert f"all rejected rows are in {beside}" in message
    assert pq.read_table(beside).num_rows == 4
    assert not out.exists()
    assert prepared(rows, max_rejected=0.04, out=out).manifest.content["counts"]["interactions"] == 96
    assert not beside.exists()


def test_a_log_without_a_usable_row_is_refused(prepared):
    with pytest.raises(PrepareError, match=r"no row of the log can be used \(0 were read\)"):
        prepared([])


def test_what_exists_is_not_overwritten(prepared, tmp_path):
    prepared([("u", "a", 1)], out=tmp_path / "out")
    with pytest.raises(ArtifactError, match="exists already"):
        prepared([("u", "a", 1)], out=tmp_path / "out")


def test_a_missing_column_is_named(prepared):
    with pytest.raises(SourceError, match="has no column 'when'"):
        prepared([("u", "a", 1)], declared={**DECLARED, "time": "when"})


def test_items_follow_the_log_then_the_catalogue(prepared):
    catalogue = (
        ("id", "name", "tags", "price", "added"),
        {"name": "text", "tags": "multi", "price": "numeric", "added": {"kind": "timestamp", "unit": "iso"}},
        [
            ("x", "Only here", "p|q", "1.5", "1970-01-02"),
            ("b", "Bee", "", "dear", ""),
            ("b", "Bee again", "", "", ""),
            ("", "Nameless", "", "", ""),
            ("short",),
        ],
    )
    dataset = prepared([("u", "a", 1), ("u", "b", 2)], items=catalogue)
    assert dataset.item_ids.array.to_pylist() == ["a", "b", "x"]
    assert dataset.item_features().to_pylist() == [
        {"name": None, "tags": None, "price": None, "added": None},
        {"name": "Bee", "tags": None, "price": None, "added": None},
        {"name": "Only here", "tags": ["p", "q"], "price": 1.5, "added": 86_400_000},
    ]
    types = [str(kind) for kind in dataset.item_features().schema.types]
    assert types == ["string", "list<element: string>", "double", "int64"]
    said = counts(dataset)
    assert said["items_without_a_row_in_their_table"] == 1
    assert said["items_without_interactions"] == 1
    assert said["values_not_read"] == {"items.price": 1}
    assert said["rejected"] == {
        "repeated id in the table of items": 1,
        "missing id in the table of items": 1,
        "wrong number of columns (items)": 1,
    }


def test_too_many_rejected_rows_of_a_catalogue_stop_the_job_too(prepared):
    with pytest.raises(PrepareError, match=r"1 of 2 rows of items were rejected.*'repeated id in the table of items'"):
        prepared([("u", "a", 1)], items=(("id",), {}, [("a",), ("a",)]), max_rejected=0.1)


def test_users_of_the_table_follow_too_and_have_no_interactions(prepared):
    dataset = prepared([("u", "a", 1)], users=(("id", "age"), {"age": "numeric"}, [("v", "7"), ("u", "9")]))
    assert told(dataset) == {"u": [("a", 1000)], "v": []}
    assert dataset.user_features().to_pydict() == {"age": [9.0, 7.0]}


def test_without_declared_features_tables_have_rows_but_no_columns(prepared):
    dataset = prepared([("u", "a", 1), ("u", "b", 2)], items=(("id",), {}, [("a",)]))
    assert dataset.item_features().shape == (2, 0)
    assert dataset.user_features().shape == (1, 0)


def test_a_given_split_orders_by_part_and_refuses_other_names(prepared):
    rows = [
        ("u", "a", 5, "test"),
        ("u", "b", 9, "Train"),
        ("u", "c", 1, "train"),
        ("u", "d", 2, "valid"),
        ("u", "e", 3, "x"),
    ]
    dataset = prepared(rows, ("user", "item", "time", "part"), {**DECLARED, "part": "part"})
    assert dataset.item_ids.ids(dataset.items) == ["c", "b", "d", "a"]
    assert dataset.parts.tolist() == [0, 0, 1, 2]
    assert counts(dataset)["rejected"] == {"unreadable part": 1}


@pytest.mark.parametrize(("kind", "ids"), [("auto", ["007", "7"]), ("string", ["007", "7"]), ("integer", [7])])
def test_text_files_hold_strings_unless_declared(prepared, kind, ids):
    rows = [("u", "007", 1), ("u", "7", 2), ("u", "x7", 3)]
    dataset = prepared(rows, declared={**DECLARED, "item_type": kind})
    found = dataset.item_ids.array.to_pylist()
    assert [value for value in found if value != "x7"] == ids
    assert counts(dataset)["rejected"] == ({"unreadable item id": 1} if kind == "integer" else {})


def test_a_column_of_integers_stays_integers_and_the_catalogue_follows_it(tmp_path):
    pq.write_table(pa.table({"user": ["u", "u", None], "item": [7.0, 12.0, float("nan")]}), tmp_path / "log.parquet")
    (tmp_path / "items.csv").write_text("id,name\n12,twelve\nx,letter\n")
    schema = {"interactions": {"user": "user", "item": "item"}, "items": {"id": "id", "features": {"name": "text"}}}
    tables = Tables(schema, Parquet(str(tmp_path / "log.parquet")), Csv(str(tmp_path / "items.csv")))
    dataset = prepare(tables, tmp_path / "out", max_rejected=0.5)
    assert dataset.item_ids.array.to_pylist() == [7, 12]
    assert dataset.item_features().to_pydict() == {"name": [None, "twelve"]}
    assert counts(dataset)["rejected"] == {"empty row": 1, "unreadable id in the table of items": 1}


def test_one_column_may_be_declared_for_two_things(prepared):
    dataset = prepared([("u", "a", 3)], declared={**DECLARED, "weight": "time"})
    assert (dataset.times.tolist(), dataset.weights.tolist()) == ([3000], [3.0])


def test_too_many_kinds_of_event_mean_the_wrong_column(prepared):
    rows = [("u", "a", number, f"session {number}") for number in range(1100)]
    with pytest.raises(ValueError, match=r"column 'event' has over 1000 kinds of event.*is it the event column"):
        prepared(rows, ("user", "item", "time", "event"), EVENTS)


def test_the_summary_lines_up_what_was_counted(prepared, capsys):
    dataset = prepared([("u", "a", 1), ("u", "a", 1), ("u", "b", "tomorrow")])
    printed = capsys.readouterr().out
    assert printed.strip() == summary(dataset).strip()
    assert "\n  interactions                         1\n" in printed
    assert "\n  interactions read                    3\n" in printed
    assert "\n  rejected                             2\n" in printed
    assert "\n    duplicate                          1\n" in printed
    assert "1970-01-01 00:00:01" in printed


def test_equal_tables_make_equal_datasets(tmp_path):
    shop = Synthetic(users=50, items=20, interactions=500, duplicates=0.05, broken=0.05)
    one, other = (prepare(shop, tmp_path / name, max_rejected=0.2) for name in ("one", "other"))
    assert one.manifest.digest == other.manifest.digest


def test_dirt_is_found_to_the_row(tmp_path):
    shop = Synthetic(users=50, items=20, interactions=5000, duplicates=0.05, broken=0.02)
    read = sum(batch.columns.num_rows for batch in shop.interactions.batches(["time"]))
    dataset = prepare(shop, tmp_path / "out", max_rejected=0.2)
    said = counts(dataset)
    assert said["rejected"]["missing item id"] == 100
    assert said["interactions"] == read - sum(said["rejected"].values())
    assert said["rejected"]["duplicate"] > 100


def test_the_arrays_have_the_promised_types_and_open_after_a_full_check(tmp_path):
    prepare(Synthetic(users=50, items=20, interactions=500), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    types = [getattr(dataset, name).dtype for name in ("user_offsets", "items", "times", "events")]
    assert types == [np.int64, np.int32, np.int64, np.int16]
    assert dataset.weights is None
    assert dataset.parts is None
    times = np.split(np.asarray(dataset.times), dataset.user_offsets[1:-1])
    assert all((np.diff(of_user) >= 0).all() for of_user in times)
