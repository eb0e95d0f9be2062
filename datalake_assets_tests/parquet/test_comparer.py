"""The comparer says of two sides that they are equal where every value is, and of nothing else."""

from __future__ import annotations

import io
import random
import re
from decimal import Decimal
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.parquet import native, proof
from datalake_assets.parquet.chunk_pages import decompresses
from datalake_assets.parquet.decoding import open_parquet
from datalake_assets.parquet.native import MergeOptions, Part, load_kernel
from datalake_assets.parquet.proof import Side, Verdict, load_comparer
from datalake_assets.parquet.thrift import varint
from datalake_assets_tests.parquet.native_seeds import decoded, group, same
from datalake_assets_tests.parquet.page_files import Page, made, packed
from datalake_assets_tests.parquet.parquet_files import edited

pytestmark = pytest.mark.skipif(load_comparer() is None, reason="the comparer was not built")
CODECS = ("none", "snappy", "zstd", "gzip", "brotli", "lz4")
ROWS = 40
#: A field of a page's head that says how levels are encoded (parquet.thrift): RLE, BIT_PACKED.
RUNS, OLD_BITS = b"\x15\x06", b"\x15\x08"


def encoded(table, **options):
    sink = io.BytesIO()
    pq.write_table(table, sink, **{"compression": "none", "store_schema": False, **options})
    return sink.getvalue()


def compared(inputs, output, *, memory_bytes=0, proven=False, asks_arrow=False):
    """What the comparer says of files, and of a file that is to have the same rows."""
    footer = output[-8 - int.from_bytes(output[-8:-4], "little") : -8]
    rows = [max(pq.read_metadata(io.BytesIO(each)).num_rows, 0) for each in inputs]
    sides = [Side(pa.py_buffer(each), count, proven=proven) for each, count in zip(inputs, rows, strict=True)]
    made = Side(pa.py_buffer(output), sum(rows))
    return load_comparer().compare(sides, made, footer, memory_bytes=memory_bytes, asks_arrow=asks_arrow)


def rows_of_all_types(seed=0, rows=ROWS):
    chosen = random.Random(seed)

    def column(values, kind):
        return pa.array([None if chosen.random() < 0.2 else value for value in values], kind)

    numbers = [chosen.randrange(-(2**31), 2**31) for _ in range(rows)]
    lists = [[chosen.randrange(5) if chosen.random() < 0.8 else None for _ in range(i % 4)] for i in range(rows)]
    pairs = [[{"a": f"x{i % 3}", "b": [i, None]}] * (i % 3) for i in range(rows)]
    return pa.table(
        {
            "flag": column([number % 3 == 0 for number in numbers], pa.bool_()),
            "int": column(numbers, pa.int32()),
            "long": column([number * 2**31 for number in numbers], pa.int64()),
            "float": column([chosen.choice([0.0, -0.0, float("nan"), 1.5]) for _ in numbers], pa.float32()),
            "double": column([chosen.gauss(0, 9) for _ in numbers], pa.float64()),
            "half": column([chosen.gauss(0, 9) for _ in numbers], pa.float16()),
            "money": column([Decimal(number) / 100 for number in numbers], pa.decimal128(25, 2)),
            "text": column([f"{'long ' * (i % 5)}{i}" for i in range(rows)], pa.string()),
            "few": column([chosen.choice(["AT", "DE", ""]) for _ in numbers], pa.string()),
            "fixed": column([chosen.randbytes(5) for _ in numbers], pa.binary(5)),
            "list": column(lists, pa.list_(pa.int32())),
            "deep": column(pairs, pa.list_(pa.struct({"a": pa.string(), "b": pa.list_(pa.int64())}))),
            "there": pa.array(numbers, pa.int64()),
        }
    )


