"""The window of a feed's present: what passes over real lakes show of their rows, and what is kept of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from datalake_assets.core.batches import InMemoryBatches, RejectedRow, SourceBatch
from datalake_assets.errors import ConfigError, IncompleteResponse
from datalake_assets.feed import Feed
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.store import open_store
from datalake_assets.lake.watching import watched_by
from datalake_assets.live.board import CHART_S, POINTS, Board
from datalake_assets.live.window import LiveWindow, LiveWindows
from datalake_assets_tests.lake.feeds import SCHEMA, START, numbered, stream_feed, stream_of
from datalake_assets_tests.lake.hive_tables import export, ids

NOW = (START + timedelta(hours=100)).timestamp()


class Clock:
    """A clock that stands until it is told to go on."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Breaking(InMemoryBatches):
    """A source that breaks off after its batches."""

    def __iter__(self) -> Iterator[SourceBatch]:
        yield from self.batches
        raise IncompleteResponse("S", "the connection broke")


class Lake:
    """A feed of a local lake that is watched."""

    def __init__(self, folder: Path, **changes: object) -> None:
        folder.mkdir(exist_ok=True)
        self.table = HiveTable(open_store(str(folder)), stream_feed(**changes))
        self.clock = Clock()
        self.windows = LiveWindows([self.table.feed], clock=self.clock)

    @property
    def window(self) -> LiveWindow:
        found = self.windows.get("s")
        assert found
        return found

    def export(self, *batches: SourceBatch, breaks: bool = False) -> None:
        read = Breaking(tuple(batches), "rowtime") if breaks else stream_of(*batches)
        with watched_by(self.windows):
            export(self.table, read)

    def shown(self, column: str = "id") -> list[object]:
        table = self.window.table()
        return [] if table is None else table.column(column).to_pylist()

    @property
    def totals(self) -> tuple[int, ...]:
        return dataclasses.astuple(self.window.view().totals)


def totals(**counts: int) -> tuple[int, ...]:
    return tuple(counts.get(name, 0) for name in ("seen", "landed", "known", "late", "duplicate", "quarantined"))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def moved(batch: SourceBatch, hours: list[float]) -> SourceBatch:
    """The rows at other times."""
    times = pa.array([START + timedelta(hours=each) for each in hours], SCHEMA.field("rowtime").type)
    return dataclasses.replace(batch, rows=batch.rows.set_column(2, SCHEMA.field("rowtime"), times))


def test_a_pass_that_lands_rows_shows_them_as_landed(lake):
    lake.export(numbered(range(30)), numbered(range(30, 40)))
    assert lake.shown() == ids(lake.table) == list(range(40))
    assert set(lake.shown("_state")) == {"landed"}
    assert lake.totals == totals(seen=40, landed=40)
    view = lake.window.view()
    assert view.newest_time == (START + timedelta(hours=39)).timestamp()
    assert view.size_bytes > 0


def test_rows_are_seen_before_they_are_committed(lake):
    states = []

    class Looking(InMemoryBatches):
        def __iter__(self) -> Iterator[SourceBatch]:
            yield self.batches[0]
            states.append((lake.shown(), lake.shown("_state"), lake.table.scan().read_all().num_rows))

    with watched_by(lake.windows):
        export(lake.table, Looking((numbered(range(3)),), "rowtime"))
    assert states == [([0, 1, 2], ["seen"] * 3, 0)]


def test_rows_that_are_sent_again_are_counted_and_not_shown_again(lake):
    lake.export(numbered(range(10)))
    lake.export(numbered(range(5, 12)), numbered(range(11, 13)))
    assert lake.shown() == list(range(13))
    assert lake.totals == totals(seen=13, landed=13, known=6)


def as_shards(batch: SourceBatch) -> SourceBatch:
    """The rows as a source gives them that names its partitions, and whose numbers have more than 64 bits."""
    assert batch.source_offsets is not None
    names = pa.array(["shardId-000000000000"] * batch.rows.num_rows)
    offsets = pa.array([str((1 << 180) + each) for each in batch.source_offsets.to_pylist()])
    return dataclasses.replace(batch, source_partitions=names, source_offsets=offsets)


