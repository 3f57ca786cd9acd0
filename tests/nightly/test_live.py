"""The live bundle asked about another dataset: known answers of the ring, whatever rows its items have there."""

import dataclasses

import numpy as np
import pytest

from recsys.data.dataset import Dataset
from recsys.data.prepare import prepare
from recsys.data.sources import Csv, Tables
from recsys.data.split import LeaveOneOut, queries_of
from recsys.evaluate.ranking import evaluate
from recsys.model.embed import TowerScorer, Trained
from recsys.model.hstu import HSTU
from recsys.model.towers import Towers
from recsys.nightly.live import BundleScorer
from tests.toy import RING, START


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    """Users who are new, in a log whose rows and catalogue come in another order, with an item that is new, too."""
    folder = tmp_path_factory.mktemp("another")
    rows = ["who,what,when"]
    for user in range(20):
        rows += [f"v{user},i{(RING - user + step) % RING},{START + 60 * step}" for step in range(6)]
    rows += [f"v{user},fresh,{START + 6000}" for user in range(20)]
    (folder / "log.csv").write_text("\n".join(rows) + "\n")
    (folder / "items.csv").write_text("sku,title\nfresh,Item never seen\ni11,Eleven\n")
    schema = {
        "interactions": {"user": "who", "item": "what", "time": "when"},
        "items": {"id": "sku", "features": {"title": "text"}},
    }
    tables = Tables(schema, Csv(str(folder / "log.csv")), Csv(str(folder / "items.csv")))
    return prepare(tables, folder / "dataset")


def test_items_are_matched_by_id_and_features_that_are_gone_are_null(toy_bundle, another):
    result = evaluate(BundleScorer(toy_bundle, another), another, LeaveOneOut().cut(another), "validation")
    assert result.conditions.num_queries == 20
    assert result.accuracy["ndcg@10"].value == pytest.approx(1)  # after each item of the ring comes the next


def test_an_item_that_the_bundle_does_not_know_cannot_be_recommended(toy_bundle, another):
    scorer = BundleScorer(toy_bundle, another)
    cuts = LeaveOneOut().cut(another)
    scores = scorer.scores(queries_of(another, cuts, "test"))
    fresh = another.item_ids.row("fresh")
    assert np.isneginf(scores[:, fresh]).all()
    assert np.isfinite(np.delete(scores, fresh, axis=1)).all()
    assert evaluate(scorer, another, cuts, "test").accuracy["ndcg@10"].value == 0


def test_on_its_own_dataset_it_scores_as_the_checkpoint_does(toy, toy_bundle):
    data = Dataset.open(toy.dataset)
    queries = queries_of(data, LeaveOneOut().cut(data), "test")
    expected = TowerScorer(Trained.open(toy.checkpoint), data).scores(queries)
    np.testing.assert_allclose(BundleScorer(toy_bundle, data).scores(queries), expected, atol=1e-4)


def test_events_are_matched_by_name(shop_bundle, shop, monkeypatch):
    data = Dataset.open(shop)
    queries = queries_of(data, LeaveOneOut().cut(data), "test")
    straight = BundleScorer(shop_bundle, data).scores(queries)
    turned = Dataset(**{**vars(data), "events": 2 - np.asarray(data.events)})
    assert np.abs(BundleScorer(shop_bundle, turned).scores(queries) - straight).max() > 1e-3  # other events indeed
    monkeypatch.setattr(Dataset, "event_names", property(lambda self: ["view", "cart", "buy"][::-1]))
    assert shop_bundle.manifest.content["event_names"] == ["view", "cart", "buy"]
    np.testing.assert_allclose(BundleScorer(shop_bundle, turned).scores(queries), straight, atol=1e-5)


def test_towers_that_are_told_when_they_are_asked_are_told_so_here(shop_bundle, shop):
    architecture = dataclasses.replace(shop_bundle.towers.architecture, encoder=HSTU, query_time=True)
    bundle = dataclasses.replace(shop_bundle, towers=Towers(shop_bundle.towers.sizes, architecture).eval())
    data = Dataset.open(shop)
    queries = queries_of(data, LeaveOneOut().cut(data), "test")
    times = np.array(data.times)
    times[queries.end] += 10**9  # when each target was taken, and so when its question is asked
    soon, late = (BundleScorer(bundle, each).scores(queries) for each in (data, dataclasses.replace(data, times=times)))
    assert (np.abs(late - soon).max(axis=1) > 1e-4).all()
