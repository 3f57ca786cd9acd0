"""The store in a file: kills, several processes, disks and files that fail."""

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.online import embedded
from recsys.online.store import LiveItem, OnlineStoreError, StoredEvent, open_accepted, open_online

WRITER = Path(__file__).with_name("writer.py")
ROOT = Path(__file__).parents[2]


def event(number, item="lamp"):
    return StoredEvent(f"e{number}", "anna", item, number)


def writing(folder, prefix, how_many):
    command = [sys.executable, str(WRITER), str(folder), prefix, str(how_many)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def kept(folder):
    with open_accepted(str(folder)) as accepted:
        return [row for part in accepted.rows(0, accepted.newest) for row in part]


@pytest.fixture
def failing(opened, tmp_path, run):
    """A store, and what becomes of an event that is added to it."""
    store = opened(str(tmp_path / "online"))
    run(store.add_events([event(1)]))

    def add(*events):
        with pytest.raises(OnlineStoreError) as caught:
            run(store.add_events(events))
        assert str(tmp_path / "online" / "online.sqlite3") in str(caught.value)
        return str(caught.value)

    return store, add


def test_nothing_accepted_is_lost_when_its_process_is_killed(tmp_path, run):
    draw, accepted = random.Random(0), []
    for life in range(5):
        process = writing(tmp_path, f"life-{life}-", 1_000_000)
        for _ in range(draw.randrange(1, 150)):
            accepted.append(process.stdout.readline().split()[0])
        process.kill()
        accepted += [line.split()[0] for line in process.stdout.read().splitlines() if line.endswith("1")]
        process.wait()
        rows = kept(tmp_path)  # read back before any process mends what was left
        assert set(accepted) <= {row[1] for row in rows}
        assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
        assert len(rows) <= len(accepted) + 4 * (life + 1)  # what was committed but not yet said

        async def go(life=life, last=accepted[-1]):
            store = open_online(str(tmp_path))
            await store.check()
            assert await store.add_events([StoredEvent(f"after-{life}", "u1", "i", 0)]) == [True]
            assert await store.add_events([StoredEvent(last, "", "", 0)]) == [False]
            await store.close()

        run(go())
        accepted.append(f"after-{life}")


def test_processes_write_at_once_and_each_sees_what_another_accepted(tmp_path, opened, run):
    store = opened(str(tmp_path))
    processes = [writing(tmp_path, "e", 150) for _ in range(2)]  # the same ids
    new = []
    for _ in range(150):
        for process in processes:
            event_id, is_new = process.stdout.readline().split()
            number = int(event_id[1:])
            assert StoredEvent(event_id, f"u{number % 7}", f"i{number}", number) in run(
                store.events_of(f"u{number % 7}", 1_000)
            )
            new += [event_id] * int(is_new)
        run(store.put_item(LiveItem("lamp", None, True, 1)))
    assert [process.wait() for process in processes] == [0, 0]
    assert sorted(new) == sorted(f"e{number}" for number in range(150))
    assert len(kept(tmp_path)) == 150


def test_processes_that_open_a_new_folder_at_once_share_one_store(tmp_path):
    processes = [writing(tmp_path / "new", f"{name}-", 3) for name in "abcd"]
    for process in processes:
        assert process.wait() == 0, process.stderr.read()
    assert len(kept(tmp_path / "new")) == 12


def test_what_is_accepted_has_been_synced(opened, tmp_path):
    """A kill loses no more without it, but a power cut does, which no test can try."""
    store = opened(str(tmp_path))
    assert store._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._writer.execute("PRAGMA synchronous").fetchone() == (2,)


def test_writes_that_wait_together_are_committed_together(opened, tmp_path, run, monkeypatch):
    groups = []
    committed = embedded.EmbeddedStore._committed

    def counted(self, writes):
        groups.append(len(writes))
        return committed(self, writes)

    monkeypatch.setattr(embedded.EmbeddedStore, "_committed", counted)
    store = opened(str(tmp_path))

    async def add():
        return await asyncio.gather(*(store.add_events([event(number)]) for number in range(200)))

    assert run(add()) == [[True]] * 200
    assert sum(groups) == 200
    assert len(groups) < 100


def test_a_full_disk_takes_nothing_and_the_store_goes_on_when_there_is_room(failing, run):
    store, add = failing
    (pages,) = store._writer.execute("PRAGMA page_count").fetchone()
    store._writer.execute(f"PRAGMA max_page_count = {pages}")
    large = event(3, "x" * 100_000)
    assert add(event(2), large).endswith("(SQLITE_FULL); free room on its disk")
    assert run(store.events_of("anna", 9)) == [event(1)]
    store._writer.execute("PRAGMA max_page_count = 1000000")
    assert run(store.add_events([event(2), large])) == [True, True]


def test_a_call_of_which_one_event_fails_adds_none(failing, run):
    store, add = failing
    store._writer.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1_000)
    assert "too big" in add(event(2), event(3, "x" * 2_000), event(4))
    assert run(store.events_of("anna", 9)) == [event(1)]
    assert run(store.add_events([event(2)])) == [True]


