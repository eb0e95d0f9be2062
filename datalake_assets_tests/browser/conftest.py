"""One web UI and one browser for all tests of this folder, and pictures of what they saw."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from datalake_assets_tests.browser.servers import ROOT, DemoUI, running_ui

# set by ``.ci/run``; most CI systems set CI
_NEEDED = ("CI", "TESTS_NEED_BROWSER")
#: The variable that says where the pictures go.
_FOLDER = "DATALAKE_SCREENSHOTS"
#: Where the pictures go.
PICTURES = Path(os.environ.get(_FOLDER) or ROOT / "build" / "screenshots")
WIDTH, HEIGHT = 1400, 1000
_HIGHEST = 4000
_PATIENCE_MS = 60_000
# a POSIX locale blanks Dagster's app: "Invalid language tag: en-US@posix"
LANGUAGE = """
Object.defineProperty(navigator, 'language', {get: () => 'en-US'});
Object.defineProperty(navigator, 'languages', {get: () => ['en-US']});
"""
# what turns and blinks while something is waited for takes half a core, since no graphics card draws it
_STILL = """
document.addEventListener('DOMContentLoaded', () => {
  const still = document.createElement('style');
  still.textContent = '*, *::before, *::after { animation: none !important; transition: none !important }';
  document.head.append(still);
});
"""
# the app scrolls inside of the page, so that a full-page picture would be of what fits the window
_HIDDEN_PX = """() => Math.max(0, ...[...document.querySelectorAll('main *, [role=main] *, div')]
  .filter(e => e.clientWidth > 500 && ['auto', 'scroll'].includes(getComputedStyle(e).overflowY))
  .map(e => e.scrollHeight - e.clientHeight))"""

# says that the page is as it was when it was asked last
_DRAWN = """() => {
  const now = document.body.innerText.length + '/' + document.querySelectorAll('*').length;
  const same = now === window.lastDrawn;
  window.lastDrawn = now;
  return same;
}"""
_DRAWN_MS = 200
# what the app keeps of a visit; code and pictures of the app itself stay
_REMEMBERED = "cookies,indexeddb,local_storage,service_workers"
_PICTURES = 8
# a JPEG to compare takes a tenth of the CPU of a PNG
_COARSE = 30
# CI runs as root in a container; a process that stands by for the next page is started for nothing, and so is one that
# draws without a graphics card; of scripts that run for seconds, better code and garbage that is looked for meanwhile
# cost more than they save
ARGUMENTS = [
    "--no-sandbox",
    "--process-per-site",
    "--disable-features=SpareRendererForSitePerProcess",
    "--in-process-gpu",
    "--js-flags=--no-opt --single-threaded-gc",
]
#: Where a page is while a test waits: it asks for nothing.
QUIET = "/settings"
# what the app's router listens to
_VISIT = """path => {
  history.pushState({}, '', path);
  dispatchEvent(new PopStateEvent('popstate', {state: {}}));
}"""

Picture = Callable[[str], None]


@pytest.fixture(scope="package")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoUI]:
    """``dagster dev`` on a demo lake."""
    with running_ui(tmp_path_factory.mktemp("ui")) as running:
        yield running


# not for the session: Playwright keeps an event loop in this thread, and other tests run their own
@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        reason = "no chromium and no google-chrome on the PATH (Debian: apt-get install chromium)"
        assert not any(os.environ.get(name) for name in _NEEDED), reason
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def tab(chromium: Browser, ui: DemoUI) -> Iterator[Page]:
    """One for all tests: a new one has a new process, which compiles the app's megabytes of JavaScript anew."""
    context = chromium.new_context(
        base_url=ui.url, viewport={"width": WIDTH, "height": HEIGHT}, reduced_motion="reduce", timezone_id="UTC"
    )
    context.add_init_script(LANGUAGE)
    context.add_init_script(_STILL)
    context.set_default_timeout(_PATIENCE_MS)
    page = context.new_page()
    page.goto(QUIET)
    yield page
    context.close()


def visit(page: Page, path: str) -> None:
    """Goes to a page of the app as a link in it does: loading the app anew takes a second of CPU.

    What it asked for before, a page may show as it was then; `Page.goto` for what has changed since.
    """
    page.evaluate(_VISIT, path)


@pytest.fixture
def page(tab: Page, ui: DemoUI) -> Iterator[Page]:
    """A page of the web UI, with nothing left from other tests."""
    yield tab
    visit(tab, QUIET)
    tab.evaluate("sessionStorage.clear()")  # it is the tab's, not the origin's
    session = tab.context.new_cdp_session(tab)
    session.send("Storage.clearDataForOrigin", {"origin": ui.url, "storageTypes": _REMEMBERED})
    session.detach()
    tab.set_viewport_size({"width": WIDTH, "height": HEIGHT})


@pytest.fixture
def picture(page: Page, pytestconfig: pytest.Config) -> Picture:
    """Takes a picture of the whole page, once it has stopped moving, where somebody will look at it.

    No test looks at one, and all of them take an eighth of this folder's CPU: what is tested is in the page.
    """
    is_looked_at = bool(os.environ.get(_FOLDER)) or "browser" in pytestconfig.option.markexpr

    def take(name: str) -> None:
        if not is_looked_at:
            return
        PICTURES.mkdir(parents=True, exist_ok=True)
        path = PICTURES / f"{name}.png"
        height = page.viewport_size["height"] if page.viewport_size else HEIGHT
        page.wait_for_function(_DRAWN, polling=_DRAWN_MS)
        hidden_px: int = page.evaluate(_HIDDEN_PX)
        page.set_viewport_size({"width": WIDTH, "height": min(height + hidden_px, _HIGHEST)})
        path.write_bytes(_at_rest(page))
        page.set_viewport_size({"width": WIDTH, "height": height})

    return take


def _at_rest(page: Page) -> bytes:
    """A picture of what is the same as it was before, or of what it is after so many looks."""
    last = page.screenshot(type="jpeg", quality=_COARSE)
    for _ in range(_PICTURES):
        page.wait_for_function(_DRAWN, polling=_DRAWN_MS)
        now = page.screenshot(type="jpeg", quality=_COARSE)
        if now == last:
            break
        last = now
    return page.screenshot()
