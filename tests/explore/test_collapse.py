"""How vectors fill their space, on vectors whose figures are known by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.explore.collapse import collapse, effective_rank, mean_cosine
from recsys.explore.space import Space


def test_effective_rank_of_even_spread_is_the_dimension():
    cross = np.concatenate([np.eye(5), -np.eye(5)])  # centred, five equal singular values
    assert effective_rank(cross.astype(np.float32)) == pytest.approx(5)
    assert effective_rank((cross + 100).astype(np.float32)) == pytest.approx(5)  # wherever it lies


def test_effective_rank_of_two_unequal_directions():
    # Singular values 3 and 1 times sqrt(2): shares 3/4 and 1/4.
    vectors = np.array([[3, 0, 0], [-3, 0, 0], [0, 1, 0], [0, -1, 0]], dtype=np.float32)
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(vectors) == pytest.approx(expected)


def test_effective_rank_of_a_line_is_one_and_of_a_point_none():
    assert effective_rank(np.outer([1.0, 2, 5], [1, 1, 1, 1]).astype(np.float32)) == pytest.approx(1)
    assert effective_rank(np.full((9, 4), 2.5, dtype=np.float32)) == 0


def test_mean_cosine_is_that_of_all_pairs():
    # Angles 0, 90 and 180 degrees: cosines 0, −1, 0; lengths do not matter, and a vector without one is left out.
    vectors = np.array([[2, 0], [0, 7], [-1, 0], [0, 0]], dtype=np.float32)
    assert mean_cosine(vectors) == pytest.approx(-1 / 3)
    assert mean_cosine(np.ones((5, 3), dtype=np.float32)) == pytest.approx(1)
    assert mean_cosine(np.ones((1, 3), dtype=np.float32)) == 0


@given(st.integers(2, 8), st.integers(1, 5), st.integers(0, 99))
def test_mean_cosine_has_a_twin_that_looks_at_every_pair(n, d, seed):
    vectors = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [float(unit[i] @ unit[j]) for i in range(n) for j in range(n) if i != j]
    assert mean_cosine(vectors) == pytest.approx(np.mean(pairs), abs=1e-5)


def test_uniformity_and_alignment_are_what_their_definitions_say():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(40, 6))
    offsets, history = np.array([0, 3, 3, 5]), np.array([1, 2, 3, 7, 9])
    found = collapse(Space.made(vectors, user_offsets=offsets, history=history))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    squares = ((unit[:, None] - unit[None]) ** 2).sum(2)[~np.eye(40, dtype=bool)]
    assert found.uniformity == pytest.approx(np.log(np.exp(-2 * squares).mean()), abs=0.02)
    # Only within a user: 1 → 2, 2 → 3, 7 → 9.
    assert found.alignment == pytest.approx(
        np.mean([((unit[a] - unit[b]) ** 2).sum() for a, b in [(1, 2), (2, 3), (7, 9)]])
    )


def test_what_fills_the_sphere_evenly_has_the_ideal_uniformity():
    for size in (2, 3, 64):
        found = collapse(Space.made(np.random.default_rng(0).normal(size=(5000, size))))
        assert found.uniformity == pytest.approx(found.ideal, abs=0.02)
        assert found.rank_share > 0.99
        assert found.unused == 0


def test_a_dimension_and_a_direction_without_variance_are_named():
    vectors = np.random.default_rng(0).normal(size=(500, 8))
    vectors[:, 3] = 5.0  # the same everywhere
    vectors[:, 6] = vectors[:, 2]  # says nothing new, and yet varies
    found = collapse(Space.made(vectors))
    assert found.dimensions.index[found.dimensions["unused"]].tolist() == [3]
    assert found.unused == 2
    assert found.alignment is None
    assert found.coherence is None


def test_histories_that_follow_the_vectors_cohere_and_shuffled_ones_do_not():
    random = np.random.default_rng(0)
    centres = random.normal(size=(20, 16))
    of = np.arange(1000) % 20
    vectors = centres[of] + 0.3 * random.normal(size=(1000, 16))
    history = np.concatenate([random.choice(np.flatnonzero(of == user % 20), 10) for user in range(300)])
    offsets = np.arange(0, 3001, 10)
    right = collapse(Space.made(vectors, user_offsets=offsets, history=history))
    wrong = collapse(Space.made(vectors, user_offsets=offsets, history=random.permutation(1000)[history]))
    assert right.coherence > 0.8
    assert abs(wrong.coherence) < 0.05
