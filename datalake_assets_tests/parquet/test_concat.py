"""Concatenated files hold the rows, and all else that their inputs' writers put in, for every reader."""

from __future__ import annotations

import datetime as dt
import io
import itertools
import tracemalloc
from decimal import Decimal

import duckdb
import fastparquet
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake_assets.errors import PreconditionFailed, UnreadableFile
from datalake_assets.lake.store import open_store
from datalake_assets.parquet.concat import ConcatWriter, RangeCopier, ServerSide
from datalake_assets.parquet.footer import Footer, parse_footer
from datalake_assets.parquet.page_index import moved_offset_index
from datalake_assets.parquet.row_groups import EXTENSION, Role
from datalake_assets.parquet.thrift import BINARY, CompactReader, CompactWriter, MalformedThrift, zigzag
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
    return writer.close(metadata), sink.finish()


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
OPTIONS = [
    {"compression": codec, "data_page_version": version, "use_dictionary": dictionary}
    for codec, version, dictionary in zip(
        CODECS, itertools.cycle(["1.0", "2.0"]), itertools.cycle([True, True, False]), strict=False
    )
]
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


@pytest.fixture(scope="module")
def mixed():
    """Files of every codec and kind of page, their rows, and the file that they become."""
    tables = [rows(start, start + 100) for start in range(0, 600, 100)]
    bodies = [parquet(table, **EXTRAS, **options) for table, options in zip(tables, OPTIONS, strict=True)]
    return bodies, pa.concat_tables(tables), concatenated(*bodies)[1]


# ---- rows


def test_close_says_what_was_written():
    done, body = concatenated(parquet(numbers(0, 100), row_group_size=40), parquet(numbers(100, 150)))

    assert (done.rows, done.row_groups, done.size_bytes) == (150, 4, len(body))
    assert done.checksum == "xxh3-128:" + xxhash.xxh3_128(body).hexdigest()
    assert read(body).equals(numbers(0, 150))


def test_arrow_reads_the_rows_of_all_inputs(mixed):
    _, table, body = mixed

    assert read(body).schema == table.schema
    assert read(body).to_pylist() == table.to_pylist()


def test_duckdb_reads_the_rows_of_all_inputs(mixed, tmp_path):
    bodies, _, body = mixed
    (tmp_path / "out.parquet").write_bytes(body)
    for number, each in enumerate(bodies):
        (tmp_path / f"in_{number}.parquet").write_bytes(each)
    with duckdb.connect() as connection:
        found = [
            connection.sql(f"SELECT * FROM '{tmp_path}/{name}' ORDER BY id").fetchall()  # noqa: S608
            for name in ("out.parquet", "in_*.parquet")
        ]

    assert len(found[0]) == 600
    assert found[0] == found[1]


def test_polars_reads_the_rows_of_all_inputs(mixed):
    bodies, _, body = mixed

    assert pl.read_parquet(body).equals(pl.concat([pl.read_parquet(each) for each in bodies]))


def test_row_groups_can_be_chosen_and_ordered():
    body = parquet(numbers(0, 100), row_group_size=10)
    done, out = concatenated(body, row_groups=[7, 2, 3])

    assert (done.rows, done.row_groups) == (30, 3)
    assert read(out)["n"].to_pylist() == [*range(70, 80), *range(20, 40)]


def test_a_file_can_be_appended_in_pieces():
    """As a rewrite does that fills its outputs row group by row group."""
    body = parquet(rows(0, 100), **EXTRAS)
    sink = MemorySink()
    writer = ConcatWriter(sink, footer(body))
    for number in range(len(footer(body).row_groups)):
        writer.append(footer(body), reader(body), [number])
    writer.close()

    assert read(sink.finish()).equals(rows(0, 100))


