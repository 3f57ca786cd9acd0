"""Full ranking: what is asked and left out, by hand; and that nothing worthless can look good."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.dataset import Dataset
from recsys.data.split import Cuts, LeaveOneOut, Queries, queries_of
from recsys.evaluate.baselines import ItemKNN, Popular, PopularRecent
from recsys.evaluate.ranking import evaluate, head, top_k


class Fixed:
    """Gives every query the same scores."""

    def __init__(self, scores: list[float]) -> None:
        self._scores = np.array(scores, dtype=np.float32)

    def scores(self, queries: Queries) -> np.ndarray:
        return np.broadcast_to(self._scores, (len(queries), len(self._scores)))


class Oracle:
    """Knows what each query's user takes next; `told` says whose answer it gives instead of the query's own."""

    def __init__(self, dataset: Dataset, told: np.ndarray) -> None:
        self._dataset, self._told = dataset, told

    def scores(self, queries: Queries) -> np.ndarray:
        scores = np.zeros((len(queries), self._dataset.num_items), dtype=np.float32)
        scores[np.arange(len(queries)), self._dataset.items[self._told[queries.end]]] = 1
        return scores


def halved(dataset: Dataset, keep: int, *, grouped: bool = False) -> Cuts:
    """The first `keep` interactions of each user for training, the others for test."""
    start = np.minimum(dataset.user_offsets[:-1] + keep, dataset.user_offsets[1:])
    return Cuts(validation_start=start, test_start=start, grouped=grouped)


def test_a_ranking_by_hand(toy: Callable[..., Dataset]) -> None:
    dataset = toy([[0, 1, 2, 3], [4, 3]], 6)
    # Queries: user 0 after 0 wants 1, after 0 1 wants 2, after 0 1 2 wants 3; user 1 after 4 wants 3.
    # Order of scores: 0 5 2 1 3 4, of which the history is left out.
    result = evaluate(Fixed([9, 6, 7, 5, 4, 8]), dataset, halved(dataset, 1), "test", ks=(1, 2, 3))
    # Lists: 5 2 1 (place 2), 5 2 3 (place 1), 5 3 4 (place 1), 0 5 2 (3 is not among them).
    assert result.accuracy["recall@3"].value == pytest.approx(3 / 4)
    assert result.accuracy["hit_rate@2"].value == pytest.approx(2 / 4)
    assert result.accuracy["mrr@3"].value == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 4)
    assert result.accuracy["ndcg@3"].value == pytest.approx((1 / 2 + 2 / np.log2(3)) / 4)
    assert result.accuracy["recall@1"].value == 0
    # Lists of 2: 5 2, 5 2, 5 3, 0 5: four of six items. Counts in training: 0 and 4 once.
    assert result.catalogue["coverage@2"] == pytest.approx(4 / 6)
    assert result.catalogue["novelty@2"] == pytest.approx((7 * 3 + 1 * 2) / 8)  # shares 1/8, and 2/8 for item 0
    assert result.catalogue["popularity_lift@2"] is None  # nothing that was taken occurs in training
    assert result.catalogue["cold_share@2"] == 7 / 8  # all but item 0
    said = result.conditions
    assert (said.num_queries, said.num_users, said.num_targets, said.num_candidates) == (4, 2, 4, 6)
    assert (said.part, said.period, said.split) == ("test", ("1970-01-02", "1970-01-04"), "given cuts")


def test_seen_targets_are_dropped_and_counted(toy: Callable[..., Dataset]) -> None:
    dataset = toy([[0, 1, 0, 2], [1, 1]], 3)
    cuts = halved(dataset, 1)
    # User 0 wants 1, then 0 (seen), then 2; user 1 wants 1 (seen).
    result = evaluate(Fixed([3, 2, 1]), dataset, cuts, "test", ks=(1,))
    said = result.conditions
    assert (said.num_asked, said.dropped_targets, said.dropped_queries, said.num_queries) == (4, 2, 2, 2)
    assert result.accuracy["recall@1"].value == 1  # left with 1 2, then 2
    both = evaluate(Fixed([3, 2, 1]), dataset, cuts, "test", ks=(1,), include_seen=True)
    assert (both.conditions.dropped_targets, both.conditions.num_queries, both.conditions.include_seen) == (0, 4, True)
    assert both.accuracy["recall@1"].value == pytest.approx(1 / 4)  # item 0 on top of all, right once


def test_grouped_targets_are_sets(toy: Callable[..., Dataset]) -> None:
    dataset = toy([[0, 1, 2, 1, 0]], 4)
    result = evaluate(Fixed([9, 1, 3, 2]), dataset, halved(dataset, 1, grouped=True), "test", ks=(1, 2))
    said = result.conditions  # targets 1, 2, 1 again, and 0, which was seen
    assert (said.num_queries, said.num_targets, said.repeated_targets, said.dropped_targets) == (1, 2, 1, 1)
    assert result.accuracy["recall@2"].value == 0.5  # list 2 3
    assert result.accuracy["ndcg@1"].value == 1
    assert result.accuracy["ndcg@1"].half_width is None  # one user


def test_no_query_left_is_an_error(toy: Callable[..., Dataset]) -> None:
    dataset = toy([[0, 0]], 2)
    with pytest.raises(ValueError, match="no query of the test part has a target left: 1 are asked, and 1 targets had"):
        evaluate(Fixed([1, 2]), dataset, halved(dataset, 1), "test")
    with pytest.raises(ValueError, match=r"ks are \[0\]; give at least one"):
        evaluate(Fixed([1, 2]), dataset, halved(dataset, 1), "test", ks=(0,))


@pytest.fixture(scope="module")
def log(toy: Callable[..., Dataset]) -> Dataset:
    """60 users, 80 items of uneven popularity, each user's distinct; items of high row are rare."""
    random = np.random.default_rng(0)
    weight = 1 / np.arange(1, 81)
    return toy(
        [random.choice(80, random.integers(4, 30), replace=False, p=weight / weight.sum()).tolist() for _ in range(60)],
        80,
    )


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, np.inf, -np.inf, 3e38])
def test_a_scorer_that_says_nothing_gets_nothing(log: Dataset, value: float) -> None:
    result = evaluate(Fixed([value] * 80), log, LeaveOneOut().cut(log), "test", ks=(1, 20))
    assert result.accuracy["recall@20"].value == 0


