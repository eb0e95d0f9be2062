"""Exports: what they land, what Dagster records of them, and what a person is told."""

import os
import threading
import time

import dagster as dg
import pytest

from datalake_assets.defs.feeds.assets import ExportConfig
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.runs import HOST_TAG, PID_TAG, STARTED_TAG, started_at
from datalake_assets.defs.storage.io_manager import progress_told_to
from datalake_assets.errors import FeedNotFound, SourceUnavailable
from datalake_assets.lake.table import Progress
from datalake_assets_tests.defs.fakes import MemoryLake, days_ago, runner, stream, table


def materializations(instance: dg.DagsterInstance, feed) -> dict[str, dg.AssetMaterialization]:
    records = instance.fetch_materializations(asset_key(feed), limit=100).records
    return {record.partition_key: record.asset_materialization for record in reversed(records)}


def key(days: int) -> str:
    return f"{days_ago(days):%Y-%m-%d}"


def test_export_lands_the_current_partition_and_records_what_it_amounts_to(lake: MemoryLake, instance):
    lake.sent["clicks"] = [days_ago(0), days_ago(0)]

    result = runner(lake, stream()).export(instance, "clicks", quiet=True)

    assert (result.success, result.error, result.rows_read, result.rows_added) == (True, None, 2, 2)
    metadata = {name: value.value for name, value in materializations(instance, stream())[key(0)].metadata.items()}
    assert metadata["dagster/partition_row_count"] == 2
    assert metadata["dagster/uri"].endswith(f"/streams/clicks/{days_ago(0):year=%Y/month=%m/day=%d}")
    assert metadata["dagster/table_name"] == "clicks"
    assert [column.name for column in metadata["dagster/column_schema"].columns] == ["id", "rowtime"]
    assert (metadata["datalake/files"], metadata["datalake/small_files"], metadata["datalake/size_bytes"]) == (
        1,
        1,
        200,
    )
    assert (metadata["datalake/rows_added"], metadata["datalake/rows_quarantined"]) == (2, 0)
    assert metadata["datalake/position"] == '{"rows": 2}'
    assert metadata["datalake/s3_requests"] == 8


def test_export_of_a_range_is_one_run_with_metadata_per_partition(lake: MemoryLake, instance):
    lake.sent["clicks"] = [days_ago(3), days_ago(1), days_ago(1)]

    result = runner(lake, stream()).export(instance, "clicks", partitions=[key(3), key(2), key(1)], quiet=True)

    assert [(each.key, each.rows) for each in result.partitions] == [(key(3), 1), (key(2), 0), (key(1), 2)]
    run = instance.get_run_by_id(result.run_id)
    assert run.tags["dagster/asset_partition_range_start"] == key(3)
    assert run.tags["dagster/asset_partition_range_end"] == key(1)
    assert len(lake.memory(stream()).run_ids) == 1


def test_export_records_partitions_that_received_rows_without_being_selected(lake: MemoryLake, instance):
    lake.sent["clicks"] = [days_ago(0), days_ago(5)]

    result = runner(lake, stream()).export(instance, "clicks", quiet=True)

    assert [each.key for each in result.partitions] == [key(5), key(0)]
    late = materializations(instance, stream())[key(5)]
    assert late.metadata["dagster/partition_row_count"].value == 1
    assert late.metadata["datalake/rows_read"].value == 2


def test_export_gives_a_table_a_new_version_that_dagster_knows_before_the_run(lake: MemoryLake, instance):
    lake.sent["users"] = [days_ago(0)]
    feeds = runner(lake, table())

    keys = [feeds.export(instance, "users", quiet=True).partitions[0].key for _ in range(2)]

    assert keys == ["v1", "v2"]
    assert instance.get_dynamic_partitions("tables/users") == ["v1", "v2"]
    assert materializations(instance, table())["v2"].tags["dagster/data_version"] == "v2"


def test_export_makes_dagster_forget_versions_that_retention_removed(lake: MemoryLake, instance):
    lake.sent["users"] = [days_ago(0)]
    feeds = runner(lake, table())

    for _ in range(4):
        assert feeds.export(instance, "users", quiet=True).success

    assert instance.get_dynamic_partitions("tables/users") == ["v3", "v4"]


def test_materializing_a_committed_version_again_keeps_it_and_shows_it(lake: MemoryLake, instance):
    lake.sent["users"] = [days_ago(0)]
    feeds = runner(lake, table())
    feeds.export(instance, "users", quiet=True)
    lake.sent["users"] = [days_ago(0)] * 5

    again = feeds.export(instance, "users", partitions=["v1"], quiet=True)

    assert again.success
    assert [(each.key, each.rows, each.rows_added) for each in again.partitions] == [("v1", 1, 0)]
    logs = [entry.user_message for entry in instance.all_logs(again.run_id) if entry.level == 30]
    assert logs == ["version v1 was committed before and is kept as it is"]


def test_materializing_by_hand_a_version_that_is_not_next_fails_with_one_line(lake: MemoryLake, instance):
    instance.add_dynamic_partitions("tables/users", ["v7"])  # what the UI's dialogue does
    job = runner(lake, table()).definitions.resolve_implicit_global_asset_job_def()

    with pytest.warns(DeprecationWarning, match="dagster_run"):
        result = job.execute_in_process(
            instance=instance, asset_selection=[asset_key(table())], partition_key="v7", raise_on_error=False
        )

    (event,) = [each for each in result.all_events if each.is_step_failure]
    assert event.step_failure_data.user_failure_data.description == "the next version of table 'users' is v1"


