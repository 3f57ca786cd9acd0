"""Bundles: what is sealed opens, and each thing that makes one unfit is refused by name."""

import json
import shutil

import numpy as np
import pytest
import torch

from recsys.artifacts import ArtifactError, read_manifest
from recsys.bundle import Bundle
from recsys.data.dataset import Dataset
from recsys.data.prepare import prepare
from recsys.data.sources import Csv, Tables
from recsys.ids import IdMap
from recsys.index.build import build
from recsys.model.hstu import HSTU
from recsys.model.towers import ENCODERS
from recsys.seal import seal
from tests.damage import copied, flip, sealed_again, vouched
from tests.untrained import sealed_with

FILES = [
    "towers.json", "item_tower.safetensors", "user_tower.safetensors", "trained.npy", "item_vectors.npy",
    "user_vectors.npy", "index.faiss", "item_ids.arrow", "user_ids.arrow", "item_features.parquet", "user_offsets.npy",
    "history_items.npy", "history_times.npy", "popularity.npy",
]  # fmt: skip
MONTH = 30 * 24 * 3_600_000  # milliseconds
DATASET_FILES = [
    "user_offsets.npy", "items.npy", "times.npy", "item_ids.arrow", "user_ids.arrow", "item_features.parquet",
    "rejected.parquet",
]  # fmt: skip


@pytest.fixture
def copy(toy_bundle, tmp_path):
    return copied(toy_bundle.path, tmp_path / "bundle")


@pytest.fixture
def dataset_copy(toy, tmp_path):
    return copied(toy.dataset, tmp_path / "dataset")


def refused(path, message):
    with pytest.raises(ArtifactError, match=message) as refusal:
        Bundle.open(path)
    assert str(path) in str(refusal.value)


def test_a_bundle_holds_what_it_must_and_says_so(toy, toy_bundle):
    said = toy_bundle.manifest.content
    assert sorted(toy_bundle.manifest.files) == sorted(FILES)
    assert said["dataset"] == read_manifest(toy.dataset, "dataset", 1).digest
    assert (said["items"], said["users"], said["dimension"]) == (13, 80, 16)
    assert (said["metric"], said["unit"], said["dimensions"]) == ("inner product", False, [16])
    assert said["index"]["kind"] == "flat"
    assert said["index"]["recall@10"] == 1.0
    assert said["evaluation"] == json.loads(toy.evaluation.read_text())
    assert toy_bundle.about["bundle"] == toy_bundle.id


@pytest.mark.parametrize("name", FILES)
def test_one_bit_of_any_file_is_enough(copy, name):
    flip(copy / name)
    refused(copy, f"{name} does not match its sha256 in the manifest; restore it")


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_refused(copy, name):
    size = (copy / name).stat().st_size
    with open(copy / name, "rb+") as file:
        file.truncate(size - 1)
    refused(copy, f"{name} has {size - 1} bytes, the manifest says {size}; restore it")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(copy, name):
    (copy / name).unlink()
    refused(copy, f"{name} is missing; restore it")


def test_a_file_too_many_is_refused(copy):
    (copy / "notes.txt").write_text("!")
    refused(copy, "notes.txt is not in the manifest; a bundle holds nothing else, remove it")


def test_an_altered_manifest_is_refused(copy):
    text = (copy / "manifest.json").read_text()
    assert '"unit": false' in text
    (copy / "manifest.json").write_text(text.replace('"unit": false', '"unit": true'))
    refused(copy, "manifest.json was altered: its checksum does not match")


def test_another_format_is_refused(copy):
    refused(vouched(copy, format_version=2), "bundle format 2, this code reads 1")


def test_a_bundle_half_written_is_refused(copy):
    (copy / "manifest.json").unlink()
    refused(copy, "is not a bundle: it has no manifest.json; was the run that wrote it stopped?")


def test_something_else_is_refused(toy):
    refused(toy.dataset, "is a dataset, not a bundle; check the path")


