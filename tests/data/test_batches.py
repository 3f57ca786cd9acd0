"""Batches: nothing twice, nothing lost, nothing from the future."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.artifacts import ArtifactError
from recsys.data.batches import like_lengths, query_loader, share
from recsys.data.dataset import Dataset
from recsys.data.history import GAP_BUCKETS, gap_buckets, histories, windows
from recsys.data.module import HistoryData
from recsys.data.split import GivenSplit, LeaveOneOut, Queries, TimeSplit, everyone

many_lengths = st.lists(st.integers(1, 300), max_size=80).map(lambda said: np.array(said, dtype=np.int64))


@settings(deadline=None)
@given(lengths=many_lengths, budget=st.integers(1, 700), seed=st.integers(0, 9))
def test_batches_of_like_length_hold_each_once_within_the_budget(lengths, budget, seed):
    fixed = like_lengths(lengths, budget, None)
    drawn = like_lengths(lengths, budget, np.random.default_rng(seed))
    for batches in (fixed, drawn):
        assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
        for batch in batches:
            assert len(batch) * lengths[batch].max() <= budget or len(batch) == 1
    assert len(fixed) == len(drawn)
    assert [batch.tolist() for batch in fixed] == [batch.tolist() for batch in like_lengths(lengths, budget, None)]


def test_little_of_a_batch_is_padding_and_few_batches_are_half_empty():
    lengths = np.random.default_rng(0).geometric(1 / 40, 5_000).clip(1, 200)
    batches = like_lengths(lengths, 4_096, np.random.default_rng(1))
    positions = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert lengths.sum() / positions > 0.9
    assert positions / (len(batches) * 4_096) > 0.9


def test_draws_differ_in_who_meets_whom():
    lengths = np.full(100, 10)
    first, second = (like_lengths(lengths, 100, np.random.default_rng(seed)) for seed in (0, 1))
    assert {len(batch) for batch in first} == {10}  # as many as fit
    assert {frozenset(batch.tolist()) for batch in first} != {frozenset(batch.tolist()) for batch in second}


SPLITS = [TimeSplit(0.2, 0.2), LeaveOneOut()]


def data_of(path, split=None, **options):
    return HistoryData(path, split=split, **{"max_length": 6, "batch_positions": 40} | options)


def steps(data):
    """What training is shown: each real position's history of positions in the log, and its target row."""
    for batch in data.train_dataloader():
        length = batch.history.items_BL.shape[1]
        for place, target in zip(batch.position_P.tolist(), batch.target_T.tolist(), strict=True):
            row, at = divmod(place, length)
            assert at < batch.history.lengths_B[row]
            yield tuple(batch.history.items_BL[row, : at + 1].tolist()), target


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: type(split).__name__)
def test_training_learns_each_next_item_and_nothing_after_the_cut(shop, split):
    data = data_of(shop, split)
    dataset, expected = data.dataset, []
    for user in range(dataset.num_users):
        start, end = int(dataset.user_offsets[user]), int(data.cuts.validation_start[user])
        first = max(start, end - 7)  # six of history, and the target of the last
        expected += [(tuple(dataset.items[first:at].tolist()), int(dataset.items[at])) for at in range(first + 1, end)]
    assert sorted(steps(data)) == sorted(expected)
    assert len(expected) > 30


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: type(split).__name__)
def test_what_happens_after_the_cut_cannot_reach_training(shop, split):
    data = data_of(shop, split)
    held_out = np.arange(len(data.dataset)) >= np.repeat(data.cuts.validation_start, np.diff(data.dataset.user_offsets))
    later = dataclasses.replace(
        data.dataset,
        items=np.where(held_out, (data.dataset.items + 5) % data.num_items, data.dataset.items),
        events=np.where(held_out, 0, data.dataset.events),
    )
    spoilt = data_of(shop, split)
    spoilt.dataset = later
    for before, after in zip(data.train_dataloader(), spoilt.train_dataloader(), strict=True):
        assert torch.equal(before.target_T, after.target_T)
        assert torch.equal(before.history.items_BL, after.history.items_BL)
        assert torch.equal(before.history.events_BL, after.history.events_BL)
    assert held_out.sum() > 10


