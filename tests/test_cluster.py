"""The Ray engine on two workers here: the same training and the same vectors, whatever happens to a worker."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.trainer.connectors.callback_connector import _CallbackConnector

from recsys.artifacts import ArtifactError
from recsys.bundle import Bundle
from recsys.cli import main
from recsys.cluster.embedding import embed
from recsys.cluster.fitting import LOG, ToRay, WorkerCLI, _absolute, fit
from recsys.cluster.place import Cluster, ClusterError, connected, require
from recsys.data.dataset import Dataset
from recsys.data.module import HistoryData
from recsys.data.split import LeaveOneOut
from recsys.model.embed import Trained, item_vectors, user_vectors
from recsys.seal import seal
from recsys.train import run

EPOCHS = 12
# Two workers add the same floats in another order. AdamW divides a gradient by its own size, so that where it is nearly
# nothing, rounding moves a weight by a share of the learning rate, 0.02.
CLOSE = 1e-4  # 1.4e-6 were seen

pytestmark = pytest.mark.timeout(1200)  # Ray starts a dozen processes, slowly where other things run


class Failing(pl.Callback):
    """Fails in the second worker alone, while the first waits for its gradients."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_rank == 1 and batch_idx == 2:
            raise RuntimeError("the second worker has had enough")


class Ray:
    """Ray on this machine, and where it keeps its own."""

    def __init__(self):
        self.cluster, self.after = Cluster(workers=2), contextlib.ExitStack()
        self.after.enter_context(connected(self.cluster))
        said = " ".join(command_line(pid) for pid in descendants(os.getpid()))
        (self.folder,) = map(Path, set(re.findall(r"/tmp/recsys-\w+", said)))

    def left(self) -> list[str]:
        """Its processes, its folder and its shared memory, if any of it is still there."""
        lines = [command_line(pid) for pid in descendants(os.getpid())]
        files = [file for file in Path("/dev/shm").iterdir() if re.search("ray|plasma|torch|gloo", file.name)]
        # Another test's fork server names Ray's folder among those that it imports from.
        return [line for line in lines if "ray" in line and "forkserver" not in line] + [
            str(file) for file in (self.folder, *files) if file.exists()
        ]


def descendants(pid: int) -> list[int]:
    below = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            below += [int(child) for child in task.read_text().split()]
    return below + [deeper for child in below for deeper in descendants(child)]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:  # it ended
        return ""


def alike(ours, theirs) -> None:
    """Vectors of the same weights, embedded in other blocks: float32 as it comes."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def ray():
    started = Ray()
    yield started
    started.after.close()


@pytest.fixture(scope="module")
def config(toy):
    """The toy's training without anything drawn at random, and validated every second epoch."""
    said = yaml.safe_load((toy.dataset.parent / "fit.yaml").read_text())
    said["trainer"] |= {"max_epochs": EPOCHS, "check_val_every_n_epoch": 2, "logger": True}
    said["data"]["batch_positions"] = 20
    said["model"]["architecture"] |= {"dropout": 0.0, "id_dropout": 0.0}
    del said["out"]
    return said


