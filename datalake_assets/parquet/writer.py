"""One Parquet file, written well: typed encodings, sorted row groups, exact statistics and a digest of its bytes.

pyarrow's default encoding, a dictionary for everything, spends most of its time on dictionaries that it then throws
away. Here a column gets one only if few of its values are distinct; what the others get depends on who has to read the
files. The digest is XXH3, which guards against damage and not against forgery, as does everything else in a manifest:
it is about ten times as fast as BLAKE2b, which files of earlier releases have and are still verified by.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.core.arrow_arrays import empty_table, of_numbers
from datalake_assets.core.files import DataFile
from datalake_assets.core.values import Value
from datalake_assets.parquet.sinks import Sink, new_checksum

__all__ = [
    "DISTINCT_SHARE",
    "SAMPLE_ROWS",
    "Encodings",
    "ParquetFileWriter",
    "ParquetSettings",
    "Profile",
    "choose_encodings",
    "moment_of",
    "open_writer",
    "sorted_by",
    "time_bounds",
    "use_pool",
]

Profile: TypeAlias = Literal["compatible", "compact"]

Encodings: TypeAlias = tuple[list[str], dict[str, str]]
"""The columns that get a dictionary, and the encodings of others, both by Parquet column path; the rest is PLAIN."""

SAMPLE_ROWS: Final = 20_000
"""How many rows of the first row group are sampled, evenly spread over it."""

DISTINCT_SHARE: Final = 0.10
"""A dictionary pays below this share of distinct values: measured 11 % less time and 6 % less space than everywhere."""

_INT64_DIGITS: Final = 18  # Parquet LogicalTypes, DECIMAL: up to 18 digits fit into an INT64


def use_pool(name: Literal["jemalloc", "system"]) -> None:
    """Makes one of Arrow's allocators that of the process, where Arrow has it.

    mimalloc, the default, gives memory back in between and has the kernel clear it again. Merging allocates and frees
    the same few sizes thousands of times: with jemalloc 1,000 tiny files take a quarter of CPU time less, and a third
    of the memory (`benchmarks compaction`). Exports take as much CPU time by it as by any other, a stream's of JSON 90
    MiB less than by the C library's (`benchmarks ingest`), and a process that lands batch after batch does not grow
    (`benchmarks live`). What converts one file and ends takes a twentieth of CPU time less by the C library's
    (`benchmarks csv`). ``ARROW_DEFAULT_MEMORY_POOL`` overrides this choice as it does Arrow's own (Arrow's
    documentation, "Environment Variables").
    """
    if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ and name in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool() if name == "jemalloc" else pa.system_memory_pool())


def choose_encodings(sample: pa.Table, profile: Profile) -> Encodings:
    """The encodings that suit a table.

    ``compatible`` adds nothing to dictionaries and PLAIN, which every reader has had from the start. ``compact`` adds:

    - DELTA_BINARY_PACKED for integers, times and decimals of up to 18 digits. Spark's vectorised reader has it since
      3.3 (SPARK-36879) and fails before; Iceberg's own in Spark since apache/iceberg#13391. Trino, the engine of
      Athena 3, and DuckDB have it.
    - DELTA_BYTE_ARRAY for texts and bytes: Spark since 3.3 (SPARK-37974), Trino and DuckDB too.
    - BYTE_STREAM_SPLIT for floating point numbers. Trino and DuckDB have it; Spark's vectorised reader only since 4.3
      (SPARK-56894; run with 4.0.5, 4.2.1 and 4.3.0), so a lake that an earlier Spark reads must not be compact.

    fastparquet refuses the last two, and may read the first wrong: it is for compatible files only.

    Args:
        sample: The first row group; an empty one gives dictionaries to no column.
        profile: Who has to read the files.
    """
    dictionary: list[str] = []
    encodings: dict[str, str] = {}
    spread = np.linspace(0, max(sample.num_rows - 1, 0), min(sample.num_rows, SAMPLE_ROWS)).astype(np.int64)
    rows = sample.take(of_numbers(spread)).combine_chunks()
    for field in rows.schema:
        column = rows[field.name]
        array = column.chunk(0) if column.num_chunks else pa.nulls(0, field.type)
        for path, leaf in _leaves(field.name, array):
            if _has_few_values(leaf):
                dictionary.append(path)
            elif profile == "compact" and (encoding := _compact_encoding(leaf.type)):
                encodings[path] = encoding
    return dictionary, encodings


def _leaves(path: str, array: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    """The primitive columns below a column, with their Parquet paths (Parquet LogicalTypes, "Nested Types")."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        yield from _leaves(path, array.storage)
    elif pa.types.is_struct(kind):
        for index, field in enumerate(kind):
            yield from _leaves(f"{path}.{field.name}", array.field(index))
    elif pa.types.is_map(kind):
        yield from _leaves(f"{path}.key_value.key", array.keys)
        yield from _leaves(f"{path}.key_value.value", array.items)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(f"{path}.list.element", array.flatten())
    else:
        yield path, array


