"""A pass over a feed's source that decides about each row as an export does, and writes nothing: for who only looks.

Its schema, its rules of placement and its quarantine are the export's own; files, quarantined lines, state and position
are left alone. What was looked at before is known by its numbers, since no partition's position is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from datalake_assets.core.batches import Batches, ReadRequest, RejectedRow
from datalake_assets.core.merging import MergeRule, merged_columns
from datalake_assets.core.partitions import UNKNOWN_PARTITION
from datalake_assets.core.position import OffsetsPosition, SourcePartition
from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import PositionKind
from datalake_assets.lake.export_commits import Export
from datalake_assets.lake.landing import Contract, Landing, OffsetsFence, Placement
from datalake_assets.lake.merge_changes import Collecting, Spool, Unwrapped
from datalake_assets.lake.quarantined_rows import Quarantine
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import WriteReport
from datalake_assets.lake.tables import folder_of, stored_batches

__all__ = ["look", "next_read"]


def next_read(store: Store, feed: Feed) -> ReadRequest:
    """What the lake has not for certain of a feed: its first offsets, of which source, and of which epoch."""
    state = folder_of(store, feed).state.load()
    return ReadRequest(start_offsets=dict(state.hint), source_id=state.source_id, epoch=state.epoch)


def look(store: Store, feed: Feed, batches: Batches, seen: dict[SourcePartition, int]) -> None:
    """Looks at what a source gives; whoever watches the pass sees what an export would do with it.

    Args:
        store: The lake, which is only read.
        feed: A feed whose rows are numbered.
        batches: The rows; they may have no end.
        seen: The highest offset that was looked at, by source partition; it is kept up to date, also where the pass
            fails.

    Raises:
        ConfigError: The feed's rows are not numbered: to look at a queue is to take from it.
        SourceError: The source failed.
    """
    if not feed.is_exported or feed.position_kind is not PositionKind.OFFSETS:
        raise ConfigError(
            f"feed {feed.name!r}: only numbered rows can be looked at without landing them; land it with"
            f" 'datalake run {feed.name} --live'"
        )
    _Look(folder_of(store, feed), stored_batches(store, feed, batches), seen).run_traced()


class _Look(Export):
    """One pass."""

    kind, commit_kind, prefix = "offsets", "look", "data"

    def __init__(self, folder: Any, batches: Batches, seen: dict[SourcePartition, int]) -> None:
        unwrapped = folder.feed.merge.envelope == "debezium"
        given = Unwrapped(batches, folder.feed) if unwrapped else batches
        super().__init__(folder, given, (), "", allow_shrink=False, on_progress=None)
        self._sent, self._seen = batches, seen

    def _check_epoch(self, request: ReadRequest) -> None:
        """Of a feed that was never landed, too, a pass begins where the last one ended."""
        if self.state.write_id:
            super()._check_epoch(request)

    def run(self) -> WriteReport:
        """Implements `Export.run`, without what it is for."""
        if self.feed.write == "merge":
            merged_columns(self.feed, self._sent.schema)
        schema, quarantine = self.schema(), self.quarantine()
        fence = _Fence(self.state.epoch, lambda _: OffsetsPosition(), seen=self._seen, shared=self.feed.shares_numbers)
        landing = self._landing(self._time_placement(), self.contract(schema), quarantine, fence)
        landing.run(self.batches)
        self.quarantined = quarantine.rows
        return self.result(landing, {}, schema)

    def _landing(
        self, placement: Placement, contract: Contract, quarantine: Quarantine, fence: OffsetsFence
    ) -> Landing:
        if self.feed.write != "merge":
            return Landing(placement, contract, _Nowhere(), quarantine, fence=fence)
        rule, nothing = MergeRule.of(self.feed), OffsetsPosition()
        return Collecting(placement, contract, _NoSpool(), quarantine, fence, rule=rule, done=nothing, on_progress=None)

    def contract(self, schema: pa.Schema) -> Contract:
        """Implements `Export.contract`; what would be kept beside is not."""
        return Contract(schema, self.policy, _Unkept(), self.folder.partition_path)

    def quarantine(self) -> Quarantine:
        """Implements `Export.quarantine`; whoever lands the rows writes them there."""
        return _Unkept()

    def position_read(self, key: str) -> Mapping[str, Any]:  # noqa: ARG002  nothing has a position
        """Implements `Export.position_read`."""
        return {}


class _Fence(OffsetsFence):
    """Knows what was looked at, and does not list what was rejected: a look may have no end."""

    def reject(self, row: RejectedRow) -> None:
        """Implements `Fence`."""
        super().reject(row)
        self.rejected.clear()


class _Nowhere:
    """Takes rows, and keeps none."""

    bytes_written = 0

    def write(self, rows: pa.RecordBatch, /) -> None:
        """Takes rows."""


class _NoSpool(Spool):
    """Takes changes, and keeps none."""

    def __init__(self) -> None:
        self.bytes_written = 0

    def write(self, rows: pa.RecordBatch, *own: pa.Array) -> None:
        """Implements `Spool`."""


class _Unkept(Quarantine):
    """Counts rows, and keeps none."""

    def __init__(self) -> None:
        self.rows = 0

    def add(
        self,
        rows: Iterable[RejectedRow],
        *,
        partition_path: str = UNKNOWN_PARTITION,  # noqa: ARG002
        epoch: int | None = None,  # noqa: ARG002
    ) -> None:
        """Implements `Quarantine`."""
        self.rows += sum(1 for _ in rows)

    def flush(self) -> None:
        """Implements `Quarantine`: there is nothing to write."""
