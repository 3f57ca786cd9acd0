"""Vectors that follow the hour, on logs whose answers are worked out by hand; nothing at or after a query counts."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from recsys.data.dataset import Dataset
from recsys.data.split import Queries
from recsys.trends.log import HOUR, Clicks, opens_session, pairs_of
from recsys.trends.model import PARTS, POPULARITIES, STATES, Trends, Weights
from recsys.trends.moment import COUNTED, Settings, exact, truncated

MINUTE = 60_000
Log = Callable[..., Dataset]


@pytest.fixture
def log(toy: Log) -> Log:
    """A dataset of histories of (minute, item)."""

    def make(histories: list[list[tuple[float, int]]], num_items: int) -> Dataset:
        made = toy([[item for _, item in history] for history in histories], num_items)
        minutes = [minute for history in histories for minute, _ in history]
        return replace(made, times=np.array([round(minute * MINUTE) for minute in minutes], dtype=np.int64))

    return make


def random_log(log: Log, seed: int = 0, users: int = 60) -> Dataset:
    """Users who click on three of thirty items about a day after the log began, those of one taste together."""
    rng = np.random.default_rng(seed)
    histories = []
    for user in range(users):
        minutes = 1440 + np.sort(rng.uniform(0, 300, 5))
        histories.append([(minute, int(rng.integers(10) * 3 + user % 3)) for minute in minutes])
    return log(histories, 30)


def last_of_each(data: Dataset) -> Queries:
    """A query for each user's last interaction."""
    end = np.asarray(data.user_offsets)[1:] - 1
    return Queries(np.arange(data.num_users), end, np.arange(data.num_users + 1), np.asarray(data.items)[end])


def weights(*, popularity: float = 0.0, following: float = 0.0, before: float = 0.0, near: float = 0.0) -> Weights:
    """Of the count of the last quarter of an hour, of what follows the newest item and those before it, and of what
    the same users take; the same for everybody."""
    of = np.zeros((STATES, PARTS))
    of[:, COUNTED.index(("any", 0.25))] = popularity
    of[:, POPULARITIES:-1] = before
    of[:, POPULARITIES] = following
    of[:, -1] = near
    return Weights(of)


def test_a_session_opens_with_the_first_interaction_and_after_a_pause(log):
    data = log([[(0, 0), (30, 1), (60.1, 2)], [(61, 0)]], 3)
    assert opens_session(data).tolist() == [True, False, True, True]


def test_pairs_are_of_one_user_within_reach_and_time_and_fade(log):
    data = log([[(0, 0), (10, 1), (20, 2), (300, 3), (301, 3)], [(5, 2)]], 4)
    pairs = pairs_of(data, reach=2, within=HOUR, fading=0.5)
    found = zip(pairs.earlier, pairs.later, pairs.times // MINUTE, pairs.weights, strict=True)
    assert sorted(found) == [(0, 1, 10, 1.0), (0, 2, 20, 0.5), (1, 2, 20, 1.0)]


def test_a_user_is_in_the_state_of_how_long_ago_the_newest_interaction_was(log):
    apart = [0.75, 0.76, 3, 3.1, 30, 30.1, 240, 241, 1200, 1201]  # minutes
    data = log([[(60, 0), (60 + minutes, 1)] for minutes in apart], 2)
    state, _, _ = Trends(data).user_parts(Trends(data).at(61 * MINUTE), last_of_each(data))
    assert state.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]


def test_what_happens_at_a_moment_is_not_known_at_it(log):
    data = log([[(60, 0), (70, 1)], [(70, 2)], [(71, 3)]], 4)
    clicks, pairs = Clicks.of(data), pairs_of(data, reach=1, within=HOUR, fading=1)
    assert clicks.between(0, 70 * MINUTE).items.tolist() == [0]
    assert len(pairs.between(0, 70 * MINUTE).times) == 0
    assert pairs.between(0, 70 * MINUTE + 1).later.tolist() == [1]
    made = Trends(data).at(70 * MINUTE)
    assert made.rows.tolist() == [0]


def test_counts_are_of_the_hours_and_sessions_that_they_name(log):
    # At minute 100: item 0 was taken at 0, 95 and 96, the last within a session; item 1 at 50.
    data = log([[(0, 0)], [(94, 2), (96, 0)], [(95, 0)], [(50, 1)]], 3)
    made = Trends(data).at(100 * MINUTE)
    counts = np.exp(made.popularity[:, :-1]) - 0.3
    expected = {
        ("any", 1 / 12): [2, 0, 0],  # minute 95 and after
        ("any", 0.25): [2, 0, 1],
        ("any", 1.0): [2, 1, 1],
        ("any", 4.0): [3, 1, 1],
        ("opening", 0.25): [1, 0, 1],
        ("following", 0.25): [1, 0, 0],
        ("following", 1.0): [1, 0, 0],
    }
    for name, said in expected.items():
        assert counts[:, COUNTED.index(name)] == pytest.approx(said, abs=1e-5), name
    assert made.popularity[:, -1] == pytest.approx(np.log(np.array([100, 50, 6]) / 60 + 0.02), abs=1e-5)


def test_what_follows_is_a_surprise_over_its_popularity(log):
    # After item 0, item 1 came once, at minute 30; within the hour before minute 60 each was taken once, item 2 twice.
    data = log([[(29, 0), (30, 1)], [(31, 2)], [(32, 2)]], 3)
    settings = Settings(prior=2, fades=(1.0,))
    made = Trends(data, settings=settings, factored=exact).at(60 * MINUTE)
    share = (1 + 0.3) / (4 + 3 * 0.3)
    surprise = made.next_from @ made.next_to.T
    assert surprise[0, 1] == pytest.approx(np.log1p(np.exp(-0.5) / (2 * share)), rel=1e-5)
    assert np.count_nonzero(surprise) == 1


