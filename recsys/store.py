"""Where a registry keeps its things: a folder, or any address that fsspec knows (s3://…, gs://…, memory://).

                      in a folder                          at an fsspec address
a text is replaced    renamed and fsynced: old or new,     one PUT: old or new, where the store promises so (S3 does)
                      even across a power cut
a text is created     linked: of two at once one wins      a conditional PUT: S3, GCS, Azure; a store that has none is
                                                           asked first, and two at once may then both win
an artefact comes     renamed                              its manifest is uploaded last; without one it is not listed
an artefact goes      renamed out of sight, then removed   its manifest is deleted first
an artefact is read   where it lies                        from a copy on this machine, checked to the byte

Keys, endpoints and other options come from fsspec's own configuration, FSSPEC_S3_ENDPOINT_URL and the like.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol

from recsys.artifacts import (
    MANIFEST,
    ArtifactError,
    drafting,
    remove,
    remove_abandoned,
    sync_directory,
    write_durably,
)

_ABANDONED_S = 24 * 3600  # an upload without a manifest may be somebody's, unless its newest file is older than that
_DRAFT = "publish"
_ENTRY = re.compile(r"[0-9]{8}\.json")


class StoreError(ArtifactError):
    """A store does not answer, or refuses; the message names its address and what was asked."""


class Store(Protocol):
    """What a registry asks of the place where it is kept. Names are relative, with slashes."""

    address: str

    def read(self, name: str) -> bytes | None:
        """What is kept under a name; None if nothing is."""

    def write(self, name: str, text: str) -> None:
        """Keeps a text under a name, instead of what was there; readers see the one or the other."""

    def create(self, name: str, text: str) -> bool:
        """Keeps a text, which no one else would write, under a name unless there is one already; whether it did."""

    def delete(self, name: str) -> None:
        """Removes what is kept under a name, if anything is."""

    def numbered(self, folder: str) -> list[int]:
        """The numbers, in order, of what is kept in a folder as 00000001.json and so on; other names do not count."""

    def entries(self, folder: str) -> dict[str, bytes]:
        """What `numbered` counts, by name, in order."""

    def artefacts(self, folder: str) -> list[str]:
        """The names of the whole artefacts in a folder, in order."""

    def drafting(self, folder: str) -> AbstractContextManager[Path]:
        """A directory of this machine in which to write an artefact that `put` then takes."""

    def put(self, draft: Path, name: str) -> None:
        """Keeps an artefact from a draft's directory."""

    def fetch(self, name: str, check: Callable[[Path], object], *, again: bool = False) -> Path:
        """A directory of this machine that holds an artefact.

        Args:
            name: the artefact's.
            check: raises ArtifactError for one that is not sound.
            again: whether to check what the store holds, rather than trust a sound copy or whoever opens it.
        """

    def remove(self, name: str, unless: Callable[[], bool] = ...) -> bool:
        """Removes an artefact, unless, when nobody can see it any more, it turns out to be needed; whether it did."""

    def sweep(self, folder: str) -> None:
        """Removes what killed processes left half written in a folder."""


def open_store(address: Path | str) -> Store:
    """The store at an address; nothing is made before something is written.

    Raises:
        StoreError: no file system is known or installed for it.
    """
    text = str(address)
    if isinstance(address, Path) and re.match(r"[a-z0-9]{2,}:/", text):
        raise StoreError(f"{text} was read as a path, which an address is not; pass it as text")
    scheme, found, rest = text.partition("://")
    if not found:
        return FolderStore(Path(text))
    return FolderStore(Path(rest)) if scheme in ("file", "local") else RemoteStore(text)