@pytest.mark.parametrize(
    "name", ["item_tower.safetensors", "user_tower.safetensors", "item_vectors.npy", "index.faiss"]
)
def test_a_part_of_another_bundle_is_refused_by_its_digest(copy, stranger, name):
    shutil.copy(stranger / name, copy / name)
    refused(copy, f"{name} does not match its sha256")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["item_tower.safetensors"], "item_vectors.npy was not made by item_tower.safetensors: its vectors differ"),
        (["item_vectors.npy"], "item_vectors.npy was not made by item_tower.safetensors: its vectors differ"),
        (["item_vectors.npy", "index.faiss"], "item_vectors.npy was not made by item_tower.safetensors"),
        (["index.faiss"], "index.faiss was not built from item_vectors.npy: its vectors differ"),
        (["user_tower.safetensors"], "user_vectors.npy was not made by user_tower.safetensors: its vectors differ"),
        (["user_vectors.npy"], "user_vectors.npy was not made by user_tower.safetensors: its vectors differ"),
        (
            ["item_tower.safetensors", "item_vectors.npy", "index.faiss"],
            "user_vectors.npy was not made by user_tower.safetensors: its vectors differ",
        ),
    ],
)
def test_strangers_are_told_apart_even_when_the_manifest_vouches_for_them(copy, stranger, names, message):
    for name in names:
        shutil.copy(stranger / name, copy / name)
    refused(sealed_again(copy), message)


def test_a_bundle_sealed_again_with_its_own_parts_opens(copy, toy_bundle):
    assert Bundle.open(sealed_again(copy)).manifest.digest == toy_bundle.manifest.digest


def shuffled_ids(path, name):
    ids = IdMap.load(path / f"{name}.arrow").ids(np.random.default_rng(0).permutation(13 if name == "item_ids" else 80))
    (path / f"{name}.arrow").unlink()
    IdMap.of(ids).save(path / f"{name}.arrow")


@pytest.mark.parametrize("name", ["item_ids", "user_ids"])
@pytest.mark.parametrize("vouched", [False, True])
def test_a_shuffled_id_map_is_refused(copy, name, vouched):
    shuffled_ids(copy, name)
    if vouched:
        sealed_again(copy)
    message = (
        "is not the id map that these towers were trained on; seal again" if vouched else "does not match its sha256"
    )
    refused(copy, f"{name}.arrow {message}")


