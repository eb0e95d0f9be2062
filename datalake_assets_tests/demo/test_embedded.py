"""Which server a lake reads, and what a demo lake's embedded one serves."""

from __future__ import annotations

import datetime as dt
import json
import math
from itertools import pairwise

import numpy as np
import pytest

from datalake_assets.core.verdicts import freshness_verdict
from datalake_assets.demo.demo_feeds import DEMO_FEED_NAMES, demo_feeds
from datalake_assets.demo.demo_lake import (
    DEMO_KEY,
    DemoLake,
    DemoPace,
    demo_stand_in,
    growing_demo,
    plan_demo,
    prepare_demo,
    read_demo,
    served_from,
)
from datalake_assets.demo.ksqldb_server.blocks import MAX_LATE_MS, Rows
from datalake_assets.errors import AmbiguousWrite, ConfigError, CorruptLake, PreconditionFailed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.settings import load_settings
from datalake_assets.sources.systems import connect

NOW = dt.datetime(2025, 3, 1, 12, 30, tzinfo=dt.UTC)
START = dt.date(2025, 1, 31)


@pytest.mark.parametrize(
    ("records", "days", "events_per_day"),
    [(1, 1, 1), (300, 1, 198), (1000, 4, 222), (7250, 29, 246), (1_000_000, 29, 33875)],
)
def test_a_new_demo_ends_now_with_so_many_records(records, days, events_per_day):
    demo = plan_demo(None, records, now=NOW)
    start = NOW.date() - dt.timedelta(days=days)
    assert (demo.start, demo.events_per_day, demo.records) == (start, events_per_day, records)
    assert [(each.first, each.count, each.sent) for each in demo.filings] == [(0, math.ceil(records / 10), NOW)]
    arrivals = demo.generator().arrival_ms(np.arange(records)) / 1000
    assert (
        NOW.timestamp() - 86_400 / events_per_day * 3 - 3600 < arrivals[-1] + 86_400 / events_per_day <= NOW.timestamp()
    )


@pytest.mark.parametrize(("now", "wanted"), [(1000, 1000), (1000, 999), (None, 5)])
def test_a_demo_never_shrinks(now, wanted):
    demo = DemoLake(start=START, events_per_day=250, records=now).with_filings(100, now=NOW)
    assert plan_demo(demo, wanted, now=NOW) == demo


@pytest.mark.parametrize("again", [dt.timedelta(), dt.timedelta(milliseconds=300), dt.timedelta(hours=40)])
def test_a_demo_that_grows_keeps_its_rows_and_ends_now(again):
    demos = [DemoLake(seed=3, start=START, events_per_day=250, records=1000)]
    for number, records in enumerate((1500, 1501, 9000)):
        demos.append(plan_demo(demos[-1], records, now=NOW + number * again))
    arrivals = [demo.generator().arrival_ms(np.arange(demo.records)) for demo in demos]

    for before, after in pairwise(arrivals):
        assert after[: len(before)].tolist() == before.tolist(), "rows that are there never change"
        assert (np.diff(after) >= 0).all(), "rows come in the order of their offsets"
    end = int((NOW + 2 * again).timestamp() * 1000)
    assert end - 300_000 < arrivals[-1][-1] < end + 3000


def test_a_demo_feed_waits_for_the_latest_events():
    assert {feed.lateness for feed in demo_feeds(START)} == {dt.timedelta(milliseconds=MAX_LATE_MS)}


def test_row_that_arrives_at_a_time_is_found_at_every_pace():
    demo = plan_demo(DemoLake(start=START, events_per_day=250, records=1000), 1700, now=NOW)
    config = plan_demo(demo, 2100, now=NOW + dt.timedelta(hours=5)).generator()
    arrivals = config.arrival_ms(np.arange(2100))

    for ms in (0, config.start_ms, *(arrivals[[1, 999, 1000, 1001, 1699, 1700, 2099]] + [[-1], [0], [1]]).ravel()):
        assert config.first_index_at(int(ms)) == np.searchsorted(arrivals, ms) or ms > arrivals[-1]


def test_prepare_demo_writes_a_readable_document_once(store):
    demo = prepare_demo(store, 1000)
    document, etag = store.get(DEMO_KEY)
    told = {"start": str(demo.start), "events_per_day": demo.events_per_day, "records": 1000}
    (filings,) = json.loads(document)["filings"]
    assert (filings["first"], filings["count"]) == (0, 100)
    rest = {"paces": [], "filings": [filings], "filings_deleted": []}
    assert json.loads(document) == {"seed": 7, **told, **rest}
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


