"""What is quick is done at once, what is not on a thread, and both as measured."""

from __future__ import annotations

import time

import pytest

from serve.pace import Pace


def test_what_was_never_done_is_not_known_to_be_quick() -> None:
    assert not Pace().is_quick("search")


def test_quick_work_is_quick_from_its_first_time_on() -> None:
    pace = Pace()
    assert pace.timed("search", lambda: 7) == 7
    assert pace.is_quick("search")
    assert not pace.is_quick("tower")


def test_slow_work_is_slow_and_becomes_quick_when_it_was_quick_often_enough() -> None:
    pace = Pace(at_once_s=0.005)
    pace.timed("search", lambda: time.sleep(0.03))
    assert not pace.is_quick("search")
    for _ in range(30):
        pace.timed("search", lambda: None)
    assert pace.is_quick("search")


def test_one_hiccup_does_not_make_quick_work_slow() -> None:
    pace = Pace(at_once_s=0.005)
    for _ in range(3):
        pace.timed("search", lambda: None)
    pace.timed("search", lambda: time.sleep(0.2))
    assert pace.is_quick("search")


def test_work_that_fails_is_timed_too() -> None:
    pace = Pace(at_once_s=0.005)

    def fails() -> None:
        time.sleep(0.03)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        pace.timed("search", fails)
    assert not pace.is_quick("search")
