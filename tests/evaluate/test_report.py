"""The report: figures with their conditions, comparable or refused."""

import json
from collections.abc import Callable

import pytest

from recsys.data.dataset import Dataset
from recsys.data.split import LeaveOneOut
from recsys.evaluate.baselines import ItemKNN, Popular, Scorer
from recsys.evaluate.ranking import Result, evaluate
from recsys.evaluate.report import table, to_json

HISTORIES = [[0, 1, 2, 3], [0, 1, 3, 2], [0, 1, 4, 2], [3, 0, 4, 2, 3], [1, 2, 3]]


@pytest.fixture
def dataset(toy: Callable[..., Dataset]) -> Dataset:
    return toy(HISTORIES, 6)


@pytest.fixture
def results(dataset: Dataset) -> dict[str, Result]:
    split = LeaveOneOut()
    cuts = split.cut(dataset)
    scorers: dict[str, Scorer] = {"Popular": Popular(dataset, cuts), "item-kNN": ItemKNN(dataset, cuts)}
    return {
        name: evaluate(scorer, dataset, cuts, "test", split=split, ks=(1, 10), max_queries=3)
        for name, scorer in scorers.items()
    }


def test_no_figure_is_naked(results: dict[str, Result]) -> None:
    text = table(results)
    for said in (
        "test part of LeaveOneOut(min_history=1), 1970-01-03 to 1970-01-05",
        "3 queries of 3 users, 3 targets, 3 drawn at random with seed 0; every query ranks all 6 items; those of its "
        "history are left out, as the service does",
        "dropped of 5 queries: 1 targets seen before, 0 repeated targets, 1 queries with no target left",
        "± is the half width of a 95 % interval, clustered by user",
        "tail items: not among those which make up 80% of training (",
        "cold items: not in training at all (",
        "new users: nothing of theirs in training (0 queries of 0 users)",
    ):
        assert said in text
    lines = text.splitlines()
    header = next(line for line in lines if "NDCG@10" in line)
    first = lines[lines.index(header) + 2]
    assert first.startswith("Popular ")
    for column in ("NDCG@10", "MRR@10", "coverage@10", "queries/s"):  # right-aligned: both end in the same place
        end = header.index(column) + len(column)
        assert first[end - 1] != " "
        assert first[end : end + 1] in ("", " ")


def test_the_share_of_lists_that_cold_items_take_stands_beside_their_recall(results: dict[str, Result]) -> None:
    block = next(block for block in table(results).split("\n\n") if block.startswith("cold items: "))
    _, header, _, *rows = block.splitlines()
    assert header.endswith("recall@10  share of lists@10")
    for row, result in zip(rows, results.values(), strict=True):
        share = result.catalogue["cold_share@10"]
        assert share is not None
        assert share > 0
        assert row.endswith(f" {share:.1%}")


def test_json_says_the_same(results: dict[str, Result]) -> None:
    said = json.loads(to_json(results))
    assert said["conditions"]["sample"] == [3, 0]
    assert said["conditions"]["num_asked"] == 5
    knn = said["results"]["item-kNN"]
    assert knn["accuracy"]["ndcg@10"]["value"] == results["item-kNN"].accuracy["ndcg@10"].value
    assert set(knn["slices"]) == {"new users", "tail items", "cold items"}
    assert set(knn["catalogue"]) == {
        f"{name}@{k}" for name in ("coverage", "novelty", "popularity_lift", "cold_share") for k in (1, 10)
    }


def test_what_was_measured_otherwise_is_not_put_beside(dataset: Dataset, results: dict[str, Result]) -> None:
    split = LeaveOneOut()
    cuts = split.cut(dataset)
    results["seen"] = evaluate(
        Popular(dataset, cuts), dataset, cuts, "test", split=split, max_queries=3, include_seen=True
    )
    for report in (table, to_json):
        with pytest.raises(ValueError, match="seen and Popular cannot be compared: dropped_targets is 0 for one and 1"):
            report(results)


def test_nothing_to_report_is_an_error(results: dict[str, Result]) -> None:
    with pytest.raises(ValueError, match="there are no results to report"):
        table({})
    with pytest.raises(ValueError, match="k = 7 was not measured; evaluate with it among ks"):
        table(results, k=7)
