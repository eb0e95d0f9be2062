"""The Parquet schema of a file as it stands in its footer, element by element, and how an output gets its inputs' own.

Arrow reads schemas in more forms than it writes: times without a logical type, maps without values, lists of other
names and of two levels. What it writes would mean something else to other readers. So a row group that was encoded
again gets the inputs' own schema, wherever the pages fit it: the same leaves, of the same physical types, with the same
levels, and statistics in the same order. Where they don't, it is not encoded again.

Source: apache/parquet-format, parquet.thrift (SchemaElement, LogicalType, ConvertedType) and LogicalTypes.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from datalake_assets.core.values import Value
from datalake_assets.parquet.keys import Incompatible
from datalake_assets.parquet.row_groups import REPEATED
from datalake_assets.parquet.thrift import (
    BINARY,
    I32,
    LIST,
    STRUCT,
    TRUE,
    CompactReader,
    CompactWriter,
    MalformedThrift,
    zigzag,
)

__all__ = [
    "Element",
    "check_agreement",
    "encoded_schema",
    "encoded_with",
    "lost_type",
    "parsed_schema",
    "with_schema",
]

#: Field of the schema in FileMetaData.
SCHEMA_FIELD = 2
# fields of a SchemaElement
_TYPE, _LENGTH, _REPETITION, _NAME, _CHILDREN, _CONVERTED, _FIELD_ID, _LOGICAL = 1, 2, 3, 4, 5, 6, 9, 10
_SCALE, _PRECISION = 7, 8
_INT32, _INT64, _INT96, _BYTES, _FIXED = 1, 2, 3, 6, 7
#: Levels of the deepest schema that is parsed.
MAX_DEPTH = 100

_LOGICAL_NAMES = {
    1: "STRING", 2: "MAP", 3: "LIST", 4: "ENUM", 5: "DECIMAL", 6: "DATE", 7: "TIME", 8: "TIMESTAMP", 10: "INT",
    11: "NULL", 12: "JSON", 13: "BSON", 14: "UUID", 15: "FLOAT16", 16: "VARIANT", 17: "GEOMETRY", 18: "GEOGRAPHY",
}  # fmt: skip
_CONVERTED_NAMES = (
    "UTF8", "MAP", "MAP_KEY_VALUE", "LIST", "ENUM", "DECIMAL", "DATE", "TIME_MILLIS", "TIME_MICROS",
    "TIMESTAMP_MILLIS", "TIMESTAMP_MICROS", "UINT_8", "UINT_16", "UINT_32", "UINT_64", "INT_8", "INT_16", "INT_32",
    "INT_64", "JSON", "BSON", "INTERVAL",
)  # fmt: skip
#: Converted types without a logical one that readers take differently: DuckDB and Polars see no zone, Arrow sees UTC.
_DISPUTED = {"TIME_MILLIS", "TIME_MICROS", "TIMESTAMP_MILLIS", "TIMESTAMP_MICROS"}
#: Timestamps without a logical type: two units become the finer one.
_OLD_TIMESTAMPS = {"TIMESTAMP_MILLIS", "TIMESTAMP_MICROS"}
#: What Arrow does not write as it reads it; it stays only where all files have it and it is put back.
_PUT_BACK = {"ENUM", "BSON", "TIME in UTC", *_DISPUTED}
#: What also has statistics, or parts, that Arrow does not know.
_LOST = {"VARIANT", "GEOMETRY", "GEOGRAPHY", "INTERVAL"}

_Fields: TypeAlias = Mapping[int, tuple[int, bytes]]
_ZERO = (I32, zigzag(0))
Path: TypeAlias = tuple[bytes, ...]


class Element(Value, frozen=True):
    """A column, or a group of columns.

    Attributes:
        fields: Kind and encoded value of each field by its id.
        children: Of a group.
    """

    fields: _Fields
    children: tuple[Element, ...] = ()

    @property
    def name(self) -> bytes:
        """The element's name as it is written."""
        return CompactReader(self.fields[_NAME][1]).binary(BINARY)

    @property
    def kind(self) -> int | None:
        """The physical type; None for a group."""
        return self._number(_TYPE)

    @property
    def repetition(self) -> int:
        """Required, optional or repeated; required where it is not stated."""
        return self._number(_REPETITION) or 0

    @property
    def annotation(self) -> str:
        """What the values are besides their physical type, as far as readers tell it apart; empty if nothing."""
        if _LOGICAL in self.fields:
            return _logical(self.fields[_LOGICAL][1])[0]
        converted = self._number(_CONVERTED)
        if converted is None:
            return ""
        if not 0 <= converted < len(_CONVERTED_NAMES):
            return f"of the unknown type {converted}"
        return _CONVERTED_NAMES[converted]

    @property
    def stored(self) -> tuple[object, ...]:
        """Physical type, length, and by which order statistics compare."""
        length = self.fields.get(_LENGTH) if self.kind == _FIXED else None
        return self.kind, length, self.order

    @property
    def meaning(self) -> tuple[object, ...]:
        """All that makes up the type of its values: how they are stored, and units, zones, widths and digits besides.

        An annotation is the same whether a converted type alone states it or a logical type.
        """
        if _LOGICAL in self.fields:
            return self.stored, *_logical(self.fields[_LOGICAL][1])
        if self.annotation != "DECIMAL":
            return self.stored, self.annotation, {}
        digits = {1: self.fields.get(_SCALE, _ZERO), 2: self.fields.get(_PRECISION, _ZERO)}
        return self.stored, "DECIMAL", digits

    @property
    def order(self) -> str | None:
        """The order by which statistics compare its values; None where there is none."""
        what = self.annotation
        if self.kind == _INT96 or what in _LOST:
            return None
        if self.kind in (_INT32, _INT64):
            return "unsigned" if what.startswith(("UINT", "unsigned")) else "signed"
        if self.kind in (_BYTES, _FIXED):
            return what if what in ("DECIMAL", "FLOAT16") else "unsigned"
        return ""

    def with_fields(self, **changed: tuple[int, bytes] | None) -> Element:
        """The same with other fields; None takes one away."""
        ids = {"repetition": _REPETITION, "name": _NAME, "field_id": _FIELD_ID, "children": _CHILDREN}
        fields = dict(self.fields)
        for name, value in changed.items():
            fields.pop(ids[name], None)
            if value is not None:
                fields[ids[name]] = value
        return Element(fields, self.children)

    @property
    def number_of_children(self) -> int:
        """The number that the element states, which the footer's list of elements need not have."""
        return self._number(_CHILDREN) or 0

    def _number(self, field: int) -> int | None:
        return CompactReader(self.fields[field][1]).integer(I32, I32) if field in self.fields else None


