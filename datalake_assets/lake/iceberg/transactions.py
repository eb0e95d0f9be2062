"""One commit to an Iceberg table: built on one snapshot, tried once, and settled when the answer is lost.

pyiceberg's own transactions are not used, for three reasons (``docs/adr/023-own-commits-to-iceberg-tables.md``):

- They try again by themselves, on whatever snapshot is newest then. An append whose rows another writer has appended
  meanwhile would double them, and nothing but a property of the table, which anybody may change, forbids it.
- They copy the whole metadata about twenty times an append, so that each append takes longer than the one before.
- They know no ``replace``, write no manifest of delete files, and add files under the current partition spec alone.

What is used instead is public: `write_manifest`, `write_manifest_list`, `Snapshot`, and the catalog's `commit_table`,
which is the compare-and-swap. `DeleteManifestWriter` alone leans on the inside of a class.
"""

from __future__ import annotations

import logging
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import cast

from pyiceberg.avro.codecs import AvroCompressionCodec
from pyiceberg.manifest import (
    DataFile,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    ManifestWriter,
    write_manifest,
    write_manifest_list,
)
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.refs import MAIN_BRANCH, SnapshotRef
from pyiceberg.table.snapshots import Operation, Snapshot, SnapshotSummaryCollector, Summary
from pyiceberg.table.update import (
    AddSnapshotUpdate,
    AssertRefSnapshotId,
    RemovePropertiesUpdate,
    SetPropertiesUpdate,
    SetSnapshotRefUpdate,
    TableUpdate,
)

from datalake_assets.errors import CommitConflict, LakeError, TransientStoreError
from datalake_assets.lake.iceberg.catalog_commits import check_format, commit_updates, delete_quietly, table_text
from datalake_assets.lake.iceberg.manifests import DeleteManifestWriter, Manifests, schema_of_spec

__all__ = ["TableChange", "commit_change"]

logger = logging.getLogger(__name__)

#: So many manifests of one size are merged into one of the next size, which holds so many times as many files.
MERGE_MANIFESTS = 32
#: A manifest of more files is left as it is: a reader that wants few of them skips it, or reads it in good time.
MERGE_UP_TO_FILES = 4096
#: Files that a manifest has which is written anew.
ENTRIES_PER_MANIFEST = 4096
_TOTALS = (
    ("total-data-files", "added-data-files", "deleted-data-files"),
    ("total-delete-files", "added-delete-files", "removed-delete-files"),
    ("total-records", "added-records", "deleted-records"),
    ("total-files-size", "added-files-size", "removed-files-size"),
    ("total-position-deletes", "added-position-deletes", "removed-position-deletes"),
    ("total-equality-deletes", "added-equality-deletes", "removed-equality-deletes"),
)


@dataclass(frozen=True, slots=True)
class TableChange:
    """What one snapshot does to a table.

    Attributes:
        operation: ``APPEND``, ``OVERWRITE``, ``DELETE``, or ``REPLACE`` if the rows stay what they were.
        added: Data files, each with the id of its partition spec; without one it has the table's current spec.
        removed: Paths of data files and delete files that leave; all must be there.
        sequence_number: Of what is added, where it holds rows of before; None for that of the commit. Deletes that are
            younger apply to it.
        summary: Said in the snapshot besides the numbers.
        set_properties: Of the table, changed in the same commit.
        removed_properties: Likewise.
        cluster_manifests: Write all manifests anew, so that each has files of few partitions.
        snapshot_id: The number of the snapshot, for those who have to know it before; by default a new one.
        tag: A tag that the snapshot gets in the same commit, and that keeps it and no other; empty for none.
        moves_branch: Whether the snapshot becomes the branch's newest; else it needs a tag.
    """

    operation: Operation
    added: Sequence[DataFile] = ()
    removed: Collection[str] = ()
    sequence_number: int | None = None
    summary: Mapping[str, str] = field(default_factory=dict)
    set_properties: Mapping[str, str] = field(default_factory=dict)
    removed_properties: Collection[str] = ()
    cluster_manifests: bool = False
    snapshot_id: int | None = None
    tag: str = ""
    moves_branch: bool = True