ENCODED = {
    "int": "DELTA_BINARY_PACKED",
    "long": "BYTE_STREAM_SPLIT",
    "there": "DELTA_BINARY_PACKED",
    "double": "BYTE_STREAM_SPLIT",
    "float": "BYTE_STREAM_SPLIT",
    "half": "BYTE_STREAM_SPLIT",
    "text": "DELTA_BYTE_ARRAY",
    "few": "DELTA_LENGTH_BYTE_ARRAY",
    "fixed": "DELTA_BYTE_ARRAY",
    "flag": "RLE",
}
WAYS = {
    "plain": {"use_dictionary": False},
    "dictionaries": {"use_dictionary": True},
    "version 2": {"data_page_version": "2.0", "use_dictionary": ["few", "list.list.element"]},
    "small pages": {"data_page_size": 60, "write_batch_size": 7, "dictionary_pagesize_limit": 60},
    "encodings": {"use_dictionary": False, "column_encoding": ENCODED},
    "encodings, version 2": {"use_dictionary": False, "column_encoding": ENCODED, "data_page_version": "2.0"},
    "checksums": {"write_page_checksum": True, "use_dictionary": ["few"]},
    "row groups": {"row_group_size": 7},
    **{codec: {"compression": codec, "use_dictionary": ["few", "text"]} for codec in CODECS},
    **{f"{codec}, version 2": {"compression": codec, "data_page_version": "2.0"} for codec in CODECS},
}


def test_the_comparer_shares_no_header_and_no_source_with_what_it_proves():
    folders = [Path(each.__file__).parent for each in (native, proof)]
    sources = [[file for file in folder.iterdir() if file.suffix in {".cpp", ".hpp", ".h"}] for folder in folders]
    of_kernel, of_comparer = ({file.name: file.read_text() for file in files} for files in sources)
    assert of_kernel.keys().isdisjoint(of_comparer)
    included = set(re.findall(r'#include "([^"]+)"', "".join(of_comparer.values())))
    assert included < of_comparer.keys()
    assert "pagemerge" not in "".join(of_comparer.values())
    lines = [
        {re.sub(r"\W", "", line) for text in of_one.values() for line in text.splitlines()}
        for of_one in (of_kernel, of_comparer)
    ]
    shared = {line for line in lines[0] & lines[1] if len(line) > 40}  # lines that say more than the format does
    assert not {line for line in shared if not line.startswith(("include", "define", "ifndef"))}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_rows_are_equal_however_they_are_encoded(way):
    tables = [rows_of_all_types(seed) for seed in range(3)]
    output = encoded(pa.concat_tables(tables))
    found = compared([encoded(each, **WAYS[way]) for each in tables], output)
    assert (found.verdict, found.reason, found.rows) == (Verdict.EQUAL, "", 3 * ROWS)
    if way != "row groups":
        again = compared([output], encoded(pa.concat_tables(tables), **WAYS[way]))
        assert (again.verdict, again.reason) == (Verdict.EQUAL, "")


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["zstd", "gzip", "brotli", "lz4"])
def test_what_is_compressed_and_nobody_vouches_for_is_what_arrow_makes_of_it(codec, version, monkeypatch):
    tables = [rows_of_all_types(seed) for seed in range(2)]
    inputs = [encoded(each, compression=codec, data_page_version=version) for each in tables]
    output = encoded(pa.concat_tables(tables))
    asked, real = [], pa.decompress

    def verdict(arrow, **how):
        del asked[:]
        monkeypatch.setattr(pa, "decompress", lambda *given, **how: asked.append(1) or arrow(*given, **how))
        return compared(inputs, output, asks_arrow=True, **how).verdict

    def refuse(*_, **__):
        raise OSError("corrupt")

    def another(*given, **how):
        made = bytearray(real(*given, **how))
        made[len(made) // 2] ^= 1
        return pa.py_buffer(made)

    assert verdict(real) is Verdict.EQUAL
    assert len(asked) >= 2 * 13  # a page of each column
    assert (verdict(refuse, proven=True), asked) == (Verdict.EQUAL, [])
    assert verdict(refuse) is Verdict.UNCLEAR
    assert verdict(another) is not Verdict.EQUAL


def _changed(column, place):
    """The column with another value in one place."""
    values = column.to_pylist()
    kind = column.type
    other = next(value for value in [*values[place + 1 :], *values] if repr(value) != repr(values[place]))
    return pa.array([*values[:place], other, *values[place + 1 :]], kind)


@pytest.mark.parametrize("way", ["plain", "dictionaries", "small pages", "encodings, version 2", "snappy"])
def test_one_other_value_is_found_in_every_column_and_place(way):
    table = rows_of_all_types()
    inputs = [encoded(table)]
    for number, name in enumerate(table.column_names):
        for place in (0, 1, ROWS // 2, ROWS - 1):
            other = table.set_column(number, name, _changed(table[name], place))
            found = compared(inputs, encoded(other, **WAYS[way]))
            assert found.verdict is Verdict.DIFFERS, (name, place, found)
    rows = compared(inputs, encoded(table.slice(1), **WAYS[way]))
    assert rows.verdict is Verdict.DIFFERS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([[1], None], [[1], []]),
        ([[1], [None]], [[1], []]),
        ([[1, 2], [3]], [[1], [2, 3]]),
        ([[1, None], [3]], [[None, 1], [3]]),
        ([[1], [2]], [[2], [1]]),
    ],
)
def test_lists_that_have_the_same_values_and_other_borders_differ(one, other):
    files = [encoded(pa.table({"a": pa.array(rows, pa.list_(pa.int32()))})) for rows in (one, other)]
    assert compared(files[:1], files[1]).verdict is Verdict.DIFFERS


