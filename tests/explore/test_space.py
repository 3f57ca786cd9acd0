"""The shared pass finds the exact neighbours, and lists are those that the service gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.explore.doctor import examine
from recsys.explore.space import K, Space, spread
from recsys.recommender import Recommender


def far_apart(vectors):
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    apart = np.linalg.norm(unit[:, None].astype(np.float64) - unit[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    return apart


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.integers(1, 8), st.integers(0, 99))
def test_neighbours_have_a_twin_that_looks_at_every_pair(items, dimension, seed):
    vectors = np.random.default_rng(seed).normal(size=(items, dimension)).astype(np.float32)
    near = Space.made(vectors).neighbours
    apart = far_apart(vectors)
    k = min(K, items - 1)
    assert near.rows.shape == (items, k)
    assert (near.rows != np.arange(items)[:, None]).all()
    assert all(len(set(row)) == k for row in near.rows.tolist())
    np.testing.assert_allclose(near.distances, np.sort(apart, axis=1)[:, :k], atol=2e-3)
    np.testing.assert_allclose(near.distances, np.take_along_axis(apart, near.rows, 1), atol=1e-5)


def test_more_equal_vectors_than_neighbours_are_neighbours_of_each_other_and_never_of_themselves():
    vectors = np.concatenate([np.ones((3 * K, 4)), -np.ones((3, 4))])
    near = Space.made(vectors).neighbours
    assert (near.rows[: 3 * K] < 3 * K).all()
    assert (near.rows != np.arange(len(vectors))[:, None]).all()
    assert near.distances[0].tolist() == [0.0] * K


def test_a_vector_of_length_0_is_nobodys_near_neighbour():
    near = Space.made(np.array([[1, 0], [0.9, 0.1], [0, 0]])).neighbours
    assert near.rows[0, 0] == 1
    assert np.isfinite(near.distances).all()


def test_lists_are_what_the_service_answers(toy_bundle):
    space = Space.of(toy_bundle)
    recommender = Recommender(toy_bundle)
    lists = space.lists
    assert lists.users.tolist() == list(range(80))
    for user, items in zip(lists.users[:20], lists.items, strict=False):
        answer = recommender.recommend(user_id=space.user_ids[user], k=10).items
        assert [space.ids[row] for row in items if row >= 0] == [item.item_id for item in answer]


def test_items_are_called_what_their_bundle_shows_else_their_id(toy_bundle, shop_bundle):
    space = Space.of(toy_bundle)
    assert space.titles[list(space.ids).index("i3")] == "Item number 3"
    assert space.frame(np.array([0]), figure=[7]).columns.tolist() == ["item_id", "title", "figure"]
    assert Space.of(shop_bundle).titles.tolist() == list(Space.of(shop_bundle).ids)  # it shows nothing


def test_spread_takes_both_ends():
    assert spread(np.arange(100), 3).tolist() == [0, 49, 99]
    assert spread(np.arange(2), 9).tolist() == [0, 1]
    assert spread(np.arange(0), 9).tolist() == []


def test_a_space_of_one_item_has_no_neighbours():
    assert Space.made(np.ones((1, 3))).neighbours.rows.shape == (1, 0)
    with pytest.raises(ValueError, match="has 1 items"):
        examine(Space.made(np.ones((1, 3))))
