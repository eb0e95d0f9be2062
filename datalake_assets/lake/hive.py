"""Feeds as plain Parquet folders in Hive layout, made exact by a manifest per partition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from datalake_assets.core.facts import Deletion, Expired, PartitionFacts, Problem
from datalake_assets.core.feed_state import FeedState
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partitions import TimeWindow, key_of, keys_in, version_key, version_number, window_of
from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind, PositionKind
from datalake_assets.lake.inspection import repair, verify
from datalake_assets.lake.layout import FeedFolder, discarded_folder
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import (
    Difference,
    ExportPlan,
    FeedTotals,
    Progress,
    Reconciliation,
    Repair,
    TableSnapshot,
    WriteReport,
)
from datalake_assets.lake.table_versions import removed_by_retention

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as ds

    from datalake_assets.core.batches import Batches, Decode, DecodeItems
    from datalake_assets.core.compaction.compaction_report import CompactionProgress, CompactionReport
    from datalake_assets.core.compaction.plan import CompactionPlan, CompactionRequest
    from datalake_assets.core.report.figures import FeedStatistics
    from datalake_assets.core.row_texts import QuarantinedRow
    from datalake_assets.core.rules import RuleCount
    from datalake_assets.lake.export_commits import Export
    from datalake_assets.lake.feed_compaction import Rehearsed
    from datalake_assets.lake.hive_snapshot import HiveSnapshot
    from datalake_assets.policies import Rule

__all__ = ["HiveTable"]

#: Times that a write reads the source again because another writer landed the same rows meanwhile.
ATTEMPTS = 5
#: Kinds of positions whose exports land every new row, whatever its partition.
_UNSELECTIVE = frozenset({PositionKind.OFFSETS, PositionKind.IDS})


class HiveTable:
    """A feed's data as Parquet files in Hive layout; implements `LakeTable`.

    Args:
        store: The lake.
        feed: The feed.
    """

    def __init__(self, store: Store, feed: Feed) -> None:
        self._folder: FeedFolder = FeedFolder(store, feed)
        self._written: dict[str, Manifest] = {}
        self._known: FeedState | None = None  # as this has written to it; a feed of its name may follow

    @property
    def feed(self) -> Feed:
        """Implements `LakeTable`."""
        return self._folder.feed

    @property
    def _positions(self) -> PositionKind | None:
        """The kind of positions that rows are landed with; None for who is no export, and lands frames."""
        return self.feed.position_kind if self.feed.is_exported else None

    @property
    def _export(self) -> type[Export]:
        """How rows are landed: each way loads Arrow and numpy, which no other command of a lake needs."""
        if self.feed.write == "merge":
            from datalake_assets.lake.merge_export import MergeExport  # noqa: PLC0415

            return MergeExport
        kind = self.feed.position_kind
        if kind is PositionKind.IDS:
            from datalake_assets.lake.item_exports import ItemsExport  # noqa: PLC0415

            return ItemsExport
        from datalake_assets.lake.export_kinds import OffsetsExport, SnapshotExport, WindowExport  # noqa: PLC0415

        if kind is PositionKind.OFFSETS:
            return OffsetsExport
        return WindowExport if kind is PositionKind.WINDOW else SnapshotExport

    def plan(self, partitions: Sequence[str] | None = None, *, new_epoch: bool = False) -> ExportPlan:
        """Implements `LakeTable`."""
        from datalake_assets.core.batches import ReadRequest  # noqa: PLC0415  see `_export`
        from datalake_assets.lake.item_ledger import ItemLedger  # noqa: PLC0415

        if self.feed.kind is FeedKind.TABLE:
            return ExportPlan((self._version(partitions),), ReadRequest(landed=ItemLedger(self._folder)))
        keys = tuple(partitions) if partitions else self._catch_up()
        window = self._window(keys)
        if self._positions is PositionKind.OFFSETS:
            state = self._folder.state.load()
            starts = ReadRequest(start_offsets=dict(state.hint), source_id=state.source_id, epoch=state.epoch)
            return ExportPlan(keys, replace(starts, new_epoch=new_epoch))
        if self._positions is PositionKind.IDS:
            known = ReadRequest(landed=ItemLedger(self._folder), source_id=self._folder.state.load().source_id)
            return ExportPlan(keys, replace(known, new_epoch=new_epoch))
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
        """Implements `LakeTable`."""
        from datalake_assets.lake.export_commits import begun_again, removed_meanwhile  # noqa: PLC0415  see `_export`
        from datalake_assets.lake.item_exports import landed_in_parts  # noqa: PLC0415

        store = self._folder.store
        store.probe()
        before, self._written = dict(store.requests), {}

        def begin(tell: Callable[[Progress], None] | None) -> Export:
            export = self._export(
                self._folder, batches, tuple(partitions), run_id, allow_shrink=allow_shrink, on_progress=tell
            )
            if self._known is not None and not export.state.goes_on_from(self._known):
                raise removed_meanwhile(self.feed)
            return export

        def land(tell: Callable[[Progress], None] | None) -> WriteReport:
            export, report = begun_again(lambda: begin(tell), attempts=ATTEMPTS)
            self._known = export.state
            self._written |= {each.key: export.settled(each.key) for each in report.partitions}
            return report

        report = landed_in_parts(batches, land, on_progress)
        self._follow([*(each.key for each in report.partitions), *report.removed])
        totals = self._folder.summary.merge(report.partitions, removed=report.removed, at=store.now())
        requests: dict[str, int] = {kind: count - before[kind] for kind, count in store.requests.items()}
        return replace(report, requests=requests, totals=totals)

    def written(self, partitions: Sequence[str]) -> HiveSnapshot:
        """Implements `LakeTable`."""
        from datalake_assets.lake.hive_snapshot import HiveSnapshot  # noqa: PLC0415  brings plans and verdicts

        return HiveSnapshot(self._folder, partitions, known=self._written)

    def check_replay(self) -> None:
        """Implements `LakeTable`."""
        from datalake_assets.lake.replay import refuse_pulled  # noqa: PLC0415  see `_export`

        refuse_pulled(self._folder)

    def replay(
        self,
        batches: Batches,
        decode: Decode | None,
        *,
        decode_items: DecodeItems | None = None,
        run_id: str = "",
    ) -> WriteReport:
        """Implements `LakeTable`."""
        if self.feed.position_kind is PositionKind.IDS:
            from datalake_assets.lake.item_replay import replay_items  # noqa: PLC0415  see `_export`

            report = replay_items(self._folder, batches, decode_items, run_id=run_id)
        else:
            from datalake_assets.lake.replay import replay  # noqa: PLC0415  see `_export`

            report = replay(self._folder, batches, decode, run_id=run_id)
        self._follow([each.key for each in report.partitions])
        return report

    def _follow(self, keys: Sequence[str] | None) -> int:
        """Brings the Avro files of partitions in step, where the feed has some; how many were deleted."""
        return self._follow_always(keys) if self.feed.format.also else 0

    def _follow_always(self, keys: Sequence[str] | None) -> int:
        """The same where the feed may have had some once: rows of these are gone as well."""
        from datalake_assets.lake.avro_twins import follow_manifests  # noqa: PLC0415  see `_export`

        return follow_manifests(self._folder, keys)

    @property
    def is_written_by_us(self) -> bool:
        """Implements `LakeTable`."""
        return True

    @property
    def is_listed_plainly(self) -> bool:
        """Implements `LakeTable`."""
        return True

    def partitions(self) -> tuple[str, ...]:
        """Implements `LakeTable`."""
        if self.feed.kind is FeedKind.TABLE:
            return self._folder.state.load().keys
        return self._folder.partition_keys()

    def snapshot(self, partitions: Sequence[str] | None = None) -> HiveSnapshot:
        """Implements `LakeTable`."""
        from datalake_assets.lake.hive_snapshot import HiveSnapshot  # noqa: PLC0415  see `written`

        return HiveSnapshot(self._folder, partitions)

    def report(self, key: str) -> PartitionFacts | None:
        """Implements `LakeTable`."""
        return self.snapshot([key]).report(key)

    def totals(self) -> FeedTotals | None:
        """Implements `LakeTable`."""
        return self._folder.summary.totals()

    def figures(self, request: CompactionRequest, *, threads: Executor | None = None) -> FeedStatistics:
        """Implements `LakeTable`."""
        from datalake_assets.lake.manifest_figures import manifest_figures  # noqa: PLC0415  only for figures

        return manifest_figures(self._folder, request, threads)

    def quarantined(self) -> Iterator[tuple[str, QuarantinedRow]]:
        """Implements `LakeTable`."""
        from datalake_assets.lake.quarantined_rows import quarantined_rows  # noqa: PLC0415  loads Arrow

        return quarantined_rows(self._folder.store, self._folder.quarantine)

    def discarded(self) -> Iterator[tuple[str, QuarantinedRow]]:
        """Implements `LakeTable`."""
        from datalake_assets.lake.quarantined_rows import quarantined_rows  # noqa: PLC0415  loads Arrow

        return quarantined_rows(self._folder.store, discarded_folder(self.feed))

    def scan(
        self,
        *,
        columns: Sequence[str] | None = None,
        where: ds.Expression | None = None,
        partitions: Sequence[str] | None = None,
    ) -> pa.RecordBatchReader:
        """Implements `LakeTable`."""
        from datalake_assets.lake.scan import scan  # noqa: PLC0415  pyarrow.dataset imports pandas, exports need neither

        return scan(self, columns=columns, where=where, partitions=partitions)

    def compaction_plan(
        self, key: str, request: CompactionRequest, *, excluded: Mapping[str, str] | None = None
    ) -> CompactionPlan:
        """Implements `LakeTable`."""
        from datalake_assets.core.compaction.plan import rules_of  # noqa: PLC0415  only for who plans
        from datalake_assets.lake.compaction_plans import plan_of  # noqa: PLC0415  likewise

        manifest = self._folder.log(key).load().manifest
        return plan_of(self._folder, key, manifest, rules_of(self.feed, request), excluded or {})

    def rehearsed_partitions(self) -> tuple[str, ...]:
        """Implements `Rehearses`."""
        return self.partitions()

    def rehearsed_problems(self) -> Sequence[Problem]:
        """Implements `Rehearses`: nobody else writes into its folders."""
        return ()

    def rehearse(self, key: str, request: CompactionRequest, *, most_bytes: int) -> Rehearsed:
        """Implements `Rehearses`."""
        from datalake_assets.lake.compaction_rehearsal import rehearse  # noqa: PLC0415  exports merge nothing

        manifest = self._folder.log(key).load().manifest
        return rehearse(self._folder, key, request, manifest=manifest, most_bytes=most_bytes)

    def compact(
        self,
        key: str,
        request: CompactionRequest,
        *,
        run_id: str = "",
        on_plan: Callable[[CompactionPlan], None] | None = None,
        on_progress: Callable[[CompactionProgress], None] | None = None,
    ) -> CompactionReport:
        """Implements `LakeTable`."""
        from datalake_assets.lake import compaction  # noqa: PLC0415  loads all that merges files

        done = compaction.compact(self._folder, key, request, run_id=run_id, on_plan=on_plan, on_progress=on_progress)
        self._follow([key])
        return done

    def deletion_plan(self, key: str, where: str) -> Deletion:
        """Implements `LakeTable`."""
        from datalake_assets.lake.deletion import deletion_plan  # noqa: PLC0415  imports DuckDB

        self._refuse_rows_of_others()
        return deletion_plan(self._folder, key, where)

    def delete_rows(self, key: str, where: str, *, run_id: str = "") -> Deletion:
        """Implements `LakeTable`."""
        from datalake_assets.lake.deletion import delete_rows  # noqa: PLC0415  imports DuckDB

        self._refuse_rows_of_others()
        done = delete_rows(self._folder, key, where, run_id=run_id)
        self._follow_always([key])
        return done

    def _refuse_rows_of_others(self) -> None:
        if not self.is_written_by_us:
            raise ConfigError(
                f"feed {self.feed.name!r} is {self.feed.written_by}: others write its rows, and would write them again;"
                f" delete them there, and 'datalake repair {self.feed.name}' takes that over"
            )

    def count_broken(
        self, rules: Sequence[Rule], keys: Sequence[str] | None, *, seen: TableSnapshot | None = None
    ) -> Iterator[tuple[Rule, RuleCount]]:
        """Implements `LakeTable`."""
        from datalake_assets.lake.broken_rules import count_broken  # noqa: PLC0415  imports DuckDB

        return count_broken(self, rules, keys, seen=seen)

    def look_again(
        self,
        *,
        run_id: str = "",  # noqa: ARG002  the protocol's
        on_progress: Callable[[int, int], None] | None = None,  # noqa: ARG002
    ) -> Reconciliation:
        """Implements `LakeTable`."""
        return Reconciliation()

    def removed(self, keys: Iterable[str]) -> tuple[str, ...]:
        """Implements `LakeTable`."""
        if self.feed.kind is not FeedKind.TABLE:
            return ()
        return tuple(key for key in keys if self._folder.log(key).load().manifest.deleted)

    def verify(self, *, deep: bool = False, partitions: Sequence[str] | None = None) -> Iterator[Difference]:
        """Implements `LakeTable`."""
        yield from verify(self._folder, deep=deep, partitions=partitions)
        from datalake_assets.lake.avro_twins import twin_differences  # noqa: PLC0415  see `_export`

        yield from twin_differences(self._folder, partitions)

    def repair(self, *, run_id: str = "") -> Repair:  # noqa: ARG002  the protocol's
        """Implements `LakeTable`."""
        done = repair(self._folder)
        return replace(done, swept=done.swept + self._follow_always(None))

    @property
    def past_stays(self) -> timedelta | None:
        """Implements `LakeTable`."""
        return None

    def expire(self, *, all_past: bool = False) -> Expired:  # noqa: ARG002  the protocol's
        """Implements `LakeTable`: what was replaced is gone already."""
        return Expired()

    def rebuild_summary(self, figures: FeedStatistics) -> None:
        """Implements `LakeTable`."""
        at = figures.last_run or figures.last_export or self._folder.store.now()
        self._folder.summary.rebuild(figures.partitions, at=at)

    def purge(self) -> int:
        """Implements `LakeTable`."""
        return self._folder.delete_all()

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
        """Feeds that land every new row have their current partition stand for all; a ``pull`` feed
        goes from as far back as late rows may come to the current partition.
        """
        by, now = self._folder.by, self._folder.store.now()
        if by is None:
            raise AssertionError
        current = window_of(key_of(now, by), by)
        if self._positions in _UNSELECTIVE:
            return tuple(keys_in(current, by))
        start = self.feed.pulled_from(self._folder.state.load().watermark)
        return tuple(keys_in(TimeWindow(min(start, current.start), current.end), by))

    def _version(self, partitions: Sequence[str] | None) -> str:
        """The version to write: a new one, or one that was allocated and never committed, or a committed one."""
        if partitions is not None and len(partitions) != 1:
            raise ConfigError(f"feed {self.feed.name!r} is a table: export one version at a time")
        log, wanted = self._folder.state, version_number(partitions[0]) if partitions else None
        state = log.load()
        if wanted is None:
            return version_key(log.change(lambda now: replace(now, next_version=now.next_version + 1)).next_version - 1)
        if wanted == state.next_version:
            log.change(lambda now: replace(now, next_version=max(now.next_version, wanted + 1)))
        if wanted > state.next_version:
            raise ConfigError(f"the next version of table {self.feed.name!r} is {version_key(state.next_version)}")
        known = {version.number for version in state.versions}
        # a version above the current one is hardly ever gone; an export of it sees if it is, before it reads anything
        is_old = state.current is not None and wanted < state.current.number
        if is_old and wanted not in known and self._folder.log(version_key(wanted)).load().manifest.deleted:
            raise removed_by_retention(self.feed, version_key(wanted))
        return version_key(wanted)
