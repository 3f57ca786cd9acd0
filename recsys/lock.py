"""One job at a time on a registry: a lock that a killed job does not leave behind, and that says who holds it.

In a folder it is the kernel's (flock): gone with its process, however that ended, so the next job runs at once. Network
file systems pass it on to their server; a mount without locks refuses.

At an fsspec address it is a lease: an object created exclusively, written again every half minute, and taken over by
the next job once it is two minutes old by the store's own clock. So after a kill the next job waits up to two minutes,
and nobody's clock matters. What no lease can promise: a job that is stopped for longer than that (a suspended machine,
a lost network) may wake up beside its successor. It learns so by the next renewal or by asking, which a job should do
before it makes anything live; promotion itself stays whole either way. Where a store cannot create exclusively, two
jobs started within the same moment may both run.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from recsys.artifacts import ArtifactError
from recsys.store import FolderStore, RemoteStore, Store, StoreError, entry_name, open_store

LOCK = ".lock"
RENEWED_S = 30.0
EXPIRES_S = 120.0
_PATIENCE_S = 1.0  # who has just locked is about to say so

_open_locks: set[int] = set()


class LockedError(ArtifactError):
    """Another job holds the lock, or took it over; the message says who, and since when."""


class Kept(Protocol):
    """A registry, as far as a lock goes."""

    @property
    def store(self) -> Store: ...


@contextlib.contextmanager
def held(place: Kept | Path | str, what: str = "nightly") -> Iterator[Callable[[], None]]:
    """Holds the lock of a registry while the block runs.

    Args:
        place: the registry, or its folder or address.
        what: what to call this job when another one asks.

    Yields:
        A function to call before what must not happen twice: it raises LockedError if the lock was lost, which
        happens at an fsspec address alone.

    Raises:
        LockedError: another job has it.
    """
    store = open_store(place) if isinstance(place, Path | str) else place.store
    holder = {
        "what": what,
        "user": getpass.getuser(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if isinstance(store, FolderStore):
        with _flocked(store.path, holder):
            yield lambda: None
    elif isinstance(store, RemoteStore):
        with _leased(store, holder) as refuse_if_lost:
            yield refuse_if_lost
    else:
        raise TypeError(f"{type(store).__name__} has no lock; give it one in recsys.lock")


@contextlib.contextmanager
def _flocked(folder: Path, holder: dict[str, Any]) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    # It stays when the job ends: were it removed, two jobs could each lock one of that name.
    try:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ArtifactError(f"{folder / LOCK} cannot be opened ({error}); run every job of it as one user") from None
    _open_locks.add(handle)
    process = os.getpid()
    try:
        _lock_or_refuse(handle, folder)
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(holder).encode(), 0)
        try:
            yield
        finally:
            if os.getpid() == process:
                os.ftruncate(handle, 0)
    finally:
        if os.getpid() == process:  # a forked child has let go of it already
            _open_locks.discard(handle)
            os.close(handle)


def _lock_or_refuse(handle: int, folder: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            said = os.pread(handle, 4096, 0)
        except OSError as error:
            raise ArtifactError(
                f"{folder / LOCK} cannot be locked ({error}); put the registry on a file system that has locks"
            ) from None
        if said or time.monotonic() > deadline:
            raise _locked(str(folder), said)
        time.sleep(0.02)


def _let_go_in_child() -> None:
    """A forked child shares its parent's lock; it must not keep it when the parent is killed."""
    for handle in _open_locks:
        os.close(handle)
    _open_locks.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextlib.contextmanager
def _leased(store: RemoteStore, holder: dict[str, Any]) -> Iterator[Callable[[], None]]:
    """Leases are numbered and the highest counts: a number is created once, so of two that take over one succeeds."""
    text = json.dumps({**holder, "lease": uuid.uuid4().hex})
    numbers = store.numbered(LOCK)
    for last in numbers[-1:]:
        said = store.read(_name(last))
        if not _entries(said).get("released") and store.age(_name(last)) <= EXPIRES_S:
            raise _locked(store.address, said)
    number = max(numbers, default=0) + 1
    if not store.create(_name(number), text):
        raise _locked(store.address, store.read(_name(number)))
    for old in numbers[:-1]:  # the last of them stays: another job may just be looking at it
        store.delete(_name(old))
    ended, lost = threading.Event(), threading.Event()
    renewed = [time.monotonic()]

    def renew() -> None:
        while not ended.wait(RENEWED_S):
            try:
                if store.numbered(LOCK)[-1:] != [number]:
                    lost.set()
                    return
                now = time.monotonic()
                store.write(_name(number), text)
                renewed[0] = now
            except StoreError:  # it may answer again in time; if not, `refuse_if_lost` says so
                continue

    def refuse_if_lost() -> None:
        if lost.is_set() or time.monotonic() - renewed[0] > EXPIRES_S:
            raise LockedError(
                f"the lock of {store.address} was lost: it could not be renewed within {EXPIRES_S:g} s and another job "
                "may have taken it over; nothing more was done, run this job again"
            )

    renewing = threading.Thread(target=renew, name="lease", daemon=True)
    renewing.start()
    try:
        yield refuse_if_lost
    finally:
        ended.set()
        renewing.join()
        if not lost.is_set():
            with contextlib.suppress(StoreError):  # then it expires; the job itself is done
                # Not deleted: a number that came twice could be created twice.
                store.write(_name(number), json.dumps({**json.loads(text), "released": True}))


def _name(number: int) -> str:
    return f"{LOCK}/{entry_name(number)}"


def _entries(said: bytes | None) -> dict[str, Any]:
    try:
        entries = json.loads(said or b"")
    except ValueError:
        return {}
    return entries if isinstance(entries, dict) else {}


def _locked(address: str, said: bytes | None) -> LockedError:
    who = _entries(said)
    if not who:
        return LockedError(f"{address} is locked by a job that has not said its name yet; try again")
    return LockedError(
        f"{address} is locked: {who.get('what')} of {who.get('user')} on {who.get('host')} (process {who.get('pid')}) "
        f"holds it since {who.get('since')}; wait for it, or end that process"
    )
