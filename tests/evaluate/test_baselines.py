"""Baselines on a log whose answers are worked out by hand, and the promises that every scorer keeps."""

from collections.abc import Callable

import numpy as np
import pytest

from recsys.data.dataset import Dataset
from recsys.data.split import Cuts, Queries, queries_of
from recsys.evaluate import baselines
from recsys.evaluate.baselines import ItemKNN, Popular, PopularNow, PopularRecent, Scorer, history_positions

# Training takes all but the last two of each user: 0 1, 0 1, 0 1 1 4 and 3 0.
HISTORIES = [[0, 1, 2, 3], [0, 1, 3, 2], [0, 1, 1, 4, 0, 2], [3, 0, 0, 4]]


@pytest.fixture
def dataset(toy: Callable[..., Dataset]) -> Dataset:
    return toy(HISTORIES, 5, times=[[0, 1, 20, 21], [2, 3, 22, 23], [3, 4, 9, 10, 24, 25], [8, 10, 26, 27]])


@pytest.fixture
def cuts(dataset: Dataset) -> Cuts:
    end = dataset.user_offsets[1:]
    return Cuts(validation_start=end - 2, test_start=end - 1)


def all_scorers(dataset: Dataset, cuts: Cuts) -> list[Scorer]:
    return [
        Popular(dataset, cuts),
        PopularRecent(dataset, cuts),
        ItemKNN(dataset, cuts),
        ItemKNN(dataset, cuts, neighbours=1, last=2),
    ]


def test_popular_counts_training(dataset: Dataset, cuts: Cuts) -> None:
    scores = Popular(dataset, cuts).scores(queries_of(dataset, cuts, "test"))
    assert scores.tolist() == [[4, 4, 0, 1, 1]] * 4


def test_popular_recent_counts_the_last_days(dataset: Dataset, cuts: Cuts) -> None:
    # The last training day is 10. After day 7: items 1 (day 9), 4 (10), 3 (8) and 0 (10), once each, so that all of
    # training decides: 0 and 1 four times, 3 and 4 once; item 2 never.
    scores = PopularRecent(dataset, cuts, days=3).scores(queries_of(dataset, cuts, "test"))[0]
    assert scores.argsort().tolist() == [2, 3, 4, 0, 1]
    # After day 9 only items 4 and 0.
    scores = PopularRecent(dataset, cuts, days=1).scores(queries_of(dataset, cuts, "test"))[0]
    assert scores.argsort().tolist() == [2, 3, 1, 4, 0]


def test_popular_now_counts_everybody_strictly_before_the_query(dataset: Dataset) -> None:
    # Asked on day 10, by the second user's third: of days 8 and 9 are 3 and 1; the two of day 10 itself do not count.
    queries = Queries(np.array([2, 0]), dataset.user_offsets[[2, 0]] + 3, np.array([0, 1, 2]), np.array([4, 3]))
    scores = PopularNow(dataset, hours=48).scores(queries)
    # The first user's last, on day 21: only item 2, on day 20, is of the two days before.
    assert scores.tolist() == [[0, 1, 0, 1, 0], [0, 0, 1, 0, 0]]


def test_knn_sums_cosines_of_the_history(dataset: Dataset, cuts: Cuts) -> None:
    # Users who took them in training: 0 {0, 1, 2, 3}, 1 {0, 1, 2}, 3 {3}, 4 {2}.
    cosine = {
        (0, 1): 3 / (4 * 3) ** 0.5,
        (0, 3): 1 / 4**0.5,
        (0, 4): 1 / 4**0.5,
        (1, 4): 1 / 3**0.5,
    }
    queries = Queries(np.array([3]), np.array([dataset.user_offsets[3] + 2]), np.array([0, 1]), np.array([0]))
    scores = ItemKNN(dataset, cuts).scores(queries)  # history: 3, then 0
    expected = [cosine[0, 3], cosine[0, 1], 0, cosine[0, 3], cosine[0, 4]]
    assert scores[0] == pytest.approx(expected)
    assert ItemKNN(dataset, cuts, last=1).scores(queries)[0] == pytest.approx([0, *expected[1:]])
    nearest = ItemKNN(dataset, cuts, neighbours=1).scores(queries)[0]
    assert nearest == pytest.approx([cosine[0, 3], cosine[0, 1], 0, 0, 0])


