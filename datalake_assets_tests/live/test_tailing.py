"""Looking without landing: what a tail shows is what an export would land, and the lake stays as it is."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from datalake_assets.core.batches import Batches, ReadRequest, RejectedRow, SourceBatch
from datalake_assets.errors import ConfigError, SourceRecreated, SourceUnavailable
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.look import look
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.watching import watched_by
from datalake_assets.live import tailing as live_tailing
from datalake_assets.live.tailing import tailing
from datalake_assets.live.window import LiveWindow, LiveWindows
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of
from datalake_assets_tests.lake.hive_tables import export, ids

PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lake is asked often, and passes that fail are repeated soon."""
    monkeypatch.setattr(live_tailing, "_LAKE_S", 0.2)
    monkeypatch.setattr(live_tailing, "_FAILED_S", 0.2)


class Growing:
    """A source whose rows are numbered from 0 on; implements what a tail asks of `SourceSystem`."""

    def __init__(self) -> None:
        self.rows, self.is_down = 0, False
        self.starts: list[int] = []

    def read(self, feed: Feed, request: ReadRequest) -> Batches:
        if self.is_down:
            raise SourceUnavailable("S", "connection refused")
        start = dict(request.start_offsets or {}).get(0, 0)
        if start > self.rows:
            raise SourceRecreated("S", "it ends before what was landed of it")
        self.starts.append(int(start))
        return stream_of(numbered(range(int(start), self.rows)), request=request)

    @contextlib.contextmanager
    def connect(self, type_: str) -> Iterator[Growing]:
        assert type_ == "ksqldb"
        yield self


def eventually(is_so: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < ends
        time.sleep(0.05)


def files(folder: Path) -> dict[str, bytes]:
    return {str(each): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def test_a_tail_shows_what_is_new_and_learns_what_others_land(tmp_path):
    store, source = open_store(str(tmp_path)), Growing()
    feed = FeedRegistry(store).add(stream_feed())
    table = HiveTable(store, feed)
    export(table, stream_of(numbered(range(5))))
    before = files(tmp_path)
    windows = LiveWindows([feed], lands=False)
    window = windows.get("s")
    assert window
    source.rows = 12
    with tailing(store, (feed,), source.connect, windows):
        eventually(lambda: window.view().totals.seen == 7)
        assert files(tmp_path) == before  # nothing was written, and nothing is landed here
        assert window.view().totals.landed == 0
        source.is_down = True
        eventually(lambda: "connection refused" in window.view().error)
        source.is_down, source.rows = False, 20
        eventually(lambda: window.view().totals.seen == 15)
        assert window.view().error == ""
        export(table, stream_of(numbered(range(5, 20))))
        eventually(lambda: window.view().totals.landed == 15)
    shown = window.table()
    assert shown
    assert shown.column("id").to_pylist() == list(range(5, 20))
    assert source.starts[0] == 5
    assert ids(table) == list(range(20))


def test_a_source_that_was_created_anew_is_shown_from_its_beginning_once_it_is_landed_so(tmp_path):
    store, source = open_store(str(tmp_path)), Growing()
    feed = FeedRegistry(store).add(stream_feed())
    table = HiveTable(store, feed)
    export(table, stream_of(numbered(range(5))))
    windows = LiveWindows([feed], lands=False)
    window = windows.get("s")
    assert window
    source.rows = 12
    with tailing(store, (feed,), source.connect, windows):
        eventually(lambda: window.view().totals.seen == 7)
        source.rows = 3
        eventually(lambda: "it ends before what was landed of it" in window.view().error)
        assert window.view().totals.seen == 7  # an alarm, as it is to those who land it
        export(table, stream_of(numbered(range(2)), recreated=True))
        eventually(lambda: window.view().totals.seen == 8)
        assert window.view().error == ""
        source.rows = 4
        eventually(lambda: window.view().totals.seen == 9)
        export(table, stream_of(numbered(range(2, 4))))
        eventually(lambda: window.view().totals.landed == 2)  # and not those of the same numbers before
    shown = window.table()
    assert shown
    assert shown.column("id").to_pylist() == [*range(5, 12), 2, 3]
    assert shown.column("_state").to_pylist() == ["seen"] * 7 + ["landed"] * 2


def test_a_feed_that_was_archived_or_is_of_another_source_is_shown_as_that_and_read_no_more(tmp_path):
    store, source = open_store(str(tmp_path)), Growing()
    registry = FeedRegistry(store)
    feed = registry.add(stream_feed())
    windows = LiveWindows([feed], lands=False)
    window = windows.get("s")
    assert window
    source.rows = 3
    with tailing(store, (feed,), source.connect, windows):
        eventually(lambda: window.view().totals.seen == 3)
        registry.archive("s")
        eventually(lambda: "feed 's' is archived" in window.view().error)
        reads, source.rows = len(source.starts), 5
        again = registry.restore("s")
        eventually(lambda: window.view().totals.seen == 5)
        assert (window.view().error, source.starts[reads]) == ("", 3)
        other = again.model_copy(update={"source": again.source.model_copy(update={"object": "T"})})
        registry.update(other, expected_revision=again.revision)
        eventually(lambda: "has another source by now" in window.view().error)
    assert window.view().totals.seen == 5


def test_a_look_refuses_and_places_as_an_export_does(tmp_path):
    store, feed = open_store(str(tmp_path)), stream_feed(start="2025-01-02")
    batch = numbered(range(30), rejected=[RejectedRow(b"{", "not JSON", "0:30")])
    shown = LiveWindow(feed, lands=False)
    with watched_by(_Only(shown)):
        look(store, feed, stream_of(batch), seen := {})
    report = export(HiveTable(store, feed), stream_of(batch))
    totals = shown.view().totals
    assert (totals.seen, totals.quarantined) == (report.rows_added, report.rows_quarantined) == (6, 25)
    assert seen == {0: 30}


class _Only:
    """Watches one feed."""

    def __init__(self, window: LiveWindow) -> None:
        self._window = window

    def begin(self, feed: Feed) -> LiveWindow:
        return self._window.begin()

    def failed(self, name: str, reason: str) -> None:
        self._window.failed(reason)


def test_changes_that_are_merged_are_shown_as_they_come(tmp_path):
    store, feed = open_store(str(tmp_path)), stream_feed(write="merge", key=["note"])
    shown = LiveWindow(feed, lands=False)
    batch = numbered(range(4))
    again = SourceBatch(batch.rows, batch.source_partitions, pa.array([4, 5, 6, 7], pa.int64()))
    with watched_by(_Only(shown)):
        look(store, feed, stream_of(batch, again), {})
    totals = shown.view().totals
    assert (totals.seen, totals.duplicate) == (8, 0)  # a key that comes again is a change, not a duplicate


def test_a_queue_is_not_looked_at(tmp_path):
    queue = {"name": "q", "kind": "stream", "source": {"type": "sqs", "queue": "q", "region": "eu-west-1"}}
    feed = parse_feed(json.dumps(queue))
    refused = pytest.raises(ConfigError, match="land it")
    with refused, tailing(open_store(str(tmp_path)), (feed,), Growing().connect, LiveWindows([feed], lands=False)):
        pass