@pytest.mark.parametrize(("one", "other"), [(0.0, -0.0), (float("nan"), -float("nan"))])
def test_floating_point_numbers_are_equal_if_their_bits_are(one, other):
    files = [encoded(pa.table({"a": [each]})) for each in (one, other)]
    assert compared(files[:1], files[0]).verdict is Verdict.EQUAL
    assert compared(files[:1], files[1]).verdict is Verdict.DIFFERS


def test_other_schemas_are_for_others_to_compare():
    files = [encoded(pa.table({"a": pa.array([1], kind)})) for kind in (pa.int64(), pa.timestamp("us"))]
    assert compared(files[:1], files[1]).verdict is Verdict.UNCLEAR


def alone(body, rows=ROWS):
    return load_comparer().read(Side(pa.py_buffer(body), rows))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", CODECS)
def test_a_file_by_itself_is_read_to_its_last_value_in_all_encodings(codec, version):
    table = rows_of_all_types()
    leaves = pq.ParquetFile(io.BytesIO(encoded(table))).metadata.num_columns
    options = {"compression": codec, "data_page_version": version, "row_group_size": 15, "write_page_checksum": True}
    for more in ({}, {"use_dictionary": False, "column_encoding": ENCODED}):
        told = alone(encoded(table, **options, **more))
        assert (told.verdict, told.rows, told.reason) == (Verdict.EQUAL, ROWS, "")
        assert told.values > ROWS * leaves


def test_a_file_by_itself_is_unclear_where_only_arrow_can_tell():
    flat = encoded(rows_of_all_types())
    assert alone(flat, ROWS + 1).verdict is alone(flat[:-1]).verdict is Verdict.UNCLEAR
    decimals = pa.table({"money": pa.array([Decimal(1)] * ROWS, pa.decimal128(5, 2))})
    body = encoded(decimals).replace(b"\x15\x0e\x15\x06", b"\x15\x0c\x15\x06")  # a text, no longer of three bytes
    assert alone(body).verdict is Verdict.UNCLEAR


@pytest.mark.parametrize("codec", ["none", "snappy"])
def test_no_damaged_file_is_read_by_itself_unless_arrow_reads_it(codec):
    body = encoded(rows_of_all_types(), compression=codec)
    pages, chosen, read = body[: -8 - int.from_bytes(body[-8:-4], "little")], random.Random(1), 0
    for place in range(4, len(pages), 3):
        wrong = bytearray(body)
        wrong[place] ^= 1 << chosen.randrange(8)
        if alone(bytes(wrong)).verdict is Verdict.EQUAL:
            assert decoded(bytes(wrong)).num_rows == ROWS
            read += 1
    assert len(pages) // 30 < read < len(pages) // 3  # flipped bits of values make other values


def test_indices_wider_than_any_are_for_arrow_to_refuse_also_where_all_is_null():
    body = bytearray(encoded(pa.table({"a": pa.array([None], pa.float32())})))
    chunk = pq.read_metadata(io.BytesIO(bytes(body))).row_group(0).column(0)
    assert alone(bytes(body), 1).verdict is Verdict.EQUAL
    page_ends = _begin(chunk) + chunk.total_compressed_size
    assert body[page_ends - 1] == 0
    body[page_ends - 1] = 254
    with pytest.raises(OSError, match="bit_width"):
        decoded(bytes(body))
    assert alone(bytes(body), 1).verdict is Verdict.UNCLEAR


