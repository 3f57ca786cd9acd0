"""The gates of a sealed candidate, on figures worked out by hand."""

import math

import numpy as np
import pytest

from recsys.evaluate.metrics import Mean
from recsys.nightly import late
from recsys.nightly.gates import Gates
from recsys.nightly.late import Sealed
from recsys.nightly.measures import Shift
from tests.nightly.made import result
from tests.nightly.test_early import OFF

# The t quantile of 3 degrees of freedom at 0.975, of four users.
T3 = 3.182446


def test_every_gate_can_be_switched_off_and_says_so():
    poor, fine = result([0.0] * 4), result([1.0] * 4)
    outcomes = late.quality(OFF, poor, fine, {}, incomparable="it knows")
    outcomes += late.sealed(OFF, Sealed(10, 0.1, 1e9, ["broken"]), Sealed(1, 1.0), Shift(1, 0.0, 99.0, 1.0))
    assert [one.gate for one in outcomes] == [
        "popularity", "live", "slices", "coverage",
        "ANN recall", "overlap", "score shift", "rules", "size", "load time",
    ]  # fmt: skip
    assert all(one.passed and one.said == "switched off in the settings" for one in outcomes)


def test_the_first_night_has_nothing_live_to_compare_with():
    outcomes = late.quality(Gates(), result([0.5, 0.6, 0.7, 0.8]), None, {"popular": result([0.1, 0.2, 0.2, 0.1])})
    outcomes += late.sealed(Gates(), Sealed(10, 0.99, 1.0, []), None, None)
    assert all(one.passed for one in outcomes)
    assert [one.gate for one in outcomes if not one.measured] == ["live", "slices", "overlap", "score shift", "size"]
    assert all(one.said.startswith("not measured: there is no live bundle") for one in outcomes if not one.measured)


def test_the_candidate_must_exceed_the_best_popularity_baseline_beyond_chance():
    # Differences 0.1, 0.2, 0.3, 0.4: mean 0.25, standard error sqrt(4/3 · 0.05 / 16) = 0.0645.
    candidate = result([0.2, 0.4, 0.6, 0.8])
    baselines = {"popular": result([0.0] * 4), "last week": result([0.1, 0.2, 0.3, 0.4])}
    one = late._popularity(0.0, candidate, baselines)
    low = 0.25 - T3 * math.sqrt(4 / 3 * 0.05 / 16)
    assert one.passed
    assert one.figure == pytest.approx(low, rel=1e-5)
    assert one.said == f"NDCG@10 0.5000, 'last week' 0.2500: +0.2500 (+{low:.4f} to +{0.5 - low:.4f})"
    assert not late._popularity(0.05, candidate, baselines).passed


def test_no_better_than_popular_is_refused_and_so_is_better_by_chance():
    popular = result([0.3, 0.3, 0.3, 0.3])
    worse = late._popularity(0.0, result([0.3, 0.2, 0.3, 0.2]), {"popular": popular})
    assert not worse.passed
    assert "no more than what is popular; are the labels right" in worse.said
    chance = late._popularity(0.0, result([0.9, 0.2, 0.3, 0.3]), {"popular": popular})
    assert not chance.passed
    assert "not beyond chance; lengthen the test span" in chance.said
    assert not late._popularity(0.0, popular, {"popular": popular}).passed


def test_popularity_is_never_taken_on_trust():
    none = late._popularity(0.0, result([0.5] * 4), {})
    assert not none.passed
    assert "no popularity baseline was measured" in none.said
    one_user = late._popularity(0.0, result([0.5, 0.5], users=[3, 3]), {"p": result([0.1, 0.1], users=[3, 3])})
    assert not one_user.passed
    assert "with one user nothing can be told; lengthen the test span" in one_user.said


def test_live_is_compared_in_pairs():
    # Each query of the candidate is 0.01 below live's 0.5 or 1.0: −0.01 without any doubt, though NDCG differs widely.
    live = result([0.5, 1.0, 0.5, 1.0])
    one = late._live(0.05, result([0.49, 0.99, 0.49, 0.99]), live, None)
    assert one.passed
    assert one.figure == pytest.approx(-0.01 / 0.75)
    assert (one.limit, one.sense, one.unit) == (-0.05, "≥", "share")
    assert "NDCG@10 0.7400, live 0.7500: −0.0100 (−0.0100 to −0.0100), over the same 4 queries" in one.said
    assert one.said.endswith("at worst 1.33 % below live, 5 % is let through")
    assert not late._live(0.01, result([0.49, 0.99, 0.49, 0.99]), live, None).passed


