"""Artefacts: directories that a stage writes once, whole, and the next stage opens only after checking every byte."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import recsys

MANIFEST = "manifest.json"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_DRAFT = re.compile(r"\.(.+)\.[0-9a-f]{32}")


class ArtifactError(Exception):
    """A stage refuses an artefact; the message names the file or value and what to do."""


@dataclass(frozen=True)
class Manifest:
    """What an artefact says of itself.

    `content` is what its kind declares; `files` maps each file's relative name to its sha256 and size in bytes;
    `digest` is the sha256 of content and files, so equal artefacts have equal digests whenever they were made. In the
    file a last entry, `checksum`, binds all of it, when it was made too, to the byte.
    """

    kind: str
    format_version: int
    digest: str
    created: str
    code_version: str
    content: dict[str, Any]
    files: dict[str, dict[str, Any]]


@dataclass
class Draft:
    """An artefact being written: put files under `path`, facts into `content`."""

    path: Path
    content: dict[str, Any] = field(default_factory=dict)


def sha256_of(path: Path) -> str:
    """The sha256 of one file, as hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(content: object) -> str:
    """The sha256 of a JSON value, in canonical form (sorted keys, no spaces)."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_durably(path: Path, text: str, *, new: bool = False) -> None:
    """Puts a text into a file in one step: a reader sees what was there or all of the text, even across a crash.

    Args:
        path: the file; its folder exists.
        text: written as UTF-8.
        new: raise FileExistsError rather than replace what is there; of two at once, one succeeds.
    """
    remove_abandoned(path.parent, path.name)
    held = None
    while held is None:  # more than once only if a sweep comes between making the draft and holding it
        beside = _draft_of(path)
        beside.touch()
        held = _hold(beside)
    try:
        with open(beside, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if new:
            os.link(beside, path)
        else:
            os.replace(beside, path)
        sync_directory(path.parent)
    finally:
        beside.unlink(missing_ok=True)
        os.close(held)


@contextmanager
def writing(path: Path, kind: str, format_version: int) -> Iterator[Draft]:
    """Writes an artefact beside `path` and renames it there when the block ends well; else nothing is left.

    Args:
        path: the directory to make; its parent is created.
        kind: what it is, checked when it is opened.
        format_version: raised when a reader of the old form could not read the new one.

    Raises:
        ArtifactError: `path` exists already: an artefact is never changed.
    """
    path = Path(path)
    taken = f"{path} exists already and a {kind} is never changed; choose another path or remove it"
    if path.exists():
        raise ArtifactError(taken)
    with drafting(path) as folder:
        draft = Draft(folder)
        yield draft
        _finish(draft, kind, format_version)
        if path.exists():  # written by another process meanwhile; a rename would fail too, but say less
            raise ArtifactError(taken)
        os.rename(folder, path)
        sync_directory(path.parent)


@contextmanager
def drafting(path: Path) -> Iterator[Path]:
    """A directory `.name.<hex>` beside `path` to write in; what is still there when the block ends is removed.

    It is locked as long as the block runs, and the kernel unlocks it however the process ends. So what a killed
    process left is told from what another one is writing, and the next draft of that name removes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, path.name)
    held = None
    while held is None:
        draft = _draft_of(path)
        draft.mkdir()
        held = _hold(draft)
    try:
        yield draft
    except Exception as error:
        _refuse_if_full(draft, error)
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # what will not go is taken for abandoned from now on
        os.close(held)


