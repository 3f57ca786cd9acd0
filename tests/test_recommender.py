"""Answers against an exact twin written for the tests, and the refusals of requests."""

import gc
import re
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.data.history import History, gap_buckets
from recsys.ids import IdMap
from recsys.index.build import Flat, HalfPrecision, Hnsw, build
from recsys.live import LiveCatalogue
from recsys.model.hstu import HSTU
from recsys.online.store import LiveItem, StoredEvent
from recsys.recommender import Answer, Effort, Event, Query, Recommender, RequestError, UnknownItem
from recsys.rules import Cap, Freshness, Quota, Rules
from tests.toy import RING, START, USERS, ring_lengths
from tests.untrained import sealed_with


@pytest.fixture(scope="module", params=["toy_bundle", "shop_bundle"])
def bundle(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def recommender(bundle):
    return Recommender(bundle)


def twin_vector(bundle, user, events):
    """A user's vector from all they took, by the towers alone; events are (item row, milliseconds, code)."""
    if user is not None:
        place = range(bundle.user_offsets[user], bundle.user_offsets[user + 1])
        codes = bundle.history_events
        known = [
            (int(bundle.history_items[p]), int(bundle.history_times[p]), 0 if codes is None else int(codes[p]))
            for p in place
        ]
        events = known + events
    rows, times, codes = (list(part) for part in zip(*events[-bundle.towers.architecture.max_length :], strict=True))
    history = History(
        items_BL=torch.tensor([rows]),
        lengths_B=torch.tensor([len(rows)]),
        events_BL=torch.tensor([codes]),
        gaps_BL=torch.from_numpy(gap_buckets(np.array([times]))),
        users={
            name: torch.from_numpy(values[[user]] if user is not None else 0 * values[[0]])
            for name, values in bundle.profiles.items()
        },
    )
    with torch.no_grad():
        return bundle.towers.user(torch.from_numpy(bundle.item_vectors[rows])[None], history)[0, -1].numpy()


def twin(scores, allowed, k):
    """Rows of the k best allowed scores, ties by row."""
    rows = [row for row in range(len(scores)) if allowed[row]]
    return sorted(rows, key=lambda row: (-scores[row], row))[:k]


def answered(bundle, answer):
    assert [item.rank for item in answer.items] == list(range(1, len(answer.items) + 1))
    assert answer.bundle == bundle.id
    return [bundle.item_ids.row(item.item_id) for item in answer.items], [item.score for item in answer.items]


def check(bundle, answer, scores, allowed, k):
    rows, said = answered(bundle, answer)
    assert len(rows) == min(k, allowed.sum())
    np.testing.assert_allclose(said, scores[rows], rtol=1e-4, atol=1e-5)
    # By score, since scores equal but for rounding may change places.
    np.testing.assert_allclose(said, scores[twin(scores, allowed, k)], rtol=1e-4, atol=1e-5)
    assert allowed[rows].all()
    assert len(set(rows)) == len(rows)


FILTERS = {
    "toy_bundle": [{}, {"parity": "odd"}, {"place": {"lt": 3}}, {"tags": {"not": "even"}}, {"parity": "neither"}],
    "shop_bundle": [{}, {"brand": ["b1", "b2"]}, {"price": {"gte": 50}}, {"tags": {"contains": ["t1", "t3"]}}],
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_request_gets_what_the_exact_twin_says(request, bundle, recommender, data):
    name = request.node.callspec.params["bundle"]
    n, users = len(bundle.item_ids), len(bundle.user_ids)
    user = data.draw(st.none() | st.integers(0, users), "user")  # one more than there are
    fresh = data.draw(st.lists(st.integers(0, n), max_size=10), "history")  # likewise
    exclude = data.draw(st.lists(st.integers(0, n), max_size=n), "exclude")
    include_seen = data.draw(st.booleans(), "include_seen")
    filter = data.draw(st.sampled_from(FILTERS[name]), "filter")
    k = data.draw(st.integers(1, n + 3), "k")

    def item(row):
        return bundle.item_ids.id(row) if row < n else "nobody's"

    answer = recommender.recommend(
        user_id=None if user is None else bundle.user_ids.id(user) if user < users else "a stranger",
        history=[Event(item(row), 2_000_000_000_000 + 1000 * at) for at, row in enumerate(fresh)],
        k=k,
        exclude=[item(row) for row in exclude],
        include_seen=include_seen,
        filter=filter,
    )
    known = user is not None and user < users
    taken = [(row, 2_000_000_000_000 + 1000 * at, 0) for at, row in enumerate(fresh) if row < n]
    allowed = bundle.attributes.eligible(filter).copy()
    allowed[[row for row in exclude if row < n]] = False
    if not include_seen:
        allowed[[row for row, *_ in taken]] = False
        if known:
            allowed[bundle.history_items[bundle.user_offsets[user] : bundle.user_offsets[user + 1]]] = False
    assert answer.strategy == ("personalised" if known else "history" if taken else "popular")
    assert answer.unknown_items == ["nobody's" for row in fresh if row == n]
    if known or taken:
        scores = bundle.item_vectors @ twin_vector(bundle, user if known else None, taken)
    else:
        scores = bundle.popularity
    check(bundle, answer, scores, allowed, k)


def test_similar_items_are_the_twins_and_leave_the_item_out(request, bundle, recommender):
    for row in range(len(bundle.item_ids)):
        for filter in FILTERS[request.node.callspec.params["bundle"]]:
            answer = recommender.similar(bundle.item_ids.id(row), k=4, filter=filter)
            assert answer.strategy == "similar"
            allowed = bundle.attributes.eligible(filter).copy()
            allowed[row] = False
            check(bundle, answer, bundle.item_vectors @ bundle.item_vectors[row], allowed, 4)


@pytest.fixture(scope="module")
def toy_recommender(toy_bundle):
    return Recommender(toy_bundle)


@pytest.fixture(scope="module")
def shop_recommender(shop_bundle):
    return Recommender(shop_bundle)


def test_fresh_history_moves_a_known_user_on(toy_recommender):
    for user in range(0, USERS, 7):
        after = user + ring_lengths()[user]
        answer = toy_recommender.recommend(user_id=f"u{user}", history=[Event(f"i{after % RING}")], k=1)
        assert (answer.strategy, answer.items[0].item_id) == ("personalised", f"i{(after + 1) % RING}")


def test_popular_is_what_the_newest_tenth_of_the_log_took_most(toy, toy_bundle, toy_recommender):
    lines = [line.split(",") for line in toy.log.read_text().splitlines()[1:]]
    newest = sorted((int(when), what) for _, what, when in lines if when.isdigit())[-len(lines) // 10 + 1 :]
    moment = newest[0][0]
    newest = [what for _, what, when in lines if when.isdigit() and int(when) >= moment]
    share = {item: newest.count(item) / len(newest) for item in toy_bundle.item_ids.ids(np.arange(RING + 1))}
    for answer in (toy_recommender.recommend(k=RING + 1), toy_recommender.recommend(user_id="a stranger", k=RING + 1)):
        assert answer.strategy == "popular"
        assert [item.score for item in answer.items] == pytest.approx(sorted(share.values(), reverse=True))
        assert all(item.score == pytest.approx(share[item.item_id]) for item in answer.items)
    assert answer.items[-1].item_id == "new"


def test_an_item_never_taken_is_recommended_from_its_features_where_nothing_else_is_left(toy_recommender):
    everything = [f"i{item}" for item in range(RING)]
    answer = toy_recommender.recommend(user_id="u0", exclude=everything, k=3)
    assert [item.item_id for item in answer.items] == ["new"]
    assert answer.items[0].attributes == {"title": "Item never taken"}


def test_what_was_seen_comes_back_only_when_asked(toy_recommender):
    seen = {f"i{step}" for step in range(5)}  # of u0
    left_out = {item.item_id for item in toy_recommender.recommend(user_id="u0", k=50).items}
    asked = {item.item_id for item in toy_recommender.recommend(user_id="u0", k=50, include_seen=True).items}
    assert not left_out & seen
    assert asked == left_out | seen


def test_unknown_items_are_reported_and_the_others_used(toy_recommender):
    history = [Event("i2"), Event("gone"), Event("i3"), Event("i4")]
    answer = toy_recommender.recommend(history=history, k=1)
    assert (answer.strategy, answer.unknown_items) == ("history", ["gone"])
    assert answer.items == toy_recommender.recommend(history=[Event("i2"), Event("i3"), Event("i4")], k=1).items
    nothing = toy_recommender.recommend(history=[Event("gone"), Event("lost")], k=1)
    assert (nothing.strategy, nothing.unknown_items) == ("popular", ["gone", "lost"])


def test_moments_that_are_not_known_are_taken_as_those_beside_them(shop_bundle, shop_recommender):
    def asked(*times):
        history = [Event(f"i{item}", time) for item, time in zip((3, 4, 5), times, strict=True)]
        return [item.score for item in shop_recommender.recommend(history=history, k=5).items]

    assert asked(None, 9_000_000, None) == asked(9_000_000, 9_000_000, 9_000_000)
    assert asked(None, None, None) == pytest.approx(asked(5, 5, 5), abs=1e-6)
    assert asked(0, 9_000_000, 9_000_000) != asked(9_000_000, 9_000_000, 9_000_000)


def test_events_are_told_apart(shop_recommender):
    answers = [
        [item.score for item in shop_recommender.recommend(history=[Event("i3", event=event)], k=3).items]
        for event in ("view", "cart", "buy")
    ]
    assert answers[0] != answers[1] != answers[2]


def test_an_event_that_there_is_not_is_refused(shop_recommender, toy_recommender):
    for history in ([Event("i3", event="bought")], [Event("gone", event="bought")]):
        with pytest.raises(RequestError, match=r"there is no event 'bought'; valid: .*view"):
            shop_recommender.recommend(history=history)
    assert toy_recommender.recommend(history=[Event("i3", event="bought")]).strategy == "history"  # its log names none


@pytest.mark.parametrize("k", [0, -3])
def test_k_must_be_at_least_1(toy_recommender, k):
    for ask in (
        lambda: toy_recommender.recommend(k=k),
        lambda: toy_recommender.recommend(user_id="u1", k=k),
        lambda: toy_recommender.recommend(history=[Event("i1")], k=k),
        lambda: toy_recommender.similar("i1", k=k),
    ):
        with pytest.raises(RequestError, match=f"k is {k}; ask for at least 1 item"):
            ask()


def test_a_filter_that_cannot_be_used_is_refused(toy_recommender):
    message = r"there is no attribute 'partiy' to filter by; did you mean 'parity'\?"
    for ask in (
        lambda: toy_recommender.recommend(filter={"partiy": "odd"}),
        lambda: toy_recommender.similar("i1", filter={"partiy": "odd"}),
    ):
        with pytest.raises(RequestError, match=message):
            ask()


def test_an_unknown_item_is_a_lookup_error(toy_recommender, toy_bundle):
    with pytest.raises(UnknownItem, match=f"there is no item 'i99' in bundle {toy_bundle.id}"):
        toy_recommender.similar("i99")


def test_attributes_declared_to_be_shown_are(toy_recommender):
    answer = toy_recommender.similar("i3", k=13)
    assert {item.item_id: item.attributes["title"] for item in answer.items} == (
        {f"i{i}": f"Item number {i}" for i in range(RING) if i != 3} | {"new": "Item never taken"}
    )


def test_warming_answers_every_kind_of_query(recommender):
    recommender.warm()


def test_many_threads_get_the_answers_that_one_gets(toy_recommender):
    def ask(number):
        history = [Event(f"i{(number + step) % RING}") for step in range(number % 6)]
        known = f"u{number % 90}" if number % 3 else None
        filter = {"parity": ("odd", "even")[number % 2]} if number % 4 == 0 else None
        return toy_recommender.recommend(user_id=known, history=history, k=1 + number % 12, filter=filter)

    alone = [ask(number) for number in range(240)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(ask, range(240)))
    assert together == alone


# ---- with what was said of items since the bundle was sealed


def put(item_id, features=None, *, available=True):
    return LiveItem(item_id, features, available, 10**15)


def listed(answer):
    return [item.item_id for item in answer.items]


def test_an_item_that_is_gone_is_recommended_no_more_and_the_others_move_up(recommender, bundle):
    for user in bundle.user_ids.ids(np.arange(6)):
        for ask in (
            lambda r, k, user=user: r.recommend(user_id=user, k=k),
            lambda r, k: r.recommend(history=[Event("i3"), Event("i4")], k=k),
            lambda r, k: r.recommend(k=k),
            lambda r, k: r.similar("i3", k=k),
        ):
            everything = listed(ask(recommender, 50))
            for item_id in everything[:5]:
                after = recommender.with_live([put(item_id, available=False)])
                assert listed(ask(after, 5)) == [other for other in everything if other != item_id][:5]
            assert listed(ask(after.with_live([]), 5)) == everything[:5]


def test_a_new_item_like_the_one_a_user_wants_next_is_recommended_at_once(toy_recommender):
    after = ring_lengths()[0] % RING
    features = {"title": f"Item number {after}", "parity": ("even", "odd")[after % 2], "place": after}
    live = toy_recommender.with_live([put("fresh one", features | {"tags": [features["parity"], "ring"]})])
    assert listed(live.recommend(user_id="u0", k=2))[0] == f"i{after}"
    assert "fresh one" in listed(live.recommend(user_id="u0", k=4))
    assert live.recommend(user_id="u0", k=4).bundle == toy_recommender.bundle.id
    assert "fresh one" not in listed(toy_recommender.recommend(user_id="u0", k=50))


def test_a_history_may_name_live_items(toy_recommender, toy_bundle):
    features = {"title": "Item number 5", "parity": "odd", "place": 5, "tags": ["odd", "ring"]}
    live = toy_recommender.with_live([put("twin", features), put("i3", features)])
    answer = live.recommend(history=[Event("i2"), Event("twin"), Event("i3")], k=20, include_seen=True)
    assert (answer.strategy, answer.unknown_items) == ("history", [])
    rows = live.live.rows(["i2", "twin", "i3"])
    vector = toy_bundle.towers.user_now(live.live.vectors(rows), np.zeros(3, dtype=np.int64), None, {})
    for item in answer.items:
        assert item.score == pytest.approx(vector @ live.live.vectors(live.live.rows([item.item_id]))[0], abs=1e-4)
    seen = live.recommend(history=[Event("i2"), Event("twin"), Event("i3")], k=20)
    assert set(listed(answer)) - set(listed(seen)) == {"i2", "twin", "i3"}


def test_an_item_is_seen_and_excluded_whichever_row_stands_for_it(toy_recommender):
    live = toy_recommender.with_live([put("i0", {"title": "Anew"}), put("i9", {"title": "Anew"})])
    assert "i0" not in listed(live.recommend(user_id="u0", k=50))  # u0 took i0 to i4
    assert listed(live.recommend(user_id="u0", k=50, include_seen=True)).count("i0") == 1
    assert listed(live.recommend(user_id="u0", k=50)).count("i9") == 1
    assert "i9" not in listed(live.recommend(user_id="u0", k=50, exclude=["i9"]))
    assert "i9" not in listed(live.similar("i9", k=50))


def test_where_everything_is_gone_nothing_is_returned(recommender, bundle):
    everything = bundle.item_ids.ids(np.arange(len(bundle.item_ids)))
    for known in (0, 1):  # live rows, too
        items = [put(item, {"title": "x"} if known else None, available=False) for item in everything]
        empty = recommender.with_live(items)
        user = bundle.user_ids.id(0)
        rules = Rules(diversity=0.5)
        for answer in (
            empty.recommend(user_id=user),
            empty.recommend(history=[Event(everything[0])]),
            empty.recommend(),
            empty.recommend(user_id=user, rules=rules),
            empty.recommend(rules=rules, explain=True),
            empty.recommend(user_id=user, effort=Effort.POPULAR),
            empty.similar(everything[1]),
            empty.similar(features={"title": "y"}, rules=rules),
            *empty.recommend_many([Query(user_id=user), Query(user_id=user, include_seen=True), Query()]),
        ):
            assert answer.items == []
        assert empty.why_not(everything[0], user_id=user).reasons[0].reason == "unavailable"


def test_answers_are_of_one_state_while_another_is_being_made(toy_recommender):
    states = [
        [put(f"i{item}", available=False) for item in range(half, half + 6)] + [put(f"n{half}", {"title": "x"})]
        for half in (0, 6)
    ]
    expected = [listed(toy_recommender.with_live(state).recommend(k=20)) for state in states]
    assert expected[0] != expected[1]
    answering, done = [toy_recommender.with_live(states[0])], threading.Event()

    def ask():
        got = []
        while not done.is_set():
            got.append(listed(answering[0].recommend(k=20)))
        return got

    with ThreadPoolExecutor(2) as threads:
        asking = [threads.submit(ask) for _ in range(2)]
        for turn in range(30):
            answering[0] = answering[0].with_live(states[turn % 2])
        done.set()
        for one in asking:
            assert all(got in expected for got in one.result())


def test_a_live_catalogue_of_another_bundle_is_refused(toy_bundle, shop_bundle):
    with pytest.raises(ValueError, match=f"is of bundle {shop_bundle.id}, not {toy_bundle.id}; make it anew"):
        Recommender(toy_bundle, LiveCatalogue(shop_bundle))


def test_a_bundle_is_let_go_with_its_recommender(toy_bundle):
    bundle = replace(toy_bundle)
    recommender = Recommender(bundle).with_live([put("n", {"title": "x"})])
    recommender.warm()
    gone = weakref.ref(bundle)
    gc.disable()
    try:
        del bundle, recommender
        assert gone() is None
    finally:
        gc.enable()


# ---- what happened since


def happened(item_id, timestamp, event=None):
    return StoredEvent(f"{item_id}@{timestamp}", "u0", item_id, timestamp, event)


def test_what_the_bundle_knows_of_is_not_fresh(toy_recommender):
    start = 1000 * START  # u0 took i0 then, and i1 a minute later
    events = [
        happened("i0", start),
        happened("i0", start + 700),  # the log has whole seconds
        happened("i0", start + 1000),
        happened("i1", start),
        happened("i1", start + 60_000),
        happened("nobody's", start),
    ]
    fresh = toy_recommender.fresh("u0", events)
    assert [(event.item_id, event.timestamp - start) for event in fresh] == [("i0", 1000), ("i1", 0)]
    assert [event.item_id for event in toy_recommender.fresh("a stranger", events)] == ["i0", "i0", "i0", "i1", "i1"]
    assert toy_recommender.fresh(None, []) == []


def test_in_a_log_without_times_the_same_item_is_not_fresh(toy_bundle):
    timeless = Recommender(replace(toy_bundle, history_times=None))
    fresh = timeless.fresh("u0", [happened("i0", 5), happened("i7", 5)])
    assert [event.item_id for event in fresh] == ["i7"]


def test_an_item_that_changed_is_known_by_its_id(toy_recommender):
    live = toy_recommender.with_live([put("i0", {"title": "Anew"}), put("n", {"title": "New"})])
    fresh = live.fresh("u0", [happened("i0", 1000 * START), happened("n", 1000 * START), happened("i0", 5)])
    assert [event.item_id for event in fresh] == ["n", "i0"]


def test_what_the_log_never_names_is_taken_as_nothing_said(shop_recommender):
    fresh = shop_recommender.fresh("u0", [happened("i3", 7, "buy"), happened("i4", 8, "wish"), happened("i5", 9)])
    assert [event.event for event in fresh] == ["buy", None, None]
    assert shop_recommender.recommend(user_id="u0", history=fresh).strategy == "personalised"


# ---- several seeds, and items that do not exist


def test_similar_to_several_is_near_the_mean_of_their_directions(recommender, bundle):
    vectors = bundle.item_vectors.astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [1, 4, 7]
    answer = recommender.similar([bundle.item_ids.id(row) for row in rows], k=5, exclude=[bundle.item_ids.id(2)])
    allowed = np.ones(len(vectors), dtype=bool)
    allowed[[*rows, 2]] = False
    check(bundle, answer, vectors @ unit[rows].mean(axis=0), allowed, 5)


def test_seeds_that_nobody_knows_are_named(toy_recommender):
    answer = toy_recommender.similar(["gone", "i3", "lost"], k=4)
    assert answer.unknown_items == ["gone", "lost"]
    assert answer.items == toy_recommender.similar("i3", k=4).items
    with pytest.raises(UnknownItem, match=r"there is no item 'gone' or 'lost' in bundle"):
        toy_recommender.similar(["gone", "lost"])


@pytest.mark.parametrize("kind", [int, str])
def test_ids_may_be_numbers_of_numpy(toy_bundle, kind):
    items = IdMap.of([kind(row) for row in range(len(toy_bundle.item_ids))])
    users = IdMap.of([kind(row) for row in range(len(toy_bundle.user_ids))])
    recommender = Recommender(replace(toy_bundle, item_ids=items, user_ids=users))
    one: Any = np.int64(3)
    some: Any = np.array([5, 7])
    unknown: Any = np.uint8(99)
    for said, meant in (
        (recommender.similar(one, k=4), recommender.similar(kind(3), k=4)),
        (recommender.similar(some, exclude=some + 1, k=4), recommender.similar([5, 7], exclude=[6, 8], k=4)),
        (recommender.recommend(user_id=one, k=4), recommender.recommend(user_id=kind(3), k=4)),
        (recommender.recommend(history=[Event(one)], k=4), recommender.recommend(history=[Event(kind(3))], k=4)),
    ):
        assert (said.strategy, said.items, said.unknown_items) == (meant.strategy, meant.items, [])
    assert recommender.recommend(user_id=one).strategy == "personalised"
    assert recommender.why_not(one).rank is not None
    with pytest.raises(UnknownItem, match=r"there is no item .*99.* in bundle"):
        recommender.similar(unknown)


def test_an_item_that_does_not_exist_is_like_those_of_its_features(toy_recommender):
    features = {"title": "Item never taken", "parity": "odd", "tags": ["odd", "ring"]}
    answer = toy_recommender.similar(features=features, k=5, exclude=["new"])
    expected = toy_recommender.similar("new", k=5)  # of these features, and its id was never trained
    assert (answer.strategy, listed(answer)) == ("similar", listed(expected))
    assert [item.score for item in answer.items] == pytest.approx([item.score for item in expected.items], abs=1e-4)
    with pytest.raises(RequestError, match=r"there is no feature 'partiy'; did you mean 'parity'\?"):
        toy_recommender.similar(features={"partiy": "odd"})
    for neither in ({}, {"items": ["i3"], "features": features}):
        with pytest.raises(RequestError, match="give either the items to be similar to, or the features of one"):
            toy_recommender.similar(**neither)


# ---- rules, effort, explanations


def test_rules_arrange_every_kind_of_answer(toy_recommender):
    def parities(answer):
        return [int(item.item_id[1:]) % 2 for item in answer.items if item.item_id != "new"]

    rules = Rules(caps=(Cap("parity", 2),))
    for answer in (
        toy_recommender.recommend(user_id="u0", k=4, exclude=["new"], rules=rules),
        toy_recommender.recommend(history=[Event("i3")], k=4, exclude=["new"], rules=rules),
        toy_recommender.recommend(k=4, exclude=["new"], rules=rules),
        toy_recommender.similar("i3", k=4, exclude=["new"], rules=rules),
    ):
        assert sorted(parities(answer)) == [0, 0, 1, 1]
        assert answer.relaxed == ()
    crowded = toy_recommender.recommend(user_id="u0", k=6, filter={"parity": "odd"}, rules=rules)
    assert (len(crowded.items), crowded.relaxed) == (5, ("caps",))  # i5, i7, i9, i11 and new: all that u0 did not take


def test_popular_items_are_arranged_by_their_popularity(toy_recommender):
    plain = listed(toy_recommender.recommend(k=13))
    odd = [item for item in plain if item == "new" or int(item[1:]) % 2]
    even = [item for item in plain if item not in odd]
    answer = toy_recommender.recommend(k=4, rules=Rules(quotas=(Quota({"parity": "odd"}, 2),)))
    assert set(odd[:2]) <= set(listed(answer))
    capped = toy_recommender.recommend(k=2, rules=Rules(caps=(Cap("parity", 1),)))
    assert set(listed(capped)) == {odd[0], even[0]}
    assert all(
        item.score == toy_recommender.live.popularity[toy_recommender.live.row(item.item_id)] for item in answer.items
    )


@pytest.mark.parametrize("weight", [0.1, 0.5, 2.0])
def test_freshness_is_weighed_in_deviations_of_the_querys_scores(shop_recommender, shop_bundle, weight):
    added = shop_recommender.live.numbers("added")  # a quarter of an hour and more apart
    now = int(np.nanmax(added))
    rules = Rules(freshness=Freshness("added", 0.05, weight))
    lift = weight * np.where(np.isnan(added), 0, 2.0 ** (-((now - added) / 86_400_000) / 0.05))
    for row in range(len(added)):
        query = shop_bundle.item_vectors[row]
        scores = shop_bundle.item_vectors @ query
        lifted = scores + scores.std() * lift
        lifted[row] = -np.inf
        answer = shop_recommender.similar(shop_bundle.item_ids.id(row), k=6, rules=rules, now_ms=now)
        found = shop_bundle.item_ids.rows(listed(answer))
        np.testing.assert_allclose(lifted[found], np.sort(lifted)[::-1][:6], atol=1e-5)
        np.testing.assert_allclose([item.score for item in answer.items], scores[found], atol=1e-5)


def test_a_rule_that_cannot_be_used_is_refused(toy_recommender):
    for rules in (Rules(caps=(Cap("partiy", 1),)), Rules(quotas=(Quota({"partiy": "odd"}, 1),))):
        for ask in (
            lambda rules=rules: toy_recommender.recommend(rules=rules),
            lambda rules=rules: toy_recommender.recommend(user_id="u0", rules=rules),
            lambda rules=rules: toy_recommender.similar("i1", rules=rules),
        ):
            with pytest.raises(RequestError, match="partiy"):
                ask()


def with_dimensions(bundle, dimensions):
    return replace(
        bundle, manifest=replace(bundle.manifest, content=bundle.manifest.content | {"dimensions": dimensions})
    )


def test_less_effort_says_what_it_left_out(toy_bundle):
    shorter = replace(
        toy_bundle,
        manifest=replace(toy_bundle.manifest, content={**toy_bundle.manifest.content, "dimensions": [16, 8]}),
    )
    recommender, diverse = Recommender(shorter), Rules(diversity=0.5)
    graph = Recommender(replace(toy_bundle, index=build(toy_bundle.item_vectors, Hnsw())))

    def degraded(effort, recommender=recommender, **asked):
        return recommender.recommend(k=3, effort=effort, **asked).degraded

    assert [degraded(effort, user_id="u0") for effort in Effort] == [(), (), ("cheaper dimension",), ("popular",)]
    assert [degraded(effort, user_id="u0", rules=diverse) for effort in Effort] == [
        (), ("fewer candidates",), ("fewer candidates", "cheaper dimension"), ("popular",)
    ]  # fmt: skip
    assert [degraded(effort) for effort in Effort] == [(), (), (), ()]  # popular in any case
    assert [degraded(effort, graph, user_id="u0") for effort in Effort] == [
        (), ("fewer candidates",), ("fewer candidates",), ("popular",)
    ]  # fmt: skip
    popular = recommender.recommend(user_id="u0", history=[Event("i7")], k=20, effort=Effort.POPULAR)
    assert popular.strategy == "popular"
    assert not {"i0", "i7"} & set(listed(popular))  # seen all the same
    assert recommender.similar("i3", effort=Effort.POPULAR).strategy == "popular"


def test_fewer_candidates_are_ordered_by_diversity_but_not_exchanged(toy_recommender):
    rules = Rules(diversity=1.0)
    plain = listed(toy_recommender.recommend(user_id="u3", k=4))
    fewer = listed(toy_recommender.recommend(user_id="u3", k=4, rules=rules, effort=Effort.FEWER))
    full = listed(toy_recommender.recommend(user_id="u3", k=4, rules=rules))
    assert sorted(fewer) == sorted(plain)
    assert sorted(full) != sorted(plain)


def test_a_cheaper_dimension_scores_by_the_prefix_of_the_users_vector(toy_bundle):
    shorter = replace(
        toy_bundle,
        manifest=replace(toy_bundle.manifest, content={**toy_bundle.manifest.content, "dimensions": [16, 8]}),
    )
    recommender = Recommender(shorter)
    answer = recommender.recommend(user_id="u5", k=6, effort=Effort.PREFIX)
    scores = toy_bundle.item_vectors[:, :8] @ toy_bundle.user_vectors[toy_bundle.user_ids.row("u5")][:8]
    allowed = np.ones(len(scores), dtype=bool)
    allowed[toy_bundle.seen(toy_bundle.user_ids.row("u5"))] = False
    check(shorter, answer, scores, allowed, 6)


def test_explained_items_say_where_they_stood_and_what_pulled_them_up(recommender, bundle):
    hidden = bundle.item_ids.id(5)
    live = recommender.with_live([put(hidden, available=False)])
    user = 3
    history = [Event(bundle.item_ids.id(2))]
    for asked in ({}, {"user_id": bundle.user_ids.id(user)}, {"history": history}):
        answer = live.recommend(k=4, explain=True, filter=FILTERS_OF_EXPLAINED[bundle.schema.items.id], **asked)
        scores = bundle.popularity.copy()
        if asked:
            rows = [2] if "history" in asked else bundle.seen(user)
            vector = bundle.user_vectors[user] if "user_id" in asked else bundle.embed_user(None, np.array([2]))
            scores = bundle.item_vectors @ vector
            taken = {bundle.item_ids.id(row) for row in rows}
        scores[5] = -np.inf
        for item in answer.items:
            row = bundle.item_ids.row(item.item_id)
            above = np.count_nonzero(scores > scores[row] + 1e-5) + 1
            level = np.count_nonzero(scores > scores[row] - 1e-5)
            assert above <= item.rank_before_rules <= level
            if asked:
                assert {pull.item_id for pull in item.because} <= taken
            else:
                assert item.because is None
    assert all(item.because is None for item in live.recommend(user_id=bundle.user_ids.id(user)).items)
    assert live.similar(bundle.item_ids.id(1), explain=True).items[0].rank_before_rules in (1, 2)


FILTERS_OF_EXPLAINED = {"sku": {"parity": "odd"}, "item": {"price": {"gte": 50}}}


def test_why_not_is_of_the_list_that_the_same_request_gets(toy_recommender):
    listed_now = listed(toy_recommender.recommend(user_id="u0", k=3))
    assert toy_recommender.why_not(listed_now[0], user_id="u0", k=3).in_list

    def reasons(item_id, recommender=toy_recommender, **asked):
        said = recommender.why_not(item_id, user_id="u0", k=3, **asked)
        assert not said.in_list
        return [reason.reason for reason in said.reasons]

    assert "seen" in reasons("i0")
    assert "seen" not in reasons("i0", include_seen=True)
    assert reasons("nobody's") == ["unknown"]
    assert "excluded" in reasons("i8", exclude=["i8"])
    assert "filtered" in reasons("i8", filter={"parity": "odd"})
    assert "seen" in reasons("i8", history=[Event("i8")])
    assert "unavailable" in reasons("i8", toy_recommender.with_live([put("i8", available=False)]))
    even = next(item for item in listed_now if item in {"i6", "i8", "i10"})
    assert "rules" in reasons(even, rules=Rules(quotas=(Quota({"parity": "odd"}, 3),)))
    for bad in ({"k": 0}, {"filter": {"partiy": 1}}, {"rules": Rules(caps=(Cap("partiy", 1),))}):
        with pytest.raises(RequestError):
            toy_recommender.why_not("i8", **bad)


# ---- many at once


@pytest.mark.parametrize("kind", [Flat(), HalfPrecision(), Hnsw()], ids=lambda kind: type(kind).__name__)
def test_many_at_once_get_what_each_gets_alone(bundle, kind):
    live = [put("i2", {"title": "Anew"}), put("n", {"title": "New"}), put("i4", available=False)]
    for recommender in (
        Recommender(replace(bundle, index=build(bundle.item_vectors, kind))),
        Recommender(replace(bundle, index=build(bundle.item_vectors, kind))).with_live(live),
    ):
        rng = np.random.default_rng(4)
        name = bundle.schema.items.features[0].name
        queries = [
            Query(
                user_id=(None, "a stranger", *bundle.user_ids.ids(np.arange(12)))[rng.integers(14)],
                history=[Event(f"i{item}", 2_000_000_000_000) for item in rng.integers(0, 14, rng.integers(0, 4) // 2)],
                k=int(rng.integers(1, 9)),
                exclude=[f"i{item}" for item in rng.integers(0, 14, rng.integers(0, 3))],
                include_seen=bool(rng.random() < 0.5),
                filter={name: {"not": "x"}} if name == "brand" and rng.random() < 0.2 else None,
                rules=Rules(diversity=0.4) if rng.random() < 0.2 else Rules(),
                explain=bool(rng.random() < 0.1),
                effort=list(Effort)[rng.integers(4)] if rng.random() < 0.2 else Effort.FULL,
            )
            for _ in range(120)
        ]
        queries[7].k = 0
        queries[9].filter = {"nothing": 1}
        queries[11].rules = Rules(caps=(Cap("nothing", 1),))
        together = recommender.recommend_many(queries)
        assert len(together) == len(queries)
        for number, (query, answer) in enumerate(zip(queries, together, strict=True)):
            asked = {name: getattr(query, name) for name in Query.__slots__}
            if number in (7, 9, 11):
                assert isinstance(answer, RequestError)
                with pytest.raises(RequestError, match=re.escape(str(answer))):
                    recommender.recommend(**asked)
                continue
            alone = recommender.recommend(**asked)
            assert isinstance(answer, Answer)
            assert listed(answer) == listed(alone)
            assert [item.score for item in answer.items] == pytest.approx(
                [item.score for item in alone.items], abs=1e-5
            )
            assert (answer.strategy, answer.unknown_items, answer.degraded, answer.relaxed) == (
                alone.strategy, alone.unknown_items, alone.degraded, alone.relaxed
            )  # fmt: skip
    assert recommender.recommend_many([]) == []


def test_stages_say_where_the_time_went(toy_recommender):
    def stages(**asked):
        return [name for name, seconds in toy_recommender.recommend(**asked).stages if seconds >= 0]

    assert stages(user_id="u0") == ["search", "read"]
    assert stages(history=[Event("i3")]) == ["tower", "search", "read"]
    assert stages(user_id="u0", rules=Rules(diversity=0.5)) == ["rules", "read"]


# ---- towers that are told when they are asked, and others


HOUR = 3_600_000  # milliseconds
MOMENTS = (1000 * START + 100 * HOUR, 1000 * START + 100_000 * HOUR)


@pytest.fixture(scope="module", params=[True, False], ids=["told", "not told"])
def told(request):
    return request.param


@pytest.fixture(scope="module")
def of_a_moment(toy, told, tmp_path_factory):
    """A Recommender whose towers read times, and are told when they are asked or not."""
    folder = tmp_path_factory.mktemp("told")
    return Recommender(sealed_with(toy, folder, encoder=HSTU, query_time=told, blocks=2))


def towers_own(bundle, moment, user, since=()):
    """The score of every item, by the towers' own forward; since: item row and time of what is newer."""
    place = slice(*bundle.user_offsets[[user, user + 1]])
    rows = np.append(bundle.history_items[place], [row for row, _ in since]).astype(np.int64)[-8:]
    times = np.append(bundle.history_times[place], [at for _, at in since]).astype(np.int64)[-8:]
    return bundle.item_vectors @ bundle.towers.user_now(bundle.item_vectors[rows], times, None, {}, moment)


def said_of(bundle, answer):
    """Scores by row, of an answer that holds every item."""
    assert len(answer.items) == len(bundle.item_ids)
    scores = {bundle.item_ids.row(item.item_id): item.score for item in answer.items}
    return np.array([scores[row] for row in range(len(scores))])


def test_a_known_user_is_answered_as_of_when_they_ask(of_a_moment, told):
    bundle, user = of_a_moment.bundle, 3
    new = Event("i9", MOMENTS[0] - HOUR)
    since = [(bundle.item_ids.row("i9"), new.timestamp)]
    for history, taken in (([], ()), ([new], since)):
        got = []
        for moment in MOMENTS:
            query = Query("u3", history, k=13, include_seen=True, now_ms=moment)
            got.append(said_of(bundle, of_a_moment.answer(query)))
            np.testing.assert_allclose(got[-1], towers_own(bundle, moment, user, taken), atol=1e-4)
            (together, _) = of_a_moment.recommend_many([query, Query("u4", k=1, now_ms=MOMENTS[0])])
            np.testing.assert_allclose(said_of(bundle, together), got[-1], atol=1e-5)
        assert np.allclose(got[0], got[1], atol=1e-3) != told


def test_only_towers_that_are_told_when_run_for_a_known_user(of_a_moment, told):
    bundle = of_a_moment.bundle
    answer = of_a_moment.recommend(user_id="u3", k=13, include_seen=True, now_ms=MOMENTS[1])
    assert answer.strategy == "personalised"
    assert [name for name, _ in answer.stages] == ["tower"] * told + ["search", "read"]
    stored = bundle.item_vectors @ bundle.user_vectors[3]
    assert np.allclose(said_of(bundle, answer), stored, atol=1e-4) != told


def test_now_is_what_the_clock_says(of_a_moment, monkeypatch):
    expected = of_a_moment.recommend(user_id="u3", k=5, now_ms=MOMENTS[1]).items
    monkeypatch.setattr("time.time_ns", lambda: MOMENTS[1] * 1_000_000)
    assert of_a_moment.recommend(user_id="u3", k=5).items == expected
    history = [Event("i3", MOMENTS[0])]
    expected = of_a_moment.recommend(history=history, k=5, now_ms=MOMENTS[1]).items
    assert of_a_moment.recommend(history=history, k=5).items == expected


def test_what_is_asked_to_do_with_less_is_popular_whatever_the_towers_are_told(of_a_moment):
    answer = of_a_moment.recommend(user_id="u3", k=5, effort=Effort.POPULAR)
    assert (answer.strategy, [name for name, _ in answer.stages]) == ("popular", ["search", "read"])


def test_explanations_are_of_the_moment_of_the_answer(of_a_moment, told):
    bundle, user = of_a_moment.bundle, 3
    place = slice(*bundle.user_offsets[[user, user + 1]])
    rows, times = bundle.history_items[place].astype(np.int64)[-8:], bundle.history_times[place][-8:]
    for moment in MOMENTS:
        answer = of_a_moment.recommend(user_id="u3", k=13, include_seen=True, explain=True, now_ms=moment)
        scores = towers_own(bundle, moment, user)
        for item in answer.items:
            row = bundle.item_ids.row(item.item_id)
            vectors = [
                bundle.towers.user_now(bundle.item_vectors[rows[kept]], times[kept], None, {}, moment)
                for kept in (np.arange(len(rows)) != left_out for left_out in range(len(rows)))
            ]
            pull = np.maximum(scores[row] - np.stack(vectors) @ bundle.item_vectors[row], 0)
            expected = {int(rows[at]): pull[at] / pull.sum() for at in np.argsort(-pull)[:3] if pull[at] > 0}
            assert {bundle.item_ids.row(one.item_id): one.share for one in item.because} == pytest.approx(
                expected, abs=1e-3
            )
            why = of_a_moment.why_not(item.item_id, user_id="u3", k=13, include_seen=True, now_ms=moment)
            assert (why.in_list, why.rank) == (True, item.rank)


def test_things_of_which_nobody_knows_when_happened_as_they_are_told(of_a_moment):
    bundle, rows = of_a_moment.bundle, np.array([2, 3])
    history = [Event(bundle.item_ids.id(int(row))) for row in rows]
    got = [
        said_of(bundle, of_a_moment.recommend(history=history, k=13, include_seen=True, now_ms=moment))
        for moment in MOMENTS
    ]
    vector = bundle.towers.user_now(bundle.item_vectors[rows], np.full(2, MOMENTS[0]), None, {}, MOMENTS[0])
    np.testing.assert_allclose(got[0], bundle.item_vectors @ vector, atol=1e-4)
    np.testing.assert_allclose(got[1], got[0], atol=1e-5)
