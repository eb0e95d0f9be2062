"""One Parquet file, written well: typed encodings, sorted row groups, exact statistics and a digest of its bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datalake_assets.parquet.checksum import new_checksum
from datalake_assets.parquet.encodings import Encodings, Profile, choose_encodings

__all__ = [
    "FileStats",
    "ParquetSettings",
    "ParquetSink",
    "Sink",
    "moment_of",
    "open_writer",
    "sorted_by",
    "time_bounds",
]

MIB = 1 << 20
#: Bytes of a dictionary page; larger ones cost more time than they save space.
DICTIONARY_PAGE_BYTES = MIB
ZSTD_LEVEL = 1
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS: Mapping[str, Callable[[int], timedelta]] = {
    "s": lambda count: timedelta(seconds=count),
    "ms": lambda count: timedelta(milliseconds=count),
    "us": lambda count: timedelta(microseconds=count),
    "ns": lambda count: timedelta(microseconds=count // 1000),
}


class Sink(Protocol):
    """What a Parquet file is written to."""

    @property
    def closed(self) -> bool:
        """Whether writing has ended."""

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """Appends; the bytes may change once it has returned."""

    def tell(self) -> int:
        """Bytes so far."""

    def flush(self) -> None:
        """Does what it likes."""

    def close(self) -> None:
        """Ends the writing."""


@dataclass(frozen=True, slots=True)
class ParquetSettings:
    """How files are written.

    Attributes:
        compression: Codec of the pages.
        profile: ``compatible`` is read by every release of Spark 3, Athena and DuckDB; ``compact`` is smaller, and not
            for Spark: see `choose_encodings`.
        target_file_bytes: Size at which a file is finished and the next begun.
        row_group_bytes: Decoded size of a row group.
        compression_level: Of zstd; None: 1. Levels above take twice the time for a few per cent of size.
    """

    compression: Literal["snappy", "zstd"] = "snappy"
    profile: Profile = "compatible"
    target_file_bytes: int = 128 * MIB
    row_group_bytes: int = 16 * MIB
    compression_level: int | None = None


@dataclass(frozen=True, slots=True)
class FileStats:
    """What is known of a finished file.

    Attributes:
        rows: Its rows.
        size_bytes: Its size.
        min_time: Earliest value of the time column, aware UTC; None without one.
        max_time: Latest, likewise.
        checksum: ``xxh3-128:<hex>`` of its bytes.
    """

    rows: int
    size_bytes: int
    min_time: datetime | None
    max_time: datetime | None
    checksum: str


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


class ParquetSink:
    """One file being written; not safe to use from two threads at once.

    Args:
        sink: Takes the bytes; finishing it is the caller's.
        schema: Schema of the rows; field ids and metadata are kept.
        settings: See `ParquetSettings`.
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
        self._rows = 0
        self._times: list[datetime] = []

    @property
    def size_bytes(self) -> int:
        """Bytes written so far."""
        return self._sink.tell()

    def write_batches(self, batches: list[pa.RecordBatch]) -> None:
        """Writes one row group, and empties the list: sorted rows are a copy, so the unsorted ones can go first."""
        table = pa.Table.from_batches(batches, schema=self._schema)
        batches.clear()
        if self._time_column is not None:
            table = sorted_by(table, self._time_column)
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

    def close(self, metadata: Mapping[str, str] | None = None) -> FileStats:
        """Writes the footer, with this metadata besides the other; a file without rows is whole too."""
        if self._writer is None:
            self._writer = self._open(self._schema.empty_table())
        self._writer.add_key_value_metadata({**self._metadata, **(metadata or {})})
        self._writer.close()
        return FileStats(
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

    def _open(self, sample: pa.Table) -> pq.ParquetWriter:
        if self.encodings is None:
            self.encodings = choose_encodings(sample, self._settings.profile)
        return open_writer(pa.PythonFile(self._sink, mode="w"), self._schema, self._settings, self.encodings)


def open_writer(
    sink: pa.NativeFile, schema: pa.Schema, settings: ParquetSettings, encodings: Encodings, **options: Any
) -> pq.ParquetWriter:
    """Arrow's writer, set as all our files are; ``options`` are its own, on top."""
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
        store_decimal_as_integer=True,
        **options,
    )


def time_bounds(times: pa.ChunkedArray) -> tuple[datetime, ...]:
    """The earliest and the latest of timestamps, aware UTC, to the microsecond; empty if all are null."""
    ends = pc.min_max(times)
    # as_py would import a library of time zones
    return tuple(moment_of(end.value, times.type) for end in (ends["min"], ends["max"]) if end.is_valid)


def moment_of(count: int, kind: pa.TimestampType) -> datetime:
    """The time that a timestamp's integer stands for, aware UTC, to the microsecond."""
    return EPOCH + _UNITS[kind.unit](count)


def sorted_by(table: pa.Table, column: str) -> pa.Table:
    """By time, rows of equal time in their order; untouched where that is so already."""
    times = table[column].combine_chunks()
    if len(times) < 2 or pc.all(pc.greater_equal(times[1:], times[:-1]), skip_nulls=False).as_py():  # noqa: PLR2004  # one row is sorted
        return table
    # Arrow's sort is stable
    return table.take(pc.sort_indices(times))
