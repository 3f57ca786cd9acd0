"""The store in Redis: kills, silence, a Redis that would forget, and every way in which it says no."""

import asyncio
import random
import subprocess
import sys
import time

import pytest
import redis

from recsys.online.redis_store import refuse_forgetful
from recsys.online.store import LiveItem, OnlineStoreError, StoredEvent, open_accepted, open_online
from tests.online.server import KEEPS


def event(number):
    return StoredEvent(f"e{number}", "anna", "lamp", number)


def refused(run, asked):
    with pytest.raises(OnlineStoreError) as caught:
        run(asked)
    return str(caught.value)


def test_nothing_accepted_is_lost_when_redis_is_killed(servers, opened, run):
    server, draw = servers(), random.Random(0)
    store, accepted, times = opened(server.address), [], 4
    dead: list[int] = []

    async def write(prefix, goal):
        number = 0
        while not (len(dead) == times and number >= goal):
            try:
                await store.add_events([StoredEvent(f"{prefix}{number}", f"u{number % 5}", "i", number)])
            except OnlineStoreError:
                await asyncio.sleep(0.01)
                continue
            accepted.append(f"{prefix}{number}")
            number += 1

    async def kill():
        for life in range(times):
            enough = len(accepted) + draw.randrange(50, 200)
            while len(accepted) < enough:
                await asyncio.sleep(0.001)
            server.kill()
            await asyncio.to_thread(server.start)
            dead.append(life)

    async def go():
        await asyncio.gather(kill(), *(write(f"{name}-", 100) for name in "abcd"))
        await store.check()

    run(go())
    with open_accepted(server.address) as read:
        rows = [row for part in read.rows(0, read.newest) for row in part]
    assert sorted(row[1] for row in rows) == sorted(accepted)  # none is lost, none is twice
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
    kept = [one.event_id for user in range(5) for one in run(store.events_of(f"u{user}", 10_000))]
    assert sorted(kept) == sorted(accepted)


def test_a_redis_that_is_away_is_told_soon_and_one_that_is_back_is_found(servers, opened, run):
    server = servers()
    store = opened(server.address)
    run(store.add_events([event(1)]))
    server.kill()
    for asked in (store.events_of("anna", 1), store.add_events([event(2)]), store.items_changed(0), store.check()):
        began = time.monotonic()
        said = refused(run, asked)
        assert time.monotonic() - began < 2
        assert said.startswith(f"{server.address} does not answer (")
        assert said.endswith("; see whether Redis runs and can be reached from here")
    server.start()
    assert run(store.add_events([event(2)])) == [True]
    assert run(store.events_of("anna", 9)) == [event(1), event(2)]


def test_nobody_waits_for_a_redis_that_keeps_silent_but_one_who_tries(servers, opened, run, monkeypatch):
    monkeypatch.setattr("recsys.online.redis_store._ANSWER_S", 0.2)
    server = servers()
    store = opened(server.address)
    run(store.add_events([event(1)]))
    server.stop()
    assert "does not answer" in refused(run, store.events_of("anna", 1))
    began = time.monotonic()
    for _ in range(100):
        assert f"{server.address} has kept silent; it is tried again" in refused(run, store.events_of("anna", 1))
    assert time.monotonic() - began < 0.1
    store._try_at = 0.0  # a second later

    async def ask():
        return await asyncio.gather(*(store.events_of("anna", 1) for _ in range(9)), return_exceptions=True)

    assert sorted("kept silent" in str(said) for said in run(ask())) == [False] + [True] * 8
    server.go_on()
    store._try_at = 0.0
    assert run(store.events_of("anna", 1)) == [event(1)]
    assert run(ask()) == [[event(1)]] * 9
    server.stop()  # under more requests than are sent at a time: those not sent yet do not wait

    async def ask_many():
        return await asyncio.gather(*(store.events_of("anna", 1) for _ in range(1_500)), return_exceptions=True)

    said = [str(error) for error in run(ask_many())]
    assert sum("does not answer" in error for error in said) <= 4 * 256
    assert sum("kept silent" in error for error in said) >= 1_500 - 4 * 256
    server.go_on()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "appendonly is 'no': CONFIG SET appendonly yes, and appendonly yes in its redis.conf"),
        (("--appendonly", "yes"), "appendfsync is 'everysec': CONFIG SET appendfsync always"),
        ((*KEEPS, "--maxmemory-policy", "allkeys-lru"), "maxmemory-policy evicts any key: CONFIG SET maxmemory-policy"),
    ],
)
def test_a_redis_that_would_forget_is_refused(servers, opened, run, options, says):
    server = servers("--maxmemory", "100mb", *options)
    store = opened(server.address)
    said = refused(run, store.check())
    assert said.startswith(f"{server.address} would lose accepted events; ")
    assert says in said
    with redis.Redis(port=server.port) as client:  # as the message says
        for name, value in (("appendonly", "yes"), ("appendfsync", "always"), ("maxmemory-policy", "noeviction")):
            client.config_set(name, value)
    run(store.check())


def test_what_expires_may_be_evicted():
    kept = {"appendonly": "yes", "appendfsync": "always"}
    for policy in ("noeviction", "volatile-lru", "volatile-ttl"):
        refuse_forgetful("here", {**kept, "maxmemory-policy": policy})


