"""The whole way with a sentence model: trained, sealed, opened where the model is, asked by text, else refused."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from recsys.artifacts import ArtifactError
from recsys.bundle import Bundle
from recsys.cli import main
from recsys.data import sentences
from recsys.recommender import Recommender
from recsys.seal import seal

pytest.importorskip("sentence_transformers", reason="pip install 'recsys[text]'")
ITEMS, USERS = 8, 24


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the model `encoder` and a sealed `bundle` that wants it."""
    folder = tmp_path_factory.mktemp("shop")
    spec = importlib.util.spec_from_file_location("tiny_model", Path(__file__).with_name("tiny_model.py"))
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(sentences.CACHE, str(folder / "cache"))
        walk(folder, tiny.write(folder / "encoder"))
    return folder


def walk(folder, encoder):
    log = [f"u{u},i{(u + n) % ITEMS},{1_700_000_000 + 3600 * u + 60 * n}" for u in range(USERS) for n in range(5)]
    (folder / "log.csv").write_text("\n".join(["who,what,when", *log]))
    titles = [f"i{n},{'abcdefgh'[n] * 4} thing" for n in range(ITEMS)]
    (folder / "items.csv").write_text("\n".join(["sku,title", *titles]) + "\n")
    csv = "recsys.data.sources.Csv"
    tables = {
        "schema": {
            "interactions": {"user": "who", "item": "what", "time": "when"},
            "items": {"id": "sku", "features": {"title": {"kind": "text", "model": str(encoder), "show": True}}},
        },
        "interactions": {"class_path": csv, "init_args": {"path": str(folder / "log.csv")}},
        "items": {"class_path": csv, "init_args": {"path": str(folder / "items.csv")}},
    }
    said = {"tables": {"class_path": "recsys.data.sources.Tables", "init_args": tables}, "out": str(folder / "dataset")}
    (folder / "prepare.yaml").write_text(yaml.safe_dump(said))
    assert main(["prepare", "--config", str(folder / "prepare.yaml")]) == 0
    fit(folder, "run")
    seal(folder / "run" / "best.ckpt", folder / "dataset", folder / "bundle")


def fit(folder, out, *more):
    given = ["fit", "--data.dataset", str(folder / "dataset"), "--out", str(folder / out)]
    given += ["--data.split", "LeaveOneOut", "--trainer.max_epochs", "4", "--trainer.logger", "false"]
    given += ["--trainer.precision", "32-true", "--model.architecture.dimension", "16"]
    given += ["--model.architecture.id_dropout", "0.5"]
    assert main([*given, *more]) == 0


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No vector is known, as on another machine."""
    monkeypatch.setenv(sentences.CACHE, str(tmp_path / "cache"))


def test_a_new_item_is_embedded_from_its_text(made):
    bundle = Bundle.open(made / "bundle")
    recommender = Recommender(bundle)
    found = recommender.similar(features={"title": "cccc thing"}, k=ITEMS)
    twin = int(bundle.item_ids.rows(["i2"])[0])
    vector = recommender.live.embedded({"title": "cccc thing"})
    other = recommender.live.embedded({"title": "zzzz qqqq"})
    assert np.linalg.norm(vector - other) > 1e-3
    # The text of i2 without its id: what its id adds is all that parts the two.
    assert vector.shape == bundle.item_vectors[twin].shape
    assert len(found.items) == ITEMS


def test_without_the_model_the_bundle_says_which_and_what_to_do(made, tmp_path, monkeypatch):
    moved = tmp_path / "kept" / "encoder"
    shutil.move(made / "encoder", moved)
    try:
        with pytest.raises(ArtifactError, match=r"'.*encoder' is not here: .* or let RECSYS_TEXT_MODELS"):
            Bundle.open(made / "bundle")
        monkeypatch.setenv(sentences.MODELS, str(moved.parent))
        Bundle.open(made / "bundle")
    finally:
        shutil.move(moved, made / "encoder")


def test_another_model_in_its_place_is_refused(made, tmp_path):
    weights = made / "encoder" / "model.safetensors"
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        with pytest.raises(ArtifactError, match=r"is another one \(.*\) than the towers were trained with"):
            Bundle.open(made / "bundle")
    finally:
        weights.write_bytes(kept)


def test_a_warm_start_goes_on_with_the_same_model(made):
    fit(made, "tonight", "--warm_start", str(made / "run" / "best.ckpt"))