def test_files_without_rows_add_nothing():
    empty = parquet(numbers(0, 0))
    none = concatenated(empty)[1]
    done, body = concatenated(empty, none, parquet(numbers(0, 5)), empty)

    assert (meta(empty).num_row_groups, meta(none).num_row_groups) == (1, 0)
    assert (done.rows, done.row_groups) == (5, 1)
    assert read(body).equals(numbers(0, 5))


def test_nothing_but_files_without_rows_is_a_whole_file():
    done, body = concatenated(parquet(numbers(0, 0)))

    assert (done.rows, done.row_groups) == (0, 0)
    assert read(body).equals(numbers(0, 0))
    assert pl.read_parquet(body).shape == (0, 2)


def test_a_file_of_many_row_groups():
    body = parquet(numbers(0, 1000), row_group_size=1, write_page_index=True)
    done, out = concatenated(body, body)

    assert done.row_groups == 2000
    assert read(out)["n"].to_pylist() == [*range(1000), *range(1000)]


def test_concatenating_again_changes_no_row(mixed):
    _, table, body = mixed
    again = concatenated(body, concatenated(body)[1])[1]

    assert read(again).to_pylist() == table.to_pylist() * 2


def test_table_without_columns():
    table = pa.table({"a": [1, 2, 3]}).select([])

    assert read(concatenated(parquet(table), parquet(table))[1]).num_columns == 0


@settings(max_examples=40, deadline=5000)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    group=st.integers(1, 12),
    block=st.integers(1, 5000),
    data=st.data(),
)
def test_any_choice_of_row_groups_is_the_rows_of_those(sizes, group, block, data):
    sink = MemorySink()
    starts = list(itertools.accumulate(sizes, initial=0))
    bodies = [
        parquet(numbers(start, start + size), row_group_size=group, compression=codec, write_page_index=size % 2 == 0)
        for start, size, codec in zip(starts, sizes, itertools.cycle(CODECS), strict=False)
    ]
    writer = ConcatWriter(sink, footer(bodies[0]), block_bytes=block)
    expected = []
    for body, start, size in zip(bodies, starts, sizes, strict=False):
        count = meta(body).num_row_groups
        chosen = data.draw(st.lists(st.integers(0, count - 1), unique=True))
        writer.append(footer(body), reader(body), chosen)
        for number in chosen:
            expected += range(start + number * group, min(start + (number + 1) * group, start + size))
    done = writer.close()

    assert read(sink.finish())["n"].to_pylist() == expected
    assert done.rows == len(expected)


def by_duckdb(table, path, options):
    with duckdb.connect() as connection:
        connection.register("rows", table)
        connection.execute(f"COPY rows TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE 2048{options})")


def by_polars(table, path, _):
    pl.from_arrow(table).write_parquet(path, row_group_size=1500)


def by_fastparquet(table, path, _):
    fastparquet.write(str(path), table.drop(["list"]).to_pandas(), row_group_offsets=2000)


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (by_duckdb, ""),
        (by_duckdb, ", PARQUET_VERSION v2, COMPRESSION zstd"),
        (by_polars, ""),
        (by_fastparquet, ""),
    ],
)
def test_files_of_other_writers_become_one(tmp_path, write, options):
    bodies = []
    for start in (0, 5000):
        span = range(start, start + 5000)
        lists = [[number] * (number % 3) for number in span]
        path = tmp_path / f"{start}.parquet"
        write(numbers(span.start, span.stop).append_column("list", pa.array(lists)), path, options)
        bodies.append(path.read_bytes())
    (tmp_path / "out.parquet").write_bytes(body := concatenated(*bodies)[1])

    assert read(body).to_pylist() == pa.concat_tables([read(each) for each in bodies]).to_pylist()
    assert pl.read_parquet(body).equals(pl.concat([pl.read_parquet(each) for each in bodies]))
    with duckdb.connect() as connection:
        select = "SELECT count(*), min(n), max(n) FROM read_parquet(?) WHERE text = 'v3'"
        assert connection.execute(select, [str(tmp_path / "out.parquet")]).fetchone() == (1429, 3, 9999)


