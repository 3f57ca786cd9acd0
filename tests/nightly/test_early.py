"""The gates that stop a night early, on figures worked out by hand."""

import math

import numpy as np
import pytest

from recsys.nightly import early
from recsys.nightly.gates import Gates, Outcome
from tests.nightly.made import DAY, added, dataset

OFF = Gates(**{name: None for name in vars(Gates()) if name != "category_share"})


def gate(outcomes: list[Outcome], name: str) -> Outcome:
    (found,) = [outcome for outcome in outcomes if outcome.gate == name]
    return found


@pytest.fixture
def base(tmp_path):
    """Ten days of 20 rows each: item 0 takes half of them, item 1 three tenths, item 2 the rest."""
    a_day = [0] * 10 + [1] * 6 + [2] * 4
    days = [day + at / 20 for day in range(10) for at in range(20)]
    return dataset(tmp_path / "base", a_day * 10, ["Acme", "Knit", "Peak"], days=days)


def grown(base, tmp_path, tonight, brands=("Acme", "Knit", "Peak", "New"), **columns):
    """Base and tonight's items."""
    columns = columns or {}
    return dataset(tmp_path / "grown", [*base.items.tolist(), *tonight], list(brands), **columns)


def test_every_gate_can_be_switched_off_and_says_so(base, tmp_path):
    new = grown(base, tmp_path, [0] * 100)
    outcomes = early.data(OFF, added(rejected={"bad": 100}), base, new)
    outcomes += early.training(OFF, {"train_loss": [(0, 1.0), (1, 9.0)]}, np.ones((4, 2)), np.ones(4, dtype=bool))
    assert [one.gate for one in outcomes] == [
        "rejected rows", "volume", "categories", "catalogue", "training", "vectors",
    ]  # fmt: skip
    assert all(one.passed and not one.measured and one.said == "switched off in the settings" for one in outcomes)


@pytest.mark.parametrize(("name", "value"), [("max_rejected", 1.5), ("tolerance", -0.1), ("max_size", 0.5)])
def test_a_limit_that_cannot_be_meant_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"gates.{name} is {value}; it goes from . to .*, and null switches it off"):
        Gates(**{name: value})


def test_rejected_rows_of_a_table_are_judged_by_themselves():
    tables = {"users": {"read": 50, "rejected": {}}, "items": {"read": 10, "rejected": {"missing id": 5}}}
    one = early._rejected(0.01, added(tables=tables))
    assert (one.passed, one.figure) == (False, 0.5)
    assert "5 of tonight's 10 rows of the table of items could not be used (50 %)" in one.said
    assert "5 of them for 'missing id'" in one.said


@pytest.mark.parametrize(("rejected", "passed"), [(0, True), (1, True), (2, False), (50, False)])
def test_rejected_rows_are_a_share_of_those_read(rejected, passed):
    said = added(rejected={"time is no number": rejected} if rejected else {})
    one = early._rejected(0.01, said)
    assert (one.passed, one.figure, one.limit) == (passed, rejected / 100, 0.01)
    assert f"{rejected} of tonight's 100 rows could not be used ({rejected} %)" in one.said
    assert ("'time is no number'" in one.said) == (rejected > 0)
    assert ("mend the source" in one.said) == (not passed)


def test_the_commonest_reason_is_named():
    said = early._rejected(0.01, added(rejected={"rare": 1, "common": 30, "other": 2})).said
    assert "33 of tonight's 100" in said
    assert "30 of them for 'common'" in said


def test_a_night_without_rows_rejects_none():
    one = early._rejected(0.01, added(interactions_read=0, interactions=0))
    assert (one.passed, one.measured, one.said) == (True, False, "not measured: no row was read tonight")


