"""`recsys doctor`: healthy bundles pass, and each broken one is told by what is wrong with it."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from recsys.cli import main
from recsys.data.planted import planted
from recsys.data.split import TimeSplit
from recsys.explore.doctor import examine, to_json
from recsys.explore.page import page, text
from recsys.explore.space import Space
from tests.explore import broken

NASTY = "<script>alert('stolen')</script>\"&{{ 7 * 7 }}"


@pytest.fixture
def said(capsys):
    """What a doctor of some arguments finds, by severity and check, and its exit status."""

    def said(*arguments):
        capsys.readouterr()
        status = main(["doctor", *map(str, arguments), "--json"])
        found = json.loads(capsys.readouterr().out)
        return status, {one["check"]: one for one in found["findings"] if one["severity"] == "serious"}, found

    return said


def test_the_toy_is_healthy(said, toy):
    status, serious, found = said("--registry", toy.registry, "--dataset", toy.dataset)
    assert (status, serious) == (0, {})
    fine = {one["check"] for one in found["findings"] if one["severity"] == "fine"}
    assert found["worst"] == "note"
    assert {"coherence", "ids", "leaks", "twins", "index"} <= fine
    assert found["seconds"]["neighbours"] >= 0
    assert {one["index"] for one in found["dial"]} >= {"X @ q", "Flat", "Hnsw"}


def test_collapsed_towers_are_told(said, toy, tmp_path):
    status, serious, _ = said(broken.collapsed(toy.checkpoint, toy.dataset, tmp_path), "--no-dial")
    assert (status, list(serious)) == (1, ["collapse"])
    assert serious["collapse"]["figures"]["effective_rank"] <= 2
    assert "train" in serious["collapse"]["fix"]


def test_shuffled_ids_are_told_beside_the_dataset_and_beside_the_bundle_before(said, toy, toy_bundle, tmp_path):
    shuffled = broken.with_shuffled_ids(toy_bundle.path, tmp_path)
    assert said(shuffled, "--no-dial")[0] == 0  # by itself it is consistent: nothing in it says who the ids mean
    status, serious, _ = said(shuffled, "--dataset", toy.dataset, "--no-dial")
    assert (status, list(serious)) == (1, ["ids"])
    assert serious["ids"]["figures"]["renamed items"] == 1.0
    assert serious["ids"]["evidence"][0]["in_dataset"] != serious["ids"]["evidence"][0]["title"]
    status, serious, _ = said(shuffled, "--against", toy_bundle.path, "--no-dial")
    assert status == 1
    assert "ids" in serious


def test_histories_of_other_rows_are_told_without_a_dataset(said, toy_bundle, tmp_path):
    status, serious, _ = said(broken.with_shuffled_histories(toy_bundle.path, tmp_path), "--no-dial")
    assert (status, list(serious)) == (1, ["coherence"])
    assert "shuffled" in serious["coherence"]["fix"]


def test_test_rows_that_were_trained_on_are_told(said, toy, toy_bundle, tmp_path):
    leaked = broken.evaluated_on(toy_bundle.path, toy.dataset, TimeSplit(0.1, 0.3), tmp_path)
    status, serious, _ = said(leaked, "--dataset", toy.dataset, "--no-dial")
    assert (status, list(serious)) == (1, ["leaks"])
    assert "after the training part ends" in serious["leaks"]["what"]


def test_a_bundle_against_a_stranger_drifts(said, toy_bundle, toy, stranger):
    bundle = toy_bundle.id
    _, _, found = said(bundle, "--registry", toy.registry, "--against", stranger, "--no-dial")
    drift = next(one for one in found["findings"] if one["check"] == "drift")
    assert drift["figures"]["shared_items"] == 13
    assert drift["figures"]["retitled"] == 0
    assert drift["severity"] != "fine"


def test_what_ends_it_with_1_can_be_chosen(toy, capsys):
    arguments = ["doctor", "--registry", str(toy.registry), "--no-dial"]
    assert main([*arguments, "--fail-on", "note"]) == 1  # neighbours on the ring know nothing of parity
    assert main([*arguments, "--fail-on", "never"]) == 0
    assert "parity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a bundle's folder, or give --registry"),
        (["x", "--resolution", "0"], "'0': give a number above 0"),
        (["x", "--map", "tsne"], "invalid choice: 'tsne'"),
    ],
)
def test_told_wrong_it_says_so(capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        main(["doctor", *arguments])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_a_bundle_that_is_not_there_is_one_line(toy, tmp_path, capsys):
    assert main(["doctor", str(tmp_path)]) == 1
    assert "it has no manifest.json" in capsys.readouterr().err
    assert main(["doctor", "nobody", "--registry", str(toy.registry)]) == 1
    assert "has no bundle 'nobody'" in capsys.readouterr().err


def test_files_are_written_whole(toy, tmp_path, capsys):
    html, out = tmp_path / "new" / "doctor.html", tmp_path / "doctor.json"
    assert main(["doctor", "--registry", str(toy.registry), "--html", str(html), "--out", str(out), "--no-dial"]) == 0
    printed = capsys.readouterr().out
    assert str(html) in printed
    assert "together" in printed
    assert json.loads(out.read_text())["worst"] == "note"
    assert html.read_text().startswith("<!doctype html>")


class Fetched(HTMLParser):
    """Whatever a page would run or fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "link", "img", "iframe") or any(
            name in ("src", "href") or name.startswith("on") for name, _ in attrs
        ):
            self.found.append((tag, attrs))


def test_the_page_runs_and_fetches_nothing_whatever_the_titles_say(toy_bundle):
    made = planted(300, 16, users=40, unused=2)
    titles = made.known["titles"].copy()
    titles[:] = NASTY
    new = Space.made(made.vectors, **made.known | {"titles": titles, "user_ids": np.arange(40)})
    old = Space.made(made.vectors, **made.known | {"user_ids": np.arange(40)}, name="older")
    report = examine(new, against=old)
    written = page(report)
    parser = Fetched()
    parser.feed(written)
    assert parser.found == []
    assert "<script" not in written
    assert "{{ 7 * 7 }}" in written
    assert "@import" not in written
    assert "url(" not in written
    assert "What moved since older" in written
    assert "One dial" in written
    assert page(replace(report)) == written
    assert NASTY in text(report)


def test_the_page_and_json_hold_what_was_found():
    made = planted(600, 16, users=0, unused=2)
    report = examine(Space.made(made.vectors, **made.known), with_dial=False)
    assert "To mend" in page(report)
    said = json.loads(to_json(report))
    assert said["worst"] == report.worst
    assert said["dial"] is None
    assert [one["severity"] for one in said["findings"]] == [one.severity for one in report.findings]
    assert sum(report.counts().values()) == len(report.findings)
    assert not any(one.check == "never recommended" for one in report.findings)  # there are no users


def test_a_pass_that_was_made_before_is_no_floor():
    made = planted(600, 16)
    space = Space.made(made.vectors, **made.known)
    first = examine(space, with_dial=False)
    again = examine(space, with_dial=False)
    assert first.floor == first.seconds["neighbours"]
    assert first.floor > 0
    assert again.floor is None
    assert [name for name in first.seconds if name not in again.seconds] == ["neighbours"]
    for report, said in ((first, True), (again, False)):
        assert ("of the floor" in text(report)) is said
        assert ("× floor" in page(report)) is said
        assert "together" in text(report)
    assert "neighbours" not in json.loads(to_json(again))["seconds"]
