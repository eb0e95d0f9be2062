"""What is wrong with a footer or a page header is said in the names of its fields and of the column."""

from __future__ import annotations

import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.errors import UnreadableFile
from datalake_assets.parquet.adopted_footer import bytes_needed, read_adopted_footer
from datalake_assets.parquet.field_names import FILE_METADATA, PAGE_HEADER, fault
from datalake_assets.parquet.pages import UnsoundPages, page_of, walk_pages
from datalake_assets.parquet.thrift import BINARY, BYTE, I32, I64, LIST, CompactReader, CompactWriter, zigzag
from datalake_assets_tests.parquet.parquet_files import EXTRAS, edited, footer, parquet, reader, rows
from datalake_assets_tests.parquet.test_rewrite import CONCAT, REENCODE, input_file, rewritten

BODY = parquet(pa.table({"a": range(9), "list": [[{"x": 1.5}]] * 9}), compression="none")
NOT_FOOTER = "its footer is damaged: "


def changed(kind, field, value):
    return {kind: lambda fields: fields | {field: value}}


def without(kind, field):
    return {kind: lambda fields: {key: value for key, value in fields.items() if key != field}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(
            changed("column", 11, (LIST, CompactWriter.list_header(I32, 1) + b"\2")),
            "dictionary_page_offset of column 'a' of row group 0 is a list, and a 64-bit number belongs there",
            id="another kind",
        ),
        pytest.param(
            changed("column", 5, (I32, zigzag(9))),
            "num_values of column 'a' of row group 0 is a 32-bit number, and a 64-bit number belongs there",
            id="another width",
        ),
        pytest.param(
            changed("column", 1, (BINARY, b"\1x")),
            "type of column 'a' of row group 0 is a text, and a 32-bit number belongs there",
            id="text",
        ),
        pytest.param(
            changed("column", 1, (15, b"")),
            "type of column 'a' of row group 0 is of the unknown kind 15, and a 32-bit number belongs there",
            id="no kind",
        ),
        pytest.param(
            without("column", 7), "total_compressed_size of column 'a' of row group 0 is missing", id="missing"
        ),
        pytest.param(without("column", 9), "data_page_offset of column 'a' of row group 0 is missing", id="no offset"),
        pytest.param(without("group", 3), "num_rows of row group 0 is missing", id="rows missing"),
        pytest.param(without("file", 3), "num_rows is missing", id="rows of the file missing"),
        pytest.param(
            changed("group", 3, (BYTE, b"\1")),
            "num_rows of row group 0 is a byte, and a 64-bit number belongs there",
            id="rows of another kind",
        ),
        pytest.param(
            changed("column", 5, (I64, zigzag(8))), "row group 0: column 'a' has 8 values for 9 rows", id="values"
        ),
        pytest.param(
            changed("column", 1, (I32, zigzag(4))),
            "row group 0: column 'a' is FLOAT, and INT64 by the schema",
            id="type",
        ),
        pytest.param(
            changed("column", 7, (I64, zigzag(1 << 40))),
            r"row group 0: column 'a' lies at bytes 4 to 10995\d+, and the data at 4 to \d+",
            id="size",
        ),
        pytest.param(
            changed("column", 10, (I64, zigzag(1))),
            r"row group 0: a page of column 'a' is at byte 1, and the column at bytes 4 to \d+",
            id="index page",
        ),
        pytest.param(
            changed("column", 14, (I64, zigzag(1))),
            "row group 0: column 'a': its bloom filter, 0 bytes from byte 1 on, lies outside the file",
            id="bloom filter",
        ),
        pytest.param(
            changed("chunk", 4, (I64, zigzag(40))),
            "row group 0: column 'a': its offset index, -1 bytes from byte 40 on, lies outside the file",
            id="offset index",
        ),
        pytest.param(
            changed("chunk", 1, (BINARY, b"\1x")),
            "row group 0: column 'a': its rows lie in other files",
            id="elsewhere",
        ),
        pytest.param(changed("file", 3, (I64, zigzag(8))), "it says 8 rows, and its row groups 9", id="rows"),
    ],
)
def test_footer_is_refused_by_the_names_of_field_and_column(change, reason):
    with pytest.raises(UnreadableFile) as caught:
        footer(edited(BODY, **change))
    assert caught.value.reason.startswith(NOT_FOOTER)
    assert re.fullmatch(reason, caught.value.reason.removeprefix(NOT_FOOTER))


