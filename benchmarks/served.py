"""What benchmarks of the service measure it on: a registry of no matter, and the application without Ray."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any


def synthetic_registry(folder: Path, trainings: int = 1, *, users: int = 6_000, items: int = 3_700) -> Path:
    """A registry with bundles of MovieLens's size, or of another.

    What they recommend is of no matter here, so two steps train each.

    Args:
        folder: where to make it.
        trainings: how many bundles, each of another training; the last one is live.
        users: how many there are at most.
        items: how many there are at most.
    """
    import pytorch_lightning as pl

    from recsys.data.module import HistoryData
    from recsys.data.prepare import prepare
    from recsys.data.synthetic import Synthetic
    from recsys.model.two_tower import TwoTower
    from recsys.registry import Registry
    from recsys.seal import seal

    shop = Synthetic(users=users, items=items, interactions=50 * users)
    prepare(shop, folder / "dataset", max_rejected=0.5)
    registry = Registry(folder / "registry")
    for training in range(trainings):
        pl.seed_everything(training, verbose=False)
        data = HistoryData(folder / "dataset")
        model = TwoTower(data.num_items, data.item_inputs, data.user_inputs, data.num_events, data.has_times)
        trainer = pl.Trainer(
            max_steps=2,
            limit_val_batches=0,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)
        checkpoint = folder / f"model-{training}.ckpt"
        trainer.save_checkpoint(checkpoint)
        bundle = registry.publish(functools.partial(seal, checkpoint, folder / "dataset"))
        registry.promote(bundle, why="a benchmark")
    return registry.path


def lean(registry: str) -> Any:
    """The service's own application, without Ray."""
    from serve.asgi import Application
    from serve.opening import open_current
    from serve.schemas import Limits
    from serve.service import Service

    return Application(Service(Limits(), open_current(registry)))


def serve_uvicorn(build: Any, registry: str, port: int) -> None:
    """Runs an ASGI application in one process under uvicorn."""
    import uvicorn

    from serve.opening import settle

    settle()
    uvicorn.run(build(registry), host="127.0.0.1", port=port, access_log=False, log_level="error")
