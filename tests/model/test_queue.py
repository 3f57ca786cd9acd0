"""The queue of earlier steps' item vectors: by hand, as negatives, and through a training that was stopped."""

import math

import pytest
import torch

from recsys.cli import main
from recsys.model.functional import full_softmax
from recsys.model.losses import Negatives, SampledSoftmax, Step
from recsys.model.queue import Queue


def held(queue):
    vectors, rows = queue.held()
    return vectors.tolist(), rows.tolist()


def test_the_oldest_leave_first():
    queue = Queue(3)
    assert queue.held() is None
    assert len(queue) == 0
    queue.push(torch.tensor([[1.0], [2.0]]), torch.tensor([1, 2]))
    assert held(queue) == ([[1.0], [2.0]], [1, 2])
    assert len(queue) == 2
    queue.push(torch.tensor([[3.0], [4.0]]), torch.tensor([3, 4]))
    assert held(queue) == ([[2.0], [3.0], [4.0]], [2, 3, 4])
    queue.push(torch.tensor([[5.0], [6.0], [7.0], [8.0]]), torch.tensor([5, 6, 7, 8]))
    assert held(queue) == ([[6.0], [7.0], [8.0]], [6, 7, 8])
    queue.clear()
    assert queue.held() is None


def test_a_queue_of_size_0_holds_nothing():
    queue = Queue(0)
    queue.push(torch.ones(2, 1), torch.tensor([1, 2]))
    assert queue.held() is None


def test_what_is_held_is_constant_and_stays_as_it_was():
    queue, vectors = Queue(4), torch.tensor([[1.0], [2.0]], requires_grad=True)
    queue.push(vectors * 2, torch.tensor([0, 1]))
    before, _ = queue.held()
    assert not before.requires_grad
    queue.push(vectors * 3, torch.tensor([0, 1]))
    assert before.tolist() == [[2.0], [4.0]]  # a step's backward may still read them


# The query scores items 0, 1, 2 with ln 1, ln 2, ln 3 today; yesterday item 2 scored ln 5.
TODAY, YESTERDAY = (torch.tensor([0, math.log(2), math.log(last)])[:, None] for last in (3, 5))
KNOWN, FREQUENCY = torch.arange(3), torch.tensor([0.5, 0.25, 0.25])


def step_of(item, target, query=None):
    return Step(torch.ones(len(target), 1) if query is None else query, item, KNOWN, target)


def test_earlier_targets_are_negatives_by_hand(monkeypatch):
    loss = SampledSoftmax(uniform=3, queue=4)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([1, 1, 2])[: _[1][0]])
    first = torch.tensor([2, 0, 2])
    drawn = loss.draw(first, KNOWN, FREQUENCY)
    assert drawn.row_S.tolist() == [1, 1, 2]
    assert drawn.log_count_S.exp().tolist() == pytest.approx([1, 1, 1])  # 3 draws of 3 items
    loss(step_of(YESTERDAY, first), drawn)

    query, item, target = torch.ones(1, 1, requires_grad=True), TODAY.clone().requires_grad_(), torch.tensor([0])
    drawn = loss.draw(target, KNOWN, FREQUENCY)
    assert drawn.row_S.tolist() == [1, 1, 2, 2, 0, 2]
    assert drawn.new.tolist() == [1, 1, 2]  # the others need no tower
    # The queue is not full: 3 vectors are in it, of which half are expected to be item 0's, a quarter each other's.
    counts = [1 + 3 * share for share in (0.25, 0.25, 0.25, 0.25, 0.5, 0.25)]
    assert drawn.log_count_S.exp().tolist() == pytest.approx(counts)
    said = loss(step_of(item, target, query), drawn)
    # Of today 2 + 2 + 3, of yesterday 5 + 5; the vector of the target's own row is masked, though it is another now.
    assert said.item() == pytest.approx(math.log(1 + (2 + 2 + 3 + 5 + 5) / 1.75))
    said.backward()
    total = 1 + 17 / 1.75
    # What is held learns nothing, so the new draws of 1, 1 and 2 are pushed as if they had been alone: each counts 1.
    expected = [1 / total - 1, 4 / total, 3 / total]
    assert item.grad[:, 0].tolist() == pytest.approx(expected)
    pulled = (4 * math.log(2) + 3 * math.log(3) + 10 * math.log(5)) / 1.75 / total
    assert query.grad.item() == pytest.approx(pulled)

    assert loss.draw(target, KNOWN, FREQUENCY).row_S.tolist() == [1, 1, 2, 2, 0, 2, 0]
    loss(step_of(TODAY, torch.tensor([1])), loss.draw(target, KNOWN, FREQUENCY))
    drawn = loss.draw(target, KNOWN, FREQUENCY)
    assert drawn.row_S.tolist() == [1, 1, 2, 0, 2, 0, 1]  # full: the oldest has left
    assert drawn.log_count_S.exp().tolist() == pytest.approx([2, 2, 2, 3, 2, 3, 2])  # 1 + 4·f
    loss.start_epoch()
    assert loss.draw(target, KNOWN, FREQUENCY).row_S.tolist() == [1, 1, 2]


