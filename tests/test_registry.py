"""The registry: what is live, what was, and that nothing unfit ever is."""

import json
import shutil
import threading
import uuid

import numpy as np
import pytest

from recsys.artifacts import ArtifactError, Manifest, read_manifest
from recsys.bundle import Bundle, bundle_id
from recsys.registry import Promotion, Registry
from recsys.seal import seal
from tests.damage import flip, sealed_again


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["folder", "s3", "memory"])
def anywhere(request, tmp_path):
    """An empty registry in a folder, on S3 behind real HTTP, and in fsspec's memory."""
    if request.param == "folder":
        return Registry(tmp_path / "registry")
    name = uuid.uuid4().hex
    server = request.getfixturevalue("s3").address if request.param == "s3" else "memory:/"
    return Registry(f"{server}/{name}/registry")


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "registry")


@pytest.fixture
def two_anywhere(anywhere, toy_bundle, stranger):
    """A registry with two bundles, none of them live, and their ids."""
    return anywhere, *(added(anywhere, path) for path in (toy_bundle.path, stranger))


@pytest.fixture
def two(registry, toy_bundle, stranger):
    """A registry with two bundles, none of them live, and their ids."""
    return registry, *(added(registry, path) for path in (toy_bundle.path, stranger))


def added(registry, bundle):
    return registry.publish(lambda path: read_manifest(shutil.copytree(bundle, path), "bundle", 1))


def test_a_new_registry_is_empty(anywhere):
    registry = anywhere
    assert registry.previous is None
    assert (registry.bundles(), registry.current, registry.log()) == ([], None, [])
    with pytest.raises(ArtifactError, match=r"no bundle is live in .*registry; run `recsys bundle promote` first"):
        registry.open_current()
    with pytest.raises(
        ArtifactError, match=r"no bundle was live in .*registry before None; there is nothing to go back"
    ):
        registry.rollback(why="")


def test_publishing_makes_nothing_live(two_anywhere):
    registry, a, b = two_anywhere
    assert registry.bundles() == sorted([a, b])
    assert registry.current is None
    assert registry.manifest(a).kind == "bundle"
    assert len(registry.verify(b).files) > 10
    assert registry.log() == []


def test_publishing_leaves_nothing_but_bundles(two):
    registry, a, b = two
    assert [entry.name for entry in registry.path.iterdir()] == ["bundles"]
    assert sorted(entry.name for entry in (registry.path / "bundles").iterdir()) == sorted([a, b])


def test_what_fails_to_be_written_is_not_published(registry, toy, toy_bundle):
    evaluation = {"checkpoint": "another"}
    with pytest.raises(ArtifactError, match="the evaluation is of another checkpoint"):
        registry.publish(lambda path: seal(toy.checkpoint, toy.dataset, path, evaluation=evaluation))
    assert registry.bundles() == []


def test_promotion_and_rollback_are_logged(two_anywhere):
    registry, a, b = two_anywhere
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
    assert json.loads(registry.store.read("CURRENT")) == vars(log[-1])
    assert Registry(registry.address).log() == log


@pytest.fixture
def quick(anywhere, monkeypatch):
    """A registry of bundles a to e that takes each for sound: only the order of promotions matters."""
    monkeypatch.setattr(Registry, "verify", lambda self, bundle: None)
    monkeypatch.setattr(Bundle, "open", classmethod(lambda cls, path: None))
    monkeypatch.setattr(Registry, "bundle_path", lambda self, bundle: None)
    for name in "abcde":
        anywhere.store.write(f"bundles/{name}/manifest.json", name)
    return anywhere


def test_each_rollback_goes_one_further_back_and_never_forth(quick):
    for bundle in ("a", "b", "b", "c"):
        quick.promote(bundle, why="")
    assert quick.previous == "b"
    assert [quick.rollback(why="").bundle for _ in range(2)] == ["b", "a"]
    assert quick.previous is None
    with pytest.raises(ArtifactError, match="before a; there is nothing to go back to"):
        quick.rollback(why="")
    assert quick.current == "a"


def test_after_a_rollback_a_new_promotion_goes_back_to_what_it_replaced(quick):
    for step in ("a", "b", None, "c", None):
        quick.promote(step, why="") if step else quick.rollback(why="")
    assert quick.current == "a"
    assert [said.bundle for said in quick.log()] == ["a", "b", "a", "c", "a"]


def stopped(registry, monkeypatch, act):
    """An act that is stopped when it is written down but has not taken effect."""

    def stop(name, text):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry.store, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            act()


