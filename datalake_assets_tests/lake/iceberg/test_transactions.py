"""Commits to Iceberg tables: what pyiceberg reads of them, and what becomes of those that lose."""

from __future__ import annotations

import errno
import sqlite3
from contextlib import closing

import pytest
import sqlalchemy.exc
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io.pyarrow import _dataframe_to_data_files
from pyiceberg.manifest import DataFile, ManifestContent, ManifestWriterV2, write_manifest
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.serializers import ToOutputFile
from pyiceberg.table import CommitTableResponse, Table
from pyiceberg.table.snapshots import Operation, Summary, update_snapshot_summaries
from pyiceberg.table.update import AssertCurrentSchemaId, SetPropertiesUpdate
from pyiceberg.transforms import IdentityTransform

from datalake_assets.errors import AmbiguousWrite, CommitConflict, LakeError, TransientStoreError
from datalake_assets.lake.iceberg import catalog_commits, transactions
from datalake_assets.lake.iceberg.catalog_commits import commit_updates
from datalake_assets.lake.iceberg.database_catalogs import DatabaseCatalog, RememberingCatalog, why_not_committed
from datalake_assets.lake.iceberg.manifests import DeleteManifestWriter, entries_of
from datalake_assets.lake.iceberg.transactions import TableChange, commit_change
from datalake_assets_tests.lake.iceberg.iceberg_tables import (
    UNPARTITIONED,
    compact,
    create,
    data_paths,
    files_on_disk,
    ids,
    rows,
    version_3,
    without_old_schemas,
)


def written(table: Table, first: int, count: int) -> list[DataFile]:
    return list(_dataframe_to_data_files(table.metadata, rows(first, count), table.io))


def append(table: Table, first: int, count: int = 4, **said: str) -> None:
    commit_change(table, TableChange(Operation.APPEND, written(table, first, count), summary=said))


def test_an_append_is_read_back_with_its_summary(catalog):
    table = create(catalog)
    append(table, 0, 4, position="4")
    append(table, 4, 4, position="8")
    again = catalog.load_table("n.t")
    assert ids(again) == list(range(8))
    summary = again.current_snapshot().summary
    assert (summary["position"], summary["total-records"], summary["added-records"]) == ("8", "8", "4")
    assert summary["total-data-files"] == "4"
    assert table.metadata == again.metadata


def test_totals_agree_with_pyiceberg_s_own(catalog):
    ours, theirs = create(catalog, "ours"), create(catalog, "theirs")
    for first in (0, 4):
        append(ours, first)
        theirs.append(rows(first, 4))
    differing = {
        key: (value, theirs.current_snapshot().summary[key])
        for key, value in ours.current_snapshot().summary.additional_properties.items()
        if theirs.current_snapshot().summary[key] != value
    }
    assert differing == {}


def test_an_append_sets_properties_in_the_same_commit(catalog):
    table = create(catalog, kept="1", dropped="2")
    change = TableChange(
        Operation.APPEND, written(table, 0, 2), set_properties={"position": "2"}, removed_properties=["dropped"]
    )
    commit_change(table, change)
    assert catalog.load_table("n.t").properties == {"kept": "1", "position": "2"}


def test_a_commit_on_a_snapshot_of_before_is_refused_and_leaves_nothing_behind(catalog):
    table, late = create(catalog), catalog.load_table("n.t")
    append(table, 0)
    files = written(late, 4, 4)
    before = files_on_disk(table)
    with pytest.raises(CommitConflict, match=r"n\.t: another writer came first"):
        commit_change(late, TableChange(Operation.APPEND, files))
    assert {path for path in files_on_disk(table) - before if "metadata.json" not in path.name} == set()
    assert ids(catalog.load_table("n.t")) == [0, 1, 2, 3]
    assert late.metadata == table.metadata  # it knows what won


def test_a_commit_is_tried_once_whatever_the_table_says_of_retries(catalog):
    table = create(catalog, commit__retry__num_retries="9")
    late = catalog.load_table("n.t")
    append(table, 0)
    with pytest.raises(CommitConflict):
        append(late, 0)
    assert ids(table) == [0, 1, 2, 3]


def test_a_replaced_file_leaves_and_the_rows_of_others_stay(catalog):
    table = create(catalog, spec=UNPARTITIONED)
    for first in (0, 4, 8):
        append(table, first)
    paths = data_paths(table)
    new = written(table, 100, 4)
    snapshot = commit_change(table, TableChange(Operation.REPLACE, new, paths[:1]))
    left = set(data_paths(catalog.load_table("n.t")))
    assert left == {*paths[1:], new[0].file_path}
    assert snapshot.summary.operation == Operation.REPLACE
    assert (snapshot.summary["deleted-data-files"], snapshot.summary["total-data-files"]) == ("1", "3")
    assert len(ids(table)) == 12


