"""The key file: what is kept, what is refused, who may change it at once, and how a running service follows it."""

from __future__ import annotations

import json
import logging
import os
import shlex
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.key_changes import add, revoke, rotate
from serve.key_file import Key, KeyFileError, KeyLimits, Scope, changing, read_keys
from serve.keys import Keys, hash_of, holder, is_loopback, refuse_public
from serve.keys_command import main

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)
SETTLED = 4e9  # long after any file was written


class Clock:
    """A clock that goes when told."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(file: Path, name: str = "shop", scope: str = "read", **more: Any) -> str:
    with changing(file) as keys:
        return add(keys, name, scope, now=NOW, **more)[1]


def write(file: Path, said: Any, mode: int = 0o600) -> None:
    file.write_text(said if isinstance(said, str) else json.dumps(said), encoding="utf-8")
    file.chmod(mode)


def entry(**changed: Any) -> dict[str, Any]:
    said = {"id": "abcdefgh", "name": "shop", "hash": hash_of(b"x"), "scope": "read", "created": "2026-11-22T09:30:00Z"}
    return {name: value for name, value in {**said, **changed}.items() if value is not ...}


# What is kept


def test_a_key_names_its_entry_and_the_file_holds_no_secret(file: Path) -> None:
    text = make(file, limits=KeyLimits(max_k=5))
    kept = file.read_text(encoding="utf-8")
    prefix, key_id, secret = text.split("_", 2)
    assert (prefix, len(key_id), len(secret)) == ("recsys", 8, 43)
    assert text not in kept
    assert secret not in kept
    (key,) = read_keys(file)[0].values()
    assert key == Key(id=key_id, name="shop", hash=hash_of(text.encode()), scope="read", created=NOW, limits=key.limits)
    assert key.limits == KeyLimits(max_k=5)
    assert (key.rank, key.until) == (Scope.READ, float("inf"))
    assert json.loads(kept)["format_version"] == 1


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_it_is_private_whatever_the_umask(file: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        make(file)
        make(file, "other")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert [stat.S_IMODE(each.stat().st_mode) for each in file.parent.iterdir()] == [0o600, 0o600]  # and its lock


def test_a_link_stays_a_link(file: Path, tmp_path: Path) -> None:
    real = tmp_path / "real.json"
    file.symlink_to(real)
    make(file)
    assert file.is_symlink()
    assert len(read_keys(real)[0]) == 1


def test_no_two_keys_are_alike(file: Path) -> None:
    texts = [make(file, f"k{n}") for n in range(20)]
    assert len(set(texts)) == len(read_keys(file)[0]) == 20


@pytest.mark.parametrize(
    "name", ["", "a b", "a/b", "../x", "-a", ".a", "a\n", "a\x1b[2J", "é", "x" * 65, "a{b}", 'a"b', "a\\b"]
)
def test_a_name_is_one_plain_word(file: Path, name: str) -> None:
    with pytest.raises(KeyFileError, match="cannot be a key's name: it takes 1 to 64") as caught:
        make(file, name)
    assert str(caught.value).isprintable()
    assert not file.exists()


def test_a_name_is_taken_once(file: Path) -> None:
    make(file)
    with pytest.raises(KeyFileError, match="there is a key 'shop' already; rotate or revoke it"):
        make(file)
    with pytest.raises(KeyFileError, match=r"would have expired at 2026-11-22T09:30:00\+00:00 already"):
        make(file, "late", expires=NOW)
    assert len(read_keys(file)[0]) == 1


# What is refused

WRONG = [
    ("", "JSON"),
    ("{", "JSON"),
    ("[]", "object|dictionary|valid"),
    ({}, "format_version: Field required"),
    ({"format_version": 1}, "keys: Field required"),
    ({"format_version": 2, "keys": []}, "has key format 2, this code reads 1"),
    ({"format_version": 1, "keys": [], "open": True}, "there is no 'open'"),
    ({"format_version": 1, "keys": [entry(), entry(name="other")]}, "two keys have the id abcdefgh"),
    ({"format_version": 1, "keys": [entry(scope="root")]}, "keys/0/scope: .*'read', 'write' or 'admin'"),
    ({"format_version": 1, "keys": [entry(hash=...)]}, "keys/0/hash: Field required"),
    ({"format_version": 1, "keys": [entry(id="ABCDEFGH")]}, "keys/0/id:"),
    ({"format_version": 1, "keys": [entry(name="a\nb")]}, "keys/0/name:"),
    ({"format_version": 1, "keys": [entry(name="ab\n")]}, "keys/0/name:"),
    ({"format_version": 1, "keys": [entry(expire="2027-01-01T00:00:00Z")]}, "there is no 'expire'; did you mean"),
    ({"format_version": 1, "keys": [entry(expires="2027-01-01T00:00:00")]}, "keys/0/expires: .*timezone"),
    ({"format_version": 1, "keys": [entry(expires=1800000000)]}, "keys/0/expires: must be a moment such as"),
    ({"format_version": 1, "keys": [entry(expires="9999-12-31T23:59:59-10:00")]}, "keys/0/expires: .*years 1 to 9999"),
    ({"format_version": 1, "keys": [entry(limits={"max_k": 0})]}, "keys/0/limits/max_k: .*greater"),
    ({"format_version": 1, "keys": [entry(limits={"max_k": "5"})]}, "keys/0/limits/max_k: .*integer"),
    ({"format_version": 1, "keys": [entry(limits={"max_q": 5})]}, "there is no 'max_q'; did you mean 'max_k'"),
    ({"format_version": 1, "keys": [entry(limits={"burst": 5})]}, "burst means nothing without requests_per_second"),
    ({"format_version": 1, "keys": [entry(limits={"requests_per_second": 0})]}, "greater than 0"),
]


@pytest.mark.parametrize(("said", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_no_key_file_is_refused_by_what_is_wrong(file: Path, said: Any, words: str) -> None:
    write(file, said)
    with pytest.raises(KeyFileError, match=words) as caught:
        read_keys(file)
    assert str(file) in str(caught.value)
    with pytest.raises(KeyFileError, match=words):
        make(file)
    assert file.read_text(encoding="utf-8") == (said if isinstance(said, str) else json.dumps(said))


def test_a_secret_in_the_wrong_place_is_not_repeated(file: Path) -> None:
    secret = "recsys_abcdefgh_" + "s" * 43
    for wrong in (entry(hash=secret), entry(id=secret), entry(scope=secret), entry(name=secret + "!")):
        write(file, {"format_version": 1, "keys": [wrong]})
        with pytest.raises(KeyFileError) as caught:
            read_keys(file)
        assert "sss" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o777])
def test_a_file_that_others_can_write_is_refused_with_the_command_that_mends_it(file: Path, mode: int) -> None:
    make(file)
    file.chmod(mode)
    with pytest.raises(KeyFileError, match=rf"\(mode {mode:04o}\).*run `chmod 600 {file}`"):
        read_keys(file)
    with pytest.raises(KeyFileError, match="chmod 600"):
        make(file, "other")


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o644])
def test_a_file_that_others_can_read_is_not(file: Path, mode: int) -> None:
    make(file)
    file.chmod(mode)
    assert len(read_keys(file)[0]) == 1


def test_what_is_not_a_plain_file_is_refused_and_not_waited_for(file: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"there is no key file .*keys add NAME --scope read --keys"):
        read_keys(file)
    with pytest.raises(KeyFileError, match="is not a plain file"):
        read_keys(tmp_path)
    os.mkfifo(file)
    with pytest.raises(KeyFileError, match="is not a plain file"):
        read_keys(file)
    with pytest.raises(KeyFileError, match=r"there is no folder .*mkdir -m 700"):
        make(tmp_path / "nowhere" / "keys.json")


def test_a_file_too_large_is_refused(file: Path) -> None:
    write(file, " " * (4 << 20) + "x")
    with pytest.raises(KeyFileError, match="is larger than 4,194,304 bytes; revoke"):
        read_keys(file)


def test_a_change_that_fails_changes_nothing(file: Path) -> None:
    make(file)
    before = file.read_bytes()

    def fail() -> None:
        with changing(file) as keys:
            keys.clear()
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert file.read_bytes() == before
    make(file, "other")  # and the lock is free


ADDING = """
import sys
from datetime import datetime, timezone
from pathlib import Path
from serve.key_changes import add
from serve.key_file import changing
print("ready", flush=True)
sys.stdin.readline()
for n in range(15):
    with changing(Path(sys.argv[1])) as keys:
        add(keys, f"{sys.argv[2]}-{n}", "read", now=datetime.now(timezone.utc))