@pytest.mark.parametrize("groups", [3, 4, 8, 200])
def test_bit_packed_indices_may_be_filled_up_after_the_last_one_as_all_readers_take_them(groups, tmp_path):
    """DuckDB fills up to 32 of them."""
    entries, indices = [70, 80, 90], [number % 3 for number in range(20)]
    schema = pa.schema([pa.field("a", pa.int64(), nullable=False)])
    dictionary = Page(entries, is_dictionary=True)
    body = made(schema, [[dictionary, Page(indices=packed(indices, 2, groups), count=20)]])
    table = pa.table({"a": [entries[index] for index in indices]}, schema=schema)
    (path := tmp_path / "a.parquet").write_bytes(body)
    assert decoded(body).equals(table)
    assert pl.read_parquet(path)["a"].to_list() == table["a"].to_pylist()
    assert [row for (row,) in duckdb.read_parquet(str(path)).fetchall()] == table["a"].to_pylist()
    assert (alone(body, 20).verdict, compared([body], encoded(table)).verdict) == (Verdict.EQUAL, Verdict.EQUAL)
    cut, more = packed(indices, 2, groups)[:-1], packed(indices, 2, groups) + b"\2\1"  # and a run that begins too late
    for wrong in (cut, more, b"\2" + varint(21 << 1) + b"\1"):
        assert alone(made(schema, [[dictionary, Page(indices=wrong, count=20)]]), 20).verdict is Verdict.UNCLEAR


def test_files_of_duckdb_are_read_alone(tmp_path):
    path = tmp_path / "a.parquet"
    values = "CASE WHEN i % 7 > 0 THEN 'v' || i % 5 END AS text, i % 40 AS few, i AS n"
    duckdb.sql("FROM range(333) AS _(i)").project(values).write_parquet(str(path))
    body = path.read_bytes()
    assert pq.read_metadata(path).row_group(0).column(0).has_dictionary_page
    told = alone(body, 333)
    assert (told.verdict, told.reason, told.values) == (Verdict.EQUAL, "", 999)


def _begin(chunk):
    """Where a column chunk begins: at its dictionary, if it has one."""
    return chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset


def test_empty_lists_of_a_kind_that_arrow_does_not_know_are_unclear():
    body = encoded(pa.table({"n": range(9)}))
    side = Side(pa.py_buffer(edited(body, file=lambda fields: fields | {20: (9, b"\x0e")})), 9)
    with pytest.raises(OSError, match="what type"):
        pq.read_metadata(pa.BufferReader(side.data))
    assert load_comparer().read(side).verdict is Verdict.UNCLEAR


def test_memory_has_a_limit():
    files = [encoded(pa.table({"a": ["x" * 10_000] * 3}), compression="zstd")]
    assert compared(files, files[0], memory_bytes=1_000).verdict is Verdict.UNCLEAR
    assert compared(files, files[0], memory_bytes=1_000_000).verdict is Verdict.EQUAL


def test_pages_with_another_checksum_are_for_others_to_judge():
    table = rows_of_all_types().select(["there"])
    body = bytearray(encoded(table, write_page_checksum=True, use_dictionary=False))
    chunk = pq.read_metadata(io.BytesIO(bytes(body))).row_group(0).column(0)
    body[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    assert compared([bytes(body)], bytes(body)).verdict is Verdict.UNCLEAR


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False, "data_page_version": "2.0"}])
def test_no_flipped_bit_of_an_output_passes_unless_arrow_reads_the_same_rows(options):
    table = rows_of_all_types(rows=9).select(["text", "few", "list", "there", "flag"])
    body = encoded(table, write_page_index=False, write_statistics=["there"], **options)
    wanted, inputs, passed = decoded(body), [encoded(table.slice(0, 5)), encoded(table.slice(5))], 0
    pages = len(body) - 8 - int.from_bytes(body[-8:-4], "little")
    for place in [*range(4, pages), *range(pages, len(body) - 8, 3)]:
        changed = bytearray(body)
        changed[place] ^= 1 << place % 8
        found = compared(inputs, bytes(changed))
        if found.verdict is Verdict.EQUAL:
            passed += 1
            try:
                assert same([wanted], decoded(bytes(changed)), is_sorted=False), place
            except (pa.ArrowException, OSError, ValueError):
                assert place >= pages, place  # whether Arrow reads a footer is asked before
    assert passed < (len(body) - pages) // 3  # of what a footer says, and nobody needs to read rows


NUMBERS = list(range(100, 700, 10))
TEXTS = [f"text {number}" for number in NUMBERS]


def _packed(value):
    return value.to_bytes(8, "little") if isinstance(value, int) else value.encode()


