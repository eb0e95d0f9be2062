"""Row groups are copied only if all their pages are what the metadata says; what is not is decoded, or left alone."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake_assets.errors import UnreadableFile
from datalake_assets.parquet.pages import PageWalk, UnsoundPages, walk_pages
from datalake_assets.parquet.thrift import BINARY, I64, CompactReader, CompactWriter, zigzag
from datalake_assets.parquet.writer import ParquetSettings
from datalake_assets_tests.parquet.parquet_files import EXTRAS, edited, footer, numbers, parquet, reader, rows
from datalake_assets_tests.parquet.test_rewrite import CONCAT, SETTINGS, input_file, read, rewritten

#: Row groups of these sizes are copied.
COPYING = replace(SETTINGS, parquet=ParquetSettings(row_group_bytes=1000))
BODY = parquet(rows(0, 200), **EXTRAS, compression="zstd")


def number(fields, field):
    return CompactReader(fields[field][1]).integer(I64, I64)


def changed(body, field, change):
    """The file with a number of each column chunk's metadata changed."""
    return edited(body, column=lambda fields: fields | {field: (I64, zigzag(change(number(fields, field))))})


def test_pages_of_every_codec_and_version_are_sound(mixed):
    bodies, _, whole = mixed
    for body in (*bodies, whole):
        walk_pages(footer(body), reader(body))


@pytest.mark.parametrize(
    ("field", "change", "reason"),
    [
        pytest.param(5, lambda values: values, None, id="unchanged"),
        pytest.param(6, lambda size: size - 1, "its pages take [0-9]+ bytes, and its metadata says", id="plain size"),
        pytest.param(7, lambda size: size - 14, "a page is longer than its column chunk", id="shorter"),
        pytest.param(7, lambda size: size - 1, "a page is longer than its column chunk", id="a byte shorter"),
    ],
)
def test_metadata_that_pages_do_not_add_up_to_is_found(field, change, reason):
    body = parquet(numbers(0, 300), compression="none")
    wrong = changed(body, field, change)
    told = footer(wrong)
    if reason is None:
        walk_pages(told, reader(wrong))
        return
    with pytest.raises(UnsoundPages, match=reason):
        walk_pages(told, reader(wrong))


def test_number_of_values_in_nested_columns_is_that_of_the_pages():
    body = parquet(pa.table({"list": [[1, 2], [], [3]] * 10}))
    wrong = changed(body, 5, lambda values: values + 1)

    with pytest.raises(UnsoundPages, match="its pages hold 40 values, and its metadata says 41"):
        walk_pages(footer(wrong), reader(wrong))


def test_chunks_that_overlap_are_found():
    body = parquet(numbers(0, 300), use_dictionary=False)
    told = footer(body)
    first, second = told.layouts[0].chunks
    layout = replace(told.layouts[0], chunks=(first, second._replace(start=first.start)))

    with pytest.raises(UnsoundPages, match="column 'text' of row group 0: it begins before the end of column 'n'"):
        PageWalk(replace(told, layouts=(layout,)), [0])


@settings(max_examples=200, deadline=None)
@given(cuts=st.lists(st.integers(1, 400), min_size=1, max_size=40))
def test_pages_are_walked_however_the_bytes_are_cut(cuts):
    told = footer(BODY)
    group, walk = told.row_groups[0], PageWalk(told, [0])
    at = group.start
    while at < group.end:
        cut = cuts[at % len(cuts)]
        walk.feed(at, BODY[at : min(at + cut, group.end)])
        at += cut
    walk.finish()
    assert sum(map(len, walk.pages.values())) > len(told.layouts[0].chunks)


def test_flipped_byte_of_a_page_with_a_checksum_is_damage_and_not_decoded():
    for chunk in footer(BODY).layouts[0].chunks:
        wrong = bytearray(BODY)
        wrong[chunk.end - 1] ^= 0x20
        with pytest.raises(UnreadableFile, match="the checksum of a page is not that of its bytes"):
            walk_pages(footer(BODY), reader(bytes(wrong)), [0])


def test_dictionary_that_the_metadata_does_not_name_is_found():
    body = parquet(pa.table({"s": ["a", "b"] * 50}))
    told = footer(body)
    (chunk,) = told.layouts[0].chunks
    layout = replace(told.layouts[0], chunks=(chunk._replace(start=chunk.data_offset, dictionary_offset=0),))
    walk = PageWalk(replace(told, layouts=(layout,)), [0])

    with pytest.raises(UnsoundPages, match="a page needs a dictionary, and there is none"):
        walk.feed(chunk.data_offset, body[chunk.data_offset : chunk.end])


def short_chunks(table, *, created_by):
    """As old parquet-mr wrote: chunks lack the size of the dictionary's header, and nothing says where that begins."""
    body = parquet(table, compression="none", store_schema=False)
    sizes = {chunk.dictionary_offset: _header_bytes(body, chunk.dictionary_offset) for chunk in _chunks(body)}

    def shorter(fields):
        if 11 not in fields:
            return fields
        dictionary = number(fields, 11)
        kept = {field: value for field, value in fields.items() if field != 11}
        for field in (6, 7):
            kept[field] = (I64, zigzag(number(fields, field) - sizes[dictionary]))
        return kept | {9: (I64, zigzag(dictionary))}

    return edited(
        body, column=shorter, file=lambda fields: fields | {6: (BINARY, CompactWriter.binary(created_by.encode()))}
    )


