"""Rows too large to hold, and values that nothing proves, are found before they are decoded, and named."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.parquet import decodable
from datalake_assets.parquet.bit_streams import delta_numbers, hybrid_numbers
from datalake_assets.parquet.chunk_pages import UNREADABLE, Chunks
from datalake_assets.parquet.decodable import ROW_BYTES, too_large, undecodable
from datalake_assets.parquet.pages import page_of
from datalake_assets.parquet.thrift import I32, I64, varint, zigzag
from datalake_assets_tests.parquet.parquet_files import edited, footer, parquet
from datalake_assets_tests.parquet.test_rewrite import CONCAT, REENCODE, SETTINGS, input_file, read, rewritten

KIB = 1 << 10
KERNELS = pytest.mark.parametrize("chosen", [SETTINGS, CONCAT, REENCODE], ids=["auto", "concat", "reencode"])
LONG = "".join(chr(97 + place * 7 % 26) for place in range(2000))


def late_text(size):
    return pa.array(["x"] * 3000 + [None, "z" * size] + ["y"] * 3000)


def late_list(size):
    return pa.array([["x"]] * 3000 + [None, [], [LONG, None] * (size // len(LONG))] + [["y"]] * 3000)


def late_numbers(size):
    return pa.array([[1]] * 3000 + [[0] * (size // 8)] + [[2]] * 3000, pa.list_(pa.int64()))


def late_map(size):
    entries = [(f"{number:04d}", LONG) for number in range(size // len(LONG))]
    return pa.array([[("k", "v")]] * 3000 + [entries] + [[]] * 3000, pa.map_(pa.string(), pa.string()))


def late_structs(size):
    deep = pa.list_(pa.struct([("a", pa.list_(pa.binary()))]))
    return pa.array([[{"a": [b"x"]}]] * 3000 + [[{"a": [LONG.encode()] * 10}, None] * (size // 20_000)], deep)


def too_large_at(body, row_bytes):
    return too_large(pq.ParquetFile(pa.BufferReader(body)), pa.BufferReader(body), row_bytes=row_bytes)


PLAIN = {"use_dictionary": False}
PREFIXED = PLAIN | {"column_encoding": {"c": "DELTA_BYTE_ARRAY"}}
PREFIXED_LIST = PLAIN | {"column_encoding": {"c.list.element": "DELTA_BYTE_ARRAY"}}
LENGTHS = PLAIN | {"column_encoding": {"c.list.element": "DELTA_LENGTH_BYTE_ARRAY"}}


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        pytest.param(late_text, {}, id="text by dictionary"),
        pytest.param(late_text, PLAIN, id="text"),
        pytest.param(late_text, PREFIXED, id="text by prefixes"),
        pytest.param(late_list, {}, id="list by dictionary"),
        pytest.param(late_list, PLAIN | {"data_page_size": 4096, "write_batch_size": 64}, id="list over many pages"),
        pytest.param(late_list, LENGTHS | {"compression": "zstd"}, id="list by lengths"),
        pytest.param(late_list, PREFIXED_LIST | {"compression": "gzip"}, id="list by prefixes"),
        pytest.param(late_numbers, {"compression": "lz4"}, id="numbers"),
        pytest.param(late_map, {"compression": "brotli"}, id="map"),
        pytest.param(late_structs, {"compression": "none"}, id="structs in lists"),
    ],
)
def test_largest_row_is_known_before_anything_is_decoded(make, options, version):
    size = 400_000
    column = make(size)
    body = parquet(pa.table({"c": column, "n": range(len(column))}), data_page_version=version, **options)
    decoded = max(column.slice(place, 1).nbytes for place in range(2999, 3004))

    assert too_large_at(body, round(decoded * 1.25)) == ""
    reason = too_large_at(body, round(decoded * 0.9))
    assert re.match(r"a row takes (3[89]|4)\d+(\.\d)? KiB decoded, most of it in column 'c", reason)


def test_row_that_is_large_only_over_all_columns_is_found():
    table = pa.table({f"c{number}": ["x" * 1000] * 50 for number in range(40)})
    assert too_large_at(parquet(table), 45 * KIB) == ""
    assert "a row takes 39.3 KiB decoded" in too_large_at(parquet(table), 39 * KIB)


def test_page_that_is_too_large_to_hold_is_named_whatever_its_values():
    table = pa.table({"n": pa.array([bytes(100_000)] * 16, pa.binary(100_000))})
    body = parquet(table, use_dictionary=False, data_page_size=1 << 30)
    assert too_large_at(body, 600 * KIB) == ""
    assert too_large_at(body, 500 * KIB) == (
        "a page of column 'n' takes 1.5 MiB decoded; 1.5 MiB may be held, by compaction_memory_mb"
    )


class Counted:
    """Bytes of a file that tell how many of them were read."""

    def __init__(self, body):
        self.reads, self.read_bytes, self._body = 0, 0, body

    def size(self):
        return len(self._body)

    def read_at(self, length, offset):
        self.reads += 1
        self.read_bytes += length
        return self._body[offset : offset + length]


def test_files_above_suspicion_are_not_read_beforehand():
    body = parquet(
        pa.table({"s": [f"text {number}" for number in range(5000)], "list": [[number] for number in range(5000)]})
    )
    counted = Counted(body)
    parsed = pq.ParquetFile(pa.BufferReader(body))
    assert too_large(parsed, counted, row_bytes=ROW_BYTES) == ""
    assert undecodable(parsed, counted, row_bytes=ROW_BYTES) == ""
    assert counted.reads == 0


def test_pages_of_many_columns_are_read_once():
    """Each column looked ahead for itself, over all that follow it."""
    table = pa.table({f"c{number}": [f"text {row % 200}" for row in range(1000)] for number in range(100)})
    body = parquet(table, compression="none", store_schema=False)
    counted = Counted(body)

    for chunks in Chunks(pq.read_metadata(pa.BufferReader(body)), counted):
        assert [sum(found.page.values for found in chunk.pages()) for chunk in chunks] == [1200] * 100

    assert counted.read_bytes <= len(body)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(varint(128) + varint(4) + varint(2) + varint((1 << 70) - 2), id="first value beyond 64 bits"),
        pytest.param(varint(128) + varint(4) + varint(1 << 33) + varint(0), id="many values"),
        pytest.param(varint(1 << 33) + varint(1) + varint(1 << 33) + varint(0), id="large block"),
    ],
)
def test_delta_header_of_impossible_numbers_is_unreadable(header):
    with pytest.raises(UNREADABLE):
        delta_numbers(memoryview(header + bytes(8)))


@pytest.mark.parametrize("width", [1, 7, 32])
def test_packed_numbers_take_little_more_memory_than_unpacked_ones(width):
    count = 300_000 - 3  # of the last group, some are no values
    data = random.Random(width).randbytes((count + 3) * width // 8)
    whole, mask = int.from_bytes(data, "little"), (1 << width) - 1
    tracemalloc.start()
    found = hybrid_numbers(memoryview(varint((count + 3) // 8 << 1 | 1) + data), width, count)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert len(found) == count
    for at in (*range(0, count, 1009), count - 1):
        assert found[at] == whole >> at * width & mask
    assert peak_bytes < 2 * found.nbytes + 6 * len(data) + (3 << 20)


def test_row_with_a_page_of_too_many_values_is_refused(monkeypatch):
    monkeypatch.setattr(decodable, "MAX_VALUES", 4999, raising=False)  # to write more than 2^24 takes seconds
    column = pa.array([[LONG] * 5000])
    reason = (
        "a page of column 'c.list.element' has more than 4,999 values, too many to say whether its rows can be held"
    )
    assert too_large_at(parquet(pa.table({"c": column})), 1 << 20) == reason
    assert too_large_at(parquet(pa.table({"c": column[:0]})), 1 << 20) == ""


PEAK = """
import json, sys
import pyarrow as pa
from datalake_assets.core.files import DataFile
from datalake_assets.parquet.inputs import Input
from datalake_assets.parquet.outputs import Opener
from datalake_assets.parquet.rewrite import ParquetSettings, RewriteSettings, rewrite
from datalake_assets_tests.parquet.sinks import MemorySink
body = open(sys.argv[1], "rb").read()
files = [Input(DataFile(name, 1, len(body)), lambda: pa.BufferReader(body)) for name in "ab"]
opener = Opener(MemorySink, lambda _: None, lambda body: iter([body]))
done = rewrite(files, RewriteSettings(ParquetSettings(), kernel="reencode"), opener, metadata={})
print(json.dumps([dict(done.rejected), pa.default_memory_pool().max_memory() >> 20]))
"""


def test_rows_of_gigabytes_are_left_alone_by_name_in_little_memory(tmp_path):
    """Half a million texts of two kilobytes in one row: a file of a few kilobytes."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 500_000, pa.int8()), pa.array([LONG]))
    column = pa.ListArray.from_arrays(pa.array([0, 500_000], pa.int32()), texts)
    pq.write_table(pa.table({"c": column}), tmp_path / "f.parquet", store_schema=False, compression="zstd")
    assert (tmp_path / "f.parquet").stat().st_size < 16 * KIB

    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path / "f.parquet"], capture_output=True, check=True)

    found, peak_mib = json.loads(done.stdout)
    reason = (
        "a row takes 956.1 MiB decoded, most of it in column 'c.list.element'; 128 MiB may be held, a third of"
        " compaction_memory_mb"
    )
    assert found == {"a": reason, "b": reason}
    assert peak_mib < 50


