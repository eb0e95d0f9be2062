"""An adopted folder is compacted, verified and repaired beside a writer that knows nothing of it."""

from __future__ import annotations

import contextlib
import io
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.manifest import Garbage
from datalake_assets.errors import (
    CommitConflict,
    ConfigError,
    CorruptLake,
    FolderTaken,
    LakeUnavailable,
    SnapshotExpired,
    TransientStoreError,
    UnreadableFile,
)
from datalake_assets.lake import compaction_inputs as inputs_module
from datalake_assets.lake.adopted import adopted_table
from datalake_assets.lake.adopted import reconcile as reconcile_module
from datalake_assets.lake.adopted.adopted_table import AdoptedTable
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.adopted.reconcile import reconcile
from datalake_assets.lake.commit import Change, PartitionLog, Planned
from datalake_assets.lake.file_identity import checksum_of
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.sql_gate import SqlRefused
from datalake_assets.lake.statistics import lake_statistics
from datalake_assets.lake.tables import open_table
from datalake_assets.parquet import decodable
from datalake_assets_tests.lake.adopted.adopted_folder import ids, parquet_bytes
from datalake_assets_tests.lake.sql_answers import run_sql

FORCE = CompactionRequest(force=True)


@pytest.fixture
def table(store, folder):
    for number in range(4):
        folder.write(f"day=1/{number}.parquet", [number])
    adopted = open_table(store, adopt(store, folder.uri, "clicks").feed)
    assert isinstance(adopted, AdoptedTable)
    return adopted


def differences(table, **options) -> list[tuple[str, str]]:
    return [(each.what, each.name.rpartition("/")[2]) for each in table.verify(**options)]


def manifest(table, key="day=1"):
    return table._folder.log(key).load().manifest


# ---- compaction


@pytest.mark.every_case_on_s3
@pytest.mark.parametrize("largest_read_whole", [0, 1 << 20], ids=["in place", "whole"])
def test_a_file_that_was_written_again_since_is_not_read(table, folder, monkeypatch, largest_read_whole):
    monkeypatch.setattr(inputs_module, "WHOLE_LOCAL_BYTES", largest_read_whole)
    monkeypatch.setattr(inputs_module, "WHOLE_BYTES", largest_read_whole)
    log, listed = table._folder.log("day=1"), manifest(table).files
    folder.write("day=1/2.parquet", [77])
    inputs = inputs_module.Inputs(table._folder.data_store, log.key_of, listed, adopted=True, may_copy=False)
    for each in inputs.files:
        if each.file.name == "2.parquet":
            with pytest.raises(UnreadableFile, match="was changed by somebody else"):
                each.open()
        else:
            assert each.open().size() == each.file.size_bytes
    inputs.close()


def test_compaction_merges_others_files_where_they_lie(table, folder):
    report = table.compact("day=1", FORCE)

    assert (report.files_before, report.files_after, report.rows) == (4, 1, 4)
    (name,) = folder.files()
    assert name.startswith("day=1/compacted_")
    assert ids(table) == [0, 1, 2, 3]
    assert manifest(table).garbage == ()
    assert differences(table, deep=True) == []
    assert reconcile(table._folder).changed == []
    assert not list(folder.store.list_staged(""))


def test_compaction_looks_first(table, folder):
    folder.write("day=1/new.parquet", [9])
    folder.delete("day=1/0.parquet")

    assert table.compact("day=1", FORCE).files_after == 1
    assert ids(table) == [1, 2, 3, 9]


def test_compaction_leaves_alone_what_cannot_be_read_or_does_not_fit(table, folder):
    folder.put("day=1/bad.parquet", b"bad")
    folder.write("day=1/odd.parquet", ["text"])
    folder.write("day=1/odd2.parquet", ["text"])
    report = table.compact("day=1", FORCE)

    assert {"day=1/bad.parquet", "day=1/odd.parquet", "day=1/odd2.parquet"} < set(folder.files())
    assert {each.name for each in report.skipped} >= {"odd.parquet", "odd2.parquet"}
    assert ids(table) == [0, 1, 2, 3]


