"""Who gives a column that paths name and files have, too: a file's own path, else the file; and whose schema counts."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pytest

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.pruning import PartitionColumns
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.adopted.adopted_folder import ids, parquet_bytes
from datalake_assets_tests.lake.sql_answers import run_sql

pytestmark = pytest.mark.one_case_on_s3

FORCE = CompactionRequest(force=True)


def by_id(table) -> dict[object, object]:
    return {row["id"]: row["region"] for row in table.scan().read_all().to_pylist()}


CASES = {
    "text": (["north"], pa.string(), {1: "north", 2: "5", 3: "5"}),
    "integers": (pa.array([7], pa.int64()), pa.int64(), {1: 7, 2: 5, 3: 5}),
    "small integers": (pa.array([7], pa.int8()), pa.int32(), {1: 7, 2: 5, 3: 5}),
    "floats": ([7.5], pa.float64(), {1: 7.5, 2: 5.0, 3: 5.0}),
    "dates": ([dt.date(2025, 1, 1)], pa.string(), {1: "2025-01-01", 2: "5", 3: "5"}),
    "dictionaries": (pa.array(["north"]).dictionary_encode(), pa.string(), {1: "north", 2: "5", 3: "5"}),
    "structs": ([{"a": 1}], pa.struct([("a", pa.int64())]), {1: {"a": 1}, 2: None, 3: None}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
def test_column_of_files_and_of_paths_is_given_by_each_files_path_else_by_the_file(store, folder, case, at_once):
    values, kind, expected = CASES[case]
    folder.write("0.parquet", [1], region=values)
    folder.write("1.parquet", [11], region=values)
    if not at_once:
        feed = adopt(store, folder.uri, "clicks").feed
        assert set(by_id(open_table(store, feed))) == {1, 11}
    folder.write("region=5/0.parquet", [2])
    folder.write("region=5/1.parquet", [3], region=["a column of the file that its own path overrules"])
    adoption = adopt(store, folder.uri, "clicks")
    table = open_table(store, adoption.feed)
    expected = {**expected, 11: expected[1]}

    assert adoption.found.left_out == []
    assert table.scan().schema.field("region").type == kind
    assert by_id(table) == expected
    answer = run_sql(store, [table.feed], "select id, region from clicks order by id")
    assert dict(answer.rows) == expected
    assert run_sql(store, [table.feed], "select count(id) from clicks").rows == ((4,),)
    for key in table.partitions():
        assert table.compact(key, FORCE).files_after == 1
    assert by_id(open_table(store, adoption.feed)) == expected
    assert list(table.verify(deep=True)) == []


def test_values_that_need_more_room_widen_the_column(store, folder):
    folder.write("0.parquet", [1], region=pa.array([7], pa.int32()))
    folder.write("region=5000000000/0.parquet", [2])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)

    assert by_id(table) == {1: 7, 2: 5_000_000_000}


@pytest.mark.parametrize("digits", ["\u0665", "\uff15"], ids=["Arabic", "wide"])
def test_digits_that_arrow_does_not_read_stay_text(store, folder, digits):
    folder.write(f"region={digits}/0.parquet", [1])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)

    assert by_id(table) == {1: digits}


def test_names_of_paths_that_differ_only_in_case_are_one_column(store, folder):
    """SQL takes them for one: a query by the second one's name found no row."""
    folder.write("Region=5/0.parquet", [1])
    folder.write("region=6/0.parquet", [2])
    folder.write("REGION=7/0.parquet", [3])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)

    (column,) = set(table.scan().schema.names) - {"id"}
    assert {row["id"]: row[column] for row in table.scan().read_all().to_pylist()} == {1: 5, 2: 6, 3: 7}
    for region, number in ((5, 1), (6, 2), (7, 3)):
        assert run_sql(store, [table.feed], f"select id from clicks where region = {region}").rows == ((number,),)  # noqa: S608


def test_a_path_states_the_column_that_files_spell_otherwise(store, folder):
    folder.write("region=5/0.parquet", [1], Region=pa.array([9], pa.int64()))
    folder.write("region=6/0.parquet", [2])
    folder.write("0.parquet", [3], Region=pa.array([7], pa.int64()))
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)

    assert {row["id"]: row["Region"] for row in table.scan().read_all().to_pylist()} == {1: 5, 2: 6, 3: 7}
    for region, number in ((5, 1), (6, 2), (7, 3), (9, None)):
        found = run_sql(store, [table.feed], f"select id from clicks where region = {region}").rows  # noqa: S608
        assert found == (((number,),) if number else ())


@pytest.mark.parametrize(
    ("own", "texts", "kind"),
    [
        (None, ["1", "2"], pa.int32()),
        (None, ["1", "x"], pa.string()),
        (pa.date32(), ["2025-01-01"], pa.date32()),
        (pa.date32(), ["2025-01-01", "__HIVE_DEFAULT_PARTITION__"], pa.date32()),
        (pa.timestamp("us"), ["2025-01-01 00%3A00%3A00"], pa.timestamp("us")),
        (pa.bool_(), ["true"], pa.bool_()),
        (pa.bool_(), ["5"], pa.string()),
        (pa.decimal128(9, 2), ["5"], pa.decimal128(9, 2)),
        (pa.uint8(), ["300"], pa.string()),
        (pa.string(), ["05"], pa.string()),
        (pa.null(), ["5"], pa.int32()),
        (pa.list_(pa.int64()), ["5"], pa.list_(pa.int64())),
    ],
)
def test_type_of_a_column_that_both_have(own, texts, kind):
    schema = pa.schema([("c", own)] if own is not None else [])
    columns = PartitionColumns(schema, [f"c={text}" for text in texts], inferred=True)

    assert columns.schema == pa.schema([("c", kind)])
    for text in texts:
        assert columns.expression(f"c={text}") is not None


# ---- whose schema counts


def test_files_without_rows_do_not_outvote_those_with_rows(store, folder):
    for number in range(5):
        folder.put(f"empty{number}.parquet", parquet_bytes({"id": pa.array([], pa.string())}))
    folder.write("a.parquet", [1])

    adoption = adopt(store, folder.uri, "clicks")

    assert {each.name for each in adoption.found.left_out} == {f"empty{number}.parquet" for number in range(5)}
    assert ids(open_table(store, adoption.feed)) == [1]


def test_files_without_rows_that_came_first_give_way(store, folder):
    for number in range(3):
        folder.put(f"empty{number}.parquet", parquet_bytes({"id": pa.array([], pa.string())}))
    adopt(store, folder.uri, "clicks")
    folder.write("a.parquet", [1])
    folder.write("b.parquet", [2])

    adoption = adopt(store, folder.uri, "clicks")

    assert {each.name for each in adoption.found.left_out} == {f"empty{number}.parquet" for number in range(3)}
    table = open_table(store, adoption.feed)
    assert ids(table) == [1, 2]
    assert table.compact(".", FORCE).rows == 2
    folder.write("c.parquet", ["text"])
    assert [each.name for each in adopt(store, folder.uri, "clicks").found.left_out][:1] == ["c.parquet"]


def test_rows_decide_in_a_merge_too(store, folder):
    """Files whose types a scan can read as one may still not fit into one file."""
    folder.write("a.parquet", [1])
    folder.write("b.parquet", [2])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    for number in range(5):
        folder.put(f"empty{number}.parquet", parquet_bytes({"id": pa.array([], pa.string())}))

    report = table.compact(".", FORCE)

    assert (report.files_compacted, report.rows) == (2, 2)
    assert {each.name for each in report.skipped if each.unusable} == {f"empty{number}.parquet" for number in range(5)}
