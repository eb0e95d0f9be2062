"""What the newest snapshot of an Iceberg table that others write says: partitions, files, figures."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate
from operator import itemgetter
from typing import TYPE_CHECKING

from pyiceberg.manifest import ManifestContent, ManifestEntryStatus
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation, Snapshot, ancestors_of
from pyiceberg.transforms import DayTransform, HourTransform, IdentityTransform, MonthTransform
from pyiceberg.typedef import Record
from pyiceberg.types import DateType, TimestampType, TimestamptzType

from datalake_assets.core.compaction.cost import Rewrite, estimate_of
from datalake_assets.core.compaction.plan import (
    CompactionGroup,
    CompactionPlan,
    CompactionRules,
    LeftAlone,
    again_at,
)
from datalake_assets.core.facts import FileChanges
from datalake_assets.core.files import DataFile
from datalake_assets.core.partitions import FOLDER_ITSELF, PartitionBy, window_of
from datalake_assets.errors import ConfigError, LakeError, LakeUnavailable, TransientStoreError, UnreadableFile
from datalake_assets.feed import Feed
from datalake_assets.lake.iceberg.iceberg_owners import source_of
from datalake_assets.lake.iceberg.iceberg_planning import plan_table, why_too_new
from datalake_assets.lake.iceberg.iceberg_reads import PresentDataset, arrow_schema, stated_footers, told_of
from datalake_assets.lake.iceberg.iceberg_schemas import column_bounds_of, key_of_value
from datalake_assets.lake.iceberg.iceberg_views import path_in_table
from datalake_assets.lake.iceberg.manifests import Manifests, entries_of, manifests_of
from datalake_assets.lake.iceberg.object_reads import LeanIO
from datalake_assets.lake.iceberg.snapshot_files import LiveFile, SnapshotFiles
from datalake_assets.lake.table import Difference, Logged
from datalake_assets.parquet.failed_requests import failed_request

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as ds

__all__ = ["IcebergLook", "name_in_table"]

#: Snapshots that are followed back to the last look; beyond, partitions are told apart by their files.
LINEAGE = 1000
_TIMES = (DateType, TimestampType, TimestamptzType)
_BY: Mapping[type, PartitionBy] = {
    HourTransform: PartitionBy.HOUR,
    DayTransform: PartitionBy.DAY,
    MonthTransform: PartitionBy.MONTH,
}


def _cause(snapshot: Snapshot) -> Operation | None:
    return snapshot.summary.operation if snapshot.summary is not None else None


class IcebergLook:
    """An Iceberg table as it was loaded; implements `TableLook`.

    Args:
        table: The table.
        feed: The feed.
        manifests: Reads its manifests.
    """

    def __init__(self, table: Table, feed: Feed, manifests: Manifests | None = None) -> None:
        self.table, self._feed, self._manifests = table, feed, manifests or Manifests(table.io)
        self._metadata, self._head = table.metadata, table.current_snapshot()
        self._all = SnapshotFiles(table.metadata, self._manifests, self._head)
        self._specs, self._stated = table.metadata.specs(), table.metadata.schema()
        self._live: dict[str, list[LiveFile]] = defaultdict(list)
        names: dict[str, str] = {}
        for file in self._all.data.values():
            at = repr(file.partition)
            if at not in names:
                names[at] = self._key(file.file.spec_id, file.file.partition)
            self._live[names[at]].append(file)
        self._time_field = self._number_of(feed.time_column)
        self._written = self._write_times()
        self._files = {key: tuple(map(self._data_file, files)) for key, files in self._live.items()}
        self._paths = {key: {one.name: each.path for one, each in self._pairs(key)} for key in self._files}

    def _pairs(self, key: str) -> Iterator[tuple[DataFile, LiveFile]]:
        return zip(self._files[key], self._live[key], strict=True)

    def _number_of(self, column: str | None) -> int | None:
        """The id of a column of times; None if there is none of that name."""
        field = next((each for each in self._stated.fields if each.name == column), None)
        return field.field_id if field is not None and isinstance(field.field_type, _TIMES) else None

    def _key(self, spec_id: int, partition: Record) -> str:
        return self._specs[spec_id].partition_to_path(partition, self._stated) or FOLDER_ITSELF

    def _write_times(self) -> list[tuple[int, datetime]]:
        """The numbers of the commits that changed rows, with their times, oldest first."""
        changed = (each for each in self._metadata.snapshots if _cause(each) is not Operation.REPLACE)
        times = sorted((each.sequence_number or 0, _time_of(each)) for each in changed)
        newest = accumulate((at for _, at in times), max)  # clocks may go back
        return list(zip((number for number, _ in times), newest, strict=True))

    def _data_file(self, file: LiveFile) -> DataFile:
        low, high = (None, None)
        if self._time_field is not None:
            low, high = column_bounds_of(file.file, self._metadata, self._time_field)
        return DataFile(
            name=name_in_table(self.table, file.path),
            rows=file.file.record_count,
            size_bytes=file.file.file_size_in_bytes,
            min_time=low,
            max_time=high,
            written_at=self._written_by(file.sequence_number),
        )

    def _written_by(self, sequence_number: int) -> datetime | None:
        """When rows of that number were written, or somewhat later: merged files have the number they were read at."""
        place = bisect_right(self._written, sequence_number, key=itemgetter(0))
        return self._written[place - 1][1] if place else None

    @property
    def version(self) -> str:
        """Implements `TableLook`: the id of the snapshot."""
        return str(self._head.snapshot_id) if self._head is not None else ""

    @cached_property
    def schema(self) -> pa.Schema:
        """Implements `TableLook`."""
        return arrow_schema(self._metadata)

    @property
    def why_not_compacted(self) -> str:
        """Implements `TableLook`."""
        if reason := why_too_new(self._metadata):
            return reason
        if source_of(self._feed).uri:
            return "it was adopted by its metadata, and a commit takes its catalog"
        return ""

    def logged(self, catalog: str) -> Logged:
        """What engines need to read the table; ``catalog`` knows it."""
        return told_of(self.table, self._all, catalog=catalog)

    def partitions(self) -> tuple[str, ...]:
        """Implements `TableLook`."""
        return tuple(sorted(self._files))

    def files(self, key: str) -> Sequence[DataFile]:
        """Implements `TableLook`."""
        return self._files.get(key, ())

    def digest(self, key: str) -> str:
        """Implements `TableLook`: deletes are files, too."""
        names = sorted(path for file in self._live.get(key, ()) for path in (file.path, *_paths(file)))
        return blake2b("\n".join(names).encode(), digest_size=8).hexdigest()

    def last_write(self, key: str) -> datetime | None:
        """Implements `TableLook`."""
        live = self._live.get(key, ())
        numbers = {number for file in live for number in (file.sequence_number, *_numbers(file))}
        return max((at for at in map(self._written_by, numbers) if at is not None), default=None)

    def changes_since(self, version: str) -> Mapping[str, FileChanges] | None:
        """Implements `TableLook`: what snapshots did that are no mere rewriting."""
        newer: list[Snapshot] = []
        for snapshot in ancestors_of(self._head, self._metadata) if self._head is not None else ():
            if str(snapshot.snapshot_id) == version:
                break
            newer.append(snapshot)
            if len(newer) > LINEAGE:
                return None
        else:
            if version or (newer and newer[-1].parent_snapshot_id is not None):
                return None
        found: dict[str, FileChanges] = defaultdict(FileChanges)
        for snapshot in newer:
            if _cause(snapshot) is not Operation.REPLACE:
                self._count(snapshot, found)
        return found

    def _count(self, snapshot: Snapshot, found: dict[str, FileChanges]) -> None:
        files = LeanIO(self.table.io)
        for manifest in manifests_of(snapshot, files):
            if manifest.added_snapshot_id != snapshot.snapshot_id:
                continue
            for entry in entries_of(manifest, files, discard_deleted=False):
                if entry.status == ManifestEntryStatus.EXISTING or entry.snapshot_id != snapshot.snapshot_id:
                    continue
                key = self._key(entry.data_file.spec_id, entry.data_file.partition)
                if manifest.content is not ManifestContent.DATA:
                    # a delete of a table, or of a spec, without partitions may be of any
                    for each in self.partitions() if key == FOLDER_ITSELF else (key,):
                        found[each] = found[each]
                elif entry.status == ManifestEntryStatus.ADDED:
                    found[key] = FileChanges(found[key].added + 1, found[key].removed)
                else:
                    found[key] = FileChanges(found[key].added, found[key].removed + 1)

    def closes_at(self, key: str) -> datetime | None:
        """When no more rows are expected in a partition, by the times that it is made of; None if nobody knows."""
        file = self._live[key][0].file
        for place, field in enumerate(self._specs[file.spec_id].fields):
            value = file.partition[place]
            source = next((each for each in self._stated.fields if each.field_id == field.source_id), None)
            if value is None or source is None or not isinstance(source.field_type, _TIMES):
                continue
            is_date = isinstance(field.transform, IdentityTransform) and isinstance(source.field_type, DateType)
            by = PartitionBy.DAY if is_date else _BY.get(type(field.transform))
            if by is not None:
                return _end_of(int(value), by, lateness=self._feed.lateness)
        return None

    def plan(
        self, key: str, rules: CompactionRules, *, now: datetime, excluded: Mapping[str, str] | None = None
    ) -> CompactionPlan:
        """Implements `TableLook`."""
        files, known = self._files.get(key, ()), {}
        if (reason := why_too_new(self._metadata)) or not files:
            alone = tuple(LeftAlone(file.name, reason) for file in files)
            return CompactionPlan((), alone, estimate_of([], files=len(files)))
        known = {path: name for name, path in self._paths[key].items()}
        last, closes_at = self.last_write(key), self.closes_at(key)
        if last is not None and rules.must_wait(last, now=now):
            alone = tuple(LeftAlone(file.name, "its partition was written to lately") for file in files)
            return CompactionPlan((), alone, estimate_of([], files=len(files)), last + rules.min_partition_age)
        is_over = closes_at is not None and closes_at <= now
        planned = plan_table(
            self.table,
            rules,
            now=now,
            is_closed=lambda _: is_over,
            excluded={
                self._paths[key][name]: why for name, why in (excluded or {}).items() if name in self._paths[key]
            },
            among=list(known),
            files=self._all,
        )
        named = {file.name: file for file in files}
        groups = tuple(
            CompactionGroup(tuple(named[known[file.path]] for file in group.files), group.reason)
            for group in planned.groups
        )
        left = tuple(
            LeftAlone(known[each.name], each.reason, each.unusable)
            for partition in planned.partitions
            for each in partition.left_alone
        )
        unusable = {each.name for each in left if each.unusable}
        usable = [file for file in files if file.name not in unusable]
        rewrites = [_rewrite(group, rules) for group in groups]
        again = again_at(usable, rules, now=now, closes_at=closes_at, last_commit=last)
        return CompactionPlan(groups, left, estimate_of(rewrites, files=len(files)), again)

    def dataset(self, keys: Sequence[str], *, where: ds.Expression | None = None) -> ds.Dataset:  # noqa: ARG002
        """Implements `TableLook`."""
        live = [file for key in keys for file in self._live.get(key, ())]
        return PresentDataset.of(self._metadata, self.table.io, live, repeated=self._all.repeated)

    def paths(self, keys: Sequence[str]) -> set[str]:
        """Implements `TableLook`: with those of deletes, which are part of what is read."""
        live = [file for key in keys for file in self._live.get(key, ())]
        return {path for file in live for path in (file.path, *_paths(file))}

    def footers(self, key: str) -> Mapping[str, str]:
        """Implements `TableLook`."""
        found = stated_footers(self.table.io, self._live.get(key, ()))
        return {name_in_table(self.table, path): reason for path, reason in found.items()}

    def verify(self, keys: Sequence[str], *, deep: bool) -> Iterator[Difference]:
        """Implements `TableLook`."""
        for key in keys:
            for path, size_bytes in self._named(key):
                yield from self._compared(key, path, size_bytes)
            for file in self._live.get(key, ()) if deep else ():
                yield from self._read_whole(key, file)

    def _named(self, key: str) -> Iterable[tuple[str, int]]:
        found = {file.path: file.file.file_size_in_bytes for file in self._live.get(key, ())}
        for file in self._live.get(key, ()):
            found |= {each.path: each.file.file_size_in_bytes for each in file.deletes}
        return found.items()

    def _compared(self, key: str, path: str, size_bytes: int) -> Iterator[Difference]:
        name = name_in_table(self.table, path)
        try:
            size = len(self.table.io.new_input(path))
        except FileNotFoundError:
            yield Difference(key, "missing", name, f"the table's newest snapshot names it, {size_bytes} bytes")
            return
        if size != size_bytes and not path.endswith(".puffin"):  # of which several deletes name a part each
            yield Difference(key, "size", name, f"{size} bytes, the table says {size_bytes}")

    def _read_whole(self, key: str, file: LiveFile) -> Iterator[Difference]:
        if file.why_unusable:
            yield Difference(key, "rows", name_in_table(self.table, file.path), f"not decoded: it {file.why_unusable}")
            return
        try:
            if len(self.table.io.new_input(file.path)) != file.file.file_size_in_bytes:
                return  # told already
            rows = PresentDataset.of(self._metadata, self.table.io, [file])
            for _ in rows.scanner().to_batches():
                pass
        except FileNotFoundError:
            return  # likewise
        except (LakeUnavailable, TransientStoreError):
            raise
        except (OSError, ValueError, LakeError) as error:
            if (failure := failed_request(error, file.path)) is not None:
                raise failure from error
            reason = error.reason if isinstance(error, UnreadableFile) else " ".join(str(error).split())
            yield Difference(key, "rows", name_in_table(self.table, file.path), f"cannot be read: {reason}")


def _paths(file: LiveFile) -> list[str]:
    return [each.path for each in file.deletes]


def _numbers(file: LiveFile) -> list[int]:
    return [each.sequence_number for each in file.deletes]


def name_in_table(table: Table, path: str) -> str:
    """A file's path below the table's folder; whole, if it lies elsewhere."""
    try:
        return path_in_table(table, path)
    except ConfigError:
        return path


def _time_of(snapshot: Snapshot) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=snapshot.timestamp_ms)


def _end_of(value: int, by: PartitionBy, *, lateness: timedelta) -> datetime | None:
    try:
        return window_of(key_of_value(value, by), by).end + lateness
    except (OverflowError, ValueError, ConfigError):  # beyond what Python's calendar has
        return None


def _rewrite(group: CompactionGroup, rules: CompactionRules) -> Rewrite:
    return Rewrite(len(group.files), max(1, -(-group.size_bytes // rules.target_file_bytes)), group.size_bytes)
