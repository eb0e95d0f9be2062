"""Streams that grow are followed: each row lands once, whatever happens to the process, the feed or the source."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from datetime import timedelta
from importlib import import_module
from types import SimpleNamespace

import pytest

from datalake_assets.continuous import following as module
from datalake_assets.continuous.following import Following
from datalake_assets.demo.ksqldb_server.faults import Fault
from datalake_assets.lake.event_queue import EventQueue
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.tables import open_table
from datalake_assets.live_policies import BatchPolicy
from datalake_assets.sources.ksqldb.source import KsqlDB
from datalake_assets_tests.continuous.growing import BROKEN_EVERY, committed_files, expected, growing, payments, rows_of

run_module = import_module("datalake_assets.cli.run")
#: Small batches, so that there are many.
OFTEN = BatchPolicy(max_age=timedelta(milliseconds=200), longest_age=timedelta(milliseconds=200), small_files=10**6)


class Log:
    """Keeps what it is told."""

    def __init__(self):
        self.told, self.failures, self.went = [], [], []
        self.changed = threading.Condition()

    def _add(self, to, what):
        with self.changed:
            to.append(what)
            self.changed.notify_all()

    def landed(self, landed):
        self._add(self.told, landed)

    def failed(self, feed, error, *, again_in_s):
        self._add(self.failures, (feed, str(error), again_in_s))

    def gone(self, feed, reason):
        self._add(self.went, (feed, reason))

    def wait(self, condition, seconds=120):
        with self.changed:
            assert self.changed.wait_for(condition, seconds), (self.told, self.failures, self.went)


@pytest.fixture(scope="module")
def server():
    with growing(1_000) as server:
        yield server


@pytest.fixture
def lake(tmp_path):
    (tmp_path / "lake").mkdir()
    return tmp_path / "lake"


@pytest.fixture
def follow(lake, server):
    """Followers of the lake's feeds, which tell at each commit, and whom they tell."""

    @contextmanager
    def connect(type_):
        with closing(KsqlDB(server.url, timeout_s=10)) as source:
            yield source

    @contextmanager
    def follow(*names):
        store, log = open_store(str(lake)), Log()
        with Following(lambda: store, connect=connect, log=log, report_s=0.0) as following:
            for name in names:
                following.follow(name)
            yield following, log

    yield follow
    server.faults.clear()


def rows_told(log):
    return sum(each.report.rows_added for each in log.told)


def _change(registry, **fields):
    now = registry.get("payments")
    registry.update(now.model_copy(update=fields), expected_revision=now.revision)


def assert_exact(lake, feed, server):
    """Every row up to the highest of each source partition is in the lake once, but for broken ones."""
    found = rows_of(lake, feed)
    assert found == expected(server.generator, [each[3] for each in found])
    positions = open_table(open_store(str(lake)), feed).plan().request.start_offsets
    assert all(positions[each[0]] >= each[3] + 1 for each in found)


def test_rows_land_as_they_come_and_the_next_one_goes_on(follow, lake, server):
    feed = FeedRegistry(open_store(str(lake))).add(payments(batch=OFTEN.model_dump(mode="json")))
    with follow("payments") as (_, log):
        log.wait(lambda: len(log.told) >= 4 and rows_told(log) > 2 * BROKEN_EVERY)
    before = rows_told(log)
    assert sum(each[1] for each in rows_of(lake, feed)) == before
    assert_exact(lake, feed, server)
    with follow("payments") as (_, log):
        log.wait(lambda: len(log.told) >= 2)
    assert sum(each[1] for each in rows_of(lake, feed)) == before + rows_told(log)
    assert sum(each.report.rows_known for each in log.told) == 0
    assert_exact(lake, feed, server)
    broken = {at.position for _, at in open_table(open_store(str(lake)), feed).quarantined()}
    assert len(broken) == sum((each[3] + 1) - each[1] for each in rows_of(lake, feed)) > 0


def test_two_followers_of_one_feed_land_each_row_once(follow, lake, server):
    feed = FeedRegistry(open_store(str(lake))).add(payments(batch=OFTEN.model_dump(mode="json")))
    with follow("payments") as (_, one), follow("payments") as (_, other):
        one.wait(lambda: rows_told(one) + rows_told(other) > 4_000)
    assert sum(each[1] for each in rows_of(lake, feed)) == rows_told(one) + rows_told(other) > 4_000
    assert not one.failures + other.failures
    assert_exact(lake, feed, server)


@pytest.mark.parametrize("fault", ["drop_after_rows", "error_after_rows", "status"])
def test_a_source_that_fails_is_read_on_from_where_it_was(follow, lake, server, fault):
    feed = FeedRegistry(open_store(str(lake))).add(payments(batch=OFTEN.model_dump(mode="json")))
    server.faults.add(Fault(fault, 503 if fault == "status" else 800, "TRANSACTION_FLATTENED"))
    with follow("payments") as (_, log):
        log.wait(lambda: rows_told(log) > 4_000)
    assert_exact(lake, feed, server)


