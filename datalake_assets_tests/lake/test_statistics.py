"""Figures gathered from real lakes are those of the manifests, of the planner, and of what is in quarantine."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pyarrow as pa
import pytest

from datalake_assets.core.batches import RejectedRow
from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.facts import PlannedPartition
from datalake_assets.core.manifest import Commit, Manifest, PastCommit
from datalake_assets.core.report.series import lake_series
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake import statistics
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.statistics import lake_statistics, rebuild_summaries
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.adopted.adopted_folder import AdoptedFolder
from datalake_assets_tests.lake.feeds import SCHEMA, START, numbered, stream_feed, stream_of, table_feed, table_of
from datalake_assets_tests.lake.many_files import DAYS, append


def gathered(store, feed, **request):
    (one,) = lake_statistics(store, [feed], CompactionRequest(**request))
    return one


def manifest_of(store, feed, key) -> Manifest:
    return FeedFolder(store, feed).log(key).load().manifest


def told(commit: Commit | PastCommit) -> tuple[object, ...]:
    return (
        commit.kind,
        commit.at,
        commit.rows,
        commit.files_added,
        commit.files_removed,
        commit.files,
        commit.small_files,
        commit.size_bytes,
    )


def folder_feed(folder: AdoptedFolder) -> Feed:
    source = {"type": "folder", "uri": folder.uri}
    return parse_feed(json.dumps({"name": "clicks", "kind": "folder", "source": source}))


def check_against_manifest(store, feed, one: PlannedPartition) -> None:
    report, manifest = HiveTable(store, feed).report(one.key), manifest_of(store, feed, one.key)
    assert report is not None
    figures = (one.rows, one.files, one.small_files, one.size_bytes, one.min_time, one.max_time, one.generation)
    assert figures == (
        report.rows,
        report.files,
        report.small_files,
        report.size_bytes,
        report.min_time,
        report.max_time,
        report.generation,
    )
    assert [told(commit) for commit in one.history] == [told(commit) for commit in manifest.history]
    assert sum(one.sizes) == len(manifest.files)


def test_figures_are_those_of_the_manifests_and_of_the_planner(store):
    feed = stream_feed(small_file_bytes=1 << 20)
    append(store, feed, times=4)
    found = gathered(store, feed)
    assert [each.key for each in found.partitions] == list(DAYS)
    for one in found.partitions:
        check_against_manifest(store, feed, one)
        plan = HiveTable(store, feed).compaction_plan(one.key, CompactionRequest())
        assert one.files_after == plan.estimate.files_after == 1
        assert one.files_to_rewrite == 4
        assert one.bytes_to_rewrite == plan.estimate.bytes_rewritten
        assert one.last_export == one.history[-1].at
    assert found.newest_row == max(one.max_time for one in found.partitions)


@pytest.mark.parametrize("partition_by", ["month", "day", "hour"])
def test_open_and_closed_partitions_are_planned_as_they_are_compacted(local_store, partition_by):
    feed = stream_feed(partition_by=partition_by)
    now = local_store.now()
    times = pa.array([START, now - timedelta(hours=26), now], SCHEMA.field("rowtime").type)
    for first in (0, 3):
        batch = numbered(range(first, first + 3))
        batch = replace(batch, rows=batch.rows.set_column(2, "rowtime", times))
        table = HiveTable(local_store, feed)
        table.write(stream_of(batch), partitions=table.plan().partitions, run_id="r")
    found = gathered(local_store, feed).partitions
    assert (found[0].files_after, found[-1].files_after) == (1, 2)
    for one in found:
        plan = HiveTable(local_store, feed).compaction_plan(one.key, CompactionRequest())
        assert one.files_after == plan.estimate.files_after
        assert one.files_to_rewrite == sum(len(group.files) for group in plan.groups)


def test_compactions_stay_in_the_history_and_are_no_export(store):
    feed = stream_feed()
    append(store, feed, times=3)
    before = gathered(store, feed).partitions[0]
    HiveTable(store, feed).compact(DAYS[0], CompactionRequest(force=True), run_id="c")
    after = gathered(store, feed).partitions[0]
    (compaction,) = after.compactions
    assert (compaction.files_removed, compaction.files_added, after.files) == (3, 1, 1)
    assert after.last_export == before.last_export < compaction.at
    series, _ = lake_series([gathered(store, feed)])
    assert (max(series.files), series.files[-1], series.small_files[-1]) == (9, 7, 7)
    assert series.entered_late == 0


def test_a_table_tells_its_kept_versions_and_the_current_one(store):
    feed = table_feed(retention={"versions": 2})
    table = HiveTable(store, feed)
    for rows in (3, 3, 4):
        table.write(table_of(rows), partitions=table.plan().partitions, run_id="r")
    found = gathered(store, feed)
    assert [each.key for each in found.partitions] == ["v2", "v3"]
    assert [each.number for each in found.versions] == [2, 3]
    assert found.current is not None
    assert found.current.number == 3
    assert [each.key for each in found.emptied] == ["v1"]
    assert (found.rows, found.newest_row) == (7, None)
    series, _ = lake_series([found])
    assert (max(series.files), series.files[-1]) == (3, 2)


def test_a_folder_is_counted_by_what_was_seen_of_it(store, folder):
    folder.write("a.parquet", [1])
    folder.write("day=1/b.parquet", [2, 3])
    feed = folder_feed(folder)
    open_table(store, feed).look_again()
    found = gathered(store, feed)
    assert [(each.key, each.rows) for each in found.partitions] == [(".", 1), ("day=1", 2)]
    assert found.last_export == max(each.history[-1].at for each in found.partitions)
    open_table(store, feed).repair()
    assert gathered(store, feed).last_run is None


def test_rows_in_quarantine_are_counted_once(store):
    feed = stream_feed()
    bad = RejectedRow(b"{", "not JSON", "0:1")
    worse = RejectedRow(b"[", "not JSON", "0:2")
    table = HiveTable(store, feed)
    table.write(stream_of(numbered([0], rejected=[bad])), partitions=DAYS[:1], run_id="r")
    table.write(stream_of(numbered([3], rejected=[bad, worse])), partitions=DAYS[:1], run_id="r")
    found = gathered(store, feed).quarantined
    assert (found.objects, found.total, found.is_exact) == (2, 2, True)
    assert found.rows == {"_unknown": 2}
    assert found.size_bytes == sum(info.size_bytes for info in store.list("quarantine"))


def test_of_a_large_quarantine_a_part_is_counted(local_store, monkeypatch):
    feed = stream_feed()
    local_store.put("quarantine/streams/s/year=2025/month=01/day=01/a.jsonl", b'{"raw":1}\n{"raw":2}\n')
    local_store.put("quarantine/streams/s/year=2025/month=01/day=02/b.jsonl", b'{"raw":3}\n' * 100)
    monkeypatch.setattr(statistics, "QUARANTINE_BYTES", 50)
    found = gathered(local_store, feed).quarantined
    assert (found.rows, found.total, found.is_exact) == ({"2025-01-01": 2}, 2, False)
    assert (found.objects, found.size_bytes) == (2, 1020)


def test_a_damaged_manifest_is_told_and_the_others_are_counted(local_store):
    feed = stream_feed()
    append(local_store, feed, times=2)
    local_store.put(FeedFolder(local_store, feed).log(DAYS[1]).manifest_key, b"{")
    found = gathered(local_store, feed)
    assert [each.key for each in found.partitions] == [DAYS[0], DAYS[2]]
    (problem,) = found.problems
    assert problem.startswith(f"{DAYS[1]}: not a manifest: ")


def test_a_manifest_of_a_later_format_is_told_as_such(local_store):
    feed = stream_feed()
    append(local_store, feed, times=1)
    key = FeedFolder(local_store, feed).log(DAYS[0]).manifest_key
    body = local_store.get(key)[0]
    local_store.put(key, body.replace(b'"format":1', b'"format":9'))
    (problem,) = gathered(local_store, feed).problems
    assert problem.startswith(f"{DAYS[0]}: manifest of format 9")


def test_an_empty_feed_amounts_to_nothing(store):
    found = gathered(store, stream_feed())
    assert (found.partitions, found.rows, found.quarantined.objects, found.last_run) == ((), 0, 0, None)


def test_summaries_are_rebuilt_with_the_time_of_the_last_run(local_store):
    feed = stream_feed()
    append(local_store, feed, times=2)
    key = "metadata/streams/s/_metadata.json"
    before = json.loads(local_store.get(key)[0])
    found = gathered(local_store, feed)
    assert found.last_run is not None
    assert found.last_run.isoformat() == before["last_export"]
    local_store.delete([key])
    assert rebuild_summaries(local_store, [found]) == ()
    assert json.loads(local_store.get(key)[0]) == before


def test_a_summary_is_not_rebuilt_from_a_part_of_the_manifests(local_store):
    feed = stream_feed()
    append(local_store, feed, times=2)
    local_store.put(FeedFolder(local_store, feed).log(DAYS[1]).manifest_key, b"{")
    before = local_store.get("metadata/streams/s/_metadata.json")
    found = gathered(local_store, feed)
    assert rebuild_summaries(local_store, [found]) == (found,)
    assert local_store.get("metadata/streams/s/_metadata.json") == before
