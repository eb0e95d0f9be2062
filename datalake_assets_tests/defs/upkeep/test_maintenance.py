"""`maintenance` on lakes of files: what it puts in order, what it reports, and that no feed holds up another."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.defs.build import build_definitions
from datalake_assets.defs.compaction.job import COMPACT_PARTITION, FEED_TAG
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.upkeep.maintenance import MAINTAIN_OP, MAINTENANCE, NIGHTLY_MAINTENANCE
from datalake_assets.feed import Feed
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.iceberg import iceberg_table
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import Settings
from datalake_assets.testing.tables import ids_of
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of, table_feed, table_of
from datalake_assets_tests.lake.iceberg.iceberg_feeds import seen_by_others
from datalake_assets_tests.lake.many_files import DAYS, append, ids_in


@pytest.fixture
def job(local_store: Store) -> dg.JobDefinition:
    return build_definitions(Settings(lake=local_store.uri)).resolve_job_def(MAINTENANCE)


@pytest.fixture
def feed(local_store: Store) -> Feed:
    """The stream ``s``: three closed days of four small files."""
    added = FeedRegistry(local_store).add(stream_feed())
    append(local_store, added, times=4)
    return added


def run(job: dg.JobDefinition, instance: dg.DagsterInstance, **config: object) -> dg.ExecuteInProcessResult:
    chosen = {"ops": {MAINTAIN_OP: {"config": config}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return job.execute_in_process(instance=instance, run_config=chosen, raise_on_error=False)


def row(result: dg.ExecuteInProcessResult, feed: Feed) -> dict[str, str]:
    """The feed's line of the table that the run shows."""
    outputs = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    failures = [event for event in result.all_events if event.is_step_failure]
    if outputs:
        shown = outputs[0].step_output_data.metadata["datalake/maintenance"].value
    else:
        shown = failures[0].step_failure_data.user_failure_data.metadata["datalake/maintenance"].value
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines()]
    return next(dict(zip(head, each, strict=True)) for each in rows if each[0] == feed.path)