def test_knn_counts_a_repeated_item_once(dataset: Dataset, cuts: Cuts) -> None:
    start = dataset.user_offsets[2]
    queries = Queries(np.array([2, 2]), np.array([start + 2, start + 3]), np.array([0, 1, 2]), np.array([0, 0]))
    once, twice = ItemKNN(dataset, cuts).scores(queries)  # histories 0 1 and 0 1 1
    assert once.tolist() == twice.tolist()


def test_knn_in_blocks_is_the_same(dataset: Dataset, cuts: Cuts, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = queries_of(dataset, cuts, "test")
    whole = ItemKNN(dataset, cuts).scores(queries)
    monkeypatch.setattr(baselines, "_CELLS", 10)  # two items at a time
    assert ItemKNN(dataset, cuts).scores(queries) == pytest.approx(whole)


def test_knn_equals_a_dense_twin(toy: Callable[..., Dataset]) -> None:
    random = np.random.default_rng(0)
    dataset = toy([random.integers(0, 30, random.integers(3, 20)).tolist() for _ in range(50)], 30)
    end = dataset.user_offsets[1:]
    cuts = Cuts(end - 2, end - 1)
    taken = np.zeros((50, 30))
    for user in range(50):
        taken[user, dataset.items[dataset.user_offsets[user] : cuts.validation_start[user]]] = 1
    norm = np.maximum(np.sqrt(taken.sum(0)), 1)
    cosine = taken.T @ taken / norm / norm[:, None]
    np.fill_diagonal(cosine, 0)
    queries = queries_of(dataset, cuts, "test")
    for last in (None, 4):
        expected = [
            cosine[np.unique(dataset.items[start if last is None else max(start, stop - last) : stop])].sum(0)
            for start, stop in zip(dataset.user_offsets[queries.user], queries.end, strict=True)
        ]
        got = ItemKNN(dataset, cuts, neighbours=30, last=last).scores(queries)
        assert got == pytest.approx(np.array(expected), abs=1e-5)


def test_every_scorer_scores_every_item(dataset: Dataset, cuts: Cuts) -> None:
    queries = queries_of(dataset, cuts, "validation")
    for scorer in all_scorers(dataset, cuts):
        scores = scorer.scores(queries)
        assert (scores.shape, scores.dtype) == ((len(queries), 5), np.float32)
        assert np.isfinite(scores).all()
        assert scorer.scores(queries.take(np.array([], dtype=np.int64))).shape == (0, 5)


def test_no_scorer_looks_past_the_query(toy: Callable[..., Dataset], dataset: Dataset, cuts: Cuts) -> None:
    queries = queries_of(dataset, cuts, "validation")
    future = dataset.items.copy()
    for user, end in zip(queries.user, queries.end, strict=True):
        future[end : dataset.user_offsets[user + 1]] = 4  # all that happened from the query on was something else
    histories = [future[a:b].tolist() for a, b in zip(dataset.user_offsets[:-1], dataset.user_offsets[1:], strict=True)]
    altered = toy(histories, 5, times=[[0, 1, 20, 21], [2, 3, 22, 23], [3, 4, 9, 10, 24, 25], [8, 10, 26, 27]])
    for before, after in zip(all_scorers(dataset, cuts), all_scorers(altered, cuts), strict=True):
        assert before.scores(queries).tolist() == after.scores(queries).tolist()


def test_history_is_all_before_the_query(dataset: Dataset) -> None:
    queries = Queries(np.array([1, 0]), np.array([7, 1]), np.array([0, 1, 2]), np.array([0, 0]))
    query, position = history_positions(dataset, queries)
    assert (query.tolist(), position.tolist()) == ([0, 0, 0, 1], [4, 5, 6, 0])
    query, position = history_positions(dataset, queries, last=2)
    assert (query.tolist(), position.tolist()) == ([0, 0, 1], [5, 6, 0])


def test_wrong_parameters_are_named(dataset: Dataset, cuts: Cuts) -> None:
    with pytest.raises(ValueError, match="neighbours is 0 and last is None; both need at least 1"):
        ItemKNN(dataset, cuts, neighbours=0)
    with pytest.raises(ValueError, match="days is 0; the last days of training"):
        PopularRecent(dataset, cuts, days=0)
    timeless = Dataset(**{**dataset.__dict__, "times": None})
    with pytest.raises(ValueError, match="toy has no times, so nothing in it is recent; leave PopularRecent out"):
        PopularRecent(timeless, cuts)
