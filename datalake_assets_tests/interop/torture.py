"""The table that every writer writes as far as it can: each column a type, each value an edge of it."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pyarrow as pa

__all__ = ["ROWS", "TABLE", "parts", "with_field_ids"]

ROWS = 60

_US_EDGES = [0, -1, 1, 1_700_000_000_123_456, -2_208_988_800_000_000, 253_402_300_799_999_999, -62_135_596_800_000_000]
_NS_EDGES = [0, -1, 1, 1_700_000_000_123_456_789, -2_208_988_800_000_000_001, 9_214_646_400_000_000_001]
_TIMES = [0, 1, 86_399_999_999_999, 43_200_000_000_001, 1_000_000_000]
_TEXTS = ["", "a", "ünï🦆code", "nul\x00inside", "line\nbreak", "null", "NaN", " ", "日本語", '"quoted"', "x" * 5_000]


def _cycle(values: Sequence[Any], *, nulls: bool = True) -> list[Any]:
    """``ROWS`` values: each in turn, with a null after each round."""
    turn = [*values, None] if nulls else list(values)
    return [turn[row % len(turn)] for row in range(ROWS)]


def _ints(kind: pa.DataType) -> pa.Array:
    bits = kind.bit_width
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if pa.types.is_signed_integer(kind) else (0, (1 << bits) - 1)
    return pa.array(_cycle([0, 1, low, high, high - 1, 42]), kind)


def _floats(kind: pa.DataType, smallest: float) -> pa.Array:
    return pa.array(_cycle([0.0, -0.0, 1.5, float("inf"), float("-inf"), float("nan"), smallest, -2.25]), kind)


def _decimals(precision: int, scale: int) -> pa.Array:
    digits = "9" * precision
    texts = ["0", f"1e-{scale}", f"-1e-{scale}", f"{digits}e-{scale}", f"-{digits}e-{scale}"]
    return pa.array(_cycle([Decimal(text) for text in texts]), pa.decimal128(precision, scale))


def _moments(unit: str, zone: str | None, edges: Sequence[int] | None = None) -> pa.Array:
    divisor = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 1}[unit]
    edges = edges or [edge // divisor for edge in (_NS_EDGES if unit == "ns" else _US_EDGES)]
    return pa.array(_cycle(edges), pa.int64()).cast(pa.timestamp(unit, zone))


def _clock(unit: str) -> pa.Array:
    kind = pa.time32(unit) if unit in {"s", "ms"} else pa.time64(unit)
    divisor = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}[unit]
    return pa.array(_cycle([ns // divisor for ns in _TIMES]), pa.int32() if kind.bit_width == 32 else pa.int64()).cast(
        kind
    )


_POINT = pa.struct([("x", pa.int32()), ("label", pa.string())])
_POINTS = [{"x": 1, "label": "one"}, {"x": None, "label": ""}, {"x": -1, "label": None}]
_DATES = [dt.date(1970, 1, 1), dt.date(1969, 12, 31), dt.date(2024, 2, 29), dt.date(1, 1, 1), dt.date(9999, 12, 31)]
_MAPS = [[], [("a", 1)], [("a", None), ("b", 2), ("", 3)]]

_ARRAYS: dict[str, pa.Array] = {
    "id": pa.array(range(ROWS), pa.int64()),
    "i8": _ints(pa.int8()),
    "i16": _ints(pa.int16()),
    "i32": _ints(pa.int32()),
    "i64": _ints(pa.int64()),
    "u8": _ints(pa.uint8()),
    "u16": _ints(pa.uint16()),
    "u32": _ints(pa.uint32()),
    "u64": _ints(pa.uint64()),
    "f16": _floats(pa.float16(), 6e-8),
    "f32": _floats(pa.float32(), 1e-45),
    "f64": _floats(pa.float64(), 5e-324),
    "flag": pa.array(_cycle([True, False, False])),
    "text": pa.array(_cycle(_TEXTS)),
    "large_text": pa.array(_cycle(_TEXTS[:5]), pa.large_string()),
    "category": pa.array(_cycle(["red", "green", "", "blue"])).dictionary_encode(),
    "data": pa.array(_cycle([b"", b"\x00", b"\xff\xfe", bytes(range(256))]), pa.binary()),
    "digest": pa.array(_cycle([bytes(16), bytes(range(16)), b"\xff" * 16]), pa.binary(16)),
    "uuid": pa.ExtensionArray.from_storage(
        pa.uuid(), pa.array(_cycle([uuid.UUID(int=n << 100 | n).bytes for n in range(5)]), pa.binary(16))
    ),
    "date": pa.array(_cycle(_DATES)),
    "time_s": _clock("s"),
    "time_ms": _clock("ms"),
    "time_us": _clock("us"),
    "time_ns": _clock("ns"),
    "at_s": _moments("s", None),
    "at_ms": _moments("ms", None),
    "at_us": _moments("us", None),
    "at_ns": _moments("ns", None),
    "utc_s": _moments("s", "UTC"),
    "utc_ms": _moments("ms", "UTC"),
    "utc_us": _moments("us", "UTC"),
    "utc_ns": _moments("ns", "UTC"),
    "berlin": _moments("us", "Europe/Berlin"),
    "recent": _moments("us", "UTC", [edge // 1000 for edge in _NS_EDGES]),
    "duration": pa.array(_cycle([0, 1, -1, 1 << 40]), pa.int64()).cast(pa.duration("us")),
    "decimal9": _decimals(9, 2),
    "decimal18": _decimals(18, 4),
    "decimal38": _decimals(38, 10),
    "list": pa.array(_cycle([[], [1], [None, 2], [1, 2, 3]]), pa.list_(pa.int64())),
    "texts": pa.array(_cycle([[], ["a", None, ""], ["日本"]]), pa.list_(pa.string())),
    "large_list": pa.array(_cycle([[], [1], [None, 2]]), pa.large_list(pa.int32())),
    "pair": pa.array(_cycle([[1, 2], [3, None]]), pa.list_(pa.int32(), 2)),
    "list_list": pa.array(_cycle([[], [[]], [None, [1]], [[1, 2], [None]]]), pa.list_(pa.list_(pa.int32()))),
    "points": pa.array(_cycle([[], _POINTS[:1], [None, *_POINTS]]), pa.list_(_POINT)),
    "point": pa.array(_cycle(_POINTS), _POINT),
    "deep": pa.array(
        _cycle([{"a": None}, {"a": {"b": []}}, {"a": {"b": [1, None]}}]),
        pa.struct([("a", pa.struct([("b", pa.list_(pa.int64()))]))]),
    ),
    "map": pa.array(_cycle(_MAPS), pa.map_(pa.string(), pa.int64())),
    "map_points": pa.array(_cycle([[], [("p", _POINTS[0]), ("q", None)]]), pa.map_(pa.string(), _POINT)),
    "must": pa.array(_cycle(["never", "null", ""], nulls=False)),
    "nobody": pa.nulls(ROWS, pa.string()),
    "nothing": pa.nulls(ROWS),
}
_REQUIRED = {"id", "must"}

TABLE = pa.table(
    list(_ARRAYS.values()),
    schema=pa.schema([pa.field(name, array.type, name not in _REQUIRED) for name, array in _ARRAYS.items()]),
)


def parts(table: pa.Table, count: int = 3) -> list[pa.Table]:
    """The rows in ``count`` slices of different lengths, in order."""
    bounds = [table.num_rows * part * part // (count * count) for part in range(count + 1)]
    # copies: DuckDB refuses slices of structs, Polars mistakes slices of fixed lists
    return [table.take(pa.array(range(start, end))) for start, end in pairwise(bounds)]


def with_field_ids(schema: pa.Schema) -> pa.Schema:
    """The schema with ids on every field, nested ones too, as Iceberg's writers give them."""
    ids = iter(range(1, 1_000))

    def numbered(field: pa.Field) -> pa.Field:
        metadata = {"PARQUET:field_id": str(next(ids))}
        return pa.field(field.name, _numbered(field.type, numbered), field.nullable, metadata)

    return pa.schema([numbered(field) for field in schema], schema.metadata)


def _numbered(kind: pa.DataType, numbered: Callable[[pa.Field], pa.Field]) -> pa.DataType:
    if pa.types.is_struct(kind):
        return pa.struct([numbered(kind.field(index)) for index in range(kind.num_fields)])
    if pa.types.is_map(kind):
        return pa.map_(numbered(kind.key_field), numbered(kind.item_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(numbered(kind.value_field))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(numbered(kind.value_field), kind.list_size)
    return pa.list_(numbered(kind.value_field)) if pa.types.is_list(kind) else kind
