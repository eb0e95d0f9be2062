"""Memory follows what rows take decoded, not what a file takes."""

from __future__ import annotations

import io
import subprocess
import sys
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.parquet.decoding import PIECE_BYTES, is_dense, open_parquet, tables

MIB = 1 << 20
ROWS = 30_000
LONG = "".join(chr(97 + place * 7 % 26) for place in range(2000))


def encoded(table, **options):
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def constant(text, rows=ROWS):
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int8()), pa.array([text])).cast(pa.string())


def lists(rows=ROWS // 10):
    offsets = pa.array(range(0, 10 * rows + 1, 10), pa.int32())
    return pa.ListArray.from_arrays(offsets, constant(LONG, 10 * rows))


def late(rows=ROWS):
    """Short ones first, so that what was seen at first says nothing of what comes."""
    return pa.array(["x"] * (rows // 2) + [LONG] * (rows - rows // 2))


def late_megabytes():
    return pa.array(["x"] * 6000 + ["y" * MIB, "z" * MIB] * 10 + ["x"] * 6000)


def late_lists():
    return pa.array([["x"]] * 6000 + [[LONG] * 500, None] * 20)


def late_maps():
    return pa.array([[("k", "v")]] * 6000 + [[("k", LONG)] * 500, []] * 20, pa.map_(pa.string(), pa.string()))


def late_numbers():
    return pa.array([[1]] * 6000 + [[0] * 200_000] * 20, pa.list_(pa.int64()))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        pytest.param(partial(constant, LONG), {}, id="dictionary"),
        pytest.param(partial(constant, LONG * 500, 60), {}, id="one megabyte each"),
        pytest.param(
            partial(constant, LONG), {"use_dictionary": False, "column_encoding": {"c": "DELTA_BYTE_ARRAY"}}, id="delta"
        ),
        pytest.param(partial(constant, LONG), {"use_dictionary": False, "compression": "zstd"}, id="plain"),
        pytest.param(lambda: constant(LONG.encode()).cast(pa.binary()), {}, id="binary"),
        pytest.param(lists, {}, id="nested"),
        pytest.param(late, {}, id="long ones late"),
        pytest.param(late, {"use_dictionary": False}, id="long ones late, plain"),
        pytest.param(
            late, {"use_dictionary": False, "column_encoding": {"c": "DELTA_BYTE_ARRAY"}}, id="long ones late, delta"
        ),
        pytest.param(lambda: late()[::-1], {}, id="short ones late"),
        pytest.param(late_megabytes, {}, id="megabytes late"),
        pytest.param(late_megabytes, {"use_dictionary": False}, id="megabytes late, plain"),
        pytest.param(lambda: late_megabytes().cast(pa.large_binary()), {"data_page_version": "2.0"}, id="binary late"),
        pytest.param(late_lists, {}, id="long lists late"),
        pytest.param(late_lists, {"use_dictionary": False}, id="long lists late, plain"),
        pytest.param(late_maps, {"compression": "zstd"}, id="long maps late"),
        pytest.param(late_numbers, {}, id="many numbers late"),
        pytest.param(lambda: pa.array([False] * 9_000_000), {}, id="booleans"),
        pytest.param(lambda: pa.array([b"0123456789abcdef"] * 400_000, pa.binary(16)), {}, id="fixed"),
    ],
)
def test_pieces_are_bounded_by_decoded_size_whatever_the_encoding(make, options):
    table = pa.table({"c": make()})
    body = io.BytesIO()
    pq.write_table(table, body, row_group_size=len(table), **options)
    parquet = open_parquet(pa.BufferReader(body.getvalue()))

    pieces = list(tables(parquet, piece_bytes=4 * MIB, source=pa.BufferReader(body.getvalue())))

    assert pa.concat_tables(pieces).equals(table.cast(parquet.schema_arrow))
    assert max(piece.nbytes for piece in pieces) <= 5 * MIB


def test_small_files_are_decoded_at_once():
    table = pa.table({"n": range(1000), "s": [f"text {number}" for number in range(1000)]})
    body = io.BytesIO()
    pq.write_table(table, body, row_group_size=100)

    assert [piece.num_rows for piece in tables(open_parquet(pa.BufferReader(body.getvalue())))] == [1000]


PEAK = """
import resource, sys
import pyarrow as pa
from dataclasses import replace
from datalake_assets_tests.parquet.test_rewrite import REENCODE, Outputs, input_file, rewritten
from datalake_assets.parquet.writer import ParquetSettings
data = sys.stdin.buffer.read()
files = [input_file(name, data) for name in "abc"]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
done = rewritten(files, replace(REENCODE, workers=1))
assert done.rewritten == ("a", "b", "c"), done
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10)
"""


def test_rewriting_tiny_files_that_decode_to_gigabytes_takes_little_memory():
    """A file of 250,000 rows takes kilobytes, and half a gigabyte decoded."""
    body = io.BytesIO()
    rows = 250_000
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int8()), pa.array([LONG]))
    pq.write_table(pa.table({"c": column}), body, row_group_size=rows, store_schema=False)
    assert len(body.getvalue()) < MIB

    done = subprocess.run([sys.executable, "-c", PEAK], input=body.getvalue(), capture_output=True, check=True)

    assert int(done.stdout) < 250


