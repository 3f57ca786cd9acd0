"""Artefacts: directories that a stage writes once, whole, and the next stage opens only after checking every byte."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import recsys

MANIFEST = "manifest.json"


class ArtifactError(Exception):
    """A stage refuses an artefact; the message names the file or value and what to do."""


@dataclass(frozen=True)
class Manifest:
    """What an artefact says of itself.

    `content` is what its kind declares; `files` maps each file's relative name to its sha256 and size in bytes;
    `digest` is the sha256 of content and files, so equal artefacts have equal digests whenever they were made.
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


def write_durably(path: Path, text: str) -> None:
    """Replaces a file by a new text in one step: a reader sees the old one or the new one, even across a crash."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    _sync_directory(path.parent)


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
    if path.exists():
        raise ArtifactError(f"{path} exists already and a {kind} is never changed; choose another path or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Draft(path.parent / f".{path.name}.{uuid.uuid4().hex}")
    draft.path.mkdir()
    try:
        yield draft
        _finish(draft, kind, format_version)
        os.rename(draft.path, path)
        _sync_directory(path.parent)
    except BaseException:
        shutil.rmtree(draft.path, ignore_errors=True)
        raise


def read_manifest(path: Path, kind: str, format_version: int) -> Manifest:
    """Reads a manifest and checks that it is of the kind and version expected; the files are not read.

    Raises:
        ArtifactError: there is none, it is not readable, was altered, or is of another kind or version.
    """
    path = Path(path)
    try:
        said = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        manifest = Manifest(**said)
    except FileNotFoundError:
        raise ArtifactError(
            f"{path} is not a {kind}: it has no {MANIFEST}; was the run that wrote it stopped?"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ArtifactError(f"{path / MANIFEST} cannot be read ({error}); write the {kind} again") from None
    if manifest.kind != kind:
        raise ArtifactError(f"{path} is a {manifest.kind}, not a {kind}; check the path")
    if manifest.format_version != format_version:
        raise ArtifactError(
            f"{path} has {kind} format {manifest.format_version}, this code reads {format_version}; "
            f"write it again with this version (it was written by {manifest.code_version})"
        )
    if manifest.digest != _manifest_digest(manifest.content, manifest.files):
        raise ArtifactError(f"{path / MANIFEST} was altered: its digest does not match; write the {kind} again")
    return manifest


def verify(path: Path, kind: str, format_version: int) -> Manifest:
    """Reads a manifest and checks every file's size and sha256 against it.

    Raises:
        ArtifactError: as `read_manifest`, or a file is missing, extra or changed; the message names it.
    """
    path = Path(path)
    manifest = read_manifest(path, kind, format_version)
    present = set(_files_under(path)) - {MANIFEST}
    if extra := sorted(present - set(manifest.files)):
        raise ArtifactError(f"{path / extra[0]} is not in the manifest; a {kind} holds nothing else, remove it")
    for name, said in manifest.files.items():
        if name not in present:
            raise ArtifactError(f"{path / name} is missing; restore it or write the {kind} again")
        size = (path / name).stat().st_size
        if size != said["bytes"]:
            raise ArtifactError(f"{path / name} has {size} bytes, the manifest says {said['bytes']}; restore it")
        if sha256_of(path / name) != said["sha256"]:
            raise ArtifactError(f"{path / name} does not match its sha256 in the manifest; restore it")
    return manifest


def _finish(draft: Draft, kind: str, format_version: int) -> None:
    files = {}
    for name in _files_under(draft.path):
        file = draft.path / name
        with open(file, "rb+") as handle:
            os.fsync(handle.fileno())
        files[name] = {"sha256": sha256_of(file), "bytes": file.stat().st_size}
    manifest = Manifest(
        kind=kind,
        format_version=format_version,
        digest=_manifest_digest(draft.content, files),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        code_version=recsys.__version__,
        content=draft.content,
        files=files,
    )
    write_durably(draft.path / MANIFEST, json.dumps(manifest.__dict__, indent=1, ensure_ascii=False, allow_nan=False))


def _manifest_digest(content: dict[str, Any], files: dict[str, dict[str, Any]]) -> str:
    return digest_of({"content": content, "files": files})


def _files_under(path: Path) -> list[str]:
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
