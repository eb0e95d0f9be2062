"""Which server a lake reads, and what a demo lake's embedded one serves."""

from __future__ import annotations

import datetime as dt
import json

import pytest

from datalake_assets.demo.demo_feeds import DEMO_FEED_NAMES, demo_feeds
from datalake_assets.demo.demo_lake import DEMO_KEY, DemoLake, demo_stand_in, plan_demo, prepare_demo, read_demo
from datalake_assets.errors import AmbiguousWrite, ConfigError, CorruptLake, PreconditionFailed
from datalake_assets.settings import load_settings
from datalake_assets.sources.systems import connect

NOW = dt.datetime(2025, 3, 1, 12, 30, tzinfo=dt.UTC)
START = dt.date(2025, 1, 31)


@pytest.mark.parametrize(
    ("records", "events_per_day"), [(1, 250), (1000, 250), (3625, 250), (3626, 251), (1_000_000, 68966)]
)
def test_a_new_demo_leaves_room_to_double(records, events_per_day):
    demo = plan_demo(None, records, now=NOW)
    assert demo == DemoLake(start=START, events_per_day=events_per_day, records=records)
    assert demo.capacity(NOW) >= 2 * records


@pytest.mark.parametrize(("now", "wanted"), [(1000, 1000), (1000, 999), (None, 5)])
def test_a_demo_never_shrinks(now, wanted):
    demo = DemoLake(start=START, events_per_day=250, records=now)
    assert plan_demo(demo, wanted, now=NOW) == demo


def test_a_larger_demo_changes_only_its_records():
    demo = DemoLake(seed=3, start=START, events_per_day=250, records=1000)
    assert plan_demo(demo, 2000, now=NOW) == demo.model_copy(update={"records": 2000})


def test_a_demo_that_does_not_fit_says_so():
    demo = DemoLake(start=START, events_per_day=250, records=1000)
    with pytest.raises(
        ConfigError,
        match=r"^--records 7381 does not fit into this demo lake: it began on 2025-01-31 with 250 records a day, "
        r"which makes at most 7380 by now; take fewer, or another --lake$",
    ):
        plan_demo(demo, 7381, now=NOW)
    assert plan_demo(demo, 7380, now=NOW).records == 7380


def test_prepare_demo_writes_a_readable_document_once(store):
    demo = prepare_demo(store, 1000)
    document, etag = store.get(DEMO_KEY)
    assert json.loads(document) == {"seed": 7, "start": str(demo.start), "events_per_day": 250, "records": 1000}
    assert prepare_demo(store, 1000) == read_demo(store) == demo
    assert store.get(DEMO_KEY)[1] == etag
    assert prepare_demo(store, 2000).records == 2000


def test_prepare_demo_settles_a_lost_answer(store, monkeypatch):
    create = store.create

    def lose(key: str, body: bytes) -> str:
        create(key, body)
        raise AmbiguousWrite(key, "no answer")

    monkeypatch.setattr(store, "create", lose)
    assert prepare_demo(store, 5) == read_demo(store)


def test_prepare_demo_loses_a_race_openly(local_store, monkeypatch):
    create = local_store.create

    def race(key: str, body: bytes) -> str:
        create(key, body.replace(b"1000", b"7"))
        return create(key, body)

    monkeypatch.setattr(local_store, "create", race)
    with pytest.raises(PreconditionFailed):
        prepare_demo(local_store, 1000)


def test_a_damaged_document_is_named(local_store):
    local_store.put(DEMO_KEY, b"{}")
    with pytest.raises(CorruptLake, match=r"control/demo\.json: it does not say what the demo serves; mend it"):
        read_demo(local_store)


def test_the_configured_server_is_read(local_store):
    prepare_demo(local_store, 10)
    configured = load_settings(ksqldb_url="http://ksql:8088")
    with demo_stand_in(configured, local_store, {"ksqldb"}) as settings:
        assert settings is configured


def test_a_lake_without_a_server_names_the_setting(local_store):
    with (
        demo_stand_in(load_settings(), local_store, {"ksqldb"}) as settings,
        pytest.raises(ConfigError, match=r"no ksqlDB server to read from: set DATALAKE_KSQLDB_URL"),
        connect("ksqldb", settings),
    ):
        pass


def test_no_server_runs_for_feeds_of_other_sources(local_store):
    prepare_demo(local_store, 10)
    configured = load_settings()
    with demo_stand_in(configured, local_store, {"toy"}) as settings:
        assert settings is configured


def test_a_demo_lakes_server_is_read(local_store):
    prepare_demo(local_store, 10)
    with demo_stand_in(load_settings(), local_store, {"ksqldb"}) as settings, connect("ksqldb", settings) as source:
        assert {each.kind for each in source.discover()} == {"stream", "table"}


def test_the_demo_has_four_streams_and_four_tables_with_all_that_the_ui_shows():
    feeds = demo_feeds(START)
    assert tuple(feed.name for feed in feeds) == DEMO_FEED_NAMES
    assert [feed.kind.value for feed in feeds] == ["stream"] * 4 + ["table"] * 4
    assert all(feed.description and feed.owners and feed.tags and feed.group and feed.start == START for feed in feeds)