def test_rows_of_named_partitions_and_of_large_numbers_are_shown_once_too(lake):
    lake.export(as_shards(numbered(range(10))))
    with pytest.raises(IncompleteResponse):
        lake.export(as_shards(numbered(range(5, 15))), breaks=True)
    lake.export(as_shards(numbered(range(10, 20))))
    assert lake.shown() == ids(lake.table) == list(range(20))
    assert lake.totals == totals(seen=20, landed=20, known=5)


def test_a_window_that_lands_nothing_learns_of_named_partitions_too():
    window = LiveWindow(stream_feed(), lands=False, clock=Clock())
    batch = as_shards(numbered(range(10)))
    window.begin().accepted(batch.rows, *batch.numbers)
    window.ended(None)
    window.landed_before({"shardId-000000000000": (1 << 180) + 4, "another": 1 << 181})
    last = window.last(20)
    assert last
    assert last.column("_state").to_pylist() == ["landed"] * 4 + ["seen"] * 6


def test_a_pass_that_failed_shows_no_row_twice_when_it_is_repeated(lake):
    lake.export(numbered(range(10)), breaks=False)
    with pytest.raises(IncompleteResponse):
        lake.export(numbered(range(10, 20)), breaks=True)
    assert lake.shown("_state") == ["landed"] * 10 + ["seen"] * 10
    assert "the connection broke" in lake.window.view().error
    lake.export(numbered(range(10, 25)))
    assert lake.shown() == list(range(25))
    assert lake.totals == totals(seen=25, landed=25)
    assert lake.window.view().error == ""


def test_passes_that_fail_one_after_another_count_no_row_twice(lake):
    for rows in (range(10), range(3), ()):
        with pytest.raises(IncompleteResponse):
            lake.export(numbered(rows), breaks=True)
    export(lake.table, stream_of(numbered(range(6))))  # as if the first had come so far
    with pytest.raises(IncompleteResponse):
        lake.export(numbered(range(8)), breaks=True)
    lake.export(numbered(range(6, 12)))
    assert sorted(lake.shown()) == list(range(12))
    assert lake.totals == totals(seen=12, landed=12)


def test_rows_without_numbers_are_taken_back_with_all_that_was_counted_of_them():
    window = LiveWindow(
        stream_feed(live={"max_rows": 6}, checks={"rules": [{"type": "unique", "name": "once", "columns": ["note"]}]}),
        clock=Clock(),
    )
    rows = numbered(range(10)).rows
    rows = rows.set_column(1, "note", pa.array(["same"] * 10))
    for error in (IncompleteResponse("S", "broke"), None):
        window.begin().accepted(rows, None, None)
        window.ended(error)
    assert dataclasses.astuple(window.view().totals) == totals(seen=10, landed=10, duplicate=9)


def test_rows_that_were_pruned_during_a_pass_that_failed_are_counted_once(tmp_path):
    lake = Lake(tmp_path, live={"max_rows": 10})
    with pytest.raises(IncompleteResponse):
        lake.export(*(numbered(range(start, start + 5)) for start in range(0, 50, 5)), breaks=True)
    lake.export(*(numbered(range(start, start + 5)) for start in range(0, 60, 5)))
    assert lake.shown() == list(range(50, 60))
    assert lake.totals == totals(seen=60, landed=60)


def test_what_a_failed_pass_has_committed_is_landed_and_was_not_sent_twice(lake):
    with pytest.raises(IncompleteResponse):
        lake.export(numbered(range(10)), breaks=True)
    export(lake.table, stream_of(numbered(range(6))))  # as if that pass had come so far
    lake.export(numbered(range(10)), numbered(range(3)))
    assert sorted(lake.shown()) == list(range(10))
    assert lake.totals == totals(seen=10, landed=10, known=3)


def test_a_watcher_that_fails_harms_no_pass(tmp_path):
    class Broken:
        def begin(self, feed: object) -> LiveWindow:
            raise ValueError(feed)

    class BreaksLater(LiveWindow):
        def accepted(self, *rows: object) -> None:
            raise ValueError(rows)

    class Later:
        def begin(self, feed: Feed) -> LiveWindow:
            return BreaksLater(feed)

    table = HiveTable(open_store(str(tmp_path)), stream_feed())
    for watcher in (Broken(), Later()):
        with watched_by(watcher):
            export(table, stream_of(numbered(range(5))))
    assert ids(table) == list(range(5))


