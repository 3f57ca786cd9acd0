"""Answers against an exact twin written for the tests, and the refusals of requests."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.data.history import History, gap_buckets
from recsys.recommender import Event, Recommender, RequestError, UnknownItem
from tests.toy import RING, USERS, ring_lengths


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
    assert asked(None, None, None) == asked(5, 5, 5)
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