@pytest.fixture(scope="module")
def local(config, tmp_path_factory):
    """What the local engine leaves."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "fit.json").write_text(json.dumps(config))
    assert main(["fit", "--config", str(folder / "fit.json"), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def shared(ray, config, tmp_path_factory):
    """What two workers leave."""
    out = tmp_path_factory.mktemp("shared") / "run"
    fit(config, out, ray.cluster)
    return out


def weights(run: Path, name: str) -> dict[str, torch.Tensor]:
    return torch.load(run / name, weights_only=True)["state_dict"]


def told_apart(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights without the biases of attention's keys, which move all scores of a softmax alike and so change nothing:
    their gradient is rounding alone, and AdamW makes steps of it."""
    return {
        name: torch.cat([weight[: len(weight) // 3], weight[2 * len(weight) // 3 :]])
        if name.endswith("query_key_value.bias")
        else weight
        for name, weight in found.items()
    }


def test_two_workers_learn_what_one_machine_does(shared, local):
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = told_apart(weights(shared, name)), told_apart(weights(local, name))
        assert ours.keys() == theirs.keys()
        for key, weight in theirs.items():
            torch.testing.assert_close(ours[key], weight, rtol=0, atol=CLOSE)
    said = [torch.load(run / "last.ckpt", weights_only=True) for run in (shared, local)]
    assert said[0]["global_step"] == said[1]["global_step"] > 10 * EPOCHS
    assert said[0]["epoch"] == said[1]["epoch"] == EPOCHS - 1


def test_they_leave_what_it_leaves(shared, local):
    def files(run):
        return {str(file.relative_to(run)).split(".out.tfevents")[0].split("tfevents")[0] for file in run.rglob("*")}

    assert files(shared) - files(local) == {LOG}
    assert files(local) - files(shared) == set()


def test_the_logged_loss_is_that_of_the_whole_batch(shared, local):
    def curve(run):
        (file,) = (run / "logs").glob("*/metrics.csv")
        return np.genfromtxt(file, delimiter=",", names=True)

    ours, theirs = curve(shared), curve(local)
    assert ours.dtype.names == theirs.dtype.names
    for name in ours.dtype.names:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-3, err_msg=name)


def test_some_batch_had_fewer_sequences_than_workers(toy, config):
    """Of the very training above, so that it tests that, too."""
    data = HistoryData(toy.dataset, LeaveOneOut(), max_length=8, batch_positions=config["data"]["batch_positions"])
    assert 1 in {len(batch.history.items_BL) for batch in data.train_dataloader()}


def test_their_checkpoint_seals_into_a_bundle_of_the_same_vectors(toy, shared, local, tmp_path):
    seal(shared / "best.ckpt", toy.dataset, tmp_path / "bundle")
    bundle, data, trained = (
        Bundle.open(tmp_path / "bundle"),
        Dataset.open(toy.dataset),
        Trained.open(local / "best.ckpt"),
    )
    items = item_vectors(trained, data)
    np.testing.assert_allclose(bundle.item_vectors, items, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(bundle.user_vectors, user_vectors(trained, data, items), rtol=0, atol=5 * CLOSE)


def test_a_worker_killed_goes_on_from_the_last_checkpoint(ray, config, shared, tmp_path, capsys):
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        """Ends one of our own workers once there is a checkpoint to go on from."""
        while not killed and not ended.wait(0.01):
            if (tmp_path / "run" / LOG).exists() and (tmp_path / "run" / LOG).read_text().count("\n") >= 3:
                workers = [pid for pid in descendants(os.getpid()) if "RayTrainWorker" in command_line(pid)]
                os.kill(workers[-1], signal.SIGKILL)
                killed.append(workers[-1])

    watch = threading.Thread(target=kill)
    watch.start()
    try:
        fit(config, tmp_path / "run", ray.cluster)
    finally:
        ended.set()
        watch.join()
    said = capsys.readouterr().out
    assert killed
    assert "failed" in said
    assert "going on from the last checkpoint, 3 more times at most" in said
    epochs = [int(line.split("/")[0].split()[1]) for line in said.splitlines() if line.startswith("epoch ")]
    assert len(epochs) < 2 * EPOCHS - 2  # it did not begin again
    assert epochs[-1] == EPOCHS
    for name in ("last.ckpt", "best.ckpt"):
        for key, weight in weights(shared, name).items():
            torch.testing.assert_close(weights(tmp_path / "run", name)[key], weight, rtol=0, atol=0)
    assert not (tmp_path / "run" / ".ray").exists()


def test_an_error_in_one_worker_is_told_and_does_not_hang_the_others(config, tmp_path, ray):
    failing = config | {"trainer": config["trainer"] | {"callbacks": [{"class_path": f"{__name__}.Failing"}]}}
    told = r"of 2 workers on this machine failed .*worker 1: RuntimeError\('the second worker has had enough'\)"
    with pytest.raises(ClusterError, match=told):
        fit(failing, tmp_path / "run", Cluster(max_failures=0, storage=str(tmp_path / "storage")))
    assert not list((tmp_path / "storage").iterdir())  # it was used, and cleared
    assert not (tmp_path / "run" / ".ray").exists()


def attempts_that_end_with(errors, monkeypatch):
    """Has every attempt of a fit end with these errors of its workers; returns what counts them."""
    from ray.train.v2.api.exceptions import WorkerGroupError

    made = []

    def attempt(*said):
        made.append(said)
        return WorkerGroupError("", errors)

    monkeypatch.setattr("recsys.cluster.fitting._attempt", attempt)
    return made


def test_what_a_worker_refuses_is_refused_at_once(config, tmp_path, ray, monkeypatch, capsys):
    # The first one only lost the second.
    made = attempts_that_end_with({0: RuntimeError("lost"), 1: ArtifactError("no such dataset")}, monkeypatch)
    with pytest.raises(ArtifactError, match=r"^no such dataset$"):
        fit(config, tmp_path / "run", ray.cluster)
    assert len(made) == 1
    assert "going on" not in capsys.readouterr().out


def test_a_worker_that_is_always_lost_is_given_up(config, tmp_path, ray, monkeypatch, capsys):
    made = attempts_that_end_with({1: RuntimeError("lost")}, monkeypatch)
    with pytest.raises(ClusterError, match=r"1 of 2 workers .*worker 1: RuntimeError\('lost'\)\); after 4 attempts"):
        fit(config, tmp_path / "run", ray.cluster)
    assert len(made) == 4
    assert capsys.readouterr().out.count("going on from the last checkpoint") == 3


def test_a_worker_without_the_dataset_says_what_is_needed(tmp_path, ray):
    told = (
        f"the worker on .* finds nothing at {tmp_path / 'x'}; a cluster's workers need it on storage that all of them"
    )
    with pytest.raises(ArtifactError, match=told):
        require(tmp_path, tmp_path / "x")


def test_vectors_made_by_workers_are_the_local_ones(ray, toy, toy_bundle):
    items, users = embed(toy.checkpoint, toy.dataset, ray.cluster)
    assert (items.dtype, users.dtype) == (np.float32, np.float32)
    alike(items, toy_bundle.item_vectors)
    alike(users, toy_bundle.user_vectors)


def test_nothing_of_ray_is_left(ray):
    assert any("raylet" in line for line in ray.left())
    ray.after.close()
    deadline = time.monotonic() + 20
    while ray.left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.left() == []
    assert "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER" not in os.environ


def test_a_stretch_of_rows_is_embedded_as_the_whole_is(shop, shop_bundle):
    data = Dataset.open(shop)
    trained = Trained.open(shop_bundle.path.parent / "run" / "best.ckpt")
    items = item_vectors(trained, data)
    alike(items, shop_bundle.item_vectors)
    for rows in (slice(0, 2), slice(2, None)):
        alike(item_vectors(trained, data, rows), items[rows])
        alike(user_vectors(trained, data, items, rows), shop_bundle.user_vectors[rows])


def test_what_ray_is_handed_knows_the_best_checkpoint_so_far():
    trainer: Any = pl.Trainer(callbacks=[ModelCheckpoint()], logger=False, accelerator="cpu")
    trainer.callbacks.append(ToRay())  # as a worker does
    ordered = _CallbackConnector._reorder_callbacks([*trainer.callbacks, Failing()])  # the model adds its own, like so
    assert [type(callback) for callback in ordered[-3:]] == [Failing, ModelCheckpoint, ToRay]


def test_paths_mean_the_same_in_a_worker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = _absolute({"data": {"dataset": Path("a/b")}, "ckpt_path": "run/x.ckpt", "warm_start": None, "out": "o"})
    assert said["data"]["dataset"] == str(tmp_path / "a" / "b")
    assert said["ckpt_path"] == str(tmp_path / "run" / "x.ckpt")
    assert said["warm_start"] is None
    assert _absolute({"ckpt_path": "last"}) == {"ckpt_path": "last"}


def test_a_wrong_setting_is_told_and_does_not_end_the_worker(config, tmp_path):
    (tmp_path / "fit.json").write_text(json.dumps(config | {"modle": 1}))
    with pytest.raises(Exception, match="modle"):
        run(["fit", "--config", str(tmp_path / "fit.json"), "--out", str(tmp_path)], WorkerCLI)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"workers": 0}, "cluster.workers is 0; it must be at least 1"),
        ({"max_failures": -1}, "cluster.max_failures is -1; it must be at least 0"),
        ({"gpus_per_worker": -1}, "cluster.gpus_per_worker is -1; it must be at least 0"),
        ({"cpus_per_worker": 0}, "cluster.cpus_per_worker is 0; it must be more than 0"),
        ({"address": "ray://head:10001"}, 'submit the command as a Ray job and say "auto"'),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(setting, words):
    with pytest.raises(ValueError, match=words):
        Cluster(**setting)
