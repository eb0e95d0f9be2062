"""What ``docs/how-to/read-the-lake.md`` and the docstring of ``encodings.py`` say of who reads our files."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets_tests.interop.canonical import differences, rows_of_arrow
from datalake_assets_tests.interop.limits import READER_LIMITS, as_seen
from datalake_assets_tests.interop.names import needs_spark
from datalake_assets_tests.interop.readers import READERS, read_fastparquet, spark_reader
from datalake_assets_tests.interop.spark import conf
from datalake_assets_tests.interop.torture import TABLE, parts
from datalake_assets_tests.interop.writers import write_ours

ROWS = 1_000
DISTINCT = pa.table(
    {
        "id": pa.array(range(ROWS), pa.int64()),
        "i16": pa.array(range(-500, ROWS - 500), pa.int16()),
        "i32": pa.array([n if n % 9 else None for n in range(ROWS)], pa.int32()),
        "u32": pa.array([(1 << 32) - 1 - n for n in range(ROWS)], pa.uint32()),
        "u64": pa.array([(1 << 64) - 1 - n for n in range(ROWS)], pa.uint64()),
        "f32": pa.array([n / 7 for n in range(ROWS)], pa.float32()),
        "f64": pa.array([n / 7 if n % 9 else None for n in range(ROWS)], pa.float64()),
        "text": pa.array([f"user {n}" if n % 9 else None for n in range(ROWS)]),
        "data": pa.array([str(n).encode() for n in range(ROWS)]),
        "decimal9": pa.array([Decimal(n).scaleb(-2) for n in range(ROWS)], pa.decimal128(9, 2)),
        "decimal18": pa.array([Decimal(-n).scaleb(-4) for n in range(ROWS)], pa.decimal128(18, 4)),
        "decimal38": pa.array([Decimal(n).scaleb(-10) for n in range(ROWS)], pa.decimal128(38, 10)),
        "utc_ms": pa.array([n * n for n in range(ROWS)], pa.timestamp("ms", "UTC")),
        "at_us": pa.array([-n for n in range(ROWS)], pa.timestamp("us")),
        "date": pa.array(range(ROWS), pa.date32()),
        "list": pa.array([[n, n + 1] if n % 5 else None for n in range(ROWS)]),
        "map": pa.array([[(f"k{n}", n)] for n in range(ROWS)], pa.map_(pa.string(), pa.int64())),
        "point": pa.array([{"x": n / 3, "y": {"z": str(n)}} if n % 4 else None for n in range(ROWS)]),
    }
)
PROFILES = ["compatible", "compact"]
#: Not compact files by fastparquet: see the last test.
PAIRS = [
    *(("compatible", name) for name in READERS),
    *(("compact", name) for name in READERS if name != "fastparquet"),
    *(pytest.param(profile, "spark", marks=needs_spark) for profile in PROFILES),
]


def encodings_of(path):
    group = pq.ParquetFile(path).metadata.row_group(0)
    return {encoding for column in range(group.num_columns) for encoding in group.column(column).encodings}


@pytest.mark.parametrize(("profile", "name"), PAIRS)
def test_reader_reads_what_we_write(name, profile, read, inputs):
    expected = as_seen(rows_of_arrow(TABLE), READER_LIMITS[name])
    paths = inputs(profile, "spark" if name == "spark" else "")
    columns = pq.read_schema(paths[0]).names

    found = differences(read(name)(paths), {column: expected[column] for column in columns if column in expected})

    assert found == {}


@pytest.mark.parametrize(("profile", "name"), PAIRS)
def test_reader_reads_every_encoding_that_we_write(name, profile, read, tmp_path):
    paths = [tmp_path / f"{part}.parquet" for part in range(3)]
    for path, part in zip(paths, parts(DISTINCT), strict=True):
        write_ours(part, path, profile)
    expected = as_seen(rows_of_arrow(DISTINCT), READER_LIMITS[name])

    assert differences(read(name)(paths), expected) == {}


def test_compact_files_have_all_encodings_that_their_readers_are_tried_on(tmp_path):
    path = tmp_path / "compact.parquet"

    write_ours(DISTINCT, path, "compact")

    assert encodings_of(path) >= {"DELTA_BINARY_PACKED", "DELTA_BYTE_ARRAY", "BYTE_STREAM_SPLIT"}


@needs_spark
@pytest.mark.parametrize("vectorized", ["true", "false"])
@pytest.mark.parametrize("profile", PROFILES)
def test_spark_reads_every_encoding_by_both_of_its_readers(spark, profile, vectorized, tmp_path):
    path = tmp_path / "x.parquet"
    write_ours(DISTINCT, path, profile)

    with conf(spark, enableVectorizedReader=vectorized, enableNestedColumnVectorizedReader=vectorized):
        found = spark_reader(spark)([path])

    assert differences(found, rows_of_arrow(DISTINCT)) == {}


@pytest.mark.parametrize(("column", "encoding"), [("text", 7), ("f64", 9)])
def test_fastparquet_reads_no_compact_files(column, encoding, tmp_path):
    # DELTA_BYTE_ARRAY and BYTE_STREAM_SPLIT it refuses; DELTA_BINARY_PACKED of wide steps it reads wrong, or dies of
    path = tmp_path / "x.parquet"
    write_ours(DISTINCT.select(["id", column]).slice(0, 2), path, "compact")

    with pytest.raises(NotImplementedError, match=f"Encoding {encoding}"):
        read_fastparquet([path])
