"""Toy data whose answers are known by hand, and the whole way walked over it once for all tests.

Twelve items stand on a ring: whoever takes one takes the next one next. So after "i3" comes "i4", and after "i11" "i0".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from recsys.cli import main

RING = 12
USERS = 80
START = 1_700_000_000  # seconds; user u begins u hours later, and takes an item a minute


@dataclass(frozen=True)
class Toy:
    """Where the stages of the toy's way lie."""

    log: Path
    catalogue: Path
    dataset: Path
    checkpoint: Path
    evaluation: Path
    registry: Path


def ring_lengths() -> list[int]:
    """How many items each user took: 5 to 9."""
    return [5 + user % 5 for user in range(USERS)]


def walk(folder: Path) -> Toy:
    """Walks the toy by the commands that a person would type, but for serving."""
    rows = ["who,what,when"]
    for user, length in enumerate(ring_lengths()):
        rows += [f"u{user},i{(user + step) % RING},{START + 3600 * user + 60 * step}" for step in range(length)]
    rng = np.random.default_rng(0)
    order = [0, *(1 + rng.permutation(len(rows) - 1))]  # logs come in any order
    (folder / "log.csv").write_text("\n".join(rows[i] for i in order) + "\nu1,i3,yesterday\n")
    parities = [("even", "odd")[item % 2] for item in range(RING)]
    (folder / "items.csv").write_text(
        "\n".join(
            ["sku,title,parity,place,tags"]
            + [f"i{i},Item number {i},{parities[i]},{i},{parities[i]};ring" for i in range(RING)]
        )
        + "\nnew,Item never taken,odd,,odd;ring\n"
    )
    prepare = {
        "tables": {
            "class_path": "recsys.data.sources.Tables",
            "init_args": {
                "schema": {
                    "interactions": {"user": "who", "item": "what", "time": "when"},
                    "items": {
                        "id": "sku",
                        "features": {
                            "title": {"kind": "text", "show": True},
                            "parity": "categorical",
                            "place": "numeric",
                            "tags": {"kind": "multi", "separator": ";"},
                        },
                    },
                },
                "interactions": {
                    "class_path": "recsys.data.sources.Csv",
                    "init_args": {"path": str(folder / "log.csv")},
                },
                "items": {"class_path": "recsys.data.sources.Csv", "init_args": {"path": str(folder / "items.csv")}},
            },
        },
        "out": str(folder / "dataset"),
    }
    fit = {
        "trainer": {"max_epochs": 30, "check_val_every_n_epoch": 10, "logger": False, "precision": "32-true"},
        "data": {
            "dataset": str(folder / "dataset"),
            "split": {"class_path": "recsys.data.split.LeaveOneOut"},
            "batch_positions": 256,
        },
        "model": {
            "architecture": {"dimension": 16, "max_length": 8, "blocks": 1, "heads": 2, "dropout": 0.0},
            "learning_rate": 0.02,
            "warmup_steps": 5,
        },
        "out": str(folder / "run"),
    }
    for name, config in (("prepare", prepare), ("fit", fit)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
        assert main([name, "--config", str(folder / f"{name}.yaml")]) == 0
    toy = Toy(
        log=folder / "log.csv",
        catalogue=folder / "items.csv",
        dataset=folder / "dataset",
        checkpoint=folder / "run" / "best.ckpt",
        evaluation=folder / "evaluation.json",
        registry=folder / "registry",
    )
    made = ["--checkpoint", str(toy.checkpoint), "--dataset", str(toy.dataset)]
    assert main(["evaluate", *made, "--out", str(toy.evaluation)]) == 0
    seal = ["--evaluation", str(toy.evaluation), "--registry", str(toy.registry), "--promote", "--why", "the toy"]
    assert main(["bundle", "seal", *made, *seal]) == 0
    return toy
