import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.order import by_first_appearance, repeats, stable_order

WIDE = st.integers(-(2**63), 2**63 - 1)
NARROW = st.integers(-3, 3)


@given(st.one_of(st.lists(WIDE), st.lists(NARROW)))
def test_sorts_as_a_stable_argsort_does(keys):
    keys = np.array(keys, dtype=np.int64)
    assert stable_order(keys).tolist() == np.argsort(keys, kind="stable").tolist()


@given(st.lists(st.integers(0, 5), min_size=1), st.sampled_from([np.int8, np.int32]))
def test_sorts_narrow_types(keys, kind):
    keys = np.array(keys, dtype=kind)
    assert stable_order(keys).tolist() == np.argsort(keys, kind="stable").tolist()


@given(st.lists(st.integers(0, 9), min_size=1))
def test_codes_are_ordered_by_who_comes_first(said):
    distinct = list(dict.fromkeys(said))
    code_of = {value: code for code, value in enumerate(sorted(distinct))}
    codes = np.array([code_of[value] for value in said])
    expected = [code_of[value] for value in distinct]
    assert by_first_appearance(codes, len(distinct)).tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))))
def test_repeats_are_all_but_the_first_of_equal_rows(rows):
    order = sorted(range(len(rows)), key=lambda row: rows[row][0])
    columns = [np.array([row[column] for row in rows], dtype=np.int64) for column in range(3)]
    seen, expected = set(), []
    for place, row in enumerate(order):
        if rows[row] in seen:
            expected.append(place)
        seen.add(rows[row])
    assert repeats(np.array(order, dtype=np.int64), columns[:1], columns[1:]).tolist() == expected