# Base ends at day 9.95; its last week has 140 rows, 20 a day. Tonight goes on to day 10.95.
@pytest.mark.parametrize(
    ("rows", "passed", "ratio", "limit", "sense"),
    [
        (20, True, 1.0, 5.0, "≤"),
        (100, True, 5.0, 5.0, "≤"),
        (101, False, 5.05, 5.0, "≤"),
        (4, True, 0.2, 0.2, "≥"),
        (3, False, 0.15, 0.2, "≥"),
    ],
)
def test_volume_is_rows_a_day_against_the_last_week(base, rows, passed, ratio, limit, sense):
    tonight = added(interactions=rows, time_range=[0, round(10.95 * DAY)])  # a late row does not stretch the night
    one = early._volume(Gates(), tonight, base)
    assert (one.passed, one.limit, one.sense) == (passed, limit, sense)
    assert one.figure == pytest.approx(ratio)
    assert f"{rows:,} rows a day tonight" in one.said
    assert "the 20 of the 7 days before" in one.said
    if not passed:
        assert ("export whole?" if rows < 20 else "exported twice") in one.said


def test_two_days_at_once_are_not_twice_as_many_a_day(base):
    one = early._volume(Gates(), added(interactions=40, time_range=[0, round(11.95 * DAY)]), base)
    assert one.figure == pytest.approx(1.0)


def test_volume_has_each_bound_on_its_own(base):
    few, many = (added(interactions=rows, time_range=[0, round(10.95 * DAY)]) for rows in (1, 1000))
    assert early._volume(Gates(min_volume=None), few, base).passed
    assert not early._volume(Gates(min_volume=None), many, base).passed
    assert early._volume(Gates(max_volume=None), many, base).passed
    assert not early._volume(Gates(max_volume=None), few, base).passed


def test_volume_that_cannot_be_measured_says_why(base, tmp_path):
    timeless = dataset(tmp_path / "timeless", [0, 1], ["a", "b"])
    for said, old, why in (
        (added(), None, "no earlier dataset"),
        (added(), timeless, "without times"),
        (added(time_range=None), base, "without times"),
        (added(time_range=[DAY, 9 * DAY]), base, "without a row newer than the last"),
        (added(time_range=[DAY, round(10.1 * DAY)]), base, "less than six hours"),
    ):
        one = early._volume(Gates(), said, old)
        assert one.passed
        assert not one.measured
        assert one.said.startswith("not measured: ")
        assert why in one.said


def test_one_category_gone_is_refused_and_named(base, tmp_path):
    # Tonight's 150 rows: of Knit, which made 30 %, none; of Peak 50 instead of 30.
    one = early._categories(Gates(), base, grown(base, tmp_path, [0] * 100 + [2] * 50))
    assert (one.passed, one.figure, one.limit) == (False, 0.0, 0.2)
    assert "brand 'Knit' made 30 % of the interactions" in one.said
    assert "and 0 % of tonight's; about 45 rows are missing" in one.said


@pytest.mark.parametrize(("knit", "passed"), [(9, True), (8, False)])
def test_a_category_must_keep_a_fifth_of_its_share(base, tmp_path, knit, passed):
    one = early._categories(Gates(), base, grown(base, tmp_path, [0] * 70 + [1] * knit + [2] * (80 - knit)))
    assert one.figure == pytest.approx(knit / 150 / 0.3)
    assert one.passed == passed
    assert ("the largest fall among 3 categories" in one.said) == passed


def test_a_category_whose_attribute_is_lost_is_gone_too(base, tmp_path):
    new = grown(base, tmp_path, [0] * 100 + [1] * 60 + [2] * 40, ("Acme", None, "Peak", "New"))
    assert not early._categories(Gates(), base, new).passed


def test_a_value_of_a_list_is_a_category(tmp_path):
    tags = ("multi", [["red", "wool"], ["red"], None])
    base = dataset(tmp_path / "base", [0] * 50 + [1] * 50, ["A", "A", None], tags=tags)
    new = dataset(tmp_path / "new", [0] * 50 + [1] * 150, ["A", "A", None], tags=tags)
    one = early._categories(Gates(), base, new)
    assert (one.passed, one.figure) == (False, 0.0)
    assert "tags 'wool' made 50 %" in one.said


