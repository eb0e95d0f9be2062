"""The sensor tells of what fails and of what is well again, once each, whatever a channel does meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg
import pyarrow as pa
import pytest
import stamina

from datalake_assets.core.verdicts import FRESHNESS, Verdict
from datalake_assets.defs.metadata import asset_key, check_evaluation
from datalake_assets.defs.upkeep.notify_sensor import Watch, notify_sensor
from datalake_assets.errors import SourceUnavailable
from datalake_assets.notify.incidents import Outbox
from datalake_assets.policies import Level
from datalake_assets.settings import load_settings
from datalake_assets_tests.defs.fakes import days_ago, stream
from datalake_assets_tests.defs.sent import RECENT, Sent, exporter


class Kept:
    """A channel that keeps messages; the next ``busy`` ones it does not take."""

    def __init__(self, name: str = "kept") -> None:
        self.name, self.told, self.busy = name, [], 0

    def send(self, message):
        if self.busy:
            self.busy -= 1
            raise SourceUnavailable(self.name, "busy")
        title = message.title.partition(", partition")[0]
        if "check schema" not in title:  # fails with the run, and is told, too
            self.told.append((message.level, title))
            self.last = message


@pytest.fixture
def sent():
    return Sent({"clicks": [days_ago(0)]})


@pytest.fixture
def feeds(lake, sent, instance):
    """A stream that was exported once, so that it has columns."""
    runner = exporter(lake, sent, stream(**RECENT))
    for feed in runner.feeds.values():
        runner.lake.registry.add(feed)
    assert export(runner, instance).error is None
    return runner


class Looking:
    """Looks of one watch, whose state goes through text as it does through a cursor."""

    def __init__(self, feeds, instance) -> None:
        self.watch, self.instance = Watch(tuple(feeds.feeds.values()), link="http://host:3000/"), instance
        self.channels, self.cursor, self.warnings = [Kept()], None, []

    def __call__(self):
        kept, _ = self.watch.look(
            self.instance,
            Outbox.from_json(self.cursor),
            self.channels,
            now=datetime.now(UTC),
            warn=self.warnings.append,
        )
        self.cursor = kept.to_json()
        told, self.channels[0].told = self.channels[0].told, []
        return told


@pytest.fixture
def look(feeds, instance):
    with stamina.set_testing(True, attempts=1):
        yield Looking(feeds, instance)


def export(feeds, instance):
    return feeds.export(instance, "clicks", quiet=True)


def fail(sent, feeds, instance):
    """An export that refuses its rows: the source calls the type of a column otherwise."""
    sent.id_type = pa.string()
    try:
        assert export(feeds, instance).error
    finally:
        sent.id_type = pa.int64()


def test_run_that_fails_is_told_once_and_that_it_is_well_again(look, sent, feeds, instance):
    fail(sent, feeds, instance)
    assert look() == []  # it failed before anybody watched

    fail(sent, feeds, instance)
    assert look() == [("failure", "streams/clicks failed")]
    assert "id" in look.channels[0].last.text
    assert look.channels[0].last.link.startswith("http://host:3000/runs/")
    assert look() == []
    fail(sent, feeds, instance)
    assert look() == []

    assert export(feeds, instance).error is None
    assert look() == [("recovery", "well again: streams/clicks failed")]
    export(feeds, instance)
    assert look() == []


def test_check_that_fails_is_told_with_its_reason_and_that_it_passes_again(look, feeds, instance):
    (feed,) = feeds.feeds.values()

    def judge(level, *lines):
        verdict = Verdict(level, {}, lines)
        instance.report_runless_asset_event(check_evaluation(FRESHNESS, verdict, asset_key=asset_key(feed)))

    judge(Level.WARN, "late before")
    assert look() == []
    judge(Level.WARN, "2 h old")
    assert look() == [("alert", "check freshness of streams/clicks warns")]
    assert "2 h old" in look.channels[0].last.text
    judge(Level.ERROR, "9 h old")
    assert look() == [("failure", "check freshness of streams/clicks failed")]
    judge(Level.OK)
    assert look() == [("recovery", "well again: check freshness of streams/clicks failed")]
    assert look() == []


def test_message_that_one_channel_did_not_take_is_sent_to_that_one_alone_later(look, sent, feeds, instance):
    other = Kept("other")
    look.channels.append(other)
    look()
    other.busy = 2  # one that does not answer is asked once a look, however many messages wait
    fail(sent, feeds, instance)

    assert look() == [("failure", "streams/clicks failed")]
    assert other.told == []
    assert look() == []
    assert other.told == []
    assert look() == []
    assert other.told == [("failure", "streams/clicks failed")]
    assert len(look.warnings) == 2


def test_sensor_keeps_what_it_knows_in_its_cursor(sent, feeds, instance, lake):
    kept = Kept()
    sensor = notify_sensor(tuple(feeds.feeds.values()), lake.settings, channels=lambda *_, **__: [kept])
    cursor = None
    for _ in range(3):
        context = dg.build_sensor_context(instance=instance, cursor=cursor)
        sensor.evaluate_tick(context)
        cursor = context.cursor
        fail(sent, feeds, instance)

    assert kept.told == [("failure", "streams/clicks failed")]


def test_channel_whose_setting_cannot_work_is_named_and_keeps_no_other_from_its_messages(
    sent, feeds, instance, monkeypatch, caplog
):
    monkeypatch.setenv("DATALAKE_NOTIFY_SNS", "lake")
    sensor, cursor, skipped = notify_sensor(tuple(feeds.feeds.values()), load_settings()), None, []
    for _ in range(2):
        context = dg.build_sensor_context(instance=instance, cursor=cursor)
        skipped.append(sensor.evaluate_tick(context).skip_message)
        cursor = context.cursor
        fail(sent, feeds, instance)

    assert "DATALAKE_NOTIFY_SNS is no ARN" in skipped[0]
    assert any(each.startswith("failure: streams/clicks failed") for each in caplog.messages)
