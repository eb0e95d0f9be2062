"""Which files a snapshot has, and which of its delete files apply to which data file (Iceberg specification, "Scan").

- A position delete applies to the file that it names, in the same partition, of the same sequence number or an older
  one; to that file in any partition, if its bounds say that it names no other.
- An equality delete applies to the data files of its partition that are older; to those of all partitions if it was
  written under a spec that has no fields, or void ones alone.

pyiceberg's own planning knows no equality deletes, and raises over them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from pyiceberg.manifest import DataFile, DataFileContent, FileFormat, ManifestContent, ManifestEntry
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.transforms import IdentityTransform, VoidTransform

from datalake_assets.lake.iceberg.manifests import Manifests

__all__ = [
    "DeleteFile",
    "LiveFile",
    "PartitionId",
    "SnapshotFiles",
    "may_be_misnamed",
    "may_lack_columns",
    "partition_id",
]

#: Field id of the path in a position delete file (Iceberg specification, "Reserved Field IDs").
PATH_FIELD = 2147483546

#: A partition: the id of its spec, and its values.
PartitionId = tuple[int, tuple[Any, ...]]


def partition_id(file: DataFile) -> PartitionId:
    """The partition that a file is in."""
    return file.spec_id, tuple(file.partition[place] for place in range(len(file.partition)))


def may_lack_columns(file: DataFile, metadata: TableMetadata) -> set[int]:
    """Ids of columns that a file may lack, since its partition states them (specification, "Column Projection").

    Files of Hive folders that were added to a table as they are lack them. Counts of a column's values tell that it is
    there; of whoever writes none it is not known.
    """
    fields = metadata.specs()[file.spec_id].fields
    return {each.source_id for each in fields if isinstance(each.transform, IdentityTransform)} - set(
        file.value_counts or ()
    )


def may_be_misnamed(metadata: TableMetadata) -> bool:
    """Whether files may have columns, or fields in them, under other names than the table's.

    A schema of before says it. Where one is gone from the metadata, as expiries of other engines take those out that no
    snapshot names, nobody knows: files of before may still be there.
    """
    known = {each.schema_id for each in metadata.schemas}
    if not known.issuperset(range(metadata.current_schema_id)):
        return True
    now = metadata.schema()
    return any(
        now.find_column_name(number) != each.find_column_name(number)
        for each in metadata.schemas
        for number in each.field_ids
    )


def _is_same(one: PartitionId, other: PartitionId) -> bool:
    """Whether two partitions are one: by their texts, since what is not a number equals nothing."""
    return one == other or repr(one) == repr(other)


@dataclass(frozen=True, slots=True)
class DeleteFile:
    """A file that says which rows are gone.

    Attributes:
        file: The file.
        sequence_number: Of the commit that it came with.
        is_global: An equality delete of all partitions.
        target: The one data file that a position delete names; None if there may be several.
    """

    file: DataFile = field(compare=False, repr=False)
    path: str
    sequence_number: int
    is_global: bool
    target: str | None

    @property
    def is_equality(self) -> bool:
        """Whether it names rows by their values."""
        return self.file.content == DataFileContent.EQUALITY_DELETES

    def applies_to(self, path: str, sequence_number: int, partition: PartitionId) -> bool:
        """Whether rows of that data file may be gone by it."""
        if self.is_equality:
            in_reach = self.is_global or _is_same(partition_id(self.file), partition)
            return in_reach and sequence_number < self.sequence_number
        if sequence_number > self.sequence_number:
            return False
        if self.target is not None:
            return self.target == path
        return _is_same(partition_id(self.file), partition) and self._may_name(path)

    def _may_name(self, path: str) -> bool:
        lower = (self.file.lower_bounds or {}).get(PATH_FIELD, b"")
        upper = (self.file.upper_bounds or {}).get(PATH_FIELD)
        named = path.encode()
        return lower <= named and (upper is None or named[: len(upper)] <= upper)


def _delete_file(entry: ManifestEntry, metadata: TableMetadata) -> DeleteFile:
    file = entry.data_file
    is_equality = file.content == DataFileContent.EQUALITY_DELETES
    lower, upper = ((bounds or {}).get(PATH_FIELD) for bounds in (file.lower_bounds, file.upper_bounds))
    target = lower.decode(errors="replace") if lower is not None and lower == upper and not is_equality else None
    # a field that was dropped in version 1 of the format stays, as one that is void
    fields = metadata.specs()[file.spec_id].fields
    is_global = is_equality and all(isinstance(each.transform, VoidTransform) for each in fields)
    return DeleteFile(file, file.file_path, entry.sequence_number or 0, is_global, target)


@dataclass(frozen=True, slots=True)
class LiveFile:
    """A data file of a snapshot.

    Attributes:
        file: The file.
        sequence_number: Of its rows.
        deletes: Files that say which of its rows are gone.
    """

    file: DataFile
    sequence_number: int
    deletes: tuple[DeleteFile, ...] = ()

    @property
    def path(self) -> str:
        """Where it is."""
        return self.file.file_path

    @property
    def partition(self) -> PartitionId:
        """Where its rows are."""
        return partition_id(self.file)

    @property
    def why_unusable(self) -> str:
        """Why it cannot be rewritten here; empty if it can."""
        if self.file.file_format != FileFormat.PARQUET:
            return f"is {str(self.file.file_format.value).title()}: only Parquet files are rewritten"
        for each in self.deletes:
            if each.file.file_format == FileFormat.PUFFIN:
                return "has a deletion vector, which is of format version 3"
            if each.file.file_format != FileFormat.PARQUET:
                return f"has deletes in {str(each.file.file_format.value).title()}: only Parquet is read"
        return ""


class SnapshotFiles:
    """All files of a snapshot.

    Args:
        metadata: Of the table.
        manifests: Reads them.
        snapshot: Which; None has none.

    Attributes:
        listed: Data files as manifests list them, as often as they do.
        data: The same by path.
        repeated: Paths that the snapshot names more than once: their rows count as often, and nobody can tell them
            apart.
        deletes: Delete files.
    """

    def __init__(self, metadata: TableMetadata, manifests: Manifests, snapshot: Snapshot | None) -> None:
        found: list[ManifestEntry] = []
        self.deletes: list[DeleteFile] = []
        for manifest, entries in manifests.all_entries(manifests.of(snapshot)):
            if manifest.content == ManifestContent.DELETES:
                self.deletes += [_delete_file(entry, metadata) for entry in entries]
            else:
                found += entries
        self._reach = _Reach(self.deletes)
        self.listed = [self._live(entry) for entry in found]
        self.data = {each.path: each for each in self.listed}
        counts = Counter(each.path for each in self.listed)
        self.repeated = frozenset(path for path, count in counts.items() if count > 1)

    def _live(self, entry: ManifestEntry) -> LiveFile:
        number = entry.sequence_number or 0
        return LiveFile(entry.data_file, number, self._reach.of(entry.data_file, number))

    def unneeded_deletes(self, leaving: Collection[str], known: Iterable[DeleteFile]) -> set[str]:
        """Delete files that apply to nothing any more once those data files are gone.

        Args:
            leaving: Paths of data files.
            known: Those that were applied to them, all that might be unneeded; younger ones stay.
        """
        candidates = {each.path for each in known}
        needed = {each.path for path, file in self.data.items() if path not in leaving for each in file.deletes}
        return {each.path for each in self.deletes if each.path in candidates} - needed


class _Reach:
    """Finds the deletes of a data file without comparing it with each."""

    def __init__(self, deletes: Iterable[DeleteFile]) -> None:
        self._everywhere: list[DeleteFile] = []
        self._by_path: dict[str, list[DeleteFile]] = defaultdict(list)
        self._by_partition: dict[str, list[DeleteFile]] = defaultdict(list)
        for each in deletes:
            if each.is_global:
                self._everywhere.append(each)
            elif each.target is not None:
                self._by_path[each.target].append(each)
            else:
                self._by_partition[repr(partition_id(each.file))].append(each)

    def of(self, file: DataFile, sequence_number: int) -> tuple[DeleteFile, ...]:
        if not (self._everywhere or self._by_path or self._by_partition):
            return ()
        partition = partition_id(file)
        candidates = [
            *self._everywhere,
            *self._by_path.get(file.file_path, ()),
            *self._by_partition.get(repr(partition), ()),
        ]
        return tuple(each for each in candidates if each.applies_to(file.file_path, sequence_number, partition))