def commit_change(
    table: Table, change: TableChange, *, manifests: Manifests | None = None, branch: str = MAIN_BRANCH
) -> Snapshot:
    """Commits one snapshot on the one that ``table`` knows as the branch's head; ``table`` knows the new one then.

    It is tried once: whoever loses loads the table again, and decides whether the change still holds. Data files are
    the caller's; manifests of a commit that has certainly failed are deleted.

    Raises:
        CommitConflict: Another writer has committed, or a file to remove is not there. Nothing was changed.
        AmbiguousWrite: The catalog's answer was lost, and the table does not have the snapshot (yet). Nothing may be
            deleted.
        TransientStoreError: The catalog's database, or its disk, could not take it. Nothing was changed.
        LakeError: The table's format is too new.
    """
    check_format(table)
    metadata = table.metadata
    builder = _Builder(table, change, manifests or Manifests(table.io), branch)
    try:
        snapshot = builder.snapshot()
    except BaseException:
        delete_quietly(table.io, builder.written)
        raise
    updates: list[TableUpdate] = []
    if change.set_properties:
        updates.append(SetPropertiesUpdate(updates=dict(change.set_properties)))
    if change.removed_properties:
        updates.append(RemovePropertiesUpdate(removals=list(change.removed_properties)))
    updates.append(AddSnapshotUpdate(snapshot=snapshot))
    if change.moves_branch:
        updates.append(_new_head(metadata.refs.get(branch), branch, snapshot.snapshot_id))
    if change.tag:
        updates.append(_new_tag(change.tag, snapshot.snapshot_id))
    requirements = [AssertRefSnapshotId(ref=branch, snapshot_id=snapshot.parent_snapshot_id)]
    if change.tag in metadata.refs and change.tag != branch:  # it is taken from another snapshot, if it is still there
        requirements.append(AssertRefSnapshotId(ref=change.tag, snapshot_id=metadata.refs[change.tag].snapshot_id))

    def is_there() -> bool:
        return table.metadata.snapshot_by_id(snapshot.snapshot_id) is not None

    try:
        commit_updates(table, updates, requirements, is_there=is_there)
    except (CommitConflict, TransientStoreError):
        delete_quietly(table.io, builder.written)
        raise
    logger.info(
        "%s: %s %s, %s files added, %s removed",
        table_text(table),
        change.operation.value,
        snapshot.snapshot_id,
        len(change.added),
        len(change.removed),
    )
    return snapshot


def _new_head(ref: SnapshotRef | None, branch: str, snapshot_id: int) -> SetSnapshotRefUpdate:
    """Moves a branch, with the retention that somebody gave it, which setting its head would take away."""
    return SetSnapshotRefUpdate(
        ref_name=branch,
        type="branch",
        snapshot_id=snapshot_id,
        max_ref_age_ms=ref.max_ref_age_ms if ref else None,
        max_snapshot_age_ms=ref.max_snapshot_age_ms if ref else None,
        min_snapshots_to_keep=ref.min_snapshots_to_keep if ref else None,
    )


def _new_tag(name: str, snapshot_id: int) -> SetSnapshotRefUpdate:
    return SetSnapshotRefUpdate(
        ref_name=name,
        type="tag",
        snapshot_id=snapshot_id,
        max_ref_age_ms=None,
        max_snapshot_age_ms=None,
        min_snapshots_to_keep=None,
    )


