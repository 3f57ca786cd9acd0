"""Content kNN by hand, and what the cold rows aim at."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from benchmarks.quality import __main__ as table
from benchmarks.quality import runs
from benchmarks.quality.content import ContentKNN, Random, tf_idf
from benchmarks.quality.rows import named
from recsys.data.split import Queries
from recsys.evaluate.metrics import Mean


def log():
    """One user, who took items 0, 1 and 2; item 3 was never taken."""
    return SimpleNamespace(user_offsets=np.array([0, 3]), items=np.array([0, 1, 2]), num_items=4)


QUERY = Queries(np.array([0]), np.array([3]), np.array([0, 1]), np.array([3]))
VECTORS = np.array([[1, 0], [0, 1], [0.6, 0.8], [0.8, 0.6]], dtype=np.float32)


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_array])
def test_scores_are_sums_of_cosines_with_the_history(make):
    knn = ContentKNN(log(), make(VECTORS))
    assert knn.scores(QUERY)[0] == pytest.approx([1 + 0 + 0.6, 0 + 1 + 0.8, 0.6 + 0.8 + 1, 0.8 + 0.6 + 0.96])
    assert knn.with_last(1).scores(QUERY)[0] == pytest.approx([0.6, 0.8, 1, 0.96])
    assert knn.with_last(2).settings == {"last": 2}


def test_tf_idf_by_hand():
    features = pa.table({"title": ["Red shoe", "red sock", None], "tags": [["a"], None, ["a", "b"]]})
    items: Any = SimpleNamespace(item_features=lambda: features)
    made = tf_idf(items).toarray()
    # "shoe", "sock" and "tags=b" stand once and are left out; "red" and "tags=a" stand twice each, and weigh the same.
    half = 0.5**0.5
    assert made.shape == (3, 2)
    assert made[0].tolist() == pytest.approx([half, half])
    assert sorted(made[1].tolist()) == sorted(made[2].tolist()) == [0, 1]
    assert made[1] @ made[2] == 0
    assert made[0] @ made[1] == pytest.approx(half)


def test_chance_is_drawn_anew():
    chance = Random(log(), None)
    assert (chance.scores(QUERY) != chance.scores(QUERY)).any()


def test_a_cold_row_aims_above_the_best_baseline_measured_here(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    row = named("cold-beauty")
    alone, share = row.beside
    for model, value, other in ((runs.MODEL, 0.31, 0.4), ("content-knn", 0.2, 0.5), ("popular", 0.1, 0.6)):
        means, halves = {"recall@50": value, alone: other, share: other}, {"recall@50": 0.01, alone: 0.01, share: None}
        part = {"dimensions": {"64": {"mean": means, "half_width": halves}}}
        said = {"row": row.name, "model": model, "seed": 0, "validation": part, "test": part, "seconds": 60}
        runs.write(said, tmp_path / row.name / f"{model}.json")
    said, *beside = table.figures(row)
    assert said["target"] == pytest.approx(0.3)
    assert (said["met"], said["best baseline here"]) == ("yes", "content-knn 0.2000")
    # What stands beside it has no aim, and is that of the same baseline, not of the one that has most of it.
    assert [(one["metric"], one["mean"], one["±"], one["met"]) for one in beside] == [
        ("recall@50, only they compete", 0.4, 0.01, None),
        ("their share of lists@50", 0.4, None, None),
    ]
    assert {one["best baseline here"] for one in beside} == {"content-knn 0.5000"}


def test_only_cold_items_compete(monkeypatch):
    monkeypatch.setattr(runs, "train_counts", lambda dataset, cuts: np.array([2, 0, 1, 0]))
    scorer: Any = SimpleNamespace(scores=lambda queries: np.array([[4.0, 3.0, 2.0, 1.0]]))
    nothing: Any = None
    assert runs.OnlyCold(scorer, nothing, nothing).scores(QUERY).tolist() == [[-np.inf, 3, -np.inf, 1]]


def test_beside_the_metric_stand_recall_among_cold_items_and_the_share_of_whole_lists(monkeypatch):
    def measured(scorer, *given, **options):
        alone = isinstance(scorer, runs.OnlyCold)
        return SimpleNamespace(
            accuracy={"recall@50": Mean(0.5, 0.1) if alone else Mean(0.25, 0.2)},
            catalogue={"cold_share@50": 1.0 if alone else 0.4},
            conditions=SimpleNamespace(num_queries=7),
        )

    monkeypatch.setattr(runs, "evaluate", measured)
    monkeypatch.setattr(runs, "train_counts", lambda dataset, cuts: np.array([2, 0]))
    row = named("cold-beauty")
    nothing: Any = SimpleNamespace(cut=lambda data: None)
    queries, said = runs.figures_of(nothing, row, nothing, nothing, "test")
    assert queries == 7
    assert list(said["mean"]) == ["recall@50", *row.beside]
    assert list(said["mean"].values()) == [0.25, 0.5, 0.4]
    assert list(said["half_width"].values()) == [0.2, 0.1, None]
