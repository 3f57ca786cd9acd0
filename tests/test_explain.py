"""What pulled an item up, and why one is not there: by hand, and against loops that ask one thing at a time."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from recsys.answers import Pull, Reason
from recsys.attributes import FilterError
from recsys.explain import NEWEST, Asked, pulls, rank_of, why_not
from recsys.live import LiveCatalogue
from recsys.online.store import LiveItem
from recsys.rules import Cap, Freshness, Quota, Rules, arrange
from recsys.users_now import Taken, taken
from tests.toy import RING, USERS, ring_lengths


@pytest.fixture(scope="module", params=["toy_bundle", "shop_bundle"])
def live(request):
    return LiveCatalogue(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def ring(toy_bundle):
    return LiveCatalogue(toy_bundle)


@pytest.fixture(scope="module")
def goods(shop_bundle):
    return LiveCatalogue(shop_bundle)


def history(rows, user=None, times=None, events=None):
    rows = np.asarray(rows, dtype=np.int64)
    times = np.full(len(rows), -1) if times is None else np.asarray(times)
    return Taken(user, rows, times, np.zeros(len(rows), dtype=np.int64) if events is None else np.asarray(events))


def one_by_one(live, asked, target, most):
    """Pulls as their definition says them, a history at a time, by the bundle's own way to embed one."""

    def score(entries):
        rows, times, events = asked.rows[entries], asked.times[entries], asked.events[entries]
        since = len(entries)
        user = asked.user
        length = live.bundle.towers.architecture.max_length
        if since < length and user is not None:  # keep the bundle from joining what it knows: it is in `asked`
            user = None
        return float(live.bundle.embed_user(user, rows, times, events) @ target)

    every = list(range(len(asked)))
    pull: dict[Any, float] = {}
    for place in reversed(every[-NEWEST:]):
        item_id = live.id(int(asked.rows[place]))
        strength = score(every) - score([other for other in every if other != place])
        pull[item_id] = pull.get(item_id, 0.0) + max(0.0, strength)
    total = sum(pull.values())
    ordered = sorted(pull.items(), key=lambda one: -one[1])[:most]
    return [(item_id, strength / total) for item_id, strength in ordered if strength > 1e-6]


def test_pulls_are_those_of_one_history_after_the_other(live):
    random = np.random.default_rng(0)
    known = len(live.bundle.item_ids)
    longest = live.bundle.towers.architecture.max_length
    for length in range(2, longest + 1):
        rows = random.integers(0, known, length)
        times = 2_000_000_000_000 + 60_000 * np.cumsum(random.integers(0, 900, length))
        events = random.integers(0, 3, length)
        targets = live.vectors(random.integers(0, known, 4))
        asked = history(rows, times=times, events=events)
        for got, target in zip(pulls(live, asked, targets, most=longest), targets, strict=True):
            expected = one_by_one(live, asked, target, longest)
            # Shares may be equal but for rounding, and then change places.
            assert [pull.share for pull in got] == sorted((pull.share for pull in got), reverse=True)
            large = {pull.item_id: pull.share for pull in got if pull.share > 1e-3}
            assert large == pytest.approx({item_id: share for item_id, share in expected if item_id in large}, abs=2e-3)
            assert all(item_id in large for item_id, share in expected if share > 3e-3)


def test_on_the_ring_the_newest_item_pulls_the_next_one(ring):
    strongest = []
    for user in range(USERS):
        last = (user + ring_lengths()[user] - 1) % RING
        following = ring.vectors(ring.rows([f"i{(last + 1) % RING}"]))
        (got,) = pulls(ring, taken(ring, ring.bundle.user_ids.row(f"u{user}")), following)
        strongest.append(got[0].item_id == f"i{last}")
    assert np.mean(strongest) > 0.5  # an older one may hold the sequence together: without it there is a gap


@pytest.fixture
def summing(monkeypatch):
    """A tower that adds up the vectors of what was taken, so that an entry's pull is its own inner product."""
    calls = []

    def user_vectors(live, many):
        calls.append(len(many))
        return np.stack([live.vectors(one.rows).sum(axis=0) for one in many])

    monkeypatch.setattr("recsys.explain.user_vectors", user_vectors)
    return calls


class _Items:
    """Items whose vectors are given."""

    def __init__(self, *vectors):
        self._vectors = np.array(vectors, dtype=np.float32)

    def vectors(self, rows):
        return self._vectors[rows]

    def id(self, row):
        return f"i{row}"


def plain(*vectors) -> Any:
    """Items whose vectors are given, for what needs no more of a catalogue."""
    return _Items(*vectors)


