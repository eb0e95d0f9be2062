"""One schema for files that were written at different times, by one rule.

The rule, in words (docs/reference/on-disk.md repeats it for users):

- Columns are matched by name. The order is that of the oldest file; columns that came later follow in the order of
  their appearance. A column that a file lacks is null in its rows.
- Two types of a column become the narrower one's safe superset: integers of one sign the wider, floats the wider,
  decimals of one scale the longer, null anything, text and bytes their large form, a dictionary its values' type,
  timestamps of one zone the finer unit down to microseconds. Structs, lists and maps follow the rule part by part.
- Anything else does not fit: integers and text, timestamps with a zone and without, other scales, nanoseconds and
  coarser units (their range would overflow), and one name under two field ids.
- A column is nullable if it is in one file, or missing in one. Of metadata under one key, the newest file's stays.

What all row groups of an output must have in common, and which inputs fit together.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from datalake_assets.errors import UnreadableFile
from datalake_assets.parquet.footer import Footer, parse_footer
from datalake_assets.parquet.inputs import InputFile, OpenInput
from datalake_assets.parquet.writer import ParquetSettings, open_writer

__all__ = [
    "AnotherShape",
    "Incompatible",
    "Shape",
    "conform_table",
    "footer_texts",
    "inspect",
    "lost_type",
    "shape_of",
    "template",
    "unify_schemas",
]

FIELD_ID = b"PARQUET:field_id"
#: Key-values that describe one file's columns; Spark believes this one more than the schema beside it.
_DESCRIBES_SCHEMA = frozenset({b"org.apache.spark.sql.parquet.row.metadata"})
#: Timestamp units that may be made finer, coarsest first; nanoseconds end in 2262 and are not among them.
_UNITS = ("s", "ms", "us")


class Incompatible(Exception):
    """Two files' schemas cannot become one; the message says why, for a person."""


