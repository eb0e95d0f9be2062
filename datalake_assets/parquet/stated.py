"""What a footer states of columns and column chunks, looked up once: each look at Arrow's metadata makes an object.

Of tiny files such looks took a fifth of the time of rewriting them, since everybody who wanted to know something went
through all chunks again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from datalake_assets.core.values import Value

__all__ = ["Stated", "StatedChunk", "StatedColumn", "StatedGroup", "schema_of", "stated_of", "value_width"]

#: Bytes of a value in Arrow, where Parquet's type fixes them.
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 8, "FLOAT": 4, "DOUBLE": 8}
#: The type of values of a length that the schema states.
FIXED = "FIXED_LEN_BYTE_ARRAY"


class StatedColumn(NamedTuple):
    """A leaf of the schema.

    Attributes:
        path: Its name, with those above it.
        is_repeated: A row may have several values.
        width: Bytes of a value in Arrow; None if they differ from value to value.
        is_fixed: Values have a length that the schema states.
    """

    path: str
    is_repeated: bool
    width: int | None
    is_fixed: bool


class StatedChunk(NamedTuple):
    """A column chunk.

    Attributes:
        path: Of its column, as the chunk has it.
        values: Its number, nulls included.
        plain_bytes: Of its pages before compression.
        size_bytes: Of its pages.
        dictionary: Where its dictionary page begins; 0 if none is stated.
        encodings: Arrow's names; left out where nobody asks for them, of values of a fixed width with a stated
            dictionary.
        has_bloom: It has a bloom filter.
        key_values: Of its own.
    """

    path: str
    values: int
    plain_bytes: int
    size_bytes: int
    dictionary: int
    encodings: tuple[str, ...]
    has_bloom: bool
    key_values: Mapping[bytes, bytes]

    @property
    def encoded_bytes(self) -> int:
        """The larger of its sizes, of which a damaged footer may state either wrong."""
        return max(self.plain_bytes, self.size_bytes, 0)


class StatedGroup(NamedTuple):
    """A row group: its rows, the bytes of its pages before compression, and its column chunks."""

    rows: int
    plain_bytes: int
    chunks: tuple[StatedChunk, ...]


class Stated(Value, frozen=True):
    """All that was looked up.

    Attributes:
        rows: Of the file, as it says itself.
        columns: The leaves of its schema.
        groups: Its row groups.
    """

    rows: int
    columns: tuple[StatedColumn, ...]
    groups: tuple[StatedGroup, ...]


def schema_of(metadata: pq.FileMetaData) -> pq.ParquetSchema:
    """The schema in a footer, as Arrow has it; look it up once.

    ``metadata.schema`` keeps it, and it keeps the metadata, so that both would stay until Python looks for garbage: of
    ten thousand files 200 MiB.
    """
    return pq.ParquetSchema(metadata)


def stated_of(metadata: pq.FileMetaData) -> Stated:
    """Looks everything up.

    Raises:
        OSError: A row group has another number of chunks than there are columns.
        UnicodeDecodeError: A name is no UTF-8.
    """
    columns = _columns(schema_of(metadata))
    groups = tuple(_group(metadata.row_group(number), columns) for number in range(metadata.num_row_groups))
    return Stated(metadata.num_rows, columns, groups)


def _group(group: Any, columns: Sequence[StatedColumn]) -> StatedGroup:
    if group.num_columns != len(columns):
        raise OSError(f"a row group has {group.num_columns} column chunks for {len(columns)} columns")
    chunks = tuple(_chunk(group.column(index), column) for index, column in enumerate(columns))
    return StatedGroup(group.num_rows, group.total_byte_size, chunks)


def _chunk(chunk: Any, column: StatedColumn) -> StatedChunk:
    dictionary = chunk.dictionary_page_offset or 0
    return StatedChunk(
        chunk.path_in_schema,
        max(chunk.num_values, 0),
        chunk.total_uncompressed_size,
        chunk.total_compressed_size,
        dictionary,
        () if dictionary and column.width is not None else chunk.encodings,
        chunk.bloom_filter_offset is not None,
        chunk.metadata or {},
    )


#: The schema that was asked for last, which the next file most likely has too.
_last: tuple[Any, tuple[StatedColumn, ...]] | None = None


def _columns(schema: Any) -> tuple[StatedColumn, ...]:
    global _last  # noqa: PLW0603  replaced as a whole
    known = _last
    if known is not None and known[0].equals(schema):
        return known[1]
    found = tuple(_column(schema.column(index)) for index in range(len(schema)))
    _last = schema, found
    return found


def _column(column: Any) -> StatedColumn:
    is_repeated, is_fixed = column.max_repetition_level > 0, column.physical_type == FIXED
    return StatedColumn(column.path, is_repeated, value_width(column), is_fixed)


def value_width(column: Any) -> int | None:
    """Bytes of a value in Arrow; None if they differ from value to value.

    Args:
        column: Arrow's metadata of the column.
    """
    kind = column.physical_type
    return int(column.length) if kind == FIXED else WIDTHS.get(kind)
