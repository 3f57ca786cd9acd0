"""The verdict as JSON, as a page and as a table."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from recsys.evaluate.metrics import Mean
from recsys.evaluate.report import to_json as results_to_json
from recsys.nightly import verdict
from recsys.nightly.exposure import exposure
from recsys.nightly.gates import Outcome
from recsys.nightly.measured import CANDIDATE, LIVE
from recsys.nightly.measures import Lists
from recsys.nightly.verdict import Verdict
from recsys.pages import plots
from tests.nightly.made import added, result

NASTY = "<script>alert('stolen')</script>\"&{{ 7 * 7 }}"
ESCAPED = "&lt;script&gt;alert(&#39;stolen&#39;)&lt;/script&gt;&#34;&amp;{{ 7 * 7 }}"


@pytest.fixture
def promoted(toy_bundle):
    """A night that passed, with everything that there can be, some of it from strangers."""
    slices = {f"title: {NASTY}": Mean(0.3, 0.1), "cold items": None, "new users": Mean(0.2, None)}
    results = {
        CANDIDATE: result([0.5, 0.7], slices=slices),
        LIVE: result([0.4, 0.6], slices=slices),
        "popular": result([0.1, 0.1], slices=slices),
    }
    lists = [
        Lists("b", ["u0"], [items], [[1.0] * len(items)]) for items in (["i0", "i1"], ["i1", "i5"])
    ]  # fmt: skip
    changed = exposure(toy_bundle, toy_bundle, *lists)
    changed["gained"][0]["shown"] = {"title": NASTY}
    changed["categories"]["parity"][0]["value"] = NASTY
    return Verdict(
        night="20261122T030000Z",
        outcomes=(
            Outcome("live", True, -0.0231, -0.05, f"fine {NASTY}", unit="share", sense="≥"),
            Outcome("size", True, 41_200_000, 8e7, "as large as before", live=4e7, unit="bytes"),
            Outcome("volume", True, None, None, "not measured: no times"),
        ),
        mode="warm",
        mode_why="3 nights since the last full one",
        candidate="20261122T031244123-a1b2c3d4e5f6",
        live="20261121T031010456-0f1e2d3c4b5a",
        results=json.loads(results_to_json(results)),
        curves={"train_loss": [(0, 2.5), (1, 1.25)], "val_ndcg@10": [(1, 0.75)]},
        data=added(rejected={NASTY: 3}),
        rejected={NASTY: f"log.csv, row 4: {NASTY}"},
        exposure=changed,
        seconds={"prepare": 1.5, "fit": 3725.0},
        versions={"recsys": "9.9.9"},
    )


@pytest.fixture
def refused():
    """A night that was refused before anything was trained."""
    said = "49 of tonight's 100 rows could not be used"
    return Verdict("20261123T030000Z", (Outcome("rejected rows", False, 0.49, 0.01, said, unit="share"),), live="b1")


def test_json_holds_all_of_it_and_reads_back(promoted, refused):
    for one in (promoted, refused):
        text = verdict.to_json(one)
        assert Verdict.from_json(text) == one
        assert verdict.to_json(Verdict.from_json(text)) == text
    said = json.loads(verdict.to_json(refused))
    assert list(said)[:3] == ["night", "passed", "why"]
    assert (said["passed"], said["why"]) == (False, "rejected rows: 49 of tonight's 100 rows could not be used")


def test_what_is_not_finite_becomes_null_and_is_told(promoted):
    broken = Outcome("score shift", False, math.inf, 4.0, "far off", unit="×")
    one = replace(promoted, outcomes=(broken,), curves={"train_loss": [(0, 2.5), (1, math.nan)]})
    assert Verdict.from_json(verdict.to_json(one)) == one
    assert one.curves == {"train_loss": [(0, 2.5), (1, None)]}
    assert "2.5 → not finite, not finite in epoch 1" in verdict.page(one)


def test_a_night_passes_only_with_a_bundle_and_no_refusal(promoted, refused):
    assert promoted.passed
    assert promoted.why == "all 2 gates passed, 1 off or without anything to measure"
    assert not refused.passed
    unsealed = replace(promoted, candidate=None)
    assert not unsealed.passed
    assert unsealed.why == "no bundle was sealed"
    both = replace(promoted, outcomes=(*promoted.outcomes, *refused.outcomes, Outcome("size", False, 2, 1, "large")))
    assert not both.passed
    assert both.why == "rejected rows (and size): 49 of tonight's 100 rows could not be used"
    assert [one.gate for one in both.refusals] == ["rejected rows", "size"]


class Reader(HTMLParser):
    """The tags of a page, their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.said = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "line", "polyline", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said += data