@KERNELS
def test_file_with_a_row_too_large_is_named_and_the_others_are_merged(chosen):
    short, long = pa.table({"s": ["x"] * 10}), pa.table({"s": ["x" * 200_000] + ["y"] * 9})
    files = [input_file(name, parquet(table)) for name, table in (("a", short), ("large", long), ("c", short))]

    result = rewritten(files, replace(chosen, row_bytes=100_000))

    assert list(result.rejected) == ["large"]
    assert "a row takes 195" in result.rejected["large"]
    assert read(result)["s"].to_pylist() == ["x"] * 20


def test_codec_that_nobody_knows_leaves_its_file_alone_and_the_process_alive():
    """Whoever asks pyarrow for it ends the process."""
    good = parquet(pa.table({"c": ["v0"] * 5}), compression="none", store_schema=False)
    unstated = indexed(b"\0" + packed(5), 1, states_dictionary=False)
    wrong = edited(unstated, column=lambda fields: fields | {4: (I32, zigzag(10))})

    result = rewritten([input_file("a", good), input_file("bad", wrong), input_file("c", good)], REENCODE)

    assert list(result.rejected) == ["bad"]
    assert "compression codec" in result.rejected["bad"]


@KERNELS
@pytest.mark.parametrize("field", [9, 11], ids=["data", "dictionary"])
@pytest.mark.parametrize("offset", [1 << 40, -1, 0], ids=str)
def test_pages_that_lie_outside_the_file_leave_it_alone_or_are_read_where_they_are(field, offset, chosen):
    table = pa.table({"c": [f"v{number % 3}" for number in range(50)]})
    good = parquet(table, compression="none")
    wrong = edited(good, column=lambda fields: fields | {field: (I64, zigzag(offset))})

    result = rewritten([input_file("a", good), input_file("bad", wrong, rows=50), input_file("c", good)], chosen)

    assert set(result.rejected) <= {"bad"}
    assert read(result)["c"].to_pylist() == table["c"].to_pylist() * (2 if result.rejected else 3)


