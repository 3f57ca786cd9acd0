import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.data.split import (
    Cuts,
    GivenSplit,
    LeaveOneOut,
    TimeSplit,
    described,
    in_training,
    queries_of,
    split_of,
    train_counts,
)

#        u: a1 b3 c5 d9        v: b2 c8        w: d7
ROWS = [("u", "a", 1), ("v", "b", 2), ("u", "b", 3), ("u", "c", 5), ("w", "d", 7), ("v", "c", 8), ("u", "d", 9)]


@pytest.fixture
def dataset(prepared):
    return prepared(ROWS)


def asked(dataset, cuts, part):
    """The queries in words: (user, history, right answers)."""
    queries = queries_of(dataset, cuts, part)
    items = dataset.item_ids.ids(dataset.items)
    return [
        (
            dataset.user_ids.id(user),
            "".join(items[dataset.user_offsets[user] : end]),
            "".join(dataset.item_ids.ids(queries.targets[queries.target_offsets[q] : queries.target_offsets[q + 1]])),
        )
        for q, (user, end) in enumerate(zip(queries.user, queries.end, strict=True))
    ]


@pytest.mark.parametrize(
    "split",
    [
        TimeSplit(validation=2 / 7, test=2 / 7),
        TimeSplit(validation="1970-01-01T00:00:05", test="1970-01-01T00:00:08Z"),
        TimeSplit(validation="1970-01-01T00:00:05", test=2 / 7),
        TimeSplit(validation=2 / 7, test="1970-01-01T00:00:08"),
    ],
)
def test_a_cut_in_time_is_the_same_moment_for_everyone(dataset, split):
    cuts = split.cut(dataset)
    assert in_training(dataset, cuts).tolist() == [True, True, False, False, True, False, False]
    assert asked(dataset, cuts, "validation") == [("u", "ab", "c")]  # w has nothing before d
    assert asked(dataset, cuts, "test") == [("u", "abc", "d"), ("v", "b", "c")]
    assert train_counts(dataset, cuts).tolist() == [1, 2, 0, 0]


def test_users_who_arrive_after_the_cut_are_asked_from_their_second_interaction_on(prepared):
    dataset = prepared([("old", "a", 1), ("new", "a", 7), ("new", "b", 8), ("new", "c", 9)])
    cuts = TimeSplit(validation=0.0, test="1970-01-01T00:00:05").cut(dataset)
    assert asked(dataset, cuts, "test") == [("new", "a", "b"), ("new", "ab", "c")]


def test_leave_one_out_takes_the_last_for_test_and_the_one_before_for_validation(dataset):
    cuts = LeaveOneOut().cut(dataset)
    assert asked(dataset, cuts, "test") == [("u", "abc", "d")]
    assert asked(dataset, cuts, "validation") == [("u", "ab", "c")]
    assert in_training(dataset, cuts).sum() == 5
    assert in_training(dataset, LeaveOneOut(min_history=3).cut(dataset)).all()


@pytest.mark.parametrize(
    ("grouped", "expected"),
    [(True, [("u", "ab", "cd")]), (False, [("u", "ab", "c"), ("u", "abc", "d")])],
)
def test_a_given_split_asks_for_sets_or_for_one_after_the_other(prepared, grouped, expected):
    rows = [("u", "a", "train"), ("u", "c", "test"), ("u", "b", "train"), ("v", "c", "test"), ("u", "d", "test")]
    declared = {"user": "user", "item": "item", "part": "part"}
    dataset = prepared(rows, ("user", "item", "part"), declared)
    cuts = GivenSplit(grouped=grouped).cut(dataset)
    assert asked(dataset, cuts, "test") == expected
    assert asked(dataset, cuts, "validation") == []


def test_a_split_that_the_log_cannot_give_is_refused(prepared, dataset):
    timeless = prepared([("u", "a")], ("user", "item"), {"user": "user", "item": "item"})
    with pytest.raises(ValueError, match="has no times to cut at"):
        TimeSplit().cut(timeless)
    with pytest.raises(ValueError, match=r"says no split; declare interactions\.part"):
        GivenSplit().cut(dataset)
    with pytest.raises(ValueError, match=r"validation 0.5 and test 0.5 leave nothing"):
        TimeSplit(0.5, 0.5).cut(dataset)
    with pytest.raises(ValueError, match="validation starts at 1970-01-02, after test at 1970-01-01; swap them"):
        TimeSplit("1970-01-02", "1970-01-01").cut(dataset)


def test_taken_queries_keep_their_targets(dataset):
    cuts = Cuts(np.array([1, 5, 6]), np.array([1, 5, 6]), grouped=True)
    queries = queries_of(dataset, cuts, "test")
    taken = queries.take(np.array([1, 0]))
    assert len(taken) == 2
    assert taken.user.tolist() == queries.user[::-1].tolist()
    assert np.split(taken.targets, taken.target_offsets[1:-1])[1].tolist() == [1, 2, 3]


HOUR = 3600
#        three days by the hour: at 0, 23, 24, 25, 47, 48, 49, 71 and 72 hours
HOURS = [(f"u{place % 2}", f"i{hour}", hour * HOUR) for place, hour in enumerate((0, 23, 24, 25, 47, 48, 49, 71, 72))]


