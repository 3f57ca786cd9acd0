"""What a peer is handed and what is taken from it: on a toy whose answers are known by hand."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.quality import peers
from benchmarks.quality.data import Held
from benchmarks.quality.peers import DEPTH, PYTHON, Peer, PeerError, answered, ask, chosen, main, peers_of
from benchmarks.quality.rows import Row
from recsys.data.dataset import Dataset
from recsys.data.prepare import prepare
from recsys.data.schema import Interactions, Schema
from recsys.data.sources import Tables
from recsys.data.split import GivenSplit, LeaveOneOut, queries_of

# Rows are numbered by first appearance in the log, user by user: 0 1 2 3, then 4, 5 and 6.
HISTORIES = [[0, 1, 2, 3], [3, 4, 0], [5, 6, 1, 2, 0]]
ROW = Row("toy", "a toy", None, ("hit_rate@10", "ndcg@10"), (), "", ())

# A peer that writes what lies in `lists`, one file a part, whatever it is asked.
FAKE = """
import argparse, json, pathlib, shutil
parser = argparse.ArgumentParser()
for name in ("asked", "answered", "settings", "threads", "lists"):
    parser.add_argument("--" + name)
said = parser.parse_args()
answered, settings = pathlib.Path(said.answered), json.loads(said.settings)
answered.mkdir(parents=True, exist_ok=True)
for part in ("validation", "test"):
    shutil.copy(pathlib.Path(said.lists) / settings.get("take", ".") / f"{part}.npy", answered)
