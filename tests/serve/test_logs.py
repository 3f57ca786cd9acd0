"""Log lines: what is in them, what a caller cannot do with them, and that nobody waits for whoever reads."""

from __future__ import annotations

import io
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serve import logs
from serve.local import own_folder
from serve.logs import LogHandler, LogReader, LogSink

ANSWERED: dict[str, Any] = {
    "request_id": "r1",
    "route": "/v1/users/{user_id}/recommendations",
    "status": 200,
    "seconds": 0.0123456,
    "strategy": "personalised",
    "bundle": "b1",
    "key_id": "shop",
}


@pytest.fixture
def folder() -> Iterator[Path]:
    with own_folder() as made:  # short enough for a socket's path
        yield made


@pytest.fixture
def printed(folder: Path) -> Callable[..., list[dict[str, Any]]]:
    """Runs a function with a sink of the given settings, and returns the lines that its reader printed."""

    def of(say: Callable[[LogSink], Any], **settings: Any) -> list[dict[str, Any]]:
        stream = io.StringIO()
        reader = LogReader(folder / "log", stream)
        sink = LogSink(folder / "log", **settings)
        say(sink)
        sink.close()
        reader.close()
        assert sink.dropped == 0
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    return of


def test_an_answered_request_is_one_line(printed: Any) -> None:
    (line,) = printed(lambda sink: sink.access(**ANSWERED), sample=1.0)
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {
        "level": "info",
        "message": "request",
        "request_id": "r1",
        "route": "/v1/users/{user_id}/recommendations",
        "status": 200,
        "milliseconds": 12.346,
        "strategy": "personalised",
        "bundle": "b1",
        "key": "shop",
    }


def test_what_is_not_known_is_left_out(printed: Any) -> None:
    without = ANSWERED | {"strategy": None, "bundle": None, "key_id": None, "status": 401}
    (line,) = printed(lambda sink: sink.access(**without), sample=1.0)
    assert set(line) == {"time", "level", "message", "request_id", "route", "status", "milliseconds"}


def test_failed_requests_are_always_written_and_others_by_sample(printed: Any) -> None:
    def say(sink: LogSink) -> None:
        for status in (200, 404, 500, 503):
            sink.access(**ANSWERED | {"status": status})

    lines = printed(say, sample=0.0)
    assert [(line["status"], line["level"]) for line in lines] == [(500, "error"), (503, "error")]


def test_a_sample_is_a_share(printed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([0.0, 0.24, 0.25, 0.99])
    monkeypatch.setattr("serve.logs.random.random", lambda: next(drawn))

    def say(sink: LogSink) -> None:
        for number in range(4):
            sink.access(**ANSWERED | {"request_id": str(number)})

    assert [line["request_id"] for line in printed(say, sample=0.25)] == ["0", "1"]


@pytest.mark.parametrize("sample", [-0.1, 1.1, float("nan")])
def test_a_sample_that_is_no_share_is_named(sample: float) -> None:
    with pytest.raises(ValueError, match=f"{sample}.*0 to 1"):
        LogSink(sample=sample)


@given(st.text(max_size=700), st.text(max_size=700))
@example("\x7f\x1b[2J\x9b\u202e\u2028\ud800", "x" * 500)
@example("y" * 501, "\r\n" * 300)
def test_whatever_a_caller_says_stays_one_bounded_line_of_ascii(name: str, said: str) -> None:
    line = logs._encoded(0.0, "info", {"message": said, "route": name})
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert all(byte >= 32 and byte != 127 for byte in line[:-1])
    read = json.loads(line)
    for field, value in (("message", said), ("route", name)):
        assert read[field] == (value if len(value) <= 500 else value[:500] + "…")


def test_order_is_kept_and_nothing_is_lost_over_many_parcels(printed: Any) -> None:
    def say(sink: LogSink) -> None:
        for number in range(3000):
            sink.line("info", "x" * 100, number=number)

    assert [line["number"] for line in printed(say)] == list(range(3000))


def received(by: socket.socket) -> int:
    """How many lines have come and were not read yet."""
    lines = 0
    while True:
        try:
            lines += by.recv(1 << 20).count(b"\n")
        except TimeoutError:
            return lines


def test_what_a_reader_does_not_take_is_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "PATIENCE_S", 0.05)
    some_dropped = threading.Event()
    told: list[int] = []

    def on_dropped(lines: int) -> None:
        told.append(lines)
        some_dropped.set()

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(folder / "log"))
        deaf.settimeout(0.2)
        sink = LogSink(folder / "log", on_dropped=on_dropped)
        for _ in range(1500):
            sink.line("info", "x" * 400)
        assert some_dropped.wait(10)
        came = received(deaf)
        monkeypatch.setattr(
            logs, "PATIENCE_S", 5.0
        )  # for the close: a thread that is starved is no reader that is deaf
        sink.close()
        came += received(deaf)
    assert sum(told) == sink.dropped > 0
    assert came + sink.dropped == 1500