"""


def test_two_that_add_at_once_lose_no_key(file: Path) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", ADDING, str(file), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in ("a", "b")
    ]
    for each in started:
        assert each.stdout.readline() == "ready\n"
    for each in started:
        each.stdin.write("go\n")
        each.stdin.flush()
    for each in started:
        each.communicate(timeout=60)
        assert each.returncode == 0
    assert {key.name for key in read_keys(file)[0].values()} == {f"{name}-{n}" for name in "ab" for n in range(15)}


# Who holds a key


def test_a_key_is_its_holders_and_nothing_near_it_is(file: Path) -> None:
    text = make(file).encode()
    keys = read_keys(file)[0]
    assert holder(keys, text).name == "shop"
    assert holder({}, text) is None
    for position in range(len(text)):
        other = b"b" if text[position : position + 1] == b"a" else b"a"
        assert holder(keys, text[:position] + other + text[position + 1 :]) is None
        assert holder(keys, text[:position]) is None
    for near in (text + b"\n", b" " + text, text + b"a", text.upper(), text.replace(b"recsys_", b"")):
        assert holder(keys, near) is None


def test_every_check_compares_one_hash_whether_the_id_exists_or_not(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = make(file).encode()
    keys = read_keys(file)[0]
    compared = []

    def compare(one: str, other: str) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr("serve.keys.hmac.compare_digest", compare)
    for given_key in (text, text[:-4] + b"aaaa", b"recsys_zzzzzzzz_" + b"x" * 43):
        holder(keys, given_key)
    assert compared == [(71, 71)] * 3


@given(st.binary(max_size=80))
def test_no_bytes_are_a_key_by_chance(given_key: bytes) -> None:
    key = Key.model_validate(entry())
    assert holder({key.id: key}, given_key) is None


# Rotating and revoking


def test_rotating_makes_a_new_key_and_the_old_one_ends_after_a_while() -> None:
    keys: list[Key] = []
    old, _ = add(keys, "shop", "write", now=NOW, expires=NOW + 10 * HOUR, limits=KeyLimits(max_k=3))
    add(keys, "other", "read", now=NOW)
    later = NOW + HOUR
    new, text = rotate(keys, "shop", now=later, grace=HOUR)
    assert [key.name for key in keys] == ["shop", "other", "shop"]
    assert (keys[0].id, keys[0].expires) == (old.id, later + HOUR)
    assert keys[1].expires is None
    assert (new.scope, new.limits, new.expires) == ("write", KeyLimits(max_k=3), later + 10 * HOUR)
    assert hash_of(text.encode()) == new.hash != old.hash


def test_a_grace_prolongs_nothing_and_none_ends_at_once() -> None:
    keys: list[Key] = []
    add(keys, "shop", "read", now=NOW, expires=NOW + HOUR)
    rotate(keys, "shop", now=NOW, grace=5 * HOUR, expires=NOW + 3 * HOUR)
    assert [key.expires for key in keys] == [NOW + HOUR, NOW + 3 * HOUR]
    rotate(keys, "shop", now=NOW, grace=timedelta(0))
    assert [key.expires for key in keys] == [NOW, NOW, NOW + 3 * HOUR]


def test_rotating_clears_away_what_has_expired_of_that_name() -> None:
    keys: list[Key] = []
    add(keys, "other", "read", now=NOW, expires=NOW + HOUR)
    for night in range(5):
        if night:
            rotate(keys, "shop", now=NOW + night * 24 * HOUR, grace=HOUR)
        else:
            add(keys, "shop", "read", now=NOW)
    assert [(key.name, key.expires) for key in keys] == [
        ("other", NOW + HOUR),
        ("shop", NOW + 97 * HOUR),
        ("shop", None),
    ]


def test_a_key_for_ever_written_as_a_date_rotates() -> None:
    keys: list[Key] = []
    end = datetime(9999, 12, 31, tzinfo=UTC)
    add(keys, "shop", "read", now=NOW, expires=end)
    assert rotate(keys, "shop", now=NOW + 24 * HOUR, grace=HOUR)[0].expires == end


def test_revoking_takes_all_of_a_name_or_one_of_an_id() -> None:
    keys: list[Key] = []
    old, _ = add(keys, "shop", "read", now=NOW)
    new, _ = rotate(keys, "shop", now=NOW, grace=HOUR)
    add(keys, old.id, "read", now=NOW)  # a name that looks like an id goes first
    assert [key.name for key in revoke(keys, old.id)] == [old.id]
    assert [key.id for key in revoke(keys, old.id)] == [old.id]
    assert [key.id for key in revoke(keys, "shop")] == [new.id]
    assert keys == []


def test_an_unknown_name_is_told_those_there_are() -> None:
    keys: list[Key] = []
    for change in (lambda: rotate(keys, "a\nb", now=NOW, grace=HOUR), lambda: revoke(keys, "a\nb")):
        with pytest.raises(KeyFileError, match=r"there is no key 'a\\\\nb'; there is: none"):
            change()
    add(keys, "shop", "read", now=NOW)
    with pytest.raises(KeyFileError, match="there is no key 'shp'; there is: shop"):
        revoke(keys, "shp")


# A running service follows the file


def test_changes_are_seen_within_a_second_and_looked_for_no_more_often(file: Path, clock: Clock) -> None:
    first = make(file).encode()
    keys = Keys(file, clock=clock, now=lambda: SETTLED)
    before = keys.current()
    second = make(file, "second").encode()
    clock.seconds += 0.9
    assert keys.current() is before
    clock.seconds += 0.1
    after = keys.current()
    assert {key.name for key in after.values()} == {"shop", "second"}
    assert holder(after, first) is not None
    assert holder(after, second) is not None
    with changing(file) as entries:
        revoke(entries, "shop")
    clock.seconds += 1
    assert holder(keys.current(), first) is None
    assert holder(keys.current(), second) is not None
    assert keys.problem is None


def breaks(file: Path, how: str) -> None:
    if how == "gone":
        file.unlink()
    elif how == "emptied":
        file.write_text("", encoding="utf-8")
    elif how == "a folder":
        file.unlink()
        file.mkdir()
    elif how == "writable":
        file.chmod(0o666)
    else:
        write(file, {"format_version": 1, "keys": [entry(hash="")]})


def mends(file: Path, text: str) -> None:
    if file.is_dir():
        file.rmdir()
    write(file, text)


@pytest.mark.parametrize("how", ["gone", "emptied", "a folder", "writable", "broken"])
def test_a_file_that_breaks_leaves_the_keys_as_they_were_and_is_reported_once(
    file: Path, clock: Clock, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    text = make(file).encode()
    kept = file.read_text(encoding="utf-8")
    keys = Keys(file, clock=clock, now=lambda: SETTLED)
    before = keys.current()
    breaks(file, how)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.seconds += 1
            assert keys.current() is before
    assert str(file) in keys.problem
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "the keys stay as they were" in caplog.text
    mends(file, kept)
    clock.seconds += 1
    assert holder(keys.current(), text) is not None
    assert keys.problem is None


def test_a_chmod_alone_mends_and_breaks(file: Path, clock: Clock) -> None:
    make(file)
    keys = Keys(file, clock=clock, now=lambda: SETTLED)
    for mode, problem in ((0o666, True), (0o600, False), (0o620, True), (0o640, False)):
        file.chmod(mode)
        clock.seconds += 1
        keys.current()
        assert (keys.problem is not None) == problem


def test_a_service_does_not_start_without_its_file(file: Path) -> None:
    with pytest.raises(KeyFileError, match="there is no key file"):
        Keys(file)


def test_a_touch_alone_is_no_change(file: Path, clock: Clock) -> None:
    make(file)
    keys = Keys(file, clock=clock, now=lambda: SETTLED)
    before = keys.current()
    os.utime(file, (1, 1))
    clock.seconds += 1
    assert keys.current() is before


def test_what_changed_just_now_is_read_again_and_what_has_settled_is_not(
    file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two changes within one tick of the file system's clock leave no sign of the second."""
    monkeypatch.setattr("serve.keys.signature_of", lambda status: (0, 0, 0, 0))
    make(file)
    fresh, settled = Keys(file, clock=clock, now=time.time), Keys(file, clock=clock, now=lambda: SETTLED)
    make(file, "second")
    clock.seconds += 1
    assert len(fresh.current()) == 2
    assert len(settled.current()) == 1


