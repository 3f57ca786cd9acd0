import json

import pytest

from recsys.artifacts import ArtifactError, digest_of, read_manifest, verify, write_durably, writing


def make(path, text="hello", **content):
    with writing(path, "thing", 1) as draft:
        (draft.path / "inner").mkdir()
        (draft.path / "inner" / "a.txt").write_text(text)
        (draft.path / "b.bin").write_bytes(b"\0\1")
        draft.content.update(content)
    return path


def test_what_was_written_is_verified_file_by_file(tmp_path):
    manifest = verify(make(tmp_path / "x", answer=42), "thing", 1)
    assert manifest.content == {"answer": 42}
    assert {name: said["bytes"] for name, said in manifest.files.items()} == {"b.bin": 2, "inner/a.txt": 5}


def test_equal_artefacts_have_equal_digests_and_others_have_not(tmp_path):
    digests = [
        read_manifest(make(tmp_path / name, text, n=n), "thing", 1).digest
        for name, text, n in [("a", "x", 1), ("b", "x", 1), ("c", "y", 1), ("d", "x", 2)]
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_block_that_fails_leaves_nothing(tmp_path):
    def fail():
        with writing(tmp_path / "x", "thing", 1) as draft:
            (draft.path / "a.txt").write_text("a")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_artefact_is_never_changed(tmp_path):
    make(tmp_path / "x")
    with pytest.raises(ArtifactError, match="exists already and a thing is never changed"):
        make(tmp_path / "x")


def flip(path):
    data = bytearray((path / "inner" / "a.txt").read_bytes())
    data[0] ^= 1
    (path / "inner" / "a.txt").write_bytes(data)


def alter(path):
    said = json.loads((path / "manifest.json").read_text())
    said["content"]["answer"] = 43
    (path / "manifest.json").write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "a.txt does not match its sha256"),
        (lambda path: (path / "inner" / "a.txt").write_text("hell"), "a.txt has 4 bytes, the manifest says 5"),
        (lambda path: (path / "b.bin").unlink(), "b.bin is missing"),
        (lambda path: (path / "c.txt").write_text("c"), "c.txt is not in the manifest"),
        (alter, "was altered: its checksum does not match"),
        (lambda path: (path / "manifest.json").unlink(), "is not a thing: it has no manifest.json"),
        (lambda path: (path / "manifest.json").write_text("{"), "cannot be read"),
        (lambda path: (path / "manifest.json").write_text('{"kind": "thing"}'), "has no checksum"),
    ],
)
def test_any_damage_is_refused_by_name(tmp_path, damage, message):
    path = make(tmp_path / "x", answer=42)
    damage(path)
    with pytest.raises(ArtifactError, match=message):
        verify(path, "thing", 1)


def test_another_kind_or_version_is_refused(tmp_path):
    path = make(tmp_path / "x")
    with pytest.raises(ArtifactError, match="is a thing, not a bundle"):
        verify(path, "bundle", 1)
    with pytest.raises(ArtifactError, match="has thing format 1, this code reads 2"):
        verify(path, "thing", 2)


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_of({"a": float("nan")})


def test_a_file_is_replaced_in_one_step(tmp_path):
    for text in ("one", "two"):
        write_durably(tmp_path / "current", text)
        assert [file.name for file in tmp_path.iterdir()] == ["current"]
        assert (tmp_path / "current").read_text() == text
