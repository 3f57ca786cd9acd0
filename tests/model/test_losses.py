"""Losses against PyTorch's own, against values worked out by hand, and against what they tend to."""

import dataclasses
import inspect
import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from recsys.cli import main
from recsys.model import functional, losses
from recsys.model.functional import (
    calibrated_power,
    full_softmax,
    generalised_bce,
    mixed_log_expected_count,
    prefixes,
    sampled_softmax,
)
from recsys.model.losses import FullSoftmax, GeneralisedBCE, Loss, Negatives, SampledSoftmax, Step


def problem(positions=37, items=53, dimension=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(positions, dimension, generator=generator, requires_grad=True)
    item = torch.randn(items, dimension, generator=generator, requires_grad=True)
    return query, item, torch.randint(items, (positions,), generator=generator)


def step_of(query, item, target, **said):
    """A step whose items are the whole catalogue."""
    return Step(query, item, torch.arange(len(item)), target, **said)


def value_and_gradients(loss, query, item):
    value = loss(query, item)
    return value.detach(), *torch.autograd.grad(value, (query, item))


@pytest.fixture(params=["one chunk", "many chunks, the last one short"])
def chunks(request, monkeypatch):
    if request.param != "one chunk":
        monkeypatch.setattr(functional, "_CHUNK_ELEMENTS", 53 * 16)  # 37 positions: 16, 16 and 5


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_full_softmax_is_cross_entropy_in_value_and_gradients(scale):
    query, item, target = problem()
    ours = value_and_gradients(lambda q, v: full_softmax(q, v, target, scale), query, item)
    torchs = value_and_gradients(lambda q, v: cross_entropy(scale * q @ v.T, target), query, item)
    for got, expected in zip(ours, torchs, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("chunks")
@pytest.mark.usefixtures("chunks")
def test_full_softmax_with_a_bias_is_cross_entropy_of_logits_with_it():
    query, item, target = problem()
    bias = torch.linspace(-3, 2, len(item))
    ours = value_and_gradients(lambda q, v: full_softmax(q, v, target, 2.0, bias_N=bias), query, item)
    torchs = value_and_gradients(lambda q, v: cross_entropy(2.0 * q @ v.T + bias, target), query, item)
    for one, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(one, other)


def test_the_prior_by_hand():
    """Scores of 0 for all: what is left is the prior, of targets 1/2, 1/3, 1/6 and of one that never was, as 1/6."""
    query, item, target = torch.zeros(1, 1), torch.zeros(4, 1), torch.tensor([1])
    step = step_of(query, item, target, frequency_U=torch.tensor([1 / 2, 1 / 3, 1 / 6, 0]))
    assert FullSoftmax()(step, None).item() == pytest.approx(math.log(4))
    assert FullSoftmax(prior=1.0)(step, None).item() == pytest.approx(-math.log(2 / (3 + 2 + 1 + 1)))
    assert FullSoftmax(prior=2.0)(step, None).item() == pytest.approx(-math.log(4 / (9 + 4 + 1 + 1)))
    with pytest.raises(ValueError, match=r"prior is -2; choose 0, which leaves popularity in scores, or from -1 up"):
        FullSoftmax(prior=-2)


@pytest.mark.parametrize(("prior", "popular"), [(0.0, math.log(9)), (1.0, 0.0), (-1.0, 2 * math.log(9))])
def test_the_prior_takes_popularity_out_of_the_scores(prior, popular):
    """Of two items one is taken nine times as often by everybody: trained, its score says so, or with a prior not."""
    item = torch.zeros(2, 1, requires_grad=True)
    query, target = torch.ones(10, 1), torch.tensor([0] * 9 + [1])
    optimizer = torch.optim.LBFGS([item], max_iter=100)

    def closure():
        optimizer.zero_grad()
        loss = FullSoftmax(prior=prior)(step_of(query, item, target, frequency_U=torch.tensor([0.9, 0.1])), None)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (item[0] - item[1]).item() == pytest.approx(popular, abs=1e-3)


def test_full_softmax_in_bfloat16_is_near_and_answers_in_float32():
    query, item, target = problem()
    with torch.autocast("cpu", torch.bfloat16):
        ours = value_and_gradients(lambda q, v: full_softmax(q, v, target), query, item)
    exact = value_and_gradients(lambda q, v: cross_entropy(q @ v.T, target), query, item)
    for got, expected in zip(ours, exact, strict=True):
        assert got.dtype == torch.float32
        assert (got - expected).norm() < 0.02 * expected.norm()


def test_full_softmax_passes_on_the_gradient_that_it_is_given():
    query, item, target = problem()
    halved = value_and_gradients(lambda q, v: 0.5 * full_softmax(q, v, target), query, item)
    whole = value_and_gradients(lambda q, v: full_softmax(q, v, target), query, item)
    for half, full in zip(halved, whole, strict=True):
        torch.testing.assert_close(half, 0.5 * full)


def test_full_softmax_of_scores_far_apart_is_finite_and_still_pulls():
    query = torch.tensor([[200.0]], requires_grad=True)
    loss = full_softmax(query, torch.tensor([[1.0], [-1.0]]), torch.tensor([1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert loss > 80
    assert query.grad.item() == pytest.approx(2.0)  # p₀·1 − (1 − p₁)·(−1), with p₀ = 1


# A case worked out by hand. The query scores the items 0, 1 and 2 with ln 1, ln 2 and ln 3; item 0 is the target.
QUERY, ITEMS, TARGET = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(2)], [math.log(3)]]), torch.tensor([0])


def test_full_softmax_by_hand():
    assert full_softmax(QUERY, ITEMS, TARGET).item() == pytest.approx(math.log(6))  # 1 / (1 + 2 + 3)


def test_sampled_softmax_by_hand():
    negative = torch.tensor([1, 2, 2, 0])
    # Four uniform draws of three items: each is expected 4/3 times, so a draw counts 3/4. The hit on the target is
    # masked: 1 + 3/4 · (2 + 3 + 3) = 7.
    log_count = mixed_log_expected_count(
        negative, num_items=3, uniform=4, in_batch=0, frequency_N=torch.tensor([0.2, 0.3, 0.5])
    )
    assert log_count.exp().tolist() == pytest.approx([4 / 3] * 4)
    loss = sampled_softmax(QUERY, ITEMS[TARGET], TARGET, ITEMS[negative], negative, log_count)
    assert loss.item() == pytest.approx(math.log(7))


def test_expected_counts_of_mixed_draws_by_hand():
    log_count = mixed_log_expected_count(
        torch.tensor([0, 2]), num_items=4, uniform=8, in_batch=10, frequency_N=torch.tensor([0.5, 0.2, 0.3, 0.0])
    )
    assert log_count.exp().tolist() == pytest.approx([8 / 4 + 10 * 0.5, 8 / 4 + 10 * 0.3])


def test_draws_that_hit_the_target_count_for_nothing():
    negative = torch.tensor([0, 0, 0])
    loss = sampled_softmax(QUERY, ITEMS[TARGET], TARGET, ITEMS[negative], negative, torch.zeros(3))
    assert loss.item() == 0.0
    query, item, target = problem()
    negative = torch.cat([target[:1], torch.arange(20)])
    alone = sampled_softmax(query[:1], item[target[:1]], target[:1], item[20:], torch.arange(20, 53), torch.zeros(33))
    kept = sampled_softmax(
        query[:1], item[target[:1]], target[:1],
        item[torch.cat([target[:1], torch.arange(20, 53)])], torch.cat([target[:1], torch.arange(20, 53)]),
        torch.cat([torch.tensor([-9.0]), torch.zeros(33)]),
    )  # fmt: skip
    torch.testing.assert_close(alone, kept)


@pytest.mark.parametrize(("uniform", "in_batch"), [(1, 0), (0, 1), (0.5, 0.5)], ids=["uniform", "in-batch", "mixed"])
def test_the_sampled_loss_tends_to_the_full_one_by_the_sign_and_size_of_its_correction(uniform, in_batch):
    generator = torch.Generator().manual_seed(1)
    query, item, target = problem(positions=16, items=40, dimension=6, seed=2)
    popularity = torch.arange(1, 41.0) ** -1.0
    frequency = popularity / popularity.sum()
    exact = full_softmax(query, item, target).item()

    def errors(draws):
        """Of one estimate: as it is, without the correction, and with its sign turned round."""
        even, popular = int(uniform * draws), int(in_batch * draws)
        negative = torch.cat(
            [
                torch.randint(40, (even,), generator=generator),
                torch.multinomial(frequency, max(1, popular), replacement=True, generator=generator)[:popular],
            ]
        )
        log_count = mixed_log_expected_count(
            negative, num_items=40, uniform=even, in_batch=popular, frequency_N=frequency
        )
        return [
            abs(sampled_softmax(query, item[target], target, item[negative], negative, said).item() - exact)
            for said in (log_count, torch.zeros_like(log_count), -log_count)
        ]

    few, some, many = (torch.tensor([errors(draws) for _ in range(8)]).mean(0) for draws in (40, 1_000, 25_000))
    assert few[0] > 2 * some[0] > 4 * many[0]  # 25 draws for each: five times nearer, and twice at the least
    assert many[0] < 0.02
    assert many[1] > 1  # without it: off by log of the number of draws an item
    assert many[2] > many[1] + 1


def test_the_size_of_the_in_batch_correction_is_popularity_not_just_any_number():
    """A constant would take the number of draws out; only log Q takes popularity out."""
    generator = torch.Generator().manual_seed(1)
    query, item, target = problem(positions=16, items=40, dimension=6, seed=2)
    popularity = torch.arange(1, 41.0) ** -1.5
    frequency = popularity / popularity.sum()
    negative = torch.multinomial(frequency, 50_000, replacement=True, generator=generator)
    exact = full_softmax(query, item, target).item()
    log_count = mixed_log_expected_count(negative, num_items=40, uniform=0, in_batch=50_000, frequency_N=frequency)
    constant = torch.full_like(log_count, math.log(50_000 / 40))
    right, flat = (
        sampled_softmax(query, item[target], target, item[negative], negative, said).item() - exact
        for said in (log_count, constant)
    )
    assert abs(right) < 0.02
    assert abs(flat) > 10 * abs(right)


def test_gradients_of_the_sampled_loss_tend_to_those_of_the_full_one():
    query, item, target = problem(positions=16, items=30, dimension=4)
    negative = torch.randint(30, (50_000,), generator=torch.Generator().manual_seed(0))
    log_count = torch.full((50_000,), math.log(50_000 / 30))

    def sampled(q, v):
        return sampled_softmax(q, v[target], target, v[negative], negative, log_count)

    _, *ours = value_and_gradients(sampled, query, item)
    _, *exact = value_and_gradients(lambda q, v: full_softmax(q, v, target), query, item)
    for got, expected in zip(ours, exact, strict=True):
        assert (got - expected).norm() < 0.05 * expected.norm()


def test_draws_follow_what_they_are_corrected_for():
    torch.manual_seed(0)
    frequency = torch.tensor([0.6, 0.3, 0.0, 0.1])  # training never saw item 2
    target = torch.tensor([0] * 6 + [1] * 3 + [3])  # a batch that is like the whole
    loss = SampledSoftmax(uniform=30_000, in_batch=60_000)
    known = torch.tensor([0, 1, 3])
    drawn = loss.draw(target, known, frequency)
    assert len(drawn.row_S) == 90_000
    counts = torch.bincount(drawn.row_S, minlength=4)
    assert counts[2] == 0
    said = drawn.log_count_S.exp()
    expected = torch.tensor([10_000 + 36_000, 10_000 + 18_000, 0, 10_000 + 6_000])
    torch.testing.assert_close(said, expected[drawn.row_S].float())
    torch.testing.assert_close(counts.float(), expected.float(), rtol=0.03, atol=0)


@pytest.mark.parametrize("unit", [True, False])
def test_prefixes_are_normalised_again_only_where_vectors_are_unit(unit):
    vectors = normalize(torch.randn(5, 8), dim=-1) if unit else torch.randn(5, 8)
    (cut,), (whole,) = prefixes((vectors,), 4, unit=unit), prefixes((vectors,), 8, unit=unit)
    torch.testing.assert_close(whole, vectors, rtol=0, atol=0)
    if unit:
        torch.testing.assert_close(cut.norm(dim=-1), torch.ones(5))
        torch.testing.assert_close(cut, normalize(vectors[:, :4], dim=-1))
    else:
        torch.testing.assert_close(cut, vectors[:, :4], rtol=0, atol=0)


ROWS = torch.tensor([3, 9, 9, 40])
COUNTS = torch.tensor([0.1, 0.2, 0.2, 0.4])


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (FullSoftmax, lambda q, v, target: cross_entropy(2 * q @ v.T, target)),
        (SampledSoftmax, lambda q, v, t: sampled_softmax(q, v[t], t, v[ROWS], ROWS, COUNTS, 2.0)),
        (GeneralisedBCE, lambda q, v, t: generalised_bce(q, v[t], t, v[ROWS], ROWS, 0.25 + 0.75 * math.exp(0.1), 2.0)),
    ],
)
def test_a_matryoshka_loss_is_the_mean_over_its_prefixes(kind, plain, unit):
    query, item, target = problem()
    loss = kind(temperature=0.5, matryoshka=[2, 4])
    parts = [plain(q, v, target) for q, v in (prefixes((query, item), size, unit=unit) for size in (8, 2, 4))]
    said = loss(step_of(query, item, target, unit=unit), Negatives(ROWS, COUNTS))
    torch.testing.assert_close(said, torch.stack(parts).mean())