# ---- what else is in a file


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


# ---- what readers skip by


def page_index(body):
    """First row and offset of each page, by row group and column."""
    told = footer(body)
    for layout in told.layouts:
        for offset_index, _ in layout.indexes:
            start, length = offset_index
            pages = []
            moved_offset_index(body[start : start + length], lambda offset, pages=pages: pages.append(offset) or offset)
            yield pages


def test_offset_index_names_the_pages(mixed):
    bodies, _, body = mixed
    before = [(each, page) for each in bodies for pages in page_index(each) for page in pages]
    after = [page for pages in page_index(body) for page in pages]

    assert len(before) > len(columns(body))  # several pages in some column chunks
    for (source, old), new in zip(before, after, strict=True):
        assert body[new : new + 40] == source[old : old + 40]


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


def without_bloom_lengths(body):
    return edited(body, column=lambda fields: {field: value for field, value in fields.items() if field != 15})


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


# ---- odd files


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


def test_column_chunks_that_are_shorter_than_told_are_copied_with_what_follows():
    """parquet-mr < 1.2.9 forgot the header of the dictionary page; readers look for up to 100 bytes more."""
    created_by = b"parquet-mr version 1.2.8"
    body = edited(
        parquet(numbers(0, 300)), file=lambda fields: fields | {6: (BINARY, CompactWriter.binary(created_by))}
    )
    short = edited(
        body, column=lambda fields: fields | {7: (6, zigzag(CompactReader(fields[7][1]).integer(6, 6) - 14))}
    )
    moved, kept = concatenated(short, short)[1], footer(short)

    assert kept.short_by_bytes == 100
    assert footer(body.replace(b"1.2.8", b"1.2.9")).short_by_bytes == 0
    group = kept.row_groups[0]
    assert short[group.start : group.end + 14] in moved[: footer(moved).row_groups[1].start]


# ---- what is refused


def test_another_schema_is_refused():
    with pytest.raises(ValueError, match=r"lake/input\.parquet has another schema"):
        concatenated(parquet(numbers(0, 5)), parquet(rows(0, 5)))


@pytest.mark.parametrize("row_groups", [[1], [-1], [0, 0]])
def test_row_groups_that_are_not_there_are_refused(row_groups):
    with pytest.raises(ValueError, match="has 1 row groups"):
        concatenated(parquet(numbers(0, 5)), row_groups=row_groups)


def test_a_file_that_is_closed_or_abandoned_takes_no_more():
    body = parquet(numbers(0, 5))
    for end in (ConcatWriter.close, ConcatWriter.abandon):
        sink = MemorySink()
        writer = ConcatWriter(sink, footer(body))
        end(writer)
        size = sink.tell()
        writer.abandon()
        for use in (writer.close, lambda writer=writer: writer.append(footer(body), reader(body))):
            with pytest.raises(ValueError, match="closed"):
                use()
        assert sink.tell() == size


def test_more_row_groups_than_can_be_numbered_are_refused(monkeypatch):
    monkeypatch.setattr("datalake_assets.parquet.concat.MAX_ROW_GROUPS", 5)
    body = parquet(numbers(0, 6), row_group_size=2)

    with pytest.raises(ValueError, match="at most 5 row groups"):
        concatenated(body, body)


def test_a_damaged_file_leaves_the_writer_as_it_was():
    good, bad = (
        parquet(numbers(0, 10), write_page_index=True),
        bytearray(parquet(numbers(10, 20), write_page_index=True)),
    )
    index = footer(bytes(bad)).layouts[0].indexes[0][0]
    bad[index.offset : index.offset + index.length] = b"\xff" * index.length
    sink = MemorySink()
    writer = ConcatWriter(sink, footer(good))
    writer.append(footer(good), reader(good))
    with pytest.raises(UnreadableFile, match=r"lake/input\.parquet: it is damaged"):
        writer.append(footer(bytes(bad)), reader(bytes(bad)))
    with pytest.raises(UnreadableFile, match="it ends before"):
        writer.append(footer(good), reader(good[:100]))
    writer.append(footer(good), reader(good))
    done = writer.close()

    assert done.rows == 20
    assert read(sink.finish())["n"].to_pylist() == [*range(10), *range(10)]


