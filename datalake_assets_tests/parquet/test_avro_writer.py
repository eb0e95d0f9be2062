"""Avro files hold what Arrow held, as fastavro reads them: every type, nulls, extremes, slices, codecs."""

from __future__ import annotations

import io
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake_assets.parquet.avro_writer import AvroFileWriter, avro_schema

INT64 = st.integers(-(2**63), 2**63 - 1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIMES = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)).map(  # noqa: DTZ001  made aware below
    lambda at: at.replace(tzinfo=UTC)
)
COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "truth": (pa.bool_(), st.booleans()),
    "byte": (pa.int8(), st.integers(-128, 127)),
    "short": (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    "long": (pa.int64(), INT64),
    "real": (pa.float64(), st.floats(allow_nan=False)),
    "small": (pa.float32(), st.floats(allow_nan=False, width=32)),
    "text": (pa.string(), st.text(max_size=200)),
    "bytes": (pa.binary(), st.binary(max_size=200)),
    "day": (pa.date32(), st.dates(date(1, 1, 2))),
    "at": (pa.timestamp("us", "UTC"), TIMES),
    "money": (pa.decimal128(38, 4), st.decimals(-(10**30), 10**30, places=4)),
}


@pytest.mark.parametrize("codec", ["null", "deflate", "zstandard"])
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_fastavro_reads_what_was_written(codec, data):
    rows = data.draw(st.integers(0, 20))
    values = {
        name: data.draw(st.lists(st.none() | each, min_size=rows, max_size=rows)) for name, (_, each) in COLUMNS.items()
    }
    schema = pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()])
    batch = pa.record_batch([pa.array(values[field.name], field.type) for field in schema], schema=schema)
    cut = data.draw(st.integers(0, rows))
    assert read([batch.slice(0, cut), batch.slice(cut)], codec) == batch.to_pylist()


def read(batches: list[pa.RecordBatch], codec: str) -> list[dict[str, Any]]:
    sink = io.BytesIO()
    writer = AvroFileWriter(sink, batches[0].schema, codec=codec)  # type: ignore[arg-type]  of those that there are
    for batch in batches:
        writer.write(batch)
    assert (writer.rows, writer.size_bytes) == (sum(batch.num_rows for batch in batches), sink.tell())
    sink.seek(0)
    return [dict(row) for row in fastavro.reader(sink)]  # type: ignore[call-overload,arg-type]  records are objects


def test_many_rows_take_many_blocks_and_columns_that_are_never_null_no_union():
    schema = pa.schema([pa.field("n", pa.int64(), nullable=False), pa.field("t", pa.string(), nullable=False)])
    batch = pa.record_batch([pa.array(range(30_000)), pa.array([str(n) for n in range(30_000)])], schema=schema)
    assert read([batch], "null") == batch.to_pylist()
    assert avro_schema(schema)["fields"][0] == {"name": "n", "type": "long"}


def test_times_without_a_zone_and_nanoseconds_have_types_of_their_own():
    schema = pa.schema([("l", pa.timestamp("us")), ("n", pa.timestamp("ns", "UTC"))])
    types = [field["type"][1]["logicalType"] for field in avro_schema(schema)["fields"]]
    assert types == ["local-timestamp-micros", "timestamp-nanos"]
    at = EPOCH + timedelta(days=20_000)
    batch = pa.record_batch(
        [pa.array([at.replace(tzinfo=None)]), pa.array([at], pa.timestamp("ns", "UTC"))], schema=schema
    )
    (row,) = read([batch], "null")
    assert row["l"] == at.replace(tzinfo=None)
    assert row["n"] in {at, 20_000 * 86_400 * 10**9}


def test_names_that_avro_does_not_take_are_kept_beside():
    fields = avro_schema(pa.schema([("a b", pa.int32()), ("a_b", pa.int32()), ("1", pa.int32())]))["fields"]
    assert [(each["name"], each.get("source_name")) for each in fields] == [
        ("a_b", "a b"),
        ("a_b_2", "a_b"),
        ("_1", "1"),
    ]


def test_a_type_that_is_not_written_is_named():
    with pytest.raises(ValueError, match="column 'l' is list"):
        avro_schema(pa.schema([("l", pa.list_(pa.int32()))]))


def test_money_keeps_its_digits():
    batch = pa.record_batch([pa.array([Decimal("-0.01"), None], pa.decimal128(18, 2))], names=["m"])
    assert read([batch], "snappy" if False else "null") == [{"m": Decimal("-0.01")}, {"m": None}]
