"""Bundles that open, and are wrong all the same, in ways that only a doctor sees."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from recsys.bundle import Bundle
from recsys.data.dataset import Dataset
from recsys.data.split import Split
from recsys.evaluate.ranking import evaluate
from recsys.evaluate.report import to_json
from recsys.explore.dial import scorer_of
from recsys.explore.space import Space
from recsys.ids import IdMap
from recsys.model.embed import Trained
from recsys.seal import seal
from tests.damage import copied, sealed_again


def collapsed(checkpoint: Path, dataset: Path, folder: Path, directions: int = 2) -> Path:
    """A bundle whose towers answer within so few directions of their space."""
    towers, said = Trained.open(checkpoint).towers, torch.load(checkpoint, weights_only=True)
    size = towers.architecture.dimension
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((size, directions)))[0]
    towers.rotate(axes @ axes.T)
    weights = {f"towers.{name}": weight for name, weight in towers.state_dict().items()}
    torch.save({**said, "towers": towers.config(), "state_dict": weights}, folder / "collapsed.ckpt")
    seal(folder / "collapsed.ckpt", dataset, folder / "collapsed")
    return folder / "collapsed"


def with_shuffled_ids(bundle: Path, folder: Path) -> Path:
    """The same bundle, in which every item goes by another one's id."""
    copy = copied(bundle, folder / "shuffled-ids")
    ids = IdMap.load(bundle / "item_ids.arrow").array
    shuffled = IdMap(ids.take(pa.array(np.roll(np.arange(len(ids)), 5))))
    (copy / "item_ids.arrow").unlink()
    shuffled.save(copy / "item_ids.arrow")
    said = json.loads((copy / "towers.json").read_text())
    (copy / "towers.json").write_text(json.dumps(said | {"item_ids": shuffled.digest}))
    return sealed_again(copy, item_ids=shuffled.digest)


def with_shuffled_histories(bundle: Path, folder: Path) -> Path:
    """The same bundle, in which every history speaks of other rows, and users are embedded from these."""
    copy = copied(bundle, folder / "shuffled-histories")
    opened = Bundle.open(bundle)
    other = np.random.default_rng(0).permutation(len(opened.item_ids)).astype(opened.history_items.dtype)
    history = other[opened.history_items]
    np.save(copy / "history_items.npy", history)
    wrong = replace(opened, history_items=history)
    users = np.array(opened.user_vectors)
    for user in np.flatnonzero(np.diff(opened.user_offsets)):
        users[user] = wrong.embed_user(int(user))
    np.save(copy / "user_vectors.npy", users)
    return sealed_again(copy)


def evaluated_on(bundle: Path, dataset: Path, split: Split, folder: Path) -> Path:
    """The same bundle, evaluated under another split than it was trained under: what it tests was learnt, in part."""
    copy = copied(bundle, folder / "leaked")
    opened, data = Bundle.open(bundle), Dataset.open(dataset)
    scorer = scorer_of(Space.of(opened), data)
    found = evaluate(scorer, data, split.cut(data), "test", split=split, max_queries=200)
    said = {"checkpoint": opened.manifest.content["checkpoint"]}
    return sealed_again(copy, evaluation=said | {"results": json.loads(to_json({"two towers": found}))})