def periods(dataset, split):
    """The hours in training, validation and test, in words."""
    cuts = split.cut(dataset)
    place = np.arange(len(dataset))
    lengths = np.diff(dataset.user_offsets)
    after = (place >= np.repeat(cuts.validation_start, lengths)) + 0 + (place >= np.repeat(cuts.test_start, lengths))
    hours = np.asarray(dataset.times) // (HOUR * 1000)
    return [sorted(hours[after == part].tolist()) for part in (0, 1, 2)]


@pytest.mark.parametrize(
    ("validation", "test", "expected"),
    [
        # An interaction exactly a span before the newest is no longer in it: 48 h before 72 h, and 24 h before 48 h.
        ("1d", "1d", [[0, 23, 24], [25, 47, 48], [49, 71, 72]]),
        ("24h", "24h", [[0, 23, 24], [25, 47, 48], [49, 71, 72]]),
        ("25h", "1d", [[0, 23], [24, 25, 47, 48], [49, 71, 72]]),
        ("1h", "25h", [[0, 23, 24, 25], [47], [48, 49, 71, 72]]),
        ("22h", "25h", [[0, 23, 24, 25], [47], [48, 49, 71, 72]]),
        ("23h", "24h", [[0, 23, 24, 25], [47, 48], [49, 71, 72]]),
        ("0d", "1d", [[0, 23, 24, 25, 47, 48], [], [49, 71, 72]]),
        ("1d", "0d", [[0, 23, 24, 25, 47, 48], [49, 71, 72], []]),
        # Beside a moment and a share, whose first interaction (49 h) is where validation ends.
        ("1h", "1970-01-03T01:00", [[0, 23, 24, 25, 47], [48], [49, 71, 72]]),
        ("2h", "1970-01-03T01:00", [[0, 23, 24, 25], [47, 48], [49, 71, 72]]),
        ("23h", "25h", [[0, 23, 24], [25, 47], [48, 49, 71, 72]]),
        ("1h", 3 / 9, [[0, 23, 24, 25, 47], [48], [49, 71, 72]]),
        (3 / 9, "1d", [[0, 23, 24], [25, 47, 48], [49, 71, 72]]),
        ("1970-01-02T01:00", "1d", [[0, 23, 24], [25, 47, 48], [49, 71, 72]]),
    ],
)
def test_a_span_counts_back_from_the_newest_interaction_to_the_millisecond(prepared, validation, test, expected):
    split = TimeSplit(validation, test)
    assert split_of(described(split)) == split
    assert periods(prepared(HOURS), split) == expected


def test_a_day_of_a_log_that_knows_only_days_is_one_day(prepared):
    days = [("u", f"i{day}", f"1970-01-0{day}") for day in (1, 2, 3, 4)]
    declared = {"user": "user", "item": "item", "time": "time", "unit": "iso"}
    dataset = prepared(days, declared=declared)
    assert [[hour // 24 + 1 for hour in part] for part in periods(dataset, TimeSplit("1d", "1d"))] == [[1, 2], [3], [4]]
    assert [[hour // 24 + 1 for hour in part] for part in periods(dataset, TimeSplit("2d", "1d"))] == [[1], [2, 3], [4]]


@pytest.mark.parametrize("said", ["1", "7 d", "-1d", "1.5d", "1m", "d", "tomorrow", "", "1D", "\u0661d", "2026-13-01"])
def test_what_is_neither_span_nor_moment_is_refused_by_name(said):
    with pytest.raises(ValueError, match=re.escape(f"test cannot be {said!r}; give a share")) as error:
        TimeSplit(0.1, said)
    assert "a span counted back ('36h', '7d', '2w') or the ISO 8601 moment" in str(error.value)
    with pytest.raises(ValueError, match=re.escape(f"validation cannot be {said!r}; give a share")):
        TimeSplit(said, "1d")


def test_spans_that_leave_nothing_to_train_on_are_refused(prepared):
    dataset = prepared(HOURS)
    assert periods(dataset, TimeSplit("2d", "1d"))[0] == [0]
    with pytest.raises(ValueError, match=r"validation 3d and test 0\.1 reach back .* nothing to train on; shorten 3d"):
        TimeSplit("3d", 0.1).cut(dataset)
    with pytest.raises(ValueError, match="shorten 1w and 1d"):
        TimeSplit("1w", "1d").cut(dataset)


LOG = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=25, unique=True)


@given(LOG, st.floats(0, 0.45), st.floats(0, 0.45))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_nothing_is_learnt_from_the_future_and_everything_after_the_cut_is_asked(prepared, log, validation, test):
    dataset = prepared(log)
    cuts = TimeSplit(validation, test).cut(dataset)
    training, times = in_training(dataset, cuts), np.asarray(dataset.times)
    held_out = [queries_of(dataset, cuts, part) for part in ("validation", "test")]
    assert times[training].max(initial=-1) < times[~training].min(initial=10_000)
    assert times[held_out[0].end].max(initial=-1) < times[held_out[1].end].min(initial=10_000)
    asked_at = np.sort(np.concatenate([queries.end for queries in held_out]))
    first = np.isin(np.arange(len(dataset)), dataset.user_offsets[:-1])
    assert asked_at.tolist() == np.flatnonzero(~training & ~first).tolist()
    for queries in held_out:
        assert queries.targets.tolist() == dataset.items[queries.end].tolist()
