"""Snapshots: the very rows that the source had, and only those that are new since the mark."""

import gzip
import json
import os
import shutil
import uuid

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.artifacts import ArtifactError
from recsys.data.movielens import MovieLens
from recsys.data.prepare import PrepareError, prepare
from recsys.data.snapshot import Snapshot, manifest, opened, snapshot
from recsys.data.sources import Batch, Csv, Parquet, SourceError, Tables, Unparsed
from recsys.data.sql import Sql
from recsys.data.synthetic import Synthetic

NAMES = ["user", "item", "time"]
SCHEMA = {"interactions": {"user": "user", "item": "item", "time": "time"}}
POSTGRES = os.environ.get("RECSYS_TEST_POSTGRES")


@pytest.fixture
def night(tmp_path):
    """Takes one snapshot after the other, each since the one before."""
    marks: list[dict | None] = [None]

    def take(source, schema=SCHEMA):
        taken = snapshot(Tables(schema, source), tmp_path / f"night-{len(marks)}", since=marks[-1])
        marks.append(json.loads(json.dumps(taken.content["mark"])))  # plain JSON
        tables = opened(tmp_path / f"night-{len(marks) - 1}")
        batches = list(tables.interactions.batches(NAMES))
        rows = [tuple(row.values()) for batch in batches for row in batch.columns.to_pylist()]
        assert taken.content["interactions"] == len(rows) + sum(len(batch.unparsed) for batch in batches)
        assert taken.content["mark"]["whole"] is (taken.content["whole"] is not None)
        assert tables.whole == taken.content["whole"]
        return rows, taken.content["whole"], batches

    return take


# What is kept: everything that `prepare` could see.


def same(one, other):
    assert (one.source, one.rows.tolist(), one.unparsed, one.decoded_as_cp1252) == (
        *(other.source, other.rows.tolist(), other.unparsed, other.decoded_as_cp1252),
    )
    assert one.columns.schema.equals(other.columns.schema)
    assert repr(one.columns.to_pylist()) == repr(other.columns.to_pylist())  # not a number equals nothing


def test_a_csv_is_kept_with_all_its_dirt(tmp_path, monkeypatch):
    monkeypatch.setattr("recsys.data.sources.BLOCK", 300)
    lines = [f"u{number},i,{number}" if number % 7 else f"u{number},i" for number in range(2, 200)]
    lines[50] = "u52,caf\u00e9,52"
    (tmp_path / "log.csv").write_bytes(("user,item,time\n" + "\n".join(lines)).encode("latin-1"))
    source = Csv(str(tmp_path / "log.csv"))
    assert snapshot(Tables(SCHEMA, source), tmp_path / "out").content["interactions"] == 198
    kept = list(opened(tmp_path / "out").interactions.batches(["item", "user"]))
    assert len(kept) > 5
    for one, other in zip(kept, source.batches(["item", "user"]), strict=True):
        same(one, other)
    assert sum(batch.decoded_as_cp1252 for batch in kept) == 1
    assert [row.row for batch in kept for row in batch.unparsed] == list(range(7, 200, 7))


class Odd:
    """A source of batches of ever other types, with wild row numbers."""

    def __init__(self):
        texts, numbers = pa.array(["a", None]), pa.array([1, 2])
        none = pa.nulls(2)
        self.all = [
            self.batch("x", [texts, numbers, none], [5, 9]),
            self.batch("y", [none, numbers.cast(pa.float64()), pa.array([1.5, float("nan")])], [9, 3]),
            self.batch("y", [none, numbers.cast(pa.float64()), pa.array([2.5, None])], [10, 11]),
            self.batch("z", [texts.dictionary_encode(), pa.array([2**63, 0], pa.uint64()), numbers], [1, 2]),
            self.batch("z", [texts.cast(pa.large_string()), texts, pa.array([9, None], pa.timestamp("us"))], [1, 2]),
            self.batch("z", [texts.slice(0, 0), texts.slice(0, 0), none.slice(0, 0)], [], (Unparsed(4, "why", "☃"),)),
        ]  # fmt: skip

    @staticmethod
    def batch(source, columns, rows, unparsed=()):
        return Batch(source, pa.RecordBatch.from_arrays(columns, names=NAMES), np.array(rows, np.int64), unparsed, 3)

    def batches(self, columns):
        for batch in self.all:
            yield Batch(batch.source, batch.columns.select(columns), batch.rows, batch.unparsed, 3)


def test_any_source_is_kept_whatever_the_types_of_its_batches(tmp_path):
    taken = snapshot(Tables(SCHEMA, Odd()), tmp_path / "out", since={"interactions": {}})
    assert taken.content["whole"] == "a Odd cannot tell what is new"
    assert taken.content["interactions"] == 11
    for columns in (NAMES, ["time", "user"]):
        for one, other in zip(
            opened(tmp_path / "out").interactions.batches(columns), Odd().batches(columns), strict=True
        ):
            same(one, other)


