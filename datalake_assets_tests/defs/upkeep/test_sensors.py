"""Sensors, each against the real thing that it watches: a registry, a web server, a process, an event log."""

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dagster as dg
import pytest

from datalake_assets.defs.build import build_definitions
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.runs import PID_TAG
from datalake_assets.defs.runtime import cursor_state
from datalake_assets.defs.upkeep.sensors import (
    dead_run_sensor,
    feed_registry_sensor,
    freshness_sensor,
    interrupted_commit_sensor,
    repair_feeds,
)
from datalake_assets.errors import CorruptLake, SourceUnavailable
from datalake_assets.policies import Freshness
from datalake_assets.settings import Settings
from datalake_assets_tests.defs.fakes import MemoryLake, days_ago, resources, runner, stream, table
from datalake_assets_tests.defs.runs.left_runs import dead_pid, started_run

LOADED = {"__typename": "WorkspaceLocationEntry", "locationOrLoadError": {"__typename": "RepositoryLocation"}}
BROKEN = {
    "__typename": "WorkspaceLocationEntry",
    "locationOrLoadError": {"__typename": "PythonError", "message": "lake: no such bucket"},
}


class WebServer:
    """What the sensor needs of Dagster's web server; ``answer`` is its answer, ``asked`` what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, object]] = []
        self.answer: dict[str, object] = LOADED
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                body = json.dumps({"data": {"reloadRepositoryLocation": outer.answer}}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def web_server() -> Iterator[WebServer]:
    server = WebServer()
    yield server
    server.close()


@pytest.fixture
def watched(lake: MemoryLake, web_server: WebServer) -> MemoryLake:
    return MemoryLake(Settings(lake=lake.settings.lake, webserver_url=web_server.url))


def tick(sensor: dg.SensorDefinition, instance: dg.DagsterInstance, cursor: str | None = None):
    with dg.build_sensor_context(instance=instance, cursor=cursor, sensor_name=sensor.name) as context:
        return sensor.evaluate_tick(context)


def test_registry_sensor_is_quiet_while_the_feeds_are_as_loaded(watched, web_server, instance):
    sensor = feed_registry_sensor(watched, loaded=watched.registry.digest())

    assert tick(sensor, instance).skip_message == "feeds are as loaded"
    assert web_server.asked == []


def test_registry_sensor_asks_for_one_reload_per_change(watched, web_server, instance):
    sensor = feed_registry_sensor(watched, loaded=watched.registry.digest())
    watched.registry.add(stream())

    first = tick(sensor, instance)
    second = tick(sensor, instance, first.cursor)
    watched.registry.add(table())
    third = tick(sensor, instance, second.cursor)

    assert first.skip_message == third.skip_message == "feeds changed; the code location was reloaded"
    assert second.skip_message == "a reload was asked for; this process still has the old feeds"
    assert [asked["variables"] for asked in web_server.asked] == [{"name": "datalake_assets"}] * 2


def test_registry_sensor_is_quiet_and_tries_again_when_no_web_server_runs(lake, instance):
    sensor = feed_registry_sensor(lake, loaded="something else")

    result = tick(sensor, instance)

    assert result.skip_message == "no reload by the web server at 127.0.0.1:9: ConnectError"
    assert result.cursor is None


def test_registry_sensor_says_why_a_reloaded_location_does_not_load(watched, web_server, instance):
    web_server.answer = BROKEN
    sensor = feed_registry_sensor(watched, loaded="something else")

    assert tick(sensor, instance).skip_message == "the location did not load: lake: no such bucket"


def test_dead_run_sensor_says_what_it_failed(instance):
    gone = started_run(instance, **{PID_TAG: str(dead_pid())})

    assert tick(dead_run_sensor(), instance).skip_message == f"failed {gone.run_id}: the process is gone"
    assert tick(dead_run_sensor(), instance).skip_message == "no dead runs"


def test_interrupted_commit_sensor_repairs_the_feed_of_a_failed_run(lake, instance):
    feeds = {feed.name: feed for feed in (stream(), table())}
    lake.broken["clicks"] = SourceUnavailable("x", "y")
    result = runner(lake, *feeds.values()).export(instance, "clicks", quiet=True)
    run = instance.get_run_by_id(result.run_id)
    (failure,) = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    context = dg.build_run_status_sensor_context(
        "interrupted_commit_sensor", failure.dagster_event, instance, run
    ).for_run_failure()

    skip = interrupted_commit_sensor(feeds, lake)(context)

    assert skip.skip_message == "streams/clicks: 1 commits finished, 0 undone, 0 leftovers swept"
    assert (lake.memory(stream()).repaired, lake.memory(table()).repaired) == (1, 0)


@pytest.mark.parametrize("error", [CorruptLake("manifest.json", "it is damaged"), KeyError("nobody foresaw it")])
def test_freshness_sensor_reports_changes_once_whatever_another_feed_is_like(lake, instance, monkeypatch, error):
    feed = stream(freshness=Freshness(max_event_age=timedelta(days=2)))
    damaged = stream("damaged", freshness=Freshness(max_event_age=timedelta(days=2)))

    def table_of(feed):
        if feed is damaged:
            raise error
        return lake.memory(feed)

    monkeypatch.setattr(lake, "table", table_of)
    sensor = freshness_sensor({"damaged": damaged, "clicks": feed}, lake)
    assert tick(sensor, instance, "[of another release").skip_message == "no news"  # never exported

    lake.sent["clicks"] = [days_ago(9)]
    runner(lake, feed).export(instance, "clicks", quiet=True)
    late = tick(sensor, instance)
    again = tick(sensor, instance, late.cursor)
    lake.sent["clicks"] = [days_ago(0)]
    runner(lake, feed).export(instance, "clicks", quiet=True)
    fresh = tick(sensor, instance, again.cursor)

    assert [event.passed for event in late.asset_events] == [False]
    assert late.asset_events[0].asset_key == asset_key(feed)
    assert again.skip_message == "no news"
    assert [event.passed for event in fresh.asset_events] == [True]


def test_feed_whose_repair_fails_as_nobody_foresaw_keeps_no_other_from_it(lake, instance, monkeypatch):
    odd, well = stream("odd"), stream()

    def table_of(feed):
        if feed is odd:
            raise KeyError("files")
        return lake.memory(feed)

    monkeypatch.setattr(lake, "table", table_of)
    assert repair_feeds(lake, [odd, well]) == [
        "streams/odd: unexpected KeyError: 'files' (a bug; see where with -v)",
        "streams/clicks: 1 commits finished, 0 undone, 0 leftovers swept",
    ]


@pytest.mark.parametrize("cursor", [None, "", "{", "[1]", "[" * 100_000, '"x"'])
def test_cursor_that_cannot_be_read_counts_as_none(cursor):
    assert cursor_state(cursor) == {}


def test_definitions_have_the_sensors_on(lake):
    lake.registry.add(stream())

    definitions = build_definitions(lake.settings, lake=lake, resources=resources(lake))

    sensors = definitions.get_repository_def().sensor_defs
    assert {sensor.name for sensor in sensors if sensor.default_status is dg.DefaultSensorStatus.RUNNING} == {
        "catalog_sensor",
        "dead_run_sensor",
        "feed_registry_sensor",
        "freshness_sensor",
        "interrupted_commit_sensor",
        "queued_events_sensor",
        "lake_report_sensor",
        "notify_sensor",
    }
