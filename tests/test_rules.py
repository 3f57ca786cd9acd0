"""Rules: each by hand, and all of them together against a twin that sorts everything."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.attributes import Attributes
from recsys.data.schema import Entity, Feature
from recsys.rules import Cap, Freshness, Quota, RuleError, Rules, arrange
from tests.rules_twin import DAY_MS, NOW, Toy, plainly

# What requests and configurations may say, whatever the types want.
ONE_AND_A_HALF: Any = 1.5
NO_MAPPING: Any = []
MUCH: Any = "much"
QUERY = np.array([1.0, 0.0], dtype=np.float32)


def toy(*items):
    """Items of falling scores: 1, 0.99, …"""
    return Toy([{"vector": [1 - 0.01 * row, 0.0], **item} for row, item in enumerate(items)])


def arranged(catalogue, k, rules, **more):
    """Rows and what was relaxed, after a look at whether the twin agrees."""
    said: dict[str, Any] = {"query": QUERY, "spread": 1.0, "now_ms": NOW, "pool": 20} | more
    made = arrange(catalogue, k=k, rules=rules, **said)
    rows, relaxed = plainly(catalogue, k=k, rules=rules, **said)
    assert (made.rows.tolist(), made.relaxed) == (rows, relaxed)
    assert made.rows.dtype == np.int64
    assert made.scores.dtype == np.float32
    assert made.scores.tolist() == catalogue.scores(said["query"])[made.rows].tolist()
    return made.rows.tolist(), made.relaxed


BRANDS = [{"brand": brand} for brand in "aaabba"]


@pytest.mark.parametrize(
    ("most", "k", "rows", "relaxed"),
    [
        (2, 4, [0, 1, 3, 4], ()),
        (1, 2, [0, 3], ()),
        (2, 5, [0, 1, 3, 4, 2], ("caps",)),  # five are wanted and four may be: what was passed over fills the list
        (0, 2, [0, 1], ("caps",)),
        (9, 9, [0, 1, 2, 3, 4, 5], ()),
    ],
)
def test_caps(most, k, rows, relaxed):
    assert arranged(toy(*BRANDS), k, Rules(caps=(Cap("brand", most),))) == (rows, relaxed)


def test_an_item_counts_for_each_of_its_values_and_one_without_for_none():
    catalogue = toy({"tags": ["x", "y"]}, {"tags": ["y"]}, {"tags": ["x"]}, {"tags": ["z", "z"]}, {}, {}, {"tags": []})
    assert arranged(catalogue, 5, Rules(caps=(Cap("tags", 1),))) == ([0, 3, 4, 5, 6], ())
    assert arranged(catalogue, 3, Rules(caps=(Cap("tags", 0),))) == ([4, 5, 6], ())


def test_several_caps_hold_at_once():
    catalogue = toy(
        {"brand": "a", "tags": ["x"]}, {"brand": "b", "tags": ["x"]}, {"brand": "a", "tags": ["y"]},
        {"brand": "b", "tags": ["y"]}, {"brand": "c"},
    )  # fmt: skip
    assert arranged(catalogue, 3, Rules(caps=(Cap("brand", 1), Cap("tags", 1)))) == ([0, 3, 4], ())


PROMOTED = [{}, {}, {}, {"tags": ["ours"]}, {}, {"tags": ["ours"]}, {"tags": ["ours"]}]
OURS = {"tags": "ours"}


@pytest.mark.parametrize(
    ("least", "k", "rows", "relaxed"),
    [
        (1, 3, [0, 1, 3], ()),
        (2, 3, [0, 3, 5], ()),
        (1, 4, [0, 1, 2, 3], ()),  # met by what was to be picked anyway
        (3, 3, [3, 5, 6], ()),
        (4, 4, [3, 5, 6, 0], ("quotas[0]",)),
        (1, 9, [0, 1, 2, 3, 4, 5, 6], ()),
    ],
)
def test_quotas(least, k, rows, relaxed):
    assert arranged(toy(*PROMOTED), k, Rules(quotas=(Quota(OURS, least),))) == (rows, relaxed)


def test_a_quota_gives_way_to_a_cap_and_is_named():
    catalogue = toy(*({"brand": "a", **item} if item else {"brand": "b"} for item in PROMOTED))
    rules = Rules(caps=(Cap("brand", 2),), quotas=(Quota({"brand": "nobody"}, 1), Quota(OURS, 3)))
    assert arranged(catalogue, 4, rules) == ([3, 5, 0, 1], ("quotas[0]", "quotas[1]"))


def test_one_item_may_meet_several_quotas():
    catalogue = toy({}, {}, {"tags": ["x"]}, {"tags": ["y"]}, {"tags": ["x", "y"]})
    rules = Rules(quotas=(Quota({"tags": "x"}, 1), Quota({"tags": "y"}, 1)))
    assert arranged(catalogue, 3, rules) == ([0, 2, 3], ())
    assert arranged(catalogue, 1, rules) == ([2], ("quotas[1]",))


def test_freshness_lifts_by_the_spread_and_halves():
    catalogue = Toy(
        [
            {"vector": [1.0, 0]},
            {"vector": [0.5, 0], "added": NOW},  # + 1
            {"vector": [0.75, 0], "added": NOW - 7 * DAY_MS},  # + 0.5
            {"vector": [0.5, 0], "added": NOW + 99 * DAY_MS},  # + 1: it is yet to come
            {"vector": [0.75, 0], "added": NOW - 14 * DAY_MS},  # + 0.25: as good as the first
        ]
    )
    fresh = Rules(freshness=Freshness("added", half_life_days=7, weight=2.0))
    assert arranged(catalogue, 5, fresh, spread=0.5) == ([1, 3, 2, 0, 4], ())
    assert arranged(catalogue, 2, fresh, spread=0.0) == ([0, 2], ())


def test_diversity_prefers_what_is_unlike():
    catalogue = Toy([{"vector": vector} for vector in ([4.0, 0], [3.5, 0], [3.0, 1.0], [2.0, 4.0], [1.0, -4.0])])
    assert arranged(catalogue, 3, Rules(diversity=0.5)) == ([0, 3, 1], ())
    assert arranged(catalogue, 3, Rules(diversity=0.01)) == ([0, 1, 2], ())
    assert arranged(catalogue, 3, Rules(diversity=1), pool=3) == ([0, 2, 1], ())
    assert arranged(catalogue, 4, Rules(diversity=0.5), pool=3) == ([0, 1, 2, 3], ())
    assert arranged(catalogue, 3, Rules(diversity=0.5), pool=1) == ([0, 1, 2], ())


def test_what_a_quota_brings_from_beyond_the_pool_counts_as_picked():
    vectors = [4.0, 0], [3.5, 0.5], [3.0, 3.0], [1.0, 0]
    catalogue = Toy([{"vector": vector, "brand": brand} for vector, brand in zip(vectors, "aaab", strict=True)])
    thrice = (Quota({"brand": "b"}, 1),) * 3
    assert arranged(catalogue, 3, Rules(diversity=0.9), pool=3) == ([0, 2, 1], ())
    assert arranged(catalogue, 1, Rules(diversity=0.9, quotas=thrice[:1]), pool=3) == ([3], ())
    # Three must be met with three places left: one item meets them all, and then the pool goes on, unlike that one.
    assert arranged(catalogue, 3, Rules(diversity=0.9, quotas=thrice), pool=3) == ([3, 2, 0], ())


def test_the_request_s_own_filter_and_exclusions_hold():
    catalogue = toy(*PROMOTED)
    eligible = np.array([True, True, True, True, True, True, False])
    rules = Rules(quotas=(Quota(OURS, 3),))
    assert arranged(catalogue, 3, rules, eligible=eligible, exclude=np.array([3, -1])) == ([5, 0, 1], ("quotas[0]",))
    assert arranged(catalogue, 3, rules, eligible=np.zeros(7, dtype=bool)) == ([], ("quotas[0]",))
    assert arranged(catalogue, 3, Rules(diversity=0.5), eligible=np.zeros(7, dtype=bool)) == ([], ())


def test_an_empty_catalogue_has_no_list():
    made = arrange(Toy([]), QUERY, 3, Rules(quotas=(Quota(OURS, 1),)), spread=1.0, now_ms=NOW, pool=5)
    assert (made.rows.tolist(), made.relaxed) == ([], ("quotas[0]",))


def test_equal_scores_keep_the_order_of_rows_however_they_were_found():
    # The quotas' own search finds 7 and 8; when only one of "a" may follow, the search of all has not come to 6.
    items = [{"vector": [1.0, 0.0], "brand": brand} for brand in ["a"] * 6 + ["b", "ours", "ours"]]
    rules = Rules(caps=(Cap("brand", 1), Cap("brand", 2)), quotas=(Quota({"brand": "ours"}, 1),) * 3)
    assert arranged(Toy(items), 3, rules) == ([7, 0, 6], ())
    rules = Rules(caps=(Cap("tags", 1),), quotas=(Quota({"brand": "ours"}, 1),) * 3)
    tagged = [{**item, "tags": ["x"]} if item["brand"] == "a" else item for item in items]
    assert arranged(Toy(tagged), 3, rules) == ([7, 0, 6], ())


def test_what_fills_a_list_may_be_found_after_everything_that_caps_allow(monkeypatch):
    monkeypatch.setattr("recsys.rules.arranging._SEARCHED_PLAINLY", 0)
    catalogue = toy(*[{"brand": "a"}] * 40, {"brand": "a", "added": NOW})
    rules = Rules(caps=(Cap("brand", 0),), freshness=Freshness("added", 1, 1))
    assert arranged(catalogue, 3, rules) == ([40, 0, 1], ("caps",))


def deep(brand_of, num_items=40_000):
    """Many items of falling scores; the brand of each."""
    items = [{"vector": [1 - row / num_items, 0.0], "brand": brand_of(row)} for row in range(num_items)]
    return Toy(items)


def test_capped_items_by_the_thousand_are_passed_over_by_a_mask_and_not_one_by_one():
    catalogue = deep(lambda row: "a" if row < 30_000 else "b" if row < 39_000 else "c")
    made = arrange(catalogue, QUERY, 6, Rules(caps=(Cap("brand", 2),)), spread=1.0, now_ms=NOW, pool=6)
    assert (made.rows.tolist(), made.relaxed) == ([0, 1, 30_000, 30_001, 39_000, 39_001], ())
    made = arrange(catalogue, QUERY, 7, Rules(caps=(Cap("brand", 2),)), spread=1.0, now_ms=NOW, pool=6)
    assert (made.rows.tolist(), made.relaxed) == ([0, 1, 30_000, 30_001, 39_000, 39_001, 2], ("caps",))
    assert max(depth for depth, _ in catalogue.searched) < 4_000


def test_what_meets_a_quota_is_searched_for_by_itself():
    catalogue = deep(lambda row: "ours" if row >= 39_990 else None)
    quota = Quota({"brand": "ours"}, 2)
    made = arrange(catalogue, QUERY, 5, Rules(quotas=(quota,)), spread=1.0, now_ms=NOW, pool=5)
    assert (made.rows.tolist(), made.relaxed) == ([0, 1, 2, 39_990, 39_991], ())
    assert max(depth for depth, _ in catalogue.searched) < 100


def test_strong_freshness_searches_only_what_is_new_enough_to_matter():
    size = 40_000
    added = [NOW - (5_000 if row % 1_000 else 0) * DAY_MS for row in range(size)]
    catalogue = Toy([{"vector": [1 - row / size, 0.0], "added": moment} for row, moment in enumerate(added)])
    rules = Rules(freshness=Freshness("added", 30, 1.0))
    assert arranged_rows(catalogue, 10, rules) == list(range(0, 10_000, 1_000))
    assert max(min(depth, eligible) for depth, eligible in catalogue.searched) < 2_000


def arranged_rows(catalogue, k, rules):
    return arrange(catalogue, QUERY, k, rules, spread=1.0, now_ms=NOW, pool=k).rows.tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cap("brand", -1), "caps.brand: at most -1 cannot be held; give an integer from 0 on"),
        (lambda: Cap("brand", ONE_AND_A_HALF), "caps.brand: at most 1.5 cannot be held"),
        (lambda: Cap("brand", True), "caps.brand: at most True cannot be held"),
        (lambda: Quota({}, 0), "a quota of at least 0 says nothing; give an integer from 1 on"),
        (lambda: Quota({}, False), "a quota of at least False says nothing"),
        (lambda: Quota(NO_MAPPING, 1), r"a quota's filter maps attributes to clauses, got \[\]"),
        (lambda: Rules(diversity=1.01), "diversity is 1.01; give a number from 0 to 1"),
        (lambda: Rules(diversity=math.nan), "diversity is nan; give a number from 0 to 1"),
        (lambda: Rules(diversity=-0.1), "diversity is -0.1"),
        (lambda: Freshness("added", 0, 1), "freshness.half_life_days is 0; give a number of days above 0"),
        (lambda: Freshness("added", math.inf, 1), "freshness.half_life_days is inf; give a number of days above 0"),
        (lambda: Freshness("added", 1, -1), "freshness.weight is -1; give a finite number from 0 on"),
        (lambda: Freshness("added", 1, math.nan), "freshness.weight is nan; give a finite number from 0 on"),
        (lambda: Freshness("added", 1, MUCH), "freshness.weight is 'much'; give a finite number from 0 on"),
    ],
)
def test_rules_that_cannot_be_are_refused_at_once(make, message):
    with pytest.raises(RuleError, match=message):
        make()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (Rules(caps=(Cap("brnd", 1),)), r"caps: there is no attribute 'brnd' to filter by; did you mean 'brand'\?"),
        (Rules(caps=(Cap("title", 1),)), "caps: 'title' is text, which nothing can filter by; valid: brand, tags,"),
        (Rules(caps=(Cap("price", 1),)), "caps: 'price' is numeric; name an attribute that is categorical or multi"),
        (Rules(freshness=Freshness("price", 1, 1)), "freshness: 'price' is numeric; name an attribute that is timesta"),
        (Rules(freshness=Freshness("aded", 1, 1)), r"freshness: there is no attribute 'aded' .*mean 'added'\?"),
        (
            Rules(quotas=(Quota({}, 1), Quota({"brand": {"equal": 1}}, 1))),
            r"quotas\[1\]: 'brand': there is no clause 'equal'; did you mean 'equals'\?",
        ),
        (
            Rules(freshness=Freshness("added", 1, 1e308)),
            "freshness.weight times the spread of scores, 10000000000.0, is inf; give less",
        ),
    ],
)
@pytest.mark.parametrize("size", [0, 3])
def test_rules_that_do_not_fit_the_catalogue_are_refused(rules, message, size):
    with pytest.raises(RuleError, match=message):
        arrange(toy(*[{}] * size), QUERY, 1, rules, spread=1e10, now_ms=NOW, pool=1)


def test_at_least_one_item_must_be_asked_for():
    with pytest.raises(RuleError, match="k is 0; ask for at least 1 item"):
        arrange(toy({}), QUERY, 0, Rules(diversity=1), spread=1.0, now_ms=NOW, pool=1)


def test_rules_that_say_nothing_are_falsy():
    assert not Rules()
    assert not Rules(freshness=Freshness("added", 1, 0))
    for says in ({"caps": (Cap("a", 0),)}, {"quotas": (Quota({}, 1),)}, {"diversity": 0.1}):
        assert Rules(**says)
    assert Rules(freshness=Freshness("added", 1, 0.1))


coordinates = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]) | st.floats(-2, 2, width=32, allow_subnormal=False)
words = st.sampled_from(["a", "b", "c", ""])
items = st.fixed_dictionaries(
    {"vector": st.tuples(coordinates, coordinates).map(list)},
    optional={
        "brand": st.none() | words,
        "tags": st.none() | st.lists(words, max_size=3),
        "price": st.sampled_from([0.0, 1.0, 2.0, math.nan]),
        "added": st.sampled_from([0, 1, 7, 8, 30, 400, -5]).map(lambda days: NOW - days * DAY_MS)
        | st.integers(NOW - 100 * DAY_MS, NOW + DAY_MS),
    },
)
filters = st.sampled_from(
    [
        {}, {"brand": "a"}, {"brand": {"not": "a"}}, {"tags": ["a", "b"]}, {"tags": {"contains": ["a", "b"]}},
        {"price": {"gte": 1}}, {"price": {"not": {"gte": 1}}}, {"brand": "nobody"},
    ]
)  # fmt: skip
several_rules = st.builds(
    Rules,
    caps=st.lists(st.builds(Cap, st.sampled_from(["brand", "tags"]), st.integers(0, 4)), max_size=3),
    quotas=st.lists(st.builds(Quota, filters, st.integers(1, 5)), max_size=3),
    diversity=st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1),
    freshness=st.none()
    | st.builds(Freshness, st.just("added"), st.sampled_from([1.0, 7.0, 0.3]), st.sampled_from([0, 0.5, 1, 10])),
)


@st.composite
def catalogues(draw):
    """Few items, or some items over and over, so that depth matters and much is alike."""
    few = draw(st.lists(items, min_size=1, max_size=8))
    size = draw(st.integers(1, 12) | st.integers(13, 150))
    choice = draw(st.randoms(use_true_random=False))
    return Toy([few[choice.randrange(len(few))] for _ in range(size)])


@settings(max_examples=300, deadline=None)
@given(
    catalogue=catalogues(),
    k=st.integers(1, 6) | st.integers(7, 40),
    rules=several_rules,
    query=st.tuples(coordinates, coordinates),
    spread=st.sampled_from([0.0, 0.5, 1.0]),
    pool=st.integers(1, 30),
    plainly_to=st.sampled_from([0, 8, 1_000]),
    data=st.data(),
)
def test_any_rules_give_what_sorting_everything_gives(catalogue, k, rules, query, spread, pool, plainly_to, data):
    rows = st.integers(0, catalogue.num_rows - 1)
    left_out = data.draw(st.none() | st.lists(rows, max_size=5).map(lambda rows: np.array([*rows, -1])))
    kept = data.draw(st.none() | st.sets(rows).map(lambda rows: np.isin(np.arange(catalogue.num_rows), list(rows))))
    more = {"query": np.array(query, np.float32), "eligible": kept, "exclude": left_out}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recsys.rules.arranging._SEARCHED_PLAINLY", plainly_to)
        listed, _ = arranged(catalogue, k, rules, spread=spread, pool=pool, **more)
    eligible = np.ones(catalogue.num_rows, dtype=bool) if kept is None else kept.copy()
    eligible[[] if left_out is None else left_out[left_out >= 0]] = False
    assert len(set(listed)) == len(listed) == min(k, eligible.sum())


@pytest.mark.parametrize("seed", range(300))
def test_depth_is_deep_enough(seed):
    """Small k among many items of which many are capped, new, alike or of equal score: bounds decide what is found."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(40, 250))
    scores = rng.integers(0, 40, size) / 8 if seed % 2 else rng.normal(size=size)
    rare = rng.random(size) < 0.1
    catalogue = Toy(
        [
            {
                "vector": [score, rng.integers(-1, 2)],
                "brand": "ours" if rare[row] else "abcde"[int(min(4, rng.exponential(1)))],
                "added": NOW - int(rng.exponential(60 if rare[row] else 400) * DAY_MS),
            }
            for row, score in enumerate(scores.tolist())
        ]
    )
    fresh = Freshness("added", float(rng.choice([1, 30, 200])), float(rng.choice([0.3, 1, 4])))
    rules = Rules(
        caps=(Cap("brand", int(rng.integers(0, 4))),) * int(rng.integers(0, 2)),
        quotas=tuple(Quota({"brand": brand}, int(rng.integers(1, 3))) for brand in ("ours", "d")[: rng.integers(0, 3)]),
        diversity=float(rng.choice([0, 0, 0.3, 0.8])),
        freshness=fresh if seed % 3 else None,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recsys.rules.arranging._SEARCHED_PLAINLY", int(rng.choice([0, 8, 1_000])))
        arranged(catalogue, int(rng.integers(1, 9)), rules, spread=float(scores.std()), pool=int(rng.integers(1, 12)))


DOCUMENTED = Path("docs/rules.md").read_text(encoding="utf-8")


def test_what_the_documentation_asks_for_can_be():
    asked = [json.loads(body) for body in re.findall(r"-d '(.*?)'\n```", DOCUMENTED, re.DOTALL)]
    assert len(asked) == 5
    brands = {"brand": "a", "category": "boots", "label": "promoted", "tags": ["vegan"], "price": 15.0, "added": NOW}
    features = (
        Feature("brand", "categorical"), Feature("category", "categorical"), Feature("label", "categorical"),
        Feature("tags", "multi"), Feature("price", "numeric"), Feature("added", "timestamp"),
    )  # fmt: skip
    catalogue = toy(*[{}] * 3)
    catalogue.attributes = Attributes(Entity("id", features), pa.Table.from_pylist([brands] * 3), 3)
    catalogue.eligible, catalogue.kind = catalogue.attributes.eligible, catalogue.attributes.kind
    catalogue.numbers, catalogue.values = catalogue.attributes.numbers, catalogue.attributes.values
    for body in asked:
        assert body.keys() <= {"user_id", "k", "filter", "caps", "quotas", "diversity", "freshness"}
        rules = Rules(
            caps=tuple(Cap(name, most) for name, most in body.get("caps", {}).items()),
            quotas=tuple(Quota(said["filter"], said["at_least"]) for said in body.get("quotas", [])),
            diversity=body.get("diversity", 0),
            freshness=Freshness(**body["freshness"]) if "freshness" in body else None,
        )
        eligible = catalogue.eligible(body.get("filter", {}))
        made = arrange(catalogue, QUERY, body["k"], rules, spread=1, eligible=eligible, now_ms=NOW, pool=9)
        assert made.rows.tolist() == [0, 1, 2]


def test_the_documentation_s_python_runs():
    asked = {}
    code = DOCUMENTED.split("```python\n")[1].split("```")[0]

    class Recommender:
        def recommend(self, **said):
            asked.update(said)

    exec(code, {"recommender": Recommender()})  # noqa: S102
    assert asked["rules"].quotas == (Quota({"label": "promoted"}, 2),)
