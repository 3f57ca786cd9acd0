"""`python -m serve keys`: makes, lists, replaces and revokes the keys that callers of the service need."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from .key_changes import add, revoke, rotate
from .key_file import Key, KeyFileError, KeyLimits, Scope, changing, first_fault, read_keys
from .printable import printable

EXAMPLES = """examples:
  python -m serve keys add shop --scope read --keys keys.json
  python -m serve keys add importer --scope write --expires 90d --requests-per-second 50 --keys keys.json
  python -m serve keys list --keys keys.json
  python -m serve keys rotate shop --grace 1d --keys keys.json
  python -m serve keys revoke shop --keys keys.json

A key is printed once, alone on standard output, when it is made; the file keeps only its hash. A service that runs
with the file sees every change within a second.
"""
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LONGEST = timedelta(days=36500)
_LIMITS = {
    "requests_per_second": (float, "how often it may ask, over all replicas"),
    "burst": (int, "how many requests at once after a pause (default: a second's worth)"),
    "max_k": (int, "the largest k"),
    "max_history": (int, "the longest history"),
    "max_exclude": (int, "the longest list of items to leave out"),
    "max_batch": (int, "the most requests in a batch"),
    "max_body_bytes": (int, "the largest body"),
}

Run = Callable[[argparse.Namespace, datetime], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one of the subcommands; returns the exit status: 0, 1 for what was refused, 2 for what it was told wrong."""
    said = _parser().parse_args(arguments)
    try:
        said.run(said, datetime.now(UTC).replace(microsecond=0))
    except KeyFileError as error:
        print(f"python -m serve keys: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serve keys",
        description="Make, list, replace and revoke the keys that callers of the service need.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Run, says: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=says, description=says[0].upper() + says[1:] + ".")
        made.add_argument("--keys", type=Path, required=True, metavar="FILE", help="the key file")
        made.set_defaults(run=run)
        return made

    added = command("add", _add, "make a key and print it, once")
    added.add_argument("name", metavar="NAME", help="what logs and metrics shall call its holder")
    added.add_argument(
        "--scope",
        required=True,
        choices=[scope.word for scope in Scope],
        help="read asks; write also sends events and changes items; admin also reads the metrics",
    )
    added.add_argument("--expires", type=_when, metavar="WHEN", help="30m, 12h, 90d, or a date (default: never)")
    limits = added.add_argument_group("limits", "never more than the service's own, whatever is said here")
    for name, (kind, says) in _LIMITS.items():
        limits.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=says)
    listed = command("list", _list, "all keys, without their secrets")
    listed.add_argument("--json", action="store_true", help="as JSON, for programs")
    revoked = command("revoke", _revoke, "remove all keys of a name, or the one of an id, at once")
    revoked.add_argument("key", metavar="NAME|ID", help="which")
    rotated = command("rotate", _rotate, "make a key that takes another's place, and print it, once")
    rotated.add_argument("name", metavar="NAME", help="whose")
    rotated.add_argument(
        "--grace", type=_duration, default="1h", metavar="TIME", help="how long the old one stays good (default: 1h)"
    )
    rotated.add_argument(
        "--expires", type=_when, metavar="WHEN", help="as in add (default: it lives as long as the old one was made to)"
    )
    return parser


def _add(said: argparse.Namespace, now: datetime) -> None:
    given = {name: getattr(said, name) for name in _LIMITS if getattr(said, name) is not None}
    try:
        limits = KeyLimits(**given)
    except ValidationError as error:
        raise KeyFileError(f"these limits cannot be: {first_fault(error)}") from None
    with changing(said.keys) as keys:
        key, text = add(keys, said.name, said.scope, now=now, expires=_moment(said.expires, now), limits=limits)
    _hand_over(key, text)


def _rotate(said: argparse.Namespace, now: datetime) -> None:
    _refuse_missing(said.keys)
    with changing(said.keys) as keys:
        expires = _moment(said.expires, now)
        key, text = rotate(keys, said.name, now=now, grace=said.grace, expires=expires)
        old = [other for other in keys if other.name == said.name and other.id != key.id]
    for other in old:
        print(f"the old key {other.id} stays good until {_shown(other.expires)}", file=sys.stderr)
    _hand_over(key, text)


def _revoke(said: argparse.Namespace, now: datetime) -> None:
    _refuse_missing(said.keys)
    with changing(said.keys) as keys:
        gone = revoke(keys, said.key)
    for key in gone:
        print(f"revoked {key.name} ({key.id}, {key.scope})")


def _list(said: argparse.Namespace, now: datetime) -> None:
    keys = list(read_keys(said.keys)[0].values())
    if said.json:
        shown = [key.model_dump(mode="json", exclude={"hash"}, exclude_defaults=True) for key in keys]
        print(json.dumps(shown, indent=1))
        return
    rows = [["name", "id", "scope", "created", "expires", "limits"]]
    for key in keys:
        limits = key.limits.model_dump(exclude_none=True)
        expired = "expired " if key.until <= now.timestamp() else ""
        rows.append(
            [
                key.name,
                key.id,
                key.scope,
                _shown(key.created),
                expired + _shown(key.expires),
                ", ".join(
                    f"{name} {value:{'g' if isinstance(value, float) else ','}}" for name, value in limits.items()
                ),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _hand_over(key: Key, text: str) -> None:
    """Prints the key alone on standard output, so that a script can take it, and the rest beside it."""
    print(f"{key.name}: {key.scope}, id {key.id}, expires {_shown(key.expires)}; shown this once:", file=sys.stderr)
    print(text, flush=True)


def _shown(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def _refuse_missing(path: Path) -> None:
    """Says that there is no file before a lock is made beside one that was never there."""
    if not path.exists():
        read_keys(path)


def _duration(text: str) -> timedelta:
    said = re.fullmatch(r"([0-9]{1,7})([smhdw])", text)
    made = timedelta(**{_UNITS[said[2]]: int(said[1])}) if said else None
    if made is None or made > _LONGEST:
        raise argparse.ArgumentTypeError(
            f"'{printable(text, 40)}' is no time: give a number and s, m, h, d or w, such as 12h, a century at most"
        )
    return made


def _when(text: str) -> timedelta | datetime:
    """How long from now, or a moment; in UTC where it names no zone."""
    if re.fullmatch(r"[0-9]+[a-z]", text):
        return _duration(text)
    try:
        said = datetime.fromisoformat(text)
        return (said if said.tzinfo else said.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"'{printable(text, 40)}' is neither a time such as 90d nor a date such as 2027-01-31T12:00:00Z"
        ) from None


def _moment(said: timedelta | datetime | None, now: datetime) -> datetime | None:
    return now + said if isinstance(said, timedelta) else said
