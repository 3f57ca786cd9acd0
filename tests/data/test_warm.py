"""A warm start's data: whose checkpoint is taken, what keeps its meaning, and who is trained on."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.batches import like_lengths
from recsys.data.module import HistoryData
from recsys.data.split import LeaveOneOut
from recsys.data.warm import Before, WarmStartError, replayed
from tests.nights import SCHEMA, USERS, prepared, two_nights

ALL = LeaveOneOut(min_history=100)  # everybody keeps everything in training


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    return two_nights(tmp_path_factory.mktemp("nights"))


@pytest.fixture
def checkpoint(nights, tmp_path):
    """Writes what the first night's checkpoint remembers of its data, with changes; None leaves a key out."""

    def write(**changed):
        state = HistoryData(nights.first, ALL).state_dict() | changed
        state = {key: value for key, value in state.items() if key not in changed or value is not None}
        torch.save({"HistoryData": state}, tmp_path / "first.ckpt")
        return tmp_path / "first.ckpt"

    return write


def warm(nights, checkpoint, **options):
    return HistoryData(nights.second, ALL, batch_positions=30, max_length=6, warm_start=checkpoint, **options)


def test_rows_and_codes_keep_their_meaning(nights, checkpoint):
    old, new = HistoryData(nights.first, ALL), warm(nights, checkpoint())
    assert new.item_encoder.learnt["brand"]["vocabulary"] == ["b0", "b1", "b2", "a new one"]
    assert new.user_encoder.learnt["country"]["vocabulary"] == ["c0", "c1", "c2", "a new one"]
    assert new.item_encoder.learnt["price"] == old.item_encoder.learnt["price"]
    for name, codes in old.item_codes.items():
        np.testing.assert_array_equal(new.item_codes[name][: len(codes)], codes)
    cold = old.dataset.item_ids.row("cold")
    assert (old.trained[cold], new.trained[cold]) == (False, True)
    # Trained in full, the new brand comes first: codes would mean other brands.
    assert HistoryData(nights.second, ALL).item_encoder.learnt["brand"]["vocabulary"][0] == "a new one"


def test_until_when_training_knew_is_remembered(nights, bare):
    data = HistoryData(nights.first, ALL)
    assert data.state_dict()["trained_until"] == int(data.dataset.times.max())
    held_out = HistoryData(nights.first, LeaveOneOut())
    newest = [
        data.dataset.times[held_out.cuts.validation_start[user] - 1]
        for user in range(USERS)
        if held_out.cuts.validation_start[user] > data.dataset.user_offsets[user]
    ]
    assert held_out.state_dict()["trained_until"] == max(newest) < int(data.dataset.times.max())
    assert HistoryData(bare, LeaveOneOut()).state_dict()["trained_until"] is None


def epochs(data, count):
    """Who is trained on in each epoch, told by their country and history, and with how many batches."""

    class At:
        global_rank, world_size = 0, 1

    for epoch in range(count):
        data.trainer = At()
        data.trainer.current_epoch = epoch
        yield list(data.train_dataloader())


def test_who_has_something_new_is_always_trained_on_and_of_the_others_a_share(nights, checkpoint):
    data = warm(nights, checkpoint(), replay=0.5)
    news = {data.dataset.user_ids.row(name) for name in ("u0", "u1", "u2", "u3", "someone")}
    others = set(range(14)) - news - {data.dataset.user_ids.row("u13")}  # who has taken one item only
    drawn = [set(data._drawn(epoch)[0].tolist()) for epoch in range(200)]
    assert all(users >= news and users <= news | others for users in drawn)
    assert {len(users) for users in drawn} == {len(news) + round(len(others) / 2)}
    times_drawn = np.array([sum(user in users for users in drawn) for user in others])
    assert times_drawn.min() > 60  # of 200
    assert times_drawn.max() < 160
    assert data._drawn(3)[0].tolist() == warm(nights, checkpoint(), replay=0.5)._drawn(3)[0].tolist()
    assert drawn[3] != set(warm(nights, checkpoint(), replay=0.5, seed=1)._drawn(3)[0].tolist())


def test_an_epoch_has_as_many_batches_as_every_other_and_trains_on_those_drawn(nights, checkpoint):
    data = warm(nights, checkpoint(), replay=0.5)
    for epoch, batches in enumerate(epochs(data, 12)):
        assert len(batches) == len(data.train_dataloader())
        users, widths = data._drawn(epoch)
        lengths = data.cuts.validation_start - data._starts - 1
        assert (widths >= lengths[users]).all()
        firsts = sorted(row[0] for batch in batches for row in batch.history.items_BL.tolist())
        assert firsts == sorted(data.dataset.items[data._starts[users]].tolist())
        assert sum(len(batch.target_T) for batch in batches) == lengths[users].sum()