def test_late_rows_are_marked_by_the_newest_before_them_in_their_source_partition(tmp_path):
    lake = Lake(tmp_path, live={"late_after": "PT30M"})
    hours = [1, 3, 2.75, 2, 3]
    lake.export(moved(numbered(range(5)), hours), moved(numbered([9], partition=1), [0.5]))
    lake.export(moved(numbered([5, 6]), [2.4, 3.1]))
    assert [row for row, late in zip(lake.shown(), lake.shown("_late"), strict=True) if late] == [3, 5]
    assert lake.totals == totals(seen=8, landed=8, late=2)


def test_a_repeated_pass_calls_no_row_late_for_itself(tmp_path):
    lake = Lake(tmp_path, live={"late_after": "PT1M"})
    with pytest.raises(IncompleteResponse):
        lake.export(numbered(range(10)), breaks=True)
    lake.export(numbered(range(10)))
    assert lake.totals == totals(seen=10, landed=10)


def test_duplicates_are_known_by_the_feeds_unique_rules(tmp_path):
    rule = {"type": "unique", "name": "once", "columns": ["note"]}
    lake = Lake(tmp_path, checks={"rules": [rule]})
    notes = ["a", "b", "a", None, None, "b", "b"]
    batch = numbered(range(7))
    batch = dataclasses.replace(batch, rows=batch.rows.set_column(1, "note", pa.array(notes)))
    lake.export(batch)
    assert np.flatnonzero(lake.shown("_duplicate")).tolist() == [2, 5, 6]
    assert lake.totals == totals(seen=7, landed=7, duplicate=3)


def test_quarantined_rows_are_shown_with_their_reasons_once(lake):
    refused = [RejectedRow(b"{\xff<script>", "not JSON", "0:3")]
    lake.export(numbered(range(3), rejected=refused))
    lake.export(numbered([], rejected=refused))
    (shown,) = lake.window.view().refused
    assert (shown.reason, shown.position, shown.raw) == ("not JSON", "0:3", "{\\xff<script>")
    assert lake.totals == totals(seen=3, landed=3, quarantined=1)


def test_the_window_keeps_no_more_rows_bytes_and_minutes_than_it_may(tmp_path):
    lake = Lake(tmp_path / "rows", live={"max_rows": 100, "minutes": 5})
    lake.export(*(numbered(range(start, start + 7)) for start in range(0, 700, 7)))
    assert lake.shown() == list(range(600, 700))
    lake.clock.now += 4 * 60
    lake.export(numbered(range(700, 710)))
    lake.clock.now += 2 * 60
    assert lake.shown() == list(range(700, 710))
    lake.clock.now += 10 * 60
    view = lake.window.view()
    assert (lake.window.table(), view.rows, view.size_bytes) == (None, 0, 0)
    assert lake.totals == totals(seen=710, landed=710)


def test_the_window_takes_no_more_memory_than_it_may():
    window = LiveWindow(stream_feed(live={"max_mb": 1, "max_rows": 1_000_000}), clock=Clock())
    window.begin()
    for start in range(0, 60_000, 5000):
        offsets = np.arange(start, start + 5000)
        window.accepted(numbered(range(start, start + 5000)).rows, np.zeros(5000, dtype=np.int64), offsets)
    view, table = window.view(), window.table()
    assert table
    assert 0.7 * 2**20 < view.size_bytes <= 2**20
    assert table.column("id").to_pylist() == list(range(60_000 - view.rows, 60_000))
    assert view.totals.seen == 60_000


def test_rows_that_lie_in_a_large_piece_of_memory_do_not_hold_it():
    window = LiveWindow(stream_feed(), clock=Clock())
    window.begin().accepted(numbered(range(100_000)).rows.slice(500, 10), np.zeros(10, np.int64), np.arange(10))
    table = window.table()
    assert table
    assert table.column("id").to_pylist() == list(range(500, 510))
    assert table.get_total_buffer_size() < 10_000