shown = {"settings": settings, "versions": {}, "seconds": {"fit": 1.2, "answer": 1.1}, "threads": 1}
(answered / "said.json").write_text(json.dumps(shown))
"""


def prepared(folder: Path, histories: list[list[int]], parts: list[list[str]] | None = None) -> Dataset:
    columns: dict[str, list] = {
        "user": [user for user, history in enumerate(histories) for _ in history],
        "item": [item for history in histories for item in history],
    }
    if parts:
        columns["part"] = [part for each in parts for part in each]
    part = "part" if parts else None
    schema = Schema(Interactions(user="user", item="item", part=part, user_type="integer", item_type="integer"))
    prepare(Tables(schema, Held("log", pa.table(columns))), folder)
    return Dataset.open(folder)


@pytest.fixture
def data(tmp_path):
    return prepared(tmp_path / "dataset", HISTORIES)


def handed(folder: Path) -> dict[str, list[int]]:
    return {file.stem: np.load(file).tolist() for file in folder.glob("*.npy")}


def lists_of(rows: list[list[int]]) -> np.ndarray:
    return np.array([row + [-1] * (DEPTH - len(row)) for row in rows], dtype=np.int32)


def right(data: Dataset, split) -> dict[str, np.ndarray]:
    """The lists of somebody who knows the targets."""
    made = {}
    for part in ("validation", "test"):
        queries = queries_of(data, split.cut(data), part)
        made[part] = lists_of([each.tolist() for each in np.split(queries.targets, queries.target_offsets[1:-1])])
    return made


def saved(folder: Path, lists: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, array in lists.items():
        np.save(folder / f"{part}.npy", array)
    return folder


def fake(folder: Path, *grid: dict[str, str]) -> Peer:
    (folder / "fake.py").write_text(FAKE)
    return Peer("fake", (sys.executable, str(folder / "fake.py"), "--lists", str(folder / "lists")), grid or ({},))


def test_a_peer_is_handed_training_and_histories_and_no_target(data, tmp_path):
    ask(data, LeaveOneOut().cut(data), tmp_path / "asked")
    assert handed(tmp_path / "asked") == {
        "train_user": [0, 0, 1, 2, 2, 2],
        "train_item": [0, 1, 3, 5, 6, 1],
        "validation_user": [0, 1, 2],
        "validation_offsets": [0, 2, 3, 6],
        "validation_items": [0, 1, 3, 5, 6, 1],
        "test_user": [0, 1, 2],
        "test_offsets": [0, 3, 5, 9],
        "test_items": [0, 1, 2, 3, 4, 5, 6, 1, 2],
    }
    assert json.loads((tmp_path / "asked" / "asked.json").read_text()) == {
        "num_users": 3,
        "num_items": 7,
        "depth": DEPTH,
    }
    assert sorted(file.suffix for file in (tmp_path / "asked").iterdir()) == [".json"] + [".npy"] * 8


def test_of_sets_too_nothing_after_the_cut_is_handed_over(tmp_path):
    parts = [["train", "train", "validation", "test"], ["train", "test", "test"], ["train"] * 4 + ["validation"]]
    data = prepared(tmp_path / "dataset", HISTORIES, parts)
    ask(data, GivenSplit().cut(data), tmp_path / "asked")
    assert handed(tmp_path / "asked") == {
        "train_user": [0, 0, 1, 2, 2, 2, 2],
        "train_item": [0, 1, 3, 5, 6, 1, 2],
        "validation_user": [0, 2],
        "validation_offsets": [0, 2, 6],
        "validation_items": [0, 1, 5, 6, 1, 2],
        "test_user": [0, 1],
        "test_offsets": [0, 3, 4],
        "test_items": [0, 1, 2, 3],
    }


def test_a_peer_that_is_always_right_gets_one_everywhere(data, tmp_path):
    saved(tmp_path / "lists", right(data, LeaveOneOut()))
    result = chosen(fake(tmp_path), ROW, data, LeaveOneOut(), tmp_path / "work")
    for part in ("validation", "test"):
        assert result[part] == {
            "queries": 3,
            "dimensions": {
                "0": {
                    "mean": {"hit_rate@10": 1.0, "ndcg@10": 1.0},
                    "half_width": {"hit_rate@10": 0.0, "ndcg@10": 0.0},
                }
            },
        }
    assert result["seconds"] == 2
    assert result["threads"] == 1


def test_what_stands_third_is_found_third_and_what_is_not_listed_is_not_found(data, tmp_path):
    lists = right(data, LeaveOneOut())
    lists["test"] = lists_of([[5, 6, 3], [5, 6, 1], [3, 4]])  # targets are 3, 0 and 0
    saved(tmp_path / "lists", lists)
    test = chosen(fake(tmp_path), ROW, data, LeaveOneOut(), tmp_path / "work")["test"]["dimensions"]["0"]["mean"]
    assert test == {"hit_rate@10": pytest.approx(1 / 3), "ndcg@10": pytest.approx(1 / 3 / 2)}  # 1 / log2(4)


def test_settings_are_chosen_on_validation_alone(data, tmp_path):
    good = right(data, LeaveOneOut())
    bad = {part: np.full_like(lists, -1) for part, lists in good.items()}
    saved(tmp_path / "lists" / "a", {"validation": bad["validation"], "test": good["test"]})
    saved(tmp_path / "lists" / "b", {"validation": good["validation"], "test": bad["test"]})
    peer = fake(tmp_path, {"take": "a"}, {"take": "b"})
    result = chosen(peer, ROW, data, LeaveOneOut(), tmp_path / "work")
    assert result["config"] == {"take": "b"}
    assert result["test"]["dimensions"]["0"]["mean"] == {"hit_rate@10": 0.0, "ndcg@10": 0.0}
    assert [(each["settings"]["take"], each["validation"]["ndcg@10"]) for each in result["tried"]] == [
        ("a", 0),
        ("b", 1),
    ]


@pytest.mark.parametrize(
    ("lists", "says"),
    [
        ([[2], [4]], r"expected integers \[3, 100\], a row for each query"),
        ([[2], [4], [5]], "query 2 lists item 5, which stands in its history"),
        ([[2], [4, 5, 4], [2]], "query 1 lists an item twice"),
        ([[7], [4], [2]], r"holds -1 to 7; item rows are 0 to 6"),
    ],
)
def test_lists_that_cannot_be_measured_are_refused(data, tmp_path, lists, says):
    saved(tmp_path, {"validation": lists_of(lists)})
    with pytest.raises(PeerError, match=says):
        answered(data, LeaveOneOut().cut(data), "validation", tmp_path)


def test_a_peer_that_fails_or_says_nothing_is_refused_whatever_an_earlier_run_left(data, tmp_path):
    saved(tmp_path / "lists", right(data, LeaveOneOut()))
    chosen(fake(tmp_path), ROW, data, LeaveOneOut(), tmp_path / "work")
    with pytest.raises(PeerError, match="fake stopped with exit status 3"):
        chosen(Peer("fake", (sys.executable, "-c", "exit(3)"), ({},)), ROW, data, LeaveOneOut(), tmp_path / "work")
    with pytest.raises(PeerError, match=r"validation\.npy is missing"):
        chosen(Peer("fake", (sys.executable, "-c", ""), ({},)), ROW, data, LeaveOneOut(), tmp_path / "work")


def test_sasrec_is_not_asked_about_sets(data, tmp_path):
    assert "sasrec" in peers_of(ROW, data)
    sets = prepared(tmp_path / "sets", [[0, 1, 2]], [["train", "validation", "test"]])
    assert "sasrec" not in peers_of(ROW, sets)


def test_without_their_environment_it_says_how_to_make_it(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RECSYS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(peers, "dataset", lambda *_: data.path)
    monkeypatch.setattr(peers, "PYTHON", tmp_path / "nowhere")
    with pytest.raises(SystemExit):
        main(["--row", "beauty", "--model", "ease"])
    assert "`make benchmarks-peers` makes it" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--row", "beauty", "--model", "popular-recent"])
    assert "popular-recent needs times" in capsys.readouterr().err


def test_a_result_is_written_as_those_of_ours_are(data, tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(peers, "dataset", lambda *_: data.path)
    monkeypatch.setattr(peers, "RESULTS", tmp_path / "results")
    assert main(["--row", "beauty", "--model", "item-knn-last-5", "--work", str(tmp_path / "work")]) == 0
    result = json.loads((tmp_path / "results" / "beauty" / "item-knn-last-5.json").read_text())
    assert (result["row"], result["model"], result["seed"]) == ("beauty", "item-knn-last-5", 0)
    assert result["config"] == {"neighbours": 500, "last": 5}
    assert result["dataset"] == data.manifest.digest
    assert result["test"]["queries"] == 3
    assert {"seconds", "threads", "cores", "date", "code", "validation"} <= set(result)


@pytest.mark.skipif(not PYTHON.is_file(), reason="`make benchmarks-peers` makes what this asks")
@pytest.mark.parametrize("name", ["ease", "ials"])
def test_peers_answer_the_toy(data, tmp_path, name):
    peer = peers_of(ROW, data)[name]
    result = chosen(Peer(name, peer.command, peer.grid[:1]), ROW, data, LeaveOneOut(), tmp_path / "work")
    assert result["test"]["queries"] == 3
    assert result["config"] == peer.grid[0]