@pytest.mark.parametrize("values", [NUMBERS, NUMBERS[::-1], TEXTS], ids=["ascending", "descending", "texts"])
def test_bounds_and_places_that_are_stated_of_pages_have_to_be_true(values):
    """Of chunks in the footer, and of pages in the page indexes before it."""
    table = pa.table({"a": values})
    options = {"write_page_index": True, "data_page_size": 60, "write_batch_size": 10, "use_dictionary": False}
    body, inputs = encoded(table, **options), [encoded(table)]
    chunk = pq.read_metadata(io.BytesIO(body)).row_group(0).column(0)
    indexes = chunk.data_page_offset + chunk.total_compressed_size
    assert compared(inputs, body).verdict is Verdict.EQUAL
    places = [
        (place, value)
        for value in values
        for place in range(indexes, len(body))
        if body.startswith(_packed(value), place)
    ]
    assert len(places) > 10
    for place, value in places:
        verdicts = set()
        for other in {min(values), max(values)} - {value}:  # one of them is true as well, if less tight
            changed = body[:place] + _packed(other) + body[place + len(_packed(other)) :]
            verdicts.add(compared(inputs, changed).verdict)
        assert verdicts != {Verdict.EQUAL}, (place, value)


@pytest.mark.parametrize(
    ("kind", "none"), [(pa.float32(), b"\x00\x00\xc0\x7f"), (pa.float64(), b"\x00" * 6 + b"\xf8\x7f")]
)
def test_no_bound_of_numbers_is_none(kind, none):
    """Of the chunk, and of the page in the index."""
    least = pa.array([1.375], kind)
    table = pa.table({"a": pa.array([1.375, 2.5, float("nan"), None], kind)})
    body = encoded(table, use_dictionary=False, write_page_index=True)
    packed = least.buffers()[1].to_pybytes()[: len(none)]
    chunk = pq.read_metadata(io.BytesIO(body)).row_group(0).column(0)
    indexes = chunk.data_page_offset + chunk.total_compressed_size
    places = [place for place in range(indexes, len(body)) if body.startswith(packed, place)]
    for changed in (places[:1], places[1:]):  # in the footer it is stated in the old way too, which has to be the same
        made = body
        for place in changed:
            made = made[:place] + none + made[place + len(none) :]
        assert compared([body], made).verdict is Verdict.DIFFERS


def test_a_number_of_nulls_that_is_stated_has_to_be_true():
    table = pa.table({"a": [1, None, None, 3]})
    body = encoded(table, use_dictionary=False)
    stated = b"\x16\x04\x28"  # null_count of the statistics, and the largest value after it
    for place in (place for place in range(len(body)) if body.startswith(stated, place)):
        changed = body[:place] + b"\x16\x02\x28" + body[place + 3 :]
        assert compared([body], changed).verdict is Verdict.DIFFERS
    assert stated in body


@pytest.mark.parametrize("written", ["PLAIN", "DELTA_BYTE_ARRAY"])
def test_a_page_without_values_has_an_encoding_that_readers_know(written):
    """Arrow asks for the encoding before it looks whether there are values."""
    table = pa.table({"a": pa.array([None] * 3, pa.string())})
    body = encoded(table, use_dictionary=False, column_encoding={"a": written}, write_statistics=False)
    assert compared([encoded(table)], body).verdict is Verdict.EQUAL
    begin = body.index(b"\x2c\x15\x06\x15") + 4  # the head of version 1: values, encoding
    for other in (5, 9, 11):
        changed = body[:begin] + bytes([2 * other]) + body[begin + 1 :]
        with pytest.raises(OSError, match=r"(?i)coding|coder|split"):
            pq.read_table(io.BytesIO(changed))
        assert compared([encoded(table)], changed).verdict is Verdict.UNCLEAR, other