def test_input_that_changes_before_the_commit_stops_it(table, folder):
    log, before = table._folder.log("day=1"), manifest(table)
    with folder.store.stage("clicks/day=1/compacted.parquet") as writer:
        writer.write(parquet_bytes({"id": [0, 1]}))
        staged = writer.finish()
    file = before.files[0].__class__("compacted.parquet", 2, staged.size_bytes)
    remove = ("0.parquet", "1.parquet")
    folder.write("day=1/1.parquet", [1, 1])

    with pytest.raises(CommitConflict, match=r"1\.parquet: another writer changed or deleted it since it was read"):
        log.commit(Change("c", "compact", ((staged, file),), lambda _: Planned(remove=remove)))
    assert manifest(table) == before
    assert not folder.store.has_staged(staged)


class _Died(BaseException):
    """The process is gone."""


@pytest.fixture
def interrupted(table, folder, monkeypatch):
    """A compaction that died after its commit, before anything was deleted."""

    def die(*_: object) -> None:
        raise _Died

    with monkeypatch.context() as patch:
        patch.setattr(type(folder.store), "delete_if", die)
        with pytest.raises(_Died):
            table.compact("day=1", FORCE)
    assert len(folder.files()) == 5
    return table


def test_garbage_of_a_crash_remembers_what_was_compacted(interrupted, folder):
    there = folder.files()
    bodies = {f"{number}.parquet": folder.store.get(f"clicks/day=1/{number}.parquet")[0] for number in range(4)}
    assert set(manifest(interrupted).garbage) == {
        Garbage(name, there[f"day=1/{name}"], len(body), checksum_of(body)) for name, body in bodies.items()
    }
    assert ids(interrupted) == [0, 1, 2, 3]
    assert differences(interrupted) == [("garbage", "manifest.json")]


def test_file_rewritten_after_a_crash_is_never_deleted(interrupted, folder, caplog):
    folder.write("day=1/2.parquet", [2, 20])
    folder.delete("day=1/3.parquet")

    with caplog.at_level(logging.WARNING):
        done = interrupted.repair()

    left = {path for path in folder.files() if "compacted" not in path}
    assert left == {"day=1/2.parquet"}
    assert [each.getMessage() for each in caplog.records] == [
        "clicks/day=1/2.parquet was replaced, and written again by somebody else before it was deleted: it stays"
    ]
    assert (done.waiting, done.reconciled) == ((), 1)
    # what was compacted and what was written since: both are somebody's rows
    assert ids(interrupted) == [0, 1, 2, 2, 3, 20]
    assert differences(interrupted) == []


def test_staged_files_of_a_crash_lie_beside_the_folder(table, folder, monkeypatch):
    before = folder.files()

    def die(*_: object, **__: object) -> None:
        raise _Died

    with monkeypatch.context() as patch:
        patch.setattr("datalake_assets.lake.commit.PartitionLog._swap", die)
        with pytest.raises(_Died):
            table.compact("day=1", FORCE)
    assert folder.files() == before
    assert [each.key.rpartition("/")[0] for each in folder.store.list_staged("clicks")] == ["clicks/day=1"]


def test_partition_that_was_compacted_during_the_listing_is_looked_at_again(table, monkeypatch):
    listing, compacted = reconcile_module.list_folder, []

    def list_late(where, only=None):
        found = listing(where, only)
        if not compacted:
            compacted.append(True)
            table.compact("day=1", FORCE)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(reconcile_module, "list_folder", list_late)
        found = reconcile(table._folder)
    assert (found.changed, found.waiting) == ([], [])
    assert ids(table) == [0, 1, 2, 3]
    assert len(manifest(table).files) == 1


@pytest.fixture
def merged_meanwhile(table, monkeypatch):
    """Has the partition compacted between the reading of its manifest and the listing of its folder, once."""
    data_store, listing = table._folder.data_store, type(table._folder.data_store).list
    pending = [lambda: AdoptedTable(table._folder.store, table.feed).compact("day=1", FORCE)]

    def list_later(store, prefix, **options):
        if store is data_store and pending:
            pending.pop()()
        return listing(store, prefix, **options)

    monkeypatch.setattr(type(data_store), "list", list_later)
    return pending


def test_rows_that_are_merged_before_they_are_looked_for_are_read_all_the_same(table, merged_meanwhile):
    assert ids(table) == [0, 1, 2, 3]
    assert not merged_meanwhile


