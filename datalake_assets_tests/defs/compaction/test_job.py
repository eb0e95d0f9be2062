"""`compact_partition`: what it compacts, what Dagster is told, and what becomes of failures."""

import logging
from dataclasses import replace
from datetime import UTC, datetime

import dagster as dg
import pyarrow as pa
import pytest

from datalake_assets.core.compaction.plan import CompactionRequest, LeftAlone
from datalake_assets.defs.build import build_definitions
from datalake_assets.defs.compaction.job import (
    COMPACT_PARTITION,
    COMPACTOR_POOL,
    FEED_TAG,
    CompactConfig,
    example,
    observation,
    raise_for_failed,
)
from datalake_assets.defs.metadata import PARTITION_ERRORS, asset_key
from datalake_assets.defs.runs import HOST_TAG, PID_TAG
from datalake_assets.defs.upkeep.sensors import interrupted_commit_sensor
from datalake_assets.errors import CorruptLake, TransientStoreError
from datalake_assets.feed import MIB, Feed
from datalake_assets.feed_sources import FeedKind, FolderSource
from datalake_assets.lake.feed_compaction import Compacted
from datalake_assets_tests.defs.fakes import MemoryLake, MemoryTable, days_ago, resources, rows, stream, table

DAYS = ("2026-01-01", "2026-01-02", "2026-01-03")


@pytest.fixture
def clicks(lake: MemoryLake) -> MemoryTable:
    """The stream ``clicks``: a row on each of three days, in 40 small files on the first."""
    lake.registry.add(stream())
    memory = lake.memory(stream())
    memory.data = {key: _table() for key in DAYS}
    memory.small[DAYS[0]] = 40
    return memory


def _table():
    return pa.Table.from_batches([rows(days_ago(3))])


@pytest.fixture
def job(lake: MemoryLake, clicks: MemoryTable) -> dg.JobDefinition:
    return build_definitions(lake.settings, lake=lake, resources=resources(lake)).resolve_job_def(COMPACT_PARTITION)


def config(feed: str = "clicks", partitions: tuple[str, ...] = DAYS[:1], **more: object) -> dict[str, object]:
    return {"ops": {"compact": {"config": {"feed": feed, "partitions": list(partitions), **more}}}}


def run(job: dg.JobDefinition, instance: dg.DagsterInstance, **asked: object) -> dg.ExecuteInProcessResult:
    return job.execute_in_process(instance=instance, run_config=config(**asked), raise_on_error=False)


def observations(instance: dg.DagsterInstance, feed=None) -> dict[str, dg.AssetObservation]:
    records = instance.fetch_observations(asset_key(feed or stream()), limit=100).records
    return {record.partition_key: record.asset_observation for record in records}


def failure(result: dg.ExecuteInProcessResult) -> dg.Failure:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return event.step_failure_data.user_failure_data


def test_compaction_is_observed_with_what_it_did_and_what_the_partition_is_now(job, instance, lake):
    result = run(job, instance)

    assert result.success
    observed = {name: value.value for name, value in observations(instance)[DAYS[0]].metadata.items()}
    assert observed.pop("datalake/oldest_event") == observed.pop("datalake/newest_event")
    assert observed == {
        "dagster/partition_row_count": 1,
        "dagster/table_name": "clicks",
        "dagster/uri": f"{lake.uri}/streams/clicks/year=2026/month=01/day=01",
        "datalake/bytes_saved": 50,
        "datalake/compaction_time_ms": 250,
        "datalake/files": 1,
        "datalake/files_compacted": 40,
        "datalake/files_decoded": 0,
        "datalake/files_removed": 39,
        "datalake/files_skipped": 0,
        "datalake/files_unusable": 0,
        "datalake/kernel": "reencode",
        "datalake/position": '{"rows": 1}',
        "datalake/row_groups_encoded": 0,
        "datalake/row_groups_merged": 0,
        "datalake/rows_compacted": 1,
        "datalake/size": "100 B",
        "datalake/size_bytes": 100,
        "datalake/small_files": 1,
        "datalake/unusable_files": [],
    }