def test_worse_than_live_and_too_few_queries_are_told_apart():
    live = result([0.5, 0.5, 0.5, 0.5])
    worse = late._live(0.05, result([0.4, 0.41, 0.39, 0.4]), live, None)
    assert not worse.passed
    assert worse.said.endswith("it is worse beyond chance; look at the slices and the curves")
    unsure = late._live(0.05, result([0.9, 0.1, 0.6, 0.5]), live, None)
    assert not unsure.passed
    assert unsure.said.endswith("too few queries to rule out a larger loss; lengthen the test span")
    alone = late._live(0.05, result([0.5], users=[1]), result([0.5], users=[1]), None)
    assert not alone.passed
    assert alone.figure is None
    assert "with one user" in alone.said


def test_an_equal_candidate_passes_even_without_tolerance():
    same = result([0.2, 0.0, 0.7, 0.4])
    assert late._live(0.0, same, same, None).passed
    nothing = result([0.0] * 4)
    assert late._live(0.05, nothing, nothing, None).figure == 0


def test_a_live_bundle_that_knows_the_answers_is_no_measure():
    one = late._live(0.05, result([0.9] * 4), result([0.1] * 4), "it learnt from what is asked")
    assert not one.passed
    assert one.said == "candidate and live cannot be compared: it learnt from what is asked"
    outcomes = late.quality(Gates(), slices(a=(0.1, 0.01)), slices(a=(0.5, 0.01)), {}, incomparable="it learnt")
    assert [(one.measured, one.live) for one in outcomes if one.gate in ("slices", "coverage")] == [
        (False, None), (True, None),
    ]  # fmt: skip


def test_only_the_same_queries_make_pairs():
    with pytest.raises(ValueError, match="4 and 3 queries are not the same, so they make no pairs; evaluate both"):
        late._live(0.05, result([0.1] * 4), result([0.1] * 3), None)


def slices(**means):
    return result([0.5] * 4, slices={name: Mean(*mean) if mean else None for name, mean in means.items()})


def test_a_slice_is_refused_only_beyond_chance_and_the_limit():
    # 0.40 − 0.50 with half widths 0.03 and 0.04: −0.10 ± 0.05, −30 % to −10 % of live's.
    candidate, live = slices(drama=(0.40, 0.03), war=(0.5, 0.1)), slices(drama=(0.50, 0.04), war=(0.5, 0.1))
    one = late._slices(0.11, candidate, live)
    assert one.passed
    assert one.figure == pytest.approx(-0.1)
    assert one.said == "worst of 2 is 'drama' with NDCG@10 0.4000, live 0.5000: −30 % to −10 %"
    refused = late._slices(0.09, candidate, live)
    assert not refused.passed
    assert "'drama'" in refused.said
    assert "worse beyond chance: look at that part of the log" in refused.said


def test_all_refused_slices_are_counted():
    one = late._slices(0.1, slices(a=(0.1, 0.01), b=(0.2, 0.01)), slices(a=(0.5, 0.01), b=(0.5, 0.01)))
    assert "worst of 2 is 'a'" in one.said
    assert "worse beyond chance, and 1 more are" in one.said


def test_slices_that_cannot_be_judged_are_left_out():
    candidate = slices(empty=None, alone=(0.0, None), nothing=(0.0, 0.1), unknown=(0.1, 0.1))
    live = slices(empty=None, alone=(0.5, None), nothing=(0.0, 0.0))
    one = late._slices(0.1, candidate, live)
    assert (one.passed, one.measured) == (True, False)
    assert one.said == "not measured: no slice has enough users in the test span"