def test_popularity_is_what_an_epoch_is_expected_to_ask(nights, checkpoint):
    data = warm(nights, checkpoint(), replay=0.5)
    counts = np.zeros(data.num_items)
    for batches in epochs(data, 400):
        for batch in batches:
            counts += np.bincount(batch.target_T.numpy(), minlength=data.num_items)
    np.testing.assert_allclose(data.frequency, counts / counts.sum(), atol=0.01)
    whole = warm(nights, checkpoint()).frequency
    assert abs(whole - data.frequency).max() > 0.02


@pytest.mark.parametrize("changed", [{"trained_until": None}, {"trained_until": 0}], ids=["not remembered", "long ago"])
def test_without_a_moment_everything_is_new(nights, checkpoint, changed):
    data = warm(nights, checkpoint(**changed), replay=0.0)
    assert data._drawn(0)[0].tolist() == warm(nights, checkpoint())._drawn(5)[0].tolist()
    assert len(data._drawn(0)[0]) == 14


def test_without_a_warm_start_nobody_is_left_out(nights):
    data = HistoryData(nights.second, ALL, replay=0.1)
    assert len(data._drawn(0)[0]) == 14


def test_a_night_without_news_has_nothing_to_train_on(nights, checkpoint):
    with pytest.raises(WarmStartError, match=r"has nothing newer to train on than .*first.ckpt had; raise data.replay"):
        HistoryData(nights.first, ALL, warm_start=checkpoint(), replay=0.0)
    assert len(HistoryData(nights.first, ALL, warm_start=checkpoint(), replay=1.0)._drawn(0)[0]) == 13


def test_a_share_that_is_none_is_refused(nights):
    with pytest.raises(ValueError, match=r"data.replay is 1.5; choose a share from 0 to 1"):
        HistoryData(nights.first, ALL, replay=1.5)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"item_ids": "0" * 64}, r"its 11 items are not the first ones of"),
        ({"trained": torch.ones(10, dtype=torch.bool)}, r"its 10 items are not the first ones of"),
        ({"trained": torch.ones(20, dtype=torch.bool)}, r"its 20 items are not the first ones of"),
        (
            {"event_names": ["cart", "view"]},
            r"its events \['cart', 'view'\] are not the first ones of \['view', 'cart'",
        ),
        ({"event_names": ["view", "cart", "zoom", "buy"]}, r"its events .* are not the first ones of"),
        ({"event_names": None}, r"it does not say what its event codes mean"),
    ],
)
def test_a_checkpoint_whose_rows_or_codes_mean_something_else_is_refused(nights, checkpoint, changed, said):
    with pytest.raises(WarmStartError, match=f"training cannot go on from .*first.ckpt: {said}.*; train in full"):
        warm(nights, checkpoint(**changed))


def test_other_features_are_refused(checkpoint, tmp_path):
    features = SCHEMA["items"]["features"] | {"price": "text"}
    other = prepared(tmp_path, 2, SCHEMA | {"items": {"id": "item", "features": features}})
    with pytest.raises(WarmStartError, match="feature 'price' was numeric and is now text; train in full"):
        HistoryData(other, ALL, warm_start=checkpoint())


def test_a_log_without_events_needs_no_names(bare, tmp_path):
    state = HistoryData(bare, ALL).state_dict()
    del state["event_names"]
    torch.save({"HistoryData": state}, tmp_path / "old.ckpt")
    assert Before.of(tmp_path / "old.ckpt", HistoryData(bare, ALL).dataset).trained_until is None


def test_what_is_no_checkpoint_is_refused(nights, tmp_path):
    with pytest.raises(WarmStartError, match=r"go on from .*none.ckpt: there is no such file; train in full"):
        warm(nights, tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("text")
    with pytest.raises(WarmStartError, match=r"text.ckpt: it is not a checkpoint of `recsys fit`"):
        warm(nights, tmp_path / "text.ckpt")


@given(
    st.lists(st.integers(1, 200), max_size=200).map(lambda said: np.array(said, dtype=np.int64)),
    st.floats(0, 1), st.integers(1, 500),
)  # fmt: skip
def test_every_draw_costs_the_same(lengths, share, budget):
    draws = [replayed(lengths, share, np.random.default_rng(seed)) for seed in range(3)]
    for chosen, widths in draws:
        assert len(chosen) == len(set(chosen.tolist())) == round(share * len(lengths))
        assert (widths >= lengths[chosen]).all()
        assert widths.tolist() == draws[0][1].tolist()
    assert len({len(like_lengths(widths, budget, np.random.default_rng(9))) for _, widths in draws}) == 1


def test_long_histories_are_drawn_as_often_as_short_ones():
    lengths = np.arange(4_000) // 20 + 1
    drawn = np.zeros(4_000)
    for seed in range(300):
        drawn[replayed(lengths, 0.3, np.random.default_rng(seed))[0]] += 1
    assert abs(drawn / 300 - 0.3).max() < 0.15
    _, widths = replayed(lengths, 0.3, np.random.default_rng(0))
    assert widths.sum() < 1.05 * 0.3 * lengths.sum()  # little is padding