def test_a_promotion_that_was_written_down_but_stopped_did_not_happen(quick, monkeypatch):
    for bundle in ("a", "b"):
        quick.promote(bundle, why="")
    stopped(quick, monkeypatch, lambda: quick.promote("c", why=""))
    assert (quick.current, quick.previous) == ("b", "a")
    quick.promote("d", why="")
    assert quick.previous == "b"
    assert [said.bundle for said in quick.log()] == ["a", "b", "c", "d"]
    assert [quick.rollback(why="").bundle for _ in range(2)] == ["b", "a"]


def test_a_rollback_that_was_written_down_but_stopped_did_not_happen(quick, monkeypatch):
    for bundle in ("a", "b", "c"):
        quick.promote(bundle, why="")
    stopped(quick, monkeypatch, lambda: quick.rollback(why=""))
    assert (quick.current, quick.previous) == ("c", "b")
    assert [quick.rollback(why="").bundle for _ in range(2)] == ["b", "a"]


def test_a_promotion_that_cannot_be_written_down_does_not_happen(quick, monkeypatch):
    quick.promote("a", why="")
    monkeypatch.setattr(quick.store, "create", lambda name, text: False)
    with pytest.raises(ArtifactError, match="log took none of 100 entries; can it be written and listed"):
        quick.promote("b", why="")
    assert quick.current == "a"


def test_no_entry_is_lost_when_two_promote_at_once(quick, monkeypatch):
    quick.promote("a", why="")
    create, others = quick.store.create, ["b", "c"]

    def slower(name, text):
        if others:  # another one comes between looking for a number and taking it
            Registry(quick.address).promote(others.pop(), why="faster")
        return create(name, text)

    monkeypatch.setattr(quick.store, "create", slower)
    said = quick.promote("d", why="")
    assert [(one.bundle, one.instead_of) for one in quick.log()] == [("a", None), ("c", "a"), ("b", "c"), ("d", "b")]
    assert (quick.current, quick.previous, said.instead_of) == ("d", "b", "b")


@pytest.mark.parametrize("winner", ["b", "c"])
def test_of_two_promotions_at_once_the_last_one_is_live_and_a_rollback_undoes_it(quick, winner):
    quick.promote("a", why="")
    entries = [Promotion(bundle, "a", "promote", "now", "me", "") for bundle in ("b", "c")]
    for number, said in enumerate(entries, 2):
        assert quick.store.create(f"log/{number:08}.json", json.dumps(vars(said)))
    quick.store.write("CURRENT", json.dumps(vars(entries["bc".index(winner)])))
    assert (quick.current, quick.previous) == (winner, "a")
    assert quick.rollback(why="").bundle == "a"


def test_going_back_passes_over_what_is_gone(quick):
    for bundle in ("a", "b", "c"):
        quick.promote(bundle, why="")
    quick.store.remove("bundles/b")
    assert quick.previous == "a"
    assert quick.rollback(why="").bundle == "a"


@pytest.mark.parametrize("anywhere", ["folder", "memory"], indirect=True)
@pytest.mark.parametrize(
    ("promoted", "keep", "left"),
    [
        ("", 5, "abcde"), ("", 9, "abcde"), ("", 2, "de"), ("", 0, ""),
        ("e", 1, "e"), ("ae", 1, "ae"), ("ab", 0, "ab"), ("ab", 2, "abde"), ("ba", 1, "abe"), ("abcde", 0, "de"),
        ("ab-c", 0, "ac"), ("abc-", 0, "ab"), ("abb", 0, "ab"), ("abcd--", 1, "abe"),
    ],
)  # fmt: skip
def test_pruning_keeps_the_newest_the_live_and_the_one_to_go_back_to(quick, promoted, keep, left):
    for bundle in promoted:
        quick.rollback(why="") if bundle == "-" else quick.promote(bundle, why="")
    current, previous, before = quick.current, quick.previous, len(quick.log())
    gone = [bundle for bundle in "abcde" if bundle not in left]
    assert quick.prune(keep, dry_run=True) == gone
    assert quick.bundles() == list("abcde")
    assert quick.prune(keep, why="old") == gone
    assert quick.bundles() == list(left)
    assert (quick.current, quick.previous) == (current, previous)
    removals = quick.log()[before:]
    assert [(said.action, said.bundle, said.instead_of, said.why) for said in removals] == [
        ("prune", bundle, None, "old") for bundle in gone
    ]
    assert quick.prune(keep) == []
    quick.promote(quick.bundles()[-1], why="") if left else None


