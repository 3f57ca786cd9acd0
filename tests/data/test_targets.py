"""What training asks: which queries, and that no answer stands in the history that it is asked of."""

import numpy as np
import pytest

from recsys.data.module import HistoryData
from recsys.data.split import LeaveOneOut
from recsys.data.targets import AllActions, HeldOutPart, NextItem

LENGTHS = [12, 5, 3, 9, 4]  # of which the last two are held out; user u takes items u·20, u·20 + 1, …
EVERY = [NextItem(), AllActions(3), HeldOutPart(), HeldOutPart(0.9, 0.9)]


@pytest.fixture
def log(prepared):
    rows = [(f"u{user}", user * 20 + at, at) for user, length in enumerate(LENGTHS) for at in range(length)]
    return prepared(rows)


class AtEpoch:
    """What a data module asks its trainer."""

    def __init__(self, epoch):
        self.current_epoch, self.global_rank, self.world_size = epoch, 0, 1


def asked(log, targets, epoch=0, **options):
    """Every query of an epoch: the items of its history, and its answers, as the log's own numbers."""
    data = HistoryData(log.path, LeaveOneOut(), targets=targets, **{"batch_positions": 24, "max_length": 50} | options)
    data.trainer = AtEpoch(epoch)  # type: ignore[assignment]
    number = np.array([int(said) for said in log.item_ids.array.to_pylist()])
    for batch in data.train_dataloader():
        width = batch.history.items_BL.shape[1]
        owners = np.arange(len(batch.position_P)) if batch.owner_T is None else batch.owner_T.numpy()
        assert (np.diff(owners) >= 0).all()
        for query, position in enumerate(batch.position_P.tolist()):
            row, place = divmod(position, width)
            assert place < batch.history.lengths_B[row]
            history = number[batch.history.items_BL[row, : place + 1].numpy()]
            yield history.tolist(), number[batch.target_T.numpy()[owners == query]].tolist()


@pytest.mark.parametrize("targets", EVERY, ids=repr)
def test_answers_are_the_users_own_never_held_out_and_never_in_the_history(log, targets):
    found = list(asked(log, targets))
    assert found
    for history, answers in found:
        assert answers
        assert not set(history) & set(answers)
        (user,) = {item // 20 for item in history + answers}
        assert all(item % 20 < LENGTHS[user] - 2 for item in history + answers)


def test_the_next_item_by_hand(log):
    found = [one for one in asked(log, NextItem()) if one[0][0] == 60]
    assert sorted(found) == [(list(range(60, 60 + n)), [60 + n]) for n in range(1, 7)]


def test_all_of_the_next_actions_by_hand(log):
    found = [one for one in asked(log, AllActions(3)) if one[0][0] == 20 or one[0][0] == 60]
    assert sorted(found) == [
        ([20], [21, 22]),
        ([20, 21], [22]),
        ([60], [61, 62, 63]),
        ([60, 61], [62, 63, 64]),
        ([60, 61, 62], [63, 64, 65]),
        ([60, 61, 62, 63], [64, 65, 66]),
        ([60, 61, 62, 63, 64], [65, 66]),
        ([60, 61, 62, 63, 64, 65], [66]),
    ]


def test_a_part_held_out_and_the_rest_are_the_whole_set(log):
    found = list(asked(log, HeldOutPart(0.2, 0.8)))
    whole = sorted(sorted(history + answers) for history, answers in found)
    assert whole == [[user * 20 + at for at in range(n - 2)] for user, n in enumerate(LENGTHS) if n > 3]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.3, 3), (0.5, 5), (1.0, 9)])
def test_how_much_is_held_out(log, share, expected):
    (answers,) = (answers for _, answers in asked(log, HeldOutPart(share, share)) if answers[0] < 20)
    assert len(answers) == expected  # of ten, of which one at least is asked for and one stays


def test_a_part_is_drawn_anew_in_each_epoch_and_again_in_the_same(log):
    def drawn(epoch, seed=0):
        return sorted(sorted(answers) for _, answers in asked(log, HeldOutPart(), epoch, seed=seed))

    assert drawn(1) == drawn(1)
    assert len({str(drawn(epoch)) for epoch in range(4)}) == 4
    assert drawn(1) != drawn(1, seed=1)


@pytest.mark.parametrize(("count", "expected"), [(1, 4), (2, 8), (3, 9), (9, 9)])
def test_stretches_of_a_long_history_ask_for_everything_once(log, count, expected):
    found = [one for one in asked(log, NextItem(), max_length=4, stretches=count) if one[0][0] < 20]
    answers = sorted(answer for _, (answer,) in found)
    assert answers == list(range(10 - expected, 10))
    assert all(len(history) <= 4 and history[-1] == answer - 1 for history, (answer,) in found)


def test_how_often_an_item_is_asked_for_is_counted_over_all_stretches(log):
    data = HistoryData(log.path, LeaveOneOut(), max_length=4, stretches=2)
    targets = np.concatenate([batch.target_T.numpy() for batch in data.train_dataloader()])
    np.testing.assert_allclose(data.frequency, np.bincount(targets, minlength=data.num_items) / len(targets))


@pytest.mark.parametrize("targets", EVERY, ids=repr)
def test_whatever_is_asked_for_is_expected_to_be(log, targets):
    data = HistoryData(log.path, LeaveOneOut(), targets=targets)
    for epoch in range(8):
        data.trainer = AtEpoch(epoch)  # type: ignore[assignment]
        for batch in data.train_dataloader():
            assert (data.frequency[batch.target_T.numpy()] > 0).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda log: HistoryData(log.path, LeaveOneOut(), stretches=0), "data.stretches is 0; learn from at least 1"),
        (lambda log: AllActions(0), "targets.count is 0; at least the next item"),
        (lambda log: HeldOutPart(0.5, 0.2), "from 0.5 to 0.2; choose shares from 0 to 1, ascending"),
    ],
)
def test_what_cannot_be_is_named(log, wrong, said):
    with pytest.raises(ValueError, match=said):
        wrong(log)