def test_the_page_says_on_top_what_happened(promoted, refused):
    top = re.sub(r"\s+", " ", Reader(verdict.page(promoted)).said).split("Gates")[0]
    for said in (
        "✓ Passed",
        "All 2 gates passed, 1 off or without anything to measure. It may take over from the live bundle.",
    ):
        assert said in top
    for said in (promoted.night, promoted.candidate, promoted.live, "warm", "3 nights since", "1 h 02 min", "0.6000"):
        assert said in top
    first = replace(promoted, live=None, exposure={})
    assert "It may be the first to go live." in Reader(verdict.page(first)).said
    top = Reader(verdict.page(refused)).said.split("Gates")[0]
    for said in ("✗ Refused", "Rejected rows: 49 of tonight's 100 rows could not be used. The live bundle stays."):
        assert said in re.sub(r"\s+", " ", top)
    assert "none was sealed" in top
    assert "Nothing goes live." in Reader(verdict.page(replace(refused, live=None))).said


def test_the_page_shows_everything_there_is(promoted):
    page = verdict.page(promoted)
    said = re.sub(r"\s+", " ", Reader(page).said)
    for text in (
        "✓live−2.31 %–≥ −5 %", "✓size41.2 MB40 MB≤ 80 MB", "–volume–––not measured: no times",  # gates
        "Quality on the newest", "2 queries of 4 users, 2026-11-20 to 2026-11-21", "candidate", "popular",
        "Slices, NDCG@10", "new users", "What changes for users", "Item number 5", "leaves", "comes",
        "train_loss 2.5 → 1.25", "val_ndcg@10 0.75 → 0.75",
        "interactions read100", "from1970-01-11 00:00", "to1970-01-12 00:00 UTC", "Rejected rows",
        "prepare 1.5 s", "fit 1 h 02 min", "recsys 9.9.9",
    ):  # fmt: skip
        assert text.replace(" ", "") in said.replace(" ", ""), text
    assert "cold items" not in said  # nobody asks for them
    assert len(page) < 300_000


def test_a_short_night_has_a_short_page(refused):
    said = Reader(verdict.page(refused)).said
    assert "✗rejected rows49 %–≤ 1 %" in said
    for missing in ("Quality", "Training", "What changes", "Where the time went", "Tonight's data"):
        assert missing not in said


def test_equal_verdicts_give_equal_bytes(promoted):
    assert verdict.page(promoted) == verdict.page(Verdict.from_json(verdict.to_json(promoted)))


def test_what_strangers_wrote_stays_text(promoted):
    page = verdict.page(promoted)
    assert NASTY not in page
    assert page.count(ESCAPED) >= 6  # a gate's words, a slice, an item, a category and its title, a reason, an example
    assert "49" not in re.sub(r"[\d.]*49[\d.]+|[\d.]+49", "", Reader(page).said)  # no template in a title was run
    tags = {tag for tag, _ in Reader(page).tags}
    assert not tags & {"script", "iframe", "img", "link", "object", "embed", "base", "form"}
    assert not any(name.startswith("on") for _, attributes in Reader(page).tags for name in attributes)


