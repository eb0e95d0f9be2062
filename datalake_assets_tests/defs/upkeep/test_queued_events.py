"""What commands did without Dagster is shown there once, whoever dies meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta

import dagster as dg

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.facts import Deletion
from datalake_assets.defs.build import build_definitions
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.upkeep import queued_events
from datalake_assets.defs.upkeep.queued_events import EVENT, QUEUED_EVENTS_SENSOR, report_queued
from datalake_assets.errors import CorruptLake, LakeUnavailable
from datalake_assets.lake.event_queue import EVENTS, LEASE, EventQueue
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.settings import Settings
from datalake_assets_tests.lake.feeds import stream_feed
from datalake_assets_tests.lake.many_files import DAYS, append
from datalake_assets_tests.processes.warm_processes import FORKED


def compacted(store):
    """The stream ``s``, its three days compacted one by one, and what that came to."""
    feed = FeedRegistry(store).add(stream_feed())
    append(store, feed, times=4)
    table = HiveTable(store, feed)
    return feed, [table.compact(day, CompactionRequest(force=True)) for day in DAYS]


def told(instance, feed, *, limit=100):
    records = instance.fetch_observations(asset_key(feed), limit=limit).records
    return {record.asset_observation.metadata[EVENT].value: record for record in reversed(records)}


def test_the_sensor_reports_compactions_of_no_run_and_their_checks(home, local_store):
    feed, reports = compacted(local_store)
    EventQueue(local_store).put("s", "compaction", reports[:2])
    EventQueue(local_store).put("s", "compaction", reports[2:])
    definitions = build_definitions(Settings(lake=local_store.uri))
    sensor = definitions.resolve_sensor_def(QUEUED_EVENTS_SENSOR)

    assert sensor(dg.build_sensor_context(instance=home)).skip_message == "2 reported"

    records = told(home, feed).values()
    assert [(record.partition_key, record.run_id) for record in records] == [(day, "") for day in DAYS]
    for record, report in zip(records, reports, strict=True):
        metadata = record.asset_observation.metadata
        assert record.asset_observation.description == f"compacted: {report.text}"
        assert metadata["datalake/files_removed"].value == 3
        assert metadata["dagster/partition_row_count"].value == report.partition.rows == 4
        assert abs(metadata["datalake/event_at"].value - record.timestamp) < 60
    for name in ("file_size", "small_files"):
        checked = home.get_latest_asset_check_evaluation_record(dg.AssetCheckKey(asset_key(feed), name))
        assert checked.event.dagster_event.asset_check_evaluation_data.passed
    assert sensor(dg.build_sensor_context(instance=home)).skip_message == "no events wait"
    assert len(told(home, feed)) == 3


def test_an_event_is_reported_once_though_who_reports_it_is_killed(home, local_store, monkeypatch):
    feed, reports = compacted(local_store)
    EventQueue(local_store).put("s", "compaction", reports)
    program = f"""
import os, signal, warnings
warnings.simplefilter("ignore")
import dagster as dg
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.upkeep.queued_events import report_queued
from datalake_assets.settings import Settings
report, told = dg.DagsterInstance.report_runless_asset_event, []
def dying(self, event):
    report(self, event)
    told.append(event)
    if len(told) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
dg.DagsterInstance.report_runless_asset_event = dying
report_queued(Lake(Settings(lake={local_store.uri!r})), dg.DagsterInstance.get())
"""
    killed = subprocess.run([sys.executable, "-c", FORKED + program], env=dict(os.environ), timeout=240, check=False)
    assert killed.returncode == -signal.SIGKILL
    lake = Lake(Settings(lake=local_store.uri))
    assert report_queued(lake, home).text == "no events wait"  # the dead process has claimed it
    assert len(told(home, feed)) == 2

    now = local_store.now
    monkeypatch.setattr(type(local_store), "now", lambda _: now() + LEASE + timedelta(seconds=1))
    assert report_queued(lake, home).events == 1

    records = home.fetch_observations(asset_key(feed), limit=10).records
    assert sorted(record.partition_key for record in records) == list(DAYS)
    assert EventQueue(local_store).waiting() == []


def test_what_cannot_be_reported_keeps_nothing_else_waiting(instance, local_store, monkeypatch):
    feed, reports = compacted(local_store)
    queue = EventQueue(local_store)
    local_store.put(f"{EVENTS}/20250101T000000_bad.json", b"{")
    odd = queue.put("s", "deletion", "no list of deletions")
    queue.put("gone", "compaction", reports)
    queue.put("s", "deletion", [Deletion(DAYS[0], 4, 1, {"f": 3}, 10, reports[0].partition)])

    done = report_queued(Lake(Settings(lake=local_store.uri)), instance)

    assert (done.events, done.dropped, len(done.problems)) == (1, 1, 2)
    assert "1 reported; 1 dropped: their feed is gone; control/events/20250101T000000_bad.json: " in done.text
    assert queue.waiting() == [f"{EVENTS}/20250101T000000_bad.json", odd]
    (record,) = instance.fetch_materializations(asset_key(feed), limit=5).records
    assert (record.partition_key, record.asset_materialization.description) == (DAYS[0], "3 of 4 rows deleted")


def test_checks_that_cannot_be_evaluated_keep_no_event_waiting(instance, local_store, monkeypatch):
    feed, reports = compacted(local_store)
    EventQueue(local_store).put("s", "compaction", reports)

    def damaged(*_, **__):
        raise CorruptLake("manifest.json", "it is damaged")

    monkeypatch.setattr(queued_events, "size_evaluations", damaged)
    done = report_queued(Lake(Settings(lake=local_store.uri)), instance)

    assert (done.events, done.problems) == (1, ())
    assert len(told(instance, feed)) == 3
    assert not EventQueue(local_store).waiting()


def test_a_lake_that_cannot_be_asked_ends_no_command(instance, local_store, monkeypatch):
    def unavailable(_):
        raise LakeUnavailable("lake", "busy")

    monkeypatch.setattr(EventQueue, "waiting", unavailable)
    done = report_queued(Lake(Settings(lake=local_store.uri)), instance)
    assert (done.events, len(done.problems), "busy" in done.text) == (0, 1, True)


def test_a_look_that_is_still_at_it_is_not_joined(instance, local_store):
    with queued_events._reporting:
        done = report_queued(Lake(Settings(lake=local_store.uri)), instance)
    assert done.text == "an earlier look still reports"
