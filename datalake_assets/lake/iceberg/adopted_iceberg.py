"""An Apache Iceberg table that others write, as a table of the lake: read, planned, compacted and expired where it is.

A partition is what the table's own paths call it, ``ts_day=2026-01-01``; "." is a table without partitions. Its rows
are those of the newest snapshot of the main branch, with all deletes applied. Compaction is that of our own tables:
``replace`` commits, each of which holds only if what it replaces is still there.
"""

from __future__ import annotations

import re
import time
import weakref
from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate
from operator import itemgetter
from typing import TYPE_CHECKING

from pyiceberg.manifest import ManifestContent, ManifestEntryStatus
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.snapshots import Operation, Snapshot, ancestors_of
from pyiceberg.transforms import DayTransform, HourTransform, IdentityTransform, MonthTransform
from pyiceberg.typedef import Record
from pyiceberg.types import DateType, TimestampType, TimestamptzType
from pyiceberg.utils.properties import property_as_bool

from datalake_assets.core.compaction.cost import Rewrite, estimate_of
from datalake_assets.core.compaction.plan import (
    CompactionGroup,
    CompactionPlan,
    CompactionRequest,
    CompactionRules,
    LeftAlone,
    again_at,
    rules_of,
)
from datalake_assets.core.facts import Expired, FileChanges
from datalake_assets.core.files import DataFile
from datalake_assets.core.partitions import FOLDER_ITSELF, PartitionBy, window_of
from datalake_assets.errors import ConfigError, CorruptLake, LakeError, UnreadableFile
from datalake_assets.feed import Feed
from datalake_assets.lake.adopted.logged_table import LoggedTable, facts_of, planned_health
from datalake_assets.lake.iceberg.iceberg_catalogs import talking
from datalake_assets.lake.iceberg.iceberg_compaction import IcebergCompaction, compact_table, rewrite_settings
from datalake_assets.lake.iceberg.iceberg_expiry import expire_snapshots, remove_orphans
from datalake_assets.lake.iceberg.iceberg_owners import check_owner, load_adopted, source_of
from datalake_assets.lake.iceberg.iceberg_planning import never_closed, plan_table, why_too_new
from datalake_assets.lake.iceberg.iceberg_reads import PresentDataset, arrow_schema, stated_footers
from datalake_assets.lake.iceberg.iceberg_schemas import column_bounds_of, key_of_value
from datalake_assets.lake.iceberg.iceberg_views import path_in_table
from datalake_assets.lake.iceberg.present_rows import open_native
from datalake_assets.lake.iceberg.snapshot_files import LiveFile, SnapshotFiles
from datalake_assets.lake.iceberg.transactions import Manifests
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import CompactionProgress, CompactionReport, Difference

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as ds

__all__ = ["AdoptedIceberg", "IcebergLook"]

