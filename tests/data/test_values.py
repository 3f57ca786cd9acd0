import math
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.schema import Feature
from recsys.data.values import plain, to_feature, to_ids, to_millis, to_numbers

MOMENT = 1_000_000_000_123  # 2001-09-09T01:46:40.123Z
MOMENTS = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30))


def read(converted):
    state = zip(converted.values.to_pylist(), converted.missing.tolist(), converted.bad.tolist(), strict=True)
    return ["bad" if bad else "missing" if missing else value for value, missing, bad in state]


@pytest.mark.parametrize(
    ("column", "unit", "expected"),
    [
        (pa.array(["1000000000", " 7 ", "", "tomorrow", None]), "s", [10**12, 7000, "missing", "bad", "missing"]),
        (pa.array(["1000000000.123", "1e9", "nan", "inf", "0x10"]), "s", [MOMENT, 10**12, "bad", "bad", "bad"]),
        (pa.array([1_000_000_000_123, None, -5]), "ms", [MOMENT, "missing", -5]),
        (pa.array([1_000_000_000_123_456]), "us", [MOMENT]),
        (pa.array([1_000_000_000.123, math.nan, math.inf]), "s", [MOMENT, "missing", "bad"]),
        (pa.array([MOMENT]), "s", ["bad"]),  # milliseconds taken for seconds: after the year 9999
        (pa.array([10**18]), "ms", ["bad"]),
        (pa.array([MOMENT], pa.timestamp("ms")), "s", [MOMENT]),
        (pa.array([MOMENT * 1_000_000], pa.timestamp("ns", "Europe/Berlin")), "iso", [MOMENT]),
        (pa.array([0, 1], pa.date32()), "s", [0, 86_400_000]),
        (pa.array(["2001-09-09T01:46:40.123Z", "2001-09-09 03:46:40.123+02:00"]), "iso", [MOMENT, MOMENT]),
        (pa.array(["2001-09-09T01:46:40.123456789", "1970-01-02"]), "iso", [MOMENT, 86_400_000]),
        (pa.array(["now", "today", "2001-02-30", "9.9.2001", " "]), "iso", ["bad", "bad", "bad", "bad", "missing"]),
        (pa.array([5]), "iso", ["bad"]),
        (pa.array([True]), "s", ["bad"]),
        (pa.array([], pa.string()), "iso", []),
        (pa.nulls(2), "s", ["missing", "missing"]),
    ],
)
def test_times_become_milliseconds(column, unit, expected):
    assert read(to_millis(plain(column), unit)) == expected


@given(st.lists(MOMENTS))
def test_iso_text_is_read_as_python_reads_it(moments):
    column = pa.array([moment.isoformat() for moment in moments], pa.string())
    expected = [math.floor((moment - datetime(1970, 1, 1)).total_seconds() * 1000 + 1e-4) for moment in moments]
    assert read(to_millis(column, "iso")) == pytest.approx(expected, abs=1)


@given(st.lists(MOMENTS))
def test_seconds_as_text_and_as_numbers_agree(moments):
    seconds = [int(moment.replace(tzinfo=UTC).timestamp()) for moment in moments]
    expected = [second * 1000 for second in seconds]
    assert read(to_millis(pa.array([str(second) for second in seconds], pa.string()), "s")) == expected
    assert read(to_millis(pa.array(seconds, pa.int64()), "s")) == expected
    assert read(to_millis(pa.array(seconds, pa.float64()), "s")) == expected


@given(st.lists(st.one_of(st.none(), st.text(), st.floats().map(str), st.integers().map(str))))
def test_numbers_are_read_from_any_text_without_a_crash(texts):
    converted = to_numbers(pa.array([text and text.encode(errors="replace").decode() for text in texts], pa.string()))
    for text, value in zip(texts, read(converted), strict=True):
        if isinstance(value, float):
            assert value == float(text)
        elif value == "missing":
            assert text is None or not text.strip()


@pytest.mark.parametrize(
    ("column", "integer", "expected"),
    [
        (pa.array(["007", "7", "", None, "\u3000 "]), False, ["007", "7", "missing", "missing", "missing"]),
        (pa.array([" a ", "a\nb"]), False, [" a ", "bad"]),
        (pa.array(["7", "007", "7.0", "x"]), True, [7, 7, "bad", "bad"]),
        (pa.array([7, None]), False, ["7", "missing"]),
        (pa.array([7.0, math.nan, 7.5]), True, [7, "missing", "bad"]),
        (pa.array([7.0, None]), False, ["7", "missing"]),
        (pa.array([2**64 - 1, 1], pa.uint64()), True, ["bad", 1]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), False, ["b", "a", "b"]),
        (pa.array(["b"], pa.large_string()), False, ["b"]),
        (pa.array([b"b"]), False, ["b"]),
    ],
)
def test_ids_keep_their_letters(column, integer, expected):
    assert read(to_ids(plain(column), integer)) == expected


@pytest.mark.parametrize(
    ("kind", "column", "expected"),
    [
        ("categorical", pa.array([" red ", "", None]), ["red", "missing", "missing"]),
        ("categorical", pa.array([3.0, math.nan]), ["3", "missing"]),
        ("categorical", pa.array([3.5, 1.0]), ["3.5", "1"]),
        ("categorical", pa.array([True, None]), ["true", "missing"]),
        ("categorical", pa.array([[1]]), ["bad"]),
        ("numeric", pa.array(["1.5", "cheap", ""]), [1.5, "bad", "missing"]),
        ("numeric", pa.array([1, None]), [1.0, "missing"]),
        ("numeric", pa.array([math.inf, math.nan]), ["bad", "missing"]),
        ("multi", pa.array(["a|b", " a | |", "", None]), [["a", "b"], ["a"], "missing", "missing"]),
        ("multi", pa.array([["a", None], [], None]), [["a"], "missing", "missing"]),
        ("multi", pa.array([[1, 2]], pa.large_list(pa.int64())), [["1", "2"]]),
        ("timestamp", pa.array(["1", "x"]), [1000, "bad"]),
        ("vector", pa.array(["[1, 2.5]", "1 2", "", "[1, x]"]), [[1.0, 2.5], [1.0, 2.0], "missing", "bad"]),
        ("vector", pa.array([[1.0, 2.0], None], pa.list_(pa.float64(), 2)), [[1.0, 2.0], "missing"]),
        ("vector", pa.array([[1.0, math.nan]]), ["bad"]),
    ],
)
def test_features_become_what_the_dataset_promises(kind, column, expected):
    assert read(to_feature(plain(column), Feature("f", kind))) == expected
