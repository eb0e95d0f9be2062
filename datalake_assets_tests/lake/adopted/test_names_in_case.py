"""Names of columns that differ only in case: one column where it is clear which is meant, else left alone and named."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.sql_views import show
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.adopted.adopted_folder import parquet_bytes

pytestmark = pytest.mark.one_case_on_s3

FORCE = CompactionRequest(force=True)


def sql(table, query):
    with duckdb.connect() as connection:
        show(connection, "clicks", table.snapshot().dataset())
        return connection.execute(query).fetchall()


@pytest.fixture
def mixed(store, folder):
    """Three files say ``ID``, one ``id`` and one ``iD``."""
    for number, name in enumerate(["ID", "ID", "id", "iD", "ID"]):
        kind = pa.int32() if name == "id" else pa.int64()
        folder.put(f"{number}.parquet", parquet_bytes({name: pa.array([number], kind), "v": [f"v{number}"]}))
    adoption = adopt(store, folder.uri, "clicks")
    assert adoption.found.left_out == []
    return open_table(store, adoption.feed)


def test_a_column_is_read_however_files_spell_it(mixed):
    assert sorted(mixed.scan().read_all().to_pydict()["ID"]) == [0, 1, 2, 3, 4]
    assert mixed.scan().schema.names == ["ID", "v"]
    assert sql(mixed, "select id, v from clicks order by v") == [(n, f"v{n}") for n in range(5)]
    assert sql(mixed, "select * from clicks where iD = 2") == [(2, "v2")]
    assert sql(mixed, "select count(*), count(ID) from clicks") == [(5, 5)]


def test_filters_and_projections_see_every_spelling(mixed):
    few = mixed.scan(columns=["v"], where=pc.field("ID") >= 2).read_all()
    assert (few.schema.names, sorted(few["v"].to_pylist())) == (["v"], ["v2", "v3", "v4"])


def test_only_files_of_one_spelling_are_merged_and_rows_stay_what_they_are(mixed, folder):
    report = mixed.compact(".", FORCE)

    assert (report.files_before, report.files_after) == (5, 3)
    assert all("differ only in case" in left.reason for left in report.skipped if left.unusable)
    assert sql(mixed, "select id, v from clicks order by v") == [(n, f"v{n}") for n in range(5)]
    assert list(mixed.verify(deep=True)) == []


def test_a_spelling_that_comes_later_joins_and_stays(mixed, store, folder):
    folder.put("5.parquet", parquet_bytes({"Id": [5], "v": ["v5"]}))
    mixed.repair()
    folder.put("6.parquet", parquet_bytes({"id": [6], "v": ["v6"], "more": [True]}))
    mixed.repair()

    assert sql(mixed, "select id from clicks order by v") == [(n,) for n in range(7)]
    assert sql(mixed, "select id from clicks where more") == [(6,)]
    drifts = {part for drift in mixed.snapshot().footers(".").drifts for part in drift.what.split("; ")}
    assert drifts == {"has no column 'more'", "'id' is int32, not int64"}


def test_a_file_in_which_it_is_not_clear_is_left_out_and_named(store, folder):
    for number in range(2):
        folder.put(f"{number}.parquet", parquet_bytes({"id": [number]}))
    folder.put("both.parquet", parquet_bytes({"ID": [8], "id": [9]}))
    adoption = adopt(store, folder.uri, "clicks")

    (left,) = adoption.found.left_out
    assert left.name == "both.parquet"
    assert "'ID' or 'id' differ only in case" in left.reason
    assert sql(open_table(store, adoption.feed), "select id from clicks order by id") == [(0,), (1,)]


def test_files_that_have_both_are_read_and_not_merged(store, folder):
    for number in range(3):
        folder.put(f"{number}.parquet", parquet_bytes({"ID": [number], "id": [-number]}))
    adoption = adopt(store, folder.uri, "clicks")
    table = open_table(store, adoption.feed)

    assert sorted(table.scan().read_all().to_pydict()["ID"]) == [0, 1, 2]
    report = table.compact(".", FORCE)
    assert report.files_after == 3
    named = {left.reason for left in report.skipped if left.unusable}
    assert named == {"columns 'ID' and 'id' differ only in case, which many readers ignore"}


def test_fields_of_structs_that_differ_in_case_are_left_out_and_named(store, folder):
    for number, name in enumerate(["x", "x", "X"]):
        folder.put(f"{number}.parquet", parquet_bytes({"s": [{name: number}]}))
    adoption = adopt(store, folder.uri, "clicks")

    (left,) = adoption.found.left_out
    assert (left.name, left.reason) == (
        "2.parquet",
        "fields of column 's' 'X' and 'x' differ only in case, which many readers ignore",
    )
