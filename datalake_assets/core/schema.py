"""From a source's columns to the lake's Arrow schema, and what may happen to that schema later.

The rules live here so that a feed's first batch and its thousandth agree: names, types, what a changed source may do.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import pyarrow as pa

from datalake_assets.core.ksql_types import (
    Column,
    KsqlArray,
    KsqlDecimal,
    KsqlMap,
    KsqlScalar,
    KsqlStruct,
    KsqlType,
    parse_columns,
    parse_delimited_columns,
)
from datalake_assets.errors import InvalidFeed, SchemaChanged

__all__ = [
    "RESERVED_NAMES",
    "SOURCE_NAME",
    "Column",
    "KsqlType",
    "SchemaPolicy",
    "arrow_schema",
    "arrow_type",
    "conform",
    "evolve",
    "lake_name",
    "parse_columns",
    "parse_delimited_columns",
    "schema_from_json",
    "schema_to_json",
]

SchemaPolicy = Literal["freeze", "evolve"]

RESERVED_NAMES: Final = frozenset({"year", "month", "day", "hour", "version"})
"""Hive partition keys: a column of this name would hide the key, or be hidden by it."""

SOURCE_NAME: Final = b"source_name"
"""Field metadata key under which the source's own name is kept, UTF-8."""

_SCALAR_TYPES: Final[Mapping[str, pa.DataType]] = {
    "BOOLEAN": pa.bool_(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "DOUBLE": pa.float64(),
    "STRING": pa.string(),
    "BYTES": pa.binary(),
    "TIMESTAMP": pa.timestamp("ms", "UTC"),
    "DATE": pa.date32(),
    "TIME": pa.time32("ms"),
}
_DECIMAL128_DIGITS: Final = 38  # Arrow Columnar Format: Decimal128 and Decimal256
_DECIMAL256_DIGITS: Final = 76


def lake_name(source_name: str) -> str:
    """The column's name in the lake: lower case, as Athena and Hive show every name anyway."""
    return source_name.lower()


def arrow_schema(columns: Sequence[Column], *, feed: str, rename: Mapping[str, str] | None = None) -> pa.Schema:
    """The Arrow schema of a source's columns, in their order.

    Every field is nullable and keeps the source's name in its metadata; fields of structs are lower-cased too.

    Args:
        columns: What the source announced.
        feed: Its name, for the message.
        rename: Source name to lake name, for columns that cannot keep theirs.

    Raises:
        InvalidFeed: Two columns would share a name, one is named like a partition key, or a type does not fit.
    """
    renamed = rename or {}
    names = [renamed.get(column.name, lake_name(column.name)) for column in columns]
    _refuse_names(feed, list(zip(columns, names, strict=True)))
    return pa.schema(
        [
            pa.field(name, arrow_type(column.type, feed=feed), metadata=_source(column.name))
            for name, column in zip(names, columns, strict=True)
        ]
    )


def _refuse_names(feed: str, named: Iterable[tuple[Column, str]]) -> None:
    taken: dict[str, str] = {}
    for column, name in named:
        if name != lake_name(name) or not name:
            raise InvalidFeed(feed, f"column {column.name!r} is renamed to {name!r}; use a lower-case name")
        if name in RESERVED_NAMES:
            raise InvalidFeed(feed, f"column {column.name!r} is named like a partition key; rename it in the feed")
        if name in taken:
            reason = (
                f"columns {taken[name]!r} and {column.name!r} are both {name!r} in the lake; rename one in the feed"
            )
            raise InvalidFeed(feed, reason)
        taken[name] = column.name


def arrow_type(kind: KsqlType, *, feed: str) -> pa.DataType:
    """The Arrow type of a SQL type; timestamps are UTC with milliseconds, as ksqlDB keeps them.

    Raises:
        InvalidFeed: A decimal has more than 76 digits, or two struct fields share a lower-cased name.
    """
    match kind:
        case KsqlScalar(name):
            return _SCALAR_TYPES[name]
        case KsqlDecimal(precision, scale):
            return _decimal(precision, scale, feed)
        case KsqlArray(item):
            return pa.list_(arrow_type(item, feed=feed))
        case KsqlMap(key, value):
            return pa.map_(arrow_type(key, feed=feed), arrow_type(value, feed=feed))
        case KsqlStruct(fields):
            return _struct(fields, feed)


def _decimal(precision: int, scale: int, feed: str) -> pa.DataType:
    if not 1 <= precision <= _DECIMAL256_DIGITS or scale > precision:
        reason = f"DECIMAL({precision}, {scale}) does not fit into Parquet (76 digits); cast it in the source"
        raise InvalidFeed(feed, reason)
    return pa.decimal128(precision, scale) if precision <= _DECIMAL128_DIGITS else pa.decimal256(precision, scale)


def _struct(fields: Sequence[tuple[str, KsqlType]], feed: str) -> pa.DataType:
    names = [lake_name(name) for name, _ in fields]
    if len(set(names)) < len(names) or not names:
        reason = "a STRUCT without fields" if not names else f"STRUCT fields {sorted(names)} clash in lower case"
        raise InvalidFeed(feed, f"{reason}; leave it out of the feed's columns")
    return pa.struct(
        [pa.field(lake_name(name), arrow_type(kind, feed=feed), metadata=_source(name)) for name, kind in fields]
    )


def _source(name: str) -> dict[bytes, bytes]:
    return {SOURCE_NAME: name.encode()}


def evolve(frozen: pa.Schema, incoming: pa.Schema, *, policy: SchemaPolicy, source: str) -> pa.Schema:
    """The schema that the feed has from now on, given what its source sends now.

    Columns are compared by name: another order, or other metadata, is no difference. ``freeze`` accepts no difference.
    ``evolve`` appends new columns as nullable ones and keeps vanished ones, to be filled with nulls; it never changes a
    type, since pandas, DuckDB and Polars fail on files whose types differ.

    Args:
        frozen: The feed's schema so far.
        incoming: The source's schema now.
        policy: The feed's ``schema_policy``.
        source: What is read, for the message.

    Raises:
        SchemaChanged: The policy does not allow the difference; the message lists it.
    """
    added = [field for field in incoming if field.name not in frozen.names]
    removed = [field for field in frozen if field.name not in incoming.names]
    changed = [
        (field, incoming.field(field.name))
        for field in frozen
        if field.name in incoming.names and not _same(field, incoming.field(field.name))
    ]
    refused = policy == "freeze" or any(not field.nullable for field in removed)
    if changed or (refused and (added or removed)):
        cure = "" if policy == "freeze" and not changed else "types never change: undo it, or land it as a new feed"
        raise SchemaChanged(source, _difference(added, removed, changed), cure=cure)
    return pa.schema([*frozen, *(field.with_nullable(nullable=True) for field in added)], metadata=frozen.metadata)


def _same(left: pa.Field, right: pa.Field) -> bool:
    return bool(left.type == right.type and left.nullable == right.nullable)


def _difference(added: list[pa.Field], removed: list[pa.Field], changed: list[tuple[pa.Field, pa.Field]]) -> str:
    parts: list[tuple[str, list[str]]] = [
        ("added", [f"{field.name} {field.type}" for field in added]),
        ("removed", [field.name for field in removed]),
        ("changed", [f"{old.name} {_described(old)} -> {_described(new)}" for old, new in changed]),
    ]
    return "the schema changed: " + "; ".join(f"{what} {', '.join(names)}" for what, names in parts if names)


def _described(field: pa.Field) -> str:
    return f"{field.type}{'' if field.nullable else ' not null'}"


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch in the feed's schema: columns by name, in the schema's order, nulls for those that it lacks.

    Values are never cast, so nothing is rounded or lost.

    Raises:
        ValueError: The batch has a column or a type that the schema has not, or lacks a required one; ``evolve`` would
            have refused its schema.
    """
    unknown = sorted(set(batch.schema.names) - set(schema.names))
    if unknown:
        raise ValueError(f"columns {unknown} are not in the feed's schema")
    return pa.RecordBatch.from_arrays([_column(batch, field) for field in schema], schema=schema)


def _column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    index = batch.schema.get_field_index(field.name)
    if index < 0 and field.nullable:
        return pa.nulls(batch.num_rows, field.type)
    if index < 0:
        raise ValueError(f"the batch lacks {field.name}, which is never null in the feed's schema")
    column = batch.column(index)
    if column.type != field.type:
        raise ValueError(f"column {field.name} is {column.type}; the feed's schema has {field.type}")
    return column


def schema_to_json(schema: pa.Schema) -> str:
    """The schema as text for a JSON document: base64 of Arrow's IPC schema message; metadata is kept."""
    return base64.b64encode(schema.serialize()).decode("ascii")


def schema_from_json(text: str) -> pa.Schema:
    """The schema that ``schema_to_json`` wrote.

    Raises:
        ValueError: The text is not such a schema; pyarrow raises ``OSError`` for some that are cut short.
    """
    schema: pa.Schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text, validate=True)))
    return schema
