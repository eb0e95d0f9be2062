"""The contract of `LakeTable` for readers, and for who looks after it: scans, summary, verification, repair."""

from __future__ import annotations

import json

import pyarrow.dataset as ds
import pytest

from datalake_assets.core.batches import SourceBatch
from datalake_assets.core.feed_state import FeedState
from datalake_assets.errors import SnapshotExpired
from datalake_assets.lake import scan
from datalake_assets.lake.hive import HiveTable
from datalake_assets_tests.lake.feeds import numbered, rows, stream_feed, stream_of, table_feed, table_of
from datalake_assets_tests.lake.hive_tables import export, ids, listed


def test_a_scan_prunes_partitions_before_it_reads_their_manifests(store):
    table = HiveTable(store, stream_feed())
    export(table, stream_of(numbered(range(240))))
    before = store.requests["get"]
    found = table.scan(columns=["id"], where=(ds.field("day") == 3) & (ds.field("id") > 50)).read_all()
    assert sorted(found["id"].to_pylist()) == list(range(51, 72))
    assert store.requests["get"] - before <= 3  # the state and one of ten manifests


def test_partitions_are_listed_once_however_many_are_exported_again(local_store):
    """They were listed once for each that was there before."""
    days = [f"2025-01-{day:02}" for day in range(1, 31)]
    table = HiveTable(local_store, stream_feed("pull"))
    export(table, stream_of(SourceBatch(rows(range(15 * 24)))), days)  # the second half has no rows
    before = local_store.requests["list"]

    export(table, stream_of(SourceBatch(rows(range(30 * 24)))), days)

    assert local_store.requests["list"] - before == 1
    assert ids(table) == [*range(30 * 24)]


def test_a_scan_reads_again_when_a_file_was_replaced_before_its_first_batch(store, monkeypatch):
    table = HiveTable(store, stream_feed("pull"))
    export(table, stream_of(SourceBatch(rows(range(5)))), ["2025-01-01"])
    original = scan._scanner
    calls = []

    def late(dataset, **options):
        if not calls:
            calls.append(1)
            export(table, stream_of(SourceBatch(rows(range(7)))), ["2025-01-01"])
        return original(dataset, **options)

    monkeypatch.setattr("datalake_assets.lake.scan._scanner", late)
    assert ids(table) == list(range(7))
    assert calls == [1]


def test_a_scan_says_so_when_a_file_goes_after_its_first_batch(store, monkeypatch):
    table = HiveTable(store, stream_feed())
    export(table, stream_of(numbered(range(48))))
    original = scan._scanner

    class Slow:
        """A scanner that reads its second file long after the first, when both are gone."""

        def __init__(self, dataset, **options):
            self.scanner, self.again = original(dataset, **options), original(dataset, **options)
            self.projected_schema = self.scanner.projected_schema

        def to_batches(self):
            yield next(self.scanner.to_batches())
            store.delete(listed(store, "streams/s"))
            yield from self.again.to_batches()

    monkeypatch.setattr("datalake_assets.lake.scan._scanner", Slow)
    reader = table.scan()
    reader.read_next_batch()
    with pytest.raises(SnapshotExpired, match="read again"):
        reader.read_all()


def test_verify_names_what_differs(store):
    table = HiveTable(store, stream_feed())
    export(table, stream_of(numbered(range(60))))
    first, second, third = listed(store, "streams/s")
    store.delete([first])
    body, _ = store.get(second)
    flipped = bytes([body[0], body[1], body[2], body[3], body[4] ^ 1]) + body[5:]
    store.put(second, flipped)
    store.put(third, body[:-1])
    store.put("streams/s/year=2025/month=01/day=01/stray.parquet", b"x")
    found = {(each.what, each.name) for each in table.verify(deep=True)}
    assert found >= {
        ("missing", first),
        ("checksum", second),
        ("size", third),
        ("unknown file", "streams/s/year=2025/month=01/day=01/stray.parquet"),
    }


def test_the_summary_says_what_the_manifests_say(store):
    table = HiveTable(store, stream_feed())
    export(table, stream_of(numbered(range(30))))
    summary = json.loads(store.get("metadata/streams/s/_metadata.json")[0])
    assert summary["source"] == "s"
    assert summary["total_records"] == 30
    assert [(each["path"], each["records"], each["files"]) for each in summary["partitions"]] == [
        ("year=2025/month=01/day=01", 24, 1),
        ("year=2025/month=01/day=02", 6, 1),
    ]


def test_the_totals_of_a_summary_are_to_the_byte(store):
    """Rounded to the kilobyte, two tables showed two sizes of one feed."""
    table = HiveTable(store, stream_feed())
    done = export(table, stream_of(numbered(range(30))))
    there = sum(info.size_bytes for info in store.list("streams/s"))
    assert there % 1000
    assert done.totals is not None
    assert done.totals.size_bytes == there
    assert sum(each.size_bytes for each in done.partitions) == there


def test_repair_mends_a_summary_that_a_crash_left_behind(store):
    table = HiveTable(store, stream_feed())
    export(table, stream_of(numbered(range(30))))
    key = "metadata/streams/s/_metadata.json"
    good = store.get(key)[0]
    store.put(key, good.replace(b'"records": 24', b'"records": 20'))
    table.repair()
    assert store.get(key)[0] == good
    store.delete([key])
    table.repair()
    assert json.loads(store.get(key)[0])["total_records"] == 30


def test_repair_enters_a_version_that_a_crash_kept_from_the_state_and_retains_seven(store, monkeypatch):
    table = HiveTable(store, table_feed())
    for _ in range(7):
        export(table, table_of(5))
    monkeypatch.setattr(FeedState, "with_version", lambda state, _: state)
    export(table, table_of(6))
    monkeypatch.undo()
    assert table.partitions()[-1] == "v7"
    table.repair()
    assert table.partitions() == tuple(f"v{n}" for n in range(2, 9))
    assert ids(table) == list(range(6))
    assert list(table.verify()) == []
