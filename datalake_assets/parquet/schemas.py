"""One schema for files that were written at different times, by one rule.

The rule, in words (docs/reference/on-disk.md repeats it for users):

- Columns are matched by name. The order is that of the oldest file; columns that came later follow in the order of
  their appearance. A column that a file lacks is null in its rows.
- Two types of a column become the narrower one's safe superset: integers of one sign the wider, floats the wider,
  decimals of one scale the longer, null anything, text and bytes their large form, a dictionary its values' type,
  timestamps of one zone the finer unit down to microseconds. Structs, lists and maps follow the rule part by part.
- Anything else does not fit: integers and text, timestamps with a zone and without, other scales, nanoseconds and
  coarser units (their range would overflow), and one name under two field ids.
- Names that differ only in case do not fit, on the same level: readers that ignore case would see one column twice.
- A column is nullable if it is in one file, or missing in one. For metadata see `keys.py`.

What all row groups of an output must have in common, and which inputs fit together.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.types as pt

from datalake_assets.core.values import Value
from datalake_assets.errors import UnreadableFile
from datalake_assets.parquet.elements import check_agreement, encoded_schema, lost_type
from datalake_assets.parquet.inputs import Input, OpenInput
from datalake_assets.parquet.keys import ARROW_SCHEMA, Incompatible, KeyValues, field_metadata
from datalake_assets.parquet.thrift import MalformedThrift

__all__ = [
    "AnotherShape",
    "Incompatible",
    "Shape",
    "conform_table",
    "inspect",
    "names_apart_by_case",
    "same_types",
    "shape_of",
    "unify_schemas",
    "without_views",
]

#: Timestamp units that may be made finer, coarsest first; nanoseconds end in 2262 and are not among them.
_UNITS = ("s", "ms", "us")
#: A type of more bits may be of fewer digits.
_DECIMALS = {32: pa.decimal32, 64: pa.decimal64, 128: pa.decimal128, 256: pa.decimal256}


def unify_schemas(schemas: Sequence[pa.Schema], *, reading: bool = False) -> pa.Schema:
    """The one schema of files, oldest first; without metadata of its own.

    Args:
        schemas: Theirs.
        reading: The files stay apart and are read under one schema: metadata on which they differ is left out.

    Raises:
        Incompatible: They have none.
    """
    result = schemas[0].remove_metadata()
    for other in schemas[1:]:
        if not other.remove_metadata().equals(result, check_metadata=True):
            result = _both(result, other, reading=reading)
    return result


def names_apart_by_case(schema: pa.Schema) -> str | None:
    """Two names of one level that only their case tells apart, for a person; None if there are none."""
    if len({name.lower() for name in schema.names}) == len(schema) and not any(map(pt.is_nested, schema.types)):
        return None  # as of nearly all files
    return _apart_by_case(list(schema), "columns")


def _apart_by_case(fields: Sequence[pa.Field], what: str) -> str | None:
    counts = Counter(field.name.lower() for field in fields)
    for field in fields:
        if counts[field.name.lower()] > 1:
            same = sorted({repr(each.name) for each in fields if each.name.lower() == field.name.lower()})
            if len(same) > 1:
                return f"{what} {' and '.join(same)} differ only in case, which many readers ignore"
        kind = field.type
        if pt.is_nested(kind):
            inner = [kind.field(place) for place in range(kind.num_fields)]
            if found := _apart_by_case(inner, f"fields of column {field.name!r}"):
                return found
    return None


def conform_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table's rows under a unified schema: columns reordered, added as nulls, and cast without loss.

    Raises:
        pa.ArrowInvalid: A value does not fit its column's type; names the column.
    """
    if table.schema.remove_metadata().equals(schema, check_metadata=True):
        return table.replace_schema_metadata()
    columns = []
    for field in schema:
        index = table.schema.get_field_index(field.name)
        if index < 0:
            columns.append(pa.nulls(table.num_rows, field.type))
        else:
            column = table.column(index)
            columns.append(column if column.type.equals(field.type) else _cast_column(field.name, column, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _cast_column(name: str, column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    try:
        return _cast(column, kind)
    except pa.ArrowInvalid as error:
        raise pa.ArrowInvalid(f"column {name!r}: {error}") from error


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pt.is_struct(kind) and pt.is_struct(column.type):
        return pa.chunked_array([_cast_struct(chunk, kind) for chunk in column.chunks], kind)
    return column.cast(kind)


def _cast_struct(array: pa.StructArray, kind: pa.StructType) -> pa.StructArray:
    """Casts a struct field by field by name, since Arrow's own cast wants all fields there."""
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


def _both(older: pa.Schema, newer: pa.Schema, *, reading: bool) -> pa.Schema:
    for schema in (older, newer):
        if len(set(schema.names)) < len(schema.names):
            raise Incompatible("two columns share a name")
    if not reading and older.names != newer.names and (apart := _apart_by_case([*older, *newer], "names")):
        raise Incompatible(apart)
    return pa.schema(_fields(list(older), list(newer), reading=reading))


def _fields(older: Sequence[pa.Field], newer: Sequence[pa.Field], *, reading: bool) -> list[pa.Field]:
    theirs = {field.name: field for field in newer}
    known = {field.name for field in older}
    kept = [
        _field(field, theirs[field.name], reading=reading) if field.name in theirs else field.with_nullable(True)
        for field in older
    ]
    return kept + [field.with_nullable(True) for field in newer if field.name not in known]


def _field(older: pa.Field, newer: pa.Field, *, reading: bool) -> pa.Field:
    metadata = field_metadata(older, newer, reading=reading)
    kind = _type(older.name, older.type, newer.type, reading=reading)
    return pa.field(older.name, kind, older.nullable or newer.nullable, metadata=metadata)


def _type(name: str, one: pa.DataType, other: pa.DataType, *, reading: bool) -> pa.DataType:
    if one.equals(other):
        return _nested(name, one, other, reading=reading) or one
    if pt.is_null(one) or pt.is_null(other):
        return other if pt.is_null(one) else one
    if pt.is_dictionary(one) or pt.is_dictionary(other):
        if pt.is_dictionary(one) and pt.is_dictionary(other) and one.ordered is not other.ordered:
            raise Incompatible(f"column {name!r} has ordered categories in some files only")
        values = (kind.value_type if pt.is_dictionary(kind) else kind for kind in (one, other))
        return _type(name, *values, reading=reading)
    wider = _nested(name, one, other, reading=reading) or _wider(one, other)
    if wider is None:
        raise Incompatible(f"column {name!r} is {one} in some files and {other} in others")
    return wider


def _nested(name: str, one: pa.DataType, other: pa.DataType, *, reading: bool) -> pa.DataType | None:
    if pt.is_struct(one) and pt.is_struct(other):
        if apart := _apart_by_case([*one, *other], f"fields of column {name!r}"):
            raise Incompatible(apart)
        return pa.struct(_fields(list(one), list(other), reading=reading))
    if pt.is_map(one) and pt.is_map(other):
        keys = _type(name, one.key_type, other.key_type, reading=reading)
        is_sorted = one.keys_sorted and other.keys_sorted
        return pa.map_(keys, _field(one.item_field, other.item_field, reading=reading), keys_sorted=is_sorted)
    if _is_list(one) and _is_list(other):
        # the name of a list's element is the writer's; the older file's stays
        element = _field(one.value_field, other.value_field.with_name(one.value_field.name), reading=reading)
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
    for kinds in (
        (pa.string_view(), pa.string(), pa.large_string()),
        (pa.binary_view(), pa.binary(), pa.large_binary()),
    ):
        if {one, other} <= {*kinds}:
            return max(one, other, key=kinds.index)
    if pt.is_decimal(one) and pt.is_decimal(other) and one.scale == other.scale:
        made = _DECIMALS[max(one.bit_width, other.bit_width)]
        return made(max(one.precision, other.precision), one.scale)
    if pt.is_timestamp(one) and pt.is_timestamp(other) and one.tz == other.tz and {one.unit, other.unit} <= set(_UNITS):
        return max(one, other, key=lambda kind: _UNITS.index(kind.unit))
    return None


ChunkValues = Mapping[str, Mapping[bytes, bytes]]
"""Key-values of column chunks, by the path of their columns."""


class _Known(Value, frozen=True):
    """What followed from a footer's schema and key-values: small files have the same, and finding out costs as much.

    Attributes:
        arrow: The schema as Arrow reads it.
        footer: The key-values.
        schema: Of the rows in an output.
        key_values: What an output says of them.
        lost_order: What encoding again would lose, if it is an order of categories.
    """

    arrow: pa.Schema
    footer: Mapping[bytes, bytes]
    schema: pa.Schema
    key_values: KeyValues
    lost_order: str | None

    @classmethod
    def of(cls, arrow: pa.Schema, footer: Mapping[bytes, bytes], name: str) -> _Known:
        """Finds it out.

        Raises:
            UnreadableFile: The file of this name cannot be in an output at all.
        """
        schema = without_views(arrow).remove_metadata()
        if apart := names_apart_by_case(schema):
            raise UnreadableFile(name, apart)
        return cls(arrow, footer, schema, KeyValues.of(footer, schema), _lost_order(schema))

    def fits(self, arrow: pa.Schema, footer: Mapping[bytes, bytes]) -> bool:
        """Whether it follows from these, too."""
        return bool(self.arrow.equals(arrow, check_metadata=True)) and self.footer == footer


class Shape(Value, frozen=True):
    """What row groups of one output share.

    Attributes:
        schema: Their Arrow schema, without metadata of its own.
        key_values: What the output says of them.
        parquet: The different Parquet schemas of the inputs as they stand in their footers, oldest first.
        bloom_columns: Columns that get bloom filters when they are encoded again.
        chunk_values: Key-values that all column chunks of a column have; None where files differ in them.
        stores_arrow: Some input has Arrow's schema in its footer.
        lost: What encoding again would lose of the inputs, for a person; None if nothing.
        ours: Copied row groups must have the schema that those get which are encoded; otherwise the first copied one's
            will do.
        known: What followed from the footer of the file that it is the shape of, or of the first of several.
    """

    schema: pa.Schema
    key_values: KeyValues
    parquet: tuple[bytes, ...] = ()
    bloom_columns: frozenset[str] = frozenset()
    chunk_values: ChunkValues | None = dataclasses.field(default_factory=dict)
    stores_arrow: bool = True
    lost: str | None = None
    ours: bool = False
    known: _Known | None = dataclasses.field(default=None, compare=False)

    def fits(self, other: Shape) -> bool:
        """Whether rows of that shape need neither cast nor metadata of their own, those of the footer aside."""
        return (
            other.bloom_columns <= self.bloom_columns
            and other.parquet == self.parquet
            and other.chunk_values == self.chunk_values
            and other.stores_arrow is self.stores_arrow
            and bool(self.schema.equals(other.schema, check_metadata=True))
        )

    def joined(self, other: Shape) -> Shape:
        """The shape of the rows of both.

        Raises:
            Incompatible: There is none.
        """
        key_values = self.key_values.joined(other.key_values)
        if self.fits(other):
            return replace(self, key_values=key_values)
        for one in self.parquet:
            for two in other.parquet:
                check_agreement(one, two)
        return replace(
            self,
            schema=unify_schemas([self.schema, other.schema]),
            key_values=key_values,
            parquet=tuple(dict.fromkeys((*self.parquet, *other.parquet))),
            bloom_columns=self.bloom_columns | other.bloom_columns,
            chunk_values=self.chunk_values if self.chunk_values == other.chunk_values else None,
            stores_arrow=self.stores_arrow or other.stores_arrow,
            lost=self.lost or other.lost,
        )


class AnotherShape(Exception):
    """An input has another shape than the first: look at all before going on."""


def shape_of(source: OpenInput, *, copied: bool, like: Shape | None = None) -> Shape:
    """The shape of one input.

    Args:
        source: The input.
        copied: It is copied in any case, so that what encoding would change does not matter.
        like: The shape of another input, likely the same.

    Raises:
        UnreadableFile: It cannot be in an output at all.
    """
    key_values, known = source.key_values, like.known if like else None
    if known is None or not known.fits(source.schema, key_values):
        known = _Known.of(source.schema, key_values, source.file.name)
    if copied:
        return Shape(known.schema, known.key_values, known=known)
    try:
        encoded = encoded_schema(source.footer_bytes, like.parquet[0] if like and like.parquet else b"")
        lost = lost_type(encoded) or known.lost_order
    except MalformedThrift as error:
        raise UnreadableFile(source.file.name, f"its footer is damaged: {error}") from error
    chunk_values, lost_values = _chunk_values(source)
    return Shape(
        known.schema,
        known.key_values,
        parquet=(encoded,),
        bloom_columns=source.bloom_columns(),
        chunk_values=chunk_values,
        stores_arrow=ARROW_SCHEMA in key_values,
        lost=lost or lost_values,
        known=known,
    )


def without_views(schema: pa.Schema) -> pa.Schema:
    """The schema with plain texts in place of views, of which Arrow computes next to nothing; values are the same."""
    if not any(kind in _VIEWS or pt.is_nested(kind) for kind in schema.types):
        return schema
    return pa.schema([field.with_type(_without_views(field.type)) for field in schema], metadata=schema.metadata)


_VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


def _without_views(kind: pa.DataType) -> pa.DataType:
    plain = _built_anew(kind, _VIEWS)
    return kind if plain == kind else plain  # a type that is built anew loses names that Arrow does not show


def same_types(one: pa.Schema, other: pa.Schema) -> bool:
    """Whether two schemas are the same but for the names that Arrow gives to the entries of maps and does not show."""
    first, second = (
        pa.schema([field.with_type(_built_anew(field.type, {})) for field in schema], metadata=schema.metadata)
        for schema in (one, other)
    )
    return bool(first.equals(second, check_metadata=True))


def _built_anew(kind: pa.DataType, others: Mapping[pa.DataType, pa.DataType]) -> pa.DataType:
    """The type with other types in place of some that it consists of."""
    if not pt.is_nested(kind):
        return others.get(kind, kind)
    fields = [kind.field(place) for place in range(kind.num_fields)]
    fields = [field.with_type(_built_anew(field.type, others)) for field in fields]
    if pt.is_map(kind):
        return pa.map_(*fields[0].type, keys_sorted=kind.keys_sorted)
    if pt.is_struct(kind):
        return pa.struct(fields)
    if pt.is_fixed_size_list(kind):
        return pa.list_(*fields, kind.list_size)
    return pa.large_list(*fields) if pt.is_large_list(kind) else pa.list_(*fields)


def _lost_order(schema: pa.Schema) -> str | None:
    """The order of categories is that of their dictionary page, which encoding makes anew; Polars notes it besides."""
    for field in schema:
        is_noted = any(key.startswith(b"_PL_ENUM") for key in field.metadata or {})
        if pt.is_dictionary(field.type) and field.type.ordered and not is_noted:
            return f"column {field.name!r} has ordered categories, whose order encoding it again would lose"
    return None


def _chunk_values(source: OpenInput) -> tuple[ChunkValues, str | None]:
    """The key-values that all column chunks of a column have, and, for a person, what only some of them have."""
    found: dict[str, Mapping[bytes, bytes]] = {}
    for number, group in enumerate(source.stated.groups):
        for chunk in group.chunks:
            values, path = chunk.key_values, chunk.path
            if number and values != found.get(path, {}):
                return {}, f"column {path!r} has key-values for some of its parts, which encoding it again would lose"
            if values:
                found[path] = values
    return found, None


@dataclass(slots=True)
class _Class:
    """Inputs that fit together."""

    shape: Shape
    names: list[str]
    is_uniform: bool = True


def inspect(inputs: Sequence[Input], *, exact: bool) -> tuple[Shape | None, dict[str, str]]:
    """Looks at all inputs, oldest first.

    Args:
        inputs: The inputs.
        exact: Only files of one and the same shape fit together: none will be encoded again.

    Returns:
        The shape of the most files that fit together (None: none can be read), and the others with the reason.
    """
    classes: list[_Class] = []
    rejected: dict[str, str] = {}
    for each in inputs:
        try:
            source = OpenInput(each)
            try:
                shape = shape_of(source, copied=exact, like=classes[0].shape if classes else None)
            finally:
                source.close()
        except UnreadableFile as error:
            rejected[each.file.name] = error.reason
            continue
        _place(classes, shape, each.file.name, exact=exact)
    if not classes:
        return None, rejected
    with_rows = {each.file.name for each in inputs if each.file.rows}
    best = max(classes, key=lambda each: (len(with_rows.intersection(each.names)), len(each.names)))
    for other in classes:
        if other is not best:
            for name in other.names:
                rejected[name] = f"does not fit the other {len(best.names)} files: {_why(best.shape, other.shape)}"
    # what can only be copied keeps the schema of the first copied one
    return replace(best.shape, ours=not exact and not (best.is_uniform and best.shape.lost)), rejected


def _place(classes: list[_Class], shape: Shape, name: str, *, exact: bool) -> None:
    for each in classes:
        fits = each.shape.fits(shape)
        if exact and not fits:
            continue
        try:
            each.shape = each.shape.joined(shape)
        except Incompatible:
            continue
        each.names.append(name)
        each.is_uniform = each.is_uniform and fits
        return
    classes.append(_Class(shape, [name]))


def _why(best: Shape, other: Shape) -> str:
    try:
        best.joined(other)
    except Incompatible as error:
        return str(error)
    return "its schema is another, and the kernel 'concat' copies row groups only"
