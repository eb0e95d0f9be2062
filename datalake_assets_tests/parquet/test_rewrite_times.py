"""What a rewrite promises of times: rows are sorted by them, outputs bounded by them; old ones stay as they are."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pyarrow as pa
import pytest

from datalake_assets_tests.parquet.test_rewrite import (
    CONCAT,
    REENCODE,
    SETTINGS,
    encoded,
    events,
    input_file,
    inputs,
    metadata,
    read,
    rewritten,
)


def test_rows_are_sorted_by_time_within_an_encoded_row_group():
    result = rewritten(inputs(events(100, 10), events(0, 10)), REENCODE)
    assert read(result)["id"].to_pylist() == [*range(10), *range(100, 110)]


def dated(*days):
    return pa.table({"at": pa.array(days, pa.int32()).cast(pa.date32()), "id": pa.array(range(len(days)))})


@pytest.mark.parametrize("chosen", [CONCAT, REENCODE], ids=["concat", "reencode"])
def test_rows_are_sorted_by_dates_too(chosen):
    result = rewritten(inputs(dated(20_000, None, 0), dated(10_000, -1)), chosen)
    stats = result.outputs[0][1]
    if chosen is REENCODE:
        days = [day and day.isoformat() for day in read(result)["at"].to_pylist()]
        assert days == ["1969-12-31", "1970-01-01", "1997-05-19", "2024-10-04", None]
    first, last = dt.datetime(1969, 12, 31, tzinfo=dt.UTC), dt.datetime(2024, 10, 4, tzinfo=dt.UTC)
    assert (stats.min_time, stats.max_time) == (first, last)


@pytest.mark.parametrize("chosen", [CONCAT, REENCODE], ids=["concat", "reencode"])
@pytest.mark.parametrize("kind", [pa.date32(), pa.timestamp("us"), pa.timestamp("ms", "UTC")])
def test_infinite_times_are_sorted_last(chosen, kind):
    count, width = (2**31 - 1, pa.int32()) if kind == pa.date32() else (2**63 - 1, pa.int64())
    tables = [pa.table({"at": pa.array([count, 0], width).cast(kind)}) for _ in range(2)]
    stats = rewritten(inputs(*tables), chosen).outputs[0][1]
    assert (stats.min_time.year, stats.max_time.year) == (1970, 9999)


def test_old_96_bit_timestamps_are_copied_and_never_encoded_again():
    """Arrow's nanoseconds end in 2262, and Spark writes the year 9999."""
    table = pa.table({"t": pa.array([1, 2], pa.timestamp("ns")), "id": [1, 2]})
    files = inputs(table, table, use_deprecated_int96_timestamps=True)
    for chosen in (SETTINGS, CONCAT):
        result = rewritten(files, chosen)
        assert result.copied == 2
        assert metadata(result).schema.column(0).physical_type == "INT96"
    reason = "column 't' has 96-bit timestamps, which encoding it again could change"
    assert rewritten(files, REENCODE).rejected == {"f0": reason, "f1": reason}


BEYOND = {
    "infinity": pa.array([2**63 - 1, 0], pa.timestamp("us", "UTC")),
    "minus infinity": pa.array([-(2**63) + 1, 0], pa.timestamp("us", "UTC")),
    "year 12000": pa.array([316_516_000_000_000, 0], pa.timestamp("ms")),
    "seconds": pa.array([2**62, 0], pa.timestamp("ms", "UTC")),
}


@pytest.mark.parametrize("chosen", [SETTINGS, CONCAT, REENCODE, replace(SETTINGS, sort_by=("at",))], ids=repr)
@pytest.mark.parametrize("name", BEYOND)
def test_times_beyond_pythons_years_are_merged_and_bounded_by_its_first_or_last(name, chosen):
    column = BEYOND[name]
    result = rewritten(inputs(*[pa.table({"at": column})] * 2), chosen)
    assert sorted(read(result)["at"].cast(pa.int64()).to_pylist()) == sorted(2 * column.cast(pa.int64()).to_pylist())
    stats, epoch = result.outputs[0][1], dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    first = dt.datetime(1, 1, 1, tzinfo=dt.UTC)
    last = dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC)
    assert (stats.min_time, stats.max_time) == ((first, epoch) if name == "minus infinity" else (epoch, last))


def test_bounds_of_a_file_without_statistics_are_not_those_of_the_others():
    files = [*inputs(events(0, 10)), input_file("bare", encoded(events(5000, 10), write_statistics=False))]
    stats = rewritten(files, CONCAT).outputs[0][1]
    assert (stats.min_time, stats.max_time) == (None, None)