#: Looks that are kept at hand, of tables that have not changed since: all files of a table, a kilobyte each.
LOOKS = 8
#: Snapshots that are followed back to the last look; beyond, partitions are told apart by their files.
LINEAGE = 1000
#: Times that a table is loaded whose manifests went away while they were read: it was expired meanwhile.
ATTEMPTS = 3
#: How long snapshots stay where the table does not say: a week.
SNAPSHOTS_MS = 168 * 3_600_000
#: How old a file of ours is that nothing names before it is deleted; Iceberg's own default.
ORPHANS_AFTER = timedelta(days=3)
_OURS = re.compile(r"compacted-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}-\d{5,}\.parquet")
_TIMES = (DateType, TimestampType, TimestamptzType)
_BY: Mapping[type, PartitionBy] = {
    HourTransform: PartitionBy.HOUR,
    DayTransform: PartitionBy.DAY,
    MonthTransform: PartitionBy.MONTH,
}
_looks: weakref.WeakKeyDictionary[Store, OrderedDict[tuple[str, str, str], IcebergLook]] = weakref.WeakKeyDictionary()


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
            name=_name(self.table, file.path),
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
        for manifest in snapshot.manifests(self.table.io):
            if manifest.added_snapshot_id != snapshot.snapshot_id:
                continue
            for entry in manifest.fetch_manifest_entry(self.table.io, discard_deleted=False):
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
        return {_name(self.table, path): reason for path, reason in found.items()}

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
        name = _name(self.table, path)
        try:
            size = len(self.table.io.new_input(path))
        except FileNotFoundError:
            yield Difference(key, "missing", name, f"the table's newest snapshot names it, {size_bytes} bytes")
            return
        if size != size_bytes and not path.endswith(".puffin"):  # of which several deletes name a part each
            yield Difference(key, "size", name, f"{size} bytes, the table says {size_bytes}")

    def _read_whole(self, key: str, file: LiveFile) -> Iterator[Difference]:
        if file.why_unusable:
            yield Difference(key, "rows", _name(self.table, file.path), f"not decoded: it {file.why_unusable}")
            return
        try:
            with open_native(self.table.io, file.path) as source:
                if source.size() != file.file.file_size_in_bytes:
                    return  # told already
            rows = PresentDataset.of(self._metadata, self.table.io, [file])
            for _ in rows.scanner().to_batches():
                pass
        except FileNotFoundError:
            return  # likewise
        except (OSError, ValueError, LakeError) as error:
            reason = error.reason if isinstance(error, UnreadableFile) else " ".join(str(error).split())
            yield Difference(key, "rows", _name(self.table, file.path), f"cannot be read: {reason}")


def _paths(file: LiveFile) -> list[str]:
    return [each.path for each in file.deletes]


def _numbers(file: LiveFile) -> list[int]:
    return [each.sequence_number for each in file.deletes]


def _name(table: Table, path: str) -> str:
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


