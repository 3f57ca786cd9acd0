"""A dataset to which nights were added is the dataset of the whole log, but for the numbering of rows."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.artifacts import ArtifactError
from recsys.cli import main
from recsys.data.dataset import Dataset
from recsys.data.prepare import PrepareError, prepare
from recsys.data.sources import Parquet, Tables
from recsys.data.summary import summary
from recsys.data.synthetic import Synthetic

NAMES = ("user", "item", "time", "event", "weight", "part")
TIMED = {"user": "user", "item": "item", "time": "time", "event": "event", "weight": "weight"}
PLAIN = {"user": "user", "item": "item"}


def told(dataset):
    """All interactions by external id, in their order: {user: [(item, time, event, weight, part)]}."""
    columns = [dataset.item_ids.ids(dataset.items)]
    for name in ("times", "events", "weights", "parts"):
        values = getattr(dataset, name)
        columns.append([None] * len(dataset) if values is None else values.tolist())
    columns[2] = [None if code is None else dataset.event_names[code] for code in columns[2]]
    rows, offsets = list(zip(*columns, strict=True)), dataset.user_offsets
    return {dataset.user_ids.id(row): rows[offsets[row] : offsets[row + 1]] for row in range(dataset.num_users)}


def features(dataset):
    items = dict(zip(dataset.item_ids.array.to_pylist(), dataset.item_features().to_pylist(), strict=True))
    return items, dict(zip(dataset.user_ids.array.to_pylist(), dataset.user_features().to_pylist(), strict=True))


def said(dataset, *names):
    return tuple(dataset.manifest.content["counts"][name] for name in names)


def starts_with(grown, base):
    return grown.array[: len(base)].to_pylist() == base.array.to_pylist()


ID = st.sampled_from("abcd")
ROW = st.tuples(
    ID,
    st.sampled_from(["p", "q", "r", ""]),
    st.sampled_from(["0", "1", "2", "never"]),
    st.sampled_from(["view", "buy", "cart"]),
    st.sampled_from(["1", "2"]),
    st.sampled_from(["train", "valid", "test"]),
)
CATALOGUE = st.dictionaries(st.sampled_from("pqrstu"), st.tuples(st.sampled_from(["x", "y|z", ""])))
NIGHTS = st.lists(st.tuples(st.lists(ROW, max_size=12), CATALOGUE, CATALOGUE), min_size=2, max_size=4)
SCHEMAS = [TIMED, {**TIMED, "part": "part"}, PLAIN, {**PLAIN, "part": "part"}]


@given(NIGHTS, st.sampled_from(SCHEMAS))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_equals_preparing_the_whole_log_at_once(prepared, nights, declared):
    nights[0][0].append(("a", "p", "1", "view", "1", "train"))  # somebody must begin
    listed: list[dict[str, tuple[str]]] = [{}, {}]
    dataset, log, made = None, [], []
    for rows, items, users in nights:
        tables = [
            (("id", "tags"), {"tags": "multi"}, [(key, *values) for key, values in table.items()])
            for table in (items, users)
        ]
        base, dataset = dataset, prepared(rows, NAMES, declared, items=tables[0], users=tables[1], base=dataset)
        made.append(dataset)
        log += rows
        listed = [{**old, **new} for old, new in zip(listed, (items, users), strict=True)]
        if base is not None:
            assert starts_with(dataset.item_ids, base.item_ids)
            assert starts_with(dataset.user_ids, base.user_ids)
            assert dataset.event_names[: len(base.event_names)] == base.event_names
            assert dataset.manifest.content["base"] == base.manifest.digest
    # Who is gone from tonight's table keeps the old features: as if the newest table had listed them, too.
    tables = [
        (("id", "tags"), {"tags": "multi"}, [(key, *values) for key, values in table.items()]) for table in listed
    ]
    whole = prepared(log, NAMES, declared, items=tables[0], users=tables[1])
    assert told(dataset) == told(whole)
    assert features(dataset) == features(whole)
    assert dataset.event_names == whole.event_names
    assert dataset.manifest.content["time_range"] == whole.manifest.content["time_range"]
    equal = ["interactions_read", "interactions", "users", "items", "rejected", "values_not_read"]
    equal += ["items_without_interactions", "users_without_interactions", "decoded_as_cp1252"]
    assert said(dataset, *equal) == said(whole, *equal)
    added = [night.manifest.content["added"] for night in made]
    for name in ("interactions_read", "interactions", "users", "items"):
        assert sum(night[name] for night in added) == said(whole, name)[0]
    Dataset.open(dataset.path)
    for path in {made[0].path, *(night.path for night in made), whole.path}:
        shutil.rmtree(path.parent)


BASE = [("u", "a", 10), ("u", "b", 30), ("v", "b", 20)]


def test_new_rows_find_their_place_by_hand(prepared):
    base = prepared(BASE)
    night = [("w", "c", 25), ("u", "c", 5), ("u", "d", 30), ("v", "a", 20), ("w", "b", 24)]
    dataset = prepared(night, base=base)
    assert dataset.user_ids.array.to_pylist() == ["u", "v", "w"]
    assert dataset.item_ids.array.to_pylist() == ["a", "b", "c", "d"]  # c came at 5, d at 30
    assert dataset.user_offsets.tolist() == [0, 4, 6, 8]
    assert dataset.items.tolist() == [2, 0, 1, 3, 1, 0, 1, 2]
    assert dataset.times.tolist() == [5000, 10000, 30000, 30000, 20000, 20000, 24000, 25000]
    assert dataset.manifest.content["time_range"] == [5000, 30000]
    assert dataset.manifest.content["added"] == {
        "interactions_read": 5,
        "interactions": 5,
        "users": 1,
        "items": 2,
        "rejected": {},
        "time_range": [5000, 30000],
        "tables": {},
    }
    assert [getattr(dataset, name).dtype for name in ("user_offsets", "items", "times")] == [
        *(np.int64, np.int32, np.int64)
    ]
    assert Dataset.open(base.path).items.tolist() == [0, 1, 1]  # as it was


def test_without_times_the_new_follows_the_old_and_repeats_stay(prepared):
    base = prepared([("u", "b"), ("v", "a"), ("u", "a")], ("user", "item"), PLAIN)
    dataset = prepared([("u", "b"), ("w", "c"), ("u", "b")], ("user", "item"), PLAIN, base=base)
    items = {user: [row[0] for row in rows] for user, rows in told(dataset).items()}
    assert items == {"u": ["b", "a", "b", "b"], "v": ["a"], "w": ["c"]}
    assert dataset.manifest.content["time_range"] is None
    assert dataset.manifest.content["added"]["time_range"] is None


def test_a_row_that_the_base_has_is_a_duplicate_and_says_where_it_stood(prepared):
    base = prepared(BASE)
    # The first two equal one of the base; the third is new and the fourth repeats it.
    dataset = prepared([("u", "b", 30), ("v", "b", 20), ("u", "c", 30), ("u", "c", 30), ("u", "b", 31)], base=base)
    assert told(dataset)["u"] == [(item, 1000 * time, None, None, None) for item, time in
                                  [("a", 10), ("b", 30), ("c", 30), ("b", 31)]]  # fmt: skip
    rejected = pq.read_table(dataset.path / "rejected.parquet").to_pylist()
    assert sorted((row["row"], row["reason"]) for row in rejected) == [(number, "duplicate") for number in (2, 3, 5)]
    assert said(dataset, "interactions_read", "interactions", "rejected") == (8, 5, {"duplicate": 3})
    again = prepared(BASE, base=dataset)
    assert told(again) == told(dataset)
    assert again.manifest.content["added"]["interactions"] == 0
    assert again.manifest.content["added"]["time_range"] is None
    assert said(again, "interactions_read", "rejected") == (11, {"duplicate": 6})


def test_events_weights_and_parts_tell_a_repeat_as_ever(prepared):
    base = prepared([("u", "a", 1, "view", 1)], NAMES[:5], TIMED)
    night = [("u", "a", 1, "view", 9), ("u", "a", 1, "buy", 2)]
    dataset = prepared(night, NAMES[:5], TIMED, base=base)
    assert told(dataset) == {"u": [("a", 1000, "view", 1.0, None), ("a", 1000, "buy", 2.0, None)]}
    assert dataset.event_names == ["view", "buy"]


def test_only_the_new_rows_are_judged(prepared, tmp_path):
    base = prepared([("u", "a", number) for number in range(1000)])
    night = [("u", "a", 2000), ("u", "a", "poison")]
    with pytest.raises(PrepareError, match=r"1 of 2 rows of interactions were rejected, more than max_rejected=0\.4"):
        prepared(night, base=base, max_rejected=0.4, out=tmp_path / "out")
    assert (tmp_path / "out.rejected.parquet").exists()
    assert not (tmp_path / "out").exists()
    dataset = prepared(night, base=base, max_rejected=0.5)
    assert said(dataset, "rejected") == ({"unreadable time": 1},)
    more = prepared([("u", "b", "poison"), ("u", "", 3)], base=dataset)
    assert said(more, "rejected") == ({"unreadable time": 2, "missing item id": 1},)
    assert more.manifest.content["added"]["rejected"] == {"unreadable time": 1, "missing item id": 1}
    assert pq.read_table(more.path / "rejected.parquet").num_rows == 2


def test_a_night_without_news_is_no_error(prepared):
    base = prepared(BASE)
    dataset = prepared([], base=base)
    assert told(dataset) == told(base)
    added = dataset.manifest.content["added"]
    assert (added["interactions"], added["users"], added["items"], added["rejected"]) == (0, 0, 0, {})
    assert dataset.manifest.content["time_range"] == base.manifest.content["time_range"]


def catalogue(*rows):
    return ("id", "name", "tags"), {"name": "text", "tags": "multi"}, rows


def test_features_are_tonights_and_who_left_the_table_keeps_the_old_ones(prepared, monkeypatch):
    monkeypatch.setattr("recsys.data.catalogue._SLICE", 2)
    first = catalogue(("a", "Ah", "x|y"), ("b", "Bee", ""), ("z", "Zed", "x"), ("bare", "", ""))
    base = prepared(BASE, items=first)
    second = catalogue(("b", "", "x"), ("new", "New", "y"), ("c", "Sea", "z"), ("b", "again", ""))
    dataset = prepared([("u", "c", 40), ("u", "d", 41)], base=base, items=second)
    assert dataset.item_ids.array.to_pylist() == ["a", "b", "z", "bare", "c", "d", "new"]
    assert dataset.item_features().to_pylist() == [
        {"name": "Ah", "tags": ["x", "y"]},
        {"name": None, "tags": ["x"]},
        {"name": "Zed", "tags": ["x"]},
        {"name": None, "tags": None},
        {"name": "Sea", "tags": ["z"]},
        {"name": None, "tags": None},
        {"name": "New", "tags": ["y"]},
    ]
    assert dataset.item_features().schema.types == base.item_features().schema.types
    # a and z are gone; nobody knew anything of `bare` that could be kept.
    assert said(dataset, "items_gone_from_their_table", "items_without_a_row_in_their_table") == (2, 4)
    assert said(dataset, "items_without_interactions") == (3,)  # z, bare, new
    third = prepared([("u", "z", 50)], base=dataset, items=catalogue(("z", "Zett", "")))
    assert third.item_features().column("name").to_pylist() == ["Ah", None, "Zett", None, "Sea", None, "New"]
    assert said(third, "items_gone_from_their_table", "items_without_interactions") == (4, 2)


def test_rejected_rows_of_a_table_are_not_counted_anew_each_night(prepared):
    table = catalogue(("a", "Ah", ""), ("a", "Ah again", ""))
    base = prepared(BASE, items=table)
    dataset = prepared([("u", "a", "?"), ("u", "a", 99)], base=base, items=table)
    assert said(dataset, "rejected") == ({"unreadable time": 1, "repeated id in the table of items": 1},)
    added = dataset.manifest.content["added"]
    assert added["rejected"] == {"unreadable time": 1}  # of the log alone, as its other counts
    assert added["tables"] == {"items": {"read": 2, "rejected": {"repeated id in the table of items": 1}}}


def test_ids_stay_of_the_type_that_the_base_has(prepared, tmp_path):
    def log(name, users, items):
        pq.write_table(pa.table({"user": users, "item": items}), tmp_path / name)
        return Tables({"interactions": PLAIN}, Parquet(str(tmp_path / name)))

    prepare(log("1.parquet", ["7", "x"], [1, 2]), tmp_path / "base")
    dataset = prepare(log("2.parquet", [7, 8], ["2", "3"]), tmp_path / "grown", base=tmp_path / "base")
    assert dataset.user_ids.array.to_pylist() == ["7", "x", "8"]
    assert dataset.item_ids.array.to_pylist() == [1, 2, 3]
    assert dataset.items.tolist() == [0, 1, 1, 2]
    for users, items, reason in ((["8"], ["x"], "unreadable item id"), ([float("inf")], [1], "unreadable user id")):
        with pytest.raises(PrepareError, match=reason):
            prepare(log("3.parquet", users, items), tmp_path / "more", base=tmp_path / "base")
    prepare(log("1.parquet", [7], ["a"]), tmp_path / "numbers")
    with pytest.raises(PrepareError, match="unreadable user id"):
        prepare(log("2.parquet", ["x"], ["b"]), tmp_path / "more", base=tmp_path / "numbers")


def test_another_schema_is_refused_with_what_differs(prepared, tmp_path):
    base = prepared(BASE, items=catalogue(("a", "Ah", "")))
    with pytest.raises(PrepareError) as error:
        prepared(BASE, items=(("id", "name"), {"name": "categorical"}, []), base=base, out=tmp_path / "out")
    assert f"{base.path} was prepared by another schema: there items.features.name.kind is 'text'" in str(error.value)
    assert "here 'categorical'; prepare everything, without base" in str(error.value)
    with pytest.raises(PrepareError, match=r"there items\.id is 'id', here None"):
        prepared(BASE, base=base)
    with pytest.raises(PrepareError, match=r"there interactions\.time is 'time', here None"):
        prepared(BASE, declared=PLAIN, items=catalogue(), base=base)
    assert not (tmp_path / "out").exists()


def test_a_base_that_is_damaged_is_refused(prepared, tmp_path):
    base = prepared(BASE)
    (base.path / "times.npy").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"times\.npy has 0 bytes"):
        prepared(BASE, base=base, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_a_base_what_was_added_is_all(prepared):
    dataset = prepared([*BASE, ("u", "a", "?")], items=catalogue(("a", "Ah", ""), ("x", "", "")))
    content = dataset.manifest.content
    assert content["base"] is None
    assert content["added"]["rejected"] == content["counts"]["rejected"] == {"unreadable time": 1}
    names = ("interactions_read", "interactions", "users", "items")
    assert tuple(content["added"][name] for name in names) == said(dataset, *names) == (4, 3, 2, 3)
    assert content["added"]["time_range"] == content["time_range"] == [10000, 30000]


def test_the_summary_shows_what_is_new_beside_the_whole(prepared, capsys):
    base = prepared([*BASE, ("", "a", 1)])
    capsys.readouterr()
    dataset = prepared([("u", "a", 10), ("w", "c", 86400)], base=base)
    printed = capsys.readouterr().out
    assert printed.strip() == summary(dataset).strip()
    lines = [line.split() for line in printed.splitlines()[1:]]
    assert lines[0] == ["in", "all", "new"]
    assert ["interactions", "read", "6", "2"] in lines
    assert ["interactions", "4", "1"] in lines
    assert ["users", "3", "1"] in lines
    assert ["rejected", "2", "1"] in lines
    assert ["duplicate", "1", "1"] in lines
    assert ["missing", "user", "id", "1", "0"] in lines
    assert ["to", "1970-01-02", "00:00:00", "1970-01-02", "00:00:00"] in lines
    assert ["from", "1970-01-01", "00:00:10", "1970-01-02", "00:00:00"] in lines


def halves(shop, tmp_path):
    """The shop's log as two files, the second one of its newest fifth."""
    columns = ["user_id", "item_id", "time", "event"]
    table = pa.Table.from_batches([batch.columns for batch in shop.interactions.batches(columns)])
    cut = table.num_rows * 4 // 5
    for name, part in (("old", table.slice(0, cut)), ("new", table.slice(cut))):
        pq.write_table(part, tmp_path / f"{name}.parquet")
        yield Tables(shop.schema, Parquet(str(tmp_path / f"{name}.parquet")), shop.items)


