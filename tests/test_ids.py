from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.ids import IdMap

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
INTEGERS = st.integers(-(2**63), 2**63 - 1)
IDS = st.one_of(st.lists(TEXT, unique=True), st.lists(INTEGERS, unique=True))


def test_rows_and_ids_stand_for_each_other():
    ids = IdMap.of(["b", "a", "007"])
    assert [ids.row("b"), ids.row("a"), ids.row("007"), ids.row("7")] == [0, 1, 2, None]
    assert ids.rows(["a", "x", "b"]).tolist() == [1, -1, 0]
    assert ids.rows(["a", 7, "b"]).tolist() == [1, -1, 0]
    assert IdMap.of(["7", "8"]).rows([8, 7]).tolist() == [1, 0]
    assert IdMap.of([7, 8]).rows([8, 9, 7]).tolist() == IdMap.of([7, 8]).rows(["8", "9", 7]).tolist() == [1, -1, 0]
    assert (
        IdMap.of(["7", "8"]).rows(np.array([8, 7])).tolist()
        == IdMap.of([7, 8]).rows(np.array([8, 7])).tolist()
        == [1, 0]
    )
    eight: Any = np.uint8(8)
    assert IdMap.of(["7", "8"]).row(eight) == IdMap.of([7, 8]).row(np.str_("8")) == 1
    assert ids.rows([]).tolist() == []
    assert ids.rows(pa.array(["a", None, "b"])).tolist() == [1, -1, 0]
    assert ids.ids(np.array([2, 0, 0])) == ["007", "b", "b"]
    assert ids.id(1) == "a"


def test_text_from_an_address_finds_an_integer_and_the_other_way_round():
    assert IdMap.of([10, 20]).row("20") == 1
    assert IdMap.of([10, 20]).row("twenty") is None
    assert IdMap.of(["10", "20"]).row(20) == 1


@settings(deadline=None)  # the machine may be busy
@given(IDS)
def test_every_id_comes_back_as_it_went_in(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("ids") / "ids.arrow"
    ids = IdMap.of(values)
    ids.save(path)
    loaded = IdMap.load(path)
    assert loaded.ids(np.arange(len(values))) == values
    assert loaded.rows(values).tolist() == list(range(len(values)))
    assert loaded.digest == ids.digest


@settings(deadline=None)  # the machine may be busy
@given(IDS, IDS)
def test_digests_agree_only_where_all_rows_do(one, other):
    same = one == other and (not one or type(one[0]) is type(other[0]))
    if same or (one and other):  # an empty list does not tell its type
        assert (IdMap.of(one).digest == IdMap.of(other).digest) == same


def test_the_digest_sees_where_one_id_ends_and_the_next_begins():
    assert IdMap.of(["ab", "c"]).digest != IdMap.of(["a", "bc"]).digest


@settings(deadline=None)  # the machine may be busy
@given(st.lists(INTEGERS, unique=True), st.lists(INTEGERS))
def test_a_map_grows_only_at_its_end(old, new):
    grown = IdMap(pa.array(old, pa.int64())).appended(pa.array(new, pa.int64()))
    fresh = list(dict.fromkeys(value for value in new if value not in set(old)))
    assert grown.array.to_pylist() == [*old, *fresh]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (pa.array(["a", "b", "a"]), "id a occurs 2 times; ids must be unique"),
        (pa.array(["a", None]), "the id at row 1 is null"),
        (pa.array([1.5]), "ids must be strings or integers, got double"),
    ],
)
def test_refuses_what_is_not_an_id(ids, message):
    with pytest.raises(ValueError, match=message):
        IdMap(ids)
