"""What Prometheus is told: exact counts, of all of a node's processes, through their ends."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from serve import metrics
from serve.local import _free_ports
from serve.metrics import FAMILIES, MAX_SERIES, Metrics
from serve.snapshots import GONE, Snapshots, Values, add, alive, identity

ORDER = ["bundle", "operation", "outcome", "route", "status", "strategy", "stage", "step", "le"]
ROUTE = "/v1/users/{user_id}/recommendations"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Metrics]]:
    """Metrics in a folder of their own that publish when told to, and are closed at the end."""
    made = []

    def of(folder: Path | None = tmp_path, **more: Any) -> Metrics:
        made.append(Metrics(folder, **{"every_s": 3600, **more}))
        return made[-1]

    yield of
    for each in made:
        each.close()


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    """(name, label value …) → value, as Prometheus's parser reads it."""
    return {
        (each.name, *(each.labels[name] for name in sorted(each.labels, key=ORDER.index))): each.value
        for family in text_string_to_metric_families(text.decode())
        for each in family.samples
    }


def say_something(of: Metrics) -> None:
    of.request(ROUTE, 200, "personalised", 0.001)
    of.request(ROUTE, 200, "personalised", 0.0011)
    of.request(ROUTE, 422, None, 99)
    of.answer([("search", 0.0002)], ["fewer"])
    of.bundle("b1", 1_000_500)
    of.swap("swapped", 3.0)
    of.store("add_events", 0.004, False)
    of.store("add_events", 7.0, True)
    of.events(3, 1)
    of.live(5, 1.5)
    of.keys_problem(True)
    of.log_dropped(2)


def test_everything_said_is_shown(make: Callable[..., Metrics]) -> None:
    counts = make(None)
    say_something(counts)
    said = samples(counts.render())
    assert said["recsys_requests_total", ROUTE, "200", "personalised"] == 2
    assert said["recsys_requests_total", ROUTE, "422", "none"] == 1
    buckets = {labels[2]: value for labels, value in said.items() if labels[0] == "recsys_request_seconds_bucket"}
    assert (buckets["0.0005"], buckets["0.001"], buckets["0.002"], buckets["10.0"], buckets["+Inf"]) == (0, 1, 2, 2, 3)
    assert said["recsys_request_seconds_count", ROUTE] == 3
    assert said["recsys_request_seconds_sum", ROUTE] == pytest.approx(99.0021)
    assert said["recsys_stage_seconds_bucket", "search", "0.0002"] == 1
    assert said["recsys_degraded_total", "fewer"] == 1
    assert said["recsys_replicas", "b1"] == said["recsys_bundle_info", "b1"] == 1
    assert said["recsys_bundle_created_seconds",] == 1000.5
    assert said["recsys_swaps_total", "swapped"] == said["recsys_swap_seconds_count",] == 1
    assert said["recsys_online_store_seconds_count", "add_events"] == 2
    assert said["recsys_online_store_failures_total", "add_events"] == 1
    assert (said["recsys_events_total", "accepted"], said["recsys_events_total", "duplicate"]) == (3, 1)
    assert (said["recsys_live_items",], said["recsys_online_store_lag_seconds",]) == (5, 1.5)
    assert said["recsys_keys_problem",] == 1
    assert said["recsys_log_lines_dropped_total",] == 2


def test_every_family_can_be_filled_and_follows_the_conventions(make: Callable[..., Metrics]) -> None:
    counts = make(None)
    say_something(counts)
    shown = {re.sub("_(bucket|sum|count)$", "", labels[0]) for labels in samples(counts.render())}
    assert shown == {each.name for each in FAMILIES}
    for each in FAMILIES:
        assert re.fullmatch("recsys_[a-z_]+", each.name)
        assert each.name.endswith("_total") == (each.kind == "counter"), each.name
        assert list(each.buckets) == sorted(set(each.buckets))
        assert each.help.endswith(".")


def test_the_content_type_is_what_prometheus_expects() -> None:
    assert Metrics.content_type == "text/plain; version=0.0.4; charset=utf-8"


@given(st.lists(st.floats(0, 20), max_size=40))
def test_buckets_hold_what_is_not_above_their_bound(durations: list[float]) -> None:
    counts = Metrics()
    for seconds in durations:
        counts.request("/r", 200, None, seconds)
    said = samples(counts.render())
    for bound in metrics.REQUEST_S if durations else ():
        assert said["recsys_request_seconds_bucket", "/r", str(bound)] == sum(each <= bound for each in durations)


def test_a_replica_that_swaps_serves_one_bundle(make: Callable[..., Metrics]) -> None:
    counts = make()
    counts.bundle("old", 1000)
    counts.render()
    counts.bundle("new", 2000)
    said = samples(counts.render())
    assert [labels for labels in said if labels[0] == "recsys_bundle_info"] == [("recsys_bundle_info", "new")]


