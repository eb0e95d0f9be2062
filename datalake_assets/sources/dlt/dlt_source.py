"""Resources of dlt as batches: each extraction is landed once, and the state of the next one with it.

An extraction begins with the state of the last one that was landed whole. It is entered in the feed's ledger before its
first row is committed, together with the state that it began with, and as landed after the last, with the state that it
came to. Each row is an item of that extraction: one that died is repeated from the same state, and what it has landed
already is known. So the state never runs ahead of the rows, nor behind them. See the ADR on extractions.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from datalake_assets.core.batches import Batches, FinishedItem, LandedItem, ReadRequest, RejectedRow, SourceBatch
from datalake_assets.core.row_texts import row_to_text
from datalake_assets.core.schema import DISCARDING, lake_name, lake_names, source_metadata
from datalake_assets.errors import InvalidFeed, SourceRefused
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.settings import Settings
from datalake_assets.sources.base import SourceObject
from datalake_assets.sources.dlt.dlt_declaration import DltSettings, declared_resource
from datalake_assets.sources.dlt.extraction import Extraction, State, extracted, resource_of
from datalake_assets.sources.files.text_values import named_type
from datalake_assets.sources.sql.databases import exact

__all__ = ["DltBatches", "DltResources", "connect"]

#: The ledger's name of a feed's extractions.
MARK = "extraction"
BATCH_ROWS = 10_000
_MOMENT, _CLOCK = pa.timestamp("us", "UTC"), pa.timestamp("us")
_MOST_DIGITS = 38
#: Types of columns by the one kind that all of their values are.
_INFERRED: Mapping[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int": pa.int64(),
    "large": pa.decimal128(_MOST_DIGITS, 0),
    "float": pa.float64(),
    "str": pa.string(),
    "json": pa.string(),
    "bytes": pa.binary(),
    "moment": _MOMENT,
    "clock": _CLOCK,
    "date": pa.date32(),
    "time": pa.time64("us"),
}
#: Types by dlt's names of them; decimals have digits.
_HINTED: Mapping[str, pa.DataType] = {
    "text": pa.string(),
    "json": pa.string(),
    "double": pa.float64(),
    "bool": pa.bool_(),
    "bigint": pa.int64(),
    "binary": pa.binary(),
    "timestamp": _MOMENT,
    "date": pa.date32(),
    "time": pa.time64("us"),
    "wei": pa.decimal128(_MOST_DIGITS, 0),
}


def connect(settings: Settings) -> DltResources:
    """Dlt by an installation's settings; imports nothing of it yet."""
    own = settings.of(DltSettings)
    return DltResources([each.strip() for each in own.dlt_modules.split(",") if each.strip()])


class DltResources:
    """Resources of dlt; implements `SourceSystem`.

    Args:
        modules: Those that feeds may name resources of.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = modules

    def read(self, feed: Feed, request: ReadRequest) -> Batches:
        """Implements `SourceSystem`."""
        return DltBatches(feed, request, self._modules)

    def discover(self) -> Iterator[SourceObject]:
        """Implements `SourceSystem`: there is no list of resources."""
        return iter(())

    def check(self, feed: Feed) -> None:
        """Implements `SourceSystem`: makes the resource, and extracts nothing."""
        _ = DltBatches(feed, ReadRequest(), self._modules).time_column
        resource_of(declared_resource(feed), self._modules)

    def count(self, feed: Feed) -> None:
        """Implements `SourceSystem`: nobody knows without extracting."""

    def close(self) -> None:
        """Implements `SourceSystem`."""


@dataclass(frozen=True, slots=True)
class _Generation:
    """One extraction, however often it is tried.

    Attributes:
        number: Counts them.
        before: The state that it begins with.
        began: When it was tried first.
        former: The ledger's entry that it follows.
    """

    number: int
    before: State
    began: datetime
    former: LandedItem | None

    @classmethod
    def following(cls, former: LandedItem | None) -> _Generation:
        """The extraction after one that was landed, or the same one again, if that was not landed whole."""
        now = datetime.now(UTC)
        if former is None:
            return cls(1, {}, now, None)
        known = _json().typed_loads(former.version)
        if former.state == "landed":
            return cls(int(known["generation"]) + 1, known["after"], now, former)
        return cls(int(known["generation"]), known["before"], former.modified, former)

    def mark(self, extraction: Extraction, *, rejected: int, seconds: float) -> LandedItem:
        """The ledger's entry; each attempt has an identity of its own."""
        document = {"generation": self.number, "before": extraction.before, "after": extraction.after}
        item = f"{MARK} {self.number}@{uuid.uuid4().hex}"
        return LandedItem(MARK, item, _json().typed_dumps(document), 0, self.began, extraction.rows, rejected, seconds)


