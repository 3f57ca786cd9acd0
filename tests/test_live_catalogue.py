"""A bundle's items with what was said of them since: against an exact twin over all rows, and by hand."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys import derived, live
from recsys.attributes import Attributes
from recsys.data.schema import Feature, Schema
from recsys.data.values import FEATURE_TYPES, to_feature
from recsys.ids import IdMap
from recsys.index.build import Flat, HalfPrecision, Hnsw, Ivf, IvfPq, build, kind_of
from recsys.live import FeatureError, LiveCatalogue, checked_features
from recsys.live_features import table_of
from recsys.model.embed import Catalogue
from recsys.online.store import LiveItem
from recsys.orders import ByPopularity, ByPrefix
from tests.toy import RING

LATER = 10**15  # long after any bundle was sealed
HOUR = 3_600_000


def put(item_id, features=None, *, available=True, changed=LATER):
    return LiveItem(item_id, features, available, changed)


def gone(item_id, changed=LATER):
    return put(item_id, available=False, changed=changed)


def own_features(bundle, row):
    """What the bundle says of an item, as a PUT would say it; moments in seconds, as both schemas declare them."""
    said = {}
    for feature, value in bundle.attributes.frame().iloc[row].items():
        kind = bundle.schema.items.feature(feature).kind
        if value is None or (isinstance(value, float) and np.isnan(value)):
            continue
        said[feature] = {"multi": list, "vector": lambda v: [float(x) for x in v], "timestamp": lambda v: v / 1000}.get(
            kind, lambda v: v if isinstance(v, str) else float(v)
        )(value)
    return said


def features_of(name, number):
    if name == "toy_bundle":
        parity = ("even", "odd")[number % 2]
        return {"title": f"Number {number}", "parity": parity, "place": number + 0.5, "tags": [parity, "put"]}
    return {"brand": f"b{number % 4}", "price": 10.0 * number + 1, "title": f"thing number {number}", "tags": ["t1"]}


@pytest.fixture(scope="module", params=["toy_bundle", "shop_bundle"])
def bundle(request):
    return request.getfixturevalue(request.param)


# ---- what a PUT says


EVERY_KIND: dict[str, Any] = {
    "colour": {"kind": "categorical"},
    "tags": {"kind": "multi", "separator": ";"},
    "price": {"kind": "numeric"},
    "title": {"kind": "text", "show": True},
    "added": {"kind": "timestamp", "unit": "s"},
    "micro": {"kind": "timestamp", "unit": "us"},
    "day": {"kind": "timestamp", "unit": "iso"},
    "picture": {"kind": "vector"},
}
SCHEMA = Schema.from_dict(
    {"interactions": {"user": "u", "item": "i"}, "items": {"id": "i", "features": EVERY_KIND}},
)


def test_features_are_taken_as_the_schema_declares_them():
    said = {
        "colour": " red ", "tags": "a; b;;", "price": 3, "title": "A lamp", "added": "1970-01-02T00:00:00Z",
        "micro": 1_700_000_000_123_456, "day": "2026-11-22", "picture": [1, 2.5],
    }  # fmt: skip
    checked = checked_features(SCHEMA, said)
    assert checked == said | {"colour": "red", "tags": ["a", "b"], "added": 86_400}
    assert table_of(SCHEMA, [checked, {}]).to_pylist() == [
        {
            "colour": "red", "tags": ["a", "b"], "price": 3.0, "title": "A lamp", "added": 86_400_000,
            "micro": 1_700_000_000_123, "day": 1_795_305_600_000, "picture": [1.0, 2.5],
        },
        dict.fromkeys(EVERY_KIND),
    ]  # fmt: skip


def test_numbers_may_be_words_and_nothing_is_no_value():
    assert checked_features(SCHEMA, {"colour": 7, "tags": [7, " ", "x"]}) == {"colour": "7", "tags": ["7", "x"]}
    nothing = {"colour": "  ", "tags": [], "price": None, "title": "", "added": " "}
    assert checked_features(SCHEMA, nothing) == {}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"colur": "red"}, r"there is no feature 'colur'; did you mean 'colour'\?"),
        ({"colour": 1.5}, r"feature 'colour' is categorical: give text, got 1\.5"),
        ({"title": ["x"]}, r"feature 'title' is text: give text, got \['x'\]"),
        ({"title": "\ud800"}, "feature 'title' is text: give text that UTF-8 can hold"),
        ({"tags": 3}, "feature 'tags' is multi: give a list of texts, got 3"),
        ({"tags": [True]}, "feature 'tags' is multi: give a list of texts, got True"),
        ({"price": "cheap"}, "feature 'price' is numeric: give a number, got 'cheap'"),
        ({"price": True}, "feature 'price' is numeric: give a number, got True"),
        ({"price": float("nan")}, "feature 'price' is numeric: give a number, got nan"),
        ({"price": 10**400}, "feature 'price' is numeric: give a number, got 1000"),
        ({"added": "yesterday"}, r"give a number \(s since 1970\) or ISO 8601 text, got 'yesterday'"),
        ({"added": 1_700_000_000_000}, "is it in s"),
        ({"day": 3}, "feature 'day' is timestamp: give ISO 8601 text, got 3"),
        ({"picture": []}, r"feature 'picture' is vector: give a list of finite numbers, got \[\]"),
        ({"picture": [1e39]}, "feature 'picture' is vector: give a list of finite numbers"),
    ],
)
def test_what_the_schema_does_not_declare_so_is_refused(said, message):
    with pytest.raises(FeatureError, match=message):
        checked_features(SCHEMA, said)


def test_a_vector_of_another_length_is_refused_where_the_length_is_known(shop_bundle):
    with pytest.raises(FeatureError, match=r"feature 'picture' is vector: give a list of 4 numbers, got \[1, 2, 3\]"):
        LiveCatalogue(shop_bundle).checked({"picture": [1, 2, 3]})


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x1c\x1d\x1e\x1f\x85"), max_size=6)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300) | st.integers(-9, 9)
VALUES = {
    "colour": TEXTS,
    "tags": st.lists(TEXTS, max_size=4),
    "price": NUMBERS,
    "title": TEXTS,
    "added": st.integers(-60_000_000_000, 250_000_000_000) | st.floats(-6e10, 2.5e11),
    "micro": st.integers(-(10**16), 10**17) | st.floats(-1e16, 1e17),
    "day": st.datetimes().map(lambda moment: moment.isoformat()),
    "picture": st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=3),
}


@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_a_put_is_read_as_the_companys_table_would_be(said):
    checked = checked_features(SCHEMA, said)
    assert checked_features(SCHEMA, checked) == checked
    read = table_of(SCHEMA, [checked]).to_pylist()[0]
    for name, value in said.items():
        feature = Feature(name, **EVERY_KIND[name])
        column = pa.array([value], pa.list_(pa.float32()) if name == "picture" else None)
        expected = to_feature(column, feature).values.cast(FEATURE_TYPES[feature.kind])[0].as_py()
        if name == "tags" and not value:
            expected = None
        assert read[name] == expected, name


# ---- the catalogue against its twin


@st.composite
def states(draw, name, n):
    """Words on some of the bundle's items, and on some that it does not know."""
    said = []
    for number in draw(st.lists(st.integers(0, n + 5), unique=True, max_size=n + 6)):
        features = draw(st.none() | st.just(features_of(name, draw(st.integers(0, 30)))))
        said.append((number, features, draw(st.booleans())))
    return said


