"""Training on the ring, end to end: what is learnt, resumed, opened again, and written for a mail campaign."""

import dataclasses
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import pytorch_lightning as pl
import torch

from recsys.cli import main
from recsys.data.module import HistoryData
from recsys.data.split import LeaveOneOut
from recsys.data.targets import NextItem
from recsys.ids import IdMap
from recsys.model.embed import Trained
from recsys.model.losses import FullSoftmax, GeneralisedBCE, SampledSoftmax
from recsys.model.towers import Architecture
from recsys.model.two_tower import TwoTower
from recsys.recommender import Recommender
from tests.toy import RING, USERS, ring_lengths


def trained_on(toy, folder, loss=None, epochs=12, targets=NextItem(), **changed):  # noqa: B008 (frozen)
    """Trains without the command line.

    Returns:
        The trainer, and what validation measured at the end.
    """
    pl.seed_everything(0, verbose=False)
    data = HistoryData(toy.dataset, split=LeaveOneOut(), max_length=8, batch_positions=64, targets=targets)
    architecture = Architecture(dimension=16, max_length=8, blocks=1, heads=2, dropout=0.0, **changed)
    model = TwoTower(
        data.num_items, data.item_inputs, data.user_inputs, data.num_events, data.has_times,
        architecture=architecture, loss=loss, learning_rate=0.02, warmup_steps=5,
    )  # fmt: skip
    trainer = pl.Trainer(
        max_epochs=epochs, check_val_every_n_epoch=epochs, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(model, data)
    return trainer, {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize(
    ("loss", "scaled"),
    [
        (SampledSoftmax(uniform=6), {}),
        (SampledSoftmax(uniform=0, in_batch=8), {}),
        (SampledSoftmax(uniform=4, in_batch=4), {}),
        (FullSoftmax(temperature=0.1), {"unit": True}),
        (FullSoftmax(temperature=0.1), {"unit": True, "item_bias": True}),
        (SampledSoftmax(uniform=8, temperature=0.1), {"unit": True}),
        (FullSoftmax(matryoshka=[4, 8]), {}),
        (SampledSoftmax(uniform=6, queue=32), {}),
        (GeneralisedBCE(negatives=6), {}),
        (GeneralisedBCE(negatives=6, calibration=0, matryoshka=[8]), {}),
    ],
    ids=[
        "uniform", "in-batch", "mixed", "unit", "unit, bias", "unit, sampled", "matryoshka", "queue", "gBCE",
        "BCE, matryoshka",
    ],
)  # fmt: skip
def test_every_loss_learns_the_ring(toy, tmp_path, loss, scaled):
    epochs = 40 if isinstance(loss, GeneralisedBCE) else 12  # it learns how rare each item is before which is next
    trainer, said = trained_on(toy, tmp_path, loss, epochs, **scaled)
    assert said["val_ndcg@10"] > 0.9  # by chance: 0.5
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    trained = Trained.open(tmp_path / "x.ckpt")
    assert {name: getattr(trained.towers.architecture, name) for name in scaled} == scaled
    assert trained.dimensions == loss.dimensions(trained.towers.architecture.dimension)
    assert not trained.towers.training


class Shuffled(NextItem):
    """Each position's target is that of some other one."""

    def batch(self, *given):
        made = super().batch(*given)
        return dataclasses.replace(made, target_T=made.target_T[torch.randperm(len(made.target_T))])


def test_what_cannot_be_known_is_not(toy, tmp_path):
    _, said = trained_on(toy, tmp_path, targets=Shuffled())
    # The target is one of those that the user has not taken, at any rank.
    chances = []
    for length in ring_lengths():
        candidates = RING + 1 - (length - 2)
        chances.append(np.mean([1 / math.log2(rank + 2) for rank in range(candidates)]))
    assert said["val_ndcg@10"] == pytest.approx(np.mean(chances), abs=0.12)


@pytest.fixture(scope="module")
def fit(toy):
    """Fits by the command, without anything random that a checkpoint does not hold."""
    steady = ["--model.decay", "false", "--model.warmup_steps", "1", "--model.architecture.id_dropout", "0"]

    def fit(*options):
        config = str(toy.dataset.parent / "fit.yaml")
        assert main(["fit", "--config", config, *steady, "--trainer.check_val_every_n_epoch", "1", *options]) == 0

    return fit


def test_going_on_from_the_last_checkpoint_is_as_if_never_stopped(fit, tmp_path):
    stopped, straight = str(tmp_path / "stopped"), str(tmp_path / "straight")
    fit("--out", stopped, "--trainer.max_epochs", "2")
    fit("--out", stopped, "--trainer.max_epochs", "4", "--ckpt_path", "last")
    fit("--out", straight, "--trainer.max_epochs", "4")
    said = [torch.load(f"{path}/last.ckpt", weights_only=True) for path in (stopped, straight)]
    assert said[0]["global_step"] == said[1]["global_step"] > 4
    assert said[0]["epoch"] == said[1]["epoch"] == 3
    for name, weight in said[1]["state_dict"].items():
        torch.testing.assert_close(said[0]["state_dict"][name], weight, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_opens_without_the_command(toy, toy_bundle):
    trained = Trained.open(toy.checkpoint)
    assert trained.dataset == toy_bundle.manifest.content["dataset"]
    assert trained.trained.sum() == RING
    for name, weight in trained.towers.state_dict().items():
        torch.testing.assert_close(weight, toy_bundle.towers.state_dict()[name], rtol=0, atol=0)


def test_a_checkpoint_loads_into_a_module_with_weights_only(toy):
    expected = Trained.open(toy.checkpoint).towers
    module = TwoTower.load_from_checkpoint(
        toy.checkpoint, map_location="cpu", weights_only=True, architecture=expected.architecture,
        **{name: getattr(expected.sizes, name) for name in ("num_items", "item_inputs", "user_inputs", "has_times")},
    )  # fmt: skip
    for name, weight in module.towers.state_dict().items():
        torch.testing.assert_close(weight, expected.state_dict()[name], rtol=0, atol=0)


def test_a_checkpoint_of_other_ids_is_not_gone_on_from(toy, shop, tmp_path, capsys):
    config = str(toy.dataset.parent / "fit.yaml")
    options = ["--data.dataset", str(shop), "--ckpt_path", str(toy.checkpoint), "--out", str(tmp_path)]
    for command in ("fit", "test", "predict"):
        assert main([command, "--config", config, *options]) == 1
        assert "the checkpoint was trained on other item ids" in capsys.readouterr().err


def test_towers_of_another_make_are_not_gone_on_with(toy, tmp_path, capsys):
    config = str(toy.dataset.parent / "fit.yaml")
    options = ["--ckpt_path", str(toy.checkpoint), "--out", str(tmp_path)]
    assert main(["test", "--config", config, "--model.architecture.dimension", "32", *options]) == 1
    said = (
        "trained with architecture.dimension 16, the configuration says 32; use the configuration it was trained with"
    )
    assert said in capsys.readouterr().err
    assert main(["test", "--config", config, "--model.architecture.unit", "true", *options]) == 1
    assert "trained with architecture.unit False, the configuration says True" in capsys.readouterr().err
    assert main(["test", "--config", config, "--model.architecture.dropout", "0.4", *options]) == 0
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6"}, tmp_path / "other.ckpt")
    assert main(["test", "--config", config, "--ckpt_path", str(tmp_path / "other.ckpt")]) == 1
    assert "not a checkpoint of `recsys fit`; check its path" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "metric"), [("validate", "val"), ("test", "test")])
def test_validate_and_test_measure_a_checkpoint(toy, tmp_path, capsys, command, metric):
    config = str(toy.dataset.parent / "fit.yaml")
    assert main([command, "--config", config, "--ckpt_path", str(toy.checkpoint), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"{metric}_ndcg@10" in said
    assert f"{metric}_hit@10" in said
    assert not (tmp_path / "best.ckpt").exists()


def test_predict_writes_what_the_recommender_answers(toy, toy_bundle, tmp_path):
    config = str(toy.dataset.parent / "fit.yaml")
    options = ["--ckpt_path", str(toy.checkpoint), "--out", str(tmp_path), "--top_k.k", "6"]
    assert main(["predict", "--config", config, *options]) == 0
    table = pq.read_table(tmp_path / "top_k.parquet").to_pandas()
    recommender, by_user = Recommender(toy_bundle), dict(tuple(table.groupby("user_id")))
    assert len(by_user) == USERS
    for user, rows in by_user.items():
        answer = recommender.recommend(user_id=user, k=6)
        assert rows["rank"].tolist() == list(range(1, len(answer.items) + 1))
        np.testing.assert_allclose(rows["score"], [item.score for item in answer.items], rtol=1e-4, atol=1e-4)
        assert rows["item_id"].tolist() == [item.item_id for item in answer.items]
    # Of 13 items a user who took 9 has 4 left: no row where there is nothing more to recommend.
    assert len(table) == sum(min(6, RING + 1 - length) for length in ring_lengths())
    assert [file.name for file in tmp_path.iterdir() if file.name.endswith((".part", ".parquet"))] == ["top_k.parquet"]
    assert pq.read_schema(tmp_path / "top_k.parquet").field("user_id").type == IdMap.of(["u"]).array.type


def test_sizes_that_the_data_decides_cannot_be_typed(toy, tmp_path, capsys):
    with pytest.raises(SystemExit) as refusal:
        main(["fit", "--config", str(toy.dataset.parent / "fit.yaml"), "--model.num_items", "5"])
    assert refusal.value.code == 2


def test_prefixes_that_do_not_fit_are_refused_before_any_work(toy, tmp_path, capsys):
    options = ["--model.loss", "recsys.model.losses.FullSoftmax", "--model.loss.matryoshka", "[16]"]
    config = str(toy.dataset.parent / "fit.yaml")
    assert main(["fit", "--config", config, "--out", str(tmp_path / "run"), *options]) == 1
    assert "matryoshka has 16, which is no prefix of 16 dimensions; leave it out" in capsys.readouterr().err


def test_prefixes_are_not_taken_of_vectors_that_end_in_a_bias(toy):
    architecture = Architecture(dimension=16, unit=True, item_bias=True)
    with pytest.raises(ValueError, match=r"item_bias with loss\.matryoshka: a prefix of vectors is without it"):
        TwoTower(9, architecture=architecture, loss=FullSoftmax(matryoshka=[8]))


def test_k_of_predict_must_be_at_least_1(toy, tmp_path, capsys):
    options = ["--top_k.k", "0", "--ckpt_path", str(toy.checkpoint), "--out", str(tmp_path)]
    assert main(["predict", "--config", str(toy.dataset.parent / "fit.yaml"), *options]) == 1
    assert "top_k.k is 0; ask for at least 1 item" in capsys.readouterr().err