def test_dictionary_at_hand_tells_how_long_its_texts_are():
    """Small files of many different texts are read whole; few long texts that many rows share are not."""
    short = encoded(pa.table({"s": [f"{number:020d}" for number in range(1500)]}))
    long = encoded(pa.table({"s": pa.array(["x" * 2000] * 100_000)}))

    found = [
        [piece.num_rows for piece in tables(pq.ParquetFile(pa.BufferReader(body)), source=pa.BufferReader(body))]
        for body in (short, long)
    ]

    assert found[0] == [1500]
    assert len(found[1]) > 4
    assert sum(found[1]) == 100_000


def test_dictionary_whose_few_long_texts_hide_behind_short_ones_is_read_in_pieces():
    texts = pa.array([*(f"{number}" for number in range(1000)), "x" * 20_000])
    chosen = pa.array([*range(1000), *[1000] * 50_000], pa.int32())
    body = encoded(pa.table({"s": pa.DictionaryArray.from_arrays(chosen, texts)}), store_schema=False)

    pieces = list(tables(pq.ParquetFile(pa.BufferReader(body)), source=pa.BufferReader(body)))

    assert max(piece.nbytes for piece in pieces) < 3 * PIECE_BYTES
    assert sum(piece.num_rows for piece in pieces) == len(chosen)


@pytest.mark.parametrize(
    ("make", "dense"),
    [
        pytest.param(lambda: pa.array(["x"] * 100_000 + ["y" * 5000]), False, id="one long text"),
        pytest.param(lambda: pa.array(["x"] * 100_000 + ["y" * 5000] * 3000), True, id="many, late"),
        pytest.param(lambda: pa.array([["x"]] * 100_000 + [["y" * 5000] * 3000]), True, id="many in one row"),
        pytest.param(lambda: pa.array([[]] * 100_000 + [["y" * 5000]]), False, id="one list"),
        pytest.param(lambda: pa.array(range(100_000)), False, id="numbers"),
    ],
)
def test_files_are_read_in_pieces_only_where_their_rows_take_more_than_the_limit(make, dense):
    """Reading in pieces costs scans the choice of columns."""
    column = make()
    source = pa.BufferReader(encoded(pa.table({"c.d": column, "e": range(len(column))}), row_group_size=len(column)))
    parquet = pq.ParquetFile(source)
    assert is_dense(parquet, source, limit_bytes=8 * MIB) == dense
    assert is_dense(parquet, source, limit_bytes=8 * MIB, columns=["c.d"]) == dense
    assert not is_dense(parquet, source, limit_bytes=8 * MIB, columns=["e", "d"])
