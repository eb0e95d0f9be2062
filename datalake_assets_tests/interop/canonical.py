"""One form for the rows that any reader returns, so that they can be compared with ``==``.

Integers and decimals compare as numbers, whatever their width; floats by their bits, but all NaNs are one; points in
time as nanoseconds, apart by whether they are instants (UTC) or a calendar's; rows are sorted by ``id``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["Rows", "differences", "rows_of_arrow", "rows_of_pandas"]

Rows: TypeAlias = Mapping[str, Sequence[Any]]
"""Values by column, in the order of ``id``."""

_NS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}


def rows_of_arrow(table: pa.Table) -> Rows:
    """The rows of an Arrow table."""
    return _sorted({name: _array(pa.concat_arrays(table[name].chunks)) for name in table.column_names})


def rows_of_pandas(frame: pd.DataFrame) -> Rows:
    """The rows of a data frame, whose missing values are all nulls."""
    return _sorted({str(name): [_scalar(value) for value in frame[name].array] for name in frame.columns})


def differences(rows: Rows, expected: Rows) -> dict[str, str]:
    """Columns that are not as expected, with the first difference in each; further columns are not looked at."""
    found = {name: "missing" for name in expected if name not in rows}
    for name in set(rows) & set(expected):
        if len(rows[name]) != len(expected[name]):
            found[name] = f"{len(rows[name])} rows, not {len(expected[name])}"
            continue
        pairs = zip(rows[name], expected[name], strict=True)
        unlike = next((f"row {row}: {a!r}, not {b!r}" for row, (a, b) in enumerate(pairs) if a != b), None)
        if unlike:
            found[name] = unlike[:300]
    return found


def _sorted(columns: dict[str, list[Any]]) -> Rows:
    order = np.argsort(columns["id"], kind="stable")
    return {name: [values[row] for row in order] for name, values in columns.items()}


def _array(array: pa.Array) -> list[Any]:
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _array(array.storage)
    if pa.types.is_dictionary(kind):
        return _array(array.dictionary_decode())
    if pa.types.is_struct(kind):
        return _structs(array)
    if pa.types.is_map(kind):
        return [_map(*_entries(each)) if each.is_valid else None for each in array]
    if pa.types.is_nested(kind):
        return [tuple(_array(each.values)) if each.is_valid else None for each in array]
    return _temporal(array) if pa.types.is_temporal(kind) else [_scalar(value) for value in array.to_pylist()]


def _entries(scalar: pa.MapScalar) -> tuple[list[Any], list[Any]]:
    entries = scalar.values  # noqa: PD011  # not pandas'
    return _array(entries.field(0)), _array(entries.field(1))


def _structs(array: pa.StructArray) -> list[Any]:
    fields = {field.name: _array(pc.struct_field(array, index)) for index, field in enumerate(array.type)}
    valid = array.is_valid().to_pylist()
    return [
        _struct({name: each[row] for name, each in fields.items()}) if valid[row] else None for row in range(len(array))
    ]


def _temporal(array: pa.Array) -> list[Any]:
    kind = array.type
    if pa.types.is_date(kind):
        return [None if day is None else ("date", day.isoformat()) for day in array.to_pylist()]
    is_timestamp = pa.types.is_timestamp(kind)
    tag = ("instant" if kind.tz else "calendar") if is_timestamp else "time" if pa.types.is_time(kind) else "duration"
    counts = array.cast(pa.int32() if pa.types.is_time32(kind) else pa.int64()).to_pylist()
    return [None if count is None else (tag, count * _NS[kind.unit]) for count in counts]


def _scalar(value: Any) -> Any:  # noqa: PLR0911  # one return per type
    if isinstance(value, np.ndarray | list | tuple):
        return tuple(_scalar(each) for each in value)
    if isinstance(value, dict):
        return _map([_scalar(key) for key in value], [_scalar(each) for each in value.values()])
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, np.generic):
        value = value.item() if not isinstance(value, np.datetime64) else pd.Timestamp(value)
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, float):
        return ("float", "nan" if value != value else value.hex())  # noqa: PLR0124  # NaN differs from itself
    if isinstance(value, pd.Timestamp):
        return ("instant" if value.tzinfo else "calendar", value.asm8.view("i8").item() * _NS[value.unit])
    if isinstance(value, dt.date):
        return ("date", value.isoformat())
    return value


def _struct(fields: Mapping[str, Any]) -> Any:
    return ("struct", *sorted(fields.items()))


def _map(keys: Sequence[Any], values: Sequence[Any]) -> Any:
    return ("map", *sorted(zip(keys, values, strict=True), key=lambda pair: pair[0]))
