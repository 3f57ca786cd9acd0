"""What Prometheus is told: counted in plain memory where requests are answered, published once a second beside it.

Several replicas stand behind one address, and a scrape reaches any one of them. So each publishes what it has counted
to a folder that the node's processes share, and whoever is asked answers for all. prometheus_client's own way there is
files that every increment writes to under one lock, for all that uses the library in a process; Ray does, too.
"""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from .snapshots import Snapshots, Values, add

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
FOLDER, ADDRESS = "RECSYS_METRICS_DIR", "RECSYS_METRICS_ADDRESS"
MAX_SERIES = 500  # of one family: labels come from us, not from callers, and this is what holds if that is ever wrong
OTHER, NONE = "other", "none"

REQUEST_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
STAGE_S = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
STORE_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
SWAP_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """One metric.

    Args:
        name: as Prometheus shows it; a histogram's without `_bucket`, `_sum` and `_count`.
        kind: counters and histograms are added over processes, and go on counting what a process had that has ended.
        help: one line.
        labels: the names of its labels.
        buckets: a histogram's upper bounds, ascending.
        over: how living processes' values of a gauge become the node's.
    """

    name: str
    kind: Literal["counter", "histogram", "gauge"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    over: Callable[[Iterable[float]], float] = sum


REQUESTS = Family("recsys_requests_total", "counter", "Requests answered.", ("route", "status", "strategy"))
REQUEST = Family("recsys_request_seconds", "histogram", "From a request's head to its answer.", ("route",), REQUEST_S)
STAGE = Family("recsys_stage_seconds", "histogram", "Part of answering a request.", ("stage",), STAGE_S)
DEGRADED = Family("recsys_degraded_total", "counter", "Answers of which less was done than asked.", ("step",))
BUNDLE = Family("recsys_bundle_info", "gauge", "1 for each bundle that a replica serves.", ("bundle",), over=max)
REPLICAS = Family("recsys_replicas", "gauge", "Processes that answer, by the bundle they serve.", ("bundle",))
CREATED = Family("recsys_bundle_created_seconds", "gauge", "When the oldest served bundle was sealed.", over=min)
SWAPS = Family("recsys_swaps_total", "counter", "Changes to another bundle, by how they ended.", ("outcome",))
SWAP = Family("recsys_swap_seconds", "histogram", "From another bundle seen to its being served.", (), SWAP_S)
STORE = Family("recsys_online_store_seconds", "histogram", "A call of the online store.", ("operation",), STORE_S)
STORE_FAILURES = Family("recsys_online_store_failures_total", "counter", "Calls that failed.", ("operation",))
EVENTS = Family("recsys_events_total", "counter", "Events taken in, new and known ones.", ("outcome",))
LIVE_ITEMS = Family("recsys_live_items", "gauge", "Items changed since the bundle was sealed.", over=max)
LIVE_LAG = Family("recsys_online_store_lag_seconds", "gauge", "Since items were last read, and were whole.", over=max)
KEYS_PROBLEM = Family("recsys_keys_problem", "gauge", "1 while the file of keys cannot be read again.", over=max)
LOG_DROPPED = Family("recsys_log_lines_dropped_total", "counter", "Log lines that nobody was there to take.")

FAMILIES = (
    *(REQUESTS, REQUEST, STAGE, DEGRADED, REPLICAS, BUNDLE, CREATED, SWAPS, SWAP),
    *(STORE, STORE_FAILURES, EVENTS, LIVE_ITEMS, LIVE_LAG, KEYS_PROBLEM, LOG_DROPPED),
)


class Metrics:
    """One process's counts, and the way to those of its node.

    Counting takes a fraction of a microsecond and never waits; any thread may. What labels say must come from a fixed
    list (a route's template, never its path): beyond `MAX_SERIES` they are counted together, as `other`.

    Args:
        folder: what the node's processes share; None where this one is alone.
        address: host and port to answer scrapes at, too, where a proxy spreads requests over several nodes; taken by
            one of the node's processes, and by another when that one ends.
        every_s: seconds between publications.
    """

    content_type = CONTENT_TYPE

    def __init__(
        self, folder: str | Path | None = None, *, address: tuple[str, int] | None = None, every_s: float = 1.0
    ) -> None:
        self._requests: dict[tuple[str, int, str | None], list[Any]] = {}
        self._counts: dict[str, dict[Any, Any]] = {
            each.name: {} for each in FAMILIES if each not in (REQUESTS, REQUEST)
        }
        self._stages = self._counts[STAGE.name]
        self._counts[LOG_DROPPED.name][()] = 0
        self._adding = threading.Lock()
        self._publishing = threading.Lock()
        self._snapshots = None if folder is None else Snapshots(folder)
        self._published: Values | None = None
        self._address = address
        self._server: Any = None
        self._complained: set[str] = set()
        self._closing = threading.Event()
        self._publisher: threading.Thread | None = None
        self._publish()
        if self._snapshots is not None or address is not None:
            self._publisher = threading.Thread(target=self._keep, args=(every_s,), name="metrics", daemon=True)
            self._publisher.start()

    @classmethod
    def from_environment(cls) -> Metrics:
        """As RECSYS_METRICS_DIR (a folder) and RECSYS_METRICS_ADDRESS (HOST:PORT) say; both may be unset.

        Raises:
            ValueError: the address is none.
        """
        said = os.environ.get(ADDRESS)
        host, _, port = (said or "").rpartition(":")
        if said and not (host and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"{ADDRESS} is {said!r}; it must be HOST:PORT, such as 0.0.0.0:9464")
        return cls(os.environ.get(FOLDER) or None, address=(host.strip("[]"), int(port)) if said else None)

    def request(self, route: str, status: int, strategy: str | None, seconds: float) -> None:
        """A request was answered: its route's template, its status, and the strategy of its answer, if it had one."""
        key = (route, status, strategy)
        try:
            cell = self._requests[key]
        except KeyError:
            cell = self._new(self._requests, key, (OTHER, status, None), len(REQUEST_S) + 2)
        cell[bisect_left(REQUEST_S, seconds)] += 1
        cell[-1] += seconds

    def answer(self, stages: Iterable[tuple[str, float]], degraded: Iterable[str]) -> None:
        """An answer was found: the seconds that each part of it took, and what was done with less effort than asked."""
        for name, seconds in stages:
            try:
                cell = self._stages[name]
            except KeyError:
                cell = self._new(self._stages, name, OTHER, len(STAGE_S) + 2)
            cell[bisect_left(STAGE_S, seconds)] += 1
            cell[-1] += seconds
        for step in degraded:
            self._count(DEGRADED, step)

    def bundle(self, bundle_id: str, created_ms: int) -> None:
        """This process serves that bundle from now on, and no other."""
        with self._adding:
            self._counts[BUNDLE.name] = {bundle_id: 1}
            self._counts[REPLICAS.name] = {bundle_id: 1}
            self._counts[CREATED.name] = {(): created_ms / 1000}

    def swap(self, outcome: Literal["swapped", "failed", "unasked"], seconds: float) -> None:
        """Another bundle is served, could not be opened, or the registry could not be asked which one is live."""
        self._count(SWAPS, outcome)
        self._time(SWAP, (), seconds)

    def store(self, operation: str, seconds: float, failed: bool) -> None:
        """The online store was asked."""
        self._time(STORE, operation, seconds)
        if failed:
            self._count(STORE_FAILURES, operation)

    def events(self, accepted: int, duplicates: int) -> None:
        """Events were taken in: so many new ones, so many known before."""
        self._count(EVENTS, "accepted", accepted)
        self._count(EVENTS, "duplicate", duplicates)

    def live(self, items: int, lag_s: float) -> None:
        """How many items differ from the bundle's, and how old what we know of them may be."""
        with self._adding:
            self._counts[LIVE_ITEMS.name][()] = items
            self._counts[LIVE_LAG.name][()] = lag_s

    def keys_problem(self, problem: bool) -> None:
        """Whether the file of keys was last found unreadable."""
        with self._adding:
            self._counts[KEYS_PROBLEM.name][()] = int(problem)

    def log_dropped(self, lines: int = 1) -> None:
        """Log lines were dropped rather than waited for."""
        self._count(LOG_DROPPED, (), lines)

    def render(self) -> bytes:
        """The node's metrics, of type `content_type`: file work, so not for an event loop."""
        return generate_latest(self._registry())

    def close(self) -> None:
        """Publishes a last time and stops answering scrapes of its own."""
        self._closing.set()
        if self._publisher is not None:
            self._publisher.join()
        if self._server is not None:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()
            self._server = None
        self._publish()

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client asks of a collector."""
        own = self._publish()  # so that whoever is asked next says no less
        living: list[Values] = [own]
        sums: Values = {}
        if self._snapshots is not None:
            try:
                others, sums = self._snapshots.read()
                living += others
            except OSError as error:
                self._complain("read", f"the metrics of other processes cannot be read ({error}); check {FOLDER}")
        for values in living:
            add(sums, {each.name: values.get(each.name, {}) for each in FAMILIES if each.kind != "gauge"})
        for family in FAMILIES:
            if family.kind == "gauge":
                said = [values.get(family.name, {}) for values in living]
                known = {key: family.over(each[key] for each in said if key in each) for one in said for key in one}
                yield _gauge(family, known)
            elif family.kind == "counter":
                yield _counter(family, sums[family.name])
            else:
                yield _histogram(family, sums[family.name])

    def _registry(self) -> CollectorRegistry:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return registry

    def _count(self, family: Family, key: Any, number: int = 1) -> None:
        counts = self._counts[family.name]
        try:
            counts[key] += number
        except KeyError:
            with self._adding:
                key = key if len(counts) < MAX_SERIES else OTHER
                counts[key] = counts.get(key, 0) + number

    def _time(self, family: Family, key: Any, seconds: float) -> None:
        cells = self._counts[family.name]
        cell = cells.get(key) or self._new(cells, key, OTHER, len(family.buckets) + 2)
        cell[bisect_left(family.buckets, seconds)] += 1
        cell[-1] += seconds

    def _new(self, cells: dict[Any, list[Any]], key: Any, other: Any, length: int) -> list[Any]:
        with self._adding:
            key = key if len(cells) < MAX_SERIES else other
            return cells.setdefault(key, [0] * (length - 1) + [0.0])

    def _values(self) -> Values:
        """What this process counted, by label values."""
        values: Values = {REQUESTS.name: {}, REQUEST.name: {}}
        with self._adding:  # nothing is added meanwhile; what counts on is either in already or in the next one
            for (route, status, strategy), cell in self._requests.items():
                labels = (route, str(status), NONE if strategy is None else strategy)
                values[REQUESTS.name][labels] = sum(cell[:-1])
                add(values, {REQUEST.name: {(route,): cell}})
            for name, known in self._counts.items():
                values[name] = {
                    key if isinstance(key, tuple) else (key,): list(value) if isinstance(value, list) else value
                    for key, value in known.items()
                }
        return values

    def _keep(self, every_s: float) -> None:
        while True:
            self._listen()
            if self._closing.wait(every_s):
                return
            self._publish()

    def _publish(self) -> Values:
        with self._publishing:
            values = self._values()
            if self._snapshots is not None and values != self._published:
                try:
                    self._snapshots.write(values)
                    self._published = values
                except OSError as error:
                    self._complain("write", f"metrics cannot be published ({error}); check {FOLDER}")
        return values

    def _listen(self) -> None:
        if self._address is None or self._server is not None:
            return
        host, port = self._address
        try:
            self._server = start_http_server(port, host, self._registry())
        except OSError as error:  # another of the node's processes answers there: what we try again for
            self._complain("listen", f"another process answers scrapes at {host}:{port}, or it cannot be had ({error})")

    def _complain(self, what: str, words: str) -> None:
        if what not in self._complained:  # once: it would come every second
            self._complained.add(what)
            log.log(logging.INFO if what == "listen" else logging.WARNING, words)


def _gauge(family: Family, values: dict[tuple[str, ...], Any]) -> Metric:
    said = GaugeMetricFamily(family.name, family.help, labels=family.labels)
    for labels, value in values.items():
        said.add_metric(labels, value)
    return said


def _counter(family: Family, values: dict[tuple[str, ...], Any]) -> Metric:
    said = CounterMetricFamily(family.name, family.help, labels=family.labels)
    for labels, value in values.items():
        said.add_metric(labels, value)
    return said


def _histogram(family: Family, values: dict[tuple[str, ...], Any]) -> Metric:
    said = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    for labels, cell in values.items():
        *counts, total = cell
        if len(counts) != len(family.buckets) + 1:
            continue  # a process of another version, in this folder before us
        below, buckets = 0, []
        for bound, count in zip([*map(str, family.buckets), "+Inf"], counts, strict=True):
            below += count
            buckets.append((bound, below))
        said.add_metric(labels, buckets, total)
    return said