def test_nan_is_an_error_that_names_the_scorer(log: Dataset) -> None:
    with pytest.raises(ValueError, match="Fixed returned NaN for user row 0; a ranking with NaN says nothing"):
        evaluate(Fixed([np.nan] + [1.0] * 79), log, LeaveOneOut().cut(log), "test")


def test_wrong_shape_is_an_error_that_names_the_scorer(log: Dataset) -> None:
    with pytest.raises(ValueError, match=r"Fixed returned scores \[13, 79\], expected \[13, 80\]"):
        evaluate(Fixed([1.0] * 79), log, LeaveOneOut().cut(log), "test", batch_size=13)


def test_knowing_the_targets_is_perfect_and_shuffled_ones_are_chance(log: Dataset) -> None:
    cuts = halved(log, 3)
    known = Oracle(log, np.arange(len(log)))
    assert evaluate(known, log, cuts, "test").accuracy["ndcg@5"].value == 1
    asked = queries_of(log, cuts, "test").end
    told = np.arange(len(log))
    told[asked] = np.random.default_rng(1).permutation(asked)
    shuffled = evaluate(Oracle(log, told), log, cuts, "test", ks=(1,)).accuracy["recall@1"].value
    # Chance: two targets drawn from the same uneven popularity agree by sum of squared shares.
    shares = np.bincount(log.items[asked], minlength=80) / len(asked)
    assert shuffled <= 2.5 * float(shares @ shares)


@pytest.mark.parametrize("scorer", [Popular, PopularRecent, ItemKNN])
def test_batches_change_nothing(log: Dataset, scorer: type) -> None:
    cuts = halved(log, 3)
    results = [evaluate(scorer(log, cuts), log, cuts, "test", batch_size=size) for size in (None, 1, 7)]
    assert results[0].accuracy == results[1].accuracy == results[2].accuracy
    assert results[0].catalogue == results[1].catalogue == results[2].catalogue


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_naming_items_and_users_otherwise_changes_nothing(log: Dataset, toy: Callable, seed: int) -> None:
    random = np.random.default_rng(seed)
    renamed, order = random.permutation(80), random.permutation(60)
    histories = [log.items[log.user_offsets[user] : log.user_offsets[user + 1]] for user in order]
    other = toy([renamed[history].tolist() for history in histories], 80)
    scores = np.random.default_rng(1).random(80)
    turned = np.empty(80)
    turned[renamed] = scores
    before = evaluate(Fixed(scores.tolist()), log, halved(log, 3), "test")
    after = evaluate(Fixed(turned.tolist()), other, halved(other, 3), "test")
    for name, mean in before.accuracy.items():
        assert after.accuracy[name].value == pytest.approx(mean.value), name
        assert after.accuracy[name].half_width == pytest.approx(mean.half_width), name
    assert after.catalogue == pytest.approx(before.catalogue)