def test_labels_are_bounded(make: Callable[..., Metrics]) -> None:
    counts = make(None)
    for number in range(MAX_SERIES + 50):
        counts.request(f"/{number}", 404, None, 0.1)
        counts.answer([(f"s{number}", 0.1)], [f"d{number}"])
    said = samples(counts.render())
    assert said["recsys_requests_total", "other", "404", "none"] == 50
    assert said["recsys_stage_seconds_count", "other"] == 50
    assert said["recsys_degraded_total", "other"] == 50


def test_threads_lose_no_count(make: Callable[..., Metrics]) -> None:
    counts = make()
    begin = threading.Barrier(5)

    def hammer() -> None:
        begin.wait()
        for number in range(4000):
            counts.request(ROUTE, 200 + number % 7, "history", 0.01)
            counts.store("events_of", 0.001, True)

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for each in threads:
        each.start()
    begin.wait()
    while any(each.is_alive() for each in threads):
        counts.render()
    said = samples(counts.render())
    assert said["recsys_request_seconds_count", ROUTE] == 16_000
    assert said["recsys_online_store_failures_total", "events_of"] == 16_000


def another(folder: Path, said: Any, may_end: Any, bundle_id: str, created_ms: int) -> None:
    counts = Metrics(folder, every_s=3600)
    counts.request(ROUTE, 200, "popular", 0.3)
    counts.bundle(bundle_id, created_ms)
    counts.live(7, float(created_ms))
    counts.keys_problem(bundle_id == "b1")
    counts.render()  # which publishes
    said.set()
    may_end.wait()
    if bundle_id == "b2":
        os._exit(1)  # as if killed
    counts.close()