class _Builder:
    """Writes the manifests and the manifest list of one snapshot."""

    def __init__(self, table: Table, change: TableChange, manifests: Manifests, branch: str) -> None:
        self._table, self._metadata, self._change, self._manifests = table, table.metadata, change, manifests
        self._specs = table.metadata.specs()
        self._base = table.metadata.snapshot_by_name(branch)
        self._id = change.snapshot_id or table.metadata.new_snapshot_id()
        self._commit_uuid, self._numbers = uuid.uuid4(), count()
        codec = table.metadata.properties.get(
            TableProperties.WRITE_AVRO_COMPRESSION, TableProperties.WRITE_AVRO_COMPRESSION_DEFAULT
        )
        self._compression = cast(AvroCompressionCodec, codec)
        self.written: list[str] = []

    def snapshot(self) -> Snapshot:
        """Writes what the snapshot names, and gives the snapshot."""
        untouched, rewritten, gone = self._kept()
        settled = self._clustered(untouched) if self._change.cluster_manifests else self._merged(untouched)
        listed = [*self._added(), *self._deleted(gone), *rewritten, *settled]
        sequence_number = self._metadata.next_sequence_number()
        parent_id = self._base.snapshot_id if self._base is not None else None
        path = self._metadata_path(f"snap-{self._id}-0-{self._commit_uuid}.avro")
        with write_manifest_list(
            format_version=self._metadata.format_version,
            output_file=self._table.io.new_output(path),
            snapshot_id=self._id,
            parent_snapshot_id=parent_id,
            sequence_number=sequence_number,
            avro_compression=self._compression,
        ) as writer:
            writer.add_manifests(listed)
        return Snapshot(
            snapshot_id=self._id,
            parent_snapshot_id=parent_id,
            sequence_number=sequence_number,
            manifest_list=path,
            summary=self._summary(gone),
            schema_id=self._metadata.current_schema_id,
        )

    def _metadata_path(self, name: str) -> str:
        path = self._table.location_provider().new_metadata_location(name)
        self.written.append(path)
        return path

    def _written(self, spec_id: int, content: ManifestContent, entries: Iterable[ManifestEntry]) -> ManifestFile:
        schema = self._schema_of(spec_id)
        output = self._table.io.new_output(self._metadata_path(f"{self._commit_uuid}-m{next(self._numbers)}.avro"))
        spec: PartitionSpec = self._specs[spec_id]
        writer: ManifestWriter
        if content == ManifestContent.DELETES:
            writer = DeleteManifestWriter(spec, schema, output, self._id, self._compression)
        else:
            version = self._metadata.format_version
            writer = write_manifest(version, spec, schema, output, self._id, self._compression)
        with writer:
            for entry in entries:
                writer.add_entry(entry)
        return writer.to_manifest_file()

    def _schema_of(self, spec_id: int) -> Schema:
        found = schema_of_spec(self._metadata, spec_id)
        if found is None:
            reason = f"columns that partition spec {spec_id} is made of are gone, and forgotten by its metadata"
            raise LakeError(table_text(self._table), reason, cure="rewrite its files with the engine that dropped them")
        return found

    def _added(self) -> Iterator[ManifestFile]:
        by_spec: dict[int, list[DataFile]] = defaultdict(list)
        for file in self._change.added:
            try:
                by_spec[file.spec_id].append(file)
            except AttributeError:  # pyiceberg's own writer does not say it
                file.spec_id = self._metadata.default_spec_id
                by_spec[file.spec_id].append(file)
        for spec_id, files in by_spec.items():
            entries = (self._entry(ManifestEntryStatus.ADDED, file) for file in files)
            yield self._written(spec_id, ManifestContent.DATA, entries)

    def _entry(self, status: ManifestEntryStatus, file: DataFile) -> ManifestEntry:
        number = self._change.sequence_number if self._metadata.format_version > 1 else None
        return ManifestEntry.from_args(
            status=status, snapshot_id=self._id, sequence_number=number, file_sequence_number=None, data_file=file
        )

    def _kept(self) -> tuple[list[ManifestFile], list[ManifestFile], list[tuple[ManifestFile, ManifestEntry]]]:
        """The base's manifests that stay, those written again without what is removed, and that, with its manifest."""
        listed = self._manifests.of(self._base)
        left, gone = set(self._change.removed), []
        touched: set[str] = set()
        rewritten: list[ManifestFile] = []
        for manifest in sorted(listed, key=lambda each: not self._manifests.at_hand(each)):
            if not left:
                break
            entries = self._manifests.entries(manifest)
            leaving = [entry for entry in entries if entry.data_file.file_path in self._change.removed]
            if leaving:
                gone += [(manifest, entry) for entry in leaving]
                left -= {entry.data_file.file_path for entry in leaving}
                staying = [entry for entry in entries if entry.data_file.file_path not in self._change.removed]
                touched.add(manifest.manifest_path)
                rewritten += [self._existing(manifest, staying)] if staying else []
        if left:
            raise CommitConflict(table_text(self._table), f"{min(left)} is not in the table any more")
        return [manifest for manifest in listed if manifest.manifest_path not in touched], rewritten, gone

    def _existing(self, like: ManifestFile, entries: Iterable[ManifestEntry]) -> ManifestFile:
        return self._written(
            like.partition_spec_id,
            like.content,
            (_restated(entry, ManifestEntryStatus.EXISTING, entry.snapshot_id) for entry in entries),
        )

    def _deleted(self, gone: Sequence[tuple[ManifestFile, ManifestEntry]]) -> Iterator[ManifestFile]:
        alike: dict[tuple[int, ManifestContent], list[ManifestEntry]] = defaultdict(list)
        for manifest, entry in gone:
            restated = _restated(entry, ManifestEntryStatus.DELETED, self._id)
            alike[manifest.partition_spec_id, manifest.content].append(restated)
        for (spec_id, content), entries in alike.items():
            yield self._written(spec_id, content, entries)

    def _merged(self, kept: Sequence[ManifestFile]) -> Iterator[ManifestFile]:
        """The manifests, those of one size merged where there are many, so that each entry is written again seldom."""
        stated = self._metadata.properties.get(TableProperties.MANIFEST_MERGE_ENABLED, "true")
        if stated.lower() == "false":
            yield from kept
            return
        alike: dict[tuple[int, ManifestContent, int], list[ManifestFile]] = defaultdict(list)
        for manifest in kept:
            alike[manifest.partition_spec_id, manifest.content, _size_class(manifest)].append(manifest)
        for (_, _, size_class), manifests in alike.items():
            is_final = schema_of_spec(self._metadata, manifests[0].partition_spec_id) is None
            if size_class < 0 or len(manifests) < MERGE_MANIFESTS or is_final:
                yield from manifests
            else:
                entries = (entry for manifest in manifests for entry in self._manifests.entries(manifest))
                yield self._existing(manifests[0], entries)

    def _clustered(self, kept: Sequence[ManifestFile]) -> Iterator[ManifestFile]:
        """All entries by partition, in manifests of one size."""
        alike: dict[tuple[int, ManifestContent], list[ManifestFile]] = defaultdict(list)
        for manifest in kept:
            alike[manifest.partition_spec_id, manifest.content].append(manifest)
        for (spec_id, _), manifests in alike.items():
            if schema_of_spec(self._metadata, spec_id) is None:
                yield from manifests
                continue
            entries = [entry for manifest in manifests for entry in self._manifests.entries(manifest)]
            entries.sort(key=lambda entry: (repr(entry.data_file.partition), entry.sequence_number or 0))
            for start in range(0, len(entries), ENTRIES_PER_MANIFEST):
                yield self._existing(manifests[0], entries[start : start + ENTRIES_PER_MANIFEST])

    def _summary(self, gone: Sequence[tuple[ManifestFile, ManifestEntry]]) -> Summary:
        limit = self._metadata.properties.get(
            TableProperties.WRITE_PARTITION_SUMMARY_LIMIT, TableProperties.WRITE_PARTITION_SUMMARY_LIMIT_DEFAULT
        )
        collector = _Collector(partition_summary_limit=int(limit))
        for file in self._change.added:
            spec_id = file.spec_id
            collector.add_file(file, schema=self._schema_of(spec_id), partition_spec=self._specs[spec_id])
        for _, entry in gone:
            file, spec_id = entry.data_file, entry.data_file.spec_id
            collector.remove_file(file, schema=self._schema_of(spec_id), partition_spec=self._specs[spec_id])
        stated = collector.build()
        before = self._base.summary if self._base is not None else None
        return Summary(self._change.operation, **stated, **_totals(before, stated), **self._change.summary)


