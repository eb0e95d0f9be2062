"""Marts as Dagster sees them: downstream of what they read, made by ranges, and asked for by a sensor of their own."""

from __future__ import annotations

import json

import dagster as dg
import pytest

from datalake_assets.defs.build import build_definitions
from datalake_assets.defs.feeds.runner import FeedRunner, default_resources
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runtime import known_dagster_warnings_ignored
from datalake_assets.defs.storage import io_manager
from datalake_assets.defs.upkeep.mart_sensor import MartSensor
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import MartSource
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.policies import Checks, RangeRule
from datalake_assets.settings import load_settings
from datalake_assets_tests.sources.files.dropping import Dropping, files_feed

SUMS = "SELECT item, sum(amount)::BIGINT AS total FROM s GROUP BY ALL"


@pytest.fixture
def lake(tmp_path) -> Lake:
    """A lake with a stream of files ``s`` by day, a mart by day, and one that is whole."""
    (tmp_path / "drop").mkdir()
    (tmp_path / "lake").mkdir()
    made = Lake(load_settings(lake=str(tmp_path / "lake")))
    feed = files_feed(str(tmp_path / "drop"))
    for each in (
        feed,
        Feed(name="sums", kind="stream", source=MartSource(query=SUMS), start=feed.start),
        Feed(name="top", kind="table", source=MartSource(query="SELECT max(total) AS most FROM sums")),
    ):
        FeedRegistry(made.store).add(each)
    return made


@pytest.fixture
def dropping(lake, tmp_path) -> Dropping:
    return Dropping(lake.store, tmp_path / "drop", lake.registry.get("s"))


def runner_of(lake: Lake) -> FeedRunner:
    return FeedRunner(lake.registry.list().feeds, lake, default_resources(lake.settings))


def test_marts_are_downstream_of_what_they_read_and_tell_of_their_columns(lake, dropping):
    runner = runner_of(lake)
    dropping.drop("a.csv", "item,amount\n1,10\n1,5\n2,1\n")
    with dg.DagsterInstance.ephemeral() as instance, known_dagster_warnings_ignored():
        results = [runner.export(instance, name, quiet=True) for name in runner.exported]
        landed = [(each.feed, each.error, each.rows_added) for each in results]
        assert landed == [("s", None, 3), ("sums", None, 2), ("top", None, 1)]
        repeated = [runner.export(instance, name, quiet=True) for name in runner.exported]
        assert [each.rows_added for each in repeated] == [0, 0, 0]
        event = instance.get_latest_materialization_event(dg.AssetKey(["marts", "sums"]))
        metadata = event.asset_materialization.metadata
    keys = {name: asset_key(runner.feeds[name]) for name in runner.feeds}
    graph = runner.definitions.resolve_asset_graph()
    assert graph.get(keys["sums"]).parent_keys == {keys["s"]}
    assert graph.get(keys["top"]).parent_keys == {dg.AssetKey(["marts", "sums"])}
    lineage = metadata["dagster/column_lineage"].value.deps_by_column
    assert {name: [(each.asset_key, each.column_name) for each in deps] for name, deps in lineage.items()} == {
        "item": [(keys["s"], "item")],
        "total": [(keys["s"], "amount")],
    }
    assert metadata["dagster/partition_row_count"].value == 2
    assert "| total | streams/s.amount |" in metadata["datalake/made_of"].value


def test_mart_whose_lineage_cannot_be_told_is_landed_all_the_same(lake, dropping, monkeypatch):
    def odd(*_: object) -> None:
        raise KeyError("node")

    monkeypatch.setattr(io_manager, "lineage_metadata", odd)
    runner = runner_of(lake)
    dropping.drop("a.csv", "item,amount\n1,10\n")
    with dg.DagsterInstance.ephemeral() as instance, known_dagster_warnings_ignored():
        results = [runner.export(instance, name, quiet=True) for name in ("s", "sums")]
    assert [(each.error, each.rows_added) for each in results] == [(None, 1), (None, 1)]


