"""What each process of a node last counted, as one small file a process, so that any of them can answer for all.

A file is replaced whole, so a reader never sees half of it. What a process counted that has ended is added to
`gone.json`, since sums must not shrink, or Prometheus would take it for a restart; what its gauges said ends with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

# Family → label values → a number, or a histogram's counts by bucket and its sum.
Values = dict[str, dict[tuple[str, ...], Any]]

GONE = "gone.json"


class Snapshots:
    """The files of one node's processes.

    Args:
        folder: theirs alone; made if missing, readable by its owner only.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._own = self.folder / f"{identity(os.getpid())}.json"

    def write(self, values: Values) -> None:
        """Publishes what this process has counted since it began.

        Raises:
            OSError: the folder cannot be written to.
        """
        _replace(self._own, {"values": _packed(values)})

    def read(self) -> tuple[list[Values], Values]:
        """What other living processes said last, and the sums of all that have ended.

        Raises:
            OSError: the folder cannot be read.
        """
        with self._locked():
            gone = _read(self.folder / GONE) or {"values": {}, "of": []}
            sums = _unpacked(gone["values"])
            living, ended = [], []
            for file in sorted(self.folder.glob("*.json")):
                if file in (self._own, self.folder / GONE):
                    continue
                if file.stem in gone["of"]:  # added before, and whoever did was stopped before it removed the file
                    file.unlink(missing_ok=True)
                elif alive(file.stem):
                    living.append(_unpacked((_read(file) or {"values": {}})["values"]))
                else:
                    ended.append(file)
            if ended:
                for file in ended:
                    add(sums, _unpacked((_read(file) or {"values": {}})["values"]))
                names = [file.stem for file in ended]
                _replace(self.folder / GONE, {"values": _packed(sums), "of": names})
                for file in ended:
                    file.unlink(missing_ok=True)
            return living, sums

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.folder / "lock", "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def add(sums: Values, more: Values) -> None:
    """Adds counts to counts, in place; a histogram of other buckets, from another version, is left out."""
    for family, by_labels in more.items():
        known = sums.setdefault(family, {})
        for labels, value in by_labels.items():
            had = known.get(labels)
            if had is None:
                known[labels] = list(value) if isinstance(value, list) else value
            elif isinstance(value, list) and isinstance(had, list) and len(value) == len(had):
                known[labels] = [a + b for a, b in zip(had, value, strict=True)]
            elif not isinstance(value, list) and not isinstance(had, list):
                known[labels] = had + value


def identity(pid: int) -> str:
    """A process's name that no later process gets: its number and, where the system says it, when it began."""
    began = _began(pid)
    return f"{pid}-{time.time_ns() if began is None else began}"


def alive(name: str) -> bool:
    """Whether the process of that name still runs; one that nobody waited for yet does not."""
    pid, _, began = name.partition("-")
    if not pid.isdigit():
        return False
    if Path("/proc/self/stat").exists():
        return str(_began(int(pid))) == began
    with contextlib.suppress(ProcessLookupError):
        with contextlib.suppress(PermissionError):
            os.kill(int(pid), 0)
        return True
    return False


def _began(pid: int) -> int | None:
    try:
        said = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    state, *fields = said.rpartition(b")")[2].split()  # the name before may hold anything
    return None if state in (b"Z", b"X") else int(fields[18])


def _replace(file: Path, said: Any) -> None:
    beside = file.with_name(f"{file.stem}.{os.getpid()}.part")
    beside.write_bytes(orjson.dumps(said))
    beside.replace(file)


def _read(file: Path) -> Any:
    try:
        said = orjson.loads(file.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):  # gone since it was listed, or cut by a machine that crashed
        return None
    return said if isinstance(said, dict) else None


def _packed(values: Values) -> dict[str, list[Any]]:
    return {family: [[labels, value] for labels, value in known.items()] for family, known in values.items()}


def _unpacked(values: dict[str, list[Any]]) -> Values:
    return {family: {tuple(labels): value for labels, value in known} for family, known in values.items()}
