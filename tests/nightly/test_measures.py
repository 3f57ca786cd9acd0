"""What the gates compare, on vectors and lists whose figures are known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from recsys.bundle import Bundle
from recsys.ids import IdMap
from recsys.nightly import measures
from recsys.nightly.measures import Lists
from tests.toy import RING, USERS, ring_lengths


def test_duplicates_are_equal_in_every_bit():
    rows = np.array([[1, 2], [1, 2], [1, 2], [1, np.nextafter(np.float32(2), np.float32(3))], [5, 6]], dtype=np.float32)
    assert measures.duplicates(rows) == 3 / 5
    assert measures.duplicates(rows[::2][:, ::-1]) == 2 / 3  # however it lies in memory
    assert measures.duplicates(rows[:0]) == 0


def test_length_spread_is_the_longest_over_the_median():
    assert measures.length_spread(np.array([[3, 4], [5, 0], [0, 50]], dtype=np.float32)) == 10
    assert measures.length_spread(np.zeros((3, 2), dtype=np.float32)) == math.inf


def test_the_same_lists_overlap_whole_and_reversed_ones_too():
    before = Lists("a", ["u", "v", "w"], [["x", "y"], ["x", "z"], []], [[2.0, 1.0], [2.0, 1.0], []])
    after = Lists("b", ["u", "v", "w"], [["y", "x"], ["q", "z"], []], [[4.0, 2.0], [4.0, 2.0], []])
    assert measures.overlaps(before, after).tolist() == [1.0, 0.5]  # nobody's list is empty in both
    found = measures.shift(before, after)
    assert (found.users, found.overlap, found.score_ratio) == (3, 0.75, 2.0)
    assert found.ks_distance == pytest.approx(0.5)  # at 1 ≤ x < 2 half of the old lie, none of the new


def test_a_longer_list_has_more_to_share():
    before, after = (Lists("a", ["u"], [items], [[1.0] * len(items)]) for items in (["x"], ["x", "y", "z", "q"]))
    assert measures.overlaps(before, after).tolist() == [0.25]
    assert measures.overlaps(after, before).tolist() == [0.25]


def test_negative_scores_have_a_size_too():
    before, after = (Lists("a", ["u"], [["x"]], [[score]]) for score in (-2.0, -1.0))
    assert measures.shift(before, after).score_ratio == 0.5


def test_ks_distance_by_hand():
    # At 2: 2 of 3 are no more, 1 of 4 is; nowhere is the gap wider than 5/12.
    assert measures.ks_distance(np.array([1.0, 2, 5]), np.array([2.0, 3, 4, 6])) == pytest.approx(2 / 3 - 1 / 4)
    assert measures.ks_distance(np.array([1.0, 1]), np.array([1.0])) == 0
    assert measures.ks_distance(np.array([1.0, 2]), np.array([3.0])) == 1


def test_nothing_recommended_shifts_nothing():
    none = Lists("a", ["u"], [[]], [[]])
    assert measures.shift(none, none) == measures.Shift(1, None, None, None)


def test_lists_of_other_users_are_refused():
    with pytest.raises(ValueError, match="not of the same users; ask both bundles for the same sample"):
        measures.shift(Lists("a", ["u"], [[]], [[]]), Lists("b", ["v"], [[]], [[]]))


def test_lists_are_what_the_service_would_answer(toy_bundle):
    found = measures.lists(toy_bundle, ["u3", "u0"], k=3)
    assert (found.bundle, found.users) == (toy_bundle.id, ["u3", "u0"])
    for user, items in zip((3, 0), found.items, strict=True):
        after = user + ring_lengths()[user]
        assert items[0] == f"i{after % RING}"
        assert not set(items) & {f"i{(user + step) % RING}" for step in range(ring_lengths()[user])}
    assert all(one == sorted(one, reverse=True) for one in found.scores)


def test_sampled_users_are_known_to_both_and_the_same_each_time(toy_bundle):
    everyone = [toy_bundle.user_ids.id(row) for row in range(USERS)]
    assert measures.sampled_users(toy_bundle) == everyone
    assert measures.sampled_users(toy_bundle, size=7) == measures.sampled_users(toy_bundle, size=7)
    assert measures.sampled_users(toy_bundle, size=7) != measures.sampled_users(toy_bundle, size=7, seed=1)
    # A live bundle that knew only every other user, in another order, one of them without a history.
    ids = everyone[::-2]
    offsets = np.concatenate([[0, 0], np.arange(1, len(ids))])
    live = replace(toy_bundle, user_ids=IdMap.of([*ids[1:], "gone"]), user_offsets=offsets)
    found = measures.sampled_users(toy_bundle, live)
    assert set(found) == set(ids[2:])
    assert found == sorted(found, key=everyone.index)
    assert len(measures.sampled_users(toy_bundle, live, size=5)) == 5


def test_a_user_whose_history_is_new_is_not_compared(toy_bundle: Bundle):
    offsets = toy_bundle.user_offsets.copy()
    offsets[1] = 0  # the first user has taken nothing
    fresh = replace(toy_bundle, user_offsets=offsets)
    assert toy_bundle.user_ids.id(0) not in measures.sampled_users(fresh, toy_bundle)
    assert len(measures.sampled_users(fresh, toy_bundle)) == USERS - 1
