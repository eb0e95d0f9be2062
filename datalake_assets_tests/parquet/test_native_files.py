"""What the native kernel makes of files of others, and what its own files say of themselves."""

from __future__ import annotations

import io
import itertools
import threading

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from datalake_assets.parquet.native import Cancel, MergeOptions, Part, Refusal, Refused
from datalake_assets.parquet.pages import walk_pages
from datalake_assets.parquet.thrift import varint
from datalake_assets.parquet.writer import ParquetFileWriter, ParquetSettings
from datalake_assets_tests.parquet.parquet_files import footer, parquet, read, reader
from datalake_assets_tests.parquet.sinks import MemorySink
from datalake_assets_tests.parquet.test_concat_indexes import page_index
from datalake_assets_tests.parquet.test_native import decoded, kernel, merged, small

__all__ = ["kernel"]


def _duckdb(table, path):
    with duckdb.connect() as connection:
        connection.register("given", table)
        connection.table("given").write_parquet(str(path), compression="zstd")
    return path.read_bytes()


def _polars(table, path):
    pl.from_arrow(table).write_parquet(path)
    return path.read_bytes()


def _pandas(table, path):
    table.to_pandas().to_parquet(path)
    return path.read_bytes()


def _ours(table, path):
    sink = MemorySink()
    writer = ParquetFileWriter(sink, table.schema, ParquetSettings(), time_column="at")
    writer.write(table)
    writer.close({"datalake.commit_id": path.name})
    return bytes(sink.finish())


@pytest.mark.parametrize("nulls", [0.0, 0.5])
def test_pages_have_their_least_size_or_all_of_their_column(kernel, nulls):
    """Readers pay for every page: twenty thousand rows of a column of few values are ten kilobytes."""
    random = np.random.default_rng(3)

    def column(values):
        return pa.array(values, mask=random.random(len(values)) < nulls)

    tables = [
        pa.table(
            {
                "number": column(random.integers(0, 1 << 60, 3000)),
                "flag": column(random.random(3000) < 0.5),
                "few": column(random.choice(["a", "b", "c"], 3000)),
                "text": column([f"{number:012}" for number in random.integers(0, 1 << 40, 3000)]),
            }
        )
        for _ in range(20)
    ]
    found = merged(kernel, [parquet(table) for table in tables], copy=False, page_rows=1000)
    assert decoded(found).equals(pa.concat_tables(tables))
    numbers, flags, few, texts = map(len, page_index(bytes(found.view)))
    assert (flags, few) == (1, 1)
    for count, width in ((numbers, 8), (texts, 4 + 12)):
        wanted = 60_000 * (1 - nulls) * width / (64 << 10)
        assert 0.9 * wanted <= count < 1.1 * wanted + 1


@pytest.mark.parametrize("write", [_duckdb, _polars, _pandas, _ours])
def test_files_of_others_merge(kernel, write, tmp_path):
    bodies = [write(small(start), tmp_path / f"{start}.parquet") for start in range(0, 2000, 400)]
    wanted = pa.concat_tables([read(body) for body in bodies]).select(small(0).schema.names).cast(small(0).schema)
    codec = pq.read_metadata(io.BytesIO(bodies[0])).row_group(0).column(0).compression.lower()
    found = merged(kernel, bodies, codec=codec, time_leaf=1)
    assert decoded(found).select(small(0).schema.names).cast(small(0).schema).equals(wanted)
    path = tmp_path / "merged.parquet"
    path.write_bytes(found.view)
    rows = duckdb.execute("SELECT count(*), sum(id), count(session) FROM read_parquet(?)", [str(path)])
    assert rows.fetchall() == [(2000, sum(range(2000)), len(wanted) - wanted["session"].null_count)]
    assert pl.read_parquet(path)["user"].to_list() == wanted["user"].to_pylist()


