"""How each kind of export commits what it landed, so that repeating one adds no row twice.

Numbered rows of a stream are appended, and pulled windows are replaced. A table becomes a new version, and versions
beyond retention are removed. A server may answer a failed scan of a table with a well-formed, shorter, even empty
result. Nothing in the answer shows it, so that only a sudden fall of the row count gives it away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from datalake_assets.core.batches import Batches, Derived
from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partitions import PartitionBy, window_of
from datalake_assets.core.position import (
    Holes,
    OffsetsPosition,
    Runs,
    SnapshotPosition,
    SourcePartition,
    WindowPosition,
)
from datalake_assets.core.schema import schema_from_json
from datalake_assets.errors import CommitConflict, IncompleteResponse, SourceShrank
from datalake_assets.lake.commit import Planned
from datalake_assets.lake.export_commits import Export, Staged
from datalake_assets.lake.landing import Landing, OffsetsFence
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.base import StagedFile
from datalake_assets.lake.table import WriteReport
from datalake_assets.lake.table_versions import enter_version, removed_by_retention, retain

__all__ = [
    "OffsetsExport",
    "SnapshotExport",
    "WindowExport",
    "agree",
    "suspicious",
]


#: The least that times differ by.
_TICK = timedelta(microseconds=1)


class OffsetsExport(Export):
    """Rows numbered by the source are appended, each to the partition of its time, unless they are there already."""

    kind, commit_kind, prefix = "offsets", "append", "data"

    def run(self) -> WriteReport:
        """Implements `Export.run`."""
        self.fence = fence = OffsetsFence(self.state.epoch, self._position_of, shared=self.feed.shares_numbers)
        landing, staged, schema = self.land(self._time_placement(), fence=fence)
        encoded = self.fix_schema(schema, staged) if staged else None
        rejected = fence.rejected_runs
        passed = self._passed(fence, rejected)
        reports = self.commit_all(
            {key: (staged[key], self._plan(key, fence, encoded, passed)) for key in sorted(staged)}
        )
        hint = {partition: offset + 1 for partition, offset in fence.seen.items()}
        known = landing.source_id
        self.folder.state.change(
            lambda now: self.there(now).with_hint(hint, epoch=fence.epoch, rejected=rejected, source_id=known)
        )
        return self.result(landing, reports, schema)

    def given_up(self) -> WriteReport:
        """As `Export.given_up`; these rows were not known before."""
        return replace(super().given_up(), rows_known=-self.rows_committed)

    def position_read(self, key: str) -> Mapping[str, Any]:
        """Implements `Export.position_read`: after the rows staged so far."""
        highest = dict(self.fence.staged[key].highest)
        return OffsetsPosition().advanced(self.fence.epoch, highest).to_json()

    def _position_of(self, key: str) -> OffsetsPosition:
        return _offsets(self.settled(key))

    def _passed(self, fence: OffsetsFence, rejected: Mapping[SourcePartition, Runs]) -> dict[SourcePartition, Holes]:
        """Rows in quarantine, of this read and of those before: no partition has got them."""
        before = self.state.rejected if fence.epoch == self.state.epoch else {}
        return {each: before.get(each, Holes()).added(rejected.get(each, ())) for each in {*before, *rejected}}

    def _plan(
        self, key: str, fence: OffsetsFence, schema: str | None, passed: Mapping[SourcePartition, Holes]
    ) -> Callable[[Manifest], Planned]:
        bounds = fence.together() if self.folder.commits_at_once else fence.staged[key]

        def plan(base: Manifest) -> Planned:
            position = _offsets(base)
            if not position.admits(fence.epoch, bounds.lowest):
                raise CommitConflict(self.folder.data_folder(key), "another writer landed some of these rows")
            moved = position.advanced(fence.epoch, bounds.highest, passed=passed)
            return Planned(position=moved, schema=schema)

        return plan


class WindowExport(Export):
    """The selected partitions are replaced by what one pull of their window saw."""

    kind, commit_kind, prefix = "window", "replace", "data"
    #: Whether a partition that never had rows is committed too, for its position.
    records_empty = False

    def run(self) -> WriteReport:
        """Implements `Export.run`."""
        there = [self.settled(key).position for key in self.partitions]
        self.as_of = _later(self.folder, [each.as_of for each in there if isinstance(each, WindowPosition)])
        landing, staged, schema = self.land(self._time_placement(), fingerprint=True)
        self.fingerprints = landing.fingerprints or {}
        self._refuse_others(staged)
        self._refuse_shrinking(staged)
        encoded = self.fix_schema(schema, staged) if staged or self.records_empty else None
        files = {key: staged.get(key, ()) for key in self.partitions}
        wanted = {
            key: (each, self._plan(key, each, encoded))
            for key, each in files.items()
            if each or self.settled(key).files or self.records_empty
        }
        reports = self.commit_all(wanted)
        # as this pull saw them: a partition may hold what a later one saw, and its late rows were not looked for here
        seen = [file.max_time for together in staged.values() for _, file in together if file.max_time]
        newest = max(seen, default=None)
        self.folder.state.change(
            lambda now: now.with_watermark(newest) if self._goes_on_from(self.there(now).watermark) else now
        )
        return self.result(landing, reports, schema)

    def _goes_on_from(self, watermark: datetime | None) -> bool:
        """Whether this pull saw all that may have come since the watermark.

        The next export begins a lateness before it, so that this one has to begin there as well. It is not enough that
        its partitions follow those in the lake: these were pulled before their last rows came, and once the watermark
        has moved on nobody comes back to them, nor to a gap.
        """
        begin = window_of(self.partitions[0], PartitionBy(self.feed.partition_by)).start
        return begin <= self.feed.pulled_from(watermark)

    def position_read(self, key: str) -> Mapping[str, Any]:
        """Implements `Export.position_read`: the window, and when its pull began."""
        window = window_of(key, PartitionBy(self.feed.partition_by))
        times = {"start": window.start, "end": window.end, "as_of": self.as_of}
        return {"kind": self.kind, **{name: time.isoformat() for name, time in times.items()}}

    def _refuse_others(self, staged: Staged) -> None:
        others = sorted(set(staged) - set(self.partitions))
        if others:
            self.discard(staged)
            raise IncompleteResponse(self.source, f"the source answered with rows of other partitions: {others[:5]}")

    def _refuse_shrinking(self, staged: Staged) -> None:
        """Looks at all partitions before the first is committed."""
        try:
            for key in self.partitions:
                self._check_rows(key, self.settled(key), staged.get(key, ()))
        except SourceShrank:
            self.discard(staged)
            raise

    def _check_rows(self, key: str, base: Manifest, files: Sequence[tuple[StagedFile, DataFile]]) -> None:
        rows = sum(file.rows for _, file in files)
        if rows < base.rows and not self.allow_shrink and not self._overtaken(base):
            aside = f", and {self.misfit_rows:,} rows of it do not fit the feed's schema" if self.misfit_rows else ""
            seen = f"partition {key} has {base.rows} rows in the lake and {rows} at the source{aside}"
            raise SourceShrank(self.source, seen)

    def _overtaken(self, base: Manifest) -> bool:
        """Whether a pull that began later has been committed."""
        return isinstance(base.position, WindowPosition) and base.position.as_of > self.as_of

    def _plan(
        self, key: str, files: Sequence[tuple[StagedFile, DataFile]], schema: str | None
    ) -> Callable[[Manifest], Planned | None]:
        window = window_of(key, PartitionBy(self.feed.partition_by))
        rows = sum(file.rows for _, file in files)
        fingerprint = f"{self.fingerprints.get(key, 0):016x}"

        def plan(base: Manifest) -> Planned | None:
            if self._overtaken(base):
                self.notes.append(f"partition {key}: a newer pull was committed meanwhile; this one is dropped")
                return None
            position = WindowPosition(window.start, window.end, self.as_of, rows, fingerprint, _inputs(self.batches))
            if isinstance(base.position, WindowPosition) and replace(base.position, as_of=self.as_of) == position:
                return None  # the same rows: nothing to write
            if isinstance(base.position, WindowPosition) and base.position.as_of == self.as_of:
                raise CommitConflict(self.folder.data_folder(key), "another pull began at the same time")
            self._check_rows(key, base, files)
            return Planned(position=position, remove=tuple(file.name for file in base.files), schema=schema)

        return plan


def _later(folder: FeedFolder, before: Iterable[datetime]) -> datetime:
    """When a pull begins that has seen those before: after them, whatever the clock says, which may have been put back.

    Else what this one sees would be taken for older, and dropped, until the clock is where it was.
    """
    return max((folder.store.now(), *(each + _TICK for each in before)))


def _inputs(batches: Batches) -> str:
    return batches.inputs if isinstance(batches, Derived) else ""


def _offsets(manifest: Manifest) -> OffsetsPosition:
    return manifest.position if isinstance(manifest.position, OffsetsPosition) else OffsetsPosition()


#: A fall by more than this share against the last version is pulled again.
FALL = 0.10
#: Two pulls within this share of each other agree.
AGREE = 0.01


def suspicious(rows: int, *, previous_rows: int) -> bool:
    """Whether ``rows`` is so few, after ``previous_rows``, that the pull may have been cut short."""
    return previous_rows > 0 and (rows == 0 or rows < previous_rows * (1 - FALL))


def agree(first_rows: int, second_rows: int) -> bool:
    """Whether two pulls saw the same table, allowing for changes in between."""
    return abs(first_rows - second_rows) <= max(first_rows, second_rows) * AGREE


logger = logging.getLogger(__name__)


class SnapshotExport(Export):
    """The whole table becomes a new version; versions beyond retention are removed."""

    kind, commit_kind, prefix = "snapshot", "snapshot", "snapshot"
    keeps_empty = True

    def run(self) -> WriteReport:
        """Implements `Export.run`."""
        (key,) = self.partitions
        if self.settled(key).generation:
            return self._committed_before(key)
        self.as_of = as_of = _later(self.folder, [each.as_of for each in self.state.versions])
        landing, staged, schema = self._pull(key)
        encoded = self.fix_schema(schema, staged)
        files = staged.get(key, ())
        fingerprint = f"{(landing.fingerprints or {}).get(key, 0):016x}"
        position = SnapshotPosition(as_of, sum(file.rows for _, file in files), _inputs(self.batches), fingerprint)

        def plan(base: Manifest) -> Planned | None:
            return None if base.generation else Planned(position=position, schema=encoded)

        before = self.state.current.rows if self.state.current else 0
        report = self.commit(key, files, plan)
        self.committed[key] = report = replace(report, rows_added=report.rows - before)
        enter_version(self.folder, key, self.settled(key))  # as it was committed, by us or by another writer of it
        return self.result(landing, {key: report}, schema, removed=retain(self.folder, run_id=self.run_id))

    def position_read(self, key: str) -> Mapping[str, Any]:  # noqa: ARG002  a table is pulled whole
        """Implements `Export.position_read`: when the pull began."""
        return {"kind": self.kind, "as_of": self.as_of.isoformat()}

    def _committed_before(self, key: str) -> WriteReport:
        """A past version cannot be pulled again: its rows stay as they are."""
        manifest = self.settled(key)
        if manifest.deleted:
            raise removed_by_retention(self.feed, key)
        enter_version(self.folder, key, manifest)  # a crash may have kept it from the state
        schema = schema_from_json(manifest.schema) if manifest.schema else self.batches.schema
        self.notes.append(f"version {key} was committed before and is kept as it is")
        report = self.folder.report(key, manifest)
        removed = tuple(retain(self.folder, run_id=self.run_id))
        return WriteReport((report,), 0, 0, 0, schema, {}, removed=removed, notes=tuple(self.notes))

    def _pull(self, key: str) -> tuple[Landing, Staged, pa.Schema]:
        """Pulls; and pulls again if the first answer may have been cut short."""
        placement = replace(self._time_placement(), time_column=None, key=key)
        landing, staged, schema = self.land(placement, fingerprint=True)
        previous = self.state.current.rows if self.state.current else 0
        rows = _rows(staged)
        if self.allow_shrink or not suspicious(rows, previous_rows=previous):
            return landing, staged, schema
        logger.warning("%s: %d rows after %d in the last version; pulled again", self.source, rows, previous)
        self.discard(staged)
        landing, staged, schema = self.land(placement, fingerprint=True)
        again = _rows(staged)
        if not agree(rows, again):
            self.discard(staged)
            seen = f"two pulls gave {rows} and {again} rows, the last version has {previous}"
            raise SourceShrank(self.source, f"{seen}; an answer was cut short")
        self.notes.append(f"rows fell from {previous} to {again}; a second pull confirmed it")
        return landing, staged, schema


def _rows(staged: Staged) -> int:
    return sum(file.rows for files in staged.values() for _, file in files)
