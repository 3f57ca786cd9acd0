"""Processes that are stopped in the middle of their writing: killed, or refused by a disk that is full."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import resource
import signal
import stat
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, cast

_RANDOM = (  # what differs between attempts in the name of what is written at the same place
    (re.compile(r"\d{8}T\d{9}-[0-9a-f]{12}"), "BUNDLE"),
    (re.compile(r"\d{8}T\d{6}Z"), "NIGHT"),
    (re.compile(r"\.[0-9a-f]{32}"), ".DRAFT"),
    (re.compile(r"(?<=/)\.(\w+)\.[a-z0-9_]{8}(?=/|$)"), r".\1.SCRATCH"),
    (re.compile(r"events\.out\.tfevents\..*"), "EVENTS"),
    (re.compile(r"version_\d+"), "VERSION"),
    (re.compile(r"\d{8}\.json"), "ENTRY"),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_NEEDS_ROOM = ("open", "mkdir", "rename", "link", "fsync")  # a disk without a free block refuses these
_STOPPED = "stopped before: "


@dataclass(frozen=True)
class AtEvent:
    """Stops a process at the first change to a file at which none before it was stopped.

    So processes that go on one after the other, each where the last one was stopped, are stopped at every change once.

    Attributes:
        folder: only changes below it count.
        how: `killed` as by `kill -9`; by a `power cut`, after which of what was not fsynced only half is there; or
            refused this change, and all after it that need room, since the `disk is full`.
        tried: the changes at which others were stopped.
        only: of the other changes only those in which this is found.
    """

    folder: Path
    how: Literal["killed", "power cut", "disk full"]
    tried: frozenset[str] = frozenset()
    only: re.Pattern[str] = re.compile("")


@dataclass(frozen=True)
class From:
    """Makes the world a harder place for a process from a certain change on.

    Attributes:
        folder: only changes below it count.
        change: the first in which this is found.
        harder: is called just before it.
    """

    folder: Path
    change: re.Pattern[str]
    harder: Callable[[], None]


Fault = AtEvent | From


@dataclass(frozen=True)
class Stopped:
    """How an attempt ended.

    Attributes:
        status: as an exit status; negative for a signal.
        said: what it printed, without the line that says where it was stopped.
        at: the change it was stopped at; None if it was not, or the kernel did it.
    """

    status: int
    said: str
    at: str | None


@dataclass
class Attempt:
    """A process that runs."""

    process: BaseProcess
    reader: Connection

    def end(self) -> Stopped:
        """Waits for it."""
        said = b"".join(iter(lambda: os.read(self.reader.fileno(), 1 << 16), b"")).decode()
        self.process.join()
        self.reader.close()
        said, _, at = said.partition(_STOPPED)
        at, _, more = at.partition("\n")
        return Stopped(self.process.exitcode or 0, said + more, at or None)


class Server:
    """Forks a process a command from one that has imported everything, so that an attempt takes tenths of a second.

    Nothing was computed in that one: FAISS and OpenMP can hang after a fork.

    Args:
        method: `fork` to fork them from this very process, if nothing was computed in it.
    """

    def __init__(self, method: Literal["forkserver", "fork"] = "forkserver") -> None:
        self.context: Any = multiprocessing.get_context(method)

    def start(self, command: Callable[..., int], *arguments: Any, fault: Fault | None = None) -> Attempt:
        """Runs `command(*arguments)`, which returns the exit status, in a process of its own."""
        reader, writer = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_run, args=(writer, fault, command, arguments))
        process.start()
        writer.close()
        return Attempt(process, reader)


def _run(said: Connection, fault: Fault | None, command: Callable[..., int], arguments: tuple[Any, ...]) -> None:
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    inject(fault)
    status = command(*arguments)
    sys.stdout.flush()
    os._exit(status)


def inject(fault: Fault | None) -> None:
    """Lets a fault happen to this process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if isinstance(fault, AtEvent):
        _watch(fault.folder, _Striker(fault))
    elif isinstance(fault, From):
        _watch(fault.folder, _Turn(fault))


