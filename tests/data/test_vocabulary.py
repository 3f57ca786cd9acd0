"""Feature encoders: by hand, kind by kind, and that nothing is learnt from what training did not know."""

import json
import math
import zlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.schema import Feature
from recsys.data.vocabulary import MAX_NGRAMS, MAX_VALUES, TEXT_BUCKETS, FeatureEncoder, Input, hashed_ngrams


def fitted(kind, values, arrow, known=None, **options):
    feature = Feature("it", kind, **options)
    table = pa.table({"it": pa.array(values, arrow)})
    known = np.ones(len(values), dtype=bool) if known is None else np.array(known, dtype=bool)
    encoder = FeatureEncoder.fit((feature,), table, known)
    return encoder, encoder.encode(table).get("it")


def test_categories():
    encoder, codes = fitted("categorical", ["b", None, "a", "late", "b"], pa.string(), [1, 1, 1, 0, 1])
    assert encoder.inputs == (Input("it", codes=3),)
    assert codes.tolist() == [[2], [0], [1], [0], [2]]
    assert codes.dtype == np.int32


def test_several_values():
    encoder, codes = fitted("multi", [["b", "a"], None, [], ["a", "late", None]], pa.list_(pa.string()), [1, 1, 1, 0])
    assert encoder.inputs == (Input("it", codes=3),)
    assert codes.tolist() == [[2, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_of_very_many_values_the_first_count():
    _, codes = fitted("multi", [[f"v{i:02}" for i in range(30)], ["v29"]], pa.list_(pa.string()))
    assert codes[0].tolist() == list(range(1, MAX_VALUES + 1))
    assert codes[1].tolist() == [30] + [0] * (MAX_VALUES - 1)


@pytest.mark.parametrize(("kind", "arrow"), [("numeric", pa.float64()), ("timestamp", pa.int64())])
def test_numbers_are_scaled_by_what_training_knew(kind, arrow):
    encoder, values = fitted(kind, [1, 3, None, 2, 1000], arrow, [1, 1, 1, 0, 0])
    assert encoder.learnt["it"] == {"mean": 2.0, "std": 1.0}
    assert encoder.inputs == (Input("it", width=2),)
    assert values.tolist() == [[-1, 1], [1, 1], [0, 0], [0, 1], [5, 1]]  # the last is clipped


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_missing(odd):
    encoder, values = fitted("numeric", [1.0, odd, 3.0], pa.float64())
    assert encoder.learnt["it"] == {"mean": 2.0, "std": 1.0}
    assert values.tolist() == [[-1, 1], [0, 0], [1, 1]]


def test_numbers_that_do_not_differ_are_not_divided_by_nought():
    _, values = fitted("numeric", [7.0, 7.0, None], pa.float64())
    assert values.tolist() == [[0, 1], [0, 1], [0, 0]]


def test_vectors():
    encoder, values = fitted("vector", [[1, 2], None, [3, 4]], pa.list_(pa.float32()))
    assert encoder.inputs == (Input("it", width=3),)
    assert values.tolist() == [[1, 2, 1], [0, 0, 0], [3, 4, 1]]


def test_vectors_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"the vectors of feature 'it' have lengths \[2, 1\]; give all the same"):
        fitted("vector", [[1, 2], [3]], pa.list_(pa.float32()))


def test_a_vector_feature_that_no_item_has_is_refused():
    with pytest.raises(ValueError, match="no vector of feature 'it' is known to training; leave the feature out"):
        fitted("vector", [None, [3.0]], pa.list_(pa.float32()), [1, 0])


def test_text_by_hand():
    def code(gram):
        return 1 + zlib.crc32(gram.encode()) % TEXT_BUCKETS

    assert hashed_ngrams("Red, hat") == [
        code(gram) for gram in ("red", "hat", "red hat", "<re#", "red#", "ed>#", "<ha#", "hat#", "at>#")
    ]
    assert hashed_ngrams("") == hashed_ngrams(None) == hashed_ngrams(" … ") == []
    assert hashed_ngrams("ÄPFEL") == hashed_ngrams("äpfel")
    assert len(hashed_ngrams("word " * 500)) == MAX_NGRAMS


def test_texts():
    encoder, codes = fitted("text", ["red hat", None, "red", ""], pa.string())
    assert encoder.inputs == (Input("it", codes=TEXT_BUCKETS + 1),)
    assert codes.shape == (4, 9)
    assert codes[0, 0] == codes[2, 0]
    assert not codes[[1, 3]].any()


@pytest.mark.parametrize(
    ("kind", "arrow", "shape"),
    [
        ("categorical", pa.string(), (2, 1)), ("multi", pa.list_(pa.string()), (2, 1)), ("text", pa.string(), (2, 1)),
        ("numeric", pa.float64(), (2, 2)), ("timestamp", pa.int64(), (2, 2)),
    ],
)  # fmt: skip
def test_a_column_without_values_encodes_to_nothing(kind, arrow, shape):
    encoder, encoded = fitted(kind, [None, None], arrow)
    assert encoded.shape == shape
    assert not encoded.any()
    assert encoder.inputs[0].codes >= 1 or encoder.inputs[0].width == 2


def test_what_is_not_to_be_embedded_is_left_out():
    encoder, encoded = fitted("categorical", ["a"], pa.string(), embed=False)
    assert (encoder.inputs, encoded) == ((), None)


def test_the_order_of_rows_does_not_matter():
    one, _ = fitted("categorical", ["a", "c", "b"], pa.string())
    other, _ = fitted("categorical", ["c", "b", "a", "a"], pa.string())
    assert one.learnt == other.learnt


def test_an_encoder_is_read_back_from_json():
    encoder, codes = fitted("multi", [["b", "ä"], None], pa.list_(pa.string()))
    again = FeatureEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    assert again == encoder
    assert again.encode(pa.table({"it": pa.array([["b", "ä"], None])}))["it"].tolist() == codes.tolist()


def grown(kind, old, new, arrow, known=None):
    """The encoder of the old values, grown by the new, and what it makes of those."""
    encoder, _ = fitted(kind, old, arrow)
    table = pa.table({"it": pa.array(new, arrow)})
    known = np.ones(len(new), dtype=bool) if known is None else np.array(known, dtype=bool)
    more = encoder.grown(encoder.features, table, known)
    return encoder, more, more.encode(table)["it"]


def test_new_categories_follow_the_old_ones():
    old, more, codes = grown(
        "categorical", ["m", "c"], ["z", "m", "a", None, "late", "z"], pa.string(), [1] * 4 + [0, 1]
    )
    assert more.learnt["it"]["vocabulary"] == ["c", "m", "a", "z"]
    assert codes[:, 0].tolist() == [4, 2, 3, 0, 0, 4]
    assert old.learnt["it"]["vocabulary"] == ["c", "m"]  # which towers in use still read by
    again = more.grown(more.features, pa.table({"it": ["b", "z"]}), np.ones(2, dtype=bool))
    assert again.learnt["it"]["vocabulary"] == ["c", "m", "a", "z", "b"]


@given(*(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=3), max_size=8) for _ in range(2)), st.randoms())
def test_no_code_changes_its_meaning_however_data_grows(before, after, random):
    old, more, _ = grown("multi", before, after, pa.list_(pa.string()))
    vocabulary, longer = (encoder.learnt["it"]["vocabulary"] for encoder in (old, more))
    assert longer[: len(vocabulary)] == vocabulary
    assert set(longer) == {value for row in before + after for value in row}
    assert len(set(longer)) == len(longer)
    again = old.grown(old.features, pa.table({"it": pa.array(after, pa.list_(pa.string()))}), np.ones(len(after), bool))
    random.shuffle(after)
    assert again == grown("multi", before, after, pa.list_(pa.string()))[1]


