"""The page in a real browser, over the toy: who takes item i takes item i + 1 next, so what a list says is known."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from recsys.registry import Registry
from serve.asgi import Application
from serve.guard import Guard
from serve.keys import Keys
from serve.service import Service
from tests.serve.conftest import LIMITS
from tests.serve.running import running
from tests.serve.scopes import STRANGERS, key_file
from tests.serve.stand_in import StandIn
from tests.toy import RING, ring_lengths
from tests.ui.conftest import PATIENCE_MS
from tests.ui.server import Server

Opened = Callable[..., Any]
PHONE = (360, 740)
LISTED = "#list > li[data-id]"


def expect(what: Any) -> Any:
    from playwright.sync_api import expect as expected

    expected.set_options(timeout=PATIENCE_MS)
    return expected(what)


def offered(page: Any, item_id: str | None = None) -> Any:
    """The items that a search offers, or one of them."""
    options = page.locator(".offer").get_by_role("option")
    return options if item_id is None else page.locator(f'.offer [data-id="{item_id}"]')


def ids(page: Any) -> list[str]:
    """The items of the list, once there is one that is not being replaced."""
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    found: list[str] = page.locator(LISTED).evaluate_all("rows => rows.map(row => row.dataset.id)")
    return found


def gone(page: Any, item_id: str) -> None:
    """Waits until an item is not in the list, which may not have begun to be replaced yet."""
    expect(page.locator(f"{LISTED}[data-id='{item_id}']")).to_have_count(0)


def first(page: Any, item_id: str) -> None:
    """Waits until an item leads the list."""
    expect(page.locator("#list > li").first).to_have_attribute("data-id", item_id)


def asking(server: Server, **said: Any) -> str:
    """The address of a question."""
    parts = [f"{name}={quote(str(one))}" for name, v in said.items() for one in (v if isinstance(v, list) else [v])]
    return f"{server.address}/#{'&'.join(parts)}"


def seen_well(page: Any) -> list[str]:
    """What axe finds that is serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']} ({one['impact']}): {one['nodes'][0]['html'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def test_what_is_popular_is_there_at_once_with_bundle_health_and_map(
    opened: Opened, server: Server, two: tuple[Registry, str, str], screens: Path
) -> None:
    page = opened(server.address)
    assert len(ids(page)) == 10
    expect(page.locator("#strategy")).to_have_attribute("data-strategy", "popular")
    expect(page.locator("#health")).to_have_text("Ready")
    expect(page.locator("#bundle")).to_have_text(two[1])
    expect(page.locator("#map")).to_have_attribute("aria-label", re.compile("^Map of 13 items; 10 of the list are lit"))
    assert page.locator("#legend li").all_inner_texts() == ["odd", "even"]
    page.locator("#corner summary").click()
    assert page.locator("#about dd").all_inner_texts()[0] == two[1]
    page.screenshot(path=screens / "popular.png")
    assert seen_well(page) == []


def test_an_item_is_searched_and_similar_ones_are_shown(opened: Opened, server: Server, screens: Path) -> None:
    page = opened(server.address)
    find = page.get_by_role("combobox", name="Find an item")
    find.fill("NUMBER 1")
    expect(offered(page)).to_have_count(3)  # 1, 10, 11
    expect(offered(page, "i1")).to_be_visible()
    page.screenshot(path=screens / "search.png")
    assert seen_well(page) == []
    offered(page, "i11").click()
    expect(page.locator("#results-heading")).to_have_text("Similar to Item number 11")
    expect(page.locator("#strategy")).to_have_attribute("data-strategy", "similar")
    assert "i11" not in ids(page)
    assert page.url.endswith("#like=i11")
    expect(find).to_have_value("")
    page.get_by_role("button", name="Why not recommended?").click()
    expect(page.locator("#seed li, #seed div p").first).to_contain_text("rank")
    page.screenshot(path=screens / "similar.png")
    page.get_by_role("button", name="Back to recommendations").click()
    expect(page.locator("#results-heading")).to_have_text("Popular now")
    find.fill("nothing has these words")
    expect(page.locator(".offer .none")).to_be_visible()
    page.go_back()
    expect(page.locator("#results-heading")).to_have_text("Similar to Item number 11")


