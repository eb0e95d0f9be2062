"""ksqlDB's SQL types and how their values look as JSON, because clients see nothing else of a row.

The encodings are those of the server's JSON mapper, with its traps: inside a STRUCT, at any depth, several types are
written differently than at the top level (timestamps as numbers, decimals through a double).
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

__all__ = ["SqlType", "array", "decimal", "encode_json", "java_double", "json_string", "map_of", "scalar", "struct"]

_EPOCH_DATE = dt.date(1970, 1, 1)
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
# Double.toString switches to scientific notation outside [10^-3, 10^7) (java.lang.Double documentation)
_JAVA_PLAIN_MIN, _JAVA_PLAIN_MAX = 1e-3, 1e7
_NEEDS_ESCAPE = re.compile("[\\x00-\\x1f\ud800-\udfff]")
_SHORT_ESCAPES = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


@dataclass(frozen=True, slots=True)
class SqlType:
    """A SQL type; ``str()`` is its text in headers, with struct fields in backticks.

    Attributes:
        base: ``BOOLEAN``, ``INTEGER``, ``BIGINT``, ``DOUBLE``, ``DECIMAL``, ``STRING``, ``BYTES``, ``TIMESTAMP``,
            ``DATE``, ``TIME``, ``ARRAY``, ``MAP`` or ``STRUCT``.
        precision: Of a DECIMAL.
        scale: Of a DECIMAL.
        key: The key's type of a MAP.
        element: The items' type of an ARRAY, the values' type of a MAP.
        fields: Name and type of each field of a STRUCT.
    """

    base: str
    precision: int = 0
    scale: int = 0
    key: SqlType | None = None
    element: SqlType | None = None
    fields: tuple[tuple[str, SqlType], ...] = ()

    def __str__(self) -> str:
        if self.base == "DECIMAL":
            return f"DECIMAL({self.precision}, {self.scale})"
        if self.base == "ARRAY":
            return f"ARRAY<{self.element}>"
        if self.base == "MAP":
            return f"MAP<{self.key}, {self.element}>"
        if self.base == "STRUCT":
            return "STRUCT<" + ", ".join(f"`{name}` {kind}" for name, kind in self.fields) + ">"
        return self.base

    def field(self, name: str) -> SqlType | None:
        """The type of a STRUCT's field, or None if there is no such field."""
        return dict(self.fields).get(name)


def scalar(base: str) -> SqlType:
    """A type without parameters."""
    return SqlType(base)


def decimal(precision: int, scale: int) -> SqlType:
    """A DECIMAL type."""
    return SqlType("DECIMAL", precision=precision, scale=scale)


def array(element: SqlType) -> SqlType:
    """An ARRAY type."""
    return SqlType("ARRAY", element=element)


def map_of(key: SqlType, element: SqlType) -> SqlType:
    """A MAP type."""
    return SqlType("MAP", key=key, element=element)


def struct(**fields: SqlType) -> SqlType:
    """A STRUCT type with these fields, in order."""
    return SqlType("STRUCT", fields=tuple(fields.items()))


def encode_json(value: Any, kind: SqlType, *, in_struct: bool = False) -> str:
    """The JSON text of a value of type ``kind``.

    Args:
        value: A Python value: Decimal, aware datetime, date, time, bytes, list, dict (MAP and STRUCT) or a plain one.
        kind: Its SQL type.
        in_struct: Whether the value is nested in a STRUCT, where the server's mapper writes several types differently.
    """
    if value is None:
        return "null"
    if kind.base in _NESTED:
        return _NESTED[kind.base](value, kind, in_struct)
    encoders = _STRUCT_ENCODERS if in_struct and kind.base in _STRUCT_ENCODERS else _ENCODERS
    return encoders[kind.base](value, kind)


