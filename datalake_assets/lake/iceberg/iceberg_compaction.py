"""Compaction of an Iceberg table: plan, rewrite, and one ``replace`` snapshot for some groups at a time.

A commit holds if each input is still there, and its deletes are those that were applied to it. Then appends do not
matter, and it is built on whatever snapshot is newest; otherwise the group is dropped, and planned anew. Outputs carry
the sequence number of the snapshot that was planned on, so that equality deletes that came since apply to them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

from pyiceberg.manifest import DataFile
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation

from datalake_assets.core.compaction.plan import CompactionRules, LeftAlone
from datalake_assets.errors import (
    CommitConflict,
    CorruptLake,
    DatalakeError,
    LakeError,
    UnreadableFile,
    unforeseen_text,
)
from datalake_assets.lake.iceberg.catalog_commits import delete_quietly, table_text
from datalake_assets.lake.iceberg.iceberg_catalogs import catalog_failures
from datalake_assets.lake.iceberg.iceberg_planning import IsClosed, RewriteGroup, TablePlan, never_closed, plan_table
from datalake_assets.lake.iceberg.iceberg_rewriting import Rewriting, RewrittenFiles
from datalake_assets.lake.iceberg.manifests import Manifests
from datalake_assets.lake.iceberg.named_files import FILES, files_property
from datalake_assets.lake.iceberg.snapshot_files import SnapshotFiles, may_lack_columns
from datalake_assets.lake.iceberg.transactions import TableChange, commit_change
from datalake_assets.parquet.rewrite_settings import AS_LARGE, COPY_BYTES, RewriteSettings, Verify
from datalake_assets.parquet.writer import ROW_GROUP_BYTES, ParquetSettings

__all__ = ["IcebergCompaction", "compact_table", "rewrite_settings", "table_rules"]

logger = logging.getLogger(__name__)

#: Size of files where a table says nothing.
TARGET_FILE_BYTES = 128 << 20
#: Groups that one snapshot replaces; what was done before an interruption is kept.
GROUPS_PER_COMMIT = 10
#: Snapshots that a commit is built on before it gives up; each loss means that somebody else made progress.
ATTEMPTS = 20
#: Times that what a compaction leaves is planned again: outputs of moved partitions, groups that were dropped.
PASSES = 4


def table_rules(
    table: Table,
    *,
    force: bool = False,
    target_file_bytes: int | None = None,
    min_files: int = 5,
    max_files: int = 100_000,
    max_bytes: int = 1 << 40,
) -> CompactionRules:
    """Rules for a table that is no feed.

    Args:
        table: The table; its ``write.target-file-size-bytes`` is the target, or 128 MiB if it says nothing.
        force: Merge whatever can be merged.
        target_file_bytes: In place of the table's.
        min_files: Small files that a partition must have, or delete files that apply, before it is rewritten.
        max_files: Files that one run takes.
        max_bytes: Bytes that one run takes.
    """
    target = target_file_bytes or int(table.properties.get("write.target-file-size-bytes", TARGET_FILE_BYTES))
    return CompactionRules(
        target_file_bytes=target,
        small_file_bytes=target // 2,
        min_files=min_files,
        max_files=max_files,
        max_bytes=max_bytes,
        fan_in=8,
        split_above_bytes=0,
        min_file_age=timedelta(0),
        min_partition_age=timedelta(0),
        force=force,
    )


def rewrite_settings(
    table: Table,
    rules: CompactionRules,
    *,
    row_group_bytes: int = ROW_GROUP_BYTES,
    verify: Verify = "full",
    sort_by: tuple[str, ...] = (),
    workers: int = 2,
    copies: tuple[int, float] = (COPY_BYTES, AS_LARGE),
) -> RewriteSettings:
    """How files of a table are rewritten that says by itself how it wants them.

    Args:
        table: The table; the codec is its ``write.parquet.compression-codec``, or zstd for those that are not written.
        rules: Say how large files are to be.
        row_group_bytes: Decoded bytes of a row group.
        verify: What is compared before a commit.
        sort_by: Columns that rows are sorted by.
        workers: Threads that encode.
        copies: From which mean size of its row groups on a file's are copied; see `RewriteSettings`.
    """
    codec: Literal["snappy", "zstd"] = "zstd"
    if table.properties.get("write.parquet.compression-codec", "").lower() == "snappy":
        codec = "snappy"
    parquet = ParquetSettings(
        compression=codec, target_file_bytes=rules.target_file_bytes, row_group_bytes=row_group_bytes
    )
    copy_bytes, as_large = copies
    return RewriteSettings(
        parquet=parquet, verify=verify, sort_by=sort_by, workers=workers, copy_bytes=copy_bytes, as_large=as_large
    )


@dataclass(slots=True)
class IcebergCompaction:
    """What a compaction did.

    Attributes:
        files_before: Data files that there were in the partitions looked at.
        files_after: Data files there are now, those included that others have added meanwhile.
        bytes_before: Their bytes.
        bytes_after: Likewise.
        files_compacted: Data files that were replaced.
        files_written: Data files that replace them.
        bytes_read: Bytes of the files that were replaced.
        bytes_written: Bytes of those that replace them.
        rows: Rows written.
        rows_deleted: Rows that deletes had taken away, which are in no file any more.
        deletes_removed: Delete files that nothing needs any more.
        snapshots: Ids of the snapshots made.
        dropped: Groups that others changed meanwhile.
        small_files_remaining: Small files that there are now.
        copied: Row groups copied.
        encoded: Row groups made anew.
        merged: Of these, those that the native kernel merged page by page.
        detours: Paths of files that were decoded though the native kernel is there, with the reason.
        skipped: Files that were left alone, with the reason.
        failed: Paths of files that no rewrite could take, with the reason.
    """

    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    files_compacted: int = 0
    files_written: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    rows: int = 0
    rows_deleted: int = 0
    deletes_removed: int = 0
    snapshots: list[int] = field(default_factory=list)
    dropped: int = 0
    small_files_remaining: int = 0
    copied: int = 0
    encoded: int = 0
    merged: int = 0
    detours: dict[str, str] = field(default_factory=dict)
    skipped: tuple[LeftAlone, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)


def compact_table(
    table: Table,
    rules: CompactionRules,
    settings: RewriteSettings,
    *,
    now: datetime,
    is_closed: IsClosed = never_closed,
    only: Callable[[str], bool] = lambda _: True,
    groups_per_commit: int = GROUPS_PER_COMMIT,
    names_files: bool = False,
) -> IcebergCompaction:
    """Compacts a table; ``table`` knows its newest snapshot afterwards.

    Args:
        table: The table; it is loaded again.
        rules: When and what to merge, per partition.
        settings: Of the rewriter.
        now: The time.
        is_closed: As for `plan_table`.
        only: As for `plan_table`.
        groups_per_commit: Groups that one snapshot replaces.
        names_files: Whether a property of the table names its files afterwards, if they are few (`named_files`).

    Raises:
        CommitConflict: Others committed without pause.
        AmbiguousWrite: The catalog's answer was lost; what was written is left for the removal of orphans.
        LakeError: The format is too new, or the store failed.
    """
    return _Compaction(table, rules, settings, now, groups_per_commit=groups_per_commit, names_files=names_files).run(
        is_closed, only
    )


@dataclass(frozen=True, slots=True)
class _Done:
    """A group that was rewritten and is not committed yet."""

    group: RewriteGroup
    files: RewrittenFiles


class _Compaction:
    """One compaction of a table."""

    def __init__(
        self,
        table: Table,
        rules: CompactionRules,
        settings: RewriteSettings,
        now: datetime,
        *,
        groups_per_commit: int,
        names_files: bool,
    ) -> None:
        self._table, self._rules, self._settings, self._now = table, rules, settings, now
        self._groups_per_commit, self._names_files = groups_per_commit, names_files
        self._manifests = Manifests(table.io)
        self._report = IcebergCompaction()
        self._excluded: dict[str, str] = {}
        self._mine: set[str] = set()  # what is appended meanwhile is the next run's: else this one might never end

    def run(self, is_closed: IsClosed, only: Callable[[str], bool]) -> IcebergCompaction:
        """Plans, rewrites and commits until a plan is empty or the run's limits are reached."""
        self._table.refresh()
        first: TablePlan | None = None
        for _ in range(PASSES):
            plan = self._plan(self._left(), is_closed, only, among=self._mine if first else None)
            if first is None:
                first = plan
                self._mine |= plan.paths
            if not plan.groups or self._left().max_files <= 0:
                break
            self._do(plan)
            self._table.refresh()
        after = self._plan(self._rules, is_closed, only)
        report = self._report
        report.files_before, report.bytes_before = (first.files, first.size_bytes) if first else (0, 0)
        report.files_after, report.bytes_after = after.files, after.size_bytes
        report.small_files_remaining = after.small_files
        report.skipped = tuple(each for partition in after.partitions for each in partition.left_alone)
        return report

    def _plan(
        self,
        rules: CompactionRules,
        is_closed: IsClosed,
        only: Callable[[str], bool],
        *,
        among: Collection[str] | None = None,
    ) -> TablePlan:
        return plan_table(
            self._table,
            rules,
            now=self._now,
            is_closed=is_closed,
            only=only,
            excluded=self._excluded,
            among=among,
            manifests=self._manifests,
        )

    def _left(self) -> CompactionRules:
        return replace(
            self._rules,
            max_files=self._rules.max_files - self._report.files_compacted,
            max_bytes=self._rules.max_bytes - self._report.bytes_read,
        )

    def _do(self, plan: TablePlan) -> None:
        """Rewrites the groups, and commits some at a time; what is written and was not tried to commit is deleted."""
        waiting: list[_Done] = []
        try:
            with Rewriting(self._table, self._settings) as rewriting:
                for group in plan.groups:
                    done = self._rewritten(rewriting, group)
                    if done is not None:
                        waiting.append(done)
                    if len(waiting) >= self._groups_per_commit:
                        self._commit(waiting, plan.sequence_number)
                self._commit(waiting, plan.sequence_number)
        finally:
            for each in waiting:
                self._discard(each)

    def _rewritten(self, rewriting: Rewriting, group: RewriteGroup) -> _Done | None:
        try:
            done = rewriting.run(group.files)
        except FileNotFoundError as error:
            self._report.dropped += 1
            logger.info("a file to merge is gone, replaced by somebody else: %s", error)
            return None
        except (CorruptLake, UnreadableFile) as error:
            logger.warning("a merge of %s failed: %s", table_text(self._table), error)
            self._exclude(dict.fromkeys(_culprits(group, error), error.reason))
            return None
        except Exception as error:
            if _is_of_the_store(error):
                raise
            logger.exception("a merge of %s failed; its files are tried one by one", table_text(self._table))
            self._exclude(self._failing(rewriting, group, error))
            return None
        self._exclude(done.rejected)
        result = _Done(group, done)
        if reason := _gains_nothing(done):
            self._discard(result)
            self._excluded |= dict.fromkeys((file.path for file in done.inputs), reason)
            return None
        return result if done.inputs else None

    def _failing(self, rewriting: Rewriting, group: RewriteGroup, error: Exception) -> dict[str, str]:
        """The files of a group that failed which fail alone, too, with the reason; all if it takes several to fail.

        The others are planned again, without these.
        """
        found = {}
        for file in group.files:
            try:
                self._discard(_Done(group, rewriting.run([file])))
            except FileNotFoundError:
                continue
            except Exception as alone:
                if _is_of_the_store(alone):
                    raise
                found[file.path] = alone.reason if isinstance(alone, LakeError) else unforeseen_text(alone)
        if found:
            return found
        return dict.fromkeys((file.path for file in group.files), f"not merged together: {unforeseen_text(error)}")

    def _exclude(self, rejected: Mapping[str, str]) -> None:
        self._excluded |= rejected
        self._report.failed |= rejected

    def _discard(self, done: _Done) -> None:
        delete_quietly(self._table.io, [file.file_path for file in done.files.outputs])

    def _commit(self, waiting: list[_Done], sequence_number: int) -> None:
        """Commits what was rewritten, as far as it still holds; empties the list.

        What is being committed is not in the list: whatever happens then, even an interruption, nobody may delete it.
        """
        for _ in range(ATTEMPTS):
            if not waiting:
                return
            self._table.refresh()
            head = SnapshotFiles(self._table.metadata, self._manifests, self._table.current_snapshot())
            for each in [each for each in waiting if not self._holds(each, head, sequence_number)]:
                waiting.remove(each)
                self._discard(each)
                self._report.dropped += 1
                logger.info("merged in vain: files of %s were replaced meanwhile", table_text(self._table))
            committing = list(waiting)
            waiting.clear()
            if not committing:
                return
            try:
                self._commit_on(head, committing, sequence_number)
            except CommitConflict as error:
                waiting += committing
                logger.info("%s; what was merged is committed on that", error)
        if waiting:
            raise CommitConflict(table_text(self._table), "others committed without pause")

    def _holds(self, done: _Done, head: SnapshotFiles, sequence_number: int) -> bool:
        """Whether what was read is what the newest snapshot has; outputs will have that sequence number."""
        spec_id = self._table.metadata.default_spec_id
        if any(file.spec_id != spec_id for file in done.files.outputs):
            return False
        for file in done.files.inputs:
            there = head.data.get(file.path)
            if there is None or there.sequence_number != file.sequence_number or file.path in head.repeated:
                return False
            if set(file.deletes) - set(there.deletes):  # rolled back
                return False
            moved = file.file.spec_id != spec_id
            # an equality delete that came since applies to the outputs, too, which are in the same partition; one of
            # another line of snapshots, which somebody made the current one, may be older than they are
            came = set(there.deletes) - set(file.deletes)
            if any(moved or not each.is_equality or each.sequence_number <= sequence_number for each in came):
                return False
        return True

    def _commit_on(self, head: SnapshotFiles, waiting: Sequence[_Done], sequence_number: int) -> None:
        inputs = [file for each in waiting for file in each.files.inputs]
        outputs = [file for each in waiting for file in each.files.outputs]
        paths = {file.path for file in inputs}
        unneeded = head.unneeded_deletes(paths, (each for file in inputs for each in file.deletes))
        change = TableChange(
            Operation.REPLACE, added=outputs, removed=paths | unneeded, sequence_number=sequence_number
        )
        if self._names_files:
            left = [file.file for path, file in head.data.items() if path not in paths]
            is_exact = not head.repeated and unneeded >= {each.path for each in head.deletes}
            change = self._naming(change, [*left, *outputs] if is_exact else [])
        snapshot = commit_change(self._table, change, manifests=self._manifests)
        self._mine |= {file.file_path for file in outputs}
        report = self._report
        report.snapshots.append(snapshot.snapshot_id)
        report.files_compacted += len(inputs)
        report.files_written += len(outputs)
        report.bytes_read += sum(file.file.file_size_in_bytes for file in inputs)
        report.bytes_written += sum(file.file_size_in_bytes for file in outputs)
        report.rows += sum(file.record_count for file in outputs)
        report.rows_deleted += sum(each.files.rows_deleted for each in waiting)
        report.deletes_removed += len(unneeded)
        report.copied += sum(each.files.copied for each in waiting)
        report.encoded += sum(each.files.encoded for each in waiting)
        report.merged += sum(each.files.merged for each in waiting)
        report.detours |= {path: why for each in waiting for path, why in each.files.detours.items()}

    def _naming(self, change: TableChange, files: Sequence[DataFile]) -> TableChange:
        """The change with the property that names all files of its snapshot; without files it names none.

        Nor are files named that may lack columns: who reads the property takes them for whole.
        """
        metadata = self._table.metadata
        snapshot_id = metadata.new_snapshot_id()
        is_whole = files and not any(may_lack_columns(file, metadata) for file in files)
        named = files_property(self._table, snapshot_id, files) if is_whole else {}
        stale = [FILES] if FILES in self._table.properties and not named else []
        return replace(change, snapshot_id=snapshot_id, set_properties=named, removed_properties=stale)


def _culprits(group: RewriteGroup, error: LakeError) -> set[str]:
    """Paths of the files that a merge failed by: the one that is named, or those that a named delete applies to."""
    by_it = {file.path for file in group.files if error.where in {file.path, *(each.path for each in file.deletes)}}
    return by_it or {file.path for file in group.files}


def _is_of_the_store(error: Exception) -> bool:
    """Whether an error of a rewrite comes from where files are or are written, and not from what is in them."""
    if isinstance(error, (CorruptLake, UnreadableFile)):
        return False
    return isinstance(error, (DatalakeError, *catalog_failures(OSError)))


def _gains_nothing(done: RewrittenFiles) -> str:
    """Why what was written is of no use; deletes that were applied and files that were moved always are."""
    if not done.outputs or any(file.deletes for file in done.inputs):
        return ""
    if any(file.file.spec_id != done.outputs[0].spec_id for file in done.inputs):
        return ""
    if len(done.inputs) == len(done.outputs) == 1:
        return "cannot be split: a row group is as large as the target"
    if 1 < len(done.inputs) <= len(done.outputs):
        return "cannot be merged into fewer files"
    return ""
