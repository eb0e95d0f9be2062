"""A feed that an asset of somebody's project writes: each run replaces its partitions, or makes a new version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from datalake_assets.core.batches import Batches, ReadRequest
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partitions import PartitionBy, window_of
from datalake_assets.core.schema import DISCARDING, schema_from_json
from datalake_assets.errors import ConfigError, SchemaChanged
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.export_commits import Export, Staged
from datalake_assets.lake.export_kinds import SnapshotExport, WindowExport
from datalake_assets.lake.frames import FrameBatches, FramesByKey, typed_nulls
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.landing import Placement
from datalake_assets.lake.table import ExportPlan, Progress, WriteReport

__all__ = ["AssetTable", "ReplaceExport", "joined_reports"]

#: Partitions that a message names.
_NAMED = 5


class ReplaceExport(WindowExport):
    """The run's partitions are replaced by the rows that its asset returned for them."""

    def _time_placement(self) -> Placement:
        placed = super()._time_placement()
        if placed.time_column is not None:
            return placed
        (key,) = self.partitions  # a row says nothing of its partition, so there is only one
        return replace(placed, key=key)

    def _refuse_others(self, staged: Staged) -> None:
        others = {key: sum(file.rows for _, file in staged[key]) for key in sorted(set(staged) - set(self.partitions))}
        if others:
            self.discard(staged)
            counted = [f"{key} ({rows:,} rows)" for key, rows in others.items()]
            more = f" and {len(counted) - _NAMED:,} more" if len(counted) > _NAMED else ""
            reason = f"by {self.batches.time_column!r} it returned rows of partitions that are not the run's"
            raise ConfigError(
                f"{self.source}: {reason}: {', '.join(counted[:_NAMED])}{more}; nothing was committed:"
                " return only rows of the run's time window"
            )


class AssetTable(HiveTable):
    """What an asset wrote; implements `LakeTable`."""

    @property
    def _export(self) -> type[Export]:
        return SnapshotExport if self.feed.kind is FeedKind.TABLE else ReplaceExport

    def plan(self, partitions: Sequence[str] | None = None, *, new_epoch: bool = False) -> ExportPlan:
        """Implements `LakeTable`: partitions need not be contiguous, and may lie in the future.

        Raises:
            ConfigError: A key is not one of this feed's, or a stream's are not given: only the asset knows.
        """
        if self.feed.kind is FeedKind.TABLE:
            return super().plan(partitions, new_epoch=new_epoch)
        if not partitions:
            raise ConfigError(f"feed {self.feed.name!r} is {self.feed.written_by}: it decides what it writes")
        for key in partitions:
            window_of(key, PartitionBy(self.feed.partition_by))
        return ExportPlan(tuple(partitions), ReadRequest())

    def write(
        self,
        batches: Batches,
        *,
        partitions: Sequence[str],
        run_id: str,
        allow_shrink: bool = True,  # noqa: ARG002  what an asset returns is all there is
        on_progress: Callable[[Progress], None] | None = None,
    ) -> WriteReport:
        """Implements `LakeTable`: fewer rows than before are accepted, since what an asset returns is all there is.

        Frames by key are committed one by one: if one fails, those before it stay, and a repetition changes nothing.

        Raises:
            ConfigError: Rows are not the partitions' own, or do not say which partition is theirs.
            SchemaChanged: The columns are not those of the runs before.
        """
        if isinstance(batches, FramesByKey):
            reports: list[WriteReport] = []
            written: dict[str, Manifest] = {}
            for key, frame in batches.frames.items():
                reports.append(self.write(frame, partitions=[key], run_id=run_id, on_progress=on_progress))
                written |= self._written
            self._written = written
            return joined_reports(reports)
        if len(partitions) > 1 and batches.time_column is None:
            raise ConfigError(
                f"asset {self.feed.asset!r}: it returned one frame for {len(partitions)} partitions, and nothing says"
                " which row is whose; name its column of times in its metadata as 'datalake/time_column', or return"
                " a dict of a frame by partition key"
            )
        try:
            return super().write(
                self._typed(batches), partitions=partitions, run_id=run_id, allow_shrink=True, on_progress=on_progress
            )
        except SchemaChanged as error:
            cure = "undo it, or let it have new columns by its metadata 'datalake/schema_policy': 'evolve'"
            raise SchemaChanged(error.source, error.reason, cure=cure) from error

    def _typed(self, batches: Batches) -> Batches:
        """The batches with the types that the lake knows of columns which have no value this time."""
        if not isinstance(batches, FrameBatches):
            return batches
        state = self._folder.state.load()
        known = schema_from_json(state.schema) if state.schema else None
        if batches.is_empty and known is not None:
            return replace(batches, schema=known)
        if batches.is_empty and self.feed.kind is FeedKind.STREAM:
            return batches  # nothing will be written
        if known is not None and self.feed.schema_policy in DISCARDING and batches.schema.names:
            return batches  # nulls fit whatever the contract has, or has not
        if not batches.schema.names:
            raise ConfigError(f"asset {batches.asset!r}: what it returned has neither rows nor columns")
        return replace(batches, schema=typed_nulls(batches.schema, known, asset=batches.asset))


def joined_reports(reports: Sequence[WriteReport]) -> WriteReport:
    """The reports of several writes as that of one."""
    requests: Counter[str] = Counter()
    misfits: Counter[str] = Counter()
    for each in reports:
        requests.update(each.requests)
        misfits.update(each.misfits)
    return WriteReport(
        partitions=tuple(partition for each in reports for partition in each.partitions),
        rows_read=sum(each.rows_read for each in reports),
        rows_quarantined=sum(each.rows_quarantined for each in reports),
        rows_known=sum(each.rows_known for each in reports),
        schema=reports[-1].schema,
        requests=requests,
        notes=tuple(note for each in reports for note in each.notes),
        misfits=misfits,
        values_discarded=sum(each.values_discarded for each in reports),
    )