def test_pruning_is_the_same_anywhere(quick):
    for bundle in "ab":
        quick.promote(bundle, why="")
    assert quick.prune(1) == ["c", "d"]
    assert quick.bundles() == ["a", "b", "e"]
    quick.promote("e", why="")
    assert [quick.rollback(why="").bundle for _ in range(2)] == ["b", "a"]


def test_pruning_refuses_a_negative_number_and_a_torn_current(quick):
    with pytest.raises(ValueError, match="keep must be 0 or more, got -1"):
        quick.prune(-1)
    quick.store.write("CURRENT", "{")
    with pytest.raises(ArtifactError, match="CURRENT cannot be read"):
        quick.prune(1)
    assert quick.bundles() == list("abcde")


def test_a_bundle_promoted_while_it_is_pruned_stays(quick, monkeypatch):
    quick.promote("e", why="")
    remove = quick.store.remove

    def slower(name, unless):
        if name == "bundles/b":
            Registry(quick.address).promote("b", why="just now")
        return remove(name, unless)

    monkeypatch.setattr(quick.store, "remove", slower)
    assert quick.prune(1) == ["a", "c", "d"]
    assert (quick.current, quick.bundles()) == ("b", ["b", "e"])


@pytest.mark.parametrize("live", ["e", None])
def test_a_bundle_pruned_while_it_is_promoted_does_not_go_live(quick, monkeypatch, live):
    if live:
        quick.promote(live, why="")
    create = quick.store.create

    def slower(name, text):
        assert Registry(quick.address).store.remove("bundles/b")
        return create(name, text)

    monkeypatch.setattr(quick.store, "create", slower)
    with pytest.raises(ArtifactError, match=r"b was pruned from .* while it was promoted; promote another one"):
        quick.promote("b", why="")
    assert quick.current == live


def test_a_killed_removal_leaves_nothing_that_looks_whole_and_is_finished_later(two, monkeypatch):
    registry, a, b = two
    monkeypatch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        registry.prune(1)
    assert registry.bundles() == [max(a, b)]
    monkeypatch.undo()
    assert len(list((registry.path / "bundles").iterdir())) == 2
    registry.prune(1)
    assert [entry.name for entry in (registry.path / "bundles").iterdir()] == [max(a, b)]


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
    registry.store.write("CURRENT", text)
    with pytest.raises(ArtifactError, match=r"CURRENT cannot be read .*; promote a bundle again"):
        registry.open_current()
    assert registry.promote(a, why="").instead_of == a
    assert registry.current == a


def test_a_torn_entry_of_the_log_is_named(quick):
    quick.promote("a", why="")
    quick.store.write("log/00000002.json", '{"bundle": "b", "inst')
    with pytest.raises(ArtifactError, match=r"log/00000002.json cannot be read .*; remove it"):
        quick.log()


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


def test_the_same_bundle_published_twice_is_refused(two_anywhere, toy_bundle):
    registry, a, b = two_anywhere
    with pytest.raises(ArtifactError, match=f"has bundle {a} already"):
        added(registry, toy_bundle.path)
    assert registry.bundles() == sorted([a, b])


def test_promotions_are_plain_records():
    said = Promotion("a", None, "promote", "now", "me", "")
    assert Promotion(**json.loads(json.dumps(vars(said)))) == said


def test_a_registry_at_an_address_has_no_folder_but_copies(s3, toy_bundle):
    registry = Registry(f"{s3.address}/{uuid.uuid4().hex}")
    a = added(registry, toy_bundle.path)
    with pytest.raises(ArtifactError, match=r"s3://bucket/\w+ is not a folder; ask `bundle_path` for a copy"):
        _ = registry.path
    registry.promote(a, why="")
    opened = Registry(registry.address).open_current()
    assert (opened.id, opened.path) == (a, registry.bundle_path(a))
    np.testing.assert_array_equal(opened.item_vectors, toy_bundle.item_vectors)


@pytest.mark.parametrize("act", ["promote", "rollback"])
def test_what_was_damaged_at_an_address_does_not_go_live_whatever_copies_say(s3, toy_bundle, stranger, act):
    registry = Registry(f"{s3.address}/{uuid.uuid4().hex}")
    a, b = (added(registry, path) for path in (toy_bundle.path, stranger))
    for bundle in (a, b):
        registry.promote(bundle, why="")
    registry.store.write(f"bundles/{a}/popularity.npy", "x" * 180)
    with pytest.raises(
        ArtifactError, match=rf"{registry.address}/bundles/{a}/popularity.npy does not match its sha256"
    ):
        registry.promote(a, why="") if act == "promote" else registry.rollback(why="")
    assert registry.current == b