def test_nobody_waits_for_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_WAITING", 3)
    writing, may_go_on = threading.Event(), threading.Event()
    sent: list[bytes] = []

    def slow(lines: list[bytes]) -> None:
        writing.set()
        may_go_on.wait(10)
        sent.extend(lines)

    sink = LogSink()
    monkeypatch.setattr(sink, "_send", slow)
    sink.line("info", "first")
    assert writing.wait(10)
    for number in range(5):
        sink.line("info", "next", number=number)
    assert sink.dropped == 2
    may_go_on.set()
    sink.close()
    assert [json.loads(line).get("number") for line in sent] == [None, 0, 1, 2]


def test_without_a_reader_lines_are_dropped_and_with_one_they_come_again(folder: Path) -> None:
    dropped = threading.Event()
    sink = LogSink(folder / "log", on_dropped=lambda _: dropped.set())
    sink.line("info", "nobody there")
    assert dropped.wait(10)
    stream = io.StringIO()
    reader = LogReader(folder / "log", stream)
    sink.line("info", "somebody there")
    sink.close()
    reader.close()
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["somebody there"]
    assert sink.dropped == 1
    assert not (folder / "log").exists()


def test_a_reader_that_came_back_is_found_again(folder: Path) -> None:
    first, second = io.StringIO(), io.StringIO()
    reader = LogReader(folder / "log", first)
    dropped = threading.Event()
    sink = LogSink(folder / "log", on_dropped=lambda _: dropped.set())
    sink.line("info", "one")
    while not first.getvalue():
        assert sink._writer.is_alive()
    reader.close()
    sink.line("info", "two")
    assert dropped.wait(10)
    reader = LogReader(folder / "log", second)
    sink.line("info", "three")
    sink.close()
    reader.close()
    assert '"three"' in second.getvalue()
    assert sink.dropped == 1


def test_without_a_socket_lines_go_to_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RECSYS_LOG_SOCKET", raising=False)
    sink = LogSink.from_environment(sample=1.0)
    sink.access(**ANSWERED)
    sink.close()
    assert json.loads(capsys.readouterr().err)["request_id"] == "r1"


def test_the_environment_says_where(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_LOG_SOCKET", str(folder / "log"))
    stream = io.StringIO()
    reader = LogReader(folder / "log", stream)
    sink = LogSink.from_environment()
    sink.line("warning", "here")
    sink.close()
    reader.close()
    assert json.loads(stream.getvalue())["level"] == "warning"


def test_python_records_come_with_their_trace_and_request(printed: Any) -> None:
    log = logging.Logger("serve.problems")

    def say(sink: LogSink) -> None:
        log.addHandler(LogHandler(sink))
        try:
            raise RuntimeError("inside\nout")
        except RuntimeError:
            log.exception("request %s failed", "r7", extra={"request_id": "r7"})
        log.warning("no trace")

    failed, warned = printed(say)
    assert (failed["level"], failed["logger"], failed["request_id"]) == ("error", "serve.problems", "r7")
    assert failed["message"] == "request r7 failed"
    assert failed["trace"].rstrip().endswith("RuntimeError: inside\nout")
    assert "trace" not in warned


def test_what_json_does_not_know_is_written_as_text(printed: Any) -> None:
    (line,) = printed(lambda sink: sink.line("info", "moved", path=Path("/a")))
    assert line["path"] == "/a"


def test_a_field_that_cannot_be_written_takes_only_its_own_line(folder: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    stream = io.StringIO()
    reader = LogReader(folder / "log", stream)
    sink = LogSink(folder / "log")
    sink.line("info", "wrong", field=endless)
    sink.line("info", "right")
    sink.close()
    reader.close()
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["right"]
    assert sink.dropped == 1
