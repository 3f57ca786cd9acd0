"""Of files a snapshot holds what is new since the one before: new files, and the ends of those that grew."""

import gzip
import os
import shutil
import uuid

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.data.prepare import PrepareError, prepare
from recsys.data.snapshot import opened, snapshot
from recsys.data.sources import Csv, Parquet, SourceError, Tables
from tests.small_log import NAMES, SCHEMA, A, B, C, D, csv_of


def test_new_files_are_read_and_old_ones_are_not(folder, night):
    source = Csv(str(folder))
    (folder / "1.csv").write_text(csv_of([A]))
    assert night(source)[:2] == ([A], "nothing was read before")
    (folder / "3.csv").write_text(csv_of([C]))
    (folder / "2.csv").write_text(csv_of([B]))
    rows, whole, batches = night(source)
    assert (rows, whole) == ([B, C], None)
    assert [(batch.source.rsplit("/", 1)[1], batch.rows.tolist()) for batch in batches] == [
        ("2.csv", [2]),
        ("3.csv", [2]),
    ]
    assert night(source)[:2] == ([], None)
    (folder / "1.csv").unlink()  # swept up
    assert night(source)[:2] == ([], None)
    (folder / "1.csv").write_text(csv_of([A]))  # and back
    assert night(source)[:2] == ([], None)


def test_parquet_files_by_glob_and_in_other_file_systems(night):
    place = f"memory://{uuid.uuid4().hex}"

    def write(name, rows):
        with fsspec.open(f"{place}/{name}", "wb") as file:
            pq.write_table(pa.table([pa.array(column) for column in zip(*rows, strict=True)], names=NAMES), file)

    write("1.parquet", [A])
    source = Parquet(f"{place}/*.parquet")
    assert night(source)[:2] == ([A], "nothing was read before")
    write("2.parquet", [B])
    assert night(source)[:2] == ([B], None)
    write("2.parquet", [B])  # the same once more
    assert night(source)[:2] == ([], None)
    write("2.parquet", [B, C])
    rows, whole, _ = night(source)
    assert rows == [A, B, C]
    assert whole.endswith("2.parquet was changed in what had been read of it")
    assert night(source)[:2] == ([], None)


def test_appended_lines_are_read_alone_and_keep_their_numbers(folder, night):
    (folder / "log.csv").write_text(csv_of([A, B]))
    source = Csv(str(folder / "log.csv"))
    assert night(source)[0] == [A, B]
    with open(folder / "log.csv", "a") as file:
        file.write("u5,short\n" + csv_of([C], header=False))
    rows, whole, (batch,) = night(source)
    assert (rows, whole) == ([C], None)
    assert [(row.row, row.raw) for row in batch.unparsed] == [(4, "u5,short")]
    assert batch.rows.tolist() == [5]
    with open(folder / "log.csv", "a") as file:
        file.write("u6,short\n")
    assert [row.row for batch in night(source)[2] for row in batch.unparsed] == [6]
    with open(folder / "log.csv", "a") as file:
        file.write(csv_of([D], header=False))
    rows, whole, (batch,) = night(source)
    assert (rows, whole, batch.rows.tolist()) == ([D], None, [7])


@pytest.mark.parametrize(
    ("source", "before", "after"),
    [
        ({"columns": NAMES}, b"u1,a,1\n", b"u2,b,2\n"),
        ({"columns": NAMES, "encoding": "latin-1"}, b"\xef\xbb\xbfu1,a,1\n", "u2,\u00e9,2\n".encode()),
        ({}, b"\xef\xbb\xbfuser,item,time\r\nu1,a,1\r\n", b"u2,b,2\r\n"),
        ({"delimiter": "::"}, b"user::item::time\nu1::a::1\n", b"u2::b::2\n"),
        ({}, b'user,item,time\nu1,"a\nb",1\n', b'u2,"c\nd",2\n'),
        ({}, b"user,item,time\n", b"u2,b,2\n"),
        ({"quote": ""}, b'user,item,time\nu1,"a,1\n', b"u2,b,2\n"),
        ({}, b'user,item,time\nu1,5" disk,1\n', b"u2,b,2\n"),
    ],
)
def test_an_end_is_read_as_the_whole_would_be(folder, night, source, before, after):
    (folder / "log.csv").write_bytes(before)
    log = Csv(str(folder / "log.csv"), **source)
    first = night(log)[0]
    with open(folder / "log.csv", "ab") as file:
        file.write(after)
    rows, whole, batches = night(log)
    assert whole is None
    whole_batches = list(log.batches(NAMES))
    assert first + rows == [tuple(row.values()) for batch in whole_batches for row in batch.columns.to_pylist()]
    assert batches[-1].rows.tolist() == whole_batches[-1].rows.tolist()[-len(rows) :]
    assert len(rows) == 1


