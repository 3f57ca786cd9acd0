"""Filters against a twin in plain Python, and what they say of what they cannot use."""

import math
import operator
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.attributes import Attributes, FilterError
from recsys.data.schema import Entity, Feature

FEATURES = (
    Feature("brand", "categorical", show=True),
    Feature("tags", "multi", show=True),
    Feature("price", "numeric", show=True),
    Feature("added", "timestamp", show=True),
    Feature("title", "text", show=True),
    Feature("hidden", "categorical"),
    Feature("taste", "vector"),
)
TYPES = {
    "brand": pa.string(), "tags": pa.list_(pa.string()), "price": pa.float64(), "added": pa.int64(),
    "title": pa.string(), "hidden": pa.string(), "taste": pa.list_(pa.float32()),
}  # fmt: skip


def table(rows):
    return pa.table({name: pa.array([row.get(name) for row in rows], kind) for name, kind in TYPES.items()})


def attributes(rows):
    return Attributes(Entity("id", FEATURES), table(rows), len(rows))


ROWS = [
    {"brand": "acme", "tags": ["new", "red"], "price": 1.0, "added": 0, "title": "One"},
    {"brand": "zeta", "tags": ["red"], "price": 2.5, "added": 86_400_000},
    {"brand": "acme", "tags": [], "price": 3.0},
    {},
]


@pytest.mark.parametrize(
    ("filter", "rows"),
    [
        ({}, [0, 1, 2, 3]),
        ({"brand": "acme"}, [0, 2]),
        ({"brand": ["acme", "zeta"]}, [0, 1, 2]),
        ({"brand": {"not": "acme"}}, [1, 3]),
        ({"brand": {"in": ["acme", "nobody"]}, "price": {"gt": 1}}, [2]),
        ({"brand": "nobody"}, []),
        ({"tags": "red"}, [0, 1]),
        ({"tags": {"contains": ["red", "new"]}}, [0]),
        ({"tags": {"contains": "red"}}, [0, 1]),
        ({"tags": {"in": ["new", "blue"]}}, [0]),
        ({"tags": {"contains": "red", "not": {"contains": "new"}}}, [1]),
        ({"tags": {"not": ["red"]}}, [2, 3]),
        ({"price": 2.5}, [1]),
        ({"price": {"gte": 1, "lt": 3}}, [0, 1]),
        ({"price": {"lte": 2.5}}, [0, 1]),
        ({"price": {"not": {"lte": 2.5}}}, [2, 3]),
        ({"price": [1, 3, 9]}, [0, 2]),
        ({"price": {"in": [2.5]}}, [1]),
        ({"price": {"contains": 2.5}}, [1]),
        ({"price": {"contains": [2.5, 3]}}, []),
        ({"price": {"not": {"equals": 1}}}, [1, 2, 3]),
        ({"price": math.nan}, []),
        ({"brand": {"contains": "acme"}}, [0, 2]),
        ({"brand": {"contains": ["acme", "acme"]}}, [0, 2]),
        ({"brand": {"contains": ["acme", "zeta"]}}, []),
        ({"tags": {"equals": "new"}}, [0]),
        ({"tags": {"contains": ["red", "nobody"]}}, []),
        ({"added": 0}, [0]),
        ({"added": {"in": ["1970-01-02", 5]}}, [1]),
        ({"added": {"contains": 86_400}}, [1]),
        ({"added": {"gte": 0, "not": {"equals": 0}}}, [1]),
        ({"added": {"not": {"lte": "1970-01-01T00:00:00Z"}}}, [1, 2, 3]),
        ({"added": {"gte": 86_400}}, [1]),
        ({"added": {"gt": "1970-01-01"}}, [1]),
        ({"added": {"lt": "1970-01-02T01:00:00+01:00"}}, [0]),
    ],
)
def test_filters_by_hand(filter, rows):
    passing = attributes(ROWS).eligible(filter)
    assert passing.dtype == bool
    assert np.flatnonzero(passing).tolist() == rows


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        ({"brnd": "acme"}, r"there is no attribute 'brnd' to filter by; did you mean 'brand'\? \(valid: brand, tags,"),
        ({"title": "One"}, "'title' is text, which nothing can filter by; valid: brand, tags, price, added, hidden"),
        ({"title": {"contains": "One"}}, "'title' is text, which nothing can filter by; valid: brand, tags, price,"),
        ({"taste": 1}, "'taste' is vector, which nothing can filter by; valid: brand, tags, price, added, hidden"),
        ({"brand": {"equal": "a"}}, r"'brand': there is no clause 'equal'; did you mean 'equals'\? \(valid: equals,"),
        ({"brand": {"not": {"greater": 1}}}, "'brand': there is no clause 'greater'; "),
        ({"brand": {"gt": "a"}}, "'brand' is categorical and has no order; use equals, in or contains"),
        ({"tags": {"lte": 3}}, "'tags' is multi and has no order; use equals, in or contains"),
        ({"brand": []}, "'brand': 'in' is empty; name at least one value"),
        ({"tags": {"contains": []}}, "'tags': 'contains' is empty; name at least one value"),
        ({"brand": None}, "'brand' cannot equal None; give text"),
        ({"brand": True}, "'brand' cannot equal True; give text"),
        ({"tags": [["red"]]}, r"'tags' cannot equal \['red'\]; give text"),
        ({"price": "cheap"}, "'price' cannot be compared with 'cheap'; give a number"),
        ({"price": {"gt": None}}, "'price' cannot be compared with None; give a number"),
        ({"price": False}, "'price' cannot be compared with False; give a number"),
        ({"price": 10**400}, "'price' cannot be compared with 1000.*; give a number"),
        ({"added": {"gt": "yesterday"}}, "'added': 'yesterday' is no ISO 8601 moment"),
    ],
)
def test_what_cannot_be_used_is_said(filter, message):
    with pytest.raises(FilterError, match=message):
        attributes(ROWS).eligible(filter)


