"""Concatenated files hold the rows of their inputs, all or those chosen, for every reader."""

from __future__ import annotations

import itertools
import tracemalloc

import duckdb
import fastparquet
import polars as pl
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake_assets.parquet.concat import ConcatWriter
from datalake_assets_tests.parquet.parquet_files import (
    CODECS,
    EXTRAS,
    concatenated,
    footer,
    meta,
    numbers,
    parquet,
    read,
    reader,
    rows,
)
from datalake_assets_tests.parquet.sinks import MemorySink


def test_close_says_what_was_written():
    done, body = concatenated(parquet(numbers(0, 100), row_group_size=40), parquet(numbers(100, 150)))

    assert (done.file.rows, done.row_groups, done.file.size_bytes) == (150, 4, len(body))
    assert done.file.checksum == "xxh3-128:" + xxhash.xxh3_128(body).hexdigest()
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

    assert (done.file.rows, done.row_groups) == (30, 3)
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
    assert (done.file.rows, done.row_groups) == (5, 1)
    assert read(body).equals(numbers(0, 5))


def test_nothing_but_files_without_rows_is_a_whole_file():
    done, body = concatenated(parquet(numbers(0, 0)))

    assert (done.file.rows, done.row_groups) == (0, 0)
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


@settings(max_examples=40)
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
    assert done.file.rows == len(expected)


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
