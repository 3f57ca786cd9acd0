"""MovieLens, in the layouts that GroupLens has published: 100K, 1M, latest and 20M to 32M."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.schema import Entity, Feature, Interactions, Schema
from recsys.data.sources import Batch, Csv, Source, SourceError, Tables

_GENRES_100K = [
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
]
_FILM = Entity(
    id="item_id",
    features=(
        Feature("title", "text", show=True),
        Feature("genres", "multi", show=True),
        Feature("year", "numeric", show=True),
    ),
)
_PERSON = Entity(
    id="user_id",
    features=(Feature("gender", "categorical"), Feature("age", "categorical"), Feature("occupation", "categorical")),
)


class MovieLens(Tables):
    """MovieLens as published.

    Args:
        path: the unpacked folder; its files tell the layout.

    Raises:
        SourceError: it holds none of the known layouts.
    """

    def __init__(self, path: str) -> None:
        folder = Path(path)
        users: Source | None = None
        if (folder / "ratings.dat").exists():
            rating = ["user_id", "item_id", "rating", "time"]
            person = ["user_id", "gender", "age", "occupation", "zip_code"]
            log = _dat(folder / "ratings.dat", rating)
            films: Source = _dat(folder / "movies.dat", ["item_id", "title", "genres"])
            # The 10M layout is the 1M layout without users.
            users = _dat(folder / "users.dat", person) if (folder / "users.dat").exists() else None
        elif (folder / "u.data").exists():
            film = ["item_id", "title", "released", "video", "imdb", *_GENRES_100K]
            log = Csv(str(folder / "u.data"), "\t", ["user_id", "item_id", "rating", "time"], "latin-1", "")
            films = _JoinedGenres(Csv(str(folder / "u.item"), "|", film, "latin-1", ""))
            person = ["user_id", "age", "gender", "occupation", "zip_code"]
            users = Csv(str(folder / "u.user"), "|", person, "latin-1", "")
        elif (folder / "ratings.csv").exists():
            log = Csv(str(folder / "ratings.csv"))
            films = Csv(str(folder / "movies.csv"))
        else:
            raise SourceError(
                f"{path} holds no MovieLens layout: there is no ratings.dat (1M), u.data (100K) or ratings.csv (20M "
                "and later) in it; unpack the archive and give the folder inside"
            )
        csv = (folder / "ratings.csv").exists() and not (folder / "ratings.dat").exists()
        interactions = Interactions(
            user="userId" if csv else "user_id",
            item="movieId" if csv else "item_id",
            time="timestamp" if csv else "time",
            weight="rating",
            user_type="integer",
            item_type="integer",
        )
        items = Entity("movieId", _FILM.features) if csv else _FILM
        schema = Schema(interactions, items, _PERSON if users is not None else None)
        super().__init__(schema, log, _Films(films), users)


@dataclass(frozen=True)
class _Films:
    """A film table with a column `year`, taken from the title's end: "Toy Story (1995)"."""

    source: Source

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        for batch in self.source.batches([name for name in columns if name != "year"]):
            found = pc.extract_regex(batch.columns.column("title"), r"\((?P<year>\d{4})\)?\s*$")
            yield _with_column(batch, "year", pc.struct_field(found, "year"))


@dataclass(frozen=True)
class _JoinedGenres:
    """The 100K film table, whose genres are a column of 0 or 1 each, with a column `genres` such as "Action|War"."""

    source: Source

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        rest = [name for name in columns if name != "genres"]
        for batch in self.source.batches([*rest, *_GENRES_100K]):
            flags = [pc.if_else(pc.equal(batch.columns.column(genre), "1"), genre, None) for genre in _GENRES_100K]
            yield _with_column(batch, "genres", pc.binary_join_element_wise(*flags, "|", null_handling="skip"))


def _dat(path: Path, columns: list[str]) -> Csv:
    return Csv(str(path), "::", columns, "latin-1", "")


def _with_column(batch: Batch, name: str, values: pa.Array) -> Batch:
    columns = batch.columns.append_column(name, values)
    return Batch(batch.source, columns, batch.rows, batch.unparsed, batch.decoded_as_cp1252)
