"""What a statement says, once it is parsed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

__all__ = [
    "All",
    "Any_",
    "ColumnRef",
    "Compare",
    "Describe",
    "Expression",
    "IsNull",
    "ListSources",
    "Literal",
    "Projection",
    "Select",
    "ShowProperties",
    "Statement",
    "columns_of",
    "comparisons_of",
    "negate",
]

Literal = int | Decimal | str | bool
_NEGATED = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


@dataclass(frozen=True, slots=True)
class ColumnRef:
    """A column, or a field of a STRUCT column, and where the statement names it."""

    name: str
    path: tuple[str, ...] = ()
    qualifier: str = ""
    line: int = 1
    position: int = 1

    def __str__(self) -> str:
        return "->".join((self.name, *self.path))


@dataclass(frozen=True, slots=True)
class Compare:
    """A column against one or more literals; several are an IN (for ``=``) or a NOT IN (for ``!=``)."""

    column: ColumnRef
    operator: str
    literals: tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class IsNull:
    """Whether a column is NULL, or is not."""

    column: ColumnRef
    negated: bool


@dataclass(frozen=True, slots=True)
class All:
    """A conjunction."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Any_:  # noqa: N801 - Any is typing's
    """A disjunction."""

    parts: tuple[Expression, ...]


Expression = Compare | IsNull | All | Any_


@dataclass(frozen=True, slots=True)
class Projection:
    """One item of a SELECT list."""

    column: ColumnRef
    alias: str | None


@dataclass(frozen=True, slots=True)
class Select:
    """A query; no projections stand for ``*``."""

    projections: tuple[Projection, ...]
    source: str
    alias: str
    where: Expression | None
    emit_changes: bool
    limit: int | None
    text: str


@dataclass(frozen=True, slots=True)
class ListSources:
    """LIST or SHOW, STREAMS or TABLES."""

    tables: bool
    extended: bool
    text: str


@dataclass(frozen=True, slots=True)
class Describe:
    """DESCRIBE one object."""

    source: str
    extended: bool
    text: str


@dataclass(frozen=True, slots=True)
class ShowProperties:
    """SHOW or LIST PROPERTIES."""

    text: str


Statement = Select | ListSources | Describe | ShowProperties


def comparisons_of(expression: Expression | None) -> Iterator[Compare]:
    """The comparisons with literals in an expression, in order."""
    if isinstance(expression, All | Any_):
        for part in expression.parts:
            yield from comparisons_of(part)
    elif isinstance(expression, Compare):
        yield expression


def columns_of(expression: Expression | None) -> Iterator[ColumnRef]:
    """The columns that an expression looks at, in order."""
    if isinstance(expression, All | Any_):
        for part in expression.parts:
            yield from columns_of(part)
    elif expression is not None:
        yield expression.column


def negate(expression: Expression) -> Expression:
    """The expression that holds where this one is false (not where it is unknown)."""
    if isinstance(expression, All):
        return Any_(tuple(map(negate, expression.parts)))
    if isinstance(expression, Any_):
        return All(tuple(map(negate, expression.parts)))
    if isinstance(expression, IsNull):
        return IsNull(expression.column, not expression.negated)
    return Compare(expression.column, _NEGATED[expression.operator], expression.literals)
