"""Every history encoder, by one suite; then what each says of itself, against the formula written out."""

import dataclasses
import functools
import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recsys.data.history import History, waits
from recsys.model.bag import Bag, Mean
from recsys.model.hstu import HSTU, TIME_BUCKETS, HSTUBlock, elapsed
from recsys.model.ligr import LiGR, LiGRBlock
from recsys.model.sequence import Transformer
from recsys.model.towers import ENCODERS, Architecture, Sizes, Towers

BATCH, LENGTH, DIMENSION = 3, 7, 8
SECOND = 1000  # milliseconds
every_encoder = pytest.mark.parametrize("kind", ENCODERS, ids=[kind.__name__ for kind in ENCODERS])
RECENT = functools.partial(Bag, recency=1.5)
every_make = pytest.mark.parametrize(
    "kind", [*ENCODERS, RECENT], ids=[*(kind.__name__ for kind in ENCODERS), "recency"]
)


def encoder_of(kind, timed=True, blocks=2, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    made = kind(dimension=DIMENSION, blocks=blocks, heads=2, dropout=dropout, max_length=LENGTH, timed=timed)
    with torch.no_grad():
        for parameter in made.parameters():  # so that no part is silent because it starts at nought
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


def given(seed=1):
    generator = torch.Generator().manual_seed(seed)
    x_BLD = torch.randn(BATCH, LENGTH, DIMENSION, generator=generator)
    times_BL = torch.randint(0, 10**7, (BATCH, LENGTH), generator=generator).cumsum(1)
    return x_BLD, times_BL, times_BL + 5000 * SECOND


@every_make
@pytest.mark.parametrize("training", [True, False])
def test_what_comes_later_changes_nothing_before_it(kind, training):
    encoder = encoder_of(kind).train(training)
    x_BLD, times_BL, asked_BL = given()
    later, later_times, later_asked = x_BLD.clone(), times_BL.clone(), asked_BL.clone()
    later[:, 4:] += torch.randn(DIMENSION)  # of the same to all, a normalisation would leave nothing
    later_times[:, 4:] += 10**9
    later_asked[:, 4:] += 10**10
    with torch.set_grad_enabled(training):
        before, after = encoder(x_BLD, times_BL, asked_BL), encoder(later, later_times, later_asked)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert not torch.isclose(after[:, 4:], before[:, 4:]).all(dim=-1).any()


@every_make
def test_every_earlier_interaction_counts(kind):
    encoder = encoder_of(kind)
    x_BLD, times_BL, asked_BL = given()
    x_BLD.requires_grad_()
    (encoder(x_BLD, times_BL, asked_BL)[:, 4] * torch.randn(DIMENSION)).sum().backward()
    assert (x_BLD.grad[:, :5].abs().sum(-1) > 1e-6).all()


@every_make
def test_users_do_not_mix_and_padding_is_as_if_it_were_not_there(kind):
    encoder = encoder_of(kind)
    x_BLD, times_BL, asked_BL = given()
    together = encoder(x_BLD, times_BL, asked_BL)
    alone = encoder(x_BLD[1:2, :4], times_BL[1:2, :4], asked_BL[1:2, :4])
    torch.testing.assert_close(together[1:2, :4], alone)


@every_make
@pytest.mark.parametrize("training", [True, False])
def test_in_bfloat16_it_is_near(kind, training):
    encoder = encoder_of(kind).train(training)
    exact = encoder(*given()).detach()
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(training):
        rounded = encoder(*given())
    assert (rounded - exact).norm() < 0.05 * exact.norm()


@every_make
def test_gradients_are_those_of_differences(kind):
    encoder = encoder_of(kind, blocks=1).double()
    x_BLD, times_BL, asked_BL = given()

    def of(*weights):
        named = dict(zip(dict(encoder.named_parameters()), weights, strict=True))
        return torch.func.functional_call(encoder, named, (x_BLD[:1, :4].double(), times_BL[:1, :4], asked_BL[:1, :4]))

    assert torch.autograd.gradcheck(of, tuple(encoder.parameters()), atol=1e-4, fast_mode=True)


@every_encoder
def test_dropout_acts_in_training_alone(kind):
    encoder = encoder_of(kind, dropout=0.5)
    torch.testing.assert_close(encoder(*given()), encoder(*given()))
    encoder.train()
    assert not torch.allclose(encoder(*given()), encoder(*given()))


@every_encoder
def test_without_times_it_needs_none(kind):
    encoder = encoder_of(kind, timed=False)
    x_BLD, _times_BL, _ = given()
    assert encoder(x_BLD).shape == x_BLD.shape


@every_encoder
def test_heads_that_do_not_divide_the_dimension_are_named(kind):
    with pytest.raises(ValueError, match="3 heads do not divide dimension 8"):
        kind(dimension=8, blocks=1, heads=3, dropout=0, max_length=4, timed=False)


@every_encoder
def test_towers_say_their_encoder_and_are_built_again_from_it(kind):
    towers = Towers(Sizes(9, has_times=True), Architecture(dimension=8, max_length=LENGTH, encoder=kind)).eval()
    again = Towers.from_config(json.loads(json.dumps(towers.config()))).eval()
    again.load_state_dict(towers.state_dict())
    assert type(again.user.encoder) is kind
    x_BLD, times_BL, _ = given()
    history = history_of(times_BL, times_BL)
    torch.testing.assert_close(again.user(x_BLD, history), towers.user(x_BLD, history))


def test_towers_sealed_before_there_was_a_choice_are_transformers():
    said = Towers(Sizes(9), Architecture(dimension=8)).config()
    del said["architecture"]["encoder"]
    assert type(Towers.from_config(said).user.encoder) is Transformer


def history_of(times_BL, asked_BL):
    zeros = torch.zeros(times_BL.shape, dtype=torch.int64)
    return History(zeros, torch.full((len(times_BL),), times_BL.shape[1]), None, zeros, {}, times_BL, asked_BL)


@pytest.mark.parametrize("told", [True, False])
@every_encoder
def test_when_it_is_asked_counts_only_for_towers_that_are_told(kind, told):
    architecture = Architecture(dimension=8, max_length=LENGTH, encoder=kind, query_time=told, dropout=0)
    torch.manual_seed(0)
    towers = Towers(Sizes(9, has_times=True), architecture).eval()
    x_BLD, times_BL, _asked_BL = given()
    soon = towers.user(x_BLD, history_of(times_BL, times_BL))
    late = towers.user(x_BLD, history_of(times_BL, times_BL + 10**9))
    assert torch.allclose(soon, late) != told


def test_towers_that_ignore_times_cannot_be_told_when_they_are_asked():
    with pytest.raises(ValueError, match="query_time without use_times"):
        Architecture(use_times=False, query_time=True)


def test_waits_by_hand():
    times = torch.tensor([0, 0, 0, 0, 5000])
    asked = torch.tensor([0, 999, 1000, 3000, 0])
    assert waits(times, asked).tolist() == [1, 1, 2, 3, 1]


def test_elapsed_time_by_hand():
    times = torch.tensor([[0, 10 * SECOND]])
    asked = torch.tensor([[10 * SECOND, 110 * SECOND]])
    by_hand = [[math.log(10) / 0.301, 0], [math.log(110) / 0.301, math.log(100) / 0.301]]
    assert elapsed(times, asked).tolist() == [np.floor(by_hand).astype(int).tolist()]
    assert elapsed(torch.zeros(1, 1).long(), torch.full((1, 1), 2**62)).item() < TIME_BUCKETS


def test_an_hstu_block_is_the_formula_written_out():
    encoder = encoder_of(HSTU, blocks=1)
    x_BLD, times_BL, asked_BL = given()
    (block,) = encoder.blocks
    assert isinstance(block, HSTUBlock)
    out = torch.zeros(BATCH, LENGTH, DIMENSION)
    with torch.no_grad():
        projected = F.silu(block.project(block.norm(x_BLD)))
        gate, value, query, key = projected.chunk(4, dim=-1)
        for b in range(BATCH):
            for i in range(LENGTH):
                attended = torch.zeros(DIMENSION)
                for j in range(i + 1):
                    seconds = max(1.0, float(asked_BL[b, i] - times_BL[b, j]) / 1000)
                    bucket = min(TIME_BUCKETS - 1, int(math.log(seconds) / 0.301))
                    bias = block.by_distance[i - j] + block.by_time[bucket]
                    for head in (slice(0, 4), slice(4, 8)):
                        weight = F.silu(query[b, i, head] @ key[b, j, head] + bias) / LENGTH
                        attended[head] += weight * value[b, j, head]
                out[b, i] = x_BLD[b, i] + block.output(gate[b, i] * block.norm_attended(attended))
        torch.testing.assert_close(encoder(x_BLD, times_BL, asked_BL), encoder.norm(out), rtol=1e-4, atol=1e-5)


def test_a_ligr_block_whose_gates_are_shut_passes_its_input_on():
    encoder = encoder_of(LiGR, blocks=1)
    (block,) = encoder.blocks
    assert isinstance(block, LiGRBlock)
    with torch.no_grad():
        for gate in (block.gate_attention, block.gate_feedforward):
            gate.weight.zero_()
            gate.bias.fill_(-100)
    x_BLD, *_ = given()
    torch.testing.assert_close(encoder(x_BLD), encoder.norm(x_BLD))


@pytest.mark.parametrize("kind", [Bag, Mean])
def test_a_bag_does_not_care_in_which_order_it_was_filled(kind):
    towers = Towers(Sizes(9), Architecture(dimension=8, max_length=LENGTH, encoder=kind)).eval()
    x_BLD, times_BL, _ = given()
    history = dataclasses.replace(history_of(times_BL, times_BL), gaps_BL=None, times_BL=None, asked_BL=None)
    order = torch.randperm(LENGTH)
    forward, shuffled = towers.user(x_BLD, history), towers.user(x_BLD[:, order], history)
    torch.testing.assert_close(shuffled[:, -1], forward[:, -1])
    assert not torch.allclose(shuffled[:, 0], forward[:, 0])


def test_a_bag_is_a_weighted_mean_by_hand():
    encoder = Bag(dimension=2, blocks=0, heads=1, dropout=0, max_length=3, timed=False)
    with torch.no_grad():
        encoder.weight.weight.copy_(torch.tensor([[math.log(3), 0.0]]))
        encoder.norm = torch.nn.Identity()  # type: ignore[assignment]
    x_BLD = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])  # of weights 1 and 3
    assert encoder(x_BLD)[0].flatten().tolist() == pytest.approx([0, 1, 0.75, 0.25])


