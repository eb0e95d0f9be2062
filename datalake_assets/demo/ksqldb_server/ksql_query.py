"""A SELECT, checked and run: its header, then its rows block by block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from datalake_assets.demo.ksqldb_server.blocks import Block, Column, Ints, Longs, Pooled, Values
from datalake_assets.demo.ksqldb_server.generator import BLOCK_ROWS, Generator
from datalake_assets.demo.ksqldb_server.ksql_ast import ColumnRef, Expression, Select, columns_of, comparisons_of
from datalake_assets.demo.ksqldb_server.ksql_catalog import Catalog, SourceColumn, SourceObject
from datalake_assets.demo.ksqldb_server.ksql_errors import bad_statement
from datalake_assets.demo.ksqldb_server.ksql_types import SqlType
from datalake_assets.demo.ksqldb_server.ksql_where import bounds, coerce, holds
from datalake_assets.demo.ksqldb_server.stream_data import PSEUDO_COLUMNS
from datalake_assets.demo.ksqldb_server.table_data import TABLES, TableState

__all__ = ["Batch", "OutputColumn", "Queries", "Query"]

_HELP = " See https://cnfl.io/queries for more info.\nAdd EMIT CHANGES if you intended to issue a push query."
_PSEUDO = {
    column.name: SourceColumn(column.name, column.kind, key=False, made_from=column.name) for column in PSEUDO_COLUMNS
}
_DERIVE = "To derive a queryable table, you can do 'CREATE TABLE QUERYABLE_{name} AS SELECT * FROM {name}'."
_PUSH_ONLY = ("ROWPARTITION", "ROWOFFSET")


@dataclass(frozen=True, slots=True)
class OutputColumn:
    """A column of a result; ``key`` is whether it is the source's key."""

    name: str
    kind: SqlType
    key: bool


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some rows of a result, perhaps none; ``broken`` are those whose first value is of another type."""

    rows: int
    columns: tuple[Column, ...]
    broken: tuple[int, ...] = ()


class Cursor(Protocol):
    """Reads a result from where it got to."""

    def next(self) -> Batch | None:
        """The next rows, none at times; None when there are no more for now."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """A query that was accepted."""

    query_id: str
    source: str
    is_table: bool
    is_push: bool
    columns: tuple[OutputColumn, ...]
    limit: int | None
    cursor: Cursor

    @property
    def is_table_pull(self) -> bool:
        """Whether it reads a table's present state."""
        return self.is_table and not self.is_push


class Queries:
    """Accepts queries."""

    def __init__(self, generator: Generator, catalog: Catalog) -> None:
        self._generator, self._catalog = generator, catalog
        self._tables = {name: TableState(generator.config, name) for name in TABLES}
        self._started = 0

    def start(self, select: Select, properties: Mapping[str, Any]) -> Query:
        """Check a query and open its cursor.

        Args:
            select: The query.
            properties: The request's properties; only ``auto.offset.reset`` matters.

        Raises:
            KsqlError: If ksqlDB would refuse it.
        """
        found = self._catalog.find(select.source)
        if found is None:
            raise bad_statement(f"{select.source} does not exist.{self._hint(select.source)}", select.text)
        if not select.emit_changes:
            _check_pull(select, found)
        items = _projected(select, found)
        _check_where(select, found)
        self._started += 1
        reads = _Reads(self._generator, select, found, tuple(ref for ref, _ in items))
        table = self._tables.get(found.name)
        from_now = _latest(select, properties)
        cursor: Cursor = _NoRows()
        if table is not None:
            cursor = _TableCursor(reads, table, from_now=from_now)
        elif found.queryable:
            cursor = _StreamCursor(reads, from_now=from_now)
        table_pull = found.is_table and not select.emit_changes
        return Query(
            query_id=f"query_{self._started}" if table_pull else f"transient_{found.name}_{self._started}",
            source=found.name,
            is_table=found.is_table,
            is_push=select.emit_changes,
            columns=tuple(OutputColumn(c.name, c.kind, c.key) for _, c in items),
            limit=select.limit,
            cursor=cursor,
        )

    def _hint(self, name: str) -> str:
        upper = self._catalog.find(name.upper())
        return (
            ""
            if upper is None
            else f"\nDid you mean {upper.name}? Hint: try removing double quotes from the source name."
        )