def json_string(text: str) -> str:
    """A JSON string as Jackson writes it: only what must be escaped is, and lone surrogates."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + _NEEDS_ESCAPE.sub(_escape, escaped) + '"'


def java_double(number: float) -> str:
    """A DOUBLE as Java prints it: ``11.0``, ``1.0E10``, and strings for what JSON has no number for."""
    if math.isnan(number):
        return '"NaN"'
    if math.isinf(number):
        return '"Infinity"' if number > 0 else '"-Infinity"'
    if number == 0 or _JAVA_PLAIN_MIN <= abs(number) < _JAVA_PLAIN_MAX:
        return repr(number)
    sign, digits, exponent = Decimal(repr(number)).as_tuple()
    text = "".join(map(str, digits))
    power = int(exponent) + len(text) - 1
    tail = text[1:].rstrip("0") or "0"
    return f"{'-' if sign else ''}{text[0]}.{tail}E{power}"


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    return _SHORT_ESCAPES.get(character) or f"\\u{ord(character):04X}"


def _decimal(value: Decimal, kind: SqlType) -> str:
    return format(value, f".{kind.scale}f")


def _timestamp(value: dt.datetime, _kind: SqlType) -> str:
    return f'"{value.astimezone(dt.UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")}"'


def _time(value: dt.time, _kind: SqlType) -> str:
    text = value.isoformat(timespec="seconds")
    return f'"{text.removesuffix(":00") if value.second == 0 else text}"'


def _array(value: list[Any], kind: SqlType, in_struct: bool) -> str:  # noqa: FBT001 - one signature for all nested types
    element = _known(kind.element)
    return "[" + ",".join(encode_json(item, element, in_struct=in_struct) for item in value) + "]"


def _map(value: dict[Any, Any], kind: SqlType, in_struct: bool) -> str:  # noqa: FBT001 - as above
    key, element = _known(kind.key), _known(kind.element)
    pairs = [(k, encode_json(v, element, in_struct=in_struct)) for k, v in value.items()]
    if in_struct and key.base != "STRING":
        return "[" + ",".join(f"[{encode_json(k, key, in_struct=True)},{v}]" for k, v in pairs) + "]"
    return "{" + ",".join(f"{_map_key(k, key)}:{v}" for k, v in pairs) + "}"


def _map_key(value: Any, kind: SqlType) -> str:
    return json_string(value) if kind.base == "STRING" else json_string(encode_json(value, kind).strip('"'))


def _struct(value: dict[str, Any], kind: SqlType, _in_struct: bool) -> str:  # noqa: FBT001 - as above
    fields = ((name, encode_json(value[name], inner, in_struct=True)) for name, inner in kind.fields)
    return "{" + ",".join(f"{json_string(name)}:{text}" for name, text in fields) + "}"


def _known(kind: SqlType | None) -> SqlType:
    if kind is None:
        raise ValueError("an ARRAY or MAP type needs the type of what it holds")
    return kind


def _integer(value: int, _kind: SqlType) -> str:
    return str(value)


_NESTED: dict[str, Callable[[Any, SqlType, bool], str]] = {"ARRAY": _array, "MAP": _map, "STRUCT": _struct}
_ENCODERS: dict[str, Callable[[Any, SqlType], str]] = {
    "BOOLEAN": lambda value, _kind: json.dumps(value),
    "INTEGER": _integer,
    "BIGINT": _integer,
    "DOUBLE": lambda value, _kind: java_double(value),
    "DECIMAL": _decimal,
    "STRING": lambda value, _kind: json_string(value),
    "BYTES": lambda value, _kind: f'"{base64.b64encode(value).decode("ascii")}"',
    "TIMESTAMP": _timestamp,
    "DATE": lambda value, _kind: f'"{value.isoformat()}"',
    "TIME": _time,
}
_STRUCT_ENCODERS: dict[str, Callable[[Any, SqlType], str]] = {
    "DECIMAL": lambda value, _kind: java_double(float(value)),
    "TIMESTAMP": lambda value, _kind: str((value - _EPOCH) // dt.timedelta(milliseconds=1)),
    "DATE": lambda value, _kind: str((value - _EPOCH_DATE).days),
    "TIME": lambda value, _kind: str(
        (value.hour * 3600 + value.minute * 60 + value.second) * 1000 + value.microsecond // 1000
    ),
}