def made(bundle, said):
    n = len(bundle.item_ids)
    return [
        put(bundle.item_ids.id(number) if number < n else f"new{number}", features, available=available)
        for number, features, available in said
    ]


def expected_rows(bundle, said):
    """Which rows may be recommended, by the definition: bool [R]."""
    n = len(bundle.item_ids)
    shown = [True] * n
    for number, features, available in said:
        if number < n and (features is not None or not available):
            shown[number] = False
    return np.array(shown + [available for _, features, available in said if features is not None])


def check_found(found, scores, allowed, k):
    """That what was found are the k best allowed scores; by score, as equal ones but for rounding may change places."""
    got, rows = found
    best = np.sort(scores[allowed])[::-1][:k]
    assert len(rows) == len(best)
    assert len(set(rows.tolist())) == len(rows)
    assert allowed[rows].all()
    np.testing.assert_allclose(got, best, rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(got, scores[rows], rtol=1e-4, atol=2e-3)


@pytest.fixture(scope="module", params=[Flat(), HalfPrecision(), Hnsw()], ids=lambda kind: type(kind).__name__)
def indexed(bundle, request):
    return replace(bundle, index=build(bundle.item_vectors, request.param))


@pytest.mark.parametrize("few", [0, 64])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_search_finds_what_the_twin_says(request, indexed, few, data):
    name = next(value for value in request.node.callspec.params.values() if str(value).endswith("_bundle"))
    said = data.draw(states(name, len(indexed.item_ids)), "said")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(live, "_FEW", few)
        catalogue = LiveCatalogue(indexed, made(indexed, said))
        total = catalogue.num_rows
        allowed = expected_rows(indexed, said)
        assert len(allowed) == total
        rows = np.arange(total)
        assert [catalogue.available(row) for row in rows.tolist()] == allowed.tolist()
        query = np.random.default_rng(data.draw(st.integers(0, 9))).standard_normal(indexed.item_vectors.shape[1])
        query = query.astype(np.float32)
        eligible = data.draw(st.none() | st.lists(st.booleans(), min_size=total, max_size=total).map(np.array))
        exclude = data.draw(st.none() | st.lists(st.integers(-1, total - 1), max_size=9).map(np.array))
        exclude = None if exclude is None else exclude.astype(np.int64)
        k = data.draw(st.integers(1, total + 2), "k")
        scores = catalogue.vectors(rows) @ query
        full = catalogue.scores(query)
        assert (full == -np.inf).tolist() == (~allowed).tolist()
        np.testing.assert_allclose(full[allowed], scores[allowed], rtol=1e-4, atol=1e-5)
        if eligible is not None:
            allowed &= eligible
        if exclude is not None:
            allowed[exclude[exclude >= 0]] = False
        check_found(catalogue.search(query, k, eligible=eligible, exclude=exclude), scores, allowed, k)
        for one in catalogue.search_many(np.stack([query, query]), k, eligible=eligible, exclude=exclude):
            check_found(one, scores, allowed, k)
        found = ByPopularity(catalogue).search(query, k, eligible=eligible, exclude=exclude)
        shares = np.concatenate([indexed.popularity, np.zeros(total - len(indexed.popularity), dtype=np.float32)])
        shares[len(indexed.popularity) :] = [
            indexed.popularity[number] if number < len(indexed.popularity) else 0
            for number, features, _ in said
            if features is not None
        ]
        order = sorted(np.flatnonzero(allowed).tolist(), key=lambda row: (-shares[row], row))[:k]
        assert found[1].tolist() == order
        assert found[0].tolist() == shares[order].tolist()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_catalogue_made_from_another_is_as_one_made_anew(request, bundle, data):
    name = request.node.callspec.params["bundle"]
    first, second = [data.draw(states(name, len(bundle.item_ids))) for _ in range(2)]
    anew = LiveCatalogue(bundle, made(bundle, second))
    after = LiveCatalogue(bundle, made(bundle, first)).updated(made(bundle, second))
    assert after.num_rows == anew.num_rows
    rows = list(range(anew.num_rows))
    assert [after.id(row) for row in rows] == [anew.id(row) for row in rows]
    assert [after.available(row) for row in rows] == [anew.available(row) for row in rows]
    assert [after.shown(row) for row in rows] == [anew.shown(row) for row in rows]
    np.testing.assert_allclose(after.vectors(np.array(rows)), anew.vectors(np.array(rows)), atol=1e-6)
    np.testing.assert_array_equal(after.popularity, anew.popularity)


def test_popular_items_are_the_twins_where_the_head_of_the_order_is_short(toy_bundle, monkeypatch):
    monkeypatch.setattr(derived, "_POPULAR", 4)
    catalogue = LiveCatalogue(toy_bundle, [gone("i3"), put("i5", {"title": "x"}), put("n", {"parity": "odd"})])
    shares = catalogue.popularity
    rng = np.random.default_rng(0)
    for k in range(1, 16):
        for exclude in (None, np.array([1, 2, -1]), np.arange(13)):
            for eligible in (None, rng.random(len(shares)) < 0.5):
                twin = shares.copy()
                twin[[] if exclude is None else exclude[exclude >= 0]] = -np.inf
                twin[~(np.ones(len(shares), dtype=bool) if eligible is None else eligible)] = -np.inf
                rows = [row for row in np.lexsort((np.arange(len(twin)), -twin)) if twin[row] > -np.inf][:k]
                found = ByPopularity(catalogue).search(np.zeros(1), k, eligible=eligible, exclude=exclude)
                assert found[1].tolist() == rows


def test_a_prefix_is_searched_as_training_cut_it(bundle):
    short = 4
    manifest = replace(bundle.manifest, content={**bundle.manifest.content, "dimensions": [16, 8, short]})
    catalogue = LiveCatalogue(replace(bundle, manifest=manifest), [gone("i3"), put("n", {"title": "thing number 4"})])
    cut = catalogue.vectors(np.arange(catalogue.num_rows))[:, :short]
    query = np.random.default_rng(1).standard_normal(bundle.item_vectors.shape[1]).astype(np.float32)
    asked = query[:short]
    if bundle.towers.architecture.unit:
        cut, asked = cut / np.linalg.norm(cut, axis=1, keepdims=True), asked / np.linalg.norm(asked)
    allowed = np.array([catalogue.available(row) for row in range(catalogue.num_rows)])
    for k in (1, 5, 50):
        check_found(ByPrefix(catalogue).search(query, k), cut @ asked, allowed, k)
    assert catalogue.derived.prefix == short
    graph = LiveCatalogue(replace(bundle, manifest=manifest, index=build(bundle.item_vectors, Hnsw())))
    assert graph.derived.prefix is None  # a graph is cheaper than a scan of a prefix
    assert (graph.derived.hasty_index._effort, graph.bundle.index._effort) == (48, 96)
    assert kind_of(graph.bundle.index) == Hnsw()
    for kind in (Ivf(lists=2, probed_share=1.0), IvfPq(lists=2, probed_share=1.0, reranked=8)):
        index = build(np.tile(bundle.item_vectors, (8, 1)), kind)
        hasty = LiveCatalogue(replace(bundle, manifest=manifest, index=index)).derived.hasty_index
        assert (hasty._effort, hasty._reranked) == (index._effort / 2, max(1, index._reranked // 2))
        assert vars(kind_of(index))["probed_share"] == 1.0
    assert catalogue.derived.hasty_index is None
    assert LiveCatalogue(bundle).derived.prefix is None  # nothing shorter was trained


def test_the_spread_is_the_deviation_of_a_querys_scores(bundle):
    query = np.random.default_rng(2).standard_normal(bundle.item_vectors.shape[1]).astype(np.float32)
    scores = bundle.item_vectors.astype(np.float64) @ query
    assert LiveCatalogue(bundle).derived.spread(query) == pytest.approx(scores.std())


# ---- by hand


def test_nothing_said_is_the_bundle_as_it_was_sealed(bundle):
    catalogue = LiveCatalogue(bundle)
    assert catalogue.num_rows == len(bundle.item_ids)
    np.testing.assert_array_equal(catalogue.popularity, bundle.popularity)
    assert catalogue.row("nobody's") is None
    assert all(catalogue.row(catalogue.id(row)) == row for row in range(catalogue.num_rows))


def test_a_new_item_has_a_row_after_the_bundles(toy_bundle):
    catalogue = LiveCatalogue(toy_bundle, [put("lamp", {"title": "Lamp", "parity": "odd", "tags": ["ring", "put"]})])
    row = catalogue.row("lamp")
    assert (row, catalogue.num_rows) == (RING + 1, RING + 2)
    assert catalogue.rows(["lamp", "i3", "gone"]).tolist() == [row, toy_bundle.item_ids.row("i3"), -1]
    assert (catalogue.id(row), catalogue.shown(row)) == ("lamp", {"title": "Lamp"})
    assert catalogue.said(row) == ("lamp", {"title": "Lamp"})
    assert catalogue.popularity[row] == 0
    assert catalogue.eligible({"parity": "odd"})[row]
    assert not catalogue.eligible({"place": {"gte": 0}})[row]
    assert np.isnan(catalogue.numbers("place")[row])
    three = toy_bundle.item_ids.row("i3")
    assert catalogue.values("tags", np.array([row, three])) == [("ring", "put"), ("odd", "ring")]
    assert catalogue.numbers("place")[three] == 3
    assert catalogue.own(np.array([row, three])).tolist() == [-1, three]


def test_a_changed_item_hides_the_bundles_row_and_keeps_its_id_and_popularity(shop_bundle):
    said = own_features(shop_bundle, 4) | {"price": 1.0}
    catalogue = LiveCatalogue(shop_bundle, [put(shop_bundle.item_ids.id(4), said)])
    row = catalogue.num_rows - 1
    assert catalogue.row(shop_bundle.item_ids.id(4)) == row
    assert catalogue.now(np.array([3, 4, 5])).tolist() == [3, row, 5]
    assert catalogue.own(np.array([row, 3])).tolist() == [4, 3]
    assert (catalogue.available(4), catalogue.available(row)) == (False, True)
    assert catalogue.id(row) == shop_bundle.item_ids.id(4)
    assert catalogue.popularity[[4, row]].tolist() == [-np.inf, shop_bundle.popularity[4]]
    # Its id, which training knew, still speaks.
    table = table_of(shop_bundle.schema, [catalogue.checked(said)])
    codes = shop_bundle.item_encoder.encode(table)
    for trained in (True, False):
        vector = Catalogue(codes, np.array([trained]), np.array([4])).embed(shop_bundle.towers).numpy()[0]
        assert (np.abs(catalogue.vectors(np.array([row]))[0] - vector).max() < 1e-5) == trained


def test_an_item_put_as_another_is_lands_beside_it(shop_bundle):
    for row in range(1, 12):
        catalogue = LiveCatalogue(shop_bundle, [put("twin", own_features(shop_bundle, row))])
        query = catalogue.vectors(np.array([catalogue.row("twin")]))[0]
        _, found = catalogue.search(query, 3)
        assert row in found[:3]


def test_an_item_that_is_not_available_is_hidden_until_it_is_put_again(toy_bundle):
    row = toy_bundle.item_ids.row("i3")
    before = LiveCatalogue(toy_bundle)
    without = before.updated([gone("i3")])
    assert (before.available(row), without.available(row)) == (True, False)
    assert without.row("i3") == row  # it may still be part of a history
    assert without.updated([put("i3")]).available(row)
    new = without.updated([put("new2", {"title": "x"}, available=False)])
    assert (new.row("new2"), new.available(new.row("new2")), new.available(row)) == (RING + 1, False, True)
    assert LiveCatalogue(toy_bundle, [gone("nobody's"), put("nor this")]).num_rows == RING + 1


def sealed_at(bundle):
    return round(datetime.fromisoformat(bundle.manifest.created).timestamp() * 1000)


def test_a_put_is_dropped_when_the_bundle_says_the_same(bundle):
    for row in (0, 5, 6, len(bundle.item_ids) - 1):  # some lack features
        said = own_features(bundle, row)
        item_id = bundle.item_ids.id(row)
        same = LiveCatalogue(bundle, [put(item_id, said)])
        assert (same.num_rows, same.available(row)) == (len(bundle.item_ids), True)
        assert same.updated([put(item_id, dict(said))]).num_rows == len(bundle.item_ids)
        away = LiveCatalogue(bundle, [put(item_id, said, available=False)])
        assert (away.num_rows, away.available(row)) == (len(bundle.item_ids), False)
        other = LiveCatalogue(bundle, [put(item_id, said | {"title": "another"})])
        assert (other.num_rows, other.available(row)) == (len(bundle.item_ids) + 1, False)


def test_a_put_is_dropped_when_the_bundle_knows_the_item_and_is_much_newer(toy_bundle):
    sealed, said = sealed_at(toy_bundle), {"title": "Another"}

    def rows(item_id, changed, **more):
        return LiveCatalogue(toy_bundle, [put(item_id, said, changed=changed)], **more).num_rows - RING - 1

    assert rows("i3", sealed - 47 * HOUR) == 1
    assert rows("i3", sealed - 49 * HOUR) == 0
    assert rows("i3", sealed - 2 * HOUR, put_holds_ms=HOUR) == 0
    assert rows("unheard of", sealed - 49 * HOUR) == 1  # nothing supersedes it
    hidden = LiveCatalogue(toy_bundle, [put("i3", said, available=False, changed=sealed - 49 * HOUR)])
    assert (hidden.num_rows, hidden.available(toy_bundle.item_ids.row("i3"))) == (RING + 1, False)


def test_the_last_word_on_an_item_counts(toy_bundle):
    twice = [put("n", {"title": "First"}), gone("i3"), put("n", {"title": "Second"}), put("i3")]
    catalogue = LiveCatalogue(toy_bundle, twice)
    assert catalogue.shown(catalogue.row("n")) == {"title": "Second"}
    assert catalogue.available(catalogue.row("i3"))


def test_what_this_bundle_cannot_use_is_told_and_the_rest_is_used(toy_bundle):
    catalogue = LiveCatalogue(toy_bundle, [put("n", {"title": "N", "colour": "red", "place": "far"})])
    assert catalogue.shown(catalogue.row("n")) == {"title": "N"}
    assert len(catalogue.ignored) == 1
    assert "item 'n': there is no feature 'colour'" in catalogue.ignored[0]
    again = catalogue.updated([put("n", {"title": "N", "colour": "red", "place": "far"}), put("m", {"title": "M"})])
    assert again.ignored == catalogue.ignored
    assert again.updated([put("n", {"title": "N"})]).ignored == ()


def test_features_that_overflow_the_tower_are_told_and_not_used(shop_bundle):
    catalogue = LiveCatalogue(shop_bundle, [put("n", {"picture": [3e38, 3e38, 3e38, 3e38]})])
    assert catalogue.row("n") is None
    assert "give no finite vector" in catalogue.ignored[0]
    with pytest.raises(FeatureError, match="give no finite vector"):
        catalogue.embedded({"picture": [3e38, 3e38, 3e38, 3e38]})


def test_ids_are_of_the_bundles_type(toy_bundle):
    numbered = replace(toy_bundle, item_ids=IdMap.of(range(100, 101 + RING)))
    catalogue = LiveCatalogue(numbered, [put("7", {"title": "x"}), put("A7", {"title": "y"}), gone("103")])
    assert [catalogue.id(row) for row in range(RING + 1, catalogue.num_rows)] == [7, "A7"]
    assert (catalogue.row(7), catalogue.row("7"), catalogue.row("07")) == (RING + 1, RING + 1, None)
    assert (catalogue.row(103), catalogue.row("103"), catalogue.available(3)) == (3, 3, False)


def test_a_bundle_without_features_has_live_items_too(toy_bundle):
    schema = replace(toy_bundle.schema, items=None)
    bare = replace(toy_bundle, schema=schema, attributes=Attributes(None, pa.table({}), RING + 1))
    with pytest.raises(FeatureError, match="there is no feature 'title'; valid: none"):
        LiveCatalogue(bare).checked({"title": "x"})
    assert LiveCatalogue(bare, [gone("i3")]).available(3) is False


def test_what_is_made_of_the_bundle_alone_is_made_once(toy_bundle):
    first = LiveCatalogue(toy_bundle)
    second = first.updated([put("n", {"title": "x"})])
    assert second.derived is first.derived
    assert second.said(0) is first.said(0)
    made_before = second.vectors(np.array([RING + 1]))
    third = second.updated([put("m", {"title": "y"}), put("n", {"title": "x"})])
    assert third.id(RING + 2) == "n"
    np.testing.assert_array_equal(third.vectors(np.array([RING + 2])), made_before)
