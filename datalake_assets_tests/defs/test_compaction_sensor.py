"""The compaction sensor on lakes of files: what it asks for is run, and what it then asks for is nothing."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.config import Feed, Settings
from datalake_assets.core.compaction_cursor import state_from_json
from datalake_assets.core.compaction_watch import ATTEMPTS, LONGEST_BACK_OFF_S
from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Manifest
from datalake_assets.defs.build import build_definitions
from datalake_assets.defs.compaction.job import COMPACT_PARTITION, FEED_TAG, compact_partition_job
from datalake_assets.defs.compaction.sensor import MAX_RUNS, CompactionWatcher, compaction_sensor
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.resources import Lake
from datalake_assets.lake.adoption import adopt
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import Store
from datalake_assets_tests.lake.feeds import START, stream_feed
from datalake_assets_tests.lake.many_files import DAYS, append, ids_in

#: Long after the demo days closed.
NOW = 1_800_000_000.0


@dataclass
class Daemon:
    """What Dagster's daemon does with a sensor's results, at times of the test's choosing."""

    instance: dg.DagsterInstance
    watcher: CompactionWatcher
    job: dg.JobDefinition
    now: float = NOW
    cursor: str | None = None
    warned: list[str] = field(default_factory=list)
    skipped: str | None = None

    def tick(self) -> list[dg.RunRequest]:
        """A tick, 30 s after the last one; the requests that it made."""
        self.now += 30
        result = self.watcher.tick(self.instance, self.cursor, warn=self.warned.append, now=self.now)
        self.cursor, self.skipped = result.cursor, result.skip_reason and result.skip_reason.skip_message
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        return list(result.run_requests or ())

    def run(self, *requests: dg.RunRequest, job: dg.JobDefinition | None = None) -> list[bool]:
        """Runs requests; says of each whether it succeeded."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [
                (job or self.job)
                .execute_in_process(
                    instance=self.instance,
                    run_config=each.run_config,
                    tags={**each.tags, "dagster/run_key": each.run_key},
                    raise_on_error=False,
                )
                .success
                for each in requests
            ]

    def settle(self, ticks: int = 10) -> int:
        """Ticks and runs until nothing is asked for; returns the number of runs."""
        for done in range(ticks):
            requests = self.tick()
            if not requests:
                return done
            self.run(*requests)
        raise AssertionError(self.cursor)

    def reports(self, feed: Feed) -> list[dg.AssetObservation]:
        """What the sensor has reported of a feed."""
        records = self.instance.fetch_observations(asset_key(feed), limit=1000).records
        found = [record.asset_observation for record in records]
        return [each for each in found if "datalake/compaction_failures" in each.metadata]


Open = Callable[..., Daemon]


@pytest.fixture
def daemon(local_store: Store, instance: dg.DagsterInstance) -> Open:
    """A daemon for some feeds of the local lake."""
    lake = Lake(Settings(lake=local_store.uri))

    def open_daemon(*feeds: Feed, **options: float) -> Daemon:
        return Daemon(instance, CompactionWatcher(lake, feeds, **options), compact_partition_job(lake, feeds))

    return open_daemon


def added(store: Store, **changes: object) -> Feed:
    return FeedRegistry(store).add(stream_feed(**changes))


def materialized(instance: dg.DagsterInstance, feed: Feed, *keys: str) -> None:
    for key in keys:
        instance.report_runless_asset_event(dg.AssetMaterialization(asset_key(feed), partition=key))


def partitions(request: dg.RunRequest) -> list[str]:
    return request.run_config["ops"]["compact"]["config"]["partitions"]


def files(store: Store, feed: Feed, key: str) -> list[Path]:
    year, month, day = key.split("-")
    return sorted(Path(store.uri).glob(f"streams/{feed.name}/year={year}/month={month}/day={day}/*"))


def damage(file: Path) -> str:
    """Breaks a file, as a disk would: it keeps its size."""
    os.truncate(file, 0)
    file.write_bytes(b"x" * 700)
    return file.name


@pytest.fixture
def feed(local_store: Store, instance: dg.DagsterInstance) -> Feed:
    """The stream ``s``: three days of four small files, each materialized four times."""
    one = added(local_store)
    append(local_store, one, times=4)
    for _ in range(4):
        materialized(instance, one, *DAYS)
    return one


def test_one_run_for_all_partitions_however_often_they_were_written(daemon, feed):
    (request,) = daemon(feed).tick()

    assert (partitions(request), request.tags) == (list(DAYS), {FEED_TAG: "streams/s"})
    assert request.run_config["ops"]["compact"]["config"]["feed"] == "s"


def test_lake_is_at_rest_after_the_run_that_was_asked_for(daemon, feed, local_store):
    watching = daemon(feed)

    assert watching.settle() == 1
    assert [len(files(local_store, feed, key)) for key in DAYS] == [1, 1, 1]
    assert ids_in(local_store, feed) == list(range(12))
    assert watching.tick() == []
    assert watching.skipped == "nothing to compact"
    assert watching.reports(feed) == []


def test_nothing_is_asked_for_while_a_run_is_queued_or_going_on(daemon, feed, local_store, instance):
    watching = daemon(feed)
    (request,) = watching.tick()
    tags = {**request.tags, "dagster/run_key": request.run_key}
    run = instance.create_run_for_job(watching.job, run_config=request.run_config, tags=tags)
    append(local_store, feed, times=4, start=4)
    materialized(instance, feed, *DAYS)

    assert [watching.tick() for _ in range(3)] == [[], [], []]
    assert watching.skipped == "streams/s: a compaction goes on"
    watching.job.execute_in_process(instance=instance, run_config=request.run_config)
    instance.report_run_failed(run)
    assert watching.settle() == 0


def test_folder_that_others_write_is_compacted_once_it_was_observed(daemon, local_store, instance):
    folder = Path(local_store.uri).parent / "raw"
    folder.mkdir()
    for name in "abcd":
        pq.write_table(pa.table({"id": [1]}), folder / f"{name}.parquet")
    one = adopt(local_store, str(folder), "raw").feed
    watching = daemon(one)
    assert watching.tick() == []

    instance.report_runless_asset_event(dg.AssetObservation(asset_key(one), partition="."))

    assert watching.settle() == 1
    assert len(list(folder.iterdir())) == 1


def test_feed_that_is_not_to_be_compacted_is_left_alone_and_what_was_known_is_kept(daemon, feed):
    watching = daemon(feed)
    watching.tick()
    known = state_from_json(watching.cursor).feeds
    off = feed.model_copy(update={"compaction": feed.compaction.model_copy(update={"enabled": False})})
    disabled = daemon(off)
    disabled.cursor = watching.cursor

    assert disabled.tick() == []
    assert state_from_json(disabled.cursor).feeds == known


def test_damaged_file_is_reported_once_and_the_others_are_compacted(daemon, feed, local_store):
    bad = damage(files(local_store, feed, DAYS[0])[1])
    watching = daemon(feed)

    assert watching.settle() == 1
    assert watching.skipped == "1 partition cannot be compacted as a whole: see the observations"
    assert [len(files(local_store, feed, key)) for key in DAYS] == [2, 1, 1]
    (report,) = watching.reports(feed)
    assert (report.partition, report.metadata["datalake/files_unusable"].value) == (DAYS[0], 1)
    assert f"{bad} (" in report.description
    assert [watching.tick() for _ in range(3)] == [[], [], []]
    assert len(watching.reports(feed)) == 1


def test_files_beside_a_damaged_one_neither_wait_for_it_nor_count_it(daemon, feed, local_store, instance):
    damage(files(local_store, feed, DAYS[0])[1])
    watching = daemon(feed)
    watching.settle()

    append(local_store, feed, times=1, start=4)
    materialized(instance, feed, DAYS[0])
    assert watching.settle() == 1
    assert len(files(local_store, feed, DAYS[0])) == 2
    assert len(watching.reports(feed)) == 1


def test_new_damage_in_a_reported_partition_is_another_report(daemon, feed, local_store, instance):
    damage(files(local_store, feed, DAYS[0])[1])
    watching = daemon(feed)
    watching.settle()
    append(local_store, feed, times=3, start=4)
    damage(files(local_store, feed, DAYS[0])[-1])
    materialized(instance, feed, DAYS[0])

    watching.settle()

    assert sorted(each.metadata["datalake/files_unusable"].value for each in watching.reports(feed)) == [1, 2]


@pytest.fixture
def broken_job(daemon: Open, feed: Feed) -> dg.JobDefinition:
    """A compaction that dies."""

    @dg.op(name="compact", config_schema=dg.Permissive())
    def compact() -> None:
        raise RuntimeError

    @dg.job(name=COMPACT_PARTITION, executor_def=dg.in_process_executor)
    def dying() -> None:
        compact()

    return dying


def test_run_that_failed_is_repeated_later_under_another_key_and_in_smaller_parts(daemon, feed, broken_job):
    watching = daemon(feed)
    (first,) = watching.tick()
    watching.run(first, job=broken_job)

    assert watching.tick() == []
    watching.now += 60
    (second,) = watching.tick()

    assert partitions(second) == list(DAYS)
    assert first.run_key[:-1] == second.run_key[:-1]
    assert (first.run_key[-1], second.run_key[-1]) == ("1", "2")
    watching.run(second, job=broken_job)
    watching.tick()
    watching.now += 120
    (third,) = watching.tick()
    assert len(partitions(third)) == 1


def test_partitions_whose_runs_keep_failing_are_given_up_and_reported_once(daemon, feed, broken_job, local_store):
    watching = daemon(feed)
    runs = 0
    for _ in range(60):
        requests = watching.tick()
        runs += len(requests)
        watching.run(*requests, job=broken_job)
        watching.now += LONGEST_BACK_OFF_S / 2

    assert runs == 1 + 1 + (ATTEMPTS - 2) * len(DAYS)
    reports = watching.reports(feed)
    assert sorted(each.partition for each in reports) == list(DAYS)
    assert {each.metadata["datalake/compaction_failures"].value for each in reports} == {ATTEMPTS}
    assert reports[0].description == "5 runs failed: the run failed, and did not say why"
    append(local_store, feed, times=1, start=4)
    materialized(watching.instance, feed, DAYS[0])
    assert watching.settle() == 1
    assert len(files(local_store, feed, DAYS[0])) == 1


def test_run_that_vanished_counts_as_failed(daemon, feed):
    watching = daemon(feed)
    (lost,) = watching.tick()

    assert watching.tick() == []
    watching.now += 60
    (again,) = watching.tick()
    assert (partitions(again), again.run_key[-1]) == (partitions(lost), "2")


def test_manifest_that_cannot_be_read_holds_up_no_other_partition(daemon, feed, local_store):
    manifest = Path(local_store.uri) / "control/streams/s/year=2025/month=01/day=01/manifest.json"
    manifest.write_text("{")
    watching = daemon(feed)

    assert watching.settle() == 1
    assert [len(files(local_store, feed, key)) for key in DAYS] == [4, 1, 1]
    for _ in range(ATTEMPTS):
        watching.now += LONGEST_BACK_OFF_S
        assert watching.tick() == []
    (report,) = watching.reports(feed)
    assert report.partition == DAYS[0]
    assert "manifest" in report.description


def test_young_files_wait_and_are_compacted_when_they_are_old_enough(daemon, local_store, instance):
    one = added(local_store, compaction={"min_partition_age": "PT2H"})
    append(local_store, one, times=4)
    materialized(instance, one, *DAYS)
    watching = daemon(one)
    watching.now = local_store.now().timestamp()

    assert watching.tick() == []
    assert watching.skipped == "3 partitions to look at later: too young, or to be tried again"
    (due, *_) = state_from_json(watching.cursor).feeds["streams/s"].due.values()
    assert 7000 < due - watching.now < 7300


def test_open_partition_waits_for_its_close(daemon, local_store, instance):
    today = local_store.now().date()
    one = added(local_store, start=str(today), partition_by="month")
    table = HiveTable(local_store, one)
    assert table.partitions() == ()
    materialized(instance, one, f"{today:%Y-%m}")
    watching = daemon(one)
    assert watching.tick() == []


def test_feed_whose_lake_is_down_is_a_warning_and_the_others_go_on(daemon, feed, local_store, instance):
    gone = added(local_store, name="gone")
    append(local_store, gone, times=4)
    materialized(instance, gone, DAYS[0])

    class HalfGone(Lake):
        def table(self, one: Feed):
            return super().table(one) if one.name != "gone" else Lake(Settings(lake="/no/such/lake")).table(one)

    watching = daemon(feed, gone)
    watching.watcher = CompactionWatcher(HalfGone(Settings(lake=local_store.uri)), [feed, gone])

    (request,) = watching.tick()

    assert request.tags == {FEED_TAG: "streams/s"}
    assert len(watching.warned) == 1
    assert watching.warned[0].startswith("streams/gone is looked at again at the next tick: /no/such/lake")
    watching.watcher = CompactionWatcher(Lake(Settings(lake=local_store.uri)), [feed, gone])
    (later,) = watching.tick()
    assert later.tags == {FEED_TAG: "streams/gone"}


def test_tick_without_time_forgets_nothing(daemon, feed):
    watching = daemon(feed, budget_s=0.0)
    assert [watching.tick() for _ in range(3)] == [[], [], []]
    assert watching.skipped == "the next tick reads on in the event log"
    watching.watcher = daemon(feed).watcher
    assert len(watching.tick()) == 1


@pytest.mark.parametrize("cursor", ["", "{", "[]", '{"v": 0}', '{"v": 1, "turn": 0, "feeds": {"streams/s": [1]}}', "7"])
def test_cursor_that_cannot_be_read_begins_anew(daemon, feed, cursor):
    watching = daemon(feed)
    watching.cursor = cursor
    assert len(watching.tick()) == 1


def test_cursor_is_small_where_nothing_is_amiss(daemon, feed):
    watching = daemon(feed)
    watching.settle()
    assert len(watching.cursor) < 80
    assert json.loads(watching.cursor)["feeds"].keys() == {"streams/s"}


def test_tick_costs_a_request_per_changed_partition_and_lists_nothing(daemon, feed, local_store, instance):
    watching = daemon(feed)
    watching.settle()
    store = watching.watcher._lake.store
    before = dict(store.requests)
    materialized(instance, feed, DAYS[1])

    watching.tick()

    spent = {kind: count - before[kind] for kind, count in store.requests.items()}
    assert spent == {"put": 0, "get": 1, "list": 0, "delete": 0}


def test_sensor_is_off_until_somebody_turns_it_on_and_ticks_as_dagster_calls_it(local_store, feed, instance):
    definitions = build_definitions(Settings(lake=local_store.uri))
    lake = Lake(Settings(lake=local_store.uri))
    job = definitions.resolve_job_def(COMPACT_PARTITION)
    sensor = compaction_sensor(lake, [feed], job=job)

    with dg.build_sensor_context(instance=instance, definitions=definitions) as context:
        data = sensor.evaluate_tick(context)

    assert sensor.default_status is dg.DefaultSensorStatus.STOPPED
    (request,) = data.run_requests
    assert partitions(request) == list(DAYS)
    assert dg.validate_run_config(job, request.run_config)


def test_feed_of_another_project_is_watched_by_its_own_key(daemon, feed, instance):
    instance.report_runless_asset_event(dg.AssetMaterialization("theirs", partition=DAYS[2]))
    watching = daemon(feed, key_of=lambda _: dg.AssetKey("theirs"))

    (request,) = watching.tick()

    assert partitions(request) == [DAYS[2]]


def synthetic(store: Store, feed: Feed, key: str, *names: str) -> None:
    """A manifest of files that nobody ever reads."""
    folder = FeedFolder(store, feed)
    entries = tuple(DataFile(name, 1, 1000) for name in names)
    file = Path(store.path(folder.log(key).manifest_key))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(Manifest(len(names), "w", entries).to_bytes())


def test_backlog_of_many_partitions_is_worked_off_each_once_a_hundred_at_a_time(daemon, local_store, instance):
    one = added(local_store, start="2020-01-01")
    keys = [f"{START - timedelta(days=day):%Y-%m-%d}" for day in range(1_250)]
    for key in keys:
        synthetic(local_store, one, key, "a", "b", "c")
        materialized(instance, one, key)
    compacted: list[str] = []

    @dg.op(name="compact", config_schema=dg.Permissive())
    def compact(context) -> None:
        for key in context.op_config["partitions"]:
            compacted.append(key)
            synthetic(local_store, one, key, f"abc-{key}")

    @dg.job(name=COMPACT_PARTITION, executor_def=dg.in_process_executor)
    def pretended() -> None:
        compact()

    watching = daemon(one)
    watching.job = pretended
    sizes = []
    for _ in range(20):
        requests = watching.tick()
        sizes.append(len(watching.cursor))
        assert [len(partitions(each)) for each in requests] in ([], [100], [50])
        watching.run(*requests)

    assert sorted(compacted) == sorted(keys)
    assert watching.tick() == []
    assert watching.skipped == "nothing to compact"
    assert max(sizes) < 32 * 1024


def test_history_of_a_lake_that_is_well_is_read_in_one_tick(daemon, local_store, instance):
    one = added(local_store, start="2020-01-01")
    for day in range(1_100):
        key = f"{START - timedelta(days=day):%Y-%m-%d}"
        synthetic(local_store, one, key, "a")
        materialized(instance, one, key)
    watching = daemon(one)

    assert watching.tick() == []
    assert watching.skipped == "nothing to compact"
    newest = instance.fetch_materializations(asset_key(one), limit=1).records[0].storage_id
    assert state_from_json(watching.cursor).feeds[one.path].materialized == newest


def test_runs_that_wait_for_the_compactor_are_few_however_many_feeds_there_are(daemon, local_store, instance):
    feeds = [added(local_store, name=f"s{number}") for number in range(MAX_RUNS + 5)]
    for one in feeds:
        synthetic(local_store, one, DAYS[0], "a", "b", "c")
        materialized(instance, one, DAYS[0])
    watching = daemon(*feeds)

    first = watching.tick()
    for each in first:
        run = instance.create_run_for_job(watching.job, tags={**each.tags, "dagster/run_key": each.run_key})
        assert not run.is_finished

    assert len(first) == MAX_RUNS
    assert watching.tick() == []


def test_cursor_that_was_reset_asks_anew_for_what_had_failed(daemon, feed, broken_job):
    watching = daemon(feed)
    (first,) = watching.tick()
    watching.run(first, job=broken_job)
    watching.cursor = None

    (again,) = watching.tick()

    assert partitions(again) == partitions(first)
    assert again.run_key != first.run_key


def test_warning_of_a_tick_goes_to_the_log_that_the_ui_shows(local_store, feed, home, capfd):
    materialized(home, feed, DAYS[0])
    gone = Lake(Settings(lake="/no/such/lake"))
    sensor = compaction_sensor(gone, [feed], job=compact_partition_job(gone, [feed]))

    with dg.build_sensor_context(instance=home, sensor_name="compaction_sensor") as context:
        data = sensor.evaluate_tick(context)

    assert data.run_requests == []
    assert data.skip_message == "1 partition to look at in the next tick"
    assert "streams/s is looked at again at the next tick: /no/such/lake" in capfd.readouterr().err