def test_a_history_is_composed_by_clicking_and_each_item_changes_the_list(
    opened: Opened, server: Server, screens: Path
) -> None:
    page = opened(server.address)
    for number in (4, 5, 6):
        page.get_by_role("combobox", name="Add an item to the history").fill(f"number {number}")
        offered(page, f"i{number}").click()
        expect(page.locator("#history li")).to_have_count(number - 3)
        gone(page, f"i{number}")
        assert f"i{number}" not in ids(page)
    first(page, "i7")
    expect(page.locator("#strategy")).to_have_attribute("data-strategy", "history")
    assert page.locator("#history span").all_inner_texts() == [f"Item number {number}" for number in (4, 5, 6)]
    because = page.locator("#list > li").first.locator(".because")
    expect(because).to_contain_text(re.compile(r"Because of Item number \d.\d+.%"))
    expect(page.locator("#map")).to_have_attribute("aria-label", re.compile("3 of the history are squares"))
    page.screenshot(path=screens / "history.png")
    page.get_by_role("button", name="Add Item number 7 to the history").click()
    first(page, "i8")
    page.get_by_role("button", name="Take Item number 7 out of the history").click()
    first(page, "i7")
    page.reload()  # the address holds it all
    first(page, "i7")
    page.get_by_role("button", name="Clear user and history").click()
    expect(page.locator("#strategy")).to_have_attribute("data-strategy", "popular")


def test_a_user_is_picked_by_id(opened: Opened, server: Server) -> None:
    page = opened(server.address)
    page.get_by_label("User id").fill("u3")
    page.get_by_role("button", name="Show", exact=True).click()
    first(page, f"i{(3 + ring_lengths()[3]) % RING}")
    expect(page.locator("#strategy")).to_have_attribute("data-strategy", "personalised")
    expect(page.locator(".because").first).to_contain_text("Item number")
    page.get_by_label("User id").fill("nobody")
    page.get_by_label("User id").press("Enter")
    expect(page.locator("#strategy")).to_have_attribute("data-strategy", "popular")
    assert page.locator("#users option").evaluate_all("all => all.map(one => one.value)") == ["nobody", "u3"]


def test_filters_narrow_the_list_and_can_be_taken_away(opened: Opened, server: Server, screens: Path) -> None:
    page = opened(asking(server, history=["i4", "i5"]))
    first(page, "i6")
    page.get_by_role("checkbox", name="odd").first.check()
    first(page, "i7")
    assert {int(one[1:]) % 2 for one in ids(page) if one != "new"} == {1}
    page.get_by_label("Largest place").fill("3")
    expect(page.locator(LISTED)).to_have_count(2)
    assert sorted(ids(page)) == ["i1", "i3"]
    expect(page.locator("#list .why").first).to_contain_text("before filters")
    page.screenshot(path=screens / "filtered.png")
    page.get_by_role("button", name="Clear filters and rules").click()
    first(page, "i6")
    page.locator("#diversity").fill("1")
    expect(page.locator("#filter-count")).to_have_text("(1)")
    page.get_by_label("How many").select_option("5")
    expect(page.locator(LISTED)).to_have_count(5)
    page.get_by_label("What was seen").check()
    expect(page).to_have_url(re.compile("seen=1"))


def test_what_nothing_passes_and_what_cannot_be_asked_is_said(opened: Opened, server: Server, screens: Path) -> None:
    page = opened(asking(server, filter='{"parity": ["neither"]}'))
    expect(page.locator("#list .none")).to_contain_text("Nothing passes")
    page.screenshot(path=screens / "empty.png")
    assert seen_well(page) == []
    page = opened(asking(server, like="no such"), fine=False)
    expect(page.locator("#problem")).to_contain_text("there is no item 'no such'")
    page.screenshot(path=screens / "unknown.png")
    page.get_by_role("button", name="Back to recommendations").click()
    assert len(ids(page)) == 10
    expect(page.locator("#problem")).to_be_hidden()


