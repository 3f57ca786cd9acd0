"""Tonight's training starts from last night's, and whatever kills it, it ends with the same weights."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from recsys.artifacts import ArtifactError
from recsys.cli import main
from recsys.data.dataset import Dataset
from recsys.data.module import HistoryData
from recsys.data.split import LeaveOneOut
from recsys.data.warm import WarmStartError
from recsys.model.callbacks import DivergedError, Repeatable
from recsys.model.checkpoints import DurableCheckpoints
from recsys.model.curves import curves
from recsys.model.embed import Trained, item_vectors, user_vectors
from recsys.model.grow import described_by, grown
from recsys.model.towers import Architecture, Sizes, Towers
from recsys.model.two_tower import TwoTower
from recsys.train import run
from tests.nights import ARCHITECTURE

RANDOM = ["--model.loss", "recsys.model.losses.SampledSoftmax", "--model.loss.uniform", "4", "--data.replay", "0.5"]


@pytest.fixture(scope="module")
def first(nights, tmp_path_factory):
    """The first night's checkpoint."""
    folder = tmp_path_factory.mktemp("first")
    run(["fit", "--config", str(nights.config), "--out", str(folder)])
    return folder / "last.ckpt"


@pytest.fixture(scope="module")
def tonight(nights, first):
    """What to type for the second night."""
    return ["fit", "--config", str(nights.config_2), "--warm_start", str(first)]


@pytest.fixture(scope="module")
def straight(tonight, tmp_path_factory):
    """The second night with all that is random, undisturbed, its moments carried on."""
    folder = tmp_path_factory.mktemp("straight")
    run([*tonight, *RANDOM, "--model.optimizer", "carry", "--out", str(folder)])
    return folder


def loaded(path):
    return torch.load(path, weights_only=True)


def equal(one, other):
    """Whether two nests of values are the same to the bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_towers_grow_around_what_they_knew(nights, first):
    trained = Trained.open(first)
    before, after = Dataset.open(nights.first), Dataset.open(nights.second)
    data = HistoryData(nights.second, LeaveOneOut(), max_length=6, warm_start=first)
    sizes = Sizes(data.num_items, data.item_inputs, data.user_inputs, data.num_events, data.has_times)
    new = Towers(sizes, trained.towers.architecture)
    described = described_by(data.item_codes, data.num_items)
    new.load_state_dict(grown(trained.towers, new, trained.trained, described))
    tonight = Trained(
        new.eval(), data.trained, data.item_encoder, data.user_encoder, "", after.item_ids.digest, {}, (8,)
    )
    item_ND, was_ND = item_vectors(tonight, after), item_vectors(trained, before)
    assert trained.trained[:10].all()
    # To the bit what they were; "cold", whose id is let in only now, too: it starts as the features that it was.
    assert np.array_equal(item_ND[:11], was_ND)
    same = np.array([len(set(user_events(before, row))) > 0 for row in range(4, before.num_users)])
    users, were = user_vectors(tonight, after, item_ND), user_vectors(trained, before, was_ND)
    np.testing.assert_allclose(users[4 : before.num_users][same], were[4:][same], atol=1e-6)
    assert np.isfinite(users).all()


def user_events(dataset, row):
    return dataset.events[dataset.user_offsets[row] : dataset.user_offsets[row + 1]].tolist()


def test_training_starts_from_the_checkpoint(tonight, first, tmp_path):
    run([*tonight, "--model.learning_rate", "0", "--trainer.max_epochs", "2", "--out", str(tmp_path)])
    before, after = Trained.open(first), Trained.open(tmp_path / "last.ckpt")
    assert torch.equal(after.towers.user.position.weight, before.towers.user.position.weight)
    ids = after.towers.item.sum.parts[0].weight
    assert torch.equal(ids[1:11], before.towers.item.sum.parts[0].weight[1:11])
    assert not ids[[11, 12]].any()
    assert after.trained_until > before.trained_until
    assert after.item_encoder.learnt["brand"]["vocabulary"][:3] == before.item_encoder.learnt["brand"]["vocabulary"]


@pytest.mark.parametrize("optimizer", ["reset", "carry"])
def test_moments_are_carried_on_or_not(tonight, first, tmp_path, optimizer):
    run([*tonight, "--model.optimizer", optimizer, "--trainer.max_epochs", "2", "--out", str(tmp_path)])
    before, after = (loaded(path)["optimizer_states"][0] for path in (first, tmp_path / "last.ckpt"))
    steps = [float(state[0]["step"]) for state in (before["state"], after["state"])]
    own = loaded(tmp_path / "last.ckpt")["global_step"]
    assert own > 0
    assert steps[1] == (steps[0] + own if optimizer == "carry" else own)


def test_features_learn_at_a_rate_of_their_own(nights, tmp_path):
    def weights(name, *options):
        run(["fit", "--config", str(nights.config), *options, "--out", str(tmp_path / name)])
        said = loaded(tmp_path / name / "last.ckpt")
        return said, Trained.open(tmp_path / name / "last.ckpt").towers.item.sum.parts

    still = ["--model.feature_learning_rate", "0", "--trainer.max_epochs"]
    (_, once), (said, twice) = weights("once", *still, "1"), weights("twice", *still, "2")
    assert not torch.equal(once[0].weight, twice[0].weight)
    assert len(twice) > 1
    for one, other in zip(once[1:], twice[1:], strict=True):
        assert torch.equal(one.weight, other.weight)
    # The next night finds each weight's moments by its number, so groups may not change the order.
    groups = said["optimizer_states"][0]["param_groups"]
    assert len(groups) > 1
    numbers = [number for group in groups for number in group["params"]]
    assert numbers == list(range(len(numbers)))
    parameters = [weight for name, weight in said["state_dict"].items() if name.startswith("towers.")]
    state = said["optimizer_states"][0]["state"]
    assert all(state[place]["exp_avg"].shape == weight.shape for place, weight in enumerate(parameters))
    _, moved = weights("moved", "--model.feature_learning_rate", "0.01", "--trainer.max_epochs", "1")
    assert not torch.equal(moved[1].weight, once[1].weight)


def test_a_rate_for_features_wants_features():
    with pytest.raises(
        ValueError, match=r"feature_learning_rate 0.1 without item features; embed one, or leave it out"
    ):
        TwoTower(9, feature_learning_rate=0.1)


KILLED = """
import io, os, signal, sys, torch
from recsys.cli import main

