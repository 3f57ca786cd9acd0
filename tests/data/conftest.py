import csv
import itertools
import json

import pytest
from hypothesis import settings

from recsys.data.prepare import prepare
from recsys.data.snapshot import opened, snapshot
from recsys.data.sources import Csv, Tables
from tests.small_log import NAMES, SCHEMA

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

PLAIN = {"user": "user", "item": "item", "time": "time"}


@pytest.fixture
def prepared(tmp_path):
    """Prepares rows of text, as CSV files with the given columns."""
    numbers = itertools.count()

    def make(
        rows,
        columns=("user", "item", "time"),
        declared=PLAIN,
        max_rejected=1.0,
        items=None,
        users=None,
        out=None,
        base=None,
    ):
        folder = tmp_path / f"prepared-{next(numbers)}"
        folder.mkdir()

        def table(name, columns, rows):
            with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([columns, *rows])
            return Csv(str(folder / f"{name}.csv"))

        schema, sources = {"interactions": declared}, [table("log", columns, rows)]
        for name, said in (("items", items), ("users", users)):
            if said is not None:
                entity_columns, features, entity_rows = said
                schema[name] = {"id": entity_columns[0], "features": features}
                sources.append(table(name, entity_columns, entity_rows))
            else:
                sources.append(None)
        tables = Tables(schema, *sources)
        return prepare(tables, out or folder / "dataset", max_rejected=max_rejected, base=base and base.path)

    return make


@pytest.fixture
def night(tmp_path):
    """Takes one snapshot after the other, each since the one before."""
    marks: list[dict | None] = [None]

    def take(source, schema=SCHEMA):
        taken = snapshot(Tables(schema, source), tmp_path / f"night-{len(marks)}", since=marks[-1])
        marks.append(json.loads(json.dumps(taken.content["mark"])))  # plain JSON
        tables = opened(tmp_path / f"night-{len(marks) - 1}")
        batches = list(tables.interactions.batches(NAMES))
        rows = [tuple(row.values()) for batch in batches for row in batch.columns.to_pylist()]
        assert taken.content["interactions"] == len(rows) + sum(len(batch.unparsed) for batch in batches)
        assert taken.content["mark"]["whole"] is (taken.content["whole"] is not None)
        assert tables.whole == taken.content["whole"]
        return rows, taken.content["whole"], batches

    return take


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    return folder
