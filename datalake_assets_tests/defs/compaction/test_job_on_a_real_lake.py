"""`compact_partition` on a lake of files, with Dagster's history in SQLite: what it says is what the lake has."""

import warnings
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.defs.build import build_definitions
from datalake_assets.defs.compaction.job import COMPACT_PARTITION, raise_for_failed
from datalake_assets.defs.metadata import asset_key
from datalake_assets.errors import EngineError
from datalake_assets.feed import Feed
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.feed_compaction import Compacted
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import Store
from datalake_assets.settings import Settings
from datalake_assets_tests.lake.feeds import stream_feed, table_feed, table_of
from datalake_assets_tests.lake.many_files import DAYS, append, ids_in

TIMES = 17


@pytest.fixture
def job(local_store: Store) -> dg.JobDefinition:
    """The job as the code location has it, loaded before there are any feeds."""
    return build_definitions(Settings(lake=local_store.uri)).resolve_job_def(COMPACT_PARTITION)


@pytest.fixture
def feed(local_store: Store, job: dg.JobDefinition) -> Feed:
    """The stream ``s``, added after that: three days of 17 files of a row each."""
    added = FeedRegistry(local_store).add(stream_feed())
    append(local_store, added, times=TIMES)
    return added


def run(job: dg.JobDefinition, instance: dg.DagsterInstance, feed: str, *partitions: str) -> dg.ExecuteInProcessResult:
    config = {"ops": {"compact": {"config": {"feed": feed, "partitions": list(partitions)}}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return job.execute_in_process(instance=instance, run_config=config, raise_on_error=False)


def observed(instance: dg.DagsterInstance, feed: Feed) -> dict[str, dict[str, object]]:
    records = instance.fetch_observations(asset_key(feed), limit=10).records
    return {
        record.partition_key: {name: value.value for name, value in record.asset_observation.metadata.items()}
        for record in records
    }


def test_dagster_and_the_lake_agree_on_every_compacted_partition(job, feed, home, local_store):
    result = run(job, home, "s", *DAYS)

    assert result.success
    table = HiveTable(local_store, feed)
    for key in DAYS:
        report, seen = table.report(key), observed(home, feed)[key]
        assert (seen["datalake/files"], seen["datalake/files_removed"]) == (report.files, TIMES - 1) == (1, TIMES - 1)
        assert (seen["dagster/partition_row_count"], seen["datalake/rows_compacted"]) == (report.rows, TIMES)
        assert (seen["datalake/size_bytes"], seen["datalake/kernel"]) == (report.size_bytes, "reencode")
    assert ids_in(local_store, feed) == list(range(3 * TIMES))
    assert list(table.verify(deep=True)) == []


def test_compaction_is_no_materialization_and_names_its_run_in_the_manifest(job, feed, home, local_store):
    result = run(job, home, "s", DAYS[0])

    assert home.fetch_materializations(asset_key(feed), limit=10).records == []
    (manifest,) = Path(local_store.uri).glob("control/streams/s/year=2025/month=01/day=01/manifest.json")
    assert result.run_id in manifest.read_text()


def test_partition_that_cannot_be_compacted_stops_no_other(job, feed, home, local_store):
    (Path(local_store.uri) / "control/streams/s/year=2025/month=01/day=01/manifest.json").write_text("{")

    result = run(job, home, "s", *DAYS)

    (event,) = [event for event in result.all_events if event.is_step_failure]
    assert event.step_failure_data.user_failure_data.description.startswith("1 of 3 partitions failed: 2025-01-01: ")
    assert {key: seen["datalake/files"] for key, seen in observed(home, feed).items()} == {DAYS[1]: 1, DAYS[2]: 1}


def test_partition_whose_manifest_is_damaged_fails_no_run_about_others_of_its_folder(job, home, local_store):
    """Checks of a folder are about all of it: what was merged is merged, though they cannot be evaluated."""
    raw = Path(local_store.uri).parent / "raw"
    for day in (1, 2):
        (raw / f"day={day}").mkdir(parents=True)
        for number in range(4):
            pq.write_table(pa.table({"id": [number]}), raw / f"day={day}" / f"{number}.parquet")
    folder = adopt(local_store, str(raw), "raw").feed
    damaged = next(path for path in Path(local_store.uri).rglob("manifest.json") if "day=2" in str(path))
    damaged.write_text("{")

    result = run(job, home, "raw", "day=1")

    assert result.success
    assert observed(home, folder)["day=1"]["datalake/files_removed"] == 3
    lines = [entry.user_message for entry in home.all_logs(result.run_id) if not entry.is_dagster_event]
    assert any(line.startswith("folders/raw: checks could not be evaluated: ") for line in lines)


def test_what_an_engine_did_elsewhere_shows_in_the_observation(feed, home, local_store, toy):
    elsewhere = build_definitions(Settings(lake=local_store.uri, engine="toy")).resolve_job_def(COMPACT_PARTITION)

    assert run(elsewhere, home, feed.name, *DAYS).success

    records = home.fetch_observations(asset_key(feed), limit=100).records
    for record in records:
        metadata = record.asset_observation.metadata
        (task,) = metadata["datalake/engine_tasks"].value
        assert task["worker"]
        assert metadata["datalake/engine_workers"].value == 1
        assert metadata["datalake/engine_cpu_s"].value >= 0
    assert len(records) == len(toy.zombies) == len(DAYS)
    assert ids_in(local_store, feed) == list(range(len(DAYS) * TIMES))


def test_run_is_retried_where_an_engine_is_out_of_reach():
    error = EngineError("ray", "no cluster at 10.0.0.1:6379", cure="start one")
    with pytest.raises(dg.Failure, match=r"engine ray: no cluster at 10.0.0.1:6379; start one") as caught:
        raise_for_failed([Compacted(DAYS[0], error=error)])
    assert caught.value.allow_retries


def test_version_that_retention_removed_meanwhile_is_no_failure(job, home, local_store):
    added = FeedRegistry(local_store).add(table_feed(retention={"versions": 1}))
    table = HiveTable(local_store, added)
    for count in (3, 4):
        table.write(table_of(count), partitions=table.plan().partitions, run_id="r")

    result = run(job, home, "t", "v1", "v2")

    assert result.success
    assert {key: seen["datalake/files"] for key, seen in observed(home, added).items()} == {"v1": 0, "v2": 1}


def test_checks_of_file_sizes_are_green_again_after_a_compaction(job, feed, home):
    run(job, home, "s", DAYS[0], "2025-01-02")

    for name in ("file_size", "small_files"):
        history = home.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(asset_key(feed), name), limit=10
        )
        assert [(record.status.value, record.partition) for record in history] == [
            ("SUCCEEDED", None),
            ("SUCCEEDED", "2025-01-02"),
            ("SUCCEEDED", DAYS[0]),
        ]


@pytest.mark.usefixtures("feed")
def test_observing_a_compaction_again_and_again_breaks_no_history(job, home):
    """Evaluations of partitions are logged within runs: without one, the second breaks Dagster's SQLite storage."""
    assert all(run(job, home, "s", DAYS[0]).success for _ in range(3))


def test_file_that_nothing_can_merge_does_not_keep_the_check_of_small_files_red(job, feed, home, local_store):
    first = min((Path(local_store.uri) / "streams/s/year=2025/month=01/day=01").glob("*.parquet"))
    first.write_bytes(b"PAR1" + first.read_bytes()[4:-4] + b"XXXX")

    assert run(job, home, "s", DAYS[0]).success

    latest = home.get_latest_asset_check_evaluation_record(dg.AssetCheckKey(asset_key(feed), "small_files"))
    evaluation = latest.event.dagster_event.asset_check_evaluation_data
    assert (evaluation.passed, evaluation.metadata["datalake/unusable_files"].value) == (True, 1)


def test_merged_partition_is_planned_and_read_a_few_times_only(job, feed, home, counted):
    counted.clear()

    assert run(job, home, "s", *DAYS).success

    assert set(counted.loads.values()) == {1}
    assert counted.plans == 3 * len(DAYS)  # what to do, that nothing is left to do, and what stays


def test_adopted_partition_is_read_twice_a_merge(job, home, local_store, tmp_path, counted):
    raw = tmp_path / "raw"
    for number in range(TIMES):
        for region in ("a", "b"):
            target = raw / f"region={region}" / f"{number}.parquet"
            target.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({"id": [number]}), target)
    adopt(local_store, str(raw), "clicks")
    counted.clear()

    assert run(job, home, "clicks", "region=a", "region=b").success

    # one to take over what others changed, and one listing of both that need not be read again
    assert max(counted.loads.values()) <= 2
    assert counted.plans <= 4 * 2
    assert [len(list((raw / f"region={region}").iterdir())) for region in ("a", "b")] == [1, 1]