def _refuse_if_full(folder: Path, error: Exception) -> None:
    """Raises what a full disk says itself: who writes in C or C++ may have said only that it could not."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return
    try:
        (folder / "room").write_bytes(bytes(1 << 16))
    except OSError as full:
        if full.errno in NO_ROOM:
            raise OSError(full.errno, full.strerror, str(folder.parent)) from error


def remove_abandoned(folder: Path, name: str | None = None) -> list[Path]:
    """Removes the drafts that killed processes left in a folder, and returns them; those being written stay.

    Args:
        folder: where to look; nothing below it is.
        name: only drafts of this name; of any if left out.
    """
    removed = []
    for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
        draft = _DRAFT.fullmatch(entry.name)
        if draft is None or name not in (None, draft[1]):
            continue
        held = _hold_abandoned(entry)
        if held is None:
            continue
        try:
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
            removed.append(entry)
        finally:
            os.close(held)
    return removed


def read_manifest(path: Path, kind: str, format_version: int) -> Manifest:
    """Reads a manifest and checks that it is of the kind and version expected; the files are not read.

    Raises:
        ArtifactError: there is none, it is not readable, was altered, or is of another kind or version.
    """
    try:
        data = (Path(path) / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{path} is not a {kind}: it has no {MANIFEST}; was the run that wrote it stopped?"
        ) from None
    except IsADirectoryError:
        raise ArtifactError(f"{Path(path) / MANIFEST} is a directory; restore it or write the {kind} again") from None
    return manifest_of(data, path, kind, format_version)


def manifest_of(data: bytes, path: Path | str, kind: str, format_version: int) -> Manifest:
    """A manifest from what its file holds, checked as `read_manifest` does; `path` is the artefact's, for messages."""
    file = f"{path}/{MANIFEST}"
    try:
        said = json.loads(data.decode("utf-8"))
        checksum = said.pop("checksum", None)
        whole = data == manifest_text(said).encode("utf-8")
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} cannot be read ({error}); write the {kind} again") from None
    if checksum is None:
        raise ArtifactError(
            f"{file} has no checksum: it was altered or an earlier version wrote it; write the {kind} again"
        )
    if not whole:
        raise ArtifactError(f"{file} was altered: its checksum does not match; write the {kind} again")
    if said.get("kind") != kind:
        raise ArtifactError(f"{path} is a {said.get('kind')}, not a {kind}; check the path")
    if said.get("format_version") != format_version:
        raise ArtifactError(
            f"{path} has {kind} format {said.get('format_version')}, this code reads {format_version}; "
            f"write it again with this version (it was written by {said.get('code_version')})"
        )
    try:
        manifest = Manifest(**said)
    except TypeError as error:
        raise ArtifactError(f"{file} cannot be read ({error}); write the {kind} again") from None
    if manifest.digest != _manifest_digest(manifest.content, manifest.files):
        raise ArtifactError(f"{file} was altered: its digest does not match; write the {kind} again")
    for name in manifest.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ArtifactError(f"{file} names {name!r}, which lies outside of it; write the {kind} again")
    return manifest


def manifest_text(said: dict[str, Any]) -> str:
    """A manifest as it stands in its file: the one text there is for it, of which every byte counts.

    Args:
        said: all entries but `checksum`, the sha256 of the text without it, which is put last.
    """

    def written(entries: dict[str, Any]) -> str:
        return json.dumps(entries, indent=1, ensure_ascii=False, allow_nan=False)

    return written({**said, "checksum": hashlib.sha256(written(said).encode("utf-8")).hexdigest()})


def remove(path: Path, unless: Callable[[], bool] = lambda: False) -> bool:
    """Removes an artefact, hidden in one step first: a removal that is killed leaves nothing that looks whole.

    Args:
        path: the artefact.
        unless: asked when it is hidden already; if true, it is put back.

    Returns:
        Whether it was removed, and by this process.
    """
    hidden, held = _draft_of(path), _hold(path)
    if held is None:
        return False
    try:
        os.rename(path, hidden)
        if unless():
            os.rename(hidden, path)
            return False
        shutil.rmtree(hidden)
    except FileNotFoundError:  # another process was faster
        return False
    finally:
        os.close(held)
    return True