def test_removing_what_is_not_there_is_a_conflict(catalog):
    table = create(catalog)
    append(table, 0)
    before = files_on_disk(table)
    with pytest.raises(CommitConflict, match=r"file:///gone\.parquet is not in the table any more"):
        commit_change(table, TableChange(Operation.REPLACE, (), ["file:///gone.parquet"]))
    assert files_on_disk(table) == before


def test_a_lost_answer_is_settled_by_the_snapshot(catalog, monkeypatch):
    table = create(catalog)
    commit_table = catalog.commit_table

    def lose_answer(*given):
        commit_table(*given)
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(catalog, "commit_table", lose_answer)
    append(table, 0)
    assert ids(table) == [0, 1, 2, 3]


def test_a_conflict_that_was_an_own_success_counts_as_one(catalog, monkeypatch):
    """A proxy that sends a request twice gets a conflict the second time."""
    table = create(catalog)
    commit_table = catalog.commit_table

    def send_twice(*given):
        commit_table(*given)
        raise CommitFailedException("branch main has changed")

    monkeypatch.setattr(catalog, "commit_table", send_twice)
    append(table, 0)
    assert ids(table) == [0, 1, 2, 3]


def test_what_may_have_been_committed_is_not_deleted(catalog, monkeypatch):
    table = create(catalog)

    def fail(*_):
        raise ConnectionError("timed out")

    monkeypatch.setattr(catalog, "commit_table", fail)
    files = written(table, 0, 2)
    before = files_on_disk(table)
    with pytest.raises(AmbiguousWrite, match="the catalog's answer was lost"):
        commit_change(table, TableChange(Operation.APPEND, files))
    assert len(files_on_disk(table) - before) == 2  # a manifest, and the list of manifests


def test_a_refusal_that_nothing_explains_is_none(catalog, monkeypatch):
    """A gateway repeats a request that was done; what is read then may be of a replica that has not heard of it."""
    monkeypatch.setattr(catalog_commits, "STALE_S", 0.1)
    table, late = create(catalog), catalog.load_table("n.t")
    before = files_on_disk(table)
    commit_table = catalog.commit_table

    def commit_and_refuse(*given):
        commit_table(*given)
        raise CommitFailedException("Requirement failed: branch main has changed")

    with monkeypatch.context() as patched:
        patched.setattr(catalog, "commit_table", commit_and_refuse)
        patched.setattr(catalog, "load_table", lambda _: late)
        with pytest.raises(AmbiguousWrite, match="shows the table as it was before"):
            append(table, 0)

    assert ids(catalog.load_table("n.t")) == [0, 1, 2, 3]
    assert before < files_on_disk(table)


def test_a_refusal_of_a_catalog_that_was_busy_is_settled_by_asking_it_again(catalog, monkeypatch):
    monkeypatch.setattr(catalog_commits, "STALE_S", 600)
    table, asked = create(catalog), []
    commit_table = catalog.commit_table

    def busy_at_first(*given):
        asked.append(given)
        if len(asked) < 3:
            raise CommitFailedException("the table is being changed")
        return commit_table(*given)

    monkeypatch.setattr(catalog, "commit_table", busy_at_first)
    append(table, 0)
    assert ids(table) == ids(catalog.load_table("n.t")) == [0, 1, 2, 3]
    assert (len(asked), len(table.snapshots())) == (3, 1)


def test_a_refused_change_that_could_be_made_twice_is_not_sent_again(catalog, monkeypatch):
    monkeypatch.setattr(catalog_commits, "STALE_S", 0.1)
    table, asked = create(catalog), []

    def refuse(*given):
        asked.append(given)
        raise CommitFailedException("the table is being changed")

    monkeypatch.setattr(catalog, "commit_table", refuse)
    updates = [SetPropertiesUpdate(updates={"a": "b"})]
    with pytest.raises(AmbiguousWrite, match="shows the table as it was before"):
        commit_updates(table, updates, [AssertCurrentSchemaId(current_schema_id=0)], is_there=lambda: False)
    assert len(asked) == 1


