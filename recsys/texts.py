"""What is written of items, made ready to be searched: by parts of words, whatever their case and accents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.schema import Feature

_WRITTEN = ("text", "categorical", "multi")
_BETWEEN = "\n"  # of two attributes of an item; no word of a query holds it


class Texts:
    """The shown words of N items. Nothing in it changes.

    Args:
        features: what is declared of items; what answers show of it, and is text, is searched.
        table: one row an item, a column a feature.
        num_items: how many rows the table has, since one without columns says none.
    """

    def __init__(self, features: Sequence[Feature], table: pa.Table, num_items: int) -> None:
        columns = [_text(table.column(f.name)) for f in features if f.show and f.kind in _WRITTEN]
        nothing = pa.array([""] * num_items if not columns else [], pa.large_string())
        self._names = folded(columns[0]) if columns else nothing
        self._all = (
            folded(pc.binary_join_element_wise(*columns, pa.scalar(_BETWEEN, pa.large_string())))
            if columns
            else nothing
        )

    def found(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The items in whose words every word of a text occurs.

        Returns:
            Rows int64 [n], ascending, and how well each fits, int8 [n]: 0 where the first shown attribute is the text,
            1 where it begins with it, 2 where it has it as words of its own, 3 where words of it begin so, 4 elsewhere.
        """
        wanted = folded(pa.array([text], pa.large_string()))[0].as_py()
        words = sorted(set(wanted.split()), key=len, reverse=True)
        rows = np.arange(len(self._all))
        texts = self._all
        for word in words:  # the longest first: it leaves the fewest for the others
            kept = pc.match_substring(texts, word).to_numpy(zero_copy_only=False)
            rows, texts = rows[kept], texts.filter(pa.array(kept))
        if not words:
            return rows, np.full(len(rows), 4, dtype=np.int8)
        names, whole = self._names.take(pa.array(rows)), " ".join(wanted.split())
        space = pa.scalar(" ", pa.large_string())
        padded = pc.binary_join_element_wise(space, names, space, pa.scalar("", pa.large_string()))
        fits = np.full(len(rows), 4, dtype=np.int8)
        for fit, passing in (
            (3, pc.match_substring(padded, f" {whole}")),
            (2, pc.match_substring(padded, f" {whole} ")),
            (1, pc.starts_with(names, whole)),
            (0, pc.equal(names, whole)),
        ):
            fits[passing.to_numpy(zero_copy_only=False)] = fit
        return rows, fits


def folded(texts: pa.Array) -> pa.Array:
    """Texts as they are compared: in small letters, without accents, compatible signs made one (NFKD)."""
    apart = pc.replace_substring_regex(pc.utf8_normalize(texts, "NFKD"), r"\p{Mn}+", "")
    return pc.utf8_lower(apart)


def _text(column: pa.ChunkedArray) -> pa.Array:
    """Strings [N], large_string, "" where there is none; the values of a list are one after the other."""
    whole = column.combine_chunks()
    if not (pa.types.is_list(whole.type) or pa.types.is_large_list(whole.type)):
        return pc.fill_null(whole.cast(pa.large_string()), "")
    # A null in a list would make all of it null.
    filled = type(whole).from_arrays(whole.offsets, pc.fill_null(whole.values, ""))
    joined = pc.binary_join(filled, _BETWEEN).cast(pa.large_string())
    return pc.if_else(pc.is_null(whole), pa.scalar("", pa.large_string()), joined)
