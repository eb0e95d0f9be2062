"""Streams: rows numbered by the source are appended, pulled windows are replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partitions import PartitionBy, window_of
from datalake_assets.core.position import OffsetsPosition, WindowPosition
from datalake_assets.errors import CommitConflict, IncompleteResponse, SourceShrank
from datalake_assets.lake.base import WriteReport
from datalake_assets.lake.commit import Planned
from datalake_assets.lake.export import Export, Staged
from datalake_assets.lake.landing import Fence
from datalake_assets.lake.store import StagedFile

__all__ = ["OffsetsExport", "WindowExport"]


class OffsetsExport(Export):
    """Rows numbered by the source are appended, each to the partition of its time, unless they are there already."""

    kind, commit_kind, prefix = "offsets", "append", "data"

    def run(self) -> WriteReport:
        """See `Export.run`."""
        self.fence = fence = Fence(self.state.epoch, self._position_of)
        landing, staged, schema = self.land(self._time_placement(), fence=fence)
        encoded = self.fix_schema(schema) if staged else None
        reports = {}
        try:
            for key in sorted(staged):
                reports[key] = self.commit(key, staged[key], self._plan(key, fence, encoded))
        except CommitConflict:
            self.discard({key: files for key, files in staged.items() if key not in reports})
            raise
        hint = {partition: offset + 1 for partition, offset in fence.seen.items()}
        self.folder.state.change(lambda now: now.with_hint(hint, epoch=fence.epoch))
        return self.result(landing, reports, schema)

    def position_read(self, key: str) -> Mapping[str, Any]:
        """See `Export.position_read`: after the rows staged so far."""
        highest = dict(self.fence.staged[key].highest)
        return OffsetsPosition().advanced(self.fence.epoch, highest).to_json()

    def _position_of(self, key: str) -> OffsetsPosition:
        return _offsets(self.settled(key))

    def _plan(self, key: str, fence: Fence, schema: str | None) -> Callable[[Manifest], Planned]:
        bounds = fence.staged[key]

        def plan(base: Manifest) -> Planned:
            position = _offsets(base)
            if not position.admits(fence.epoch, bounds.lowest):
                raise CommitConflict(self.folder.data_folder(key), "another writer landed some of these rows")
            return Planned(position=position.advanced(fence.epoch, bounds.highest), schema=schema)

        return plan


class WindowExport(Export):
    """The selected partitions are replaced by what one pull of their window saw."""

    kind, commit_kind, prefix = "window", "replace", "data"

    def run(self) -> WriteReport:
        """See `Export.run`."""
        self.as_of = self.folder.store.now()
        landing, staged, schema = self.land(self._time_placement(), fingerprint=True)
        self.fingerprints = landing.fingerprints or {}
        self._refuse_others(staged)
        self._refuse_shrinking(staged)
        encoded = self.fix_schema(schema) if staged else None
        reports = {}
        for key in self.partitions:
            files = staged.get(key, ())
            if files or self.settled(key).files:
                reports[key] = self.commit(key, files, self._plan(key, files, encoded))
        newest = max((report.max_time for report in reports.values() if report.max_time), default=None)
        self.folder.state.change(lambda now: now.with_watermark(newest))
        return self.result(landing, reports, schema)

    def position_read(self, key: str) -> Mapping[str, Any]:
        """See `Export.position_read`: the window, and when its pull began."""
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
            seen = f"partition {key} has {base.rows} rows in the lake and {rows} at the source"
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
            self._check_rows(key, base, files)
            position = WindowPosition(window.start, window.end, self.as_of, rows, fingerprint)
            if isinstance(base.position, WindowPosition) and replace(base.position, as_of=self.as_of) == position:
                return None  # the same rows: nothing to write
            return Planned(position=position, remove=tuple(file.name for file in base.files), schema=schema)

        return plan


def _offsets(manifest: Manifest) -> OffsetsPosition:
    return manifest.position if isinstance(manifest.position, OffsetsPosition) else OffsetsPosition()
