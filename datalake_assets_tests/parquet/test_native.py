"""The page-merging kernel through its wrapper, against pyarrow, which shares no code with it."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from datalake_assets.errors import UnreadableFile
from datalake_assets.parquet import native
from datalake_assets.parquet.native import Depth, MergeOptions, Part, Refusal, Refused
from datalake_assets.parquet.native.interface import open_library
from datalake_assets.parquet.pages import PageWalk, page_of
from datalake_assets.parquet.proof import Side, Verdict, load_comparer
from datalake_assets_tests.parquet.native_seeds import mutated
from datalake_assets_tests.parquet.parquet_files import EXTRAS, footer, parquet, read, rows

#: Where a missing kernel is a fault, not a machine without a compiler.
NEEDED = ("CI", "TESTS_NEED_NATIVE")


@pytest.fixture(scope="module")
def kernel():
    loaded = native.load_kernel()
    if loaded is None:
        assert not any(os.environ.get(name) for name in NEEDED), native.native_status().reason
        pytest.skip(native.native_status().reason)
    return loaded


def small(start, count=400):
    """What tiny files hold: values that repeat, values that never do, nulls."""
    random = np.random.default_rng(start)
    return pa.table(
        {
            "id": pa.array(np.arange(start, start + count)),
            "at": pa.array(10**15 + np.arange(start, start + count) * 1000).cast(pa.timestamp("us", "UTC")),
            "user": pa.array(random.integers(0, 50, count)),
            "amount": pa.array(random.normal(size=count), mask=random.random(count) < 0.2),
            "session": pa.array([random.bytes(16).hex() for _ in range(count)], mask=random.random(count) < 0.1),
            "country": pa.array([["AT", "DE", None][place] for place in random.integers(0, 3, count)]),
        }
    )


def plain(table):
    """Categories as the values that they are: the order of a dictionary means nothing here."""
    fields = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields, table.schema.metadata))


def decoded(found):
    return plain(pq.read_table(pa.py_buffer(found.view)))


def merged(kernel, bodies, **options):
    return kernel.merge([Part(body) for body in bodies], MergeOptions(**options))


KINDS = [
    {"compression": codec, "data_page_version": version, "use_dictionary": dictionary}
    for codec, version, dictionary in itertools.product(
        ("none", "snappy", "zstd", "gzip", "lz4", "brotli"), ("1.0", "2.0"), (True, False)
    )
]


@pytest.mark.parametrize("written", KINDS, ids=lambda each: "-".join(map(str, each.values())))
def test_merged_rows_are_those_of_the_inputs(kernel, written):
    """Types, nesting, nulls; decoded files and copied pages; row groups of several sizes."""
    for tables, extra in (
        ([rows(start, start + 100) for start in range(0, 400, 100)], EXTRAS),
        ([small(start) for start in range(0, 4000, 400)], {}),
    ):
        bodies = [parquet(table, **extra, **written) for table in tables]
        wanted = plain(pa.concat_tables(map(read, bodies)))
        same = written["compression"] if written["compression"] in {"none", "snappy", "zstd"} else "none"
        for codec, copy in (("snappy", True), ("zstd", True), (same, True), ("none", False)):
            found = merged(kernel, bodies, codec=codec, copy=copy, key_values=None)
            assert decoded(found).equals(wanted, check_metadata=True)
            assert found.rows == wanted.num_rows
            assert not (found.copied_pages and (not copy or codec != written["compression"]))


ENCODINGS = {
    "id": ("DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"),
    "at": ("DELTA_BINARY_PACKED", "PLAIN"),
    "amount": ("BYTE_STREAM_SPLIT", "PLAIN"),
    "session": ("DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"),
    "country": ("DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"),
    "flag": ("RLE", "PLAIN"),
    "raw": ("DELTA_BYTE_ARRAY", "BYTE_STREAM_SPLIT"),
}


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("which", [0, 1])
def test_values_of_every_encoding_merge(kernel, which, version):
    tables = []
    for start in range(0, 2000, 400):
        table = small(start).drop_columns("user")
        table = table.append_column("flag", pa.array([place % 3 == 0 if place % 7 else None for place in range(400)]))
        raw = pa.array([f"{place * 31 % 997:05}".encode() for place in range(400)], pa.binary(5))
        tables.append(table.append_column("raw", raw))
    encoding = {name: choices[which] for name, choices in ENCODINGS.items()}
    options = {"use_dictionary": False, "column_encoding": encoding, "data_page_version": version}
    bodies = [parquet(table, data_page_size=2000, write_page_index=True, **options) for table in tables]
    assert decoded(merged(kernel, bodies)).equals(pa.concat_tables(tables))
    assert all(each.refused is None for each in kernel.check([Part(body) for body in bodies], Depth.DECODE))


def test_merges_run_side_by_side(kernel):
    """Nothing is shared between calls: outputs are the same, byte for byte."""
    bodies = [[parquet(small(start + shift)) for start in range(0, 4000, 400)] for shift in range(4)]
    alone = [bytes(merged(kernel, each).view) for each in bodies]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert [bytes(each.view) for each in pool.map(lambda each: merged(kernel, each), bodies)] == alone


def test_pages_of_small_files_are_joined_without_being_decompressed(kernel):
    for codec in ("none", "snappy", "zstd"):
        tables = [small(start) for start in range(0, 12_000, 400)]
        bodies = [parquet(table, compression=codec) for table in tables]
        digests = [xxhash.xxh3_128(body).digest() for body in bodies]
        parts = [Part(body, digest=digest) for body, digest in zip(bodies, digests, strict=True)]
        found = kernel.merge(parts, MergeOptions(codec=codec))
        assert found.copied_bytes > 0.5 * len(found.view)
        assert found.copied_pages <= 6  # a page a column, not a page a file
        assert decoded(found).equals(pa.concat_tables(tables))


def larger(start, nulls=0.0, count=20_000):
    """What larger files hold: values that never repeat, more than a dictionary or a page takes."""
    random = np.random.default_rng(start)
    holes = {"mask": random.random(count) < nulls} if nulls else {}
    texts = [f"item {number:08} of {start}" for number in random.permutation(count)]
    numbers = pa.array(random.permutation(count) + start * count, **holes)
    return pa.table({"id": numbers, "text": pa.array(texts, **holes), "kind": pa.array(np.arange(count) % 3)})


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("nulls", [0, 0.2])
def test_chunks_of_several_pages_are_copied(kernel, codec, version, nulls):
    """A dictionary, indices in some pages, then values in others, as writers leave them that give a dictionary up."""
    tables = [larger(start, nulls) for start in range(3)]
    how = {"dictionary_pagesize_limit": 50_000, "data_page_size": 40_000, "write_batch_size": 1000}
    bodies = [parquet(table, compression=codec, data_page_version=version, **how) for table in tables]
    (seen,) = kernel.check([Part(bodies[0])], Depth.DECODE)
    assert seen.pages >= 10
    found = merged(kernel, bodies, codec=codec)
    assert decoded(found).equals(pa.concat_tables(tables))
    # how many nulls a page of version 1 has, which is compressed with its levels, shows only where it is taken apart
    is_known = not nulls or version == "2.0" or codec == "snappy"
    least, most = (0.9, 1.0) if is_known else (0.0, 0.0)
    assert least * len(found.view) <= found.copied_bytes <= most * len(found.view)
    metadata = pq.read_metadata(pa.py_buffer(found.view)).row_group(0)
    for place, name in enumerate(("id", "text")):
        stated, values = metadata.column(place).statistics, pa.concat_tables(tables)[name].drop_null().to_pylist()
        assert (stated.min, stated.max, stated.null_count) == (min(values), max(values), 60_000 - len(values))


def runs_of(body):
    """Heads of the runs of indices in an uncompressed data page of version 1."""
    at = 4 + int.from_bytes(body[:4], "little")
    bits, at, heads = body[at], at + 1, []
    while at < len(body):
        head = shift = 0
        while True:
            byte, at = body[at], at + 1
            head |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        heads.append(head)
        at += (head >> 1) * bits if head & 1 else (bits + 7) // 8
    return heads


@pytest.mark.parametrize("nulls", [0, 0.1])
def test_indices_are_packed_as_duckdb_unpacks_them_fastest(kernel, nulls):
    """In runs of 256, of pages that end where one of its vectors does; whatever repeats in between."""
    random = np.random.default_rng(1)
    values = np.where(np.arange(30_000) % 7000 < 40, 5, random.integers(0, 900, 30_000))
    tables = [pa.table({"v": pa.array(values, mask=random.random(30_000) < nulls)})] * 5
    found = merged(kernel, [parquet(table, compression="none") for table in tables], codec="none")
    assert decoded(found).equals(pa.concat_tables(tables))
    chunk = pq.read_metadata(pa.py_buffer(found.view)).row_group(0).column(0)
    at, end, pages, runs = chunk.data_page_offset, chunk.dictionary_page_offset + chunk.total_compressed_size, [], []
    while at < end:
        page = page_of(bytes(found.view[at : at + 100]))
        begin = at + page.header_bytes
        at = begin + page.size_bytes
        pages.append(page.values)
        runs += runs_of(bytes(found.view[begin:at]))
    assert sum(pages) == 150_000
    assert len(pages) > 2
    assert not any(rows % 2048 for rows in pages[:-1])
    packed = [head >> 1 for head in runs if head & 1]
    assert max(packed) == 256 // 8
    assert len(packed) < len(runs)  # some values were repeated


@pytest.mark.parametrize("codec", ["snappy", "zstd"])
@pytest.mark.parametrize("repeated", [500, 19_000])
def test_values_of_several_pages_that_repeat_are_decoded_unless_they_can_be_spread(kernel, repeated, codec):
    """The index of the repeated value stands in the first page, or the last."""
    table = larger(0).select(["id"])
    ids = table["id"].to_pylist()
    ids[repeated] = ids[repeated - 400]
    changed = pa.table({"id": ids})
    how = {"data_page_size": 2000, "write_batch_size": 1000, "compression": codec}
    found = merged(kernel, [parquet(each, **how) for each in (changed, table)], codec=codec)
    assert decoded(found).equals(pa.concat_tables([changed, table]))
    assert found.copied_pages == (2 if codec == "snappy" else 1)


def test_rows_out_of_order_are_sorted_by_time(kernel):
    """Nulls last, and rows of equal time in the order of the inputs, as Arrow's sort leaves them."""
    random = np.random.default_rng(1)
    tables = []
    for start in range(0, 600, 100):
        table = rows(start, start + 100)
        times = pa.array(random.integers(0, 50, 100), mask=random.random(100) < 0.1).cast(pa.timestamp("us", "UTC"))
        tables.append(table.set_column(1, table.schema.field("at"), times))
    bodies = [parquet(table) for table in tables]
    joined = plain(pa.concat_tables(map(read, bodies)))
    found = merged(kernel, bodies, time_leaf=1, order="sort")
    wanted = joined.sort_by([("at", "ascending")])
    assert decoded(found).equals(wanted)
    assert found.unsorted
    kept = merged(kernel, bodies, time_leaf=1)
    assert kept.unsorted
    assert decoded(kept).equals(joined)
    assert kept.times == found.times == (0, 49)
    with pytest.raises(Refused) as refused:
        merged(kernel, bodies, time_leaf=1, order="refuse")
    assert refused.value.kind is Refusal.UNSORTED


