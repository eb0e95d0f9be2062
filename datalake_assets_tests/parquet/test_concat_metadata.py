"""Concatenated files keep what their inputs' footers say, whoever wrote those, and say it of the right place."""

from __future__ import annotations

import io

import pyarrow.parquet as pq
import pytest

from datalake_assets.parquet.row_groups import EXTENSION, Role
from datalake_assets.parquet.thrift import BINARY, CompactWriter, zigzag
from datalake_assets_tests.parquet.parquet_files import (
    columns,
    concatenated,
    edited,
    footer,
    meta,
    numbers,
    parquet,
    read,
)


def test_each_column_chunk_keeps_what_was_said_of_it(mixed):
    bodies, _, body = mixed
    before = [column for each in bodies for column in columns(each)]
    kept = (
        "physical_type", "num_values", "path_in_schema", "is_stats_set", "statistics", "compression", "encodings",
        "has_dictionary_page", "total_compressed_size", "total_uncompressed_size", "bloom_filter_length",
        "has_offset_index", "has_column_index",
    )  # fmt: skip

    assert len(columns(body)) == len(before)
    for old, new in zip(before, columns(body), strict=True):
        assert [getattr(new, name) for name in kept] == [getattr(old, name) for name in kept]
        assert new.has_offset_index
    assert {column.compression for column in before} == {"SNAPPY", "ZSTD", "GZIP", "UNCOMPRESSED", "LZ4", "BROTLI"}


def test_schema_keeps_field_ids_and_metadata(mixed):
    _, _, body = mixed
    schema = pq.read_schema(io.BytesIO(body))

    assert schema.field("id").metadata == {b"PARQUET:field_id": b"1"}
    assert not schema.field("id").nullable
    assert schema.metadata == {b"owner": b"tests"}


def test_row_groups_keep_how_they_are_sorted(mixed):
    _, _, body = mixed
    told = meta(body)

    assert all(told.row_group(n).sorting_columns == (pq.SortingColumn(0),) for n in range(told.num_row_groups))


def test_row_groups_are_numbered_anew_and_know_where_they_begin():
    body = edited(
        parquet(numbers(0, 10), row_group_size=5), group=lambda fields: fields | {5: (6, zigzag(4)), 7: (4, zigzag(0))}
    )
    out = footer(concatenated(body, body)[1])
    patches = [patch for layout in out.layouts for patch in layout.patches]

    assert [patch.value for patch in patches if patch.role is Role.ORDINAL] == [0, 1, 2, 3]
    assert [patch.value for patch in patches if patch.role is Role.START] == [group.start for group in out.row_groups]


def test_metadata_is_the_first_files_with_ours():
    first = parquet(numbers(0, 5).replace_schema_metadata({"a": "1", "b": "2"}))
    second = parquet(numbers(5, 9).replace_schema_metadata({"a": "3", "c": "4"}))
    noted = meta(concatenated(first, second, metadata={"b": "ours", "größe": "✓"})[1]).metadata

    assert {name: noted.get(name.encode()) for name in "abc"} == {"a": b"1", "b": b"ours", "c": None}
    assert noted["größe".encode()] == "✓".encode()
    assert b"ARROW:schema" in noted


def test_created_by_stays(mixed):
    bodies, _, body = mixed

    assert meta(body).created_by == meta(bodies[0]).created_by


def test_unknown_fields_are_kept_and_extensions_dropped():
    """An extension may hold a second footer, with offsets of its own."""
    future, extension = (BINARY, CompactWriter.binary(b"future")), (BINARY, CompactWriter.binary(b"flatbuffer"))

    def change(fields):
        return fields | {99: future, EXTENSION: extension}

    plain = parquet(numbers(0, 10), row_group_size=5)
    body = edited(plain, column=change, chunk=change, group=change, file=change)
    out = concatenated(body, body)[1]

    assert read(body).num_rows == 10
    assert read(out)["n"].to_pylist() == [*range(10), *range(10)]
    assert b"flatbuffer" not in out
    assert out.count(b"future") == 1 + 4 * (1 + 2 * 2)


def test_unknown_field_of_a_file_keeps_it_from_others():
    body = parquet(numbers(0, 10))
    other = edited(body, file=lambda fields: fields | {99: (BINARY, CompactWriter.binary(b"future"))})

    with pytest.raises(ValueError, match="another schema"):
        concatenated(body, other)


def test_file_offsets_of_old_writers_are_moved_or_zero():
    """Old writers point to the first page there, or to a copy of the metadata behind the pages."""
    body = parquet(numbers(0, 10))
    first = edited(body, chunk=lambda fields: fields | {2: (6, zigzag(4))})
    behind = edited(body, chunk=lambda fields: fields | {2: (6, zigzag(footer(body).end_of_data))})
    out = concatenated(body, first, behind)[1]

    offsets = [column.file_offset for column in columns(out)]
    assert offsets == [0, 0, *[4 + footer(body).row_groups[0].size_bytes] * 2, 0, 0]
