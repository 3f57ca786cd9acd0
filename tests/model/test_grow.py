"""Towers that grow: what is kept is kept to the bit, what is new starts where it is said to."""

import dataclasses

import numpy as np
import pytest
import torch

from recsys.data.vocabulary import Input
from recsys.data.warm import WarmStartError
from recsys.model.grow import carried, described_by, grown, refuse_another_architecture
from recsys.model.ligr import LiGR
from recsys.model.towers import Architecture, Sizes, Towers

SIZES = Sizes(3, (Input("brand", codes=3), Input("price", width=2)), (Input("country", codes=2),), 2, True)
GROWN = Sizes(6, (Input("brand", codes=5), Input("price", width=2)), (Input("country", codes=3),), 4, True)
MADE = Architecture(dimension=4, max_length=5, blocks=1, hidden=1)
TRAINED = np.array([True, False, True])
DESCRIBED = np.array([True, True, True, True, False, True])


def pair(sizes=GROWN, architecture=MADE):
    torch.manual_seed(0)
    return Towers(SIZES, MADE), Towers(sizes, architecture)


def test_every_row_by_hand():
    old, new = pair()
    before, after = old.state_dict(), grown(old, new, TRAINED, DESCRIBED)
    new.load_state_dict(after)
    ids, kept = (state["item.sum.parts.0.weight"] for state in (after, before))
    assert torch.equal(ids[[0, 1, 3]], kept[[0, 1, 3]])
    assert not ids[[2, 4, 6]].any()  # not trained before, and new: features speak
    torch.testing.assert_close(ids[5], (kept[1] + kept[3]) / 2)  # new, and without features
    for name, more in (("item.sum.parts.1.weight", 2), ("user.profile.parts.0.weight", 1)):
        assert torch.equal(after[name][:-more], before[name])
        torch.testing.assert_close(after[name][-more:], before[name][1:].mean(0).expand(more, -1))
    events, kept = after["user.event.weight"], before["user.event.weight"]
    assert torch.equal(events[:2], kept)
    torch.testing.assert_close(events[2:], kept.mean(0).expand(2, -1))
    tables = {"item.sum.parts.0", "item.sum.parts.1", "user.profile.parts.0", "user.event"}
    others = [name for name in before if name.removesuffix(".weight") not in tables]
    assert len(others) > 10
    for name in others:
        assert torch.equal(after[name], before[name])


def test_the_old_towers_stay_as_they_were():
    old, new = pair()
    before = {name: weight.clone() for name, weight in old.state_dict().items()}
    new.load_state_dict(grown(old, new, TRAINED, DESCRIBED))
    for weight in new.parameters():
        weight.data += 1
    for name, weight in old.state_dict().items():
        assert torch.equal(weight, before[name])


def test_untrained_rows_start_anew_though_nothing_grew():
    old, new = pair(SIZES)
    ids = grown(old, new, TRAINED, np.array([True, False, True]))["item.sum.parts.0.weight"]
    kept = old.state_dict()["item.sum.parts.0.weight"]
    torch.testing.assert_close(ids[2], (kept[1] + kept[3]) / 2)
    assert torch.equal(ids[[1, 3]], kept[[1, 3]])


def test_where_nothing_was_known_the_new_starts_at_nought():
    old, new = Towers(dataclasses.replace(SIZES, item_inputs=(Input("brand", codes=1),)), MADE), None
    new = Towers(dataclasses.replace(SIZES, item_inputs=(Input("brand", codes=3),)), MADE)
    assert not grown(old, new, TRAINED, DESCRIBED[:3])["item.sum.parts.1.weight"].any()


def stepped(towers):
    """AdamW's state after two steps in which everything had a gradient."""
    optimizer = torch.optim.AdamW(towers.parameters())
    for _ in range(2):
        for weight in towers.parameters():
            weight.grad = torch.randn_like(weight)
        optimizer.step()
    return optimizer.state_dict()["state"]