class FolderStore:
    """A store in a folder of this machine, or one that it mounts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.address = str(path)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str) -> None:
        write_durably(self._ready(name), text)

    def create(self, name: str, text: str) -> bool:
        try:
            write_durably(self._ready(name), text, new=True)
        except FileExistsError:
            return False
        return True

    def delete(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def numbered(self, folder: str) -> list[int]:
        return _numbers(self.artefacts(folder))

    def entries(self, folder: str) -> dict[str, bytes]:
        names = [entry_name(number) for number in self.numbered(folder)]
        return {name: (self.path / folder / name).read_bytes() for name in names}

    def artefacts(self, folder: str) -> list[str]:
        place = self.path / folder
        return sorted(e.name for e in place.iterdir() if not e.name.startswith(".")) if place.is_dir() else []

    def drafting(self, folder: str) -> AbstractContextManager[Path]:
        return drafting(self.path / folder / _DRAFT)

    def put(self, draft: Path, name: str) -> None:
        os.rename(draft, self._ready(name))
        sync_directory((self.path / name).parent)

    def fetch(self, name: str, check: Callable[[Path], object], *, again: bool = False) -> Path:
        if again:
            check(self.path / name)
        return self.path / name

    def remove(self, name: str, unless: Callable[[], bool] = lambda: False) -> bool:
        return remove(self.path / name, unless)

    def sweep(self, folder: str) -> None:
        for place in (self.path, self.path / folder, *self.path.glob("[!.]*")):  # entries of the log, too
            remove_abandoned(place)

    def _ready(self, name: str) -> Path:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        return self.path / name


class RemoteStore:
    """A store behind fsspec; artefacts are fetched to a folder of this machine, since vectors are memory-mapped."""

    def __init__(self, address: str) -> None:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        self.address = address.rstrip("/")
        if "::" in address or self.address.endswith(":"):
            raise StoreError(f"{address} is no place for a registry; name one, without a chain: s3://bucket/folder")
        try:
            # A listing kept from before would hide what another machine did since.
            self._fs, root = url_to_fs(self.address, use_listings_cache=False)
        except ImportError as error:
            fix = "install it with `pip install 'recsys[s3]'`" if address.startswith("s3") else "install what it names"
            raise StoreError(f"{address} cannot be reached without another package ({error}); {fix}") from None
        except ValueError as error:
            raise StoreError(f"{address} is no address that fsspec knows ({error}); check what is before ://") from None
        self._root = root.rstrip("/")

    def read(self, name: str) -> bytes | None:
        with self._asking("read", name):
            try:
                return bytes(self._fs.cat_file(f"{self._root}/{name}"))
            except FileNotFoundError:
                return None

    def write(self, name: str, text: str) -> None:
        with self._asking("write", name):
            self._fs.pipe_file(f"{self._root}/{name}", text.encode("utf-8"))

    def create(self, name: str, text: str) -> bool:
        with self._asking("create", name):
            try:
                self._fs.pipe_file(f"{self._root}/{name}", text.encode("utf-8"), mode="create")
            except FileExistsError:
                # A request whose answer was lost is repeated, and then meets what it wrote itself.
                return self.read(name) == text.encode("utf-8")
        return True

    def delete(self, name: str) -> None:
        with self._asking("delete", name):
            try:
                self._fs.rm_file(f"{self._root}/{name}")
            except FileNotFoundError:
                return

    def numbered(self, folder: str) -> list[int]:
        with self._asking("list", folder):
            return _numbers(self._below(folder))

    def entries(self, folder: str) -> dict[str, bytes]:
        names = [entry_name(number) for number in self.numbered(folder)]
        with self._asking("read", folder):
            found = self._fs.cat([f"{self._root}/{folder}/{name}" for name in names]) if names else {}
            return {path.rsplit("/", 1)[1]: bytes(data) for path, data in sorted(found.items())}

    def artefacts(self, folder: str) -> list[str]:
        with self._asking("list", folder):
            paths = [PurePosixPath(name) for name in self._below(folder)]
        return sorted(path.parts[0] for path in paths if path.name == MANIFEST and len(path.parts) == 2)

    def drafting(self, folder: str) -> AbstractContextManager[Path]:
        return drafting(self._copies() / folder / _DRAFT)

    def put(self, draft: Path, name: str) -> None:
        files = [file for file in draft.rglob("*") if file.is_file() and file != draft / MANIFEST]
        targets = [f"{self._root}/{name}/{file.relative_to(draft).as_posix()}" for file in files]
        with self._asking("upload", name):
            if files:
                self._fs.put([str(file) for file in files], targets)
        self.write(f"{name}/{MANIFEST}", (draft / MANIFEST).read_bytes().decode("utf-8"))

    def fetch(self, name: str, check: Callable[[Path], object], *, again: bool = False) -> Path:
        copy = self._copies() / name
        self._forget(copy.parent, name)
        if not again and _is_copy(copy, self.read(f"{name}/{MANIFEST}"), check):
            return copy
        with drafting(copy) as draft:
            self._download(name, draft)
            try:
                check(draft)
            except ArtifactError as error:
                raise StoreError(str(error).replace(str(draft), f"{self.address}/{name}")) from None
            while True:
                try:
                    os.rename(draft, copy)
                    return copy
                except OSError:  # another process was faster, or what lies there is a copy that is not sound
                    if not copy.exists():
                        raise
                if _is_copy(copy, (draft / MANIFEST).read_bytes(), check):
                    return copy
                remove(copy)

    def remove(self, name: str, unless: Callable[[], bool] = lambda: False) -> bool:
        manifest = self.read(f"{name}/{MANIFEST}")
        self.delete(f"{name}/{MANIFEST}")
        if unless():
            if manifest is not None:
                self.write(f"{name}/{MANIFEST}", manifest.decode("utf-8"))
            return False
        with self._asking("remove", name):
            if self._below(name):
                self._fs.rm(f"{self._root}/{name}", recursive=True)
        return True

    def sweep(self, folder: str) -> None:
        whole = set(self.artefacts(folder))
        with self._asking("list", folder):
            halves = {name.split("/")[0] for name in self._below(folder)} - whole
        for half in sorted(halves):
            with self._asking("list", half):
                names = [f"{folder}/{half}/{name}" for name in self._below(f"{folder}/{half}")]
            if names and min(self.age(name) for name in names) > _ABANDONED_S:
                self.remove(f"{folder}/{half}")

    def age(self, name: str) -> float:
        """Seconds since something was written, by the store's own clock, so that nobody else's needs to be right."""
        probe = f"clock/{uuid.uuid4().hex}"
        self.write(probe, "now")
        try:
            with self._asking("say when it wrote", name):
                now, then = (self._fs.modified(f"{self._root}/{each}") for each in (probe, name))
        finally:
            self.delete(probe)
        return float((now - then).total_seconds())

    def _below(self, folder: str) -> list[str]:
        """The names of all files below a folder, relative to it."""
        root = f"{self._root}/{folder}/"
        found = (str(path) for path in self._fs.find(root.rstrip("/")))
        return sorted(path.removeprefix(root) for path in found if path.startswith(root) and not path.endswith("/"))

    def _download(self, name: str, to: Path) -> None:
        with self._asking("fetch", name):
            names = self._below(name)
            if odd := [each for each in names if not {"..", "."}.isdisjoint(each.split("/")) or each.startswith("/")]:
                raise StoreError(f"{self.address}/{name} holds {odd[0]!r}, which is no name for a file; remove it")
            targets = [to / each for each in names]
            for target in targets:
                target.parent.mkdir(parents=True, exist_ok=True)
            if names:
                self._fs.get([f"{self._root}/{name}/{each}" for each in names], [str(target) for target in targets])

    def _copies(self) -> Path:
        """The folder of this machine that holds copies of this store's artefacts; RECSYS_CACHE says where."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recsys"
        cache = Path(os.environ.get("RECSYS_CACHE") or home)
        folder = cache / hashlib.sha256(self.address.encode()).hexdigest()[:16]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{folder} cannot hold copies of {self.address} ({error}); set RECSYS_CACHE to a folder that can"
            ) from None
        return folder

    def _forget(self, copies: Path, name: str) -> None:
        """Removes the copies of what the store no longer has; those a process has open stay open to it."""
        # Looked up in this order, a copy cannot be of something that came after the listing.
        here = [path for path in copies.iterdir() if not path.name.startswith(".")] if copies.is_dir() else []
        there = {name.rsplit("/", 1)[1], *self.artefacts(name.rsplit("/", 1)[0])} if here else set()
        for copy in here:
            if copy.name not in there:
                remove(copy)
        remove_abandoned(copies)

    @contextmanager
    def _asking(self, what: str, name: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except Exception as error:  # file systems raise what their libraries do, botocore's own among them
            said = str(error) or type(error).__name__
            raise StoreError(
                f"cannot {what} {self.address}/{name} ({said}); check the address, its keys and that it answers"
            ) from error


def entry_name(number: int) -> str:
    """What the entry of a number is called."""
    return f"{number:08}.json"


def _numbers(names: list[str]) -> list[int]:
    return sorted(int(name[:8]) for name in names if _ENTRY.fullmatch(name))


def _is_copy(copy: Path, manifest: bytes | None, check: Callable[[Path], object]) -> bool:
    """Whether a directory is there, sound, and of that manifest."""
    try:
        if (copy / MANIFEST).read_bytes() != manifest:
            return False
        check(copy)
    except (ArtifactError, FileNotFoundError):  # damaged, or another process replaces it just now
        return False
    return True