def test_too_few_rows_miss_no_category(base, tmp_path):
    # 99 rows at 30 % would make 29.7; Acme's half is judged, and there is more of it.
    one = early._categories(Gates(), base, grown(base, tmp_path, [0] * 99))
    assert one.passed
    assert one.figure == pytest.approx(2.0)
    none = early._categories(Gates(), base, grown(base, tmp_path / "few", [0] * 50))
    assert none.said == "not measured: too few rows came tonight to miss a category among them"


def test_small_categories_do_not_count(base, tmp_path):
    one = early._categories(Gates(category_share=0.31), base, grown(base, tmp_path, [0] * 300))
    assert one.passed  # Acme alone is large


def test_categories_long_gone_are_not_missed(tmp_path):
    # Old makes half of all, but nothing of the last 28 days.
    base = dataset(tmp_path / "base", [0] * 60 + [1] * 60, ["Old", "New"], days=[0.0] * 60 + [40.0] * 60)
    new = dataset(tmp_path / "new", [0] * 60 + [1] * 260, ["Old", "New"])
    one = early._categories(Gates(), base, new)
    assert (one.passed, one.figure) == (True, 1.0)


def test_without_attributes_or_base_no_category_is_judged(base, tmp_path):
    plain = dataset(tmp_path / "plain", [0, 1], [None, None])
    assert not early._categories(Gates(), None, base).measured
    assert not early._categories(Gates(), plain, plain).measured


@pytest.mark.parametrize(("lost", "passed"), [(0, True), (1, True), (2, False)])
def test_features_lost_are_a_share_of_those_there_were(tmp_path, lost, passed):
    brands = [f"b{row}" for row in range(10)]
    base = dataset(tmp_path / "base", [0], [*brands, None], tags=("multi", [["t"]] * 5 + [[]] * 6))
    left: list[str | None] = [None] * lost
    new = dataset(tmp_path / "new", [0], [*left, *brands[lost:], None, "b11"], tags=("multi", [["t"]] * 5 + [[]] * 7))
    one = early._catalogue(0.1, base, new)
    assert (one.passed, one.figure) == (passed, lost / 10)
    assert ("look at the catalogue" in one.said) == (not passed)
    if lost:
        assert f"{10 * lost} % of the items that had a 'brand' have none tonight" in one.said
    else:
        assert one.said == "no item lost a feature that it had"


def test_a_feature_lost_as_a_whole_is_refused(tmp_path):
    base = dataset(tmp_path / "base", [0], ["a"] * 3, colour=("categorical", ["red", "blue", None]))
    emptied = dataset(tmp_path / "new", [0], ["a"] * 3, colour=("categorical", [None, None, "red"]))
    dropped = dataset(tmp_path / "dropped", [0], ["a"] * 3)
    for new in (emptied, dropped):
        one = early._catalogue(0.1, base, new)
        assert (one.passed, one.figure) == (False, 1.0)
        assert "'colour'" in one.said
    assert not early._catalogue(0.1, None, base).measured


GUESSING = math.log(4)  # four items that training knows: 1.386


@pytest.mark.parametrize(
    ("losses", "passed", "rise"),
    [
        ([1.0, 0.5], True, -0.5),
        ([1.0], True, 0.0),  # a warm start of one epoch
        ([1.0, 1.1], True, 0.1),
        ([1.0, 1.2], False, 0.2),
        ([41.4, 80.5, 79.1], False, 79.1 / GUESSING - 1),
        ([80.0, 8.0], False, 8.0 / GUESSING - 1),  # it falls, and still knows less than nothing
    ],
)
def test_the_loss_may_not_rise_nor_exceed_that_of_guessing(losses, passed, rise):
    one = early._training(0.11, {"train_loss": list(enumerate(losses))}, 4)
    assert one.passed == passed
    assert one.figure == pytest.approx(rise)
    assert f"from {losses[0]:.3f} to {losses[-1]:.3f}; guessing costs 1.386" in one.said
    assert ("lower the learning rate" in one.said) == (not passed)


