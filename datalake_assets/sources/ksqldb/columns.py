"""How the columns of an answer become those of the lake; some are not shown, and only number or time the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datalake_assets.core.partitions import TimeWindow
from datalake_assets.core.schema import lake_name, lake_names, source_metadata
from datalake_assets.errors import InvalidFeed
from datalake_assets.feed import Feed
from datalake_assets.sources.ksqldb.declaration import ROWTIME, declared
from datalake_assets.sources.ksqldb.sql_types import (
    Column,
    KsqlArray,
    KsqlDecimal,
    KsqlMap,
    KsqlScalar,
    KsqlStruct,
    KsqlType,
)
from datalake_assets.sources.ksqldb.statements import epoch_ms

__all__ = ["LAKE_TIME", "SOURCE_KEY", "AnswerLayout", "is_timestamp", "layout_of", "resolve", "time_source"]

#: Field metadata of the columns that the server marks as a table's key.
SOURCE_KEY = b"source_key"
LAKE_TIME = pa.timestamp("ms", "UTC")


_SCALAR_TYPES: Final[Mapping[str, pa.DataType]] = {
    "BOOLEAN": pa.bool_(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "DOUBLE": pa.float64(),
    "STRING": pa.string(),
    "BYTES": pa.binary(),
    "TIMESTAMP": pa.timestamp("ms", "UTC"),
    "DATE": pa.date32(),
    "TIME": pa.time32("ms"),
}
_DECIMAL128_DIGITS: Final = 38  # Arrow Columnar Format: Decimal128 and Decimal256
_DECIMAL256_DIGITS: Final = 76


def arrow_schema(columns: Sequence[Column], *, feed: str, rename: Mapping[str, str] | None = None) -> pa.Schema:
    """The Arrow schema of a source's columns, in their order.

    Every field is nullable and keeps the source's name in its metadata; fields of structs are lower-cased too.

    Args:
        columns: What the source announced.
        feed: Its name, for the message.
        rename: Source name to lake name, for columns that cannot keep theirs.

    Raises:
        InvalidFeed: Two columns would share a name, one is named like a partition key, or a type does not fit.
    """
    names = lake_names([column.name for column in columns], feed=feed, rename=rename)
    return pa.schema(
        [
            pa.field(name, arrow_type(column.type, feed=feed), metadata=source_metadata(column.name))
            for name, column in zip(names, columns, strict=True)
        ]
    )


def arrow_type(kind: KsqlType, *, feed: str) -> pa.DataType:
    """The Arrow type of a SQL type; timestamps are UTC with milliseconds, as ksqlDB keeps them.

    Raises:
        InvalidFeed: A decimal has more than 76 digits, or two struct fields share a lower-cased name.
    """
    match kind:
        case KsqlScalar(name):
            return _SCALAR_TYPES[name]
        case KsqlDecimal(precision, scale):
            return _decimal(precision, scale, feed)
        case KsqlArray(item):
            return pa.list_(arrow_type(item, feed=feed))
        case KsqlMap(key, value):
            return pa.map_(arrow_type(key, feed=feed), arrow_type(value, feed=feed))
        case KsqlStruct(fields):
            return _struct(fields, feed)


def _decimal(precision: int, scale: int, feed: str) -> pa.DataType:
    if not 1 <= precision <= _DECIMAL256_DIGITS or scale > precision:
        reason = f"DECIMAL({precision}, {scale}) does not fit into Parquet (76 digits); cast it in the source"
        raise InvalidFeed(feed, reason)
    return pa.decimal128(precision, scale) if precision <= _DECIMAL128_DIGITS else pa.decimal256(precision, scale)


def _struct(fields: Sequence[tuple[str, KsqlType]], feed: str) -> pa.DataType:
    names = [lake_name(name) for name, _ in fields]
    if len(set(names)) < len(names) or not names:
        reason = "a STRUCT without fields" if not names else f"STRUCT fields {sorted(names)} clash in lower case"
        raise InvalidFeed(feed, f"{reason}; leave it out of the feed's columns")
    return pa.struct(
        [
            pa.field(lake_name(name), arrow_type(kind, feed=feed), metadata=source_metadata(name))
            for name, kind in fields
        ]
    )


def time_source(feed: Feed, names: Sequence[str]) -> str:
    """The source column that partitions a stream.

    Args:
        feed: A stream.
        names: The source columns that there are.

    Raises:
        InvalidFeed: There is no column of that lake name.
    """
    if feed.time_column in {None, declared(feed).time_column}:
        return ROWTIME
    rename = declared(feed).rename
    for name in names:
        if rename.get(name, lake_name(name)) == feed.time_column:
            return name
    there = ", ".join(rename.get(name, lake_name(name)) for name in names)
    raise InvalidFeed(feed.name, f"time_column {feed.time_column!r} is no column of {feed.source.where}: {there}")


def resolve(feed: Feed, wanted: str, names: Sequence[str]) -> str:
    """The source column of a name, whatever its case.

    Raises:
        InvalidFeed: There is none.
    """
    for name in names:
        if name == wanted:
            return name
    for name in names:
        if name.lower() == wanted.lower():
            return name
    raise InvalidFeed(feed.name, f"offset column {wanted!r} is no column of {feed.source.where}: {', '.join(names)}")


def is_timestamp(kind: str) -> bool:
    """Whether a type is a TIMESTAMP, as against a BIGINT of epoch milliseconds."""
    return kind == "TIMESTAMP"


@dataclass(frozen=True, slots=True)
class AnswerLayout:
    """How the columns of an answer become those of the lake.

    Attributes:
        columns: The answer's columns, in its order.
        decoded: Their Arrow schema, in step; columns that the lake does not get have a made-up name.
        schema: The lake's schema.
        visible: Positions in ``decoded`` of the lake's columns.
        time_column: Lake name of the column that partitions the rows.
        time: Its position in ``decoded``; None for tables.
        rowtime: Position of the record's own timestamp, if it was asked for.
        numbering: Positions of source partition and offset, if they were asked for.
    """

    columns: tuple[Column, ...]
    decoded: pa.Schema
    schema: pa.Schema
    visible: tuple[int, ...]
    time_column: str | None
    time: int | None
    rowtime: int | None
    numbering: tuple[int, int] | None

    def rows(self, table: pa.RecordBatch) -> pa.RecordBatch:
        """The lake's columns of decoded rows."""
        arrays = [
            table.column(index).cast(field.type) if index == self.time else table.column(index)
            for index, field in zip(self.visible, self.schema, strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def wanted(
        self, rows: pa.RecordBatch, *, starts: Mapping[int, int], window: TimeWindow | None
    ) -> npt.NDArray[np.bool_]:
        """Which decoded rows are at or after their source partition's start, and in the window or without a time."""
        mask = np.ones(rows.num_rows, dtype=np.bool_)
        if self.numbering is not None and starts:
            partitions, offsets = (rows.column(index).to_numpy() for index in self.numbering)
            for partition, start in starts.items():
                mask &= (partitions != partition) | (offsets >= start)
        if window is not None and self.time is not None:
            times = rows.column(self.time).cast(LAKE_TIME).cast(pa.int64())
            inside = pc.and_(
                pc.greater_equal(times, epoch_ms(window.start)),
                pc.less(times, epoch_ms(window.end)),
            )
            mask &= inside.fill_null(True).to_numpy(zero_copy_only=False)
        return mask


def layout_of(
    columns: Sequence[Column], feed: Feed, *, time: str | None, numbering: tuple[str, str] | None
) -> AnswerLayout:
    """Says how the columns of an answer become those of the lake.

    The record's own timestamp, when it is landed, is the last column. Source partition and offset are landed only if
    they are ordinary columns that the feed's ``rename`` names. A BIGINT that partitions is landed as a timestamp.

    Args:
        columns: The answer's columns.
        feed: What is read.
        time: Source name of the column that partitions; None for tables.
        numbering: Source names of the columns that carry source partition and offset.

    Raises:
        InvalidFeed: Columns clash, or the time column is no time.
    """
    names = [column.name for column in columns]
    rename = declared(feed).rename
    hidden = {name for name in numbering or () if name not in rename}
    if time != ROWTIME:
        hidden.add(ROWTIME)
    visible = tuple(index for index, name in enumerate(names) if time is None or name not in hidden)
    shown = arrow_schema([columns[index] for index in visible], feed=feed.name, rename=rename)
    kinds = arrow_schema(columns, feed=feed.name, rename={name: f"column_{index}" for index, name in enumerate(names)})
    shown = pa.schema([_marked(field, columns[index]) for field, index in zip(shown, visible, strict=True)])
    position = None if time is None else names.index(time)
    time_column = None if position is None else shown.field(visible.index(position)).name
    if position is not None and time_column is not None:
        shown = _as_time(shown, visible.index(position), feed)
    return AnswerLayout(
        columns=tuple(columns),
        decoded=kinds,
        schema=shown,
        visible=visible,
        time_column=time_column,
        time=position,
        rowtime=names.index(ROWTIME) if time is not None and ROWTIME in names else None,
        numbering=None if numbering is None else (names.index(numbering[0]), names.index(numbering[1])),
    )


def _marked(field: pa.Field, column: Column) -> pa.Field:
    return field.with_metadata({**(field.metadata or {}), SOURCE_KEY: b"true"}) if column.key else field


def _as_time(schema: pa.Schema, position: int, feed: Feed) -> pa.Schema:
    field = schema.field(position)
    if field.type not in (LAKE_TIME, pa.int64()):
        reason = (
            f"time_column {field.name!r} is {field.type}; it must be a TIMESTAMP, or a BIGINT of epoch milliseconds"
        )
        raise InvalidFeed(feed.name, reason)
    return schema.set(position, field.with_type(LAKE_TIME))