@pytest.mark.parametrize("size", [0, -1, 8, 9])
def test_a_prefix_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match=f"matryoshka has {size}, which is no prefix of 8 dimensions; leave it out"):
        FullSoftmax(matryoshka=[4, size]).dimensions(8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FullSoftmax(temperature=0), "temperature must be above 0, got 0"),
        (lambda: SampledSoftmax(uniform=0), "uniform 0 and in_batch 0 draw no negatives; raise one of them"),
        (lambda: SampledSoftmax(uniform=-1, in_batch=5), "uniform -1 and in_batch 5 draw no negatives"),
        (lambda: SampledSoftmax(uniform=0, queue=9), "uniform 0 and in_batch 0 draw no negatives; raise one of them"),
        (lambda: SampledSoftmax(queue=-1), "queue is -1; it holds 0 vectors or more"),
        (lambda: GeneralisedBCE(negatives=0), "negatives is 0; draw at least 1"),
        (lambda: GeneralisedBCE(calibration=1.5), "calibration is 1.5; choose from 0 to 1"),
        (lambda: GeneralisedBCE(temperature=-1), "temperature must be above 0, got -1"),
    ],
)
def test_losses_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("loss", [SampledSoftmax(), GeneralisedBCE()])
def test_a_sampled_loss_says_what_it_lacks(loss):
    with pytest.raises(ValueError, match="needs its negatives; draw them first"):
        loss(step_of(*problem()), None)