def indexed(indices, entries, *, states_dictionary, version="1.0", count=40):
    """A column of a dictionary whose page has these indices instead of its own."""
    table = pa.table({"c": pa.array([f"v{number % entries}" for number in range(count)])})
    body = parquet(table, compression="none", data_page_version=version, write_statistics=False, store_schema=False)
    chunk = footer(body).layouts[0].chunks[0]
    page = page_of(body[chunk.data_offset :])
    begin = chunk.data_offset + page.header_bytes
    end = begin + page.size_bytes
    begin += (
        len(varint(2 * count)) + 1 + 4 * (version == "1.0")
    )  # levels: one run of ones, in version 1 after its length
    if indices is not None:
        padded = indices + bytes(end - begin - len(indices))  # what follows the last run says nothing
        body = body[:begin] + padded + body[end:]
    if states_dictionary:
        return body
    start = (I64, zigzag(chunk.dictionary_offset))
    return edited(body, column=lambda fields: {key: value for key, value in fields.items() if key != 11} | {9: start})


def packed(groups):
    return varint(groups << 1 | 1)


def repeated(times):
    return varint(times << 1)


VERSIONS = pytest.mark.parametrize("version", ["1.0", "2.0"])
PACKED = (
    "nothing proves the values of column 'c': the footer states no dictionary, and they are given as bit-packed indices"
    " of no bits"
)
SEVERAL = (
    "nothing proves the values of column 'c': the footer states no dictionary, and they are given as indices of no bits"
    " into 3 entries"
)


