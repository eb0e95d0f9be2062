"""Rows of Python values as Arrow columns; rows that do not fit them are told apart, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

__all__ = ["fitting_rows"]

_UNFIT = (pa.ArrowException, ValueError, TypeError, OverflowError)


def fitting_rows(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> tuple[pa.RecordBatch, dict[int, str]]:
    """The rows that fit, and why others do not, by their number.

    Args:
        rows: Values as `pyarrow.array` takes them, one for each column.
        schema: The columns.
    """
    try:
        return _batch(rows, schema), {}
    except _UNFIT:  # Arrow does not say which value it was
        reasons = {number: why for number, row in enumerate(rows) if (why := _misfit(row, schema))}
    return _batch([row for number, row in enumerate(rows) if number not in reasons], schema), reasons


def _batch(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [pa.array(values, each.type) for values, each in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _misfit(row: Sequence[Any], schema: pa.Schema) -> str:
    for value, column in zip(row, schema, strict=True):
        try:
            pa.array([value], column.type)
        except _UNFIT as error:
            return f"{column.name}: {error}"
    return ""
