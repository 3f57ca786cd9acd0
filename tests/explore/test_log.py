"""A dataset as people look at it, on the toy, whose counts are known by hand."""

import pandas as pd
import pytest

from recsys.data.dataset import Dataset
from recsys.data.split import LeaveOneOut, TimeSplit
from recsys.explore.log import interactions, parts
from tests.toy import RING, START, USERS, ring_lengths


@pytest.fixture(scope="module")
def dataset(toy) -> Dataset:
    return Dataset.open(toy.dataset)


def test_interactions_are_those_of_the_log(dataset):
    log = interactions(dataset, LeaveOneOut().cut(dataset))
    assert list(log.columns) == ["user_id", "item_id", "time", "part"]
    own = log[log.user_id == "u13"]
    assert own.item_id.tolist() == [f"i{(13 + step) % RING}" for step in range(8)]
    assert own.time.iloc[0] == pd.Timestamp(START + 13 * 3600, unit="s", tz="UTC")
    assert own.part.tolist() == ["train"] * 6 + ["validation", "test"]
    assert "part" not in interactions(dataset)


def test_a_log_of_bare_pairs_has_two_columns(bare):
    assert list(interactions(Dataset.open(bare)).columns) == ["user_id", "item_id"]


def test_events_are_named(shop):
    dataset = Dataset.open(shop)
    assert set(interactions(dataset)["event"]) <= set(dataset.event_names)


def test_parts_of_leave_one_out(dataset):
    table = parts(dataset, LeaveOneOut().cut(dataset))
    assert table.index.tolist() == ["train", "validation", "test"]
    assert table.interactions.tolist() == [sum(ring_lengths()) - 2 * USERS, USERS, USERS]
    assert table.queries.tolist() == [0, USERS, USERS]
    assert table.users.tolist() == [USERS] * 3
    assert table.new_users.tolist() == [0] * 3
    assert table.loc["train", "items"] == RING
    assert table.loc["train", "from"] == pd.Timestamp(START, unit="s", tz="UTC")


def test_parts_of_a_cut_in_time_count_who_is_new(dataset):
    # Of 560 interactions the newest 10 % are the last 4 of user 72 and all of the seven users after, none in training.
    table = parts(dataset, TimeSplit(validation=0.1, test=0.1).cut(dataset))
    log = interactions(dataset, TimeSplit(validation=0.1, test=0.1).cut(dataset))
    for part in table.index:
        own = log[log.part == part]
        learnt = set(log[log.part == "train"].user_id)
        assert table.loc[part, "users"] == own.user_id.nunique()
        assert table.loc[part, "new_users"] == len(set(own.user_id) - learnt)
    assert table.loc["test", "interactions"] == 56
    assert table.loc["test", "new_users"] == 8
    assert table.loc["test", "from"] > table.loc["validation", "to"]
    # The first interaction of each of the seven has no history to be predicted from.
    assert table.loc["test", "queries"] == 56 - 7


def test_a_part_without_interactions_has_no_moments(dataset):
    table = parts(dataset, TimeSplit(validation=0.1, test=0.0).cut(dataset))
    assert table.loc["test", "interactions"] == 0
    assert table.loc["test", ["from", "to"]].isna().all()
