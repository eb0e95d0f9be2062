"""Data frames as a source: what an asset returned, in batches of bounded size, under one schema whoever made it.

A frame's own types say more about the library than about the data (Polars' large strings, pandas' categories, the unit
of a timestamp), and would differ from one run to the next. So they are brought to one form, and no value is changed:
what does not fit exactly is refused, with its column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from datalake_assets.core.batches import ReadRequest, SourceBatch
from datalake_assets.core.schema import RESERVED_NAMES
from datalake_assets.errors import ConfigError, IncompleteResponse

__all__ = ["FrameBatches", "FramesByKey", "frame_batches", "frame_schema", "lake_type", "to_lake", "typed_nulls"]

#: Bounds of a batch that is handed on; frames come in batches as large as they are.
BATCH_ROWS, BATCH_BYTES = 1 << 16, 8 << 20

_PLAIN: Final[Mapping[pa.DataType, pa.DataType]] = {
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
    pa.float16(): pa.float32(),
    pa.date64(): pa.date32(),
    pa.time32("s"): pa.time32("ms"),
    pa.time64("ns"): pa.time64("us"),
}
"""Types of the same values, that every reader of Parquet knows."""


@dataclass(slots=True)
class FrameBatches:
    """The rows of a frame; implements `Batches`.

    Attributes:
        asset: Key of the asset, for messages.
        schema: Schema of the rows, in the lake's column names.
        time_column: The column that partitions the rows; None for a table.
        is_empty: Whether it is known to have no rows; libraries don't keep the types of such columns.
        read: Gives the frame's own batches, whose columns are those of ``schema``, in order.
        request: What is read; by default all rows.
        recreated: Always false: frames have no offsets.
        unfinished: Always empty: a frame is read to its end.
    """

    asset: str
    schema: pa.Schema
    time_column: str | None
    is_empty: bool
    read: Callable[[], Iterable[pa.RecordBatch]]
    request: ReadRequest = field(default_factory=ReadRequest)
    recreated: bool = False
    unfinished: str = ""

    def __iter__(self) -> Iterator[SourceBatch]:
        """Streams the rows.

        Raises:
            ConfigError: A value cannot be kept exactly.
            IncompleteResponse: The frame is a stream that was read before.
        """
        for batch in self.read():
            for piece in _pieces(batch):
                yield SourceBatch(to_lake(piece, self.schema, asset=self.asset))

    def acknowledge(self) -> None:
        """Does nothing: an asset need not know."""


@dataclass(slots=True)
class FramesByKey:
    """A frame for each of several partitions, written one after another; implements `Batches`.

    Attributes:
        frames: The frames by partition key; at least one.
        request: What is read; by default all rows.
        recreated: Always false: frames have no offsets.
        unfinished: Always empty: a frame is read to its end.
    """

    frames: Mapping[str, FrameBatches]
    request: ReadRequest = field(default_factory=ReadRequest)
    recreated: bool = False
    unfinished: str = ""

    @property
    def schema(self) -> pa.Schema:
        """Schema of the first frame."""
        return next(iter(self.frames.values())).schema

    @property
    def time_column(self) -> str | None:
        """The time column of the first frame."""
        return next(iter(self.frames.values())).time_column

    def __iter__(self) -> Iterator[SourceBatch]:
        """Streams the rows of all frames."""
        for frame in self.frames.values():
            yield from frame

    def acknowledge(self) -> None:
        """Does nothing: an asset need not know."""


def frame_schema(schema: pa.Schema, *, asset: str) -> pa.Schema:
    """The lake's schema of a frame: columns in their order, all nullable, without the frame's own metadata.

    A column that has nothing but nulls keeps the type ``null`` until `typed_nulls` knows better.

    Raises:
        ConfigError: A name or a type cannot be kept; says which, and what to do.
    """
    _refuse_names(schema.names, asset)
    return pa.schema([pa.field(each.name, _type_of(each, asset)) for each in schema])


def lake_type(kind: pa.DataType) -> pa.DataType:
    """The lake's type of a frame's: dictionaries become their values, times microseconds, and zones UTC.

    Raises:
        TypeError: There is none.
    """
    if kind in _PLAIN:
        return _PLAIN[kind]
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if pa.types.is_dictionary(kind):
        return lake_type(kind.value_type)
    if pa.types.is_nested(kind):
        return _nested(kind)
    known = (
        pa.types.is_boolean,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_string,
        pa.types.is_binary,
        pa.types.is_fixed_size_binary,
        pa.types.is_date,
        pa.types.is_time,
        pa.types.is_null,
    )
    if any(is_known(kind) for is_known in known):
        return kind
    if pa.types.is_decimal(kind):
        return pa.decimal256(kind.precision, kind.scale) if kind.bit_width > 128 else _decimal128(kind)  # noqa: PLR2004  the two widths that there are in Parquet
    raise TypeError(str(kind))


def _decimal128(kind: pa.DataType) -> pa.DataType:
    return pa.decimal128(kind.precision, kind.scale)


def _nested(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_map(kind):
        return pa.map_(lake_type(kind.key_type), lake_type(kind.item_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(lake_type(kind.value_type), kind.list_size)
    lists: tuple[Callable[[pa.DataType], bool], ...] = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    if any(is_list(kind) for is_list in lists):
        return pa.list_(lake_type(kind.value_type))
    if pa.types.is_struct(kind) and kind.num_fields:
        return pa.struct([pa.field(each.name, lake_type(each.type)) for each in kind])
    raise TypeError(str(kind))


def to_lake(batch: pa.RecordBatch, schema: pa.Schema, *, asset: str) -> pa.RecordBatch:
    """The batch in the schema that `frame_schema` gave for its own.

    Raises:
        ConfigError: A value does not fit exactly: nanoseconds in a timestamp, say.
    """
    columns = [_cast(column, wanted, asset) for column, wanted in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def typed_nulls(schema: pa.Schema, known: pa.Schema | None, *, asset: str) -> pa.Schema:
    """The schema with the types of columns that have nothing but nulls, as the lake knows them.

    Raises:
        ConfigError: The lake does not know such a column: its type would be fixed for good, as nothing.
    """
    return pa.schema([_typed(each, known, asset) if _has_nulls_only(each.type) else each for each in schema])


def _typed(column: pa.Field, known: pa.Schema | None, asset: str) -> pa.Field:
    if known is not None and column.name in known.names:
        return known.field(column.name)
    reason = f"column {column.name!r} has nothing but nulls ({column.type}), so that its type is unknown"
    raise ConfigError(f"asset {asset!r}: {reason}; give it one, e.g. with astype('string')")


def _has_nulls_only(kind: pa.DataType) -> bool:
    """Whether a type, or one in it, is ``null``: what libraries make of columns without a value."""
    if pa.types.is_null(kind):
        return True
    return any(_has_nulls_only(kind.field(index).type) for index in range(kind.num_fields))


def _type_of(column: pa.Field, asset: str) -> pa.DataType:
    try:
        return lake_type(column.type)
    except TypeError as error:
        reason = f"column {column.name!r} is {column.type}, and the lake has no {error} that every reader knows"
        raise ConfigError(f"asset {asset!r}: {reason}; convert it to numbers, times or text") from error


def _refuse_names(names: list[str], asset: str) -> None:
    taken: dict[str, str] = {}
    for name in names:
        lowered = name.lower()  # Athena, Hive and DuckDB do not tell them apart
        if not name:
            raise ConfigError(f"asset {asset!r}: a column has no name; give it one")
        if lowered in RESERVED_NAMES:
            raise ConfigError(f"asset {asset!r}: column {name!r} is named like a partition key of the lake; rename it")
        if lowered in taken:
            both = f"columns {taken[lowered]!r} and {name!r} are the same name to most readers"
            raise ConfigError(f"asset {asset!r}: {both}; rename one")
        taken[lowered] = name
    if not names:
        raise ConfigError(f"asset {asset!r}: what it returned has no columns")


def _cast(values: pa.Array, column: pa.Field, asset: str) -> pa.Array:
    if values.type == column.type:
        return values
    try:
        if pa.types.is_dictionary(values.type):  # its own cast knows few types of values
            return values.dictionary.cast(column.type).take(values.indices)
        return values.cast(column.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = f"column {column.name!r} ({values.type}) cannot be kept exactly as {column.type}: {error}"
        raise ConfigError(f"asset {asset!r}: {reason}; round or convert it") from error


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    fitting = batch.num_rows * BATCH_BYTES // max(batch.nbytes, 1)
    step = max(1, min(BATCH_ROWS, fitting))
    for start in range(0, batch.num_rows, step):
        yield batch.slice(start, step)


def frame_batches(frame: Any, *, asset: str, time_column: str | None = None) -> FrameBatches:
    """What an asset returned, as batches; nothing of a stream is read before the iteration.

    Args:
        frame: A ``pandas.DataFrame``, ``pyarrow.Table``, ``RecordBatch`` or ``RecordBatchReader``, or anything else
            with the Arrow PyCapsule interface for streams (a ``polars.DataFrame``, say). Named index levels of pandas
            become columns, unnamed ones are no data; its NaN are nulls.
        asset: The asset's key, for messages.
        time_column: The column of timestamps that partitions the rows; None if they need none.

    Raises:
        ConfigError: It is none of these, or has a column that cannot be kept.
    """
    if _is_pandas(frame):
        frame = _from_pandas(frame, asset)
    if isinstance(frame, pa.RecordBatch):
        frame = pa.Table.from_batches([frame])
    rows = frame if isinstance(frame, pa.Table) else _reader(frame, asset)
    is_empty = isinstance(rows, pa.Table) and not rows.num_rows
    schema = frame_schema(rows.schema, asset=asset) if rows.schema.names or not is_empty else pa.schema([])
    if time_column is not None and not is_empty:
        _check_time_column(schema, time_column, asset)
    read = rows.to_batches if isinstance(rows, pa.Table) else _ReadOnce(rows, asset)
    return FrameBatches(asset, schema, time_column, is_empty, read)


@dataclass(slots=True)
class _ReadOnce:
    """A stream that gives its batches once, and says so if asked again: nothing must pass for no rows."""

    reader: pa.RecordBatchReader
    asset: str
    is_read: bool = False

    def __call__(self) -> pa.RecordBatchReader:
        if self.is_read:
            raise IncompleteResponse(f"asset {self.asset!r}", "its stream of rows can be read only once, and was")
        self.is_read = True
        return self.reader


def _reader(frame: Any, asset: str) -> pa.RecordBatchReader:
    if isinstance(frame, pa.RecordBatchReader):
        return frame
    if hasattr(frame, "__arrow_c_stream__"):
        try:
            return pa.RecordBatchReader.from_stream(frame)
        except pa.ArrowInvalid as error:  # a stream of something else than rows, like a column
            raise ConfigError(f"asset {asset!r}: what it returned is no table: {error}") from error
    if frame is None:
        reason = "return a frame, or annotate it '-> None' if there is nothing to store"
        raise ConfigError(f"asset {asset!r} returned nothing; {reason}")
    wanted = "a pandas.DataFrame, pyarrow.Table, pyarrow.RecordBatchReader, or another frame that Arrow can stream"
    raise ConfigError(f"asset {asset!r} returned {_described(frame)}; return {wanted}")


def _described(frame: Any) -> str:
    return f"a {type(frame).__module__}.{type(frame).__qualname__}"


def _is_pandas(frame: Any) -> bool:
    """Without importing pandas for those who don't use it; subclasses count too."""
    return any(each.__module__.partition(".")[0] == "pandas" for each in type(frame).__mro__)


def _from_pandas(frame: Any, asset: str) -> pa.Table:
    if not hasattr(frame, "columns"):
        raise ConfigError(f"asset {asset!r} returned {_described(frame)}; return a pandas.DataFrame")
    named = [name for name in frame.index.names if name is not None]
    try:
        whole = frame.reset_index(level=named) if named else frame
        return pa.Table.from_pandas(whole, preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError) as error:
        cause = "; ".join(str(part) for part in error.args) or type(error).__name__
        reason = f"its data frame cannot be turned into Arrow: {cause}"
        raise ConfigError(f"asset {asset!r}: {reason}; give each column one type and a name of its own") from error


def _check_time_column(schema: pa.Schema, name: str, asset: str) -> None:
    if name not in schema.names:
        there = f"there is none of that name; there are {', '.join(schema.names)}"
    elif not pa.types.is_timestamp(schema.field(name).type):
        there = f"it is {schema.field(name).type}; make it a timestamp"
    else:
        return
    raise ConfigError(f"asset {asset!r}: {name!r} cannot be the time column: {there}")
