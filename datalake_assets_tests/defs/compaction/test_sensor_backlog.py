"""The compaction sensor where there is much: a thousand partitions, a long history, many feeds."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

from datalake_assets.core.compaction.watch import state_from_json
from datalake_assets.defs.compaction.job import COMPACT_PARTITION
from datalake_assets.defs.compaction.sensor import MAX_RUNS
from datalake_assets.defs.metadata import asset_key
from datalake_assets_tests.defs.compaction.daemon import added, materialized, partitions, synthetic
from datalake_assets_tests.lake.feeds import START
from datalake_assets_tests.lake.many_files import DAYS


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