def _logical(union: bytes) -> tuple[str, _Fields]:
    """What a LogicalType says: its name, and its parameters."""
    reader = CompactReader(union)
    for number, kind in reader.fields():
        name = _LOGICAL_NAMES.get(number, f"of the unknown logical type {number}")
        members = _fields(reader) if kind == STRUCT else {}
        if name == "TIME" and _is_true(members, 1):
            return "TIME in UTC", members
        if name == "INT" and not _is_true(members, 2):
            return "unsigned INT", members
        return name, members
    return "", {}


def _is_true(fields: _Fields, number: int) -> bool:
    return number in fields and fields[number][0] == TRUE  # booleans are their kinds


# ---- from and to bytes


def encoded_schema(footer: bytes, like: bytes = b"") -> bytes:
    """The schema of a footer as it is written there.

    Args:
        footer: All of it.
        like: The schema of a file of before, to be compared at once; most files have the same.

    Raises:
        MalformedThrift: There is none.
    """
    reader = CompactReader(footer)
    for number, kind in reader.fields():
        if number == SCHEMA_FIELD:
            begin = reader.position
            if like and footer.startswith(like, begin):
                return like
            reader.skip(kind)
            return footer[begin : reader.position]
    raise MalformedThrift("it has no schema")


@lru_cache(maxsize=64)
def parsed_schema(encoded: bytes) -> Element:
    """The root of a schema.

    Raises:
        MalformedThrift: It is damaged, or deeper than `MAX_DEPTH`.
    """
    reader = CompactReader(encoded)
    flat = [_fields(reader) for _ in range(reader.structs(LIST))]
    done: list[tuple[Element, int]] = []  # from the last element on, so that children come before their groups
    for fields in reversed(flat):
        element = Element(fields)
        count = element.number_of_children
        if not 0 <= count <= len(done) or _NAME not in fields:
            raise MalformedThrift("its schema is damaged")
        children = [done.pop() for _ in range(count)]
        depth = 1 + max((depth for _, depth in children), default=0)
        if depth > MAX_DEPTH:
            raise MalformedThrift("its schema is nested too deeply")
        done.append((Element(fields, tuple(child for child, _ in children)), depth))
    if len(done) != 1:
        raise MalformedThrift("its schema is damaged")
    return done[0][0]


