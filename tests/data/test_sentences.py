"""Sentence models: found by name, known by content, refused where they are not data alone; vectors kept and shared."""

import importlib.util
import json
import multiprocessing
import shutil
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data import sentences
from recsys.data.schema import Feature, SchemaError
from recsys.data.sentences import SentenceModel, SentenceModelError, digest_of_model, folder_of
from recsys.data.text_cache import TextCache
from recsys.data.vocabulary import FeatureEncoder, Input

pytest.importorskip("sentence_transformers", reason="pip install 'recsys[text]'")


def load_tiny():
    path = Path(__file__).parents[1] / "tiny_model.py"
    spec = importlib.util.spec_from_file_location("tiny_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny_model = load_tiny()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def model(tiny, tmp_path):
    """A copy, to be broken."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(sentences.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def counting(monkeypatch):
    """The texts that are computed from here on, as they are."""
    computed = []
    own = SentenceModel._computed

    def counted(self, texts):
        computed.extend(texts)
        return own(self, texts)

    monkeypatch.setattr(SentenceModel, "_computed", counted)
    return computed


def test_vectors_have_length_1_and_stand_for_their_texts(model):
    vectors = SentenceModel(str(model)).encode(["blue shoe", "red sock", "blue shoe"])
    assert vectors.shape == (3, tiny_model.WIDTH)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert (vectors[0] == vectors[2]).all()
    assert abs(vectors[0] - vectors[1]).max() > 0.01


def test_each_text_is_computed_once_ever(model, monkeypatch):
    computed = counting(monkeypatch)
    first = SentenceModel(str(model)).encode(["b", "a", "b"])
    again = SentenceModel(str(model)).encode(["a", "c", "b"])
    assert sorted(computed) == ["a", "b", "c"]
    assert (again[[2, 0]] == first[:2]).all()


def test_another_model_shares_no_vectors(model, tmp_path, monkeypatch):
    other = tiny_model.write(tmp_path / "other", seed=1)
    computed = counting(monkeypatch)
    one, two = (SentenceModel(str(folder)).encode(["a"]) for folder in (model, other))
    assert computed == ["a", "a"]
    assert abs(one - two).max() > 0.01


def test_a_model_is_known_by_its_content(model, tmp_path):
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    (copy / "README.md").write_text("About it.")
    assert digest_of_model(copy) == digest_of_model(model)
    changed = bytearray((copy / "model.safetensors").read_bytes())
    changed[-1] ^= 1
    (copy / "model.safetensors").write_bytes(changed)
    assert digest_of_model(copy) != digest_of_model(model)
    with pytest.raises(SentenceModelError, match=r"is another one .* than the towers were trained with"):
        SentenceModel(str(copy), digest_of_model(model))


def test_a_package_may_carry_one(model, tmp_path, monkeypatch):
    package = tmp_path / "path" / "some_model"
    shutil.copytree(model, package / "weights")
    (package / "__init__.py").write_text("raise AssertionError('never imported')")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "path")])
    assert folder_of("some-model") == package / "weights"


def test_a_machine_may_keep_models_elsewhere(model, monkeypatch):
    with pytest.raises(SentenceModelError, match=r"'no/such/model' is not here: .* let RECSYS_TEXT_MODELS name"):
        folder_of("no/such/model")
    monkeypatch.setenv(sentences.MODELS, str(model.parent))
    assert folder_of("no/such/model") == model


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def code(folder):
    (folder / "modeling.py").write_text("")


def mapped(folder):
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"auto_map": {"AutoModel": "modeling.Mine"}}))


def foreign(folder):
    tiny_model.rename_module(folder, "os.path.join")


def broken(folder):
    (folder / "modules.json").write_text("[{")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (pickled, "pytorch_model.bin is read by unpickling"),
        (code, "modeling.py is code that the model brings, which is never run"),
        (mapped, "config.json asks for code of its own"),
        (foreign, "names 'os.path.join'; only modules of sentence_transformers are loaded"),
        (broken, "modules.json cannot be read"),
    ],
)
def test_a_model_that_is_not_data_alone_is_refused(model, harm, message):
    harm(model)
    with pytest.raises(SentenceModelError, match=message):
        SentenceModel(str(model))


def test_without_the_library_the_extra_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(SentenceModelError, match=r"pip install 'recsys\[text\]'"):
        sentences.loaded(model)


# The encoder of features


def fitted(model, texts):
    table = pa.table({"it": pa.array(texts, pa.string())})
    feature = Feature("it", "text", model=str(model))
    return FeatureEncoder.fit((feature,), table, np.ones(len(texts), dtype=bool)), table


def test_a_text_becomes_its_vector_and_whether_there_is_one(model):
    encoder, table = fitted(model, ["blue shoe", None, ""])
    assert encoder.inputs == (Input("it", width=tiny_model.WIDTH + 1),)
    assert encoder.learnt["it"] == {"model": digest_of_model(model), "dimension": tiny_model.WIDTH}
    values = encoder.encode(table)["it"]
    np.testing.assert_array_equal(values[:1, :-1], SentenceModel(str(model)).encode(["blue shoe"]))
    assert values[:, -1].tolist() == [1, 0, 0]
    assert not values[1:].any()


def test_what_was_written_encodes_the_same(model):
    encoder, table = fitted(model, ["blue shoe"])
    again = FeatureEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    assert (again.encode(table)["it"] == encoder.encode(table)["it"]).all()
    again.load_models()
    shutil.rmtree(model)
    with pytest.raises(SentenceModelError, match="is not here"):
        again.load_models()


def test_a_warm_start_wants_the_same_model(model, tmp_path):
    encoder, table = fitted(model, ["blue shoe"])
    known = np.ones(1, dtype=bool)
    assert encoder.grown((Feature("it", "text", model=str(model)),), table, known).learnt == encoder.learnt
    with pytest.raises(ValueError, match=r"was read by the model .* and is now by hashed n-grams"):
        encoder.grown((Feature("it", "text"),), table, known)
    other = tiny_model.write(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"was read by the model .* and is now by the model"):
        encoder.grown((Feature("it", "text", model=str(other)),), table, known)


def test_only_text_has_a_model():
    with pytest.raises(SchemaError, match="feature 'brand' is categorical and has a model; only text is read by one"):
        Feature("brand", "categorical", model="some/model")


def test_a_feature_without_a_model_is_said_as_before():
    encoder = FeatureEncoder.fit((Feature("it", "text"),), pa.table({"it": ["a"]}), np.ones(1, dtype=bool))
    assert "model" not in encoder.to_dict()["features"][0]


# The cache


def vector(number):
    return np.full(3, number, dtype=np.float32)


def test_what_was_written_is_read(tmp_path):
    with TextCache.at(tmp_path, "m") as cache:
        cache.write({"a": vector(1), "é": vector(2)})
    with TextCache.at(tmp_path, "m") as cache:
        found = cache.read(["é", "b", "a"])
    assert {text: values.tolist() for text, values in found.items()} == {"é": [2, 2, 2], "a": [1, 1, 1]}
    with TextCache.at(tmp_path, "other") as cache:
        assert cache.read(["a"]) == {}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=20), st.integers(0, 99), max_size=8), max_size=5))
def test_a_cache_is_a_dictionary(tmp_path_factory, written):
    folder = tmp_path_factory.mktemp("cache")
    twin: dict[str, int] = {}
    for some in written:
        with TextCache.at(folder, "m") as cache:
            cache.write({text: vector(number) for text, number in some.items()})
        twin |= some
    with TextCache.at(folder, "m") as cache:
        found = cache.read([*twin, "never written, and long"])
    assert {text: int(values[0]) for text, values in found.items()} == twin


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_cache_never_answers_wrongly(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cache")
    wanted = {f"text {number}": vector(number) for number in range(30)}
    with TextCache.at(folder, "m") as cache:
        cache.write(wanted)
    file = folder / "m.sqlite"
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans(), "cut"):
        content = content[: data.draw(st.integers(0, len(content)), "length")]
    else:
        at = data.draw(st.integers(0, len(content) - 1), "at")
        content[at] ^= data.draw(st.integers(1, 255), "by")
    file.write_bytes(content)
    with TextCache.at(folder, "m") as cache:
        for text, values in cache.read(list(wanted)).items():
            assert (values == wanted[text]).all()
        cache.write(wanted)  # which may not work, but does not raise


def test_what_is_no_cache_any_more_is_begun_anew(tmp_path):
    (tmp_path / "m.sqlite").write_text("not a database, but as long as the head of one is " * 10)
    for _ in range(2):
        with TextCache.at(tmp_path, "m") as cache:
            cache.write({"a": vector(1)})
    with TextCache.at(tmp_path, "m") as cache:
        assert list(cache.read(["a"])) == ["a"]


@pytest.mark.parametrize("folder", [None, Path("/proc/none"), Path("/dev/null/cache")])
def test_where_nothing_can_be_kept_nothing_is(folder, model, monkeypatch):
    monkeypatch.setattr(sentences, "cache_folder", lambda: folder)
    assert SentenceModel(str(model)).encode(["a"]).shape == (1, tiny_model.WIDTH)


def write_many(folder, first):
    for number in range(first, first + 40):
        with TextCache.at(folder, "m") as cache:
            cache.write({f"text {number}": vector(number), "shared": vector(7)})


def test_several_processes_write_at_once(tmp_path):
    forking = multiprocessing.get_context("fork")
    writers = [forking.Process(target=write_many, args=(tmp_path, first)) for first in (0, 40, 80)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    with TextCache.at(tmp_path, "m") as cache:
        found = cache.read([*(f"text {number}" for number in range(120)), "shared"])
    assert len(found) == 121
    assert all((found[f"text {number}"] == number).all() for number in range(120))


def test_a_writer_that_is_killed_leaves_all_or_nothing(tmp_path):
    with TextCache.at(tmp_path, "m") as cache:
        cache.write({"old": vector(1)})
    connection = sqlite3.connect(tmp_path / "m.sqlite")
    connection.execute("INSERT INTO vectors VALUES (x'00', x'00', x'00')")  # and no commit: the process is gone
    other = tmp_path / "copy"
    shutil.copytree(tmp_path, other, ignore=shutil.ignore_patterns("copy"))
    connection.close()
    with TextCache.at(other, "m") as cache:
        assert list(cache.read(["old"])) == ["old"]
        assert cache._connection.execute("SELECT count(*) FROM vectors").fetchone() == (1,)