@pytest.mark.parametrize("records", [1, 7, 250, 10_000, 10**9])
@pytest.mark.parametrize("per_day", [None, 1_000_000])
def test_served_rows_of_a_certain_number_end_now(records, per_day):
    begin, pace = served_from(records, per_day, None, now=NOW)
    end = begin + dt.timedelta(days=records / pace)
    assert dt.timedelta(0) <= NOW - end <= (NOW - begin) / pace + dt.timedelta(microseconds=2)
    assert pace == per_day or NOW - begin < dt.timedelta(days=31)


@pytest.mark.parametrize(
    ("records", "per_day", "start", "served"),
    [
        (None, None, None, (dt.datetime(2025, 1, 31, tzinfo=dt.UTC), 250)),
        (None, 9, None, (dt.datetime(2025, 1, 31, tzinfo=dt.UTC), 9)),
        (600, None, NOW, (NOW, 250)),
        (600, 7, NOW, (NOW, 7)),
    ],
)
def test_served_rows_begin_where_they_are_told_to(records, per_day, start, served):
    assert served_from(records, per_day, start, now=NOW) == served


def test_served_rows_do_not_begin_before_the_epoch():
    with pytest.raises(ConfigError, match=r"1,000,000 rows, 1 a day, would begin before 1970; give more"):
        served_from(1_000_000, 1, None, now=NOW)


def test_demo_that_is_exported_again_long_after_is_stale_by_its_rows():
    (fresh,) = {feed.freshness for feed in demo_feeds(START) if feed.kind is FeedKind.STREAM}
    verdict = freshness_verdict(fresh, commit=NOW, event=NOW - dt.timedelta(days=60), now=NOW)
    assert verdict.lines == (
        "the newest commit is 0:00:00 old",
        "the newest event is 60 days, 0:00:00 old, the feed allows 3 days, 0:00:00",
    )


def test_streams_that_grow_keep_their_rows_and_stop_when_nobody_has_them_grow(store):
    now = store.now()
    before = prepare_demo(store, 300)
    with growing_demo(store, 500) as changed:
        assert changed["ksqldb_url"].startswith("http://127.0.0.1:")
        growing = read_demo(store)
        assert growing.records is None
        assert growing.grows_until > now + dt.timedelta(seconds=30)
        a_minute_on = growing.generator().rows_by(_ms(now + dt.timedelta(hours=5)))
        assert 300 + 500 * 55 < a_minute_on < 300 + 500 * 65
    after = read_demo(store)
    assert after.grows_until is None
    assert 300 <= after.records < a_minute_on
    rows = np.arange(after.records)
    arrivals = after.generator().arrival_ms(rows)
    assert arrivals[:300].tolist() == before.generator().arrival_ms(rows[:300]).tolist()
    assert (np.diff(arrivals) >= 0).all()
    assert plan_demo(after, 100, now=now) == after
    killed = growing.settled(growing.grows_until + dt.timedelta(days=3))
    assert (killed.records, killed.grows_until) == (a_minute_on, None)
    again = killed.growing(20, growing.grows_until + dt.timedelta(days=3))
    assert again.generator().arrival_ms(rows).tolist() == arrivals.tolist()


def test_events_are_late_or_broken_only_at_the_paces_that_say_so():
    pace = DemoPace(index=1000, since=NOW, events_per_day=86_400, punctual=True, broken_every=100)
    last = DemoPace(index=2000, since=NOW + dt.timedelta(days=1), events_per_day=86_400)
    demo = DemoLake(start=START, events_per_day=250, records=3000, paces=(pace, last))
    rows = Rows(demo.generator(), "TRANSACTION_STREAM", np.arange(3000))
    late_ms = rows.arrival_ms() - rows.rowtime_ms()
    assert [int((late_ms[low : low + 1000] > 0).sum()) > 900 for low in (0, 1000, 2000)] == [True, False, True]
    few = late_ms[1000:2000][late_ms[1000:2000] > 0]
    assert 0 < len(few) < 20
    assert few.min() >= 86_400_000
    assert rows.broken().tolist() == list(range(1099, 2000, 100))


def _ms(moment):
    return int(moment.timestamp() * 1000)