def test_a_change_of_the_feed_is_heeded_and_one_that_is_archived_is_left(follow, lake, server, monkeypatch):
    monkeypatch.setattr(module, "LOOK_S", 0.1)
    registry = FeedRegistry(open_store(str(lake)))
    feed = registry.add(payments(batch=OFTEN.model_dump(mode="json")))
    with follow("payments") as (following, log):
        log.wait(lambda: len(log.told) >= 2)
        slower = OFTEN.model_copy(update={"longest_age": timedelta(seconds=1), "max_age": timedelta(seconds=1)})
        _change(registry, batch=slower)
        log.wait(lambda: log.told[-1].feed.batch == slower)
        registry.archive("payments")
        log.wait(lambda: log.went)
        following._threads["payments"].join(60)
        assert following.is_over
        following.check()
    assert "archived" in log.went[0][1]
    assert_exact(lake, feed, server)


def test_what_fails_is_told_and_tried_again(follow, lake, server, monkeypatch):
    monkeypatch.setattr(module, "SHORTEST_WAIT_S", 0.01)
    registry = FeedRegistry(open_store(str(lake)))
    source = payments().source.model_copy(update={"object": "NOTHING"})
    registry.add(payments().model_copy(update={"source": source, "batch": OFTEN}))
    with follow("payments") as (_, log):
        log.wait(lambda: len(log.failures) >= 3)
        _change(registry, source=payments().source)
        log.wait(lambda: log.told)
    assert "NOTHING" in log.failures[0][1]
    assert [each[2] for each in log.failures[:3]] == [0.01, 0.02, 0.04]


def test_an_error_that_nobody_foresaw_ends_no_feed(follow, lake, server, monkeypatch):
    monkeypatch.setattr(module, "SHORTEST_WAIT_S", 0.01)
    registry, right = FeedRegistry(open_store(str(lake))), module.open_table
    for name in ("payments", "others"):
        registry.add(payments().model_copy(update={"name": name, "batch": OFTEN}))
    wrong = ["others"]
    monkeypatch.setattr(module, "open_table", lambda store, feed: 1 / 0 if feed.name in wrong else right(store, feed))
    with follow("payments", "others") as (following, log):
        log.wait(lambda: log.failures and log.told)
        wrong.clear()
        log.wait(lambda: {"payments", "others"} <= {each.feed.name for each in log.told})
        following.check()
    assert "feed others: unexpected ZeroDivisionError: division by zero" in log.failures[0][1]
    for name in ("payments", "others"):
        assert_exact(lake, registry.get(name), server)


def test_an_error_in_whoever_is_told_is_raised_where_it_is_waited(follow, lake):
    FeedRegistry(open_store(str(lake))).add(payments())
    with follow("payments") as (following, log):
        log.landed = lambda _: 1 / 0
        log.failed = lambda *_, **__: 1 / 0
        following._threads["payments"].join(60)
        with pytest.raises(ZeroDivisionError):
            following.check()


def test_an_error_at_the_very_end_is_raised_too(follow, lake, monkeypatch):
    FeedRegistry(open_store(str(lake))).add(payments())
    monkeypatch.setattr(module, "open_table", lambda *_: 1 / 0)
    monkeypatch.setattr(Log, "failed", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError), follow("payments") as (following, _):
        following._threads["payments"].join(60)


def test_a_feed_that_was_archived_and_comes_back_is_followed_again(follow, lake, server, monkeypatch):
    monkeypatch.setattr(module, "LOOK_S", 0.05)
    registry = FeedRegistry(open_store(str(lake)))
    feed = registry.add(payments(batch=OFTEN.model_dump(mode="json")))
    went = 0

    def pause():
        nonlocal went
        log.wait(lambda: len(log.told) > 2 * went)
        if went:
            raise KeyboardInterrupt
        registry.archive("payments")
        log.wait(lambda: log.went)
        following._threads["payments"].join(60)
        registry.restore("payments")
        went, log.told[:] = 1, []

    session = SimpleNamespace(feeds=lambda: (registry.list().feeds, ()))
    with follow() as (following, log), pytest.raises(KeyboardInterrupt):
        run_module._go_on(session, (), following, pause)
    assert_exact(lake, feed, server)


@pytest.mark.slow
def test_a_process_that_is_killed_again_and_again_loses_and_doubles_nothing(lake, server, tmp_path):
    store = open_store(str(lake))
    feed = FeedRegistry(store).add(payments(batch=OFTEN.model_dump(mode="json")))
    environment = os.environ | {"DATALAKE_KSQLDB_URL": server.url, "DAGSTER_HOME": str(tmp_path / "home")}
    line = [sys.executable, "-m", "datalake_assets.cli", "run", "payments", "--lake", str(lake)]
    chance = random.Random(14)
    for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM):
        files = len(committed_files(lake, feed))
        with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True) as process:
            ends = time.monotonic() + 120
            while len(committed_files(lake, feed)) <= files:
                assert process.poll() is None
                assert time.monotonic() < ends
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 0.5))
            process.send_signal(number)
            said = process.communicate(timeout=120)[0]
        assert process.returncode == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    assert "streams/payments: " in said
    open_table(store, feed).repair()
    assert_exact(lake, feed, server)
    bodies = [EventQueue(store).claim(key) for key in EventQueue(store).waiting()]
    assert {each.kind for each in bodies} == {"landing"}
