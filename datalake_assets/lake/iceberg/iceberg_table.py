"""Feeds as Apache Iceberg tables: the same rows, exact for every engine's readers, and each write one snapshot."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta

import pyarrow as pa
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.snapshots import Operation

from datalake_assets.core.batches import Batches, Decode, DecodeItems, RejectedRow, SourceBatch
from datalake_assets.core.compaction.plan import CompactionRequest, outlook_of_plan, rules_of
from datalake_assets.core.facts import Expired, PlannedPartition
from datalake_assets.core.manifest import Manifest, PastCommit
from datalake_assets.core.report.figures import FeedStatistics, last_arrival
from datalake_assets.core.schema import DISCARDING, schema_from_json
from datalake_assets.errors import CommitConflict, CorruptLake
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind, PositionKind
from datalake_assets.lake.compaction_plans import plan_of
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.hive_snapshot import HiveSnapshot
from datalake_assets.lake.iceberg.commit_records import unfinished_commits
from datalake_assets.lake.iceberg.iceberg_catalogs import load_table, talking
from datalake_assets.lake.iceberg.iceberg_commits import undo_interrupted
from datalake_assets.lake.iceberg.iceberg_compaction import compact_table, rewrite_settings, table_rules
from datalake_assets.lake.iceberg.iceberg_expiry import expire_snapshots, remove_orphans, rewrite_manifests
from datalake_assets.lake.iceberg.iceberg_folder import IcebergFolder
from datalake_assets.lake.iceberg.iceberg_reads import told_of
from datalake_assets.lake.iceberg.iceberg_schemas import StorableBatches
from datalake_assets.lake.iceberg.iceberg_views import TableView
from datalake_assets.lake.iceberg.snapshot_files import SnapshotFiles
from datalake_assets.lake.iceberg.transactions import TableChange, commit_change
from datalake_assets.lake.inspection import (
    file_differences,
    mend_versions,
    missing_deletions,
    missing_items,
    sweep_staged,
    unknown_file,
)
from datalake_assets.lake.sealed_items import any_key
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import Difference, Logged, Progress, Repair, WriteReport

__all__ = ["IcebergTable"]

#: How long snapshots stay where the table does not say: a week.
SNAPSHOTS_MS = 168 * 3_600_000
#: How old a file is that nothing names before it is deleted; Iceberg's own default.
ORPHANS_AFTER = timedelta(days=3)


class IcebergSnapshot(HiveSnapshot):
    """Some partitions of an Iceberg table, all of one snapshot of it; implements `TableSnapshot`."""

    _folder: IcebergFolder

    def __init__(self, folder: IcebergFolder, partitions: Sequence[str] | None, view: TableView | None = None) -> None:
        super().__init__(folder, partitions)
        self._view = view

    def only(self, key: str) -> IcebergSnapshot:
        """Implements `TableSnapshot`."""
        return IcebergSnapshot(self._folder, [key], self._seen)

    @property
    def _seen(self) -> TableView:
        if self._view is None:
            self._view = self._folder.view()
        return self._view

    def _all_keys(self) -> tuple[str, ...]:
        return self._seen.partitions()

    def _load(self, keys: Sequence[str]) -> list[Manifest]:
        return [self._seen.manifest(key) for key in keys]

    def has_expired(self) -> bool:
        """Implements `TableSnapshot`."""
        now = IcebergSnapshot(self._folder, self._given)
        return not self._files <= set(now.dataset().files)


class IcebergTable(HiveTable):
    """A feed's data as an Apache Iceberg table; implements `LakeTable`.

    Args:
        store: The lake.
        feed: The feed.
    """

    _folder: IcebergFolder

    def __init__(self, store: Store, feed: Feed) -> None:
        super().__init__(store, feed)
        self._folder = IcebergFolder(store, feed)

    @property
    def is_listed_plainly(self) -> bool:
        """Implements `LakeTable`: files of past snapshots lie among the present ones."""
        return False

    def snapshot(self, partitions: Sequence[str] | None = None) -> IcebergSnapshot:
        """Implements `LakeTable`."""
        return IcebergSnapshot(self._folder, partitions)

    def logged(self) -> Logged | None:
        """Implements `TellsItsLog`."""
        view = self._folder.view()
        if view.table is None:
            return None
        files = SnapshotFiles(view.table.metadata, self._folder.reader(view.table), view.table.current_snapshot())
        return told_of(view.table, files, catalog=self._folder.store.catalog.uri)

    def written(self, partitions: Sequence[str]) -> IcebergSnapshot:
        """Implements `LakeTable`."""
        return self.snapshot(partitions)

    def write(
        self,
        batches: Batches,
        *,
        partitions: Sequence[str],
        run_id: str,
        allow_shrink: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> WriteReport:
        """Implements `LakeTable`; a merge first applies what other engines deleted by files of their own."""
        if self.feed.write == "merge":
            self._apply_deletes()
        return super().write(
            self.storable(batches),
            partitions=partitions,
            run_id=run_id,
            allow_shrink=allow_shrink,
            on_progress=on_progress,
        )

    def replay(
        self,
        batches: Batches,
        decode: Decode | None,
        *,
        decode_items: DecodeItems | None = None,
        run_id: str = "",
    ) -> WriteReport:
        """Implements `LakeTable`."""
        stored = self.storable(batches)

        def decoded(raws: Sequence[bytes]) -> SourceBatch:
            if decode is None:
                raise AssertionError
            return stored.changed(decode(raws))

        def items_decoded(rows: Sequence[RejectedRow], schema: pa.Schema) -> Iterator[SourceBatch]:
            if decode_items is None:
                raise AssertionError
            return map(stored.changed, decode_items(rows, schema))

        return super().replay(
            stored,
            None if decode is None else decoded,
            decode_items=None if decode_items is None else items_decoded,
            run_id=run_id,
        )

    def storable(self, batches: Batches) -> StorableBatches:
        """The batches in types that Iceberg has."""
        # the first rows make the contract, so that all of them have to fit Iceberg
        known = self._folder.state.load().schema if self.feed.schema_policy in DISCARDING else None
        contract = None if known is None else schema_from_json(known)
        return StorableBatches(batches, f"feed {self.feed.name!r}", contract=contract)

    def figures(self, request: CompactionRequest, *, threads: Executor | None = None) -> FeedStatistics:  # noqa: ARG002
        """Implements `LakeTable`: the catalog tells all at once."""
        folder = self._folder.pinned()
        view, state = folder.seen(), folder.state.load()
        found = [self._planned(folder, key, view.manifest(key), request) for key in view.partitions()]
        is_table = self.feed.kind is FeedKind.TABLE
        kept = set(state.keys) if is_table else None
        return FeedStatistics(
            feed=self.feed,
            partitions=tuple(each for each in found if each.files and (kept is None or each.key in kept)),
            emptied=tuple(each for each in found if not each.files),
            versions=state.versions if is_table else (),
            current=state.current if is_table else None,
            last_run=folder.summary.last_export(),
        )

    def _planned(
        self, folder: IcebergFolder, key: str, manifest: Manifest, request: CompactionRequest
    ) -> PlannedPartition:
        plan = plan_of(folder, key, manifest, rules_of(self.feed, request), {})
        history = [
            PastCommit(
                each.kind,
                each.at,
                each.rows,
                each.files_added,
                each.files_removed,
                each.files,
                each.small_files,
                each.size_bytes,
            )
            for each in manifest.history
        ]
        return PlannedPartition.from_facts(
            folder.report(key, manifest),
            outlook_of_plan(plan, small_below_bytes=self.feed.small_file_bytes),
            last_export=last_arrival(history, adopted=False),
            history=history,
        )

    def removed(self, keys: Iterable[str]) -> tuple[str, ...]:
        """Implements `LakeTable`."""
        if self.feed.kind is not FeedKind.TABLE:
            return ()
        view = self._folder.view()
        return tuple(key for key in keys if view.manifest(key).deleted)

    def verify(self, *, deep: bool = False, partitions: Sequence[str] | None = None) -> Iterator[Difference]:
        """Implements `LakeTable`."""
        folder, view = self._folder, self._folder.view()
        keys = view.partitions() if partitions is None else tuple(partitions)
        roots = [folder.data_root] if partitions is None else [folder.data_folder(key) for key in keys]
        objects = {info.key: info for root in roots for info in folder.data_store.list(root)}
        named: set[str] = set()
        for at, record in unfinished_commits(folder):
            named.update(each.key for each in record.staged)
            detail = f"commit {record.commit_id} was interrupted; 'datalake repair' undoes it"
            yield Difference("", "pending", at, detail)
        if (
            self.feed.is_exported and self.feed.position_kind is PositionKind.IDS
        ):  # one position, whatever partitions there are
            yield from missing_items(folder, "", view.manifest(any_key(folder)))
        for key in keys:
            manifest = view.manifest(key)
            for file in manifest.files:
                name = folder.file_key(key, file.name)
                named.add(name)
                info = objects.get(name)
                yield from file_differences(folder, key, file, info, name, deep=deep, stated_by="the table")
        if partitions is None:
            yield from missing_deletions(folder)
        past = view.named_files()
        for name in sorted(set(objects) - named):
            if folder.path_below(name) not in past:
                yield unknown_file(folder, name, "in the table's folder and in no snapshot")

    def _apply_deletes(self) -> Mapping[str, str]:
        """Writes the files anew that another engine deleted rows of: nobody else could read the feed before.

        Returns:
            Paths of the files for which that failed, with the reason.
        """
        view = self._folder.view()
        if view.table is not None and view.has_deletes():
            rules = table_rules(view.table, force=True)
            settings = rewrite_settings(view.table, rules, row_group_bytes=self.feed.format.row_group_bytes)
            with talking(self._folder.store):
                done = compact_table(view.table, rules, settings, now=datetime.now(UTC))
                self._remove_unneeded_deletes(view.table)
                return done.failed
        return {}

    def _remove_unneeded_deletes(self, table: Table) -> None:
        """Takes delete files out that apply to no file any more, as engines leave behind that compact."""
        head = SnapshotFiles(table.metadata, self._folder.reader(table), table.current_snapshot())
        needed = {each.path for file in head.data.values() for each in file.deletes}
        gone = {each.path for each in head.deletes} - needed
        if gone:
            commit_change(table, TableChange(Operation.REPLACE, removed=gone), manifests=self._folder.reader(table))

    @property
    def past_stays(self) -> timedelta | None:
        """Implements `LakeTable`; the table's own properties say it (``history.expire.…``)."""
        table = load_table(self._folder.store, self.feed)
        stated = {} if table is None else table.properties
        return timedelta(milliseconds=float(stated.get(TableProperties.MAX_SNAPSHOT_AGE_MS, SNAPSHOTS_MS)))

    def expire(self, *, all_past: bool = False) -> Expired:
        """Implements `LakeTable`."""
        table = load_table(self._folder.store, self.feed)
        if table is None:
            return Expired()
        now = self._folder.store.now()
        age = timedelta(0) if all_past else self.past_stays or timedelta(0)
        keep_last = 1 if all_past else int(table.properties.get(TableProperties.MIN_SNAPSHOTS_TO_KEEP, "1"))
        with talking(self._folder.store):
            gone = expire_snapshots(table, older_than=now - age, keep_last=keep_last, now=now)
            with contextlib.suppress(CommitConflict):  # the next night does it
                rewrite_manifests(table)
            orphans = remove_orphans(table, older_than=now - ORPHANS_AFTER, now=now, under_way=self._files_under_way)
        ours = {table.metadata.current_snapshot_id}
        if self.feed.kind is FeedKind.TABLE:
            ours |= {each.snapshot_id for each in self._folder.view_of(table).versions.values()}
        kept = sum(each.snapshot_id not in ours for each in table.snapshots())
        return Expired(len(gone.snapshots), len(gone.files), len(orphans.removed), kept)

    def _files_under_way(self) -> list[str]:
        """Files that a commit may be about to name, which a record lists before they can be seen."""
        folder, table = self._folder, load_table(self._folder.store, self.feed)
        if table is None:
            return []
        return [folder.uri_of(each.key, table) for _, record in unfinished_commits(folder) for each in record.staged]

    def repair(self, *, run_id: str = "") -> Repair:  # noqa: ARG002  the protocol's
        """Implements `LakeTable`.

        Raises:
            CorruptLake: A file that another engine deleted rows of cannot be written anew; all else was done.
            LakeError: The store or the catalog failed.
        """
        folder = self._folder
        failed = self._apply_deletes()
        made, undone = undo_interrupted(folder)
        view = folder.view()
        if self.feed.kind is FeedKind.TABLE:
            mend_versions(folder, {key: view.manifest(key) for key in view.partitions()})
            view = folder.view()
        reports = [folder.report(key, view.manifest(key)) for key in view.partitions()]
        folder.summary.mend(reports, at=folder.store.now())
        swept = sweep_staged(folder)
        for path, reason in failed.items():
            raise CorruptLake(path, f"another engine deleted rows of it, and it cannot be written anew: {reason}")
        return Repair(finished=made, undone=undone, swept=swept)
