import gzip
import os

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy

from recsys.data.schema import SchemaError
from recsys.data.sources import Csv, Parquet, SourceError, Tables
from recsys.data.sql import Sql

ROWS = [("u1", "a", 10), ("u2", "b", 20), ("u1", "ç,|", 30)]
NAMES = ["user", "item", "time"]
POSTGRES = os.environ.get("RECSYS_TEST_POSTGRES")


def csv_text(delimiter=",", header=True, rows=ROWS):
    lines = [delimiter.join(NAMES)] if header else []
    lines += [delimiter.join(f'"{value}"' if delimiter in str(value) else str(value) for value in row) for row in rows]
    return "\n".join(lines) + "\n"


def parquet_table(rows=ROWS):
    return pa.table([pa.array(column) for column in zip(*rows, strict=True)], names=NAMES)


def sqlite(tmp_path):
    address = f"sqlite:///{tmp_path / 'shop.db'}"
    engine = sqlalchemy.create_engine(address)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text('CREATE TABLE log ("user" TEXT, item TEXT, time BIGINT)'))
        connection.execute(
            sqlalchemy.text("INSERT INTO log VALUES (:user, :item, :time)"),
            [dict(zip(NAMES, row, strict=True)) for row in ROWS],
        )
    engine.dispose()
    return Sql(address, 'SELECT "user", item, time FROM log ORDER BY time', rows=2)


def csv_file(tmp_path):
    (tmp_path / "log.csv").write_text(csv_text(), encoding="utf-8")
    return Csv(str(tmp_path / "log.csv"))


def csv_with_long_delimiter(tmp_path):
    (tmp_path / "log.dat").write_text(csv_text("::", header=False), encoding="latin-1")
    return Csv(str(tmp_path / "log.dat"), "::", NAMES, "latin-1")


def csv_without_quotes(tmp_path):
    (tmp_path / "log.tsv").write_text(csv_text("\t"), encoding="utf-8")
    return Csv(str(tmp_path / "log.tsv"), "\t", quote="")


def csv_folder(tmp_path):
    (tmp_path / "log" / "b").mkdir(parents=True)
    (tmp_path / "log" / "a.csv").write_text(csv_text(rows=ROWS[:2]), encoding="utf-8")
    (tmp_path / "log" / "b" / "c.csv.gz").write_bytes(gzip.compress(csv_text(rows=ROWS[2:]).encode()))
    (tmp_path / "log" / "_SUCCESS").write_text("")
    (tmp_path / "log" / ".hidden").write_text("x")
    return Csv(str(tmp_path / "log"))


def csv_in_memory(tmp_path):
    with fsspec.open(f"memory://{tmp_path.name}/log-1.csv", "w") as file:
        file.write(csv_text(rows=ROWS[:1]))
    with fsspec.open(f"memory://{tmp_path.name}/log-2.csv", "w") as file:
        file.write(csv_text(rows=ROWS[1:]))
    return Csv(f"memory://{tmp_path.name}/log-*.csv")


def utf_16(tmp_path):
    (tmp_path / "log.csv").write_text(csv_text(), encoding="utf-16")
    return Csv(str(tmp_path / "log.csv"))


def byte_order_mark(tmp_path):
    (tmp_path / "log.csv").write_text(csv_text(), encoding="utf-8-sig")
    return Csv(str(tmp_path / "log.csv"), encoding="latin-1")


def parquet_file(tmp_path):
    pq.write_table(parquet_table(), tmp_path / "log.parquet")
    return Parquet(str(tmp_path / "log.parquet"))


def parquet_in_memory(tmp_path):
    for number, rows in enumerate((ROWS[:1], ROWS[1:])):
        with fsspec.open(f"memory://{tmp_path.name}/{number}.parquet", "wb") as file:
            pq.write_table(parquet_table(rows), file)
    return Parquet(f"memory://{tmp_path.name}")


def postgresql(tmp_path):
    if POSTGRES is None:
        pytest.skip("set RECSYS_TEST_POSTGRES to the address of a database, like postgresql+psycopg://user@host/test")
    rows = ", ".join(f"('{user}', '{item}', {time})" for user, item, time in ROWS)
    return Sql(POSTGRES, f'SELECT * FROM (VALUES {rows}) AS log("user", item, time) ORDER BY time', rows=2)


MAKERS = [
    *(csv_file, csv_with_long_delimiter, csv_without_quotes, csv_folder, csv_in_memory, utf_16, byte_order_mark),
    *(parquet_file, parquet_in_memory, sqlite, postgresql),
]


@pytest.fixture(params=MAKERS, ids=lambda make: make.__name__)
def source(request, tmp_path):
    return request.param(tmp_path)


def rows_of(source, columns=NAMES):
    return [tuple(row.values()) for batch in source.batches(columns) for row in batch.columns.to_pylist()]


def test_all_rows_come_in_order_with_the_columns_asked_for(source):
    assert [(user, item, int(time)) for user, item, time in rows_of(source)] == ROWS
    assert [(int(time), user) for time, user in rows_of(source, ["time", "user"])] == [(t, u) for u, _, t in ROWS]


def test_every_row_says_where_it_came_from(source):
    for batch in source.batches(NAMES):
        assert batch.source
        assert len(batch.rows) == batch.columns.num_rows
        assert (batch.rows >= 1).all()


def test_a_missing_column_is_named_with_the_nearest(source):
    with pytest.raises(SourceError, match=r"has no column 'items'; did you mean 'item'\? \(it has: user, item, time\)"):
        rows_of(source, ["user", "items"])