def test_a_commit_that_sqlite_refuses_while_others_read_is_known_not_to_stand(tmp_path):
    with closing(
        DatabaseCatalog("lake", uri=f"sqlite:///{tmp_path}/c.db?timeout=0", warehouse=f"file://{tmp_path}/w")
    ) as catalog:
        catalog.create_namespace("n")
        table = create(catalog)
        files = written(table, 0, 2)
        before = files_on_disk(table)
        with closing(sqlite3.connect(tmp_path / "c.db", isolation_level=None)) as reader:
            reader.execute("begin")
            reader.execute("select * from iceberg_tables").fetchall()
            with pytest.raises(TransientStoreError, match="keeps the catalog's database locked; nothing was committed"):
                commit_change(table, TableChange(Operation.APPEND, files))
        left = {each.name.partition(".")[2] for each in files_on_disk(table) - before}
        assert left == {"metadata.json"}  # upstream's, of a commit that is none
        assert ids(catalog.load_table("n.t")) == []
        commit_change(table, TableChange(Operation.APPEND, files))
        assert ids(catalog.load_table("n.t")) == [0, 1]


@pytest.mark.parametrize("kind", [DatabaseCatalog, RememberingCatalog])
def test_a_commit_whose_metadata_finds_no_room_is_known_not_to_stand(tmp_path, monkeypatch, kind):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    uri, warehouse = f"sqlite:///{tmp_path}/c.db", f"file://{tmp_path}/w"
    with closing(kind("lake", uri=uri, warehouse=warehouse)) as catalog:
        catalog.create_namespace("n")
        table = create(catalog)
        files = written(table, 0, 2)
        before = files_on_disk(table)
        with monkeypatch.context() as patched:
            patched.setattr(ToOutputFile, "table_metadata", full)
            with pytest.raises(TransientStoreError, match=r"metadata could not be written \(No space left on device\)"):
                commit_change(table, TableChange(Operation.APPEND, files))
            with pytest.raises(OSError, match="No space left"):
                create(catalog, "u")
        assert files_on_disk(table) == before
        commit_change(table, TableChange(Operation.APPEND, files))
        assert ids(catalog.load_table("n.t")) == [0, 1]


@pytest.mark.parametrize(("code", "is_known"), [("SQLITE_FULL", True), ("SQLITE_IOERR", False)])
def test_only_what_sqlite_says_before_it_changes_anything_is_known_not_to_stand(tmp_path, code, is_known):
    failed = sqlite3.OperationalError("it failed")
    failed.sqlite_errorcode = getattr(sqlite3, code)
    error = sqlalchemy.exc.OperationalError("COMMIT", None, failed)
    with closing(DatabaseCatalog("lake", uri=f"sqlite:///{tmp_path}/c.db")) as ours:
        assert bool(why_not_committed(ours, error)) == is_known
    with closing(SqlCatalog("lake", uri=f"sqlite:///{tmp_path}/c.db")) as theirs:  # may have left it open
        assert not why_not_committed(theirs, error)


def test_an_answer_without_the_commit_is_not_taken_for_it(catalog, monkeypatch):
    table = create(catalog)
    as_before = CommitTableResponse(metadata=table.metadata, metadata_location=table.metadata_location)
    monkeypatch.setattr(catalog, "commit_table", lambda *_: as_before)
    with pytest.raises(AmbiguousWrite, match="lacks what it says it has committed"):
        append(table, 0)


def test_manifests_stay_few(catalog, monkeypatch):
    monkeypatch.setattr(transactions, "MERGE_MANIFESTS", 3)
    table = create(catalog, spec=UNPARTITIONED)
    for first in range(11):
        append(table, first, 1)
    assert ids(table) == list(range(11))
    manifests = table.current_snapshot().manifests(table.io)
    assert len(manifests) <= 5  # one of nine files, and at most two of three … or less
    numbers = [entry.sequence_number for each in manifests for entry in each.fetch_manifest_entry(table.io)]
    assert sorted(numbers) == list(range(1, 12))  # merging keeps each file's own


def test_manifests_are_left_alone_where_the_table_says_so(catalog, monkeypatch):
    monkeypatch.setattr(transactions, "MERGE_MANIFESTS", 3)
    table = create(catalog, spec=UNPARTITIONED, commit__manifest_merge__enabled="false")
    for first in range(5):
        append(table, first, 1)
    assert len(table.current_snapshot().manifests(table.io)) == 5


def without_its_column(catalog: SqlCatalog) -> Table:
    """A table with files of an old partition spec, whose column was dropped."""
    table = create(catalog, spec=PartitionSpec(PartitionField(3, 1000, IdentityTransform(), "name")))
    table.append(rows(0, 3))
    with table.update_spec() as spec:
        spec.remove_field("name")
    with table.update_schema() as schema:
        schema.delete_column("name")
    return table


