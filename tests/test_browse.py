"""The catalogue as people look at it: what a search finds and in which order, what is declared, and the map."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recsys.attributes import FilterError
from recsys.browse import COLOURS, MAP_SIDE, Browse
from recsys.bundle import Bundle
from recsys.data.schema import Feature
from recsys.live import LiveCatalogue
from recsys.online.store import LiveItem
from recsys.plane import principal_plane
from recsys.recommender import Recommender
from recsys.texts import Texts

FEATURES = [
    Feature("title", "text", show=True),
    Feature("tags", "multi", show=True),
    Feature("hidden", "text"),
    Feature("price", "numeric", show=True),
]
TITLES = ["The Lion", "Lion", "Amélie Straße", "A lionheart", None, "Sea Lion King"]


def texts() -> Texts:
    table = pa.table(
        {
            "title": pa.array(TITLES, pa.string()),
            "tags": pa.array([["lion"], None, ["a b", "c"], [], [None, "Lion"], ["king"]], pa.list_(pa.string())),
            "hidden": pa.array(["secret"] * len(TITLES)),
            "price": pa.array([7.0] * len(TITLES)),
        }
    )
    return Texts(FEATURES, table, len(TITLES))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("lion", {0: 2, 1: 0, 3: 3, 4: 4, 5: 2}),  # the last one but one by a tag alone
        ("LION", {0: 2, 1: 0, 3: 3, 4: 4, 5: 2}),
        ("the li", {0: 1}),
        ("king sea", {5: 4}),
        ("heart", {3: 4}),  # within a word
        ("amelie strasse", {}),  # ß is no accent
        ("AMÉLIE  straße", {2: 0}),
        ("amelie", {2: 1}),
        ("a b c", {2: 4}),
        ("secret", {}),
        ("7", {}),
        ("\n", dict.fromkeys(range(6), 4)),
        ("", dict.fromkeys(range(6), 4)),
        ("%", {}),
        (".*", {}),
    ],
)
def test_every_word_must_occur_and_how_it_does_is_told(text: str, found: dict[int, int]) -> None:
    rows, fits = texts().found(text)
    assert dict(zip(rows.tolist(), fits.tolist(), strict=True)) == found


def test_items_of_which_nothing_is_written_are_there_but_have_no_words() -> None:
    bare = Texts([], pa.table({}), 3)
    assert bare.found("")[0].tolist() == [0, 1, 2]
    assert bare.found("x")[0].tolist() == []
    assert Texts(FEATURES, texts_of_none(), 0).found("x")[0].tolist() == []


def texts_of_none() -> pa.Table:
    return pa.table({"title": pa.array([], pa.string()), "tags": pa.array([], pa.list_(pa.string()))})


def searched(browse: Browse, text: str, limit: int = 20) -> list[Any]:
    return [item.item_id for item in browse.search(text, limit=limit)]


def test_an_id_comes_first_then_what_fits_best_then_what_is_popular(toy_bundle: Bundle) -> None:
    browse = Recommender(toy_bundle).browse
    popular = [toy_bundle.item_ids.id(int(row)) for row in np.argsort(-toy_bundle.popularity, kind="stable")]
    assert searched(browse, "") == popular
    assert searched(browse, "", limit=3) == popular[:3]
    assert searched(browse, "item number") == [item_id for item_id in popular if item_id != "new"]
    assert searched(browse, "i7")[0] == "i7"
    assert set(searched(browse, "number 1")) == {"i1", "i10", "i11"}
    assert searched(browse, "number 1")[0] == "i1"  # its own word, not the start of one
    assert browse.search("never")[0].attributes == {"title": "Item never taken"}


def test_the_live_catalogue_is_what_is_searched_and_drawn(toy_bundle: Bundle) -> None:
    before = LiveCatalogue(toy_bundle)
    new = LiveItem("x/1", {"title": "Brand new thing", "parity": "odd", "tags": ["shiny"]}, True, 1 << 42)
    renamed = LiveItem("i3", {"title": "Renamed", "parity": "third"}, True, 1 << 42)
    gone = LiveItem("i4", None, False, 1 << 42)
    browse = Browse(before.updated([new, renamed, gone]))
    assert searched(browse, "brand new") == ["x/1"]
    assert searched(browse, "renamed") == ["i3"]
    assert searched(browse, "number 3") == searched(browse, "number 4") == []
    assert searched(browse, "i4") == []
    found, unknown = browse.look_up(["i4", "nobody", "x/1"])
    assert [(item.item_id, item.available) for item in found] == [("i4", False), ("x/1", True)]
    assert unknown == ["nobody"]
    parity = next(one for one in browse.attributes() if one.name == "parity")
    assert (parity.values, parity.distinct) == ((("odd", 7), ("even", 5), ("third", 1)), 3)
    drawn = browse.map(attribute="parity")
    assert set(drawn.items) == {"x/1", "new", *(f"i{item}" for item in range(12))} - {"i4"}
    assert drawn.codes is not None
    assert drawn.values[drawn.codes[drawn.items.index("i3")]] == "third"
    other = Browse(before).map()
    unchanged = [item_id for item_id in other.items if item_id not in ("i3", "i4")]
    for mine, theirs in ((drawn.x, other.x), (drawn.y, other.y)):  # what was PUT does not turn the map
        at, was = ([one.items.index(item_id) for item_id in unchanged] for one in (drawn, other))
        assert mine[at].tolist() == theirs[was].tolist()


def test_what_is_declared_is_told_with_its_values_and_ends(shop_bundle: Bundle) -> None:
    told = {one.name: one for one in Recommender(shop_bundle).browse.attributes(values=2)}
    assert list(told) == ["brand", "tags", "price", "title", "added", "picture", "items.sold"]
    assert [told[name].filterable for name in told] == [True, True, True, False, True, False, True]
    assert (told["brand"].values, told["brand"].distinct) == ((("b1", 5), ("b2", 5)), 5)  # b0 4, b3 4, late 1
    assert (told["price"].least, told["price"].most) == (10, 190)
    assert told["added"].least == "1970-01-01T00:16:40+00:00"
    assert told["title"].values == ()
    rows = [tuple(sorted({f"t{item % 3}", f"t{item % 5}"})) for item in range(1, 20)]
    counts = {tag: sum(tag in row for row in rows) for tag in {tag for row in rows for tag in row}}
    assert dict(told["tags"].values) == dict(sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:2])


def test_words_are_counted_once_for_each_state_of_the_items(shop_bundle: Bundle, monkeypatch) -> None:
    counted: list[str] = []
    count = LiveCatalogue.counts

    def counting(live: LiveCatalogue, name: str, among: np.ndarray) -> Any:
        counted.append(name)
        return count(live, name, among)

    monkeypatch.setattr(LiveCatalogue, "counts", counting)
    recommender = Recommender(shop_bundle)
    for values in (0, 2, 99):
        told = {one.name: one for one in recommender.browse.attributes(values=values)}
        assert [word for word, _ in told["brand"].values] == ["b1", "b2", "b0", "b3", "late"][:values]
        assert told["brand"].distinct == 5
    recommender.browse.map(attribute="tags")
    assert counted == ["brand", "tags"]
    changed = recommender.with_live([LiveItem("x", {"brand": "late", "tags": []}, True, 1 << 42)])
    told = {one.name: one for one in changed.browse.attributes()}
    assert dict(told["brand"].values)["late"] == 2
    assert counted == ["brand", "tags"] * 2


def test_a_map_is_of_the_most_popular_and_tells_apart_by_the_rarest_word(shop_bundle: Bundle) -> None:
    browse = Recommender(shop_bundle).browse
    whole, few = browse.map(attribute="tags"), browse.map(limit=5)
    assert few.items == whole.items[:5]
    assert few.codes is None
    assert whole.items[0] == searched(browse, "")[0]
    for places in (whole.x, whole.y):
        assert places.dtype == np.int32
        assert 0 <= places.min() <= places.max() <= MAP_SIDE
    assert max(np.ptp(whole.x), np.ptp(whole.y)) == MAP_SIDE
    assert len(whole.values) <= COLOURS
    counts = dict(next(a for a in browse.attributes() if a.name == "tags").values)
    for item_id, code in zip(whole.items, whole.codes.tolist(), strict=True):
        row = shop_bundle.item_ids.row(item_id)
        words = shop_bundle.attributes.values("tags", np.array([row]))[0]
        assert code == (max(whole.values.index(word) for word in words) if words else -1)
        if words:
            assert counts[whole.values[code]] == min(counts[word] for word in words)
    with pytest.raises(FilterError, match="'price' is numeric; name an attribute of words"):
        browse.map(attribute="price")
    with pytest.raises(FilterError, match="there is no attribute 'tag'"):
        browse.map(attribute="tag")


def test_the_plane_is_the_one_of_the_whole_singular_value_decomposition() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(400, 6)) * [5, 3, 1, 1, 0.5, 0.1] + [1, 0, 0, 0, 2, 0]).astype(np.float32)
    plane = principal_plane(vectors)
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    _, sizes, axes = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    shares = sizes**2 / (sizes**2).sum()
    assert plane.explained == pytest.approx(tuple(shares[:2]))
    for own, axis in zip(plane.axes, axes, strict=False):
        assert own[np.abs(own).argmax()] > 0
        assert abs(own @ axis) == pytest.approx(1)
    assert plane.places(vectors) == pytest.approx((unit - unit.mean(axis=0)) @ plane.axes.T, abs=1e-6)
    assert plane.places(3 * vectors) == pytest.approx(plane.places(vectors), abs=1e-6)


@pytest.mark.parametrize("vectors", [np.zeros((0, 3)), np.zeros((4, 3)), np.ones((1, 1)), np.ones((5, 2))])
def test_vectors_that_do_not_differ_stand_in_one_place(vectors: np.ndarray) -> None:
    plane = principal_plane(vectors.astype(np.float32))
    assert max(plane.explained) == 0
    assert (plane.places(vectors.astype(np.float32)) == 0).all()


def test_two_clusters_are_apart_on_the_map() -> None:
    rng = np.random.default_rng(1)
    centres = np.array([[1, 0, 0, 0], [0, 1, 0, 0]])
    vectors = np.repeat(centres, 50, axis=0) + 0.05 * rng.normal(size=(100, 4))
    first = principal_plane(vectors.astype(np.float32)).places(vectors.astype(np.float32))[:, 0]
    low, high = sorted((first[:50], first[50:]), key=lambda one: one.mean())
    assert low.max() < high.min()


def test_it_is_made_once_a_bundle_and_shared_by_what_is_live(toy_bundle: Bundle) -> None:
    recommender = Recommender(toy_bundle)
    recommender.browse.map()
    later = recommender.with_live([LiveItem("x", {"title": "x"}, True, 1 << 42)])
    assert later.live.derived.places is recommender.live.derived.places
    assert later.live.derived.texts is recommender.live.derived.texts
