"""From a feed's columns, partitions and files to an Iceberg table's, and back.

Iceberg has fewer types than Arrow. A column of a type that it lacks gets the next one that holds all of its values;
where there is none, the feed is refused. Nothing is ever rounded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
from pyiceberg.conversions import from_bytes
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.manifest import DataFile as IcebergFile
from pyiceberg.partitioning import PartitionField, PartitionSpec, partition_record_value
from pyiceberg.schema import Schema
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.transforms import (
    BucketTransform,
    DayTransform,
    HourTransform,
    IdentityTransform,
    MonthTransform,
    Transform,
)
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DecimalType,
    IcebergType,
    IntegerType,
    ListType,
    LongType,
    MapType,
    PrimitiveType,
    StringType,
    StructType,
    TimestampType,
    TimestamptzType,
)

from datalake_assets.core.batches import Batches, ChangedBatches, RejectedRow, SourceBatch
from datalake_assets.core.partitions import PartitionBy, key_of, window_of
from datalake_assets.core.row_texts import rows_to_text, values_of
from datalake_assets.core.schema import schema_to_json
from datalake_assets.errors import ConfigError, SchemaChanged
from datalake_assets.lake.iceberg.column_defaults import check_defaults
from datalake_assets.parquet.keys import FIELD_ID
from datalake_assets.parquet.writer import moment_of
from datalake_assets.policies import PartitionPart

__all__ = [
    "Parted",
    "StorableBatches",
    "column_bounds_of",
    "fresh_ids",
    "is_storable",
    "key_of_value",
    "partition_spec",
    "storable",
    "time_bounds_of",
    "value_of_key",
    "with_field_ids",
]

_TRANSFORMS: Final[dict[PartitionBy, Transform[Any, int]]] = {
    PartitionBy.MONTH: MonthTransform(),
    PartitionBy.DAY: DayTransform(),
    PartitionBy.HOUR: HourTransform(),
}
#: Types whose values files may be kept apart by. Not by floats: a value that is not a number equals nothing.
_IDENTITIES: Final = (
    BooleanType,
    IntegerType,
    LongType,
    StringType,
    BinaryType,
    DateType,
    TimestampType,
    TimestamptzType,
    DecimalType,
)
#: Types that Iceberg hashes (specification, "Bucket Transform Details").
_BUCKETED: Final = tuple(each for each in _IDENTITIES if each is not BooleanType)


def _as_it_is(value: Any) -> Any:
    return value


def _as_json(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else str(value) if isinstance(value, Decimal) else value


_AS_WRITTEN: Final[dict[type[IcebergType], Callable[[Any], Any]]] = {BinaryType: bytes.fromhex, DecimalType: Decimal}
Parts: TypeAlias = Sequence[PartitionPart]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Digits of a decimal in Iceberg.
_DIGITS = 38

_WIDER: Final[tuple[tuple[Callable[[pa.DataType], bool], pa.DataType], ...]] = (
    (pa.types.is_int8, pa.int32()),
    (pa.types.is_int16, pa.int32()),
    (pa.types.is_uint8, pa.int32()),
    (pa.types.is_uint16, pa.int32()),
    (pa.types.is_uint32, pa.int64()),
    (pa.types.is_uint64, pa.decimal128(20, 0)),
    (pa.types.is_float16, pa.float32()),
    (pa.types.is_time32, pa.time64("us")),
    (pa.types.is_date64, pa.date32()),
    (pa.types.is_large_string, pa.string()),
    (pa.types.is_string_view, pa.string()),
    (pa.types.is_large_binary, pa.binary()),
    (pa.types.is_binary_view, pa.binary()),
)
_KEPT = (
    pa.types.is_boolean,
    pa.types.is_int32,
    pa.types.is_int64,
    pa.types.is_float32,
    pa.types.is_float64,
    pa.types.is_date32,
    pa.types.is_string,
    pa.types.is_binary,
    pa.types.is_fixed_size_binary,
)


def storable(schema: pa.Schema, *, source: str) -> pa.Schema:
    """The schema in types that Iceberg has.

    Raises:
        SchemaChanged: A column's values fit into no type of Iceberg's.
    """
    fields = []
    for field in schema:
        kind = _storable(field.type)
        if kind is None:
            cure = "Iceberg has no type for it: land it as another, or keep the feed as 'parquet'"
            raise SchemaChanged(source, f"column {field.name!r} is {field.type}", cure=cure)
        fields.append(field.with_type(kind))
    return pa.schema(fields, metadata=schema.metadata)


def _storable(kind: pa.DataType) -> pa.DataType | None:
    if any(is_kept(kind) for is_kept in _KEPT):
        return kind
    for is_narrow, wider in _WIDER:
        if is_narrow(kind):
            return wider
    if pa.types.is_timestamp(kind) or pa.types.is_time64(kind):
        exact = pa.timestamp("us", "UTC" if kind.tz else None) if pa.types.is_timestamp(kind) else kind
        return None if kind.unit == "ns" else exact
    if pa.types.is_decimal(kind):
        return pa.decimal128(kind.precision, kind.scale) if kind.precision <= _DIGITS and kind.scale >= 0 else None
    if pa.types.is_dictionary(kind):
        return _storable(kind.value_type)
    return _storable_nested(kind)


def _storable_nested(kind: pa.DataType) -> pa.DataType | None:
    if pa.types.is_map(kind):
        key, item = _storable(kind.key_type), _storable(kind.item_type)
        return None if key is None or item is None else pa.map_(key, kind.item_field.with_type(item))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        value = _storable(kind.value_type)
        return None if value is None else pa.list_(kind.value_field.with_type(value))
    if pa.types.is_struct(kind) and kind.num_fields:
        kinds = [_storable(each.type) for each in kind]
        if all(each is not None for each in kinds):
            return pa.struct([each.with_type(of) for each, of in zip(kind, kinds, strict=True)])
    return None


class StorableBatches(ChangedBatches):
    """A source's batches in types that Iceberg has; rows whose values do not fit are rejected.

    Args:
        batches: The source's.
        source: What is read, for messages.
        contract: The schema of a feed that discards what does not fit it: whatever Iceberg's types do not bring into
            it is left as it is, and judged by it.
    """

    def __init__(self, batches: Batches, source: str, *, contract: pa.Schema | None = None) -> None:
        super().__init__(batches)
        self._source, self._contract = source, contract

    @property
    def schema(self) -> pa.Schema:
        """Implements `Batches`."""
        return self._storable(self._batches.schema)

    def changed(self, batch: SourceBatch) -> SourceBatch:
        """Implements `ChangedBatches`."""
        schema = self._storable(batch.rows.schema)
        if schema.equals(batch.rows.schema):
            return batch
        if self._contract is not None:
            return _with_rows(batch, _cast_where_all_fit(batch.rows, schema))
        try:
            return _with_rows(batch, _cast(batch.rows, schema))
        except pa.ArrowInvalid:
            pass
        kept, rejected = [], []
        for number in range(batch.rows.num_rows):
            try:
                _cast(batch.rows.slice(number, 1), schema)
                kept.append(number)
            except pa.ArrowInvalid as error:
                rejected.append(_rejected(batch, number, " ".join(str(error).split())))
        which = pa.array(kept, pa.int64())
        good = batch.taking(which, also_rejected=rejected)
        return _with_rows(good, _cast(good.rows, schema))

    def _storable(self, schema: pa.Schema) -> pa.Schema:
        if self._contract is None:
            return storable(schema, source=self._source)
        kinds = {field.name: field.type for field in self._contract}
        return pa.schema([field.with_type(_brought_to(field.type, kinds.get(field.name))) for field in schema])


def _brought_to(kind: pa.DataType, wanted: pa.DataType | None) -> pa.DataType:
    return wanted if wanted is not None and _storable(kind) == wanted else kind


def stored_as(kind: pa.DataType) -> pa.DataType | None:
    """What values of a type are kept as; None if Iceberg has nothing for them."""
    return _storable(kind)


def is_storable(kind: pa.DataType) -> bool:
    """Whether Iceberg has a type."""
    return bool(_storable(kind) == kind)


def _cast_where_all_fit(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for column, field in zip(rows.columns, schema, strict=True):
        try:
            columns.append(column.cast(field.type))
        except pa.ArrowInvalid:
            columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema.names)


def _with_rows(batch: SourceBatch, rows: pa.RecordBatch) -> SourceBatch:
    return replace(batch, rows=rows)


def _cast(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = [column.cast(field.type) for column, field in zip(rows.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _rejected(batch: SourceBatch, number: int, reason: str) -> RejectedRow:
    row = batch.rows.slice(number, 1)
    (raw,) = rows_to_text(row)
    position = batch.position(number) or f"row:{hashlib.blake2b(raw, digest_size=12).hexdigest()}"
    columns = schema_to_json(row.schema.remove_metadata())
    return RejectedRow(raw, f"Iceberg cannot hold a value: {reason}", position, decoded=True, columns=columns)


def fresh_ids(schema: pa.Schema) -> pa.Schema:
    """The schema with ids for a table that is to be made."""
    numbers = count(1)
    return pa.schema([_fresh(field, numbers) for field in schema])


def _fresh(field: pa.Field, numbers: Iterator[int]) -> pa.Field:
    number, kind = next(numbers), field.type
    if pa.types.is_struct(kind):
        kind = pa.struct([_fresh(each, numbers) for each in kind])
    elif pa.types.is_list(kind):
        kind = pa.list_(_fresh(kind.value_field, numbers))
    elif pa.types.is_map(kind):
        kind = pa.map_(_fresh(kind.key_field, numbers), _fresh(kind.item_field, numbers))
    return field.with_type(kind).with_metadata({FIELD_ID: str(number).encode()})


def with_field_ids(schema: pa.Schema, table: Schema) -> pa.Schema:
    """The feed's schema with the ids by which Iceberg's readers find columns in files.

    Raises:
        ConfigError: The table lacks a column, or has one that rows of the feed would get another value in than its
            readers are to see, since another engine changed it.
        SchemaChanged: Its column is of another type.
    """
    return pa.schema(_all_with_ids(list(schema), table.as_struct()), metadata=schema.metadata)


def _all_with_ids(fields: Sequence[pa.Field], within: StructType) -> list[pa.Field]:
    """Of a table, or of a struct in it."""
    check_defaults({field.name for field in fields}, within)
    return [_with_ids(field, within) for field in fields]


def _with_ids(field: pa.Field, within: StructType) -> pa.Field:
    own = next((each for each in within.fields if each.name == field.name), None)
    if own is None:
        raise ConfigError(f"the Iceberg table has no column {field.name!r} any more; another engine changed it")
    return _numbered(field, own.field_id, own.field_type)


def _numbered(field: pa.Field, number: int, kind: Any) -> pa.Field:
    arrow = field.type
    if not _can_hold(kind, arrow):
        raise SchemaChanged(
            "the Iceberg table",
            f"its column {field.name!r} is {kind}, and {arrow} does not fit it",
            cure="another writer, or another engine, made it so: rename the column in the feed",
        )
    if isinstance(kind, StructType):
        arrow = pa.struct(_all_with_ids(list(field.type), kind))
    elif isinstance(kind, ListType):
        arrow = pa.list_(_numbered(field.type.value_field, kind.element_id, kind.element_type))
    elif isinstance(kind, MapType):
        arrow = pa.map_(
            _numbered(field.type.key_field, kind.key_id, kind.key_type),
            _numbered(field.type.item_field, kind.value_id, kind.value_type),
        )
    return field.with_type(arrow).with_metadata({**(field.metadata or {}), FIELD_ID: str(number).encode()})


def _can_hold(kind: IcebergType, arrow: pa.DataType) -> bool:
    """Whether a file's values may be of an Arrow type: the column's own, or one that it was promoted from."""
    for of, is_nested in _NESTED:
        if isinstance(kind, of):
            return is_nested(arrow)
    wanted = _storable(schema_to_pyarrow(kind))
    if wanted is None or wanted == arrow or (arrow, wanted) in _PROMOTED:
        return True
    are_decimals = pa.types.is_decimal(wanted) and pa.types.is_decimal(arrow)
    return are_decimals and bool(arrow.scale == wanted.scale and arrow.precision <= wanted.precision)


#: Iceberg's types that have parts, and whether a type of Arrow's is such a one.
_NESTED: Final[tuple[tuple[type[IcebergType], Callable[[pa.DataType], bool]], ...]] = (
    (StructType, pa.types.is_struct),
    (ListType, pa.types.is_list),
    (MapType, pa.types.is_map),
)
#: Iceberg specification, "Schema Evolution": columns may become wider, and their files stay as they are.
_PROMOTED: Final = ((pa.int32(), pa.int64()), (pa.float32(), pa.float64()))


def partition_spec(schema: Schema, by: PartitionBy | None, time_column: str | None, parts: Parts) -> PartitionSpec:
    """How a feed's table is partitioned: a stream's by hour, day or month of its time column, and by its parts.

    Raises:
        ConfigError: The table has no such column, or one that cannot be partitioned by so.
    """
    fields = [] if by is None or time_column is None else [_time_field(schema, time_column, by)]
    for part in parts:
        kind = _kind_of(schema, part.column)
        transform: Transform[Any, Any] = IdentityTransform() if part.buckets is None else BucketTransform(part.buckets)
        taken = _IDENTITIES if part.buckets is None else _BUCKETED
        if not isinstance(kind, taken):
            allowed = ", ".join(sorted(str(each) for each in _names_of(taken)))
            raise ConfigError(f"column {part.column!r} is {kind}: format.parts takes by {part.transform} {allowed}")
        name = part.column if part.buckets is None else f"{part.column}_bucket"
        if part.buckets is not None and name in schema.column_names:
            raise ConfigError(f"format.parts: buckets of {part.column!r} are named {name!r}, as a column is: rename it")
        number = schema.find_field(part.column).field_id
        fields.append(PartitionField(number, 1000 + len(fields), transform, name))
    return PartitionSpec(*fields)


def _time_field(schema: Schema, column: str, by: PartitionBy) -> PartitionField:
    source = schema.find_field(column)
    if by is PartitionBy.HOUR and isinstance(source.field_type, DateType):
        raise ConfigError(f"column {column!r} is a date, which has no hours: partition the feed by day or month")
    name = f"{column}_{by.value}"
    while name in schema.column_names:  # a name that is a column's is taken for partitions by its own values
        name += "_"
    return PartitionField(source_id=source.field_id, field_id=1000, transform=_TRANSFORMS[by], name=name)


def _kind_of(schema: Schema, column: str) -> IcebergType:
    if column not in {field.name for field in schema.fields}:
        raise ConfigError(f"format.parts: the feed has no column {column!r}; it has {', '.join(schema.column_names)}")
    return schema.find_field(column).field_type


def _names_of(kinds: tuple[type[PrimitiveType], ...]) -> list[str]:
    return [each.__name__.removesuffix("Type").lower() for each in kinds]


class Parted:
    """By which values, besides the time, a table's files are kept apart: as texts, since plans compare them.

    Args:
        schema: The table's.
        spec: Its partition spec.
        is_by_time: Whether the first field of that is the feed's partition in time.
    """

    def __init__(self, schema: Schema, spec: PartitionSpec, *, is_by_time: bool) -> None:
        self._schema, self._spec = schema, spec
        self._fields = spec.fields[1:] if is_by_time else spec.fields

    @property
    def is_parted(self) -> bool:
        """Whether there are any."""
        return bool(self._fields)

    def of_rows(self, rows: pa.RecordBatch) -> pa.DictionaryArray:
        """The text of each row."""
        columns = []
        for field in self._fields:
            name = self._schema.find_column_name(field.source_id)
            source = self._schema.find_type(field.source_id)
            columns.append(field.transform.pyarrow_transform(source)(rows.column(name)))
        encoded = [column.dictionary_encode(null_encoding="encode") for column in columns]
        codes = np.stack([np.asarray(each.indices) for each in encoded], axis=1)
        found, rows_of = np.unique(codes, axis=0, return_inverse=True)
        names = [values_of(each.dictionary) for each in encoded]
        texts = [self._text([values[code] for values, code in zip(names, each, strict=True)]) for each in found]
        return pa.DictionaryArray.from_arrays(pa.array(rows_of.ravel(), pa.int32()), pa.array(texts, pa.string()))

    def _text(self, values: Sequence[Any]) -> str:
        found = []
        for field, value in zip(self._fields, values, strict=True):
            is_number = isinstance(field.transform, BucketTransform)
            found.append(value if is_number else partition_record_value(field, value, self._schema))
        return self.text(found)

    def text(self, values: Sequence[Any]) -> str:
        """The text of a file's values, as Iceberg has them: another engine may change the table's spec meanwhile."""
        return f"{self._spec.spec_id}:{json.dumps([_as_json(each) for each in values], ensure_ascii=False)}"

    def values(self, text: str) -> list[Any]:
        """The values of a text, as Iceberg has them; nulls for a file that has no rows."""
        if not text:
            return [None] * len(self._fields)
        found = []
        for field, value in zip(self._fields, json.loads(text.partition(":")[2]), strict=True):
            kind = field.transform.result_type(self._schema.find_type(field.source_id))
            found.append(None if value is None else _AS_WRITTEN.get(type(kind), _as_it_is)(value))
        return found


def value_of_key(key: str, by: PartitionBy) -> int:
    """What Iceberg calls the partition of a key: hours, days or months since 1970."""
    start = window_of(key, by).start
    if by is PartitionBy.MONTH:
        return (start.year - _EPOCH.year) * 12 + start.month - 1
    return (start - _EPOCH) // (timedelta(days=1) if by is PartitionBy.DAY else timedelta(hours=1))


def key_of_value(value: int, by: PartitionBy) -> str:
    """The inverse of `value_of_key`."""
    if by is PartitionBy.MONTH:
        return key_of(datetime(_EPOCH.year + value // 12, value % 12 + 1, 1, tzinfo=UTC), by)
    return key_of(_EPOCH + value * (timedelta(days=1) if by is PartitionBy.DAY else timedelta(hours=1)), by)


def time_bounds_of(file: IcebergFile, metadata: TableMetadata) -> tuple[datetime | None, datetime | None]:
    """The earliest and the latest time in the column that partitions a table; None where it is not partitioned."""
    fields = metadata.spec().fields
    is_by_time = fields and isinstance(fields[0].transform, tuple(type(each) for each in _TRANSFORMS.values()))
    return column_bounds_of(file, metadata, fields[0].source_id) if is_by_time else (None, None)


def column_bounds_of(
    file: IcebergFile, metadata: TableMetadata, number: int
) -> tuple[datetime | None, datetime | None]:
    """The earliest and the latest time in the column of that id; None where nothing says so."""
    kind = metadata.schema().find_type(number)
    return _moment(file.lower_bounds, number, kind), _moment(file.upper_bounds, number, kind)


def _moment(bounds: dict[int, bytes] | None, number: int, kind: Any) -> datetime | None:
    if not bounds or number not in bounds or not isinstance(kind, PrimitiveType):
        return None
    arrow = pa.date32() if isinstance(kind, DateType) else pa.timestamp("us")
    return moment_of(int(from_bytes(kind, bounds[number])), arrow)
