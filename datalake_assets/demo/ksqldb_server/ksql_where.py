"""Where a WHERE clause holds in a block of rows, and which rows it cannot hold for, so that they need not be made."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import operator
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np

from datalake_assets.demo.ksqldb_server.blocks import MAX_LATE_MS, Bools, Column, GeneratorConfig, Millis
from datalake_assets.demo.ksqldb_server.ksql_ast import All, Any_, ColumnRef, Compare, Expression, IsNull, Literal
from datalake_assets.demo.ksqldb_server.ksql_errors import KsqlError, bad_statement
from datalake_assets.demo.ksqldb_server.ksql_types import SqlType

__all__ = ["bounds", "coerce", "holds"]

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NAMES = {
    "=": "EQUAL",
    "!=": "NOT_EQUAL",
    "<": "LESS_THAN",
    "<=": "LESS_THAN_OR_EQUAL",
    ">": "GREATER_THAN",
    ">=": "GREATER_THAN_OR_EQUAL",
}
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NUMBERS = frozenset({"INTEGER", "BIGINT", "DOUBLE", "DECIMAL"})
_WHOLE = frozenset({"INTEGER", "BIGINT"})
# an index that no stream reaches
_NO_END = 1 << 62


def holds(expression: Expression, column: Callable[[ColumnRef], Column], statement: str) -> Bools:
    """Where the expression is true; unknown counts as not.

    Args:
        expression: A WHERE clause.
        column: Finds a column's values.
        statement: For error messages.

    Raises:
        KsqlError: If a literal cannot be compared with its column.
    """
    if isinstance(expression, All | Any_):
        both = np.logical_and if isinstance(expression, All) else np.logical_or
        return _reduced(both, [holds(part, column, statement) for part in expression.parts])
    found = column(expression.column)
    if isinstance(expression, IsNull):
        null = np.array([item is None for item in found.values()], dtype=np.bool_)
        return ~null if expression.negated else null
    return _compared(expression, found, statement)


def _compared(expression: Compare, column: Column, statement: str) -> Bools:
    compare = _OPERATORS[expression.operator]
    as_ms = column.kind.base == "TIMESTAMP" and not isinstance(column, Millis)

    def mask(literal: Literal) -> Bools:
        bound = coerce(literal, column.kind, expression, statement)
        return column.test(lambda item: compare(_to_ms(item) if as_ms else item, bound))

    combine = np.logical_and if expression.operator == "!=" else np.logical_or
    return _reduced(combine, [mask(literal) for literal in expression.literals])


def _reduced(combine: np.ufunc, masks: list[Bools]) -> Bools:
    combined: Bools = combine.reduce(masks)
    return combined


def coerce(literal: Literal, kind: SqlType, expression: Compare, statement: str) -> Any:
    """A literal as the values of this type compare.

    Raises:
        KsqlError: If the two cannot be compared.
    """
    is_rowtime = expression.column.name == "ROWTIME" and not expression.column.path
    if isinstance(literal, str) and (kind.base == "TIMESTAMP" or is_rowtime):
        return _parsed(literal, statement)
    if isinstance(literal, bool) != (kind.base == "BOOLEAN"):
        raise _incomparable(literal, kind, expression, statement)
    if isinstance(literal, int | Decimal) and not isinstance(literal, bool):
        if kind.base in _NUMBERS:
            return float(literal) if kind.base == "DOUBLE" else literal
        if kind.base == "TIMESTAMP":
            return int(literal)
    if isinstance(literal, bool) or (isinstance(literal, str) and kind.base == "STRING"):
        return literal
    if isinstance(literal, str) and kind.base in {"DATE", "TIME"}:
        with contextlib.suppress(ValueError):
            return dt.date.fromisoformat(literal) if kind.base == "DATE" else dt.time.fromisoformat(literal)
    raise _incomparable(literal, kind, expression, statement)


def bounds(expression: Expression | None, config: GeneratorConfig) -> tuple[int, int]:
    """A range [low, high) of global indices outside of which the expression is false."""
    if isinstance(expression, All):
        ranges = [bounds(part, config) for part in expression.parts]
        low = max(_resumed(expression, config), *(low for low, _ in ranges))
        return low, min(high for _, high in ranges)
    if isinstance(expression, Any_):
        ranges = [bounds(part, config) for part in expression.parts]
        return min(low for low, _ in ranges), max(high for _, high in ranges)
    if isinstance(expression, Compare) and len(expression.literals) == 1 and not expression.column.path:
        if expression.column.name == "ROWTIME":
            return _rowtime_bounds(expression, config)
        if expression.column.name == "ROWOFFSET":
            return _offset_bounds(expression, config)
    return 0, _NO_END


def _resumed(expression: All, config: GeneratorConfig) -> int:
    """Where rows begin that are asked for from an offset of each source partition on."""
    first: dict[int, int] = {}
    for part in expression.parts:
        if not isinstance(part, Any_) or len(part.parts) != 2:  # noqa: PLR2004 - another partition, or late enough
            continue
        other, later = part.parts
        if _is(other, "ROWPARTITION", "!=") and _is(later, "ROWOFFSET", ">="):
            first[_number(other)] = _number(later)
    if not first.keys() >= set(range(config.partitions)):
        return 0
    return max(0, min(offset * config.partitions + partition for partition, offset in first.items()))


def _is(expression: Expression, name: str, sign: str) -> bool:
    return (
        isinstance(expression, Compare)
        and (expression.column.name, expression.operator) == (name, sign)
        and len(expression.literals) == 1
        and isinstance(expression.literals[0], int)
    )


def _number(expression: Expression) -> int:
    return int(expression.literals[0]) if isinstance(expression, Compare) else 0


def _rowtime_bounds(expression: Compare, config: GeneratorConfig) -> tuple[int, int]:
    literal = expression.literals[0]
    try:
        ms = _parsed(literal, "") if isinstance(literal, str) else math.floor(literal)
    except KsqlError:
        return 0, _NO_END
    # an event arrives at or after its ROWTIME, and at most MAX_LATE_MS later
    low = config.first_index_at(ms) if expression.operator in {"=", ">", ">="} else 0
    high = config.first_index_at(ms + MAX_LATE_MS + 1) if expression.operator in {"=", "<", "<="} else _NO_END
    return low, high


def _offset_bounds(expression: Compare, config: GeneratorConfig) -> tuple[int, int]:
    literal = expression.literals[0]
    if isinstance(literal, str):
        return 0, _NO_END
    offset = math.floor(literal)
    low = offset * config.partitions if expression.operator in {"=", ">", ">="} else 0
    high = (offset + 1) * config.partitions if expression.operator in {"=", "<", "<="} else _NO_END
    return max(0, low), max(0, high)


def _parsed(text: str, statement: str) -> int:
    """A timestamp's text, from a bare year on, as milliseconds; UTC unless it says otherwise."""
    full = text + "0000-01-01"[len(text) :] if len(text) < len("0000-01-01") else text
    try:
        moment = dt.datetime.fromisoformat(full)
    except ValueError as exc:
        raise bad_statement(
            f"Failed to parse timestamp '{text}': Required format is: \"yyyy-MM-dd'T'HH:mm:ss.SSS\", "
            "with an optional numeric 'Z' or '+'/'-' zone suffix.",
            statement,
        ) from exc
    return _to_ms(moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC))


def _to_ms(moment: dt.datetime) -> int:
    return (moment - _EPOCH) // dt.timedelta(milliseconds=1)


def _incomparable(literal: Literal, kind: SqlType, expression: Compare, statement: str) -> KsqlError:
    literal_kind = "BOOLEAN" if isinstance(literal, bool) else "STRING" if isinstance(literal, str) else "INTEGER"
    shown = f"'{literal}'" if isinstance(literal, str) else str(literal)
    return bad_statement(
        f"Cannot compare {expression.column} ({kind}) to {shown} ({literal_kind}) with {_NAMES[expression.operator]}.",
        statement,
    )
