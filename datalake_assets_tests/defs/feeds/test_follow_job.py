"""The job that follows streams lands them in a run of Dagster, tells it what it landed, and ends as it is told to."""

from __future__ import annotations

import threading
import time

import dagster as dg
import pyarrow as pa
import pytest

from datalake_assets.continuous import following
from datalake_assets.core.schema import schema_to_json
from datalake_assets.defs.build import build_definitions
from datalake_assets.defs.feeds import follow_job
from datalake_assets.defs.feeds.follow_job import FOLLOW
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.upkeep.queued_events import report_queued
from datalake_assets.lake.event_queue import EventQueue
from datalake_assets.settings import Settings
from datalake_assets.sources.ksqldb.declaration import KsqlDBSettings
from datalake_assets_tests.continuous.growing import growing, payments, rows_of

OFTEN = {"max_age": "PT0.2S", "small_files": 2}
RULES = [{"type": "not_null", "column": "transaction_id"}]


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "lake").mkdir()
    with growing(2_000) as server:
        yield Settings(lake=str(tmp_path / "lake")).of(KsqlDBSettings).model_copy(update={"ksqldb_url": server.url})


def test_a_run_lands_rows_until_its_feeds_are_gone_and_tells_of_them(settings, home, tmp_path, monkeypatch):
    monkeypatch.setattr(follow_job, "REPORT_S", 0.5)
    monkeypatch.setattr(following, "LOOK_S", 0.1)
    lake = Lake(settings)
    feed = lake.registry.add(payments(batch=OFTEN, checks={"rules": RULES}))
    job = build_definitions(settings).resolve_job_def(FOLLOW)

    def archive_once_it_landed():
        ends = time.monotonic() + 120
        while time.monotonic() < ends:
            told = home.fetch_materializations(asset_key(feed), limit=100).records
            if len(told) > 1 and sum(each[1] for each in rows_of(tmp_path / "lake", feed)) > 1_000:
                break
            time.sleep(0.2)
        Lake(settings).registry.archive("payments")

    archiving = threading.Thread(target=archive_once_it_landed)
    archiving.start()
    result = job.execute_in_process(instance=home, run_config={"ops": {"follow": {"config": {"feeds": ["payments"]}}}})
    archiving.join()

    assert result.success
    made = home.fetch_materializations(asset_key(feed), limit=100).records
    added = sum(each.asset_materialization.metadata["datalake/rows_added"].value for each in made)
    assert added == sum(each[1] for each in rows_of(tmp_path / "lake", feed)) > 1_000
    assert len(made) > 1
    assert {each.run_id for each in made} == {result.run_id}
    for name in ("row_count", "quarantine", "freshness", "small_files", "not_null_transaction_id"):
        checked = home.get_latest_asset_check_evaluation_record(dg.AssetCheckKey(asset_key(feed), name))
        assert checked is not None, name


def test_a_feed_that_cannot_be_followed_fails_the_run(settings, home):
    lake = Lake(settings)
    lake.registry.add(payments())
    job = build_definitions(settings).resolve_job_def(FOLLOW)
    config = {"ops": {"follow": {"config": {"feeds": ["x"]}}}}
    result = job.execute_in_process(instance=home, run_config=config, raise_on_error=False)
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert "none that can be followed; there are payments" in failed.step_failure_data.user_failure_data.description


def test_what_a_command_followed_is_reported_with_its_checks(settings, home):
    lake = Lake(settings)
    feed = lake.registry.add(payments())
    table = lake.table(feed)
    partition = {"key": "2026-01-02", "rows": 7, "files": 0, "rows_added": 5, "files_added": 1}
    body = {
        "partitions": [partition],
        "schema": schema_to_json(pa.schema([])),
        "rows_read": 6,
        "rows_quarantined": 1,
        "batches": 3,
    }
    assert table.totals() is None
    EventQueue(lake.store).put("payments", "landing", body)
    assert report_queued(lake, home).text == "1 reported"
    (made,) = home.fetch_materializations(asset_key(feed), limit=10).records
    metadata = made.asset_materialization.metadata
    assert (made.partition_key, metadata["datalake/rows_added"].value) == ("2026-01-02", 5)
    assert [metadata[f"datalake/{name}"].value for name in ("rows_read", "rows_quarantined", "batches")] == [6, 1, 3]
    checked = home.get_latest_asset_check_evaluation_record(dg.AssetCheckKey(asset_key(feed), "quarantine"))
    assert not checked.event.dagster_event.asset_check_evaluation_data.passed
