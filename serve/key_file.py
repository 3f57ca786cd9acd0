"""The file of API keys: what it holds, when it is refused, and how it is written. It holds no secret, only hashes."""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from recsys.artifacts import write_durably

from .printable import printable
from .schemas import Closed

FORMAT_VERSION = 1
MAX_FILE_BYTES = 4 << 20  # about ten thousand keys; a service reads it between two requests


class KeyFileError(Exception):
    """A key file is refused, or a change to it is; the message names the file or key and what to do."""


class Scope(enum.IntEnum):
    """What a key may do; each may what the ones before it may."""

    READ = 1
    WRITE = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        """How files, commands and messages write it."""
        return self.name.lower()


class KeyLimits(Closed):
    """What one key may ask for, where that is less than what the service allows everybody."""

    requests_per_second: float | None = Field(None, gt=0, le=1e6, strict=True, allow_inf_nan=False)
    burst: int | None = Field(None, ge=1, le=10**6, strict=True)
    max_k: int | None = Field(None, ge=1, strict=True)
    max_history: int | None = Field(None, ge=1, strict=True)
    max_exclude: int | None = Field(None, ge=1, strict=True)
    max_batch: int | None = Field(None, ge=1, strict=True)
    max_body_bytes: int | None = Field(None, ge=1, strict=True)

    @model_validator(mode="after")
    def _burst_of_something(self) -> KeyLimits:
        if self.burst is not None and self.requests_per_second is None:
            raise ValueError("burst means nothing without requests_per_second; give both")
        return self


def _text(said: Any) -> Any:
    if not isinstance(said, (str, datetime)):
        raise ValueError("must be a moment such as 2026-11-22T09:30:00Z")
    return said


def _utc(said: datetime) -> datetime:
    try:
        return said.astimezone(UTC)
    except OverflowError:
        raise ValueError("is beyond the years 1 to 9999") from None


Moment = Annotated[AwareDatetime, BeforeValidator(_text), AfterValidator(_utc)]


class Key(Closed):
    """One key, without its secret. Several may share a name while one takes the other's place."""

    model_config = ConfigDict(hide_input_in_errors=True)

    id: str = Field(pattern=r"^[a-z2-7]{8}$")
    # It becomes part of log lines and of the names of metrics, so it is one plain word.
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    hash: str = Field(pattern=r"^sha256:[0-9a-f]{64}$", repr=False)
    scope: Literal["read", "write", "admin"]
    created: Moment
    expires: Moment | None = None
    limits: KeyLimits = KeyLimits()

    @property
    def rank(self) -> Scope:
        """The scope, to compare."""
        return Scope[self.scope.upper()]

    @property
    def until(self) -> float:
        """When it expires, in seconds since 1970; infinite if never."""
        return float("inf") if self.expires is None else self.expires.timestamp()


class _File(Closed):
    format_version: int
    keys: list[Key]

    @model_validator(mode="after")
    def _ids_differ(self) -> _File:
        seen = set()
        for key in self.keys:
            if key.id in seen:
                raise ValueError(f"two keys have the id {key.id}; remove one")
            seen.add(key.id)
        return self


Signature = tuple[int, int, int, int]


def signature_of(status: os.stat_result) -> Signature:
    """What differs between two states of a file; the time of the last change covers a chmod too."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_keys(path: Path) -> tuple[dict[str, Key], os.stat_result]:
    """The keys of a file by id, and what the file's status was before it was read.

    Raises:
        KeyFileError: there is none, it cannot be read, others may write to it, or it holds something else.
    """
    try:
        # Without O_NONBLOCK, a named pipe of that name would hold up the service for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise KeyFileError(
            f"there is no key file {path}; make one with `python -m serve keys add NAME --scope read --keys {path}`"
        ) from None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read ({error.strerror}); give it to the user that serves") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"{path} is not a plain file; give --keys the file that `keys add` wrote")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise KeyFileError(
                f"{path} can be written by others than its owner (mode {stat.S_IMODE(status.st_mode):04o}), who could "
                f"add keys of their own; run `chmod 600 {path}` and look through `keys list`"
            )
        with open(handle, "rb", closefd=False) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read ({error.strerror}); restore it") from None
    finally:
        os.close(handle)
    if len(data) > MAX_FILE_BYTES:
        raise KeyFileError(f"{path} is larger than {MAX_FILE_BYTES:,} bytes; revoke keys that are no longer used")
    try:
        said = _File.model_validate_json(data)
    except ValidationError as error:
        raise KeyFileError(f"{path} is not a key file: {first_fault(error)}; restore it") from None
    if said.format_version != FORMAT_VERSION:
        raise KeyFileError(f"{path} has key format {said.format_version}, this code reads {FORMAT_VERSION}")
    return {key.id: key for key in said.keys}, status


def first_fault(error: ValidationError) -> str:
    """What is wrong first, without its value, which may be a secret that somebody put into the wrong place."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    at = "/".join(str(part) for part in fault["loc"])
    change = fault["msg"].removeprefix("Value error, ")
    return printable(f"{at}: {change}" if at else change, 300)


@contextlib.contextmanager
def changing(path: Path) -> Iterator[list[Key]]:
    """The keys of a file, to be changed in place; they are written when the block ends well.

    Others that change the same file wait for their turn. A service that follows the file sees what was there or all of
    the new. It is written with mode 0600: run this as the user that serves.

    Raises:
        KeyFileError: the file is refused, or its folder cannot be written.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    if not path.parent.is_dir():
        raise KeyFileError(f"there is no folder {path.parent}; run `mkdir -m 700 {path.parent}` first")
    lock = path.with_name(f".{path.name}.lock")
    try:
        # It stays: were it removed, two could each lock one of that name.
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise KeyFileError(f"{lock} cannot be opened ({error.strerror}); run this as the owner of {path}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise KeyFileError(
                f"{lock} cannot be locked ({error.strerror}); put the key file on a file system that has locks"
            ) from None
        keys = list(read_keys(path)[0].values()) if path.exists() else []
        yield keys
        text = _File(format_version=FORMAT_VERSION, keys=keys).model_dump_json(indent=1, exclude_defaults=True)
        before = os.umask(0o077)  # so that what is written is private from its first byte on
        try:
            write_durably(path, text + "\n")
        except OSError as error:
            raise KeyFileError(f"{path} cannot be written ({error.strerror}); nothing was changed") from None
        finally:
            os.umask(before)
    finally:
        os.close(handle)