def test_a_sink_that_failed_is_not_written_to_again():
    """Nobody knows how much of a block it has taken: offsets would be wrong from there on."""
    body = parquet(numbers(0, 10))
    sink = MemorySink(fail_after=4)
    writer = ConcatWriter(sink, footer(body))
    with pytest.raises(OSError, match="disk full"):
        writer.append(footer(body), reader(body))
    for use in (writer.close, lambda: writer.append(footer(body), reader(body))):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_offset_index_that_points_elsewhere_is_damaged():
    def refuse(offset):
        raise MalformedThrift(str(offset))

    with pytest.raises(MalformedThrift):
        moved_offset_index(b"\x19\x1c\x16\x08\x15\x02\x16\x00\x00\x00", refuse)
    with pytest.raises(MalformedThrift, match="more follows"):
        moved_offset_index(b"\x00\x00", int)


# ---- cost


def test_memory_is_a_few_blocks():
    body = parquet(pa.table({"n": range(2_000_000)}), use_dictionary=False, compression="none")
    told = footer(body)

    class Nowhere(MemorySink):
        def write(self, data):
            return len(data)

    tracemalloc.start()
    try:
        writer = ConcatWriter(Nowhere(), told)
        for _ in range(10):
            writer.append(told, lambda offset, length: body[offset : offset + length])
        assert writer.size_bytes > 150_000_000
        writer.close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 20_000_000


# ---- copies that the store makes


@pytest.mark.s3
@pytest.mark.parametrize("verify", [True, False])
def test_s3_copies_row_groups_itself(s3_store, verify):
    table = pa.table({"n": range(1_500_000)})
    body = parquet(table, use_dictionary=False, compression="none", row_group_size=500_000, write_page_index=True)
    etag = s3_store.put("source.parquet", body)
    told = footer(body)
    with s3_store.stage("streams/s/out.parquet") as sink:
        writer = ConcatWriter(sink, told)
        for _ in range(2):
            writer.append(told, reader(body), server_side=ServerSide("source.parquet", etag, verify=verify))
        done = writer.close()
        s3_store.publish(sink.finish())
    out = s3_store.get("streams/s/out.parquet")[0]

    assert read(out)["n"].to_pylist() == [*range(1_500_000)] * 2
    assert done.size_bytes == len(out) == writer.size_bytes
    assert done.checksum == ("xxh3-128:" + xxhash.xxh3_128(out).hexdigest() if verify else "")


@pytest.mark.s3
def test_s3_does_not_copy_what_has_changed(s3_store):
    body = parquet(numbers(0, 10))
    etag = s3_store.put("source.parquet", body)
    s3_store.put("source.parquet", parquet(numbers(0, 11)))
    with s3_store.stage("streams/s/out.parquet") as sink:
        writer = ConcatWriter(sink, footer(body))
        with pytest.raises(PreconditionFailed):
            writer.append(footer(body), reader(body), server_side=ServerSide("source.parquet", etag))
        with pytest.raises(ValueError, match="closed"):
            writer.close()


def test_a_sink_that_cannot_copy_is_written_to(tmp_path):
    store = open_store(str(tmp_path))
    body = parquet(numbers(0, 10))
    with store.stage("x.parquet") as sink:
        assert not isinstance(sink, RangeCopier)
        writer = ConcatWriter(sink, footer(body))
        writer.append(footer(body), reader(body), server_side=ServerSide("source.parquet", "etag", verify=False))
        done = writer.close()
        store.publish(sink.finish())

    assert done.checksum
    assert read(store.get("x.parquet")[0]).equals(numbers(0, 10))