def test_a_promotion_is_followed_while_the_page_is_open(
    opened: Opened, server: Server, two: tuple[Registry, str, str]
) -> None:
    registry, good, other = two
    page = opened(asking(server, history=["i4", "i5", "i6"]))
    first(page, "i7")
    expect(page.locator("#bundle")).to_have_text(good)
    before = page.locator(".score").all_inner_texts()
    try:
        registry.promote(other, why="a test")
        expect(page.locator("#bundle")).to_have_text(other)
        expect(page.locator("#said")).to_contain_text(f"Bundle {other} is in use now")
        assert len(ids(page)) == 10
        expect(page.locator("#history span").first).to_have_text("Item number 4")
        assert page.locator(".score").all_inner_texts() != before
    finally:
        registry.promote(good, why="a test")
    expect(page.locator("#bundle")).to_have_text(good)
    first(page, "i7")


def test_a_server_that_goes_away_and_comes_back(
    opened: Opened, two: tuple[Registry, str, str], tmp_path: Path, screens: Path
) -> None:
    server = Server(registry=str(two[0].path), online=str(tmp_path))
    try:
        page = opened(asking(server, history=["i4", "i5", "i6"]), fine=False)
        first(page, "i7")
        server.stop()
        expect(page.locator("#trouble")).to_contain_text("The service does not answer")
        expect(page.locator("#health")).to_have_text("Away")
        page.get_by_role("button", name="Take Item number 6 out of the history").click()
        page.screenshot(path=screens / "away.png")
        assert seen_well(page) == []
        first(page, "i7")  # what it said last stays
        server.start()
        expect(page.locator("#trouble")).to_be_hidden()
        expect(page.locator("#health")).to_have_text("Ready")
        first(page, "i6")  # and what was asked meanwhile is answered
    finally:
        server.stop()


def test_everything_is_done_by_keyboard_and_the_focus_is_never_lost(opened: Opened, server: Server) -> None:
    page = opened(asking(server, history=["i2", "i3"]))
    first(page, "i4")

    def focused() -> str:
        said: str = page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.id")
        return said

    press = page.keyboard.press
    press("Tab")
    assert focused() == "skip"
    press("Enter")
    assert focused() == "results-heading"
    press("Shift+Tab")
    page.locator("#find").focus()
    page.keyboard.type("number 4")  # which comes next anyway
    expect(offered(page)).to_have_count(1)
    press("ArrowDown")
    expect(page.locator("#find")).to_have_attribute("aria-activedescendant", "find-offer-0")
    press("Escape")
    expect(page.locator("#find")).to_have_attribute("aria-expanded", "false")
    press("ArrowDown")
    expect(offered(page)).to_have_count(1)
    press("ArrowDown")
    press("Enter")
    expect(page.locator("#results-heading")).to_have_text("Similar to Item number 4")
    assert focused() == "results-heading"
    press("Tab")
    press("Enter")  # add it to the history
    first(page, "i5")
    expect(page.locator("#history span")).to_have_text([f"Item number {number}" for number in (2, 3, 4)])
    page.get_by_role("button", name="Add Item number 5 to the history").focus()
    press("Enter")
    first(page, "i6")
    assert focused() == "Add Item number 6 to the history"  # what stands there now
    page.get_by_role("button", name="Take Item number 5 out of the history").focus()
    press("Enter")
    first(page, "i5")
    assert focused() == "Take Item number 4 out of the history"
    for _ in range(3):
        press("Enter")
    expect(page.locator("#history li")).to_have_count(0)
    assert focused() == "take"
    page.locator("#corner summary").focus()
    press("Enter")
    expect(page.locator("#key")).to_be_visible()
    press("Escape")
    expect(page.locator("#key")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_read_on_a_phone_in_the_light_and_in_the_dark(
    opened: Opened, server: Server, screens: Path, scheme: str
) -> None:
    page = opened(asking(server, history=["i4", "i5", "i6"]), size=PHONE, color_scheme=scheme)
    first(page, "i7")
    expect(page.locator(".because").first).to_be_visible()
    assert page.evaluate("document.scrollingElement.scrollWidth") == PHONE[0]
    page.locator("#narrow summary").click()
    page.locator("#corner summary").click()
    assert page.evaluate("document.scrollingElement.scrollWidth") == PHONE[0]
    assert seen_well(page) == []
    page.locator("#corner summary").click()
    page.screenshot(path=screens / f"phone-{scheme}.png", full_page=True)
    page.set_viewport_size({"width": 1440, "height": 900})
    page.screenshot(path=screens / f"desktop-{scheme}.png")
    assert seen_well(page) == []


def test_nothing_can_be_asked_elsewhere(browser: Any, server: Server) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.address)
    blocked = page.evaluate(
        """async () => {
            const blocked = [];
            addEventListener("securitypolicyviolation", (event) => blocked.push(event.effectiveDirective));
            await fetch("http://127.0.0.1:1/").catch(() => 0);
            document.head.append(Object.assign(document.createElement("style"), { textContent: "a {}" }));
            const image = new Image();
            image.src = "http://127.0.0.1:1/x.png";
            await new Promise((done) => { image.onerror = done; });
            try { document.createElement("p").innerHTML = "<b>x</b>"; } catch { blocked.push("no markup"); }
            await new Promise((done) => setTimeout(done, 50));
            return blocked;
        }"""
    )
    context.close()
    assert {"connect-src", "style-src-elem", "img-src", "no markup"} <= set(blocked), blocked


