from __future__ import annotations

import datetime as dt
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from datalake_assets.core.files import DataFile
from datalake_assets.parquet.writer import ParquetFileWriter, ParquetSettings
from datalake_assets_tests.parquet.sinks import MemorySink

SCHEMA = pa.schema([("at", pa.timestamp("ms", "UTC")), ("n", pa.int64())], metadata={"kept": "yes"})


def table(*times):
    return pa.table({"at": pa.array(times, pa.timestamp("ms", "UTC")), "n": list(range(len(times)))}, schema=SCHEMA)


def sink_and_file(settings=None, **options):
    sink = MemorySink()
    return sink, ParquetFileWriter(sink, SCHEMA, settings or ParquetSettings(), **options)


def test_close_says_what_was_written():
    sink, file = sink_and_file(time_column="at")
    file.write(table(2000, 1000))
    file.write(table(500, None, 3000))
    stats = file.close(name="a.parquet")
    data = sink.finish()
    assert stats == DataFile(
        name="a.parquet",
        rows=5,
        size_bytes=len(data),
        min_time=dt.datetime(1970, 1, 1, 0, 0, 0, 500_000, tzinfo=dt.UTC),
        max_time=dt.datetime(1970, 1, 1, 0, 0, 3, tzinfo=dt.UTC),
        checksum="xxh3-128:" + xxhash.xxh3_128(data).hexdigest(),
    )


def test_rows_are_sorted_by_time_within_a_row_group_and_stay_in_order_when_equal():
    sink, file = sink_and_file(time_column="at")
    file.write(table(3, 1, 2, 1))
    file.write(table(0))
    file.close()
    groups = pq.ParquetFile(io.BytesIO(sink.finish()))
    assert groups.read_row_group(0)["n"].to_pylist() == [1, 3, 2, 0]
    assert groups.num_row_groups == 2


def test_file_has_statistics_a_page_index_and_the_given_metadata():
    sink, file = sink_and_file(metadata={"datalake.feed": "orders"})
    file.write(table(1, 2))
    file.close({"datalake.position": "17"})
    meta = pq.ParquetFile(io.BytesIO(sink.finish())).metadata
    assert meta.metadata[b"datalake.feed"] == b"orders"
    assert meta.metadata[b"datalake.position"] == b"17"
    column = meta.row_group(0).column(1)
    assert (column.statistics.min, column.statistics.max) == (0, 1)
    assert column.has_offset_index
    assert column.has_column_index


def test_schema_metadata_is_kept():
    sink, file = sink_and_file()
    file.write(table(1))
    file.close()
    assert pq.read_schema(io.BytesIO(sink.finish())).metadata[b"kept"] == b"yes"


def test_file_without_rows_is_whole():
    sink, file = sink_and_file(time_column="at")
    stats = file.close(name="a.parquet")
    assert (stats.rows, stats.min_time, stats.max_time) == (0, None, None)
    assert pq.read_table(io.BytesIO(sink.finish())).equals(SCHEMA.empty_table())


@pytest.mark.parametrize(
    ("settings", "codec"),
    [
        (ParquetSettings(), "SNAPPY"),
        (ParquetSettings(compression="zstd"), "ZSTD"),
        (ParquetSettings(compression="zstd", compression_level=6), "ZSTD"),
    ],
)
def test_file_is_compressed_as_told(settings, codec):
    sink, file = sink_and_file(settings)
    file.write(table(1))
    file.close()
    assert pq.ParquetFile(io.BytesIO(sink.finish())).metadata.row_group(0).column(0).compression == codec


def test_times_without_zone_are_utc():
    schema = pa.schema([("at", pa.timestamp("us"))])
    sink = MemorySink()
    file = ParquetFileWriter(sink, schema, ParquetSettings(), time_column="at")
    file.write(pa.table({"at": pa.array([0], pa.timestamp("us"))}))
    assert file.close().min_time == dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def test_an_abandoned_file_writes_nothing_more():
    sink, file = sink_and_file()
    file.write(table(1))
    written = sink.getvalue()
    file.abandon()
    file.abandon()
    sink.discard()
    del file
    assert sink.getvalue() == written


def test_a_file_tells_its_size_with_what_waits_to_be_handed_on():
    sink, file = sink_and_file()
    file.write(table(1))
    told = file.size_bytes
    assert told > len(sink.getvalue())
    assert file.close().size_bytes == file.size_bytes == len(sink.getvalue()) > told
