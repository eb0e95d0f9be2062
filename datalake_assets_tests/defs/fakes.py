"""A lake and a source in memory, which keep the Protocols' promises as far as Dagster can see them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import dagster as dg
import pyarrow as pa
import pyarrow.dataset as ds
from pydantic import PrivateAttr

from datalake_assets.core.batches import Batches, Decode, InMemoryBatches, ReadRequest, SourceBatch
from datalake_assets.core.compaction.compaction_report import CompactionProgress, CompactionReport
from datalake_assets.core.compaction.plan import (
    CompactionGroup,
    CompactionPlan,
    CompactionRequest,
    Estimate,
    LeftAlone,
    rules_of,
)
from datalake_assets.core.facts import PartitionFacts, PlannedPartition
from datalake_assets.core.files import DataFile
from datalake_assets.core.partitions import (
    UNKNOWN_PARTITION,
    PartitionBy,
    key_of,
    version_key,
    version_number,
    window_of,
)
from datalake_assets.core.report.figures import FeedStatistics
from datalake_assets.core.row_texts import QuarantinedRow
from datalake_assets.core.rules import RuleCount
from datalake_assets.core.verdicts import Drift, PartitionFooters, health_of
from datalake_assets.defs.feeds.runner import FeedRunner
from datalake_assets.defs.resources import Lake, LakeResource, SourceResource
from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.table import (
    Difference,
    Expired,
    ExportPlan,
    FeedTotals,
    LakeTable,
    Progress,
    Reconciliation,
    Repair,
    TableSnapshot,
    WriteReport,
)
from datalake_assets.policies import Freshness, Rule
from datalake_assets.settings import Settings
from datalake_assets.sources.base import SourceObject, SourceSystem
from datalake_assets.sources.ksqldb.declaration import KsqlDBSource
from datalake_assets.sources.systems import no_stand_in

SCHEMA = pa.schema([("id", pa.int64()), ("rowtime", pa.timestamp("ms", "UTC"))])
START = datetime(2026, 1, 1, tzinfo=UTC)


def stream(name: str = "clicks", **changes: object) -> Feed:
    source = KsqlDBSource(object=name.upper())
    return Feed(**{"name": name, "kind": FeedKind.STREAM, "source": source, "start": START.date(), **changes})


def table(name: str = "users", **changes: object) -> Feed:
    return Feed(**{"name": name, "kind": FeedKind.TABLE, "source": KsqlDBSource(object=name.upper()), **changes})


def rows(*times: datetime) -> pa.RecordBatch:
    return pa.record_batch([range(len(times)), list(times)], schema=SCHEMA)


@dataclass(frozen=True)
class MemorySnapshot:
    """Some partitions of a table in memory."""

    table: "MemoryTable"
    keys: tuple[str, ...]

    @property
    def feed(self) -> Feed:
        return self.table.feed

    def only(self, key: str) -> "MemorySnapshot":
        return MemorySnapshot(self.table, (key,))

    def report(self, key: str) -> PartitionFacts | None:
        return self.table.report(key)

    def health(
        self, key: str, request: CompactionRequest, *, excluded: Mapping[str, str] | None = None
    ) -> PlannedPartition:
        return self.table.health(key, request, excluded=excluded)

    def footers(self, key: str) -> PartitionFooters:
        return self.table.footers(key)

    def dataset(self, *, where: ds.Expression | None = None) -> ds.Dataset:
        read = ds.dataset(self.table.scan(partitions=self.keys).read_all())
        return read if where is None else read.filter(where)

    def contents(self) -> Mapping[str, str]:
        return {key: str(self.table.data[key].num_rows) for key in self.keys if key in self.table.data}

    def has_expired(self) -> bool:
        return False


@dataclass
class MemoryTable:
    """One feed's data: rows by partition key; ``files_hold`` overrides what a scan finds.

    Every partition is one file, unless ``small`` says how many small ones it is; a compaction makes one of them, leaves
    those in ``left`` alone, and fails as ``broken`` says.
    """

    feed: Feed
    data: dict[str, pa.Table] = field(default_factory=dict)
    files_hold: dict[str, int] = field(default_factory=dict)
    next_version: int = 1
    generation: int = 0
    keep: int = 2
    repaired: int = 0
    expired: int = 0
    run_ids: list[str] = field(default_factory=list)
    put_aside: list[QuarantinedRow] = field(default_factory=list)
    small: dict[str, int] = field(default_factory=dict)
    left: dict[str, tuple[LeftAlone, ...]] = field(default_factory=dict)
    broken: dict[str, BaseException] = field(default_factory=dict)
    compacted: list[tuple[str, CompactionRequest, str]] = field(default_factory=list)
    drifts: dict[str, tuple[Drift, ...]] = field(default_factory=dict)
    broken_rows: dict[tuple[str, str], int] = field(default_factory=dict)
    counted: list[str] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)

    def plan(self, partitions: Sequence[str] | None = None, *, new_epoch: bool = False) -> ExportPlan:
        request = ReadRequest(new_epoch=new_epoch)
        if self.feed.kind is FeedKind.TABLE:
            if partitions is None:
                self.next_version += 1
                return ExportPlan((version_key(self.next_version - 1),), request)
            (key,) = partitions
            if version_number(key) > self.next_version:
                raise ConfigError(f"the next version of table {self.feed.name!r} is v{self.next_version}")
            self.next_version = max(self.next_version, version_number(key) + 1)
            return ExportPlan((key,), request)
        by = PartitionBy(self.feed.partition_by)
        keys = tuple(partitions or [key_of(datetime.now(UTC), by)])
        for key in keys:
            window_of(key, by)
        return ExportPlan(keys, request)

    def write(
        self,
        batches: Batches,
        *,
        partitions: Sequence[str],
        run_id: str,
        allow_shrink: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> WriteReport:
        self.run_ids.append(run_id)
        if self.feed.kind is FeedKind.TABLE and partitions[0] in self.data:
            note = f"version {partitions[0]} was committed before and is kept as it is"
            return self._reported(partitions, {}, 0, (), (note,))
        sent = list(batches)
        rejected = [row for batch in sent for row in batch.rejected]
        self.put_aside += [QuarantinedRow.of(row, epoch=None) for row in rejected]
        read = pa.Table.from_batches([batch.rows for batch in sent], SCHEMA)
        if on_progress:
            on_progress(Progress(rows=read.num_rows, bytes_written=read.nbytes))
        before = {key: data.num_rows for key, data in self.data.items()}
        split = self._split(read, partitions)
        self.generation += any(key not in self.data or not data.equals(self.data[key]) for key, data in split.items())
        self.data |= split
        removed = ()
        if self.feed.kind is FeedKind.TABLE:
            removed = self.partitions()[: -self.keep]
            for key in removed:
                del self.data[key]
            self.gone |= set(removed)
        batches.acknowledge()
        return self._reported(partitions, before, read.num_rows, removed, (), quarantined=len(rejected))

    def written(self, partitions: Sequence[str]) -> MemorySnapshot:
        return self.snapshot(partitions)

    def check_replay(self) -> None:
        raise ConfigError(f"feed {self.feed.name!r} is pulled whole")

    def replay(self, batches: Batches, decode: Decode | None, *, run_id: str = "") -> WriteReport:
        self.check_replay()
        raise AssertionError

    @property
    def is_written_by_us(self) -> bool:
        return True

    @property
    def is_listed_plainly(self) -> bool:
        return False

    def snapshot(self, partitions: Sequence[str] | None = None) -> MemorySnapshot:
        current = self.partitions() if self.feed.kind is FeedKind.STREAM else self.partitions()[-1:]
        return MemorySnapshot(self, current if partitions is None else tuple(partitions))

    def partitions(self) -> tuple[str, ...]:
        return tuple(sorted(self.data, key=lambda key: (len(key), key)))

    def totals(self) -> FeedTotals | None:
        return None

    def figures(self, request: CompactionRequest, *, threads: Executor | None = None) -> FeedStatistics:
        return FeedStatistics(self.feed, tuple(self.health(key, request) for key in self.partitions()))

    def quarantined(self) -> Iterator[tuple[str, QuarantinedRow]]:
        return ((UNKNOWN_PARTITION, row) for row in self.put_aside)

    def report(self, key: str) -> PartitionFacts | None:
        return self._report(key, {}) if key in self.data else None

    def scan(
        self,
        *,
        columns: Sequence[str] | None = None,
        where: ds.Expression | None = None,
        partitions: Sequence[str] | None = None,
    ) -> pa.RecordBatchReader:
        keys = self.snapshot(partitions).keys
        if columns == []:
            count = sum(self.files_hold.get(key, self.data[key].num_rows) for key in keys)
            empty = pa.table({"x": pa.nulls(count)}).select([])
            return empty.to_reader()
        data = pa.concat_tables([SCHEMA.empty_table(), *(self.data[key] for key in keys if key in self.data)])
        if where is not None:
            data = data.filter(where)
        return (data.select(columns) if columns else data).to_reader()

    def compaction_plan(
        self, key: str, request: CompactionRequest, *, excluded: Mapping[str, str] | None = None
    ) -> CompactionPlan:
        if key in self.broken:
            raise self.broken[key]
        files = tuple(DataFile(f"data_{each}.parquet", 1, 100) for each in range(self._files(key)))
        groups = (CompactionGroup(files, "all are small"),) if len(files) > 1 else ()
        after = 1 if groups else len(files)
        estimate = Estimate(len(files), after, 100 * len(files) if groups else 0, len(files) - after, 0.5, 0.25)
        return CompactionPlan(groups, self.left.get(key, ()), estimate)

    def compact(
        self,
        key: str,
        request: CompactionRequest,
        *,
        run_id: str = "",
        on_plan: Callable[[CompactionPlan], None] | None = None,
        on_progress: Callable[[CompactionProgress], None] | None = None,
    ) -> CompactionReport:
        self.compacted.append((key, request, run_id))
        if key in self.broken:
            raise self.broken[key]
        if on_plan:
            on_plan(self.compaction_plan(key, request))
        before, rows = self._files(key), self.data[key].num_rows
        if on_progress:
            on_progress(CompactionProgress(bytes_done=100 * rows, bytes_planned=100 * rows))
        self.small.pop(key, None)
        done = before > 1
        return CompactionReport(
            key=key,
            files_before=before,
            files_after=min(before, 1),
            files_compacted=before if done else 0,
            files_removed=before - min(before, 1),
            bytes_before=150 * rows if done else 100 * rows,
            bytes_after=100 * rows,
            rows=rows if done else 0,
            kernel="reencode" if done else "",
            compaction_time_ms=250 if done else 0,
            small_files_remaining=min(before, 1),
            skipped=self.left.get(key, ()),
            partition=self._report(key, {}),
            health=self.health(key, request),
        )

    def health(
        self, key: str, request: CompactionRequest, *, excluded: Mapping[str, str] | None = None
    ) -> PlannedPartition:
        plan = self.compaction_plan(key, request, excluded=excluded)
        rows, number = self.data[key].num_rows if key in self.data else 0, self._files(key)
        each = [rows // number + (index < rows % number) for index in range(number)]
        files = tuple(DataFile(f"data_{index}.parquet", held, 100 * held) for index, held in enumerate(each))
        return health_of(key, files, plan, rules_of(self.feed, request))

    def footers(self, key: str) -> PartitionFooters:
        rows = self.files_hold.get(key, self.data[key].num_rows)
        return PartitionFooters(key, self._files(key), rows, len(SCHEMA), self.drifts.get(key, ()))

    def count_broken(
        self, rules: Sequence[Rule], keys: Sequence[str] | None, *, seen: TableSnapshot | None = None
    ) -> Iterator[tuple[Rule, RuleCount]]:
        for key in keys if keys is not None else self.partitions():
            self.counted.append(key)
            for rule in rules:
                broken = self.broken_rows.get((rule.check_name, key), 0)
                yield rule, RuleCount(key, self.data[key].num_rows, broken)

    def verify(self, *, deep: bool = False, partitions: Sequence[str] | None = None) -> Iterator[Difference]:
        return iter(())

    def look_again(self, *, run_id: str = "", on_progress: Callable[[int, int], None] | None = None) -> Reconciliation:
        return Reconciliation()

    def removed(self, keys: Iterable[str]) -> tuple[str, ...]:
        return tuple(key for key in keys if key in self.gone)

    def repair(self, *, run_id: str = "") -> Repair:
        self.repaired += 1
        return Repair(finished=1)

    def expire(self) -> Expired:
        self.expired += 1
        return Expired(snapshots=3, files=5, orphans=1)

    def rebuild_summary(self, figures: FeedStatistics) -> None: ...

    def purge(self) -> int:
        deleted = len(self.data)
        self.data.clear()
        return deleted

    def _split(self, read: pa.Table, partitions: Sequence[str]) -> dict[str, pa.Table]:
        if self.feed.kind is FeedKind.TABLE:
            return {partitions[0]: read}
        by = PartitionBy(self.feed.partition_by)
        keys = [key_of(time, by) for time in read["rowtime"].to_pylist()]
        return {key: read.filter(pa.array([each == key for each in keys])) for key in set(keys)}

    def _reported(
        self,
        partitions: Sequence[str],
        before: dict[str, int],
        rows_read: int,
        removed: Sequence[str],
        notes: Sequence[str],
        *,
        quarantined: int = 0,
    ) -> WriteReport:
        now = {key: data.num_rows for key, data in self.data.items()}
        changed = {key for key in now if before and now[key] != before.get(key, 0)} or (set() if notes else set(now))
        keys = sorted({*partitions, *changed} if self.feed.kind is FeedKind.STREAM else partitions)
        known = before if before or not notes else now
        reports = tuple(self._report(key, known) for key in keys)
        requests = {"put": 5, "get": 2, "list": 1, "delete": 0}
        return WriteReport(
            reports,
            rows_read + quarantined,
            quarantined,
            0,
            SCHEMA,
            requests,
            removed=tuple(removed),
            notes=tuple(notes),
        )

    def _files(self, key: str) -> int:
        held = self.data[key].num_rows if key in self.data else 0
        return self.small.get(key, int(held > 0))

    def _report(self, key: str, before: dict[str, int]) -> PartitionFacts:
        data = self.data.get(key, SCHEMA.empty_table())
        times = [] if self.feed.kind is FeedKind.TABLE else data["rowtime"].to_pylist()
        added = data.num_rows - before.get(key, 0)
        return PartitionFacts(
            key=key,
            rows_added=added,
            files_added=int(added != 0),
            rows=data.num_rows,
            files=self._files(key),
            small_files=self._files(key),
            size_bytes=100 * data.num_rows,
            min_time=min(times, default=None),
            max_time=max(times, default=None),
            position={"rows": data.num_rows},
            generation=self.generation,
        )


class MemoryLake(Lake):
    """A lake whose tables are in memory; its registry is a real one, on disk."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.tables: dict[str, MemoryTable] = {}
        self.sent: dict[str, list[datetime]] = {}
        self.broken: dict[str, BaseException] = {}
        self.opened = 0
        self.closed = 0

    def table(self, feed: Feed) -> LakeTable:
        return self.memory(feed)

    def memory(self, feed: Feed) -> MemoryTable:
        return self.tables.setdefault(feed.name, MemoryTable(feed))


