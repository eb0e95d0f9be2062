"""Streams that are pulled by windows: what lands of them once, and where the next pull begins."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import partial

import pytest

from datalake_assets.core.batches import InMemoryBatches, SourceBatch
from datalake_assets.errors import IncompleteResponse, SourceShrank
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.store.base import StagedFile, Store
from datalake_assets_tests.lake.feeds import numbered, rows, stream_feed, stream_of, table_feed, table_of
from datalake_assets_tests.lake.hive_tables import between_commits, export, folder_ids, ids, listed


def test_windows_that_are_pulled_again_count_once(store):
    """Somebody sweeps what is staged for the second day: both are pulled anew, and the first is there already."""
    feed, keys = stream_feed("pull"), ["2025-01-01", "2025-01-02"]
    export(HiveTable(store, feed), stream_of(numbered(range(20))), keys)
    staged = store.list_staged

    def swept():
        for each in staged(""):
            store.discard_staged(each)

    with between_commits(swept):
        report = export(HiveTable(store, feed), stream_of(numbered(range(48))), keys)

    assert [(each.rows_added, each.rows) for each in report.partitions] == [(4, 24), (24, 24)]
    assert (report.rows_read, report.rows_added, report.rows_known) == (48, 28, 0)


def test_a_window_is_replaced_and_never_appended_to(store):
    table = HiveTable(store, stream_feed("pull"))
    days = ["2025-01-01", "2025-01-02"]
    export(table, stream_of(SourceBatch(rows(range(30)))), days)
    report = export(table, stream_of(SourceBatch(rows(range(40)))), days)
    assert [(p.key, p.rows_added, p.rows) for p in report.partitions] == [("2025-01-01", 0, 24), ("2025-01-02", 10, 16)]
    assert ids(table) == folder_ids(store, "streams/s") == list(range(40))


def test_a_window_with_the_same_rows_in_another_order_is_not_written_again(store):
    table = HiveTable(store, stream_feed("pull"))
    export(table, stream_of(SourceBatch(rows(range(24)))), ["2025-01-01"])
    files = listed(store, "streams/s")
    report = export(table, stream_of(SourceBatch(rows(range(23, -1, -1)))), ["2025-01-01"])
    assert (report.rows_read, report.rows_added, report.partitions[0].files_added) == (24, 0, 0)
    assert listed(store, "streams/s") == files
    assert list(store.list_staged("")) == []


def test_a_window_that_shrank_is_refused_before_any_partition_changes(store):
    table = HiveTable(store, stream_feed("pull"))
    days = ["2025-01-01", "2025-01-02"]
    export(table, stream_of(SourceBatch(rows(range(30)))), days)
    files = listed(store, "streams/s")
    with pytest.raises(SourceShrank, match="2025-01-02 has 6 rows in the lake and 2 at the source"):
        export(table, stream_of(SourceBatch(rows(range(26)))), days)
    assert listed(store, "streams/s") == files
    assert list(store.list_staged("")) == []
    report = export(table, stream_of(SourceBatch(rows(range(26)))), days, allow_shrink=True)
    assert report.rows_added == -4


def test_an_older_pull_never_replaces_a_newer_one(store):
    table = HiveTable(store, stream_feed("pull"))

    class Overtaken(InMemoryBatches):
        """While it is read, another process pulls and commits more."""

        def __iter__(self) -> Iterator[SourceBatch]:
            yield from self.batches
            export(HiveTable(store, stream_feed("pull")), stream_of(SourceBatch(rows(range(9)))), ["2025-01-01"])

    report = export(table, Overtaken((SourceBatch(rows(range(5))),), "rowtime"), ["2025-01-01"])
    assert ids(table) == list(range(9))
    assert "a newer pull was committed" in report.notes[0]


def test_a_clock_that_was_put_back_drops_no_later_pull_and_no_later_version(store, monkeypatch):
    window, table = HiveTable(store, stream_feed("pull")), HiveTable(store, table_feed(retention={"versions": 1}))
    true = type(store).now
    with monkeypatch.context() as patch:
        patch.setattr(type(store), "now", lambda self: true(self) + timedelta(days=400))
        export(window, stream_of(SourceBatch(rows(range(5)))), ["2025-01-01"])
        export(table, table_of(5))
    for _ in range(2):
        report = export(window, stream_of(SourceBatch(rows(range(9)))), ["2025-01-01"])
        export(table, table_of(9))
    assert (ids(window), ids(table), report.notes) == (list(range(9)), list(range(9)), ())


def test_of_two_pulls_that_began_at_one_time_the_later_to_commit_is_pulled_again(store, monkeypatch):
    table, moment = HiveTable(store, stream_feed("pull")), store.now()
    monkeypatch.setattr(type(store), "now", lambda _: moment)
    read = []

    class Twice(InMemoryBatches):
        """The first time another process pulls as much and more, and commits; then it is there, too."""

        def __iter__(self) -> Iterator[SourceBatch]:
            more = SourceBatch(rows(range(9)))
            read.append(len(read))
            yield more if len(read) > 1 else SourceBatch(rows(range(5)))
            if len(read) == 1:
                export(HiveTable(store, stream_feed("pull")), stream_of(more), ["2025-01-01"])

    export(table, Twice((SourceBatch(rows([])),), "rowtime"), ["2025-01-01"])
    assert (ids(table), read) == (list(range(9)), [0, 1])


def test_a_window_whose_staged_file_was_lost_is_pulled_again_and_leaves_nothing_staged(store, monkeypatch):
    table, lost, publish = HiveTable(store, stream_feed("pull")), [], type(store).publish

    def lose_the_first(self: Store, staged: StagedFile) -> None:
        if not lost:
            lost.append(staged)
            self.discard_staged(staged)
        publish(self, staged)

    monkeypatch.setattr(type(store), "publish", lose_the_first)
    report = export(table, stream_of(SourceBatch(rows(range(30)))), ["2025-01-01", "2025-01-02"])
    assert (len(lost), report.rows_added, ids(table)) == (1, 30, list(range(30)))
    assert list(store.list_staged("")) == []


def test_rows_outside_the_window_are_refused(store):
    table = HiveTable(store, stream_feed("pull"))
    with pytest.raises(IncompleteResponse, match="2025-01-02"):
        export(table, stream_of(SourceBatch(rows(range(30)))), ["2025-01-01"])
    assert listed(store, "streams") == []


def test_catching_up_by_pull_goes_back_as_far_as_rows_may_be_late(store):
    table = HiveTable(store, stream_feed("pull", lateness="P1D"))
    assert table.plan().partitions[0] == "2025-01-01"
    export(table, stream_of(SourceBatch(rows(range(100)))), [f"2025-01-0{day}" for day in range(1, 6)])
    assert table.plan().partitions[0] == "2025-01-04"  # the newest row is of January 5th, 03:00


def test_catching_up_by_pull_comes_back_to_a_gap_that_a_failed_run_of_a_backfill_left(store):
    table = HiveTable(store, stream_feed("pull", lateness="P1D"))
    days = [f"2025-01-{day:02}" for day in range(1, 10)]
    parts = {day: SourceBatch(rows(range(24 * number, 24 * number + 24))) for number, day in enumerate(days)}
    for chosen in (days[6:], days[:3]):  # the runs of days 4 to 6 fail, and the last ones are the first to end
        export(table, stream_of(*(parts[day] for day in chosen)), chosen)
    assert table.plan().partitions[0] == "2025-01-02"  # a day before the newest of those that are complete
    export(table, stream_of(*(parts[day] for day in days[3:6])), days[3:6])
    assert table.plan().partitions[0] == "2025-01-02"  # nobody knows whether these were whole: they are pulled again
    export(table, stream_of(*list(parts.values())[1:]), table.plan().partitions)
    assert table.plan().partitions[0] == "2025-01-08"
    assert ids(table) == list(range(24 * 9))


def test_catching_up_by_pull_comes_back_to_days_that_were_exported_one_by_one_before_they_were_whole(store):
    """By name, as a person or a schedule of Dagster's does it: each day is exported while it goes on."""
    table = HiveTable(store, stream_feed("pull", lateness="P1D"))
    for day in range(4):
        some = SourceBatch(rows(range(24 * day, 24 * day + 12)))  # its second half comes later
        export(table, stream_of(some), [f"2025-01-0{day + 1}"])
    plan = table.plan().partitions
    assert plan[0] == "2025-01-01"
    export(table, stream_of(SourceBatch(rows(range(24 * 4)))), plan)
    assert ids(table) == list(range(24 * 4))
    assert table.plan().partitions[0] == "2025-01-03"  # what was pulled at once is whole but for what is late


def test_catching_up_by_pull_looks_for_what_was_late_before_a_newer_pull_that_came_between(store):
    """An older pull drops what a newer one committed of its newest day, and moves on as far as it saw itself."""
    table = HiveTable(store, stream_feed("pull", lateness="PT12H"))
    days = ["2025-01-01", "2025-01-02", "2025-01-03"]
    between = partial(export, HiveTable(store, table.feed), stream_of(SourceBatch(rows(range(48, 72)))), days[2:])
    with between_commits(between):
        export(table, stream_of(SourceBatch(rows(range(50)))), days)
    assert ids(table) == [*range(48), *range(48, 72)]
    assert table.plan().partitions[0] == "2025-01-02"  # of January 3rd, 01:00, less half a day