def test_a_source_without_a_row_is_kept_too(tmp_path):
    (tmp_path / "log.csv").write_text("")
    snapshot(Tables(SCHEMA, Csv(str(tmp_path / "log.csv"))), tmp_path / "out")
    assert list(opened(tmp_path / "out").interactions.batches(NAMES)) == []


def files_of(path):
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "manifest.json"}


def test_prepare_makes_the_same_of_the_snapshot_even_when_the_source_is_gone(tmp_path):
    shop = Synthetic(users=50, items=20, interactions=2_000, duplicates=0.05, broken=0.02)
    folder = tmp_path / "ml"
    folder.mkdir()
    (folder / "ratings.dat").write_text("1::10::5::100\n1::10::5\n2::11::3::90\n2::12::?::90\n")
    (folder / "movies.dat").write_text("10::Ten (1990)::A|B\n11::Eleven (1991)::B\n10::Again (1990)::\n")
    for name, tables in (("shop", shop), ("films", MovieLens(str(folder)))):
        there = prepare(tables, tmp_path / name / "there", max_rejected=1.0)
        taken = snapshot(tables, tmp_path / name / "snapshot")
        if name == "films":
            shutil.rmtree(folder)
        kept = prepare(opened(tmp_path / name / "snapshot"), tmp_path / name / "kept", max_rejected=1.0)
        assert files_of(kept.path) == files_of(there.path)
        assert kept.manifest.digest == there.manifest.digest
        assert taken.content["items"] == (20 if name == "shop" else 3)
        assert "users" not in taken.content


def test_equal_sources_make_equal_snapshots_and_damage_is_refused(tmp_path):
    shop = Synthetic(users=50, items=20, interactions=500)
    one, other = (snapshot(shop, tmp_path / name) for name in ("one", "other"))
    assert one.digest == other.digest
    assert manifest(tmp_path / "one").digest == one.digest
    file = tmp_path / "one" / "interactions-1.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    for refuses in (manifest, opened, lambda path: Snapshot(str(path))):
        with pytest.raises(ArtifactError, match=r"interactions-1\.parquet does not match its sha256"):
            refuses(tmp_path / "one")


# What is new: files.


def csv_of(rows, header=True):
    return "".join(f"{line}\n" for line in ([",".join(NAMES)] if header else []) + [",".join(row) for row in rows])


A, B, C, D = ("u1", "a", "1"), ("u2", "b", "2"), ("u3", "c", "3"), ("u4", "d", "4")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


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


# What is new: databases.


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    """A table to append to, and its source."""
    if request.param == "sqlite":
        address, table = f"sqlite:///{tmp_path / 'shop.db'}", "log"
    elif POSTGRES is None:
        pytest.skip("set RECSYS_TEST_POSTGRES to the address of a database, like postgresql+psycopg://user@host/test")
    else:
        address, table = POSTGRES, f"log_{uuid.uuid4().hex}"
    engine = sqlalchemy.create_engine(address)

    class Database:
        dialect = request.param

        def do(self, *statements):
            with engine.begin() as connection:
                for statement in statements:
                    connection.execute(sqlalchemy.text(statement.replace("TABLE_", table)))

        def source(self, cursor, query='SELECT "user", item, time, "At" FROM TABLE_', **options):
            return Sql(address, query.replace("TABLE_", table), cursor=cursor, **options)

    yield Database()
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text(f"DROP TABLE IF EXISTS {table}"))
    engine.dispose()


def create(database, kind):
    database.do(f'CREATE TABLE TABLE_ ("user" TEXT, item TEXT, time BIGINT, "At" {kind})')


def insert(database, *rows):
    values = ", ".join(f"('{user}', '{item}', {time}, {at})" for user, item, time, at in rows)
    database.do(f"INSERT INTO TABLE_ VALUES {values}")


VALUES = {
    "BIGINT": ["5", "9007199254740993", "9007199254740994"],
    "TIMESTAMP": ["'2026-01-01 00:00:00.000001'", "'2026-01-01 00:00:00.000002'", "'2026-01-01 00:00:00.000003'"],
    "TIMESTAMP WITH TIME ZONE": ["'2026-01-01 00:30+01'", "'2026-01-01 00:40+01'", "'2026-01-01 02:00+01'"],
    "DATE": ["'2026-01-01'", "'2026-01-02'", "'2026-01-03'"],
    "NUMERIC(30, 10)": ["0.1", "0.1000000001", "0.2"],
    "DOUBLE PRECISION": ["0.1", "0.10000000000000002", "0.2"],
    "TEXT": ["'a'", "'b'", "'c'"],
}  # fmt: skip