def test_files_out_of_order_are_put_in_order_without_being_decoded(kernel):
    """Files that do not overlap change places; one that does overlap has its rows put in order."""
    tables = [small(start) for start in range(0, 4000, 400)]
    shuffled = [parquet(tables[place], row_group_size=200) for place in (3, 9, 0, 1, 2, 8, 7, 4, 6, 5)]
    found = merged(kernel, shuffled, time_leaf=1, order="sort")
    assert found.unsorted
    assert found.copied_pages
    assert decoded(found).equals(pa.concat_tables(tables))
    overlapping = merged(kernel, [*shuffled, parquet(small(1000))], time_leaf=1, order="sort")
    assert not overlapping.copied_pages
    wanted = pa.concat_tables([*(tables[place] for place in (3, 9, 0, 1, 2, 8, 7, 4, 6, 5)), small(1000)])
    assert decoded(overlapping).equals(wanted.sort_by([("at", "ascending")]))


def test_a_refused_file_is_named_and_the_others_merge(kernel, tmp_path):
    pipe = tmp_path / "pipe.parquet"
    os.mkfifo(pipe)
    good = [parquet(small(start)) for start in range(0, 1200, 400)]
    for bad, kind in (
        (good[1][:-10], Refusal.DAMAGED),
        (b"", Refusal.DAMAGED),
        (parquet(small(0).drop_columns("id")), Refusal.DIFFERS),
        (good[1], Refusal.CHANGED),
        ("/nowhere/file.parquet", Refusal.UNREADABLE),
        (str(pipe), Refusal.UNREADABLE),  # which is not waited for
    ):
        parts = [Part(good[0]), Part(bad, digest=bytes(16) if kind is Refusal.CHANGED else None), Part(good[2])]
        with pytest.raises(Refused) as refused:
            kernel.merge(parts, MergeOptions())
        assert (refused.value.kind, refused.value.index) == (kind, 1)
    assert decoded(merged(kernel, [good[0], good[2]])).equals(pa.concat_tables([small(0), small(800)]))


