"""`recsys adapt`: pairs by hand on a toy log, nothing of the held-out parts, and an encoder that learns them."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.adapt import tuning
from recsys.adapt.pairs import Mining, mined, pointwise_information, together
from recsys.adapt.tuning import Learning, adapt, contrast, false_negatives
from recsys.artifacts import ArtifactError, read_manifest
from recsys.cli import main
from recsys.data import sentences
from recsys.data.dataset import Dataset
from recsys.data.prepare import prepare
from recsys.data.schema import Entity, Feature, Interactions, Schema
from recsys.data.sentences import SentenceModel, digest_of_model
from recsys.data.sources import Csv, Tables
from recsys.data.split import Cuts, GivenSplit, LeaveOneOut

HOUR = 3600


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(sentences.CACHE, str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("tiny_model", Path(__file__).with_name("tiny_model.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write(tmp_path_factory.mktemp("models") / "tiny")


def dataset(folder, users, names=(), titles=None, times=None, parts=None):
    """A prepared log of what each user took, oldest first; items named have the lowest rows, in that order."""
    folder.mkdir(exist_ok=True)
    taken = [("first", name) for name in names] + [(user, item) for user, items in users.items() for item in items]
    at = list(range(len(names))) + (
        [1000 + t * HOUR for t in times] if times else [1000 + i for i in range(len(taken))]
    )
    part = ["train"] * len(names) + list(parts or ["train"] * (len(taken) - len(names)))
    lines = [f"{u},{i},{t},{p}" for (u, i), t, p in zip(taken, at, part, strict=False)]
    (folder / "log.csv").write_text("\n".join(["who,what,when,part", *lines]))
    items = titles or {}
    (folder / "items.csv").write_text("\n".join(["sku,title", *(f"{i},{t}" for i, t in items.items())]) + "\n")
    said = Interactions("who", "what", "when", part="part" if parts else None)
    schema = Schema(said, Entity("sku", (Feature("title", "text"),)) if items else None)
    source = Csv(str(folder / "items.csv")) if items else None
    return prepare(Tables(schema, Csv(str(folder / "log.csv")), source), folder / "dataset")


def everything(data):
    """Cuts that leave all to training."""
    return Cuts(data.user_offsets[1:].copy(), data.user_offsets[1:].copy())


def rows(data, *ids):
    return data.item_ids.rows(list(ids)).tolist()


def met(data, mining, cuts=None):
    """Pairs of ids to users, each once."""
    found = together(data, cuts or everything(data), mining).tocoo()
    names = data.item_ids.array.to_pylist()
    pairs = zip(*found.coords, found.data, strict=True)
    return {(names[a], names[b]): int(n) for a, b, n in pairs if names[a] < names[b]}


def test_together_is_counted_in_users(tmp_path):
    data = dataset(tmp_path, {"u": "abca", "v": "ab", "w": "cxxb"})
    # u takes a and b side by side, and again with c between: one user, once.
    assert met(data, Mining(window=1)) == {("a", "b"): 2, ("b", "c"): 1, ("a", "c"): 1, ("c", "x"): 1, ("b", "x"): 1}
    assert met(data, Mining(window=3))[("b", "c")] == 2
    counts = together(data, everything(data), Mining(window=3))
    assert (counts != counts.T).nnz == 0
    assert not counts.diagonal().any()


def test_near_in_time_may_be_asked(tmp_path):
    data = dataset(tmp_path, {"u": "abc"}, times=[0, 1, 4])
    assert met(data, Mining(window=2)) == {("a", "b"): 1, ("b", "c"): 1, ("a", "c"): 1}
    assert met(data, Mining(window=2, hours=3)) == {("a", "b"): 1, ("b", "c"): 1}
    assert met(data, Mining(window=2, hours=1)) == {("a", "b"): 1}


@pytest.mark.parametrize("split", [LeaveOneOut(), GivenSplit()])
def test_held_out_interactions_are_never_looked_at(tmp_path, split):
    parts = ["train", "train", "validation", "test"] * 2
    data = dataset(tmp_path, {"u": "abcd", "v": "abcd"}, parts=parts)
    assert met(data, Mining(window=5), split.cut(data)) == {("a", "b"): 2}


@pytest.mark.parametrize("held", ["validation", "test"])
def test_pairs_are_the_same_whatever_was_held_out(tmp_path, held):
    """The held-out items of two logs differ, training does not: so do no pairs, positive or negative."""
    titles = {name: f"title {name}" for name in "abcdefgh"}
    vectors = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    found = []
    for number, late in enumerate(("ef", "gh")):
        users = {f"u{n}": f"abcd{late}" for n in range(3)}
        parts = (["train"] * 4 + [held] * 2) * 3
        data = dataset(tmp_path / str(number), users, titles=titles, parts=parts)
        place = {name: row for row, name in enumerate(data.item_ids.array.to_pylist())}
        own = np.zeros_like(vectors)
        for name, row in place.items():
            own[row] = vectors["abcdefgh".index(name)]
        pairs = mined(
            data, GivenSplit().cut(data), data.item_features().column("title").to_pylist(), own, Mining(window=1)
        )
        names = {row: name for name, row in place.items()} | {-1: None}
        some = zip(pairs.anchor, pairs.positive, pairs.negative[:, 0], strict=True)
        found.append([tuple(names[int(row)] for row in one) for one in some])
    assert found[0] == found[1]
    assert {name for one in found[0] for name in one} <= {*"abcd", None}


def test_information_by_hand(tmp_path):
    data = dataset(tmp_path, {"u": "ab", "v": "ab", "w": "ac"})
    a, b, c = rows(data, "a", "b", "c")
    found = pointwise_information(together(data, everything(data), Mining(window=1)))
    # Of six places in pairs a has 3, b 2 and c 1; smoothed by the power 0.75.
    smoothed = np.array([3, 2, 1]) ** 0.75
    smoothed /= smoothed.sum()
    assert found[a, b] == pytest.approx(np.log((2 / 6) / ((3 / 6) * smoothed[1])))
    assert found[c, a] == pytest.approx(np.log((1 / 6) / ((1 / 6) * smoothed[0])))
    assert found[b, c] == 0  # never together, and so no pair


def unit(*degrees):
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def test_pairs_by_hand(tmp_path):
    """a and b are taken together, as are c and d and e and f; texts lie on a circle."""
    users = {f"u{n}": pair for n, pair in enumerate(["ab", "ab", "cd", "cd", "ef", "ef", "ad"])}
    titles = {name: f"title {name}" for name in "abcdefg"}
    data = dataset(tmp_path, users, titles=titles)
    names = data.item_ids.array.to_pylist()
    degrees = {"a": 0, "b": 40, "c": 10, "d": 20, "e": 50, "f": 90, "g": 1}
    vectors = unit(*(degrees[name] for name in names))
    texts = data.item_features().column("title").to_pylist()
    pairs = mined(data, everything(data), texts, vectors, Mining(window=1, least=2, negatives=2, below=0.95))
    said = {
        (names[a], names[p]): [names[n] if n >= 0 else None for n in negative]
        for a, p, negative in zip(pairs.anchor, pairs.positive, pairs.negative, strict=True)
    }
    assert set(said) == {("a", "b"), ("b", "a"), ("c", "d"), ("d", "c"), ("e", "f"), ("f", "e")}  # a, d: one user
    # b is at cos 40° = .77 from a, so what is nearer than .73 (c, 10°) is false; d was met; g was never taken.
    assert said["a", "b"] == ["e", "f"]
    # c and d are at cos 10° = .98; within .94 of c lie b (30°), e (40°), f (80°); a is 10° from c: too near.
    assert said["c", "d"] == ["b", "e"]
    # e and f are at cos 40° = .77: b (10°), d (30°), c (40°: .766 > .73) are too near to e; a (50°: .64) is not.
    assert said["e", "f"] == ["a", None]


def test_the_same_text_is_neither_pair_nor_negative(tmp_path):
    titles = {"a": "same", "b": "same", "c": "other", "d": "same", "e": "last"}
    data = dataset(tmp_path, {"u": "abc", "v": "abc", "w": "ed"}, titles=titles)
    names = data.item_ids.array.to_pylist()
    vectors = unit(*({"a": 0, "b": 0, "c": 5, "d": 0, "e": 80}[name] for name in names))
    pairs = mined(data, everything(data), data.item_features().column("title").to_pylist(), vectors, Mining(window=2))
    some = zip(pairs.anchor, pairs.positive, pairs.negative, strict=True)
    said = {(names[a], names[p]): names[n] for a, p, (n,) in some}
    assert said == {("a", "c"): "e", ("b", "c"): "e", ("c", "a"): "e", ("c", "b"): "e"}


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(ValueError, match=r"mining.window is 0; give at least 1"):
        Mining(window=0)
    with pytest.raises(ValueError, match=r"mining.below is 2; choose a share above 0, up to 1"):
        Mining(below=2)
    with pytest.raises(ValueError, match="a pair alone has nothing to be told from"):
        Learning(batch=1)


def test_the_loss_by_hand():
    anchor, other = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    none = torch.zeros(2, 3, dtype=torch.bool)
    # At τ = 1 the first anchor's scores are 1, 0, 1 and the second's 0, 1, 0.
    e = np.e
    expected = (-np.log(e / (2 * e + 1)) - np.log(e / (e + 2))) / 2
    assert contrast(anchor, other, none, 1.0).item() == pytest.approx(expected)
    false = torch.tensor([[False, False, True], [False, False, False]])
    expected = (-np.log(e / (e + 1)) - np.log(e / (e + 2))) / 2
    assert contrast(anchor, other, false, 1.0).item() == pytest.approx(expected)


def test_false_negatives_of_a_batch_by_hand(tmp_path):
    data = dataset(tmp_path, {"u": "ab", "v": "cd", "w": "ad"})
    a, b, c, d = rows(data, "a", "b", "c", "d")
    counts = together(data, everything(data), Mining(window=1))
    codes = np.arange(4)
    found = false_negatives(np.array([a, c]), np.array([b, d]), np.array([b, d, a, c]), counts, codes)
    # Of a: its own positive counts, d was met, a is itself, c is free. Of c: b and a are free, c is itself.
    assert found.tolist() == [[False, True, True, False], [False, False, False, True]]
    codes[[b, c]] = 9  # b and c read the same
    found = false_negatives(np.array([a, c]), np.array([b, d]), np.array([b, d, a, c]), counts, codes)
    assert found.tolist() == [[False, True, True, True], [True, False, False, True]]


# Tuning


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Two shelves: what is on one is taken together, though its titles have no letter in common."""
    folder = tmp_path_factory.mktemp("shop")
    shelves = ("abcd", "wxyz")
    users = {f"u{n}": list(np.random.default_rng(n).permutation(list(shelves[n % 2]))) for n in range(20)}
    titles = {name: " ".join([name * 3] * 2) for shelf in shelves for name in shelf}
    return dataset(folder, users, titles=titles).path