def test_an_answer_does_not_change_when_the_future_does(log):
    data = random_log(log)
    asked = last_of_each(data)
    when = np.asarray(data.times)[asked.end]
    later = int(np.argsort(when)[len(when) // 2])  # a query in the middle of the log
    one = asked.take(np.array([later]))
    moment = when[later]
    items = np.asarray(data.items).copy()
    unknown = np.asarray(data.times) >= moment
    assert 20 < unknown.sum() < 200
    items[unknown] = np.random.default_rng(1).integers(0, 30, unknown.sum())
    items[one.end] = 29 - items[one.end]
    changed = replace(data, items=items)
    told = weights(popularity=1, following=1, near=1)
    before = Trends(data, minutes=1 / 60_000, near_minutes=1 / 60_000).lists(
        one, told, 10
    )  # a moment of a millisecond: right at the query
    after = Trends(changed, minutes=1 / 60_000, near_minutes=1 / 60_000).lists(one, told, 10)
    assert (before == after).all()
    assert (before >= 0).all()


def test_a_moment_is_the_last_turn_before_the_query(log):
    # Item 1 is taken at minute 61; at minute 69 that is only known where moments are made more often than by the hour.
    data = log([[(50, 0)], [(61, 1)], [(52, 2), (69, 0)]], 3)
    query = Queries(np.array([2]), np.array([3]), np.array([0, 1]), np.array([0]))
    told = weights(popularity=1)
    assert Trends(data, minutes=60).lists(query, told, 3).tolist() == [[0, -1, -1]]  # 2 was seen, 1 is not known
    assert sorted(Trends(data, minutes=5).lists(query, told, 3)[0].tolist()) == [-1, 0, 1]


@pytest.mark.parametrize("last", [2, 8])  # fewer items than have steps of their own, and more
def test_scores_are_inner_products_and_lists_are_in_their_order(log, last):
    data = random_log(log)
    trends = Trends(data, minutes=30, settings=Settings(last=last), factored=exact)
    asked, told = last_of_each(data), weights(popularity=0.7, following=1.3, before=0.6, near=0.4)
    lists = trends.lists(asked, told, 5)
    for made, some in trends.moments(asked):
        of = made.item_vectors
        for query, vector in zip(some, trends.user_vectors(made, asked.take(some), told), strict=True):
            start, end = data.user_offsets[asked.user[query]], asked.end[query]
            history = np.asarray(data.items)[start:end]
            twin = {}
            for place, item in enumerate(made.rows):
                if item in history:
                    continue
                score = 0.7 * made.popularity[place, COUNTED.index(("any", 0.25))]
                for weight, newest in zip((1.3, 0.6, 0.6), made.places(history[::-1]), strict=False):
                    if newest >= 0:
                        score += weight * (made.next_from[newest] @ made.next_to[place])
                for back, known in enumerate(made.places(history[::-1][:last])):
                    if known >= 0:
                        score += 0.4 * 0.8**back * (made.near_from[known] @ made.near_to[place])
                twin[item] = score
                assert vector @ of[place] == pytest.approx(score, abs=1e-4)
            best = sorted(twin.values(), reverse=True)[:5]
            assert [twin[item] for item in lists[query] if item >= 0] == pytest.approx(best, abs=1e-4)


def test_a_truncated_matrix_of_full_rank_is_the_exact_one(log):
    data = random_log(log)
    when = int(np.asarray(data.times).max()) + 1
    near, twin = (Trends(data, factored=made, near_minutes=1).at(when) for made in (truncated, exact))
    for of, to in (("next_from", "next_to"), ("near_from", "near_to")):
        close = getattr(near, of) @ getattr(near, to).T
        assert close == pytest.approx(getattr(twin, of) @ getattr(twin, to).T, abs=1e-4)
        assert abs(close).max() > 0.1


def test_fitting_finds_what_users_follow(log):
    # Whoever took item i takes i + 1 (of ten) a minute later, whatever is popular.
    rng = np.random.default_rng(0)
    histories = []
    for _ in range(400):
        minute, item = rng.uniform(1500, 2100), int(rng.integers(10))
        histories.append([(minute, item), (minute + 1, (item + 1) % 10)])
    data = log(histories, 10)
    trends, asked = Trends(data), last_of_each(data)
    late = asked.take(np.flatnonzero(np.asarray(data.times)[asked.end] > 1800 * MINUTE))
    told = trends.fitted(late, candidates=10)
    assert told.of[1, POPULARITIES] > 0.3  # of those who come back after a minute
    assert (trends.lists(late, told, 1)[:, 0] == late.targets).mean() > 0.95
    blind = weights(popularity=1)
    assert (trends.lists(late, blind, 1)[:, 0] == late.targets).mean() < 0.4


def test_what_cannot_be_used_is_refused(log):
    data = random_log(log)
    with pytest.raises(ValueError, match="minutes is 0"):
        Trends(data, minutes=0)
    with pytest.raises(ValueError, match="near_minutes is -1"):
        Trends(data, near_minutes=-1)
    with pytest.raises(ValueError, match="has no times"):
        Trends(replace(data, times=None))
    with pytest.raises(ValueError, match="none of 60 queries"):
        Trends(data).fitted(last_of_each(data), candidates=31)
