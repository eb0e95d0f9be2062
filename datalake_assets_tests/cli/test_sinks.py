"""Sinks from the command line: a topic is landed and sent on, looked at, and sent again."""

from __future__ import annotations

import json
import uuid
from types import SimpleNamespace

import pytest

from datalake_assets.cli import deliver
from datalake_assets.cli.deliver import delivering
from datalake_assets.feed import Feed
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.settings import load_settings
from datalake_assets.sinks import courier as courier_module
from datalake_assets.sinks.courier import Courier
from datalake_assets_tests.sinks.search_server import SearchServer

pytestmark = pytest.mark.xdist_group("search")


@pytest.fixture(scope="module")
def osmem():
    with SearchServer("osmem") as server:
        yield server


@pytest.fixture
def topic(kafka_server, osmem, run, lake, monkeypatch):
    """A feed of a topic, with a sink, and messages that wait."""
    for name, value in (kafka_server.environment() | {"DATALAKE_OPENSEARCH_URL": osmem.url}).items():
        monkeypatch.setenv(name, value)
    topic = kafka_server.topic()
    source = {"type": "kafka", "topic": topic.name, "fields": {"n": "long not null", "price": "double"}}
    sink = {"type": "opensearch", "prefix": f"{uuid.uuid4().hex[:8]}-", "by": "feed"}
    feed = {"name": "trades", "kind": "stream", "source": source, "sinks": [sink]}
    added = run("feeds", "add", "--file", "-", input=json.dumps(feed))
    assert added.exit_code == 0, added.stderr
    topic.send([json.dumps({"n": number, "price": number / 4}) for number in range(20)])
    topic.prefix = sink["prefix"]
    return topic


def test_a_worker_sends_on_what_it_lands(run, topic, osmem):
    ran = run("run", "trades", "--passes", "1")
    assert ran.exit_code == 0, ran.stderr
    assert "trades to opensearch: 20 sent" in ran.stdout
    assert sorted(each["n"] for each in osmem.documents(f"{topic.prefix}trades")) == list(range(20))
    assert {each["_id"] for each in osmem.documents(f"{topic.prefix}trades")} == {f"0-{number}" for number in range(20)}


def test_sinks_are_listed_delivered_looked_at_and_sent_to_again(run, topic, osmem, monkeypatch):
    topic.send([json.dumps({"n": 20, "price": "x"})])  # goes to quarantine, and to no sink
    assert run("export", "--stream", "trades", "--ignore-checks").exit_code == 0
    (listed,) = json.loads(run("sinks", "list", "--json").stdout)["sinks"]
    assert (listed["sink"], listed["lag_rows"], listed["dead_letters"]) == ("opensearch", 20, 0)

    assert "streams/trades to opensearch: 20 rows not sent, 0 dead letters\n" in run("report").stdout
    (reported,) = json.loads(run("report", "--json").stdout)["feeds"]
    assert reported["sinks"] == [{"sink": "opensearch", "rows": 20, "dead_letters": 0}]
    assert (
        'feed="trades",kind="stream"} 20.0' in run("report", "--format", "prometheus").stdout.partition("sink_lag")[2]
    )

    monkeypatch.setenv("DATALAKE_OPENSEARCH_RETRY_S", "0.1")
    monkeypatch.setenv("DATALAKE_OPENSEARCH_URL", "http://127.0.0.1:9")
    away = run("sinks", "deliver", "trades")
    assert (away.exit_code, away.stdout) == (1, "trades to opensearch: 20 rows wait\n")
    assert "Error: trades: sink opensearch: opensearch at 127.0.0.1" in away.stderr
    assert away.stderr.count("\n") == 1

    monkeypatch.setenv("DATALAKE_OPENSEARCH_URL", osmem.url)
    assert run("sinks", "deliver", "trades").stdout == "trades to opensearch: 20 sent\n"
    assert run("sinks", "deliver").stdout == "trades to opensearch: 0 sent\n"
    assert run("sinks", "dead-letters", "trades").stdout == "no sink of trades has refused a document\n"
    assert run("sinks", "resend", "trades").stdout == "trades to opensearch: 1 partitions are to be sent again\n"
    assert run("sinks", "deliver", "trades", "--sink", "opensearch").stdout == "trades to opensearch: 20 sent\n"
    wrong = run("sinks", "resend", "trades", "--sink", "fax")
    assert (wrong.exit_code, "has no sink 'fax'" in wrong.stderr) == (1, True)


def test_a_feed_that_is_gone_keeps_no_other_from_its_sinks(registry, lake_store, monkeypatch):
    """Of those that 'datalake run' was told to land, one may be archived meanwhile."""
    source = {"type": "kafka", "topic": "t", "fields": {"n": "long not null"}}
    for name in ("gone", "trades"):
        sink = {"type": "opensearch", "prefix": f"{name}-"}
        registry.add(Feed.model_validate({"name": name, "kind": "stream", "source": source, "sinks": [sink]}))
    couriers = []

    class Watched(Courier):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            couriers.append(self)
            self._tried = lambda _: []

    monkeypatch.setattr(courier_module, "Courier", Watched)
    session = SimpleNamespace(registry=registry, store=lake_store, settings=load_settings())
    with delivering(session, ["gone", "trades"]):
        registry.archive("gone")
        assert [feed.name for feed in couriers[0]._known()] == ["trades"]


def test_a_sink_that_is_declared_while_a_worker_goes_on_gets_what_is_landed(run, topic, osmem, lake, monkeypatch):
    store = open_store(str(lake))
    registry = FeedRegistry(store)
    feed = registry.get("trades")
    without = registry.update(feed.model_copy(update={"sinks": ()}), expected_revision=feed.revision)
    session = SimpleNamespace(registry=registry, store=store, settings=load_settings())
    monkeypatch.setattr(deliver, "_LOOK_AGAIN_S", 0.0)
    with delivering(session, ["trades"]) as landed:
        assert run("export", "--stream", "trades").exit_code == 0
        landed()
        assert not osmem.documents(f"{topic.prefix}trades")
        registry.update(without.model_copy(update={"sinks": feed.sinks}), expected_revision=without.revision)
        landed()
    assert len(osmem.documents(f"{topic.prefix}trades")) == 20
