"""The asset `catalog`: what its run skips was not needed, and what it does shows."""

import warnings
from pathlib import Path

import dagster as dg
import duckdb
import pytest

from datalake_assets.catalog import sync
from datalake_assets.catalog.duckdb_file import DuckDBFile
from datalake_assets.defs.upkeep.catalog_flow import CATALOG, catalog_asset, catalog_sensor
from datalake_assets.errors import LakeUnavailable
from datalake_assets_tests.defs.fakes import days_ago, stream, table
from datalake_assets_tests.defs.sent import RECENT, Sent, exporter


@pytest.fixture
def feeds(lake):
    """A stream and a table, which were exported, in a lake of files."""
    runner = exporter(
        lake, Sent({"clicks": [days_ago(1), days_ago(0)], "users": [days_ago(0)]}), stream(**RECENT), table()
    )
    for feed in runner.feeds.values():
        runner.lake.registry.add(feed)
    return runner


def ran(runner, instance, *, raises=True):
    definitions = dg.Definitions.merge(
        runner.definitions, dg.Definitions(assets=[catalog_asset(tuple(runner.feeds.values()))])
    )
    job = definitions.resolve_implicit_global_asset_job_def()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"InitResourceContext\.dagster_run is deprecated", DeprecationWarning)
        return job.execute_in_process(instance=instance, asset_selection=[CATALOG], raise_on_error=raises)


def states(result) -> dict[str, str]:
    """What became of each step."""
    kinds = {"STEP_SKIPPED": "skipped", "STEP_SUCCESS": "done", "STEP_FAILURE": "failed"}
    return {
        event.step_key.removeprefix("catalog."): kinds[event.event_type_value]
        for event in result.all_events
        if event.event_type_value in kinds
    }


def told(result) -> dict[str, str]:
    """What became of each feed, as the asset's metadata have it."""
    (event,) = [each for each in result.all_events if each.event_type_value == "ASSET_MATERIALIZATION"]
    lines = event.step_materialization_data.materialization.metadata["datalake/catalog"].value.splitlines()[2:]
    return {name: state for _, name, state in (line.strip("| ").split(" | ")[:3] for line in lines)}


def test_database_and_tables_are_created_once_and_then_only_what_is_behind_is_updated(feeds, lake, instance):
    feeds.export(instance, "clicks", quiet=True)

    first = states(ran(feeds, instance))
    assert {name: first[name] for name in ("create_database", "create_tables", "update_tables", "finish")} == {
        "create_database": "done",
        "create_tables": "done",
        "update_tables": "skipped",
        "finish": "done",
    }

    second = ran(feeds, instance)
    assert told(second) == {"clicks": "current", "users": "left_out"}
    assert [name for name, state in states(second).items() if state == "skipped"] == [
        "create_database",
        "create_tables",
        "update_tables",
    ]

    feeds.export(instance, "users", quiet=True)
    ran(feeds, instance)
    feeds.export(instance, "users", quiet=True)
    third = states(ran(feeds, instance))
    assert (third["create_tables"], third["update_tables"]) == ("skipped", "done")
    with duckdb.connect(lake.store.path("lake.duckdb"), read_only=True) as connection:
        assert connection.execute("SELECT DISTINCT version FROM users").fetchall() == [("v2",)]


def test_step_is_retried_and_a_feed_that_cannot_be_entered_fails_the_run_and_no_other_feed(
    feeds, lake, instance, monkeypatch
):
    for name in ("clicks", "users"):
        feeds.export(instance, name, quiet=True)
    with duckdb.connect(lake.store.path("lake.duckdb")) as connection:
        connection.execute("CREATE VIEW clicks AS SELECT 1 AS somebodys")

    failed = ran(feeds, instance, raises=False)

    assert not failed.success
    assert states(failed)["finish"] == "failed"
    with duckdb.connect(lake.store.path("lake.duckdb"), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (1,)
        assert connection.execute("SELECT * FROM clicks").fetchone() == (1,)


def test_catalog_that_does_not_answer_keeps_no_other_from_being_brought_in_step(feeds, lake, instance, monkeypatch):
    class Away(DuckDBFile):
        kind = "glue"

        def has_database(self) -> bool:
            raise LakeUnavailable("glue", "no access")

        known = has_database

    monkeypatch.setitem(sync.CATALOGS, "glue", lambda _, store: Away(Path(store.path("away.duckdb")), lake=store.uri))
    monkeypatch.setattr(sync, "catalog_kinds", lambda *_: ("glue", "duckdb"))
    for name in ("clicks", "users"):
        feeds.export(instance, name, quiet=True)

    failed = ran(feeds, instance, raises=False)

    (failure,) = [each for each in failed.all_events if each.is_step_failure]
    assert failure.step_failure_data.user_failure_data.description.startswith(
        "1 feeds and views could not be entered: the catalog glue: glue: no access"
    )
    with duckdb.connect(lake.store.path("lake.duckdb"), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (1,)


def test_sensor_asks_for_a_run_after_an_export_and_is_quiet_without(feeds, instance):
    sensor = catalog_sensor(tuple(feeds.feeds.values()))

    def tick(cursor):
        context = dg.build_sensor_context(instance=instance, cursor=cursor)
        return sensor.evaluate_tick(context)

    assert not tick(None).run_requests
    feeds.export(instance, "clicks", quiet=True)
    asked = tick(None)
    assert [each.asset_selection for each in asked.run_requests] == [[CATALOG]]
    assert not tick(asked.cursor).run_requests
