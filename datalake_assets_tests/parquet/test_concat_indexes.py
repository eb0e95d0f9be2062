"""Page indexes and Bloom filters of concatenated files are where readers look for them, and skip no row too many."""

from __future__ import annotations

import io

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from datalake_assets.parquet.row_groups import moved_offset_index
from datalake_assets.parquet.thrift import MalformedThrift
from datalake_assets_tests.parquet.parquet_files import (
    EXTRAS,
    columns,
    concatenated,
    edited,
    footer,
    parquet,
    read,
    rows,
)


def page_index(body):
    """First row and offset of each page, by row group and column."""
    told = footer(body)
    for layout in told.layouts:
        for offset_index, _ in layout.indexes:
            start, length = offset_index
            pages = []
            moved_offset_index(body[start : start + length], lambda offset, pages=pages: pages.append(offset) or offset)
            yield pages


def without_bloom_lengths(body):
    return edited(body, column=lambda fields: {field: value for field, value in fields.items() if field != 15})


def test_pages_and_bloom_filters_are_where_the_footer_says(mixed):
    bodies, _, body = mixed
    pairs = zip([(each, column) for each in bodies for column in columns(each)], columns(body), strict=True)

    for (source, old), new in pairs:
        for name in ("dictionary_page_offset", "data_page_offset", "bloom_filter_offset"):
            before, after = getattr(old, name), getattr(new, name)
            assert (before is None) == (after is None)
            if before is not None:
                length = old.bloom_filter_length if name.startswith("bloom") else old.total_compressed_size
                start = old.dictionary_page_offset or old.data_page_offset
                end = length if name.startswith("bloom") else length - (before - start)
                assert body[after : after + end] == source[before : before + end]


def test_offset_index_names_the_pages(mixed):
    bodies, _, body = mixed
    before = [(each, page) for each in bodies for pages in page_index(each) for page in pages]
    after = [page for pages in page_index(body) for page in pages]

    assert len(before) > len(columns(body))  # several pages in some column chunks
    for (source, old), new in zip(before, after, strict=True):
        assert body[new : new + 40] == source[old : old + 40]


def test_offset_index_that_points_elsewhere_is_damaged():
    def refuse(offset):
        raise MalformedThrift(str(offset))

    with pytest.raises(MalformedThrift):
        moved_offset_index(b"\x19\x1c\x16\x08\x15\x02\x16\x00\x00\x00", refuse)
    with pytest.raises(MalformedThrift, match="more follows"):
        moved_offset_index(b"\x00\x00", int)


def test_arrow_skips_row_groups_by_statistics(mixed):
    _, table, body = mixed
    fragment = ds.ParquetFileFormat().make_fragment(pa.BufferReader(body))

    assert len(fragment.split_by_row_group(ds.field("id") == 333)) == 1
    assert fragment.to_table(filter=ds.field("id") == 333)["text"].to_pylist() == table["text"][333:334].to_pylist()


def test_polars_finds_rows_by_page_index_and_statistics(mixed):
    _, table, body = mixed

    for number in range(0, 600, 7):
        found = pl.scan_parquet(io.BytesIO(body)).filter(pl.col("id") == number).select("text").collect()
        assert found["text"].to_list() == table["text"][number : number + 1].to_pylist()


def test_duckdb_skips_row_groups_by_bloom_filters(mixed, tmp_path):
    bodies, table, body = mixed
    path = tmp_path / "x.parquet"
    path.write_bytes(body)
    first = tmp_path / "first.parquet"
    first.write_bytes(bodies[0])
    texts = sorted(set(table["text"].drop_null().to_pylist()))
    with duckdb.connect() as connection:
        probe = "SELECT bloom_filter_excludes FROM parquet_bloom_probe(?, 'text', ?) ORDER BY row_group_id"
        skipped = [connection.execute(probe, [str(path), text]).fetchall() for text in texts]
        source = [connection.execute(probe, [str(first), text]).fetchall() for text in texts]
        select = "SELECT count(*) FROM read_parquet(?) WHERE text = ?"
        counted = [connection.execute(select, [str(path), text]).fetchone()[0] for text in texts]

    values = table["text"].to_pylist()
    assert counted == [values.count(text) for text in texts]
    assert sum(excluded for each in skipped for (excluded,) in each) > len(texts) * 10
    assert [each[:3] for each in skipped] == source


def test_bloom_filter_whose_length_is_not_told():
    """Files of before parquet-format 2.10; the length is in the filter's own header."""
    body = without_bloom_lengths(parquet(rows(0, 100), **EXTRAS))
    out = concatenated(body, body)[1]

    blooms = [bloom for layout in footer(body).layouts for bloom in layout.blooms]
    moved = [bloom for layout in footer(out).layouts for bloom in layout.blooms]
    assert len(moved) == 2 * len(blooms) > 0
    for (old, length), (new, _) in zip(blooms * 2, moved, strict=True):
        assert length == 0
        assert out[new : new + 40] == body[old : old + 40]
    assert read(out).num_rows == 200
