"""Rows of quarantine, and rows as texts.

Rows that could not be decoded wait in quarantine as the source sent them. Rows that could be decoded and not placed
wait as JSON objects of the lake's columns. JSON has neither bytes nor exact decimals, neither times nor NaN: they are
texts, and the column's type says what a text is.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa

from datalake_assets.core.batches import ItemOrigin, RejectedRow
from datalake_assets.core.position import SourcePartition, numbers_in

__all__ = ["QuarantinedRow", "row_from_text", "row_to_text", "rows_to_text", "values_of"]


@dataclass(frozen=True, slots=True)
class QuarantinedRow:
    """A line of quarantine.

    Attributes:
        raw: The row: as the source sent it, or as `row_to_text` made it.
        reason: Why it is here.
        position: Where it stood in the source, as far as that is known.
        epoch: Of source offsets; None if the source does not number its rows, or an earlier release wrote the line.
        decoded: Whether ``raw`` is `row_to_text`'s; None in lines of earlier releases, which did not say.
        columns: `RejectedRow`'s.
        origin: `RejectedRow`'s.
        exact: The row's bytes where they are no UTF-8, of which ``raw`` is what a person can read; else None.
    """

    raw: str
    reason: str
    position: str
    epoch: int | None = None
    decoded: bool | None = None
    columns: str = ""
    origin: ItemOrigin | None = None
    exact: bytes | None = None

    @classmethod
    def of(cls, row: RejectedRow, *, epoch: int | None) -> QuarantinedRow:
        """The line for a row that was rejected."""
        raw = row.raw.decode("utf-8", errors="backslashreplace")
        exact = None if raw.encode() == row.raw else row.raw
        return cls(raw, row.reason, row.position, epoch, row.decoded, row.columns, row.origin, exact)

    @property
    def content(self) -> bytes:
        """The row, byte by byte."""
        return self.raw.encode() if self.exact is None else self.exact

    @property
    def rejected(self) -> RejectedRow:
        """The row as it was rejected."""
        return RejectedRow(
            self.content, self.reason, self.position, bool(self.decoded), self.columns, origin=self.origin
        )

    @property
    def offset(self) -> tuple[SourcePartition, int] | None:
        """Source partition and offset; None if the source did not number the row, or its numbers are not known."""
        return numbers_in(self.position)

    @property
    def identity(self) -> str:
        """Equal for one and the same row, however often and for whatever reason it was rejected."""
        return f"{self.epoch or 0}:{self.position}"

    def to_line(self) -> bytes:
        """One JSON object, UTF-8, without the newline."""
        document: dict[str, Any] = {"raw": self.raw, "reason": self.reason, "position": self.position}
        if self.epoch is not None:
            document["epoch"] = self.epoch
        document["decoded"] = self.decoded
        if self.columns:
            document["columns"] = self.columns
        if self.origin is not None:
            document["origin"] = {name: value for name, value in asdict(self.origin).items() if value != ""}
        if self.exact is not None:
            document["exact"] = base64.b64encode(self.exact).decode()
        return json.dumps(document, ensure_ascii=False).encode("utf-8", "backslashreplace")

    @classmethod
    def from_line(cls, line: bytes) -> QuarantinedRow:
        """The inverse of `to_line`; a line that is none becomes a row whose reason says so."""
        try:
            row = json.loads(line)
            raw, reason, position = (str(row[name]) for name in ("raw", "reason", "position"))
            origin = ItemOrigin(**row["origin"]) if "origin" in row else None
            exact = base64.b64decode(row["exact"]) if "exact" in row else None
            columns = str(row.get("columns", ""))
            return cls(raw, reason, position, row.get("epoch"), row.get("decoded"), columns, origin, exact)
        except (ValueError, KeyError, TypeError):
            text = line.decode("utf-8", errors="backslashreplace")
            return cls(text, "the line in quarantine is damaged", f"damaged:{text}")


def row_to_text(row: Mapping[str, Any]) -> bytes:
    """A row of Python values, as `pyarrow.RecordBatch.to_pylist` gives them, as one line of JSON."""
    return json.dumps(_plain(row), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def row_from_text(text: bytes, schema: pa.Schema) -> dict[str, Any]:
    """The row of a line, as `pyarrow.array` takes it, column by column.

    Args:
        text: What `row_to_text` gave.
        schema: The columns; those that the line does not have are null.

    Raises:
        ValueError: The line is not such a row, or has values that are not of their columns' types.
    """
    row = json.loads(text)
    if not isinstance(row, dict):
        raise ValueError("the row is not a JSON object")  # noqa: TRY004  it is the text that is wrong
    unknown = sorted(row.keys() - set(schema.names))
    if unknown:
        raise ValueError(f"the feed has no column {unknown[0]!r}")
    absent = [field.name for field in schema if not field.nullable and row.get(field.name) is None]
    if absent:
        raise ValueError(f"column {absent[0]!r} is never null, and has no value")
    try:
        return {field.name: _value(row.get(field.name), field.type) for field in schema}
    except (TypeError, ArithmeticError, pa.ArrowException) as error:
        raise ValueError(f"a value is not of its column's type: {error}") from error


def rows_to_text(rows: pa.RecordBatch) -> list[bytes]:
    """Each row by `row_to_text`, its values by `values_of`."""
    columns = [values_of(column) for column in rows.columns]
    return [row_to_text(dict(zip(rows.schema.names, row, strict=True))) for row in zip(*columns, strict=True)]


def values_of(column: pa.Array) -> list[Any]:
    """The values; a time that Python cannot hold is the number that it is in Arrow, or a text if it has nanoseconds."""
    if column.type == _FINEST_TIME:
        texts: list[Any] = column.cast(pa.string()).to_pylist()
        return texts
    try:
        values: list[Any] = column.to_pylist()
    except (OverflowError, ValueError):
        if len(column) > 1:
            return [value for number in range(len(column)) for value in values_of(column.slice(number, 1))]
        if pa.types.is_nested(column.type):
            return [str(column[0])]
        values = column.view(pa.int32() if column.type.bit_width == pa.int32().bit_width else pa.int64()).to_pylist()
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _value(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if any(is_list(kind) for is_list in _LISTS):
        return [_value(item, kind.value_type) for item in value]
    if pa.types.is_map(kind):
        return [(_value(key, kind.key_type), _value(item, kind.item_type)) for key, item in value]
    if pa.types.is_struct(kind):
        return {field.name: _value(value.get(field.name), field.type) for field in kind}
    for is_kind, read in _READERS:
        if is_kind(kind):
            return read(value, kind)
    return value


def _moment(value: str | int, kind: pa.TimestampType) -> Any:
    """Nanoseconds and far years are beyond Python's clock; Arrow reads them."""
    if isinstance(value, int):
        return pa.scalar(value, pa.int64()).cast(kind)
    return pa.scalar(value).cast(kind) if kind.unit == "ns" else datetime.fromisoformat(value)


def _time(value: str, kind: pa.DataType) -> Any:
    """Python's clock has no nanoseconds."""
    if kind != _FINEST_TIME:
        return time.fromisoformat(value)
    seconds, _, fraction = value.partition(".")
    at = time.fromisoformat(seconds)
    whole = (at.hour * 60 + at.minute) * 60 + at.second
    return pa.scalar(whole * 10**9 + int(fraction.ljust(9, "0")), pa.int64()).cast(kind)


_FINEST_TIME = pa.time64("ns")
_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
_READERS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[Any, Any], Any]], ...] = (
    (pa.types.is_timestamp, _moment),
    (pa.types.is_date, lambda value, _: date.fromisoformat(value)),
    (pa.types.is_time, _time),
    (pa.types.is_decimal, lambda value, _: Decimal(value)),
    (pa.types.is_floating, lambda value, _: float(value)),
    (pa.types.is_binary, lambda value, _: bytes.fromhex(value)),
    (pa.types.is_large_binary, lambda value, _: bytes.fromhex(value)),
    (pa.types.is_binary_view, lambda value, _: bytes.fromhex(value)),
    (pa.types.is_fixed_size_binary, lambda value, _: bytes.fromhex(value)),
)