# Listening


def held(*expires: datetime | None) -> Any:
    """Stands for Keys."""
    moments = [None if moment is None else moment.isoformat() for moment in expires]
    keys = {str(n): Key.model_validate(entry(expires=moment)) for n, moment in enumerate(moments)}
    return SimpleNamespace(path="k.json", current=lambda: keys)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    refuse_public(host, None)


PUBLIC = [
    "0.0.0.0",
    "::",
    "",
    "0",
    "192.168.1.4",
    "10.0.0.1",
    "::ffff:10.0.0.1",
    "fe80::1",
    "2001:db8::1",
    "127.0.0.1.",
    "*",
]


@pytest.mark.parametrize("host", [*PUBLIC, "no-such-host.invalid", "\ud800", "a" * 300])
def test_any_other_address_needs_one(host: str) -> None:
    with pytest.raises(ValueError, match=r"give --keys FILE .*or listen on 127\.0\.0\.1"):
        refuse_public(host, None)
    refuse_public(host, held(None))


def test_a_name_is_loopback_only_if_all_it_stands_for_is(monkeypatch: pytest.MonkeyPatch) -> None:
    stands_for = ["127.0.0.1", "::1%lo"]
    monkeypatch.setattr("serve.keys.socket.getaddrinfo", lambda *_: [(0, 0, 0, "", (at, 0)) for at in stands_for])
    assert is_loopback("shop")
    stands_for.append("192.0.2.1")
    assert not is_loopback("shop")
    stands_for.clear()
    assert not is_loopback("shop")


