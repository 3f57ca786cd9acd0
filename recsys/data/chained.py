"""One log from several sources, each with its own mark: what a company logs, and what the service was told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from recsys.data.news import Incremental, Mark, News
from recsys.data.sources import Batch, Source, SourceError


@dataclass(frozen=True)
class Chained:
    """The rows of several sources, one source after the other. All must have the columns that the schema names.

    A row that two of them have is a duplicate, if all of user, item, time and event are the same; otherwise it counts
    twice. So let each thing that happens come by one way only.

    Args:
        sources: at least one; the first comes first.
    """

    sources: list[Source]

    def __post_init__(self) -> None:
        if not self.sources:
            raise SourceError("a chain of no sources has no rows; name at least one")

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        for source in self.sources:
            yield from source.batches(columns)

    def since(self, mark: Mark | None) -> News:
        """What is new in each source; everything in all of them, if one must be read whole."""
        kinds = [type(source).__name__ for source in self.sources]
        whole = None
        news: list[News] = []
        if mark is None:
            whole = "nothing was read before"
        elif mark["kinds"] != kinds:
            whole = f"the sources are others than before ({', '.join(mark['kinds'])} then, {', '.join(kinds)} now)"
        else:
            for source, its_mark in zip(self.sources, mark["sources"], strict=True):
                news.append(_since(source, its_mark))
                if whole := news[-1].whole:
                    break
        if whole is not None:
            news = [_since(source, None) for source in self.sources]

        notes: Counter[str] = Counter()

        def batches(columns: Sequence[str]) -> Iterator[Batch]:
            for one in news:
                yield from one.batches(columns)
                notes.update(one.notes)  # complete only now, as are the marks, which are the sources' own

        return News(batches, {"kinds": kinds, "sources": [one.mark for one in news]}, whole, notes)


def _since(source: Source, mark: Mark | None) -> News:
    if isinstance(source, Incremental):
        return source.since(mark)
    return News(source.batches, {}, f"a {type(source).__name__} cannot tell what is new")