def test_snapshot_of_files_that_were_merged_before_they_are_looked_for_has_expired(table, merged_meanwhile):
    snapshot = table.snapshot()
    assert snapshot.report("day=1").files == 4

    with pytest.raises(SnapshotExpired):
        snapshot.dataset()

    assert not merged_meanwhile
    assert ids(table) == [0, 1, 2, 3]


def test_a_merge_after_the_listing_is_no_difference(table, monkeypatch):
    listed = adopted_table.list_folder

    def merged_then(folder, only=None):
        found = listed(folder, only)
        table.compact("day=1", FORCE)
        return found

    monkeypatch.setattr(adopted_table, "list_folder", merged_then)
    assert differences(table) == []


@pytest.mark.every_case_on_s3
@pytest.mark.parametrize("swept", [True, False])
def test_a_merge_after_the_manifest_was_read_is_no_difference(table, folder, monkeypatch, swept):
    """The new file was in no manifest then, and the others were to be read whole."""
    folder.write("day=1/new.parquet", [9])
    unfinished = adopted_table.unfinished

    def merged_then(*told):
        with monkeypatch.context() as patch, contextlib.suppress(CorruptLake):
            if not swept:
                patch.setattr(PartitionLog, "_sweep", lambda _, manifest: {each.name for each in manifest.garbage})
            table.compact("day=1", FORCE)
        return unfinished(*told)

    monkeypatch.setattr(adopted_table, "unfinished", merged_then)
    assert differences(table, deep=True) == []


def test_files_of_a_partition_whose_manifest_cannot_be_read_are_not_called_new(table):
    table._folder.store.put(table._folder.log("day=1").manifest_key, b"{")

    assert differences(table) == [("manifest", "manifest.json")]


def test_partition_that_nobody_can_settle_now_waits_and_the_others_go_on(table, folder, monkeypatch):
    folder.write("day=2/a.parquet", [5])
    settle = FeedFolder.log

    def log(self, key):
        found = settle(self, key)
        if key == "day=1":

            def busy(_: object) -> None:
                raise TransientStoreError("x", "busy")

            found.settle = busy
        return found

    with monkeypatch.context() as patch:
        patch.setattr(FeedFolder, "log", log)
        found = reconcile(table._folder)
    assert (found.waiting, found.changed) == (["day=1: busy"], ["day=2"])


# ---- who may compact, and where


def test_folder_whose_marker_is_gone_is_not_compacted(table, folder):
    folder.store.delete([".datalake-owner-clicks.json"])

    with pytest.raises(FolderTaken) as caught:
        table.compact("day=1", FORCE)
    assert str(caught.value) == (
        f"{folder.uri}: its owner's marker is gone; adopt it again with 'datalake adopt {folder.uri} --name clicks'"
    )
    adopt(table._folder.store, folder.uri, "clicks")
    assert table.compact("day=1", FORCE).files_after == 1


def test_archived_feed_compacts_no_more(table, store):
    FeedRegistry(store).archive("clicks")

    with pytest.raises(FolderTaken):
        table.compact("day=1", FORCE)


def test_folder_on_another_device_than_its_parent_is_not_compacted(table, folder, monkeypatch):
    if "://" in folder.uri:
        return
    monkeypatch.setattr(adopted_table, "_device", lambda path: 1 if str(path).endswith("day=1") else 2)

    with pytest.raises(LakeUnavailable) as caught:
        table.compact("day=1", FORCE)
    assert str(caught.value) == (
        f"{folder.uri}/day=1: it is on another device than {folder.store.uri}, where files are staged; adopt a folder"
        " below the mount point instead"
    )
    assert ids(table) == [0, 1, 2, 3]


def test_nothing_is_exported_to_a_folder(table):
    line = (
        "feed 'clicks' is an adopted folder: nothing is exported to it; look at it with"
        " 'datalake repair clicks', or merge its files with 'datalake compact clicks'"
    )
    for call in (table.plan, lambda: table.write(None, partitions=(), run_id="")):
        with pytest.raises(ConfigError) as caught:
            call()
        assert str(caught.value) == line


# ---- verify, repair, report, sql