@pytest.mark.parametrize("kind", VALUES)
def test_a_query_with_a_cursor_reads_what_is_beyond_the_mark(database, night, kind):
    create(database, kind)
    source = database.source("At", rows=2)
    assert night(source)[:2] == ([], "nothing was read before")
    first, second, third = VALUES[kind]
    insert(database, ("u2", "b", 2, second), ("u1", "a", 1, first))
    assert night(source)[:2] == ([("u1", "a", 1), ("u2", "b", 2)], None)  # in the cursor's order
    assert night(source)[:2] == ([], None)
    insert(database, ("u3", "c", 3, third))
    assert night(source)[:2] == ([("u3", "c", 3)], None)
    assert night(source)[:2] == ([], None)


def test_rows_without_a_cursor_are_left_out_until_they_have_one_and_counted(database, tmp_path):
    create(database, "BIGINT")
    insert(database, ("u1", "a", 1, 1), ("u2", "b", 2, "NULL"), ("u3", "c", 3, "NULL"))
    tables = Tables(SCHEMA, database.source("At"))
    one = snapshot(tables, tmp_path / "1")
    assert (one.content["interactions"], one.content["notes"]) == (1, {"rows_without_cursor": 2})
    database.do("UPDATE TABLE_ SET \"At\" = 2 WHERE item = 'b'")
    two = snapshot(tables, tmp_path / "2", since=one.content["mark"])
    assert (two.content["interactions"], two.content["notes"]) == (1, {"rows_without_cursor": 1})


def test_a_query_may_end_as_people_end_them(database, night):
    create(database, "BIGINT")
    insert(database, ("u1", "a", 1, 1), ("u2", "b:c", 2, 2))
    query = "SELECT * FROM TABLE_ WHERE item <> ':x' ORDER BY time; \n"
    assert night(database.source("At", query))[0] == [("u1", "a", 1), ("u2", "b:c", 2)]
    assert night(database.source("At", "SELECT * FROM TABLE_ -- all of it"))[0] == [("u1", "a", 1), ("u2", "b:c", 2)]


def test_a_query_without_a_cursor_or_with_another_is_read_whole(database, night):
    create(database, "BIGINT")
    insert(database, ("u1", "a", 1, 1))
    row = ("u1", "a", 1)
    assert night(database.source("At"))[1] == "nothing was read before"
    assert night(database.source(None))[:2] == ([row], "the query has no cursor")
    assert night(database.source("At"))[:2] == ([row], "the database, the query or its cursor is not the one of before")
    assert night(database.source("At"))[:2] == ([], None)
    assert night(database.source("time"))[:2] == (
        [row],
        "the database, the query or its cursor is not the one of before",
    )


def test_a_cursor_that_is_no_column_is_named_with_the_nearest(database, tmp_path):
    create(database, "BIGINT")
    insert(database, ("u1", "a", 1, 1))
    with pytest.raises(SourceError, match=r"has no column 'At_'; did you mean 'At'\? \(it has: user, item, time, At\)"):
        snapshot(Tables(SCHEMA, database.source("At_")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_cursor_of_bytes_is_refused(database, tmp_path):
    create(database, "BYTEA" if database.dialect == "postgresql" else "BLOB")
    insert(database, ("u1", "a", 1, "'\\x01'" if database.dialect == "postgresql" else "x'01'"))
    with pytest.raises(SourceError, match=r"column 'At' of the query on .* cannot be a cursor: b'\\x01' is a bytes"):
        snapshot(Tables(SCHEMA, database.source("At")), tmp_path / "out")


def test_secrets_of_a_source_are_in_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOP", f"sqlite:///{tmp_path / 'shop.db'}")
    source = Sql("$SHOP", "SELECT 'u' AS \"user\", 'a' AS item, 1 AS time, 'hunter2' AS secret", cursor="time")
    taken = snapshot(Tables(SCHEMA, source), tmp_path / "out")
    assert taken.content["mark"]["interactions"]["said"]["database"] == f"sqlite:///{tmp_path / 'shop.db'}"
    lines = (tmp_path / "out" / "interactions.batches.jsonl").read_text()
    assert "hunter2" not in (tmp_path / "out" / "manifest.json").read_text()
    assert "hunter2" not in (tmp_path / "out" / "interactions-1.parquet").read_bytes().decode("latin-1")
    assert json.loads(lines)["source"].startswith("sqlite:///")


def test_another_database_is_read_whole(tmp_path, night):
    query = "SELECT 'u' AS \"user\", 'a' AS item, 1 AS time"
    for name in ("one", "other"):
        rows, whole, _ = night(Sql(f"sqlite:///{tmp_path / name}.db", query, cursor="time"))
        assert rows == [("u", "a", 1)]
    assert whole == "the database, the query or its cursor is not the one of before"


# The way of a week.


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