@pytest.mark.parametrize(
    ("source", "before", "after", "why"),
    [
        ({}, b"user,item,time\nu1,a,1", b"2\nu2,b,2\n", "has grown, and its last line was not finished when it was"),
        (
            {},
            b'user,item,time\nu1,"disk,1\n',
            b"u2,b,2\n",
            'has grown, and what was read of it ends within quotes; if "',
        ),
        ({}, b'user,"item\n",time\nu1,a,1\n', b"u2,b,2\n", "its header is longer than a line"),
        ({}, "user,item,time\nu1,a,1\n".encode("utf-16"), "u2,b,2\n".encode("utf-16-le"), "has grown, and "),
        ({}, b"user,item,time\nu1,a,1\n", None, "log.csv is shorter than it was"),
    ],
)
def test_an_end_that_cannot_be_read_alone_means_everything_again(folder, night, source, before, after, why):
    declared = {**SCHEMA["interactions"], "item": "user"} if b'"item\n"' in before else SCHEMA["interactions"]
    log = Csv(str(folder / "log.csv"), **source)
    (folder / "log.csv").write_bytes(before)
    (folder / "other.csv").write_text("never read")
    taken = snapshot(Tables({"interactions": declared}, log), folder / "1")
    (folder / "log.csv").write_bytes(before + after if after else before[:-7])
    taken = snapshot(Tables({"interactions": declared}, log), folder / "2", since=taken.content["mark"])
    assert why in taken.content["whole"]
    assert str(folder / "log.csv") in taken.content["whole"]
    kept = opened(folder / "2").interactions.batches(["user", "time"])
    there = log.batches(["user", "time"])
    assert [batch.columns for batch in kept] == [batch.columns for batch in there]
    again = snapshot(Tables({"interactions": declared}, log), folder / "3", since=taken.content["mark"])
    assert (again.content["whole"], again.content["interactions"]) == (None, 0)


def test_a_compressed_file_that_grew_is_read_again(folder, night):
    (folder / "log.csv.gz").write_bytes(gzip.compress(csv_of([A]).encode(), mtime=0))
    source = Csv(str(folder))
    night(source)
    (folder / "log.csv.gz").write_bytes(
        gzip.compress(csv_of([A]).encode(), mtime=0) + gzip.compress(csv_of([B], header=False).encode())
    )
    rows, whole, _ = night(source)
    assert rows[0] == A
    assert whole.endswith("has grown, and a compressed file is read from its beginning")


def test_what_was_changed_is_found_though_size_and_end_are_the_same(folder, night):
    (folder / "1.csv").write_text(csv_of([A, B]))
    source = Csv(str(folder))
    night(source)
    (folder / "1.csv").write_text(csv_of([A, C]))
    os.utime(folder / "1.csv", ns=(1, 1))  # file systems that tell time by the second would hide the change
    rows, whole, _ = night(source)
    assert rows == [A, C]
    assert whole.endswith("1.csv was changed in what had been read of it")
    os.utime(folder / "1.csv", ns=(2_000_000_000, 2_000_000_000))  # touched, not changed
    assert night(source)[:2] == ([], None)
    (folder / "1.csv").write_text(csv_of([B, C, D]))
    assert night(source)[0] == [B, C, D]


def test_a_log_that_was_renamed_is_not_read_twice_but_an_equal_one_is(folder, night):
    (folder / "log.csv").write_text(csv_of([A]))
    source = Csv(str(folder))
    night(source)
    (folder / "log.csv").rename(folder / "log.csv.1")
    (folder / "log.csv").write_text(csv_of([B]))
    # The name is known with other content: that cannot be told from a log that was overwritten.
    rows, whole, _ = night(source)
    assert (sorted(rows), whole is not None) == ([A, B], True)
    (folder / "log.csv.1").rename(folder / "old.csv")
    with open(folder / "old.csv", "a") as file:
        file.write("")
    assert night(source)[:2] == ([], None)
    with open(folder / "old.csv", "a") as file:
        file.write(csv_of([C], header=False))
    assert night(source)[:2] == ([C], None)
    shutil.copy(folder / "old.csv", folder / "second-shop.csv")
    assert night(source)[:2] == ([A, C], None)


def test_a_file_that_was_empty_may_begin(folder, night):
    (folder / "1.csv").write_text("")
    assert night(Csv(str(folder)))[0] == []
    (folder / "1.csv").write_text(csv_of([A]))
    assert night(Csv(str(folder)))[:2] == ([A], None)


def test_only_what_was_there_at_the_listing_is_read(folder, tmp_path):
    (folder / "log.csv").write_text(csv_of([A]))
    news = Csv(str(folder)).since(None)
    with open(folder / "log.csv", "a") as file:
        file.write("u2,half a l")
    assert [row for batch in news.batches(NAMES) for row in batch.columns.column(0).to_pylist()] == ["u1"]
    with open(folder / "log.csv", "a") as file:
        file.write("ine,2\n")
    later = Csv(str(folder)).since(news.mark)
    assert later.whole is None
    assert [row for batch in later.batches(NAMES) for row in batch.columns.column(1).to_pylist()] == ["half a line"]