def unify_schemas(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The one schema of files, oldest first.

    Raises:
        Incompatible: They have none.
    """
    result = schemas[0]
    for other in schemas[1:]:
        if other.equals(result, check_metadata=True):
            continue
        if other.remove_metadata().equals(result.remove_metadata(), check_metadata=True):
            result = result.with_metadata(_metadata(result.metadata, other.metadata))
        else:
            result = _both(result, other)
    return result


def conform_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table's rows under a unified schema: columns reordered, added as nulls, and cast without loss."""
    if table.schema.equals(schema, check_metadata=True):
        return table
    columns = []
    for field in schema:
        index = table.schema.get_field_index(field.name)
        if index < 0:
            columns.append(pa.nulls(table.num_rows, field.type))
        else:
            column = table.column(index)
            columns.append(column if column.type.equals(field.type) else _cast(column, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pt.is_struct(kind) and pt.is_struct(column.type):
        return pa.chunked_array([_cast_struct(chunk, kind) for chunk in column.chunks], kind)
    return column.cast(kind)


def _cast_struct(array: pa.StructArray, kind: pa.StructType) -> pa.StructArray:
    """By name, since Arrow's own cast of structs wants all fields there."""
    parts = []
    for field in kind:
        index = array.type.get_field_index(field.name)
        if index < 0:
            parts.append(pa.nulls(len(array), field.type))
        else:
            part = array.field(index)
            parts.append(_cast(pa.chunked_array([part]), field.type).combine_chunks())
    mask = array.is_null() if array.null_count else None
    return pa.StructArray.from_arrays(parts, fields=list(kind), mask=mask)


def _both(older: pa.Schema, newer: pa.Schema) -> pa.Schema:
    for schema in (older, newer):
        if len(set(schema.names)) < len(schema.names):
            raise Incompatible("two columns share a name")
    merged = _metadata(older.metadata, newer.metadata) or {}
    kept = {key: value for key, value in merged.items() if key not in _DESCRIBES_SCHEMA}
    return pa.schema(_fields(list(older), list(newer)), metadata=kept or None)


def _fields(older: Sequence[pa.Field], newer: Sequence[pa.Field]) -> list[pa.Field]:
    theirs = {field.name: field for field in newer}
    known = {field.name for field in older}
    kept = [_field(field, theirs[field.name]) if field.name in theirs else field.with_nullable(True) for field in older]
    return kept + [field.with_nullable(True) for field in newer if field.name not in known]


def _field(older: pa.Field, newer: pa.Field) -> pa.Field:
    ids = {(field.metadata or {}).get(FIELD_ID) for field in (older, newer)} - {None}
    if len(ids) > 1:
        raise Incompatible(f"column {older.name!r} has field ids {_listed(ids)}")
    kind = _type(older.name, older.type, newer.type)
    return pa.field(
        older.name, kind, older.nullable or newer.nullable, metadata=_metadata(older.metadata, newer.metadata)
    )


def _listed(ids: Iterable[bytes | None]) -> str:
    return " and ".join(sorted(each.decode() for each in ids if each is not None))


def _metadata(older: Mapping[bytes, bytes] | None, newer: Mapping[bytes, bytes] | None) -> dict[bytes, bytes] | None:
    return {**(older or {}), **(newer or {})} or None


def _type(name: str, one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one.equals(other):
        return _nested(name, one, other) or one
    if pt.is_null(one) or pt.is_null(other):
        return other if pt.is_null(one) else one
    if pt.is_dictionary(one) or pt.is_dictionary(other):
        return _type(name, *(kind.value_type if pt.is_dictionary(kind) else kind for kind in (one, other)))
    wider = _nested(name, one, other) or _wider(one, other)
    if wider is None:
        raise Incompatible(f"column {name!r} is {one} in some files and {other} in others")
    return wider


def _nested(name: str, one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if pt.is_struct(one) and pt.is_struct(other):
        return pa.struct(_fields(list(one), list(other)))
    if pt.is_map(one) and pt.is_map(other):
        return pa.map_(_type(name, one.key_type, other.key_type), _field(one.item_field, other.item_field))
    if _is_list(one) and _is_list(other):
        # the name of a list's element is the writer's; the older file's stays
        element = _field(one.value_field, other.value_field.with_name(one.value_field.name))
        large = pt.is_large_list(one) or pt.is_large_list(other)
        if pt.is_fixed_size_list(one) and pt.is_fixed_size_list(other) and one.list_size == other.list_size:
            return pa.list_(element, one.list_size)
        return pa.large_list(element) if large else pa.list_(element)
    return None


def _is_list(kind: pa.DataType) -> bool:
    return bool(pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind))


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    for alike in (pt.is_signed_integer, pt.is_unsigned_integer, pt.is_floating):
        if alike(one) and alike(other):
            return max(one, other, key=lambda kind: kind.bit_width)
    for large, plain in ((pa.large_string(), pa.string()), (pa.large_binary(), pa.binary())):
        if {one, other} <= {large, plain}:
            return large
    if pt.is_decimal(one) and pt.is_decimal(other) and one.scale == other.scale:
        return max(one, other, key=lambda kind: (kind.bit_width, kind.precision))
    if pt.is_timestamp(one) and pt.is_timestamp(other) and one.tz == other.tz and {one.unit, other.unit} <= set(_UNITS):
        return max(one, other, key=lambda kind: _UNITS.index(kind.unit))
    return None


def footer_texts(key_values: Mapping[bytes, bytes], *, unified: bool) -> dict[str, str]:
    """Key-values of an input's footer for that of an output, without those that are no text.

    Args:
        key_values: As found.
        unified: The output's schema is not the input's, so what describes that stays behind.
    """
    found = {}
    for key, value in key_values.items():
        if unified and key in _DESCRIBES_SCHEMA:
            continue
        try:
            found[key.decode()] = value.decode()
        except UnicodeDecodeError:
            continue
    return found


#: Logical types that Arrow writes as it read them; others would be lost when encoded again.
_KEPT = frozenset(
    "NONE STRING MAP LIST DECIMAL DATE TIME TIMESTAMP INT UNKNOWN NULL JSON UUID FLOAT16".split()  # noqa: SIM905  short
)
#: What the same is called in Arrow's rendering of a schema, where it stands at a group, or has no logical type at all.
_LOST = re.compile(r"\((VARIANT|GEOMETRY|GEOGRAPHY|INTERVAL)\b|Time\(isAdjustedToUTC=true", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Shape:
    """What row groups of one output share.

    Attributes:
        schema: Their Arrow schema; its metadata goes into the footer.
        bloom_columns: Columns that get bloom filters when they are encoded again.
        ours: Copied row groups must have the Parquet schema that Arrow writes for ``schema``; otherwise the first
            copied one's will do.
    """

    schema: pa.Schema
    bloom_columns: frozenset[str] = frozenset()
    ours: bool = False

    def fits(self, other: Shape) -> bool:
        """Whether rows of that shape need neither cast nor metadata of their own."""
        return other.bloom_columns <= self.bloom_columns and bool(
            self.schema.remove_metadata().equals(other.schema.remove_metadata(), check_metadata=True)
        )


class AnotherShape(Exception):
    """An input has another shape than the first: look at all before going on."""


def shape_of(source: OpenInput, *, copied: bool) -> Shape:
    """The shape of one input; of bloom filters that are ``copied`` in any case nobody needs to know."""
    return Shape(source.schema, frozenset() if copied else source.bloom_columns())


def lost_type(source: OpenInput) -> str | None:
    """What encoding it again would lose, for a person; None if nothing."""
    schema = source.parquet.schema
    for column in map(schema.column, range(len(schema))):
        if column.physical_type == "INT96":  # Arrow's nanoseconds end in 2262, Spark's year 9999 does not fit
            return f"column {column.path!r} has 96-bit timestamps, which encoding it again could change"
        if column.logical_type.type not in _KEPT:
            return f"column {column.path!r} is {column.logical_type.type}, which encoding it again would lose"
    found = _LOST.search(str(schema))
    return f"a column is {found.group(1) or 'TIME in UTC'}, which encoding it again would lose" if found else None


@dataclass(slots=True)
class _Class:
    """Inputs that fit together."""

    shape: Shape
    names: list[str] = dataclasses.field(default_factory=list)


def inspect(files: Sequence[InputFile], *, exact: bool) -> tuple[Shape | None, dict[str, str]]:
    """Looks at all inputs, oldest first.

    Args:
        files: The inputs.
        exact: Only files of one and the same shape fit together: none will be encoded again.

    Returns:
        The shape of the most files that fit together (None: none can be read), and the others with the reason.
    """
    classes: list[_Class] = []
    rejected: dict[str, str] = {}
    for file in files:
        try:
            source = OpenInput(file)
            try:
                shape = shape_of(source, copied=exact)
            finally:
                source.close()
        except UnreadableFile as error:
            rejected[file.name] = error.reason
            continue
        _place(classes, shape, file.name, exact=exact)
    if not classes:
        return None, rejected
    best = max(classes, key=lambda each: len(each.names))
    for other in classes:
        if other is not best:
            for name in other.names:
                rejected[name] = f"does not fit the other {len(best.names)} files: {_why(best.shape, other.shape)}"
    return replace(best.shape, ours=not exact), rejected


def _place(classes: list[_Class], shape: Shape, name: str, *, exact: bool) -> None:
    for each in classes:
        if exact and not each.shape.fits(shape):
            continue
        try:
            schema = unify_schemas([each.shape.schema, shape.schema])
        except Incompatible:
            continue
        each.shape = replace(each.shape, schema=schema, bloom_columns=each.shape.bloom_columns | shape.bloom_columns)
        each.names.append(name)
        return
    classes.append(_Class(shape, [name]))


def _why(best: Shape, other: Shape) -> str:
    try:
        unify_schemas([best.schema, other.schema])
    except Incompatible as error:
        return str(error)
    return "its schema is another, and the kernel 'concat' copies row groups only"


def template(shape: Shape, settings: ParquetSettings) -> Footer:
    """The footer that Arrow writes for a shape."""
    sink = pa.BufferOutputStream()
    writer: pq.ParquetWriter = open_writer(sink, shape.schema, settings, ([], {}))
    writer.close()
    view = memoryview(sink.getvalue())
    return parse_footer(lambda offset, length: view[offset : offset + length], len(view), where="template")
