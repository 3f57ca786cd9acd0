"""A checkpoint measured: by the split it was trained on, with its own vectors, beside the baselines."""

import json

import numpy as np
import pytest

from recsys.artifacts import ArtifactError, sha256_of
from recsys.data.dataset import Dataset
from recsys.data.split import LeaveOneOut, queries_of
from recsys.evaluation import evaluate_checkpoint, evaluation_of
from recsys.model.embed import TowerScorer, Trained
from tests.toy import RING


def ndcg(result, k=5):
    return result.accuracy[f"ndcg@{k}"].value


@pytest.fixture(scope="module")
def results(toy):
    return evaluate_checkpoint(toy.checkpoint, toy.dataset, dimensions=[4], progress=False)


def test_the_towers_stand_first_and_beside_every_baseline(results):
    assert list(results)[:2] == ["two towers", "two towers, 4 dimensions"]
    for baseline, margin in (("popular", 0.2), ("popular, last 7 days", 0.2), ("item-kNN", 0.1)):
        assert ndcg(results["two towers"]) > ndcg(results[baseline]) + margin, baseline
    assert ndcg(results["two towers, 4 dimensions"]) <= ndcg(results["two towers"])


def test_the_split_is_the_checkpoints(toy):
    assert Trained.open(toy.checkpoint).split == {"kind": "LeaveOneOut", "min_history": 1}
    few = evaluate_checkpoint(
        toy.checkpoint, toy.dataset, part="validation", baselines=False, max_queries=9, progress=False
    )
    assert list(few) == ["two towers"]
    assert few["two towers"].conditions.num_queries == 9


@pytest.mark.parametrize("dimension", [None, 4])
def test_scores_are_inner_products_of_the_vectors_that_are_sealed(toy, toy_bundle, dimension):
    dataset = Dataset.open(toy.dataset)
    queries = queries_of(dataset, LeaveOneOut().cut(dataset), "test")
    scores = TowerScorer(Trained.open(toy.checkpoint), dataset, dimension).scores(queries)
    for q in (0, 11, 79):
        place = slice(dataset.user_offsets[queries.user[q]], queries.end[q])
        vector = toy_bundle.embed_user(None, dataset.items[place].astype(np.int64), dataset.times[place])
        expected = toy_bundle.item_vectors[:, :dimension] @ vector[:dimension]
        np.testing.assert_allclose(scores[q], expected, rtol=1e-4, atol=1e-4)
        if dimension is None:
            unseen = np.where(np.isin(np.arange(RING + 1), dataset.items[place]), -np.inf, scores[q])
            assert unseen.argmax() == dataset.items[queries.end[q]]
    assert scores.shape == (len(queries), RING + 1)


@pytest.mark.parametrize("dimension", [0, -1, 17])
def test_a_prefix_that_is_none_is_refused(toy, dimension):
    with pytest.raises(ValueError, match=f"vectors of 16 dimensions cannot be cut to {dimension}; choose less"):
        evaluate_checkpoint(toy.checkpoint, toy.dataset, dimensions=[dimension], progress=False)


def test_another_dataset_is_refused(toy, shop):
    with pytest.raises(ArtifactError, match=r"was trained on another dataset .*; use the one it was trained on"):
        evaluate_checkpoint(toy.checkpoint, shop, progress=False)


def test_an_evaluation_names_its_checkpoint_and_is_json(toy, results):
    said = json.loads(json.dumps(evaluation_of(toy.checkpoint, results), allow_nan=False))
    assert said["checkpoint"] == sha256_of(toy.checkpoint)
    value = said["results"]["results"]["two towers"]["accuracy"]["ndcg@5"]["value"]
    assert value == pytest.approx(ndcg(results["two towers"]))
