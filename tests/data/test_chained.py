"""A log from several sources: each has its mark, and everything is read where one must be read whole."""

import json

import pyarrow as pa
import pytest
import sqlalchemy

from recsys.data.chained import Chained
from recsys.data.news import News
from recsys.data.prepare import PrepareError, prepare
from recsys.data.snapshot import opened, snapshot
from recsys.data.sources import Batch, Csv, SourceError, Tables
from recsys.data.sql import Sql
from tests.small_log import NAMES, SCHEMA


@pytest.fixture
def log(tmp_path):
    """Two folders of CSV files and what writes to them."""

    class Log:
        def __init__(self):
            self.sources = [Csv(str(tmp_path / name)) for name in ("web", "shop")]

        def write(self, name, *rows, mode="a"):
            (tmp_path / name).mkdir(exist_ok=True)
            path = tmp_path / name / "log.csv"
            head = "" if path.exists() and mode == "a" else "user,item,time\n"
            with open(path, mode) as file:
                file.write(head + "".join(f"{row}\n" for row in rows))

    return Log()


def rows(batches):
    return [",".join(row.values()) for batch in batches for row in batch.columns.to_pylist()]


def test_sources_are_read_one_after_the_other(log):
    log.write("web", "a,x,3", "b,y,1")
    log.write("shop", "c,z,2")
    assert rows(Chained(log.sources).batches(NAMES)) == ["a,x,3", "b,y,1", "c,z,2"]
    assert rows(Chained(log.sources[::-1]).batches(NAMES)) == ["c,z,2", "a,x,3", "b,y,1"]


def test_what_is_new_in_each_is_read(log):
    log.write("web", "a,x,1")
    log.write("shop", "b,y,2")
    chain = Chained(log.sources)
    first = chain.since(None)
    assert (rows(first.batches(NAMES)), first.whole) == (["a,x,1", "b,y,2"], "nothing was read before")
    assert first.notes == {"files_new": 2}
    log.write("shop", "c,z,3")
    second = chain.since(json.loads(json.dumps(first.mark)))
    assert (rows(second.batches(NAMES)), second.whole) == (["c,z,3"], None)
    assert second.notes == {"files_new": 0, "files_grown": 1, "files_renamed": 0, "files_gone": 0}
    log.write("web", "d,x,4")
    log.write("shop", "e,y,5")
    third = chain.since(json.loads(json.dumps(second.mark)))
    assert (rows(third.batches(NAMES)), third.whole) == (["d,x,4", "e,y,5"], None)
    assert rows(chain.since(third.mark).batches(NAMES)) == []


@pytest.mark.parametrize("name", ["web", "shop"])
def test_everything_is_read_where_one_must_be_read_whole(log, name):
    log.write("web", "a,x,1")
    log.write("shop", "b,y,2")
    chain = Chained(log.sources)
    first = chain.since(None)
    rows(first.batches(NAMES))
    log.write(name, "c,z,3", mode="w")
    second = chain.since(first.mark)
    assert "was changed in what had been read of it" in second.whole
    assert sorted(rows(second.batches(NAMES))) == sorted(["c,z,3", "b,y,2" if name == "web" else "a,x,1"])
    third = chain.since(second.mark)
    assert (rows(third.batches(NAMES)), third.whole) == ([], None)


class Plain:
    """A source that cannot tell what is new."""

    def __init__(self, csv):
        self.batches = csv.batches


def test_one_that_cannot_tell_what_is_new_makes_all_be_read(log):
    log.write("web", "a,x,1")
    log.write("shop", "b,y,2")
    chain = Chained([log.sources[0], Plain(log.sources[1])])
    first = chain.since(None)
    assert rows(first.batches(NAMES)) == ["a,x,1", "b,y,2"]
    second = chain.since(first.mark)
    assert (rows(second.batches(NAMES)), second.whole) == (["a,x,1", "b,y,2"], "a Plain cannot tell what is new")


def test_another_chain_is_read_whole(log, tmp_path):
    log.write("web", "a,x,1")
    log.write("shop", "b,y,2")
    first = Chained(log.sources).since(None)
    rows(first.batches(NAMES))
    for sources, now in ((log.sources[:1], "Csv"), ([log.sources[0], Plain(log.sources[1])], "Csv, Plain")):
        news = Chained(sources).since(first.mark)
        assert news.whole == f"the sources are others than before (Csv, Csv then, {now} now)"
        assert rows(news.batches(NAMES))[0] == "a,x,1"
    with pytest.raises(SourceError, match="a chain of no sources has no rows"):
        Chained([])


def test_notes_of_all_are_counted(log, tmp_path):
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    with engine.begin() as connection:
        for text in ('CREATE TABLE log ("user", item, time, "at")', "INSERT INTO log VALUES ('u', 'i', 1, NULL)"):
            connection.execute(sqlalchemy.text(text))
    engine.dispose()
    log.write("web", "a,x,1")
    source = Sql(f"sqlite:///{tmp_path / 'shop.db'}", "SELECT * FROM log", cursor="at")
    taken = snapshot(Tables(SCHEMA, Chained([log.sources[0], source, source])), tmp_path / "out")
    assert taken.content["notes"] == {"files_new": 1, "rows_without_cursor": 2}


def test_a_snapshot_of_a_chain_is_prepared_on_a_base(log, tmp_path):
    """Columns of other types than those of the first source, too."""

    class Typed:
        def batches(self, columns):
            return self.since(None).batches(columns)

        def since(self, mark):
            news = log.sources[1].since(mark)

            def batches(columns):
                for batch in news.batches(columns):
                    times = batch.columns.column(2).cast(pa.int64()).cast(pa.timestamp("s", "UTC"))
                    arrays = [batch.columns.column(0), batch.columns.column(1), times]
                    yield Batch(batch.source, pa.RecordBatch.from_arrays(arrays, columns), batch.rows)

            return News(batches, news.mark, news.whole)

    log.write("web", "a,x,1")
    log.write("shop", "b,y,2")
    tables = Tables(SCHEMA, Chained([log.sources[0], Typed()]))
    one = snapshot(tables, tmp_path / "snapshot-1")
    base = prepare(opened(tmp_path / "snapshot-1"), tmp_path / "1")
    assert base.times.tolist() == [1000, 2000]
    with pytest.raises(PrepareError, match="hold everything, not only what is new"):
        prepare(opened(tmp_path / "snapshot-1"), tmp_path / "no", base=base.path)
    log.write("web", "a,y,3")
    two = snapshot(tables, tmp_path / "snapshot-2", since=one.content["mark"])
    assert two.content["whole"] is None
    both = prepare(opened(tmp_path / "snapshot-2"), tmp_path / "2", base=base.path)
    assert both.times.tolist() == [1000, 3000, 2000]