def test_columns_are_named_by_their_whole_path():
    def late(fields):
        path = fields[3][1]
        return fields | {5: (I32, zigzag(9))} if b"element" in path else fields

    with pytest.raises(UnreadableFile, match=r"num_values of column 'list.list.element.x' of row group 0 is a 32-bit"):
        footer(edited(BODY, column=late))


@pytest.mark.parametrize("chosen", [CONCAT, REENCODE], ids=["concat", "reencode"])
def test_compaction_names_the_field_that_arrow_refuses_without_a_name(chosen):
    bad = edited(BODY, **without("column", 7))
    result = rewritten([input_file("a", BODY), input_file("bad", bad, rows=9), input_file("c", BODY)], chosen)
    assert result.rejected == {"bad": f"{NOT_FOOTER}total_compressed_size of column 'a' of row group 0 is missing"}
    assert result.rewritten == ("a", "c")


def test_adoption_names_the_field_that_arrow_refuses_without_a_name():
    bad = edited(BODY, **without("column", 7))
    tail = bad[-bytes_needed(bad[-8:], len(bad), where="bad") :]
    with pytest.raises(UnreadableFile, match="total_compressed_size of column 'a' of row group 0 is missing"):
        read_adopted_footer(tail, len(bad), time_column=None, where="bad")


@pytest.mark.parametrize("chosen", [CONCAT, REENCODE], ids=["concat", "reencode"])
def test_column_that_does_not_decode_is_named(chosen):
    table = pa.table({"good": range(9), "bad": [f"text {number}" for number in range(9)]})
    body = parquet(table, compression="none", use_dictionary=False)
    chunk = footer(body).layouts[0].chunks[1]
    wrong = body[: chunk.end - 80] + b"\xff" * 80 + body[chunk.end :]

    result = rewritten([input_file("a", body), input_file("wrong", wrong), input_file("c", body)], chosen)

    assert result.rejected["wrong"].startswith("its column 'bad' cannot be read: ")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(
            lambda body, begin: body[:begin] + b"\x19" + body[begin + 1 :],
            "column 'a' of row group 0: type of a page's header is a list, and a 32-bit number belongs there",
            id="kind",
        ),
        pytest.param(
            lambda body, begin: body[:begin] + b"\x15\x0a" + body[begin + 2 :],
            "column 'a' of row group 0: a page is of the type 5, which is not known",
            id="type",
        ),
        pytest.param(
            lambda body, begin: body[: begin + 2] + b"\x15\x01" + body[begin + 4 :],
            "column 'a' of row group 0: uncompressed_page_size of a page's header is -1",
            id="size",
        ),
    ],
)
def test_page_header_is_refused_by_the_names_of_field_and_column(change, reason):
    body = parquet(pa.table({"a": [1, 2, 3]}), compression="none", use_dictionary=False)
    begin = footer(body).layouts[0].chunks[0].start
    wrong = change(body, begin)
    with pytest.raises(UnsoundPages) as caught:
        walk_pages(footer(body), reader(wrong))
    assert caught.value.reason == reason


def test_nothing_is_wrong_with_what_is_whole():
    body = parquet(rows(0, 120), **EXTRAS)
    data = footer(body).data
    assert fault(data, FILE_METADATA) == ""
    for layout in footer(body).layouts:
        for chunk in layout.chunks:
            header = body[chunk.start :]
            assert fault(header[: page_of(header).header_bytes], PAGE_HEADER) == ""


def test_footer_that_is_cut_anywhere_is_told_where():
    data = footer(BODY).data
    for length in range(len(data)):
        assert "cannot be decoded: " in fault(data[:length], FILE_METADATA)


@given(data=st.binary(max_size=60), fields=st.sampled_from([FILE_METADATA, PAGE_HEADER]))
def test_any_bytes_are_told_without_an_error(data, fields):
    if not fault(data, fields):
        parsed = CompactReader(data)
        assert {field for field, _ in parsed.fields()} >= {field for field, of in fields.items() if of.is_required}