def test_pulls_by_hand(summing):
    items = plain([3, 0], [1, 1], [-5, 0], [0, 2])
    got = pulls(items, history([0, 1, 2, 3]), np.array([[1, 0], [0, 1], [-1, -1]], dtype=np.float32))
    assert got == [
        [Pull("i0", 3 / 4), Pull("i1", 1 / 4)],  # i2 pushes it down, i3 does nothing to it
        [Pull("i3", 2 / 3), Pull("i1", 1 / 3)],
        [Pull("i2", 1.0)],
    ]
    assert summing == [5]  # one pass for all


def test_an_item_taken_twice_is_named_once_and_of_equals_the_newest_first(summing):
    items = plain([1, 0], [2, 0], [2, 0])
    target = np.array([[1, 0]], dtype=np.float32)
    assert pulls(items, history([0, 1, 0]), target) == [[Pull("i0", 0.5), Pull("i1", 0.5)]]
    assert pulls(items, history([2, 0, 1]), target) == [[Pull("i1", 0.4), Pull("i2", 0.4), Pull("i0", 0.2)]]
    assert pulls(items, history([2, 0, 1]), target, most=1) == [[Pull("i1", 0.4)]]


def test_what_only_pushes_down_pulls_nothing(summing):
    assert pulls(plain([1, 0], [2, 0]), history([0, 1]), np.array([[-1, 0]], dtype=np.float32)) == [[]]


def test_an_only_entry_is_all_there_is_and_none_is_nothing(live):
    targets = live.vectors(np.array([0, 1]))
    only = Pull(live.id(3), 1.0)
    assert pulls(live, history([3]), targets) == [[only], [only]]
    assert pulls(live, history([]), targets) == [[], []]


def test_only_the_newest_are_asked_about(summing):
    items = plain([100, 0], *[[1, 0]] * (NEWEST + 5))
    (got,) = pulls(items, history(range(NEWEST + 6)), np.array([[1, 0]], dtype=np.float32), most=100)
    assert summing == [NEWEST + 1]
    assert [pull.item_id for pull in got] == [f"i{row}" for row in range(NEWEST + 5, 5, -1)]


def test_asked_again_pulls_are_the_same(live):
    asked = taken(live, 3)
    targets = live.vectors(np.arange(5))
    assert pulls(live, asked, targets) == pulls(live, asked, targets)


def test_ranks_by_hand():
    scores = np.array([3.0, 5.0, 3.0, -np.inf, 9.0])
    assert [rank_of(scores, row, scores[row]) for row in (4, 1, 0, 2)] == [1, 2, 3, 4]
    assert rank_of(scores, 3, 4.0) == 3  # where it would stand
    assert rank_of(scores, 3, 3.0) == 5


def listed(live, query, k, eligible=None, exclude=None):
    return live.search(query, k, eligible=eligible, exclude=exclude)[1]


def ask(live, query, k=3, **said):
    """A list without rules, as the Recommender makes it."""
    eligible = live.eligible(said["filter"]) if said.get("filter") else None
    left_out = np.concatenate([live.now(said.get("seen", np.empty(0, int))), said.get("excluded", np.empty(0, int))])
    rows = listed(live, query, k, eligible, left_out)
    return Asked(listed=rows, k=k, query=query, listed_by=lambda rules: rows, **said)


def words(found):
    return [(reason.reason, reason.detail) for reason in found.reasons]


def test_ranks_and_reasons_are_those_of_a_sort(live):
    random = np.random.default_rng(1)
    n = len(live.bundle.item_ids)
    filters = {"parity": "odd"} if "parity" in live.bundle.attributes._columns else {"brand": ["b1", "b2"]}
    for _ in range(30):
        query = random.standard_normal(live.vectors(np.array([0])).shape[1]).astype(np.float32)
        seen, excluded = random.integers(0, n, 3), random.integers(-1, n, 2)
        asked = ask(live, query, seen=seen, seen_at=np.full(3, -1), excluded=excluded, filter=filters)
        scores = live.scores(query)
        passing = live.eligible(filters)
        order = sorted(range(n), key=lambda row: (-scores[row], row))
        allowed = [row for row in order if passing[row] and row not in seen and row not in excluded]
        for row in range(n):
            found = why_not(live, live.id(row), asked)
            assert found.rank == 1 + order.index(row)
            assert found.in_list == (row in asked.listed)
            among = [other for other in order if other in allowed or other == row]
            assert found.rank_among_eligible == 1 + among.index(row)
            named = {reason.reason for reason in found.reasons}
            assert ("seen" in named) == (row in seen)
            assert ("excluded" in named) == (row in excluded)
            assert ("filtered" in named) == (not passing[row])
            assert ("ranked" in named) == (found.rank_among_eligible > 3)
            assert bool(named) != found.in_list
            assert named <= {"seen", "excluded", "filtered", "ranked"}


