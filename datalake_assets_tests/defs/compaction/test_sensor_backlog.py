"""The compaction sensor where there is much: a thousand partitions, a long history, many feeds."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

from datalake_assets.core.compaction.watch_state import state_from_json
from datalake_assets.defs.compaction.job import COMPACT_PARTITION, FEED_TAG, compact_partition_job
from datalake_assets.defs.compaction.sensor import MAX_RUNS, CompactionWatcher
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.resources import Lake
from datalake_assets.policies import MIB
from datalake_assets.settings import Settings
from datalake_assets_tests.defs.compaction.daemon import Daemon, added, materialized, partitions, synthetic
from datalake_assets_tests.lake.feeds import START
from datalake_assets_tests.lake.many_files import DAYS


def test_backlog_of_many_partitions_is_worked_off_each_once_a_hundred_at_a_time(daemon, local_store, instance):
    one = added(local_store, start="2020-01-01")
    keys = [f"{START - timedelta(days=day):%Y-%m-%d}" for day in range(1_150)]
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
    sizes, found = [], []
    for _ in range(20):
        requests = watching.tick()
        sizes.append(len(watching.cursor))
        found.append([len(partitions(each)) for each in requests])
        watching.run(*requests)

    assert found[:3] == [[100] * 10, [100, 50], []]
    assert sorted(compacted) == sorted(keys)
    assert watching.tick() == []
    assert watching.skipped == "nothing to compact"
    assert max(sizes) < 64 * 1024


def test_history_of_a_lake_that_is_well_is_read_in_one_tick(daemon, local_store, instance):
    one = added(local_store, start="2020-01-01")
    for day in range(1_050):
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


def test_backlog_is_cut_into_runs_by_bytes_and_a_feed_with_less_does_not_wait_for_its_end(local_store, instance):
    """The lake's settings say how many bytes a run has, a feed's own policy goes before them."""
    large = added(local_store, name="large", start="2024-01-01")
    small = added(local_store, name="small", start="2024-01-01", runs={"max_bytes": 64 * MIB})
    days = [f"{START - timedelta(days=day):%Y-%m-%d}" for day in range(60)]
    for one, size in ((large, 10 * MIB), (small, 3 * MIB)):
        for key in days:
            synthetic(local_store, one, key, "a", "b", size_bytes=size)
            materialized(instance, one, key)
    lake = Lake(Settings(lake=local_store.uri, run_mb=200))
    watching = Daemon(instance, CompactionWatcher(lake, [large, small]), compact_partition_job(lake, [large, small]))

    requests = watching.tick()

    asked = {(each.tags[FEED_TAG], len(partitions(each))) for each in requests}
    assert asked == {("streams/large", 10), ("streams/small", 10)}
    assert {each.tags["datalake/bytes_to_merge"] for each in requests} == {f"{200 * MIB}", f"{60 * MIB}"}
    assert [each.tags[FEED_TAG] for each in requests[:2]] == ["streams/large", "streams/small"]
    assert len(requests) == 12
    keys = [(each.tags[FEED_TAG], key) for each in requests for key in partitions(each)]
    assert sorted(keys) == sorted((one.path, key) for one in (large, small) for key in days)


def test_partition_that_a_run_is_about_already_is_in_no_other_whoever_launched_that(local_store, instance, daemon):
    one = added(local_store)
    for key in DAYS:
        synthetic(local_store, one, key, "a", "b", "c")
        materialized(instance, one, key)
    watching = daemon(one)
    config = {"ops": {"compact": {"config": {"feed": one.name, "partitions": [DAYS[0]]}}}}
    by_hand = instance.create_run_for_job(watching.job, run_config=config, tags={FEED_TAG: one.path})

    (request,) = watching.tick()

    assert partitions(request) == list(DAYS[1:])
    instance.report_run_failed(by_hand)
    watching.run(request)
    assert [partitions(each) for each in watching.tick()] == [[DAYS[0]]]
