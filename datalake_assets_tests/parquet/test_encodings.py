from __future__ import annotations

import io
from decimal import Decimal

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.parquet.writer import ParquetFileWriter, ParquetSettings, choose_encodings
from datalake_assets_tests.parquet.sinks import MemorySink

ROWS = 30_000
DISTINCT = {
    "i8": pa.array([n % 127 for n in range(ROWS)], pa.int8()),
    "i32": pa.array(range(ROWS), pa.int32()),
    "i64": pa.array([n * n for n in range(ROWS)], pa.int64()),
    "u64": pa.array(range(ROWS), pa.uint64()),
    "f32": pa.array([n / 7 for n in range(ROWS)], pa.float32()),
    "f64": pa.array([n / 7 if n % 9 else None for n in range(ROWS)], pa.float64()),
    "bool": pa.array([n % 3 == 0 for n in range(ROWS)]),
    "text": pa.array([f"user {n}" for n in range(ROWS)]),
    "bytes": pa.array([str(n).encode() for n in range(ROWS)]),
    "decimal18": pa.array([Decimal(n).scaleb(-2) for n in range(ROWS)], pa.decimal128(18, 2)),
    "decimal38": pa.array([Decimal(n).scaleb(-2) for n in range(ROWS)], pa.decimal128(38, 2)),
    "decimal50": pa.array([Decimal(n).scaleb(-2) for n in range(ROWS)], pa.decimal256(50, 2)),
    "at": pa.array(range(ROWS), pa.timestamp("ms", "UTC")),
    "date": pa.array(range(ROWS), pa.date32()),
    "time": pa.array(range(ROWS), pa.time32("ms")),
    "few": pa.array([f"region {n % 5}" for n in range(ROWS)]),
    "list": pa.array([[n, n + 1] if n % 5 else None for n in range(ROWS)]),
    "map": pa.array([[(f"k{n % 3}", n)] for n in range(ROWS)], pa.map_(pa.string(), pa.int64())),
    "struct": pa.array([{"x": n / 3, "y": {"z": str(n)}} if n % 4 else None for n in range(ROWS)]),
    "null": pa.nulls(ROWS),
}
TABLE = pa.table(DISTINCT)


def written(table, **settings):
    sink = MemorySink()
    parquet = ParquetFileWriter(sink, table.schema, ParquetSettings(**settings))
    parquet.write(table)
    parquet.close()
    return sink.finish()


def encodings_of(data):
    group = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0)
    chunks = [group.column(index) for index in range(group.num_columns)]
    return {chunk.path_in_schema: set(chunk.encodings) - {"RLE"} for chunk in chunks}


def test_choose_encodings_gives_dictionaries_to_columns_of_few_values_only():
    dictionary, encodings = choose_encodings(TABLE, "compatible")
    assert sorted(dictionary) == ["few", "i8", "map.key_value.key"]
    assert encodings == {}


def test_choose_encodings_goes_by_type_when_compact():
    _, encodings = choose_encodings(TABLE, "compact")
    delta = ["at", "date", "decimal18", "i32", "i64", "list.list.element", "map.key_value.value", "time", "u64"]
    assert encodings == {
        **dict.fromkeys(delta, "DELTA_BINARY_PACKED"),
        **dict.fromkeys(["f32", "f64", "struct.x"], "BYTE_STREAM_SPLIT"),
        **dict.fromkeys(["bytes", "text", "struct.y.z"], "DELTA_BYTE_ARRAY"),
    }


def test_choose_encodings_gives_dictionaries_to_categories_of_few_values():
    """Written plain, two files of one category of 3 kB became one of 57 times their size."""
    texts, keys = pa.array(["x" * 99, "y"] * 500), pa.array([f"k{number}" for number in range(1000)])
    table = pa.table(
        {
            "category": texts.dictionary_encode(),
            "categories": pa.ListArray.from_arrays(pa.array(range(1001), pa.int32()), texts.dictionary_encode()),
            "key": keys.dictionary_encode(),
        }
    )
    assert choose_encodings(table, "compatible")[0] == ["category", "categories.list.element"]


def test_choose_encodings_looks_at_the_whole_sample():
    late = pa.table({"x": pa.array([0] * 50_000 + list(range(50_000)))})
    assert choose_encodings(late, "compatible")[0] == []


def test_choose_encodings_of_nothing_is_plain():
    assert choose_encodings(TABLE.slice(0, 0), "compatible") == ([], {})


def test_compatible_files_have_dictionaries_and_plain_pages_only():
    found = encodings_of(written(TABLE))
    assert found["few"] == {"PLAIN", "RLE_DICTIONARY"}
    assert set.union(*found.values()) == {"PLAIN", "RLE_DICTIONARY"}


def test_compact_files_are_smaller():
    assert len(written(TABLE, profile="compact")) < 0.6 * len(written(TABLE))


@pytest.mark.parametrize("profile", ["compatible", "compact"])
@pytest.mark.parametrize("compression", ["snappy", "zstd"])
def test_every_reader_at_hand_reads_what_was_written(tmp_path, profile, compression):
    path = tmp_path / "x.parquet"
    path.write_bytes(written(TABLE, profile=profile, compression=compression))
    assert pq.read_table(path).equals(TABLE)
    flat = TABLE.drop_columns(["null", "decimal50", "struct", "map", "list"])
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        found = connection.sql(f"FROM '{path}'").to_arrow_table().select(flat.schema.names)
    assert found.cast(flat.schema).equals(flat)
    assert pl.read_parquet(path, columns=flat.schema.names).to_arrow().cast(flat.schema).equals(flat)


def test_decimals_are_stored_as_integers_and_field_ids_are_kept():
    schema = pa.schema([pa.field("d", pa.decimal128(9, 2), metadata={"PARQUET:field_id": "7"})])
    data = written(pa.table({"d": pa.array([Decimal("1.50")], pa.decimal128(9, 2))}, schema=schema))
    file = pq.ParquetFile(io.BytesIO(data))
    assert file.schema.column(0).physical_type == "INT32"
    assert file.schema_arrow.field("d").metadata[b"PARQUET:field_id"] == b"7"