def _fields(reader: CompactReader) -> dict[int, tuple[int, bytes]]:
    found = {}
    for number, kind in reader.fields():
        begin = reader.position
        reader.skip(kind)
        found[number] = (kind, reader.data[begin : reader.position])
    return found


def _encoded(root: Element) -> bytes:
    elements = list(_flat(root))
    pieces = [CompactWriter.list_header(STRUCT, len(elements))]
    pieces += [_struct(element.fields) for element in elements]
    return b"".join(pieces)


def _flat(element: Element) -> Iterator[Element]:
    yield element
    for child in element.children:
        yield from _flat(child)


def _leaf_paths(root: Element) -> list[Path]:
    """Names on the way to each column, without the root's."""
    return [(*above, leaf.name) for above, _, leaf in _leaves(root)]


class _Leaf(NamedTuple):
    names: tuple[bytes, ...]
    levels: tuple[int, ...]
    element: Element


def _leaves(root: Element) -> Iterator[_Leaf]:
    """The columns; levels are the repetitions on the way that are not required, its own included."""
    for child in root.children:
        yield from _below(child, (), ())


def _below(element: Element, names: tuple[bytes, ...], levels: tuple[int, ...]) -> Iterator[_Leaf]:
    levels = (*levels, element.repetition) if element.repetition else levels
    if not element.children and element.kind is not None:
        yield _Leaf(names, levels, element)
    for child in element.children:
        yield from _below(child, (*names, element.name), levels)


# ---- what may be encoded again, and what it becomes


@lru_cache(maxsize=64)
def lost_type(encoded: bytes) -> str | None:
    """What encoding files of this schema again would lose in any case, for a person; None if nothing."""
    root = parsed_schema(encoded)
    for names, _, leaf in _leaves(root):
        if leaf.kind == _INT96:  # Arrow's nanoseconds end in 2262, Spark's year 9999 does not fit
            path = _dotted((*names, leaf.name))
            return f"column {path!r} has 96-bit timestamps, which encoding it again could change"
    for element in _flat(root):
        what = element.annotation
        if what in _LOST or what.startswith("of the unknown"):
            return f"column {_dotted((element.name,))!r} is {what}, which encoding it again would lose"
    return None


def _dotted(names: Sequence[bytes]) -> str:
    return ".".join(name.decode(errors="backslashreplace") for name in names)


@lru_cache(maxsize=256)
def check_agreement(one: bytes, other: bytes) -> None:
    """Sees to it that two schemas do not say different things of one column that Arrow takes for the same.

    Raises:
        Incompatible: They do.
    """
    _agree(parsed_schema(one), parsed_schema(other), ())


