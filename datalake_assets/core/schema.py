"""From a source's columns to the lake's Arrow schema, and what may happen to that schema later.

The rules live here so that a feed's first batch and its thousandth agree: names, types, what a changed source may do.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pyarrow as pa

from datalake_assets.core.values import Value
from datalake_assets.errors import InvalidFeed, SchemaChanged

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "DISCARDING",
    "NOTES",
    "RESERVED_NAMES",
    "SOURCE_NAME",
    "SPELLINGS",
    "Fitted",
    "Misfit",
    "SchemaPolicy",
    "annotated",
    "column_named",
    "conform",
    "evolve",
    "fitted",
    "lake_name",
    "lake_names",
    "schema_from_json",
    "schema_to_json",
    "source_metadata",
    "spelled",
    "spellings",
]

SchemaPolicy = Literal["freeze", "evolve", "discard_row", "discard_value"]

DISCARDING: Final[frozenset[SchemaPolicy]] = frozenset({"discard_row", "discard_value"})
"""Policies under which the contract stays, and what does not fit it is kept out of the lake (ADR 028)."""

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
    type, since pandas, DuckDB and Polars fail on files whose types differ. Under ``discard_row`` and ``discard_value``
    the schema stays as it is, whatever comes: `fitted` says what of each batch fits it.

    Args:
        frozen: The feed's schema so far.
        incoming: The source's schema now.
        policy: The feed's ``schema_policy``.
        source: What is read, for the message.

    Raises:
        SchemaChanged: The policy does not allow the difference; the message lists it.
    """
    if policy in DISCARDING:
        return frozen
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


class Misfit(Value, frozen=True):
    """Values of one column that do not fit a feed's schema, for one reason.

    Attributes:
        column: Its name.
        reason: Why, for a person; the same for all batches.
        rows: Which rows of the batch have such a value.
        is_required: Whether no row can be landed without a value of this column.
    """

    column: str
    reason: str
    rows: npt.NDArray[np.bool_]
    is_required: bool = False


class Fitted(Value, frozen=True):
    """A batch in a feed's schema; values that do not fit are null, and columns that the schema lacks are gone.

    Attributes:
        rows: The batch.
        misfits: What did not fit.
        foreign: The source's columns that are none of the schema's, or of another type; where such a row is kept, so
            are they.
    """

    rows: pa.RecordBatch
    misfits: tuple[Misfit, ...] = ()
    foreign: pa.Schema | None = None

    def refused(self, policy: SchemaPolicy) -> npt.NDArray[np.bool_]:
        """The rows that cannot be landed: all that do not fit, or those that lack a value which they need."""
        which = [each.rows for each in self.misfits if policy != "discard_value" or each.is_required]
        return reduce(np.logical_or, which, np.zeros(self.rows.num_rows, dtype=np.bool_))

    @property
    def unfit(self) -> npt.NDArray[np.bool_]:
        """The rows that have a value which does not fit."""
        return reduce(np.logical_or, [each.rows for each in self.misfits], np.zeros(self.rows.num_rows, dtype=np.bool_))

    def reason(self, row: int) -> str:
        """Why a row does not fit; empty if it does."""
        return "; ".join(each.reason for each in self.misfits if each.rows[row])


def fitted(batch: pa.RecordBatch, schema: pa.Schema, *, needed: str | None = None) -> Fitted:
    """The batch in the feed's schema, as `conform` gives it, and what of it does not fit.

    A value fits if it is the same value in the schema's type: 7 is 7 in any type of integers that holds it, and text is
    never a number. A null fits every column that may be null, and a column that the schema lacks if it is null.

    Args:
        batch: The source's rows.
        schema: The feed's.
        needed: A column without a value of which no row can be landed, besides those that are never null.

    Raises:
        ValueError: Several columns of the batch have one name of the schema's.
    """
    columns: list[pa.Array] = []
    misfits: list[Misfit] = []
    foreign: list[pa.Field] = []
    for field in schema:
        index = batch.schema.get_field_index(field.name)
        column = pa.nulls(batch.num_rows, field.type) if index < 0 else batch.column(index)
        if index < 0 and field.name in batch.schema.names:
            raise ValueError(f"the batch has several columns {field.name!r}")
        if column.type != field.type:
            foreign.append(batch.schema.field(index))
        column, found = _fitted_column(column, field, is_needed=field.name == needed)
        columns.append(column)
        misfits += found
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if field.name not in schema.names:
            foreign.append(field)
            reason = f"column {field.name!r} is not in the feed's schema"
            misfits.append(Misfit(field.name, reason, ~np.asarray(column.is_null())))
    return Fitted(
        pa.RecordBatch.from_arrays(columns, schema=schema),
        tuple(each for each in misfits if each.rows.any()),
        pa.schema(foreign) if foreign else None,
    )


