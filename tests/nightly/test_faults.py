"""The nightly job is killed and its disk is full, before every change that it makes to a file and inside every write.

After each: what is live opens and verifies, and so does every bundle that a reader finds. Attempts go on one after the
other, each where the last one was stopped. What the last one ends with is what a night ends with that nothing stopped.

`make test` tries the boundaries of all steps, and some changes and writes of each. `RECSYS_ALL_FAULTS=1` tries all.
"""

import json
import os
import re
import shutil
import signal
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from recsys.nightly import command, engine
from recsys.nightly.night import nights
from recsys.registry import Registry
from tests.nightly.disk import Disk
from tests.nightly.faults import AtEvent, From, Server, killed_in_writes_beyond
from tests.nightly.week import BEFORE, Shop

ALL = bool(os.environ.get("RECSYS_ALL_FAULTS"))
PRELOADED = ["pytest", "tensorboard", "recsys.nightly.command", "recsys.train", "torch._dynamo", "attr"]
STEPS = ("snapshot", "prepare", "fit", "embed", "index", "evaluate", "seal", "gates", "publish", "promote", "retire")
# A change's name is "before → change #n". At a boundary something comes to its place, or has just come there.
UNLIKE = ("load time", "training")
PLACE = r"(registry/(\.lock|CURRENT|bundles/BUNDLE|log/ENTRY)|nights/NIGHT(/(\w+|\w+\.json|fit.running/\w+\.ckpt))?)"
SAMPLE = r"(open|fsync) \S*/(index\.faiss|metrics\.csv|verdict\.html|items\.npy|\.CURRENT\.DRAFT) #"
CHANGES = re.compile("" if ALL else rf"(rename|link|truncate) {PLACE}( →| #)|{SAMPLE}")
NO_DISK = "no small disk can be mounted here, neither as root nor in a user namespace"


class Quick(Shop):
    """The shop with less to learn."""

    def settings(self) -> dict[str, Any]:
        said = super().settings()
        del said["tables"]["init_args"]["schema"]["items"]["features"]["name"]
        said["fit"]["trainer"] |= {"max_epochs": 6}
        said["warm_start"]["fit"]["trainer"] |= {"max_epochs": 2, "check_val_every_n_epoch": 1}
        return said


@dataclass(frozen=True)
class Scene:
    """A shop before its second night.

    Attributes:
        shop: what is kept of it is the state to begin with.
        given: the settings, and the same as text.
        live: the bundle of the first night.
        made: what the second night makes undisturbed, as `made` tells.
    """

    shop: Shop
    given: tuple[Any, str]
    live: str
    made: dict[str, Any]


def writes(shop):
    """Changes at which something begins to be written, or what comes after, and the sizes of the files it is about."""
    begins = list(begun(shop))
    for number, (_, sizes) in enumerate(begins):
        yield re.compile("|".join(change for change, _ in begins[number:])), sizes


def begun(shop):
    """Changes at which something begins to be written, and how many bytes its files had the night before."""
    (night,) = (kept(shop) / "nights").iterdir()
    few = [(night / "result.json").stat().st_size]
    yield "start → ", few
    yield r"nights/\.NIGHT\.DRAFT #", few
    for step in STEPS:
        sizes = [file.stat().st_size for file in (night / step).iterdir()]
        if step == "fit":
            sizes += 2 * [(night / "fit" / "best.ckpt").stat().st_size]  # the best one and the last, while it runs
        if step == "promote":
            for name in (r"log/\.ENTRY", r"\.CURRENT"):
                yield rf"registry/{name}\.DRAFT #", few
        yield rf"nights/NIGHT/(\.{step}\.DRAFT|{step}\.running) #", sizes
        if step == "publish":
            yield r"registry/bundles/\.publish\.DRAFT #", sizes
    yield r"nights/NIGHT/\.result\.json\.DRAFT #", few


def nightly(given):
    """`recsys nightly`, of which only the reading of its configuration, which writes nothing, is left out."""
    command._settings = lambda arguments: given
    engine.check = lambda settings: None
    return command.main([])


def kept(shop):
    """Where the state to begin with lies."""
    return shop.folder.with_name(f"{shop.folder.name} as it was")