def warned(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> list[str]:
    entries = instance.all_logs(result.run_id)
    return [entry.user_message for entry in entries if entry.level == 30 and not entry.is_dagster_event]


def observed(instance: dg.DagsterInstance, feed: Feed, name: str) -> list[tuple[str | None, object]]:
    records = instance.fetch_observations(asset_key(feed), limit=100, ascending=True).records
    found = [record.asset_observation for record in records]
    return [(each.partition, each.metadata[name].value) for each in found if name in each.metadata]


def test_closed_partitions_end_as_one_file_with_the_same_rows(job, feed, instance, local_store):
    result = run(job, instance)

    assert result.success
    line = row(result, feed)
    assert (line["partitions compacted"], line["files before → after"], line["result"]) == ("3", "12 → 3", "ok")
    assert ids_in(local_store, feed) == list(range(12))
    assert observed(instance, feed, "datalake/files_removed") == [(key, 3) for key in DAYS]
    again = row(run(job, instance), feed)
    assert (again["partitions compacted"], again["compared"]) == ("0", "3")


def test_feed_that_is_not_to_be_compacted_is_only_put_in_order(job, instance, local_store):
    added = FeedRegistry(local_store).add(stream_feed(compaction={"enabled": False}))
    append(local_store, added, times=4)

    line = row(run(job, instance), added)

    assert (line["partitions compacted"], line["compared"]) == ("0", "3")


def test_nothing_is_compacted_where_nobody_asked_for_it_or_no_time_is_left(job, feed, instance):
    assert row(run(job, instance, compact=False), feed)["partitions compacted"] == "0"
    late = run(job, instance, compact_hours=0.0)
    assert row(late, feed)["partitions compacted"] == "0"
    assert warned(instance, late) == ["streams/s: no time left for 3 partitions that need compaction"]


def test_what_runs_that_wait_are_about_is_left_to_them(job, feed, instance, local_store):
    compact = build_definitions(Settings(lake=local_store.uri)).resolve_job_def(COMPACT_PARTITION)
    config = {"ops": {"compact": {"config": {"feed": feed.name, "partitions": [DAYS[1]]}}}}
    instance.create_run_for_job(compact, run_config=config, tags={FEED_TAG: feed.path})

    assert row(run(job, instance), feed)["partitions compacted"] == "2"
    assert [key for key, _ in observed(instance, feed, "datalake/files_removed")] == [DAYS[0], DAYS[2]]


def test_what_a_listing_finds_is_a_warning_and_numbers_and_nothing_is_deleted(job, feed, instance, local_store):
    folder = Path(local_store.uri) / "streams/s/year=2025/month=01/day=02"
    gone = min(folder.iterdir())
    gone.unlink()
    (folder / "theirs.parquet").write_text("x")

    result = run(job, instance, compact=False)

    assert result.success
    key = "streams/s/year=2025/month=01/day=02"
    assert [line.rpartition(": ")[0] for line in warned(instance, result)] == [
        f"streams/s: missing: {key}/{gone.name}",
        f"streams/s: unknown file: {key}/theirs.parquet",
    ]
    line = row(result, feed)
    assert (line["missing"], line["unknown"], line["result"]) == ("1", "1", "2 differences")
    assert observed(instance, feed, "datalake/files_missing") == [(None, 1)]
    assert observed(instance, feed, "datalake/files_unknown") == [(None, 1)]
    assert (folder / "theirs.parquet").read_text() == "x"


def test_slices_are_compared_in_turn(job, feed, instance):
    assert row(run(job, instance, compact=False, verify_partitions=2), feed)["compared"] in {"1", "2"}
    assert row(run(job, instance, compact=False, verify_partitions=0), feed)["compared"] == "0"


def test_interrupted_commits_and_what_kills_left_are_swept(job, feed, instance, local_store):
    staged = local_store.stage("streams/s/year=2025/month=01/day=01/data_x.parquet")
    staged.write(b"x")
    token = staged.finish().token
    temporary = Path(local_store.uri) / ".staging/tmp/leftover"
    temporary.write_bytes(b"x")
    for file in (Path(local_store.uri) / token, temporary):
        then = file.stat().st_mtime - timedelta(days=2).total_seconds()
        os.utime(file, (then, then))

    line = row(run(job, instance), feed)

    assert line["leftovers swept"] == "1"
    assert not temporary.exists()
    assert not (Path(local_store.uri) / token).exists()


def test_one_feed_that_fails_stops_no_other_and_fails_the_run_at_the_end(job, feed, instance, local_store):
    other = FeedRegistry(local_store).add(stream_feed(name="a"))
    append(local_store, other, times=4)
    (Path(local_store.uri) / "control/streams/a/feed.json").write_text("{")
    (Path(local_store.uri) / "control/streams/a/year=2025/month=01/day=01/manifest.json").write_text("{")

    result = run(job, instance)

    assert not result.success
    (event,) = [event for event in result.all_events if event.is_step_failure]
    text = event.step_failure_data.user_failure_data.description
    assert text.startswith("1 of 2 feeds were not maintained as a whole: streams/a: 2025-01-01: ")
    assert row(result, feed)["result"] == "ok"
    assert (row(result, other)["partitions compacted"], row(result, feed)["partitions compacted"]) == ("2", "3")


def test_error_that_nobody_foresaw_in_one_feed_stops_no_other(job, feed, instance, local_store, monkeypatch):
    other = FeedRegistry(local_store).add(stream_feed(name="a"))
    append(local_store, other, times=4)
    repair = HiveTable.repair

    def odd(self, **given):
        if self.feed.name == "a":
            raise KeyError("files")
        return repair(self, **given)

    monkeypatch.setattr(HiveTable, "repair", odd)
    result = run(job, instance)

    (event,) = [event for event in result.all_events if event.is_step_failure]
    assert event.step_failure_data.user_failure_data.description == (
        "1 of 2 feeds were not maintained as a whole:"
        " streams/a: unexpected KeyError: 'files' (a bug; see where with -v)"
    )
    assert [row(result, each)["partitions compacted"] for each in (other, feed)] == ["3", "3"]


def test_only_named_feeds_are_maintained_and_they_have_to_exist(job, feed, instance, local_store):
    FeedRegistry(local_store).add(stream_feed(name="a"))

    assert row(run(job, instance, feeds=["s"]), feed)["result"] == "ok"
    gone = run(job, instance, feeds=["clix"])

    (event,) = [event for event in gone.all_events if event.is_step_failure]
    assert event.step_failure_data.user_failure_data.description.startswith("feed 'clix' does not exist")


def test_retention_is_applied_and_dagster_has_the_partitions_that_there_are(job, instance, local_store):
    many = FeedRegistry(local_store).add(table_feed(retention={"versions": 5}))
    table = HiveTable(local_store, many)
    for count in (3, 4, 5):
        table.write(table_of(count), partitions=table.plan().partitions, run_id="r")
    planned = table.plan().partitions[0]
    instance.add_dynamic_partitions(many.path, ["v1", "v2", planned])
    registry = FeedRegistry(local_store)
    fewer = many.retention.model_copy(update={"versions": 2})
    registry.update(many.model_copy(update={"retention": fewer}), expected_revision=many.revision)

    line = row(run(job, instance), many)

    assert line["versions removed"] == "1"
    assert table.partitions() == ("v2", "v3")
    assert set(instance.get_dynamic_partitions(many.path)) == {"v2", "v3", planned}


def test_files_that_others_put_into_a_folder_are_noticed_and_compacted(job, instance, local_store):
    folder = Path(local_store.uri).parent / "raw"
    (folder / "day=1").mkdir(parents=True)
    pq.write_table(pa.table({"id": [1]}), folder / "day=1" / "a.parquet")
    one = adopt(local_store, str(folder), "raw").feed
    for name in "bcd":
        pq.write_table(pa.table({"id": [2]}), folder / "day=1" / f"{name}.parquet")
    (folder / "day=1" / "bad.parquet").write_text("no")

    result = run(job, instance)

    assert (row(result, one)["folders taken over"], row(result, one)["files before → after"]) == ("1", "4 → 1")
    assert instance.get_dynamic_partitions(one.path) == ["day=1"]
    assert observed(instance, one, "datalake/files") == [("day=1", 4), ("day=1", 1)]
    assert "day=1/bad.parquet cannot be read" in warned(instance, result)[0]


def test_damaged_file_is_not_read_again_every_night(job, feed, instance, local_store):
    file = min((Path(local_store.uri) / "streams/s/year=2025/month=01/day=01").iterdir())
    size = file.stat().st_size
    file.write_bytes(b"x" * size)

    assert row(run(job, instance), feed)["partitions compacted"] == "3"
    before = len(observed(instance, feed, "datalake/files_unusable"))
    assert row(run(job, instance), feed)["partitions compacted"] == "0"
    assert len(observed(instance, feed, "datalake/files_unusable")) == before


def test_feed_file_that_is_not_valid_is_a_warning(job, feed, instance, local_store):
    (Path(local_store.uri) / "feeds/active/bad.json").write_text("{")
    result = run(job, instance)
    assert result.success
    assert warned(instance, result)[0].startswith("feeds/active/bad.json is skipped")


def test_schedule_asks_for_a_run_each_night(local_store, instance):
    definitions = build_definitions(Settings(lake=local_store.uri))
    schedule = definitions.resolve_schedule_def(NIGHTLY_MAINTENANCE)

    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 2 * * *", "UTC")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    data = schedule.evaluate_tick(dg.build_schedule_context(instance=instance))
    assert len(data.run_requests) == 1
    assert dg.validate_run_config(definitions.resolve_job_def(MAINTENANCE), data.run_requests[0].run_config)


def test_snapshots_of_an_iceberg_table_expire_and_its_rows_stay(job, instance, local_store, monkeypatch):
    monkeypatch.setattr(iceberg_table, "SNAPSHOTS_MS", -3_600_000)
    feed = FeedRegistry(local_store).add(stream_feed(format="iceberg"))
    table = open_table(local_store, feed)
    for start in range(0, 30, 10):
        batches = stream_of(numbered(range(start, start + 10)))
        table.write(batches, partitions=table.plan().partitions, run_id="run")
    result = run(job, instance, compact=False)
    assert (result.success, row(result, feed)["result"]) == (True, "ok")
    with seen_by_others(local_store) as seen:
        assert len(seen.snapshots()) == 1
    assert ids_of(table) == list(range(30))
