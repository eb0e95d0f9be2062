"""The contract of `LakeTable` for writers, on a local folder and on the real S3 server: what lands, once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.core.batches import InMemoryBatches, ReadRequest, RejectedRow, SourceBatch
from datalake_assets.core.feed_state import FeedState
from datalake_assets.errors import CommitConflict, ConfigError, IncompleteResponse, SchemaChanged, SourceShrank
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.store.base import Store
from datalake_assets_tests.lake.feeds import SCHEMA, START, numbered, rows, stream_feed, stream_of, table_feed, table_of
from datalake_assets_tests.lake.hive_tables import between_commits, export, folder_ids, ids, listed


def state(store: Store, path: str) -> FeedState:
    return FeedState.from_bytes(store.get(f"control/{path}/feed.json")[0], where=path)


class Breaking(InMemoryBatches):
    """A source that breaks off after its batches."""

    def __iter__(self) -> Iterator[SourceBatch]:
        yield from self.batches
        raise IncompleteResponse("S", "the connection broke")


def test_offsets_land_every_row_in_the_partition_of_its_time(store):
    table = HiveTable(store, stream_feed())
    report = export(table, stream_of(numbered(range(50))))
    assert [(p.key, p.rows_added) for p in report.partitions[:3]] == [
        ("2025-01-01", 24),
        ("2025-01-02", 24),
        ("2025-01-03", 2),
    ]
    assert ids(table) == folder_ids(store, "streams/s") == list(range(50))
    assert list(table.verify(deep=True)) == []


def test_offsets_add_nothing_when_the_same_rows_come_again(store):
    table = HiveTable(store, stream_feed())
    export(table, stream_of(numbered(range(30))))
    files = listed(store, "streams/s")
    report = export(table, stream_of(numbered(range(30))))
    assert (report.rows_added, report.rows_known) == (0, 30)
    assert listed(store, "streams/s") == files


def test_offsets_drop_rows_that_come_twice_in_one_read(store):
    table = HiveTable(store, stream_feed())
    report = export(table, stream_of(numbered(range(20)), numbered(range(10, 30))))
    assert (report.rows_read, report.rows_known) == (40, 10)
    assert ids(table) == list(range(30))


def test_offsets_are_counted_per_source_partition(store):
    table = HiveTable(store, stream_feed())
    export(table, stream_of(numbered(range(10), partition=0)))
    export(table, stream_of(numbered(range(5), partition=1)))
    assert ids(table) == sorted([*range(10), *range(5)])


def test_offsets_hint_moves_to_the_first_row_not_read(store):
    table = HiveTable(store, stream_feed())
    export(table, stream_of(numbered(range(30)), numbered(range(7), partition=3)))
    assert table.plan().request.start_offsets == {0: 30, 3: 7}


def test_a_read_that_did_not_catch_up_lands_what_came_and_says_so(store):
    table = HiveTable(store, stream_feed())
    read = stream_of(numbered(range(30)))
    read.unfinished = "not caught up: it is a test"
    assert export(table, read).notes == ("not caught up: it is a test",)
    assert table.plan().request.start_offsets == {0: 30}


def test_a_broken_read_commits_nothing_and_touches_no_metadata(store):
    table = HiveTable(store, stream_feed())
    with pytest.raises(IncompleteResponse):
        export(table, Breaking((numbered(range(30)),), "rowtime"))
    assert listed(store, "streams") == listed(store, "metadata") == []
    assert list(store.list_staged("")) == []


def test_a_recreated_source_starts_a_new_epoch(store):
    table = HiveTable(store, stream_feed())
    export(table, stream_of(numbered(range(10))))
    export(table, stream_of(numbered(range(10)), recreated=True))
    assert ids(table) == sorted([*range(10), *range(10)])
    report = export(table, stream_of(numbered(range(12))))
    assert (report.rows_added, report.rows_known) == (2, 10)


def test_rows_that_were_read_before_a_new_epoch_do_not_land_in_it(store):
    """A stream that is followed is read for hours, while somebody may export its source as one created anew."""
    table = HiveTable(store, stream_feed())
    export(table, stream_of(numbered(range(10))))
    followed = table.plan().request
    export(table, stream_of(numbered(range(3)), request=table.plan(new_epoch=True).request, recreated=True))
    with pytest.raises(CommitConflict, match="its source was taken for another"):
        export(table, stream_of(numbered(range(10, 20)), request=followed))
    export(table, stream_of(numbered(range(5)), request=table.plan().request))
    assert ids(table) == sorted([*range(10), *range(5)])


def test_an_export_that_begins_again_tells_what_it_had_committed(store):
    """Of three days the first was committed; then another one landed some rows of the second."""
    table = HiveTable(store, stream_feed())
    others = stream_of(numbered([*range(24), *range(24, 30)], rejected=[RejectedRow(b"{", "not JSON", "0:70")]))
    with between_commits(lambda: export(HiveTable(store, stream_feed()), others)):
        report = export(table, stream_of(numbered(range(60), rejected=[RejectedRow(b"{", "not JSON", "0:70")])))

    assert [(each.rows_added, each.files_added, each.rows) for each in report.partitions if each.rows] == [
        (24, 1, 24),
        (18, 1, 24),
        (12, 1, 12),
    ]
    assert (report.rows_read, report.rows_added, report.rows_known, report.rows_quarantined) == (61, 54, 6, 1)
    assert report.totals == table.totals()
    assert (report.totals.rows, report.totals.partitions) == (60, 3)
    assert [table.written([each.key]).report(each.key).rows for each in report.partitions if each.rows] == [24, 24, 12]
    assert ids(table) == folder_ids(store, "streams/s") == list(range(60))


def test_an_unplaceable_row_is_quarantined_with_its_position(store):
    table = HiveTable(store, stream_feed())
    times = pa.array([None, START - timedelta(days=1), START], pa.timestamp("ms", "UTC"))
    batch = numbered(range(3))
    moved = dataclasses.replace(batch, rows=batch.rows.set_column(2, SCHEMA.field("rowtime"), times))
    report = export(table, stream_of(dataclasses.replace(moved, rejected=(RejectedRow(b"{", "not JSON", "0:9"),))))
    assert (report.rows_read, report.rows_quarantined, report.rows_added) == (4, 3, 1)
    lines = [
        json.loads(line)
        for key in listed(store, "quarantine/streams/s")
        for line in store.get(key)[0].decode().splitlines()
    ]
    assert sorted((line["position"], line["reason"]) for line in lines) == [
        ("0:0", "rowtime is null"),
        ("0:1", "rowtime lies before the feed's start"),
        ("0:9", "not JSON"),
    ]


def test_quarantine_of_the_same_rows_again_adds_no_lines(store):
    table = HiveTable(store, stream_feed())
    bad = numbered(range(3), rejected=[RejectedRow(b"{", "not JSON", "0:9")])
    export(table, stream_of(bad))
    before = listed(store, "quarantine")
    export(table, stream_of(bad))
    assert listed(store, "quarantine") == before


class Removed(InMemoryBatches):
    """While it is read, the feed is archived and removed."""

    def __iter__(self) -> Iterator[SourceBatch]:
        yield from self.batches
        again = HiveTable(self.store, stream_feed())
        again.purge()
        if self.added:
            export(again, stream_of(numbered(range(2))))


@pytest.mark.parametrize(
    "when", ["while it is read", "while it is read, and added again", "before it begins", "between its parts"]
)
def test_an_export_of_a_feed_that_is_removed_leaves_nothing_that_its_name_would_take_for_landed(store, when):
    table = HiveTable(store, stream_feed())
    export(table, stream_of(numbered(range(5))))
    plan = table.plan()
    batches = stream_of(numbered(range(5, 8)), request=ReadRequest() if when == "between its parts" else plan.request)
    if when.startswith("while it is read"):
        batches = Removed(batches.batches, "rowtime", plan.request)
        batches.store, batches.added = store, when.endswith("added again")
    else:
        table.purge()
    if when == "before it begins":
        table = HiveTable(store, stream_feed())
    with pytest.raises(ConfigError, match="feed 's' was removed meanwhile"):
        table.write(batches, partitions=plan.partitions, run_id="run")

    again = HiveTable(store, stream_feed())
    start = again.plan().request.start_offsets.get(0, 0)
    assert start == (2 if when.endswith("added again") else 0)
    export(again, stream_of(numbered(range(start, 10))))
    assert ids(again) == list(range(10))


def test_a_partition_of_a_feed_that_is_removed_while_it_commits_is_not_made_anew(store):
    table, days = HiveTable(store, stream_feed()), [5, 30]
    export(table, stream_of(numbered(days)))
    more = stream_of(numbered([each + 1 for each in days]), request=table.plan().request)
    removed = pytest.raises(ConfigError, match="feed 's' was removed meanwhile")
    with between_commits(lambda: HiveTable(store, stream_feed()).purge()), removed:
        export(table, more)
    again = HiveTable(store, stream_feed())
    export(again, stream_of(numbered(range(48))))
    assert ids(again) == list(range(48))


def test_two_writers_of_the_same_rows_land_them_once(store):
    table = HiveTable(store, stream_feed())

    class Overtaken(InMemoryBatches):
        """While it is read the first time, another process lands some of the same rows."""

        done = False

        def __iter__(self) -> Iterator[SourceBatch]:
            yield from self.batches
            if not Overtaken.done:
                Overtaken.done = True
                export(HiveTable(store, stream_feed()), stream_of(numbered(range(20))))

    report = export(table, Overtaken((numbered(range(30)),), "rowtime"))
    assert ids(table) == folder_ids(store, "streams/s") == list(range(30))
    assert report.rows_known == 20
    assert list(store.list_staged("")) == []


def test_a_table_gets_a_new_version_and_readers_the_newest(store):
    table = HiveTable(store, table_feed())
    assert [export(table, table_of(count)).rows_added for count in (5, 6, 7)] == [5, 1, 1]
    assert table.partitions() == ("v1", "v2", "v3")
    assert ids(table) == list(range(7))
    assert ids(table, partitions=["v1"]) == list(range(5))


def test_a_committed_version_is_kept_as_it_is(store):
    table = HiveTable(store, table_feed())
    export(table, table_of(5))
    report = export(table, table_of(9), ["v1"])
    assert report.rows_added == 0
    assert report.notes == ("version v1 was committed before and is kept as it is",)
    assert ids(table) == list(range(5))


def test_two_writers_of_one_version_commit_it_once_and_the_state_says_whose_rows(store):
    table = HiveTable(store, table_feed())

    class Overtaken(InMemoryBatches):
        """While it is read, another process commits the same version, of fewer rows."""

        def __iter__(self) -> Iterator[SourceBatch]:
            yield from self.batches
            export(HiveTable(store, table_feed()), table_of(3), ["v1"])

    plan = table.plan()
    report = table.write(Overtaken((SourceBatch(rows(range(5))),)), partitions=plan.partitions, run_id="run")
    (version,) = state(store, "tables/t").versions
    assert (version.rows, report.partitions[0].rows, ids(table)) == (3, 3, [0, 1, 2])


def test_seven_versions_are_kept_and_numbers_never_reused(store):
    table = HiveTable(store, table_feed())
    removed = [export(table, table_of(5)).removed for _ in range(9)]
    assert removed[-2:] == [("v1",), ("v2",)]
    assert table.partitions() == tuple(f"v{n}" for n in range(3, 10))
    assert {key.split("/")[2] for key in listed(store, "tables/t")} == {f"version=v{n}" for n in range(3, 10)}
    with pytest.raises(ConfigError, match="v1 of table 't' was removed by retention"):
        table.plan(["v1"])
    with pytest.raises(ConfigError, match="the next version of table 't' is v10"):
        table.plan(["v12"])


def test_a_removed_version_above_the_current_one_is_not_exported_again(local_store):
    """It was pulled before the one that is current, and committed after it; retention went by the pulls."""
    feed = table_feed(retention={"versions": 1})
    table = HiveTable(local_store, feed)
    first, second = table.plan(), table.plan()

    class Late(InMemoryBatches):
        """While it is read, the other version is pulled and committed."""

        def __iter__(self) -> Iterator[SourceBatch]:
            yield from self.batches
            export(HiveTable(local_store, feed), table_of(4), list(first.partitions))

    late = Late((SourceBatch(rows(range(5))),))
    assert table.write(late, partitions=second.partitions, run_id="run").removed == ("v2",)
    with pytest.raises(ConfigError, match="v2 of table 't' was removed by retention"):
        export(HiveTable(local_store, feed), table_of(6), ["v2"])
    assert ids(table) == list(range(4))


def test_an_empty_table_is_a_version_that_readers_can_open(store):
    table = HiveTable(store, table_feed())
    report = export(table, table_of(0))
    assert (report.partitions[0].rows, report.partitions[0].files) == (0, 1)
    assert ids(table) == []


def test_a_table_that_fell_is_pulled_again_and_committed_when_two_pulls_agree(store):
    table = HiveTable(store, table_feed())
    export(table, table_of(100))
    report = export(table, table_of(50))
    assert report.notes == ("rows fell from 100 to 50; a second pull confirmed it",)
    assert ids(table) == list(range(50))


def test_a_table_pull_that_was_cut_short_is_refused(store):
    table = HiveTable(store, table_feed())
    export(table, table_of(100))

    class CutShort(InMemoryBatches):
        pulls = 0

        def __iter__(self) -> Iterator[SourceBatch]:
            CutShort.pulls += 1
            yield SourceBatch(rows(range(40 if CutShort.pulls == 1 else 100)))

    with pytest.raises(SourceShrank, match="two pulls gave 40 and 100 rows"):
        export(table, CutShort((SourceBatch(rows(range(1))),)))
    assert CutShort.pulls == 2
    assert ids(table) == list(range(100))
    assert table.partitions() == ("v1",)


def test_a_changed_schema_stops_a_frozen_feed(store):
    table = HiveTable(store, stream_feed())
    export(table, stream_of(numbered(range(5))))
    batch = numbered(range(5, 9))
    wider = dataclasses.replace(batch, rows=batch.rows.append_column("extra", pa.array([1, 2, 3, 4])))
    with pytest.raises(SchemaChanged, match="feed 's': the schema changed: added extra int64"):
        export(table, stream_of(wider))
    evolving = HiveTable(store, stream_feed(schema_policy="evolve"))
    export(evolving, stream_of(wider))
    assert evolving.scan().read_all()["extra"].null_count == 5


@pytest.mark.parametrize(
    ("mode", "keys", "message"),
    [
        ("pull", ["2025-01-01", "2025-01-03"], "must be contiguous"),
        ("pull", ["2024-12-31"], "lies before the start of feed 's', 2025-01-01"),
        ("offsets", ["2999-01-01"], "lies in the future"),
        ("offsets", ["2025-1-1"], "'2025-1-1' is not a partition by day; write it like '2025-01-15'"),
    ],
)
def test_a_plan_refuses_partitions_that_cannot_be(local_store, mode, keys, message):
    with pytest.raises(ConfigError, match=message):
        HiveTable(local_store, stream_feed(mode)).plan(keys)


def test_a_feed_keeps_its_kind_of_position_for_life(local_store):
    export(HiveTable(local_store, stream_feed()), stream_of(numbered(range(5))))
    with pytest.raises(ConfigError, match="was landed by 'offsets', not by 'window'"):
        export(HiveTable(local_store, stream_feed("pull")), stream_of(SourceBatch(rows(range(5)))), ["2025-01-01"])


@pytest.mark.parametrize(
    ("feed", "batches", "position"),
    [
        (stream_feed(), stream_of(numbered(range(5), partition=3)), {"kind": "offsets", "next": {"3": [0, 5]}}),
        (table_feed(), table_of(5), {"kind": "snapshot"}),
    ],
)
def test_a_file_says_which_commit_and_position_it_belongs_to(local_store, feed, batches, position):
    table = HiveTable(local_store, feed)
    export(table, batches)
    (key,) = listed(local_store, feed.path)
    footer = pq.read_metadata(local_store.path(key)).metadata
    manifest = json.loads(local_store.get(f"control/{key.rpartition('/')[0]}/manifest.json")[0])
    assert footer[b"datalake.feed"].decode() == feed.name
    assert footer[b"datalake.commit_id"].decode() == manifest["history"][0]["commit_id"]
    assert json.loads(footer[b"datalake.position"]).items() >= position.items()


def test_a_small_append_costs_five_puts(s3_store):
    table = HiveTable(s3_store, stream_feed())
    export(table, stream_of(numbered(range(5))))
    report = export(table, stream_of(numbered(range(5, 9))))
    # upload begun, part, completed; manifest prepared, committed; and once per run: hint and summary
    assert report.requests["put"] == 5 + 2


def test_notes_on_columns_stand_in_the_files_and_follow_the_feed(store):
    notes = {"id": {"description": "Number of the event.", "unit": "1", "tags": {"pii": "none"}}, "gone": {"unit": "s"}}
    table = HiveTable(store, stream_feed(columns=notes))
    export(table, stream_of(numbered(range(3))))
    changed = HiveTable(store, stream_feed(columns={"id": {"description": "Its number."}}))
    export(changed, stream_of(numbered(range(3, 5))))

    found = [
        pq.read_schema(pa.BufferReader(store.get(key)[0])).field("id").metadata
        for key in sorted(listed(store, "streams/s"))
        if key.endswith(".parquet")
    ]
    assert {(each[b"description"], each.get(b"unit")) for each in found} == {
        (b"Number of the event.", b"1"),
        (b"Its number.", None),
    }
    assert list(changed.verify(deep=True)) == []