def test_a_shop_grows_alike_every_time_and_as_if_prepared_whole(tmp_path):
    shop = Synthetic(users=200, items=80, interactions=10_000, duplicates=0.05, broken=0.02)
    old, new = halves(shop, tmp_path)
    base = prepare(old, tmp_path / "base", max_rejected=0.2)
    one, other = (prepare(new, tmp_path / name, max_rejected=0.2, base=base.path) for name in ("one", "other"))
    assert one.manifest.digest == other.manifest.digest
    whole = prepare(shop, tmp_path / "whole", max_rejected=0.2)
    assert told(one) == told(whole)
    assert features(one) == features(whole)
    assert said(one, "rejected", "interactions_read") == said(whole, "rejected", "interactions_read")


def test_the_command_takes_a_base(prepared, tmp_path):
    base = prepared(BASE)
    (tmp_path / "log.csv").write_text("user,item,time\nu,c,40\n")
    (tmp_path / "prepare.yaml").write_text(
        f"""
        tables:
          class_path: recsys.data.sources.Tables
          init_args:
            schema: {{interactions: {{user: user, item: item, time: time}}}}
            interactions: {{class_path: recsys.data.sources.Csv, init_args: {{path: {tmp_path / "log.csv"}}}}}
        """
    )
    given = ["--config", str(tmp_path / "prepare.yaml"), "--out", str(tmp_path / "out"), "--base", str(base.path)]
    assert main(["prepare", *given]) == 0
    assert len(Dataset.open(tmp_path / "out")) == 4
