import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data import text_stream
from recsys.data.text_stream import UNIT_SEPARATOR, Utf8Stream

TEXT = st.text("ab:é日😀,\r\n")
WESTERN = st.text("ab:éÿ,\r\n")


def read(data, encoding="utf-8", delimiter=None, block=1 << 20):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(text_stream, "_BLOCK", block)
        with Utf8Stream(io.BytesIO(data), encoding, delimiter) as stream:
            return stream.read(), stream.decoded_as_cp1252


@given(TEXT, st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]), st.integers(1, 9))
def test_text_in_any_encoding_comes_out_as_utf_8_however_the_blocks_fall(text, encoding, block):
    assert read(text.encode(encoding), encoding, block=max(block, 4)) == (text.encode(), 0)


@given(WESTERN, st.integers(1, 9))
def test_old_encodings_are_read_as_declared(text, block):
    assert read(text.encode("latin-1"), "latin-1", block=block) == (text.encode(), 0)


@given(TEXT, st.sampled_from(["::", "日", ":,:"]), st.integers(1, 9))
def test_a_long_delimiter_is_replaced_even_where_two_blocks_meet(text, delimiter, block):
    expected = text.replace(delimiter, UNIT_SEPARATOR).encode()
    assert read(text.encode(), delimiter=delimiter, block=block) == (expected, 0)


@given(st.lists(st.tuples(st.text("abé", min_size=1), st.booleans())), st.integers(1, 9))
def test_each_line_in_another_encoding_is_read_alone_and_counted(lines, block):
    data = b"".join(text.encode("cp1252" if western else "utf-8") + b"\n" for text, western in lines)
    expected = "".join(f"{text}\n" for text, _ in lines)
    foreign = sum(western and "é" in text for text, western in lines)
    assert read(data, block=block) == (expected.encode(), foreign)


@given(st.binary(), st.integers(1, 9))
def test_no_bytes_whatever_stop_the_reading(data, block):
    if not data.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        out, _ = read(data, block=block)
        assert out.decode().count("\n") == data.count(b"\n")
