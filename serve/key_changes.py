"""Keys made, replaced and taken back: changes to the entries of a key file, before it is written."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta

from pydantic import ValidationError

from .key_file import Key, KeyFileError, KeyLimits, first_fault
from .keys import hash_of
from .printable import printable

_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"


def add(
    keys: list[Key],
    name: str,
    scope: str,
    *,
    now: datetime,
    expires: datetime | None = None,
    limits: KeyLimits | None = None,
) -> tuple[Key, str]:
    """Adds a key.

    Args:
        keys: those there are; the new one is appended.
        name: what logs and metrics call its holder.
        scope: read, write or admin.
        now: the moment it is made.
        expires: the moment from which it is refused; never if left out.
        limits: what it may ask for, where that is less than what the service allows.

    Returns:
        The entry, and the key itself, which is kept nowhere.

    Raises:
        KeyFileError: there is a key of that name, or the name is none.
    """
    if any(key.name == name for key in keys):
        raise KeyFileError(f"there is a key {name!r} already; rotate or revoke it, or choose another name")
    return _append(keys, name, scope, now=now, expires=expires, limits=limits or KeyLimits())


def rotate(
    keys: list[Key], name: str, *, now: datetime, grace: timedelta, expires: datetime | None = None
) -> tuple[Key, str]:
    """Adds a key that takes the place of the one of that name, which stays good for a while.

    Args:
        keys: those there are; the new one is appended, and what has expired of that name goes.
        name: whose.
        now: the moment it is made.
        grace: how long the one before stays good, unless it expires sooner.
        expires: when the new one expires; if left out, it lives as long as the one before was made to.

    Returns:
        As `add`.

    Raises:
        KeyFileError: there is no key of that name.
    """
    before = [key for key in keys if key.name == name]
    if not before:
        raise _unknown(keys, name)
    newest = before[-1]
    if expires is None and newest.expires is not None:
        try:
            expires = now + (newest.expires - newest.created)
        except OverflowError:  # it was to expire in the year 9999, as who writes a date for never has it
            expires = newest.expires
    keys[:] = [
        key if key.name != name else key.model_copy(update={"expires": min(key.expires or now + grace, now + grace)})
        for key in keys
        if key.name != name or key.until > now.timestamp()
    ]
    return _append(keys, name, newest.scope, now=now, expires=expires, limits=newest.limits)


def revoke(keys: list[Key], which: str) -> list[Key]:
    """Removes all keys of a name, or else the one of an id, and returns them.

    Raises:
        KeyFileError: there is none.
    """
    gone = [key for key in keys if key.name == which] or [key for key in keys if key.id == which]
    if not gone:
        raise _unknown(keys, which)
    keys[:] = [key for key in keys if key not in gone]
    return gone


def _append(
    keys: list[Key], name: str, scope: str, *, now: datetime, expires: datetime | None, limits: KeyLimits
) -> tuple[Key, str]:
    if expires is not None and expires <= now:
        raise KeyFileError(f"the key would have expired at {expires.isoformat()} already; choose a later moment")
    taken = {key.id for key in keys}
    while (key_id := "".join(secrets.choice(_ID_LETTERS) for _ in range(8))) in taken:
        pass
    text = f"recsys_{key_id}_{secrets.token_urlsafe(32)}"
    said = {
        "id": key_id,
        "name": name,
        "hash": hash_of(text.encode()),
        "scope": scope,
        "created": now,
        "expires": expires,
        "limits": limits,
    }
    try:
        key = Key.model_validate(said)
    except ValidationError as error:
        if error.errors()[0]["loc"] == ("name",):
            raise KeyFileError(
                f"{printable(name, 80)!r} cannot be a key's name: it takes 1 to 64 letters, digits, dots, dashes and "
                "underscores, a letter or digit first"
            ) from None
        raise KeyFileError(f"this key cannot be: {first_fault(error)}") from None
    keys.append(key)
    return key, text


def _unknown(keys: list[Key], which: str) -> KeyFileError:
    names = sorted({key.name for key in keys})
    said = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return KeyFileError(f"there is no key {printable(which, 80)!r}; there is: {said or 'none'}")
