"""Parquet files as bytes: how the tests of concatenation make, change, join and read them."""

from __future__ import annotations

import base64
import datetime as dt
import io
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe

from datalake_assets.parquet.concat import ConcatWriter
from datalake_assets.parquet.footer import Footer, parse_footer
from datalake_assets.parquet.thrift import CompactReader, CompactWriter
from datalake_assets_tests.parquet.sinks import MemorySink


def reader(body):
    return lambda offset, length: memoryview(body)[offset : offset + length]


def footer(body) -> Footer:
    return parse_footer(reader(body), len(body), where="lake/input.parquet")


def concatenated(*bodies, row_groups=None, metadata=None, **options):
    sink = MemorySink()
    writer = ConcatWriter(sink, footer(bodies[0]), **options)
    for body in bodies:
        writer.append(footer(body), reader(body), row_groups)
    noted = {key.encode(): value.encode() for key, value in (metadata or {}).items()}
    return writer.close(noted), sink.finish()


def parquet(table, **options):
    body = io.BytesIO()
    pq.write_table(table, body, **options)
    return body.getvalue()


def read(body):
    return pq.read_table(io.BytesIO(body), page_checksum_verification=True)


def meta(body):
    return pq.ParquetFile(io.BytesIO(body)).metadata


def columns(body):
    told = meta(body)
    groups = range(told.num_row_groups)
    return [told.row_group(group).column(place) for group in groups for place in range(told.num_columns)]


def numbers(start, stop):
    texts = pa.array([f"v{number % 7}" for number in range(start, stop)], pa.string())
    return pa.table({"n": pa.array(range(start, stop), pa.int64()), "text": texts})


SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False, metadata={"PARQUET:field_id": "1"}),
        pa.field("at", pa.timestamp("us", "UTC"), metadata={"PARQUET:field_id": "2"}),
        ("price", pa.decimal128(12, 3)),
        ("ratio", pa.float32()),
        ("flag", pa.bool_()),
        ("text", pa.string()),
        ("raw", pa.binary(4)),
        ("kind", pa.dictionary(pa.int32(), pa.string())),
        ("list", pa.list_(pa.int32())),
        ("struct", pa.struct([("x", pa.float64()), ("y", pa.struct([("z", pa.string())]))])),
        ("map", pa.map_(pa.string(), pa.int64())),
        ("points", pa.list_(pa.struct([("a", pa.int16()), ("b", pa.list_(pa.string()))]))),
    ],
    metadata={"owner": "tests"},
)


def row(number):
    some = number % 5 != 0
    return {
        "id": number,
        "at": dt.datetime(2025, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=number) if some else None,
        "price": Decimal(number) / 1000,
        "ratio": number / 3,
        "flag": some,
        "text": f"text {number * 7919 % 1009}" if some else None,
        "raw": number.to_bytes(4, "big"),
        "kind": f"kind {number % 3}",
        "list": list(range(number % 4)) if some else None,
        "struct": {"x": float(number), "y": {"z": str(number)} if some else None},
        "map": [(f"k{number % 2}", number)],
        "points": [{"a": place, "b": ["s"] * place} for place in range(number % 3)],
    }


def rows(start, stop):
    return pa.Table.from_pylist([row(number) for number in range(start, stop)], schema=SCHEMA)


CODECS = ("snappy", "zstd", "gzip", "none", "lz4", "brotli")


EXTRAS = {
    "row_group_size": 40,
    "data_page_size": 256,
    "write_batch_size": 8,
    "write_page_checksum": True,
    "write_page_index": True,
    "bloom_filter_options": {"id": {"ndv": 40, "fpp": 0.01}, "text": {"ndv": 40, "fpp": 0.01}},
    "sorting_columns": [pq.SortingColumn(0)],
    "store_schema": True,
}


def edited(body, *, column=None, chunk=None, group=None, file=None):
    """The same file, the fields of its metadata changed by these functions."""

    def struct(parsed, change, inner=None):
        fields = {}
        for field, kind in parsed.fields():
            begin = parsed.position
            if inner and field == inner[0]:
                value = inner[1](parsed, kind)
            else:
                parsed.skip(kind)
                value = parsed.data[begin : parsed.position]
            fields[field] = (kind, value)
        writer = CompactWriter()
        for field, (kind, value) in sorted((change(fields) if change else fields).items()):
            writer.field(field, kind, value)
        return writer.end()

    def structs(parsed, kind, change, inner):
        count = parsed.structs(kind)
        return CompactWriter.list_header(12, count) + b"".join(struct(parsed, change, inner) for _ in range(count))

    in_chunk = (3, lambda parsed, _: struct(parsed, column))
    in_group = (1, lambda parsed, kind: structs(parsed, kind, chunk, in_chunk))
    in_file = (4, lambda parsed, kind: structs(parsed, kind, group, in_group))
    length = int.from_bytes(body[-8:-4], "little")
    encoded = struct(CompactReader(body[-8 - length : -8]), file, in_file)
    return body[: -8 - length] + encoded + len(encoded).to_bytes(4, "little") + b"PAR1"


class _Kms(pe.KmsClient):
    """Keys in the clear: tests are about what happens without them."""

    def wrap_key(self, key_bytes, master_key_identifier):
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key, master_key_identifier):
        return base64.b64decode(wrapped_key)


def encryption_of(column, *, plaintext_footer):
    """What Arrow's writer is given to encrypt a column."""
    config = pe.EncryptionConfiguration(footer_key="f", column_keys={"c": [column]}, plaintext_footer=plaintext_footer)
    return pe.CryptoFactory(lambda _: _Kms()).file_encryption_properties(pe.KmsConnectionConfig(), config)