@VERSIONS
@KERNELS
@pytest.mark.parametrize(
    ("indices", "entries", "reason"),
    [
        pytest.param(b"\0" + packed(5), 1, PACKED, id="bit-packed"),
        pytest.param(b"\0" + packed(2) + packed(3), 3, PACKED, id="bit-packed in runs"),
        pytest.param(b"\0" + repeated(40), 3, SEVERAL, id="several entries"),
    ],
)
def test_indices_that_nothing_proves_leave_their_file_alone(indices, entries, reason, version, chosen):
    good = parquet(pa.table({"c": ["v0"] * 5}), compression="none", store_schema=False)
    bad = indexed(indices, entries, states_dictionary=False, version=version)

    result = rewritten([input_file("a", good), input_file("bad", bad), input_file("c", good)], chosen)

    assert dict(result.rejected) == {"bad": reason}
    assert result.rewritten == ("a", "c")


@VERSIONS
@pytest.mark.parametrize(
    ("indices", "entries", "count", "states_dictionary"),
    [
        pytest.param(b"\0" + packed(5), 1, 40, True, id="bit-packed, of a stated dictionary"),
        pytest.param(b"\0" + packed(1), 1, 7, False, id="fewer than eight, as parquet-mr writes them"),
        pytest.param(b"\0" + repeated(40), 1, 40, False, id="one entry"),
        pytest.param(b"\0" + repeated(40), 3, 40, True, id="one category of three, as Polars writes it"),
        pytest.param(None, 3, 40, False, id="dictionary not stated"),
    ],
)
def test_indices_that_point_into_a_known_dictionary_are_merged(indices, entries, count, states_dictionary, version):
    body = indexed(indices, entries, states_dictionary=states_dictionary, version=version, count=count)
    values = [f"v{number % entries if indices is None else 0}" for number in range(count)]
    for chosen in (SETTINGS, REENCODE):
        result = rewritten([input_file("a", body), input_file("b", body)], chosen)
        assert result.rejected == {}
        assert read(result)["c"].to_pylist() == values * 2


@KERNELS
@pytest.mark.parametrize("states_dictionary", [True, False], ids=["stated", "not stated"])
@pytest.mark.parametrize(
    "indices",
    [
        pytest.param(b"\x02" + repeated(40) + b"\x03", id="beyond the dictionary"),
        pytest.param(b"\x20" + repeated(40) + b"\xff\xff\xff\xff", id="negative"),
        pytest.param(b"\x21" + repeated(40) + bytes(5), id="more than 32 bits"),
        pytest.param(b"\x02" + repeated(30) + b"\x01", id="too few"),
        pytest.param(b"\x00", id="none"),
        pytest.param(b"\x02" + repeated(0) + b"\x01" + repeated(40) + b"\x01", id="run of nothing"),
    ],
)
def test_indices_that_no_reader_may_take_leave_their_file_alone(indices, states_dictionary, chosen):
    good = parquet(pa.table({"c": ["v0"] * 5}), compression="none", store_schema=False)
    bad = indexed(indices, 3, states_dictionary=states_dictionary)

    result = rewritten([input_file("a", good), input_file("bad", bad), input_file("c", good)], chosen)

    assert list(result.rejected) == ["bad"]
    assert read(result)["c"].to_pylist() == ["v0"] * 10


def test_indices_of_nested_columns_are_looked_at_behind_their_levels():
    column = pa.array([["v0"] * 5, [], None, [None, "v0"]] * 10)
    body = parquet(pa.table({"c": column}), compression="snappy", write_statistics=False, store_schema=False)
    chunk = footer(body).layouts[0].chunks[0]
    start = (I64, zigzag(chunk.dictionary_offset))
    wrong = edited(body, column=lambda fields: {key: value for key, value in fields.items() if key != 11} | {9: start})
    files = [input_file(name, wrong) for name in "ab"]
    result = rewritten(files, REENCODE)
    assert read(result)["c"].to_pylist() == column.to_pylist() * 2