def test_compaction_is_no_materialization(job, instance):
    run(job, instance, partitions=DAYS)

    assert instance.fetch_materializations(asset_key(stream()), limit=10).records == []
    assert set(observations(instance)) == set(DAYS)


def test_run_passes_on_what_was_asked_for_and_its_id(job, instance, clicks):
    result = run(job, instance, partitions=DAYS[1:], force=True, target_file_size_mb=64, max_files=500)

    asked = CompactionRequest(force=True, target_file_bytes=64 * MIB, max_files=500, memory_bytes=400 * MIB)
    assert clicks.compacted == [(key, asked, result.run_id) for key in DAYS[1:]]


def test_run_has_a_table_of_what_it_did_and_logs_plan_and_files_left_alone(job, instance, clicks):
    of_first = "streams/clicks 2026-01-01"
    clicks.left[DAYS[0]] = (
        LeftAlone("a.parquet", "is 130 MiB: above 128 MiB and never split"),
        LeftAlone("b.parquet", "is 140 MiB: above 128 MiB and never split"),
        LeftAlone("c.parquet", "it is not a Parquet file", unusable=True),
    )

    result = run(job, instance, partitions=DAYS[:2])

    (output,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    assert output.step_output_data.metadata["datalake/compaction"].value.splitlines()[2:] == [
        "| 2026-01-01 | 40 → 1 | 150 B → 100 B | 1 | reencode | 0.2 | 3 | compacted |",
        "| 2026-01-02 | 1 → 1 | 100 B → 100 B | 0 |  | 0.0 | 0 | nothing to compact |",
    ]
    logs = [entry for entry in instance.all_logs(result.run_id) if not entry.is_dagster_event]
    assert [entry.user_message for entry in logs] == [
        f"{of_first}: 40 files to 1, 3.9 KiB to rewrite, saves 39 requests per scan\n40 files, 3.9 KiB: all are small",
        f"{of_first}: files 40 -> 1, 150 B -> 100 B, 1 rows, reencode, 0.2 s",
        f"{of_first}: left alone: 2 files, like a.parquet: above 128 MiB and never split",
        f"{of_first}: left alone: c.parquet: it is not a Parquet file",
        f"{of_first}: c.parquet: it is not a Parquet file",
        "streams/clicks 2026-01-02: nothing to compact in 1 files",
        "streams/clicks 2026-01-02: nothing was merged",
    ]
    assert [entry.user_message for entry in logs if entry.level == logging.WARNING] == [
        f"{of_first}: c.parquet: it is not a Parquet file"
    ]


def test_run_is_tagged_with_its_process_and_its_feed(job, instance):
    tags = instance.get_run_by_id(run(job, instance).run_id).tags

    assert tags[FEED_TAG] == "streams/clicks"
    assert {HOST_TAG, PID_TAG} <= set(tags)


def test_partition_that_fails_stops_no_other_and_fails_the_run_at_the_end(job, instance, clicks):
    clicks.broken[DAYS[0]] = CorruptLake("manifest.json", "not JSON")

    result = run(job, instance, partitions=DAYS)

    assert failure(result).description == (
        "1 of 3 partitions failed: 2026-01-01: manifest.json: not JSON; "
        "run 'datalake verify' to see what differs; nothing was changed"
    )
    assert "| 2026-01-02 | 1 → 1 |" in failure(result).metadata["datalake/compaction"].value
    assert list(failure(result).metadata[PARTITION_ERRORS].value) == [DAYS[0]]
    assert set(observations(instance)) == set(DAYS[1:])


def test_partition_that_never_was_stops_no_other(job, instance):
    result = run(job, instance, partitions=("2025-12-31", DAYS[0], DAYS[0], "soon"))

    assert failure(result).description == (
        "2 of 3 partitions failed: "
        "2025-12-31: feed 'clicks' has no partition '2025-12-31'; it has 3, from '2026-01-01' to '2026-01-03'; "
        "soon: feed 'clicks' has no partition 'soon'; it has 3, from '2026-01-01' to '2026-01-03'"
    )
    assert set(observations(instance)) == {DAYS[0]}


@pytest.mark.parametrize(
    ("error", "passing"), [(TransientStoreError("s3://lake", "busy"), True), (CorruptLake("m", "x"), False)]
)
def test_failure_is_retried_only_where_that_may_help(error, passing):
    with pytest.raises(dg.Failure) as raised:
        raise_for_failed([Compacted("v1", error=error)])

    assert raised.value.allow_retries is passing


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"feed": "clix"}, "feed 'clix' does not exist; see 'datalake feeds list'"),
        ({"partitions": ()}, "partitions: name 1 to 100, not 0"),
        ({"partitions": DAYS * 34}, "partitions: name 1 to 100, not 102"),
        ({"max_files": 1}, "max_files: give 2 or more, not 1"),
        ({"target_file_size_mb": 0}, "target_file_size_mb: give 1 to 4096, not 0"),
    ],
)
def test_request_that_is_wrong_fails_the_run_with_one_line(job, instance, asked, message):
    assert failure(run(job, instance, **asked)).description == message


