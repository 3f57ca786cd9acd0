"""Drift between two spaces: what is the same but for rotation and order has none, and what moved is named."""

import numpy as np
import pytest

from recsys.explore.drift import drift
from recsys.explore.space import Space


def spaces(moved=(), seed=0, order=True):
    """A space of 300 items and 40 users; and the same rotated, in another order of rows, with some items moved."""
    random = np.random.default_rng(seed)
    vectors, users = random.normal(size=(300, 8)), random.normal(size=(40, 8)).astype(np.float32)
    ids = np.array([f"i{row}" for row in range(300)], dtype=object)
    known = {"user_offsets": np.arange(41), "history": random.integers(300, size=40)}
    old = Space.made(vectors, ids=ids, titles=ids, user_vectors=users, user_ids=np.arange(40), name="old", **known)
    rotation = np.linalg.qr(random.normal(size=(8, 8)))[0]
    after = vectors.copy()
    after[list(moved)] = random.normal(size=(len(moved), 8))
    rows = random.permutation(300) if order else np.arange(300)
    place = np.argsort(rows)
    new = Space.made(
        (after @ rotation)[rows], ids=ids[rows], titles=ids[rows], user_vectors=(users @ rotation).astype(np.float32),
        user_ids=np.arange(40), name="new", user_offsets=np.arange(41), history=place[known["history"]],
    )  # fmt: skip
    return old, new


def test_a_rotation_and_another_order_of_rows_is_no_drift():
    found = drift(*spaces())
    assert found.churn == 0
    assert found.list_churn == 0
    assert found.centroid == pytest.approx(0, abs=1e-5)
    assert found.length == pytest.approx(1)
    assert found.retitled == 0
    assert found.items["cosine"].min() > 0.9999
    assert found.comparison.meaning == "the same once rotated"


def test_what_moved_comes_first():
    found = drift(*spaces(moved=range(5)))
    assert set(found.items["title"].head(5)) == {f"i{row}" for row in range(5)}
    assert found.items["churn"].head(5).min() > found.items["churn"].iloc[5:].max()
    assert 0 < found.list_churn < 0.5
    assert found.users["churn"].is_monotonic_decreasing
    assert found.users["churn"].iloc[0] > 0


def test_items_that_come_and_go_are_counted_and_no_churn_of_those_that_stay():
    old, new = spaces(order=False)
    fewer = Space.made(new.vectors[10:], ids=new.ids[10:], titles=new.titles[10:], name="fewer")
    found = drift(old, fewer)
    assert (found.added, found.removed) == (0, 10)
    assert len(found.items) == 290
    assert found.churn < 0.02  # only where more than six of an item's neighbours went
    assert found.list_churn is None
    back = drift(fewer, old)
    assert (back.added, back.removed) == (10, 0)


def test_ids_that_were_shuffled_carry_other_titles():
    old, new = spaces(order=False)
    shuffled = Space.made(new.vectors, ids=np.roll(new.ids, 7), titles=new.titles, name="shuffled")
    found = drift(old, shuffled)
    assert found.retitled == 1.0
    assert found.churn > 0.8


def test_strangers_have_nothing_to_compare():
    old, _ = spaces()
    with pytest.raises(ValueError, match="share 0 items"):
        drift(old, Space.made(np.ones((5, 8))))
    with pytest.raises(ValueError, match="no dimension in common"):
        drift(old, Space.made(old.vectors[:, :4], ids=old.ids, titles=old.titles))
