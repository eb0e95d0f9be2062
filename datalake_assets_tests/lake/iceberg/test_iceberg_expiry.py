"""Upkeep of Iceberg tables: what is no longer needed goes, files and all, and nothing else."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import Table

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.facts import Expired
from datalake_assets.errors import AmbiguousWrite, CommitConflict, ConfigError, CorruptLake, LakeError
from datalake_assets.lake.iceberg import iceberg_expiry, iceberg_table
from datalake_assets.lake.iceberg.iceberg_expiry import expire_snapshots, remove_orphans, rewrite_manifests
from datalake_assets.lake.table import LakeTable
from datalake_assets.lake.tables import open_table
from datalake_assets.testing.tables import ids_of
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of, table_feed, table_of
from datalake_assets_tests.lake.iceberg.iceberg_feeds import seen_by_others
from datalake_assets_tests.lake.iceberg.iceberg_tables import (
    UNPARTITIONED,
    compact,
    create,
    data_paths,
    delete_rows,
    files_on_disk,
    ids,
    rows,
)

SOON = datetime.now(UTC) + timedelta(days=1)
LATER = SOON + timedelta(days=2)


def filled(catalog: SqlCatalog, appends: int = 3, **given: object) -> Table:
    table = create(catalog, **given)  # type: ignore[arg-type]
    for number in range(appends):
        table.append(rows(number * 4, 4))
    return table


def named_files(table: Table) -> set[Path]:
    """What the table's metadata leads to, found by pyiceberg's own tables of it."""
    found = {table.metadata_location, *(each.metadata_file for each in table.metadata.metadata_log)}
    found |= {each.manifest_list for each in table.snapshots()}
    found |= set(table.inspect.all_manifests()["path"].to_pylist())
    found |= set(table.inspect.all_files()["file_path"].to_pylist())
    return {Path(path.removeprefix("file://")) for path in found}


def test_after_an_expiry_old_files_are_gone_and_nothing_else(catalog):
    table = filled(catalog)
    compact(table)
    before = files_on_disk(table)
    expired = expire_snapshots(table, older_than=SOON)
    again = catalog.load_table("n.t")
    assert ids(again) == list(range(12))
    assert len(again.snapshots()) == expired.retained == 1
    gone = before - files_on_disk(again)
    assert gone == {Path(path.removeprefix("file://")) for path in expired.files}
    assert len([path for path in gone if path.suffix == ".parquet"]) == 6
    left = {path for path in files_on_disk(again) if "metadata.json" not in path.name}
    assert left <= named_files(again)
    assert named_files(again) <= files_on_disk(again)


def test_files_that_another_manifest_names_by_now_stay(catalog):
    """Old manifests go with their snapshots, and the files that were in them live on in a merged one."""
    table = filled(catalog, appends=5, commit__manifest_merge__enabled="false")
    paths = data_paths(table)
    assert rewrite_manifests(table) == (5, 1)
    expired = expire_snapshots(table, older_than=SOON)
    assert len([path for path in expired.files if path.endswith("-m0.avro")]) == 5
    assert not set(paths) & set(expired.files)
    assert ids(catalog.load_table("n.t")) == list(range(20))


def test_a_dry_run_tells_the_same_and_changes_nothing(catalog):
    table = filled(catalog)
    compact(table)
    before = files_on_disk(table)
    told = expire_snapshots(table, older_than=SOON, dry_run=True)
    assert files_on_disk(table) == before
    assert len(catalog.load_table("n.t").snapshots()) == 4
    assert expire_snapshots(table, older_than=SOON) == told


def test_young_snapshots_and_the_last_ones_stay_readable(catalog):
    table = filled(catalog, appends=5)
    numbers = [each.snapshot_id for each in table.snapshots()]
    assert expire_snapshots(table, older_than=SOON - timedelta(days=2)).snapshots == ()
    expired = expire_snapshots(table, older_than=SOON, keep_last=3)
    assert list(expired.snapshots) == numbers[:2]
    for place, number in enumerate(numbers[2:], start=3):
        assert ids(table, number) == list(range(4 * place))


def test_tags_and_branches_stay_readable(catalog):
    table = filled(catalog)
    first, second, *_ = [each.snapshot_id for each in table.snapshots()]
    table.manage_snapshots().create_tag(first, "audited").create_branch(second, "trial").commit()
    compact(table)
    expire_snapshots(table, older_than=SOON)
    again = catalog.load_table("n.t")
    assert ids(again, first) == list(range(4))
    assert ids(again, second) == list(range(8))
    assert ids(again) == list(range(12))
    assert set(again.metadata.refs) == {"main", "audited", "trial"}


def test_a_branch_s_own_retention_counts(catalog):
    table = filled(catalog)
    head = table.current_snapshot().snapshot_id
    table.manage_snapshots().create_branch(head, "kept", min_snapshots_to_keep=2).commit()
    assert len(expire_snapshots(table, older_than=SOON).snapshots) == 1


def test_a_branch_that_was_moved_meanwhile_stops_an_expiry(catalog, monkeypatch):
    """Otherwise what somebody rolled back to would go, and the branch with it."""
    table, other = filled(catalog), catalog.load_table("n.t")
    first = table.snapshots()[0].snapshot_id
    commit_updates = iceberg_expiry.commit_updates

    def roll_back_first(*given, **named):
        other.manage_snapshots().rollback_to_snapshot(first).commit()
        commit_updates(*given, **named)

    monkeypatch.setattr(iceberg_expiry, "commit_updates", roll_back_first)
    with pytest.raises(CommitConflict):
        expire_snapshots(table, older_than=SOON)
    assert ids(catalog.load_table("n.t")) == list(range(4))


def test_no_file_is_deleted_if_nobody_knows_whether_snapshots_are_gone(catalog, monkeypatch):
    table = filled(catalog)
    before = files_on_disk(table)
    monkeypatch.setattr(catalog, "commit_table", lambda *_: (_ for _ in ()).throw(ConnectionError("timed out")))
    with pytest.raises(AmbiguousWrite):
        expire_snapshots(table, older_than=SOON)
    assert files_on_disk(table) == before


def test_delete_files_that_nothing_needs_go_too(catalog):
    table = filled(catalog, spec=UNPARTITIONED)
    delete_rows(table, positions=[(data_paths(table)[0], 0)])
    compact(table)
    expire_snapshots(table, older_than=SOON)
    assert not [path for path in files_on_disk(table) if path.name.startswith("delete-")]
    assert len(ids(catalog.load_table("n.t"))) == 11


def test_files_of_others_stay(catalog, tmp_path):
    table = filled(catalog, appends=1)
    outside = tmp_path / "elsewhere.parquet"
    outside.write_bytes(Path(data_paths(table)[0].removeprefix("file://")).read_bytes())
    other = create(catalog, "other", spec=UNPARTITIONED)
    other.add_files([f"file://{outside}"])
    other.delete()
    told = expire_snapshots(other, older_than=SOON)
    assert told.foreign == (f"file://{outside}",)
    assert outside.exists()


def test_a_table_that_shares_its_files_is_left_alone(catalog):
    table = filled(catalog, gc__enabled="false")
    with pytest.raises(LakeError, match=r"gc\.enabled forbids"):
        expire_snapshots(table, older_than=SOON)
    with pytest.raises(LakeError, match=r"gc\.enabled forbids"):
        remove_orphans(table, older_than=SOON, now=LATER)


def test_at_least_one_snapshot_stays(catalog):
    with pytest.raises(ConfigError, match="keep_last is 0"):
        expire_snapshots(filled(catalog), older_than=SOON, keep_last=0)


def test_an_empty_table_has_nothing_to_expire(catalog):
    assert expire_snapshots(create(catalog), older_than=SOON).snapshots == ()


# orphans


def orphan(table: Table, name: str, *, age: timedelta = timedelta(days=9)) -> Path:
    path = Path(table.location().removeprefix("file://")) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"left over")
    then = (datetime.now(UTC) - age).timestamp()
    os.utime(path, (then, then))
    return path


def test_orphans_that_are_old_enough_go_and_nothing_else(catalog):
    table = filled(catalog)
    named = files_on_disk(table)
    old = {orphan(table, "data/ts_day=2026-01-01/x.parquet"), orphan(table, "metadata/x-m0.avro")}
    young = orphan(table, "data/y.parquet", age=timedelta(hours=30))
    others = orphan(table, "data/README.txt")
    now = datetime.now(UTC)
    told = remove_orphans(table, older_than=now - timedelta(days=3), now=now, dry_run=True)
    assert {Path(each.path.removeprefix("file://")) for each in told.removed} == old
    assert files_on_disk(table) == named | old | {young, others}
    assert remove_orphans(table, older_than=now - timedelta(days=3), now=now) == told
    assert files_on_disk(table) == named | {young, others}
    assert ids(catalog.load_table("n.t")) == list(range(12))


def test_what_a_snapshot_before_the_newest_names_is_no_orphan(catalog):
    table = filled(catalog)
    numbers = [each.snapshot_id for each in table.snapshots()]
    compact(table)
    assert remove_orphans(table, older_than=SOON, now=LATER).removed == ()
    assert ids(table, numbers[1]) == list(range(8))


def test_what_an_expiry_could_not_delete_is_an_orphan_afterwards(catalog, monkeypatch):
    table = filled(catalog)
    compact(table)
    monkeypatch.setattr(iceberg_expiry, "delete_quietly", lambda *_: None)
    told = expire_snapshots(table, older_than=SOON)
    monkeypatch.undo()
    removed = {each.path for each in remove_orphans(table, older_than=SOON, now=LATER).removed}
    assert removed == set(told.files)
    assert ids(catalog.load_table("n.t")) == list(range(12))


def test_what_is_committed_while_orphans_are_looked_for_stays(catalog, monkeypatch):
    table, other = filled(catalog), catalog.load_table("n.t")
    listing = iceberg_expiry._listing

    def append_first(given):
        other.append(rows(100, 4))
        return list(listing(given))

    monkeypatch.setattr(iceberg_expiry, "_listing", append_first)
    assert remove_orphans(table, older_than=SOON, now=LATER).removed == ()
    assert ids(catalog.load_table("n.t")) == [*range(12), *range(100, 104)]


def test_young_files_are_never_orphans(catalog):
    now = datetime.now(UTC)
    with pytest.raises(ConfigError, match="orphans must be a day old at least"):
        remove_orphans(filled(catalog), older_than=now - timedelta(hours=23), now=now)


def test_nothing_goes_if_named_files_are_not_seen(catalog, monkeypatch):
    """Paths may be spelt in another way than they are listed: then everything would look like an orphan."""
    table = filled(catalog)
    before = files_on_disk(table)
    listing = iceberg_expiry._listing
    monkeypatch.setattr(
        iceberg_expiry, "_listing", lambda given: [(f"{p}.parquet", n, t) for p, n, t in listing(given)]
    )
    with pytest.raises(CorruptLake, match="are named, and not listed; nothing was deleted"):
        remove_orphans(table, older_than=SOON, now=LATER)
    assert files_on_disk(table) == before


def test_a_table_in_another_s_folder_is_not_taken_for_orphans(catalog):
    table = filled(catalog)
    inner = catalog.create_table("n.inner", table.schema(), location=f"{table.location()}/inner")
    inner.append(rows(0, 2))
    with pytest.raises(CorruptLake, match="another table lies in its folder"):
        remove_orphans(table, older_than=SOON, now=LATER)
    assert ids(inner) == [0, 1]


# feeds


def written(local_store, *spans: range) -> LakeTable:
    table = open_table(local_store, stream_feed(format="iceberg"))
    for span in spans:
        table.write(stream_of(numbered(span)), partitions=table.plan().partitions, run_id="run")
    return table


def test_a_feed_s_snapshots_expire_after_a_week_and_its_rows_stay(local_store, monkeypatch):
    table = written(local_store, range(10), range(10, 20), range(20, 30))
    for key in table.partitions():
        table.compact(key, CompactionRequest(force=True))
    assert table.expire() == Expired(kept=3)
    monkeypatch.setattr(iceberg_table, "SNAPSHOTS_MS", -3_600_000)
    gone = table.expire()
    assert gone.snapshots > 2
    assert gone.files > 6
    assert ids_of(table) == list(range(30))
    assert list(open_table(local_store, table.feed).verify(deep=True)) == []
    later = table.write(stream_of(numbered(range(25, 35))), partitions=table.plan().partitions, run_id="run")
    assert (later.rows_added, later.rows_known) == (5, 5)  # the position outlives the snapshots that told it


def test_the_table_s_own_property_says_how_long_snapshots_stay(local_store, monkeypatch):
    table = written(local_store, range(5), range(5, 10))
    monkeypatch.setattr(iceberg_table, "SNAPSHOTS_MS", -3_600_000)
    with seen_by_others(local_store) as theirs, theirs.transaction() as change:
        change.set_properties({"history.expire.min-snapshots-to-keep": "2"})
    assert table.expire().snapshots == 0


def test_versions_that_are_kept_stay_readable(local_store, monkeypatch):
    monkeypatch.setattr(iceberg_table, "SNAPSHOTS_MS", -3_600_000)
    table = open_table(local_store, table_feed(retention={"versions": 3}, format="iceberg"))
    for number in range(1, 4):
        table.write(table_of(number), partitions=table.plan().partitions, run_id="run")
    table.expire()
    found = {key: table.snapshot([key]).dataset().count_rows() for key in table.partitions()}
    assert found == {"v1": 1, "v2": 2, "v3": 3}


def test_rows_that_another_engine_deleted_are_taken_out_by_a_repair(local_store):
    table = written(local_store, range(10), range(10, 20))
    with seen_by_others(local_store) as theirs:
        file = next(task.file for task in theirs.scan("id = 3").plan_files())
        delete_rows(theirs, positions=[(file.file_path, 3)], partition=file)
        left = ids(theirs)
    with pytest.raises(ConfigError, match="'datalake repair' applies them"):
        table.partitions()
    table.repair()
    assert ids_of(table) == left == [number for number in range(20) if number != 3]
    assert list(table.verify(deep=True)) == []
    again = table.write(stream_of(numbered(range(20))), partitions=table.plan().partitions, run_id="run")
    assert (again.rows_added, again.rows_known) == (0, 20)


def test_a_feed_that_was_never_written_has_nothing_to_expire(local_store):
    assert open_table(local_store, stream_feed(format="iceberg")).expire() == Expired()


# manifests


def test_many_manifests_are_rewritten_by_partition(catalog):
    table = filled(catalog, appends=6, commit__manifest_merge__enabled="false")
    numbers = {
        entry.data_file.file_path: (entry.sequence_number, entry.snapshot_id)
        for each in table.current_snapshot().manifests(table.io)
        for entry in each.fetch_manifest_entry(table.io)
    }
    assert rewrite_manifests(table) == (6, 1)
    again = catalog.load_table("n.t")
    assert ids(again) == list(range(24))
    summary = again.current_snapshot().summary
    assert (summary.operation.value, summary["total-records"], summary["total-data-files"]) == ("replace", "24", "12")
    entries = again.current_snapshot().manifests(again.io)[0].fetch_manifest_entry(again.io)
    assert {each.data_file.file_path: (each.sequence_number, each.snapshot_id) for each in entries} == numbers
    days = [each.data_file.partition[0] for each in entries]
    assert days == sorted(days)
    assert rewrite_manifests(again) is None