@pytest.mark.parametrize("make", [Csv, Parquet])
def test_a_path_that_matches_nothing_is_an_error(make, tmp_path):
    with pytest.raises(SourceError, match="nothing-here matches no file"):
        rows_of(make(str(tmp_path / "nothing-here")))


def test_rows_with_another_number_of_columns_are_handed_over_as_they_were(tmp_path):
    (tmp_path / "log.dat").write_text("u::i::t\n1::2::3\n4::5\n6::7::8\n9::10::11::12\n13::14::15\n")
    batches = list(Csv(str(tmp_path / "log.dat"), "::").batches(["t"]))
    assert [row for batch in batches for row in batch.rows.tolist()] == [2, 4, 6]
    unparsed = [row for batch in batches for row in batch.unparsed]
    assert [(row.row, row.reason, row.raw) for row in unparsed] == [
        (3, "2 columns instead of 3", "4::5"),
        (5, "4 columns instead of 3", "9::10::11::12"),
    ]


def test_row_numbers_stay_right_over_many_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("recsys.data.sources.BLOCK", 1000)
    lines = [f"u{number},i,{number}" if number % 7 else f"u{number},i" for number in range(2, 5000)]
    (tmp_path / "log.csv").write_text("user,item,time\n" + "\n".join(lines))
    batches = list(csv_of(tmp_path).batches(["time"]))
    assert len(batches) > 10
    for batch in batches:
        assert batch.rows.tolist() == [int(text) for text in batch.columns.column(0).to_pylist()]
    assert [row.row for batch in batches for row in batch.unparsed] == list(range(7, 5000, 7))


def csv_of(tmp_path):
    return Csv(str(tmp_path / "log.csv"))


def test_lines_in_another_encoding_lose_nothing_and_are_counted(tmp_path):
    (tmp_path / "log.csv").write_bytes("user,item\nu,é\n".encode() + b"u,\xe9\nu,\x81\n" + "u,日\n".encode())
    batches = list(csv_of(tmp_path).batches(["item"]))
    assert [row for batch in batches for row in batch.columns.column(0).to_pylist()] == ["é", "é", "\x81", "日"]
    assert sum(batch.decoded_as_cp1252 for batch in batches) == 2


def test_broken_utf_16_is_a_clear_error(tmp_path):
    (tmp_path / "log.csv").write_bytes("user,item\nu,i\n".encode("utf-16") + b"\x00\xd8\x0a\x00")
    with pytest.raises(SourceError, match=r"log\.csv is broken: 'utf-16-le' codec can't decode"):
        rows_of(csv_of(tmp_path), ["user"])


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", []),
        ("user,item", []),
        ("user,item\n", []),
        ("user,item\nu,i", [("u", "i")]),
        ("user,item\r\nu,i\r\n", [("u", "i")]),
        ('user,item\nu,"i\nj"\nv,"say ""i"""\n', [("u", "i\nj"), ("v", 'say "i"')]),
        ("item,user\n\nNULL,NA\n", [("", ""), ("NA", "NULL")]),
    ],
)
def test_corners_of_csv(tmp_path, text, rows):
    (tmp_path / "log.csv").write_text(text, newline="")
    assert rows_of(csv_of(tmp_path), ["user", "item"]) == rows


def test_a_file_that_is_not_parquet_is_named(tmp_path):
    (tmp_path / "log.parquet").write_text("user,item\n")
    with pytest.raises(SourceError, match=r"log\.parquet is not a Parquet file"):
        rows_of(Parquet(str(tmp_path / "log.parquet")))


def test_a_query_may_hold_colons_and_mixed_types(tmp_path):
    address = f"sqlite:///{tmp_path / 'x.db'}"
    source = Sql(address, "SELECT '12:30' AS a, 1 AS b UNION ALL SELECT ':x' AS a, 'two' AS b")
    assert sorted(rows_of(source, ["a", "b"])) == [("12:30", "1"), (":x", "two")]


def test_a_password_comes_from_the_environment_and_is_never_shown(monkeypatch):
    monkeypatch.setenv("SHOP_PASSWORD", "hunter2")
    source = Sql("postgresql+psycopg://me:$SHOP_PASSWORD@127.0.0.1:1/shop", "SELECT 1 AS a")
    with pytest.raises(SourceError, match=r"the query on postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/shop failed") as e:
        rows_of(source, ["a"])
    assert "hunter2" not in str(e.value)


def test_a_bad_query_or_address_is_a_clear_error(tmp_path):
    with pytest.raises(SourceError, match=r"the query on sqlite:///.*failed: .*no such table"):
        rows_of(Sql(f"sqlite:///{tmp_path / 'x.db'}", "SELECT a FROM nowhere"), ["a"])
    with pytest.raises(SourceError, match="the address of the database cannot be used"):
        rows_of(Sql("nonsense", "SELECT 1"), ["a"])


def test_tables_and_schema_must_belong_together():
    log = Csv("log.csv")
    with pytest.raises(SchemaError, match="items are declared by half; add 'items' in the schema"):
        Tables({"interactions": {"user": "u", "item": "i"}}, log, items=Csv("items.csv"))
    with pytest.raises(SchemaError, match="users are declared by half; add a source of users"):
        Tables({"interactions": {"user": "u", "item": "i"}, "users": {"id": "u"}}, log)


def test_a_schema_may_stand_in_a_file(tmp_path):
    (tmp_path / "schema.yaml").write_text("interactions: {user: u, item: i}")
    assert Tables(str(tmp_path / "schema.yaml"), Csv("log.csv")).schema.interactions.user == "u"
