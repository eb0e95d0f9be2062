"""The compaction sensor on lakes of files: what it asks for is run, and what it then asks for is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.core.compaction.watch_state import state_from_json
from datalake_assets.defs.build import build_definitions
from datalake_assets.defs.compaction.job import COMPACT_PARTITION, FEED_TAG
from datalake_assets.defs.compaction.sensor import compaction_sensor
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.resources import Lake
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.hive import HiveTable
from datalake_assets.settings import Settings
from datalake_assets_tests.defs.compaction.daemon import added, files, materialized, partitions
from datalake_assets_tests.lake.many_files import DAYS, append, ids_in


def test_one_run_for_all_partitions_however_often_they_were_written(daemon, feed):
    (request,) = daemon(feed).tick()

    assert (partitions(request), request.tags[FEED_TAG]) == (list(DAYS), "streams/s")
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
