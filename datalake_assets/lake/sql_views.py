"""What DuckDB sees of rows that Arrow reads: views, in which each column has one name and a type that DuckDB takes.

A column of a type that DuckDB does not take would make every query of its feed fail, those that do not name it too. So
it is read as a type that holds the same values where there is one, and otherwise stands in the view as an error, which
only a query that touches it meets.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.types as pt

from datalake_assets.core.rules import identifier, literal
from datalake_assets.core.schema import spellings
from datalake_assets.errors import duckdb_interrupted
from datalake_assets.lake.sql_gate import checking_connection

if TYPE_CHECKING:
    import pyarrow.dataset as ds  # imports pandas

__all__ = ["NO_COLUMN", "as_taken", "hide", "is_taken", "show"]

#: Digits of DuckDB's widest decimals (DuckDB documentation, "Numeric Types").
MAX_DIGITS = 38
#: A column that no file has, and no view shows.
NO_COLUMN = "no column"


def show(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    dataset: ds.Dataset | pa.Table,
    *,
    is_temporary: bool = False,
    schema: str = "",
    as_schema: Callable[[pa.Schema], ds.Dataset] | None = None,
) -> None:
    """Makes a view of a dataset, or of rows that are at hand, in place of one of that name.

    Args:
        connection: Where.
        name: The view.
        dataset: Its rows.
        is_temporary: The view goes with the connection, and hides one of that name which a database file keeps.
        schema: The schema that it is made in, which is there and has none of that name; by default the session's own.
        as_schema: Gives the dataset in other columns, of which the first, `NO_COLUMN`, is in no file; by default Arrow
            does.
    """
    if not is_temporary and not schema:
        hide(connection, name)
    taken = as_taken(dataset.schema)
    # of rows that are only counted, DuckDB reads the first column: all of it, if files had it
    spare = next(each for n in count() if (each := NO_COLUMN + " " * n) not in taken.names)
    from_ = _source(f"{schema} {name}" if schema else name)
    given = pa.schema([pa.field(spare, pa.null()), *taken])
    connection.register(from_, as_schema(given) if as_schema is not None else _rows(dataset, given))
    _, *shown = (row[0] for row in connection.execute(f"DESCRIBE {identifier(from_)}").fetchall())
    known = dict(zip(taken.names, map(identifier, shown), strict=True))  # names that differ in case stay apart
    others = {other for field in dataset.schema for other in spellings(field)}
    columns = [
        _column(field, known) if field.name in known else _refusal(field, name)
        for field in dataset.schema
        if field.name not in others
    ]
    source = identifier(from_)
    kind = "OR REPLACE TEMP VIEW" if is_temporary else "VIEW"
    called = f"{identifier(schema)}.{identifier(name)}" if schema else identifier(name)
    connection.execute(f"CREATE {kind} {called} AS SELECT {', '.join(columns)} FROM {source}")  # noqa: S608  all are quoted


def hide(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    """Takes a view away; idempotent."""
    connection.execute(f"DROP VIEW IF EXISTS {identifier(name)}")
    connection.unregister(_source(name))


def is_taken(schema: pa.Schema) -> bool:
    """Whether DuckDB takes all columns as they are."""
    return all(_taken_as(field.type) == field.type for field in schema)


def as_taken(schema: pa.Schema) -> pa.Schema:
    """The columns that DuckDB takes, of the types as which it takes them."""
    fields = [(field, _taken_as(field.type)) for field in schema]
    return pa.schema([field.with_type(kind) for field, kind in fields if kind is not None])


def _source(name: str) -> str:
    return f"{name} files"  # a blank, so that it is no feed's name


def _column(field: pa.Field, known: dict[str, str]) -> str:
    """A column, from whichever spelling of its name a file has."""
    found = [known[each] for each in (field.name, *spellings(field)) if each in known]
    return found[0] if len(found) == 1 else f"coalesce({', '.join(found)}) AS {identifier(field.name)}"


def _refusal(field: pa.Field, name: str) -> str:
    reason = f"column {field.name!r} of {name} is {field.type}, which DuckDB cannot read; leave it out of the query"
    return f"error({literal(reason)}) AS {identifier(field.name)}"


def _rows(dataset: ds.Dataset | pa.Table, schema: pa.Schema) -> ds.Dataset | pa.Table:
    """The rows in other columns, of which the first is in no file."""
    spare, *taken = schema
    if isinstance(dataset, pa.Table):
        rows = dataset.select([each.name for each in taken]).cast(pa.schema(taken))
        return rows.add_column(0, spare, pa.nulls(dataset.num_rows))
    if not dataset.files:
        return schema.empty_table()
    from datalake_assets.lake.shown_rows import in_columns  # noqa: PLC0415  whoever has a dataset has what it imports

    return in_columns(dataset, schema)


@lru_cache(maxsize=256)
def _taken_as(kind: pa.DataType) -> pa.DataType | None:
    """The type itself if DuckDB takes it, else one that holds the same values; None if there is none."""
    if _is_plain(kind) or _does_take(kind):
        return kind
    other = _alike(kind)
    return other if other is not None and not other.equals(kind) and _does_take(other) else None


def _is_plain(kind: pa.DataType) -> bool:
    """Types that need no question, which takes a millisecond."""
    if pt.is_float16(kind) or pt.is_decimal256(kind):
        return False
    is_text = pt.is_string(kind) or pt.is_large_string(kind) or pt.is_binary(kind) or pt.is_large_binary(kind)
    is_time = pt.is_date(kind) or pt.is_timestamp(kind)
    return bool(is_text or is_time or pt.is_boolean(kind) or pt.is_integer(kind) or pt.is_floating(kind))


@duckdb_interrupted()
def _does_take(kind: pa.DataType) -> bool:
    with checking_connection() as connection:
        try:
            connection.register("asked", pa.table({"a": pa.array([], kind)}))
            connection.execute("SELECT * FROM asked").fetchall()
        except (duckdb.Error, pa.ArrowException, NotImplementedError):
            return False
    return True


def _alike(kind: pa.DataType) -> pa.DataType | None:
    """A type of the same values, part by part."""
    if isinstance(kind, pa.BaseExtensionType):
        return _alike(kind.storage_type)
    if pt.is_float16(kind):
        return pa.float32()
    if pt.is_decimal256(kind):
        return pa.decimal128(kind.precision, kind.scale) if kind.precision <= MAX_DIGITS else None
    return _of_parts(kind) if pt.is_struct(kind) or pt.is_list(kind) or pt.is_large_list(kind) else kind


def _of_parts(kind: pa.DataType) -> pa.DataType | None:
    fields = [kind.field(place) for place in range(kind.num_fields)]
    parts = [_alike(field.type) for field in fields]
    if any(part is None for part in parts):
        return None
    fields = [field.with_type(part) for field, part in zip(fields, parts, strict=True)]
    if pt.is_struct(kind):
        return pa.struct(fields)
    return pa.large_list(*fields) if pt.is_large_list(kind) else pa.list_(*fields)