class DltBatches:
    """One read of a resource: an extraction; implements `Batches`.

    Args:
        feed: The feed.
        request: What to read.
        modules: Those that feeds may name resources of.
    """

    def __init__(self, feed: Feed, request: ReadRequest, modules: Sequence[str]) -> None:
        self._feed, self._source, self._modules = feed, declared_resource(feed), modules
        self.request = request
        self.recreated, self.unfinished = False, ""
        self._ready: tuple[_Generation, Extraction] | None = None

    def acknowledge(self) -> None:
        """Implements `Batches`: the state is in the ledger."""

    @property
    def time_column(self) -> str | None:
        """Implements `Batches`.

        Raises:
            InvalidFeed: A stream has none.
        """
        if self._feed.kind is FeedKind.TABLE:
            return None
        if self._feed.row_time is None:
            raise InvalidFeed(self._feed.name, "time_column: name the column that partitions the rows")
        return self._feed.row_time

    @property
    def schema(self) -> pa.Schema:
        """Implements `Batches`; extracts, for the columns are known by the rows alone."""
        return self._columns(self._extraction()[1])[0]

    def _extraction(self) -> tuple[_Generation, Extraction]:
        if self._ready is None:
            landed = self.request.landed if self._feed.kind is FeedKind.STREAM else None
            former = landed.known([MARK])[0] if landed is not None else None
            generation = _Generation.following(former)
            self._ready = generation, extracted(self._source, self._modules, generation.before)
        return self._ready

    # columns

    def _columns(self, extraction: Extraction) -> tuple[pa.Schema, list[str]]:
        """The columns in the lake, and their names in the rows: those that the lake has, and new ones.

        A new one that has nothing but nulls so far waits for a value: its type would be fixed for good, as nothing.
        Only where what is new would be discarded it is text from the first.
        """
        known = self.request.landed.schema if self.request.landed is not None else None
        fields = {field.name: field for field in known or ()}
        names = list(extraction.types)
        originals = {self._source.rename.get(name, lake_name(name)): name for name in names}
        lake_names(names, feed=self._feed.name, rename=self._source.rename)  # refuses those that cannot be
        hints = {lake_name(name): hint for name, hint in extraction.hints.items()}
        for lake, name in originals.items():
            if lake in fields:
                continue
            kind = self._type(lake, extraction.types[name], hints.get(lake_name(name), {}))
            if kind is not None or self._feed.schema_policy in DISCARDING:
                fields[lake] = pa.field(lake, kind or pa.string(), metadata=source_metadata(name))
        for lake, kind_name in self._source.columns.items():
            fields.setdefault(lake, pa.field(lake, named_type(kind_name)))
        self._check_time(fields)
        if not fields:  # rows of nulls alone
            fields = {
                lake: pa.field(lake, pa.string(), metadata=source_metadata(name)) for lake, name in originals.items()
            }
        schema = pa.schema(fields.values())
        return schema, [originals.get(name, "") for name in schema.names]

    def _check_time(self, fields: dict[str, pa.Field]) -> None:
        name = self.time_column
        if name is None:
            return
        field = fields.setdefault(name, pa.field(name, _MOMENT))
        if not pt.is_timestamp(field.type):
            reason = f"time_column: {name!r} is {field.type}; say its type: --column-type {name}=timestamptz"
            raise InvalidFeed(self._feed.name, reason)

    def _type(self, name: str, kinds: set[str], hint: Mapping[str, Any]) -> pa.DataType | None:
        if name in self._source.columns:
            return named_type(self._source.columns[name])
        hinted = _hinted(hint)
        if hinted is not None:
            return hinted
        scales = {int(kind.partition(":")[2]) for kind in kinds if kind.startswith("decimal")}
        if scales and all(kind.startswith("decimal") or kind in {"int", "large"} for kind in kinds):
            return pa.decimal128(_MOST_DIGITS, max(scales))
        plain = "large" if kinds == {"int", "large"} else "float" if kinds == {"int", "float"} else None
        if not kinds:
            return None
        if len(kinds) > 1 and plain is None:
            reason = f"column {name!r} has values of several types: {', '.join(sorted(kinds))}"
            raise SourceRefused(self._source.where, reason, cure=f"say which it is: --column-type {name}=…")
        return _INFERRED[plain or next(iter(kinds))]

    # rows

    def __iter__(self) -> Iterator[SourceBatch]:
        """Implements `Batches`."""
        began = datetime.now(UTC)
        generation, extraction = self._extraction()
        self._ready = None  # the next iteration extracts anew
        try:
            schema, originals = self._columns(extraction)
            seen: Counter[str] = Counter()
            rejected = 0
            for rows in extraction.batches(BATCH_ROWS):
                batch = self._batch(rows, schema, originals, generation, seen)
                rejected += len(batch.rejected)
                yield batch
            is_news = extraction.rows > 0 or extraction.after != extraction.before
            if self._feed.kind is FeedKind.STREAM and (is_news or generation.former is None):
                seconds = (datetime.now(UTC) - began).total_seconds()
                item = generation.mark(extraction, rejected=rejected, seconds=seconds)
                empty = self._batch([], schema, originals, generation, seen)
                finished = FinishedItem(item, generation.former, is_mark=True)
                yield SourceBatch(
                    empty.rows,
                    source_items=empty.source_items,
                    forget_after=empty.forget_after,
                    finished=(finished,),
                )
        finally:
            extraction.close()

    def _batch(
        self,
        rows: Sequence[Mapping[str, Any]],
        schema: pa.Schema,
        originals: Sequence[str],
        generation: _Generation,
        seen: Counter[str],
    ) -> SourceBatch:
        found, bad = [], dict[int, str]()
        for field, name in zip(schema, originals, strict=True):
            column = exact([row.get(name) if name else None for row in rows], field.type)
            found.append(column.values)
            for row, reason in column.bad.items():
                bad.setdefault(row, f"{field.name}: {reason}")
        items = [self._item(row, generation, seen) for row in rows]
        rejected = tuple(RejectedRow(row_to_text(rows[row]), reason, items[row]) for row, reason in sorted(bad.items()))
        keep = pa.array([row not in bad for row in range(len(rows))], pa.bool_())
        batch = pa.RecordBatch.from_arrays(found, schema=schema).filter(keep)
        if self._feed.kind is FeedKind.TABLE:
            return SourceBatch(batch, rejected=rejected)
        until = generation.began + timedelta(days=self._source.horizon_days)
        named = pa.array(items, pa.string()).filter(keep)
        return SourceBatch(batch, rejected=rejected, source_items=named, forget_after=until)

    def _item(self, row: Mapping[str, Any], generation: _Generation, seen: Counter[str]) -> str:
        """A row's identity: its extraction, its content, and how many like it came before in that extraction."""
        digest = hashlib.blake2b(ascii(sorted(row.items())).encode(), digest_size=16).hexdigest()
        seen[digest] += 1
        return f"{generation.number}:{digest}:{seen[digest]}"


def _json() -> Any:
    """Dlt's own JSON, which keeps decimals, bytes and times."""
    from dlt.common.json import json  # noqa: PLC0415  an optional extra

    return json


def _hinted(hint: Mapping[str, Any]) -> pa.DataType | None:
    kind = hint.get("data_type")
    if kind == "decimal":
        precision, scale = hint.get("precision") or _MOST_DIGITS, hint.get("scale")
        return pa.decimal128(precision, 9 if scale is None else scale)  # dlt's default scale
    if kind == "timestamp" and hint.get("timezone") is False:
        return _CLOCK
    return _HINTED.get(kind or "")