def test_a_look_says_what_a_file_is(kernel):
    body = parquet(small(0), write_page_checksum=True, row_group_size=150)
    found = kernel.check([Part(body), Part(body[:-1])], Depth.DECODE, time_leaf=1)
    assert found[0].refused is None
    assert (found[0].rows, found[0].row_groups, found[0].codecs) == (400, 3, {"snappy"})
    assert found[0].times == (10**15, 10**15 + 399_000)
    assert found[0].checksums == found[0].pages > 18
    assert found[1].refused is not None
    assert found[1].refused.kind is Refusal.DAMAGED


def test_checksum_that_is_no_number_of_32_bits_is_refused(kernel):
    """Else nobody would compare it."""
    body, at = bytearray(parquet(small(0), compression="none", write_page_checksum=True)), 4
    for _ in range(3):  # type and sizes of the first page: a byte of the field, and a varint
        at += 1
        while body[at] & 0x80:
            at += 1
        at += 1
    assert body[at] == 0x15
    body[at] = 0x14
    assert kernel.check([Part(bytes(body))], Depth.DECODE)[0].refused.kind is Refusal.DAMAGED
    assert kernel.walk([Part(bytes(body))])[0].kind is Refusal.DAMAGED


def test_pages_are_copied_without_their_codec(kernel, tmp_path):
    """A build without any codec: what has to be decompressed is refused, what stays compressed is not."""
    library, whole = tmp_path / "pagemerge.so", tmp_path / "pagemerge.cpp"
    # in one, since most of the work is reading the same headers
    whole.write_text("".join(f'#include "{each}"\n' for each in Path(native.__file__).parent.glob("*.cpp")))
    without = [f"-DPM_WITH_{codec}=0" for codec in ("SNAPPY", "ZSTD", "ZLIB", "LZ4", "BROTLI")]
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no compiler")
    command = [compiler, "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", *without, str(whole)]
    subprocess.run([*command, "-o", str(library)], check=True)
    bare = native.Kernel(open_library(library))
    tables = [small(start).select(["id", "at", "user"]) for start in range(0, 4000, 400)]
    bodies = [parquet(table, use_dictionary=False, data_page_version="2.0") for table in tables]
    found = bare.merge([Part(body, proven=True) for body in bodies], MergeOptions())
    assert not found.encoded_pages
    assert decoded(found).equals(pa.concat_tables(tables))
    assert decoded(bare.merge([Part(bodies[0])], MergeOptions())).equals(tables[0])  # gone through is proven enough
    texts = parquet(small(0).select(["session"]), use_dictionary=False, data_page_version="2.0")
    for part in (Part(texts), Part(parquet(small(0)), proven=True)):
        with pytest.raises(Refused) as refused:
            bare.merge([part], MergeOptions())
        assert (refused.value.kind, refused.value.index) == (Refusal.NO_CODEC, 0)
    assert kernel.merge([Part(bodies[0])], MergeOptions()).rows == 400