def _agree(one: Element, other: Element, above: tuple[bytes, ...]) -> None:
    names = (*above, one.name)
    first, second = one.annotation, other.annotation
    both = {first, second}
    if not one.children and first != second and both & _PUT_BACK and both != _OLD_TIMESTAMPS:
        named = [text if text not in _DISPUTED else f"{text} without a logical type" for text in (first, second)]
        found = " and ".join(f"{text or 'not annotated'} in some" for text in named)
        raise Incompatible(f"column {_dotted(names[1:])!r} is {found}; readers take them differently")
    for mine, theirs in _pairs(one, other):
        _agree(mine, theirs, names)


def _pairs(one: Element, other: Element) -> Iterator[tuple[Element, Element]]:
    if _is_container(one) or _is_container(other):
        if len(one.children) == len(other.children):
            yield from zip(one.children, other.children, strict=True)
        return
    theirs = {child.name: child for child in other.children}
    yield from ((child, theirs[child.name]) for child in one.children if child.name in theirs)


def _is_container(element: Element) -> bool:
    """Whether names below it are the writer's, and mean nothing."""
    return element.annotation in ("LIST", "MAP", "MAP_KEY_VALUE") or (
        element.repetition == REPEATED and len(element.children) == 1
    )


def encoded_with(model: bytes, inputs: Sequence[bytes]) -> bytes:
    """The inputs' schema for pages that Arrow wrote by another one.

    Args:
        model: The schema that Arrow writes for the rows.
        inputs: The different schemas of the inputs, oldest first.

    Returns:
        The first input's as it is if there is only one; of several, what they agree on, and Arrow's for the rest.

    Raises:
        Incompatible: Arrow's pages do not fit what the inputs agree on.
    """
    arrows, roots = parsed_schema(model), [parsed_schema(each) for each in inputs]
    if len(roots) == 1:
        _check_fit(arrows, roots[0])
        return inputs[0]
    columns = tuple(_common(child, _named(child, roots)) for child in arrows.children)
    root = Element({**roots[0].fields, _CHILDREN: (I32, zigzag(len(columns)))}, columns)
    _check_fit(arrows, root)
    return _encoded(root)


def _check_fit(model: Element, root: Element) -> None:
    wanted, found = list(_leaves(root)), list(_leaves(model))
    for one, other in zip(wanted, found, strict=False):
        if one.levels != other.levels or not _is_stored_alike(one.element, other.element):
            what = f"column {_dotted((*one.names, one.element.name))!r}"
            raise Incompatible(f"{what} is stored in a way that encoding it again would change")
    if len(wanted) != len(found):
        raise Incompatible("it has columns that encoding it again would change")


def _is_stored_alike(wanted: Element, found: Element) -> bool:
    kind, length, order = wanted.stored
    return found.stored[:2] == (kind, length) and order in (None, found.order)


def _named(child: Element, groups: Sequence[Element]) -> list[Element]:
    return [each for group in groups for each in group.children if each.name == child.name]


def _common(model: Element, found: Sequence[Element]) -> Element:
    """What all files that have a column say of it; Arrow's own element where they don't agree."""
    if not found:
        return model
    first = found[0]
    if all(_apart(each) == _apart(first) for each in found):
        return _nullable_like(first, model)
    if not model.children or not all(each.children for each in found):
        said = _finer(found)
        is_one = all(each.meaning == said[0].meaning for each in said)
        if not is_one or model.children or first.children or not _is_stored_alike(said[0], model):
            return model.with_fields(name=first.fields[_NAME])
        kept = _nullable_like(said[0], model)
        return kept.with_fields(name=first.fields[_NAME], field_id=model.fields.get(_FIELD_ID))
    if any(map(_is_container, (model, *found))):
        if any(len(each.children) != len(model.children) for each in found):
            return model
        pairs = zip(model.children, *(each.children for each in found), strict=True)
        children = [_common(mine, theirs) for mine, *theirs in pairs]
    else:
        children = [_common(child, _named(child, found)) for child in model.children]
    header = _nullable_like(first, model).with_fields(
        children=(I32, zigzag(len(children))), field_id=model.fields.get(_FIELD_ID)
    )
    return Element(header.fields, tuple(children))