def test_a_redis_that_does_not_tell_its_configuration_is_warned_of_once(servers, opened, run, caplog):
    for options in (
        (*KEEPS, "--rename-command", "CONFIG", ""),
        (*KEEPS, "--user", "default", "on", "nopass", "~*", "&*", "+@all", "-config"),
    ):
        server = servers(*options)
        store = opened(server.address)
        caplog.clear()
        run(store.check())
        run(store.check())
        (record,) = caplog.records
        assert record.getMessage().startswith(f"{server.address} refuses: ")
        assert "nobody checks how it is set: see that its append-only file is on with appendf" in record.getMessage()


def test_a_replica_is_refused(servers, opened, run):
    primary = servers()
    replica = servers(*KEEPS, "--replicaof", "127.0.0.1", str(primary.port))
    run(opened(primary.address).check())
    store = opened(replica.address)
    for asked in (store.check(), store.add_events([event(1)])):
        assert refused(run, asked).endswith("is a replica, which keeps nothing; give the address of its primary")


def test_a_redis_that_is_full_takes_nothing_and_goes_on_when_it_has_room(servers, opened, run):
    server = servers(*KEEPS, "--maxmemory", "100mb")
    store = opened(server.address)
    run(store.add_events([event(1)]))
    with redis.Redis(port=server.port) as client:
        client.config_set("maxmemory", "1")
        for asked in (store.add_events([event(2), event(3)]), store.check()):
            said = refused(run, asked)
            assert "is full" in said
            assert said.endswith("; raise its maxmemory")
        assert run(store.events_of("anna", 9)) == [event(1)]
        client.config_set("maxmemory", "100mb")
    assert run(store.add_events([event(2), event(3)])) == [True, True]


def test_a_cluster_is_refused(servers, opened, run):
    server = servers(*KEEPS, "--cluster-enabled", "yes")
    store = opened(server.address)
    assert refused(run, store.check()).endswith("is a Redis Cluster; give the store a Redis of its own")


def test_passwords_are_needed_and_never_shown(servers, opened, run, monkeypatch):
    server = servers(*KEEPS, "--requirepass", "hunter2")
    monkeypatch.setenv("SECRET", "hunter2")
    right, wrong = (server.address.replace("://", f"://:{word}@") for word in ("$SECRET", "hunter3"))
    store = opened(f"{right}?name=shop")
    run(store.check())
    assert store.address == f"{server.address}?name=shop"
    for address in (wrong, server.address):
        store = opened(address)
        said = refused(run, store.check())
        assert said.startswith(f"{server.address} lets nobody in with this user and password (")
        assert "hunter" not in said + store.address
    server.kill()
    with pytest.raises(OnlineStoreError, match="does not answer") as caught, open_accepted(right):
        pass
    assert "hunter" not in str(caught.value)


def test_names_keep_services_apart(redis_address, opened, run):
    one, other = (opened(f"{redis_address}?name=test-apart-{name}") for name in "ab")
    try:
        assert run(one.add_events([event(1)])) == [True]
        assert run(other.events_of("anna", 9)) == []
        assert run(other.add_events([event(1)])) == [True]
        with redis.Redis.from_url(redis_address) as client:
            keys = {key.decode() for key in client.scan_iter("recsys:{test-apart-a}:*", count=10_000)}
            assert keys == {f"recsys:{{test-apart-a}}:{n}" for n in ("store", "events", "event_ids", "user:anna")}
    finally:
        with redis.Redis.from_url(redis_address) as client:
            for key in client.scan_iter("recsys:{test-apart-?}:*", count=10_000):
                client.delete(key)


def test_items_are_told_again_when_redis_was_emptied_and_numbers_have_grown_since(servers, opened, run):
    server = servers()
    reader, writer = opened(server.address), opened(server.address)
    run(writer.put_item(LiveItem("lamp", None, True, 1)))
    _, newest = run(reader.items_changed(0))
    with redis.Redis(port=server.port) as client:
        client.flushall()
    items = [LiveItem(f"i{number}", None, True, number) for number in range(3)]
    for item in items:
        run(opened(server.address).put_item(item))
    assert run(reader.items_changed(newest)) == (items, 3)
    assert run(reader.items_changed(3)) == ([], 3)


def test_other_formats_are_refused(servers, opened, run):
    server = servers()
    with redis.Redis(port=server.port) as client:
        client.hset("recsys:{online}:store", "format", "7")
    store = opened(server.address)
    says = f"{server.address} has format 7, this version reads 1; run the version that wrote it, or give"
    for asked in (store.check(), store.add_events([event(1)]), store.put_item(LiveItem("lamp", None, True, 1))):
        assert refused(run, asked).startswith(says)
    with pytest.raises(OnlineStoreError, match="has format 7"), open_accepted(server.address):
        pass


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("redis://127.0.0.1:port/0", r"^redis://127.0.0.1:port/0 cannot be used: "),
        ("redis://127.0.0.1/0?patience=3", r"^redis://127.0.0.1/0 cannot be used: .*'patience'"),
        ("redis://127.0.0.1/0?name={a}", r"^'{a}' cannot be a store's name; use letters, digits, dots and hyphens"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_when_opened(address, says):
    with pytest.raises(OnlineStoreError, match=says):
        open_online(address)


def test_without_its_package_the_message_says_what_to_install(tmp_path):
    program = (
        "import sys\nsys.modules['redis'] = None\nfrom recsys.online.store import *\n"
        f"open_online({str(tmp_path)!r})\n"
        "for use in (open_online, open_accepted):\n"
        "    try: use('redis://127.0.0.1')\n"
        "    except OnlineStoreError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["redis:// needs another package: pip install 'recsys[redis]'"] * 2
