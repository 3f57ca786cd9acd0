"""Accepted events as a log: read back while the service writes, each once, up to a dataset that is added to."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import redis
import yaml
from jsonargparse import ArgumentParser

from recsys.data.chained import Chained
from recsys.data.prepare import prepare
from recsys.data.snapshot import opened as kept
from recsys.data.snapshot import snapshot
from recsys.data.sources import SourceError, Tables
from recsys.online import embedded, redis_store
from recsys.online.source import Events
from recsys.online.store import StoredEvent

WRITER = Path(__file__).with_name("writer.py")
ROOT = Path(__file__).parents[2]
ALL = ["event_id", "user_id", "item_id", "timestamp", "event"]
SCHEMA = {"interactions": {"user": "user_id", "item": "item_id", "time": "timestamp", "event": "event", "unit": "ms"}}


def event(number, user="anna", item="lamp", what="view"):
    return StoredEvent(f"e{number}", user, item, number * 1000, what)


def ids(batches):
    return [row for batch in batches for row in batch.columns.column("event_id").to_pylist()]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(embedded, "_ROWS", 3)
    monkeypatch.setattr(redis_store, "_ROWS", 3)


def test_events_are_rows_in_the_order_of_acceptance(store, address, run):
    run(store.add_events([event(number) for number in (5, 3, 4)]))
    run(store.add_events([event(9, "ben", "ü", None)]))
    one, other = Events(address).batches(["timestamp", "event", "item_id", "event_id", "user_id"])
    assert one.columns.schema.field("timestamp").type == pa.timestamp("ms", "UTC")
    assert one.columns.column("event_id").to_pylist() == ["e5", "e3", "e4"]
    assert one.columns.column("timestamp").cast(pa.int64()).to_pylist() == [5_000, 3_000, 4_000]
    assert (one.rows.tolist(), other.rows.tolist()) == ([1, 2, 3], [4])
    assert one.columns.schema == other.columns.schema
    row = other.columns.to_pylist()[0]
    assert (row["user_id"], row["item_id"], row["event"]) == ("ben", "ü", None)
    assert one.source == store.address or one.source == f"{store.address}/online.sqlite3"


def test_only_what_came_since_the_mark_is_read(store, address, run):
    run(store.add_events([event(1), event(2)]))
    first = Events(address).since(None)
    run(store.add_events([event(3)]))  # accepted before the batches are read, but after the mark
    assert (ids(first.batches(ALL)), first.whole) == (["e1", "e2"], "nothing was read before")
    mark = json.loads(json.dumps(first.mark))
    later = Events(address).since(mark)
    assert (ids(later.batches(ALL)), later.whole) == (["e3"], None)
    assert ids(Events(address).since(later.mark).batches(ALL)) == []
    assert ids(Events(address).since(mark).batches(ALL)) == ["e3"]  # as often as it is asked


def test_a_store_that_nobody_has_written_to_has_no_rows_yet(places, opened, run):
    address = places()
    if "://" not in address:
        Path(address).mkdir()
    none = Events(address).since(None)
    assert (ids(none.batches(ALL)), none.whole) == ([], "nothing was read before")
    run(opened(address).add_events([event(1)]))
    some = Events(address).since(none.mark)
    assert (ids(some.batches(ALL)), some.whole) == (["e1"], None)


def test_another_store_at_the_address_is_read_whole(tmp_path, servers, opened, run):
    server = servers()
    for address, remove in (
        (str(tmp_path / "online"), lambda: (tmp_path / "online" / "online.sqlite3").unlink()),
        (server.address, lambda: redis.Redis(port=server.port).flushall()),
    ):
        store = opened(address)
        run(store.add_events([event(1), event(2)]))
        source = Events(address)
        mark = source.since(None).mark
        halfway = source.since(mark)
        run(store.close())
        remove()
        run(opened(address).add_events([event(3), event(4), event(5)]))
        with pytest.raises(SourceError, match="was made anew while it was read; start again"):
            list(halfway.batches(ALL))
        news = source.since(mark)
        assert (ids(news.batches(ALL)), "is not the store of before" in news.whole) == (["e3", "e4", "e5"], True)


def test_what_another_process_accepts_meanwhile_is_read_once_and_none_is_missed(address):
    command = [sys.executable, str(WRITER), address, "e", "300"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    process.stdout.readline()
    source, mark, nights = Events(address), None, 0
    read: list[str] = []
    while True:
        ended = process.poll() is not None
        news = source.since(mark)
        for batch in news.batches(ALL):
            assert batch.rows.tolist() == list(range(len(read) + 1, len(read) + 1 + len(batch.rows)))
            read += batch.columns.column("event_id").to_pylist()
        mark, nights = news.mark, nights + 1
        if ended:
            break
    process.stdout.close()
    assert process.returncode == 0
    assert nights > 2
    assert sorted(read) == sorted(f"e{number}" for number in range(300))


def test_columns_may_go_by_the_names_of_the_companys_own_log(store, address, run):
    run(store.add_events([event(1), event(2, what=None)]))
    source = Events(address, {"user_id": "customer", "timestamp": "at", "event": "action"}, unsaid="view")
    (batch,) = source.batches(["customer", "item_id", "action"])
    assert batch.columns.to_pylist() == [{"customer": "anna", "item_id": "lamp", "action": "view"}] * 2
    with pytest.raises(SourceError, match=r"have no column 'actoin'; did you mean 'action'\? \(valid: event_id, cust"):
        list(source.batches(["actoin"]))
    with pytest.raises(SourceError, match=r"names: there is no column 'usr_id' of events; did you mean 'user_id'"):
        list(Events(address, {"usr_id": "customer"}).batches(["customer"]))


def test_a_store_that_cannot_be_read_is_a_source_that_cannot(tmp_path, servers):
    server = servers()
    server.kill()
    for address, says in (
        (str(tmp_path / "nowhere"), "there is no folder .*nowhere; give the one that the service was told"),
        (server.address, f"{server.address} does not answer"),
        ("shop://online", "shop:// is no online store"),
    ):
        with pytest.raises(SourceError, match=says):
            list(Events(address).batches(ALL))


def told(dataset):
    """By user, each interaction as (time in seconds, item, event)."""
    items, offsets = dataset.item_ids.ids(dataset.items), dataset.user_offsets
    return {
        dataset.user_ids.id(user): [
            (int(dataset.times[p]) // 1000, items[p], dataset.event_names[dataset.events[p]])
            for p in range(offsets[user], offsets[user + 1])
        ]
        for user in range(len(offsets) - 1)
    }


def test_two_nights_make_one_dataset_of_all_events(store, address, run, tmp_path):
    tables = Tables(SCHEMA, Events(address))
    run(store.add_events([event(1), event(3, "ben"), event(2, item="chair", what="buy")]))
    one = snapshot(tables, tmp_path / "snapshot-1")
    base = prepare(kept(tmp_path / "snapshot-1"), tmp_path / "1")
    assert told(base) == {"anna": [(1, "lamp", "view"), (2, "chair", "buy")], "ben": [(3, "lamp", "view")]}
    run(store.add_events([event(5, item="desk"), event(4, "carl"), event(3)]))
    two = snapshot(tables, tmp_path / "snapshot-2", since=json.loads(json.dumps(one.content["mark"])))
    assert (two.content["whole"], two.content["interactions"]) == (None, 2)
    both = prepare(kept(tmp_path / "snapshot-2"), tmp_path / "2", base=base.path)
    assert told(both) == {
        "anna": [(1, "lamp", "view"), (2, "chair", "buy"), (5, "desk", "view")],
        "ben": [(3, "lamp", "view")],
        "carl": [(4, "lamp", "view")],
    }
    whole = prepare(tables, tmp_path / "whole")
    assert told(whole) == told(both)


def test_the_configuration_of_the_documentation_chains_the_companys_log_and_the_events(tmp_path, store, address, run):
    """The log has names and times of its own."""
    (tmp_path / "log.csv").write_text("customer,sku,at,action\n7,10,1970-01-01 00:00:01,view\n")
    text = (ROOT / "docs" / "online.md").read_text()
    config = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    log, events = config["tables"]["init_args"]["interactions"]["init_args"]["sources"]
    log["init_args"]["path"], events["init_args"]["address"] = str(tmp_path / "log.csv"), address
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--tables", type=Tables)
    tables = parser.instantiate(parser.parse_object(config)).tables
    assert isinstance(tables.interactions, Chained)
    run(store.add_events([event(2, "7", "11", None)]))
    one = snapshot(tables, tmp_path / "snapshot-1")
    base = prepare(kept(tmp_path / "snapshot-1"), tmp_path / "1")
    assert told(base) == {"7": [(1, "10", "view"), (2, "11", "view")]}
    run(store.add_events([event(3, "8", "10", "buy")]))
    with open(tmp_path / "log.csv", "a") as file:
        file.write("7,12,1970-01-01 00:00:04,buy\n")
    two = snapshot(tables, tmp_path / "snapshot-2", since=json.loads(json.dumps(one.content["mark"])))
    assert (two.content["whole"], two.content["interactions"]) == (None, 2)
    both = prepare(kept(tmp_path / "snapshot-2"), tmp_path / "2", base=base.path)
    assert told(both) == {
        "7": [(1, "10", "view"), (2, "11", "view"), (4, "12", "buy")],
        "8": [(3, "10", "buy")],
    }


def test_a_large_store_is_read_in_parts(store, address, run, monkeypatch):
    monkeypatch.setattr(embedded, "_ROWS", 1_000)
    monkeypatch.setattr(redis_store, "_ROWS", 1_000)

    async def add():
        await asyncio.gather(*(store.add_events([event(10 * n + m) for m in range(10)]) for n in range(250)))

    run(add())
    batches = list(Events(address).batches(["event_id"]))
    assert [len(batch.rows) for batch in batches] == [1_000, 1_000, 500]
    assert np.concatenate([batch.rows for batch in batches]).tolist() == list(range(1, 2_501))
    assert len(set(ids(batches))) == 2_500