def _finer(found: Sequence[Element]) -> Sequence[Element]:
    """Keeps of old timestamps of two units the finer ones: no logical type of Arrow's may take their place."""
    if {each.annotation for each in found} == _OLD_TIMESTAMPS:
        return [each for each in found if each.annotation == "TIMESTAMP_MICROS"]
    return found


def _apart(element: Element) -> Element:
    """An element without what follows from other files: whether it may be null."""
    return element if element.repetition == REPEATED else element.with_fields(repetition=None)


def _nullable_like(element: Element, model: Element) -> Element:
    if REPEATED in (element.repetition, model.repetition) or element.repetition == model.repetition:
        return element
    return element.with_fields(repetition=(I32, zigzag(model.repetition)))


# ---- a segment's row groups


def with_schema(
    footer: bytes, schema: bytes, *, key_values: Mapping[bytes, bytes], of_columns: Mapping[str, Mapping[bytes, bytes]]
) -> bytes:
    """A footer that has another schema, which fits its pages, and everything else as it was.

    Args:
        footer: All of it.
        schema: As it stands in the footer of another file.
        key_values: In place of its own.
        of_columns: Key-values that column chunks get, by the path of their column.
    """
    fields = _fields(CompactReader(footer))
    paths = _leaf_paths(parsed_schema(schema))
    if of_columns or paths != _leaf_paths(parsed_schema(fields[SCHEMA_FIELD][1])):
        fields[4] = (LIST, _row_groups(fields[4][1], paths, of_columns))
    fields[SCHEMA_FIELD] = (LIST, schema)
    fields.pop(5, None)
    if key_values:
        fields[5] = (LIST, _key_values(key_values))
    return _struct(fields)


def _row_groups(encoded: bytes, paths: Sequence[Path], of_columns: Mapping[str, Mapping[bytes, bytes]]) -> bytes:
    reader = CompactReader(encoded)
    groups = [_row_group(reader, paths, of_columns) for _ in range(reader.structs(LIST))]
    return CompactWriter.list_header(STRUCT, len(groups)) + b"".join(groups)


def _row_group(reader: CompactReader, paths: Sequence[Path], of_columns: Mapping[str, Mapping[bytes, bytes]]) -> bytes:
    fields = _fields(reader)
    inner = CompactReader(fields[1][1])
    chunks = [_fields(inner) for _ in range(inner.structs(LIST))]
    for chunk, path in zip(chunks, paths, strict=True):
        column = _fields(CompactReader(chunk[3][1]))
        names = b"".join(map(CompactWriter.binary, path))
        column[3] = (LIST, CompactWriter.list_header(BINARY, len(path)) + names)
        if _dotted(path) in of_columns:
            column[8] = (LIST, _key_values(of_columns[_dotted(path)]))
        chunk[3] = (STRUCT, _struct(column))
    fields[1] = (LIST, CompactWriter.list_header(STRUCT, len(chunks)) + b"".join(map(_struct, chunks)))
    return _struct(fields)


def _key_values(texts: Mapping[bytes, bytes]) -> bytes:
    pairs = [
        _struct({1: (BINARY, CompactWriter.binary(key)), 2: (BINARY, CompactWriter.binary(value))})
        for key, value in texts.items()
    ]
    return CompactWriter.list_header(STRUCT, len(pairs)) + b"".join(pairs)


def _struct(fields: _Fields) -> bytes:
    writer = CompactWriter()
    for number, (kind, value) in sorted(fields.items()):
        writer.field(number, kind, value)
    return writer.end()