def test_vocabulary_and_popularity_come_from_before_the_cut(shop):
    data = data_of(shop)
    late = data.dataset.item_ids.row("i19")  # taken at the very end only
    assert not data.trained[late]
    assert data.frequency[late] == 0
    targets = np.concatenate([batch.target_T.numpy() for batch in data.train_dataloader()])
    shares = np.bincount(targets, minlength=data.num_items) / len(targets)
    np.testing.assert_allclose(data.frequency, shares, rtol=1e-6)  # of what is asked for: no user's first is
    assert "late" not in data.item_encoder.learnt["brand"]["vocabulary"]
    everything = data_of(shop, LeaveOneOut(min_history=100))
    assert everything.trained[late]
    assert "late" in everything.item_encoder.learnt["brand"]["vocabulary"]


class AtEpoch:
    """What a data module asks its trainer."""

    def __init__(self, epoch, rank=0, workers=1):
        self.current_epoch, self.global_rank, self.world_size = epoch, rank, workers


def test_an_epoch_has_an_order_of_its_own_and_always_the_same(shop):
    def order(epoch, seed=0):
        data = data_of(shop, seed=seed)
        data.trainer = AtEpoch(epoch)
        return [batch.target_T.tolist() for batch in data.train_dataloader()]

    assert order(3) == order(3)
    assert order(3) != order(4)
    assert order(3) != order(3, seed=1)
    assert len(order(3)) == len(order(4)) == len(data_of(shop).train_dataloader())


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40).map(lambda said: np.array(said, dtype=np.int64)),
    workers=st.integers(1, 12),
    budget=st.integers(1, 200),
)
def test_weighted_means_of_shares_average_to_the_mean_of_the_batch(lengths, workers, budget):
    value = np.random.default_rng(0).normal(size=len(lengths))  # of each position of a sequence
    for batch in like_lengths(lengths, budget, np.random.default_rng(0)):
        shares = [share(batch, lengths, rank, workers) for rank in range(workers)]
        means = [weight * np.average(value[part], weights=lengths[part]) for part, weight in shares]
        assert np.mean(means) == pytest.approx(np.average(value[batch], weights=lengths[batch]))
        taken = [index for part, weight in shares if weight for index in part.tolist()]
        assert sorted(taken) == sorted(batch.tolist())
        assert all(len(part) for part, _ in shares)


def test_workers_share_every_batch_that_one_alone_would_have(shop):
    def targets(rank=0, workers=1):
        data = data_of(shop)
        data.trainer = AtEpoch(2, rank, workers)
        return list(data.train_dataloader())

    alone, shared = targets(), [targets(rank, 3) for rank in range(3)]
    assert [len(batches) for batches in shared] == [len(alone)] * 3
    for whole, *parts in zip(alone, *shared, strict=True):
        assert whole.weight == 1
        counts = [len(part.target_T) if part.weight else 0 for part in parts]
        assert sum(counts) == len(whole.target_T)
        assert [part.weight for part in parts] == pytest.approx([3 * n / len(whole.target_T) for n in counts])
        taken = torch.cat([part.target_T for part in parts if part.weight])
        assert sorted(taken.tolist()) == sorted(whole.target_T.tolist())


@pytest.mark.parametrize("budget", [1, 20, 1_000])
def test_every_query_is_answered_once_from_its_own_history(shop, budget):
    data = data_of(shop)
    dataset = data.dataset
    user = np.array([0, 0, 5, 5, 5, 11, 11, 11])
    end = dataset.user_offsets[user] + np.array([1, 3, 1, 6, 7, 14, 2, 14])
    asked = Queries(user, end, np.zeros(9, dtype=np.int64), np.empty(0, dtype=np.int64))
    answered = {}
    for batch in query_loader(dataset, asked, data.profiles, 6, budget):
        length = batch.history.items_BL.shape[1]
        for place, query in zip(batch.position_Q.tolist(), batch.query_Q.tolist(), strict=True):
            row, at = divmod(place, length)
            assert query not in answered
            answered[query] = batch.history.items_BL[row, : at + 1].tolist()
            assert batch.history.users["age"][row].tolist() == data.profiles["age"][user[query]].tolist()
    starts = np.maximum(dataset.user_offsets[user], end - 6)
    assert answered == {q: dataset.items[starts[q] : end[q]].tolist() for q in range(8)}


def test_queries_share_a_stretch_where_their_histories_start_together(shop):
    dataset = Dataset.open(shop)
    start = int(dataset.user_offsets[11])
    end = np.array([start + 1, start + 6, start + 4, start + 9])
    asked = Queries(np.full(4, 11), end, np.zeros(5, dtype=np.int64), np.empty(0, dtype=np.int64))
    shared = windows(dataset, asked, 6)
    assert shared.starts.tolist() == [start, start + 3]
    assert shared.ends.tolist() == [start + 6, start + 9]
    assert (shared.window.tolist(), shared.position.tolist()) == ([0, 0, 0, 1], [0, 5, 3, 5])