@pytest.mark.parametrize(
    ("ours", "theirs", "passed", "limit"),
    [
        # Four queries fill 40 places of 1000 items: coverage 0.04 is all there can be.
        (0.04, None, True, 0.01),
        (0.0004, None, True, 0.01),
        (0.0003, None, False, 0.01),
        (0.02, 0.04, True, 0.5),
        (0.019, 0.04, False, 0.5),
    ],
)
def test_coverage_is_of_what_the_queries_have_room_for(ours, theirs, passed, limit):
    live = None if theirs is None else result([0.5] * 4, coverage=theirs)
    one = late._coverage(Gates(), result([0.5] * 4, coverage=ours), live)
    assert (one.passed, one.limit) == (passed, pytest.approx(limit))
    assert one.figure == pytest.approx(ours / 0.04)
    assert one.live == (None if theirs is None else pytest.approx(theirs / 0.04))
    assert ("the same few items for everyone" in one.said) == (not passed)


def test_a_small_catalogue_can_be_covered_whole():
    one = late._coverage(Gates(), result([0.5] * 4, coverage=1.0, num_candidates=13), None)
    assert one.figure == 1.0


@pytest.mark.parametrize(("recall", "passed"), [(0.95, True), (0.949, False)])
def test_recall_of_the_index(recall, passed):
    one = late._recall(0.95, Sealed(1, recall), Sealed(1, 0.99))
    assert (one.passed, one.figure, one.live) == (passed, recall, 0.99)
    assert ("`recsys index advise`" in one.said) == (not passed)
    assert not late._recall(0.95, Sealed(1), None).measured


@pytest.mark.parametrize(("overlap", "passed"), [(0.1, True), (0.09, False)])
def test_overlap_with_live(overlap, passed):
    one = late._overlap(0.1, Shift(50, overlap, 1.0, 0.0))
    assert (one.passed, one.figure) == (passed, overlap)
    assert "of 50 users" in one.said
    assert ("ids or users mixed up" in one.said) == (not passed)
    assert not late._overlap(0.1, Shift(50, None, 1.0, 0.0)).measured


@pytest.mark.parametrize(
    ("ratio", "factor", "passed"),
    [(4.0, 4.0, True), (0.25, 4.0, True), (0.2, 5.0, False), (5, 5, False), (0.0, math.inf, False)],
)
def test_scores_may_neither_grow_nor_shrink(ratio, factor, passed):
    one = late._score_shift(4.0, Shift(50, 0.5, ratio, 0.3))
    assert (one.passed, one.figure) == (passed, factor)
    assert "differ by 0.30" in one.said
    assert ("diverge" in one.said) == (not passed)


def test_a_broken_rule_is_quoted_and_rules_must_be_checked():
    assert late._rules(0, Sealed(1, violations=[])).passed
    one = late._rules(0, Sealed(1, violations=["user 'u1': 'i3' was seen and came back", "another"]))
    assert (one.passed, one.figure) == (False, 2)
    assert one.said == "broken in 2 of the sample's answers, first user 'u1': 'i3' was seen and came back"
    unchecked = late._rules(0, Sealed(1))
    assert not unchecked.passed
    assert "were not checked" in unchecked.said


@pytest.mark.parametrize(("size", "passed"), [(200, True), (201, False)])
def test_size_against_live(size, passed):
    one = late._size(2.0, Sealed(size), Sealed(100))
    assert (one.passed, one.figure, one.limit, one.live, one.unit) == (passed, size, 200, 100, "bytes")
    assert ("Is there memory for it?" in one.said) == (not passed)


@pytest.mark.parametrize(("seconds", "passed"), [(60.0, True), (60.1, False)])
def test_load_time(seconds, passed):
    one = late._load_time(60.0, Sealed(1, seconds=seconds))
    assert (one.passed, one.figure, one.unit) == (passed, seconds, "s")
    assert f"took {seconds} s" in one.said
    assert not late._load_time(60.0, Sealed(1)).measured


def test_queries_of_one_user_go_together():
    # Two users with 50 equal differences each: as good as two queries, so nothing is beyond chance.
    users = np.repeat([0, 1], 50)
    each = np.where(users == 0, 0.3, 0.1)
    one = late._popularity(0.0, result(each, users=users), {"popular": result([0.05] * 100, users=users)})
    assert not one.passed
    assert "not beyond chance" in one.said