def test_every_reason_is_said_with_its_words(ring):
    query = ring.vectors(ring.rows(["i3"]))[0]
    seen = ring.rows(["i8", "i3", "i8"])
    asked = ask(
        ring,
        query,
        k=1,
        seen=seen,
        seen_at=np.array([1_700_000_000_000, -1, 1_700_003_600_000]),
        excluded=ring.rows(["i8"]),
        filter={"parity": "odd", "place": {"gte": 2, "lt": 5}, "tags": {"contains": ["ring", "odd"]}},
    )
    found = why_not(ring, "i8", asked)
    assert not found.in_list
    assert [one for one in words(found) if one[0] != "ranked"] == [
        ("seen", "the user took it on 2023-11-14T23:13:20+00:00; include_seen returns such items, too"),
        ("excluded", "the request excludes it"),
        ("filtered", 'the filter wants parity equals "odd"; its own is "even"'),
        ("filtered", "the filter wants place lt 5; its own is 8"),
        ("filtered", 'the filter wants tags contains ["ring", "odd"]; its own is ["even", "ring"]'),
    ]
    assert words(why_not(ring, "i3", asked))[0] == ("seen", "the user took it; include_seen returns such items, too")


def test_moments_and_what_is_missing_are_said(goods):
    query = goods.vectors(np.array([3]))[0]
    asked = ask(goods, query, filter={"price": {"gt": 30}, "added": {"not": {"lt": "1970-01-01T01:00:00"}}})
    said = words(why_not(goods, "i3", asked))
    assert ("filtered", "the filter wants price gt 30; its own is 30") in said
    assert (
        "filtered",
        'the filter wants added not {"lt": "1970-01-01T01:00:00"}; its own is 1970-01-01T00:50:00+00:00',
    ) in said
    assert ("filtered", "the filter wants price gt 30; it has no price") in words(why_not(goods, "i5", asked))


def test_an_item_ranked_below_k_is_told_what_it_lacked(ring):
    query = ring.vectors(ring.rows(["i3"]))[0]
    asked = ask(ring, query, k=2)
    scores = np.sort(ring.scores(query))[::-1]
    last = int(np.argmin(ring.scores(query)))
    found = why_not(ring, ring.id(last), asked)
    assert (found.rank, found.rank_among_eligible) == (RING + 1, RING + 1)
    assert words(found) == [
        (
            "ranked",
            f"ranked 13th of those that may be returned: the score {scores[-1]:.4g}, the 2nd {scores[1]:.4g}",
        )
    ]


def test_an_item_in_the_list_has_no_reasons_but_its_ranks(ring):
    query = ring.vectors(ring.rows(["i3"]))[0]
    best = listed(ring, query, 4)
    found = why_not(ring, ring.id(int(best[1])), ask(ring, query, k=3, excluded=best[:1]))
    assert (found.in_list, found.rank, found.rank_among_eligible, found.reasons) == (True, 2, 1, ())


def test_unknown_and_unavailable_items(toy_bundle):
    later = 4_000_000_000_000  # than the bundle, so that it supersedes none of this
    gone = LiveItem("i4", None, False, later)
    changed = LiveItem("i5", {"parity": "even", "place": 99, "title": "turned"}, False, later)
    live = LiveCatalogue(toy_bundle, [gone, changed])
    query = toy_bundle.item_vectors[toy_bundle.item_ids.row("i3")]
    asked = ask(live, query, k=2)
    said = f"there is no item 'i99' in bundle {toy_bundle.id}, and none was PUT since it was sealed"
    assert why_not(live, "i99", asked).reasons == (Reason("unknown", said),)
    for item_id in ("i4", "i5"):
        found = why_not(live, item_id, asked)
        assert words(found)[0] == ("unavailable", "it is not available; PUT it with available true to have it back")
        assert found.rank is not None
    odd = ask(live, query, k=2, filter={"parity": "odd"}, seen=toy_bundle.item_ids.rows(["i5"]))
    said = words(why_not(live, "i5", odd))  # what it is now, and that it was taken when it was another row
    assert said[1:3] == [
        ("seen", "the user took it; include_seen returns such items, too"),
        ("filtered", 'the filter wants parity equals "odd"; its own is "even"'),
    ]