def test_another_way_to_read_another_source_or_schema_means_everything_again(folder, night):
    (folder / "1.csv").write_text(csv_of([A]))
    night(Csv(str(folder)))
    assert "the files are read otherwise than before" in night(Csv(str(folder), encoding="latin-1"))[1]
    pq.write_table(pa.table({name: [value] for name, value in zip(NAMES, A, strict=True)}), folder / "1.parquet")
    assert night(Parquet(str(folder / "1.parquet")))[:2] == ([A], "the source is not the one of the mark")
    other = {"interactions": {**SCHEMA["interactions"], "user_type": "string"}}
    assert night(Parquet(str(folder / "1.parquet")), other)[:2] == ([A], "the schema is not the one of the mark")
    assert night(Parquet(str(folder / "1.parquet")), other)[:2] == ([], None)


LINES = st.lists(st.text('ab,"\n é', max_size=6), max_size=6)


@given(LINES, LINES)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_is_appended_is_read_as_if_the_file_were_read_at_once(folder, before, after):
    """Batches of the first night and the second are those of the whole file, or the second night reads it all."""
    log = Csv(str(folder / "log.csv"))

    def seen(batches):
        found = []
        for batch in batches:
            found += list(zip(batch.rows.tolist(), batch.columns.column(0).to_pylist(), strict=True))
            found += [(row.row, row.raw) for row in batch.unparsed]
        return sorted(found)

    def read(batches):
        try:
            return seen(batches)
        except SourceError as error:
            return str(error).split(":")[0]

    (folder / "log.csv").write_text("user,item\n" + "".join(f"{line}\n" for line in before))
    news = log.since(None)
    first = read(news.batches(["user"]))
    with open(folder / "log.csv", "a") as file:
        file.write("".join(f"{line}\n" for line in after))
    if isinstance(first, str):
        return  # the first night ended there
    later = log.since(news.mark)
    second, whole = read(later.batches(["user"])), read(log.batches(["user"]))
    if later.whole is None:
        assert isinstance(whole, str) or sorted(first + second) == whole
    else:
        assert second == whole


def test_a_week_of_nights_is_the_whole_log(folder, tmp_path):
    """Each night a file comes and another grows; the last dataset is the one of everything."""
    rng = np.random.default_rng(0)
    items = tmp_path / "items.csv"
    items.write_text("id,name\n" + "".join(f"i{number},Item {number}\n" for number in range(12)))
    schema = {**SCHEMA, "items": {"id": "id", "features": {"name": "text"}}}
    tables = Tables(schema, Csv(str(folder)), Csv(str(items)))
    mark, base = None, None
    (folder / "app.csv").write_text(csv_of([]))
    for night in range(7):
        rows = [(f"u{rng.integers(9)}", f"i{rng.integers(9)}", f"{night * 100 + rng.integers(150)}") for _ in range(30)]
        with open(folder / "app.csv", "a") as file:
            file.write(csv_of(rows[:10], header=False))
        (folder / f"web-{night}.csv").write_text(csv_of(rows[10:]))
        taken = snapshot(tables, tmp_path / f"snapshot-{night}", since=mark)
        assert (taken.content["whole"] is None) == (night > 0)
        assert taken.content["interactions"] == 30
        mark = taken.content["mark"]
        dataset = prepare(opened(tmp_path / f"snapshot-{night}"), tmp_path / f"{night}", max_rejected=0.3, base=base)
        base = dataset.path
    whole = prepare(tables, tmp_path / "whole", max_rejected=0.3)

    def told(dataset):
        ids = dataset.item_ids.ids(dataset.items)
        parts = np.split(np.arange(len(dataset)), dataset.user_offsets[1:-1])
        # Rows of one moment stand in the order in which they were read, which nights and whole log need not share.
        return {
            dataset.user_ids.id(u): sorted((dataset.times[p], ids[p]) for p in part) for u, part in enumerate(parts)
        }

    assert told(dataset) == told(whole)
    for name in ("interactions_read", "interactions", "users", "items", "rejected"):
        assert dataset.manifest.content["counts"][name] == whole.manifest.content["counts"][name]


def test_a_snapshot_of_everything_is_not_added_to_a_base(folder, tmp_path):
    (folder / "1.csv").write_text(csv_of([A]))
    tables = Tables(SCHEMA, Csv(str(folder)))
    snapshot(tables, tmp_path / "1")
    base = prepare(opened(tmp_path / "1"), tmp_path / "base")
    with pytest.raises(
        PrepareError, match=r"hold everything, not only what is new \(nothing was read before\); prepare"
    ):
        prepare(opened(tmp_path / "1"), tmp_path / "out", base=base.path)
