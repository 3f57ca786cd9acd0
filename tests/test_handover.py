"""The whole way on toy data: from raw rows to answers that are known by hand."""

from __future__ import annotations

import json

from recsys.bundle import Bundle
from recsys.data.dataset import Dataset
from recsys.recommender import Event, Recommender
from tests.toy import RING, USERS, Toy, ring_lengths


def test_prepare_keeps_every_good_row_and_counts_the_bad_one(toy: Toy) -> None:
    dataset = Dataset.open(toy.dataset)
    assert len(dataset) == sum(ring_lengths())
    assert sum(dataset.manifest.content["counts"]["rejected"].values()) == 1
    assert (dataset.num_users, dataset.num_items) == (USERS, RING + 1)


def test_evaluation_finds_that_the_next_item_on_the_ring_comes_first(toy: Toy) -> None:
    results = json.loads(toy.evaluation.read_text())["results"]
    assert results["results"]["two towers"]["accuracy"]["ndcg@5"]["value"] > 0.95


def test_a_known_user_gets_the_next_item_on_the_ring(toy_bundle: Bundle) -> None:
    recommender = Recommender(toy_bundle)
    for user, length in enumerate(ring_lengths()):
        answer = recommender.recommend(user_id=f"u{user}", k=1)
        assert (answer.strategy, answer.items[0].item_id) == ("personalised", f"i{(user + length) % RING}")


def test_an_unknown_user_is_served_from_the_history_in_the_request(toy_bundle: Bundle) -> None:
    recommender = Recommender(toy_bundle)
    for first in range(RING):
        history = [Event(f"i{(first + step) % RING}") for step in range(4)]
        answer = recommender.recommend(history=history, k=1)
        assert (answer.strategy, answer.items[0].item_id) == ("history", f"i{(first + 4) % RING}")
