"""Reading feeds in downstream assets."""

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest

from datalake_assets_tests.defs.fakes import MemoryLake, days_ago, runner, stream, table

pytestmark = pytest.mark.filterwarnings("ignore:.*dagster_run is deprecated:DeprecationWarning")


@pytest.fixture
def landed(lake: MemoryLake, instance: dg.DagsterInstance) -> dg.Definitions:
    """A stream with rows on two days, and a table with two versions."""
    for feed in (stream(), table()):
        lake.registry.add(feed)
    feeds = runner(lake, stream(), table())
    lake.sent = {"clicks": [days_ago(1), days_ago(0), days_ago(0)], "users": [days_ago(0)]}
    feeds.export(instance, "clicks", quiet=True)
    feeds.export(instance, "users", quiet=True)
    lake.sent["users"] = [days_ago(0)] * 4
    feeds.export(instance, "users", quiet=True)
    return feeds.definitions


def run(landed: dg.Definitions, instance: dg.DagsterInstance, asset: dg.AssetsDefinition, **how: object):
    definitions = dg.Definitions.merge(landed, dg.Definitions(assets=[asset]))
    job = definitions.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(instance=instance, asset_selection=[asset.key], raise_on_error=False, **how)


def test_input_is_the_partition_of_the_run(landed, instance):
    @dg.asset(
        ins={"clicks": dg.AssetIn(["streams", "clicks"])},
        partitions_def=dg.DailyPartitionsDefinition("2026-01-01", end_offset=1),
        io_manager_key="io_manager",
    )
    def count(clicks: pa.Table) -> int:
        return clicks.num_rows

    result = run(landed, instance, count, partition_key=f"{days_ago(0):%Y-%m-%d}")

    assert result.output_for_node("count") == 2


def test_input_of_an_unpartitioned_asset_is_all_partitions_that_have_rows(landed, instance):
    @dg.asset(ins={"clicks": dg.AssetIn(["streams", "clicks"], metadata={"columns": ["id"]})})
    def count(clicks: pd.DataFrame) -> tuple[int, list[str]]:
        return len(clicks), list(clicks.columns)

    assert run(landed, instance, count).output_for_node("count") == (3, ["id"])


def test_input_by_last_partition_mapping_is_the_newest_version_of_a_table(landed, instance):
    users = dg.AssetIn(["tables", "users"], partition_mapping=dg.LastPartitionMapping())

    @dg.asset(ins={"users": users})
    def count(users: pa.RecordBatchReader) -> int:
        return sum(batch.num_rows for batch in users)

    assert run(landed, instance, count).output_for_node("count") == 4


def test_input_without_a_usable_annotation_fails_saying_which_there_are(landed, instance):
    @dg.asset(ins={"clicks": dg.AssetIn(["streams", "clicks"])})
    def count(clicks: list) -> None: ...

    result = run(landed, instance, count)

    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "annotate the input with pyarrow.Table" in str(failure.step_failure_data.error)