MANY = [f"w{number}" for number in range(40)]


@pytest.mark.parametrize(
    ("filter", "rows"),
    [
        ({"brand": MANY[5:]}, range(5, 40)),
        ({"brand": {"not": [*MANY[5:], "nobody"]}}, [*range(5), 40]),
        ({"tags": MANY[:20]}, range(21)),
        ({"tags": {"contains": MANY}}, []),
        ({"tags": {"contains": [MANY[7], MANY[6]]}}, [7]),
        ({"price": [float(number) for number in range(20, 80)]}, range(20, 40)),
        ({"price": {"not": [*range(20), math.nan, 1e9]}}, range(20, 41)),
        ({"added": list(range(30))}, range(30)),
        ({"added": {"contains": list(range(30))}}, []),
    ],
)
def test_many_values_at_once(filter, rows):
    items = [
        {"brand": word, "tags": [word, MANY[max(0, at - 1)]], "price": at, "added": 1000 * at}
        for at, word in enumerate(MANY)
    ]
    assert np.flatnonzero(attributes([*items, {}]).eligible(filter)).tolist() == list(rows)


def test_numbers_words_and_kinds():
    said = attributes(ROWS)
    assert [said.kind(name) for name in ("brand", "tags", "price", "added")] == [
        "categorical", "multi", "numeric", "timestamp",
    ]  # fmt: skip
    assert np.array_equal(said.numbers("price"), [1, 2.5, 3, np.nan], equal_nan=True)
    assert np.array_equal(said.numbers("added"), [0, 86_400_000, np.nan, np.nan], equal_nan=True)
    assert said.values("brand", np.array([3, 1, 0, 0])) == [(), ("zeta",), ("acme",), ("acme",)]
    assert said.values("tags", np.array([2, 0, 3])) == [(), ("new", "red"), ()]
    assert said.values("tags", np.array([], dtype=np.int64)) == []
    assert said.table(np.array([1, 0])).column("title").to_pylist() == [None, "One"]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda said: said.kind("prices"), r"there is no attribute 'prices' to filter by; did you mean 'price'\?"),
        (lambda said: said.numbers("title"), "'title' is text, which nothing can filter by"),
        (lambda said: said.numbers("tags"), "'tags' is multi and holds no numbers; name one that is numeric or time"),
        (lambda said: said.values("added", np.arange(1)), "'added' is timestamp and holds no words; name one that is "),
    ],
)
def test_numbers_and_words_are_told_apart(ask, message):
    with pytest.raises(FilterError, match=message):
        ask(attributes(ROWS))


def test_further_items_stand_in_the_rows_that_follow():
    first, second = ROWS[:2], [*ROWS[2:], {"brand": "zeta", "tags": ["new"], "price": 7}]
    joined, whole = attributes(first).extended(table(second), 3), attributes([*first, *second])
    assert joined.num_items == whole.num_items == 5
    rows = np.array([4, 0, 3, 2, 1, 4])
    for name in ("brand", "tags"):
        assert joined.values(name, rows) == whole.values(name, rows)
    assert np.array_equal(joined.numbers("price"), whole.numbers("price"), equal_nan=True)
    assert joined.numbers("price") is joined.numbers("price")
    assert [joined.shown(row) for row in range(5)] == [whole.shown(row) for row in range(5)]
    assert joined.frame().equals(whole.frame())
    assert joined.table(rows).equals(whole.table(rows))
    assert joined.extended(table([{"brand": "acme"}]), 1).eligible({"brand": "acme"}).tolist() == [
        True, False, True, False, False, True,
    ]  # fmt: skip
    with pytest.raises(FilterError, match="'brand' cannot equal None; give text"):
        joined.eligible({"brand": None})


