"""Every byte of every file of a bundle turned, every file cut at every length: each refused with the file's name."""

import os
import shutil
from contextlib import contextmanager

import pytest
import yaml

from recsys.artifacts import ArtifactError, verify
from recsys.bundle import FORMAT_VERSION, KIND
from recsys.cli import main
from recsys.seal import seal
from tests.damage import copied


@pytest.fixture(scope="module")
def tiny(bare, tmp_path_factory):
    """A bundle of a few thousand bytes: every file that a bundle always has."""
    folder = tmp_path_factory.mktemp("tiny")
    config = {
        "trainer": {"max_epochs": 1, "logger": False, "precision": "32-true"},
        "data": {"dataset": str(bare), "split": {"class_path": "recsys.data.split.LeaveOneOut"}},
        "model": {"architecture": {"dimension": 4, "max_length": 4, "blocks": 1, "heads": 1}, "warmup_steps": 1},
        "out": str(folder / "run"),
    }
    (folder / "fit.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "fit.yaml")]) == 0
    seal(folder / "run" / "best.ckpt", bare, folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def mine(tiny, tmp_path_factory):
    """A copy that each test damages and mends again."""
    return copied(tiny, tmp_path_factory.mktemp("mine") / "bundle")


@pytest.fixture
def copy(tiny, tmp_path):
    return copied(tiny, tmp_path / "bundle")


FILES = [
    "history_items.npy", "index.faiss", "item_ids.arrow", "item_tower.safetensors", "item_vectors.npy", "manifest.json",
    "popularity.npy", "towers.json", "trained.npy", "user_ids.arrow", "user_offsets.npy", "user_tower.safetensors",
    "user_vectors.npy",
]  # fmt: skip


def refusal(bundle):
    """What is said against a bundle; nothing if it is taken for sound."""
    try:
        verify(bundle, KIND, FORMAT_VERSION)
    except ArtifactError as error:
        return str(error)
    return ""


@contextmanager
def opened(file):
    """A file to damage in place; whole again afterwards."""
    whole = file.read_bytes()
    handle = os.open(file, os.O_RDWR)
    try:
        yield handle, whole
    finally:
        os.close(handle)
        file.write_bytes(whole)


def test_all_files_of_a_bundle_are_tried(tiny):
    assert sorted(file.name for file in tiny.iterdir()) == FILES
    assert refusal(tiny) == ""


@pytest.mark.parametrize("name", FILES)
def test_every_byte_of_every_file_counts(mine, name):
    with opened(mine / name) as (handle, whole):
        unseen = []
        for place, byte in enumerate(whole):
            os.pwrite(handle, bytes([byte ^ 1 << place % 8]), place)
            if str(mine / name) not in refusal(mine):
                unseen.append(place)
            os.pwrite(handle, bytes([byte]), place)
        assert unseen == []
    assert refusal(mine) == ""


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_at_any_length_is_refused(mine, name):
    with opened(mine / name) as (handle, whole):
        unseen = []
        for length in reversed(range(len(whole))):
            os.ftruncate(handle, length)
            if str(mine / name) not in refusal(mine):
                unseen.append(length)
        assert unseen == []
    assert refusal(mine) == ""


def test_no_other_byte_will_do_in_a_manifest(mine):
    with opened(mine / "manifest.json") as (handle, whole):
        ends = [place for place, byte in enumerate(whole) if byte in b"\n {}:,"][::40]
        created, version = whole.index(b'"created"') + 14, whole.index(b'"code_version"') + 17
        checksum = whole.index(b'"checksum"')
        unseen = []
        for place in {0, created, version, checksum, checksum + 14, len(whole) - 2, len(whole) - 1, *ends}:
            for byte in set(range(256)) - {whole[place]}:
                os.pwrite(handle, bytes([byte]), place)
                if "manifest.json" not in refusal(mine):
                    unseen.append((place, byte))
            os.pwrite(handle, whole[place : place + 1], place)
        assert unseen == []
    assert refusal(mine) == ""


def test_whatever_is_appended_is_refused(mine):
    for name in FILES:
        for more in (b"\0", b"\n", b" "):
            with opened(mine / name) as (handle, whole):
                os.pwrite(handle, more, len(whole))
                assert str(mine / name) in refusal(mine)


def linked(file):
    file.rename(file.parent.parent / file.name)
    file.symlink_to(file.parent.parent / file.name)


def directory(file):
    file.unlink()
    file.mkdir()


def full_directory(file):
    directory(file)
    shutil.copy(__file__, file / "inner")


def pipe(file):
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [linked, directory, full_directory])
def test_what_is_no_plain_file_is_refused(copy, name, damage):
    damage(copy / name)
    assert str(copy / name) in refusal(copy)


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(copy):
    pipe(copy / "index.faiss")
    assert f"{copy / 'index.faiss'} is a link or a device" in refusal(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_gone_is_refused(copy, name):
    (copy / name).unlink()
    assert ("it has no manifest.json" if name == "manifest.json" else f"{copy / name} is missing") in refusal(copy)


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda path: (path / "verdict.json").write_text("{}"), "verdict.json is not in the manifest; a bundle holds"),
        (lambda path: (path / ".hidden").write_text(""), ".hidden is not in the manifest; a bundle holds nothing else"),
        (lambda path: (path / "plots").mkdir(), "plots is an empty directory, which no manifest vouches for; remove"),
        (lambda path: (path / "more" / "inner").mkdir(parents=True), "inner is an empty directory"),
        (lambda path: (path / "more").symlink_to(path), "more is a link or a device; an artefact holds plain files"),
        (lambda path: (path / "gone").symlink_to("nowhere"), "gone is a link or a device; an artefact holds plain"),
    ],
)
def test_whatever_is_added_is_refused(copy, add, message):
    add(copy)
    assert message in refusal(copy)