def killed_in_writes_beyond(length: int) -> None:
    """The kernel cuts the write short that would make any file longer, whoever writes it, and kills at the next."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, resource.RLIM_INFINITY))


class _Striker:
    def __init__(self, fault: AtEvent) -> None:
        self.fault = fault
        self.full = False
        self.synced = {_inode(file) for file in _files(fault.folder)} if fault.how == "power cut" else set()

    def __call__(self, name: str, change: str, path: str) -> None:
        fault = self.fault
        if fault.how == "disk full" and name not in _NEEDS_ROOM:
            return
        if not self.full:
            if change in fault.tried or not fault.only.search(change):
                self._note(name, path)
                return
            sys.stdout.flush()
            os.write(1, f"{_STOPPED}{change}\n".encode())
            if fault.how == "power cut":
                for file in _files(fault.folder):
                    if _inode(file) not in self.synced:
                        os.truncate(file, os.path.getsize(file) // 2)
            if fault.how != "disk full":
                os.kill(os.getpid(), signal.SIGKILL)
            self.full = True
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def _note(self, name: str, path: str) -> None:
        if name == "fsync":
            self.synced.add(_inode(path))
        elif name in ("open", "truncate") and os.path.exists(path):
            self.synced.discard(_inode(path))


class _Turn:
    def __init__(self, fault: From) -> None:
        self.fault, self.taken = fault, False

    def __call__(self, name: str, change: str, path: str) -> None:
        if not self.taken and self.fault.change.search(change):
            self.taken = True
            self.fault.harder()


def _watch(folder: Path, strike: Callable[[str, str, str], None]) -> None:
    """Calls `strike` before each change that the main thread makes to files below a folder.

    It is given what is about to happen, the change's name, which is the same in each attempt, and the path.
    """
    main, root = threading.get_ident(), f"{folder}/"
    before, counts = "start", Counter[str]()
    inside = False

    def about(name: str, path: Any, within: int = -1) -> None:
        nonlocal before, inside
        inside = True
        try:
            place = _absolute(path, within)
            if not place.startswith(root) or (name == "mkdir" and os.path.exists(place)):
                return
            plain = "/" + place.removeprefix(root)
            for random, word in _RANDOM:
                plain = random.sub(word, plain)
            here = f"{name} {plain[1:]}"
            counts[change := f"{before} → {here}"] += 1
            before = here
            strike(name, f"{change} #{counts[change]}", place)
        finally:
            inside = False

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if inside or not event.startswith(("open", "os.")) or threading.get_ident() != main:
            return
        match event, args:
            case "open", (path, _, int(flags)) if flags & _WRITING and not isinstance(path, int):
                about("open", path)
            case (("os.rename" | "os.link"), (_, to, _, within)):
                about(event[3:], to, within)
            case "os.mkdir", (path, _, within):
                about("mkdir", path, within)
            case (("os.remove" | "os.rmdir"), (path, within)):
                about(event[3:], path, within)
            case "os.truncate", (path, _):
                about("truncate", path)

    def fsync(file: Any) -> None:
        if threading.get_ident() == main:
            about("fsync", file if isinstance(file, int) else file.fileno())
        synced(file)

    synced: Any = os.fsync
    os.fsync = cast(Any, fsync)  # which raises no event
    sys.addaudithook(hook)


def _absolute(path: Any, within: int) -> str:
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    text = os.fsdecode(path)
    if within >= 0 and not os.path.isabs(text):
        return os.path.join(os.readlink(f"/proc/self/fd/{within}"), text)
    return os.path.abspath(text)


def _files(folder: Path) -> list[str]:
    paths = (os.path.join(inside, name) for inside, _, names in os.walk(folder) for name in names)
    return [path for path in paths if stat.S_ISREG(os.lstat(path).st_mode)]


def _inode(path: str) -> tuple[int, int]:
    said = os.stat(path)
    return said.st_dev, said.st_ino