def test_sensor_of_a_mart_asks_for_a_run_only_when_it_is_stale(lake, dropping):
    definitions, runner = build_definitions(lake.settings), runner_of(lake)
    (sensor,) = [each for each in definitions.sensors if each.name == "mart_sensor_sums"]

    def look(cursor):
        with dg.build_sensor_context(instance, cursor=cursor, definitions=definitions) as context:
            return sensor.evaluate_tick(context)

    with dg.DagsterInstance.ephemeral() as instance, known_dagster_warnings_ignored():
        first = look(None)
        assert first.skip_message == "it is up to date"
        assert look(first.cursor).skip_message == "nothing that it reads has changed"

        dropping.drop("a.csv", "item,amount\n1,10\n")
        runner.export(instance, "s", quiet=True)
        asked = look(first.cursor)
        (request,) = asked.run_requests
        assert asset_key(runner.feeds["sums"]) in request.asset_selection
        assert "its last run failed, and is tried again in" in look(asked.cursor).skip_message

        runner.export(instance, "sums", quiet=True)
        late = json.loads(asked.cursor) | {"asked_at": 0}
        assert look(json.dumps(late)).skip_message == "it is up to date"


def test_a_blocking_check_that_fails_keeps_marts_from_being_made_until_it_passes(lake, dropping):
    registry, feed = FeedRegistry(lake.store), lake.registry.get("s")
    rule = RangeRule(column="amount", min=0)
    blocking = feed.model_copy(update={"checks": Checks(rules=(rule,), blocking=("range_amount",))})
    registry.update(blocking, expected_revision=feed.revision)
    definitions, runner = build_definitions(lake.settings), runner_of(lake)
    (sensor,) = [each for each in definitions.sensors if each.name == "mart_sensor_sums"]
    dropping.drop("a.csv", "item,amount\n1,-10\n")
    with dg.DagsterInstance.ephemeral() as instance, known_dagster_warnings_ignored():
        runner.export(instance, "s", quiet=True)
        held = runner.export(instance, "sums", quiet=True)
        assert "feed 'sums' is not made anew: check range_amount of streams/s fails" in (held.error or "")
        with dg.build_sensor_context(instance, definitions=definitions) as context:
            assert sensor.evaluate_tick(context).skip_message == "it waits for check range_amount of streams/s"

        dropping.drop("a.csv", "item,amount\n1,10\n")
        runner.export(instance, "s", quiet=True)
        assert runner.export(instance, "sums", quiet=True).rows_added == 1


def test_sensor_of_a_mart_tries_again_after_twice_as_long():
    feed = Feed(name="m", kind="table", source=MartSource(query="SELECT 1 AS a"))
    sensor = MartSensor(feed, [dg.AssetKey("a")], is_stale=lambda: True, next_run=lambda _: dg.RunRequest())
    with dg.DagsterInstance.ephemeral() as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization("a"))
        cursor, now, waits = None, 1_000.0, []
        for _ in range(4):
            result = sensor.tick(instance, cursor, now=now)
            assert len(result.run_requests or []) == 1
            cursor, asked = result.cursor, now
            while not sensor.tick(instance, cursor, now=now).run_requests:
                now += 10
            waits.append(now - asked)

    assert waits == [60, 120, 240, 480]


def test_sensor_of_a_mart_looks_when_its_query_is_another_and_once_an_hour_though_no_event_came():
    feed = Feed(name="m", kind="table", source=MartSource(query="SELECT 1 AS a"), revision=1)
    stale = [False]

    def sensor(feed):
        return MartSensor(feed, [dg.AssetKey("a")], is_stale=lambda: stale[0], next_run=lambda _: dg.RunRequest())

    with dg.DagsterInstance.ephemeral() as instance:
        cursor = sensor(feed).tick(instance, None, now=1_000).cursor
        stale[0] = True
        assert not sensor(feed).tick(instance, cursor, now=1_030).run_requests
        changed = feed.model_copy(update={"source": MartSource(query="SELECT 2 AS a"), "revision": 2})
        assert len(sensor(changed).tick(instance, cursor, now=1_030).run_requests) == 1
        assert len(sensor(feed).tick(instance, cursor, now=4_600).run_requests) == 1


def test_a_mart_with_a_schedule_has_no_sensor_and_one_that_reads_what_is_gone_harms_no_other(lake):
    registry = FeedRegistry(lake.store)
    registry.add(Feed(name="timed", kind="table", source=MartSource(query=SUMS), schedule="0 3 * * *"))
    registry.add(Feed(name="lost", kind="table", source=MartSource(query="SELECT * FROM gone")))
    definitions = build_definitions(lake.settings)

    named = {each.name for each in definitions.sensors if each.name.startswith("mart_sensor")}
    assert named == {"mart_sensor_sums", "mart_sensor_top", "mart_sensor_lost"}
    assert "export_table_timed" in {each.name for each in definitions.schedules}
    with dg.DagsterInstance.ephemeral() as instance, known_dagster_warnings_ignored():
        error = runner_of(lake).export(instance, "lost", quiet=True).error or ""
    assert "there is no feed 'gone' in this lake" in error