def test_verify_tells_what_others_did_and_repair_takes_it_over(table, folder):
    folder.write("day=1/0.parquet", [0, 100])
    folder.delete("day=1/1.parquet")
    folder.write("day=1/new.parquet", [9])
    folder.put("day=2/bad.parquet", b"bad")
    folder.put("day=2/notes.txt", b"text")

    assert differences(table) == [
        ("changed", "0.parquet"),
        ("missing", "1.parquet"),
        ("new file", "new.parquet"),
        ("unreadable", "bad.parquet"),
    ]
    assert table.repair().reconciled == 1
    assert differences(table) == [("unreadable", "bad.parquet")]
    assert ids(table) == [0, 2, 3, 9, 100]


def test_look_again_takes_over_what_others_did(table, folder):
    folder.write("day=2/a.parquet", [9])
    table.look_again()
    assert table.partitions() == ("day=1", "day=2")


def test_deep_verify_reads_what_the_footer_does_not_show(table, folder):
    body = parquet_bytes({"id": list(range(1000))}, use_dictionary=False, compression="none")
    damaged = body[:4] + b"\xff" * 2000 + body[2004:]
    folder.put("day=1/damaged.parquet", damaged)
    table.look_again()

    assert differences(table) == []
    assert differences(table, deep=True) == [("rows", "damaged.parquet")]


def test_rows_that_take_more_than_a_third_of_the_memory_are_named_and_stay(table, folder):
    folder.write("day=1/large.parquet", [9, 10], text=["x" * 400_000, ""])
    table.look_again()

    report = table.compact("day=1", CompactionRequest(force=True, memory_bytes=1_000_000))

    reasons = {each.name: each.reason for each in report.skipped}
    assert "a row takes 390.6 KiB decoded, most of it in column 'text'" in reasons["large.parquet"]
    assert "large.parquet" in {file.name for file in manifest(table).files}
    assert sorted(ids(table)) == [0, 1, 2, 3, 9, 10]


def test_deep_verify_does_not_decode_rows_that_are_too_large(table, folder, monkeypatch):
    monkeypatch.setattr(decodable, "ROW_BYTES", 300_000)
    folder.write("day=1/large.parquet", [9, 10], text=["x" * 400_000, ""])
    table.look_again()

    (found,) = table.verify(deep=True)

    assert (found.what, found.name.rpartition("/")[2]) == ("rows", "large.parquet")
    assert found.detail.startswith("not decoded: a row takes 390.6 KiB decoded")


def test_statistics_and_summary_know_the_folder(table, store):
    (statistics,) = lake_statistics(store, [table.feed])
    assert (statistics.rows, statistics.files, [each.key for each in statistics.partitions]) == (4, 4, ["day=1"])
    assert b'"path": "day=1"' in store.get("metadata/folders/clicks/_metadata.json")[0]


def test_sql_reads_the_folder_with_its_partition_columns(table, store, folder):
    folder.write("a.parquet", [9])
    table.look_again()
    query = "select day, count(*), sum(id)::int from clicks group by day order by day nulls last"
    assert run_sql(store, [table.feed], query).rows == ((1, 4, 6), (None, 1, 9))


@pytest.mark.parametrize("nested", [False, True])
def test_value_that_no_column_of_the_folder_can_hold_is_named_by_its_column(store, folder, nested):
    """Milliseconds that are too many as microseconds, which other files have."""
    for name, unit, value in (("a", "us", 0), ("b", "us", 1), ("c", "ms", 2**62)):
        times = pa.array([value], pa.timestamp(unit))
        column = pa.StructArray.from_arrays([times], names=["at"]) if nested else times
        folder.put(f"{name}.parquet", parquet_bytes({"id": [1], "t": column}))
    feed = adopt(store, folder.uri, "clicks").feed

    assert run_sql(store, [feed], "SELECT sum(id)::int FROM clicks").rows == ((3,),)
    with pytest.raises(SqlRefused, match="column 't': Casting from") as caught:
        run_sql(store, [feed], "SELECT t FROM clicks")
    assert "Traceback" not in str(caught.value)
    (left,) = (each for each in open_table(store, feed).compact(".", FORCE).skipped if each.name == "c.parquet")
    assert "column 't': Casting from" in left.reason


def test_query_of_a_folder_without_a_readable_file_says_how_to_see_why(store, folder):
    file = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 2, names=["x", "x"]), file)
    folder.put("a.parquet", file.getvalue())
    feed = adopt(store, folder.uri, "clicks").feed
    with pytest.raises(SqlRefused, match="'datalake verify clicks' names files that cannot be read"):
        run_sql(store, [feed], "SELECT count(*) FROM clicks")
