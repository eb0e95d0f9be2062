"""What a manifest says of a Parquet file: sizes, counts and bounds of its columns, by field id.

They are read from the footer, as Arrow finds it. pyiceberg has a function for that, which takes the bounds of the row
groups that state any for those of the file: in a file of several row groups, of which one states none (long texts, not
a number), readers would skip rows that are there.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq
from pyiceberg.io.pyarrow import (
    MetricModeTypes,
    StatisticsCollector,
    compute_statistics_plan,
    parquet_path_to_id_mapping,
)
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.schema import Schema
from pyiceberg.typedef import Properties, Record
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    FixedType,
    FloatType,
    IntegerType,
    LongType,
    PrimitiveType,
    StringType,
    TimestampType,
    TimestamptzType,
    TimeType,
    UUIDType,
)
from pyiceberg.utils.truncate import truncate_upper_bound_binary_string, truncate_upper_bound_text_string

from datalake_assets.parquet.stated import schema_of

__all__ = ["data_file_of"]

#: How Iceberg writes a bound of a type that Parquet has as a number (Iceberg specification, "Binary single-value").
_PACKED: dict[type[PrimitiveType], str] = {
    BooleanType: "<?",
    IntegerType: "<i",
    DateType: "<i",
    LongType: "<q",
    TimeType: "<q",
    TimestampType: "<q",
    TimestamptzType: "<q",
    FloatType: "<f",
    DoubleType: "<d",
}
#: Types whose bounds are stated.
_BOUNDED = {*_PACKED, StringType, BinaryType, FixedType, UUIDType, DecimalType}


def data_file_of(
    path: str,
    metadata: pq.FileMetaData,
    size_bytes: int,
    *,
    schema: Schema,
    properties: Properties,
    spec_id: int,
    partition: Record,
) -> DataFile:
    """A data file, for a manifest.

    Args:
        path: Where it is.
        metadata: Its footer.
        size_bytes: Of the file.
        schema: Of the table; the file has these columns.
        properties: Of the table: which columns have bounds, and how long these may be.
        spec_id: Of the partition spec that it is written by.
        partition: The partition that all its rows are in.
    """
    columns, described, splits = _Columns(schema, properties), schema_of(metadata), []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        splits.append(_start(group.column(0)))
        for index in range(group.num_columns):
            columns.add(group.column(index), is_repeated=described.column(index).max_repetition_level > 0)
    lower, upper = columns.bounds()
    file = DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=path,
        file_format=FileFormat.PARQUET,
        partition=partition,
        record_count=metadata.num_rows,
        file_size_in_bytes=size_bytes,
        column_sizes=dict(columns.sizes),
        value_counts=dict(columns.values),
        null_value_counts={field: count for field, count in columns.nulls.items() if field not in columns.uncounted},
        nan_value_counts={},
        lower_bounds=lower,
        upper_bounds=upper,
        key_metadata=None,
        split_offsets=sorted(splits),
        equality_ids=None,
        sort_order_id=None,
    )
    file.spec_id = spec_id  # `from_args` leaves it out
    return file


def _start(chunk: Any) -> int:
    dictionary, data = chunk.dictionary_page_offset, chunk.data_page_offset
    return int(dictionary if dictionary is not None and 0 < dictionary < data else data)


class _Columns:
    """Adds up what column chunks state."""

    def __init__(self, schema: Schema, properties: Properties) -> None:
        self._ids = parquet_path_to_id_mapping(schema)
        self._plan = compute_statistics_plan(schema, properties)
        self.sizes: Counter[int] = Counter()
        self.values: Counter[int] = Counter()
        self.nulls: Counter[int] = Counter()
        self.uncounted: set[int] = set()
        self._unbounded: set[int] = set()
        self._ranges: dict[int, tuple[Any, Any]] = {}

    def add(self, chunk: Any, *, is_repeated: bool) -> None:
        field = self._ids[chunk.path_in_schema]
        wanted = self._plan[field]
        self.sizes[field] += chunk.total_compressed_size
        if wanted.mode.type == MetricModeTypes.NONE:
            return
        self.values[field] += chunk.num_values
        statistics = chunk.statistics if chunk.is_stats_set else None
        if statistics is None or not statistics.has_null_count:
            self.uncounted.add(field)
            self._unbounded.add(field)
            return
        self.nulls[field] += statistics.null_count
        if is_repeated:  # what a list or map has, nobody is to skip rows by
            self._unbounded.add(field)
        elif statistics.null_count < chunk.num_values:
            self._widen(field, statistics)

    def _widen(self, field: int, statistics: Any) -> None:
        if not statistics.has_min_max:
            self._unbounded.add(field)
            return
        low, high = statistics.min_raw, statistics.max_raw
        if any(isinstance(each, float) and math.isnan(each) for each in (low, high)):
            self._unbounded.add(field)
            return
        low, high = (_comparable(each, self._plan[field].iceberg_type) for each in (low, high))
        known = self._ranges.get(field)
        self._ranges[field] = (low, high) if known is None else (min(low, known[0]), max(high, known[1]))

    def bounds(self) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """The lowest and the highest value of each column in which all are known."""
        lower, upper = {}, {}
        for field, (low, high) in self._known():
            wanted = self._plan[field]
            length = wanted.mode.length if wanted.mode.type == MetricModeTypes.TRUNCATE else None
            try:
                below, above = _lower(low, wanted.iceberg_type, length), _upper(high, wanted.iceberg_type, length)
            except UnicodeDecodeError:  # no text, whatever the column says
                continue
            lower[field] = below
            if above is not None:
                upper[field] = above
        return lower, upper

    def _known(self) -> Iterator[tuple[int, tuple[Any, Any]]]:
        for field, values in self._ranges.items():
            if field not in self._unbounded and self._states_bounds(self._plan[field]):
                yield field, values

    @staticmethod
    def _states_bounds(wanted: StatisticsCollector) -> bool:
        bounded = wanted.mode.type in (MetricModeTypes.FULL, MetricModeTypes.TRUNCATE)
        return bounded and type(wanted.iceberg_type) in _BOUNDED


def _comparable(value: Any, kind: PrimitiveType) -> Any:
    """The value in an order that is its column's; bytes compare as UTF-8 does."""
    if isinstance(kind, DecimalType) and isinstance(value, bytes):
        return int.from_bytes(value, "big", signed=True)
    return value


def _lower(value: Any, kind: PrimitiveType, length: int | None) -> bytes:
    if isinstance(kind, StringType) and length is not None:
        return bytes(value).decode()[:length].encode()
    if isinstance(kind, BinaryType) and length is not None:
        return bytes(value)[:length]
    return _packed(value, kind)


def _upper(value: Any, kind: PrimitiveType, length: int | None) -> bytes | None:
    """Also None if nothing so short is as high."""
    if isinstance(kind, StringType) and length is not None:
        text = truncate_upper_bound_text_string(bytes(value).decode(), length)
        return text.encode() if text is not None else None
    if isinstance(kind, BinaryType) and length is not None:
        return truncate_upper_bound_binary_string(bytes(value), length)
    return _packed(value, kind)


def _packed(value: Any, kind: PrimitiveType) -> bytes:
    if isinstance(kind, DecimalType):
        return int(value).to_bytes(max(1, (int(value).bit_length() + 8) // 8), "big", signed=True)
    code = _PACKED.get(type(kind))
    return struct.pack(code, value) if code is not None else bytes(value)