def sound(shop, live_at_first):
    """What must hold at any moment; returns what is live."""
    registry = Registry(shop.registry)
    live = registry.open_current().id
    assert registry.current == live
    bundles = registry.bundles()
    assert live_at_first in bundles
    assert len(bundles) <= 2
    assert all(registry.verify(bundle) for bundle in bundles)
    return live


def made(shop):
    """All that a night made, but for times, what is named by them, and a checkpoint's folder that is named in it.

    Training's curves are not kept across a kill: Lightning logs an epoch after it saved that epoch's checkpoint.
    """
    registry = Registry(shop.registry)
    manifest = registry.manifest(registry.current)
    content = json.loads(json.dumps(manifest.content))
    del content["verdict"], content["checkpoint"], content["evaluation"]["checkpoint"]
    for result in content["evaluation"]["results"]["results"].values():
        del result["seconds"]
    verdict = json.loads((registry.bundle_path(registry.current) / "verdict.json").read_text())
    (night,) = [one for one in nights(shop.work) if (one.result or {}).get("bundle") == registry.current]
    return {
        "content": content,
        "files": {name: of["sha256"] for name, of in manifest.files.items() if not name.startswith("verdict")},
        "passed": manifest.content["verdict"]["passed"],
        "gates": {one["gate"]: one["figure"] for one in verdict["outcomes"] if one["gate"] not in UNLIKE},
        "outcome": night.result["outcome"],
        "night": sorted(entry.name for entry in night.folder.iterdir() if entry.name != "seconds.json"),
    }


def ended_well(scene, said):
    """What must hold when an attempt came to its end: it promoted, or the one before was stopped just after that."""
    outcome = json.loads(said.splitlines()[-1])
    registry = Registry(scene.shop.registry)
    assert outcome["outcome"] in ("promoted", "nothing new")
    assert outcome["live"] == sound(scene.shop, scene.live) != scene.live
    assert made(scene.shop) == scene.made
    assert registry.bundles() == [scene.live, outcome["live"]]
    assert {entry.bundle for entry in registry.log()} == set(registry.bundles())
    assert registry.previous == scene.live
    ends = [night.result["outcome"] for night in nights(scene.shop.work)]
    assert ends == ["promoted", "promoted"] + ["nothing new"] * (len(ends) - 2)
    assert len(ends) == len(list(scene.shop.work.iterdir()))
    assert [path for path in scene.shop.folder.rglob(".*") if path.name != ".lock"] == []


def refused_for_want_of_room(ended):
    """What a job says whose disk is full."""
    lines = ended.said.splitlines()
    said = json.loads(lines[-1])
    assert (ended.status, said["outcome"]) == (1, "failed"), ended.said
    assert lines[-2] == f"recsys nightly: {said['why']}", ended.said
    assert "No space left on device" in said["why"], ended.said
    assert "Traceback" not in ended.said, ended.said


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        server = Server()
        server.context.set_forkserver_preload(PRELOADED)
        server.start(int).end()
    return server


@pytest.fixture(scope="module")
def scene(server, tmp_path_factory):
    shop = Quick(tmp_path_factory.mktemp("faults") / "shop")
    given = command._settings(["--config", str(shop.config)])
    first = server.start(nightly, given).end()
    assert first.status == 0, first.said
    shop.status, shop.said = first.status, json.loads(first.said.splitlines()[-1])
    shop.day(BEFORE)
    shop.keep()
    live = Registry(shop.registry).current
    second = server.start(nightly, given).end()
    assert second.status == 0, second.said
    scene = Scene(shop, given, live, made(shop))
    ended_well(scene, second.said)
    return scene


@pytest.fixture
def shop(scene):
    scene.shop.restore()
    return scene.shop


