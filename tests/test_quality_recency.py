"""The choice of recency: one training, measured with each, on lists whose order is known to matter."""

import json
from dataclasses import dataclass

import pyarrow as pa
import yaml

from benchmarks.quality import data, recency
from benchmarks.quality.rows import CONFIGS, Row
from recsys.data.schema import Interactions, Schema
from recsys.data.sources import Tables

RING, LENGTH, AHEAD = 24, 8, 2


def rings(raw):
    """Whoever starts at s takes s, s + 1, … of a ring; a set says of what follows what it says of what is before."""
    starts = [start for start in range(RING) for _ in range(4)]
    taken = [(str(user), (start + n) % RING, n) for user, start in enumerate(starts) for n in range(LENGTH + AHEAD)]
    parts = ["train" if n < LENGTH else "validation" for *_, n in taken]
    users, items, _ = zip(*taken, strict=True)
    log = pa.table({"user": users, "item": [str(item) for item in items], "part": parts})
    return Tables(Schema(Interactions(user="user", item="item", part="part")), data.Held("log", log))


def test_one_training_is_measured_with_each_recency(tmp_path, monkeypatch, capsys):
    config = yaml.safe_load((CONFIGS / "gowalla-in-order.yaml").read_text(encoding="utf-8"))
    config["model"]["architecture"]["dimension"] = 16
    config["data"]["batch_positions"] = 256
    path = tmp_path / "ring.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")

    @dataclass(frozen=True)
    class Ring(Row):
        config = path

    metrics = (f"recall@{AHEAD}", f"ndcg@{AHEAD}")
    monkeypatch.setattr(recency, "ROW", Ring("ring", "a ring", rings, metrics, (), "", ()))
    monkeypatch.setenv("RECSYS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["recency", "--json", "--work", str(tmp_path), "--recency", "0", "2"])
    recency.main()
    plain, recent = json.loads(capsys.readouterr().out)["rows"]
    assert (plain["recency"], recent["recency"]) == (0, 2)
    # One of the two that come next is as likely as one of the two before; what was taken last decides.
    assert 0.3 < plain[metrics[0]] < 0.7
    assert recent[metrics[0]] > 0.95