def _fitted_column(column: pa.Array, field: pa.Field, *, is_needed: bool) -> tuple[pa.Array, list[Misfit]]:
    """A column in the schema's type, and its values that do not fit: of another type, or none where one has to be."""
    found, fits = [], np.ones(len(column), dtype=np.bool_)
    if column.type != field.type:
        reason = f"column {field.name!r}: a value of type {column.type} does not fit {field.type}"
        column, fits = _exact(column, field.type)
        found.append(Misfit(field.name, reason, ~fits, is_required=is_needed or not field.nullable))
    if not field.nullable and column.null_count:
        reason = f"column {field.name!r} is never null in the feed's schema, and has no value"
        found.append(Misfit(field.name, reason, np.asarray(column.is_null()) & fits, is_required=True))
    return column, found


def _exact(column: pa.Array, kind: pa.DataType) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """The values in another type, null where that is not the same value; and which fit."""
    import pyarrow.compute as pc  # noqa: PLC0415  the kernel merges without

    nothing = pa.nulls(len(column), kind), np.asarray(column.is_null())
    if column.null_count == len(column) or not _is_alike(column.type, kind):
        return nothing
    plain, wanted = column.cast(_plain(column.type)), _plain(kind)
    between = _between(plain.type, wanted)
    try:
        cast = plain.cast(between).cast(wanted)
        same = _equal(cast.cast(between).cast(plain.type), plain)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if len(plain) == 1:
            return nothing
        # the few that do not fit are found in few steps; of a slice of lists, Arrow casts the values of all
        halves = [plain.take(pa.array(half)) for half in np.array_split(np.arange(len(plain)), 2)]
        found = [_exact(half, wanted) for half in halves]
        cast, same = pa.concat_arrays([values for values, _ in found]), np.concatenate([fits for _, fits in found])
    try:
        return (cast if same.all() else pc.if_else(pa.array(same), cast, pa.scalar(None, wanted))).cast(kind), same
    except pa.ArrowInvalid:  # more values than numbers of a dictionary's
        return nothing


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type without dictionaries, which say how values are held and not which they are."""
    return _with_leaves(kind, kind, lambda one, _: one.value_type if pa.types.is_dictionary(one) else one)


def _between(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type by whose way Arrow casts values of one to the other as they are.

    It takes no integers into a decimal that could not hold all of their type, and casts the bits of half floats.
    """

    def leaf(one: pa.DataType, other: pa.DataType) -> pa.DataType:
        if pa.types.is_integer(one) and pa.types.is_decimal128(other):
            return pa.decimal128(38, 0)
        if pa.types.is_integer(one) and pa.types.is_decimal256(other):
            return pa.decimal256(76, 0)
        if pa.types.is_float16(one) != pa.types.is_float16(other):
            return pa.float32()
        return other

    return _with_leaves(one, other, leaf)


