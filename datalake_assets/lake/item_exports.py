"""Exports of items without order: queue messages, dropped files. Each is landed once, however often it comes.

A partition's position says which items it holds (`datalake_assets.core.item_ids`). Where they are many they are sealed
in an object beside the manifest, written before the commit that names it; one that no manifest names is swept by age.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from datalake_assets.core.arrow_arrays import numbers_in
from datalake_assets.core.batches import Batches, FinishedItem, LandedItem, ReadInParts, RejectedRow, SourceBatch
from datalake_assets.core.files import DataFile
from datalake_assets.core.item_ids import (
    MAX_RECENT,
    NEVER,
    IdsPosition,
    SealedDigests,
    SealedIds,
    checksum_of,
    digest_of,
    forgotten_at,
)
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.position import SourcePartition
from datalake_assets.errors import CommitConflict, CorruptLake, ObjectNotFound
from datalake_assets.lake.commit import Planned
from datalake_assets.lake.export_commits import Export
from datalake_assets.lake.item_ledger import ItemLedger
from datalake_assets.lake.item_replacing import written_without
from datalake_assets.lake.landing import Mask
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.sealed_items import PREFIX, SUFFIX, place_of, sealed_keys
from datalake_assets.lake.store.base import StagedFile
from datalake_assets.lake.table import Progress, WriteReport

__all__ = ["ItemsExport", "ItemsFence", "NamedItems", "Plan", "ids_of", "landed_in_parts"]

_CURE = "restore it from a backup of the lake: without it nobody knows which items were landed"

Plan = Callable[[Manifest], Planned]
#: An object of digests, those of them that the position may have itself, and the objects that it replaces.
Sealed = tuple[SealedIds, Collection[bytes], tuple[str, ...]]


def landed_in_parts(
    batches: Batches,
    land: Callable[[Callable[[Progress], None] | None], WriteReport],
    on_progress: Callable[[Progress], None] | None,
) -> WriteReport:
    """Lands a read part by part, each committed and acknowledged before the next is read; of most reads that is one.

    Args:
        batches: The read.
        land: Lands and commits what one iteration gives.
        on_progress: Called now and then, with what all parts have come to.

    Returns:
        What all parts came to, without totals.
    """
    report = land(on_progress)
    batches.acknowledge()
    while isinstance(batches, ReadInParts) and batches.has_more:
        report = report.and_then(land(_after(report, on_progress)))
        batches.acknowledge()
    return report


def _after(report: WriteReport, on_progress: Callable[[Progress], None] | None) -> Callable[[Progress], None] | None:
    if on_progress is None:
        return None
    return lambda now: on_progress(replace(now, rows=report.rows_read + now.rows))


@dataclass(slots=True)
class ItemsFence:
    """Lets in the rows of items that their partition does not hold.

    Attributes:
        held: Whether a partition holds items, by its key and their digests.
        now: The time.
        staged: Of what was let in: digest -> when it can be forgotten, by partition key.
        known: Of what was not: digests that the partition holds, by its key.
    """

    held: Callable[[str, Mapping[bytes, int]], set[bytes]]
    now: datetime
    epoch: int = 0
    staged: dict[str, dict[bytes, int]] = field(default_factory=lambda: defaultdict(dict))
    known: dict[str, set[bytes]] = field(default_factory=lambda: defaultdict(set))

    def doubt(self, batch: SourceBatch) -> str:
        """Implements `Fence`: an item that was held for so long may have been landed, and forgotten since."""
        if batch.forget_after is not None and forgotten_at(batch.forget_after) <= self.now.timestamp():
            return f"it was held beyond {batch.forget_after:%Y-%m-%d %H:%M} UTC: nobody knows whether it was landed"
        return ""

    def reject(self, row: RejectedRow) -> None:
        """Implements `Fence`: quarantine knows its rows by their identity."""

    def passed(self, read_to: Mapping[SourcePartition, int]) -> None:
        """Implements `Fence`: items have no numbers."""

    def new_rows(self, batch: SourceBatch, keys: npt.NDArray[np.int32], names: list[str], placed: Mask) -> Mask:
        """Implements `Fence`."""
        if batch.source_items is None or batch.forget_after is None:
            raise AssertionError
        encoded = batch.source_items.dictionary_encode()
        digests = [digest_of(item) for item in encoded.dictionary.to_pylist()]
        items = numbers_in(encoded.indices)
        at = forgotten_at(batch.forget_after)
        wanted = placed.copy()
        for number, key in enumerate(names):
            rows = np.flatnonzero((keys == number) & placed)
            present = {digests[item]: at for item in np.flatnonzero(np.bincount(items[rows])).tolist()}
            there = self.held(key, present)
            known = np.array([digest in there for digest in digests], dtype=np.bool_)
            wanted[rows] = ~known[items[rows]]
            self.staged[key].update({digest: at for digest in present if digest not in there})
            self.known[key] |= there
        return wanted


@dataclass(frozen=True, slots=True)
class _Going:
    """An item whose former rows go from a partition.

    Attributes:
        name: Its name, as the rows have it.
        column: The column that has it.
        digest: Of its new content.
        former: Digests of its former contents: no writer that still has one may land it any more.
    """

    name: str
    column: str
    digest: bytes
    former: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _Removal:
    """What goes from a partition.

    Attributes:
        base: The partition as it was looked at.
        removed: Its files that have such rows.
        going: The items.
    """

    base: Manifest
    removed: tuple[str, ...]
    going: Sequence[_Going]

    @property
    def former(self) -> set[bytes]:
        """Digests of all former contents."""
        return {digest for each in self.going for digest in each.former}


class NamedItems:
    """The items of an export that are remembered by name, too.

    Attributes:
        former: What is to go, by partition key.
    """

    def __init__(self, folder: FeedFolder, finished: Sequence[FinishedItem], fence: ItemsFence, reading: str) -> None:
        self._reading = reading
        self._ledger = ItemLedger(folder)
        self.former: dict[str, list[_Going]] = defaultdict(list)
        self._begin: dict[LandedItem, LandedItem | None] = {}
        self._end: dict[LandedItem, LandedItem | None] = {}
        self._lasts = forgotten_at(NEVER)
        for each in finished:
            mine = {key for key, items in fence.staged.items() if digest_of(each.item.item) in items}
            self._add(each, mine, {key for key, items in fence.known.items() if digest_of(each.item.item) in items})

    def _add(self, each: FinishedItem, mine: set[str], known: set[str]) -> None:
        """Decides what becomes of an item that adds rows to some partitions, and has some in others already.

        These may be another writer's, who has begun since its source was asked: what was known of it says nothing then.
        """
        # a file that was only touched was not read again: its rows are those of the reading before
        former, item = each.former, replace(each.item, reading=each.item.reading or self._reading)
        before, is_same = set[str](), False
        superseded: tuple[str, ...] = ()
        if former is not None:
            before, is_same = set(former.partitions), former.item == item.item
            superseded = former.superseded if is_same else former.all_superseded
        if each.replaces and superseded and not item.refused:
            digests = tuple(digest_of(one) for one in superseded)
            going = _Going(item.name, each.name_column, digest_of(item.item), digests)
            for key in before:
                self.former[key].append(going)
        partitions = tuple(sorted(mine | known | before))
        if mine or each.is_mark or (each.replaces and superseded and before and not item.refused):
            self._begin[replace(item, partitions=partitions, superseded=superseded)] = former
        left = mine | known if each.replaces and not is_same and not item.refused else mine | known | before
        kept = superseded if item.refused else ()
        self._end[replace(item, partitions=tuple(sorted(left)), superseded=kept)] = former

    def begin(self) -> None:
        """Enters the items that have rows to land, or to remove, as such."""
        self._ledger.begin(self._begin)

    def end(self) -> None:
        """Enters all items as landed, or refused."""
        self._ledger.end(self._end)

    def remembered(self, removal: _Removal | None) -> dict[bytes, int]:
        """What a partition remembers with the removal of former rows: the new content, and the former ones."""
        if removal is None:
            return {}
        return {digest: self._lasts for each in removal.going for digest in (each.digest, *each.former)}


class ItemsExport(Export):
    """Rows of items are appended, each to the partition of its time, unless that holds their item already."""

    kind, commit_kind, prefix = "ids", "append", "data"
    fence: ItemsFence

    @cached_property
    def _known(self) -> dict[str, SealedDigests]:
        """The objects of digests that were read, by their keys."""
        return {}

    def run(self) -> WriteReport:
        """Implements `Export.run`."""
        self.reading = self.folder.new_id()
        self.fence = fence = ItemsFence(self._held, self.folder.store.now())
        landing, staged, schema = self.land(self._time_placement(), fence=fence)
        if landing.source_id:  # before the first row is committed: what is landed is of this place
            self.folder.state.change(lambda now: replace(self.there(now), source_id=landing.source_id))
        named = NamedItems(self.folder, landing.finished, fence, self.reading)
        written = dict(staged)
        removed: dict[str, _Removal | None] = {}
        try:
            named.begin()
            for key in sorted(named.former):
                removed[key] = self._without_former(key, named, schema, written)
        except BaseException:
            self.discard(written)
            raise
        encoded = self.fix_schema(schema, written) if written else None
        keys = sorted({*written, *(key for key, rest in removed.items() if rest is not None)})
        reports = self.commit_all(
            {key: (written.get(key, ()), plan) for key, plan in self._plans(keys, encoded, named, removed)}
        )
        named.end()
        self._delete_forgotten(reports)
        return self.result(landing, reports, schema)

    def given_up(self) -> WriteReport:
        """As `Export.given_up`; these rows were not known before."""
        return replace(super().given_up(), rows_known=-self.rows_committed)

    def _without_former(
        self, key: str, named: NamedItems, schema: pa.Schema, written: dict[str, Sequence[tuple[StagedFile, DataFile]]]
    ) -> _Removal | None:
        """Stages a partition's files anew without former rows of items; None if the partition has the new ones."""
        base = self.settled(key)
        wanted = named.former[key]
        held = self._in(key, ids_of(base), {each.digest: 0 for each in wanted})
        going = [each for each in wanted if each.digest not in held]
        if not going:
            return None
        writer = self._writer(
            self._time_placement(), self.folder.prepared(schema, time_column=self.batches.time_column)
        )
        names = [each.name for each in going]
        rest = written_without(self.folder, key, base, writer, column=going[0].column, names=names, schema=schema)
        written[key] = (*written.get(key, ()), *rest.staged.get(key, ()))
        others = set(rest.staged) - {key}
        if others:
            self.discard(rest.staged)
            raise CorruptLake(
                self.folder.data_folder(key), f"it has rows of {min(others)}", cure="look with 'datalake verify'"
            )
        return _Removal(base, rest.removed, going)

    def position_read(self, key: str) -> Mapping[str, Any]:
        """Implements `Export.position_read`: how many items."""
        return {"kind": self.kind, "items": len(self.fence.staged[key])}

    def _held(self, key: str, digests: Mapping[bytes, int]) -> set[bytes]:
        """Which of some items a partition holds, as it was at first sight."""
        return self._in(key, ids_of(self.settled(key)), digests)

    def _in(self, key: str, position: IdsPosition, digests: Mapping[bytes, int]) -> set[bytes]:
        found = set(digests.keys() & position.recent.keys())
        for block in position.sealed:
            sealed = self._digests(key, block)
            found.update(digest for digest in digests if digest in sealed)
        return found

    def _digests(self, key: str, block: SealedIds) -> SealedDigests:
        name = f"{place_of(self.folder, key)}/{block.name}"
        if name not in self._known:
            try:
                self._known[name] = SealedDigests.of(self.folder.store.get(name)[0], block)
            except ObjectNotFound as error:
                if name in sealed_keys(self.folder, key, self.folder.pinned().log(key).load().manifest):
                    raise CorruptLake(name, "the list of landed items is gone", cure=_CURE) from error
                raise CommitConflict(name, "another writer merged it with others meanwhile") from error
            except ValueError as error:
                raise CorruptLake(name, f"the list of landed items is damaged: {error}", cure=_CURE) from error
        return self._known[name]

    def _plans(
        self, keys: Sequence[str], schema: str | None, named: NamedItems, removed: Mapping[str, _Removal | None]
    ) -> Iterator[tuple[str, Plan]]:
        """What the commit of each partition does; where all share one position, of all items at once."""
        landed = {key: {**self.fence.staged.get(key, {}), **named.remembered(removed.get(key))} for key in keys}
        former = {digest for each in removed.values() if each is not None for digest in each.former}
        if keys and self.folder.commits_at_once:
            together = {digest: at for key in keys for digest, at in landed[key].items()}
            sealed = self._seal(keys[0], ids_of(self.settled(keys[0])), together)
            for key in keys:
                yield key, self._plan(key, together, schema, sealed=sealed, removal=removed.get(key), former=former)
            return
        for key in keys:
            sealed = self._seal(key, ids_of(self.settled(key)), landed[key])
            yield key, self._plan(key, landed[key], schema, sealed=sealed, removal=removed.get(key), former=former)

    def _plan(
        self,
        key: str,
        landed: Mapping[bytes, int],
        schema: str | None,
        *,
        sealed: Sealed | None,
        removal: _Removal | None,
        former: Collection[bytes],
    ) -> Plan:
        coming = {digest: at for digest, at in landed.items() if digest not in former}

        def plan(base: Manifest) -> Planned:
            position = ids_of(base)
            if self._in(key, position, coming):
                raise CommitConflict(self.folder.data_folder(key), "another writer landed some of these items")
            if removal is not None and {each.name for each in base.files} != {each.name for each in removal.base.files}:
                raise CommitConflict(self.folder.data_folder(key), "another writer changed it meanwhile")
            if any(at <= self.folder.store.now().timestamp() for at in landed.values()):
                raise CommitConflict(self.folder.data_folder(key), "some of these items may be forgotten by now")
            moved = position.with_items(landed, now=self.fence.now)  # one time for all: they may share the position
            remove = () if removal is None else removal.removed
            return Planned(position=moved.with_sealed(*sealed) if sealed else moved, schema=schema, remove=remove)

        return plan

    def _seal(self, key: str, position: IdsPosition, landed: Mapping[bytes, int]) -> Sealed | None:
        """Writes the digests of a commit to be, and those before it, where they are too many for a manifest."""
        recent = {**position.recent, **landed}
        if len(recent) <= MAX_RECENT:
            return None
        merged = position.to_merge(len(recent))
        digests = SealedDigests.merged(recent, (self._digests(key, block) for block in merged))
        last = max(*recent.values(), *(block.forget_after for block in merged))
        block = SealedIds(f"{PREFIX}{self.folder.new_id()}{SUFFIX}", len(digests), last, checksum_of(digests.body))
        name = f"{place_of(self.folder, key)}/{block.name}"
        self.folder.store.put(name, digests.body)
        self._known[name] = digests
        return block, recent.keys(), tuple(each.name for each in merged)

    def _delete_forgotten(self, keys: Mapping[str, object]) -> None:
        """Deletes objects of digests that the partitions needed no longer after these commits."""
        for key in keys:
            left = set(sealed_keys(self.folder, key, self.settled(key)))
            mine = [name for name in self._known if name.startswith(f"{place_of(self.folder, key)}/{PREFIX}")]
            self.folder.store.delete(name for name in mine if name not in left)


def ids_of(manifest: Manifest) -> IdsPosition:
    """The items that a partition holds."""
    return manifest.position if isinstance(manifest.position, IdsPosition) else IdsPosition()
