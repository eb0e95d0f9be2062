"""What to rewrite in an Iceberg table: the plan of all tables (`core/compaction`) for each partition of each spec.

What is added is Iceberg's: files with deletes are rewritten where enough deletes have gathered, and files of an old
partition spec are moved to the current one.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from pyiceberg.manifest import DataFile as IcebergFile
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.transforms import DayTransform, HourTransform, MonthTransform, YearTransform
from pyiceberg.types import DateType, TimestampType, TimestamptzType

from datalake_assets.core.compaction.plan import CompactionRules, LeftAlone, plan_compaction
from datalake_assets.core.files import DataFile
from datalake_assets.core.wording import files_text
from datalake_assets.errors import LakeError
from datalake_assets.lake.iceberg.catalog_commits import NEWEST_FORMAT, table_text
from datalake_assets.lake.iceberg.manifests import Manifests, schema_of_spec
from datalake_assets.lake.iceberg.snapshot_files import LiveFile, PartitionId, SnapshotFiles

__all__ = ["IsClosed", "PartitionPlan", "RewriteGroup", "TablePlan", "never_closed", "plan_table", "why_too_new"]

_TIMES = (DateType, TimestampType, TimestamptzType)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BY_TIME = (YearTransform, MonthTransform, DayTransform, HourTransform)


@dataclass(frozen=True, slots=True)
class RewriteGroup:
    """Files that are rewritten together.

    Attributes:
        files: In time order.
        reason: Why, for a person.
    """

    files: tuple[LiveFile, ...]
    reason: str

    @property
    def size_bytes(self) -> int:
        """Bytes of the inputs."""
        return sum(file.file.file_size_in_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """What is to be done in one partition of one partition spec.

    Attributes:
        name: As in paths, ``ts_day=2026-01-01``; empty for a table without partitions.
        groups: What is rewritten.
        left_alone: Every other file, with the reason.
        files: How many there are.
        size_bytes: Of all files.
        small_files: How many count as small.
    """

    name: str
    groups: tuple[RewriteGroup, ...]
    left_alone: tuple[LeftAlone, ...]
    files: int
    size_bytes: int
    small_files: int

    @property
    def paths(self) -> set[str]:
        """Of all its data files."""
        taken = {file.path for group in self.groups for file in group.files}
        return taken | {each.name for each in self.left_alone}


@dataclass(frozen=True, slots=True)
class TablePlan:
    """What is to be done in a table.

    Attributes:
        snapshot_id: What was planned on; None for a table without snapshots.
        sequence_number: Of that snapshot.
        partitions: Those that were looked at.
    """

    snapshot_id: int | None
    sequence_number: int
    partitions: tuple[PartitionPlan, ...]

    @property
    def groups(self) -> tuple[RewriteGroup, ...]:
        """All that is rewritten."""
        return tuple(group for partition in self.partitions for group in partition.groups)

    @property
    def paths(self) -> set[str]:
        """Of all data files that were looked at."""
        return {path for partition in self.partitions for path in partition.paths}

    @property
    def files(self) -> int:
        """Data files."""
        return sum(partition.files for partition in self.partitions)

    @property
    def size_bytes(self) -> int:
        """Bytes of data files."""
        return sum(partition.size_bytes for partition in self.partitions)

    @property
    def small_files(self) -> int:
        """Small data files."""
        return sum(partition.small_files for partition in self.partitions)


#: Says whether a partition, by its name, expects no more rows.
IsClosed = Callable[[str], bool]


def why_too_new(metadata: TableMetadata) -> str:
    """Why a table of this format cannot be compacted; empty if it can."""
    if metadata.format_version <= NEWEST_FORMAT:
        return ""
    return f"it has format version {metadata.format_version}, whose rows have ids that a rewrite would lose"


def never_closed(_: str) -> bool:
    """No partition is."""
    return False


def plan_table(
    table: Table,
    rules: CompactionRules,
    *,
    now: datetime,
    is_closed: IsClosed = never_closed,
    only: Callable[[str], bool] = lambda _: True,
    excluded: Mapping[str, str] | None = None,
    among: Collection[str] | None = None,
    manifests: Manifests | None = None,
    files: SnapshotFiles | None = None,
) -> TablePlan:
    """Plans the compaction of the snapshot that ``table`` knows as its newest.

    Args:
        table: The table.
        rules: As for folders; they hold per partition.
        now: The time.
        is_closed: Which partitions end as few files as their bytes allow.
        only: Which partitions are looked at, by name.
        excluded: Paths of the files that must stay, with the reason.
        among: Paths of the data files that are looked at; None for all.
        manifests: Reads them.
        files: Those of that snapshot, if they are known.

    Raises:
        LakeError: The format is too new.
    """
    metadata = table.metadata
    if reason := why_too_new(metadata):
        raise LakeError(table_text(table), reason, cure="compact it with the engine that made it")
    snapshot = table.current_snapshot()
    files = files or SnapshotFiles(metadata, manifests or Manifests(table.io), snapshot)
    planner = _Planner(metadata, files, rules, now=now, excluded=dict(excluded or {}), among=among)
    return TablePlan(
        snapshot_id=snapshot.snapshot_id if snapshot is not None else None,
        sequence_number=(snapshot.sequence_number or 0) if snapshot is not None else 0,
        partitions=tuple(planner.partitions(is_closed, only)),
    )


class _Planner:
    """Plans partition after partition, within what is left of one run's limits."""

    def __init__(
        self,
        metadata: TableMetadata,
        files: SnapshotFiles,
        rules: CompactionRules,
        *,
        now: datetime,
        excluded: Mapping[str, str],
        among: Collection[str] | None,
    ) -> None:
        self._metadata, self._files, self._rules, self._now = metadata, files, rules, now
        self._excluded, self._among = excluded, among
        self._max_files, self._max_bytes = rules.max_files, rules.max_bytes  # left of the run
        self._schema, self._specs = metadata.schema(), metadata.specs()
        self._forgotten = {number for number in self._specs if schema_of_spec(metadata, number) is None}
        self._committed_ms = {each.sequence_number: each.timestamp_ms for each in metadata.snapshots}

    def partitions(self, is_closed: IsClosed, only: Callable[[str], bool]) -> Iterable[PartitionPlan]:
        by_partition: dict[str, list[LiveFile]] = defaultdict(list)
        names: dict[str, tuple[str, PartitionId]] = {}
        known = self._files.data
        chosen = known.values() if self._among is None else (known[path] for path in self._among if path in known)
        for file in chosen:
            key = repr(file.partition)
            by_partition[key].append(file)
            names.setdefault(key, (self._name(file.file), file.partition))
        for key in sorted(by_partition, key=lambda each: names[each][0]):
            name = names[key][0]
            if only(name):
                plan = self._partition(name, by_partition[key], closed=is_closed(name))
                self._max_files -= sum(len(group.files) for group in plan.groups)
                self._max_bytes -= sum(group.size_bytes for group in plan.groups)
                yield plan

    def _name(self, file: IcebergFile) -> str:
        return self._specs[file.spec_id].partition_to_path(file.partition, self._schema)

    def _partition(self, name: str, files: Sequence[LiveFile], *, closed: bool) -> PartitionPlan:
        reasons = ((file.path, self._excluded.get(file.path) or self._why_not(file)) for file in files)
        unusable = {path: reason for path, reason in reasons if reason}
        known = {file.path: file for file in files}
        time_field = self._time_field(files[0].file.spec_id)
        figures = [self._figures(file, time_field) for file in files]
        rules = replace(self._rules, max_files=self._max_files, max_bytes=self._max_bytes)
        plan = plan_compaction(figures, rules, now=self._now, closed=closed, excluded=unusable)
        groups = [RewriteGroup(tuple(known[file.name] for file in group.files), group.reason) for group in plan.groups]
        left = {each.name: each for each in plan.left_alone}
        besides = self._besides([known[name] for name in left if name not in unusable], closed=closed)
        groups = list(self._within_limits([*groups, *besides]))
        taken = {file.path for group in groups for file in group.files}
        small = sum(file.size_bytes < self._rules.small_file_bytes for file in figures)
        return PartitionPlan(
            name=name,
            groups=tuple(groups),
            left_alone=tuple(each for each in left.values() if each.name not in taken),
            files=len(files),
            size_bytes=sum(file.size_bytes for file in figures),
            small_files=small,
        )

    def _why_not(self, file: LiveFile) -> str:
        if file.path in self._files.repeated:
            return "is named twice by the snapshot, so that its rows count twice"
        if file.file.spec_id in self._forgotten:
            return "is of a partition spec whose columns are gone, and forgotten by the table's metadata"
        return file.why_unusable

    def _besides(self, left: Sequence[LiveFile], *, closed: bool) -> Iterable[RewriteGroup]:
        """Files that packing leaves alone, and that are to be rewritten nevertheless."""
        moved = [file for file in left if file.file.spec_id != self._metadata.default_spec_id]
        if moved and (closed or self._rules.force or len(moved) >= self._rules.min_files):
            yield from self._cut(moved, f"{files_text(len(moved))} of an old partition spec")
        deletes = {each.path for file in left for each in file.deletes}
        if deletes and (closed or self._rules.force or len(deletes) >= self._rules.min_files):
            with_deletes = [file for file in left if file.deletes and file not in moved]
            yield from self._cut(with_deletes, f"{files_text(len(deletes), 'delete ')} to apply")

    def _within_limits(self, groups: Iterable[RewriteGroup]) -> Iterable[RewriteGroup]:
        """As many as the run may take."""
        max_files, max_bytes = self._max_files, self._max_bytes
        for group in groups:
            if len(group.files) <= max_files and group.size_bytes <= max_bytes:
                max_files, max_bytes = max_files - len(group.files), max_bytes - group.size_bytes
                yield group

    def _cut(self, files: Sequence[LiveFile], reason: str) -> Iterable[RewriteGroup]:
        """Groups of at most the target's size each: deletes shrink files, and scratch space is bounded."""
        group: list[LiveFile] = []
        size_bytes = 0
        for file in files:
            more = file.file.file_size_in_bytes
            if group and size_bytes + more > self._rules.target_file_bytes:
                yield RewriteGroup(tuple(group), reason)
                group, size_bytes = [], 0
            group.append(file)
            size_bytes += more
        if group:
            yield RewriteGroup(tuple(group), reason)

    def _time_field(self, spec_id: int) -> int | None:
        """The column of time that the table is partitioned by, whose bounds say which files follow each other."""
        for each in self._specs[spec_id].fields:
            source = next((column for column in self._schema.fields if column.field_id == each.source_id), None)
            if source is not None and isinstance(each.transform, _BY_TIME) and isinstance(source.field_type, _TIMES):
                return each.source_id
        return None

    def _figures(self, file: LiveFile, time_field: int | None) -> DataFile:
        stated = file.file
        return DataFile(
            name=stated.file_path,
            rows=stated.record_count,
            size_bytes=stated.file_size_in_bytes,
            min_time=self._moment(stated.lower_bounds, time_field) or self._place(file, time_field),
            max_time=self._moment(stated.upper_bounds, time_field),
            written_at=self._written_at(file),
        )

    def _place(self, file: LiveFile, time_field: int | None) -> datetime | None:
        """Which files follow each other where no time says it: those committed after them. Often their rows do, too."""
        return EPOCH + timedelta(microseconds=file.sequence_number) if time_field is None else None

    def _moment(self, bounds: Mapping[int, bytes] | None, field_id: int | None) -> datetime | None:
        if field_id is None or not bounds or field_id not in bounds:
            return None
        kind = self._schema.find_type(field_id)
        stated: int = struct.unpack("<i" if isinstance(kind, DateType) else "<q", bounds[field_id])[0]
        try:
            return EPOCH + (timedelta(days=stated) if isinstance(kind, DateType) else timedelta(microseconds=stated))
        except OverflowError:  # beyond the year 9999
            return None

    def _written_at(self, file: LiveFile) -> datetime | None:
        """Nothing in a manifest says so; a rule about the age of files goes by the snapshot's."""
        if not self._rules.min_file_age:
            return None
        at = self._committed_ms.get(file.sequence_number)
        return datetime.fromtimestamp(at / 1000, UTC) if at is not None else None