def _has_few_values(leaf: pa.Array) -> bool:
    import pyarrow.compute as pc  # noqa: PLC0415  the kernel merges without

    # Parquet has a bit for a boolean anyway
    if not len(leaf) or pa.types.is_boolean(leaf.type) or pa.types.is_null(leaf.type):
        return False
    if pa.types.is_dictionary(leaf.type):  # written plain, few categories take many times the room
        leaf = leaf.indices
    try:
        return bool(pc.count_distinct(leaf, mode="all").as_py() < len(leaf) * DISTINCT_SHARE)
    except pa.ArrowNotImplementedError:
        return False


def _compact_encoding(kind: pa.DataType) -> str | None:
    if pa.types.is_decimal128(kind):
        return "DELTA_BINARY_PACKED" if kind.precision <= _INT64_DIGITS else None
    if pa.types.is_integer(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind):
        return "DELTA_BINARY_PACKED"
    if pa.types.is_float32(kind) or pa.types.is_float64(kind):
        return "BYTE_STREAM_SPLIT"
    texts = (pa.types.is_string, pa.types.is_binary, pa.types.is_large_string, pa.types.is_large_binary)
    return "DELTA_BYTE_ARRAY" if any(is_text(kind) for is_text in texts) else None


MIB = 1 << 20
#: Bytes of a dictionary page; larger ones cost more time than they save space.
DICTIONARY_PAGE_BYTES = MIB
#: Arrow hands on each page by itself, and each call into Python takes the time of a few kilobytes more.
BUFFER_BYTES = 256 << 10
#: Decoded: in larger row groups readers pay more for one row, and in smaller ones for all, than in those of the writers
#: that are read fastest (`benchmarks compaction --only tiny`).
ROW_GROUP_BYTES = 23 * MIB // 2
ZSTD_LEVEL = 1
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST, LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
_UNITS: Mapping[str, Callable[[int], timedelta]] = {
    "d": lambda count: timedelta(days=count),
    "s": lambda count: timedelta(seconds=count),
    "ms": lambda count: timedelta(milliseconds=count),
    "us": lambda count: timedelta(microseconds=count),
    "ns": lambda count: timedelta(microseconds=count // 1000),
}


class ParquetSettings(Value, frozen=True):
    """How files are written.

    Attributes:
        compression: Codec of the pages.
        profile: ``compatible`` is read by every release of Spark 3, Athena and DuckDB; ``compact`` is smaller, and not
            for Spark; `choose_encodings` says by which encodings.
        target_file_bytes: Size at which a file is finished and the next begun.
        row_group_bytes: Decoded size of a row group.
        compression_level: Of zstd; None: 1. Levels above take twice the time for a few per cent of size.
    """

    compression: Literal["snappy", "zstd"] = "snappy"
    profile: Profile = "compatible"
    target_file_bytes: int = 128 * MIB
    row_group_bytes: int = ROW_GROUP_BYTES
    compression_level: int | None = None


class _Digesting:
    """Passes bytes on to a sink and keeps their digest."""

    def __init__(self, sink: Sink) -> None:
        self._sink, self._checksum = sink, new_checksum()
        self.closed = self.dropping = False

    @property
    def checksum(self) -> str:
        return str(self._checksum)

    def write(self, data: bytes) -> int:
        if self.dropping:
            return len(data)
        self._checksum.update(data)
        return self._sink.write(data)

    def tell(self) -> int:
        return self._sink.tell()

    def flush(self) -> None:
        """Durability is the sink's own business, when it is finished."""

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


class ParquetFileWriter:
    """One file being written; not safe to use from two threads at once.

    Args:
        sink: Takes the bytes; finishing it is the caller's.
        schema: Schema of the rows; field ids and metadata are kept.
        settings: Codec, encodings and sizes.
        time_column: Rows are sorted by it within a row group.
        metadata: Key-value metadata of the footer.
        encodings: Of the columns; None: chosen from the first row group.
    """

    def __init__(
        self,
        sink: Sink,
        schema: pa.Schema,
        settings: ParquetSettings,
        *,
        time_column: str | None = None,
        metadata: Mapping[str, str] | None = None,
        encodings: Encodings | None = None,
    ) -> None:
        self._sink, self._schema, self._settings = _Digesting(sink), schema, settings
        self._time_column, self._metadata = time_column, dict(metadata or {})
        self.encodings = encodings
        self._writer: pq.ParquetWriter | None = None
        self._out: pa.NativeFile | None = None
        self._rows = 0
        self._times: list[datetime] = []

    @property
    def size_bytes(self) -> int:
        """Bytes written so far."""
        return self._sink.tell() if self._out is None or self._out.closed else self._out.tell()

    def write_batches(self, batches: list[pa.RecordBatch]) -> None:
        """Writes one row group, and empties the list: sorted rows are a copy, so the unsorted ones can go first."""
        table = pa.Table.from_batches(batches, schema=self._schema)
        batches.clear()
        order = None if self._time_column is None else _order_by(table, self._time_column)
        if order is not None:
            columns = table.columns
            del table
            # one by one: the unsorted rows of a column go before the next is sorted
            table = pa.Table.from_arrays([columns.pop(0).take(order) for _ in self._schema], schema=self._schema)
        self._write(table)

    def write(self, table: pa.Table) -> None:
        """Writes one row group."""
        self._write(table if self._time_column is None else sorted_by(table, self._time_column))

    def _write(self, table: pa.Table) -> None:
        if self._time_column is not None:
            self._times.extend(time_bounds(table[self._time_column]))
        if self._writer is None:
            self._writer = self._open(table)
        self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
        self._rows += table.num_rows

    def close(self, metadata: Mapping[str, str] | None = None, *, name: str = "") -> DataFile:
        """Writes the footer, with this metadata besides the other; a file without rows is whole too.

        Returns:
            The file, under the name that it is to have.
        """
        if self._writer is None:
            self._writer = self._open(empty_table(self._schema))
        self._writer.add_key_value_metadata({**self._metadata, **(metadata or {})})
        self._writer.close()
        self._close_out()
        return DataFile(
            name=name,
            rows=self._rows,
            size_bytes=self._sink.tell(),
            min_time=min(self._times, default=None),
            max_time=max(self._times, default=None),
            checksum=self._sink.checksum,
        )

    def abandon(self) -> None:
        """Gives the file up: nothing more is written to the sink. Idempotent.

        Without it, pyarrow would write a footer when the writer is collected, to a sink that is discarded by then.
        """
        self._sink.dropping = True
        if self._writer is not None:
            self._writer.close()
            self._close_out()

    def _close_out(self) -> None:
        if self._out is not None:
            self._out.close()

    def _open(self, sample: pa.Table) -> pq.ParquetWriter:
        if self.encodings is None:
            self.encodings = choose_encodings(sample, self._settings.profile)
        self._out = pa.BufferedOutputStream(pa.PythonFile(self._sink, mode="w"), BUFFER_BYTES)
        return open_writer(self._out, self._schema, self._settings, self.encodings)


def open_writer(
    sink: pa.NativeFile, schema: pa.Schema, settings: ParquetSettings, encodings: Encodings, **options: Any
) -> pq.ParquetWriter:
    """Arrow's writer, set as all our files are; ``options`` are its own, and go before ours."""
    dictionary, others = encodings
    is_zstd = settings.compression == "zstd"
    return pq.ParquetWriter(
        sink,
        schema,
        compression=settings.compression,
        compression_level=(settings.compression_level or ZSTD_LEVEL) if is_zstd else None,
        use_dictionary=dictionary,
        column_encoding=others or None,
        dictionary_pagesize_limit=DICTIONARY_PAGE_BYTES,
        write_statistics=True,
        write_page_index=True,
        **{"store_decimal_as_integer": True, **options},
    )


def time_bounds(times: pa.ChunkedArray) -> tuple[datetime, ...]:
    """The earliest and the latest of timestamps or dates, as `moment_of` tells them; empty if all are null."""
    import pyarrow.compute as pc  # noqa: PLC0415  the kernel merges without

    ends = pc.min_max(times)
    # as_py would import a library of time zones
    return tuple(moment_of(end.value, times.type) for end in (ends["min"], ends["max"]) if end.is_valid)


def moment_of(count: int, kind: pa.DataType) -> datetime:
    """The time that a timestamp's or a date's integer stands for, aware UTC, to the microsecond.

    Days begin at midnight. Years that Python has not, and the infinities of DuckDB and PostgreSQL, are the nearest
    time that it has.
    """
    unit = kind.unit if pa.types.is_timestamp(kind) else "d" if pa.types.is_date32(kind) else "ms"
    try:
        return EPOCH + _UNITS[unit](count)
    except OverflowError:
        return LAST if count > 0 else FIRST


def sorted_by(table: pa.Table, column: str) -> pa.Table:
    """Sorts rows by time, those of equal time in their order; leaves them untouched where they are sorted already."""
    order = _order_by(table, column)
    return table if order is None else table.take(order)


def _order_by(table: pa.Table, column: str) -> pa.Array | None:
    """The order of rows by time, those of equal time as they are; None if they are sorted."""
    import pyarrow.compute as pc  # noqa: PLC0415  the kernel merges without

    times = table[column].combine_chunks()
    if len(times) < 2 or pc.all(pc.greater_equal(times[1:], times[:-1]), skip_nulls=False).as_py():  # noqa: PLR2004  # one row is sorted
        return None
    # Arrow's sort is stable
    return pc.sort_indices(times)