@pytest.mark.parametrize("codec", ["snappy", "zstd"])
@pytest.mark.parametrize("proven", [True, False])
def test_a_page_of_nulls_alone_whose_nothing_is_called_compressed_is_copied(kernel, codec, proven):
    """parquet-mr leaves nothing to be compressed, and calls it so."""
    count = 2000
    texts = [f"item {number:08} of all that there are, each once" for number in range(2 * count)]
    table = pa.table({"text": pa.array(texts[:count] + [None] * count + texts[count:])})
    how = {"data_page_version": "2.0", "use_dictionary": False, "max_rows_per_page": count, "write_batch_size": count}
    body = parquet(table, compression=codec, **how)
    of_nulls = (
        b"\x15" + varint(2 * count) + b"\x15" + varint(2 * count) + b"\x15" + varint(2 * count)
    )  # values, nulls, rows
    at = body.index(of_nulls) + len(of_nulls) + 6  # after the encoding, and the lengths of the levels
    assert body[at] == 0x12, "is_compressed is false"
    body = body[:at] + b"\x11" + body[at + 1 :]
    assert read(body).equals(table)
    found = kernel.merge([Part(body, proven=proven)] * 2, MergeOptions(codec=codec, page_rows=count))
    assert found.copied_pages >= 3
    assert decoded(found).equals(pa.concat_tables([table, table]))


def test_bloom_filters_are_made_anew(kernel, tmp_path):
    """Each value is found in them, and few others are, by DuckDB."""
    tables = [pa.table({"text": [f"v{number % 40}" for number in range(start, start + 900)]}) for start in (0, 900, 77)]
    bodies = [_duckdb(table, tmp_path / f"{place}.parquet") for place, table in enumerate(tables)]
    assert kernel.check([Part(body) for body in bodies])[0].bloom_leaves
    path = tmp_path / "merged.parquet"
    path.write_bytes(merged(kernel, bodies, codec="zstd").view)

    def excluded(value):
        probe = "SELECT bloom_filter_excludes FROM parquet_bloom_probe(?, 'text', ?)"
        return duckdb.execute(probe, [str(path), value]).fetchall() == [(True,)]

    assert not any(excluded(f"v{number}") for number in range(40))
    assert sum(excluded(f"w{number}") for number in range(200)) > 160
    path.write_bytes(merged(kernel, bodies, codec="zstd", bloom="drop").view)
    assert pq.read_metadata(path).row_group(0).column(0).to_dict().get("bloom_filter_offset") is None
    with pytest.raises(Refused) as refused:
        merged(kernel, bodies, bloom="refuse")
    assert (refused.value.kind, refused.value.index) == (Refusal.UNSUPPORTED, 0)


def test_sorting_is_stated_where_it_still_holds(kernel):
    def sorted_file(start, *, descending=False):
        numbers = sorted(range(start, start + 100), reverse=descending)
        order = [pq.SortingColumn(0, descending)]
        return parquet(pa.table({"n": numbers}), sorting_columns=order)

    def stated(*bodies, **options):
        found = merged(kernel, bodies, **options)
        return pq.read_metadata(pa.BufferReader(found.view)).row_group(0).sorting_columns, found.dropped_sorting

    rising = [pq.SortingColumn(0)]
    assert tuple(stated(sorted_file(0), sorted_file(100), sorted_file(500))[0]) == tuple(rising)
    assert stated(sorted_file(0), sorted_file(99)) == ((), True)  # 99 is in both: a second column could be out of order
    falling = [sorted_file(start, descending=True) for start in (500, 100, 0)]
    assert stated(*falling)[0][0].descending
    assert stated(falling[2], falling[0]) == ((), True)
    assert stated(sorted_file(0), parquet(pa.table({"n": [100]}))) == ((), True)
    assert stated(sorted_file(100), sorted_file(0), time_leaf=0, order="sort") == ((), True)


