"""Metrics against values worked out by hand, and against two well-kept libraries."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranx import Qrels, Run
from ranx import evaluate as ranx_evaluate
from torchmetrics import retrieval

from recsys.evaluate import metrics

# Two queries over items 0 … 9. The first wants 3 and 7 and gets 3 second; the second wants 5 and gets it nowhere.
TOP = np.array([[1, 3, 2, 0], [0, 1, 2, -1]])
OWNER = np.array([0, 0, 1])
TARGETS = np.array([3, 7, 5])


def test_places_by_hand() -> None:
    assert metrics.places(TOP, OWNER, TARGETS).tolist() == [1, 4, 4]


def test_accuracy_by_hand() -> None:
    places = metrics.places(TOP, OWNER, TARGETS)
    assert metrics.recall(places, OWNER, 2).tolist() == [0.5, 0]
    assert metrics.recall(places, OWNER, 1).tolist() == [0, 0]
    assert metrics.hit_rate(places, OWNER, 4).tolist() == [1, 0]
    assert metrics.reciprocal_rank(places, OWNER, 4).tolist() == [0.5, 0]
    assert metrics.reciprocal_rank(places, OWNER, 1).tolist() == [0, 0]
    gained, ideal = 1 / math.log2(3), 1 + 1 / math.log2(3)
    assert metrics.ndcg(places, OWNER, 4) == pytest.approx([gained / ideal, 0])
    assert metrics.ndcg(np.array([0, 4, 2]), OWNER, 1) == pytest.approx([1, 0])  # the ideal of k = 1 holds one target


def test_catalogue_by_hand() -> None:
    recommended, counts = np.array([3, 1, 0, 0]), np.array([3, 0, 1, 0])
    assert metrics.coverage(recommended) == 0.5
    # Shares with one added to each: 4/8, 1/8, so 1 bit three times and 3 bits once.
    assert metrics.novelty(recommended, counts) == pytest.approx((3 * 1 + 1 * 3) / 4)
    # Recommended: (3·3 + 1·0) / 4 = 2.25. Taken: items 0 and 2, (3 + 1) / 2 = 2.
    assert metrics.popularity_lift(recommended, np.array([1, 0, 1, 0]), counts) == pytest.approx(2.25 / 2)
    assert metrics.popularity_lift(recommended, np.array([0, 0, 0, 5]), counts) is None
    assert metrics.cold_share(recommended, counts) == 1 / 4  # of four places, that of item 1
    assert metrics.cold_share(np.zeros(4, dtype=np.int64), counts) == 0


def test_interval_by_hand() -> None:
    # Users (1, 1) and (0, 0): mean 0.5, deviations by user +1 and −1, variance 2/1 · 2 / 16, t(1) 12.706.
    both = metrics.clustered_mean(np.array([1.0, 1, 0, 0]), np.array([4, 4, 9, 9]))
    assert both.value == 0.5
    assert both.half_width == pytest.approx(12.7062 * 0.5, rel=1e-4)
    assert metrics.clustered_mean(np.array([1.0, 0]), np.array([4, 4])).half_width is None


def test_interval_of_one_query_a_user_is_the_usual_one() -> None:
    values = np.random.default_rng(0).random(500)
    got = metrics.clustered_mean(values, np.arange(500))
    assert got.half_width == pytest.approx(1.9647 * values.std(ddof=1) / 500**0.5, rel=1e-3)


def test_interval_covers_the_truth_where_an_independent_one_does_not() -> None:
    random = np.random.default_rng(0)
    covered = naive = 0
    for _ in range(300):
        users = np.repeat(np.arange(60), random.integers(1, 40, 60))
        values = random.normal(0, 1, 60)[users] + random.normal(0, 0.3, len(users))
        got = metrics.clustered_mean(values, users)
        covered += abs(got.value) <= (got.half_width or 0)
        naive += abs(got.value) <= 1.96 * values.std() / len(values) ** 0.5
    assert 0.89 <= covered / 300 <= 0.99
    assert naive / 300 < 0.6


def random_lists(seed: int, num_queries: int = 60, num_items: int = 40, length: int = 15) -> tuple[np.ndarray, list]:
    random = np.random.default_rng(seed)
    top = np.stack([random.permutation(num_items)[:length] for _ in range(num_queries)])
    wanted = [random.choice(num_items, random.integers(1, 25), replace=False) for _ in range(num_queries)]
    return top, wanted


@pytest.mark.parametrize("k", [1, 5, 10, 15])
def test_agrees_with_ranx_and_torchmetrics(k: int) -> None:
    top, wanted = random_lists(k)
    owner = np.repeat(np.arange(len(wanted)), [len(targets) for targets in wanted])
    places = metrics.places(top, owner, np.concatenate(wanted))
    ours = {
        f"recall@{k}": metrics.recall(places, owner, k),
        f"hit_rate@{k}": metrics.hit_rate(places, owner, k),
        f"mrr@{k}": metrics.reciprocal_rank(places, owner, k),
        f"ndcg@{k}": metrics.ndcg(places, owner, k),
    }
    qrels = Qrels({f"{q:03}": {f"i{t}": 1 for t in targets} for q, targets in enumerate(wanted)})
    run = Run({f"{q:03}": {f"i{row}": 100.0 - at for at, row in enumerate(rows)} for q, rows in enumerate(top)})
    theirs = ranx_evaluate(qrels, run, list(ours))
    for name, values in ours.items():
        assert values.mean() == pytest.approx(theirs[name]), name

    # torchmetrics wants a score and a label for every item that is ranked: all 40, unlisted ones last.
    score, label = np.zeros((len(wanted), 40)), np.zeros((len(wanted), 40), dtype=bool)
    for q, (rows, targets) in enumerate(zip(top, wanted, strict=True)):
        score[q] = -1 - np.random.default_rng(q).random(40)
        score[q, rows] = 100 - np.arange(len(rows))
        label[q, targets] = True
    arguments = [torch.tensor(each.ravel()) for each in (score, label)]
    index = torch.arange(len(wanted)).repeat_interleave(40)
    for name, metric in {
        f"recall@{k}": retrieval.RetrievalRecall(top_k=k),
        f"hit_rate@{k}": retrieval.RetrievalHitRate(top_k=k),
        f"mrr@{k}": retrieval.RetrievalMRR(top_k=k),
        f"ndcg@{k}": retrieval.RetrievalNormalizedDCG(top_k=k),
    }.items():
        assert float(metric(*arguments, indexes=index)) == pytest.approx(ours[name].mean(), rel=1e-5), name


@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_naming_items_otherwise_changes_nothing(seed: int, random: object) -> None:
    top, wanted = random_lists(seed, num_queries=8)
    owner = np.repeat(np.arange(8), [len(targets) for targets in wanted])
    renamed = np.random.default_rng(seed + 1).permutation(40)
    before = metrics.places(top, owner, np.concatenate(wanted))
    after = metrics.places(renamed[top], owner, renamed[np.concatenate(wanted)])
    assert (before == after).all()


@given(st.integers(0, 10_000))
def test_order_of_targets_and_queries_changes_no_mean(seed: int) -> None:
    top, wanted = random_lists(seed, num_queries=8)
    order = np.random.default_rng(seed).permutation(8)

    def means(order: np.ndarray, turned: int) -> list[float]:
        owner = np.repeat(np.arange(8), [len(wanted[q]) for q in order])
        targets = np.concatenate([wanted[q][::turned] for q in order])
        places = metrics.places(top[order], owner, targets)
        of = (metrics.ndcg, metrics.recall, metrics.hit_rate, metrics.reciprocal_rank)
        return [each(places, owner, 10).mean() for each in of]

    assert means(np.arange(8), 1) == pytest.approx(means(order, -1))
