"""A mart in the lake: partitions that are made anew when what they are made of has changed, and versions likewise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from datalake_assets.core.batches import Batches, ReadRequest
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partitions import PartitionBy, TimeWindow, key_of, keys_in, version_key, window_of
from datalake_assets.core.position import SnapshotPosition, WindowPosition
from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.asset_table import ReplaceExport, joined_reports
from datalake_assets.lake.export_commits import Export
from datalake_assets.lake.export_kinds import SnapshotExport
from datalake_assets.lake.feed_documents import FeedDocuments
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.marts.mart_inputs import Contents, MadeByPartition, MartInputs, contents_of
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import ExportPlan, Progress, TableReader, WriteReport

__all__ = ["MartTable"]


class MartExport(ReplaceExport):
    """A partition is replaced by what the query gives for it now, and remembers what that was made of."""

    records_empty = True


class MartVersionExport(SnapshotExport):
    """A version is what the query gives for everything; one that is made of what there is now stays, as it should."""

    def _committed_before(self, key: str) -> WriteReport:
        return replace(super()._committed_before(key), notes=())


class MartTable(HiveTable):
    """A mart; implements `LakeTable`.

    Args:
        store: The lake.
        feed: The mart.
        open_input: Opens a feed that it reads.
    """

    def __init__(self, store: Store, feed: Feed, *, open_input: Callable[[Feed], TableReader]) -> None:
        super().__init__(store, feed)
        self._open_input = open_input

    @property
    def _export(self) -> type[Export]:
        return MartVersionExport if self.feed.kind is FeedKind.TABLE else MartExport

    def plan(self, partitions: Sequence[str] | None = None, *, new_epoch: bool = False) -> ExportPlan:
        """Implements `LakeTable`: None means from the first stale partition to the last; if none is, the last one.

        Of a table that is not stale, it is the present version, and nothing will be done.

        Raises:
            ConfigError: The query is none, or reads what is not there.
        """
        if partitions is not None:
            return super().plan(partitions, new_epoch=new_epoch)
        if self.feed.kind is FeedKind.TABLE:
            current = self._current()
            return ExportPlan((current,), ReadRequest()) if current else super().plan()
        keys = self._stale_range()
        return ExportPlan(keys, ReadRequest(window=self._window(keys)))

    def is_stale(self) -> bool:
        """Whether something would be another if it were made now.

        Raises:
            ConfigError: The query is none, or reads what is not there.
        """
        if self.feed.kind is FeedKind.TABLE:
            return not self._current()
        return self._stale_window() is not None

    def write(
        self,
        batches: Batches,
        *,
        partitions: Sequence[str],
        run_id: str,
        allow_shrink: bool = True,  # noqa: ARG002  what the query gives is all there is
        on_progress: Callable[[Progress], None] | None = None,
    ) -> WriteReport:
        """Implements `LakeTable`: stale partitions are made anew, one by one; the others stay as they are.

        If one fails, those before it stay, and a repetition does the rest.

        Raises:
            ConfigError: The query cannot be run, or gives rows of other partitions.
            SchemaChanged: Its columns are others than before.
        """
        if not isinstance(batches, MadeByPartition):
            raise ConfigError(f"feed {self.feed.name!r} is a mart: only its query gives its rows")
        if self.feed.kind is FeedKind.TABLE:
            return self._land(batches, partitions[0], run_id, on_progress)
        contents = batches.contents()
        wanted, emptied = batches.inputs.by_partition(contents, partitions), batches.inputs.emptied(contents)
        known = self.snapshot(partitions).manifests()
        reports: list[WriteReport] = []
        written: dict[str, Manifest] = {}
        for key in partitions:
            if _is_current(known[key], wanted.get(key), emptied):
                reports.append(self._untouched(key, known[key], batches))
                continue
            reports.append(self._land(batches, key, run_id, on_progress))
            written |= self._written
        self._written = {**{key: known[key] for key in partitions}, **written}
        return replace(joined_reports(reports), totals=self.totals())

    def _land(
        self, batches: MadeByPartition, key: str, run_id: str, on_progress: Callable[[Progress], None] | None
    ) -> WriteReport:
        return super().write(
            batches.of(key), partitions=[key], run_id=run_id, allow_shrink=True, on_progress=on_progress
        )

    def _untouched(self, key: str, manifest: Manifest, batches: MadeByPartition) -> WriteReport:
        schema = self.snapshot([]).dataset().schema
        facts = (self._folder.report(key, manifest),)
        return WriteReport(facts, 0, 0, 0, schema if schema.names else batches.schema, {})

    def _current(self) -> str:
        """The version that there is, if it is made of what its inputs hold now; else empty."""
        state = self._folder.state.load()
        if state.current is None:
            return ""
        key = version_key(state.current.number)
        position = self._folder.log(key).load().manifest.position
        inputs, contents = self._inputs_now()
        now = inputs.digest(contents)
        return key if isinstance(position, SnapshotPosition) and position.inputs == now else ""

    def _stale_range(self) -> tuple[str, ...]:
        by = PartitionBy(self.feed.partition_by)
        window = self._stale_window()
        if window is not None:
            return tuple(keys_in(window, by))
        present = self._folder.partition_keys()
        return (present[-1] if present else key_of(self._folder.store.now(), by),)

    def _stale_window(self) -> TimeWindow | None:
        """From the first stale partition to the last."""
        by, now = PartitionBy(self.feed.partition_by), self._folder.store.now()
        wanted, emptied = self._wanted(self._folder.partition_keys())
        known = self.snapshot(list(wanted)).manifests()
        stale = [key for key, digest in wanted.items() if not _is_current(known[key], digest, emptied)]
        windows = [window_of(key, by) for key in stale]
        windows = [each for each in windows if each.end > self.feed.start_time and each.start <= now]
        if not windows:
            return None
        return TimeWindow(min(each.start for each in windows), max(each.end for each in windows))

    def _wanted(self, present: Sequence[str]) -> tuple[Mapping[str, str | None], str]:
        """What each partition is to be made of; None of one that is there, and has nothing to be made of any more.

        And what such a one is made of.
        """
        inputs, contents = self._inputs_now()
        found = inputs.by_partition(contents)
        if not found:  # no input has partitions of its own
            current = key_of(self._folder.store.now(), PartitionBy(self.feed.partition_by))
            found = inputs.by_partition(contents, sorted({*present, current}))
        return {**dict.fromkeys(present), **found}, inputs.emptied(contents)

    def _inputs_now(self) -> tuple[MartInputs, Contents]:
        inputs = MartInputs.of(self.feed, FeedDocuments(self._folder.store).list().feeds)
        return inputs, contents_of(inputs, self._open_input)


def _is_current(manifest: Manifest, digest: str | None, emptied: str) -> bool:
    """Whether a partition is made of what it would be made of now.

    One without anything to read is, too, if it has no rows; its query can give some all the same, as ``count(*)`` does.
    One whose last commit was interrupted is not: making it anew finishes that, and writes nothing if all is there.
    """
    if manifest.pending is not None or manifest.garbage:
        return False
    if digest is None and not manifest.files:
        return True
    return isinstance(manifest.position, WindowPosition) and manifest.position.inputs == (digest or emptied)
