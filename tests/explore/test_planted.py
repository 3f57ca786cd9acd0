"""Every finder finds what was planted, and does it better than what one would write first."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.explore import scores
from recsys.data.planted import planted
from recsys.explore.space import Space


@pytest.fixture(scope="module", params=[0, 1], ids=["seed 0", "seed 1"])
def found(request):
    """Scores by finder: ours first, then the naive ones."""
    made = planted(4000, 64, unused=4, users=500, seed=request.param)
    by: dict[str, list] = {}
    for one in scores(made, Space.made(made.vectors, **made.known), request.param):
        by.setdefault(one.finder, []).append(one)
    return by


@pytest.mark.parametrize(
    ("finder", "precision", "recall"),
    [
        ("duplicates", 0.97, 0.97),
        ("outliers", 0.8, 0.95),
        ("clusters", 0.95, 0.95),
        ("collapsed dimensions", 1.0, 1.0),
        ("missing genre", 0.95, 0.95),
        ("moved items", 0.95, 0.95),
    ],
)
def test_what_was_planted_is_found(found, finder, precision, recall):
    ours, *naive = found[finder]
    assert ours.planted > 3
    assert ours.precision >= precision
    assert ours.recall >= recall
    assert naive
    assert all(min(one.precision, one.recall) < min(ours.precision, ours.recall) for one in naive)


def test_a_catalogue_without_anything_planted_has_next_to_nothing_to_find():
    made = planted(4000, 64, copies=0, outliers=0)
    found = scores(made, Space.made(made.vectors, **made.known))
    duplicates, outliers = (next(one for one in found if one.finder == name) for name in ("duplicates", "outliers"))
    assert duplicates.found <= 4  # one is expected by the law that the threshold is chosen by
    assert outliers.found <= 20


def test_equal_arguments_plant_equal_catalogues_and_truth_says_what_it_means():
    one, two = planted(500, 16, seed=3), planted(500, 16, seed=3)
    np.testing.assert_array_equal(one.vectors, two.vectors)
    copies = np.flatnonzero(one.copy_of >= 0)
    assert len(copies) == 10
    unit = one.vectors / np.linalg.norm(one.vectors, axis=1, keepdims=True)
    assert (np.einsum("nd,nd->n", unit[copies], unit[one.copy_of[copies]]) > 0.99).all()
    assert (one.cluster[copies] == one.cluster[one.copy_of[copies]]).all()
    assert one.duplicate.sum() == len(set(copies) | set(one.copy_of[copies]))
    assert replace(one, copy_of=np.full(500, -1)).duplicate.sum() == 0
