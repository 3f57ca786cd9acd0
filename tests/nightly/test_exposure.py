"""What changes for users, on lists written by hand over the toy's bundle."""

import json

import pytest

from recsys.nightly import measures
from recsys.nightly.exposure import exposure
from recsys.nightly.measures import Lists


def lists(*items: list[str]) -> Lists:
    return Lists("b", [f"u{at}" for at in range(len(items))], list(items), [[1.0] * len(one) for one in items])


@pytest.fixture
def found(toy_bundle):
    before = lists(["i0", "i1"], ["i0", "i2"], ["i0", "i3"], ["i0", "i1"])
    after = lists(["i0", "i1"], ["i5", "new"], ["i0", "i5"], ["i0", "i5"])
    return exposure(toy_bundle, toy_bundle, before, after)


def test_items_that_gain_and_lose_most_come_first(found):
    assert found["users"] == 4
    assert [(one["id"], one["before"], one["after"]) for one in found["gained"]] == [("i5", 0, 0.75), ("new", 0, 0.25)]
    assert [(one["id"], one["before"], one["after"]) for one in found["lost"]] == [
        ("i0", 1.0, 0.75), ("i1", 0.5, 0.25), ("i2", 0.25, 0), ("i3", 0.25, 0),
    ]  # fmt: skip
    assert found["gained"][0]["shown"] == {"title": "Item number 5"}


def test_categories_share_the_slots(found):
    # Before: i0 ×4, i1 ×2, i2, i3: five even of eight. After: i0 ×3, i1, i5 ×3, new (odd): three even of eight.
    parity = {bar["value"]: (bar["before"], bar["after"]) for bar in found["categories"]["parity"]}
    assert parity == {"even": (5 / 8, 3 / 8), "odd": (3 / 8, 5 / 8)}
    tags = {bar["value"]: (bar["before"], bar["after"]) for bar in found["categories"]["tags"]}
    assert tags == {  # each item has two tags, so that a slot counts half for each
        "ring": (pytest.approx(1 / 2), pytest.approx(1 / 2)),
        "even": (5 / 16, 3 / 16),
        "odd": (3 / 16, 5 / 16),
    }


def test_examples_go_from_most_changed_to_least(found):
    assert [one["user"] for one in found["examples"]] == ["u1", "u2", "u0"]
    assert [one["id"] for one in found["examples"][0]["history"]] == ["i2", "i3", "i4", "i5", "i6"]  # the tail of six
    assert [one["id"] for one in found["examples"][0]["before"]] == ["i0", "i2"]
    assert [one["id"] for one in found["examples"][0]["after"]] == ["i5", "new"]


def test_the_same_bundle_changes_nothing(toy_bundle):
    same = measures.lists(toy_bundle, measures.sampled_users(toy_bundle, size=20))
    found = exposure(toy_bundle, toy_bundle, same, same)
    assert found["gained"] == found["lost"] == []
    assert all(bar["before"] == bar["after"] for bars in found["categories"].values() for bar in bars)


def test_items_of_one_bundle_alone_and_many_values_are_told(toy_bundle, shop_bundle):
    before = Lists("b", ["u0"], [["i0", "i1", "i2", "i3", "i4"]], [[1.0] * 5])
    after = Lists("b", ["u0"], [["i19", "i0", "i6", "i7", "i9"]], [[1.0] * 5])
    found = exposure(shop_bundle, shop_bundle, before, after)
    brands = {bar["value"]: (bar["before"], bar["after"]) for bar in found["categories"]["brand"]}
    assert brands["(none)"] == (0.2, 0.2)  # i0 has no features at all
    assert brands["late"] == (0.0, 0.2)
    found = exposure(toy_bundle, shop_bundle, before, after)  # the toy knows no i19, and has no brand
    assert found["categories"] == {"tags": found["categories"]["tags"]}
    assert {one["id"]: one["known_before"] for one in found["gained"]}["i19"] is False


def test_many_values_are_summed_up(toy_bundle, monkeypatch):
    monkeypatch.setattr("recsys.nightly.exposure.VALUES", 1)
    found = exposure(toy_bundle, toy_bundle, lists(["i0", "i2", "i1"]), lists(["i1", "i2", "i4"]))
    assert found["categories"]["parity"] == [
        {"value": "even", "before": 2 / 3, "after": 2 / 3},
        {"value": "(others)", "before": 1 / 3, "after": 1 / 3},
    ]


def test_all_of_it_is_json(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_nobody_in_common_is_no_mistake(toy_bundle):
    found = exposure(toy_bundle, toy_bundle, lists(), lists())
    assert (found["users"], found["gained"], found["examples"]) == (0, [], [])