@pytest.mark.timeout(7200 if ALL else 900)
@pytest.mark.parametrize("how", ["killed", "power cut", "disk full"])
def test_stopped_before_a_change(server, scene, shop, how):
    tried: list[str] = []
    while True:
        fault = AtEvent(shop.folder, how, frozenset(tried), CHANGES)
        ended = server.start(nightly, scene.given, fault=fault).end()
        if ended.at is None:
            break
        print(ended.at, flush=True)
        tried.append(ended.at)
        assert len(tried) < 2000
        if how == "disk full":
            refused_for_want_of_room(ended)
        else:
            assert ended.status == -signal.SIGKILL, ended.said
        sound(shop, scene.live)
    assert ended.status == 0, ended.said
    ended_well(scene, ended.said)
    for place in (*(f"nights/NIGHT/{step} " for step in STEPS), "registry/CURRENT ", "registry/bundles/BUNDLE "):
        assert any(place in at for at in tried)


@pytest.mark.timeout(7200 if ALL else 900)
def test_killed_inside_a_write(server, scene, shop):
    """The kernel cuts a write short and kills, so Arrow's, FAISS' and torch's own writers are met, too."""
    for change, sizes in writes(shop):
        for length in sorted({1, *(size // 2 for size in sizes)} if ALL else {1, max(sizes) // 2}):
            fault = From(shop.folder, change, partial(killed_in_writes_beyond, length))
            ended = server.start(nightly, scene.given, fault=fault).end()
            assert ended.status == -signal.SIGXFSZ, ended.said
            sound(shop, scene.live)
    ended = server.start(nightly, scene.given).end()
    assert ended.status == 0, ended.said
    ended_well(scene, ended.said)


@pytest.mark.timeout(7200 if ALL else 900)
def test_a_disk_that_is_really_full(server, scene, shop):
    ended = server.start(fill, scene).end()
    assert ended.status == 0, ended.said
    if NO_DISK in ended.said:
        pytest.skip(ended.said)
    print(ended.said)


def fill(scene):
    """On a small disk: it is as good as full when a step begins, then has a part of what it needs, then more."""
    try:
        disk = Disk(scene.shop.folder)
    except OSError as error:
        print(f"{NO_DISK}: {error}")
        return 0
    shutil.copytree(kept(scene.shop), scene.shop.folder, dirs_exist_ok=True)
    server = Server("fork")
    refused = 0
    for change, sizes in writes(scene.shop):
        for part in range(0, 100, 5 if ALL else 35):
            disk.leave(1 << 30)
            fault = From(scene.shop.folder, change, partial(disk.leave, sum(sizes) * part // 100))
            ended = server.start(nightly, scene.given, fault=fault).end()
            refused += ended.status != 0
            checked = server.start(check, scene, ended).end()
            assert checked.status == 0, checked.said
            if ended.status == 0:
                assert refused > 2 * len(STEPS), ended.said
                print(f"{refused} attempts were refused for want of room")
                return 0
    raise AssertionError(ended.said)


def check(scene, ended):
    if ended.status == 0:
        ended_well(scene, ended.said)
    else:
        refused_for_want_of_room(ended)
        sound(scene.shop, scene.live)
    return 0


def test_of_two_jobs_at_once_one_runs_and_the_other_says_who_does(server, scene, shop):
    both = [server.start(nightly, scene.given) for _ in range(2)]
    pids = [one.process.pid for one in both]
    ended = [one.end() for one in both]
    assert sorted(one.status for one in ended) == [0, 4], [one.said for one in ended]
    ran, waited = sorted(ended, key=lambda one: one.status)
    said = json.loads(waited.said.splitlines()[-1])
    assert said["outcome"] == "locked"
    assert said["why"].startswith(f"{shop.registry} is locked: recsys nightly of ")
    assert f"(process {pids[ended.index(ran)]}) holds it since " in said["why"]
    assert waited.said.splitlines()[-2] == f"recsys nightly: {said['why']}"
    ended_well(scene, ran.said)


def test_after_kill_9_of_the_holder_the_next_job_goes_on_at_once(server, scene, shop):
    fault = AtEvent(shop.folder, "killed", only=re.compile("fsync nights/NIGHT/.fit.DRAFT/best.ckpt"))
    assert server.start(nightly, scene.given, fault=fault).end().status == -signal.SIGKILL
    ended = server.start(nightly, scene.given).end()
    assert "going on with the night of" in ended.said
    assert "── prepare: done before" in ended.said
    ended_well(scene, ended.said)
