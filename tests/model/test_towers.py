"""Towers: what may influence a vector and what may not, and every kind of feature on its way into one."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from recsys.data.batches import query_loader
from recsys.data.history import histories
from recsys.data.module import HistoryData
from recsys.data.split import LeaveOneOut, Queries, everyone
from recsys.data.vocabulary import UNKNOWN, Input
from recsys.model.embed import Catalogue, query_vectors
from recsys.model.features import FeatureSum
from recsys.model.sequence import Dropout, causal_attention
from recsys.model.towers import ITEM_ID, Architecture, Sizes, Towers

SMALL = Architecture(dimension=8, max_length=6, blocks=2, heads=2, dropout=0.0)


def sizes_of(data):
    return Sizes(data.num_items, data.item_inputs, data.user_inputs, data.num_events, data.has_times)


def towers_of(data, **changed):
    torch.manual_seed(0)
    towers = Towers(sizes_of(data), dataclasses.replace(SMALL, **changed)).eval()
    with torch.no_grad():
        for parameter in towers.parameters():  # so that no part is silent because it starts at nought
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in towers.modules():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0
    return towers


def catalogue_of(data):
    return Catalogue(data.item_codes, data.trained)


def user_vectors(data, towers, queries, budget=64, dataset=None):
    item_ND = catalogue_of(data).embed(towers)
    batches = query_loader(dataset or data.dataset, queries, data.profiles, data.max_length, budget)
    return query_vectors(towers, item_ND, batches, len(queries))


def queries_at(dataset, user, ends):
    """Questions without answers, at the given numbers of interactions of one user."""
    end = dataset.user_offsets[user] + np.array(ends)
    return Queries(np.full(len(end), user), end, np.zeros(len(end) + 1, dtype=np.int64), np.empty(0, dtype=np.int64))


@pytest.mark.parametrize("training", [True, False])
def test_attention_is_torchs_in_value_and_gradients(training):
    query, key, value = (torch.randn(2, 3, 7, 4, requires_grad=True) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    with torch.set_grad_enabled(training):
        ours = causal_attention(query, key, value)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    if training:
        weights = torch.randn_like(expected)
        for got, wanted in zip(
            torch.autograd.grad((ours * weights).sum(), (query, key, value)),
            torch.autograd.grad((expected * weights).sum(), (query, key, value)),
            strict=True,
        ):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_dropout_drops_its_share_and_keeps_the_mean():
    torch.manual_seed(0)
    dropout, x = Dropout(0.25), torch.ones(1000, 101)
    dropped = dropout.train()(x)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    torch.testing.assert_close(dropout.eval()(x), x, rtol=0, atol=0)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="choose at least 0 and below 1"):
        Dropout(share)


def test_dropping_nearly_all_is_still_finite():
    assert torch.isfinite(Dropout(0.999).train()(torch.ones(4096))).all()


@pytest.mark.parametrize("name", ["shop", "bare"])
@pytest.mark.parametrize("unit", [True, False])
def test_padding_has_no_influence(request, name, unit):
    data = HistoryData(request.getfixturevalue(name), split=LeaveOneOut(), max_length=6)
    towers = towers_of(data, unit=unit)
    asked = everyone(data.dataset)
    together = user_vectors(data, towers, asked, budget=10_000)
    alone = np.concatenate([user_vectors(data, towers, asked.take(np.array([q]))) for q in range(len(asked))])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)


def test_whatever_stands_behind_a_history_is_ignored(shop_data):
    data, towers = shop_data, towers_of(shop_data)
    offsets = data.dataset.user_offsets
    users = np.array([1, 8])
    history = histories(data.dataset, users, offsets[users], offsets[users] + [2, 5], data.profiles)
    assert history.events_BL is not None
    assert history.gaps_BL is not None
    behind = np.arange(5) >= np.array([[2], [5]])
    spoilt = dataclasses.replace(
        history,
        items_BL=history.items_BL + torch.from_numpy(7 * behind),
        events_BL=history.events_BL + torch.from_numpy(2 * behind),
        gaps_BL=history.gaps_BL + torch.from_numpy(9 * behind),
    )
    item_ND = catalogue_of(data).embed(towers)
    with torch.inference_mode():
        before, after = (towers.user(item_ND[h.items_BL], h) for h in (history, spoilt))
    assert behind.any()
    torch.testing.assert_close(before[~behind], after[~behind], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["shop", "bare"])
def test_queries_that_share_a_stretch_get_what_each_would_get_alone(request, name):
    data = HistoryData(request.getfixturevalue(name), split=LeaveOneOut(), max_length=6)
    towers = towers_of(data)
    asked = queries_at(data.dataset, 9, [1, 2, 3, 6, 7, 9, 9])
    together = user_vectors(data, towers, asked)
    alone = np.concatenate([user_vectors(data, towers, asked.take(np.array([q]))) for q in range(len(asked))])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)


def test_only_the_newest_interactions_count(shop_data):
    towers = towers_of(shop_data)
    dataset = shop_data.dataset
    start = int(dataset.user_offsets[11])
    asked = queries_at(dataset, 11, [10])
    assert shop_data.max_length == 6
    older, newest = (dataclasses.replace(dataset, items=np.array(dataset.items)) for _ in range(2))
    older.items[start + 3] = newest.items[start + 4] = (dataset.items[start + 3] + 1) % 19
    vectors = [user_vectors(shop_data, towers, asked, dataset=one)[0] for one in (dataset, older, newest)]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert np.linalg.norm(vectors[0] - vectors[2]) > 1e-3


@pytest.mark.parametrize("name", ["shop", "bare"])
def test_one_user_now_is_that_user_in_a_batch(request, name):
    data = HistoryData(request.getfixturevalue(name), split=LeaveOneOut(), max_length=6)
    towers = towers_of(data)
    item_ND = catalogue_of(data).embed(towers)
    vectors = user_vectors(data, towers, everyone(data.dataset))
    for user in range(data.dataset.num_users):
        end = int(data.dataset.user_offsets[user + 1])
        start = max(int(data.dataset.user_offsets[user]), end - 6)
        history = histories(data.dataset, np.array([user]), np.array([start]), np.array([end]), data.profiles)
        now = towers.user_now(
            item_ND.numpy()[data.dataset.items[start:end]],
            None if history.times_BL is None else history.times_BL[0].numpy(),
            None if history.events_BL is None else history.events_BL[0].numpy(),
            {name: values[[user]] for name, values in data.profiles.items()},
        )
        np.testing.assert_allclose(now, vectors[user], rtol=1e-5, atol=1e-5)


def test_unit_vectors_have_length_1_and_plain_ones_have_not(shop_data):
    for unit in (True, False):
        towers = towers_of(shop_data, unit=unit)
        vectors = [
            catalogue_of(shop_data).embed(towers).numpy(), user_vectors(shop_data, towers, everyone(shop_data.dataset))
        ]  # fmt: skip
        for lengths in (np.linalg.norm(part, axis=1) for part in vectors):
            assert (np.abs(lengths - 1) < 1e-5).all() == unit


def test_an_item_bias_is_added_to_the_cosine(shop_data):
    towers = towers_of(shop_data, unit=True, item_bias=True)
    item_ND = catalogue_of(shop_data).embed(towers).numpy()
    user_QD = user_vectors(shop_data, towers, everyone(shop_data.dataset))
    np.testing.assert_allclose(np.linalg.norm(item_ND[:, :-1], axis=1), 1, atol=1e-5)
    assert item_ND[:, -1].std() > 0  # as the features and the id have it
    cosine_QN = user_QD[:, :-1] @ item_ND[:, :-1].T / np.linalg.norm(user_QD[:, :-1], axis=1, keepdims=True)
    np.testing.assert_allclose(user_QD @ item_ND.T, cosine_QN + item_ND[:, -1], atol=1e-5)


def test_an_item_bias_is_for_unit_vectors_alone():
    with pytest.raises(ValueError, match="item_bias without unit: lengths say already what an item is worth"):
        dataclasses.replace(SMALL, item_bias=True)


def test_events_times_and_user_features_speak(shop_data):
    data, towers = shop_data, towers_of(shop_data)
    start = data.dataset.user_offsets[[3]]
    history = histories(data.dataset, np.array([3]), start, start + 4, data.profiles)
    assert history.events_BL is not None
    assert history.gaps_BL is not None
    item_BLD = catalogue_of(data).embed(towers)[history.items_BL]
    with torch.inference_mode():
        said = towers.user(item_BLD, history)[0, -1]
        for change in (
            {"events_BL": (history.events_BL + 1) % 3},
            {"gaps_BL": history.gaps_BL + 1},
            {"users": {**history.users, "country": history.users["country"] % 3 + 1}},
            {"users": {**history.users, "age": history.users["age"] + 1}},
        ):
            other = towers.user(item_BLD, dataclasses.replace(history, **change))[0, -1]
            assert (said - other).norm() > 1e-3, change


def test_times_can_be_left_out(shop_data):
    assert towers_of(shop_data, use_times=False).user.gap is None
    assert towers_of(shop_data).user.gap is not None


def test_a_log_with_one_kind_of_event_embeds_none():
    assert Towers(Sizes(3, num_events=1), SMALL).user.event is None


def test_every_kind_of_feature_reaches_the_item_tower(shop_data):
    towers, catalogue = towers_of(shop_data), catalogue_of(shop_data)
    names = [given.name for given in shop_data.item_inputs]
    assert names == ["brand", "tags", "price", "title", "added", "picture", "items.sold"]
    encoded = catalogue.take(torch.tensor([3]))
    with torch.inference_mode():
        said = towers.item(encoded)
        for name, values in encoded.items():
            other = torch.where(values == 1, 2, 1) if values.dtype == torch.int32 or name == ITEM_ID else values + 1
            assert (towers.item({**encoded, name: other}) - said).norm() > 1e-3, name


def test_what_is_missing_or_was_never_seen_adds_nothing(shop_data):
    dataset = shop_data.dataset
    empty, late = dataset.item_ids.row("i0"), dataset.item_ids.row("i19")
    for name, values in shop_data.item_codes.items():
        assert not values[empty].any(), name
    assert shop_data.item_codes["brand"][late] == [UNKNOWN]  # its brand is nobody else's
    assert shop_data.item_codes["tags"][late].any()
    assert not shop_data.trained[late]
    assert catalogue_of(shop_data).all()[ITEM_ID][late] == UNKNOWN
    assert shop_data.profiles["age"][dataset.user_ids.row("u2")].tolist() == [0, 0]
    towers = towers_of(shop_data)
    towers.item.mlp = None
    vectors = towers.item.sum(catalogue_of(shop_data).all())
    own = towers.item.sum.parts[0].weight[empty + 1]
    torch.testing.assert_close(vectors[empty], own)  # of what has no features, the id alone speaks


def test_an_item_whose_id_is_not_known_is_what_its_features_say(shop_data):
    towers, catalogue = towers_of(shop_data), catalogue_of(shop_data)
    row = shop_data.dataset.item_ids.row("i19")
    before = catalogue.embed(towers)[row]
    with torch.no_grad():
        towers.item.sum.parts[0].weight[1:] += 1  # all ids, trained or not
    torch.testing.assert_close(catalogue.embed(towers)[row], before, rtol=0, atol=0)


def test_hiding_all_ids_leaves_the_features(shop_data):
    towers, encoded = towers_of(shop_data), catalogue_of(shop_data).all()
    hidden = {**encoded, ITEM_ID: torch.zeros_like(encoded[ITEM_ID])}
    for share, expected in ((1.0, hidden), (0.0, encoded)):
        towers.item.id_dropout = share
        torch.testing.assert_close(towers.item.train()(encoded), towers.item.eval()(expected))
    towers.item.id_dropout = 0.5
    with torch.no_grad():
        moved = (towers.item.train()(encoded) - towers.item.eval()(encoded)).norm(dim=1) > 1e-6
        assert 0 < moved.sum() < len(moved)
        towers.item.id_dropout = 1.0
        torch.testing.assert_close(catalogue_of(shop_data).embed(towers), towers.item.eval()(encoded))


def test_an_id_that_starts_at_zero_leaves_the_features_until_training_says_more(shop_data):
    architecture = dataclasses.replace(SMALL, zero_ids=True)
    towers, encoded = Towers(sizes_of(shop_data), architecture), catalogue_of(shop_data).all()
    hidden = {**encoded, ITEM_ID: torch.zeros_like(encoded[ITEM_ID])}
    torch.testing.assert_close(towers.item.eval()(encoded), towers.item.eval()(hidden), rtol=0, atol=0)
    towers.item.train()(encoded).sum().backward()
    ids = towers.item.sum.parts[0]
    assert isinstance(ids, torch.nn.Embedding)
    assert ids.weight.grad is not None
    assert ids.weight.grad.any()
    with pytest.raises(ValueError, match="zero_ids without item features leaves all items alike"):
        Towers(Sizes(9), architecture)


def test_embedding_a_catalogue_leaves_the_towers_in_their_mode(shop_data):
    towers = towers_of(shop_data).train()
    catalogue_of(shop_data).embed(towers)
    assert towers.training


def test_a_feature_sum_by_hand():
    features = FeatureSum([Input("tags", codes=4), Input("size", width=2)], dimension=2, std=1.0)
    features.load_state_dict(
        {
            "parts.0.weight": torch.tensor([[0.0, 0.0], [1, 2], [3, 4], [9, 9]]),
            "parts.1.weight": torch.tensor([[1.0, 0.0], [0, 10]]),
        }
    )
    got = features({"tags": torch.tensor([[1, 2, 0], [3, 0, 0], [0, 0, 0]]), "size": torch.eye(3)[:, :2]})
    # The mean of the tags there are; then the row of the projection.
    assert got.tolist() == [[2 + 1, 3 + 0], [9 + 0, 9 + 10], [0, 0]]


def test_sqrtn_divides_by_the_root_of_how_many_codes_there_are():
    features = FeatureSum([Input("tags", codes=6)], dimension=2, std=1.0, combiner="sqrtn")
    features.load_state_dict({"parts.0.weight": torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 0], [0, 1], [5, 5]])})
    got = features({"tags": torch.tensor([[1, 2, 3, 4], [5, 0, 0, 0], [0, 0, 0, 0]])})
    assert got.tolist() == [[1, 1], [5, 5], [0, 0]]  # 2 / √4; one of one; nothing


def test_the_combiner_is_that_of_the_item_tower_and_goes_into_its_config(shop_data):
    towers = Towers(sizes_of(shop_data), dataclasses.replace(SMALL, combiner="sqrtn"))
    assert towers.item.sum.combiner == "sqrtn"
    assert Towers.from_config(towers.config()).item.sum.combiner == "sqrtn"


def test_nothing_to_embed_is_refused():
    with pytest.raises(ValueError, match="there is no feature to embed; declare one or leave this module out"):
        FeatureSum([], 2, 1.0)({})


def test_towers_are_built_again_from_plain_values(shop_data):
    towers = towers_of(shop_data)
    again = Towers.from_config(json.loads(json.dumps(towers.config())))
    again.load_state_dict(towers.state_dict())
    catalogue = catalogue_of(shop_data)
    torch.testing.assert_close(catalogue.embed(again.eval()), catalogue.embed(towers), rtol=0, atol=0)