class _Collector(SnapshotSummaryCollector):
    """Counts partitions whose value pyiceberg has no text for, too: a time beyond Python's clock."""

    def update_partition_metrics(
        self,
        partition_spec: PartitionSpec,
        file: DataFile,
        is_add_file: bool,  # noqa: FBT001  as pyiceberg has it
        schema: Schema,
    ) -> None:
        try:
            super().update_partition_metrics(partition_spec, file, is_add_file, schema)
        except (OverflowError, ValueError):
            metrics = self.partition_metrics[str(file.partition)]
            (metrics.add_file if is_add_file else metrics.remove_file)(file)


def _restated(entry: ManifestEntry, status: ManifestEntryStatus, snapshot_id: int | None) -> ManifestEntry:
    return ManifestEntry.from_args(
        status=status,
        snapshot_id=snapshot_id,
        sequence_number=entry.sequence_number,
        file_sequence_number=entry.file_sequence_number,
        data_file=entry.data_file,
    )


def _size_class(manifest: ManifestFile) -> int:
    """By the files in it: 0 below `MERGE_MANIFESTS`, 1 below its square …; -1 if it is not to grow."""
    if manifest.added_files_count is None or manifest.existing_files_count is None:  # version 1 need not say
        return -1
    files, found = manifest.added_files_count + manifest.existing_files_count, 0
    if files > MERGE_UP_TO_FILES // MERGE_MANIFESTS:
        return -1
    while files >= MERGE_MANIFESTS:
        files, found = files // MERGE_MANIFESTS, found + 1
    return found


def _totals(before: Mapping[str, str] | None, changes: Mapping[str, str]) -> dict[str, str]:
    """The totals after a commit; one that the snapshot before does not state stays unknown."""
    found = {}
    for total, added, removed in _TOTALS:
        stated = before.get(total) if before is not None else "0"
        if stated is not None and stated.isdecimal():
            found[total] = str(int(stated) + int(changes.get(added, 0)) - int(changes.get(removed, 0)))
    return found
