"""A real browser, real servers over toys, and a folder for what was seen."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recsys.artifacts import read_manifest
from recsys.bundle import FORMAT_VERSION, KIND, Bundle
from recsys.registry import Registry
from tests.toy import Toy
from tests.ui.server import Server
from tests.untrained import sealed_with

SCREENS = Path(__file__).parents[2] / "build" / "screens"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 20_000


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium of this machine; without one, the tests are skipped and say so."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"there is no {' or '.join(BROWSERS)} on the PATH; on Debian: apt-get install chromium")
    pytest.importorskip("playwright", reason="playwright is missing; make venv installs it")
    return found


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Any]:
    """A headless browser with a profile of its own, empty."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens an address in a window of its own; at the end nothing may have gone wrong in it, or have gone elsewhere."""
    contexts: list[Any] = []
    faults: list[str] = []

    def open_page(address: str, *, size: tuple[int, int] = (1440, 900), fine: bool = True, **said: Any) -> Any:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **said)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        host = "/".join(address.split("/")[:3])

        def asked(request: Any) -> None:
            if not request.url.startswith(host):
                faults.append(f"asked {request.url}")

        def complained(message: Any) -> None:
            # A browser also complains here of answers that are errors, which some tests want.
            if fine and message.type == "error":
                faults.append(f"complained: {message.text}")

        page.on("request", asked)
        page.on("console", complained)
        page.on("pageerror", lambda error: faults.append(f"failed: {error}"))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults, faults


@pytest.fixture(scope="session")
def screens() -> Path:
    """Where pictures are kept, to be looked at."""
    SCREENS.mkdir(parents=True, exist_ok=True)
    return SCREENS


def published(registry: Registry, path: Path) -> str:
    """Puts a sealed bundle into a registry."""

    def write(into: Path) -> Any:
        shutil.copytree(path, into)
        return read_manifest(into, KIND, FORMAT_VERSION)

    return registry.publish(write)


@pytest.fixture(scope="session")
def two(toy: Toy, toy_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Registry, str, str]:
    """A registry with the toy, live, and the toy with other weights; and the ids of both."""
    folder = tmp_path_factory.mktemp("two")
    registry = Registry(folder / "registry")
    other = published(registry, sealed_with(toy, folder, dimension=16).path)
    good = published(registry, toy_bundle.path)
    registry.promote(good, why="a test")
    return registry, good, other


@pytest.fixture(scope="session")
def server(chromium: str, two: tuple[Registry, str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The toy, served."""
    started = Server(registry=str(two[0].path), online=str(tmp_path_factory.mktemp("online")), watch_s=0.2)
    yield started
    started.stop()