@pytest.mark.parametrize("name", ["item_vectors", "user_vectors"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_is_refused(copy, name, value):
    vectors = np.load(copy / f"{name}.npy")
    vectors[7, 3] = value
    np.save(copy / f"{name}.npy", vectors)
    refused(sealed_again(copy), f"{name}.npy is not finite at row 7; train again and seal")


def test_swapped_rows_of_vectors_and_index_are_refused(copy):
    vectors = np.load(copy / "item_vectors.npy")[::-1].copy()
    np.save(copy / "item_vectors.npy", vectors)
    (copy / "index.faiss").unlink()
    build(vectors).save(copy / "index.faiss")
    refused(sealed_again(copy), "item_vectors.npy was not made by item_tower.safetensors")


def test_an_index_of_fewer_items_is_refused(copy):
    (copy / "index.faiss").unlink()
    build(np.load(copy / "item_vectors.npy")[:9]).save(copy / "index.faiss")
    refused(sealed_again(copy), "index.faiss holds 9 vectors, expected 13; seal the bundle again")


def test_a_history_that_the_users_did_not_have_is_refused(copy):
    items = np.load(copy / "history_items.npy")
    np.save(copy / "history_items.npy", items[::-1])
    refused(sealed_again(copy), "user_vectors.npy was not made by user_tower.safetensors")


@pytest.mark.parametrize(
    ("name", "kept", "expected"),
    [
        ("item_vectors", 12, "13"), ("user_vectors", 79, "80"), ("user_offsets", 80, "81"),
        ("history_items", 500, "560"), ("history_times", 500, "560"), ("popularity", 12, "13"), ("trained", 12, "13"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_each_other_are_refused(copy, name, kept, expected):
    np.save(copy / f"{name}.npy", np.load(copy / f"{name}.npy")[:kept])
    refused(sealed_again(copy), rf"{name}.npy has {kept} rows, expected {expected}; seal again")


def test_weights_of_another_shape_are_refused(copy):
    said = json.loads((copy / "towers.json").read_text())
    said["config"]["architecture"]["dimension"] = 32
    (copy / "towers.json").write_text(json.dumps(said))
    refused(sealed_again(copy), "item_tower.safetensors is not the tower of towers.json")


def test_a_bundle_is_never_changed(toy, toy_bundle):
    with pytest.raises(ArtifactError, match="exists already and a bundle is never changed; choose another path"):
        seal(toy.checkpoint, toy.dataset, toy_bundle.path)


def test_sealing_again_gives_the_same_bundle(toy, toy_bundle, tmp_path):
    evaluation = json.loads(toy.evaluation.read_text())
    assert (
        seal(toy.checkpoint, toy.dataset, tmp_path / "again", evaluation=evaluation).digest
        == toy_bundle.manifest.digest
    )


def test_an_evaluation_of_another_checkpoint_is_refused(toy, tmp_path):
    evaluation = json.loads(toy.evaluation.read_text()) | {"checkpoint": "0" * 64}
    with pytest.raises(ArtifactError, match="the evaluation is of another checkpoint; run `recsys evaluate`"):
        seal(toy.checkpoint, toy.dataset, tmp_path / "bundle", evaluation=evaluation)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="session")
def other_dataset(tmp_path_factory):
    """One whose ids are others."""
    folder = tmp_path_factory.mktemp("other")
    rows = [f"u{user},x{(user + step) % 5},{step}" for user in range(9) for step in range(5)]
    (folder / "log.csv").write_text("\n".join(["user,item,time", *rows]))
    schema = {"interactions": {"user": "user", "item": "item", "time": "time"}}
    return prepare(Tables(schema, Csv(str(folder / "log.csv"))), folder / "dataset").path


def test_a_checkpoint_of_other_ids_is_refused(toy, other_dataset, tmp_path):
    with pytest.raises(ArtifactError, match=r"the checkpoint was trained on other item ids .*; its rows mean other"):
        seal(toy.checkpoint, other_dataset, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_a_training_that_diverged_is_not_sealed(toy, tmp_path):
    said = torch.load(toy.checkpoint, weights_only=True)
    said["state_dict"]["towers.item.sum.parts.0.weight"][3, 0] = torch.nan
    torch.save(said, tmp_path / "diverged.ckpt")
    with pytest.raises(ArtifactError, match=r"item_vectors.npy is not finite; did the training diverge"):
        seal(tmp_path / "diverged.ckpt", toy.dataset, tmp_path / "bundle")
    assert [file.name for file in tmp_path.iterdir()] == ["diverged.ckpt"]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, r"there is no checkpoint .*x.ckpt; run `recsys fit` first"),
        (lambda path: path.write_bytes(b"PK nonsense"), "x.ckpt is not a checkpoint of `recsys fit`"),
        (lambda path: torch.save({"state_dict": {}}, path), "x.ckpt is not a checkpoint of `recsys fit`"),
    ],
)
def test_what_is_no_checkpoint_is_refused(toy, tmp_path, write, message):
    write(tmp_path / "x.ckpt")
    with pytest.raises(ArtifactError, match=message):
        seal(tmp_path / "x.ckpt", toy.dataset, tmp_path / "bundle")


def test_a_bundle_says_which_prefixes_its_loss_trained(toy, toy_bundle, tmp_path):
    assert toy_bundle.about["dimensions"] == [16]
    said = torch.load(toy.checkpoint, weights_only=True)
    torch.save({**said, "dimensions": [16, 8]}, tmp_path / "cut.ckpt")
    assert seal(tmp_path / "cut.ckpt", toy.dataset, tmp_path / "bundle").content["dimensions"] == [16, 8]


@pytest.mark.parametrize("name", DATASET_FILES)
def test_one_bit_of_any_file_of_a_dataset_is_enough(toy, dataset_copy, tmp_path, name):
    flip(dataset_copy / name)
    for refusing in (lambda: Dataset.open(dataset_copy), lambda: seal(toy.checkpoint, dataset_copy, tmp_path / "b")):
        with pytest.raises(ArtifactError, match=f"{name} does not match its sha256"):
            refusing()


def test_the_files_of_a_dataset_are_all_tried(toy):
    assert sorted(read_manifest(toy.dataset, "dataset", 1).files) == sorted(DATASET_FILES)


def test_vectors_of_users_and_histories_agree(toy_bundle):
    for user in (0, 17, 79):
        np.testing.assert_allclose(toy_bundle.embed_user(user), toy_bundle.user_vectors[user], atol=1e-5)
        seen = toy_bundle.seen(user).astype(np.int64)
        times = toy_bundle.history_times[toy_bundle.user_offsets[user] : toy_bundle.user_offsets[user + 1]]
        np.testing.assert_allclose(toy_bundle.embed_user(None, seen, times), toy_bundle.user_vectors[user], atol=1e-5)
        # A part of it known and the rest told makes no difference, nor does what is too long ago to count.
        long_ago = np.concatenate([np.zeros(30, dtype=np.int64), seen])
        then = np.concatenate([np.full(30, times[0] - 1), times])
        expected = toy_bundle.embed_user(None, long_ago[-8:], then[-8:])
        np.testing.assert_allclose(toy_bundle.embed_user(None, long_ago, then), expected, atol=1e-6)


@pytest.mark.parametrize("query_time", [True, False])
@pytest.mark.parametrize("kind", ENCODERS, ids=[kind.__name__ for kind in ENCODERS])
def test_whatever_reads_histories_is_sealed_and_opened(toy, tmp_path, kind, query_time):
    bundle = sealed_with(toy, tmp_path, encoder=kind, query_time=query_time)  # opening compares vectors of some users
    said = json.loads((bundle.path / "towers.json").read_text())["config"]["architecture"]
    assert (said["encoder"], said["query_time"]) == (kind.__name__, query_time)
    assert type(bundle.towers.user.encoder) is kind
    moved = []
    for user in (0, 17, 79):  # stored as soon as they took their last item
        last = int(bundle.history_times[bundle.user_offsets[user + 1] - 1])
        stored = bundle.user_vectors[user]
        np.testing.assert_allclose(bundle.embed_user(user), stored, atol=1e-5)
        np.testing.assert_allclose(bundle.embed_user(user, asked=last), stored, atol=1e-5)
        later = bundle.embed_user(user, asked=last + MONTH)
        moved.append(not np.allclose(later, stored, atol=1e-3))
    assert any(moved) == query_time


@pytest.mark.parametrize("query_time", [True, False])
def test_users_that_another_tower_embedded_are_refused_whatever_reads_histories(toy, tmp_path, query_time):
    bundle = sealed_with(toy, tmp_path, encoder=HSTU, query_time=query_time)
    shifted = np.load(bundle.path / "user_vectors.npy")
    for user in range(len(shifted)):  # as if sealing had asked a month later, or of somebody else
        last = int(bundle.history_times[bundle.user_offsets[user + 1] - 1])
        other = user if query_time else (user + 1) % len(shifted)
        shifted[user] = bundle.embed_user(other, asked=last + MONTH)
    np.save(bundle.path / "user_vectors.npy", shifted)
    sealed_again(bundle.path)
    refused(bundle.path, "user_vectors.npy was not made by user_tower.safetensors")
