import numpy as np
import pyarrow as pa
import pytest

from recsys.data.synthetic import FOLLOW, STAY, Synthetic

COLUMNS = ["user_id", "item_id", "time", "event"]


def log_of(shop, columns=COLUMNS):
    return pa.Table.from_batches([batch.columns for batch in shop.interactions.batches(columns)])


def test_equal_arguments_give_equal_rows_and_another_seed_gives_others():
    def rows(seed):
        return log_of(Synthetic(100, 50, 20_000, seed=seed)).to_pydict()

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)


def test_the_columns_asked_for_do_not_change_the_draw():
    shop = Synthetic(100, 50, 5000)
    assert log_of(shop, ["time", "user_id"]).to_pydict() == log_of(shop).select(["time", "user_id"]).to_pydict()


def test_rows_are_in_order_of_time_and_within_the_sizes():
    log = log_of(Synthetic(100, 53, 20_000, clusters=7))
    assert log.num_rows == 20_000
    assert (np.diff(log["time"].to_numpy()) >= 0).all()
    assert 0 <= log["user_id"].to_numpy().min() <= log["user_id"].to_numpy().max() < 100
    assert set(log["item_id"].to_numpy()) == set(range(53))


def test_the_next_item_comes_from_the_cluster_that_the_structure_says():
    shop = Synthetic(200, 100, 40_000, clusters=10)
    log = log_of(shop)
    users, clusters = log["user_id"].to_numpy(), log["item_id"].to_numpy() % 10
    order = np.argsort(users, kind="stable")
    follows = np.diff(users[order]) == 0
    before, after = clusters[order][:-1][follows], clusters[order][1:][follows]
    half = (1 - STAY - FOLLOW) / 2  # the favourite may be the same cluster, too
    moved = shop.following[before] != before
    assert np.mean(after[moved] == before[moved]) == pytest.approx(STAY + half, abs=half)
    assert np.mean(after[moved] == shop.following[before][moved]) == pytest.approx(FOLLOW + half, abs=half)


def test_popularity_within_a_cluster_falls_as_one_over_rank():
    log = log_of(Synthetic(200, 1000, 100_000, clusters=10))
    counts = np.bincount(log["item_id"].to_numpy() // 10)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.5)


def test_title_and_category_tell_the_cluster():
    shop = Synthetic(items=60, clusters=3)
    assert shop.items is not None
    (batch,) = shop.items.batches(["item_id", "title", "category"])
    words: dict[str, set[str]] = {}
    for row in batch.columns.to_pylist():
        assert row["category"] == f"category {row['item_id'] % 3}"
        words.setdefault(row["category"], set()).update(row["title"].split()[:2])
    assert not set.intersection(*words.values())
    assert all(len(of_cluster) <= 8 for of_cluster in words.values())


def test_dirt_comes_as_ordered():
    log = log_of(Synthetic(100, 50, 10_000, duplicates=0.1, broken=0.02))
    assert log["item_id"].null_count == 200
    assert log.num_rows == pytest.approx(11_200, abs=150)


def test_more_clusters_than_items_are_refused():
    with pytest.raises(ValueError, match="10 clusters do not fit 5 items"):
        Synthetic(items=5)