def verify(path: Path, kind: str, format_version: int) -> Manifest:
    """Reads a manifest and checks every file's size and sha256 against it; nothing else may lie there.

    What is cheap comes first: which files there are, their sizes, then what they hold.

    Raises:
        ArtifactError: as `read_manifest`, or a file is missing, extra or changed; the message names it.
    """
    path = Path(path)
    manifest = read_manifest(path, kind, format_version)
    present = set(_files_under(path)) - {MANIFEST}
    if extra := sorted(present - set(manifest.files)):
        raise ArtifactError(f"{path / extra[0]} is not in the manifest; a {kind} holds nothing else, remove it")
    for name in manifest.files:
        if name not in present:
            raise ArtifactError(f"{path / name} is missing; restore it or write the {kind} again")
        _check_size(path, manifest, name)
    for name in manifest.files:
        check_file(path, manifest, name)
    return manifest


def check_file(path: Path, manifest: Manifest, name: str) -> None:
    """Checks one file's size and sha256, for who reads no other.

    Raises:
        ArtifactError: it is not what the manifest says; the message names it.
    """
    _check_size(path, manifest, name)
    if sha256_of(path / name) != manifest.files[name]["sha256"]:
        raise ArtifactError(f"{path / name} does not match its sha256 in the manifest; restore it")


def _check_size(path: Path, manifest: Manifest, name: str) -> None:
    size, said = (path / name).stat().st_size, manifest.files[name]["bytes"]
    if size != said:
        raise ArtifactError(f"{path / name} has {size} bytes, the manifest says {said}; restore it")


def _finish(draft: Draft, kind: str, format_version: int) -> None:
    files = {}
    for folder, _, _ in os.walk(draft.path, topdown=False):
        if not os.listdir(folder) and Path(folder) != draft.path:
            os.rmdir(folder)  # a manifest names files; nothing could vouch for an empty directory
    for name in _files_under(draft.path):
        file = draft.path / name
        with open(file, "rb+") as handle:
            os.fsync(handle.fileno())
        files[name] = {"sha256": sha256_of(file), "bytes": file.stat().st_size}
    # As JSON will give it back: a tuple is a list there, and a key that is a number a string.
    content = json.loads(json.dumps(draft.content, allow_nan=False))
    manifest = Manifest(
        kind=kind,
        format_version=format_version,
        digest=_manifest_digest(content, files),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        code_version=recsys.__version__,
        content=content,
        files=files,
    )
    write_durably(draft.path / MANIFEST, manifest_text(manifest.__dict__))
    for folder, _, _ in os.walk(draft.path):
        sync_directory(Path(folder))


def _manifest_digest(content: dict[str, Any], files: dict[str, dict[str, Any]]) -> str:
    return digest_of({"content": content, "files": files})


def _files_under(path: Path) -> list[str]:
    """The relative names of all files; ArtifactError for what is neither a file nor a directory with files."""
    found = []
    for entry in os.scandir(path):
        if entry.is_dir(follow_symlinks=False):
            inner = _files_under(Path(entry))
            if not inner:
                raise ArtifactError(f"{entry.path} is an empty directory, which no manifest vouches for; remove it")
            found += [f"{entry.name}/{name}" for name in inner]
        elif entry.is_file(follow_symlinks=False):
            found.append(entry.name)
        else:
            raise ArtifactError(f"{entry.path} is a link or a device; an artefact holds plain files, restore it")
    return sorted(found)


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def _hold(draft: Path) -> int | None:
    """An open handle that keeps a draft from being taken for abandoned; None if that has happened already."""
    try:
        handle = os.open(draft, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # a file system without locks: there nothing can be locked to be removed either
        fcntl.flock(handle, fcntl.LOCK_SH)
    if draft.exists():
        return handle
    os.close(handle)
    return None


def _hold_abandoned(draft: Path) -> int | None:
    """An open handle on a draft that nobody holds; None if somebody does, or it is gone, or not ours to open."""
    try:
        handle = os.open(draft, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(draft)  # gone if it was finished between the two steps
    except OSError:
        os.close(handle)
        return None
    return handle


def sync_directory(path: Path) -> None:
    """Makes the names in a directory outlast a crash of the machine."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
