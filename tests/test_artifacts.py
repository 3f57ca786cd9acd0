import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from recsys.artifacts import (
    ArtifactError,
    check_file,
    digest_of,
    drafting,
    read_manifest,
    remove,
    remove_abandoned,
    verify,
    write_durably,
    writing,
)
from tests.damage import vouched


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


def test_of_two_that_write_a_new_file_at_once_one_does(tmp_path):
    write_durably(tmp_path / "entry", "first", new=True)
    with pytest.raises(FileExistsError):
        write_durably(tmp_path / "entry", "second", new=True)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("entry", "first")]


def test_what_json_would_change_is_sealed_as_it_will_be_read(tmp_path):
    content = {"pair": (1, 2), "by_number": {10: "a", 9: "b"}, "word": "Größe\u2028", "share": 0.1}
    said = verify(make(tmp_path / "x", **content), "thing", 1).content
    assert said == {"pair": [1, 2], "by_number": {"10": "a", "9": "b"}, "word": "Größe\u2028", "share": 0.1}


def test_an_empty_directory_is_not_sealed(tmp_path):
    with writing(tmp_path / "x", "thing", 1) as draft:
        (draft.path / "logs" / "version_0").mkdir(parents=True)
        (draft.path / "a.txt").write_text("a")
    assert list(verify(tmp_path / "x", "thing", 1).files) == ["a.txt"]
    assert sorted(file.name for file in (tmp_path / "x").iterdir()) == ["a.txt", "manifest.json"]


def test_a_link_is_not_sealed(tmp_path):
    def link():
        with writing(tmp_path / "x", "thing", 1) as draft:
            (draft.path / "a.txt").symlink_to(__file__)

    with pytest.raises(ArtifactError, match=r"a.txt is a link or a device; an artefact holds plain files"):
        link()
    assert list(tmp_path.iterdir()) == []


def test_when_and_by_what_code_an_artefact_was_made_cannot_be_changed(tmp_path):
    for name, entry in (("a", "created"), ("b", "code_version")):
        file = make(tmp_path / name) / "manifest.json"
        said = json.loads(file.read_text())
        file.write_text(file.read_text().replace(said[entry], said[entry].replace("0", "1")))
        with pytest.raises(ArtifactError, match=rf"{file} was altered: its checksum does not match"):
            verify(tmp_path / name, "thing", 1)


def test_other_words_for_the_same_manifest_are_refused(tmp_path):
    path = make(tmp_path / "x", answer=42)
    text = (path / "manifest.json").read_bytes()
    for other in (
        text.replace(b"\n", b"\r\n"), text + b"\n", b"\xef\xbb\xbf" + text, text.decode().encode("utf-16"),
        text.replace(b"42", b"42.0"), text.replace(b"thing", b"\\u0074hing"), json.dumps(json.loads(text)).encode(),
        text.replace(b'"answer"', b'"answer": 1,\n  "answer"'),
    ):  # fmt: skip
        assert other != text
        (path / "manifest.json").write_bytes(other)
        with pytest.raises(ArtifactError, match=r"manifest.json (was altered|cannot be read)"):
            verify(path, "thing", 1)


@pytest.mark.parametrize("name", ["/etc/hostname", "../x.txt", "inner/../../x.txt"])
def test_a_manifest_that_names_what_lies_elsewhere_is_refused(tmp_path, name):
    path = make(tmp_path / "x")
    files = {name: {"sha256": "0" * 64, "bytes": 1}}
    vouched(path, files=files, digest=digest_of({"content": {}, "files": files}))
    with pytest.raises(ArtifactError, match="which lies outside of it; write the thing again"):
        read_manifest(path, "thing", 1)


def test_a_manifest_that_someone_vouches_for_must_still_fit_its_files(tmp_path):
    path = vouched(make(tmp_path / "x"), content={"answer": 43})
    with pytest.raises(ArtifactError, match="was altered: its digest does not match"):
        verify(path, "thing", 1)
    with pytest.raises(ArtifactError, match=r"cannot be read .*unexpected keyword argument 'more'"):
        verify(vouched(path, more=1), "thing", 1)


