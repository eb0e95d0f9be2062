"""The page is one file that loads nothing, says what the figures say, and shows what people wrote as text."""

from __future__ import annotations

import re
from datetime import timedelta
from itertools import pairwise

import pytest

from datalake_assets.core.feed_state import Version
from datalake_assets.core.report.figures import Quarantined
from datalake_assets.core.report.findings import build_report
from datalake_assets.report.page import SECTIONS, page_html
from datalake_assets_tests.core.lakes import MIB, NOON, commit_of, feed_of, partition_of, statistics_of
from datalake_assets_tests.report.reading import Element, read_page

EVIL = "<script>alert('x')</script>\"&'\x00\x1b[31m"


def page_of(*statistics, lake="/lake", **options) -> tuple[str, Element]:
    text = page_html(build_report(statistics, lake=lake, at=NOON, **options))
    return text, read_page(text)


def busy_lake():
    clicks = feed_of(freshness={"max_event_age": "PT1H", "max_commit_age": "P9D"}, description="What was clicked.")
    users = feed_of("users", "table")
    history = (commit_of(NOON - timedelta(days=1), state=(2, 2, 20)), commit_of(NOON, "compact", files_removed=2))
    return (
        statistics_of(
            clicks,
            *(partition_of(clicks, f"2025-01-{day:02}", *[MIB] * 12) for day in range(1, 13)),
            partition_of(clicks, "2025-01-13", 80 * MIB, history=history),
            quarantined=Quarantined(1, 100, {"_unknown": 3}),
        ),
        statistics_of(
            users,
            partition_of(users, "v4", 10),
            partition_of(users, "v5", 10),
            versions=(Version(4, NOON, 10), Version(5, NOON, 10)),
            current=Version(5, NOON, 10),
        ),
    )


@pytest.mark.parametrize("statistics", [(), (statistics_of(),), busy_lake()], ids=["no feeds", "no data", "busy"])
def test_the_page_is_whole_and_loads_nothing(statistics):
    text, root = page_of(*statistics)
    (page,) = root.all("html")
    assert page.attributes["lang"] == "en"
    assert [len(page.all(name)) for name in ("head", "body", "main", "h1", "title")][:4] == [1, 1, 1, 1]
    assert not re.search(r"https?://|@import|url\(|<script|<link|<iframe|<img", text)
    assert not [each for each in page.all() if {"src", "onload", "onclick", "style"} & set(each.attributes)]
    links = [each.attributes["href"] for each in page.all("a")]
    anchors = {each.attributes["id"] for each in page.all() if "id" in each.attributes}
    assert {link.removeprefix("#") for link in links if link} <= anchors
    assert all(link and link.startswith("#") for link in links)


def test_an_empty_lake_says_what_to_do():
    _, page = page_of()
    assert "The lake has no data yet; export some with 'datalake export --all'." in page.text
    assert not page.all("svg")


def test_headlines_are_the_figures_of_the_report():
    statistics = busy_lake()
    report = build_report(statistics, lake="/lake", at=NOON)
    _, page = page_of(*statistics)
    tiles = {tile.all("dt")[0].text: tile.all("dd")[0].text for tile in page.all("dl", class_="tiles")[0].all("div")}
    assert tiles["Small files"] == f"{report.small_files:,}" == "146"
    assert tiles["Files"] == f"{report.files:,}" == "147"
    assert tiles["Rows"] == f"{report.rows:,}" == "1,470"
    assert tiles["In quarantine"] == "3"


def test_every_feed_has_a_verdict_and_a_section_that_say_the_same():
    _, page = page_of(*busy_lake())
    clicks, users = page.all("ul", class_="verdicts")[0].all("li")
    assert "needs compaction: 144 small files in 12 partitions, saves under 1 cent a month" in clicks.text
    assert "3 rows in quarantine" in clicks.text
    assert "healthy: 2 small files, nothing to merge" in users.text
    assert "1 of 2 feeds needs attention." in page.text
    assert [section.attributes["id"] for section in page.all("section")] == ["feed-streams-clicks", "feed-tables-users"]


