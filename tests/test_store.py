"""Where registries are kept: one suite on a folder, on S3 behind real HTTP, and on fsspec's memory."""

import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest

from recsys.artifacts import ArtifactError, verify, writing
from recsys.store import FolderStore, RemoteStore, StoreError, open_store
from tests.damage import flip

STORES = ["folder", "s3", "memory"]
CHECK = (
    "import sys; from pathlib import Path; from recsys.artifacts import verify; from recsys.store import open_store\n"
)


def check(path):
    return verify(path, "thing", 1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def address_of(kind, request, tmp_path):
    if kind == "folder":
        return str(tmp_path / "store")
    name = uuid.uuid4().hex
    return f"{request.getfixturevalue('s3').address}/{name}" if kind == "s3" else f"memory://{name}/registry"


@pytest.fixture(params=STORES)
def store(request, tmp_path):
    return open_store(address_of(request.param, request, tmp_path))


@pytest.fixture(params=["s3", "memory"])
def remote(request, tmp_path):
    return open_store(address_of(request.param, request, tmp_path))


def added(store, name, text="hello"):
    with store.drafting("things") as folder:
        with writing(folder / "draft", "thing", 1) as draft:
            (draft.path / "inner").mkdir()
            (draft.path / "inner" / "a.txt").write_text(text)
            (draft.path / "b.bin").write_bytes(b"\0\r\n\xff")
        store.put(folder / "draft", f"things/{name}")
    return f"things/{name}"


def raw(store, name, data):
    """Writes bytes past everything that a store does for its own."""
    if isinstance(store, FolderStore):
        (store.path / name).parent.mkdir(parents=True, exist_ok=True)
        (store.path / name).write_bytes(data)
    else:
        store._fs.pipe_file(f"{store._root}/{name}", data)


def test_texts_are_kept_replaced_and_removed(store):
    assert store.read("CURRENT") is None
    store.delete("CURRENT")
    for text in ("one", "zwölf\r\n"):
        store.write("CURRENT", text)
        assert store.read("CURRENT") == text.encode()
        assert open_store(store.address).read("CURRENT") == text.encode()
    store.delete("CURRENT")
    assert store.read("CURRENT") is None


def test_a_text_is_created_once(store):
    assert store.create("log/00000001.json", "mine")
    assert not store.create("log/00000001.json", "theirs")
    assert store.read("log/00000001.json") == b"mine"


def test_of_many_that_create_at_once_one_succeeds(s3, tmp_path):
    for store in (open_store(tmp_path / "store"), open_store(f"{s3.address}/{uuid.uuid4().hex}")):
        start = threading.Barrier(8)
        won: list[str] = []

        def create(text, store=store, start=start, won=won):
            start.wait()
            if store.create("log/00000001.json", text):
                won.append(text)

        threads = [threading.Thread(target=create, args=(f"text {n}",)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert store.read("log/00000001.json") == won[0].encode()


def test_a_creation_whose_answer_was_lost_is_known_again(remote):
    assert remote.create("log/00000001.json", "mine alone")
    assert remote.create("log/00000001.json", "mine alone")


def test_entries_are_those_with_a_number_in_order(store):
    assert (store.numbered("log"), store.entries("log")) == ([], {})
    for number in (10, 2, 1):
        store.write(f"log/{number:08}.json", str(number))
    for other in ("notes.txt", "00000003.json.bak", "1.json"):
        store.write(f"log/{other}", "not an entry")
    assert store.numbered("log") == [1, 2, 10]
    assert list(store.entries("log").items()) == [
        ("00000001.json", b"1"), ("00000002.json", b"2"), ("00000010.json", b"10"),
    ]  # fmt: skip


def test_an_artefact_comes_whole_is_fetched_and_goes(store, cache):
    assert store.artefacts("things") == []
    names = [added(store, name, name) for name in ("b", "a")]
    assert store.artefacts("things") == ["a", "b"]
    for name in names:
        for again in (False, True):
            path = store.fetch(name, check, again=again)
            assert (path / "inner" / "a.txt").read_text() == name[-1]
            assert (path / "b.bin").read_bytes() == b"\0\r\n\xff"
    assert store.remove("things/b")
    assert store.artefacts("things") == ["a"]
    store.fetch("things/a", check)
    left = (store.path if isinstance(store, FolderStore) else next(cache.iterdir())) / "things"
    assert [entry.name for entry in left.iterdir()] == ["a"]


def test_an_artefact_that_turns_out_to_be_needed_stays(store):
    name, seen = added(store, "a"), []

    def needed():
        seen.append(open_store(store.address).artefacts("things"))
        return True

    assert not store.remove(name, needed)
    assert seen == [[]]
    assert store.artefacts("things") == ["a"]
    check(store.fetch(name, check, again=True))


def test_damage_where_it_is_kept_is_found_and_named(store):
    name = added(store, "a")
    store.fetch(name, check)  # a sound copy on this machine makes it no better
    raw(store, f"{name}/inner/a.txt", b"hullo")
    with pytest.raises(ArtifactError, match=rf"{store.address}/{name}/inner/a.txt does not match its sha256"):
        store.fetch(name, check, again=True)
    raw(store, f"{name}/inner/a.txt", b"hello")
    raw(store, f"{name}/more.txt", b"")
    with pytest.raises(ArtifactError, match=rf"{store.address}/{name}/more.txt is not in the manifest"):
        store.fetch(name, check, again=True)


@pytest.mark.parametrize("name", ["../../outside", "inner/../../outside"])
def test_a_name_that_leads_out_is_not_followed(s3, tmp_path, name, monkeypatch):
    store = RemoteStore(f"{s3.address}/{uuid.uuid4().hex}")
    added(store, "a")
    found = store._below
    monkeypatch.setattr(store, "_below", lambda folder: [*found(folder), name])
    with pytest.raises(StoreError, match=r"holds '.*outside', which is no name for a file; remove it"):
        store.fetch("things/a", check)
    assert not list(tmp_path.rglob("outside"))


def test_what_has_no_manifest_is_not_listed_and_goes_when_it_is_old(remote, monkeypatch):
    added(remote, "whole")
    for name in ("things/half/b.bin", "things/half/inner/manifest.json", "things/loose.txt"):
        raw(remote, name, b"x")
    assert remote.artefacts("things") == ["whole"]
    remote.sweep("things")
    assert remote.read("things/half/b.bin") == b"x"
    monkeypatch.setattr("recsys.store._ABANDONED_S", -2)
    remote.sweep("things")
    assert remote.read("things/half/b.bin") is None
    assert remote.artefacts("things") == ["whole"]
    check(remote.fetch("things/whole", check))


def test_an_upload_that_was_stopped_is_not_listed(remote, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(remote, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        added(remote, "a")
    assert remote.artefacts("things") == []
    assert remote.read("things/a/b.bin") is not None
    monkeypatch.undo()
    assert check(remote.fetch(added(remote, "a"), check)).kind == "thing"


def counted(store, monkeypatch):
    """How often an artefact was downloaded, as a list that grows."""
    downloads: list[str] = []
    download = store._download

    def counting(name, to):
        downloads.append(name)
        download(name, to)

    monkeypatch.setattr(store, "_download", counting)
    return downloads


def test_a_copy_is_used_again_unless_it_is_damaged(remote, monkeypatch):
    name = added(remote, "a")
    downloads = counted(remote, monkeypatch)
    paths = [remote.fetch(name, check) for _ in range(3)]
    assert (len(set(paths)), len(downloads)) == (1, 1)
    for damage in (lambda: flip(paths[0] / "b.bin"), lambda: (paths[0] / "manifest.json").unlink()):
        damage()
        check(remote.fetch(name, check))
        check(paths[0])
    assert len(downloads) == 3


def test_a_copy_of_what_was_there_under_that_name_before_is_not_used(remote):
    path = remote.fetch(added(remote, "a", "old"), check)
    remote.remove("things/a")
    assert (remote.fetch(added(remote, "a", "new"), check) / "inner" / "a.txt").read_text() == "new"
    assert (path / "inner" / "a.txt").read_text() == "new"


def test_copies_of_what_is_gone_go_too(remote):
    paths = [remote.fetch(added(remote, name), check) for name in ("a", "b")]
    remote.remove("things/a")
    remote.fetch("things/b", check)
    assert [path.exists() for path in paths] == [False, True]


def test_processes_that_fetch_at_once_all_get_it(s3, cache):
    store = open_store(f"{s3.address}/{uuid.uuid4().hex}")
    name = added(store, "a", "x" * 100_000)
    code = CHECK + "p = open_store(sys.argv[1]).fetch(sys.argv[2], lambda p: verify(p, 'thing', 1)); print(p)"
    command = [sys.executable, "-c", code, store.address, name]
    environment = os.environ | s3.environment
    fetching = [
        subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
        for _ in range(2)
    ]
    paths = {process.communicate(timeout=120)[0].strip() for process in fetching}
    assert [process.returncode for process in fetching] == [0, 0]
    assert len(paths) == 1
    check(Path(paths.pop()))
    assert [entry.name for entry in next(cache.iterdir()).joinpath("things").iterdir()] == ["a"]


def test_a_fetch_that_lost_the_race_takes_the_copy_of_the_other(remote, monkeypatch):
    name, download = added(remote, "a"), remote._download

    def slower(*given):
        download(*given)
        monkeypatch.setattr(remote, "_download", download)
        remote.fetch(name, check)

    monkeypatch.setattr(remote, "_download", slower)
    check(remote.fetch(name, check))


def test_ages_are_by_the_clock_of_the_store(remote):
    remote.write("a", "x")
    assert 0 <= remote.age("a") < 100
    with pytest.raises(StoreError, match=rf"cannot say when it wrote {remote.address}/b"):
        remote.age("b")


def test_the_kind_of_an_address(tmp_path, s3):
    for local in (tmp_path / "x", str(tmp_path / "x"), f"file://{tmp_path}/x"):
        store = open_store(local)
        assert isinstance(store, FolderStore)
        assert store.path == tmp_path / "x"
    assert isinstance(open_store(f"{s3.address}/x/"), RemoteStore)
    assert open_store(f"{s3.address}/x/").address == f"{s3.address}/x"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "nonsense://bucket/x",
            r"nonsense://bucket/x is no address that fsspec knows \(Protocol not known: nonsense\)",
        ),
        ("s3://", "s3:// is no place for a registry; name one, without a chain: s3://bucket/folder"),
        ("simplecache::s3://bucket/x", "is no place for a registry; name one, without a chain"),
        (Path("s3://bucket/x"), "s3:/bucket/x was read as a path, which an address is not; pass it as text"),
    ],
)
def test_an_address_that_cannot_be_is_refused(address, message):
    with pytest.raises(StoreError, match=message):
        open_store(address)


def test_without_s3fs_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(StoreError, match=r"cannot be reached without another package .*pip install 'recsys\[s3\]'"):
        open_store("s3://bucket/x")


@pytest.mark.parametrize("ask", [lambda s: s.artefacts("things"), lambda s: s.write("a", "b")])
def test_a_bucket_that_is_not_there_is_one_line(s3, ask):
    with pytest.raises(
        StoreError, match=r"cannot (list|write) s3://nowhere/x/\w+ \(The specified bucket does not exist"
    ):
        ask(open_store("s3://nowhere/x"))


def test_a_cache_that_cannot_be_written_says_so(remote, tmp_path, monkeypatch):
    name = added(remote, "a")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError, match=r"file/\w+ cannot hold copies of .*; set RECSYS_CACHE to a folder that can"):
        remote.fetch(name, check)
