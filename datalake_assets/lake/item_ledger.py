"""What a feed remembers of items by their names: dropped files, which lie where they were dropped and can change there.

The positions of partitions alone decide whether an item's rows are there (ADR 030). This ledger says beforehand which
items need not be read again, and afterwards where the rows of one lie whose content has changed. It has two steps, so
that it is never behind the rows: an item is entered as ``landing``, with all partitions that will have rows of it,
before the first of them is committed, and as ``landed`` after the last.

It is a log of immutable Parquet objects beside the manifests, named by one small object that is changed by
compare-and-swap. Small objects are merged into larger ones as they come, so that there are few, and each entry is
written again only as often as their number doubles. Whoever looks keeps the objects that it has read.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datalake_assets.core.arrow_arrays import empty_table, moments, of_numbers, of_texts
from datalake_assets.core.batches import LandedItem
from datalake_assets.core.item_ids import checksum_of
from datalake_assets.core.schema import schema_from_json
from datalake_assets.errors import CommitConflict, CorruptLake, ObjectNotFound, PreconditionFailed
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.swap import known_object, retried, swap_object
from datalake_assets.parquet.schemas import conform_table

__all__ = ["ItemLedger"]

# The name of an object of the log.
PREFIX, SUFFIX = "items-", ".parquet"
#: Attempts at one entry; each lost one means that another writer made one.
ATTEMPTS = 20
_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("item", pa.string()),
        ("version", pa.string()),
        ("size_bytes", pa.int64()),
        ("modified", pa.timestamp("us", "UTC")),
        ("rows", pa.int64()),
        ("rejected", pa.int64()),
        ("seconds", pa.float64()),
        ("refused", pa.string()),
        ("state", pa.string()),
        ("partitions", pa.list_(pa.string())),
        ("superseded", pa.list_(pa.string())),
        ("number", pa.int64()),
        ("reading", pa.string()),  # null in objects of earlier releases
    ]
)


@dataclass(frozen=True, slots=True)
class _Segment:
    """An object of the log: its name beside the manifests, how many entries, and its checksum."""

    name: str
    entries: int
    checksum: str


@dataclass(frozen=True, slots=True)
class _Head:
    """The object that names the others.

    Attributes:
        segments: The log.
        number: Of the next entry.
        write_id: Fresh for every write.
    """

    segments: tuple[_Segment, ...] = ()
    number: int = 1
    write_id: str = ""

    def to_bytes(self) -> bytes:
        return json.dumps({"format": 1, **asdict(self)}).encode()

    @classmethod
    def of(cls, body: bytes | None, *, where: str) -> _Head:
        if body is None:
            return cls()
        try:
            document = json.loads(body)
            if document["format"] != 1:
                raise CorruptLake(
                    where, f"ledger of format {document['format']}", cure="use a newer release of this package"
                )
            segments = tuple(_Segment(**each) for each in document["segments"])
            return cls(segments, int(document["number"]), str(document["write_id"]))
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptLake(where, f"not a ledger of items: {error!r}") from error


class ItemLedger:
    """The ledger of one feed; implements `LandedItems`. Safe to use from threads.

    Args:
        folder: The feed's corner of the lake.
    """

    def __init__(self, folder: FeedFolder) -> None:
        self._store: Store = folder.store
        self._folder, self._new_id = folder.control, folder.new_id
        self._key, self._state = f"{folder.control}/items.json", folder.state
        self._segments: dict[str, pa.Table] = {}
        self._joined: tuple[tuple[_Segment, ...], pa.Table] = ((), empty_table(_SCHEMA))
        self._lock = threading.Lock()

    @property
    def schema(self) -> pa.Schema | None:
        """Implements `LandedItems`."""
        known = self._state.load().schema
        return None if known is None else schema_from_json(known)

    def known(self, names: Sequence[str]) -> list[LandedItem | None]:
        """Implements `LandedItems`; costs a request, and one for each object that was not read before."""
        return self._among(self.entries(), names)

    def entries(self) -> pa.Table:
        """The newest entry of every item, in the columns of `LandedItem`; ordered by name."""
        return retried(lambda: self._entries(self._load()[0]), attempts=ATTEMPTS, on=(_SegmentGone,))

    def begin(self, entries: Mapping[LandedItem, LandedItem | None]) -> None:
        """Enters items as ``landing``, before any of their rows is committed.

        Args:
            entries: The items, with all partitions that will have rows of them or may have had some; and what their
                source knew of them before.

        Raises:
            CommitConflict: Another writer is landing other content of one of them, or has landed it; or has entered
                more partitions for what is known of one, which nobody would look for its rows in.
        """
        own = [replace(each, state="landing") for each in entries]

        def choose(known: Sequence[LandedItem | None]) -> list[LandedItem]:
            for now, (item, before) in zip(known, entries.items(), strict=True):
                if _identity(now) not in {_identity(before), item.item}:
                    raise CommitConflict(item.name, "another writer lands another content of it")
                _refuse_further(now, before)
            return [_joined(mine, now) for mine, now in zip(own, known, strict=True)]

        self._enter(own, choose)

    def end(self, entries: Mapping[LandedItem, LandedItem | None]) -> None:
        """Enters items as ``landed``, after all of their rows are committed; but for those that changed meanwhile.

        Args:
            entries: The items, with the partitions that have rows of them; and what was known before.

        Raises:
            CommitConflict: Somebody has entered more partitions for what was known of one, whose rows go with it.
        """
        own = [replace(each, state="landed") for each in entries]

        def choose(known: Sequence[LandedItem | None]) -> list[LandedItem]:
            for mine, now, before in zip(own, known, entries.values(), strict=True):
                if _identity(now) != mine.item:  # it was not begun
                    _refuse_further(now, before)
            return [
                # what others entered since it was landed stays: a replay knows more partitions by then
                _joined(mine, now) if now is not None and now.state == "landed" else mine
                for mine, now, before in zip(own, known, entries.values(), strict=True)
                if _identity(now) in {mine.item, _identity(before)}
            ]

        self._enter(own, choose)

    def widen(self, items: Mapping[str, tuple[LandedItem, Iterable[str]]]) -> None:
        """Enters partitions that may have rows of landed items, too, by the items' names; all else stays.

        Args:
            items: Each as it was known, and keys of partitions.

        Raises:
            CommitConflict: One has another content by now, or is just being landed.
        """
        wanted = [replace(each, partitions=tuple(sorted({*each.partitions, *more}))) for each, more in items.values()]

        def choose(known: Sequence[LandedItem | None]) -> list[LandedItem]:
            for now, (was, _) in zip(known, items.values(), strict=True):
                if now is None or replace(now, partitions=(), number=0) != replace(was, partitions=(), number=0):
                    raise CommitConflict(was.name, "another writer lands another content of it")
            return [
                replace(mine, partitions=tuple(sorted({*mine.partitions, *now.partitions})))
                for mine, now in zip(wanted, known, strict=True)
                if now is not None and not set(mine.partitions) <= set(now.partitions)
            ]

        self._enter(wanted, choose)

    def _enter(
        self, entries: Sequence[LandedItem], choose: Callable[[Sequence[LandedItem | None]], list[LandedItem]]
    ) -> None:
        names = [each.name for each in entries]

        def attempt() -> None:
            head, etag = self._load()
            chosen = choose(self._among(self._entries(head), names))
            if not chosen:
                return
            merged = _to_merge(head.segments, len(chosen))
            body, count = self._merged([replace(each, number=head.number) for each in chosen], merged)
            segment = _Segment(f"{PREFIX}{self._new_id()}{SUFFIX}", count, checksum_of(body))
            self._store.put(f"{self._folder}/{segment.name}", body)
            kept = tuple(each for each in head.segments if each not in merged)
            after = _Head((*kept, segment), head.number + 1, self._new_id())
            swap_object(self._store, self._key, after.to_bytes(), etag=etag)
            self._store.delete(f"{self._folder}/{each.name}" for each in merged)

        if entries:
            retried(attempt, attempts=ATTEMPTS, on=(PreconditionFailed, _SegmentGone))

    def _merged(self, entries: Sequence[LandedItem], segments: Sequence[_Segment]) -> tuple[bytes, int]:
        """The bytes of a new object, and how many entries it has."""
        table = _newest(pa.concat_tables([_table(entries), *(self._segment(each) for each in segments)]))
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", store_schema=False)
        return sink.getvalue(), table.num_rows

    def _load(self) -> tuple[_Head, str | None]:
        known = known_object(self._store, self._key)
        return _Head.of(known.body, where=self._key), known.etag

    def _entries(self, head: _Head) -> pa.Table:
        with self._lock:
            if self._joined[0] != head.segments:
                tables = [self._segment(each) for each in head.segments]
                joined = _newest(pa.concat_tables(tables)) if tables else empty_table(_SCHEMA)
                self._joined = head.segments, joined
                self._segments = {each.name: self._segments[each.name] for each in head.segments}
            return self._joined[1]

    def _segment(self, segment: _Segment) -> pa.Table:
        if segment.name not in self._segments:
            where = f"{self._folder}/{segment.name}"
            try:
                body = self._store.get(where)[0]
            except ObjectNotFound as error:
                if segment in self._load()[0].segments:
                    raise CorruptLake(where, "a part of the ledger of items is gone", cure=_CURE) from error
                raise _SegmentGone from error
            if checksum_of(body) != segment.checksum:
                raise CorruptLake(where, "a part of the ledger of items is damaged", cure=_CURE)
            # `pyarrow.parquet.read_table` would load pandas
            self._segments[segment.name] = conform_table(pq.ParquetFile(pa.BufferReader(body)).read(), _SCHEMA)
        return self._segments[segment.name]

    @staticmethod
    def _among(entries: pa.Table, names: Sequence[str]) -> list[LandedItem | None]:
        if not entries.num_rows:
            return [None] * len(names)
        at = pc.index_in(of_texts(names), value_set=entries.column("name"))
        items = map(_item, _plain(entries.take(at.drop_null())).to_pylist())
        return [next(items) if is_there else None for is_there in at.is_valid().to_pylist()]

    def objects(self) -> Iterator[str]:
        """Keys of the objects that the ledger names, in the lake."""
        return (f"{self._folder}/{each.name}" for each in self._load()[0].segments)


def _table(entries: Sequence[LandedItem]) -> pa.Table:
    return pa.Table.from_arrays([_column(entries, each) for each in _SCHEMA], schema=_SCHEMA)


def _column(entries: Sequence[LandedItem], field: pa.Field) -> pa.Array:
    values = [getattr(each, field.name) for each in entries]
    if pa.types.is_string(field.type):
        return of_texts(values)
    if pa.types.is_timestamp(field.type):
        return moments(values, field.type)
    if pa.types.is_list(field.type):
        ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
        return pa.ListArray.from_arrays(of_numbers(ends), of_texts([text for each in values for text in each]))
    return of_numbers(np.array(values, field.type.to_pandas_dtype()))


def _plain(entries: pa.Table) -> pa.Table:
    """Entries whose times have no zone; Arrow loads a library of zones, and pandas, to give one that has."""
    index = _SCHEMA.get_field_index("modified")
    return entries.set_column(index, "modified", entries.column(index).cast(pa.timestamp("us")))


def _item(entry: dict[str, Any]) -> LandedItem:
    values: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in entry.items()}
    modified = values["modified"].replace(tzinfo=UTC)
    return LandedItem(**{**values, "modified": modified, "reading": values["reading"] or ""})


def _identity(item: LandedItem | None) -> str:
    return "" if item is None else item.item


def _refuse_further(now: LandedItem | None, before: LandedItem | None) -> None:
    """Refuses to go on from what was known of an item if that had rows in further partitions since.

    Raises:
        CommitConflict: It has: a replay landed some from quarantine.
    """
    if now is None or before is None or now.item != before.item:
        return
    if set(now.partitions) - set(before.partitions):
        raise CommitConflict(now.name, "rows of it were landed from quarantine meanwhile")


def _joined(mine: LandedItem, now: LandedItem | None) -> LandedItem:
    """An entry with all partitions that are entered for the same content."""
    if now is None or now.item != mine.item:
        return mine
    return replace(mine, partitions=tuple(sorted({*mine.partitions, *now.partitions})))


_CURE = "restore it from a backup of the lake: without it nobody knows where the rows of files lie that have changed"


class _SegmentGone(Exception):
    """Another writer merged an object of the log meanwhile."""


def _to_merge(segments: Iterable[_Segment], more: int) -> tuple[_Segment, ...]:
    """The objects that are worth merging with so many entries."""
    taken: list[_Segment] = []
    for each in sorted(segments, key=lambda each: each.entries):
        if each.entries > 2 * more:
            break
        taken.append(each)
        more += each.entries
    return tuple(taken)


def _newest(table: pa.Table) -> pa.Table:
    """The newest entry of each name."""
    ordered = table.sort_by([("name", "ascending"), ("number", "descending")])
    names = ordered.column("name").combine_chunks()
    if len(names) < 2:  # noqa: PLR2004  nothing to compare
        return ordered
    first = pa.concat_arrays(
        [of_numbers(np.ones(1, np.bool_)), pc.not_equal(names.slice(1), names.slice(0, len(names) - 1))]
    )
    return ordered.filter(first).combine_chunks()