def test_nothing_is_fetched(promoted):
    page = verdict.page(promoted)
    assert not any(name in ("src", "href", "xlink:href") for _, attributes in Reader(page).tags for name in attributes)
    for word in ("http:", "https:", "//", "url(", "@import"):
        assert word not in page.replace("<!doctype html>", "")


def test_light_and_dark(promoted):
    page = verdict.page(promoted)
    assert "prefers-color-scheme: dark" in page
    assert "color-scheme: light dark" in page


def test_the_table_for_terminals_is_aligned(promoted, refused):
    lines = verdict.text(promoted).splitlines()
    assert lines[0] == "passed: all 2 gates passed, 1 off or without anything to measure"
    assert lines[2:4] == [
        "   gate    candidate   live    limit",
        f"✓  live      −2.31 %      –   ≥ −5 %  fine {NASTY}",
    ]
    assert lines[4:] == [
        "✓  size      41.2 MB  40 MB  ≤ 80 MB  as large as before",
        "–  volume          –      –        –  not measured: no times",
    ]
    assert verdict.text(refused).startswith("refused: rejected rows: 49 of")
    assert "✗  rejected rows       49 %     –  ≤ 1 %" in verdict.text(refused)


@pytest.mark.parametrize(
    ("value", "unit", "sense", "said"),
    [
        (None, "share", "≤", "–"), (0.00363, "share", "≤", "0.363 %"), (-0.05, "share", "≥", "−5 %"),
        (-0.0, "share", "≥", "0 %"),
        (0, "bytes", "≤", "0 B"), (999, "bytes", "≤", "999 B"), (41_234_567, "bytes", "≤", "41.2 MB"),
        (2.5, "×", "≤", "2.5 ×"), (1.84, "s", "≤", "1.84 s"), (0.0732, "", ">", "0.0732"), (0.0, "", ">", "0.0000"),
    ],
)  # fmt: skip
def test_figures_are_written_in_their_unit(value, unit, sense, said):
    assert verdict.amount(value, Outcome("g", True, value, None, "", unit=unit, sense=sense)) == said


def test_ticks_are_round_and_hold_the_values():
    assert plots.ticks(0, 1) == [0, 0.5, 1]
    assert plots.ticks(0.37, 2.4) == [0, 1, 2, 3]
    assert plots.ticks(0.09, 0.0931) == [0.09, 0.091, 0.092, 0.093, 0.094]
    for low, high in ((5, 5), (0, 0), (-3, -1), (1e-9, 2e-9), (1e30, 2e30), (-1e-3, 1e6)):
        levels = plots.ticks(low, high)
        assert 2 <= len(levels) <= 6
        assert levels[0] <= low <= high <= levels[-1]


def test_a_curve_runs_from_left_to_right_and_up():
    drawn = plots.curve([(0, 0.0), (1, None), (2, 1.0)])
    assert drawn.path == f"0.0,{plots.HEIGHT} {plots.WIDTH},0.0"
    assert (drawn.first, drawn.last, drawn.broken) == (0.0, 1.0, [1])
    assert drawn.ticks == [(plots.HEIGHT, "0"), (plots.HEIGHT / 2, "0.5"), (0.0, "1")]
    assert plots.curve([(7, None)]).path == ""
    assert plots.curve([(7, 3.0)]).points == [(0.0, pytest.approx(plots.HEIGHT / 2, abs=plots.HEIGHT / 2))]


def test_intervals_share_one_scale_from_zero():
    drawn = plots.intervals(
        {"a": {"value": 0.3, "half_width": 0.1}, "b": {"value": 0.05, "half_width": 0.1}, "c": None}
    )
    assert set(drawn) == {"a", "b"}
    assert (drawn["a"].low, drawn["a"].at, drawn["a"].high) == (50, 75, 100)
    assert (drawn["b"].low, drawn["b"].at, drawn["b"].high) == (0, 12.5, 37.5)
    alone = plots.intervals({"a": {"value": 0.0, "half_width": None}})
    assert (alone["a"].low, alone["a"].at, alone["a"].high) == (0, 0, 0)