class MemoryLakeResource(LakeResource):
    """The same lake in every run."""

    _memory: MemoryLake = PrivateAttr()

    lake: dg.ResourceDependency[MemoryLake]

    def open(self) -> Lake:
        return self.lake


@dataclass
class MemorySystem:
    """A source that sends what the lake's ``sent`` says, or fails as ``broken`` says."""

    lake: MemoryLake

    def read(self, feed: Feed, request: ReadRequest) -> Batches:
        if feed.name in self.lake.broken:
            raise self.lake.broken[feed.name]
        return InMemoryBatches((SourceBatch(rows(*self.lake.sent.get(feed.name, []))),), request=request)

    def discover(self) -> Iterator[SourceObject]:
        return iter(())

    def check(self, feed: Feed) -> None: ...

    def count(self, feed: Feed) -> None: ...

    def close(self) -> None:
        self.lake.closed += 1


class MemorySource(SourceResource):
    """Connects to the lake's own rows, and counts connections."""

    @contextmanager
    def connect(self, settings: Settings, lake: Lake) -> Iterator[SourceSystem]:
        assert isinstance(lake, MemoryLake)
        lake.opened += 1
        system = MemorySystem(lake)
        try:
            yield system
        finally:
            system.close()


def resources(lake: MemoryLake) -> dict[str, object]:
    lake_resource = MemoryLakeResource(settings=lake.settings, lake=lake)
    return {
        "lake": lake_resource,
        "ksqldb": MemorySource(type="ksqldb", settings=lake.settings, lake=lake_resource, stand_in=no_stand_in),
    }


def runner(lake: MemoryLake, *feeds: Feed) -> FeedRunner:
    return FeedRunner(feeds, lake, resources(lake))


def days_ago(days: int) -> datetime:
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days)


FRESH = Freshness(max_commit_age=timedelta(hours=1), max_event_age=timedelta(hours=2))
