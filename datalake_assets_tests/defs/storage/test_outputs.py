"""What assets of anybody's project return lands in a real lake, and replaces what was there, exactly."""

from collections.abc import Iterator

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from datalake_assets.defs.resources import Lake, LakeResource
from datalake_assets.defs.storage.io_manager import ParquetLakeIOManager
from datalake_assets.settings import Settings
from datalake_assets_tests.defs.storage.made import (
    D1,
    D2,
    D3,
    DAILY,
    EXPECTED_WARNINGS,
    TIMED,
    asset,
    daily,
    downstream,
    frame,
    ids,
    materialization,
    span,
    values,
)

pytestmark = EXPECTED_WARNINGS


@pytest.mark.parametrize(
    "made",
    [
        pd.DataFrame({"id": [1, 2]}),
        pa.table({"id": [1, 2]}),
        pa.record_batch({"id": [1, 2]}),
        pl.DataFrame({"id": [1, 2]}),
        lambda _: pa.table({"id": [1, 2]}).to_reader(),
    ],
    ids=["pandas", "table", "batch", "polars", "reader"],
)
def test_every_kind_of_frame_lands_with_the_same_rows_and_columns(run, rows, lake, made):
    assert run(daily(made), partition_key=D1) is None

    assert rows("orders") == [{"id": 1}, {"id": 2}]
    assert lake.table(lake.registry.get("orders")).scan(columns=["id"]).schema == pa.schema([("id", pa.int64())])


def test_reader_is_streamed_in_bounded_memory(run, rows, lake):
    held: list[int] = []

    def batches() -> Iterator[pa.RecordBatch]:
        for number in range(60):
            held.append(pa.total_allocated_bytes())
            yield pa.record_batch({"id": pa.array(range(number << 17, number + 1 << 17), pa.int64())})

    schema = pa.schema([("id", pa.int64())])
    assert run(daily(lambda _: pa.RecordBatchReader.from_batches(schema, batches())), partition_key=D1) is None

    table = lake.table(lake.registry.get("orders"))
    assert table.report(D1).rows == 60 << 17
    assert max(held[20:]) < max(held[:20]) * 1.5, "memory grows with the rows"


def test_types_of_libraries_become_the_same_types_of_the_lake(run, lake):
    made = {
        D1: pd.DataFrame({"t": pd.Categorical(["x"]), "z": pd.to_datetime(["2026-01-01T12:00+02:00"]), "n": [1.5]}),
        D2: pl.DataFrame({"t": ["x"], "z": ["2026-01-02T10:00:00Z"], "n": [1.5]}).with_columns(
            pl.col("z").str.to_datetime(time_unit="ms", time_zone="UTC"), pl.col("t").cast(pl.Categorical)
        ),
        D3: pa.table(
            {"t": pa.array(["x"], pa.large_string()), "z": pa.array([0], pa.timestamp("s", "UTC")), "n": [1.5]}
        ),
    }
    assert run(daily(made), **span(D1, D3)) is None

    table = lake.table(lake.registry.get("orders"))
    assert table.scan(columns=["t", "z", "n"]).schema == pa.schema(
        [("t", pa.string()), ("z", pa.timestamp("us", "UTC")), ("n", pa.float64())]
    )


def test_named_index_becomes_columns_and_an_unnamed_one_does_not(run, rows):
    named = pd.DataFrame({"id": [1], "region": ["eu"]}).set_index("region")
    left = pd.DataFrame({"id": [1, 2, 3]}).query("id > 2")

    assert run(daily({D1: named, D2: left.assign(region="us")}), **span(D1, D2)) is None

    assert rows("orders") == [{"region": "eu", "id": 1}, {"region": "us", "id": 3}]


def test_partition_that_runs_again_is_replaced_exactly(run, rows, lake):
    for made in (frame(1, 2), frame(1, 2), frame(3)):
        assert run(daily(made), partition_key=D1) is None
    assert run(daily(frame(9)), partition_key=D2) is None

    assert ids(rows("orders")) == [3, 9]
    assert ids(rows("orders", partitions=[D1])) == [3]
    assert list(lake.table(lake.registry.get("orders")).verify(deep=True)) == []


def test_partition_that_returns_no_rows_is_emptied(run, rows, lake):
    assert run(daily(frame(1, 2)), partition_key=D1) is None
    for empty in (frame().iloc[:0], pd.DataFrame(), pa.table({"id": pa.array([], pa.int64())})):
        assert run(daily(empty), partition_key=D1) is None

    assert rows("orders") == []
    assert lake.table(lake.registry.get("orders")).report(D1).files == 0


def test_run_of_many_partitions_is_split_by_the_time_column(run, rows, instance):
    made = pd.concat([frame(1, day=D1), frame(2, 3, day=D2), frame(4, day=D3)])

    assert run(daily(made, metadata=TIMED), **span(D1, D3)) is None
    assert run(daily(made[made["id"] != 3], metadata=TIMED), **span(D1, D3)) is None

    assert [ids(rows("orders", partitions=[key])) for key in (D1, D2, D3)] == [[1], [2], [4]]
    events = instance.fetch_materializations(dg.AssetKey("orders"), limit=6).records
    counts = {
        (each.partition_key, each.asset_materialization.metadata["dagster/partition_row_count"].value)
        for each in events
    }
    assert counts == {(D1, 1), (D2, 2), (D2, 1), (D3, 1)}