class AdoptedIceberg(LoggedTable):
    """An adopted Iceberg table; implements `LakeTable`."""

    def take_look(self) -> IcebergLook:
        """Implements `LoggedTable`; of a table that has not changed, the look of before."""
        store, feed = self._folder.store, self.feed
        known = _looks.setdefault(store, OrderedDict())
        for _ in range(ATTEMPTS):
            table = load_adopted(store, source_of(feed))
            at = (feed.model_dump_json(), str(table.metadata.table_uuid), table.metadata_location)
            look = known.get(at)
            if look is not None:
                look.table = table  # access to its files may be lent, and end
                return look
            try:
                look = IcebergLook(table, feed)
            except FileNotFoundError:
                continue
            known[at] = look
            while len(known) > LOOKS:
                known.popitem(last=False)
            return look
        raise CorruptLake(source_of(feed).where, "its metadata names manifests that are not there")

    def compact(
        self,
        key: str,
        request: CompactionRequest,
        *,
        run_id: str = "",  # noqa: ARG002  the protocol's
        on_plan: Callable[[CompactionPlan], None] | None = None,
        on_progress: Callable[[CompactionProgress], None] | None = None,
    ) -> CompactionReport:
        """Implements `LakeTable`: ``replace`` commits in the table's catalog.

        Raises:
            ConfigError: It was adopted without its catalog.
            FolderTaken: It is another lake's by now.
            LakeError: Its format is too new; or the catalog or the store failed: what was committed stays.
        """
        began, store, look = time.monotonic(), self._folder.store, self.take_look()
        rules, now = rules_of(self.feed, request), store.now()
        plan = look.plan(key, rules, now=now)
        if on_plan is not None:
            on_plan(plan)
        if reason := look.why_not_compacted:
            raise LakeError(source_of(self.feed).where, f"it is not compacted: {reason}", cure=_cure(look, self.feed))
        done, bytes_planned = IcebergCompaction(), sum(group.size_bytes for group in plan.groups)
        if plan.groups:
            table = load_adopted(store, source_of(self.feed))
            check_owner(store, self.feed, table)
            done = self._compacted(table, key, rules, look)
        if on_progress is not None:
            on_progress(CompactionProgress(bytes_planned, bytes_planned))
        return self._report(key, request, done, look, began)

    def _compacted(self, table: Table, key: str, rules: CompactionRules, look: IcebergLook) -> IcebergCompaction:
        policy, closes_at, now = self.feed.compaction, look.closes_at(key), self._folder.store.now()
        is_over = closes_at is not None and closes_at <= now
        settings = rewrite_settings(
            table,
            rules,
            row_group_bytes=self.feed.format.row_group_bytes,
            verify=policy.verify == "full",
            sort_by=policy.sort_by,
        )
        name = "" if key == FOLDER_ITSELF else key
        with talking(self._folder.store, where=source_of(self.feed).where):
            return compact_table(
                table,
                rules,
                settings,
                now=now,
                is_closed=(lambda _: True) if is_over else never_closed,
                only=lambda partition: partition == name,
            )

    def _report(
        self, key: str, request: CompactionRequest, done: IcebergCompaction, before: IcebergLook, began: float
    ) -> CompactionReport:
        after, default = self.take_look(), CompactionRequest(environment=request.environment)
        rules = rules_of(self.feed, default)
        failed = tuple(LeftAlone(_name(after.table, path), why, unusable=True) for path, why in done.failed.items())
        plan = after.plan(
            key, rules, now=self._folder.store.now(), excluded={each.name: each.reason for each in failed}
        )
        old, new = before.files(key), after.files(key)
        there = {file.name for file in old}
        skipped = after.plan(key, rules_of(self.feed, request), now=self._folder.store.now()).left_alone
        return CompactionReport(
            key=key,
            files_before=len(old),
            files_after=len(new),
            files_compacted=done.files_compacted,
            files_removed=len(old) - len(new),
            bytes_before=sum(file.size_bytes for file in old),
            bytes_after=sum(file.size_bytes for file in new),
            rows=done.rows,
            kernel=_kernel(done),
            compaction_time_ms=round(1000 * (time.monotonic() - began)),
            small_files_remaining=sum(file.size_bytes < rules.small_file_bytes for file in new),
            skipped=tuple(each for each in (*skipped, *failed) if each.name in there),
            partition=facts_of(after, self.feed, key),
            health=planned_health(after, self.feed, key, plan, rules),
            failed=failed,
            blocked=failed,
        )

    def expire(self, *, all_past: bool = False) -> Expired:
        """Implements `LakeTable`: snapshots that are older than the table keeps them, with the files only they name.

        What a branch or a tag keeps stays. Files that nothing names stay, too, unless an interrupted compaction of ours
        left them: a commit of another writer may be about to name them.
        """
        if not source_of(self.feed).table:
            return Expired()
        store, now = self._folder.store, self._folder.store.now()
        table = load_adopted(store, source_of(self.feed))
        if not property_as_bool(table.properties, "gc.enabled", True) or why_too_new(table.metadata):
            return Expired()
        check_owner(store, self.feed, table)
        stays_ms = 0.0 if all_past else float(table.properties.get(TableProperties.MAX_SNAPSHOT_AGE_MS, SNAPSHOTS_MS))
        age = timedelta(milliseconds=stays_ms)
        keep_last = 1 if all_past else int(table.properties.get(TableProperties.MIN_SNAPSHOTS_TO_KEEP, "1"))
        with talking(store, where=source_of(self.feed).where):
            gone = expire_snapshots(table, older_than=now - age, keep_last=keep_last, now=now)
            ours = remove_orphans(table, older_than=now - ORPHANS_AFTER, now=now, only=_is_ours)
        return Expired(len(gone.snapshots), len(gone.files), len(ours.removed))


def _is_ours(path: str) -> bool:
    """Whether a compaction of ours wrote a file: one that was killed before its commit leaves such."""
    return _OURS.fullmatch(path.rpartition("/")[2]) is not None


def _kernel(done: IcebergCompaction) -> str:
    if done.copied and done.encoded:
        return "mixed"
    return "concat" if done.copied else "reencode" if done.encoded else ""


def _cure(look: IcebergLook, feed: Feed) -> str:
    if why_too_new(look.table.metadata):
        return "compact it with the engine that writes it"
    return f"remove feed {feed.name!r}, and adopt 'iceberg:NAMESPACE.TABLE' with --catalog"
