"""The live page, seen: what a person sees of rows as they come, and of a source or a server that has stopped."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from datalake_assets.core.batches import RejectedRow
from datalake_assets_tests.browser.conftest import PICTURES
from datalake_assets_tests.live.lakes import HOSTILE, LiveLake, live_feed, live_lake
from datalake_assets_tests.ports import free_port

# one browser for all: they go to one worker, one after another
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]

PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveLake]:
    with live_lake(tmp_path_factory.mktemp("live")) as running:
        running.land(20)
        running.land(1, age_s=60)
        running.land(2, note=HOSTILE, rejected=(RejectedRow(HOSTILE.encode(), HOSTILE, "0:23"),))
        yield running


@contextlib.contextmanager
def opened(chromium: Browser, url: str, *, width: int = 1400, scheme: str = "light") -> Iterator[Page]:
    """The page, which may not have an error."""
    context = chromium.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if scheme == "dark" else "light",
        reduced_motion="reduce",
        timezone_id="UTC",
        locale="en-US",
    )
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    page.goto(url)
    expect(page.locator("section.feed")).to_have_count(1, timeout=PATIENCE_MS)
    try:
        yield page
        assert errors == []
    finally:
        context.close()


@contextlib.contextmanager
def landing(lake: LiveLake) -> Iterator[None]:
    """Rows come, ten times a second or as often as the machine can, until the context ends."""
    stopped = threading.Event()

    def land() -> None:
        while not stopped.wait(0.1):
            lake.land(5)

    thread = threading.Thread(target=land)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def figure(page: Page, label: str) -> int:
    text = page.locator("dl div", has=page.get_by_text(label, exact=True)).locator("dd").inner_text()
    return int(text.replace(",", ""))


def moves(page: Page, label: str, beyond: int) -> bool:
    """Whether a figure becomes larger than it was."""
    ends = time.monotonic() + PATIENCE_MS / 1000
    while figure(page, label) <= beyond:
        if time.monotonic() > ends:
            return False
        page.wait_for_timeout(100)
    return True


def test_numbers_move_and_a_source_that_stops_shows_as_late(chromium, lake):
    with opened(chromium, lake.url) as page:
        badge = page.locator("section.feed .head .badge")
        with landing(lake):
            expect(badge).to_have_text("live", timeout=PATIENCE_MS)
            assert moves(page, "Seen", figure(page, "Seen"))
            assert moves(page, "Landed", figure(page, "Landed"))
        expect(badge).to_have_text("late", timeout=PATIENCE_MS)
        expect(page.locator("section.feed .said").first).to_contain_text("nothing has come for")


def test_every_oddity_is_shown_as_such_and_no_text_is_markup(chromium, lake):
    with opened(chromium, lake.url) as page:
        expect(page.locator("h2")).to_have_text("s")
        assert page.title() == "Live: datalake"
        assert page.locator("script, img").count() == 1  # the page's own script
        assert (figure(page, "Late"), figure(page, "Duplicate"), figure(page, "In quarantine")) == (1, 1, 1)
        expect(page.get_by_text(HOSTILE).first).to_be_visible()
        quarantine = page.get_by_role("region", name="Quarantine of s")
        expect(quarantine.locator(".mark.broken")).to_have_text("quarantined")
        rules = page.get_by_role("region", name="Rules broken in the window of s")
        expect(rules.locator(".badge.error")).to_have_count(1, timeout=PATIENCE_MS)
        tile = page.locator(".tile").first
        expect(tile.locator(".number")).to_have_count(2, timeout=PATIENCE_MS)  # the window, and the lake beside it


def test_numbers_of_tiles_are_as_they_are(chromium, tmp_path):
    tiles = [
        {"name": "Small", "sql": "SELECT 0.0042::DOUBLE FROM data", "kind": "number", "history": "PT0S"},
        {"name": "Large", "sql": "SELECT 9007199254740991 FROM data", "kind": "number", "history": "PT0S"},
        {
            "name": "Gap",
            "sql": "SELECT l, n FROM (VALUES ('a', -0.25::DOUBLE), ('b', NULL)) v(l, n), data ORDER BY 1",
            "kind": "series",
            "history": "PT0S",
        },
    ]
    with live_lake(tmp_path, feed=live_feed(tiles=tiles)) as lake, opened(chromium, lake.url) as page:
        lake.land(1)
        expect(page.locator(".tile .number")).to_have_text(["0.0042", "9,007,199,254,740,991"], timeout=PATIENCE_MS)
        told = page.locator(".tile figcaption")
        expect(told).to_have_text("a to b: last null, up to -0.25", timeout=PATIENCE_MS)


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark")])
def test_the_page_fits_its_screen_light_and_dark(chromium, lake, width, scheme):
    with opened(chromium, lake.url, width=width, scheme=scheme) as page:
        expect(page.locator(".tile .number")).to_have_count(3, timeout=PATIENCE_MS)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert (red + green + blue > 3 * 128) == (scheme == "light")
        names = page.evaluate(
            "[...document.querySelectorAll('svg, .scroll')].map(node => node.getAttribute('aria-label'))"
        )
        assert all(names)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=PICTURES / f"live-{scheme}.png", full_page=True)


def test_the_page_finds_the_server_again_when_it_restarts(chromium, tmp_path: Path):
    port = free_port()
    with contextlib.ExitStack() as stack:
        with live_lake(tmp_path, port=port) as first:
            first.land(3)
            page = stack.enter_context(opened(chromium, first.url))
            expect(page.locator("#connection")).to_have_text("connected")
            assert moves(page, "Seen", 2)
        expect(page.locator("#connection")).to_contain_text("the connection is lost", timeout=PATIENCE_MS)
        with live_lake(tmp_path, port=port) as second:
            second.land(9)
            expect(page.locator("#connection")).to_have_text("connected", timeout=PATIENCE_MS)
            assert moves(page, "Seen", 8)


def told_once(page: Page, document: dict[str, Any]) -> None:
    """Has the page's stream give one document, and end."""
    body = f"retry: 3600000\n\ndata: {json.dumps(document)}\n\n"
    page.route("**/events", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    page.reload()


def test_answers_of_the_window_that_are_old_say_of_when_they_are(chromium, lake):
    document = httpx.get(f"{lake.url}/state").json()
    document["at"], feed = "2025-01-01T12:00:09.000+00:00", document["feeds"][0]
    with opened(chromium, lake.url) as page:
        for asked, said in ("12:00:05", "in the window, as of 12:00:05"), ("12:00:07", "now, in the window"):
            feed["asked_at"] = f"2025-01-01T{asked}.000+00:00"
            told_once(page, document)
            expect(page.locator(".tile h4", has_text="window").first).to_have_text(said, timeout=PATIENCE_MS)
            rules = page.locator("h3", has_text="Rules broken in the window")
            expect(rules).to_have_text(f"Rules broken in the window{'' if 'now' in said else ', as of 12:00:05'}")


def test_page_that_is_seen_again_shows_at_once_what_it_was_told_unseen(chromium, lake):
    with opened(chromium, lake.url) as page:
        page.evaluate("Object.defineProperty(document, 'hidden', {get: () => window.isAway === true})")
        page.evaluate("window.isAway = true")
        seen = figure(page, "Seen")
        lake.land(4)
        page.wait_for_function("rows => newest.feeds[0].rows_seen === rows", arg=seen + 4, timeout=PATIENCE_MS)
        assert figure(page, "Seen") == seen
        page.evaluate("window.isAway = false; document.dispatchEvent(new Event('visibilitychange'))")
        assert figure(page, "Seen") == seen + 4
