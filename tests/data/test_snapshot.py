"""A snapshot is what a source said: all that `prepare` could see, whole or refused."""

import shutil

import numpy as np
import pyarrow as pa
import pytest

from recsys.artifacts import ArtifactError
from recsys.data.movielens import MovieLens
from recsys.data.prepare import prepare
from recsys.data.snapshot import Snapshot, manifest, opened, snapshot
from recsys.data.sources import Batch, Csv, Tables, Unparsed
from recsys.data.synthetic import Synthetic
from tests.small_log import NAMES, SCHEMA


def same(one, other):
    assert (one.source, one.rows.tolist(), one.unparsed, one.decoded_as_cp1252) == (
        *(other.source, other.rows.tolist(), other.unparsed, other.decoded_as_cp1252),
    )
    assert one.columns.schema.equals(other.columns.schema)
    assert repr(one.columns.to_pylist()) == repr(other.columns.to_pylist())  # not a number equals nothing


def test_a_csv_is_kept_with_all_its_dirt(tmp_path, monkeypatch):
    monkeypatch.setattr("recsys.data.sources.BLOCK", 300)
    lines = [f"u{number},i,{number}" if number % 7 else f"u{number},i" for number in range(2, 200)]
    lines[50] = "u52,caf\u00e9,52"
    (tmp_path / "log.csv").write_bytes(("user,item,time\n" + "\n".join(lines)).encode("latin-1"))
    source = Csv(str(tmp_path / "log.csv"))
    assert snapshot(Tables(SCHEMA, source), tmp_path / "out").content["interactions"] == 198
    kept = list(opened(tmp_path / "out").interactions.batches(["item", "user"]))
    assert len(kept) > 5
    for one, other in zip(kept, source.batches(["item", "user"]), strict=True):
        same(one, other)
    assert sum(batch.decoded_as_cp1252 for batch in kept) == 1
    assert [row.row for batch in kept for row in batch.unparsed] == list(range(7, 200, 7))


class Odd:
    """A source of batches of ever other types, with wild row numbers."""

    def __init__(self):
        texts, numbers = pa.array(["a", None]), pa.array([1, 2])
        none = pa.nulls(2)
        self.all = [
            self.batch("x", [texts, numbers, none], [5, 9]),
            self.batch("y", [none, numbers.cast(pa.float64()), pa.array([1.5, float("nan")])], [9, 3]),
            self.batch("y", [none, numbers.cast(pa.float64()), pa.array([2.5, None])], [10, 11]),
            self.batch("z", [texts.dictionary_encode(), pa.array([2**63, 0], pa.uint64()), numbers], [1, 2]),
            self.batch("z", [texts.cast(pa.large_string()), texts, pa.array([9, None], pa.timestamp("us"))], [1, 2]),
            self.batch("z", [texts.slice(0, 0), texts.slice(0, 0), none.slice(0, 0)], [], (Unparsed(4, "why", "☃"),)),
        ]  # fmt: skip

    @staticmethod
    def batch(source, columns, rows, unparsed=()):
        return Batch(source, pa.RecordBatch.from_arrays(columns, names=NAMES), np.array(rows, np.int64), unparsed, 3)

    def batches(self, columns):
        for batch in self.all:
            yield Batch(batch.source, batch.columns.select(columns), batch.rows, batch.unparsed, 3)


def test_any_source_is_kept_whatever_the_types_of_its_batches(tmp_path):
    taken = snapshot(Tables(SCHEMA, Odd()), tmp_path / "out", since={"interactions": {}})
    assert taken.content["whole"] == "a Odd cannot tell what is new"
    assert taken.content["interactions"] == 11
    for columns in (NAMES, ["time", "user"]):
        for one, other in zip(
            opened(tmp_path / "out").interactions.batches(columns), Odd().batches(columns), strict=True
        ):
            same(one, other)


def test_a_source_without_a_row_is_kept_too(tmp_path):
    (tmp_path / "log.csv").write_text("")
    snapshot(Tables(SCHEMA, Csv(str(tmp_path / "log.csv"))), tmp_path / "out")
    assert list(opened(tmp_path / "out").interactions.batches(NAMES)) == []


def files_of(path):
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "manifest.json"}


def test_prepare_makes_the_same_of_the_snapshot_even_when_the_source_is_gone(tmp_path):
    shop = Synthetic(users=50, items=20, interactions=2_000, duplicates=0.05, broken=0.02)
    folder = tmp_path / "ml"
    folder.mkdir()
    (folder / "ratings.dat").write_text("1::10::5::100\n1::10::5\n2::11::3::90\n2::12::?::90\n")
    (folder / "movies.dat").write_text("10::Ten (1990)::A|B\n11::Eleven (1991)::B\n10::Again (1990)::\n")
    for name, tables in (("shop", shop), ("films", MovieLens(str(folder)))):
        there = prepare(tables, tmp_path / name / "there", max_rejected=1.0)
        taken = snapshot(tables, tmp_path / name / "snapshot")
        if name == "films":
            shutil.rmtree(folder)
        kept = prepare(opened(tmp_path / name / "snapshot"), tmp_path / name / "kept", max_rejected=1.0)
        assert files_of(kept.path) == files_of(there.path)
        assert kept.manifest.digest == there.manifest.digest
        assert taken.content["items"] == (20 if name == "shop" else 3)
        assert "users" not in taken.content


def test_equal_sources_make_equal_snapshots_and_damage_is_refused(tmp_path):
    shop = Synthetic(users=50, items=20, interactions=500)
    one, other = (snapshot(shop, tmp_path / name) for name in ("one", "other"))
    assert one.digest == other.digest
    assert manifest(tmp_path / "one").digest == one.digest
    file = tmp_path / "one" / "interactions-1.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    for refuses in (manifest, opened, lambda path: Snapshot(str(path))):
        with pytest.raises(ArtifactError, match=r"interactions-1\.parquet does not match its sha256"):
            refuses(tmp_path / "one")
