"""Columns of a catalogue made ready for questions about all of its items at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Up to here, each wanted value is compared with all rows: 30 to 100 µs a million rows and value. Looking every row up
# in a table of the vocabulary takes 600 µs, however many values are wanted.
_COMPARED = 16


class Numbers:
    """One number an item.

    Args:
        column: numbers of any Arrow type [N]; null where there is none.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    @cached_property
    def values(self) -> np.ndarray:
        """float64 [N], NaN where there is none."""
        return self._column.cast(pa.float64(), safe=False).to_numpy()

    @cached_property
    def _ordered(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers, ascending, NaN last, and the row of each."""
        rows = self.values.argsort(kind="stable")
        return self.values[rows], rows

    def having_any(self, wanted: Sequence[float]) -> np.ndarray:
        """bool [N]: which items have one of these numbers."""
        passing = np.zeros(len(self.values), dtype=bool)
        if len(wanted) <= _COMPARED:
            for value in wanted:
                passing |= self.values == value
            return passing
        values, rows = self._ordered
        distinct = np.unique(np.array(wanted, dtype=np.float64))
        distinct = distinct[~np.isnan(distinct)]  # which nothing equals, and searching would find
        starts, ends = values.searchsorted(distinct), values.searchsorted(distinct, side="right")
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            passing[rows[start:end]] = True
        return passing

    def having_all(self, wanted: Sequence[float]) -> np.ndarray:
        """bool [N]: which items have all of these numbers, of which there is at least one."""
        return self.having_any(wanted[:1] if all(number == wanted[0] for number in wanted) else [])


class Words:
    """One text an item, or none.

    Args:
        column: strings [N].
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    @cached_property
    def _encoded(self) -> tuple[dict[str, int], list[str], np.ndarray]:
        """Codes by word, words by code, and each item's code [N]; the number of words where it has none."""
        words, codes = _encoded(self._column.combine_chunks())
        return {word: code for code, word in enumerate(words)}, words, codes

    def having_any(self, wanted: Sequence[str]) -> np.ndarray:
        """bool [N]: which items have one of these words."""
        vocabulary, words, codes = self._encoded
        known = {vocabulary[word] for word in wanted if word in vocabulary}
        if len(known) > _COMPARED:
            table = np.zeros(len(words) + 1, dtype=bool)
            table[list(known)] = True
            return table.take(codes)
        passing = np.zeros(len(codes), dtype=bool)
        for code in known:
            passing |= codes == codes.dtype.type(code)
        return passing

    def having_all(self, wanted: Sequence[str]) -> np.ndarray:
        """bool [N]: which items have all of these words, of which there is at least one."""
        return self.having_any(wanted[:1] if all(word == wanted[0] for word in wanted) else [])

    def of(self, rows: np.ndarray) -> list[tuple[str, ...]]:
        """The words of some rows, int [n]."""
        _, words, codes = self._encoded
        return [(words[code],) if code < len(words) else () for code in codes[rows].tolist()]

    def counts(self, among: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Every word, and how many of the items that bool [N] names have it, int64 [words]."""
        _, words, codes = self._encoded
        return words, np.bincount(codes[among], minlength=len(words) + 1)[: len(words)]


class ManyWords:
    """Any number of texts an item.

    Args:
        column: lists of strings [N].
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    @cached_property
    def _occurrences(self) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
        """Codes by word; the rows that have a word, ascending, word after word; where each word's rows start."""
        column = self._column.combine_chunks()
        words, codes = _encoded(pc.list_flatten(column))
        rows = pc.list_parent_indices(column).to_numpy().astype(np.int32 if len(column) < 1 << 31 else np.int64)
        starts = np.concatenate([[0], np.bincount(codes, minlength=len(words)).cumsum()])
        return {word: code for code, word in enumerate(words)}, rows[codes.argsort(kind="stable")], starts

    def having_any(self, wanted: Sequence[str]) -> np.ndarray:
        """bool [N]: which items have one of these words."""
        passing = np.zeros(len(self._column), dtype=bool)
        for word in set(wanted):
            passing[self._rows(word)] = True
        return passing

    def having_all(self, wanted: Sequence[str]) -> np.ndarray:
        """bool [N]: which items have all of these words, of which there is at least one."""
        rarest, *others = sorted(map(self._rows, set(wanted)), key=len)
        for rows in others:
            if not len(rarest):
                break
            place = rows.searchsorted(rarest)
            rarest = rarest[rows[np.minimum(place, len(rows) - 1)] == rarest]
        passing = np.zeros(len(self._column), dtype=bool)
        passing[rarest] = True
        return passing

    def of(self, rows: np.ndarray) -> list[tuple[str, ...]]:
        """The words of some rows, int [n]."""
        said = self._column.take(pa.array(rows, type=pa.int64())).to_pylist()
        return [tuple(word for word in words or () if word is not None) for words in said]

    def counts(self, among: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Every word, and how many of the items that bool [N] names have it, int64 [words]."""
        vocabulary, rows, starts = self._occurrences
        counted = among[rows]
        counted[1:] &= (rows[1:] != rows[:-1]) | np.isin(np.arange(1, len(rows)), starts)  # a word twice counts once
        passed = np.concatenate([[0], counted.cumsum()])
        return list(vocabulary), passed[starts[1 : len(vocabulary) + 1]] - passed[starts[: len(vocabulary)]]

    def _rows(self, word: str) -> np.ndarray:
        """The rows that have a word, ascending."""
        vocabulary, rows, starts = self._occurrences
        code = vocabulary.get(word)
        return rows[:0] if code is None else rows[starts[code] : starts[code + 1]]


def _encoded(words: pa.Array) -> tuple[list[str], np.ndarray]:
    """The distinct words, and the code of each word [n]: its place among the distinct ones, their number for null."""
    encoded = words.dictionary_encode()
    distinct = encoded.dictionary.to_pylist()
    codes = pc.fill_null(encoded.indices, len(distinct)).to_numpy()
    # As narrow as can be: comparing a million of them is a matter of memory.
    return distinct, codes.astype(np.min_scalar_type(len(distinct)))