LEARNING = Learning(steps=40, batch=8, learning_rate=5e-3, keep_every=10)


def adapted(shop, tiny, out, learning=LEARNING, tell=lambda line: None):
    return adapt(shop, str(tiny), out, split=LeaveOneOut(), learning=learning, tell=tell)


@pytest.fixture(scope="module")
def encoder(shop, tiny, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(sentences.CACHE, str(tmp_path_factory.mktemp("cache")))
        return adapted(shop, tiny, tmp_path_factory.mktemp("out") / "encoder")


def nearness(model, data):
    """Mean cosine of what is on one shelf, and of what is not."""
    titles = dict(zip(data.item_ids.array.to_pylist(), data.item_features().column("title").to_pylist(), strict=True))
    names = list("abcdwxyz")
    vectors = SentenceModel(str(model)).encode([titles[name] for name in names])
    cosine, shelf = vectors @ vectors.T, np.arange(8) // 4
    same = shelf[:, None] == shelf
    return cosine[same & ~np.eye(8, dtype=bool)].mean(), cosine[~same].mean()


def test_what_is_taken_together_is_read_as_near(encoder, tiny, shop):
    data = Dataset.open(shop)
    (near, far), (near_before, far_before) = nearness(encoder, data), nearness(tiny, data)
    assert near - far > near_before - far_before + 0.5
    assert near > far + 0.5


def test_the_folder_says_what_it_was_made_of(encoder, tiny, shop):
    said = read_manifest(encoder, tuning.KIND, tuning.FORMAT_VERSION)
    assert said.content["parent"] == {"name": str(tiny), "digest": digest_of_model(tiny)}
    assert said.content["dataset"] == Dataset.open(shop).manifest.digest
    assert said.content["steps"] == 40
    assert {"modules.json", "config.json", "model.safetensors", "manifest.json"} <= {f.name for f in encoder.iterdir()}
    assert not [file for file in encoder.rglob("*") if file.suffix in (".bin", ".pt", ".pkl", ".py")]
    assert not encoder.with_name("encoder.progress").exists()


class Stopped(Exception):
    pass


def test_a_run_that_was_stopped_ends_as_the_undisturbed_one(encoder, shop, tiny, tmp_path, monkeypatch):
    own = tuning.contrast
    told: list[str] = []
    calls = iter(range(1000))

    def stopped(*given):
        if next(calls) == 25:
            raise Stopped
        return own(*given)

    monkeypatch.setattr(tuning, "contrast", stopped)
    with pytest.raises(Stopped):
        adapted(shop, tiny, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    with pytest.raises(ArtifactError, match=r"again.progress was begun with other data or options; remove it"):
        adapted(shop, tiny, tmp_path / "again", Learning(steps=41, batch=8, learning_rate=5e-3, keep_every=10))
    monkeypatch.setattr(tuning, "contrast", own)
    made = adapted(shop, tiny, tmp_path / "again", tell=told.append)
    assert any(line == "goes on after step 20" for line in told)
    assert digest_of_model(made) == digest_of_model(encoder)


def test_the_command(shop, tiny, tmp_path, capsys):
    given = ["--dataset", str(shop), "--model", str(tiny), "--out", str(tmp_path / "out")]
    given += ["--learning.steps", "2", "--learning.batch", "4", "--split", "LeaveOneOut", "--mining.least", "1"]
    assert main(["adapt", *given]) == 0
    said = capsys.readouterr().err
    assert "step 2/2  loss" in said
    assert "hard negatives" in said
    assert main(["adapt", *given]) == 1
    assert "exists already; choose another folder" in capsys.readouterr().err
    assert main(["adapt", *given[:-4], "--out", str(tmp_path / "b"), "--feature", "plot"]) == 1
    assert "have the texts title; there is no text 'plot' (--feature)" in capsys.readouterr().err


def test_the_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        main(["adapt", "--help"])
    assert "recsys adapt --dataset shop/dataset" in capsys.readouterr().out


def test_a_log_without_pairs_is_refused(tiny, tmp_path):
    data = dataset(tmp_path, {"u": "ab"}, titles={"a": "x", "b": "y"})
    with pytest.raises(ValueError, match=r"has 0 pairs of items with texts .*; lower mining.least"):
        adapt(data.path, str(tiny), tmp_path / "out", split=LeaveOneOut(), tell=lambda line: None)
