"""What the gates compare, on vectors and lists whose figures are known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.bundle import Bundle
from recsys.ids import IdMap
from recsys.nightly import measures
from recsys.nightly.measures import Lists
from tests.toy import RING, USERS, ring_lengths


def test_effective_rank_of_even_spread_is_the_dimension():
    cross = np.concatenate([np.eye(5), -np.eye(5)])  # centred, five equal singular values
    assert measures.effective_rank(cross.astype(np.float32)) == pytest.approx(5)
    assert measures.effective_rank((cross + 100).astype(np.float32)) == pytest.approx(5)  # wherever it lies


def test_effective_rank_of_two_unequal_directions():
    # Singular values 3 and 1 times sqrt(2): shares 3/4 and 1/4.
    vectors = np.array([[3, 0, 0], [-3, 0, 0], [0, 1, 0], [0, -1, 0]], dtype=np.float32)
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert measures.effective_rank(vectors) == pytest.approx(expected)


def test_effective_rank_of_a_line_is_one_and_of_a_point_none():
    assert measures.effective_rank(np.outer([1.0, 2, 5], [1, 1, 1, 1]).astype(np.float32)) == pytest.approx(1)
    assert measures.effective_rank(np.full((9, 4), 2.5, dtype=np.float32)) == 0


def test_mean_cosine_is_that_of_all_pairs():
    # Angles 0, 90 and 180 degrees: cosines 0, −1, 0; lengths do not matter, and a vector without one is left out.
    vectors = np.array([[2, 0], [0, 7], [-1, 0], [0, 0]], dtype=np.float32)
    assert measures.mean_cosine(vectors) == pytest.approx(-1 / 3)
    assert measures.mean_cosine(np.ones((5, 3), dtype=np.float32)) == pytest.approx(1)
    assert measures.mean_cosine(np.ones((1, 3), dtype=np.float32)) == 0


@given(st.integers(2, 8), st.integers(1, 5), st.integers(0, 99))
def test_mean_cosine_has_a_twin_that_looks_at_every_pair(n, d, seed):
    vectors = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [float(unit[i] @ unit[j]) for i in range(n) for j in range(n) if i != j]
    assert measures.mean_cosine(vectors) == pytest.approx(np.mean(pairs), abs=1e-5)


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