def _chunks(body):
    return [chunk for layout in footer(body).layouts for chunk in layout.chunks if chunk.dictionary_offset]


def _header_bytes(body, offset):
    parsed = CompactReader(body, offset)
    for _ in parsed.fields():
        pass
    return parsed.position - offset


@pytest.mark.parametrize("created_by", ["parquet-mr", "parquet-mr version 1.2.8"])
def test_chunks_that_are_stated_too_short_are_decoded_and_keep_every_value(created_by):
    tables = [pa.table({"s": [f"w{(i * 7919 + k) % 997:06d}" for i in range(5000)]}) for k in range(3)]
    files = [input_file(f"f{k}", short_chunks(table, created_by=created_by)) for k, table in enumerate(tables)]

    result = rewritten(files, COPYING)

    assert result.rejected == {}
    assert read(result)["s"].to_pylist() == pa.concat_tables(tables)["s"].to_pylist()
    assert result.copied == 0


def test_file_whose_pages_do_not_add_up_is_named_where_only_copying_is_wanted():
    table = pa.table({"s": [f"w{i % 997:06d}" for i in range(5000)]})
    body = edited(parquet(table, compression="none", store_schema=False), file=_by_old)
    good = [input_file(name, body) for name in ("ga", "gb")]
    bad = input_file("bad", short_chunks(table, created_by="parquet-mr version 1.2.8"))

    result = rewritten([good[0], bad, good[1]], CONCAT)

    assert result.rejected == {
        "bad": "its pages are not what its metadata says (column 's' of row group 0: it begins with a dictionary, and"
        " its metadata states none), and the kernel 'concat' copies row groups only"
    }
    assert result.rewritten == ("ga", "gb")


def _by_old(fields):
    return fields | {6: (BINARY, CompactWriter.binary(b"parquet-mr version 1.2.8"))}


@pytest.mark.parametrize("chosen", [CONCAT, COPYING, SETTINGS], ids=["concat", "copied", "encoded"])
def test_damaged_page_is_named_by_its_checksum_and_the_others_are_merged(chosen):
    tables = [numbers(0, 5000), numbers(5000, 10_000), numbers(10_000, 15_000)]
    bodies = [parquet(table, write_page_checksum=True, compression="none") for table in tables]
    chunk = footer(bodies[1]).layouts[0].chunks[0]
    wrong = bytearray(bodies[1])
    wrong[chunk.end - 5] ^= 1
    files = [input_file("a", bodies[0]), input_file("bad", bytes(wrong)), input_file("c", bodies[2])]

    result = rewritten(files, chosen)

    assert list(result.rejected) == ["bad"]
    assert "checksum" in result.rejected["bad"].lower() or "crc" in result.rejected["bad"].lower()
    assert read(result)["n"].to_pylist() == [*range(5000), *range(10_000, 15_000)]


def test_many_unsound_files_are_decoded_in_two_passes(monkeypatch):
    """Not in a pass for each of them."""
    tables = [pa.table({"s": [f"w{(i + k) % 97:06d}" for i in range(500)]}) for k in range(40)]
    files = [input_file(f"f{k}", short_chunks(table, created_by="parquet-mr")) for k, table in enumerate(tables)]
    opened = []
    counted = [replace(each, open=lambda each=each: (opened.append(each.file.name), each.open())[1]) for each in files]

    result = rewritten(counted, COPYING)

    assert read(result)["s"].to_pylist() == pa.concat_tables(tables)["s"].to_pylist()
    assert len(opened) < 3 * len(files)


@pytest.mark.parametrize("field", [1, 2, 3], ids=["offset", "size", "first row"])
def test_offset_index_that_is_not_that_of_the_pages_is_found(field):
    body = parquet(numbers(0, 3000), write_page_index=True, data_page_size=512, write_batch_size=64)
    index = footer(body).layouts[0].indexes[0][0]
    wrong = bytearray(body)
    parsed = CompactReader(body, index.offset)
    changed_at = 0
    for outer, kind in parsed.fields():
        for place in range(parsed.structs(kind) if outer == 1 else 0):
            for inner, _ in parsed.fields():
                begin = parsed.position
                parsed.skip(I64)
                if inner == field and place == 1:
                    value = CompactReader(body, begin).integer(I64, I64)
                    length = parsed.position - begin
                    other = zigzag(value - 1) if field < 3 else b"\x80" * (length - 1) + b"\0"  # 0, as long as before
                    changed_at, wrong[begin : begin + length] = begin, other
    assert changed_at
    assert len(wrong) == len(body)
    files = [input_file("a", body), input_file("b", bytes(wrong))]

    result = rewritten(files, COPYING)

    assert result.rejected == {}
    assert read(result)["n"].to_pylist() == [*range(3000), *range(3000)]
    assert result.copied == 1