def test_run_of_many_partitions_takes_a_frame_for_each(run, rows, instance):
    assert run(daily({D1: frame(1), D2: frame(2, 3), D3: frame().iloc[:0]}), **span(D1, D3)) is None

    assert [ids(rows("orders", partitions=[key])) for key in (D1, D2)] == [[1], [2, 3]]
    assert len(instance.fetch_materializations(dg.AssetKey("orders"), limit=6).records) == 3


@pytest.mark.parametrize(
    ("partitions", "key", "path"),
    [
        (dg.HourlyPartitionsDefinition("2026-01-01-00:00"), "2026-01-01-05:00", "year=2026/month=01/day=01/hour=05"),
        (DAILY, D2, "year=2026/month=01/day=02"),
        (dg.MonthlyPartitionsDefinition("2026-01", fmt="%Y-%m"), "2026-03", "year=2026/month=03"),
    ],
)
def test_partitions_lie_where_every_reader_of_hive_finds_them(run, lake, partitions, key, path):
    assert run(daily(frame(1), partitions_def=partitions), partition_key=key) is None

    assert lake.table(lake.registry.get("orders")).partitions() == (key,)
    assert pd.read_parquet(f"{lake.uri}/streams/orders/{path}")["id"].tolist() == [1]


def test_asset_without_partitions_is_a_table_whose_newest_version_is_read(run, rows, lake, instance):
    for made in (pd.DataFrame({"id": [1, 2]}), pd.DataFrame({"id": [3]})):
        assert run(asset(made)) is None

    table = lake.table(lake.registry.get("orders"))
    assert table.partitions() == ("v1", "v2")
    assert rows("orders") == [{"id": 3}]
    found = values(instance)
    assert (found["dagster/row_count"], found["datalake/partition"]) == (1, "v2")
    assert materialization(instance).partition is None


def test_table_keeps_as_many_versions_as_its_metadata_says(run, lake):
    for number in range(4):
        made = pd.DataFrame({"id": [number]})
        assert run(asset(made, metadata={"datalake/retention": {"versions": 2}})) is None

    assert lake.table(lake.registry.get("orders")).partitions() == ("v3", "v4")


def test_materialization_says_what_the_lake_has(run, lake, instance):
    assert run(daily(frame(1, 2), metadata=TIMED), partition_key=D1) is None

    found, report = values(instance), lake.table(lake.registry.get("orders")).report(D1)
    assert found["dagster/partition_row_count"] == 2
    assert (found["datalake/files"], found["datalake/small_files"]) == (report.files, report.small_files) == (1, 1)
    assert found["datalake/size_bytes"] == report.size_bytes
    assert found["dagster/uri"] == f"{lake.uri}/streams/orders/year=2026/month=01/day=01"
    assert [column.name for column in found["dagster/column_schema"].columns] == ["id", "at"]


def test_rows_without_a_time_are_quarantined_and_counted(run, rows, instance):
    made = pd.concat([frame(1), pd.DataFrame({"id": [2], "at": [pd.NaT]})])

    assert run(daily(made, metadata=TIMED), partition_key=D1) is None

    assert ids(rows("orders")) == [1]
    assert values(instance)["datalake/rows_quarantined"] == 1


def test_changed_columns_stop_the_asset_until_it_may_evolve(run, rows):
    assert run(daily(frame(1)), partition_key=D1) is None
    wider = frame(2).assign(more="x")

    refused = run(daily(wider), partition_key=D2)
    evolving = {"datalake/schema_policy": "evolve"}
    assert run(daily(wider, metadata=evolving), partition_key=D2) is None
    narrowed = run(daily(frame(3).assign(id="text"), metadata=evolving), partition_key=D3)

    assert refused == (
        "asset 'orders': the schema changed: added more string; undo it, or let it have new columns by its metadata"
        " 'datalake/schema_policy': 'evolve'"
    )
    assert "changed id int64 -> string" in narrowed
    assert [(each["id"], each["more"]) for each in rows("orders")] == [(1, None), (2, "x")]


def test_column_of_nulls_has_the_type_that_it_had(run, rows):
    assert run(daily(pd.DataFrame({"a": ["x"], "b": [[1]]})), partition_key=D1) is None
    assert run(daily(pd.DataFrame({"a": [None], "b": [None]})), partition_key=D2) is None

    assert rows("orders", partitions=[D2]) == [{"a": None, "b": None}]


@pytest.mark.s3
def test_assets_land_on_s3_as_they_do_in_a_folder(s3_store, instance):
    settings = Settings(lake=s3_store.uri, s3_endpoint=s3_store.s3.endpoint)
    resources = {"lake": ParquetLakeIOManager(lake=LakeResource(settings=settings))}
    lake = Lake(settings)
    seen: list = []
    orders, users = daily({D1: frame(1), D2: frame(2, 3)}), asset(pl.DataFrame({"id": [7]}), name="users")
    taken = downstream(pd.DataFrame, seen)

    for _ in range(2):
        assert dg.materialize([orders], instance=instance, resources=resources, **span(D1, D2)).success
        assert dg.materialize([users], instance=instance, resources=resources).success
    assert dg.materialize([orders, taken], selection=[taken], instance=instance, resources=resources).success

    assert seen[0]["id"].tolist() == [1, 2, 3]
    found = {feed.name: lake.table(feed) for feed in lake.registry.list().feeds}
    assert found["users"].scan(columns=["id"]).read_all().to_pydict() == {"id": [7]}
    assert [list(table.verify(deep=True)) for table in found.values()] == [[], []]
