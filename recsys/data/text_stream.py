"""Text files as they come, read as UTF-8: byte order marks, declared encodings, broken lines, long delimiters."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

UNIT_SEPARATOR = "\x1f"  # stands in for a delimiter that the parser could not take
_BLOCK = 4 << 20
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class Utf8Stream(io.RawIOBase):
    """A binary file's text as UTF-8 bytes, whatever it was.

    A byte order mark overrules the declared encoding. A line that is not valid in the encoding is read as cp1252
    (latin-1 where even that has no such character), alone, so that nothing is lost, and counted. Broken UTF-16 and
    UTF-32, where lines cannot be told, raise a UnicodeDecodeError.

    Args:
        raw: the file, open for reading.
        encoding: what it is said to be in.
        delimiter: replaced by `UNIT_SEPARATOR` if it is more than one byte; None leaves the text as it is.

    Attributes:
        decoded_as_cp1252: lines so far that were not valid in the encoding.
    """

    def __init__(self, raw: BinaryIO | Section, encoding: str, delimiter: str | None = None) -> None:
        super().__init__()
        self._raw = raw
        self._encoding = codecs.lookup(encoding).name
        long = delimiter is not None and len(delimiter.encode()) > 1
        self._delimiter = delimiter.encode() if delimiter is not None and long else None
        self.decoded_as_cp1252 = 0
        self._blocks = self._decoded()
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        while not self._ready:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._ready = memoryview(block)
        size = min(len(into), len(self._ready))
        into[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()

    def _decoded(self) -> Iterator[bytes]:
        head = self._raw.read(_BLOCK)
        for mark, encoding in _MARKS:
            if head.startswith(mark):
                head, self._encoding = head[len(mark) :] + self._raw.read(_BLOCK), encoding
                break
        for block in self._wide_blocks(head) if _is_wide(self._encoding) else self._line_blocks(head):
            yield block.replace(self._delimiter, UNIT_SEPARATOR.encode()) if self._delimiter else block

    def _wide_blocks(self, head: bytes) -> Iterator[bytes]:
        decoder = codecs.getincrementaldecoder(self._encoding)()
        text = ""
        while head:
            text += decoder.decode(head)
            cut = text.rfind("\n") + 1
            yield text[:cut].encode()
            text, head = text[cut:], self._raw.read(_BLOCK)
        yield (text + decoder.decode(b"", final=True)).encode()

    def _line_blocks(self, head: bytes) -> Iterator[bytes]:
        while head:
            more = self._raw.read(_BLOCK)
            # A block ends with a line, so that no character and no delimiter is cut in two.
            cut = head.rfind(b"\n") + 1 if more else len(head)
            yield self._utf8(head[:cut])
            head = head[cut:] + more

    def _utf8(self, block: bytes) -> bytes:
        if block.isascii():
            return block
        try:
            text = block.decode(self._encoding)
        except UnicodeDecodeError:
            return b"".join(self._utf8_line(line) for line in block.splitlines(keepends=True))
        return block if self._encoding == "utf-8" else text.encode()

    def _utf8_line(self, line: bytes) -> bytes:
        try:
            return line.decode(self._encoding).encode()
        except UnicodeDecodeError:
            self.decoded_as_cp1252 += 1
        try:
            return line.decode("cp1252").encode()
        except UnicodeDecodeError:
            return line.decode("latin-1").encode()


class Quotes:
    """Follows where quoted values begin and end, as Arrow's parser does: quotes open only where a field starts.

    Args:
        delimiter: what separates fields.
        quote: the character around values, which stands for itself when doubled within.

    Attributes:
        open: whether what was read so far ends within a quoted value.
    """

    def __init__(self, delimiter: str, quote: str) -> None:
        between, mark = re.escape(delimiter.encode()), re.escape(quote.encode())
        start = rb"(?:(?<=[\r\n])|(?<=%b))" % between
        rest = rb"(?:[^%b]++|%b%b)*+" % (mark, mark, mark)
        # What is outside of quotes and every quoted value that also ends; it stops at one that does not.
        self._closed = re.compile(rb"(?:[^%b]++|%b%b%b%b|(?!%b)%b)*+" % (mark, start, mark, rest, mark, start, mark))
        self._before = b"\n"  # of the text that follows: a line ended, or the last few bytes, or an open value
        self._kept = len(delimiter.encode())
        self.open = False

    def read(self, block: bytes) -> None:
        """Takes the next bytes."""
        if len(self._before) > _BLOCK:
            return  # a value longer than a block is a quote that never ends
        text = self._before + block
        skip = self._kept if self.open else len(self._before)
        found = self._closed.match(text, min(skip, len(text)))
        assert found is not None  # the pattern matches nothing, too
        self.open = found.end() < len(text)
        self._before = text[max(found.end() - self._kept, 0) :]


class Section:
    """Some bytes of a file, behind a head: what `Utf8Stream` needs of a file, of an end of one.

    Args:
        raw: the file, where the section starts.
        head: what to read first.
        size: bytes to read from the file.
    """

    def __init__(self, raw: BinaryIO, head: bytes, size: int) -> None:
        self._raw, self._head, self._left = raw, head, size

    def read(self, size: int) -> bytes:
        """At most so many bytes, or the head; none at the end."""
        if self._head:
            head, self._head = self._head, b""
            return head
        block = self._raw.read(min(size, self._left))
        self._left -= len(block)
        return block

    def close(self) -> None:
        self._raw.close()


def wide(head: bytes, encoding: str) -> bool:
    """Whether a text that begins so has lines that cannot be told by single bytes."""
    marked = next((marked for mark, marked in _MARKS if head.startswith(mark)), codecs.lookup(encoding).name)
    return _is_wide(marked)


def _is_wide(encoding: str) -> bool:
    return encoding.startswith(("utf-16", "utf-32", "utf-7"))