# Query 0 has the targets 4 and 9, query 2 has 7, 7 and 1; query 1 has none.
OWNER, ANSWERS = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([4, 9, 7, 7, 1])


@pytest.mark.parametrize("chunk", [1 << 21, 53 * 16])
def test_several_answers_to_a_query_count_as_if_it_had_been_asked_as_often(chunk, monkeypatch):
    monkeypatch.setattr(functional, "_CHUNK_ELEMENTS", chunk)
    query, item, _ = problem()
    owner = torch.cat([OWNER, torch.tensor([35, 36, 36])])
    answers = torch.cat([ANSWERS, torch.tensor([3, 2, 52])])
    ours = value_and_gradients(lambda q, v: full_softmax(q, v, answers, 2.0, owner), query, item)
    repeated = value_and_gradients(lambda q, v: cross_entropy(2 * q[owner] @ v.T, answers), query, item)
    for got, expected in zip(ours, repeated, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_several_answers_to_a_query_in_the_sampled_loss():
    query, item, _ = problem()
    negative, log_count = torch.tensor([4, 8, 7]), torch.tensor([0.1, 0.2, 0.3])

    def of(q, target, owner=None):
        return sampled_softmax(q, item[target], target, item[negative], negative, log_count, 1.5, owner)

    torch.testing.assert_close(of(query, ANSWERS, OWNER), of(query[OWNER], ANSWERS))


def test_several_answers_to_a_query_in_gbce():
    query, item, _ = problem()
    negative = torch.tensor([4, 8, 7])

    def of(q, target, owner=None):
        return generalised_bce(q, item[target], target, item[negative], negative, 0.3, 1.5, owner)

    torch.testing.assert_close(of(query, ANSWERS, OWNER), of(query[OWNER], ANSWERS))


@pytest.mark.parametrize("loss", [FullSoftmax(), SampledSoftmax(uniform=5, in_batch=5), GeneralisedBCE(negatives=9)])
def test_the_items_of_a_step_are_found_by_their_rows(loss):
    """What a loss says of a part of the catalogue is what it says of the whole, where the rest is not asked for."""
    query, item, target = problem(items=20)
    row = torch.arange(100, 140, 2)  # of the part
    torch.manual_seed(0)
    negatives = loss.draw(row[target], row, torch.full((140,), 1 / 20))
    places = negatives and dataclasses.replace(negatives, row_S=torch.searchsorted(row, negatives.row_S))
    torch.testing.assert_close(
        loss(Step(query, item, row, row[target]), negatives), loss(step_of(query, item, target), places)
    )
    answers, owner = target[:5], torch.tensor([0, 0, 3, 3, 3])
    several = loss(Step(query, item, row, row[answers], owner), negatives)
    torch.testing.assert_close(several, loss(step_of(query[owner], item, answers), places))


def test_full_softmax_holds_a_small_part_of_the_logits():
    positions, items = 2_048, 200_000
    query, item, target = problem(positions, items, dimension=2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        full_softmax(query, item, target).backward()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).cumsum(0)
    logits = 4 * positions * items  # 1.6 GB
    assert 0 < held.max() < logits / 25


POPULARITY = torch.tensor([32.0, 16, 8, 4, 2, 1]) / 63


def learnt_from_batches(corrected):
    """The logits that some hundred steps of SGD find for targets drawn by popularity, the same for every query.

    Args:
        corrected: makes what the loss is told of log of the expected counts.
    """
    torch.manual_seed(0)
    logit = torch.zeros(6, 1, requires_grad=True)
    loss, known, found = SampledSoftmax(uniform=0, in_batch=512), torch.arange(6), []
    for _ in range(300):
        target = torch.multinomial(POPULARITY, 512, replacement=True)
        drawn = loss.draw(target, known, POPULARITY)
        negatives = dataclasses.replace(drawn, log_count_S=corrected(drawn.log_count_S))
        (gradient,) = torch.autograd.grad(loss(step_of(torch.ones(512, 1), logit, target), negatives), logit)
        logit = (logit - 2 * gradient).detach().requires_grad_()
        found.append(logit.detach()[:, 0])
    return torch.stack(found[150:]).mean(0)


def test_training_on_in_batch_negatives_finds_the_true_probabilities_only_with_the_right_correction():
    def furthest(corrected):
        """How far off the logits are, up to a constant."""
        off = learnt_from_batches(corrected) - POPULARITY.log()
        return (off - off.mean()).abs().max()

    assert furthest(lambda said: said) < 0.05
    assert furthest(torch.zeros_like) > 0.5  # without it
    assert furthest(torch.neg) > 0.5  # with its sign turned round
    assert furthest(lambda said: torch.full_like(said, math.log(512 / 6))) > 0.5  # as if the draws had been even


def test_gbce_by_hand():
    negative = torch.tensor([1, 2, 2, 0])
    # The target's probability is 1/2; those of items 1 and 2 not to be taken are 1/3 and 1/4. The hit is masked.
    loss = generalised_bce(QUERY, ITEMS[TARGET], TARGET, ITEMS[negative], negative, beta=0.5)
    assert loss.item() == pytest.approx((0.5 * math.log(2) + math.log(3) + 2 * math.log(4)) / 5)


@pytest.mark.parametrize(
    ("alpha", "t", "beta"), [(0.25, 0, 1), (0.25, 1, 0.25), (0.25, 0.5, 0.625), (0.001, 0.75, 0.25075)]
)
def test_the_power_of_gbce_by_hand(alpha, t, beta):
    assert calibrated_power(alpha, t) == pytest.approx(beta)
    assert calibrated_power(alpha, t) == pytest.approx(alpha * (t * (1 - 1 / alpha) + 1 / alpha))  # as it is published


def test_gbce_of_calibration_0_is_binary_cross_entropy():
    query, item, target = problem()
    negative = torch.tensor([5, 6, 7])
    target = target.where(target > 7, 8)  # so that there are no hits
    loss = GeneralisedBCE(negatives=3, calibration=0, temperature=0.5)

    def plain(q, v):
        logits = 2 * torch.cat([(q * v[target]).sum(1, keepdim=True), q @ v[negative].T], dim=1)
        right = torch.tensor([1.0, 0, 0, 0]).expand_as(logits)
        return binary_cross_entropy_with_logits(logits, right)

    def ours(q, v):
        return loss(step_of(q, v, target), Negatives(negative, torch.full((3,), math.log(3 / 53))))

    for got, expected in zip(
        value_and_gradients(ours, query, item), value_and_gradients(plain, query, item), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_gbce_of_calibration_1_is_on_average_that_of_the_whole_catalogue(monkeypatch):
    """Over every draw that there can be, 1 of 12: so the probabilities that it learns are those of all negatives."""
    query, item, target = problem(items=12)
    loss, known, frequency = GeneralisedBCE(negatives=1, calibration=1), torch.arange(12), torch.zeros(12)

    def every_draw(q, v):
        said = []
        for row in range(12):
            monkeypatch.setattr(torch, "randint", lambda *_, row=row, **__: torch.tensor([row]))
            said.append(loss(step_of(q, v, target), loss.draw(target, known, frequency)))
        return torch.stack(said).mean()

    def whole(q, v):
        right = torch.nn.functional.one_hot(target, 12).float()
        summed = binary_cross_entropy_with_logits(q @ v.T, right, reduction="sum") / len(q)
        return summed / 12 / 2  # α of the sum over negatives; S + 1

    for got, expected in zip(
        value_and_gradients(every_draw, query, item), value_and_gradients(whole, query, item), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_gbce_of_scores_far_apart_is_finite_and_still_pulls():
    query = torch.tensor([[200.0]], requires_grad=True)
    negative = torch.tensor([0])
    loss = generalised_bce(query, torch.tensor([[-1.0]]), torch.tensor([1]), torch.tensor([[1.0]]), negative, beta=0.5)
    loss.backward()
    assert loss.item() == pytest.approx((0.5 * 200 + 200) / 2)
    assert query.grad.item() == pytest.approx((0.5 + 1) / 2)


def test_draws_that_hit_the_target_count_for_nothing_in_gbce():
    query, negative = QUERY.clone().requires_grad_(), torch.tensor([2, 2, 2])
    loss = generalised_bce(query, ITEMS[[2]], torch.tensor([2]), ITEMS[negative], negative, beta=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * math.log(4 / 3) / 4)  # σ(ln 3) is 3/4
    assert query.grad.item() == pytest.approx(-0.5 * 0.25 * math.log(3) / 4)


def test_gbce_draws_evenly_from_what_training_knows():
    torch.manual_seed(0)
    drawn = GeneralisedBCE(negatives=30_000).draw(torch.tensor([7]), torch.tensor([0, 1, 3]), torch.zeros(8))
    counts = torch.bincount(drawn.row_S, minlength=8)
    torch.testing.assert_close(counts[[0, 1, 3]].float(), torch.full((3,), 10_000.0), rtol=0.03, atol=0)
    assert counts.sum() == counts[[0, 1, 3]].sum()


PAGE = Path("docs/losses.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("shown", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_what_the_page_shows_trains(shown, toy, tmp_path):
    (tmp_path / "loss.yaml").write_text(shown)
    configs = ["--config", str(toy.dataset.parent / "fit.yaml"), "--config", str(tmp_path / "loss.yaml")]
    assert main(["fit", *configs, "--trainer.max_epochs", "1", "--out", str(tmp_path / "run")]) == 0
    taken = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["loss"]
    said = yaml.safe_load(shown)["model"]["loss"]
    assert taken["class_path"].rpartition(".")[2] == said["class_path"]
    assert taken["init_args"].items() >= said["init_args"].items()


def test_the_page_names_every_loss_and_every_option():
    named = set(re.findall(r"`(\w+)`", PAGE))
    for kind in Loss.__subclasses__():
        assert {kind.__name__, *list(inspect.signature(kind).parameters)} <= named
    for name in re.findall(r"^class_path: (\w+)", PAGE, re.MULTILINE):
        assert issubclass(getattr(losses, name), Loss)


def test_the_page_says_what_is_taken_unless_said_otherwise():
    told = dict(re.findall(r"^\| `(\w+)` \|.*?([\d.]+) unless said otherwise", PAGE, re.MULTILINE))
    defaults = {
        name: parameter.default
        for kind in (SampledSoftmax, GeneralisedBCE)
        for name, parameter in inspect.signature(kind).parameters.items()
    }
    assert told.keys() == {"uniform", "negatives", "calibration"}
    assert {name: float(value) for name, value in told.items()} == {name: defaults[name] for name in told}
