"""From a source's columns to the lake's Arrow schema, and what may happen to that schema later.

The rules live here so that a feed's first batch and its thousandth agree: names, types, what a changed source may do.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import pyarrow as pa

from datalake_assets.errors import InvalidFeed, SchemaChanged

__all__ = [
    "NOTES",
    "RESERVED_NAMES",
    "SOURCE_NAME",
    "SPELLINGS",
    "SchemaPolicy",
    "annotated",
    "column_named",
    "conform",
    "evolve",
    "lake_name",
    "lake_names",
    "schema_from_json",
    "schema_to_json",
    "source_metadata",
    "spelled",
    "spellings",
]

SchemaPolicy = Literal["freeze", "evolve"]

RESERVED_NAMES: Final = frozenset({"year", "month", "day", "hour", "version"})
"""Hive partition keys: a column of this name would hide the key, or be hidden by it."""

SOURCE_NAME: Final = b"source_name"
"""Field metadata key under which the source's own name is kept, UTF-8."""

SPELLINGS: Final = b"datalake.spellings"
"""Field metadata key under which an adopted folder's schema keeps how else files spell a column's name."""

NOTES: Final = ("description", "unit")
"""Field metadata keys under which a feed's notes on its columns are kept, UTF-8."""


def lake_name(source_name: str) -> str:
    """The column's name in the lake: lower case, as Athena and Hive show every name anyway."""
    return source_name.lower()


def lake_names(sources: Sequence[str], *, feed: str, rename: Mapping[str, str] | None = None) -> list[str]:
    """The columns' names in the lake, in their order.

    Args:
        sources: Names at the source.
        feed: Its name, for the message.
        rename: Source name to lake name, for columns that cannot keep theirs.

    Raises:
        InvalidFeed: Two columns would share a name, or one is named like a partition key.
    """
    renamed = rename or {}
    names = [renamed.get(name, lake_name(name)) for name in sources]
    taken: dict[str, str] = {}
    for source, name in zip(sources, names, strict=True):
        if name != lake_name(name) or not name:
            raise InvalidFeed(feed, f"column {source!r} is renamed to {name!r}; use a lower-case name")
        if name in RESERVED_NAMES:
            raise InvalidFeed(feed, f"column {source!r} is named like a partition key; rename it in the feed")
        if name in taken:
            reason = f"columns {taken[name]!r} and {source!r} are both {name!r} in the lake; rename one in the feed"
            raise InvalidFeed(feed, reason)
        taken[name] = source
    return names


def source_metadata(name: str) -> dict[bytes, bytes]:
    """Field metadata that keeps the source's own name of a column."""
    return {SOURCE_NAME: name.encode()}


def annotated(schema: pa.Schema, notes: Mapping[str, Mapping[str, str]]) -> pa.Schema:
    """The schema with notes on its columns as field metadata, as pyarrow reads it back from a file.

    Args:
        schema: The columns.
        notes: ``description`` and ``unit`` by column name; what is empty or not there is left out.
    """
    fields = []
    for field in schema:
        kept = {key: value for key, value in (field.metadata or {}).items() if key.decode() not in NOTES}
        given = notes.get(field.name, {})
        kept |= {name.encode(): given[name].encode() for name in NOTES if given.get(name)}
        fields.append(field.with_metadata(kept or None))
    return pa.schema(fields, metadata=schema.metadata)


def column_named(names: Sequence[str], wanted: str) -> str | None:
    """The column of that name, or the only one whose name differs from it in case alone; None if there is none."""
    if wanted in names:
        return wanted
    alike = [name for name in names if name.lower() == wanted.lower()]
    return alike[0] if len(alike) == 1 else None


def spellings(field: pa.Field) -> tuple[str, ...]:
    """How files spell the column's name apart from the schema: the same but for case; a file has one of them."""
    text = (field.metadata or {}).get(SPELLINGS)
    return tuple(json.loads(text)) if text else ()


def spelled(field: pa.Field, others: Iterable[str]) -> pa.Field:
    """The column, of which files may spell the name in these ways too."""
    known = sorted({*spellings(field), *others} - {field.name})
    kept = {key: value for key, value in (field.metadata or {}).items() if key != SPELLINGS}
    return field.with_metadata((kept | {SPELLINGS: json.dumps(known).encode()} if known else kept) or None)


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
    known = {field.name.lower(): field.name for field in frozen}
    for field in added:
        if field.name.lower() in known:
            alike = f"{known[field.name.lower()]!r} and {field.name!r} are one name to most readers"
            raise SchemaChanged(source, f"the schema changed: {alike}", cure="spell it as before")
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
