"""The contract of `LakeTable.compact`, on a local folder and on the real S3 server."""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise

import pyarrow.parquet as pq
import pytest

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.lake import compaction, compaction_inputs
from datalake_assets.lake.commit import PartitionLog
from datalake_assets.lake.hive import HiveTable
from datalake_assets.parquet import rewrite_settings, segments
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of, table_feed, table_of
from datalake_assets_tests.lake.hive_tables import export, folder_ids, ids, listed

DAY, FOLDER = "2025-01-01", "streams/s/year=2025/month=01/day=01"
FORCE = CompactionRequest(force=True)
ROWS = 24  # of a day, see feeds.rows


def with_files(store, count, **changes):
    """A table whose first day has that many files, of a row or more each."""
    table = HiveTable(store, stream_feed(**changes))
    bounds = [ROWS * number // count for number in range(count + 1)]
    for start, end in pairwise(bounds):
        export(table, stream_of(numbered(range(start, end))))
    return table


def manifest(table, key=DAY):
    return table._folder.log(key).load().manifest


def test_small_files_become_one_with_the_same_rows(store):
    table = with_files(store, 12)
    report = table.compact(DAY, CompactionRequest())
    assert (report.files_before, report.files_after, report.files_compacted, report.files_removed) == (12, 1, 12, 11)
    assert (report.rows, report.kernel, report.small_files_remaining) == (ROWS, "reencode", 1)
    assert len(listed(store, FOLDER)) == 1
    assert ids(table) == folder_ids(store, FOLDER) == list(range(ROWS))
    assert list(table.verify(deep=True)) == []
    assert list(store.list_staged("")) == []


def test_position_and_schema_stay_and_the_history_tells(store):
    table = with_files(store, 4)
    before = manifest(table)
    table.compact(DAY, FORCE, run_id="r1")
    after = manifest(table)
    assert (after.position, after.schema) == (before.position, before.schema)
    last = after.history[-1]
    assert (last.kind, last.run_id, last.rows, last.files_added, last.files_removed) == ("compact", "r1", ROWS, 1, 4)


def test_the_output_says_of_itself_where_it_belongs(store):
    table = with_files(store, 4)
    table.compact(DAY, FORCE, run_id="r1")
    (key,) = listed(store, FOLDER)
    written = pq.read_metadata(store.path(key), filesystem=store.filesystem()).metadata
    after = manifest(table)
    assert key.rpartition("/")[2].startswith("compacted_")
    assert written[b"datalake.commit_id"].decode() == after.history[-1].commit_id
    assert json.loads(written[b"datalake.position"]) == after.position.to_json()
    assert (written[b"datalake.feed"], written[b"datalake.run_id"]) == (b"s", b"r1")


def test_the_summary_follows_and_keeps_the_time_of_the_last_export(store):
    table = with_files(store, 4)
    key = "metadata/streams/s/_metadata.json"
    before = json.loads(store.get(key)[0])
    table.compact(DAY, FORCE)
    after = json.loads(store.get(key)[0])
    assert after["last_export"] == before["last_export"]
    assert (after["partitions"][0]["files"], after["partitions"][0]["records"]) == (1, ROWS)


@pytest.mark.parametrize("native", ["", "0"], ids=["as installed", "without kernel"])
def test_each_file_is_asked_for_once(store, monkeypatch, native):
    """Besides there are the manifest, the first file once more, for its schema, the output and the summary."""
    monkeypatch.setenv("DATALAKE_NATIVE", native)
    table = with_files(store, 24)
    before = store.requests["get"]
    assert table.compact(DAY, FORCE).files_compacted == 24
    assert store.requests["get"] - before <= 24 + 6


def test_a_second_compaction_finds_nothing(store):
    table = with_files(store, 4)
    table.compact(DAY, FORCE)
    files = listed(store, FOLDER)
    report = table.compact(DAY, FORCE)
    assert (report.files_compacted, report.kernel, report.rows) == (0, "", 0)
    assert report.skipped[0].reason.endswith("no other file to merge it with")
    assert listed(store, FOLDER) == files


def test_what_a_run_made_is_not_told_as_left_alone(store):
    assert with_files(store, 4).compact(DAY, FORCE).skipped == ()


def test_an_interruption_drops_what_is_staged_and_keeps_what_is_committed(store, monkeypatch):
    """The first of several groups is committed, then somebody presses Ctrl-C."""
    monkeypatch.setattr("os.cpu_count", lambda: 8)  # several groups at once
    table = with_files(store, 12)
    half = sum(file.size_bytes for file in manifest(table).files) // 4
    commit = PartitionLog.commit

    def interrupted(log, change, **known):
        monkeypatch.setattr(PartitionLog, "commit", _interrupt)
        return commit(log, change, **known)

    monkeypatch.setattr(PartitionLog, "commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        table.compact(DAY, CompactionRequest(force=True, target_file_bytes=half))
    monkeypatch.setattr(PartitionLog, "commit", commit)
    assert manifest(table).history[-1].kind == "compact"
    assert ids(table) == folder_ids(store, FOLDER) == list(range(ROWS))
    staged = list(store.list_staged(""))
    assert len(staged) <= 1  # of the commit that was interrupted itself


def _interrupt(log, change, **known):
    raise KeyboardInterrupt


def test_a_partition_that_nobody_wrote_has_nothing_to_compact(store):
    table = with_files(store, 2)
    report = table.compact("2025-03-01", FORCE)
    assert (report.files_before, report.files_after, report.skipped) == (0, 0, ())


def test_planning_changes_nothing(store):
    table = with_files(store, 4)
    before = listed(store, "")
    plan = table.compaction_plan(DAY, FORCE)
    assert [len(group.files) for group in plan.groups] == [4]
    assert listed(store, "") == before


def test_an_open_partition_waits_for_enough_files_of_a_size(store):
    table = with_files(store, 2, lateness="P10000D")
    report = table.compact(DAY, CompactionRequest())
    assert report.files_compacted == 0
    assert {each.reason for each in report.skipped} == {"only 2 small files, 3 are needed"}


def test_appends_while_files_are_rewritten_are_kept(store):
    table = with_files(store, 4)
    later = iter([lambda: export(HiveTable(store, table.feed), stream_of(numbered(range(24, 30), partition=1)))])

    def append(_progress):
        for write in later:
            write()

    before = manifest(table)
    report = table.compact(DAY, FORCE, on_progress=append)
    assert report.files_compacted == 4
    assert manifest(table).generation >= before.generation + 1
    assert ids(table) == list(range(30))
    assert list(table.verify(deep=True)) == []


def test_two_compactions_of_the_same_files_merge_them_once(store):
    table = with_files(store, 6)
    rival = iter([lambda: HiveTable(store, table.feed).compact(DAY, FORCE)])

    def compete(_progress):
        for compact in rival:
            compact()

    report = table.compact(DAY, FORCE, on_progress=compete)
    assert report.files_compacted == 0
    assert report.files_after == 1
    assert ids(table) == folder_ids(store, FOLDER) == list(range(ROWS))
    assert list(store.list_staged("")) == []


def test_a_file_that_is_gone_before_it_is_read_is_somebody_elses_success(store, monkeypatch):
    table = with_files(store, 6)
    stale = table._folder.log(DAY).load()
    HiveTable(store, table.feed).compact(DAY, FORCE)
    settled = compaction.Compaction._settled
    manifests = iter([stale])
    monkeypatch.setattr(compaction.Compaction, "_settled", lambda self: next(manifests, None) or settled(self))
    report = table.compact(DAY, FORCE)
    assert report.files_compacted == 0
    assert ids(table) == list(range(ROWS))


@pytest.mark.parametrize("body", [b"", b"id,rowtime\n", b"PAR1PAR1", None], ids=["empty", "text", "short", "cut"])
def test_a_damaged_file_is_named_and_stays_and_the_rest_is_merged(store, body):
    table = with_files(store, 6)
    bad = manifest(table).files[2]
    key = f"{FOLDER}/{bad.name}"
    whole = store.get(key)[0]
    damaged = whole[:-20] if body is None else body
    store.put(key, damaged)
    report = table.compact(DAY, FORCE)
    assert (report.files_compacted, report.files_after) == (5, 2)
    told = {each.name: each for each in report.skipped}
    assert told[bad.name].unusable
    assert store.get(key)[0] == damaged
    store.put(key, whole)
    assert ids(table) == list(range(ROWS))


def test_a_run_takes_no_more_files_than_it_may_and_the_next_goes_on(store):
    table = with_files(store, 12)
    first = table.compact(DAY, CompactionRequest(force=True, max_files=5))
    assert (first.files_compacted, first.files_after) == (5, 8)
    assert any("left for the next run" in each.reason for each in first.skipped)
    while table.compact(DAY, CompactionRequest(force=True, max_files=5)).files_compacted:
        pass
    assert len(manifest(table).files) == 1
    assert ids(table) == list(range(ROWS))


@pytest.mark.parametrize("kernel", ["concat", "reencode"])
def test_the_feed_chooses_the_kernel(store, kernel):
    table = with_files(store, 4, compaction={"kernel": kernel})
    report = table.compact(DAY, FORCE)
    assert report.kernel == kernel
    (key,) = listed(store, FOLDER)
    groups = pq.read_metadata(store.path(key), filesystem=store.filesystem()).num_row_groups
    assert groups == (4 if kernel == "concat" else 1)
    assert ids(table) == list(range(ROWS))


def _noting(make, encoded):
    def made(*arguments, **options):
        segment = make(*arguments, **options)
        encoded.append(segment.metadata.num_rows)
        return segment

    return made


def test_what_several_groups_became_is_merged_without_encoding_it_again(store, monkeypatch):
    """Where encoding makes files smaller, the outputs of a first pass are small files to a second one."""
    settings = partial(rewrite_settings.RewriteSettings, as_large=0)
    monkeypatch.setattr(rewrite_settings, "RewriteSettings", settings)
    encoded = []
    for name in ("encode", "adopted"):
        monkeypatch.setattr(segments.Encoder, name, _noting(getattr(segments.Encoder, name), encoded))
    table = with_files(store, 12, compaction={"kernel": "reencode"})
    size = sum(file.size_bytes for file in manifest(table).files[:4])
    report = table.compact(DAY, CompactionRequest(force=True, target_file_bytes=size))
    assert (report.files_after, report.kernel) == (1, "reencode")
    assert report.files_compacted > 12
    assert (sum(encoded), len(encoded) > 1) == (ROWS, True)
    assert ids(table) == folder_ids(store, FOLDER) == list(range(ROWS))


def test_files_that_are_merged_in_any_case_are_read_in_one_piece(store, monkeypatch):
    """Large ones, too; but for what the compaction has made itself, whose row groups are copied."""
    for name in ("WHOLE_LOCAL_BYTES", "WHOLE_BYTES", "WHOLE_UNLESS_COPIED_BYTES"):
        monkeypatch.setattr(compaction_inputs, name, 0)
    in_place, opened = [], compaction_inputs.Inputs._in_place
    monkeypatch.setattr(
        compaction_inputs.Inputs, "_in_place", lambda self, file: in_place.append(file.name) or opened(self, file)
    )
    table = with_files(store, 12, compaction={"kernel": "reencode"})
    files = manifest(table).files
    size = sum(file.size_bytes for file in files[:4])
    report = table.compact(DAY, CompactionRequest(force=True, target_file_bytes=size))
    assert report.files_compacted > 12
    assert in_place
    assert {file.name for file in files}.isdisjoint(in_place)
    assert ids(table) == list(range(ROWS))


def test_rows_are_sorted_where_the_feed_asks_for_it(store):
    table = with_files(store, 4, compaction={"sort_by": ["note"]})
    table.compact(DAY, FORCE)
    (key,) = listed(store, FOLDER)
    notes = pq.read_table(store.path(key), filesystem=store.filesystem())["note"].to_pylist()
    assert notes == sorted(f"n{i}" for i in range(ROWS))


def test_a_file_that_cannot_be_split_is_rewritten_once_and_told(store):
    """Its only row group is as large as the target, and the kernel copies row groups."""
    table = with_files(store, 1, compaction={"kernel": "concat", "split_above": 1})
    size = manifest(table).files[0].size_bytes
    report = table.compact(DAY, CompactionRequest(force=True, target_file_bytes=size // 2))
    assert (report.files_compacted, manifest(table).generation) == (0, 1)
    assert [each.reason for each in report.skipped] == ["cannot be split: a row group is as large as the target"]
    assert list(store.list_staged("")) == []


def test_a_version_of_a_table_is_compacted_too(store):
    table = HiveTable(store, table_feed())
    export(table, table_of(10))
    assert table.compact("v1", FORCE).files_after == 1
    assert ids(table) == list(range(10))


def test_progress_ends_with_all_bytes_done(store):
    table = with_files(store, 4)
    told = []
    table.compact(DAY, FORCE, on_progress=told.append)
    assert told[-1].bytes_done == told[-1].bytes_planned > 0


def test_health_after_a_forced_compaction_is_by_the_policy_all_the_same(local_store):
    """What was asked for this once says nothing of what the sensor would do next."""
    table = with_files(local_store, ROWS)

    report = table.compact(DAY, CompactionRequest(force=True, max_files=10))

    assert (report.files_compacted, report.health.files) == (10, 15)
    assert report.health == table.snapshot([DAY]).health(DAY, CompactionRequest())
    assert report.health.needs_compaction