def test_memory_is_bounded(kernel):
    """A page of a few bytes may stand for very many."""
    bomb = pa.table({"text": pa.array(["x" * 20_000] * 5_000)})
    body = parquet(bomb, compression="zstd")
    assert len(body) < 100_000
    table = pa.table({"text": pa.array([f"{number:0100d}" for number in range(2000)])})
    with pytest.raises(Refused) as refused:
        merged(kernel, [parquet(table, use_dictionary=False), body], memory_bytes=32 << 20)
    assert refused.value.kind is Refusal.MEMORY
    assert refused.value.index == 1


PAGES_V2 = {"compression": "none", "use_dictionary": False, "data_page_version": "2.0", "write_statistics": False}


def test_a_page_that_lacks_a_required_field_is_damaged(kernel):
    whole = parquet(pa.table({"n": [1, None, 3]}), **PAGES_V2)
    header = b"\x15\x00\x12\x1c"  # 6: no repetition levels, 7: not compressed
    assert whole.count(header) == 1
    (sound,), (damaged,) = (
        kernel.check([Part(each)], Depth.DECODE) for each in (whole, whole.replace(header, b"\x35" + header[1:]))
    )
    assert sound.refused is None
    assert damaged.refused.kind is Refusal.DAMAGED


def test_a_run_that_no_other_reader_takes_is_damaged(kernel):
    flags = [bool(0x9D5A3C7E12F4B681 >> i & 1) for i in range(64)]
    whole = parquet(pa.table({"flag": flags}), column_encoding={"flag": "RLE"}, **PAGES_V2)
    packed = b"\x11" + (0x9D5A3C7E12F4B681).to_bytes(8, "little")
    assert whole.count(packed) == 1
    endless = b"\x80\x80\x80\x80\x80\x01\x01\x00\x00"  # the same value 2 ** 34 times
    (found,) = kernel.check([Part(whole.replace(packed, endless))], Depth.DECODE)
    assert found.refused.kind is Refusal.DAMAGED


