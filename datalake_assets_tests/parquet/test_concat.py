"""Concatenated files hold the rows, and all else that their inputs' writers put in, for every reader."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from datalake_assets.parquet.concat import ConcatWriter
from datalake_assets.parquet.footer import Footer, parse_footer
from datalake_assets_tests.parquet.sinks import MemorySink


def reader(body):
    return lambda offset, length: memoryview(body)[offset : offset + length]


def footer(body) -> Footer:
    return parse_footer(reader(body), len(body), where="input")


def concatenated(*bodies, row_groups=None, metadata=None):
    sink = MemorySink()
    writer = ConcatWriter(sink, footer(bodies[0]))
    for body in bodies:
        writer.append(footer(body), reader(body), row_groups)
    return writer.close(metadata), sink.finish()


def parquet(table, **options):
    body = io.BytesIO()
    pq.write_table(table, body, **options)
    return body.getvalue()


def read(body):
    return pq.read_table(io.BytesIO(body), page_checksum_verification=True)


def numbers(start, stop):
    return pa.table({"n": range(start, stop), "text": [f"v{number % 7}" for number in range(start, stop)]})


def test_close_says_what_was_written():
    done, body = concatenated(parquet(numbers(0, 100), row_group_size=40), parquet(numbers(100, 150)))

    assert (done.rows, done.row_groups, done.size_bytes) == (150, 4, len(body))
    assert done.checksum == "xxh3-128:" + xxhash.xxh3_128(body).hexdigest()
    assert read(body).equals(numbers(0, 150))
