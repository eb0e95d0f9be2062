"""Plots show the amounts that they are given, at their places."""

from __future__ import annotations

import base64
import xml.etree.ElementTree as ET
from datetime import timedelta

import pytest

from datalake_assets.core.facts import SIZE_BUCKETS
from datalake_assets.core.report.findings import Age, build_report
from datalake_assets.core.report.series import Series
from datalake_assets.report.plots import BARS, as_image, cost_bars, freshness_bars, history_steps, size_bars
from datalake_assets_tests.core.lakes import MIB, NOON, feed_of, partition_of, statistics_of
from datalake_assets_tests.report.reading import Element, read_page

SVG = "{http://www.w3.org/2000/svg}"


def read(plot) -> Element:
    return read_page(plot.svg)


def texts(plot) -> list[str]:
    return [each.text for each in read(plot).all("text")]


def series_of(*files: int, small: tuple[int, ...] | None = None) -> Series:
    at = tuple(NOON + timedelta(hours=number) for number in range(len(files)))
    return Series(at, files, small or files, files, partitions=1)


def test_history_is_a_line_of_steps_from_the_first_commit_until_now():
    plot = history_steps(series_of(10, 20, 0, small=(5, 5, 0)), until=NOON + timedelta(hours=4), height_px=100)
    paths = {each.attributes["class"]: each.attributes["d"] for each in read(plot).all("path")}
    assert paths["files"] == "M0 50H250V0H500V100H1000"
    assert paths["small"] == "M0 75H250V75H500V100H1000"
    assert paths["area small"] == "M0 75H250V75H500V100H1000V100H0Z"
    assert texts(plot) == ["0", "5", "10", "15", "20", "01-15 12:00", "01-15 14:00", "01-15 16:00"]
    assert "0 now, 20 at the most; small files: 0 now, 5 at the most" in read(plot).all("title")[0].text


def test_history_of_one_commit_a_moment_ago_is_a_flat_line():
    plot = history_steps(series_of(3), until=NOON)
    assert read(plot).all("path", class_="files")[0].attributes["d"] == "M0 0H1000"


@pytest.mark.parametrize(
    ("most", "ticks"),
    [
        (0, ["0", "1"]),
        (1, ["0", "1"]),
        (3, ["0", "1", "2", "3"]),
        (7, ["0", "2", "4", "6", "8"]),
        (150, ["0", "50", "100", "150"]),
        (75_250, ["0", "20k", "40k", "60k", "80k"]),
    ],
)
def test_scales_have_round_amounts_that_reach_the_most(most, ticks):
    plot = history_steps(series_of(most), until=NOON + timedelta(hours=1))
    assert texts(plot)[:-3] == ticks


def test_sizes_are_bars_with_their_counts_small_files_below():
    sizes, small = [0] * SIZE_BUCKETS, [0] * SIZE_BUCKETS
    sizes[0], small[0], sizes[10], small[10] = 40, 40, 20, 5
    plot = size_bars(sizes, small, height_px=100)
    bars = read(plot).all("rect")
    assert [(bar.attributes["class"], float(bar.attributes["height"] or 0)) for bar in bars] == [
        ("small", 100),
        ("small", 12.5),
        ("files", 37.5),
    ]
    assert [bar.attributes["x"] for bar in bars] == ["0.5%", "63%", "63%"]
    assert texts(plot) == ["40", "20", "64 KiB", "1 MiB", "16 MiB", "256 MiB"]
    assert "32 MiB to 64 MiB: 20 files, 5 of them small" in [each.text for each in read(plot).all("title")]


def test_ages_are_bars_against_their_limits_the_latest_first():
    def age(hours, warn, fail=None):
        return Age("row", NOON, timedelta(hours=hours), warn and timedelta(hours=warn), fail and timedelta(hours=fail))

    ages = [("a", age(6, 12)), ("b", age(48, 12)), ("c", age(30, 24, 25)), ("free", age(1, None)), ("d", age(5, 0))]
    plot = freshness_bars(ages)
    bars = [bar for bar in read(plot).all("rect") if bar.attributes["class"] != "grid"]
    assert [(bar.attributes["class"], bar.attributes["width"]) for bar in bars] == [
        ("warn", "100.00%"),
        ("error", "62.50%"),
        ("ok", "25.00%"),
    ]
    assert texts(plot) == ["b, rows", "2 days of 12 h", "c, rows", "30 h of 24 h", "a, rows", "6 h of 12 h"]
    assert [line.attributes["x1"] for line in read(plot).all("line", class_="limit")] == ["50.00%"] * 3
    assert freshness_bars([("free", age(1, None))]) is None


def test_costs_are_pairs_of_bars_and_many_feeds_are_added_up():
    feeds = [feed_of(f"f{number:02}") for number in range(BARS + 3)]
    statistics = [
        statistics_of(feed, partition_of(feed, "a", *[MIB] * (number + 1))) for number, feed in enumerate(feeds)
    ]
    report = build_report(statistics, lake="", at=NOON, scans_per_day=1e5)
    plot = cost_bars(report.feeds)
    labels = texts(plot)[::2]
    assert labels[0] == "f14"
    assert (len(labels), labels[-1]) == (BARS, "4 other feeds")
    assert f"Cost per month: ${report.cost.dollars:,.2f} now" in read(plot).all("title")[0].text
    bars = [bar for bar in read(plot).all("rect") if bar.attributes["class"] != "grid"]
    assert [bar.attributes["width"] for bar in (bars[0], *bars[-2:])] == ["100.00%", "0.00%", "0.00%"]
    assert cost_bars(build_report([statistics_of()], lake="", at=NOON).feeds) is None


def test_a_long_name_leaves_room_for_its_figures():
    feed = feed_of(f"{'x' * 100}_1")
    plot = cost_bars(build_report([statistics_of(feed, partition_of(feed, "a", 1))], lake="", at=NOON).feeds)
    assert texts(plot)[0] == f"{'x' * 14}…{'x' * 11}_1"
    assert read(plot).all("title")[1].text.startswith("x" * 100)


def test_nothing_is_drawn_of_nothing():
    assert history_steps(Series(), until=NOON) is None
    assert size_bars([0] * SIZE_BUCKETS, [0] * SIZE_BUCKETS) is None


def test_an_image_is_a_whole_document_with_colours_of_its_own():
    uri = as_image(size_bars([3] * SIZE_BUCKETS, [0] * SIZE_BUCKETS))
    kind, _, body = uri.partition(",")
    assert kind == "data:image/svg+xml;base64"
    root = ET.fromstring(base64.b64decode(body))  # noqa: S314  made here
    assert root.tag == f"{SVG}svg"
    assert "rect.files{fill:#2f6fdb}" in "".join(each.text or "" for each in root.iter(f"{SVG}style"))
    assert len(list(root.iter(f"{SVG}rect"))) == SIZE_BUCKETS + 1
