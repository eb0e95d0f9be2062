"""Tables: the whole table becomes a new version, and versions beyond retention are removed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from datalake_assets.core.feed_state import Version
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partitions import version_key, version_number
from datalake_assets.core.position import SnapshotPosition
from datalake_assets.core.schema import schema_from_json
from datalake_assets.core.snapshots import agree, suspicious
from datalake_assets.errors import SourceShrank
from datalake_assets.lake.base import WriteReport
from datalake_assets.lake.commit import Change, Planned
from datalake_assets.lake.export import Export, Staged
from datalake_assets.lake.landing import Landing
from datalake_assets.lake.layout import FeedFolder

__all__ = ["SnapshotExport", "enter_version", "retain"]
logger = logging.getLogger(__name__)


class SnapshotExport(Export):
    """The whole table becomes a new version; versions beyond retention are removed."""

    kind, commit_kind, prefix = "snapshot", "snapshot", "snapshot"
    keeps_empty = True

    def run(self) -> WriteReport:
        """See `Export.run`."""
        (key,) = self.partitions
        if self.settled(key).generation:
            return self._committed_before(key)
        self.as_of = as_of = self.folder.store.now()
        landing, staged, schema = self._pull(key)
        encoded = self.fix_schema(schema)
        files = staged.get(key, ())
        position = SnapshotPosition(as_of, sum(file.rows for _, file in files))

        def plan(base: Manifest) -> Planned | None:
            return None if base.generation else Planned(position=position, schema=encoded)

        before = self.state.current.rows if self.state.current else 0
        report = self.commit(key, files, plan)
        report = replace(report, rows_added=report.rows - before)
        enter_version(self.folder, key, self.settled(key))  # as it was committed, by us or by another writer of it
        return self.result(landing, {key: report}, schema, removed=retain(self.folder, run_id=self.run_id))

    def position_read(self, key: str) -> Mapping[str, Any]:  # noqa: ARG002  a table is pulled whole
        """See `Export.position_read`: when the pull began."""
        return {"kind": self.kind, "as_of": self.as_of.isoformat()}

    def _committed_before(self, key: str) -> WriteReport:
        """A past version cannot be pulled again: its rows stay as they are."""
        manifest = self.settled(key)
        enter_version(self.folder, key, manifest)  # a crash may have kept it from the state
        schema = schema_from_json(manifest.schema) if manifest.schema else self.batches.schema
        self.notes.append(f"version {key} was committed before and is kept as it is")
        report = self.folder.report(key, manifest)
        removed = tuple(retain(self.folder, run_id=self.run_id))
        return WriteReport((report,), 0, 0, 0, schema, {}, removed=removed, notes=tuple(self.notes))

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


def enter_version(folder: FeedFolder, key: str, manifest: Manifest) -> None:
    """Enters a committed version into the feed's state, unless it is there or was removed; idempotent."""
    if isinstance(manifest.position, SnapshotPosition) and not manifest.deleted:
        version = Version(version_number(key), manifest.position.as_of, manifest.position.rows)
        folder.state.change(lambda now: now.with_version(version))


def retain(folder: FeedFolder, *, run_id: str = "") -> list[str]:
    """Removes the versions beyond retention, the state's line first, and finishes removals that were interrupted.

    Returns:
        The removed partition keys.
    """
    rule, now = folder.feed.retention, folder.store.now()
    state = folder.state.change(lambda each: each.retained(versions=rule.versions, max_age=rule.max_age, now=now))
    return [_remove_version(folder, number, run_id=run_id) for number in state.removing]


def _remove_version(folder: FeedFolder, number: int, *, run_id: str) -> str:
    """Deletes the files of a version that the feed's state lists as being removed; idempotent. Returns its key."""
    key = version_key(number)

    def plan(base: Manifest) -> Planned | None:
        if base.deleted:
            return None
        return Planned(remove=tuple(file.name for file in base.files), deleted=True)

    folder.log(key).commit(Change(folder.new_id(), "delete", (), plan, run_id))
    folder.state.change(lambda now: now.without_removed(number))
    return key


def _rows(staged: Staged) -> int:
    return sum(file.rows for files in staged.values() for _, file in files)
