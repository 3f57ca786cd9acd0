"""The keys that a running service accepts: checked in constant time, and followed as their file changes.

A key is `recsys_<id>_<secret>`. The id finds the entry; the secret is 256 random bits, and the file keeps the SHA-256
of the whole key. Slow hashes (scrypt, Argon2) are for passwords, whose few likely values can be tried one after the
other: they make each try dear. Among 2^256 equally likely secrets no try is likely, however cheap, so a slow hash would
protect nothing more, and would hand anybody who sends wrong keys a way to use up the CPU.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from .key_file import Key, KeyFileError, Signature, read_keys, signature_of

LOOK_EVERY_S = 1.0
# How long a file's times may stay the same while it changes: clocks of file systems tick slowly, some in whole seconds.
TICK_S = 2.0
_SHAPE = re.compile(rb"recsys_([a-z2-7]{8})_[A-Za-z0-9_-]{43}")
_NOBODYS = "sha256:" + "0" * 64

log = logging.getLogger(__name__)


def hash_of(key: bytes) -> str:
    """What the file keeps of a key."""
    return "sha256:" + hashlib.sha256(key).hexdigest()


def is_key(given: bytes) -> bool:
    """Whether these bytes have the form of a key."""
    return _SHAPE.fullmatch(given) is not None


def holder(keys: Mapping[str, Key], given: bytes) -> Key | None:
    """The key that these bytes are, expired or not; None if they are none.

    Whatever has the form of a key is hashed once and compared once, whether its id exists or not, and the comparison
    takes the same time wherever two hashes differ; so the time an answer takes tells nothing of what the file holds.

    Args:
        keys: by id.
        given: what somebody says is a key.
    """
    shape = _SHAPE.fullmatch(given)
    if shape is None:
        return None
    key = keys.get(shape[1].decode())
    same = hmac.compare_digest(hash_of(given), key.hash if key else _NOBODYS)
    return key if same else None


class Keys:
    """The keys of a file as it is now: at most once a second, whoever asks looks whether it has changed.

    A file that has gone, or is refused, leaves the keys as they were: it never opens the service, nor closes it.
    `problem` then says what is wrong, and so does the log, once.

    Args:
        path: the key file.
        clock: seconds, steady.
        now: seconds since 1970, to tell whether the file changed just before it was read.

    Raises:
        KeyFileError: the file cannot be used at the start.
    """

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
    ) -> None:
        self.path = path
        self.problem: str | None = None
        self._clock = clock
        self._now = now
        self._signature: Signature | None = None
        self._looked = clock()
        self._keys: Mapping[str, Key] = self._read()

    def current(self) -> Mapping[str, Key]:
        """The keys by id, expired ones among them; the same object as long as nothing has changed."""
        moment = self._clock()
        if moment - self._looked >= LOOK_EVERY_S:
            self._looked = moment
            self._look()
        return self._keys

    def _look(self) -> None:
        try:
            if signature_of(os.stat(self.path)) == self._signature:
                return
        except OSError:
            pass  # reading it will say why
        try:
            keys = self._read()
        except KeyFileError as error:
            self._signature = None
            if str(error) != self.problem:
                self.problem = str(error)
                log.error("the keys stay as they were: %s", error)
            return
        if self.problem is not None:
            self.problem = None
            log.warning("%s can be used again", self.path)
        if keys != self._keys:  # who remembers what it found in the old ones need not forget it for a touch
            self._keys = keys

    def _read(self) -> Mapping[str, Key]:
        keys, status = read_keys(self.path)
        settled = self._now() - max(status.st_mtime, status.st_ctime) > TICK_S
        # One that changed a moment ago may change again without a sign, so the next look reads it once more.
        self._signature = signature_of(status) if settled else None
        return keys


def refuse_public(host: str, keys: Keys | None, *, now: float | None = None) -> None:
    """Refuses to listen where other machines can reach without a key to ask for.

    Args:
        host: the address to listen on.
        keys: what callers are asked for; None asks for nothing.
        now: seconds since 1970.

    Raises:
        ValueError: the address is not loopback, and there is no key, or none that is still good.
    """
    if is_loopback(host):
        return
    if keys is None:
        raise ValueError(
            f"{host!r} can be reached from other machines, and without keys anybody there may ask and change items; "
            "give --keys FILE (`python -m serve keys add NAME --scope read --keys FILE` makes one), "
            "or listen on 127.0.0.1"
        )
    moment = time.time() if now is None else now
    if not any(key.until > moment for key in keys.current().values()):
        raise ValueError(
            f"--keys {keys.path} holds no key that is still good, so nobody could ask on {host!r}; "
            f"run `python -m serve keys add NAME --scope read --keys {keys.path}`"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; a name counts if all that it stands for does."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None) if host else []
    except (OSError, UnicodeError):  # a name that stands for nothing vouches for nothing
        return False
    return bool(found) and all(ipaddress.ip_address(str(each[4][0]).partition("%")[0]).is_loopback for each in found)
