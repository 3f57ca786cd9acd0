"""One job at a time, with real processes that are really killed; and leases, where there is no kernel to ask."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from recsys import lock
from recsys.artifacts import ArtifactError
from recsys.lock import LockedError, held
from recsys.registry import Registry
from recsys.store import StoreError, open_store

HOLDER = """
import os, sys, time
from recsys import lock
lock.RENEWED_S, lock.EXPIRES_S = 0.2, 3.0
try:
    with lock.held(sys.argv[1], what="recsys nightly"):
        print("held", flush=True)
        if "--forks" in sys.argv and not os.fork():
            print(os.getpid(), flush=True)
            time.sleep(600)
        sys.stdin.readline()
except lock.LockedError as error:
    print(error, flush=True)
    sys.exit(3)
"""


@pytest.fixture
def start(s3):
    """Starts jobs on a registry; those still running at the end are killed."""
    started = []

    def start(place, *more):
        command = [sys.executable, "-c", HOLDER, str(place), *more]
        root, environment, pipe = Path(__file__).parents[1], os.environ | s3.environment, subprocess.PIPE
        started.append(subprocess.Popen(command, text=True, cwd=root, env=environment, stdin=pipe, stdout=pipe))
        return started[-1]

    yield start
    for job in started:
        job.kill()
        job.communicate()


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path, s3):
    return str(tmp_path / "registry") if request.param == "folder" else f"{s3.address}/{uuid.uuid4().hex}"


@pytest.fixture
def lease(monkeypatch):
    """An address whose leases expire soon."""
    monkeypatch.setattr(lock, "RENEWED_S", 0.02)
    monkeypatch.setattr(lock, "EXPIRES_S", 0.5)
    return f"memory://{uuid.uuid4().hex}/registry"


def test_of_jobs_started_at_once_one_runs_and_the_others_name_it(place, start):
    jobs = [start(place) for _ in range(2 if place.startswith("s3") else 4)]
    said = {job.pid: job.stdout.readline().strip() for job in jobs}
    running = [job for job in jobs if said[job.pid] == "held"]
    assert len(running) == 1
    for job in jobs:
        if job is not running[0]:
            assert job.wait(timeout=60) == 3
            assert said[job.pid].startswith(f"{place} is locked: recsys nightly of ")
            assert f"(process {running[0].pid}) holds it since 20" in said[job.pid]
    assert running[0].communicate("end\n", timeout=60)[0] == ""
    assert running[0].returncode == 0
    with held(place):
        pass


def test_after_kill_9_the_next_job_in_a_folder_runs_at_once(tmp_path, start):
    job = start(tmp_path)
    assert job.stdout.readline() == "held\n"
    with pytest.raises(
        LockedError, match=rf"process {job.pid}\) holds it since 20.*; wait for it, or end that process"
    ):
        held(tmp_path).__enter__()
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    with held(tmp_path):
        pass


def test_a_forked_child_does_not_keep_the_lock_of_its_killed_parent(tmp_path, start):
    job = start(tmp_path, "--forks")
    assert job.stdout.readline() == "held\n"
    child = int(job.stdout.readline())
    try:
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        os.kill(child, 0)  # it lives
        with held(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_that_ends_leaves_the_lock_to_its_parent(tmp_path):
    with held(tmp_path):
        child = os.fork()
        if not child:
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(LockedError):
            held(tmp_path).__enter__()


def test_after_kill_9_the_next_job_at_an_address_runs_when_the_lease_expired(s3, start, monkeypatch):
    monkeypatch.setattr(lock, "EXPIRES_S", 3.0)
    place = f"{s3.address}/{uuid.uuid4().hex}"
    job = start(place)
    assert job.stdout.readline() == "held\n"
    time.sleep(5)  # it is renewed all the while
    with pytest.raises(LockedError, match=f"process {job.pid}"):
        held(place).__enter__()
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    with pytest.raises(LockedError, match=f"process {job.pid}"):
        held(place).__enter__()
    time.sleep(4)
    with held(place):
        pass


def test_a_registry_is_locked_as_its_folder_or_address_is(tmp_path, lease):
    for place in (tmp_path / "registry", lease):
        with held(Registry(place), what="mine"):
            with pytest.raises(LockedError, match=r"registry is locked: mine of .* holds it since"):
                held(place).__enter__()
            with pytest.raises(LockedError, match="is locked: mine"):
                held(str(place)).__enter__()
        with held(place):
            pass


def test_a_job_that_fails_leaves_no_lock(tmp_path, lease):
    for place in (tmp_path, lease):
        with pytest.raises(ValueError, match="half way"), held(place):
            int("half way")
        with held(place) as refuse_if_lost:
            refuse_if_lost()


def test_the_file_says_who_holds_it_and_no_longer_when_nobody_does(tmp_path):
    with held(tmp_path, what="a test"):
        said = json.loads((tmp_path / ".lock").read_text())
        assert (said["what"], said["pid"]) == ("a test", os.getpid())
        assert sorted(said) == ["host", "pid", "since", "user", "what"]
    assert (tmp_path / ".lock").read_text() == ""


def test_a_lock_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ArtifactError, match=r"\.lock cannot be opened .*; run every job of it as one user"):
        held(tmp_path).__enter__()


def test_a_lease_is_renewed_while_it_is_held(lease):
    with held(lease) as refuse_if_lost:
        time.sleep(1.5)
        refuse_if_lost()
        with pytest.raises(LockedError, match="nightly"):
            held(lease).__enter__()


def test_who_lost_its_lease_is_told_and_does_not_take_it_back(lease):
    store = open_store(lease)
    with held(lease) as refuse_if_lost:
        refuse_if_lost()
        store.write(".lock/00000002.json", json.dumps({"what": "another"}))
        time.sleep(0.3)  # less than a lease lasts
        with pytest.raises(LockedError, match=r"the lock of memory://.* was lost: .* run this job again"):
            refuse_if_lost()
    assert [thread for thread in threading.enumerate() if thread.name == "lease"] == []
    assert json.loads(store.read(".lock/00000001.json")).get("released") is None
    with pytest.raises(LockedError, match="is locked: another of None"):
        held(lease).__enter__()


def test_a_store_that_stopped_answering_costs_the_lease(lease, monkeypatch):
    with held(lease) as refuse_if_lost:
        monkeypatch.setattr(lock, "EXPIRES_S", -1.0)
        with pytest.raises(LockedError, match="could not be renewed within"):
            refuse_if_lost()


def test_a_renewal_that_fails_is_tried_again(lease, monkeypatch):
    registry = Registry(lease)
    numbered = registry.store.numbered
    failed: list[int] = []
    with held(registry) as refuse_if_lost:

        def unwell(folder):
            if len(failed) < 3:
                failed.append(1)
                raise StoreError("it does not answer")
            return numbered(folder)

        monkeypatch.setattr(registry.store, "numbered", unwell)
        time.sleep(1.0)
        refuse_if_lost()
    assert len(failed) == 3


def test_leases_do_not_pile_up_and_no_number_comes_twice(lease):
    for turn in range(1, 6):
        with held(lease):
            assert open_store(lease).numbered(".lock")[-1] == turn
    assert open_store(lease).numbered(".lock") == [4, 5]


def test_a_lock_without_a_name_is_a_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE_S", 0.1)
    with held(tmp_path):
        (tmp_path / ".lock").write_text("")
        with pytest.raises(LockedError, match="is locked by a job that has not said its name yet; try again"):
            held(tmp_path).__enter__()