def test_a_mean_by_hand():
    encoder = Mean(dimension=2, blocks=0, heads=1, dropout=0, max_length=3, timed=False)
    x_BLD = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [5.0, 2.0]]])
    assert encoder(x_BLD)[0].flatten().tolist() == pytest.approx([0, 1, 0.5, 0.5, 2, 1])
    assert not list(encoder.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_the_newest_count_more_when_asked_and_not_in_training_by_hand(training):
    encoder = Mean(dimension=2, blocks=0, heads=1, dropout=0, max_length=3, timed=False, recency=1.0).train(training)
    x_BLD = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [5.0, 2.0]]])
    # Weights of 1/2 and 1, which sum to 3/2; then of 1/3, 1/2 and 1, which sum to 11/6.
    asked, plain = [0, 1, 2 / 3, 1 / 3, 3, 14 / 11], [0, 1, 0.5, 0.5, 2, 1]
    assert encoder(x_BLD)[0].flatten().tolist() == pytest.approx(plain if training else asked)


def test_towers_hand_recency_to_a_bag_and_remember_it():
    towers = Towers(Sizes(9), Architecture(dimension=8, max_length=LENGTH, encoder=Bag, recency=1.5)).eval()
    again = Towers.from_config(json.loads(json.dumps(towers.config()))).eval()
    assert isinstance(again.user.encoder, Bag)
    assert again.user.encoder.recency == 1.5
    x_BLD, times_BL, _ = given()
    history = dataclasses.replace(history_of(times_BL, times_BL), gaps_BL=None, times_BL=None, asked_BL=None)
    turned = towers.user(x_BLD.flip(1), history)[:, -1]
    assert not torch.allclose(turned, towers.user(x_BLD, history)[:, -1], atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "recency", "why"),
    [(LiGR, 1.0, r"recency 1.0 with LiGR, which reads the order itself"), (Mean, -0.5, r"recency is -0.5; choose 0")],
)
def test_recency_that_cannot_be_is_refused(kind, recency, why):
    with pytest.raises(ValueError, match=why):
        Architecture(encoder=kind, recency=recency)