save, left = torch.save, [int(sys.argv[1])]

def torn(what, file):
    left[0] -= 1
    if left[0]:
        return save(what, file)
    whole = io.BytesIO()
    save(what, whole)
    file.write(whole.getvalue()[:len(whole.getvalue()) // 2])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

torch.save = torn
main(sys.argv[2:])
"""


def test_a_fit_killed_in_a_write_and_again_in_a_step_ends_as_the_undisturbed_one(
    tonight, straight, tmp_path, monkeypatch
):
    options = [*tonight, *RANDOM, "--model.optimizer", "carry", "--out", str(tmp_path)]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "5", *options], check=False, capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert [loaded(tmp_path / f"{name}.ckpt")["epoch"] for name in ("best", "last")] == [1, 2]
    assert len(list(tmp_path.glob(".*.part"))) == 1

    step = TwoTower.training_step

    def stumbling(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == (4, 1):
            raise RuntimeError("the power failed")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(TwoTower, "training_step", stumbling)
        with pytest.raises(RuntimeError, match="the power failed"):
            run([*options, "--ckpt_path", "last"])
    assert loaded(tmp_path / "last.ckpt")["epoch"] == 3

    run([*options, "--ckpt_path", "last"])
    for name in ("best.ckpt", "last.ckpt"):
        said, expected = loaded(tmp_path / name), loaded(straight / name)
        for part in ("epoch", "state_dict", "optimizer_states", "lr_schedulers", "loops", "HistoryData"):
            assert equal(said[part], expected[part]), (name, part)
        stopping = next(key for key in expected["callbacks"] if key.startswith("EarlyStopping"))
        assert equal(said["callbacks"][stopping], expected["callbacks"][stopping])
    assert curves(tmp_path) == curves(straight)
    assert [len(curve) for curve in curves(straight).values()] == [6, 3]
    assert not list(tmp_path.glob(".*.part"))


def test_what_had_stopped_early_stays_stopped(nights, tmp_path):
    still = ["--model.learning_rate", "0", "--early_stopping.patience", "1", "--trainer.max_epochs", "30"]
    options = ["fit", "--config", str(nights.config), *still, "--out", str(tmp_path)]
    run(options)
    stopped = loaded(tmp_path / "last.ckpt")["global_step"]
    before = (tmp_path / "last.ckpt").read_bytes()
    run([*options, "--ckpt_path", "last"])
    assert loaded(tmp_path / "last.ckpt")["global_step"] == stopped
    assert (tmp_path / "last.ckpt").read_bytes() == before


def drawn(seed, epoch, rank=0, batch=0):
    trainer: Any = SimpleNamespace(datamodule=SimpleNamespace(seed=seed), current_epoch=epoch, global_rank=rank)
    torch.manual_seed(7)
    Repeatable().on_train_batch_start(trainer, None, None, batch)
    return torch.rand(1).item()


def test_each_epoch_of_each_worker_draws_its_own_and_always_the_same():
    draws = [drawn(*said) for said in ((0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 0, 0, 1))]
    assert len(set(draws)) == 5
    assert drawn(0, 1) == draws[1]
    assert draws[4] == drawn(3, 3, 3, 3)  # in the midst of an epoch nothing is seeded


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.architecture.dimension", "16"], "with architecture.dimension 8, the configuration says 16"),
        (["--model.architecture.max_length", "5"], "with architecture.max_length 6, the configuration says 5"),
        (["--warm_start", "none.ckpt"], "cannot go on from none.ckpt: there is no such file; train in full"),
    ],
)
def test_refusals_are_of_a_kind_that_a_job_can_catch(tonight, tmp_path, options, said):
    with pytest.raises(WarmStartError, match=said):
        run([*tonight, *options, "--out", str(tmp_path)])


def test_data_that_did_not_grow_from_the_checkpoints_are_refused(tonight, shop, tmp_path):
    with pytest.raises(WarmStartError, match="its 11 items are not the first ones of"):
        run([*tonight, "--data.dataset", str(shop), "--out", str(tmp_path)])


def test_a_training_that_diverges_says_so_and_leaves_no_checkpoint_of_it(nights, tmp_path, capsys):
    rate = ["--model.learning_rate", "1e30", "--model.warmup_steps", "0", "--out", str(tmp_path)]
    assert main(["fit", "--config", str(nights.config), *rate]) == 1
    said = capsys.readouterr().err
    assert "recsys fit: training diverged: in epoch 1 the training loss is" in said
    assert "at learning rate 1e+30; lower model.learning_rate, or raise model.warmup_steps" in said
    assert not list(tmp_path.glob("*.ckpt"))


def test_a_weight_that_is_no_number_is_found_though_no_step_follows(nights, tmp_path, capsys, monkeypatch):
    def spoilt(self, trainer, module, *_):
        module.towers.user.position.weight.data[0, 0] = torch.nan

    monkeypatch.setattr(Repeatable, "on_train_batch_end", spoilt)
    # Not limit_train_batches: whether 1 of these is one or all depends on which of int and float a library named first.
    options = ["--trainer.max_steps", "1", "--out", str(tmp_path)]
    assert main(["fit", "--config", str(nights.config), *options]) == 1
    assert "in epoch 1 the weight towers.user.position.weight holds what is not a number" in capsys.readouterr().err


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    place = tmp_path / "run" / "last.ckpt"
    DurableCheckpoints().save_checkpoint({"epoch": 1}, place)

    def full(what, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        DurableCheckpoints().save_checkpoint({"epoch": 2}, place)
    assert loaded(place) == {"epoch": 1}
    assert [file.name for file in place.parent.iterdir()] == ["last.ckpt"]


def log(run_folder, version, rows):
    path = run_folder / "logs" / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text("epoch,step,train_loss,val_hit@10,val_ndcg@10\n" + rows)


def test_curves_by_hand(tmp_path):
    assert curves(tmp_path) == {"train_loss": [], "val_ndcg@10": []}
    log(tmp_path, 0, "0,9,,0.5,0.1\n0,9,3.0,,\n1,19,2.5,,\n2,29,,0.5,0.2\n2,29,2.2,,\n3,39,9.1")
    assert curves(tmp_path) == {"train_loss": [(1, 3.0), (2, 2.5), (3, 2.2)], "val_ndcg@10": [(1, 0.1), (3, 0.2)]}
    log(tmp_path, 2, "2,29,,0.5,0.3\n2,29,2.25,,\n3,39,2.0,,\n")
    assert curves(tmp_path) == {
        "train_loss": [(1, 3.0), (2, 2.5), (3, 2.25), (4, 2.0)],
        "val_ndcg@10": [(1, 0.1), (3, 0.3)],
    }
    log(tmp_path, 10, "0,9,7.0,,\n")  # begun anew in the same place
    assert curves(tmp_path) == {"train_loss": [(1, 7.0)], "val_ndcg@10": [(1, 0.1), (3, 0.3)]}


def test_both_halves_of_a_warm_start_are_asked_for(nights, first, tmp_path):
    data = HistoryData(nights.second, LeaveOneOut(), max_length=6, warm_start=first)
    model = TwoTower(
        data.num_items, data.item_inputs, data.user_inputs, data.num_events, data.has_times,
        architecture=Architecture(**ARCHITECTURE),
    )  # fmt: skip
    trainer = pl.Trainer(max_epochs=1, logger=False, default_root_dir=tmp_path, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"model.warm_start is None, data.warm_start .*last.ckpt; give both the same"):
        trainer.fit(model, data)


def test_diverging_is_a_refusal():
    assert issubclass(DivergedError, ArtifactError)
    assert issubclass(WarmStartError, ArtifactError)
    assert not issubclass(DivergedError, WarmStartError)
