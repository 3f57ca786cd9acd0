"""What the page takes in a browser over a large catalogue, beside the bare answers of the service in the same run.

    python -m benchmarks.page --items 50000 [--registry demo/registry] [--rounds 10]

Chromium has to be on the PATH. A step ends when the list of its answer is there, or the map is painted. The floor is
what the step asks the service for, asked one after the other on one connection and not drawn; for painting the map, a
bare canvas that is filled with as many squares of one colour.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.served import lean, serve_uvicorn, synthetic_registry
from benchmarks.table import emit, parser
from serve.page import files

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
WAITS_MS = 120  # the search waits so long for another letter
# Calls an action, and waits by frames until something holds; milliseconds.
STEP = """async ([act, holds]) => {
    const wait = () => new Promise((done) => requestAnimationFrame(done));
    const [begin, done] = [new Function(act), new Function(`return ${holds}`)];
    const began = performance.now();
    begin();
    while (!done()) await wait();
    return performance.now() - began;
}"""
PAINT = """async ([act, count]) => {
    const took = await new Promise((done) => {
        const began = performance.now();
        document.getElementById(act).click();
        requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
    });
    const bare = Object.assign(document.createElement("canvas"), { width: 1000, height: 1000 });
    const pen = bare.getContext("2d");
    const began = performance.now();
    for (let dot = 0; dot < count; dot++) pen.fillRect(dot % 997, (dot * 7) % 991, 2, 2);
    pen.getImageData(0, 0, 1, 1);
    return [took, performance.now() - began];
}"""
IDLE = 'document.getElementById("results").getAttribute("aria-busy") === "false"'


def measure(registry: str, rounds: int) -> list[dict[str, Any]]:
    """Serves a registry, opens the page, and takes each step so many times; a row a step, medians in milliseconds."""
    from playwright.sync_api import sync_playwright

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    server = multiprocessing.get_context("spawn").Process(target=serve_uvicorn, args=(lean, registry, port))
    server.start()
    try:
        bare = Bare(port)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
            page = browser.new_context(viewport={"width": 1440, "height": 900}, bypass_csp=True).new_page()
            rows = steps(page, bare, f"http://127.0.0.1:{port}", rounds)
            browser.close()
        return rows
    finally:
        server.terminate()
        server.join(20)


def steps(page: Any, bare: Bare, address: str, rounds: int) -> list[dict[str, Any]]:
    """The rows of the table."""
    count = len(bare.ask("/v1/map")["items"])
    first, second = (str(one["item_id"]) for one in bare.ask("/v1/items?limit=2")["items"])

    def opened() -> float:
        began = time.perf_counter()
        page.goto("about:blank")
        page.goto(address)
        page.wait_for_function(f'/^Map of [1-9]/.test(document.getElementById("map").ariaLabel) && {IDLE}')
        return 1000 * (time.perf_counter() - began)

    def searched() -> float:
        page.locator("#find").fill("")
        page.locator("#find").focus()
        page.wait_for_timeout(2 * WAITS_MS)
        act = (
            'const find = document.getElementById("find"); find.value = "a";'
            'document.querySelector(".offer").replaceChildren(); find.dispatchEvent(new Event("input"));'
        )
        took: float = page.evaluate(STEP, [act, 'document.querySelectorAll(".offer [role=option]").length'])
        return took

    def listed() -> float:
        page.evaluate("location.hash = ''")
        page.wait_for_timeout(300)
        act = f'location.hash = "history={first}&history={second}"'
        holds = 'document.getElementById("strategy").dataset.strategy === "history"'
        took: float = page.evaluate(STEP, [act, holds])
        return took

    body = {"history": [first, second], "k": 10, "explain": True, "include_seen": False}
    popular = ("/v1/recommendations", {"k": 10, "explain": True, "include_seen": False})
    attribute = next((one["name"] for one in bare.ask("/v1/attributes")["attributes"] if one.get("values")), None)
    a_map = f"/v1/map?attribute={attribute}" if attribute else "/v1/map"
    made: list[tuple[str, Callable[[], float], list[Any]]] = [
        ("open: list and map", opened, [*files(), "/v1/bundle", "/v1/attributes?values=12", a_map, popular]),
        (f"search as one types, less {WAITS_MS} ms", lambda: searched() - WAITS_MS, ["/v1/items?limit=12&q=a"]),
        ("another history: list and reasons", listed, [("/v1/recommendations", body)]),
    ]
    rows: list[dict[str, Any]] = [
        {
            "step": name,
            "page, ms": statistics.median(work() for _ in range(rounds)),
            "floor, ms": statistics.median(bare.took(asked) for _ in range(rounds)),
        }
        for name, work, asked in made
    ]
    painted = [page.evaluate(PAINT, [("in", "out")[turn % 2], count]) for turn in range(rounds)]
    rows.append(
        {
            "step": f"paint the map: {count:,} dots",
            "page, ms": statistics.median(one for one, _ in painted),
            "floor, ms": statistics.median(one for _, one in painted),
        }
    )
    return [{**row, "ratio": row["page, ms"] / row["floor, ms"]} for row in rows]


class Bare:
    """The same questions without a browser, on one connection.

    Args:
        port: of a service on this machine that is just starting.
    """

    def __init__(self, port: int) -> None:
        deadline = time.monotonic() + 120
        while True:
            self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            try:
                self._connection.connect()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def ask(self, path: str, body: Any = None) -> Any:
        """The JSON of an answer."""
        return json.loads(self._answer(path, body))

    def took(self, asked: list[Any]) -> float:
        """Milliseconds that some questions take, one after the other; each a path, or a path and a body."""
        began = time.perf_counter()
        for one in asked:
            self._answer(*((one, None) if isinstance(one, str) else one))
        return 1000 * (time.perf_counter() - began)

    def _answer(self, path: str, body: Any) -> bytes:
        self._connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
        answer = self._connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path} gave {answer.status} {said[:200]!r}")
        return said


def main() -> None:
    """Runs it."""
    made = parser(__doc__.partition("\n")[0])
    made.add_argument("--items", type=int, default=50_000, help="of the catalogue that is made")
    made.add_argument("--registry", help="serve this one instead")
    made.add_argument("--rounds", type=int, default=10)
    said = made.parse_args()
    if shutil.which("chromium") is None:
        sys.exit("there is no chromium on the PATH; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        registry = said.registry or str(synthetic_registry(Path(folder), items=said.items))
        rows = measure(registry, said.rounds)
    emit("The page in a browser", rows, as_json=said.json)


if __name__ == "__main__":
    main()