def test_a_scale_stays_what_old_weights_know():
    old, more, values = grown("numeric", [1.0, 3.0], [5.0, 100.0, None], pa.float64())
    assert more == old
    assert values.tolist() == [[3, 1], [5, 1], [0, 0]]


def test_vectors_may_grow_in_number_only():
    _, more, values = grown("vector", [[1, 2]], [[3, 4], None, [5]], pa.list_(pa.float32()), [1, 1, 0])
    assert values.tolist() == [[3, 4, 1], [0, 0, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match="vectors of feature 'it' had length 2 and now 3"):
        grown("vector", [[1, 2]], [[3, 4, 5]], pa.list_(pa.float32()))
    assert grown("vector", [[1, 2]], [None], pa.list_(pa.float32()))[1] == more


def test_features_that_came_went_or_changed_do_not_grow():
    encoder, _ = fitted("categorical", ["a"], pa.string())
    table, known = pa.table({"it": ["a"], "other": ["a"]}), np.ones(1, dtype=bool)
    own, other = encoder.features[0], Feature("other", "text")
    for features, said in (
        ((own, other), "feature 'other' was not declared and is now text"),
        ((), "feature 'it' was categorical and is now not declared"),
        ((Feature("it", "text"),), "feature 'it' was categorical and is now text"),
        ((Feature("it", "categorical", embed=False),), "feature 'it' was categorical and is now not declared"),
    ):
        with pytest.raises(ValueError, match=said):
            encoder.grown(features, table, known)
    shown = (Feature("other", "text", embed=False), Feature("it", "categorical", show=True))
    assert encoder.grown(shown, table, known) == encoder  # what is shown is none of the towers' business