def _with_leaves(
    one: pa.DataType, other: pa.DataType, leaf: Callable[[pa.DataType, pa.DataType], pa.DataType]
) -> pa.DataType:
    """The second type with other leaves, made of both types' at that place; parts are the same in both."""
    if pa.types.is_struct(other):
        return pa.struct(
            [right.with_type(_with_leaves(left.type, right.type, leaf)) for left, right in zip(one, other, strict=True)]
        )
    if pa.types.is_map(other):
        key = other.key_field.with_type(_with_leaves(one.key_type, other.key_type, leaf))
        return pa.map_(key, other.item_field.with_type(_with_leaves(one.item_type, other.item_type, leaf)))
    if _is_list(other):
        value = other.value_field.with_type(_with_leaves(one.value_type, other.value_type, leaf))
        if pa.types.is_fixed_size_list(other):
            return pa.list_(value, other.list_size)
        return pa.large_list(value) if pa.types.is_large_list(other) else pa.list_(value)
    return leaf(one, other)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _equal(left: pa.Array, right: pa.Array) -> npt.NDArray[np.bool_]:
    """Which values of two arrays of one type are the same; what is not a number is the same as such another."""
    import pyarrow.compute as pc  # noqa: PLC0415  the kernel merges without

    kind = right.type
    both_null = np.asarray(left.is_null()) & np.asarray(right.is_null())
    if pa.types.is_map(kind):
        pairs = pa.list_(pa.struct([kind.key_field, kind.item_field]))
        return _equal(left.cast(pairs), right.cast(pairs))
    if pa.types.is_struct(kind):
        parts = [_equal(one, other) for one, other in zip(left.flatten(), right.flatten(), strict=True)]
        whole = np.asarray(left.is_valid()) == np.asarray(right.is_valid())
        found: npt.NDArray[np.bool_] = both_null | reduce(np.logical_and, parts, whole)
        return found
    if _is_list(kind):
        lengths, others = (pc.fill_null(pc.list_value_length(each), -1) for each in (left, right))
        if not lengths.equals(others):
            raise pa.ArrowInvalid("the lists are of other lengths")
        differ = np.concatenate([[0], np.cumsum(~_equal(left.flatten(), right.flatten()))])
        ends = np.cumsum(np.maximum(np.asarray(lengths), 0))
        return np.asarray(differ[ends] == differ[ends - np.maximum(np.asarray(lengths), 0)])
    if pa.types.is_float16(kind):
        left, right = left.cast(pa.float32()), right.cast(pa.float32())
    same: npt.NDArray[np.bool_] = both_null | np.asarray(pc.fill_null(pc.equal(left, right), fill_value=False))
    if pa.types.is_floating(kind):
        same |= np.asarray(pc.fill_null(pc.and_(pc.is_nan(left), pc.is_nan(right)), fill_value=False))
    return same


def _is_alike(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether a value of one type can be the same value in the other."""
    one = one.value_type if pa.types.is_dictionary(one) else one
    other = other.value_type if pa.types.is_dictionary(other) else other
    if pa.types.is_timestamp(one) and pa.types.is_timestamp(other):
        return (one.tz is None) == (other.tz is None)
    if pa.types.is_nested(one) and pa.types.is_nested(other):
        return _parts_are_alike(one, other)
    return one == other or any(is_one(one) and is_other(other) for is_one, is_other in _ALIKE)


def _parts_are_alike(one: pa.DataType, other: pa.DataType) -> bool:
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        return [each.name for each in one] == [each.name for each in other] and all(
            _is_alike(left.type, right.type) for left, right in zip(one, other, strict=True)
        )
    if pa.types.is_map(one) and pa.types.is_map(other):
        return _is_alike(one.key_type, other.key_type) and _is_alike(one.item_type, other.item_type)
    return one == other or (_is_list(one) and _is_list(other) and _is_alike(one.value_type, other.value_type))


_TEXTS: Final = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BYTES: Final = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
#: Pairs of types whose values can be the same. Not from a decimal to a float or back: few of either are in the other;
#: and not from either to integers, which are another thing even where they are whole.
_ALIKE: Final[tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.DataType], bool]], ...]] = (
    (pa.types.is_integer, pa.types.is_integer),
    (pa.types.is_integer, pa.types.is_floating),
    (pa.types.is_integer, pa.types.is_decimal),
    (pa.types.is_floating, pa.types.is_floating),
    (pa.types.is_decimal, pa.types.is_decimal),
    (pa.types.is_date, pa.types.is_date),
    (pa.types.is_time, pa.types.is_time),
    (pa.types.is_duration, pa.types.is_duration),
    *((one, other) for one in _TEXTS for other in _TEXTS),
    *((one, other) for one in (*_BYTES, pa.types.is_fixed_size_binary) for other in _BYTES),
    *((one, pa.types.is_fixed_size_binary) for one in _BYTES),
)


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
