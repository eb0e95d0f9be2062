"""Records held against a table's columns, row by row; what is wrong is named by row and column.

Nothing is guessed, rounded or cut: an integer that a float cannot hold, a time with nanoseconds, a number for a text
are problems of their row. Values are never repeated in a problem, so that no log has them.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Context, Decimal
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from datalake_assets.operations.answers import shown_name

__all__ = ["MAX_PROBLEMS", "Problem", "records_table"]

#: Problems that are named; the others are counted.
MAX_PROBLEMS = 100
_FLOAT_MOST = float(np.finfo(np.float32).max)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIME = re.compile(r"\d\d:\d\d:\d\d(\.\d{1,6})?", re.ASCII)
_TIMESTAMP = re.compile(rf"{_DATE.pattern}[T ]{_TIME.pattern}", re.ASCII)
_TIMESTAMP_TZ = re.compile(rf"{_TIMESTAMP.pattern}(Z|[+-]\d\d:\d\d)", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)", re.ASCII)

#: A value as Arrow takes it, of one as JSON has it; raises `_Unfit`.
Convert = Callable[[Any], Any]
Parsed = TypeVar("Parsed")


class _Unfit(Exception):
    """A value that does not fit its column; the text says how."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a value: in which record (from 0), in which field, and how."""

    index: int
    field: str
    problem: str


def records_table(
    records: Sequence[Mapping[str, Any]], schema: pa.Schema, defaults: Mapping[str, Any] = MappingProxyType({})
) -> tuple[pa.Table | None, list[Problem], int]:
    """The records as a table of this schema; or what is wrong with them.

    Args:
        records: Objects of values by column, as JSON has them; Python's own dates, times, decimals and bytes do too.
        schema: The table's.
        defaults: Values of columns that a record does not name, as Python has them; of others null.

    Returns:
        The table, no problems and 0; or None, the first problems, and how many there are.
    """
    problems: list[Problem] = []
    found = 0
    columns: list[list[Any]] = [[] for _ in schema]
    known = frozenset(schema.names)
    converts = [(field, _convert(field.type)) for field in schema]
    for index, record in enumerate(records):
        bad = [(str(name), "the table has no such column") for name in record if name not in known]
        for (field, convert), column in zip(converts, columns, strict=True):
            value = record[field.name] if field.name in record else defaults.get(field.name)
            try:
                column.append(_required(value, field) if value is None else convert(value))
            except _Unfit as error:
                bad.append((field.name, str(error)))
        found += len(bad)
        named = bad[: max(0, MAX_PROBLEMS - len(problems))]
        problems += [Problem(index, shown_name(name), reason) for name, reason in named]
    if found:
        return None, problems, found
    arrays = [_array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema), [], 0


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))
    return pa.array(values, kind)


def _required(value: Any, field: pa.Field) -> Any:
    if not field.nullable:
        raise _Unfit("it is required, and missing or null")
    return value


def _convert(kind: pa.DataType) -> Convert:
    """How values of a column become those of its type."""
    for is_kind, convert in _OF_KINDS:
        if is_kind(kind):
            return convert(kind)
    return _unknown


def _of_list(kind: pa.DataType) -> Convert:
    if isinstance(kind.value_type, pa.BaseExtensionType):
        return _unknown
    return _list_of(_convert(kind.value_type), nullable=kind.value_field.nullable)


def _unknown(_: Any) -> Any:
    raise _Unfit("its column has a type that cannot be written here")


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Unfit("give true or false")
    return value