class Process:
    """Another process of the node, that has counted one request and serves a bundle."""

    def __init__(self, folder: Path, bundle_id: str, created_ms: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        said, self._may_end = spawn.Event(), spawn.Event()
        self._process = spawn.Process(
            target=another, args=(folder, said, self._may_end, bundle_id, created_ms), daemon=True
        )
        self._process.start()
        assert said.wait(60)

    def end(self) -> None:
        self._may_end.set()
        self._process.join(60)
        assert not self._process.is_alive()


def test_one_answers_for_all_and_for_those_that_have_ended(make: Callable[..., Metrics], tmp_path: Path) -> None:
    mine = make()
    mine.request(ROUTE, 200, "popular", 0.3)
    mine.bundle("b2", 3000)
    first, second = Process(tmp_path, "b1", 1000), Process(tmp_path, "b2", 2000)
    said = samples(mine.render())
    assert said["recsys_requests_total", ROUTE, "200", "popular"] == 3
    assert said["recsys_request_seconds_bucket", ROUTE, "0.5"] == 3
    assert (said["recsys_replicas", "b1"], said["recsys_replicas", "b2"]) == (1, 2)
    assert (said["recsys_bundle_info", "b1"], said["recsys_bundle_info", "b2"]) == (1, 1)
    assert said["recsys_bundle_created_seconds",] == 1, "the oldest"
    assert said["recsys_keys_problem",] == 1, "any"
    assert (said["recsys_live_items",], said["recsys_online_store_lag_seconds",]) == (7, 2000), "no sum, the worst"
    first.end()
    second.end()
    for _ in range(2):  # the second time from what was added up
        said = samples(mine.render())
        assert said["recsys_requests_total", ROUTE, "200", "popular"] == 3
        assert said["recsys_request_seconds_bucket", ROUTE, "0.5"] == 3
        assert ("recsys_replicas", "b1") not in said
        assert said["recsys_replicas", "b2"] == 1
        assert said["recsys_bundle_created_seconds",] == 3
        assert ("recsys_live_items",) not in said
    assert {file.name for file in tmp_path.glob("*.json")} == {GONE, f"{identity(os.getpid())}.json"}


def read_by_another(folder: Path) -> Values:
    reader = Snapshots(folder)
    reader._own = folder / "not mine"
    (living,), _ = reader.read()
    return living


def test_what_was_shown_once_is_never_unsaid(make: Callable[..., Metrics], tmp_path: Path) -> None:
    """A scrape publishes, so that another process, asked next, does not say less."""
    mine = make()
    mine.request(ROUTE, 200, None, 0.1)
    mine.render()
    assert read_by_another(tmp_path)["recsys_requests_total"] == {(ROUTE, "200", "none"): 1}


def test_closing_publishes_what_was_counted_last(make: Callable[..., Metrics], tmp_path: Path) -> None:
    mine = make()
    mine.log_dropped(3)
    mine.close()
    assert read_by_another(tmp_path)["recsys_log_lines_dropped_total"] == {(): 3}


def test_it_publishes_by_itself(make: Callable[..., Metrics], monkeypatch: pytest.MonkeyPatch) -> None:
    mine = make(every_s=0.01)
    written = threading.Event()
    write = mine._snapshots.write

    def noticed(values: Any) -> None:
        write(values)
        if values["recsys_events_total"]:
            written.set()

    monkeypatch.setattr(mine._snapshots, "write", noticed)
    mine.events(1, 0)
    assert written.wait(10)


def test_those_added_up_are_not_added_again(tmp_path: Path) -> None:
    """Stopped after the sums were written and before the file was removed."""
    mine = Snapshots(tmp_path)
    (tmp_path / "1-0.json").write_text('{"values": {"c": [[["x"], 2]]}}')
    (tmp_path / GONE).write_text('{"values": {"c": [[["x"], 5]]}, "of": ["1-0"]}')
    assert mine.read() == ([], {"c": {("x",): 5}})
    assert not (tmp_path / "1-0.json").exists()
    (tmp_path / "1-1.json").write_text('{"values": {"c": [[["x"], 2], [["y"], 1]]}}')
    assert mine.read() == ([], {"c": {("x",): 7, ("y",): 1}})


@pytest.mark.parametrize("content", [b"", b"[]", b'{"values": ', b"\x00\xff"])
def test_a_broken_file_breaks_nothing(make: Callable[..., Metrics], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "1-0.json").write_bytes(content)
    (tmp_path / "what.json").write_bytes(content)
    (tmp_path / GONE).write_bytes(content)
    mine = make()
    mine.answer([], ["fewer"])
    assert samples(mine.render())["recsys_degraded_total", "fewer"] == 1


def test_a_folder_that_is_lost_is_said_once_and_breaks_nothing(
    make: Callable[..., Metrics], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = make(tmp_path / "m")
    (tmp_path / "m" / "lock").unlink(missing_ok=True)
    for file in (tmp_path / "m").iterdir():
        file.unlink()
    (tmp_path / "m").rmdir()
    for count in (1, 2):
        mine.events(1, 0)
        assert samples(mine.render())["recsys_events_total", "accepted"] == count
    assert [each.levelname for each in caplog.records] == ["WARNING", "WARNING"]
    assert all("check RECSYS_METRICS_DIR" in each.message for each in caplog.records)


def test_counts_of_another_versions_buckets_are_left_out() -> None:
    sums: Values = {"h": {("a",): [1, 2, 3.0]}}
    add(sums, {"h": {("a",): [1, 2, 3, 4.0], ("b",): [1, 0, 0.5]}, "new": {(): 1}})
    assert sums == {"h": {("a",): [1, 2, 3.0], ("b",): [1, 0, 0.5]}, "new": {(): 1}}


def test_a_process_is_known_by_its_number_and_its_beginning() -> None:
    assert alive(identity(os.getpid()))
    assert not alive(f"{os.getpid()}-1"), "an earlier process of the same number"
    assert not alive("gone")
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    name = identity(child.pid)
    assert alive(name)
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not alive(name), "ended, and nobody asked yet how"
    child.wait()
    assert not alive(name)


def test_one_process_of_a_node_answers_scrapes_and_another_takes_over(make: Callable[..., Metrics]) -> None:
    (port,) = _free_ports(1)

    def scrape() -> dict[tuple[str, ...], float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            return samples(answer.read())

    first = make(None, address=("127.0.0.1", port))
    first.bundle("first", 1)
    while first._server is None:
        assert first._publisher.is_alive()
    second = make(None, address=("127.0.0.1", port), every_s=0.01)
    second.bundle("second", 1)
    assert ("recsys_replicas", "first") in scrape()
    first.close()
    while second._server is None:
        assert second._publisher.is_alive()
    assert ("recsys_replicas", "second") in scrape()


@pytest.mark.parametrize("address", ["9464", "host:", ":1", "h:0", "h:99999", "h:x"])
def test_an_address_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RECSYS_METRICS_ADDRESS", address)
    with pytest.raises(ValueError, match=re.escape(repr(address)) + r".*HOST:PORT"):
        Metrics.from_environment()


def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECSYS_METRICS_DIR", str(tmp_path / "made" / "here"))
    mine = Metrics.from_environment()
    assert mine._snapshots.folder == tmp_path / "made" / "here"
    assert mine._snapshots.folder.stat().st_mode & 0o777 == 0o700
    mine.close()
    monkeypatch.delenv("RECSYS_METRICS_DIR")
    assert Metrics.from_environment()._snapshots is None
