"""The rows of the quality table: data, protocol, what is published, and what we aim at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality import data
from recsys.data.sources import Tables

CONFIGS = Path("configs/quality")


@dataclass(frozen=True)
class Row:
    """One row, for each of its metrics.

    Args:
        name: of the row, its configuration and its results.
        what: data and protocol, for people.
        tables: makes the data.
        metrics: names as `evaluate` gives them, at the protocol's cut-offs.
        anchors: the best published figure of each metric; empty if there is none and the best baseline counts.
        source: whose figures these are.
        targets: what we aim at.
        seeds: how many runs the figures are means of.
        above: where there is no anchor, what we aim at instead, as so many times the best baseline measured here.
        cuts: if any, the row is about vectors cut to D / cut: its one metric's share of the uncut vectors', a figure,
            an anchor and a target for each cut.
    """

    name: str
    what: str
    tables: Callable[[Path], Tables]
    metrics: tuple[str, ...]
    anchors: tuple[float, ...]
    source: str
    targets: tuple[float, ...]
    seeds: int = 3
    above: float | None = None
    cuts: tuple[int, ...] = ()
    closed_form: bool = False  # solved by benchmarks.quality.news, not trained
    cold: bool = False  # every target is an item that training did not see

    @property
    def config(self) -> Path:
        """What `recsys fit` is given."""
        return CONFIGS / f"{self.name}.yaml"

    @property
    def beside(self) -> tuple[str, ...]:
        """What is told without an aim: of cold items, their recall when only they compete, and their share of lists.

        A scorer that puts every cold item before all others is better by its metric, and of no use to anybody.
        """
        return tuple(name.format(*metric.split("@")) for metric in self.metrics for name in (ALONE, SHARE) if self.cold)

    @property
    def cut_offs(self) -> list[int]:
        """The k of the metrics."""
        return sorted({int(metric.partition("@")[2]) for metric in self.metrics})


ALONE, SHARE = "{0}@{1}, only they compete", "their share of lists@{1}"
AT_10 = ("hit_rate@10", "ndcg@10")
AT_20 = ("recall@20", "ndcg@20")

ROWS = (
    Row(
        "ml-1m-time-blind",
        "MovieLens 1M, 3,416 items, leave-one-out, without the target's time",
        data.movielens_frequent,
        AT_10,
        (0.3159, 0.1857),
        "SASRec+, 3,000 negatives",
        (0.335, 0.200),
    ),
    Row(
        "ml-1m-time-aware",
        "MovieLens 1M, 3,706 items, leave-one-out, with the target's time",
        data.movielens_all,
        AT_10,
        (0.3642, 0.2164),
        "HSTU-large (RecTools)",
        (0.370, 0.220),
    ),
    Row(
        "beauty",
        "Amazon Beauty 5-core, 12,101 items, leave-one-out",
        data.beauty,
        AT_10,
        (0.0928, 0.0531),
        "eSASRec; SASRec with sampled softmax",
        (0.098, 0.056),
    ),
    Row(
        "gowalla",
        "Gowalla, LightGCN split, a tenth of train held out",
        data.gowalla,
        AT_20,
        (0.1920, 0.1617),
        "BSPM-EM; NESCL",
        (0.192, 0.162),
    ),
    Row(
        "gowalla-in-order",
        "Gowalla as above, lists read in their order, which the published models are not told",
        data.gowalla,
        AT_20,
        (0.1920, 0.1617),
        "BSPM-EM; NESCL",
        (0.192, 0.162),
    ),
    Row(
        "news",
        "Clicks on news (globo), articles unseen by the user, asked at every click from 16 October 2017 on",
        data.globo,
        AT_10,
        (),
        "popular of the last hours, item-kNN, EASE and SASRec, measured here",
        (),
        above=1.1,
        closed_form=True,
    ),
    Row(
        "matryoshka",
        "MovieLens 1M as in ml-1m-time-blind: one model's vectors, cut",
        data.movielens_frequent,
        ("ndcg@10",),
        (),
        "no curve was published",
        (0.99, 0.98),
        cuts=(4, 8),
    ),
    Row(
        "cold-ml-1m",
        "MovieLens 1M, a tenth of the films withheld from training, found by plot, people, title and genres",
        data.movielens_cold,
        ("recall@50",),
        (),
        "content kNN and popular, measured here",
        (),
        above=1.5,
        cold=True,
    ),
    Row(
        "cold-beauty",
        "Amazon Beauty, a tenth of the items withheld from training, found by title and attributes",
        data.beauty_cold,
        ("recall@50",),
        (),
        "content kNN and popular, measured here",
        (),
        above=1.5,
        cold=True,
    ),
)


def named(name: str) -> Row:
    """The row of that name.

    Raises:
        KeyError: there is none.
    """
    return {row.name: row for row in ROWS}[name]