def _integer(bits: int) -> Convert:
    least, most = -(1 << bits - 1), (1 << bits - 1) - 1

    def convert(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _Unfit("give an integer")
        if not least <= value <= most:
            raise _Unfit(f"it does not fit into {bits} bits")
        return value

    return convert


def _float(kind: pa.DataType) -> Convert:
    is_single = pt.is_float32(kind)

    def convert(value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _Unfit("give a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or (is_single and abs(number) > _FLOAT_MOST):
            raise _Unfit("it is not finite, or too large for its column")
        if isinstance(value, int) and int(number) != value:
            raise _Unfit("it has more digits than a floating point number keeps; use a decimal or a long")
        if is_single and not _is_single(number, exactly=isinstance(value, int)):
            raise _Unfit("it has more digits than a float keeps; use a double")
        return number

    return convert


def _is_single(number: float, *, exactly: bool) -> bool:
    """Whether 32 bits hold a number: itself, or one that is written with the same digits, as 0.1 is."""
    single = np.float32(number)
    return float(single) == number or (not exactly and float(str(single)) == number)


def _decimal(precision: int, scale: int) -> Convert:
    def convert(value: Any) -> Decimal:
        if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
            raise _Unfit("give a decimal as a text like '12.50', or as an integer")
        if isinstance(value, str) and (len(value) > precision + 2 or not _DECIMAL.fullmatch(value)):
            raise _Unfit(f"give a text like '12.50', of at most {precision} digits")
        if isinstance(value, int) and abs(value) >= 10**precision:
            raise _Unfit(f"it has more than {precision - scale} digits before the point")
        number = Decimal(value)
        if not number.is_finite():
            raise _Unfit("it is not a number")
        _, digits, exponent = number.as_tuple()
        assert isinstance(exponent, int)  # noqa: S101  for mypy: it is of finite numbers
        significant = len("".join(map(str, digits)).lstrip("0"))
        if -exponent > scale and any(digits[exponent + scale :]):
            raise _Unfit(f"it has more than {scale} digits behind the point")
        if number and significant + exponent > precision - scale:
            raise _Unfit(f"it has more than {precision - scale} digits before the point")
        return number.quantize(Decimal(1).scaleb(-scale), context=_EXACT)

    return convert


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise _Unfit("give a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Unfit("it is not text in UTF-8") from None
    return value


def _binary(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value.encode("ascii") if isinstance(value, str) else b"?", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise _Unfit("give its bytes as base64") from None


def _uuid(value: Any) -> bytes:
    if isinstance(value, uuid.UUID):
        return value.bytes
    text = value if isinstance(value, str) else ""
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text):
        raise _Unfit("give a UUID like 123e4567-e89b-12d3-a456-426614174000")
    return uuid.UUID(text).bytes


def _date(value: Any) -> date:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    return _parsed(value, _DATE, date.fromisoformat, "a date like 2026-01-31")


def _time(value: Any) -> time:
    if isinstance(value, time) and value.tzinfo is None:
        return value
    return _parsed(value, _TIME, time.fromisoformat, "a time like 12:30:00, up to microseconds")


def _timestamp(value: Any) -> datetime:
    if isinstance(value, datetime) and value.tzinfo is None:
        return value
    return _parsed(
        value, _TIMESTAMP, datetime.fromisoformat, "a time like 2026-01-31T12:30:00, without a zone, up to microseconds"
    )


def _timestamp_tz(value: Any) -> datetime:
    reason = "a time with its zone, like 2026-01-31T12:30:00Z, up to microseconds"
    if not isinstance(value, datetime) or value.tzinfo is None:
        value = _parsed(value, _TIMESTAMP_TZ, datetime.fromisoformat, reason)
    try:
        in_utc: datetime = value.astimezone(UTC)
    except OverflowError:
        raise _Unfit(f"give {reason}") from None
    return in_utc


def _parsed(value: Any, pattern: re.Pattern[str], parse: Callable[[str], Parsed], reason: str) -> Parsed:
    if isinstance(value, str) and pattern.fullmatch(value):
        try:
            return parse(value)
        except ValueError:
            pass
    raise _Unfit(f"give {reason}")


def _list_of(convert: Convert, *, nullable: bool) -> Convert:
    def each(value: Any) -> list[Any]:
        if not isinstance(value, list | tuple):
            raise _Unfit("give a list")
        if not nullable and None in value:
            raise _Unfit("an element is null")
        return [None if element is None else convert(element) for element in value]

    return each


_EXACT = Context(prec=80)
_OF_KINDS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.DataType], Convert]], ...] = (
    (lambda kind: pt.is_list(kind) or pt.is_large_list(kind), _of_list),
    (pt.is_boolean, lambda _: _boolean),
    (pt.is_integer, lambda kind: _integer(kind.bit_width)),
    (pt.is_decimal, lambda kind: _decimal(kind.precision, kind.scale)),
    (pt.is_floating, _float),
    (pt.is_timestamp, lambda kind: _timestamp_tz if kind.tz else _timestamp),
    (lambda kind: pt.is_string(kind) or pt.is_large_string(kind), lambda _: _string),
    (lambda kind: isinstance(kind, pa.UuidType), lambda _: _uuid),
    (lambda kind: pt.is_binary(kind) or pt.is_large_binary(kind), lambda _: _binary),
    (pt.is_date32, lambda _: _date),
    (pt.is_time64, lambda _: _time),
)