def test_a_popular_list_is_explained_by_popularity(ring):
    order = np.lexsort((np.arange(RING + 1), -ring.popularity))
    asked = Asked(listed=order[:3], k=3, query=None, listed_by=lambda rules: order[:3])
    for place, row in enumerate(order, 1):
        found = why_not(ring, ring.id(int(row)), asked)
        assert (found.rank, found.in_list) == (place, place <= 3)
        assert [reason.reason for reason in found.reasons] == ["ranked"] * (place > 3)
    assert "the popularity" in found.reasons[0].detail


def test_what_an_approximate_index_missed_is_said(ring):
    query = ring.vectors(ring.rows(["i3"]))[0]
    best = listed(ring, query, 4)
    asked = Asked(listed=best[[0, 1, 3]], k=3, query=query, listed_by=lambda rules: best[[0, 1, 3]])
    assert words(why_not(ring, ring.id(int(best[2])), asked)) == [
        ("missed", "exact search ranks it 3rd; the index (flat) is approximate, and did not")
    ]


def ruled(live, query, k, rules):
    """A list by rules, as the Recommender makes it."""

    def listed_by(others):
        return arrange(live, query, k, others, spread=1.0, now_ms=20_000, pool=2 * k).rows

    return Asked(listed=listed_by(rules), k=k, query=query, rules=rules, listed_by=listed_by)


def test_a_full_cap_is_named_with_its_value_and_no_other_is(ring):
    query = ring.vectors(ring.rows(["i3"]))[0]
    asked = ruled(ring, query, 3, Rules(caps=(Cap("tags", 9), Cap("parity", 1))))
    assert len(asked.listed) == 3  # one of each parity; and since three were asked for, one more
    parities = {row: ring.values("parity", np.array([row]))[0][0] for row in range(RING + 1)}
    for row in set(range(RING + 1)) - set(asked.listed.tolist()):
        said = [detail for reason, detail in words(why_not(ring, ring.id(row), asked)) if reason == "rules"]
        assert said == [f'at most 1 of parity "{parities[row]}" are wanted, and as many are in the list']


QUOTA, FRESHNESS = Quota({"brand": "b1"}, 2), Freshness("added", 0.0001, 0.5)


def test_every_rule_without_which_an_item_would_be_there_is_named(goods):
    random = np.random.default_rng(2)
    parts: dict[str, dict[str, Any]] = {
        'at least 2 with {"brand": "b1"}': {"quotas": (QUOTA,)},
        "diversity": {"diversity": 0.4},
        "freshness": {"freshness": FRESHNESS},
    }
    named, together = dict.fromkeys(parts, 0), 0
    for _ in range(40):
        query = random.standard_normal(8).astype(np.float32)
        rules = Rules(**{name: value for said in parts.values() for name, value in said.items()})
        asked = ruled(goods, query, 4, rules)
        for row in set(range(goods.num_rows)) - set(asked.listed.tolist()):
            expected = []
            for words_of_it, said in parts.items():
                others = Rules(**{n: v for other in parts.values() if other is not said for n, v in other.items()})
                if row in asked.listed_by(others):
                    expected.append(f"displaced by a rule: {words_of_it}; without it, it is in the list")
                    named[words_of_it] += 1
            if row in listed(goods, query, 4) and not expected:
                expected = ["displaced by the rules together; without any of them, it is in the list"]
                together += 1
            found = words(why_not(goods, goods.id(row), asked))
            assert [detail for reason, detail in found if reason == "rules"] == expected
            assert ("ranked" in dict(found)) == (row not in listed(goods, query, 4))
    assert all(named.values())
    assert together


def test_of_what_may_not_be_returned_no_rule_is_blamed(ring):
    query = ring.vectors(ring.rows(["i3"]))[0]
    asked = replace(ruled(ring, query, 3, Rules(caps=(Cap("parity", 0),))), excluded=np.arange(RING + 1))
    for row in set(range(RING + 1)) - set(asked.listed.tolist()):
        assert words(why_not(ring, ring.id(row), asked)) == [("excluded", "the request excludes it")]


def test_a_filter_that_cannot_be_used_is_refused(ring):
    query = ring.vectors(ring.rows(["i3"]))[0]
    asked = Asked(
        listed=np.array([0]), k=1, query=query, listed_by=lambda rules: np.array([0]), filter={"colour": "red"}
    )
    with pytest.raises(FilterError, match="there is no attribute 'colour'"):
        why_not(ring, "i1", asked)