def _latest(select: Select, properties: Mapping[str, Any]) -> bool:
    if not select.emit_changes:
        return False
    name = "auto.offset.reset"
    reset = properties.get(f"ksql.streams.{name}", properties.get(name, "latest"))
    if reset not in {"earliest", "latest"}:
        raise bad_statement(
            f"Invalid value {reset} for configuration {name}: String must be one of: latest, earliest, none",
            select.text,
        )
    return bool(reset == "latest")


def _check_pull(select: Select, found: SourceObject) -> None:
    lists = (("SELECT", [item.column for item in select.projections]), ("WHERE", list(columns_of(select.where))))
    for clause, refs in lists:
        names = ", ".join(f"`{ref.name}`" for ref in refs if ref.name in _PUSH_ONLY)
        if names:
            message = f"Pull queries don't support the following columns in {clause} clauses: {names}\n{_HELP}"
            raise bad_statement(message, select.text)
    if not found.queryable:
        cure = _DERIVE.format(name=found.name)
        raise bad_statement(f"The `{found.name}` table isn't queryable. {cure}{_HELP}", select.text)


def _check_where(select: Select, found: SourceObject) -> None:
    for ref in columns_of(select.where):
        _resolve(ref, select, found, "WHERE")
    for compare in comparisons_of(select.where):
        kind = _resolve(compare.column, select, found, "WHERE").kind
        for literal in compare.literals:
            coerce(literal, kind, compare, select.text)


def _projected(select: Select, found: SourceObject) -> list[tuple[ColumnRef, SourceColumn]]:
    if not select.projections:
        return [(ColumnRef(column.name), column) for column in found.columns]
    items: list[tuple[ColumnRef, SourceColumn]] = []
    for item in select.projections:
        column = _resolve(item.column, select, found, "SELECT")
        name = item.alias or item.column.path[-1] if item.column.path else item.alias or column.name
        items.append((item.column, SourceColumn(name, column.kind, column.key, column.made_from)))
    _check_unique(items, select)
    return items


def _check_unique(items: list[tuple[ColumnRef, SourceColumn]], select: Select) -> None:
    names = [column.name for _, column in items]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise bad_statement(f"The projection contains a repeated column name: `{twice}`", select.text)


