"""What footers state is looked up once, and is what Arrow says of them."""

from __future__ import annotations

import gc
import io
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.native_library import SWITCH
from datalake_assets.parquet import decodable, decoding, inputs
from datalake_assets.parquet.segments import sized_pieces
from datalake_assets.parquet.stated import stated_of
from datalake_assets_tests.parquet.test_rewrite import SETTINGS, encoded, events, input_file, read, rewritten

TABLE = pa.table(
    {
        "few": pa.array(["a", "b", None] * 40),
        "fixed": pa.array([b"0123456789abcdef"] * 120, pa.binary(16)),
        "nested": pa.array([[{"x": row, "y": f"{row}"}] for row in range(120)]),
        "plain": pa.array([float(row) for row in range(120)]),
    }
)


def options(**more):
    return {"row_group_size": 50, "use_dictionary": ["few"], "bloom_filter_options": {"plain": {"ndv": 120}}, **more}


@pytest.mark.parametrize("more", [{}, {"use_dictionary": True}, {"compression": "zstd"}], ids=repr)
def test_what_is_stated_is_what_arrow_says(more):
    metadata = pq.read_metadata(io.BytesIO(encoded(TABLE, **options(**more))))

    stated = stated_of(metadata)

    assert stated.rows == 120
    assert [group.rows for group in stated.groups] == [50, 50, 20]
    leaves = [metadata.schema.column(place) for place in range(len(metadata.schema))]
    assert [column.path for column in stated.columns] == [leaf.path for leaf in leaves]
    assert [column.is_repeated for column in stated.columns] == [leaf.max_repetition_level > 0 for leaf in leaves]
    assert [column.width for column in stated.columns] == [None, 16, 8, None, 8]
    for number, group in enumerate(stated.groups):
        assert group.plain_bytes == metadata.row_group(number).total_byte_size
        for place, chunk in enumerate(group.chunks):
            theirs = metadata.row_group(number).column(place)
            assert chunk.path == theirs.path_in_schema
            assert (chunk.values, chunk.plain_bytes) == (theirs.num_values, theirs.total_uncompressed_size)
            assert chunk.size_bytes == theirs.total_compressed_size
            assert chunk.dictionary == (theirs.dictionary_page_offset or 0)
            assert chunk.encodings in (theirs.encodings, ())
            assert chunk.encodings or (chunk.dictionary and stated.columns[place].width)
            assert chunk.has_bloom == (theirs.bloom_filter_offset is not None) == (chunk.path == "plain")


def test_file_after_file_of_another_schema_is_told_by_its_own():
    for table in (TABLE, TABLE.select(["plain"]), TABLE):
        stated = stated_of(pq.read_metadata(io.BytesIO(encoded(table))))
        assert stated.columns[-1].path == "plain"
        assert len(stated.columns) == (5 if table is TABLE else 1)


def test_row_group_that_lacks_a_column_is_an_error(monkeypatch):
    class Group:
        num_columns = 4

    class Metadata:
        schema = pq.read_metadata(io.BytesIO(encoded(TABLE))).schema
        num_row_groups, num_rows = 1, 120

        @staticmethod
        def row_group(_):
            return Group()

    monkeypatch.setattr("datalake_assets.parquet.stated.schema_of", lambda metadata: metadata.schema)

    with pytest.raises(OSError, match="4 column chunks for 5 columns"):
        stated_of(Metadata())


def test_footer_of_a_small_file_that_is_decoded_is_gone_through_once(monkeypatch):
    monkeypatch.setenv("DATALAKE_NATIVE", "0")
    looks = []

    def counted(metadata):
        looks.append(metadata.num_rows)
        return stated_of(metadata)

    for module in (decodable, decoding, inputs):
        monkeypatch.setattr(module, "stated_of", counted)
    tables = [events(20 * number, 20, text=pa.array(["text"] * 20)) for number in range(30)]

    result = rewritten([input_file(f"f{number}", encoded(table)) for number, table in enumerate(tables)], SETTINGS)

    assert read(result).equals(pa.concat_tables(tables))
    assert len(looks) == 1 + len(tables)  # the first file is opened for its schema, too


@pytest.mark.parametrize("limit_bytes", [1, 100, 10_000, 1 << 20])
@pytest.mark.parametrize("begin", [0, 3_000], ids=["whole", "slice"])
def test_pieces_have_all_rows_and_say_what_they_take(begin, limit_bytes):
    table = pa.table({"n": pa.array(range(4_000)), "s": pa.array(["text"] * 4_000)}).slice(begin)

    found = list(sized_pieces(table, limit_bytes))

    assert pa.concat_tables(piece for piece, _ in found).equals(table)
    for piece, size_bytes in found:
        assert piece.nbytes <= max(limit_bytes, 40)
        assert 0.7 * piece.nbytes <= size_bytes <= max(1.3 * piece.nbytes, 120_000 if limit_bytes == 1 << 20 else 40)
    assert list(sized_pieces(table.slice(0, 0), limit_bytes)) == []


@pytest.mark.parametrize("kernel", ["auto", "reencode", "concat"])
@pytest.mark.parametrize("is_native", ["0", "1"])
def test_footers_go_with_their_files_though_nobody_looks_for_garbage(monkeypatch, kernel, is_native):
    monkeypatch.setenv(SWITCH, is_native)
    tables = [events(start, 40, name=[f"n{row}" for row in range(40)]) for start in range(0, 1200, 40)]
    gc.collect()
    gc.disable()
    try:
        before = footers()
        result = rewritten(
            [input_file(f"f{index}", encoded(table)) for index, table in enumerate(tables)],
            replace(SETTINGS, kernel=kernel),
        )

        assert read(result).num_rows == 1200
        assert footers() - before < 10
    finally:
        gc.enable()


def footers():
    return sum(isinstance(each, pq.FileMetaData) for each in gc.get_objects())
