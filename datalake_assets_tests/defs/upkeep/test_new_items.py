"""The sensor of dropped files launches exports of those that are new, and of none twice; on a real lake."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

from datalake_assets.defs.build import build_definitions
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.runtime import known_dagster_warnings_ignored
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.settings import load_settings
from datalake_assets_tests.sources.files.dropping import DROPPED, Dropping, files_feed


def look(definitions, instance, cursor=None):
    (sensor,) = [each for each in definitions.sensors if each.name == "dropped_files_sensor_s"]
    with dg.build_sensor_context(instance, cursor=cursor, definitions=definitions) as context:
        return sensor.evaluate_tick(context)


def test_sensor_launches_an_export_of_what_is_new(tmp_path):
    folder, lake = tmp_path / "drop", tmp_path / "lake"
    folder.mkdir()
    lake.mkdir()
    store, feed = open_store(str(lake)), files_feed(str(folder))
    FeedRegistry(store).add(feed)
    dropping = Dropping(store, folder, feed)
    definitions = build_definitions(load_settings(lake=str(lake)))
    with dg.DagsterInstance.ephemeral() as instance:
        nothing = look(definitions, instance)
        assert (nothing.run_requests, nothing.skip_message) == ([], "nothing new among 0 items")

        dropping.drop("b.csv", "id\n1\n")
        dropping.drop("a.csv", "id\n2\n", at=DROPPED - timedelta(days=900))
        first = look(definitions, instance, nothing.cursor)
        (request,) = first.run_requests
        job = definitions.resolve_implicit_global_asset_job_def()
        waiting = instance.create_run_for_job(job, asset_selection={asset_key(feed)}, tags=request.tags)
        assert look(definitions, instance, first.cursor).skip_message == "an export of streams/s is under way"
        instance.delete_run(waiting.run_id)

        dropping.drop("c.csv", "id\n3\n")
        with known_dagster_warnings_ignored():
            result = job.execute_in_process(
                instance=instance,
                run_config=request.run_config,
                asset_selection=request.asset_selection,
                tags=request.tags,
            )
        assert result.success
        assert dropping.rows("id") == [(1,), (2,)]  # those that the run was given

        (later,) = look(definitions, instance, first.cursor).run_requests
        assert later.run_config["ops"]["streams__s"]["config"]["items"] == ["c.csv"]
        dropping.export()
        assert look(definitions, instance, first.cursor).run_requests == []


def test_a_place_that_cannot_be_listed_is_a_reason_to_skip(tmp_path):
    (tmp_path / "lake").mkdir()
    store, feed = open_store(str(tmp_path / "lake")), files_feed(str(tmp_path / "not there"))
    FeedRegistry(store).add(feed)
    definitions = build_definitions(load_settings(lake=str(tmp_path / "lake")))
    with dg.DagsterInstance.ephemeral() as instance:
        assert "there is no such folder" in look(definitions, instance).skip_message