def test_feed_added_at_run_time_is_accepted(job, instance, lake):
    lake.registry.add(table())
    lake.memory(table()).data = {"v1": _table()}

    assert run(job, instance, feed="users", partitions=("v1",)).success
    assert set(observations(instance, table())) == {"v1"}


def test_launchpad_shows_an_example_of_a_feed_that_there_is(job):
    assert job.run_config == config(partitions=(f"{days_ago(1):%Y-%m-%d}",), force=False)


@pytest.mark.parametrize(
    ("feeds", "name", "key"),
    [
        ((), "transaction_stream", "2026-02-28"),
        ((table(),), "users", "v1"),
        ((table(), stream(partition_by="month")), "clicks", "2026-02"),
    ],
)
def test_example_of_the_launchpad_is_one_that_can_be(feeds, name, key):
    shown = example(feeds, datetime(2026, 3, 1, 12, tzinfo=UTC))

    assert CompactConfig(**shown) == CompactConfig(feed=name, partitions=[key])


def test_compactor_has_a_pool_apart_from_the_writers(job, lake):
    assert job.all_node_defs[0].pool == COMPACTOR_POOL
    assert not COMPACTOR_POOL.endswith("/write")


def test_interrupted_commit_sensor_repairs_the_feed_of_a_failed_compaction(job, instance, lake, clicks):
    clicks.broken[DAYS[0]] = TransientStoreError("s3://lake", "busy")
    run_record = instance.get_run_by_id(run(job, instance).run_id)
    (event,) = instance.all_logs(run_record.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    context = dg.build_run_status_sensor_context(
        "interrupted_commit_sensor", event.dagster_event, instance, run_record
    ).for_run_failure()

    skip = interrupted_commit_sensor({"clicks": stream(), "users": table()}, lake)(context)

    assert skip.skip_message == "streams/clicks: 1 commits finished, 0 undone, 0 leftovers swept"


@pytest.mark.parametrize(("key", "uri"), [("year=2026/b", "s3://other/events/year=2026/b"), (".", "s3://other/events")])
def test_observation_of_an_adopted_folder_says_where_others_write_it(clicks, key, uri):
    folder = Feed(name="events", kind=FeedKind.FOLDER, source=FolderSource(uri="s3://other/events"))
    report = replace(clicks.compact(DAYS[0], CompactionRequest()), key=key)
    report = replace(report, partition=replace(report.partition, key=key))

    event = observation(folder, report, lake_uri="/lake")

    assert (event.asset_key, event.partition) == (dg.AssetKey(["folders", "events"]), key)
    assert event.metadata["dagster/uri"].value == uri
