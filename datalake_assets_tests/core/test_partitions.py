from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.core.partitions import (
    PartitionBy,
    TimeWindow,
    key_of,
    keys_in,
    keys_of,
    parse_path,
    path_of,
    version_key,
    version_number,
    window_of,
)
from datalake_assets.errors import ConfigError

MONTH, DAY, HOUR = PartitionBy.MONTH, PartitionBy.DAY, PartitionBy.HOUR

lengths = st.sampled_from(list(PartitionBy))
zones = st.integers(-23, 23).map(lambda hours: timezone(timedelta(hours=hours)))
times = st.datetimes(datetime(1900, 1, 2), datetime(2900, 1, 1), timezones=zones)  # noqa: DTZ001


def utc(*parts):
    return datetime(*parts, tzinfo=UTC)


@pytest.mark.parametrize(
    ("by", "key", "path", "start", "end"),
    [
        (MONTH, "2025-01", "year=2025/month=01", utc(2025, 1, 1), utc(2025, 2, 1)),
        (MONTH, "2024-12", "year=2024/month=12", utc(2024, 12, 1), utc(2025, 1, 1)),
        (DAY, "2024-02-29", "year=2024/month=02/day=29", utc(2024, 2, 29), utc(2024, 3, 1)),
        (HOUR, "2025-01-15-23:00", "year=2025/month=01/day=15/hour=23", utc(2025, 1, 15, 23), utc(2025, 1, 16)),
    ],
)
def test_key_window_and_path_of_a_partition(by, key, path, start, end):
    assert window_of(key, by) == TimeWindow(start, end)
    assert key_of(end - timedelta(microseconds=1), by) == key
    assert path_of(key, by) == path
    assert parse_path(path, by) == key


@pytest.mark.parametrize("by", PartitionBy)
@pytest.mark.parametrize("time", [utc(1, 1, 1), utc(999, 12, 31, 23), utc(9999, 12, 31, 23, 59, 59)])
def test_the_first_and_the_last_times_of_the_calendar_have_a_partition(time, by):
    """Dates that stand for none are such ones; who puts their rows aside says where."""
    key = key_of(time, by)
    assert window_of(key, by).contains(time)
    assert parse_path(path_of(key, by), by) == key
    assert list(keys_in(window_of(key, by), by)) == [key]


@given(times, lengths)
def test_a_time_lies_in_the_window_of_its_key(time, by):
    key = key_of(time, by)
    window = window_of(key, by)
    assert window.contains(time)
    assert key_of(window.start, by) == key
    assert key_of(window.end, by) != key


@given(times, lengths)
def test_path_and_key_are_two_names_of_one_partition(time, by):
    key = key_of(time, by)
    assert parse_path(path_of(key, by), by) == key
    assert all(parse_path(path_of(key, by), other) is None for other in PartitionBy if other is not by)


@given(times, st.integers(1, 60), lengths)
def test_keys_in_tile_a_window_without_gap_or_overlap(time, hours, by):
    window = TimeWindow(time, time + timedelta(hours=hours))
    windows = [window_of(key, by) for key in keys_in(window, by)]
    assert windows[0].contains(window.start)
    assert windows[-1].contains(window.end - timedelta(microseconds=1))
    assert all(one.end == other.start for one, other in pairwise(windows))


def test_keys_in_an_empty_window_are_none():
    assert list(keys_in(TimeWindow(utc(2025, 1, 1), utc(2025, 1, 1)), DAY)) == []


@pytest.mark.parametrize(
    ("key", "by", "example"),
    [
        ("2025-1-5", DAY, "2025-01-15"),
        ("2025-02-30", DAY, "2025-01-15"),
        ("2025-01-15", MONTH, "2025-01"),
        ("2025-01", DAY, "2025-01-15"),
        ("2025-01-15-12:30", HOUR, "2025-01-15-12:00"),
        ("2025-01-15 ", DAY, "2025-01-15"),
        ("", DAY, "2025-01-15"),
    ],
)
def test_window_of_says_how_to_write_a_key(key, by, example):
    with pytest.raises(ConfigError, match=f"is not a partition by {by.value}; write it like '{example}'"):
        window_of(key, by)


@pytest.mark.parametrize(
    ("path", "by"),
    [
        ("year=2025/month=1", MONTH),
        ("year=2025/month=13", MONTH),
        ("year=2025/month=02/day=30", DAY),
        ("year=2025/month=01/day=15/hour=24", HOUR),
        ("year=2025/month=01/day=15/", DAY),
        ("/year=2025/month=01", MONTH),
        ("year=0000/month=01", MONTH),
        ("version=v1", DAY),
        ("year=2025/month=01", None),
        ("version=v0", None),
        ("version=v01", None),
        ("v1", None),
    ],
)
def test_parse_path_knows_what_is_no_partition(path, by):
    assert parse_path(path, by) is None


@given(st.integers(1, 10**9))
def test_versions_are_numbered_from_one(number):
    key = version_key(number)
    assert version_number(key) == number
    assert parse_path(path_of(key, None), None) == key


@pytest.mark.parametrize("key", ["v0", "v01", "V1", "1", "v", "v1\n", "v-1", "2025-01-15"])
def test_version_number_refuses_what_is_no_version(key):
    with pytest.raises(ConfigError, match="is not a table version; write it like 'v4'"):
        version_number(key)


def _within_nanoseconds(moment):
    """A similar time that fits into nanoseconds since 1970, which end in 2262."""
    moment = moment.astimezone(UTC)
    return moment.replace(year=1900 + moment.year % 100, day=min(28, moment.day), microsecond=0)


@given(st.lists(st.none() | times, max_size=20), lengths, st.sampled_from(["s", "ms", "us", "ns"]), st.booleans())
def test_keys_of_gives_each_time_the_key_that_key_of_gives(moments, by, unit, aware):
    moments = [moment and _within_nanoseconds(moment) for moment in moments]
    array = pa.array(moments, pa.timestamp(unit, "UTC"))
    if not aware:
        array = array.cast(pa.timestamp(unit))
    expected = [key_of(moment, by) if moment else None for moment in moments]
    keys = keys_of(array, by)
    assert keys.to_pylist() == expected
    assert len(set(keys.dictionary.to_pylist())) == len(keys.dictionary)


def test_keys_of_times_before_1970():
    array = pa.array([utc(1969, 12, 31, 23, 59)], pa.timestamp("ms", "UTC"))
    assert keys_of(array, DAY).to_pylist() == ["1969-12-31"]
