"""Nothing that a user says can leave its place in a log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.printable import printable

LONG = 10_000


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("shop-1 é 日本 א 🎬", "shop-1 é 日本 א 🎬"),
        ("", ""),
        ("a\nb\r\nERROR forged", "a\\nb\\r\\nERROR forged"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp.exe\u2066\u200f", "\\u202egnp.exe\\u2066\\u200f"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("line\u2028para\u2029next\x85", "line\\u2028para\\u2029next\\x85"),
        ("nbsp\xa0", "nbsp\\xa0"),
        ("tag\U000e0041", "tag\\U000e0041"),
        ("\ud800", "\\ud800"),
        ("\\n", "\\\\n"),
        (b"ok", "ok"),
        ("ü".encode(), "ü"),
        (b"\xff\n", "\\udcff\\n"),
    ],
)
def test_what_is_not_plain_is_escaped(said: str | bytes, shown: str) -> None:
    assert printable(said) == shown


@pytest.mark.parametrize(
    ("said", "limit", "shown"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("ab\n", 3, "ab…"),
        ("a\nb", 4, "a\\nb"),
        ("a\x00bc", 6, "a\\x00…"),
        ("a\x00bc", 5, "a…"),
        ("\x00", 1, "…"),
        ("üüüü".encode(), 3, "üü…"),
        ("🎬🎬🎬".encode(), 3, "🎬🎬🎬"),
    ],
)
def test_what_is_too_long_is_cut_between_escapes(said: str | bytes, limit: int, shown: str) -> None:
    assert printable(said, limit) == shown


def test_a_limit_leaves_room_for_something() -> None:
    with pytest.raises(ValueError, match="limit must be 1 or more, got 0"):
        printable("a", 0)


@given(st.one_of(st.text(st.characters()), st.binary()), st.integers(1, 40))
def test_it_is_always_one_printable_line_within_the_limit(said: str | bytes, limit: int) -> None:
    shown = printable(said, limit)
    assert shown.isprintable()
    assert len(shown) <= limit
    assert "\\" not in shown.replace("\\\\", "").replace("\\n", "").replace("\\r", "").replace("\\t", "").replace(
        "\\x", ""
    ).replace("\\u", "").replace("\\U", "")


@given(st.text(st.characters()), st.text(st.characters()))
def test_two_texts_never_look_the_same(one: str, other: str) -> None:
    assert (printable(one, LONG) == printable(other, LONG)) == (one == other)


def test_what_lies_behind_the_limit_costs_nothing() -> None:
    class Long(str):
        def __getitem__(self, part: object) -> str:
            assert part == slice(None, 6)
            return str.__getitem__(self, part)

    assert printable(Long("x" * 1_000_000), 5) == "xxxx…"