def test_figures_are_kept_for_as_long_as_charts_look_back():
    clock = Clock()
    window = LiveWindow(stream_feed(live={"minutes": 1440}), clock=clock)
    for second in range(1000):
        clock.now = NOW + second
        window.begin().accepted(numbered([second]).rows, np.zeros(1, np.int64), np.array([second]))
        window.ended(None)
    kept = [number for number, _ in window.figures.since(0, clock.now + 1)]
    assert CHART_S + CHART_S // POINTS < len(kept) < 700
    assert window.view().totals.seen == 1000


def test_rows_of_a_type_that_no_longer_fits_leave_the_newest_shown():
    window = LiveWindow(stream_feed(), clock=Clock())
    rows = numbered(range(3)).rows
    for number, type_ in enumerate((pa.int64(), pa.int32(), pa.string())):
        changed = rows.set_column(0, "id", rows.column(0).cast(type_))
        window.begin().accepted(changed, np.zeros(3, np.int64), np.arange(3) + 3 * number)
        window.ended(None)
    for table in (window.table(), window.last(9)):
        assert table
        assert table.column("id").to_pylist() == ["0", "1", "2"]


def test_many_small_batches_are_few_chunks_of_the_same_rows():
    window = LiveWindow(stream_feed(), clock=Clock())
    for start in range(0, 3000, 3):
        offsets = np.arange(start, start + 3)
        window.begin().accepted(numbered(range(start, start + 3)).rows, np.zeros(3, dtype=np.int64), offsets)
        window.ended(None)
    assert len(window._settled) < 40
    table, last = window.table(), window.last(5)
    assert table
    assert last
    assert table.column("id").to_pylist() == list(range(3000))
    assert last.column("id").to_pylist() == [2995, 2996, 2997, 2998, 2999]


@pytest.mark.parametrize(("every_s", "late_after_s"), [(0.25, 2), (4, 10)])
def test_a_source_that_stops_is_late_by_the_pace_at_which_it_came(lake, tmp_path, every_s, late_after_s):
    board = Board(lake.windows, open_store(str(tmp_path)), clock=lake.clock)
    for number in range(6):
        lake.clock.now = NOW + number * every_s
        lake.export(numbered(range(number, number + 1)))
    came_at, told = lake.clock.now, []
    for silent_s in (late_after_s - 1, late_after_s, late_after_s + 1):
        lake.clock.now = came_at + silent_s
        (feed,) = json.loads(board.document())["feeds"]
        told.append((feed["status"], feed["status_text"]))
    assert told == [
        ("live", "rows come"),
        ("live", "rows come"),
        ("late", f"nothing has come for {late_after_s + 1} s"),
    ]


def test_ages_are_right_within_a_twentieth(lake):
    lake.clock.now = (START + timedelta(hours=1000)).timestamp()
    lake.export(numbered(range(1000)))
    ages = 3600 * np.arange(1, 1001)
    seen, landed = lake.window.figures.ages(lake.clock.now - 60, lake.clock.now + 1)
    for found in (seen.percentiles(), landed.percentiles()):
        assert found
        for name, share in (("p50", 50), ("p95", 95), ("p99", 99)):
            assert found[name] == pytest.approx(np.percentile(ages, share), rel=0.051)


def test_a_window_that_lands_nothing_learns_from_the_lakes_position_what_is_landed(tmp_path):
    window = LiveWindow(stream_feed(), lands=False, clock=Clock())
    batch = numbered(range(10))
    numbers = (np.zeros(10, dtype=np.int64), np.arange(10))
    window.begin().accepted(batch.rows, *numbers)
    window.ended(None)
    window.landed_before({0: 4, 1: 100})
    table = window.table()
    assert table
    assert table.column("_state").to_pylist() == ["landed"] * 4 + ["seen"] * 6
    assert window.view().totals.landed == 4


def test_a_feed_without_numbered_rows_has_no_live_view():
    with pytest.raises(ConfigError, match="feed 's': it is pulled by windows"):
        LiveWindows([stream_feed("pull")])
