"""Rates are kept to exactly, and no key gets more than the service gives."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.key_file import KeyLimits
from serve.limits import Bucket, Rate, limits_of, rate_of
from serve.schemas import Limits
from serve.settings import Settings


def test_a_bucket_gives_a_burst_and_then_its_rate() -> None:
    bucket = Bucket(Rate(2, 3), 100.0)
    assert [bucket.take(100.0) for _ in range(5)] == [0, 0, 0, 0.5, 0.5]
    assert bucket.take(100.25) == 0.25
    assert bucket.take(100.5) == 0
    assert bucket.take(100.5) == 0.5
    assert [bucket.take(1000.0) for _ in range(4)] == [0, 0, 0, 0.5]  # no more than a burst, however long the pause


def test_what_is_owed_is_waited_for() -> None:
    bucket = Bucket(Rate(10, 2), 0.0)
    assert bucket.take(0.0) == 0
    bucket.owe(4)
    assert bucket.take(0.0) == pytest.approx(0.4)
    assert bucket.take(0.35) > 0
    assert bucket.take(0.4) == 0


TIMES = st.lists(st.integers(0, 3000), min_size=1, max_size=60)  # milliseconds between requests


@given(TIMES, st.integers(1, 40), st.integers(1, 10))
def test_it_grants_what_its_exact_twin_grants(gaps: list[int], tenths: int, burst: int) -> None:
    bucket, now = Bucket(Rate(tenths / 10, burst), 0.0), 0
    tokens = Fraction(burst)
    for gap in gaps:
        now += gap
        tokens = min(Fraction(burst), tokens + Fraction(gap * tenths, 10_000))
        wait = bucket.take(now / 1000)
        if tokens >= 1:
            tokens -= 1
            assert wait == 0
        else:
            assert wait == pytest.approx(float((1 - tokens) / Fraction(tenths, 10)))


@given(TIMES, st.floats(0.01, 1000), st.integers(1, 10))
def test_who_waits_as_long_as_told_gets_through(gaps: list[int], rate: float, burst: int) -> None:
    bucket, now = Bucket(Rate(rate, burst), 0.0), 0.0
    for gap in gaps:
        now += gap / 1000
        if wait := bucket.take(now):
            now += wait
            assert bucket.take(now) == 0


@pytest.mark.parametrize(("per_second", "burst"), [(0, 1), (-1, 1), (float("nan"), 1), (float("inf"), 1), (1, 0.5)])
def test_a_rate_that_cannot_be_is_refused(per_second: float, burst: float) -> None:
    with pytest.raises(ValueError, match="more than 0 requests per second"):
        Rate(per_second, burst)


@pytest.mark.parametrize(
    ("key", "service", "rate"),
    [
        ({}, None, None),
        ({}, Rate(10, 20), Rate(10, 20)),
        ({"requests_per_second": 5.0}, None, Rate(5, 5)),
        ({"requests_per_second": 0.5}, None, Rate(0.5, 1)),
        ({"requests_per_second": 5.0, "burst": 7}, Rate(10, 20), Rate(5, 7)),
        ({"requests_per_second": 50.0, "burst": 70}, Rate(10, 20), Rate(10, 20)),
        ({"requests_per_second": 5.0, "burst": 70}, Rate(10, 20), Rate(5, 20)),
    ],
)
def test_a_keys_rate_is_at_most_the_services(key: dict, service: Rate | None, rate: Rate | None) -> None:
    assert rate_of(KeyLimits(**key), service) == rate


def test_a_share_of_a_rate_keeps_one_request() -> None:
    assert Rate(10, 20).shared(0.5) == Rate(5, 10)
    assert Rate(10, 2).shared(0.25) == Rate(2.5, 1)


def test_a_keys_limits_are_at_most_the_services_and_hold_nothing_else_of_its_settings() -> None:
    service = Settings(registry="r", max_k=100, max_history=10)
    said = limits_of(KeyLimits(max_k=50, max_history=20, max_body_bytes=500), service)
    assert type(said) is Limits
    assert said == Limits(max_k=50, max_history=10, max_exclude=service.max_exclude, max_body_bytes=500)
    assert hash(said) == hash(limits_of(KeyLimits(max_k=50, max_body_bytes=500), service))
    assert limits_of(KeyLimits(), Limits()) == Limits()