def test_one_file_is_checked_without_the_others(tmp_path):
    path = make(tmp_path / "x")
    manifest = read_manifest(path, "thing", 1)
    (path / "b.bin").unlink()
    check_file(path, manifest, "inner/a.txt")
    for text in ("hullo", "hell"):
        (path / "inner" / "a.txt").write_text(text)
        with pytest.raises(ArtifactError, match=r"inner/a.txt (does not match|has 4 bytes)"):
            check_file(path, manifest, "inner/a.txt")


WRITER = """
import sys, time
from pathlib import Path
from recsys.artifacts import writing
with writing(Path(sys.argv[1]), "thing", 1) as draft:
    (draft.path / "a.txt").write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


def test_the_draft_of_a_killed_process_goes_with_the_next_and_one_being_written_stays(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "x")]
    writer = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    assert writer.stdout.readline() == "writing\n"
    make(tmp_path / "y")
    assert remove_abandoned(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 2
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    make(tmp_path / "z")  # no draft of its own name was left
    assert len(list(tmp_path.iterdir())) == 3
    verify(make(tmp_path / "x"), "thing", 1)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x", "y", "z"]


def test_only_drafts_that_nobody_holds_are_abandoned(tmp_path):
    other = tmp_path / "elsewhere"
    other.mkdir()
    hexadecimal = "0123456789abcdef" * 2
    for name in (f".x.{hexadecimal}", f".y.{hexadecimal}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("a")
    (tmp_path / f".CURRENT.{hexadecimal}").write_text("half")
    (tmp_path / f".link.{hexadecimal}").symlink_to(other)
    for name in (".hidden", f".{hexadecimal}", f"x.{hexadecimal}", f".x.{hexadecimal}.txt"):
        (tmp_path / name).mkdir()
    with drafting(tmp_path / "mine") as draft:
        assert remove_abandoned(tmp_path, "x") == [tmp_path / f".x.{hexadecimal}"]
        assert remove_abandoned(tmp_path) == [tmp_path / f".CURRENT.{hexadecimal}", tmp_path / f".y.{hexadecimal}"]
        assert draft.exists()
    assert not draft.exists()
    assert other.exists()
    assert len(list(tmp_path.iterdir())) == 6
    assert remove_abandoned(tmp_path / "nowhere") == []


def test_drafts_survive_others_that_sweep_all_the_while(tmp_path):
    done, wrong = threading.Event(), []

    def sweep():
        while not done.is_set():
            try:
                remove_abandoned(tmp_path)
            except Exception as error:  # whatever it is, a sweeper must not meet it
                wrong.append(error)

    sweepers = [threading.Thread(target=sweep) for _ in range(2)]
    for sweeper in sweepers:
        sweeper.start()
    try:
        for turn in range(20):
            write_durably(tmp_path / "current", str(turn))
            verify(make(tmp_path / f"x{turn}"), "thing", 1)
            assert (tmp_path / "current").read_text() == str(turn)
    finally:
        done.set()
        for sweeper in sweepers:
            sweeper.join()
    assert wrong == []


def test_an_artefact_that_another_process_wrote_meanwhile_is_not_changed(tmp_path):
    def slowly():
        with writing(tmp_path / "x", "thing", 1) as draft:
            (draft.path / "a.txt").write_text("mine")
            make(tmp_path / "x", "theirs")

    with pytest.raises(ArtifactError, match="exists already and a thing is never changed"):
        slowly()
    assert (tmp_path / "x" / "inner" / "a.txt").read_text() == "theirs"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    write_durably(tmp_path / "current", "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_durably(tmp_path / "current", "new")
    with pytest.raises(OSError, match="No space left"):
        make(tmp_path / "x")
    monkeypatch.undo()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("current", "old")]


def test_removal_hides_first(tmp_path):
    path = make(tmp_path / "x")
    assert not remove(path, lambda: not path.exists())
    verify(path, "thing", 1)
    assert remove(path)
    assert list(tmp_path.iterdir()) == []
    assert not remove(path)


def test_what_is_being_removed_is_not_swept(tmp_path):
    path = make(tmp_path / "x")
    assert not remove(path, lambda: remove_abandoned(tmp_path) == [])
    verify(path, "thing", 1)
