"""The rules: sound bundles break none, and one broken on purpose is caught by each."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from recsys.nightly.rules import rules
from recsys.recommender import Answer, Recommender


@pytest.mark.parametrize("bundle", ["toy_bundle", "shop_bundle"])
def test_a_sound_bundle_breaks_no_rule(request, bundle):
    assert rules(request.getfixturevalue(bundle)) == []


class Broken:
    """An index whose results are tampered with on their way out."""

    def __init__(self, index: Any, tamper: Callable[..., Any], **forgotten: None) -> None:
        self._index, self._tamper, self._forgotten = index, tamper, forgotten

    def search(self, queries: np.ndarray, k: int, **how: Any) -> tuple[np.ndarray, np.ndarray]:
        return self._tamper(*self._index.search(queries, k, **how | self._forgotten))


def broken(bundle, tamper=lambda scores, rows: (scores, rows), **forgotten):
    return replace(bundle, index=Broken(bundle.index, tamper, **forgotten))


def test_an_index_that_returns_what_was_seen_is_caught(toy_bundle):
    found = rules(broken(toy_bundle, exclude=None))
    assert any(one.startswith("user 'u0': 'i") and one.endswith("was seen and came back") for one in found)
    assert any(one.startswith("similar to 'i") for one in found)


def test_an_index_that_ignores_filters_is_caught_for_every_attribute(shop_bundle):
    found = rules(broken(shop_bundle, eligible=None))
    assert all("does not pass the filter" in one or "may be returned" in one for one in found)
    for attribute in ("brand", "tags", "price", "added"):
        assert any(f"with filter {{'{attribute}'" in one and "does not pass the filter" in one for one in found)


def test_lists_that_are_short_are_caught(toy_bundle):
    found = rules(broken(toy_bundle, lambda scores, rows: (scores[:, :4], rows[:, :4])))
    assert "user 'u0': 4 items came, 8 may be returned" in found  # 13 items, of which u0 took 5


def test_items_that_come_twice_are_caught(toy_bundle):
    def twice(scores, rows):
        rows[:, 1:2] = rows[:, :1]
        return scores, rows

    assert any("came twice" in one for one in rules(broken(toy_bundle, twice)))


def test_scores_that_ascend_are_caught(toy_bundle):
    def reversed_(scores, rows):
        return scores[:, ::-1], rows[:, ::-1]

    assert any("scores do not descend" in one for one in rules(broken(toy_bundle, reversed_)))


def test_what_is_popular_must_obey_as_well(toy_bundle, monkeypatch):
    recommend = Recommender.recommend

    def forgetful(self: Recommender, *, user_id: Any = None, **how: Any) -> Answer:
        answer = recommend(self, user_id=user_id, **how)
        return answer if user_id is not None else replace(answer, items=answer.items[:2])

    monkeypatch.setattr(Recommender, "recommend", forgetful)
    found = rules(toy_bundle)
    assert found
    assert all(one.startswith("user None") for one in found)
    assert "user None: 2 items came, 10 may be returned" in found


def test_the_sample_is_as_large_as_asked(toy_bundle):
    few, many = (rules(broken(toy_bundle, exclude=None), users=users) for users in (2, 40))
    assert len({one.split(":")[0] for one in few if one.startswith("user")}) <= 4  # with and without a filter
    assert len(many) > len(few)