def test_columns_in_several_chunks_are_one():
    chunks = pa.concat_tables([table(ROWS[:2]), table(ROWS[2:])])
    said = Attributes(Entity("id", FEATURES), chunks, 4)
    assert said.eligible({"tags": "red", "brand": ["acme", "zeta"]}).tolist() == [True, True, False, False]
    assert said.values("tags", np.array([2, 1])) == [(), ("red",)]
    assert said.values("brand", np.array([2, 1])) == [("acme",), ("zeta",)]


def test_clauses_in_clauses_have_an_end():
    clause: object = "acme"
    for _ in range(2_000):
        clause = {"not": clause}
    with pytest.raises(FilterError, match="'brand': clauses are nested more than 16 deep; say it shorter"):
        attributes(ROWS).eligible({"brand": clause})


def test_a_catalogue_without_attributes_says_so():
    nothing = Attributes(None, pa.table({}), 3)
    assert nothing.eligible({}).tolist() == [True] * 3
    assert nothing.shown(1) == {}
    with pytest.raises(FilterError, match="there is no attribute 'brand' to filter by; valid: none"):
        nothing.eligible({"brand": "acme"})


def test_numbers_find_what_text_columns_hold():
    table = pa.table({"year": pa.array(["1999", "2001"])})
    years = Attributes(Entity("id", (Feature("year", "categorical"),)), table, 2)
    assert years.eligible({"year": 1999}).tolist() == [True, False]


def test_what_an_answer_shows():
    shown = attributes([*ROWS, {"price": math.inf}]).shown
    assert shown(0) == {
        "brand": "acme", "tags": ["new", "red"], "price": 1, "added": "1970-01-01T00:00:00+00:00", "title": "One",
    }  # fmt: skip
    assert isinstance(shown(0)["price"], int)
    assert shown(1)["price"] == 2.5
    assert shown(3) == {}
    assert shown(4) == {}  # no JSON value


WORDS = ["a", "b", "c", ""]
NUMBERS = [0.0, 0.5, 1.0, 2.0]
rows = st.lists(
    st.fixed_dictionaries(
        {
            "brand": st.sampled_from([None, *WORDS]),
            "tags": st.none() | st.lists(st.sampled_from(WORDS), max_size=3),
            "price": st.sampled_from([None, *NUMBERS]),
            "added": st.sampled_from([None, *(int(1000 * number) for number in NUMBERS)]),
        }
    ),
    max_size=8,
)
words, numbers = st.sampled_from([*WORDS, "z"]), st.sampled_from([*NUMBERS, 9.0])
moments = numbers | numbers.map(lambda seconds: datetime.fromtimestamp(seconds, UTC).isoformat())


def clauses(values, ordered):
    several = st.lists(values, min_size=1, max_size=3)
    kinds = {"equals": values, "in": several | values, "contains": several | values}
    kinds |= dict.fromkeys(("gt", "gte", "lt", "lte"), values) if ordered else {}
    plain = values | several

    def deeper(inner):
        return st.fixed_dictionaries({}, optional=kinds | {"not": inner})

    return st.recursive(plain, deeper, max_leaves=4)


filters = st.fixed_dictionaries(
    {},
    optional={
        "brand": clauses(words, False), "tags": clauses(words, False),
        "price": clauses(numbers, True), "added": clauses(moments, True),
    },
)  # fmt: skip


def plainly(name, values, clause):
    """Whether one item, which has `values` of an attribute, passes a clause."""

    def number(value):
        if name != "added":
            return value
        return 1000 * (datetime.fromisoformat(value).timestamp() if isinstance(value, str) else value)

    if isinstance(clause, list):
        return any(plainly(name, values, one) for one in clause)
    if not isinstance(clause, dict):
        return any(value == number(clause) for value in values)
    for key, wanted in clause.items():
        several = wanted if isinstance(wanted, list) else [wanted]
        match key:
            case "equals":
                holds = plainly(name, values, wanted)
            case "in":
                holds = any(plainly(name, values, one) for one in several)
            case "contains":
                holds = all(plainly(name, values, one) for one in several)
            case "not":
                holds = not plainly(name, values, wanted)
            case _:
                holds = any(getattr(operator, key.replace("te", "e"))(value, number(wanted)) for value in values)
        if not holds:
            return False
    return True


@settings(max_examples=300, deadline=None)
@given(rows=rows, filter=filters, at=st.integers(0, 8), compared=st.sampled_from([0, 16]))
def test_any_filter_is_what_plain_python_says(rows, filter, at, compared):
    expected = []
    for row in rows:
        values = {n: v if isinstance(v, list) else [] if v is None else [v] for n, v in row.items()}
        expected.append(all(plainly(name, values[name], clause) for name, clause in filter.items()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recsys.data.columns._COMPARED", compared)  # however many values are many
        assert attributes(rows).eligible(filter).tolist() == expected
        later = rows[at:]
        assert attributes(rows[:at]).extended(table(later), len(later)).eligible(filter).tolist() == expected
