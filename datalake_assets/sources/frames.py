"""Data frames as a source: what an asset returned, read once, in batches of bounded size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from datalake_assets.core.frames import FrameBatches, frame_schema
from datalake_assets.errors import ConfigError, IncompleteResponse

__all__ = ["frame_batches"]


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
        told = "; ".join(str(part) for part in error.args) or type(error).__name__
        reason = f"its data frame cannot be turned into Arrow: {told}"
        raise ConfigError(f"asset {asset!r}: {reason}; give each column one type and a name of its own") from error


def _check_time_column(schema: pa.Schema, name: str, asset: str) -> None:
    if name not in schema.names:
        there = f"there is none of that name; there are {', '.join(schema.names)}"
    elif not pa.types.is_timestamp(schema.field(name).type):
        there = f"it is {schema.field(name).type}; make it a timestamp"
    else:
        return
    raise ConfigError(f"asset {asset!r}: {name!r} cannot be the time column: {there}")
