"""How rows of items in quarantine, of queue messages and dropped files, are landed once the feed was mended.

What makes it exact is what makes exports of items exact: a partition remembers what it holds. A message is remembered
as itself, so that it does not matter whether a replay lands it or the queue, which may give it again. A file has many
rows, of which those that were put aside are remembered one by one; nobody else lands these while the file stays what it
was. Lines leave quarantine afterwards: after a replay that died before, the next one finds their rows in the lake.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from datalake_assets.core.batches import Batches, DecodeItems, LandedItem, RejectedRow, SourceBatch
from datalake_assets.core.facts import PartitionFacts, WriteReport
from datalake_assets.core.item_ids import IdsPosition
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.row_texts import QuarantinedRow
from datalake_assets.core.schema import SchemaPolicy
from datalake_assets.errors import CommitConflict
from datalake_assets.lake.commit import Planned
from datalake_assets.lake.export_commits import Staged, begun_again
from datalake_assets.lake.item_exports import ItemsExport, ItemsFence, NamedItems, Plan, ids_of
from datalake_assets.lake.item_ledger import ItemLedger
from datalake_assets.lake.landing import Mask
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.quarantined_rows import Quarantine, take_out
from datalake_assets.lake.replay import ATTEMPTS, BATCH_ROWS, NO_ANSWER, Staying, Waiting, is_decoded, refuse_pulled

__all__ = ["replay_items"]

NO_ORIGIN = "it is not known which item it came with, so that it could be landed twice: have it sent again"
HELD = "its item could come again until a while ago, and nobody knows whether it was landed since"
OTHER_CONTENT = "its file has another content by now, or was never landed"
OTHER_READING = "its file was read again since it was put aside, so that nobody knows whether it was landed then"
UNDER_WAY = "its file is being landed"
REFUSED = "its file was refused as a whole: the next export reads it again"


def replay_items(folder: FeedFolder, batches: Batches, decode: DecodeItems | None, *, run_id: str = "") -> WriteReport:
    """Does what `TableWriter.replay` promises, for the feed of a folder that is read item by item."""
    refuse_pulled(folder)
    folder.store.probe()

    def begin() -> _ItemsReplay:
        waiting = _WaitingItems(folder, batches, decode)
        return _ItemsReplay(folder, waiting, (), run_id, allow_shrink=False, on_progress=None)

    export, report = begun_again(begin, attempts=ATTEMPTS)
    if report.partitions:
        folder.summary.merge(report.partitions, removed=(), at=folder.store.now())
    return dataclasses.replace(report, stayed=dict(export.stayed))


class _WaitingItems(Waiting):
    """A feed's quarantine as batches: rows of which it is known how they came, decoded under the feed as it is.

    Attributes:
        lines: Their lines' positions, by what a partition remembers them as.
        files: What is known of the files that they are of, by name.
        done: Positions of lines that are of no use any more: their file was landed as a whole since.
    """

    def __init__(self, folder: FeedFolder, batches: Batches, decode: DecodeItems | None) -> None:
        super().__init__(folder, batches, None)
        self._decode_items, self._ledger = decode, ItemLedger(folder)
        self.lines: dict[str, set[str]] = defaultdict(set)
        self.files: dict[str, LandedItem] = {}
        self.done: set[str] = set()
        self._entries: dict[str, LandedItem | None] = {}
        self._counted: set[str] = set()

    def __iter__(self) -> Iterator[SourceBatch]:
        """Streams the rows; the fence takes each once."""
        for _, _, rows in self._objects():
            for start in range(0, len(rows), BATCH_ROWS):
                yield from self._decoded(rows[start : start + BATCH_ROWS])

    def _decoded(self, rows: Sequence[QuarantinedRow]) -> Iterator[SourceBatch]:
        whole: list[QuarantinedRow] = []
        raw: list[RejectedRow] = []
        self._look_up({row.origin.name for row in rows if row.origin is not None and row.origin.name})
        for row in rows:
            why = self._why_not(row)
            if why is not None:
                self.stayed[why] += row.identity not in self._counted
                self._counted.add(row.identity)
            elif row.position not in self.done:
                self.lines[row.rejected.remembered_as].add(row.position)
                whole += [row] if is_decoded(row) else []
                raw += [] if is_decoded(row) else [row.rejected]
        alike: dict[tuple[str, int, str], list[QuarantinedRow]] = defaultdict(list)
        for row in whole:
            if row.origin is not None:
                alike[row.columns, row.origin.forget_after, row.origin.name].append(row)
        for (columns, forget_after, name), some in alike.items():
            found, good, rejected = self.read_texts(some, columns)
            items = pa.array([row.rejected.remembered_as for row in good], pa.string())
            until = datetime.fromtimestamp(forget_after, UTC)
            yield SourceBatch(found, None, None, tuple(rejected), items, until, item_name=name)
        if raw and self._decode_items is not None:
            yield from self._decode_items(raw, self.schema)

    def _look_up(self, names: set[str]) -> None:
        unknown = sorted(names - self._entries.keys() - {""})
        if not unknown:
            return
        self._entries.update(zip(unknown, self._ledger.known(unknown), strict=True))

    def _why_not(self, row: QuarantinedRow) -> str | None:
        origin = row.origin
        if origin is None:
            return NO_ORIGIN
        if origin.forget_after <= self._folder.store.now().timestamp():
            return HELD
        is_bare = not is_decoded(row) and not origin.envelope
        self._look_up({origin.name})
        if not origin.name:
            return NO_ANSWER if is_bare or (self._decode_items is None and not is_decoded(row)) else None
        return self._why_not_of_file(row, self._entries.get(origin.name), is_bare=is_bare)

    def _why_not_of_file(self, row: QuarantinedRow, entry: LandedItem | None, *, is_bare: bool) -> str | None:
        origin = row.origin
        if origin is None:
            raise AssertionError
        if is_bare:
            if entry is None or entry.refused or entry.state != "landed":
                return REFUSED
            self.done.add(row.position)
            return None
        reasons = {
            OTHER_CONTENT: entry is None or entry.item != origin.item or bool(entry.refused),
            UNDER_WAY: entry is not None and entry.state != "landed",
            OTHER_READING: entry is not None and (not entry.reading or entry.reading != origin.reading),
            NO_ANSWER: self._decode_items is None and not is_decoded(row),
        }
        if entry is not None:
            self.files[origin.name] = entry
        return next((reason for reason, holds in reasons.items() if holds), None)

    def _has_undecoded(self) -> bool:
        return False  # the lake's columns are those of all rows


@dataclass(slots=True)
class _ReplayFence(ItemsFence):
    """Lets in what no partition holds, once.

    Attributes:
        landed: What partitions remember of the rows that were let in, by partition key.
        there: The same of rows that are in the lake already.
        names: Files that rows were let in of, by partition key.
    """

    landed: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    there: set[str] = field(default_factory=set)
    names: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def new_rows(self, batch: SourceBatch, keys: npt.NDArray[np.int32], names: list[str], placed: Mask) -> Mask:
        """Implements `Fence`: one message may have several lines, of several receptions."""
        if batch.source_items is None:
            raise AssertionError
        items = batch.source_items.to_pylist()
        taken, first = set().union(*self.landed.values()), placed.copy()
        for row in np.flatnonzero(placed).tolist():
            first[row] = items[row] not in taken
            taken.add(items[row])
        wanted = ItemsFence.new_rows(self, batch, keys, names, first)
        for row in np.flatnonzero(first).tolist():
            if wanted[row]:
                self.landed[names[keys[row]]].add(items[row])
            else:
                self.there.add(items[row])
        for number, key in enumerate(names):
            if batch.item_name and (wanted & (keys == number)).any():
                self.names[key].add(batch.item_name)
        return wanted


class _ItemsReplay(ItemsExport):
    """Rows in quarantine are appended, each to the partition of its time, unless it has them."""

    commit_kind = "replay"
    batches: _WaitingItems

    def __init__(self, folder: FeedFolder, *args: Any, **more: Any) -> None:
        super().__init__(folder, *args, **more)
        self._unpinned = folder

    def run(self) -> WriteReport:
        """Implements `Export.run`."""
        self.stayed: Counter[str] = Counter()
        self.fence = fence = _ReplayFence(self._held, self.folder.store.now())
        landing, staged, schema = self.land(self._time_placement(), fence=fence)
        self.stayed.update(self.batches.stayed)
        reports: dict[str, PartitionFacts] = {}
        if staged:
            try:
                looked_at = self._entered(fence, staged)
                encoded = self.fix_schema(schema, {})
                plans = dict(self._plans(sorted(staged), encoded, NamedItems(self.folder, (), fence, ""), {}))
            except BaseException:
                self.discard(staged)
                raise
            reports = self.commit_all(
                {key: (staged[key], _on(looked_at[key], plan, fence.names[key])) for key, plan in plans.items()}
            )
            self._delete_forgotten(reports)
        self._take_out(fence)
        self.stayed = +self.stayed
        return self.result(landing, reports, schema)

    def _entered(self, fence: _ReplayFence, staged: Staged) -> dict[str, IdsPosition]:
        """Enters where rows of files will be, then looks at the partitions again; gives what these hold.

        Whoever replaces a file's rows enters that first, and then takes its former rows out of all partitions that are
        entered. So if the file is still entered as it was after this look, its removal can only come later: it either
        finds our rows, or changes a partition before us, which our commit then sees.

        Raises:
            CommitConflict: A file, or what a partition holds, is another by now.
        """
        files = {name: self.batches.files[name] for names in fence.names.values() for name in names}
        ledger = ItemLedger(self.folder)
        ledger.widen(
            {name: (each, [key for key in staged if name in fence.names[key]]) for name, each in files.items()}
        )
        self.folder = self._unpinned.pinned()
        self._logs.clear()
        looked_at = {key: ids_of(self.settled(key)) for key in staged}
        for key, position in looked_at.items():
            if self._in(key, position, fence.staged[key]):
                raise CommitConflict(self.folder.data_folder(key), "another writer landed some of these rows")
        for was, now in zip(files.values(), ledger.known(list(files)), strict=True):
            if now is None or (now.item, now.state, now.reading) != (was.item, was.state, was.reading):
                raise CommitConflict(was.name, "another writer lands another content of it")
        return looked_at

    def quarantine(self) -> Quarantine:
        """Implements `Export.quarantine`."""
        return Staying(self.stayed)

    @property
    def policy(self) -> SchemaPolicy:
        """Implements `Export.policy`: what does not fit stays where it is."""
        return "discard_value" if self.feed.schema_policy == "discard_value" else "discard_row"

    def position_read(self, key: str) -> Mapping[str, Any]:
        """Implements `Export.position_read`."""
        return {"kind": self.kind, "items": len(self.fence.staged[key]), "replayed": True}

    def _take_out(self, fence: _ReplayFence) -> None:
        """Takes the lines of what is in the lake by now out of quarantine."""
        named = set().union(fence.there, *fence.landed.values())
        gone = self.batches.done.union(*(self.batches.lines[each] for each in named))
        if gone:
            self._unpinned.state.to_write()
            take_out(self.folder.store, self.folder.quarantine, lambda _, rows: [row.position in gone for row in rows])


def _on(looked_at: IdsPosition, plan: Plan, files: set[str]) -> Callable[[Manifest], Planned]:
    """The plan of a partition; with rows of files it holds only on what was looked at."""

    def planned(base: Manifest) -> Planned:
        if files and ids_of(base) != looked_at:
            raise CommitConflict(min(files), "another writer changed a partition of it meanwhile")
        return plan(base)

    return planned
