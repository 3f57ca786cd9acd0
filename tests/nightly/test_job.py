"""The nightly job, night after night over a small shop."""

import json
import shutil

import pytest

from recsys.nightly import job
from recsys.recommender import Event, Recommender
from recsys.registry import Registry
from tests.damage import flip
from tests.nightly.week import BEFORE, Shop


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A shop after its first night, and a copy of all its files."""
    shop = Shop(tmp_path_factory.mktemp("nights") / "shop")
    shop.run()
    shop.keep()
    return shop


@pytest.fixture
def shop(first):
    """The shop after its first night."""
    first.restore()
    return first


@pytest.fixture
def registry(shop):
    return Registry(shop.registry)


def content(registry, bundle):
    """What a bundle holds: its files by sha256, but for the verdict, which tells of times, too."""
    files = registry.verify(bundle).files
    return {name: said["sha256"] for name, said in files.items() if not name.startswith("verdict")}


def step(shop, night, name):
    return json.loads((shop.work / night / name / "manifest.json").read_text())["content"]


def test_the_first_night_reads_everything_and_trains_in_full(shop, registry):
    assert registry.current == shop.said["bundle"] == shop.said["live"]
    assert (shop.status, shop.said["outcome"], shop.said["failed"]) == (0, "promoted", [])
    assert step(shop, shop.said["night"], "fit")["because"] == "nothing is live yet"
    bundle = registry.open_current()
    assert {"verdict.json", "verdict.html"} < set(bundle.manifest.files)
    assert bundle.manifest.content["verdict"]["passed"]
    assert [said.why for said in registry.log()] == [f"night of {shop.said['night']}: every gate passed"]
    best = Recommender(bundle).recommend(history=[Event("i3"), Event("i4"), Event("i5")], k=1).items[0]
    assert best.item_id == "i6"


def test_a_night_without_a_new_row_ends_at_once_and_leaves_all_as_it_is(shop, registry):
    before = registry.current
    assert shop.run() == (0, "nothing new")
    assert (registry.current, len(registry.bundles())) == (before, 1)


def test_the_next_night_reads_what_is_new_and_goes_on_from_what_is_live(shop, registry):
    before, live = registry.current, registry.open_current()
    shop.day(BEFORE)
    assert shop.run() == (0, "promoted")
    night = shop.said["night"]
    assert step(shop, night, "fit")["mode"] == "warm"
    rows = len((shop.folder / "log" / f"{BEFORE:03}.csv").read_text().splitlines()) - 1
    assert step(shop, night, "snapshot")["interactions"] == rows
    bundle = registry.open_current()
    assert bundle.manifest.content["interactions"] == live.manifest.content["interactions"] + rows
    assert bundle.item_ids.array[: len(live.item_ids)].equals(live.item_ids.array)  # rows keep their place
    assert [said.bundle for said in registry.log()] == [before, bundle.id]
    assert registry.rollback(why="to see that it can be").bundle == before


def test_it_trains_in_full_one_night_in_so_many(shop):
    shop.change(full_every=2)
    told = []
    for day in range(BEFORE, BEFORE + 3):
        shop.day(day)
        shop.run()
        told.append(step(shop, shop.said["night"], "fit"))
    assert [one["mode"] for one in told] == ["warm", "full", "warm"]
    assert told[1]["because"] == "1 nights in a row went on, and one in 2 does not"


def test_it_trains_in_full_after_a_warm_model_was_refused_and_only_once(shop):
    modes = []
    for day in range(BEFORE, BEFORE + 3):
        shop.day(day)
        assert shop.run("--gates.min_live_coverage", "1.0", "--gates.max_score_shift", "1.0") == (3, "refused")
        modes.append(step(shop, shop.said["night"], "fit")["mode"])
    assert modes == ["warm", "full", "warm"]  # else a full training that is never good enough would go on for ever


@pytest.mark.parametrize(
    ("poison", "gate", "options"),
    [
        ("half the rows broken", "rejected rows", []),
        ("labels shuffled", "popularity", []),
        ("one category gone", "categories", []),
        (None, "training", ["--fit.model.learning_rate", "1000", "--warm_start", "null"]),
    ],
)
def test_a_poisoned_night_is_refused_by_the_gate_meant_for_it(shop, registry, poison, gate, options):
    before = registry.current
    shop.day(BEFORE, poison)
    assert shop.run(*options) == (3, "refused")
    assert gate in shop.said["failed"]
    assert registry.current == shop.said["live"] == before
    registry.verify(before)
    page = (shop.work / shop.said["night"] / "gates" / "verdict.html").read_text()
    assert str(shop.work / shop.said["night"]) in shop.said["report"]
    assert gate in page
    if gate == "popularity":  # far enough to have a candidate: it is kept, and says so itself
        assert registry.manifest(shop.said["bundle"]).content["verdict"]["failed"] == shop.said["failed"]
        assert json.loads((registry.bundle_path(shop.said["bundle"]) / "verdict.json").read_text())["passed"] is False
    shop.day(BEFORE)
    assert shop.run() == (0, "promoted")  # the same day once more, as it should have been
    fitted = step(shop, shop.said["night"], "fit")
    assert fitted["mode"] == "warm"  # what was refused was the day, or a full training
    assert step(shop, shop.said["night"], "prepare")["added"]["rejected"] == {}


def test_a_rerun_goes_on_at_the_step_that_broke_and_ends_the_same(shop, registry, monkeypatch):
    shop.day(BEFORE)
    shop.run()
    undisturbed = content(registry, registry.current)
    shop.restore()
    shop.day(BEFORE)

    def broken(*_, **__):
        raise OSError(5, "the disk gave up")

    with monkeypatch.context() as patch:
        patch.setattr(job, "write_index", broken)
        assert shop.run() == (1, "failed")
    assert shop.said["why"] == "[Errno 5] the disk gave up"
    (night,) = [folder for folder in shop.work.iterdir() if not (folder / "result.json").exists()]
    done = {name: (night / name).stat().st_mtime_ns for name in ("snapshot", "prepare", "fit", "embed")}
    assert shop.run() == (0, "promoted")
    assert shop.said["night"] == night.name
    assert {name: (night / name).stat().st_mtime_ns for name in done} == done
    assert content(registry, registry.current) == undisturbed


def test_a_step_that_was_damaged_is_made_again_with_all_that_came_after(shop, registry, monkeypatch):
    shop.day(BEFORE)
    with monkeypatch.context() as patch:
        patch.setattr(job, "seal", lambda *_, **__: 1 / 0)
        assert shop.run() == (1, "failed")
    (night,) = [folder for folder in shop.work.iterdir() if not (folder / "result.json").exists()]
    flip(night / "embed" / "item_vectors.npy")
    made = {name: (night / name).stat().st_mtime_ns for name in ("fit", "embed", "index", "evaluate")}
    assert shop.run() == (0, "promoted")
    again = {name for name in made if (night / name).stat().st_mtime_ns != made[name]}
    assert again == {"embed", "index", "evaluate"}


def stopped_after(shop, monkeypatch, name):
    """A night that was stopped right after a step."""
    shop.day(BEFORE)
    original = job._Job._end

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job._Job, name, stop)
        with pytest.raises(KeyboardInterrupt):
            shop.run()
    assert job._Job._end is original


def test_a_job_stopped_after_its_promotion_ends_it_without_another(shop, registry, monkeypatch):
    stopped_after(shop, monkeypatch, "_end")
    promoted = registry.current
    assert shop.run() == (0, "promoted")
    assert (shop.said["bundle"], registry.current, len(registry.bundles())) == (promoted, promoted, 2)
    assert len(registry.log()) == 2


def test_who_was_rolled_back_before_the_rerun_stays_so(shop, registry, monkeypatch):
    first = registry.current
    stopped_after(shop, monkeypatch, "_retire")
    assert registry.rollback(why="complaints").bundle == first
    shop.run()
    assert registry.current == first


def test_a_night_under_another_configuration_is_another_night(shop, monkeypatch):
    stopped_after(shop, monkeypatch, "_seal")
    (night,) = [folder for folder in shop.work.iterdir() if not (folder / "result.json").exists()]
    assert shop.run("--keep", "5") == (0, "promoted")
    assert shop.said["night"] != night.name
    assert json.loads((night / "result.json").read_text())["why"].startswith("the configuration or the live bundle")


def test_a_night_that_was_stopped_long_ago_is_given_up(shop, monkeypatch):
    stopped_after(shop, monkeypatch, "_seal")
    (night,) = [folder for folder in shop.work.iterdir() if not (folder / "result.json").exists()]
    night.rename(night.with_name("20200101T000000Z"))
    shop.day(BEFORE + 1)
    assert shop.run() == (0, "promoted")
    assert shop.said["night"] != "20200101T000000Z"


def test_without_the_night_that_made_the_live_bundle_all_is_read_and_trained_anew(shop, registry):
    shutil.rmtree(shop.work)
    shop.day(BEFORE)
    assert shop.run() == (0, "promoted")
    assert (
        step(shop, shop.said["night"], "fit")["because"] == "the night that made the live bundle is not here any more"
    )
    assert len(registry.bundles()) == 2


def test_a_live_bundle_that_is_damaged_does_not_keep_a_sound_one_out(shop, registry):
    broken = registry.current
    flip(registry.bundle_path(broken) / "item_vectors.npy")
    shop.day(BEFORE)
    assert shop.run() == (0, "promoted")
    assert registry.current != broken
    registry.open_current()


def test_old_nights_and_bundles_go_and_what_is_live_and_was_before_stays(shop, registry):
    for day in range(BEFORE, BEFORE + 3):
        shop.day(day)
        shop.run("--keep", "1")
    assert registry.bundles() == sorted([registry.current, registry.previous])
    assert len(list(shop.work.iterdir())) == 2
    shop.day(BEFORE + 3)
    shop.run("--keep", "1")
    assert step(shop, shop.said["night"], "fit")["mode"] == "warm"  # what it builds on was not retired


def test_a_source_that_cannot_be_read_fails_the_night_and_says_so(shop, registry):
    live = registry.current
    shutil.rmtree(shop.folder / "log")
    assert shop.run() == (1, "failed")
    assert "log matches no file; check the path" in shop.said["why"]
    assert registry.current == live


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep", "0"], "keep is 0; give at least 1"),
        (["--fit.data.dataset", "x"], "fit.data.dataset is the job's to say; leave it out"),
        (["--fit.loss", "x"], "fit has no 'loss'; it takes trainer, data, model"),
        (["--gates.tolerance", "5"], "gates.tolerance is 5"),
        (["--fit.model.learning_rat", "1"], "`recsys fit` does not take `fit` of this configuration"),
        (["--warm_start.fit.trainer.max_epoch", "1"], "`recsys fit` does not take `fit` of this configuration"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(shop, options, message):
    assert shop.run(*options) == (2, "told wrong")
    assert message in shop.said["why"]