@pytest.mark.parametrize("copy", [True, False])
def test_statistics_and_page_indexes_are_those_of_the_rows(kernel, copy):
    """Bounds, nulls and places of each page, found by Arrow's reading of the rows."""
    random = np.random.default_rng(5)
    tables = []
    for start in range(0, 6000, 600):
        numbers = np.arange(start, start + 600)
        tables.append(
            pa.table(
                {
                    "id": pa.array(numbers, mask=random.random(600) < 0.1),
                    "ratio": pa.array([[float("nan"), -0.0, 0.0, 2.5][n] for n in random.integers(0, 4, 600)]),
                    "text": pa.array([f"{n * 7919 % 10_007:05}" for n in numbers]),
                    "few": pa.array([["b", "a", None][n] for n in random.integers(0, 3, 600)]),
                }
            )
        )
    found = merged(kernel, [parquet(table) for table in tables], copy=copy, page_rows=1000, page_least_bytes=0)
    assert bool(found.copied_pages) == copy
    rows = pa.concat_tables(tables)
    metadata = pq.read_metadata(pa.BufferReader(found.view))
    walk_pages(footer(found.view), reader(found.view))  # kinds, sizes, values, rows and offset indexes, in Python
    for place, name in enumerate(rows.schema.names):
        column, wanted = metadata.row_group(0).column(place), rows[name]
        assert column.has_column_index or name == "ratio"
        assert column.has_offset_index
        assert column.statistics.null_count == wanted.null_count
        numbers = [value for value in wanted.to_pylist() if value is not None and value == value]  # noqa: PLR0124  NaN
        assert (column.statistics.min, column.statistics.max) == (min(numbers), max(numbers))
    # a filter that reads by page indexes and statistics finds what it should
    table = pq.read_table(pa.BufferReader(found.view), filters=[("text", ">=", "09000")])
    assert table["text"].to_pylist() == rows.filter(pc.greater_equal(rows["text"], "09000"))["text"].to_pylist()


def test_row_groups_can_be_chosen(kernel):
    body = parquet(small(0), row_group_size=100)
    found = kernel.merge([Part(body, row_groups=(1, 2), rows=400), Part(body, row_groups=(0, 1))], MergeOptions())
    assert decoded(found).equals(pa.concat_tables([small(0).slice(100, 200), small(0).slice(0, 100)]))
    with pytest.raises(Refused) as refused:
        kernel.merge([Part(body, row_groups=(3, 2))], MergeOptions())
    assert refused.value.kind is Refusal.CHANGED


def test_key_values_are_the_callers_or_the_same_in_all(kernel):
    bodies = [parquet(pa.table({"n": [n]}, metadata={"batch": str(n)})) for n in (1, 2)]

    def key_values(**options):
        view = merged(kernel, bodies, **options).view
        return pq.read_metadata(pa.BufferReader(view)).metadata

    assert key_values() is None
    assert key_values(key_values={b"a": b"1", b"none": None}) == {b"a": b"1", b"none": b""}
    with pytest.raises(Refused) as refused:
        key_values(key_values=None)
    assert (refused.value.kind, refused.value.index) == (Refusal.DIFFERS, 1)


def test_files_without_rows_or_columns_merge(kernel):
    empty = parquet(small(0).slice(0, 0))
    assert merged(kernel, [empty, empty]).rows == 0
    assert decoded(merged(kernel, [empty, empty])).equals(small(0).slice(0, 0))
    assert decoded(merged(kernel, [empty, parquet(small(0)), empty])).equals(small(0))


def test_a_merge_can_be_cancelled_from_another_thread(kernel):
    bodies = [parquet(small(start)) for start in range(0, 4000, 400)] * 20
    cancel = Cancel()
    cancel.set()
    with pytest.raises(Refused) as refused:
        kernel.merge([Part(body) for body in bodies], MergeOptions(), cancel=cancel)
    assert refused.value.kind is Refusal.CANCELLED
    reasons = []

    def merge_for_ever(cancelled):
        while not reasons:
            try:
                kernel.merge([Part(body) for body in bodies], MergeOptions(), cancel=cancelled)
            except Refused as error:
                reasons.append(error.kind)

    later = Cancel()
    thread = threading.Thread(target=merge_for_ever, args=(later,))
    thread.start()
    later.set()
    thread.join(120)
    assert reasons == [Refusal.CANCELLED]