def test_values_of_a_partition_outlive_the_column_that_they_are_made_of(catalog):
    """In the present schema they have no type: pyiceberg writes a manifest that it cannot read, or fails."""
    table = without_its_column(catalog)
    commit_change(table, TableChange(Operation.REPLACE, cluster_manifests=True))
    commit_change(table, TableChange(Operation.DELETE, removed=data_paths(table)[:1]))

    entries = [
        (entry.status.name, entry.data_file.partition[0])
        for manifest in table.current_snapshot().manifests(table.io)
        for entry in entries_of(manifest, table.io, discard_deleted=False)
    ]

    assert sorted(entries) == [("DELETED", "name 0"), ("EXISTING", "name 1"), ("EXISTING", "name 2")]
    assert ids(catalog.load_table("n.t")) == [1, 2]


def test_files_whose_partitions_nobody_can_write_any_more_are_left_alone(catalog):
    without_its_column(catalog)
    table = without_old_schemas(catalog, "n.t")
    commit_change(table, TableChange(Operation.REPLACE, cluster_manifests=True))
    before = files_on_disk(table)

    with pytest.raises(LakeError, match="columns that partition spec 0 is made of are gone"):
        commit_change(table, TableChange(Operation.DELETE, removed=data_paths(table)[:1]))
    report = compact(table)

    assert {each.reason for each in report.skipped} == {
        "is of a partition spec whose columns are gone, and forgotten by the table's metadata"
    }
    assert files_on_disk(table) == before
    assert ids(catalog.load_table("n.t")) == [0, 1, 2]


def test_old_metadata_files_are_deleted_where_the_table_says_so(catalog):
    table = create(
        catalog,
        write__metadata__delete_after_commit__enabled="true",
        write__metadata__previous_versions_max="3",
    )
    for first in range(8):
        append(table, first, 1)
    assert len([path for path in files_on_disk(table) if path.name.endswith("metadata.json")]) == 4
    assert ids(catalog.load_table("n.t")) == list(range(8))


def test_a_branch_keeps_its_retention(catalog):
    table = create(catalog)
    append(table, 0)
    table.manage_snapshots().create_branch(
        table.current_snapshot().snapshot_id, "audit", max_snapshot_age_ms=5000, min_snapshots_to_keep=3
    ).commit()
    commit_change(table, TableChange(Operation.APPEND, written(table, 4, 4)), branch="audit")
    ref = catalog.load_table("n.t").metadata.refs["audit"]
    assert (ref.max_snapshot_age_ms, ref.min_snapshots_to_keep) == (5000, 3)
    assert ids(table, ref.snapshot_id) == list(range(8))
    assert ids(table) == [0, 1, 2, 3]


def test_format_version_3_is_refused_by_name(catalog):
    table = version_3(catalog)
    with pytest.raises(LakeError, match=r"n\.v3: it has format version 3; what is written here is version 2"):
        commit_change(table, TableChange(Operation.APPEND))


def test_format_version_1_is_written(catalog):
    table = create(catalog, format_version="1", spec=UNPARTITIONED)
    append(table, 0)
    append(table, 4)
    commit_change(table, TableChange(Operation.REPLACE, written(table, 0, 8), data_paths(table)))
    assert ids(catalog.load_table("n.t")) == list(range(8))
    assert [each.content for each in table.current_snapshot().manifests(table.io)] == [ManifestContent.DATA] * 2


def test_upstream_transactions_still_commit_again_by_themselves(catalog):
    """Why they are not used: with retries, which are on by default, an append doubles what another one appended.

    If this fails, pyiceberg no longer re-bases appends: its transactions could be used.
    """
    table, late = create(catalog), catalog.load_table("n.t")
    table.append(rows(0, 2))
    late.append(rows(0, 2))
    assert ids(table.refresh()) == [0, 0, 1, 1]


def test_upstream_has_no_summary_of_a_replace_and_no_writer_of_delete_manifests(catalog):
    """If this fails, `_totals` and `DeleteManifestWriter` may go."""
    with pytest.raises(ValueError, match=r"Operation not implemented: Operation\.REPLACE"):
        update_snapshot_summaries(Summary(Operation.REPLACE))
    table = create(catalog)
    given = (table.spec(), table.schema(), table.io.new_output("file:///none"), 1, "null")
    assert write_manifest(2, *given).content() == ManifestContent.DATA
    # what our own writer overrides; if a name changes, manifests of deletes would be read as manifests of data
    assert ManifestWriterV2(*given)._meta["content"] == "data"
    assert DeleteManifestWriter(*given)._meta["content"] == "deletes"


def test_upstream_data_files_do_not_say_their_spec(catalog):
    """If this fails, the `except AttributeError` in `_Builder._added` may go."""
    table = create(catalog)
    with pytest.raises(AttributeError):
        _ = written(table, 0, 1)[0].spec_id
