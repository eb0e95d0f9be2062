"""The compaction sensor where files are damaged, runs die or the lake is down: no other partition waits."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from datalake_assets.core.compaction.watch import ATTEMPTS, LONGEST_BACK_OFF_S
from datalake_assets.defs.compaction.job import COMPACT_PARTITION, FEED_TAG, compact_partition_job
from datalake_assets.defs.compaction.sensor import CompactionWatcher, compaction_sensor
from datalake_assets.defs.resources import Lake
from datalake_assets.feed import Feed
from datalake_assets.lake.hive import HiveTable
from datalake_assets.settings import Settings
from datalake_assets_tests.defs.compaction.daemon import Open, added, damage, files, materialized, partitions
from datalake_assets_tests.lake.many_files import DAYS, append


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
    before = files(local_store, feed, DAYS[0])
    append(local_store, feed, times=3, start=4)
    damage(next(file for file in files(local_store, feed, DAYS[0]) if file not in before))
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
    assert sorted(map(partitions, watching.tick())) == [[day] for day in DAYS]


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


def test_plan_that_fails_as_nobody_foresaw_holds_up_no_other_partition(daemon, feed, local_store, monkeypatch):
    plan = HiveTable.compaction_plan

    def odd(self, key, *given, **named):
        if key == DAYS[0]:
            raise KeyError("files")
        return plan(self, key, *given, **named)

    monkeypatch.setattr(HiveTable, "compaction_plan", odd)
    watching = daemon(feed)

    assert watching.settle() == 1
    assert [len(files(local_store, feed, key)) for key in DAYS] == [4, 1, 1]


def test_cursor_that_was_reset_asks_anew_for_what_had_failed(daemon, feed, broken_job):
    watching = daemon(feed)
    (first,) = watching.tick()
    watching.run(first, job=broken_job)
    watching.cursor = None

    (again,) = watching.tick()

    assert partitions(again) == partitions(first)
    assert again.run_key != first.run_key


@pytest.mark.parametrize("error", [None, KeyError("files")], ids=["away", "unforeseen"])
def test_feed_whose_lake_is_down_is_a_warning_and_the_others_go_on(daemon, feed, local_store, instance, error):
    gone = added(local_store, name="gone")
    append(local_store, gone, times=4)
    materialized(instance, gone, DAYS[0])

    class HalfGone(Lake):
        def table(self, one: Feed):
            if one.name == "gone" and error is not None:
                raise error
            return super().table(one) if one.name != "gone" else Lake(Settings(lake="/no/such/lake")).table(one)

    watching = daemon(feed, gone)
    watching.watcher = CompactionWatcher(HalfGone(Settings(lake=local_store.uri)), [feed, gone])

    (request,) = watching.tick()

    assert request.tags[FEED_TAG] == "streams/s"
    assert len(watching.warned) == 1
    told = "/no/such/lake" if error is None else "unexpected KeyError: 'files'"
    assert watching.warned[0].startswith(f"streams/gone is looked at again at the next tick: {told}")
    watching.watcher = CompactionWatcher(Lake(Settings(lake=local_store.uri)), [feed, gone])
    (later,) = watching.tick()
    assert later.tags[FEED_TAG] == "streams/gone"


def test_warning_of_a_tick_goes_to_the_log_that_the_ui_shows(local_store, feed, home, capfd):
    materialized(home, feed, DAYS[0])
    gone = Lake(Settings(lake="/no/such/lake"))
    sensor = compaction_sensor(gone, [feed], job=compact_partition_job(gone, [feed]))

    with dg.build_sensor_context(instance=home, sensor_name="compaction_sensor") as context:
        data = sensor.evaluate_tick(context)

    assert data.run_requests == []
    assert data.skip_message == "1 partition to look at in the next tick"
    assert "streams/s is looked at again at the next tick: /no/such/lake" in capfd.readouterr().err