def test_a_service_with_keys_is_asked_with_the_key_of_this_tab(opened: Opened, tmp_path: Path, screens: Path) -> None:
    sent = key_file(tmp_path / "keys.json")
    service = Service(LIMITS, StandIn(), timeout_s=20)  # type: ignore[arg-type]
    guard = Guard(Keys(tmp_path / "keys.json"), LIMITS)
    with running(Application(service, guard=guard)) as port:
        page = opened(f"http://127.0.0.1:{port}", fine=False)
        expect(page.locator("#trouble")).to_contain_text("This service asks for a key")
        expect(page.locator("#key")).to_be_focused()
        page.screenshot(path=screens / "locked.png")
        page.get_by_label("API key").fill(STRANGERS)
        page.get_by_role("button", name="Use").click()
        expect(page.locator("#trouble")).to_contain_text("The key was refused")
        page.locator("#corner summary").click()
        page.get_by_label("API key").fill(sent["read"])
        page.get_by_role("button", name="Use").click()
        expect(page.locator(LISTED)).to_have_count(10)
        expect(page.locator("#trouble")).to_be_hidden()
        assert page.evaluate("[Object.values(sessionStorage).join(), localStorage.length, document.cookie]") == [
            sent["read"], 0, "",
        ]  # fmt: skip
        page.reload()
        expect(page.locator(LISTED)).to_have_count(10)
        service.close()


def test_of_50_000_items_only_what_is_shown_is_in_the_page(opened: Opened, screens: Path) -> None:
    service = Service(LIMITS, StandIn(50_000), timeout_s=20)  # type: ignore[arg-type]
    with running(Application(service)) as port:
        page = opened(f"http://127.0.0.1:{port}")
        expect(page.locator("#map")).to_have_attribute("aria-label", re.compile("^Map of 50,000 items"))
        page.get_by_role("combobox", name="Find an item").fill("Item")
        expect(offered(page)).to_have_count(12)
        expect(page.locator(LISTED)).to_have_count(10)
        assert page.evaluate("document.querySelectorAll('*').length") < 600
        painted = page.evaluate(
            """() => { const map = document.getElementById("map");
                const dots = map.getContext("2d").getImageData(0, 0, map.width, map.height).data;
                return dots.filter((value, at) => at % 4 === 3 && value > 0).length; }"""
        )
        assert painted > 1000
        page.screenshot(path=screens / "many.png")
        service.close()