def test_expired_keys_do_not_count() -> None:
    moment = NOW.timestamp()
    refuse_public("0.0.0.0", held(NOW, NOW + HOUR), now=moment)
    for expired in (held(), held(NOW), held(NOW - HOUR, NOW)):
        with pytest.raises(ValueError, match=r"--keys k.json holds no key that is still good.*keys add NAME"):
            refuse_public("0.0.0.0", expired, now=moment)


# The command


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[Any, str, str]:
    status: Any
    try:
        status = main([str(each) for each in arguments])
    except SystemExit as error:
        status = error.code
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_command_prints_a_key_once_and_stores_it_nowhere(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (("add", "shop", "--scope", "read"), ("rotate", "shop")):
        status, out, err = run(capsys, *command, "--keys", file)
        assert status == 0
        text = out.removesuffix("\n")
        assert holder(read_keys(file)[0], text.encode()).name == "shop"
        secret = text.split("_", 2)[2]
        assert secret not in err
        for later in (("list",), ("list", "--json"), ("revoke", "nobody")):
            _, out, err = run(capsys, *later, "--keys", file)
            assert secret not in out + err
        for kept in file.parent.iterdir():
            assert secret not in kept.read_text(encoding="utf-8")


def test_the_list_lines_up(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soon = datetime.now(UTC).replace(microsecond=0) + HOUR
    limits = KeyLimits(requests_per_second=2.5, burst=7, max_body_bytes=1 << 20)
    with changing(file) as keys:
        add(keys, "a", "read", now=NOW)
        add(keys, "a-much-longer-name", "admin", now=NOW - HOUR, expires=NOW)
        add(keys, "importer", "write", now=NOW, expires=soon, limits=limits)
    ids = [key.id for key in keys]
    status, out, err = run(capsys, "list", "--keys", file)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "name                id        scope  created               expires                       limits",
        f"a                   {ids[0]}  read   2026-11-22 09:30:00Z  never",
        f"a-much-longer-name  {ids[1]}  admin  2026-11-22 08:30:00Z  expired 2026-11-22 09:30:00Z",
        f"importer            {ids[2]}  write  2026-11-22 09:30:00Z  {soon:%Y-%m-%d %H:%M:%S}Z          "
        "requests_per_second 2.5, burst 7, max_body_bytes 1,048,576",
    ]
    shown = json.loads(run(capsys, "list", "--json", "--keys", file)[1])
    assert [each["name"] for each in shown] == ["a", "a-much-longer-name", "importer"]
    assert shown[2]["limits"] == {"requests_per_second": 2.5, "burst": 7, "max_body_bytes": 1 << 20}
    assert "hash" not in shown[0]


def test_the_command_adds_with_limits_and_an_end(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ["--expires", "90d", "--requests-per-second", "5", "--burst", "9", "--max-k", "3", "--max-batch", "2"]
    assert run(capsys, "add", "shop", "--scope", "write", *said, "--keys", file)[0] == 0
    (key,) = read_keys(file)[0].values()
    assert key.expires - key.created == timedelta(days=90)
    assert key.limits == KeyLimits(requests_per_second=5.0, burst=9, max_k=3, max_batch=2)
    dated = ["add", "dated", "--scope", "read", "--keys", str(file), "--expires"]
    assert run(capsys, *dated, "2999-01-31")[0] == 0
    assert list(read_keys(file)[0].values())[1].expires == datetime(2999, 1, 31, tzinfo=UTC)


def test_the_command_rotates_with_an_hour_of_grace_and_revokes(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "add", "shop", "--scope", "read", "--keys", file)
    status, _, err = run(capsys, "rotate", "shop", "--keys", file)
    old, new = read_keys(file)[0].values()
    assert status == 0
    assert f"the old key {old.id} stays good until {old.expires:%Y-%m-%d %H:%M:%S}Z" in err
    assert old.expires - new.created == HOUR
    run(capsys, "rotate", "shop", "--grace", "0s", "--keys", file)
    assert [key.until <= time.time() for key in read_keys(file)[0].values()] == [True, True, False]
    status, out, _ = run(capsys, "revoke", "shop", "--keys", file)
    assert (status, out.count("revoked shop (")) == (0, 3)
    assert read_keys(file)[0] == {}


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["list"], 1, "there is no key file"),
        (["rotate", "shop"], 1, "there is no key file"),
        (["revoke", "shop"], 1, "there is no key file"),
        (["add", "a b", "--scope", "read"], 1, "'a b' cannot be a key's name"),
        (["add", "a", "--scope", "read", "--burst", "3"], 1, "limits cannot be: burst means nothing without"),
        (["add", "a", "--scope", "read", "--max-k", "0"], 1, "limits cannot be: max_k: Input should be greater"),
        (["add", "a", "--scope", "read", "--requests-per-second", "nan"], 1, "limits cannot be: requests_per_second"),
        (["add", "a", "--scope", "read", "--expires", "2001-01-01"], 1, "would have expired"),
        (["add", "a", "--scope", "read", "--expires", "0s"], 1, "would have expired"),
        (["add", "a", "--scope", "root"], 2, "invalid choice: 'root'"),
        (["add", "a"], 2, "--scope"),
        (["add", "a", "--scope", "read", "--expires", "3x"], 2, "'3x' is no time"),
        (["add", "a", "--scope", "read", "--expires", "9999999w"], 2, "a century at most"),
        (["add", "a", "--scope", "read", "--expires", "soon\n"], 2, "'soon\\n' is neither a time such as 90d nor"),
        (["add", "a", "--scope", "read", "--expires", "9999-12-31T23:59:59-10:00"], 2, "is neither a time"),
        (["rotate", "a", "--grace", "-1h"], 2, "--grace"),
        ([], 2, "COMMAND"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_the_command_says_what_is_wrong_and_leaves_nothing_behind(
    file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, words: str
) -> None:
    more = ["--keys", str(file)] if arguments else []
    said, out, err = run(capsys, *arguments, *more)
    assert (said, out) == (status, "")
    assert words in " ".join(err.split())
    assert not file.exists()


def test_the_commands_of_the_documentation_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    documentation = (Path(__file__).parents[2] / "docs" / "keys.md").read_text(encoding="utf-8")
    commands = [line.split("#")[0] for line in documentation.splitlines() if line.startswith("python -m serve keys ")]
    assert len(commands) >= 5
    for command in commands:
        status, _, err = run(capsys, *shlex.split(command)[4:])
        assert status == 0, (command, err)
