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


