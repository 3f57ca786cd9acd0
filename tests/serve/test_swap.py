"""Hot swap: the live bundle is followed while requests are answered; nothing that fails touches what answers."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import queue
import shutil
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch

from recsys.artifacts import ArtifactError, read_manifest, verify
from recsys.bundle import FORMAT_VERSION, KIND, Bundle
from recsys.online.store import LiveItem
from recsys.recommender import Recommender
from recsys.registry import Registry
from serve.opening import SWITCH_S, opener, settle, warm
from serve.swap import Current, Swap, Watcher, on_loop
from tests.damage import flip
from tests.serve.stand_in import StandIn
from tests.toy import RING, ring_lengths

PATIENCE_S = 20


class Named:
    """As much of a bundle as a watcher looks at; unlike a SimpleNamespace it can be referred to weakly."""

    def __init__(self, name: str) -> None:
        self.id = name


class Remembering:
    """As much of a Recommender as swapping asks of one; it remembers what it was told, and cannot take `bad` items."""

    def __init__(self, bundle: str, told: tuple[str, ...] = ()) -> None:
        self.bundle = Named(bundle)
        self.told = told

    def with_live(self, items: Sequence[LiveItem]) -> Remembering:
        if any(item.item_id.startswith("bad") for item in items):
            raise ValueError("no such feature")
        made = Remembering(self.bundle.id, tuple(item.item_id for item in items))
        made.bundle = self.bundle
        return made


Told: Any = Remembering


def told(current: Current) -> tuple[str, ...]:
    recommender: Any = current.recommender
    return tuple(recommender.told)


def said_of(item_id: str) -> LiveItem:
    return LiveItem(item_id, None, False, 1)


class Watching:
    """A watcher over a registry, what it reported, and what is in use."""

    def __init__(self, registry: Path | str, opened: Callable[[str], Any], **settings: Any) -> None:
        self.reports: queue.Queue[Swap] = queue.Queue()
        self.used: list[str] = []
        self.current = Current(lambda recommender: self.used.append(recommender.bundle.id))
        self.watcher = Watcher(
            str(registry),
            opened=opened,
            use=self.current.put,
            report=self.reports.put,
            **{"interval_s": 0.01} | settings,
        )

    def told(self) -> Swap:
        return self.reports.get(timeout=PATIENCE_S)

    def until(self, holds: Callable[[], bool]) -> None:
        """Waits for the watcher's own rounds until something holds."""
        for _ in range(int(PATIENCE_S / 0.01)):
            if holds():
                return
            self.watcher._stopped.wait(0.01)
        raise AssertionError(self.watcher.standing)


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Callable[..., Watching]]:
    made: list[Watching] = []

    def make(*given: Any, **settings: Any) -> Watching:
        made.append(Watching(*given, **settings))
        return made[-1]

    yield make
    for each in made:
        each.watcher.stop()
        assert not each.watcher._thread.is_alive()


@pytest.fixture(scope="module", autouse=True)
def settled(one_thread: None) -> Iterator[None]:
    """As a replica is before it opens its first bundle."""
    interval = sys.getswitchinterval()
    settle()
    yield
    gc.unfreeze()
    sys.setswitchinterval(interval)
    torch.backends.mkldnn.set_flags(True)


def test_one_thread_answers_however_many_cores_there_are() -> None:
    torch.set_num_threads(2)
    settle()
    assert torch.get_num_threads() == 1