def test_validation_asks_at_most_so_many_and_always_the_same(shop):
    data = data_of(shop, TimeSplit(0.3, 0.2), max_validation_queries=5)
    first, second = data.queries("validation"), data.queries("validation")
    assert len(first) == 5
    assert first.end.tolist() == second.end.tolist()
    assert len(data.queries("test")) > 5
    assert len(data_of(shop, TimeSplit(0.3, 0.2)).queries("validation")) > 5


def test_seen_is_all_of_a_history_however_long(shop):
    data = data_of(shop)
    asked = everyone(data.dataset)
    query, rows = data.seen(asked)
    for q in range(len(asked)):
        start = data.dataset.user_offsets[asked.user[q]]
        assert rows[query == q].tolist() == data.dataset.items[start : asked.end[q]].tolist()


def test_histories_by_hand(shop):
    data = data_of(shop)
    dataset = data.dataset
    users = np.array([0, 4])
    start = dataset.user_offsets[users] + np.array([0, 1])
    history = histories(dataset, users, start, start + np.array([2, 4]), data.profiles)
    assert history.gaps_BL is not None
    assert history.events_BL is not None
    assert history.lengths_B.tolist() == [2, 4]
    assert history.items_BL[0].tolist() == [*dataset.items[start[0] : start[0] + 2], 0, 0]
    assert history.items_BL[1].tolist() == dataset.items[start[1] : start[1] + 4].tolist()
    # A hundred seconds lie between: 1 + log2(101) is above 7, below 8.
    assert history.gaps_BL.tolist() == [[0, 7, 0, 0], [0, 7, 7, 7]]
    assert history.events_BL[0, 2:].tolist() == [0, 0]


def test_gaps_by_hand():
    times = np.array([0, 0, 1_000, 4_000, 3_000, 10**15, 2 * 10**15])
    assert gap_buckets(times).tolist() == [0, 1, 2, 3, 1, GAP_BUCKETS - 1, GAP_BUCKETS - 1]
    assert gap_buckets(np.array([[5], [7]])).tolist() == [[0], [0]]


def test_a_log_without_times_and_events_has_none(bare):
    data = data_of(bare, LeaveOneOut())
    batch = next(iter(data.train_dataloader()))
    assert (batch.history.events_BL, batch.history.gaps_BL, dict(batch.history.users)) == (None, None, {})
    assert (data.has_times, data.num_events, data.item_inputs) == (False, 0, ())


def test_a_split_that_leaves_nothing_to_train_on_is_refused(shop):
    with pytest.raises(ValueError, match=r"leaves no interaction of .* to train on; move its cuts"):
        data_of(shop, TimeSplit("1960-01-01", "1970-06-01"))


def test_a_log_whose_users_took_one_item_each_is_refused(shop):
    data = data_of(shop)
    data._ends = data._starts + 1
    with pytest.raises(ValueError, match="no user has two interactions to train on; a target needs a"):
        data.train_dataloader()


def test_a_split_that_the_log_does_not_say_is_refused(shop):
    with pytest.raises(ValueError, match=r"says no split; declare interactions.part"):
        data_of(shop, GivenSplit())


def test_a_checkpoint_of_the_same_data_is_taken_and_any_other_refused(shop, bare):
    state = data_of(shop).state_dict()
    data_of(shop).load_state_dict(state)
    with pytest.raises(ArtifactError, match=r"was trained on other item ids .*; its rows mean other items"):
        data_of(shop).load_state_dict(state | {"item_ids": "0" * 64})
    with pytest.raises(ArtifactError, match=r"trained with another split than .*; use the dataset and the split"):
        data_of(shop, LeaveOneOut()).load_state_dict(state)
    other = data_of(shop).item_encoder.to_dict()
    other["learnt"] = other["learnt"] | {"brand": {"vocabulary": ["another"]}}
    with pytest.raises(ArtifactError, match=r"trained with another item encoder than"):
        data_of(shop).load_state_dict(state | {"item_encoder": other})


def test_what_a_checkpoint_remembers_is_plain(shop, tmp_path):
    torch.save(data_of(shop).state_dict(), tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=True)