FULL = """
import asyncio, os, sys
from pathlib import Path
from recsys.online.store import OnlineStoreError, StoredEvent, open_online
from tests.nightly.disk import Disk

async def go(folder):
    disk = Disk(folder)
    store = open_online(str(folder))
    disk.leave(300_000)
    accepted, number = [], 0
    while True:
        number += 1
        try:
            await store.add_events([StoredEvent(f"e{number}", "u", "i" * 2_000, number)])
        except OnlineStoreError as error:
            assert "free room on its disk" in str(error), error
            break
        accepted.append(f"e{number}")
    assert len(accepted) > 10
    assert [one.event_id for one in await store.events_of("u", 10_000)] == accepted
    disk.leave(10_000_000)
    await store.add_events([StoredEvent("more", "u", "i", 0)])
    assert len(await store.events_of("u", 10_000)) == len(accepted) + 1
    await store.close()

asyncio.run(go(Path(sys.argv[1])))
"""


def test_a_disk_that_is_really_full(tmp_path):
    mount = f"from tests.nightly.disk import Disk; from pathlib import Path; Disk(Path({str(tmp_path)!r}))"
    if subprocess.run([sys.executable, "-c", mount], cwd=ROOT, check=False, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here, neither as root nor in a user namespace")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_another_process_that_holds_the_file_is_waited_for_so_long(failing, tmp_path, run):
    store, add = failing
    other = sqlite3.connect(tmp_path / "online" / "online.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store._writer.execute("PRAGMA busy_timeout = 50")
    assert add(event(2)).endswith("another process holds it; end that process, or try again")
    assert run(store.events_of("anna", 9)) == [event(1)]  # readers do not wait
    other.execute("ROLLBACK")
    assert run(store.add_events([event(2)])) == [True]
    other.close()


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_file_that_is_taken_away_takes_nothing_more(failing, tmp_path, run, how):
    store, add = failing
    (tmp_path / "online" / "online.sqlite3").unlink()
    if how == "replaced":
        (tmp_path / "online" / "online.sqlite3").touch()
    assert add(event(2)).endswith("was removed or replaced under the running service; restart it")
    with pytest.raises(OnlineStoreError, match="was removed or replaced"):
        run(store.check())


def test_a_file_that_is_damaged_is_refused_when_opened(tmp_path, run):
    folder = tmp_path / "online"
    folder.mkdir()
    (folder / "online.sqlite3").write_bytes(b"not a database, but as long as its header would have to be" * 100)
    for use in (open_online, lambda address: open_accepted(address).__enter__()):
        with pytest.raises(OnlineStoreError, match=r"online\.sqlite3 failed: .*NOTADB\); restore it from a copy"):
            use(str(folder))


def test_damage_within_is_refused_when_met(failing, tmp_path, run):
    store, _ = failing
    run(store.add_events([event(number, "x" * 500) for number in range(2, 200)]))
    run(store.close())
    path = tmp_path / "online" / "online.sqlite3"
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + os.urandom(len(whole) - 4096))
    again = open_online(str(tmp_path / "online"))
    for ask in (again.events_of("anna", 9), again.add_events([event(500)]), again.items_changed(0)):
        with pytest.raises(OnlineStoreError, match=r"online\.sqlite3 failed: .*\(SQLITE_CORRUPT.*\); restore it"):
            run(ask)
    run(again.close())


def test_other_formats_and_other_peoples_databases_are_refused(tmp_path):
    path = tmp_path / "online.sqlite3"
    theirs = sqlite3.connect(path)
    theirs.execute("CREATE TABLE t (x)")
    theirs.commit()
    before = path.read_bytes()
    with pytest.raises(OnlineStoreError, match=r"online\.sqlite3 is another program's database; give the store"):
        open_online(str(tmp_path))
    assert path.read_bytes() == before
    theirs.execute(f"PRAGMA application_id = {embedded._APPLICATION}")
    theirs.execute("PRAGMA user_version = 7")
    theirs.close()
    with pytest.raises(OnlineStoreError, match=r"has format 7, this version reads 1; run the version that wrote it"):
        open_online(str(tmp_path))


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        with pytest.raises(OnlineStoreError, match=rf"{place} cannot be used: .*; give the store a folder that it may"):
            open_online(str(tmp_path / place))


def test_a_closed_store_takes_nothing_and_may_be_closed_again(store_in, run):
    run(store_in.close())
    run(store_in.close())
    with pytest.raises(OnlineStoreError, match=r"was closed; open it again"):
        run(store_in.add_events([event(1)]))
    with pytest.raises(OnlineStoreError, match=r"online\.sqlite3 failed: Cannot operate on a closed database"):
        run(store_in.events_of("anna", 1))


@pytest.fixture
def store_in(tmp_path):
    return open_online(str(tmp_path))


def test_what_waits_when_it_is_closed_is_still_accepted(store_in, tmp_path, run):
    async def go():
        adding = asyncio.gather(*(store_in.add_events([event(number)]) for number in range(20)))
        await asyncio.sleep(0)
        await store_in.close()
        return await adding

    assert run(go()) == [[True]] * 20
    assert [file.name for file in tmp_path.iterdir()] == ["online.sqlite3"]  # with nothing beside it
    assert len(kept(tmp_path)) == 20


def test_an_environment_variable_may_stand_in_the_address(tmp_path, opened, monkeypatch, run):
    monkeypatch.setenv("PLACE", str(tmp_path / "there"))
    run(opened("$PLACE/online").check())
    assert (tmp_path / "there" / "online" / "online.sqlite3").exists()