WRITTEN = [
    {"write_page_index": True},
    {"data_page_version": "2.0", "write_page_checksum": True, "data_page_size": 500, "write_page_index": True},
    {"use_dictionary": False, "row_group_size": 100, "write_page_checksum": True},
]


@pytest.mark.parametrize("options", WRITTEN, ids=["indexes", "checksums", "row groups"])
def test_no_file_passes_as_one_to_be_copied_that_the_walk_in_python_refuses(kernel, tmp_path, options):
    table = small(0).append_column("list", pa.array([[place] * (place % 3) for place in range(400)]))
    body, chosen, passed = parquet(table, compression="snappy", **options), random.Random(7), 0
    file = tmp_path / "file"
    for number in range(400):
        wrong = mutated(body, body, chosen) if number else body
        file.write_bytes(wrong)
        with file.open("rb") as opened:
            refused, same = kernel.walk([Part(wrong), Part(opened.fileno(), size_bytes=len(wrong))])
        assert (refused is None) is (same is None) or wrong[:4] != b"PAR1"
        if refused is not None:
            continue
        passed += 1
        try:
            told = footer(wrong)
        except UnreadableFile:  # then nothing is copied
            continue
        walk = PageWalk(told, range(len(told.row_groups)))
        walk.feed(0, wrong)
        walk.finish()
        for place in (pair[0] for layout in told.layouts for pair in layout.indexes if pair[0]):
            walk.check_offset_index(wrong[place.offset : place.offset + place.length])
    assert passed > 40  # most that is damaged lies in values, or in statistics


def test_a_list_of_no_known_kind_in_a_page_header_is_refused_as_other_readers_do(kernel):
    # as a list of one element of kind 0, what follows it would be a field again, and all would add up
    value = b"\x01\x18\x0d" + b"thirteen more"
    body = parquet(pa.table({"text": pa.array([value.decode()])}), use_dictionary=False, write_page_index=False)
    at = body.index(bytes([len(value)]) + value) - 1  # the first of the page's statistics
    wrong = body[:at] + bytes([body[at] + 1]) + body[at + 1 :]
    assert (body[at] & 15, wrong[at] & 15, kernel.walk([Part(body)])) == (8, 9, [None])
    with pytest.raises(OSError, match="thrift"):
        read(wrong)
    for refused in (*kernel.walk([Part(wrong)]), kernel.check([Part(wrong)], Depth.PAGES)[0].refused):
        assert "unknown type" in refused.why


