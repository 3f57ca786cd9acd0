"""Progress of long reads: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Self

from tqdm import tqdm  # type: ignore[import-untyped]

_SECONDS = 5.0


class Progress:
    """Counts rows of one table on standard error.

    Args:
        what: the name of the table.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._rows = 0
        self._bar = tqdm(desc=what, unit=" rows", unit_scale=True, leave=False) if sys.stderr.isatty() else None
        self._started = self._said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._said > self._started:
            self._say()

    def add(self, rows: int) -> None:
        """Notes that more rows were read."""
        self._rows += rows
        if self._bar is not None:
            self._bar.update(rows)
        elif time.monotonic() - self._said > _SECONDS:
            self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        seconds = self._said - self._started
        print(f"{self._what}: {self._rows:,} rows read in {seconds:.0f} s", file=sys.stderr, flush=True)