def test_moments_stay_with_their_weights_and_new_rows_have_none():
    old, new = pair()
    state = stepped(old)
    moments = carried(state, old, new, TRAINED)
    names = [name for name, _ in new.named_parameters()]
    assert sorted(moments) == list(range(len(names)))
    for place, (name, weight) in enumerate(new.named_parameters()):
        assert moments[place]["step"] == 2
        for key in ("exp_avg", "exp_avg_sq"):
            was, now = state[place][key], moments[place][key]
            assert now.shape == weight.shape
            rows = [0, 1, 3] if name == "item.sum.parts.0.weight" else list(range(len(was)))
            assert torch.equal(now[rows], was[rows])
            assert not now[[row for row in range(len(now)) if row not in rows]].any()
    optimizer = torch.optim.AdamW(new.parameters(), lr=0.5)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_weight_that_no_step_touched_has_no_moments():
    old, new = pair()
    state = stepped(old)
    del state[3]
    assert 3 not in carried(state, old, new, TRAINED)


@pytest.mark.parametrize(
    ("sizes", "architecture", "said"),
    [
        (GROWN, dataclasses.replace(MADE, dimension=8), r"architecture.dimension 4, the configuration says 8"),
        (GROWN, dataclasses.replace(MADE, unit=True), r"architecture.unit False, the configuration says True"),
        (GROWN, dataclasses.replace(MADE, max_length=9), r"architecture.max_length 5, the configuration says 9"),
        (dataclasses.replace(GROWN, num_events=1), MADE, r"the checkpoint has the weights user.event.weight, "),
        (dataclasses.replace(GROWN, has_times=False), MADE, r"the checkpoint has the weights user.gap.weight"),
        (dataclasses.replace(GROWN, num_items=2), MADE, r"item.sum.parts.0.weight is \(4, 4\), .* asks for \(3, 4\)"),
        (
            dataclasses.replace(GROWN, item_inputs=(Input("brand", codes=3), Input("price", width=3))), MADE,
            r"item.sum.parts.2.weight is \(4, 2\), today's data asks for \(4, 3\), which it cannot grow to; train in",
        ),
        (
            dataclasses.replace(GROWN, item_inputs=(Input("colour", codes=5), Input("price", width=2))), MADE,
            r"item_inputs are \['brand', 'price'\], the data's \['colour', 'price'\]; train in full",
        ),
        (dataclasses.replace(GROWN, user_inputs=()), MADE, r"user_inputs are \['country'\], the data's \[\]"),
    ],
)  # fmt: skip
def test_towers_of_another_make_do_not_grow(sizes, architecture, said):
    old, new = pair(sizes, architecture)
    with pytest.raises(WarmStartError, match=said):
        grown(old, new, TRAINED, DESCRIBED[: sizes.num_items])


def test_events_that_come_in_anew_do_not_grow():
    old = Towers(dataclasses.replace(SIZES, num_events=1), MADE)
    with pytest.raises(WarmStartError, match=r"the towers of today's data have the weights user.event.weight"):
        grown(old, Towers(GROWN, MADE), TRAINED, DESCRIBED)


def test_what_is_not_learnt_may_be_set_anew():
    old, new = pair(GROWN, dataclasses.replace(MADE, dropout=0.5, id_dropout=0.5))
    grown(old, new, TRAINED, DESCRIBED)
    same, other = ({**Towers(SIZES, MADE).config()["architecture"], "recency": recency} for recency in (0.0, 1.0))
    refuse_another_architecture(same, other, WarmStartError)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"encoder": LiGR}, "trained with architecture.encoder Transformer, the configuration says LiGR"),
        ({"query_time": True}, "trained with architecture.query_time False, the configuration says True"),
    ],
)
def test_a_checkpoint_from_before_there_was_a_choice_is_of_what_there_was(now, said):
    same, other = (Towers(Sizes(3), made).config()["architecture"] for made in (Architecture(), Architecture(**now)))
    before = dict(same)
    del before["encoder"], before["query_time"]
    refuse_another_architecture(before, same, WarmStartError)
    with pytest.raises(WarmStartError, match=said):
        refuse_another_architecture(before, other, WarmStartError)


def test_which_items_are_described():
    codes = {
        "tags": np.array([[1, 0], [0, 0], [0, 0], [0, 2]], dtype=np.int32),
        "price": np.array([[0.5, 1], [0, 0], [0, 1], [0, 0]], dtype=np.float32),
    }
    assert described_by(codes, 4).tolist() == [True, False, True, True]
    assert described_by({}, 2).tolist() == [False, False]
