"""What becomes of a feed's Iceberg table beside slow writers, and engines that rename, tag, delete and roll back."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update import SetSnapshotRefUpdate

from datalake_assets.errors import ConfigError, LakeError
from datalake_assets.feed import Feed
from datalake_assets.lake.iceberg import iceberg_commits
from datalake_assets.lake.iceberg.commit_records import CommitRecord
from datalake_assets.lake.iceberg.transactions import TableChange, commit_change
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.s3_access import CatalogAccess
from datalake_assets.lake.tables import open_table
from datalake_assets.testing.tables import FORCE, ids_of
from datalake_assets_tests.lake.feeds import numbered, rows, stream_feed, stream_of, table_feed, table_of
from datalake_assets_tests.lake.iceberg.iceberg_feeds import catalog_of, ids_seen, seen_by_others
from datalake_assets_tests.lake.iceberg.iceberg_tables import delete_rows, upgraded, without_old_schemas


@pytest.fixture
def feed() -> Feed:
    return stream_feed(format="iceberg")


@pytest.fixture
def versions() -> Feed:
    return table_feed(format="iceberg", retention={"versions": 5})


def land(store: Store, feed: Feed, ids: range) -> int:
    table = open_table(store, feed)
    return table.write(stream_of(numbered(ids)), partitions=table.plan().partitions, run_id="run").rows_added


def land_version(store: Store, feed: Feed, count: int):
    table = open_table(store, feed)
    return table.write(table_of(count), partitions=table.plan().partitions, run_id="run")


def between(monkeypatch, name: str, act) -> None:
    """Has something happen once, after a step of the next commit."""
    step, pending = getattr(iceberg_commits, name), [act]

    def stepped(*arguments):
        done = step(*arguments)
        if pending:
            pending.pop()()
        return done

    monkeypatch.setattr(iceberg_commits, name, stepped)


def test_version_of_a_slow_pull_takes_no_newer_ones_place(local_store, versions, monkeypatch):
    land_version(local_store, versions, 3)
    between(monkeypatch, "_publish", lambda: land_version(local_store, versions, 5))
    land_version(local_store, versions, 4)

    table = open_table(local_store, versions)
    read = {key: table.scan(partitions=[key]).read_all().num_rows for key in table.partitions()}
    assert read == {"v1": 3, "v2": 4, "v3": 5}
    assert {key: table.report(key).rows for key in read} == read
    assert (table.snapshot().keys, len(ids_of(table))) == (("v3",), 5)
    assert len(ids_seen(local_store, "tables.t")) == 5
    table.compact("v3", FORCE)
    land_version(local_store, versions, 6)
    assert {key: open_table(local_store, versions).report(key).rows for key in ("v2", "v3", "v4")} == {
        "v2": 4,
        "v3": 5,
        "v4": 6,
    }


def test_files_of_versions_that_are_not_the_newest_are_not_merged_in_vain(local_store, versions):
    land_version(local_store, versions, 3)
    land_version(local_store, versions, 4)

    plan = open_table(local_store, versions).compaction_plan("v1", FORCE)
    assert (plan.groups, {each.reason for each in plan.left_alone}) == ((), {"is of a version that is not the newest"})


@pytest.mark.parametrize("again", [False, True], ids=["renamed", "there again"])
def test_column_that_another_engine_renamed_stops_the_feed(local_store, feed, again):
    for first in range(0, 12, 4):
        land(local_store, feed, range(first, first + 4))
    with seen_by_others(local_store) as table:
        with table.update_schema() as update:
            update.rename_column("note", "remark")
        if again:
            with table.update_schema() as update:
                update.union_by_name(pa.schema([pa.field("note", pa.string())]))

    if again:
        with pytest.raises(ConfigError, match="column 'note' is not the table's"):
            open_table(local_store, feed).compact("2025-01-01", FORCE)
    else:
        with pytest.raises(ConfigError, match="has no column 'note' any more: another engine renamed or dropped it"):
            land(local_store, feed, range(12, 14))
    assert ids_seen(local_store) == list(range(12))
    assert not {each.what for each in open_table(local_store, feed).verify()} & {"pending", "unknown file"}


@pytest.mark.parametrize("forgotten", [False, True], ids=["known", "forgotten"])
def test_renamed_column_is_not_read_by_a_name_that_files_do_not_have(local_store, feed, forgotten):
    """Files that the other engine has written since have it under its new name alone."""

    def rename(old: str, new: str) -> None:
        with seen_by_others(local_store) as table, table.update_schema() as update:
            update.rename_column(old, new)

    land(local_store, feed, range(5))
    land(local_store, feed, range(5, 10))
    rename("note", "remark")
    rename("remark", "note")
    assert ids_of(open_table(local_store, feed)) == list(range(10))

    rename("note", "remark")
    with seen_by_others(local_store) as table:
        table.delete("id = 2")
    if forgotten:
        with catalog_of(local_store) as catalog:
            without_old_schemas(catalog, "streams.s")
    table = open_table(local_store, feed)
    for read in (lambda: ids_of(table), lambda: table.deletion_plan("2025-01-01", "note = 'n1'")):
        with pytest.raises(ConfigError, match=r"has 'remark' for column 'note' of .*: another engine renamed"):
            read()


def test_files_of_a_slow_commit_are_no_orphans_however_old(local_store, feed, monkeypatch):
    land(local_store, feed, range(5))

    def night() -> None:
        days_ago = time.time() - 4 * 86_400
        for path in Path(local_store.uri).rglob("*.parquet"):
            os.utime(path, (days_ago, days_ago))
        assert open_table(local_store, feed).expire().orphans == 0

    between(monkeypatch, "_publish", night)
    assert land(local_store, feed, range(5, 10)) == 5
    assert ids_seen(local_store) == list(range(10))


def test_repair_by_another_catalog_deletes_nothing(local_store, feed, monkeypatch, tmp_path):
    land(local_store, feed, range(5))
    with monkeypatch.context() as patch:
        patch.setattr(CommitRecord, "end", lambda *_, **__: None)
        land(local_store, feed, range(5, 10))

    other = open_store(local_store.uri, catalog=CatalogAccess(uri=f"sqlite:///{tmp_path}/other.db"))
    with pytest.raises(ConfigError, match="a commit to it is not settled: is DATALAKE_ICEBERG_CATALOG"):
        open_table(other, feed).repair()

    assert open_table(local_store, feed).repair().finished == 1
    assert ids_seen(local_store) == list(range(10))


def test_retention_of_versions_keeps_what_others_tagged_and_branched(local_store):
    feed = table_feed(format="iceberg", retention={"versions": 1})
    land_version(local_store, feed, 3)
    with seen_by_others(local_store, "tables.t") as table:
        head = table.current_snapshot().snapshot_id
        with table.manage_snapshots() as manage:
            manage.create_tag(head, "audit").create_branch(head, "dev")
        more = pa.Table.from_batches([rows([100, 101])])
        at = more.schema.get_field_index("rowtime")
        table.append(
            more.set_column(at, "rowtime", more["rowtime"].cast(pa.timestamp("us", "UTC"))).select(
                table.schema().column_names
            ),
            branch="dev",
        )

    assert land_version(local_store, feed, 4).removed == ("v1",)

    with seen_by_others(local_store, "tables.t") as table:
        read = {name: table.scan(snapshot_id=ref.snapshot_id).to_arrow().num_rows for name, ref in table.refs().items()}
    assert read == {"main": 4, "v2": 4, "audit": 3, "dev": 5}


def test_delete_files_that_apply_to_nothing_are_taken_out(local_store, feed):
    for first in range(0, 12, 4):
        land(local_store, feed, range(first, first + 4))
    with seen_by_others(local_store) as table:
        first_file = next(iter(table.scan().plan_files())).file
        first_file.spec_id = 0
        delete_rows(table, positions=[(first_file.file_path, 0)], partition=first_file)
        table.refresh()
        # as engines leave it that rewrite a file and not its deletes
        commit_change(table, TableChange(Operation.DELETE, removed=[first_file.file_path]))

    open_table(local_store, feed).repair()

    assert len(ids_of(open_table(local_store, feed))) == 8
    assert land(local_store, feed, range(12, 14)) == 2


def test_table_that_was_rolled_back_is_not_written_as_if_nothing_was_missing(local_store, feed):
    land(local_store, feed, range(5))
    land(local_store, feed, range(5, 10))
    with seen_by_others(local_store) as table:
        first = table.snapshots()[0].snapshot_id
        table.catalog.commit_table(
            table, (), (SetSnapshotRefUpdate(ref_name="main", type="branch", snapshot_id=first),)
        )

    with pytest.raises(ConfigError, match="was rolled back by another engine"):
        land(local_store, feed, range(12))

    assert ids_of(open_table(local_store, feed)) == ids_seen(local_store) == list(range(5))


def test_table_that_was_made_version_3_is_read_and_refused_before_anything_is_written(local_store, feed):
    land(local_store, feed, range(5))
    land(local_store, feed, range(5, 10))
    with catalog_of(local_store) as catalog:
        upgraded(catalog, "streams.s")
    table, before = open_table(local_store, feed), sorted(Path(local_store.uri).rglob("*.parquet"))

    for change in (
        lambda: land(local_store, feed, range(10, 15)),
        lambda: table.compact("2025-01-01", FORCE),
        lambda: table.delete_rows("2025-01-01", "id = 3"),
        lambda: table.expire(all_past=True),
    ):
        with pytest.raises(LakeError, match="it has format version 3"):
            change()
        assert sorted(Path(local_store.uri).rglob("*.parquet")) == before

    assert table.compaction_plan("2025-01-01", FORCE).groups == ()
    assert list(table.verify(deep=True)) == []
    table.repair()
    assert ids_of(table) == list(range(10))


def test_pull_leaves_no_files_of_days_that_are_as_they_were(local_store):
    feed, days = stream_feed("pull", format="iceberg"), ["2025-01-01", "2025-01-02", "2025-01-03"]
    for rows_in_all in (60, 61):
        table = open_table(local_store, feed)
        table.write(stream_of(numbered(range(rows_in_all))), partitions=days, run_id="run")

    assert list(open_table(local_store, feed).verify()) == []