def test_failed_export_says_what_failed_on_one_line_and_in_metadata(lake: MemoryLake, instance):
    lake.broken["clicks"] = SourceUnavailable("http://ksql:8088 CLICKS", "connection refused")

    result = runner(lake, stream()).export(instance, "clicks", quiet=True)

    assert not result.success
    assert result.error == str(lake.broken["clicks"])
    failures = instance.all_logs(result.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    metadata = failures[0].dagster_event.step_failure_data.user_failure_data.metadata
    assert metadata["datalake/feed"].value == "streams/clicks"
    assert metadata["datalake/cause"].value == "http://ksql:8088 CLICKS: connection refused"
    assert metadata["datalake/cure"].value == "nothing was committed; run it again when the source is well"
    assert instance.get_run_by_id(result.run_id).status is dg.DagsterRunStatus.FAILURE


def test_failed_export_says_the_innermost_cause_of_an_error_that_is_not_ours(lake: MemoryLake, instance):
    lake.broken["clicks"] = ZeroDivisionError("division by zero")

    result = runner(lake, stream()).export(instance, "clicks", quiet=True)

    assert result.error == "ZeroDivisionError: division by zero"


def test_interrupt_ends_the_run_and_goes_on_to_the_caller(lake: MemoryLake, instance):
    lake.broken["clicks"] = KeyboardInterrupt()

    with pytest.raises(KeyboardInterrupt):
        runner(lake, stream()).export(instance, "clicks", quiet=True)

    (run,) = instance.get_runs()
    assert run.status is dg.DagsterRunStatus.FAILURE


def test_export_that_cannot_be_planned_starts_no_run(lake: MemoryLake, instance):
    result = runner(lake, stream()).export(instance, "clicks", partitions=["yesterday"], quiet=True)

    assert (result.success, result.run_id) == (False, "")
    assert result.error == "'yesterday' is not a partition by day; write it like '2025-01-15'"
    assert instance.get_runs() == []


def test_export_of_an_unknown_feed_starts_no_run(lake: MemoryLake, instance):
    result = runner(lake, stream()).export(instance, "clix", quiet=True)

    assert result.error == str(FeedNotFound("clix"))


def test_export_is_tagged_with_its_process_and_belongs_to_the_code_location(lake: MemoryLake, instance):
    result = runner(lake, stream()).export(instance, "clicks", quiet=True)

    run = instance.get_run_by_id(result.run_id)
    assert run.tags[PID_TAG] == str(os.getpid())
    assert run.tags[STARTED_TAG] == started_at(os.getpid())
    assert run.tags[HOST_TAG]
    assert run.remote_job_origin.location_name == "datalake_assets"
    assert run.tags["dagster/code_location"] == "datalake_assets"


def test_choices_of_a_run_are_in_its_config_and_defaults_are_not(lake: MemoryLake, instance):
    feeds = runner(lake, stream())

    chosen = feeds.export(instance, "clicks", config=ExportConfig(allow_shrink=True), quiet=False)
    plain = feeds.export(instance, "clicks", quiet=False)

    assert instance.get_run_by_id(chosen.run_id).run_config == {
        "ops": {"streams__clicks": {"config": {"allow_shrink": True}}}
    }
    assert instance.get_run_by_id(plain.run_id).run_config == {}


def test_progress_is_told_to_the_caller_of_this_thread_alone(lake: MemoryLake, instance):
    lake.sent["clicks"] = [days_ago(0)]
    told: list[Progress] = []

    with progress_told_to(told.append):
        runner(lake, stream()).export(instance, "clicks", quiet=True)
        other = threading.Thread(target=lambda: lake.memory(stream()).plan())
        other.start()
        other.join()
    runner(lake, stream()).export(instance, "clicks", quiet=True)

    assert [each.rows for each in told] == [1]


def test_source_is_connected_once_a_run_and_closed(lake: MemoryLake, instance):
    feeds = runner(lake, stream(), table())

    feeds.export(instance, "clicks", quiet=True)
    lake.broken["users"] = SourceUnavailable("x", "y")
    feeds.export(instance, "users", quiet=True)

    assert (lake.opened, lake.closed) == (2, 2)


def test_data_version_changes_only_with_the_rows(lake: MemoryLake, instance):
    lake.sent["clicks"] = [days_ago(0)]
    feeds = runner(lake, stream())
    versions = []

    for sent in (1, 1, 2):
        lake.sent["clicks"] = [days_ago(0)] * sent
        feeds.export(instance, "clicks", quiet=True)
        versions.append(materializations(instance, stream())[key(0)].tags["dagster/data_version"])

    assert versions[0] == versions[1] != versions[2]


def test_eight_feeds_run_on_sqlite_within_the_budget_for_runs(lake: MemoryLake, home):
    """The whole budget is 5 s. Dagster's share is judged by CPU time, which other load on the machine moves less."""
    feeds = [stream(f"s{number}") for number in range(4)] + [table(f"t{number}") for number in range(4)]
    for feed in feeds:
        lake.sent[feed.name] = [days_ago(0)]
    lake_runner = runner(lake, *feeds)
    lake_runner.export(home, "s0", quiet=True)

    began, cpu = time.monotonic(), time.process_time()
    results = [lake_runner.export(home, feed.name, quiet=True) for feed in feeds]
    cpu_s = time.process_time() - cpu

    print(f"8 runs: {cpu_s:.2f} CPU-s, {time.monotonic() - began:.2f} s")
    assert all(result.success for result in results)
    assert cpu_s < 12  # 2.2 where it was written
