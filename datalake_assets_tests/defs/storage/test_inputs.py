"""What assets of anybody's project stored comes back as what the next asset asks for."""

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from datalake_assets.core.batches import InMemoryBatches, SourceBatch
from datalake_assets.defs.storage.io_manager import ParquetLakeIOManager
from datalake_assets.feed import Feed
from datalake_assets.sources.ksqldb.declaration import KsqlDBSource
from datalake_assets_tests.defs.storage.made import (
    D1,
    D2,
    DAILY,
    EXPECTED_WARNINGS,
    asset,
    daily,
    downstream,
    frame,
    span,
)

pytestmark = EXPECTED_WARNINGS


@pytest.mark.parametrize("wanted", [pd.DataFrame, pa.Table, pa.RecordBatchReader, pl.DataFrame])
def test_downstream_asset_gets_the_partitions_own_rows_in_the_columns_that_were_returned(run, wanted):
    orders = daily({D1: frame(1), D2: frame(2, day=D2)})
    assert run(orders, **span(D1, D2)) is None
    seen: list = []

    taken = downstream(wanted, seen, partitions_def=DAILY)
    run(orders, taken, selection=[taken], partition_key=D2)

    as_pandas = seen[0] if wanted is pd.DataFrame else seen[0].to_pandas()
    assert as_pandas["id"].tolist() == [2]
    assert list(as_pandas.columns) == ["id", "at"]


def test_downstream_asset_gets_all_partitions_as_a_dict_or_as_one_frame(run):
    orders = daily({D1: frame(1), D2: frame(2, day=D2)})
    assert run(orders, **span(D1, D2)) is None
    seen: list = []

    taken = downstream(dict[str, pd.DataFrame], seen)
    run(orders, taken, selection=[taken])
    taken = downstream(pa.Table, seen)
    run(orders, taken, selection=[taken])

    assert {key: each["id"].tolist() for key, each in seen[0].items()} == {D1: [1], D2: [2]}
    assert seen[1]["id"].to_pylist() == [1, 2]


def test_downstream_asset_gets_the_newest_version_of_an_asset_without_partitions(run):
    orders = asset(pd.DataFrame({"id": [1]}))
    for made in (orders, asset(pd.DataFrame({"id": [2]}))):
        assert run(made) is None
    seen: list = []

    taken = downstream(pd.DataFrame, seen)
    run(orders, taken, selection=[taken])

    assert seen[0].to_dict("list") == {"id": [2]}


def test_feed_of_the_lake_itself_can_be_read_by_its_key(resource, instance, lake):
    source = KsqlDBSource(object="CLICKS", mode="pull")
    clicks = Feed(name="clicks", kind="stream", source=source, time_column="at", start="2026-01-01")
    lake.registry.add(clicks)
    batches = InMemoryBatches((SourceBatch(pa.record_batch(frame(5))),), "at")
    lake.table(clicks).write(batches, partitions=[D1], run_id="run")
    seen: list = []

    def take(clicks: pd.DataFrame) -> None:
        seen.append(clicks)

    upstream = dg.AssetIn(["streams", "clicks"], input_manager_key="lake")
    taken = dg.asset(ins={"clicks": upstream}, name="taken")(take)
    declared = dg.AssetSpec(["streams", "clicks"])
    definitions = dg.Definitions([declared, taken], resources={"lake": ParquetLakeIOManager(lake=resource)})
    job = definitions.resolve_implicit_global_asset_job_def()
    assert job.execute_in_process(instance=instance).success

    assert seen[0]["id"].tolist() == [5]


def test_asset_can_return_what_it_took(run, rows):
    orders = daily({D1: frame(1)})
    assert run(orders, partition_key=D1) is None

    @dg.asset(partitions_def=DAILY, io_manager_key="lake")
    def copied(orders: pa.Table) -> pa.Table:
        return orders

    assert run(orders, copied, selection=[copied], partition_key=D1) is None
    assert rows("copied") == rows("orders")
