"""The registry: what is live, what was, and that nothing unfit ever is."""

import json
import shutil
import threading

import numpy as np
import pytest

from recsys import registry as registry_module
from recsys.artifacts import ArtifactError, Manifest, read_manifest
from recsys.bundle import Bundle, bundle_id
from recsys.registry import Promotion, Registry
from recsys.seal import seal
from tests.damage import flip, sealed_again


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "registry")


@pytest.fixture
def two(registry, toy_bundle, stranger):
    """A registry with two bundles, none of them live, and their ids."""
    return registry, *(added(registry, path) for path in (toy_bundle.path, stranger))


def added(registry, bundle):
    return registry.publish(lambda path: read_manifest(shutil.copytree(bundle, path), "bundle", 1))


def test_a_new_registry_is_empty(registry):
    assert (registry.bundles(), registry.current, registry.log()) == ([], None, [])
    with pytest.raises(ArtifactError, match=r"no bundle is live in .*registry; run `recsys bundle promote` first"):
        registry.open_current()
    with pytest.raises(
        ArtifactError, match=r"no bundle was live in .*registry before None; there is nothing to go back"
    ):
        registry.rollback(why="")


def test_publishing_makes_nothing_live(two):
    registry, a, b = two
    assert registry.bundles() == sorted([a, b])
    assert registry.current is None
    assert registry.manifest(a).kind == "bundle"
    assert len(registry.verify(b).files) > 10
    assert [entry.name for entry in registry.path.iterdir()] == ["bundles"]


def test_what_fails_to_be_written_is_not_published(registry, toy, toy_bundle):
    evaluation = {"checkpoint": "another"}
    with pytest.raises(ArtifactError, match="the evaluation is of another checkpoint"):
        registry.publish(lambda path: seal(toy.checkpoint, toy.dataset, path, evaluation=evaluation))
    assert registry.bundles() == []


def test_promotion_and_rollback_are_logged(two):
    registry, a, b = two
    registry.promote(a, why="first")
    registry.promote(b, why="better")
    registry.rollback(why="it was not")
    assert registry.current == a
    assert registry.open_current().id == a
    log = registry.log()
    assert [(said.bundle, said.instead_of, said.action, said.why) for said in log] == [
        (a, None, "promote", "first"),
        (b, a, "promote", "better"),
        (a, b, "rollback", "it was not"),
    ]
    assert all(said.who and said.when.endswith("+00:00") for said in log)
    assert json.loads((registry.path / "CURRENT").read_text()) == vars(log[-1])


def quick(registry, monkeypatch):
    """A registry that takes any name for a sound bundle: only the order of promotions matters."""
    monkeypatch.setattr(Registry, "verify", lambda self, bundle: None)
    monkeypatch.setattr(Bundle, "open", classmethod(lambda cls, path: None))
    monkeypatch.setattr(Registry, "bundle_path", lambda self, bundle: self.path / bundle)
    registry.path.mkdir()
    return registry


def test_each_rollback_goes_one_further_back_and_never_forth(registry, monkeypatch):
    registry = quick(registry, monkeypatch)
    for bundle in ("a", "b", "b", "c"):
        registry.promote(bundle, why="")
    assert [registry.rollback(why="").bundle for _ in range(2)] == ["b", "a"]
    with pytest.raises(ArtifactError, match="before a; there is nothing to go back to"):
        registry.rollback(why="")
    assert registry.current == "a"


def test_after_a_rollback_a_new_promotion_goes_back_to_what_it_replaced(registry, monkeypatch):
    registry = quick(registry, monkeypatch)
    for step in ("a", "b", None, "c", None):
        registry.promote(step, why="") if step else registry.rollback(why="")
    assert registry.current == "a"
    assert [said.bundle for said in registry.log()] == ["a", "b", "a", "c", "a"]


def test_a_promotion_that_was_written_down_but_stopped_did_not_happen(registry, monkeypatch):
    registry = quick(registry, monkeypatch)
    for bundle in ("a", "b"):
        registry.promote(bundle, why="")

    def stop(path, text):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry_module, "write_durably", stop)
        with pytest.raises(KeyboardInterrupt):
            registry.promote("c", why="")
    assert registry.current == "b"
    assert registry.rollback(why="").bundle == "a"


def test_a_promotion_that_cannot_be_written_down_does_not_happen(registry, monkeypatch):
    registry = quick(registry, monkeypatch)
    registry.promote("a", why="")
    (registry.path / "log.jsonl").unlink()
    (registry.path / "log.jsonl").mkdir()
    with pytest.raises(IsADirectoryError):
        registry.promote("b", why="")
    assert registry.current == "a"


def damaged(registry, bundle):
    flip(registry.bundle_path(bundle) / "item_vectors.npy")