@pytest.fixture(scope="module")
def two(toy_bundle: Bundle, stranger: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with two trainings of one toy, the good one live."""
    registry = Registry(tmp_path_factory.mktemp("two") / "registry")
    for path in (stranger, toy_bundle.path):
        bundle = published(registry, path)
        registry.promote(bundle, why="a test")
    return registry.path


@pytest.fixture
def registry(two: Path, tmp_path: Path) -> Registry:
    return Registry(shutil.copytree(two, tmp_path / "registry"))


def published(registry: Registry, bundle: Path) -> str:
    def write(path: Path) -> Any:
        shutil.copytree(bundle, path)
        return read_manifest(path, KIND, FORMAT_VERSION)

    return registry.publish(write)


def make_live(registry: Path, bundle: str) -> None:
    """As a promotion does, without its checks."""
    Registry(registry).store.write("CURRENT", json.dumps({"bundle": bundle}))


def test_promotions_and_rollbacks_are_followed(registry: Registry, watching: Any) -> None:
    live, other = registry.current, registry.previous
    seen = watching(registry.path, opener(str(registry.path)))
    seen.watcher.first()
    assert seen.told() == Swap(live, None, ANY)
    seen.watcher.start()
    registry.promote(other, why="a test")
    assert (seen.told().bundle, seen.current.recommender.bundle.id) == (other, other)
    registry.rollback(why="a test")
    said = seen.told()
    assert (said.bundle, said.instead_of, said.error) == (live, other, None)
    standing = seen.watcher.standing
    assert (standing.live, standing.wanted, standing.error, standing.failing_since) == (live, live, None, None)
    assert seen.used == [live, other, live]


def test_what_is_opened_answers_as_the_bundle_does(registry: Registry, toy_bundle: Bundle) -> None:
    opened = opener(str(registry.path))(registry.current)
    for user, length in enumerate(ring_lengths()[:20]):
        assert opened.recommend(user_id=f"u{user}", k=1).items[0].item_id == f"i{(user + length) % RING}"
        assert opened.recommend(user_id=f"u{user}") == Recommender(toy_bundle).recommend(user_id=f"u{user}")


def test_a_damaged_bundle_stays_out_is_reported_and_not_tried_again_until_another_is_live(
    registry: Registry, watching: Any, caplog: pytest.LogCaptureFixture
) -> None:
    live, other = registry.current, registry.previous
    tried: list[str] = []
    whole = opener(str(registry.path))

    def opened(bundle: str) -> Recommender:
        tried.append(bundle)
        return whole(bundle)

    seen = watching(registry.path, opened)
    seen.watcher.first()
    seen.told()
    flip(registry.path / "bundles" / other / "item_vectors.npy")
    seen.watcher.start()
    make_live(registry.path, other)
    said = seen.told()
    assert (said.bundle, said.instead_of) == (other, live)
    assert "item_vectors.npy does not match its sha256" in said.error
    standing = seen.watcher.standing
    assert (standing.live, standing.wanted, standing.error) == (live, other, said.error)
    assert standing.failing_since >= standing.since
    assert "item_vectors.npy" in caplog.text
    assert seen.current.recommender.recommend(user_id="u0", k=1).bundle == live
    make_live(registry.path, live)
    seen.until(lambda: seen.watcher.standing.error is None)
    assert tried == [live, other]
    make_live(registry.path, other)
    assert seen.told().error
    assert tried == [live, other, other]
    assert seen.used == [live]


def test_a_bundle_that_fails_is_tried_again_ever_more_seldom(tmp_path: Path, watching: Any) -> None:
    faults = 3

    def opened(bundle: str) -> Any:
        nonlocal faults
        if bundle == "b" and (faults := faults - 1) >= 0:
            raise OSError("the disk is full")
        return Told(bundle)

    make_live(tmp_path, "a")
    seen = watching(tmp_path, opened, retry_s=0.02)
    seen.watcher.first()
    make_live(tmp_path, "b")
    seen.watcher.start()
    waits = []
    assert seen.told().bundle == "a"
    while (said := seen.told()).error:
        assert "the disk is full" in said.error
        failed = seen.watcher._failed
        waits += [failed.wait_s] if failed else []
    assert (said.bundle, seen.used) == ("b", ["a", "b"])
    assert waits == sorted(waits)
    assert faults == -1


def test_retries_double_up_to_ten_minutes_and_wait_as_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("serve.swap.time.monotonic", lambda: clock[0])
    tried: list[float] = []

    def opened(bundle: str) -> Any:
        if bundle == "b":
            tried.append(clock[0])
            raise OSError("no")
        return Told(bundle)

    make_live(tmp_path, "a")
    watcher = Watching(tmp_path, opened).watcher
    watcher.first()
    make_live(tmp_path, "b")
    for clock[0] in range(3000):
        watcher._look()
    assert tried == [0, 60, 180, 420, 900, 1500, 2100, 2700]


def test_a_registry_that_vanishes_is_reported_once_and_survived(tmp_path: Path, watching: Any) -> None:
    folder = tmp_path / "registry"
    make_live(folder, "a")
    seen = watching(folder, Told)
    seen.watcher.first()
    seen.told()
    seen.watcher.start()
    folder.rename(tmp_path / "away")
    said = seen.told()
    assert (said.bundle, said.instead_of) == (None, "a")
    assert f"no bundle is live in {folder}" in said.error
    assert (seen.watcher.standing.live, seen.watcher.standing.error) == ("a", said.error)
    (tmp_path / "away").rename(folder)
    seen.until(lambda: seen.watcher.standing.error is None)
    make_live(folder, "b")
    assert seen.told() == Swap("b", "a", ANY)
    assert seen.reports.empty()


def test_looks_at_a_registry_that_does_not_answer_grow_ten_times_as_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_live(tmp_path, "a")
    watcher = Watching(tmp_path, Told, interval_s=1.0).watcher
    watcher.first()
    assert watcher._look() == 1
    (tmp_path / "CURRENT").write_text("{")
    assert [watcher._look() for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    assert "cannot be read" in watcher.standing.error
    monkeypatch.setattr(type(watcher._registry), "current", property(lambda _: 1 / 0))
    assert watcher._look() == 10
    assert "ZeroDivisionError" in watcher.standing.error
    monkeypatch.undo()
    make_live(tmp_path, "a")
    assert watcher._look() == 1
    assert watcher.standing.error is None


def test_an_address_is_asked_less_often_than_a_folder(tmp_path: Path) -> None:
    def look(address: str) -> float:
        make_live(tmp_path, "a")
        Registry("memory://swap").store.write("CURRENT", json.dumps({"bundle": "a"}))
        watcher = Watching(address, Told, interval_s=1.0, remote_interval_s=7.0).watcher
        watcher.first()
        return watcher._look()

    assert (look(str(tmp_path)), look("memory://swap")) == (1, 7)


def test_two_quick_promotions_end_on_the_last(tmp_path: Path, watching: Any) -> None:
    opening, gate = threading.Event(), threading.Event()
    tried: list[str] = []

    def opened(bundle: str) -> Any:
        tried.append(bundle)
        if bundle == "b":
            opening.set()
            assert gate.wait(PATIENCE_S)
        return Told(bundle)

    make_live(tmp_path, "a")
    seen = watching(tmp_path, opened)
    seen.watcher.first()
    seen.watcher.start()
    make_live(tmp_path, "b")
    assert opening.wait(PATIENCE_S)
    make_live(tmp_path, "c")
    make_live(tmp_path, "d")
    gate.set()
    assert [seen.told().bundle for _ in range(3)] == ["a", "b", "d"]
    assert tried == ["a", "b", "d"]


def test_a_third_bundle_is_not_opened_before_the_first_is_let_go(tmp_path: Path, watching: Any) -> None:
    make_live(tmp_path, "a")
    seen = watching(tmp_path, Told)
    seen.watcher.first()
    seen.watcher.start()
    request = seen.current.recommender  # under way
    cycle = [request]
    cycle.append(cycle)
    make_live(tmp_path, "b")
    assert [seen.told().bundle for _ in range(2)] == ["a", "b"]
    make_live(tmp_path, "c")
    seen.until(lambda: seen.watcher.standing.error is not None)
    assert "bundle c waits" in seen.watcher.standing.error
    assert seen.used == ["a", "b"]
    del request, cycle
    assert seen.told().bundle == "c"
    assert seen.watcher.standing.error is None


def test_an_old_bundle_is_let_go_of_without_waiting_for_a_collection(registry: Registry) -> None:
    first = opener(str(registry.path))(registry.current)
    alive = weakref.ref(first.bundle)
    current = Current(lambda _: None)
    gc.disable()
    try:
        current.put(first)
        del first
        current.put(opener(str(registry.path))(registry.previous))
        gc.collect()
        assert alive() is None
    finally:
        gc.enable()


def test_a_restart_beside_a_damaged_bundle_answers_from_the_one_before(registry: Registry, watching: Any) -> None:
    live, other = registry.current, registry.previous
    flip(registry.path / "bundles" / live / "index.faiss")
    seen = watching(registry.path, opener(str(registry.path)))
    seen.watcher.first()
    standing = seen.watcher.standing
    assert (seen.used, standing.live, standing.wanted) == ([other], other, live)
    assert "index.faiss" in standing.error
    flip(registry.path / "bundles" / other / "index.faiss")
    with pytest.raises(ArtifactError, match=f"bundle {live} cannot be used.*index.faiss"):
        watching(registry.path, opener(str(registry.path))).watcher.first()


def test_a_start_without_a_live_bundle_says_what_to_do(tmp_path: Path, watching: Any) -> None:
    with pytest.raises(ArtifactError, match="recsys bundle promote"):
        watching(tmp_path, Told).watcher.first()


def test_what_was_said_of_items_is_carried_over_before_a_bundle_is_used() -> None:
    used: list[Any] = []
    current = Current(used.append)
    current.tell([said_of("x")])
    assert used == []
    current.put(Told("a"))
    current.tell([said_of("y"), said_of("x")])
    current.tell([])
    current.put(Told("b"))
    assert [(one.bundle.id, one.told) for one in used] == [("a", ("x",)), ("a", ("x", "y")), ("b", ("x", "y"))]
    assert current.recommender is used[-1]


def test_an_item_that_cannot_be_taken_keeps_out_no_other(caplog: pytest.LogCaptureFixture) -> None:
    current = Current(lambda _: None)
    current.put(Told("a"))
    current.tell([said_of(name) for name in ("a", "bad 1", "b", "c", "bad 2")])
    assert sorted(told(current)) == ["a", "b", "c"]
    assert "'bad 1'" in caplog.text
    current.tell([said_of("d")])
    current.put(Told("b"))
    assert sorted(told(current)) == ["a", "b", "c", "d"]


def test_neither_bundles_nor_items_are_lost_when_they_come_at_once() -> None:
    used: list[Any] = []
    current = Current(used.append)
    current.put(Told("0"))

    def put(_: int) -> None:
        for number in range(1, 101):
            current.put(Told(str(number)))

    def tell(part: int) -> None:
        for number in range(100):
            current.tell([said_of(f"{part}-{number}")])

    with ThreadPoolExecutor(4) as threads:
        done = [threads.submit(put, 0), *(threads.submit(tell, part) for part in range(3))]
        for each in done:
            each.result()
    assert current.recommender.bundle.id == "100"
    assert len(told(current)) == 300
    assert [len(one.told) for one in used] == sorted(len(one.told) for one in used)
    assert used[-1] is current.recommender


def test_no_answer_mixes_two_bundles_while_fifty_swaps_happen(registry: Registry, watching: Any) -> None:
    ids = [registry.current, registry.previous]
    manifests = {bundle: registry.verify(bundle) for bundle in ids}

    def opened(bundle: str) -> Recommender:
        return Recommender(Bundle.open(registry.bundle_path(bundle), verified=manifests[bundle]))

    own = {}
    for bundle in ids:
        recommender = opened(bundle)
        own[bundle] = {user: recommender.recommend(user_id=f"u{user}", k=5) for user in range(40)}
    assert own[ids[0]] != own[ids[1]]
    seen = watching(registry.path, opened, interval_s=0.001)
    seen.watcher.first()
    seen.told()
    stop = threading.Event()

    def ask(offset: int) -> dict[str, int]:
        answers = dict.fromkeys(ids, 0)
        user = offset
        while not stop.wait(0.0005):  # else they hardly let the watcher open anything
            user = (user + 1) % 40
            answer = seen.current.recommender.recommend(user_id=f"u{user}", k=5)
            assert answer == own[answer.bundle][user]
            answers[answer.bundle] += 1
        return answers

    with ThreadPoolExecutor(3) as threads:
        asking = [threads.submit(ask, offset) for offset in range(3)]
        seen.watcher.start()
        try:
            for swap in range(50):
                make_live(registry.path, ids[(swap + 1) % 2])
                assert seen.told().error is None
        finally:
            stop.set()
        counts = [each.result() for each in asking]
    assert all(count > 10 for counted in counts for count in counted.values()), counts
    assert len(seen.used) == 51


def test_a_loop_is_given_each_recommender_in_order_on_its_own_thread() -> None:
    async def run() -> tuple[list[Any], Callable[[Any], None]]:
        got: list[Any] = []
        use = on_loop(asyncio.get_running_loop(), lambda one: got.append((one, threading.get_ident())))

        def bring() -> None:
            for number in range(5):
                use(number)  # type: ignore[arg-type]

        await asyncio.to_thread(bring)
        await asyncio.sleep(0)
        return got, use

    got, use = asyncio.run(run())
    assert got == [(number, threading.get_ident()) for number in range(5)]
    use(6)
    assert len(got) == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda answer: replace(answer, items=answer.items[:-1]), "items of 50, not"),
        (
            lambda answer: replace(answer, items=[replace(item, score=float("nan")) for item in answer.items]),
            "not finite",
        ),
    ],
)
@pytest.mark.parametrize("strategy", ["popular", "personalised", "history", "similar"])
def test_a_bundle_whose_answers_are_not_whole_is_refused(strategy: str, change: Any, words: str) -> None:
    sound: Any = StandIn()
    bad: Any = StandIn()
    for each in (sound, bad):
        each.bundle = SimpleNamespace(id="toy-1", item_ids=each.items, user_ids=each.users)
    best = bad._best

    def changed(*given: Any) -> Any:
        answer = best(*given)
        return change(answer) if answer.strategy == strategy else answer

    bad._best = changed
    warm(sound)
    with pytest.raises(ArtifactError, match=f"bundle toy-1.*{words}"):
        warm(bad)


def test_a_bundle_under_another_ones_name_is_refused(registry: Registry) -> None:
    other = registry.previous
    (registry.path / "bundles" / other).rename(registry.path / "bundles" / "a-name")
    with pytest.raises(ArtifactError, match=f"holds bundle {other}; rename it"):
        opener(str(registry.path))("a-name")


def test_digests_may_be_taken_by_another_and_the_rest_is_still_checked(
    registry: Registry, toy_bundle: Bundle, stranger: Path, tmp_path: Path
) -> None:
    path = registry.bundle_path(registry.current)
    verified = verify(path, KIND, FORMAT_VERSION)
    opened = Bundle.open(path, verified=verified)
    assert opened.id == toy_bundle.id
    np.testing.assert_array_equal(opened.item_vectors, toy_bundle.item_vectors)
    with pytest.raises(ArtifactError, match=f"holds bundle {registry.previous} now, not {registry.current}"):
        Bundle.open(registry.bundle_path(registry.previous), verified=verified)
    shutil.copy(stranger / "item_tower.safetensors", path)
    with pytest.raises(ArtifactError, match="was not made by"):
        Bundle.open(path, verified=verified)


def test_what_was_imported_is_not_walked_by_collections() -> None:
    assert gc.get_freeze_count() > 10_000


def test_threads_give_way_sooner_while_a_bundle_is_opened_and_only_then(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, meanwhile = sys.getswitchinterval(), []
    monkeypatch.setattr("serve.opening.warm", lambda _: meanwhile.append(sys.getswitchinterval()))
    opener(str(registry.path))(str(registry.current))
    assert meanwhile == [pytest.approx(SWITCH_S)]
    assert sys.getswitchinterval() == pytest.approx(usual)


def test_nothing_is_logged_as_an_error_when_all_is_well(
    registry: Registry, watching: Any, caplog: pytest.LogCaptureFixture
) -> None:
    seen = watching(registry.path, opener(str(registry.path)))
    with caplog.at_level(logging.INFO):
        seen.watcher.first()
    assert f"bundle {registry.current} is in use" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
