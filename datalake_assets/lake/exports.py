"""How a feed is landed exactly once: one class per kind of position, one pass over the source each."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from datalake_assets.core.batches import Batches
from datalake_assets.core.feed_state import FeedState, Version
from datalake_assets.core.files import DataFile, data_file_name
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partitions import PartitionBy, keys_of, version_key, version_number, window_of
from datalake_assets.core.position import OffsetsPosition, SnapshotPosition, WindowPosition
from datalake_assets.core.schema import evolve, schema_from_json, schema_to_json
from datalake_assets.core.snapshots import agree, suspicious
from datalake_assets.errors import CommitConflict, IncompleteResponse, SourceShrank
from datalake_assets.lake.base import PartitionReport, Progress, WriteReport
from datalake_assets.lake.commit import Change, Loaded, Planned
from datalake_assets.lake.landing import AHEAD, Fence, Landing, Placement
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.quarantine import Quarantine
from datalake_assets.lake.store import StagedFile
from datalake_assets.parquet.writer import FileStats, ParquetSettings, RollingWriter

__all__ = ["Export", "OffsetsExport", "SnapshotExport", "WindowExport"]

logger = logging.getLogger(__name__)

#: Selected partitions from which on it is cheaper to list manifests than to ask for each.
MANY = 10

Staged = Mapping[str, Sequence[tuple[StagedFile, DataFile]]]


class Export(ABC):
    """One pass over the source and the commits that follow.

    Args:
        folder: The feed's corner of the lake.
        batches: The source.
        partitions: The selected partitions.
        run_id: Written into the history.
        allow_shrink: Accept a replacement with fewer rows.
        on_progress: Called now and then.
    """

    kind: str
    prefix: str

    def __init__(
        self,
        folder: FeedFolder,
        batches: Batches,
        partitions: tuple[str, ...],
        run_id: str,
        *,
        allow_shrink: bool,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.folder, self.feed, self.batches, self.partitions = folder, folder.feed, batches, partitions
        self.run_id, self.allow_shrink, self._on_progress = run_id, allow_shrink, on_progress
        self.state = folder.state.load().with_kind(self.kind, feed=self.feed.name)
        self.notes: list[str] = []
        self._logs: dict[str, Loaded] = {}

    @abstractmethod
    def run(self) -> WriteReport:
        """Reads, stages and commits.

        Raises:
            CommitConflict: Another writer landed some of the same rows: begin again.
        """

    @property
    def source(self) -> str:
        """What is read, for messages."""
        return f"feed {self.feed.name!r}"

    def settled(self, key: str) -> Manifest:
        """A partition's manifest as it was at first sight, with what was interrupted before finished."""
        if key not in self._logs and len(self.partitions) > MANY:
            present = set(self.folder.partition_keys())  # one listing instead of a request for each absent manifest
            self._logs = {
                each: Loaded(None, Manifest()) for each in self.partitions if each not in present
            } | self._logs
        if key not in self._logs:
            log = self.folder.log(key)
            self._logs[key] = log.settle(log.load())
        return self._logs[key].manifest

    def land(
        self, placement: Placement, *, fence: Fence | None = None, fingerprint: bool = False
    ) -> tuple[Landing, Staged, pa.Schema]:
        """One pass: every row known, quarantined or staged."""
        schema = self.schema()
        writer = self._writer(placement, schema)
        quarantine = Quarantine(self.folder.store, self.folder.quarantine)
        landing = Landing(
            placement,
            schema,
            writer,
            quarantine,
            fence=fence,
            fingerprint=fingerprint,
            on_progress=self._on_progress,
        )
        try:
            landing.run(self.batches)
            staged = writer.close()
        except BaseException:
            writer.abort()
            raise
        self.quarantined = quarantine.rows
        return landing, self._data_files(staged), schema

    def schema(self) -> pa.Schema:
        """The feed's schema from now on."""
        incoming = self.batches.schema
        if self.state.schema is None:
            return incoming
        return evolve(schema_from_json(self.state.schema), incoming, policy=self.feed.schema_policy, source=self.source)

    def commit(
        self, key: str, files: Sequence[tuple[StagedFile, DataFile]], plan: Callable[[Manifest], Planned | None]
    ) -> PartitionReport:
        """Commits one partition and reports it."""
        before: list[Manifest] = []

        def planned(base: Manifest) -> Planned | None:
            before[:] = [base]
            return plan(base)

        change = Change(self.folder.new_id(), self.kind_of_commit, tuple(files), planned, self.run_id)
        loaded, _ = self.folder.log(key).commit(change)
        return self.folder.report(key, loaded.manifest, before=before[0] if before else None)

    @property
    def kind_of_commit(self) -> str:
        """``append``, ``replace`` or ``snapshot``."""
        return {"offsets": "append", "window": "replace", "snapshot": "snapshot"}[self.kind]

    def fix_schema(self, schema: pa.Schema) -> str:
        """Fixes kind and schema in the feed's state before the first commit that relies on them."""
        encoded = schema_to_json(schema)
        self.state = self.folder.state.change(
            lambda now: replace(now.with_kind(self.kind, feed=self.feed.name), schema=encoded)
        )
        return encoded

    def discard(self, staged: Staged) -> None:
        """Gives up staged files."""
        for files in staged.values():
            for file, _ in files:
                self.folder.store.discard_staged(file)

    def result(
        self,
        landing: Landing,
        reports: Mapping[str, PartitionReport],
        schema: pa.Schema,
        *,
        removed: Sequence[str] = (),
    ) -> WriteReport:
        """The report of this write; partitions that were selected and not touched are reported as they are."""
        touched = dict(reports)
        for key in self.partitions:
            if key not in touched:
                touched[key] = self.folder.report(key, self.settled(key))
        ordered = sorted(touched.values(), key=lambda report: (len(report.key), report.key))
        return WriteReport(
            partitions=tuple(ordered),
            rows_read=landing.rows_read,
            rows_quarantined=self.quarantined,
            rows_known=landing.rows_known,
            schema=schema,
            requests={},
            removed=tuple(removed),
            notes=tuple(self.notes),
        )

    def _writer(self, placement: Placement, schema: pa.Schema) -> RollingWriter:
        written = self.feed.format
        settings = ParquetSettings(
            compression=written.compression,
            profile=written.profile,
            target_file_bytes=written.target_file_size_bytes,
            row_group_bytes=written.row_group_bytes,
        )
        at = self.folder.store.now()

        def open_file(key: str) -> object:
            name = data_file_name(self.prefix, at, self.folder.new_id())
            return self.folder.store.stage(f"{self.folder.data_folder(key)}/{name}")

        def partition_of(times: pa.Array) -> pa.DictionaryArray:
            return keys_of(times, placement.by)

        return RollingWriter(
            schema,
            settings,
            open_file=open_file,
            partition_of=partition_of if placement.time_column else placement.key,
            time_column=placement.time_column,
            metadata={"datalake.feed": self.feed.name, "datalake.run_id": self.run_id},
        )

    @staticmethod
    def _data_files(written: Mapping[str, Sequence[tuple[StagedFile, FileStats]]]) -> Staged:
        return {key: [(staged, _data_file(staged, stats)) for staged, stats in files] for key, files in written.items()}

    def _time_placement(self) -> Placement:
        return Placement(
            time_column=self.batches.time_column,
            by=PartitionBy(self.feed.partition_by),
            earliest=self.feed.start_time,
            latest=self.folder.store.now() + AHEAD,
        )


