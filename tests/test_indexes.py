"""`recsys index advise`: sizes and durations, the table, and what it says in the end."""

import argparse
import json

import pytest

from recsys.index.advise import Advice, Budget, Trial, measure
from recsys.index.build import Flat, HalfPrecision, Hnsw, IvfPq, Kind
from recsys.indexes import configured, duration, main, named, positive, sentence, share, size, table

TRIALS = [
    Trial(None, 64, 1.0, 2e-4, 3e-4, 12_800_000, 12_800_000, 0.0),
    Trial(Hnsw(effort=32), 64, 0.9712, 4e-5, 1.1e-4, 2_600_000_000, 2_600_000_000, 31.4),
    Trial(IvfPq(), 32, 0.93, 3e-5, 9e-5, 4_000_000, 800_000, 2.0),
]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2GB", 2 * 10**9),
        ("500 MB", 5 * 10**8),
        ("1.5GiB", 3 * 2**29),
        ("7B", 7),
        ("64KiB", 2**16),
        ("3TB", 3 * 10**12),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert size(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("2ms", 2e-3), ("500us", 5e-4), ("10min", 600), ("1.5 s", 1.5), ("2h", 7200)]
)
def test_durations(text: str, value: float) -> None:
    assert duration(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["2", "GB", "2gb", "-2GB", "2 G B", "0GB", "1e3MB", "2GBs", "", "٣GB", "2,5GB"])
def test_what_is_no_size_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="a size is a number and B, KB, MB, GB, TB, KiB, MiB or GiB"):
        size(text)


@pytest.mark.parametrize("text", ["2", "2 minutes", "2S", "0ms", "inf s", "nan"])
def test_what_is_no_duration_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"a duration is a number and us, ms, s, min or h, as 2ms"):
        duration(text)


@pytest.mark.parametrize("text", ["0", "1.01", "98%", "-1", "nan", ".", ""])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"a recall is a number above 0 and at most 1, as 0.98"):
        share(text)


def test_shares_and_counts() -> None:
    assert (share("1"), share("0.98"), share(".5"), positive("12")) == (1, 0.98, 0.5, 12)
    for text in ("0", "-3", "1.5", "many"):
        with pytest.raises(argparse.ArgumentTypeError, match="give a whole number of at least 1"):
            positive(text)


def test_the_table_lines_up_and_marks_what_meets_the_budget() -> None:
    assert table(TRIALS, Budget(memory=1e9, recall=0.95), 10).splitlines() == [
        "index           dimensions  recall@10  p50 µs  p99 µs  memory MB  file MB  build s  budget",
        "──────────────  ──────────  ─────────  ──────  ──────  ─────────  ───────  ───────  ─────────────",
        "floor: X @ q            64          –     200     300       12.8     12.8        –  –",
        "Hnsw effort 32          64     0.9712      40     110    2,600.0  2,600.0     31.4  misses memory",
        "IvfPq                   32     0.9300      30      90        0.8      4.0      2.0  misses recall",
    ]
    assert table(TRIALS, Budget(), 10).splitlines()[-1].endswith("  ✓")


def test_the_advice_is_a_line_to_put_into_the_configuration() -> None:
    assert sentence(Advice(TRIALS[1], {}), Budget()) == (
        "Take Hnsw effort 32 at 64 dimensions: kind: "
        '{"class_path": "recsys.index.build.Hnsw", "init_args": {"effort": 32}}'
    )
    assert configured(Flat()) == {"class_path": "recsys.index.build.Flat"}
    assert named(IvfPq(probed_share=1 / 64)) == "IvfPq probed_share 0.01562"


def test_without_one_that_meets_it_each_miss_is_told() -> None:
    budget = Budget(memory=2e9, p99=1e-4, recall=0.98, build=10.0)
    assert sentence(Advice(TRIALS[1], TRIALS[1].missed(budget)), budget) == (
        "None meets the budget. Nearest is Hnsw effort 32 at 64 dimensions, which misses memory by 30.0% (2,600.0 MB, "
        "wanted 2,000.0 MB); p99 by 10.0% (110 µs, wanted 100 µs); build by a factor of 3.1 (31.4 s, wanted 10.0 s); "
        "recall by 0.9% (0.9712, wanted 0.9800)."
    )


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds are enough to see the command."""
    quick: list[list[Kind]] = [[Flat()], [HalfPrecision()]]
    monkeypatch.setattr("recsys.indexes.measure", lambda *given, **how: measure(*given, **how, families=quick))


def test_the_live_bundle_is_advised(toy, few, capsys) -> None:
    main(["advise", "--registry", str(toy.registry), "--k", "3"])
    said = capsys.readouterr()
    first, *_, last = [line for line in said.out.splitlines() if not line.startswith("Something else kept")]
    assert first.startswith("13 items of ")
    assert first.endswith(", 80 users asking for 3, one at a time on one thread")
    assert last.startswith("Take ")
    assert said.out.count("✓") == 2
    assert "building HalfPrecision over 13 × 16" in said.err


def test_a_bundle_may_be_named_and_cut_and_its_figures_come_as_json(toy, toy_bundle, few, capsys) -> None:
    arguments = ["--bundle", toy_bundle.id, "--queries", "7", "--dimensions", "16", "4", "--recall", "0.01", "--json"]
    main(["advise", "--registry", str(toy.registry), *arguments])
    said = json.loads(capsys.readouterr().out)
    assert (said["bundle"], said["items"]) == (toy_bundle.id, 13)
    assert [one["dimension"] for one in said["trials"]] == [16, 16, 16, 4, 4]
    assert said["trials"][0]["kind"] is None
    assert said["trials"][1]["recall"] == 1
    assert said["advice"]["kind"]["class_path"].startswith("recsys.index.build.")
    assert said["budget"] == {"memory": None, "p99": None, "recall": 0.01, "build": None}


@pytest.mark.parametrize(("p99", "told"), [(4e-4, False), (4e-3, True)])
def test_a_busy_machine_is_told(toy, monkeypatch, capsys, p99: float, told: bool) -> None:
    floor = Trial(None, 64, 1.0, 2e-4, p99, 1, 1, 0.0)
    monkeypatch.setattr("recsys.indexes.measure", lambda *given, **how: [floor, TRIALS[1]])
    main(["advise", "--registry", str(toy.registry)])
    assert ("the floor's own p99 is 20 times its median; measure again." in capsys.readouterr().out) == told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["advise"], "--registry"),
        (["advise", "--registry", "x", "--memory", "2 giga"], "argument --memory: '2 giga': a size is a number and B"),
        (["advise", "--registry", "x", "--p99", "2"], "argument --p99: '2': a duration is a number and us, ms, s"),
        ([], "command"),
    ],
)
def test_wrong_words_are_answered_with_the_right_ones(arguments, message, capsys) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_help_shows_how(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["advise", "--help"])
    said = capsys.readouterr().out
    assert "recsys index advise --registry demo/registry --memory 2GB --p99 2ms --recall 0.98 --build 10min" in said
    assert "the one that needs least memory, in steps of 100 MB" in said