def test_the_queue_and_new_draws_together_tend_to_the_full_softmax_in_value_and_gradients():
    """Where vectors are as they were. Of the item side, since the queue's share of what pushes items is made up for."""
    torch.manual_seed(0)
    query, item = torch.randn(16, 6, requires_grad=True), torch.randn(40, 6, requires_grad=True)
    target, known = torch.randint(40, (16,)), torch.arange(40)
    frequency = torch.arange(1, 41.0) ** -1
    frequency /= frequency.sum()
    loss = SampledSoftmax(uniform=40_000, in_batch=40_000, queue=80_000)
    popular = torch.multinomial(frequency, 80_000, replacement=True)
    loss.queue.push(item[popular], popular)
    drawn = loss.draw(torch.multinomial(frequency, 200_000, replacement=True), known, frequency)
    assert len(drawn.row_S) == 160_000
    said, exact = loss(Step(query, item, known, target), drawn), full_softmax(query, item, target)
    assert said.item() == pytest.approx(exact.item(), abs=0.01)
    ours, true = (torch.autograd.grad(value, (query, item)) for value in (said, exact))
    for got, expected in zip(ours, true, strict=True):
        assert (got - expected).norm() < 0.03 * expected.norm()


def test_prefixes_of_what_is_held_are_normalised_again():
    torch.manual_seed(0)
    item = torch.nn.functional.normalize(torch.randn(3, 4), dim=-1)
    step = Step(item[:2], item, KNOWN, torch.tensor([0, 1]), unit=True)
    queued = SampledSoftmax(uniform=2, queue=2, matryoshka=[2])
    queued(step, queued.draw(step.target_T, KNOWN, FREQUENCY))
    drawn = queued.draw(step.target_T, KNOWN, FREQUENCY)
    fresh = Negatives(drawn.row_S, drawn.log_count_S)  # the same rows, all of them embedded now
    torch.testing.assert_close(queued(step, drawn), queued(step, fresh))


@pytest.fixture(scope="module")
def fit(toy):
    """Fits by the command, several steps an epoch, with a queue that is longer than a step."""
    options = [
        "--model.loss", "SampledSoftmax", "--model.loss.uniform", "3", "--model.loss.queue", "150",
        "--model.decay", "false", "--model.warmup_steps", "1", "--data.batch_positions", "64",
        "--trainer.check_val_every_n_epoch", "1",
    ]  # fmt: skip

    def fit(out, *more):
        config = str(toy.dataset.parent / "fit.yaml")
        assert main(["fit", "--config", config, *options, "--out", str(out), *more]) == 0
        return torch.load(out / "last.ckpt", weights_only=True)

    return fit


def test_going_on_with_a_queue_is_as_if_never_stopped(fit, tmp_path):
    fit(tmp_path / "stopped", "--trainer.max_epochs", "2")
    stopped = fit(tmp_path / "stopped", "--trainer.max_epochs", "3", "--ckpt_path", "last")
    straight = fit(tmp_path / "straight", "--trainer.max_epochs", "3")
    without = fit(tmp_path / "without", "--trainer.max_epochs", "3", "--model.loss.queue", "0")
    assert stopped["global_step"] == straight["global_step"] > 9
    assert stopped["state_dict"].keys() == without["state_dict"].keys()  # the queue is in no checkpoint
    assert all(torch.equal(value, straight["state_dict"][name]) for name, value in stopped["state_dict"].items())
    assert not all(torch.equal(value, without["state_dict"][name]) for name, value in stopped["state_dict"].items())
