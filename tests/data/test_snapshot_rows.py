"""Of a database a snapshot holds the rows that are new since the one before, by a cursor."""

import json
import os
import uuid

import pytest
import sqlalchemy

from recsys.data.snapshot import snapshot
from recsys.data.sources import SourceError, Tables
from recsys.data.sql import Sql
from tests.small_log import SCHEMA

POSTGRES = os.environ.get("RECSYS_TEST_POSTGRES")


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