def test_a_section_shows_the_worst_partitions_and_counts_the_rest():
    _, page = page_of(*busy_lake())
    section = page.all("section")[0]
    (partitions, compactions) = section.all("table")
    assert len(partitions.all("tbody")[0].all("tr")) == 10
    assert "the first 10, and 2 more: datalake report --format csv has all" in partitions.all("caption")[0].text
    assert [cell.text for cell in partitions.all("tbody")[0].all("tr")[0].all("td")][:4] == [
        "2025-01-01",
        "12",
        "12",
        "1",
    ]
    assert [cell.text for cell in compactions.all("tbody")[0].all("td")] == [
        "2025-01-15 12:00",
        "2025-01-13",
        "2",
        "1",
        "10",
    ]
    assert "What was clicked." in section.text


def test_a_table_shows_its_versions():
    _, page = page_of(*busy_lake())
    section = page.all("section")[1]
    assert "v5, 2 kept" in section.text
    (versions,) = section.all("table")
    assert [row.all("td")[0].text for row in versions.all("tbody")[0].all("tr")] == ["v5", "v4"]


def test_plots_and_tables_can_be_understood_without_seeing_them():
    _, page = page_of(*busy_lake())
    plots = page.all("svg", class_="plot")
    assert len(plots) == 4 + 2 * 2
    assert all(plot.attributes["role"] == "img" and plot.children[0].name == "title" for plot in plots)
    titles = [plot.children[0].text for plot in plots]
    assert "Ages against their limits: 0 of 2 are late" in titles
    assert all(table.all("caption") and table.all("th", scope="col") for table in page.all("table"))
    levels = [int(each.name[1]) for each in page.all() if re.fullmatch(r"h[1-6]", each.name)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_what_people_wrote_is_shown_as_text():
    feed = feed_of("raw", "folder", description=EVIL)
    partition = partition_of(feed, f"day={EVIL}", 1, 2)
    text, page = page_of(statistics_of(feed, partition, problems=(EVIL,)), lake=f"s3://b/{EVIL}")
    assert "<script" not in text
    assert "\x00" not in text
    assert "\x1b" not in text
    section = page.all("section")[0]
    assert "<script>alert('x')</script>\"&'" in section.all("p")[0].text
    assert "<script>alert" in section.all("td")[0].text
    assert "<script>alert" in page.all("header")[0].text


def test_a_lake_of_many_feeds_shows_those_that_need_attention():
    feeds = [feed_of(f"feed_{number:03}") for number in range(300)]
    sick = {7, 250}
    statistics = [
        statistics_of(feed, partition_of(feed, "a", *([1, 2] if number in sick else [80 * MIB])))
        for number, feed in enumerate(feeds)
    ]
    _, page = page_of(*statistics)
    verdicts = page.all("ul", class_="verdicts")[0].all("li")
    assert [each.all("a")[0].text for each in verdicts[:2]] == ["streams/feed_007", "streams/feed_250"]
    assert len(verdicts) == 20
    assert "And 280 feeds more with nothing to do; 'datalake report' lists all." in page.text
    assert len(page.all("section")) == SECTIONS
    assert f"And {300 - SECTIONS} feeds more: 'datalake report --feed NAME' shows each." in page.text


def test_history_says_which_partitions_forgot_their_beginning():
    feed = feed_of()
    _, page = page_of(statistics_of(feed, partition_of(feed, "a", 1, 2, commits=99), partition_of(feed, "b", 1)))
    assert "1 of 2 partitions enters with the first commit still remembered" in page.text


def test_the_assumptions_are_on_the_page():
    _, page = page_of(*busy_lake(), scans_per_day=24)
    assert "read as a whole 24 times a day" in page.all("footer")[0].text
    assert (
        "$0.0050 per 1,000 LIST and $0.0004 per 1,000 GET requests, $0.023 per GB-month" in page.all("footer")[0].text
    )


def test_section_says_what_columns_mean():
    notes = {"amount": {"description": EVIL, "unit": "USD", "tags": {"pii": "no", "raw": ""}}, "id": {"unit": "1"}}
    text, root = page_of(statistics_of(feed_of(columns=notes)))

    (table,) = [each for each in root.all("table") if "What columns mean" in each.text]
    rows = [[cell.text for cell in row.all("td")] for row in table.all("tr")]
    assert [row[0] for row in rows if row] == ["amount", "id"]
    assert rows[1][1] == "USD"
    assert rows[1][3] == "pii: no, raw"
    assert "<script>" not in text
