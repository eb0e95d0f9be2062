"""What DuckDB sees of files that Arrow reads: each column under one name, or the reason why it cannot be read.

A column of a type that DuckDB does not take would make every query of its feed fail, those that do not name it too. So
it is read as a type that holds the same values where there is one, and otherwise stands in the view as an error, which
only a query that touches it meets.
"""

from __future__ import annotations

from functools import lru_cache

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.types as pt

from datalake_assets.core.rules import identifier, literal
from datalake_assets.core.schema import spellings

__all__ = ["as_taken", "hide", "is_taken", "show"]

#: Digits of DuckDB's widest decimals (DuckDB documentation, "Numeric Types").
MAX_DIGITS = 38
#: A column that no file has.
_NOTHING = "no column"


def show(connection: duckdb.DuckDBPyConnection, name: str, dataset: ds.Dataset, *, is_temporary: bool = False) -> None:
    """Makes a view of a dataset, in place of one of that name.

    Args:
        connection: Where.
        name: The view.
        dataset: Its rows.
        is_temporary: The view goes with the connection, and hides one of that name which a database file keeps.
    """
    if not is_temporary:
        hide(connection, name)
    taken = as_taken(dataset.schema)
    if not taken.names:  # rows can still be counted
        taken = pa.schema([pa.field(_NOTHING, pa.null())])
    connection.register(_source(name), _rows(dataset, taken))
    shown = [row[0] for row in connection.execute(f"DESCRIBE {identifier(_source(name))}").fetchall()]
    known = dict(zip(taken.names, map(identifier, shown), strict=True))  # names that differ in case stay apart
    others = {other for field in dataset.schema for other in spellings(field)}
    columns = [
        _column(field, known) if field.name in known else _refusal(field, name)
        for field in dataset.schema
        if field.name not in others
    ]
    source = identifier(_source(name))
    kind = "OR REPLACE TEMP VIEW" if is_temporary else "VIEW"
    connection.execute(f"CREATE {kind} {identifier(name)} AS SELECT {', '.join(columns)} FROM {source}")  # noqa: S608  all are quoted


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


def _rows(dataset: ds.Dataset, schema: pa.Schema) -> ds.Dataset | pa.Table:
    if not dataset.files:
        return schema.empty_table()
    if schema.equals(dataset.schema):
        return dataset
    return ds.FileSystemDataset(list(dataset.get_fragments()), schema, dataset.format, dataset.filesystem)


@lru_cache(maxsize=256)
def _taken_as(kind: pa.DataType) -> pa.DataType | None:
    """The type itself if DuckDB takes it, else one that holds the same values; None if there is none."""
    if _is_plain(kind) or _does_take(kind):
        return kind
    other = _alike(kind)
    return other if other is not None and not other.equals(kind) and _does_take(other) else None


def _is_plain(kind: pa.DataType) -> bool:
    """Types that need no question, which takes a hundredth of a second."""
    if pt.is_float16(kind) or pt.is_decimal256(kind):
        return False
    is_text = pt.is_string(kind) or pt.is_large_string(kind) or pt.is_binary(kind) or pt.is_large_binary(kind)
    is_time = pt.is_date(kind) or pt.is_timestamp(kind)
    return bool(is_text or is_time or pt.is_boolean(kind) or pt.is_integer(kind) or pt.is_floating(kind))


def _does_take(kind: pa.DataType) -> bool:
    with duckdb.connect() as connection:
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
