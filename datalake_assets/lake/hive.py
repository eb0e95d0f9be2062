"""Feeds as plain Parquet folders in Hive layout, made exact by a manifest per partition.

How healthy a partition is, from its manifest alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from datalake_assets.core.batches import Batches, ReadRequest
from datalake_assets.core.compaction.plan import CompactionPlan, CompactionRequest, rules_of
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partitions import TimeWindow, key_of, keys_in, version_key, version_number, window_of
from datalake_assets.core.rules import RuleCount
from datalake_assets.core.verdicts import PartitionFooters, PartitionHealth, health_of
from datalake_assets.errors import CommitConflict, ConfigError
from datalake_assets.feed import Feed, FeedKind
from datalake_assets.lake import compaction
from datalake_assets.lake.export_commits import Export
from datalake_assets.lake.export_kinds import OffsetsExport, SnapshotExport, WindowExport
from datalake_assets.lake.inspection import repair, verify
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.swap import retried
from datalake_assets.lake.table import (
    CompactionProgress,
    CompactionReport,
    Difference,
    ExportPlan,
    PartitionReport,
    Progress,
    Repair,
    WriteReport,
)
from datalake_assets.policies import Rule

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as ds

__all__ = ["HiveTable", "partition_health"]


def partition_health(
    folder: FeedFolder,
    key: str,
    manifest: Manifest,
    request: CompactionRequest,
    *,
    excluded: Mapping[str, str] | None = None,
) -> PartitionHealth:
    """What a partition amounts to, and what its compaction policy would do.

    Args:
        folder: The feed.
        key: Partition key.
        manifest: Its manifest.
        request: The installation's compaction.
        excluded: Files that no compaction can take, with the reason.
    """
    rules = rules_of(folder.feed, request)
    plan = compaction.plan_of(folder, key, manifest, rules, dict(excluded or {}))
    last = max((commit.at for commit in manifest.history if commit.kind != "compact"), default=None)
    return replace(health_of(key, manifest.files, plan, rules), last_write=last)


#: Times that a write reads the source again because another writer landed the same rows meanwhile.
ATTEMPTS = 5


class HiveTable:
    """A feed's data as Parquet files in Hive layout; implements `LakeTable`.

    Args:
        store: The lake.
        feed: The feed.
    """

    def __init__(self, store: Store, feed: Feed) -> None:
        self._folder = FeedFolder(store, feed)

    @property
    def feed(self) -> Feed:
        """See `LakeTable`."""
        return self._folder.feed

    @property
    def _export(self) -> type[Export]:
        if self.feed.kind is FeedKind.TABLE:
            return SnapshotExport
        return OffsetsExport if self.feed.ksqldb.mode == "offsets" else WindowExport

    def plan(self, partitions: Sequence[str] | None = None, *, new_epoch: bool = False) -> ExportPlan:
        """See `LakeTable`."""
        if self.feed.kind is FeedKind.TABLE:
            return ExportPlan((self._version(partitions),), ReadRequest())
        keys = tuple(partitions) if partitions else self._catch_up()
        window = self._window(keys)
        if self._export is OffsetsExport:
            state = self._folder.state.load()
            return ExportPlan(keys, ReadRequest(start_offsets=dict(state.hint), new_epoch=new_epoch))
        return ExportPlan(keys, ReadRequest(window=window, new_epoch=new_epoch))

    def write(
        self,
        batches: Batches,
        *,
        partitions: Sequence[str],
        run_id: str,
        allow_shrink: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> WriteReport:
        """See `LakeTable`."""
        store = self._folder.store
        store.probe()
        before = dict(store.requests)

        def run() -> WriteReport:
            return self._export(
                self._folder, batches, tuple(partitions), run_id, allow_shrink=allow_shrink, on_progress=on_progress
            ).run()

        report = retried(run, attempts=ATTEMPTS, on=(CommitConflict,))
        batches.acknowledge()
        self._folder.summary.merge(report.partitions, removed=report.removed, at=store.now())
        requests: dict[str, int] = {kind: count - before[kind] for kind, count in store.requests.items()}
        return replace(report, requests=requests)

    def partitions(self) -> tuple[str, ...]:
        """See `LakeTable`."""
        if self.feed.kind is FeedKind.TABLE:
            return self._folder.state.load().keys
        return self._folder.partition_keys()

    def report(self, key: str) -> PartitionReport | None:
        """See `LakeTable`."""
        manifest = self._folder.log(key).load().manifest
        return self._folder.report(key, manifest) if manifest.generation else None

    def scan(
        self,
        *,
        columns: Sequence[str] | None = None,
        where: ds.Expression | None = None,
        partitions: Sequence[str] | None = None,
    ) -> pa.RecordBatchReader:
        """See `LakeTable`."""
        from datalake_assets.lake.scan import scan  # noqa: PLC0415  pyarrow.dataset imports pandas, exports need neither

        return scan(self._folder, columns=columns, where=where, partitions=partitions)

    def compaction_plan(
        self, key: str, request: CompactionRequest, *, excluded: Mapping[str, str] | None = None
    ) -> CompactionPlan:
        """See `LakeTable`."""
        return compaction.plan(self._folder, key, request, excluded=excluded)

    def compact(
        self,
        key: str,
        request: CompactionRequest,
        *,
        run_id: str = "",
        on_progress: Callable[[CompactionProgress], None] | None = None,
    ) -> CompactionReport:
        """See `LakeTable`."""
        return compaction.compact(self._folder, key, request, run_id=run_id, on_progress=on_progress)

    def health(
        self, key: str, request: CompactionRequest, *, excluded: Mapping[str, str] | None = None
    ) -> PartitionHealth:
        """See `LakeTable`."""
        return partition_health(self._folder, key, self._folder.log(key).load().manifest, request, excluded=excluded)

    def footers(self, key: str) -> PartitionFooters:
        """See `LakeTable`."""
        from datalake_assets.lake.scan import partition_footers  # noqa: PLC0415  likewise

        return partition_footers(self._folder, key)

    def count_broken(self, rules: Sequence[Rule], keys: Sequence[str] | None) -> Iterator[tuple[Rule, RuleCount]]:
        """See `LakeTable`."""
        from datalake_assets.lake.broken_rules import count_broken  # noqa: PLC0415  imports DuckDB

        return count_broken(self._folder, rules, keys)

    def verify(self, *, deep: bool = False, partitions: Sequence[str] | None = None) -> Iterator[Difference]:
        """See `LakeTable`."""
        return verify(self._folder, deep=deep, partitions=partitions)

    def repair(self) -> Repair:
        """See `LakeTable`."""
        return repair(self._folder)

    def _window(self, keys: Sequence[str]) -> TimeWindow:
        by = self._folder.by
        if by is None:
            raise ConfigError(f"feed {self.feed.name!r} is a table and has versions, not time partitions")
        windows = [window_of(key, by) for key in keys]
        window = TimeWindow(windows[0].start, windows[-1].end)
        if list(keys_in(window, by)) != list(keys):
            raise ConfigError(f"partitions must be contiguous and in order; {keys[0]!r} to {keys[-1]!r} are not")
        if window.end <= self.feed.start_time:
            raise ConfigError(f"{keys[0]!r} lies before the start of feed {self.feed.name!r}, {self.feed.start}")
        if windows[-1].start > self._folder.store.now():
            raise ConfigError(f"{keys[-1]!r} lies in the future; the current partition is the last one")
        return window

    def _catch_up(self) -> tuple[str, ...]:
        """An ``offsets`` feed lands rows wherever they belong, so its current partition stands for all; a ``pull`` feed
        goes from as far back as late rows may come to the current partition.
        """
        by, now = self._folder.by, self._folder.store.now()
        if by is None:
            raise AssertionError
        current = window_of(key_of(now, by), by)
        if self._export is OffsetsExport:
            return tuple(keys_in(current, by))
        watermark = self._folder.state.load().watermark
        start = max(self.feed.start_time, watermark - self.feed.lateness) if watermark else self.feed.start_time
        return tuple(keys_in(TimeWindow(min(start, current.start), current.end), by))

    def _version(self, partitions: Sequence[str] | None) -> str:
        """The version to write: a new one, or one that was allocated and never committed, or a committed one."""
        if partitions is not None and len(partitions) != 1:
            raise ConfigError(f"feed {self.feed.name!r} is a table: export one version at a time")
        log = self._folder.state
        wanted = version_number(partitions[0]) if partitions else None
        state = log.load()
        if wanted is None:
            return version_key(log.change(lambda now: replace(now, next_version=now.next_version + 1)).next_version - 1)
        if wanted == state.next_version:
            log.change(lambda now: replace(now, next_version=max(now.next_version, wanted + 1)))
        if wanted > state.next_version:
            raise ConfigError(f"the next version of table {self.feed.name!r} is {version_key(state.next_version)}")
        known = {version.number for version in state.versions}
        if wanted not in known and self._folder.log(version_key(wanted)).load().manifest.deleted:
            raise ConfigError(f"{version_key(wanted)} of table {self.feed.name!r} was removed by retention")
        return version_key(wanted)
