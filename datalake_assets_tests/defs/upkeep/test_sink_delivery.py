"""Sinks as Dagster sees them: a sensor and a job that deliver, a courier, webhooks that are told of checks."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster._core.remote_origin import (  # noqa: TID251  only with these is a run queued
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)

from datalake_assets.defs.build import build_definitions
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runtime import known_dagster_warnings_ignored
from datalake_assets.defs.upkeep.notify_sensor import Watch
from datalake_assets.defs.upkeep.sink_delivery import DELIVER, SinkWatch, deliver_job
from datalake_assets.errors import LakeUnavailable
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.notify.incidents import Message, Outbox
from datalake_assets.settings import load_settings
from datalake_assets.sinks.base import DeliveryReport
from datalake_assets.sinks.courier import Courier
from datalake_assets.sinks.delivery import forget_delivered
from datalake_assets.sinks.webhook.alerts import routes
from datalake_assets.sinks.webhook.webhook_model import WebhookSettings, WebhookSink
from datalake_assets_tests.crash.sink_rounds import act, feed_of
from datalake_assets_tests.notify.servers import running_webhook
from datalake_assets_tests.sinks.search_server import SearchServer

pytestmark = pytest.mark.xdist_group("search")


@pytest.fixture(scope="module")
def osmem():
    with SearchServer("osmem") as server:
        yield server


def land(lake: Path, start: int, end: int) -> None:
    rows = [[number, number / 4, number % 3, number] for number in range(start, end)]
    act(lake=str(lake), url="", feed="numbered", what="land", rows=rows, name="", number=0, moment="")


@pytest.fixture
def lake(tmp_path, osmem):
    """A lake whose stream has 100 rows, and a sink that has none of them."""
    (tmp_path / "lake").mkdir()
    land(tmp_path / "lake", 0, 100)
    made = Lake(load_settings(lake=str(tmp_path / "lake"), opensearch_url=osmem.url, opensearch_retry_s="1"))
    prefix = f"p{abs(hash(str(tmp_path))):x}-"
    feed = feed_of("numbered")
    sink = feed.sinks[0].model_copy(update={"prefix": prefix})
    FeedRegistry(made.store).add(feed.model_copy(update={"sinks": (sink,)}))
    return made


def test_the_sensor_launches_deliveries_until_sinks_have_what_was_landed(lake, osmem, instance, tmp_path):
    with known_dagster_warnings_ignored():
        definitions = build_definitions(lake.settings)
        job = definitions.resolve_job_def(DELIVER)
        sensor = definitions.resolve_sensor_def("sink_sensor")

        def tick(cursor):
            return sensor.evaluate_tick(dg.build_sensor_context(instance=instance, cursor=cursor))

        first = tick(None)
        (request,) = first.run_requests
        assert request.run_config == {"ops": {"deliver": {"config": {"feeds": ["numbered"]}}}}
        assert job.execute_in_process(run_config=request.run_config, instance=instance).success
    prefix = lake.registry.get("numbered").sinks[0].prefix
    assert len(osmem.documents(f"{prefix}numbered")) == 100
    second = tick(first.cursor)
    assert not second.run_requests
    assert tick(second.cursor).cursor == second.cursor  # nothing happened: the lake is not asked


def test_a_sink_that_takes_nothing_is_tried_again_later_and_later(lake, instance):
    (feed,) = lake.registry.list().feeds
    behind, problem = [True], [False]

    def is_behind(_):
        if problem[0]:
            raise LakeUnavailable("lake", "it is away")
        return behind[0]

    watch = SinkWatch([feed], is_behind=is_behind)
    cursor, launched = None, []
    for now in range(0, 700, 30):
        result = watch.tick(instance, cursor, now=float(now))
        cursor = result.cursor
        launched += [now] * len(result.run_requests or ())
    assert launched == [0, 30, 90, 210, 450]
    problem[0] = True
    assert "it is away" in watch.tick(instance, cursor, now=1_000.0).skip_reason.skip_message
    problem[0], behind[0] = False, False
    result = watch.tick(instance, cursor, now=1_000.0)
    assert json.loads(result.cursor) == {"numbered": {"seen": [feed.revision, 0, 0], "looked_at": 1000}}


def test_no_delivery_is_asked_for_while_one_waits_in_the_queue(lake, instance):
    (feed,) = lake.registry.list().feeds
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__")
    origin = RemoteJobOrigin(repository, DELIVER)
    queued = dg.DagsterRunStatus.QUEUED
    instance.create_run_for_job(deliver_job([feed], lake), status=queued, remote_job_origin=origin)

    result = SinkWatch([feed], is_behind=lambda _: True).tick(instance, None, now=0.0)

    assert (result.run_requests or [], result.skip_reason.skip_message) == ([], "a delivery is under way")


def test_a_courier_delivers_beside_what_lands_and_tells_what_fails(lake, osmem, tmp_path, monkeypatch):
    (feed,) = lake.registry.list().feeds
    told: list[DeliveryReport] = []
    with Courier(lambda: [feed], lake.store, lake.settings, told.append) as courier:
        courier.landed()
    assert [(each.sent, each.error) for each in told] == [(100, "")]
    land(tmp_path / "lake", 100, 130)
    with Courier(lambda: [feed], lake.store, lake.settings, told.append) as courier:
        deadline = time.monotonic() + 60
        while sum(each.sent for each in told) < 130:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        land(tmp_path / "lake", 130, 140)
    assert [each.sent for each in told if each.sent][:2] == [100, 30]
    assert sum(each.sent for each in told) == 140
    monkeypatch.setattr("datalake_assets.sinks.courier._LOOK_ANYWAY_S", 0.0)
    told.clear()
    with Courier(lambda: [feed], lake.store, lake.settings, told.append) as courier:
        while feed.name not in courier._sent:  # it has seen that the sink has all
            assert time.monotonic() < deadline
            time.sleep(0.01)
        forget_delivered(lake.store, feed, "opensearch")
        while sum(each.sent for each in told) < 140:
            assert time.monotonic() < deadline
            courier.landed()
            time.sleep(0.01)
    assert len(osmem.documents(f"{feed.sinks[0].prefix}numbered")) == 140


def test_a_courier_tries_what_fails_again_by_and_by_however_much_lands(lake, osmem, monkeypatch):
    (feed,) = lake.registry.list().feeds
    away = lake.settings.model_copy(update={"opensearch_url": "http://127.0.0.1:9", "opensearch_retry_s": 0.1})
    told, looks, now = list[DeliveryReport](), list[float](), 0.0
    monkeypatch.setattr("datalake_assets.sinks.courier.time", SimpleNamespace(monotonic=lambda: now))

    def feeds():
        looks.append(now)
        return [feed]

    with Courier(feeds, lake.store, away, told.append) as courier:
        for now, failures in ((0.0, 1), (2.9, 1), (3.0, 2), (8.9, 2), (9.0, 3)):  # noqa: B007  its clock
            begun, deadline = len(looks), time.monotonic() + 60
            while len(looks) < begun + 2:  # it has looked once from beginning to end
                assert time.monotonic() < deadline
                courier.landed()
                time.sleep(0.01)
            assert len(told) == failures
    assert len(told) == 4  # the last look is at the end, whenever that is
    assert (told[-1].lag_rows, "cannot be reached" in told[-1].error) == (100, True)
    assert len(osmem.documents(f"{feed.sinks[0].prefix}numbered")) == 0


def test_webhooks_of_feeds_are_told_of_the_checks_that_they_name(lake, instance):
    (feed,) = lake.registry.list().feeds
    other = feed.model_copy(update={"name": "other"})
    with running_webhook() as hook, running_webhook() as busy:
        settings = WebhookSettings(
            sink_webhooks=json.dumps({"team": hook.url, "busy": busy.url, "odd": "https://[odd"})
        )
        sinks = (
            WebhookSink(webhook="team", on=("quarantine", "late")),
            WebhookSink(name="all", webhook="busy", on=("rules", "quarantine", "late", "other")),
            WebhookSink(name="none", webhook="gone"),
            WebhookSink(name="odd", webhook="odd"),
        )
        watched = feed.model_copy(update={"sinks": (*feed.sinks, *sinks)})
        broken: list[str] = []
        own = list(routes([watched, other], settings, on_broken=lambda error: broken.append(str(error))))
        assert broken == [
            "there is no webhook 'gone' in DATALAKE_SINK_WEBHOOKS",
            "'odd' of DATALAKE_SINK_WEBHOOKS is no http(s) URL",
        ]
        busy.statuses = [503]
        outbox = Outbox(
            {"checks_begun": True, "runs_since": datetime.now(UTC).timestamp()},
            {},
            tuple(
                (message, ())
                for message in (
                    Message("check streams/numbered quarantine", "alert", "quarantine warns"),
                    Message("check streams/numbered file_size", "alert", "file_size warns"),
                    Message("check streams/other quarantine", "alert", "not ours"),
                    Message("run streams/numbered", "failure", "a run failed"),
                )
            ),
        )
        watch, warnings = Watch([watched, other], link="http://host:3000"), list[str]()
        pending = [(each, watch.reached(each, (), own)) for each, _ in outbox.waiting]
        outbox = Outbox(outbox.cursor, outbox.incidents, tuple(pending))
        for _ in range(2):
            outbox, _ = watch.look(instance, outbox, (), own=own, now=datetime.now(UTC), warn=warnings.append)
        assert [text.split("*")[1] for text in hook.texts] == ["quarantine warns"]
        assert [text.split("*")[1] for text in busy.texts] == ["quarantine warns", "file_size warns"]
        assert outbox.waiting == ()
        assert len(warnings) == 1
        assert "secret" not in warnings[0]