class OffsetsExport(Export):
    """Rows numbered by the source are appended, each to the partition of its time, unless they are there already."""

    kind, prefix = "offsets", "data"

    def run(self) -> WriteReport:
        """See `Export.run`."""
        fence = Fence(self.state.epoch, self._position_of)
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

    kind, prefix = "window", "data"

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


class SnapshotExport(Export):
    """The whole table becomes a new version; versions beyond retention are removed."""

    kind, prefix = "snapshot", "snapshot"

    def run(self) -> WriteReport:
        """See `Export.run`."""
        (key,) = self.partitions
        if self.settled(key).generation:
            return self._committed_before(key)
        as_of = self.folder.store.now()
        landing, staged, schema = self._pull(key)
        encoded = self.fix_schema(schema)
        files = staged.get(key, ())
        position = SnapshotPosition(as_of, sum(file.rows for _, file in files))

        def plan(base: Manifest) -> Planned | None:
            return None if base.generation else Planned(position=position, schema=encoded)

        report = self.commit(key, files, plan)
        version = Version(version_number(key), as_of, position.rows)
        state = self.folder.state.change(lambda now: now.with_version(version))
        return self.result(landing, {key: report}, schema, removed=self._retain(state))

    def _committed_before(self, key: str) -> WriteReport:
        """A past version cannot be pulled again: its rows stay as they are."""
        manifest = self.settled(key)
        position = manifest.position
        if isinstance(position, SnapshotPosition) and not manifest.deleted:  # a crash may have kept it from the state
            version = Version(version_number(key), position.as_of, position.rows)
            self.folder.state.change(lambda now: now.with_version(version))
        schema = schema_from_json(manifest.schema) if manifest.schema else self.batches.schema
        self.notes.append(f"version {key} was committed before and is kept as it is")
        report = self.folder.report(key, manifest)
        return WriteReport((report,), 0, 0, 0, schema, {}, notes=tuple(self.notes))

    def _pull(self, key: str) -> tuple[Landing, Staged, pa.Schema]:
        """Pulls; and pulls again if the first answer may have been cut short."""
        placement = replace(self._time_placement(), time_column=None, key=key)
        landing, staged, schema = self.land(placement)
        previous = self.state.current.rows if self.state.current else 0
        rows = _rows(staged)
        if self.allow_shrink or not suspicious(rows, previous_rows=previous):
            return landing, staged, schema
        logger.warning("%s: %d rows after %d in the last version; pulled again", self.source, rows, previous)
        self.discard(staged)
        landing, staged, schema = self.land(placement)
        again = _rows(staged)
        if not agree(rows, again):
            self.discard(staged)
            seen = f"two pulls gave {rows} and {again} rows, the last version has {previous}"
            raise SourceShrank(self.source, f"{seen}; an answer was cut short")
        self.notes.append(f"rows fell from {previous} to {again}; a second pull confirmed it")
        return landing, staged, schema

    def _retain(self, state: FeedState) -> list[str]:
        rule = self.feed.retention
        now = self.folder.store.now()
        state = self.folder.state.change(
            lambda each: each.retained(versions=rule.versions, max_age=rule.max_age, now=now)
        )
        return [self.remove_version(number) for number in state.removing]

    def remove_version(self, number: int) -> str:
        """Deletes the files of a version that retention has removed; returns its key."""
        return remove_version(self.folder, number, run_id=self.run_id)


def remove_version(folder: FeedFolder, number: int, *, run_id: str = "") -> str:
    """Deletes the files of a version that the feed's state lists as being removed; idempotent. Returns its key."""
    key = version_key(number)

    def plan(base: Manifest) -> Planned | None:
        if base.deleted:
            return None
        return Planned(remove=tuple(file.name for file in base.files), deleted=True)

    folder.log(key).commit(Change(folder.new_id(), "delete", (), plan, run_id))
    folder.state.change(lambda now: now.without_removed(number))
    return key


def _data_file(staged: StagedFile, stats: FileStats) -> DataFile:
    return DataFile(
        name=staged.key.rpartition("/")[2],
        rows=stats.rows,
        size_bytes=staged.size_bytes,
        min_time=stats.min_time,
        max_time=stats.max_time,
        checksum=stats.checksum,
    )


def _offsets(manifest: Manifest) -> OffsetsPosition:
    return manifest.position if isinstance(manifest.position, OffsetsPosition) else OffsetsPosition()


def _rows(staged: Staged) -> int:
    return sum(file.rows for files in staged.values() for _, file in files)