def poisoned(registry, bundle):
    """Its manifest agrees, but a vector is not finite."""
    file = registry.bundle_path(bundle) / "item_vectors.npy"
    vectors = np.load(file)
    vectors[0] = np.nan
    np.save(file, vectors)
    sealed_again(registry.bundle_path(bundle))
    renamed = bundle_id(registry.manifest(bundle))
    registry.bundle_path(bundle).rename(registry.path / "bundles" / renamed)
    return renamed


@pytest.mark.parametrize(
    ("damage", "message"),
    [(damaged, r"item_vectors.npy does not match its sha256"), (poisoned, r"item_vectors.npy is not finite at row 0")],
)
def test_a_promotion_that_fails_leaves_the_live_one(two, damage, message):
    registry, a, b = two
    registry.promote(a, why="good")
    b = damage(registry, b) or b
    with pytest.raises(ArtifactError, match=message):
        registry.promote(b, why="bad")
    assert registry.current == a
    assert len(registry.log()) == 1
    assert registry.open_current().id == a


def test_a_rollback_to_what_was_damaged_since_leaves_the_live_one(two):
    registry, a, b = two
    registry.promote(a, why="")
    registry.promote(b, why="")
    damaged(registry, a)
    with pytest.raises(ArtifactError, match=r"item_vectors.npy does not match its sha256"):
        registry.rollback(why="")
    assert registry.current == b


@pytest.mark.parametrize("name", ["nonsense", "../../elsewhere", ""])
def test_an_unknown_bundle_is_refused_with_those_there_are(two, name):
    registry, a, b = two
    for ask in (registry.manifest, registry.verify, lambda bundle: registry.promote(bundle, why="")):
        with pytest.raises(ArtifactError, match=f"has no bundle '{name}'; it has: {min(a, b)}, {max(a, b)}"):
            ask(name)


def test_a_bundle_under_another_name_is_refused(two):
    registry, a, _ = two
    registry.bundle_path(a).rename(registry.path / "bundles" / "mine")
    with pytest.raises(ArtifactError, match=f"mine holds bundle {a}; rename it to that"):
        registry.promote("mine", why="")


@pytest.mark.parametrize("text", ["{", "", "\N{NUL}", "null", "{}"])
def test_a_torn_current_is_refused_and_mended_by_promoting(two, text):
    registry, a, _ = two
    registry.promote(a, why="")
    (registry.path / "CURRENT").write_text(text)
    with pytest.raises(ArtifactError, match=r"CURRENT cannot be read .*; promote a bundle again"):
        registry.open_current()
    registry.promote(a, why="")
    assert registry.current == a


def test_a_torn_line_of_the_log_is_named(registry, monkeypatch):
    registry = quick(registry, monkeypatch)
    registry.promote("a", why="")
    with open(registry.path / "log.jsonl", "a") as file:
        file.write('{"bundle": "b", "inst')
    with pytest.raises(ArtifactError, match=r"line 2 of .*log.jsonl cannot be read .*; remove it"):
        registry.log()


def test_readers_never_see_half_a_promotion(two):
    registry, a, b = two
    registry.promote(a, why="")
    seen, wrong, done = set(), [], threading.Event()

    def read():
        reader = Registry(registry.path)
        while not done.is_set():
            try:
                seen.add(reader.current)
            except Exception as error:  # whatever it is, a reader must not meet it
                wrong.append(error)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for turn in range(30):
        registry._make_live((a, b)[turn % 2], "promote", "")
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert seen == {a, b}


def test_ids_sort_by_when_they_were_sealed(tmp_path, stranger):
    def sealed_at(moment):
        return bundle_id(Manifest("bundle", 1, "f" * 64 if "58" in moment else "0" * 64, moment, "", {}, {}))

    moments = [f"2026-11-22T{time}+00:00" for time in ("09:59:58.999", "09:59:59.000", "09:59:59.001", "10:00:00.000")]
    ids = [sealed_at(moment) for moment in moments]
    assert ids == sorted(ids)
    assert ids[0] == "20261122T095958999-ffffffffffff"
    manifest = read_manifest(stranger, "bundle", 1)
    assert (
        bundle_id(manifest) == f"{''.join(c for c in manifest.created[:23] if c not in '-:.')}-{manifest.digest[:12]}"
    )


def test_the_same_bundle_published_twice_is_refused_and_leaves_no_draft(two, toy_bundle):
    registry, a, b = two
    with pytest.raises(ArtifactError, match=f"has bundle {a} already"):
        added(registry, toy_bundle.path)
    assert registry.bundles() == sorted([a, b])
    assert not [entry for entry in (registry.path / "bundles").iterdir() if entry.name.startswith(".")]


def test_promotions_are_plain_records():
    said = Promotion("a", None, "promote", "now", "me", "")
    assert Promotion(**json.loads(json.dumps(vars(said)))) == said
