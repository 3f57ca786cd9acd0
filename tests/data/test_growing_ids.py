import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data import growing_ids
from recsys.data.growing_ids import GrowingIds


@given(st.lists(st.lists(st.text("ab", max_size=3))), st.integers(1, 4))
def test_codes_stand_for_the_ids_in_order_of_appearance(batches, rows):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(growing_ids, "_ROWS", rows)
        growing = GrowingIds(pa.string())
        for batch in batches:
            growing.add(pa.array(batch, pa.string()))
        codes, ids = growing.finish()
    said = [value for batch in batches for value in batch]
    assert ids.to_pylist() == list(dict.fromkeys(said))
    assert [ids[code].as_py() for code in codes.tolist()] == said