PLAIN_PAGES = {"compression": "none", "use_dictionary": False, "data_page_version": "2.0", "write_statistics": False}


def _lists_that_do_not_agree():
    """A list whose two columns say otherwise how many entries a row has; in all they have the same number."""

    def body(lengths):
        numbers = iter(range(sum(lengths)))
        entries = [[{"a": number, "b": -number} for number in itertools.islice(numbers, size)] for size in lengths]
        return parquet(pa.table({"at": [1, 4, 3, 2], "entries": entries}), **PLAIN_PAGES)

    def place(of):
        column = pq.read_metadata(pa.BufferReader(of)).row_group(0).column(2)
        return slice(column.data_page_offset, column.data_page_offset + column.total_compressed_size)

    one, other = bytearray(body([2, 1, 1, 2])), body([1, 2, 2, 1])
    assert place(one) == place(other)
    one[place(one)] = other[place(other)]
    return bytes(one)


def _a_list_that_goes_on_without_an_entry():
    """Its first row is null, and has a second entry all the same."""
    whole = parquet(pa.table({"at": [2, 1], "entries": [[5, 6], None]}), **PLAIN_PAGES)
    levels = b"\x03\x0f\x00"  # 3, 3, 0
    assert whole.count(levels) == 1
    return whole.replace(levels, b"\x03\x3c\x00")


@pytest.mark.parametrize("damaged", [_lists_that_do_not_agree(), _a_list_that_goes_on_without_an_entry()])
@pytest.mark.parametrize(("order", "proven"), [("sort", False), ("sort", True), ("keep", False)])
def test_rows_stay_where_they_are_where_lists_do_not_hang_together(kernel, damaged, order, proven):
    """pyarrow reads such files, and other values of a row with other rows before it."""
    readable = pq.read_table(pa.BufferReader(damaged))
    assert decoded(kernel.merge([Part(damaged, proven=True)], MergeOptions(time_leaf=0))).equals(readable)
    before = parquet(readable.slice(0, 1).set_column(0, "at", pa.array([0])), **PLAIN_PAGES)
    for bodies, place in (([damaged], 0), ([damaged, before], 0), ([before, damaged], 1)):
        with pytest.raises(Refused) as refused:
            kernel.merge([Part(body, proven=proven) for body in bodies], MergeOptions(time_leaf=0, order=order))
        assert (refused.value.kind, refused.value.index) == (Refusal.DAMAGED, place)


@pytest.mark.parametrize("kind", ["entries", "nested", "keys"])
def test_rows_with_sound_lists_are_moved_whole(kernel, kind):
    random = np.random.default_rng(5)

    def entry(depth):
        drawn = random.random()
        if drawn < 0.1:
            return None
        below = [entry(depth - 1) for _ in range(random.integers(0, 4))] if depth else None
        return {"a": int(random.integers(9)), "b": None if drawn < 0.3 else [str(drawn)] * int(drawn * 5), "c": below}

    kinds = pa.struct({"a": pa.int64(), "b": pa.list_(pa.string()), "c": pa.list_(pa.null())})
    deep = pa.struct({"a": pa.int64(), "b": pa.list_(pa.string()), "c": pa.list_(kinds)})
    values = {
        "entries": lambda: pa.array([[entry(0)] * random.integers(0, 3) for _ in range(60)], pa.list_(kinds)),
        "nested": lambda: pa.array(
            [None if row % 7 == 0 else [entry(1), entry(1)] for row in range(60)], pa.list_(deep)
        ),
        "keys": lambda: pa.array(
            [[(f"k{each}", [each] * each) for each in range(row % 4)] for row in range(60)],
            pa.map_(pa.string(), pa.list_(pa.int32())),
        ),
    }
    tables = [pa.table({"at": random.permutation(60), kind: values[kind]()}) for _ in range(3)]
    found = merged(kernel, [parquet(table, row_group_size=25) for table in tables], time_leaf=0, order="sort")
    joined = pa.concat_tables(tables)
    assert found.unsorted
    assert decoded(found).equals(joined.take(pc.sort_indices(joined["at"])))
