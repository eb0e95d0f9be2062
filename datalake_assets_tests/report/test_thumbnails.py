"""Thumbnails are short enough to show at once, whatever they show, and show what they are given."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.core.compaction.cost import MonthlyCost
from datalake_assets.core.facts import SIZE_BUCKETS
from datalake_assets.core.report.findings import Age
from datalake_assets.core.report.series import Series
from datalake_assets.report.thumbnails import (
    INLINE_CHARACTERS,
    cost_thumbnail,
    freshness_thumbnail,
    history_thumbnail,
    size_thumbnail,
)
from datalake_assets_tests.core.lakes import NOON

SVG = "{http://www.w3.org/2000/svg}"
counts = st.integers(0, 10**9)


def drawn(markdown: str) -> ET.Element:
    assert len(markdown) < INLINE_CHARACTERS
    found = re.fullmatch(r"!\[[a-z ]+\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", markdown)
    assert found
    return ET.fromstring(base64.b64decode(found[1]))  # noqa: S314  made here


def texts(image: ET.Element) -> list[str | None]:
    return [each.text for each in image.iter(f"{SVG}text")]


def paths(image: ET.Element) -> list[dict[str, str]]:
    return [each.attrib for each in image.iter(f"{SVG}path")]


def series_of(files, small) -> Series:
    at = tuple(NOON + timedelta(hours=number) for number in range(len(files)))
    return Series(at, tuple(files), tuple(small), tuple(files), partitions=1)


def test_history_is_drawn_as_steps():
    image = drawn(history_thumbnail(series_of([10, 20, 0], [5, 5, 0]), until=NOON + timedelta(hours=4)))
    small, files = paths(image)
    assert files["d"] == "M0 44h68v-30h68v60h136"
    assert small["d"] == "M0 59h136v15h136V74H0z"
    assert texts(image) == ["0 small files of 0", "01-15 12:00", "01-15 16:00"]


@given(st.lists(st.tuples(counts, counts), min_size=1, max_size=240), st.integers(0, 10**6))
def test_any_history_shows_at_once(amounts, minutes):
    files, small = [max(pair) for pair in amounts], [min(pair) for pair in amounts]
    series = series_of(files, small)
    image = drawn(history_thumbnail(series, until=series.at[-1] + timedelta(minutes=minutes)))
    assert len(paths(image)) == 2


@given(st.lists(st.tuples(counts, counts), min_size=SIZE_BUCKETS, max_size=SIZE_BUCKETS))
def test_any_sizes_show_at_once(amounts):
    sizes, small = [sum(pair) for pair in amounts], [pair[0] for pair in amounts]
    markdown = size_thumbnail(sizes, small)
    if any(sizes):
        drawn(markdown)
    else:
        assert markdown is None


def test_sizes_are_bars_small_files_below():
    sizes, small = [0] * SIZE_BUCKETS, [0] * SIZE_BUCKETS
    sizes[0], small[0], sizes[10], small[10] = 40, 40, 20, 5
    image = drawn(size_thumbnail(sizes, small))
    assert [each["d"] for each in paths(image)] == ["M0 74v-60h15v60zM170 74v-8h15v8z", "M170 66v-22h15v22z"]
    assert texts(image) == ["at the most 40", "64K", "1M", "16M", "256M"]


def test_the_latest_ages_come_first_as_many_as_fit():
    def age(hours):
        return Age("row", NOON, timedelta(hours=hours), timedelta(hours=12), None)

    ages = [(f"feed_{hours}", age(hours)) for hours in range(1, 30)]
    image = drawn(freshness_thumbnail(ages))
    said = texts(image)
    assert said[0] == "feed_29, rows: 29 h of 12 h"
    assert 3 <= len(said) <= 5
    assert paths(image)[0]["d"].startswith("M0 14h272")
    assert texts(drawn(freshness_thumbnail([("x" * 128, age(6))]))) == [f"{'x' * 128}, rows: 6 h of 12 h"]
    assert freshness_thumbnail([("free", Age("row", NOON, timedelta(1), None, None))]) is None


@pytest.mark.parametrize("dollars", [1e-9, 0.5, 1e9])
def test_costs_are_requests_and_storage_now_and_afterwards(dollars):
    image = drawn(cost_thumbnail(MonthlyCost(dollars, dollars), MonthlyCost(0, dollars)))
    widths = [re.search(r"h(\d+)v", each["d"])[1] for each in paths(image)]
    assert widths == ["136", "136", "0", "136"]
    assert cost_thumbnail(MonthlyCost(), MonthlyCost()) is None


def test_nothing_is_drawn_of_nothing():
    assert history_thumbnail(Series(), until=NOON) is None
    assert freshness_thumbnail([]) is None