def test_a_sample_is_drawn_once_and_said(log: Dataset) -> None:
    cuts = halved(log, 3)
    first, again, other = (
        evaluate(Popular(log, cuts), log, cuts, "test", max_queries=50, seed=seed) for seed in (1, 1, 2)
    )
    assert first.accuracy == again.accuracy != other.accuracy
    assert (first.conditions.sample, first.conditions.num_queries) == ((50, 1), 50)
    everything = evaluate(Popular(log, cuts), log, cuts, "test", max_queries=10**6)
    assert everything.conditions.sample is None


def test_slices_by_hand(toy: Callable[..., Dataset]) -> None:
    # Training: item 0 nine times, item 1 once, item 2 never; user 10 has nothing in training.
    dataset = toy([[0, 3]] * 9 + [[1, 0, 2], [3, 1, 0]], 4)
    start = dataset.user_offsets[:-1] + np.array([1] * 10 + [0])
    cuts = Cuts(validation_start=start, test_start=start)
    # Targets: 3 nine times (cold), then user 9: 0 (head), 2 (cold); user 10: 1 (tail), 0 (head).
    result = evaluate(Fixed([4, 3, 2, 1]), dataset, cuts, "test", ks=(1,))
    new, tail, cold = (result.slices[name] for name in ("new users", "tail items", "cold items"))
    assert (new.num_queries, new.num_users) == (2, 1)
    assert (tail.num_queries, tail.num_users) == (11, 11)
    assert (cold.num_queries, cold.num_users) == (10, 10)
    # User 10 after 3: list 0 1 2, wants 1; after 3 1: list 0 2, wants 0.
    assert new.metrics["ndcg@10"].value == pytest.approx((1 / np.log2(3) + 1) / 2)
    assert cold.metrics["recall@10"].value == 1


def test_groups_are_slices_and_every_query_tells_its_ndcg(toy: Callable[..., Dataset]) -> None:
    dataset = toy([[0, 1], [0, 2], [0, 3]], 4)
    groups = {"odd": np.array([False, True, False, True]), "none": np.zeros(4, dtype=bool)}
    result = evaluate(Fixed([4, 3, 2, 1]), dataset, halved(dataset, 1), "test", ks=(1,), groups=groups)
    # Lists 1 2 3: user 0 wants the first, user 1 the second, user 2 the third.
    assert result.each.tolist() == pytest.approx([1, 1 / np.log2(3), 1 / 2])
    assert result.users.tolist() == [0, 1, 2]
    assert result.slices["odd"].num_queries == 2
    assert result.slices["odd"].metrics["ndcg@10"].value == pytest.approx((1 + 1 / 2) / 2)
    assert result.slices["none"].num_queries == 0


def test_a_target_below_the_deepest_k_is_a_miss_in_every_slice(toy: Callable[..., Dataset]) -> None:
    dataset = toy([[0, 30], [0, 29]], 31)
    result = evaluate(Fixed(list(range(31, 0, -1))), dataset, halved(dataset, 1), "test", ks=(5,))
    assert result.slices["cold items"].metrics["recall@10"].value == 0


def test_head_is_the_fewest_items_that_make_up_the_share() -> None:
    assert head(np.array([1, 5, 0, 3, 1])).tolist() == [False, True, False, True, False]  # 8 of 10
    assert head(np.array([1, 1, 1, 1, 1])).tolist() == [True, True, True, True, False]
    assert head(np.array([0, 0])).tolist() == [False, False]


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 50), st.sampled_from([3, 40, 300]), st.sampled_from([2, 9, 10_000]))
def test_top_k_is_a_stable_sort(seed: int, k: int, num_items: int, distinct: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, distinct, (4, num_items)).astype(np.float32)
    scores[random.random(scores.shape) < random.choice([0, 0.5, 1])] = -np.inf
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    expected[np.take_along_axis(scores, expected, axis=1) == -np.inf] = -1
    assert top_k(scores, k).tolist() == expected.tolist()
