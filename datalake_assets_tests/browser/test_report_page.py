"""The page in Debian's Chromium: it loads nothing, fits narrow and wide windows, and is dark where wished."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page

from datalake_assets.core.report.figures import Quarantined
from datalake_assets.core.report.findings import build_report
from datalake_assets.report.page import page_html
from datalake_assets_tests.browser.conftest import PICTURES
from datalake_assets_tests.core.lakes import MIB, NOON, commit_of, feed_of, partition_of, statistics_of

# one browser for all: they go to one worker, one after another
pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

# right end of each row's first text, left end of its second one: names, and the figures beside them
_BESIDE = """() => [...document.querySelectorAll('svg.plot g')]
  .map(g => [...g.querySelectorAll('text')].map(t => t.getBoundingClientRect()))
  .filter(boxes => boxes.length === 2).map(([label, value]) => [label.right, value.left])"""
_OVERFLOW_PX = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
_PAPER = "() => getComputedStyle(document.body).backgroundColor"


class Window:
    """A page, and what it had to load or complained of since it was shown."""

    def __init__(self, page: Page) -> None:
        self._page, self.asked = page, list[str]()
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda message: self.asked.append(message.text))

    def show(self, file: Path, *, width: int, scheme: Literal["light", "dark"] = "light") -> Page:
        self._page.set_viewport_size({"width": width, "height": 900})
        self._page.emulate_media(media="screen", color_scheme=scheme)
        self.asked.clear()
        self._page.goto(file.as_uri())
        return self._page


@pytest.fixture(scope="module")
def window(chromium: Browser) -> Iterator[Window]:
    """One for all tests: each would start a process to draw it."""
    context = chromium.new_context(offline=True)
    yield Window(context.new_page())
    context.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of twenty feeds with names long and short, on a page."""
    statistics = []
    for number in range(20):
        name = f"{'payments_and_refunds_' * (number % 4)}feed_{number}"
        feed = feed_of(name, freshness={"max_event_age": "PT6H", "fail_event_age": "P9D", "max_commit_age": "P30D"})
        history = tuple(
            commit_of(NOON - timedelta(hours=40 - hour), state=(hour + 3, hour, hour * MIB)) for hour in range(20)
        )
        partitions = [
            partition_of(feed, f"2025-01-{day:02}", *[(day * number + 1) * 50_000] * day, history=history, commits=99)
            for day in range(1, 16)
        ]
        aside = Quarantined(3, 4096, {"2025-01-02": 12_345}, is_exact=False) if number == 3 else Quarantined()
        statistics.append(statistics_of(feed, *partitions, quarantined=aside))
    page = tmp_path_factory.mktemp("page") / "lake.html"
    at = NOON + timedelta(hours=5)
    page.write_text(page_html(build_report(statistics, lake="s3://acme/lake", at=at, scans_per_day=240)))
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1400])
def test_page_fits_the_window_and_loads_nothing_but_itself(window, file, width, scheme):
    page = window.show(file, width=width, scheme=scheme)

    PICTURES.mkdir(parents=True, exist_ok=True)
    top = {"x": 0, "y": 0, "width": width, "height": 3000}
    page.screenshot(path=PICTURES / f"report_{width}_{scheme}.png", full_page=True, clip=top)  # type: ignore[arg-type]  # a TypedDict

    assert window.asked == [file.as_uri()]
    assert page.evaluate(_OVERFLOW_PX) == 0
    red = int(page.evaluate(_PAPER).removeprefix("rgb(").split(",")[0])
    assert (red < 64) is (scheme == "dark")


@pytest.mark.parametrize("width", [380, 768, 1400])
def test_names_and_figures_in_plots_do_not_touch(window, file, width):
    page = window.show(file, width=width)

    beside = page.evaluate(_BESIDE)

    assert len(beside) == 24  # twelve feeds each in two plots
    assert [pair for pair in beside if pair[0] >= pair[1]] == []


def test_links_lead_to_their_sections(window, file):
    page = window.show(file, width=1400)
    link = page.locator(".verdicts a").last
    name = link.inner_text()

    link.click()

    assert page.locator("section:target h3").inner_text() == name


def test_paper_is_white_even_where_screens_are_dark(window, file):
    page = window.show(file, width=1400, scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")

    assert page.evaluate(_PAPER) == "rgb(255, 255, 255)"
