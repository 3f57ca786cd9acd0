"""A commit of any connection or process is seen, and nothing else is taken for one."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recsys.online.commits import Commits

WRITES = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('INSERT INTO t VALUES (1)'); db.commit()"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with sqlite3.connect(tmp_path / "db") as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (x)")
    yield db
    db.close()


def test_a_commit_is_seen_and_a_read_is_none(database: sqlite3.Connection, tmp_path: Path) -> None:
    commits = Commits(tmp_path / "db")
    before = commits.state()
    assert database.execute("SELECT * FROM t").fetchall() == []
    assert commits.state() == before
    database.execute("INSERT INTO t VALUES (1)")
    assert commits.state() == before, "not committed yet"
    database.commit()
    assert commits.state() != before


def test_every_commit_of_another_process_is_another_state(database: sqlite3.Connection, tmp_path: Path) -> None:
    commits = Commits(tmp_path / "db")
    states = [commits.state()]
    for _ in range(3):
        subprocess.run([sys.executable, "-c", WRITES, str(tmp_path / "db")], check=True)
        states.append(commits.state())
    assert len(set(states)) == 4


def test_a_checkpoint_that_begins_the_log_anew_hides_no_commit(database: sqlite3.Connection, tmp_path: Path) -> None:
    commits = Commits(tmp_path / "db")
    states = set()
    for number in range(20):
        database.execute("INSERT INTO t VALUES (?)", (number,))
        database.commit()
        states.add(commits.state())
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert len(states) == 20


def test_a_database_that_is_in_no_such_mode_is_refused(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "plain").close()
    with pytest.raises(OSError, match="plain-shm"):
        Commits(tmp_path / "plain")
