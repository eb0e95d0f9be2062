"""What nightly maintenance asks of a lake: slices, differences that last, what needs compaction, and leftovers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.manifest import Pending
from datalake_assets.errors import CorruptLake
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.inspection import differences, in_need, slice_of, sweep_temporary
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import ObjectInfo
from datalake_assets.lake.store.local import LocalStore
from datalake_assets_tests.lake.feeds import stream_feed, table_feed, table_of
from datalake_assets_tests.lake.many_files import DAYS, append


@given(st.integers(0, 500), st.integers(1, 50), st.integers(0, 10**6))
def test_slices_of_as_many_days_as_there_are_are_all_the_partitions_once(count, size, day):
    keys = [f"k{number:03}" for number in range(count)]
    days = -(-count // size)
    slices = [slice_of(keys, day=day + each, size=size) for each in range(days)]
    assert sorted(key for each in slices for key in each) == keys
    assert all(len(each) <= size for each in slices)


def test_slice_of_no_partitions_is_none():
    assert slice_of((), day=7, size=10) == slice_of(("k",), day=7, size=0) == ()


@pytest.fixture
def feed(store):
    one = stream_feed()
    append(store, one, times=4)
    return one


def found(store, feed, *keys):
    return [(each.what, each.name.rpartition("/")[2]) for each in differences(lambda: HiveTable(store, feed), keys)]


def test_missing_wrong_sized_and_unknown_files_of_a_slice_are_found_and_left(store, feed):
    one, two, *_ = sorted(info.key for info in store.list("streams/s/year=2025/month=01/day=01"))
    other = next(iter(store.list("streams/s/year=2025/month=01/day=03"))).key
    store.delete([one, other])
    store.put(two, b"short")
    unknown = store.put("streams/s/year=2025/month=01/day=02/theirs.parquet", b"rows")

    seen = found(store, feed, *DAYS[:2])

    assert sorted(seen) == [
        ("missing", one.rpartition("/")[2]),
        ("size", two.rpartition("/")[2]),
        ("unknown file", "theirs.parquet"),
    ]
    assert store.get("streams/s/year=2025/month=01/day=02/theirs.parquet") == (b"rows", unknown)
    assert found(store, feed, DAYS[1]) == [("unknown file", "theirs.parquet")]
    assert found(store, feed, DAYS[2]) == [("missing", other.rpartition("/")[2])]


def test_slice_costs_a_listing_and_a_manifest_per_partition(store, feed):
    before = dict(store.requests)
    assert found(store, feed, *DAYS[:2]) == []
    spent = {kind: count - before[kind] for kind, count in store.requests.items()}
    assert spent == {"put": 0, "get": 2, "list": 2, "delete": 0}


def test_manifest_that_cannot_be_read_is_a_difference(local_store):
    append(local_store, stream_feed(), times=1)
    (Path(local_store.uri) / "control/streams/s/year=2025/month=01/day=01/manifest.json").write_text("{")
    assert ("manifest", "manifest.json") in found(local_store, stream_feed(), DAYS[0])


class Racing(LocalStore):
    """Somebody compacts the partition just after the first listing of its files."""

    raced = 0

    def list(self, prefix: str, *, links: bool = False) -> Iterator[ObjectInfo]:
        seen = list(super().list(prefix, links=links))
        if prefix.startswith("streams/") and not self.raced:
            self.raced += 1
            HiveTable(open_store(self.uri), stream_feed()).compact(DAYS[0], CompactionRequest())
        return iter(seen)


@pytest.mark.parametrize("partitions", [None, DAYS[:1]], ids=["all", "one"])
def test_what_a_compaction_changes_between_listing_and_manifest_is_no_difference(local_store, partitions):
    append(local_store, stream_feed(), times=4)
    store = Racing(local_store.uri)

    assert list(HiveTable(store, stream_feed()).verify(partitions=partitions, deep=True)) == []

    assert store.raced == 1


class MergedOnceRead(LocalStore):
    """Somebody compacts the partition just after its manifest was read."""

    raced = 0

    def get(self, key: str) -> tuple[bytes, str]:
        found = super().get(key)
        if key.endswith("day=01/manifest.json") and not self.raced:
            self.raced += 1
            HiveTable(open_store(self.uri), stream_feed()).compact(DAYS[0], CompactionRequest())
        return found


def test_files_that_are_merged_before_they_are_read_are_no_difference(local_store):
    append(local_store, stream_feed(), times=4)
    store = MergedOnceRead(local_store.uri)

    assert list(HiveTable(store, stream_feed()).verify(deep=True)) == []

    assert store.raced == 1


def test_files_of_a_partition_whose_manifest_cannot_be_read_are_not_called_unknown(local_store):
    append(local_store, stream_feed(), times=1)
    manifest = "control/streams/s/year=2025/month=01/day=01/manifest.json"
    local_store.put(manifest, b"{")

    (difference,) = HiveTable(local_store, stream_feed()).verify()

    assert (difference.what, difference.name) == ("manifest", manifest)


def test_partitions_in_need_are_those_with_something_to_merge(store, feed):
    table = HiveTable(store, feed)
    table.compact(DAYS[1], CompactionRequest())

    needed, errors = in_need(lambda: HiveTable(store, feed), DAYS, CompactionRequest(), unusable=lambda _: {})

    assert (needed, errors) == ([DAYS[0], DAYS[2]], {})


def test_partition_whose_files_are_all_known_to_be_unusable_is_in_no_need(local_store):
    feed = stream_feed()
    append(local_store, feed, times=4)
    names = {info.key.rpartition("/")[2]: "bad" for info in local_store.list("streams/s/year=2025/month=01/day=01")}

    needed, _ = in_need(lambda: HiveTable(local_store, feed), DAYS, CompactionRequest(), unusable=lambda _: names)

    assert needed == list(DAYS[1:])


def test_manifest_that_cannot_be_read_is_named_and_holds_up_no_other(local_store):
    feed = stream_feed()
    append(local_store, feed, times=4)
    (Path(local_store.uri) / "control/streams/s/year=2025/month=01/day=02/manifest.json").write_text("{")

    needed, errors = in_need(lambda: HiveTable(local_store, feed), DAYS, CompactionRequest(), unusable=lambda _: {})

    assert needed == [DAYS[0], DAYS[2]]
    assert isinstance(errors[DAYS[1]], CorruptLake)


def test_removed_versions_are_told_from_those_that_are_yet_to_come(local_store):
    feed = table_feed(retention={"versions": 1})
    table = HiveTable(local_store, feed)
    for count in (3, 4):
        table.write(table_of(count), partitions=table.plan().partitions, run_id="r")
    planned = table.plan().partitions

    assert HiveTable(local_store, feed).removed(["v1", "v2", *planned]) == ("v1",)
    assert HiveTable(local_store, stream_feed()).removed(["2025-01-01"]) == ()


def aged(file: Path, hours: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x")
    then = file.stat().st_mtime - 3600 * hours
    os.utime(file, (then, then))
    return file


def test_temporary_files_older_than_a_day_are_swept_and_nothing_else(local_store):
    scratch = Path(local_store.uri) / ".staging"
    old = [aged(scratch / "tmp" / "a", 25), aged(scratch / "probe-1", 25)]
    kept = [aged(scratch / "tmp" / "b", 23), aged(scratch / "files" / "c", 99), aged(scratch / "locks" / "00", 99)]

    assert sweep_temporary(local_store, now=local_store.now()) == 2
    assert [file.exists() for file in (*old, *kept)] == [False, False, True, True, True]
    assert sweep_temporary(local_store, now=local_store.now()) == 0


@pytest.mark.s3
def test_lake_in_s3_has_no_temporary_files(s3_store):
    assert sweep_temporary(s3_store, now=s3_store.now() + timedelta(days=9)) == 0


def test_repair_of_many_partitions_finishes_each_and_tells_of_those_that_nobody_can_read(store, feed):
    table = HiveTable(store, feed)
    for key in DAYS[:2]:
        log = FeedFolder(store, feed).log(key)
        loaded = log.load()
        pending = Pending("c", "compact", "r", (), remove=(loaded.manifest.files[0].name,))
        prepared = loaded.manifest.prepared(pending).stamped("w")
        store.swap(log.manifest_key, prepared.to_bytes(), etag=loaded.etag)
    broken = FeedFolder(store, feed).log(DAYS[2]).manifest_key
    store.put(broken, b"{")

    done = table.repair()

    assert (done.finished, done.undone) == (2, 0)
    (waiting,) = done.waiting
    assert waiting.startswith("streams/s/year=2025/month=01/day=03: ")
    assert [table.report(key).files for key in DAYS[:2]] == [3, 3]