@pytest.mark.parametrize("broken", [math.nan, math.inf, None])
def test_a_curve_that_is_not_finite_is_refused(broken):
    one = early._training(0.1, {"train_loss": [(0, 1.0), (1, 0.5)], "val_ndcg@10": [(0, 0.1), (3, broken)]}, 4)
    assert not one.passed
    assert one.said == "val_ndcg@10 is not finite in epoch 3: the training diverged; lower the learning rate"


def test_guessing_is_among_the_items_that_training_knows():
    # 2.0 is less than guessing among 64 items costs (4.16), and more than among the 4 that are known.
    trained = np.arange(64) < 4
    for known, passed in ((trained, False), (np.ones(64, dtype=bool), True)):
        outcomes = early.training(Gates(), {"train_loss": [(0, 3.0), (1, 2.0)]}, spread_out(), known)
        assert gate(outcomes, "training").passed == passed


def test_no_curve_is_not_measured():
    assert early._training(0.1, {}, 4).said == "not measured: the training left no losses"


def spread_out(n=64, d=8):
    return np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)


def judged(vectors, trained=None, **limits):
    trained = np.ones(len(vectors), dtype=bool) if trained is None else trained
    return early._vectors(Gates(**limits), vectors, trained)


def test_vectors_that_spread_out_pass():
    one = judged(spread_out())
    assert (one.passed, one.limit, one.sense) == (True, 0.1, "≥")
    assert 0.9 < one.figure <= 1
    assert "of 8, mean cosine" in one.said


def test_vectors_of_one_direction_are_refused():
    line = np.outer(np.linspace(-1, 1, 50), np.ones(20)).astype(np.float32)
    one = judged(line)
    assert not one.passed
    assert one.figure == pytest.approx(1 / 20, rel=1e-3)
    assert "effective rank 1.0 of 20" in one.said
    assert "too few directions: collapsed" in one.said


def test_vectors_around_one_point_are_refused():
    one = judged(10 + spread_out())
    assert (one.passed, one.limit) == (False, 0.9)
    assert "all items point the same way: collapsed" in one.said


def test_equal_vectors_count_only_among_items_that_training_knows():
    vectors = spread_out(100)
    vectors[-2:] = vectors[0]
    one = judged(vectors)
    assert (one.passed, one.figure) == (False, pytest.approx(0.03))
    assert "3 % equal to another" in one.said
    assert judged(vectors, np.arange(100) < 98).passed  # new items with the same features


def test_one_vector_far_too_long_is_refused():
    vectors = spread_out()
    vectors[7] *= 100
    one = judged(vectors)
    assert (one.passed, one.unit) == (False, "×")
    assert "shown to everyone" in one.said
    assert judged(vectors, max_length_spread=None).passed


def test_a_vector_that_is_not_finite_is_refused_whoever_it_belongs_to():
    vectors = spread_out()
    vectors[[5, 9], 3] = math.nan, math.inf
    one = judged(vectors, np.arange(64) < 5)
    assert not one.passed
    assert one.said == "2 item vectors are not finite, the first at row 5: the training diverged"


def test_the_first_check_that_is_on_is_shown_and_two_items_are_too_few():
    one = judged(spread_out(), min_effective_rank=None)
    assert (one.passed, one.limit, one.unit) == (True, 0.9, "")
    assert not judged(spread_out(), np.arange(64) < 1).measured


def test_a_list_emptied_is_a_feature_lost(tmp_path):
    full, emptied = ("multi", [["t"], ["t"]]), ("multi", [["t"], []])
    one = early._catalogue(
        0.1,
        dataset(tmp_path / "base", [0], ["a"] * 2, tags=full),
        dataset(tmp_path / "new", [0], ["a"] * 2, tags=emptied),
    )
    assert (one.passed, one.figure) == (False, 0.5)
    assert "'tags'" in one.said
