"""Files of others whose row groups decode to far more than their size are scanned in pieces, with the same answers."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from datalake_assets.lake import scan
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.adopted.adopted_folder import parquet_bytes, rows
from datalake_assets_tests.lake.sql_answers import run_sql

LONG = "".join(chr(97 + place * 7 % 26) for place in range(2000))
MIB, ROWS = 1 << 20, 300_000


def constant(count):
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int8()), pa.array([LONG]))


def dense():
    """Half a gigabyte in a few hundred kilobytes."""
    columns = {"id": range(ROWS), "note": constant(ROWS)}
    return parquet_bytes(columns, row_group_size=ROWS, store_schema=False)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"columns": ["id"]},
        {"columns": ["region", "note"]},
        {"where": ds.field("id") > 2},
        {"where": ds.field("region") == "5", "columns": ["id"]},
        {"where": ds.field("note").is_null()},
        {"partitions": ["region=5"]},
    ],
    ids=repr,
)
def test_scan_in_pieces_gives_what_a_scan_gives(store, folder, asked, monkeypatch):
    folder.write("0.parquet", [1, 2], region=["north", None], note=["a", "b"])
    folder.write("1.parquet", pa.array([3], pa.int32()))
    folder.write("region=5/0.parquet", [4, 5], note=pa.array(["c", None]).dictionary_encode())
    folder.write("region=5/1.parquet", [6], region=["overruled"])
    folder.write("region=__HIVE_DEFAULT_PARTITION__/0.parquet", [7])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    expected = rows(table, **asked)

    monkeypatch.setattr(scan, "DENSE_BYTES", 0)

    assert rows(table, **asked) == expected
    assert table.scan(**asked).schema == table.scan(**asked).read_all().schema


def test_batches_of_a_tiny_file_that_decodes_to_hundreds_of_megabytes_are_small(store, folder):
    folder.put("0.parquet", dense())
    folder.write("1.parquet", [ROWS], note=["short"])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)

    before, most, count = pa.total_allocated_bytes(), 0, 0
    for batch in table.scan():
        count += batch.num_rows
        most = max(most, pa.total_allocated_bytes() - before)

    assert count == ROWS + 1
    assert most < 250 * MIB


def late(long):
    """Half a gigabyte behind rows that are short: the first ones say nothing of it."""
    places = pa.array([0] * 50_000 + [1] * 250_000, pa.int8())
    short = pa.array([long[:1]], pa.array([long]).type)
    return pa.DictionaryArray.from_arrays(places, pa.concat_arrays([short, pa.array([long])]))


def late_lists():
    return pa.ListArray.from_arrays(pa.array(range(300_001), pa.int32()), late(LONG.encode()))


@pytest.mark.parametrize("column", [late(LONG), late_lists()], ids=["texts", "lists of binary"])
def test_batches_of_a_file_whose_long_values_come_late_are_small(store, folder, column):
    folder.put("0.parquet", parquet_bytes({"id": range(ROWS), "note": column}, row_group_size=ROWS, store_schema=False))
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)

    before, most, count = pa.total_allocated_bytes(), 0, 0
    for batch in table.scan():
        count += batch.num_rows
        most = max(most, pa.total_allocated_bytes() - before)

    assert count == ROWS
    assert most < 250 * MIB


def test_query_and_rules_over_a_tiny_file_that_decodes_to_hundreds_of_megabytes_take_little_memory(store, folder):
    folder.put("0.parquet", dense())
    feed = adopt(store, folder.uri, "clicks").feed
    with duckdb.connect() as connection:
        connection.register("data", open_table(store, feed).snapshot().dataset())
        before, most = pa.total_allocated_bytes(), 0
        reader = connection.sql("select id, length(note) as long from data where id >= 10").to_arrow_reader(1000)
        for batch in reader:
            most = max(most, pa.total_allocated_bytes() - before)
            assert set(batch["long"].to_pylist()) == {2000}
    assert most < 250 * MIB
    assert run_sql(store, [feed], "select count(*), max(id) from clicks").rows == ((ROWS, ROWS - 1),)
