"""What one call an answer tells metrics and log."""

from __future__ import annotations

from typing import Any

import pytest

from recsys.answers import Answer
from serve.answers import Batch
from serve.logs import LogSink
from serve.metrics import Metrics
from serve.observer import Observer
from serve.problems import Refusal

ROUTE = "/v1/recommendations"
FOUND = Answer("b1", "popular", [], degraded=("popular",), stages=(("search", 0.25), ("read", 0.5)))


class Sink:
    """Keeps the statuses and bundles of what it is told."""

    def __init__(self, sample: float) -> None:
        self.sample = sample
        self.lines: list[tuple[int, str | None]] = []

    def access(self, **said: Any) -> None:
        self.lines.append((said["status"], said["bundle"]))


@pytest.mark.parametrize(("sample", "lines"), [(0.0, [(503, None)]), (1.0, [(200, "b1"), (422, None), (503, None)])])
def test_failures_are_logged_always_and_the_rest_where_it_is_asked_for(
    sample: float, lines: list[tuple[int, str | None]]
) -> None:
    sink = Sink(sample)
    observer = Observer(sink=sink)  # type: ignore[arg-type]
    for status, said in ((200, FOUND), (422, None), (503, None)):
        observer.answered(ROUTE, status, said, 0.5, "id", None, None)
    assert sink.lines == lines


def test_a_share_between_is_left_to_the_sink(capsys: pytest.CaptureFixture[str]) -> None:
    sink = LogSink(sample=0.5)
    observer = Observer(sink=sink)
    for _ in range(200):
        observer.answered(ROUTE, 200, FOUND, 0.5, "id", None, None)
    sink.close()
    assert 50 < capsys.readouterr().err.count('"message": "request"') < 150


@pytest.mark.parametrize(
    ("said", "answers"), [(FOUND, 1), (Batch("b1", [FOUND, Refusal(422, "k: too many"), FOUND]), 2)]
)
def test_stages_and_what_was_done_without_are_counted_of_every_answer(said: Any, answers: int) -> None:
    metrics = Metrics()
    Observer(metrics).answered(ROUTE, 200, said, 0.5, "id", None, None)
    shown = metrics.render().decode()
    assert f'recsys_stage_seconds_count{{stage="search"}} {answers}.0' in shown
    assert f'recsys_stage_seconds_sum{{stage="read"}} {answers * 0.5}' in shown
    assert f'recsys_degraded_total{{step="popular"}} {answers}.0' in shown