def test_a_number_of_more_than_64_bits_is_damaged(kernel):
    least = parquet(pa.table({"n": pa.array([-(2**63), 5])}), column_encoding={"n": "DELTA_BINARY_PACKED"}, **PAGES_V2)
    number = b"\xff" * 9 + b"\x01"  # of a page's differences, the first value: 64 bits, all of them set
    assert least.count(number) == 1
    wrong = least.replace(number, number[:-1] + b"\x03")
    with pytest.raises(OSError, match="InitHeader"):
        read(wrong)
    assert kernel.check([Part(wrong)], Depth.DECODE)[0].refused.kind is Refusal.DAMAGED
    if (comparer := load_comparer()) is not None:
        assert [comparer.read(Side(pa.py_buffer(each), 2)).verdict for each in (least, wrong)] == [
            Verdict.EQUAL,
            Verdict.UNCLEAR,
        ]


def test_a_footer_that_is_not_at_hand_is_looked_at_alone(kernel, tmp_path):
    body = parquet(pa.table({"n": range(100_000)}), compression="none")
    (tmp_path / "whole").write_bytes(body)
    (tmp_path / "other").write_bytes(b"XXXX" + body[4:])
    assert len(body) > 1 << 17
    here, there, other = kernel.check(
        [Part(body), Part(tmp_path / "whole"), Part(tmp_path / "other")], memory_bytes=1 << 17
    )
    assert there == here
    assert other.refused.why == "it is not a Parquet file"


def test_a_walk_says_what_is_wrong_and_reads_checksums(kernel):
    body = bytearray(parquet(small(0), compression="none", write_page_checksum=True))
    assert kernel.walk([Part(bytes(body))]) == [None]
    body[footer(bytes(body)).row_groups[0].start + 60] ^= 1
    (refused,) = kernel.walk([Part(bytes(body))])
    assert refused.why == "a page's checksum is wrong"


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("text", [False, True], ids=["numbers", "texts"])
def test_a_page_passes_as_one_that_decompresses_exactly_if_another_library_decompresses_it(kernel, version, text):
    values = [f"{number % 90}/{'x' * (number % 70)}" if text else number // 3 for number in range(3000)]
    table = pa.table({"v": pa.array(values)}, pa.schema([pa.field("v", pa.array(values).type, nullable=False)]))
    options = {"use_dictionary": False, "data_page_version": version, "compression": "snappy"}
    body, chosen, found = parquet(table, **options), random.Random(3), Counter()
    start = footer(body).row_groups[0].start
    page = page_of(body[start:])
    begin, end = start + page.header_bytes, start + page.header_bytes + page.size_bytes
    for _ in range(1500):
        wrong = bytearray(body)
        for _ in range(chosen.choice([1, 1, 3])):
            wrong[chosen.randrange(begin, end)] ^= chosen.choice([1, 2, 4, 64, 255])
        (told,) = kernel.check([Part(bytes(wrong))], Depth.DECOMPRESS)
        try:
            plain = pa.Codec("snappy").decompress(bytes(wrong[begin:end]), page.plain_bytes)
            is_whole = plain.size == page.plain_bytes
        except (pa.ArrowException, OSError):
            is_whole = False
        assert (told.refused is None) is is_whole
        found[is_whole] += 1
    assert min(found.values()) > 50


def test_levels_are_found_in_compressed_pages_wherever_they_end(kernel):
    values = [None if number % 7 < 3 else f"{number}" for number in range(60_000)]
    flags = [None if number * number % 11 < 4 else number for number in range(60_000)]
    table = pa.table({"text": values, "number": flags, "none": pa.nulls(60_000, pa.int64())})
    for version, rows_of_page in itertools.product(["1.0", "2.0"], [100, 60_000]):
        body = parquet(table, compression="snappy", data_page_version=version, max_rows_per_page=rows_of_page)
        (told,) = kernel.check([Part(body)], Depth.DECOMPRESS)
        assert (told.refused, told.rows) == (None, 60_000)
        nulls = b"\xe8\x91\x03"  # 25,716, of the texts
        assert nulls in body
        (told,) = kernel.check([Part(body.replace(nulls, b"\xea\x91\x03"))], Depth.DECOMPRESS)
        assert "another number of nulls" in told.refused.why
