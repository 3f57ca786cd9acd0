"""The news row: everybody is asked the same queries, and peers are told of nothing that they may not know."""

import numpy as np
import pytest
import yaml

from benchmarks.quality import news
from benchmarks.quality.rows import named
from recsys.data.split import TimeSplit
from recsys.evaluate.ranking import evaluate
from recsys.trends.moment import Settings
from tests.evaluate.conftest import toy

__all__ = ["toy"]
SPLIT = TimeSplit("1970-01-11", "1970-01-21")  # days 10 and 20


@pytest.fixture
def data(toy, monkeypatch):
    """Forty users, each on ten of the thirty days, with twelve items."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(news, "SPLIT", SPLIT)
    monkeypatch.setattr(news, "QUERIES", 30)
    days = [np.sort(rng.choice(30, 10, replace=False)).tolist() for _ in range(40)]
    return toy([rng.integers(12, size=10).tolist() for _ in days], 12, times=days)


class Recorder:
    """Notes which queries it is asked."""

    def __init__(self, num_items):
        self.num_items, self.ends, self.targets = num_items, [], []

    def scores(self, queries):
        self.ends += queries.end.tolist()
        self.targets += queries.targets.tolist()
        return np.zeros((len(queries), self.num_items), dtype=np.float32)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_lists_are_made_for_the_queries_that_are_measured(data, part):
    recorder = Recorder(12)
    evaluate(recorder, data, SPLIT.cut(data), part, max_queries=news.QUERIES)
    asked = news.sampled(data, part)
    assert len(asked) == 30
    assert (asked.end.tolist(), asked.targets.tolist()) == (recorder.ends, recorder.targets)


def test_peers_learn_from_the_last_days_of_training_about_the_items_taken_most(data, tmp_path):
    known = news.ask_some(data, tmp_path, days=4, most=5)
    times, items, users = np.asarray(data.times) // 86_400_000, np.asarray(data.items), data.user_rows
    there = (times < 10) & (times > 5)
    counts = np.bincount(items[there], minlength=12)
    assert len(known) == 5
    assert counts[known].min() >= np.delete(counts, known).max()
    there &= np.isin(items, known)
    told = known[np.load(tmp_path / "train_item.npy")]
    assert told.tolist() == items[there].tolist()
    user = np.load(tmp_path / "train_user.npy")
    assert (np.diff(user) != 0).tolist() == (np.diff(users[there]) != 0).tolist()
    asked = news.sampled(data, "test")
    offsets, read = np.load(tmp_path / "test_offsets.npy"), np.load(tmp_path / "test_items.npy")
    for query, (one, end) in enumerate(zip(asked.user, asked.end, strict=True)):
        history = items[data.user_offsets[one] : end]
        assert known[read[offsets[query] : offsets[query + 1]]].tolist() == history[np.isin(history, known)].tolist()


def test_the_configuration_is_one_that_the_model_takes():
    text = named("news").config.read_text(encoding="utf-8")
    assert text.splitlines()[0] == "# python -m benchmarks.quality --row news"
    said = yaml.safe_load(text)
    assert set(said) == {"minutes", "fitted_on", "settings"}
    Settings(**said["settings"])
