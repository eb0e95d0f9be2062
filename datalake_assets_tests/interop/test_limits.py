from __future__ import annotations

import polars as pl
import pytest

from datalake_assets_tests.interop.canonical import differences, rows_of_arrow
from datalake_assets_tests.interop.limits import READER_LIMITS, UNREADABLE, WRITER_LIMITS, as_seen
from datalake_assets_tests.interop.names import ALL_READERS, ALL_WRITERS
from datalake_assets_tests.interop.readers import read_pyarrow
from datalake_assets_tests.interop.torture import TABLE
from datalake_assets_tests.interop.writers import WRITERS, write_pyarrow

EVERYTHING = rows_of_arrow(TABLE)


def with_id(name):
    return TABLE.select(["id", name])


def reads_exactly(reader, paths, expected):
    try:
        return not differences(reader(paths), expected)
    except Exception:  # noqa: BLE001  # whatever a reader or a writer raises, it does not read or write
        return False


@pytest.mark.parametrize("name", ALL_READERS)
def test_reader_agrees_with_pyarrow_up_to_its_limits(name, read, inputs):
    # a file for Spark has no columns that it refuses, as it would refuse the others with them
    paths = inputs("pyarrow", "spark" if name == "spark" else "")
    columns = read_pyarrow(paths).keys()
    expected = as_seen({column: EVERYTHING[column] for column in columns}, READER_LIMITS[name])

    assert differences(read(name)(paths), expected) == {}


@pytest.mark.parametrize("name", ALL_READERS)
def test_reader_limits_are_still_there(name, read, tmp_path):
    gone = []
    for column in [column for limit in READER_LIMITS[name] for column in limit.columns]:
        path = tmp_path / f"{column}.parquet"
        write_pyarrow(with_id(column), path)
        if reads_exactly(read(name), [path], {column: EVERYTHING[column]}):
            gone.append(column)

    assert gone == []


@pytest.mark.parametrize("name", ALL_WRITERS)
def test_writer_writes_the_table_up_to_its_limits(name, inputs):
    expected = as_seen(EVERYTHING, WRITER_LIMITS[name])

    assert differences(read_pyarrow(inputs(name, "")), expected) == {}


@pytest.mark.parametrize(("writer", "reader"), sorted(UNREADABLE.keys() - {("compact", "fastparquet")}))
def test_reader_still_cannot_read_a_writers_files(writer, reader, read, inputs):
    paths = inputs(writer, "")

    with pytest.raises((TypeError, pl.exceptions.ComputeError)):
        read(reader)(paths)


@pytest.mark.parametrize("name", WRITERS)
def test_writer_limits_are_still_there(name, tmp_path):
    gone = []
    for column in [column for limit in WRITER_LIMITS[name] for column in limit.columns]:
        path = tmp_path / f"{column}.parquet"

        def written_and_read(paths, column=column):
            WRITERS[name](with_id(column), paths[0])
            return read_pyarrow(paths)

        if reads_exactly(written_and_read, [path], {column: EVERYTHING[column]}):
            gone.append(column)

    assert gone == []
