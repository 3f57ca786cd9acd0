"""Leaks on the toy: who took what is known by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from recsys.data.dataset import Dataset
from recsys.data.split import LeaveOneOut, TimeSplit
from recsys.explore.dial import dial, split_said
from recsys.explore.duplicates import duplicates
from recsys.explore.leaks import leaks
from recsys.explore.space import Space
from recsys.index.build import Flat
from tests.toy import RING, USERS, ring_lengths


@pytest.fixture
def data(toy):
    return Dataset.open(toy.dataset)


@pytest.fixture
def space(toy_bundle):
    return Space.of(toy_bundle)


def test_a_bundle_remembers_its_split_and_what_is_no_split_is_none(space, toy_bundle):
    assert split_said(space) == LeaveOneOut()

    def said(text):
        results = {"conditions": {"split": text}}
        content = toy_bundle.manifest.content | {"evaluation": {"results": results}}
        return split_said(
            replace(space, bundle=replace(toy_bundle, manifest=replace(toy_bundle.manifest, content=content)))
        )

    assert said("TimeSplit(validation=0.1, test='7d')") == TimeSplit(0.1, "7d")
    for text in (
        "given cuts",
        "",
        "Other(x=1)",
        "TimeSplit(validation=__import__('os'))",
        "TimeSplit(1)(2)",
        "TimeSplit(y=2)",
    ):
        assert said(text) is None
    assert split_said(Space.made(np.ones((3, 2)))) is None


def test_nothing_leaks_from_the_toy(space, data):
    found = leaks(space, data)
    assert found.table["count"].to_dict() == dict.fromkeys(found.table.index, 0)
    assert found.trained_until == found.allowed_until
    assert found.table.loc["twins across the cut", "of"] == USERS


def test_twins_are_counted_where_the_last_item_follows_its_copy(space, data):
    row = {item: at for at, item in enumerate(space.ids)}
    group = np.full(len(space), -1)
    group[[row["i3"], row["i4"]]] = 0
    twice = replace(duplicates(space), group_of=group)
    found = leaks(space, data, found=twice)
    # User u ends with item (u + length − 1) mod 12, and took the one before it just before.
    ending = [user for user, length in enumerate(ring_lengths()) if (user + length - 1) % RING == 4]
    assert found.twins["user_id"].tolist() == [f"u{user}" for user in ending] or set(found.twins["user_id"]) == {
        f"u{user}" for user in ending
    }
    assert (found.twins["item_id"] == "i4").all()
    assert (found.twins["twin_title"] == "Item number 3").all()


def test_a_training_that_ended_after_the_cut_is_told(space, data):
    found = leaks(space, data, split=TimeSplit(0.1, 0.3))
    assert found.trained_until > found.allowed_until


def test_an_item_that_only_the_test_has_must_not_be_known(shop_bundle, shop):
    data, split = Dataset.open(shop), LeaveOneOut()
    assert not len(leaks(Space.of(shop_bundle), data, split=split).unlawful)
    cheat = replace(shop_bundle, trained=np.ones_like(shop_bundle.trained))
    assert leaks(Space.of(cheat), data, split=split).unlawful["item_id"].tolist() == ["i19"]


def test_another_dataset_is_told_by_its_ids(space, shop):
    found = leaks(space, Dataset.open(shop), split=LeaveOneOut())
    assert found.table.loc["unknown items", "count"] == 1  # "new"; i0 to i11 are in both
    assert found.table.loc["renamed items", "share"] == 1.0  # which shows no titles
    assert found.table.loc["other histories", "share"] > 0.9


def test_the_dial_turns_over_dimensions_with_quality_beside_cost(space, data):
    table = dial(space, data, dimensions=(16, 8), kinds=((Flat(),),), slow=())
    assert table["dimension"].tolist() == [16, 16, 8]
    assert table["index"].tolist() == ["X @ q", "Flat", "Flat"]
    assert table["trained"].tolist() == [True, True, False]
    assert table.loc[1, "recall@10"] == 1.0
    assert table.loc[2, "recall@10"] <= 1.0
    said = space.bundle.manifest.content["evaluation"]["results"]["results"]["two towers"]["accuracy"]["ndcg@10"]
    assert table.loc[1, "ndcg@10"] == pytest.approx(said["value"])
    assert table["ndcg@10"].notna().all()
    assert pd.isna(dial(space, dimensions=(8,), kinds=((Flat(),),), slow=())["ndcg@10"]).all()
    with pytest.raises(ValueError, match="these vectors are of no bundle"):
        leaks(Space.made(np.ones((3, 2))), data)