def _resolve(ref: ColumnRef, select: Select, found: SourceObject, clause: str) -> SourceColumn:
    """The column that a name stands for, with the type of the STRUCT field if one is named."""
    known = {column.name: column for column in found.columns} | _PSEUDO
    column = known.get(ref.name)
    place = f"Line: {ref.line}, Col: {ref.position}: "
    if column is None or ref.qualifier not in {"", select.source, select.alias}:
        raise bad_statement(f"{place}{clause} column '{ref}' cannot be resolved.", select.text)
    kind: SqlType | None = column.kind
    for name in ref.path:
        kind = kind.field(name) if kind is not None else None
        if kind is None:
            raise bad_statement(f"{place}Could not find field '{name}' in '{ref.name}'.", select.text)
    return SourceColumn(
        column.name, column.kind if kind is None else kind, column.key and not ref.path, column.made_from
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Reads:
    """What a query reads."""

    generator: Generator
    select: Select
    found: SourceObject
    output: tuple[ColumnRef, ...]

    def column(self, ref: ColumnRef) -> SourceColumn:
        return ({column.name: column for column in self.found.columns} | _PSEUDO)[ref.name]

    def filtered(self, where: Expression, column: Callable[[ColumnRef], Column]) -> Longs:
        return np.flatnonzero(holds(where, column, self.select.text)).astype(np.int64)


def _added(kind: SqlType, rows: int) -> Values:
    """The values of a column that a fault added or retyped."""
    return Values(kind, [True if kind.base == "BOOLEAN" else "added"] * rows)


def _field(column: Column, path: tuple[str, ...]) -> Column:
    for name in path:
        if isinstance(column, Pooled):
            column = column.struct_field(name)
    return column


class _NoRows:
    """Reads a table that nobody writes to."""

    def next(self) -> Batch | None:
        return None


class _StreamCursor:
    """Reads a stream: all that was there at the start, or on and on."""

    def __init__(self, reads: _Reads, *, from_now: bool) -> None:
        self._reads = reads
        generator, where = reads.generator, reads.select.where
        low, self._stop = bounds(where, generator.config)
        self._at = max(low, generator.count() if from_now else generator.oldest())
        self._end = None if reads.select.emit_changes else generator.count()

    def next(self) -> Batch | None:
        generator = self._reads.generator
        end = min(self._stop, generator.count() if self._end is None else self._end)
        if self._at >= end:
            return None
        index = np.arange(self._at, min(end, self._at + BLOCK_ROWS), dtype=np.int64)
        self._at = int(index[-1]) + 1
        where = self._reads.select.where
        if where is not None:
            index = index[self._reads.filtered(where, self._columns(index))]
        make = self._columns(index)
        columns = tuple(make(ref) for ref in self._reads.output) if len(index) else ()
        return Batch(len(index), columns, self._broken(index))

    def _broken(self, index: Longs) -> tuple[int, ...]:
        first = self._reads.column(self._reads.output[0])
        if first.name in _PSEUDO or first.made_from in {"SRC_PART", "SRC_OFF"}:
            return ()
        return tuple(self._reads.generator.block(self._reads.found.name, index).rows.broken().tolist())

    def _columns(self, index: Longs) -> Callable[[ColumnRef], Column]:
        block = self._reads.generator.block(self._reads.found.name, index)
        return lambda ref: self._column(ref, block)

    def _column(self, ref: ColumnRef, block: Block) -> Column:
        column = self._reads.column(ref)
        spec = self._reads.generator.spec(self._reads.found.name).column(column.made_from or "")
        return _added(column.kind, len(block.rows.index)) if spec is None else _field(spec.make(block), ref.path)


class _TableCursor:
    """Reads a table: its present state, and for a push query every row that changes later."""

    def __init__(self, reads: _Reads, state: TableState, *, from_now: bool) -> None:
        self._reads, self._state = reads, state
        self._seen: dict[int, tuple[Any, ...]] = {}
        self._changes: list[tuple[int, tuple[Any, ...]]] = []
        self._count = -1
        if from_now:
            self._refresh()
            self._changes = []

    def next(self) -> Batch | None:
        if not self._changes and not self._refresh():
            return None
        some, self._changes = self._changes[:BLOCK_ROWS], self._changes[BLOCK_ROWS:]
        make = self._columns(some)
        where = self._reads.select.where
        rows = np.arange(len(some), dtype=np.int64) if where is None else self._reads.filtered(where, make)
        return Batch(len(rows), tuple(make(ref).take(rows) for ref in self._reads.output))

    def _refresh(self) -> bool:
        count = self._reads.generator.count()
        if self._count >= 0 and (count == self._count or not self._reads.select.emit_changes):
            return False
        self._count = count
        rows = self._state.rows(count)
        self._changes = [(at, row) for at, row in rows.items() if self._seen.get(at) != row]
        self._seen = rows
        return bool(self._changes)

    def _columns(self, some: list[tuple[int, tuple[Any, ...]]]) -> Callable[[ColumnRef], Column]:
        names = [name for name, _ in self._state.spec.columns]
        partitions = self._reads.generator.config.partitions

        def column(ref: ColumnRef) -> Column:
            known = self._reads.column(ref)
            made_from = known.made_from
            if made_from is None:
                return _added(known.kind, len(some))
            if made_from in _PUSH_ONLY:
                groups = np.array([at for at, _ in some], dtype=np.int64)
                data = groups % partitions if made_from == "ROWPARTITION" else groups // partitions
                return Ints(_PSEUDO[made_from].kind, data)
            place = -1 if made_from == "ROWTIME" else names.index(made_from)
            kind = _PSEUDO[made_from].kind if place < 0 else self._state.spec.columns[place][1]
            return Values(kind, [row[place] for _, row in some])

        return column