@pytest.mark.parametrize(("encoding", "passes"), [("DELTA_BINARY_PACKED", False), ("BYTE_STREAM_SPLIT", True)])
def test_a_page_without_values_has_the_head_that_readers_ask_for(encoding, passes):
    table = pa.table({"a": pa.array([None] * 10, pa.int64())})
    how = {"use_dictionary": False, "column_encoding": {"a": encoding}, "write_statistics": False}
    body = encoded(table, data_page_version="2.0", **how)
    chunk = pq.read_metadata(io.BytesIO(body)).row_group(0).column(0)
    begin, end = _begin(chunk), _begin(chunk) + chunk.total_compressed_size
    levels = bytes([2 * 10, 0])  # the level 0, ten times
    at = body.index(levels, begin)
    spare, number = end - at - len(levels), 2 * len(levels)
    head = b"\x15\x06\x15" + bytes([number, 0x15, number]) + body[begin + 6 : at - 1]  # type, sizes, and the rest
    if spare:  # bytes of the head become a field that nobody knows, so that all else stays in its place
        head += bytes([0xC8, spare - 2]) + b"x" * (spare - 2)
    changed = body[:begin] + head + b"\0" + levels + body[end:]
    assert (alone(body, 10).verdict, len(changed)) == (Verdict.EQUAL, len(body))
    assert alone(changed, 10).verdict is (Verdict.EQUAL if passes else Verdict.UNCLEAR)
    if passes:
        assert decoded(changed).num_rows == 10
    else:
        with pytest.raises(OSError, match="InitHeader"):
            decoded(changed)


def test_differences_have_no_longer_numbers_than_arrow_takes():
    """Five bytes for 32 bits, though the sixth be zero."""
    how = {"use_dictionary": False, "column_encoding": {"a": "DELTA_BINARY_PACKED"}, "write_statistics": False}
    body = encoded(pa.table({"a": pa.array([-(1 << 31)], pa.int32())}), data_page_version="2.0", **how)
    head = bytes.fromhex("80010401ffffffff0f")  # 128 a block, in four parts, of one value, which is the first
    changed = body.replace(head, bytes.fromhex("808180808000040106"))
    assert body.count(head) == 1
    with pytest.raises(OSError, match="InitHeader"):
        decoded(changed)
    assert (alone(body, 1).verdict, alone(changed, 1).verdict) == (Verdict.EQUAL, Verdict.UNCLEAR)


def test_a_codec_that_arrow_lacks_is_refused_also_where_nothing_is_compressed():
    body = encoded(pa.table({"a": [1, 2, 3]}), use_dictionary=False, data_page_version="2.0", compression="none")
    stated = b"\x19\x18\x01a\x15"  # the path of the column, then its codec
    assert body.count(stated + b"\0") == 1
    changed = body.replace(stated + b"\0", stated + b"\x06")
    with pytest.raises(OSError, match="LZO"):
        decoded(changed)
    assert alone(changed, 3).verdict is Verdict.UNCLEAR  # though nothing has to be decompressed
    answers = [decompresses(open_parquet(source).metadata, source) for source in map(pa.BufferReader, (body, changed))]
    assert answers == [True, False]


def test_what_the_kernel_merges_is_equal_to_its_inputs():
    if (kernel := load_kernel()) is None:
        pytest.skip("the kernel was not built")
    for seed in range(40):
        of = group(seed)
        for codec in ("none", "snappy", "zstd"):
            options = MergeOptions(codec=codec, key_values={}, page_rows=50, page_least_bytes=0)
            made = kernel.merge([Part(each, proven=True) for each in of.files], options)
            found = compared(of.files, bytes(made.view), proven=True)
            assert (found.verdict, found.reason) == (Verdict.EQUAL, ""), (seed, codec)


@pytest.mark.parametrize("type_", [pa.int64(), pa.list_(pa.int64())])
@pytest.mark.parametrize("nullable", [True, False])
@pytest.mark.parametrize("proven", [True, False])
def test_levels_that_there_are_not_may_have_any_encoding_of_levels(type_, nullable, proven):
    """parquet-mr states that of old, of which nothing is read; Spark's files have it in each page."""
    schema = pa.schema([pa.field("a", type_, nullable=nullable)])
    values = [1, 2, 3] if type_ == pa.int64() else [[1], [2, 3], []]
    plain = encoded(pa.table([pa.array(values, type_)], schema), use_dictionary=False)
    assert plain.count(RUNS + RUNS) == 1
    leaf = pq.ParquetFile(io.BytesIO(plain)).schema.column(0)
    there = leaf.max_definition_level > 0, leaf.max_repetition_level > 0
    for places in ((True, False), (False, True), (True, True)):
        stated = b"".join(OLD_BITS if is_old else RUNS for is_old in places)
        found = compared([plain.replace(RUNS + RUNS, stated)], plain, proven=proven)
        is_read = any(is_old and is_there for is_old, is_there in zip(places, there, strict=True))
        assert found.verdict is (Verdict.UNCLEAR if is_read else Verdict.EQUAL)
