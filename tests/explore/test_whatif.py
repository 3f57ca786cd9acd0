"""Histories to edit and lists side by side, on the ring: whoever takes an item takes the next one next."""

import pytest

from recsys.answers import Answer, Event, Recommendation
from recsys.explore.space import Space
from recsys.explore.whatif import history, listed, moved, reasons
from recsys.recommender import Recommender
from tests.toy import START


@pytest.fixture(scope="module")
def space(toy_bundle) -> Space:
    return Space.of(toy_bundle)


def answer(*item_ids: str) -> Answer:
    items = [
        Recommendation(item_id, 9.0 - rank, rank, {"title": item_id.upper()})
        for rank, item_id in enumerate(item_ids, 1)
    ]
    return Answer("b", "history", items)


def test_history_is_what_the_user_did(toy_bundle):
    assert history(toy_bundle, "u3") == [
        Event(f"i{3 + step}", 1000 * (START + 3 * 3600 + 60 * step)) for step in range(8)
    ]


def test_a_history_gives_what_the_user_gets(toy_bundle):
    recommender = Recommender(toy_bundle)
    by_id = recommender.recommend(user_id="u3", k=3)
    by_history = recommender.recommend(history=history(toy_bundle, "u3"), k=3)
    assert [item.item_id for item in by_history.items] == [item.item_id for item in by_id.items]
    assert by_history.items[0].score == pytest.approx(by_id.items[0].score, abs=1e-4)


def test_a_history_names_its_events(shop_bundle):
    user = shop_bundle.user_ids.id(0)
    names = shop_bundle.manifest.content["event_names"]
    assert [event.event for event in history(shop_bundle, user)] == [
        names[code] for code in shop_bundle.history_events[: shop_bundle.user_offsets[1]]
    ]


def test_an_unknown_user_is_named(toy_bundle):
    with pytest.raises(LookupError, match=r"there is no user 'nobody' in bundle .*; it has 'u0'"):
        history(toy_bundle, "nobody")


def test_what_if_the_last_item_were_another(toy_bundle, space):
    recommender = Recommender(toy_bundle)
    before = recommender.recommend(history=[Event("i2"), Event("i3")], k=4, explain=True)
    after = recommender.recommend(history=[Event("i2"), Event("i7")], k=4, explain=True)
    table = listed(before, space)
    assert table.loc[1, "title"] == "Item number 4"
    assert table.loc[1, "because"].startswith("Item number 3 ")
    assert list(table.columns) == ["item_id", "title", "score", "before_rules", "because"]
    assert moved(before, after, space).iloc[0].to_dict() | {"before": None} == {
        "item_id": "i8", "title": "Item number 8", "before": None, "after": 1, "moved": "new",
    }  # fmt: skip


def test_listed_without_a_space_shows_what_the_answer_shows():
    table = listed(answer("a", "b"))
    assert table.to_dict("list") == {"item_id": ["a", "b"], "title": ["A", "B"], "score": [8.0, 7.0]}
    assert table.index.tolist() == [1, 2]
    assert listed(answer()).empty


def test_moved_says_who_came_went_rose_and_fell():
    table = moved(answer("a", "b", "c", "d"), answer("c", "b", "a", "e"))
    assert table["item_id"].tolist() == ["c", "b", "a", "e", "d"]
    assert table["moved"].tolist() == ["+2", "", "−2", "new", "gone"]
    assert table["before"].isna().tolist() == [False, False, False, True, False]
    assert table["after"].isna().tolist() == [False] * 4 + [True]
    assert moved(answer(), answer()).empty


def test_reasons_are_a_row_each(toy_bundle, space):
    ask = Recommender(toy_bundle).why_not
    asked = [ask(item_id, history=[Event("i3")], k=1, exclude=["i3"]) for item_id in ("i3", "i4", "nothing")]
    table = reasons(asked, space)
    assert table["item_id"].tolist() == ["i3"] * (len(table) - 2) + ["i4", "nothing"]
    assert set(table["reason"][:-2]) >= {"seen", "excluded"}
    assert table["title"].tolist()[-2:] == ["Item number 4", "nothing"]
    assert table["reason"].tolist()[-2:] == ["", "unknown"]
    assert table.iloc[-2]["rank_among_eligible"] == 1
    assert table["rank"].isna().tolist()[-1]
    assert reasons([]).empty
