"""Row groups encoded in memory, each checked against the rows that went in.

A segment is a whole Parquet file of one row group, so that an output is always put together in one way: by copying row
groups, whether they come from an input or were encoded a moment ago. Where an output is sorted by columns, only the
keys are kept in memory: the rows themselves lie in a file meanwhile.
"""

from __future__ import annotations

import io
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from datalake_assets.core.values import Value
from datalake_assets.errors import CorruptLake
from datalake_assets.parquet.elements import encoded_schema, encoded_with, with_schema
from datalake_assets.parquet.fingerprint import Multiset, MultisetHasher, same_rows
from datalake_assets.parquet.footer import Footer, parse_footer
from datalake_assets.parquet.keys import ARROW_SCHEMA, Incompatible
from datalake_assets.parquet.row_groups import MAGIC
from datalake_assets.parquet.schemas import Shape, conform_table, same_types
from datalake_assets.parquet.thrift import BINARY, CompactReader
from datalake_assets.parquet.writer import (
    SAMPLE_ROWS,
    Encodings,
    ParquetSettings,
    choose_encodings,
    open_writer,
    sorted_by,
    time_bounds,
)

__all__ = ["Encoder", "Model", "Segment", "SegmentFormat", "model_of", "sized_pieces", "sorted_pieces"]

#: Share of wrong positives of a bloom filter that is built anew (Parquet's own default).
BLOOM_FPP = 0.05


#: The length of a footer, and the magic.
_END_BYTES = 8
#: Field of FileMetaData.
CREATED_BY = 6


def _ending(footer: bytes) -> bytes:
    return len(footer).to_bytes(4, "little") + MAGIC


class _Tailed:
    """A file's pages with another footer behind them."""

    def __init__(self, buffer: pa.Buffer, change: Callable[[bytes], bytes] | None) -> None:
        view = memoryview(buffer)
        length = int.from_bytes(view[-_END_BYTES:-4], "little")
        footer = bytes(view[-_END_BYTES - length : -_END_BYTES])
        self.footer_bytes = change(footer) if change else footer
        self._pages = view[: -_END_BYTES - length]
        self._tail = self.footer_bytes + _ending(self.footer_bytes)

    def parsed(self) -> Footer:
        return parse_footer(self._read_at, len(self._pages) + len(self._tail), where="an encoded row group")

    def metadata(self) -> pq.FileMetaData:
        """The segment's footer as Arrow reads it."""
        return pq.read_metadata(pa.BufferReader(MAGIC + self._tail))

    def _read_at(self, offset: int, length: int) -> bytes:
        end = offset + length
        size = len(self._pages)
        return bytes(self._pages[offset : min(end, size)]) + self._tail[max(0, offset - size) : max(0, end - size)]


class Model(Value, frozen=True):
    """How rows of a shape are encoded so that their file states what the inputs state.

    Attributes:
        footer: Of a file without rows.
        options: Of Arrow's writer.
        change: Puts the inputs' schema into a footer that Arrow wrote; None where it is the same.
        schema: The schema of all row groups, as it stands in their footers.
        complete: Puts all that the inputs state, their schema included, into a footer that states other things.
    """

    footer: Footer
    options: Mapping[str, Any]
    change: Callable[[bytes], bytes] | None
    schema: bytes
    complete: Callable[[bytes], bytes]

    @property
    def created_by(self) -> bytes:
        """The writer that the footers name."""
        return CompactReader(self.footer.fields[CREATED_BY][1]).binary(BINARY)


#: The model that was made last, with what it was made for, which the next group of a partition most likely has too.
_last: tuple[Shape, ParquetSettings, Model] | None = None


def model_of(shape: Shape, settings: ParquetSettings) -> Model:
    """The model of a shape.

    Raises:
        Incompatible: Encoding would change what the inputs' schemas say.
    """
    global _last  # noqa: PLW0603  replaced as a whole
    known, reason = _last, None
    if known is not None and known[1] == settings and known[0].fits(shape) and shape.fits(known[0]):
        return known[2]
    for as_integer in (True, False):
        try:
            model = _model(shape, settings, {"store_decimal_as_integer": as_integer})
        except Incompatible as error:
            reason = reason or error
        else:
            _last = shape, settings, model
            return model
    raise reason or AssertionError


def _model(shape: Shape, settings: ParquetSettings, options: Mapping[str, Any]) -> Model:
    sink = pa.BufferOutputStream()
    writer: pq.ParquetWriter = open_writer(sink, shape.schema, settings, ([], {}), **options)
    writer.close()
    buffer = sink.getvalue()
    plain = _Tailed(buffer, None)
    theirs = encoded_schema(plain.footer_bytes)
    wanted = encoded_with(theirs, shape.parquet) if shape.parquet else theirs
    kept = plain.parsed().key_value_metadata if shape.stores_arrow else {}
    key_values = {key: value for key, value in kept.items() if key == ARROW_SCHEMA}
    complete = partial(with_schema, schema=wanted, key_values=key_values, of_columns=shape.chunk_values or {})
    is_same = wanted == theirs and not shape.chunk_values and shape.stores_arrow
    change = None if is_same else complete
    tailed = _Tailed(buffer, change)
    read = pq.ParquetFile(pa.BufferReader(buffer), metadata=tailed.metadata(), arrow_extensions_enabled=True)
    if not same_types(read.schema_arrow.remove_metadata(), shape.schema):
        raise Incompatible("encoding it again would change what Arrow reads of its schema")
    return Model(tailed.parsed(), options, change, wanted, complete)


class Segment(Value, frozen=True):
    """An encoded row group.

    Attributes:
        buffer: The bytes of a Parquet file, with a footer that may be another.
        footer: The footer that counts.
        bounds: Earliest and latest time; empty without.
        metadata: The footer as Arrow reads it.
    """

    buffer: pa.Buffer
    footer: Footer
    bounds: tuple[datetime, ...]
    metadata: pq.FileMetaData

    def read_at(self, offset: int, length: int) -> memoryview:
        """So many bytes from there."""
        return memoryview(self.buffer)[offset : offset + length]

    def whole(self) -> bytes:
        """A file of its own: the pages, and the footer that counts."""
        return b"".join((self.read_at(0, self.footer.end_of_data), self.footer.data, _ending(self.footer.data)))


class SegmentFormat(Value, frozen=True):
    """How row groups are encoded.

    Attributes:
        schema: Of all of them.
        model: What becomes of their footers.
        settings: Codec and profile.
        time_column: Rows are sorted by it, unless they come sorted otherwise; None keeps their order.
        sorting: Columns that rows are sorted by already, noted in the footer.
        bloom_columns: Columns that get bloom filters.
        verify: Decode what was encoded and compare the values, not only their number.
    """

    schema: pa.Schema
    model: Model
    settings: ParquetSettings
    time_column: str | None = None
    sorting: tuple[str, ...] = ()
    bloom_columns: frozenset[str] = frozenset()
    verify: bool = True


class Encoder:
    """Encodes segments; safe to use from several threads.

    Args:
        form: How.
    """

    def __init__(self, form: SegmentFormat) -> None:
        self._form = form
        self._encodings: Encodings | None = None
        self._hasher: MultisetHasher | None = None
        self._lock = threading.Lock()

    def encode(self, tables: list[pa.Table]) -> Segment:
        """Encodes rows as one row group.

        Args:
            tables: The rows, of one schema; the list is taken over, so that they can go early.

        Raises:
            CorruptLake: What was encoded does not decode to the rows that went in.
        """
        form = self._form
        table = conform_table(pa.concat_tables(tables), form.schema)
        tables.clear()
        ordered, hashed = table, None
        if form.time_column is not None and not form.sorting:
            ordered = sorted_by(table, form.time_column)
            if form.verify and ordered is not table:
                hashed = self._hash(table)
        del table
        bounds = time_bounds(ordered[form.time_column]) if form.time_column is not None else ()
        buffer = self._encoded(ordered)
        tailed = _Tailed(buffer, form.model.change)
        metadata = self._checked(buffer, tailed, ordered, hashed)
        return Segment(buffer, tailed.parsed(), bounds, metadata)

    def adopted(self, buffer: pa.Buffer, *, bounds: tuple[datetime, ...]) -> Segment:
        """A segment of a file of one row group that somebody else has made; compares nothing.

        Args:
            buffer: Its bytes.
            bounds: Earliest and latest time; empty without.
        """
        tailed = _Tailed(buffer, self._form.model.complete)
        return Segment(buffer, tailed.parsed(), bounds, tailed.metadata())

    def close(self) -> None:
        """Ends it."""
        if self._hasher:
            self._hasher.close()

    def _encoded(self, table: pa.Table) -> pa.Buffer:
        encodings = self._encodings or choose_encodings(table, self._form.settings.profile)
        if table.num_rows >= SAMPLE_ROWS:
            self._encodings = encodings
        sink = pa.BufferOutputStream()
        options = dict(self._form.model.options)
        if self._form.bloom_columns:
            options["bloom_filter_options"] = _bloom_options(table, self._form.bloom_columns)
        if self._form.sorting:
            options["sorting_columns"] = pq.SortingColumn.from_ordering(
                table.schema, [(name, "ascending") for name in self._form.sorting], null_placement="at_end"
            )
        writer = open_writer(sink, self._form.schema, self._form.settings, encodings, **options)
        writer.write_table(table, row_group_size=max(table.num_rows, 1))
        writer.close()
        return sink.getvalue()

    def _checked(
        self, buffer: pa.Buffer, tailed: _Tailed, expected: pa.Table, hashed: Multiset | None
    ) -> pq.FileMetaData:
        """Compares what was encoded with the rows that went in: one by one, or by hashes where they came unsorted."""
        metadata = tailed.metadata() if self._form.model.change else None
        source = pa.BufferReader(buffer)
        parquet = pq.ParquetFile(source, metadata=metadata, pre_buffer=False, arrow_extensions_enabled=True)
        if parquet.metadata.num_rows != expected.num_rows:
            raise CorruptLake(
                "compaction",
                f"encoded {expected.num_rows} rows, which read as {parquet.metadata.num_rows}; nothing was committed",
            )
        if self._form.verify:
            self._compare(parquet.reader.read_all(use_threads=False), expected, hashed)
        return parquet.metadata

    def _compare(self, found: pa.Table, expected: pa.Table, hashed: Multiset | None) -> None:
        if not found.schema.equals(expected.schema):
            raise CorruptLake("compaction", f"encoded {expected.schema}, which reads as {found.schema}")
        if hashed is None and same_rows(expected, found):
            return
        wanted, read = hashed or self._hash(expected), self._hash(found)
        if wanted != read:
            raise CorruptLake("compaction", f"encoded {wanted}, which reads as {read}; nothing was committed")

    def _hash(self, table: pa.Table) -> Multiset:
        """Hashes rows whose order may differ; loads DuckDB, which few compactions need."""
        with self._lock:
            self._hasher = self._hasher or MultisetHasher(self._form.schema)
        return self._hasher.of(table)


def sized_pieces(table: pa.Table, limit_bytes: int) -> Iterator[tuple[pa.Table, int]]:
    """The rows of a table in pieces of about so many bytes, or of one row, and how many bytes each takes.

    Of a table whose buffers take no more as a whole, this is what they take, which is known at once; to find out how
    much of them a table uses takes Arrow as long as to decode a column.
    """
    if (size_bytes := table.get_total_buffer_size()) <= limit_bytes:
        if table.num_rows:
            yield table, max(size_bytes, 1)
        return
    size_bytes = max(table.nbytes, 1)
    at_once = max(1, limit_bytes * table.num_rows // size_bytes)
    for start in range(0, table.num_rows, at_once):
        piece = table.slice(start, at_once)
        yield piece, size_bytes * piece.num_rows // table.num_rows


def _bloom_options(table: pa.Table, columns: Sequence[str] | frozenset[str]) -> dict[str, dict[str, float]]:
    return {path: {"ndv": max(_distinct(table, path), 1), "fpp": BLOOM_FPP} for path in columns}


def _distinct(table: pa.Table, path: str) -> int:
    import pyarrow.compute as pc  # noqa: PLC0415  the kernel merges without

    if path not in table.schema.names:
        return int(table.num_rows)
    try:
        return int(pc.count_distinct(table[path]).as_py())
    except pa.ArrowNotImplementedError:
        return int(table.num_rows)


#: Decoded bytes of a sorted run that are read at once.
_READ_BYTES = 256 << 10


def sorted_pieces(
    tables: Iterable[pa.Table], schema: pa.Schema, by: Sequence[str], *, piece_bytes: int, scratch: str | None = None
) -> Iterator[pa.Table]:
    """All rows in ascending order of some columns, nulls last, in pieces of about ``piece_bytes``; stable.

    A merge sort outside of memory: runs of ``piece_bytes`` are sorted and written to a temporary file, uncompressed,
    which is gone when the iteration ends; then each is read once, from its start to its end. Holds the sort keys, an
    index of 8 bytes per row, one or two pieces, and a quarter MB of each run in memory.

    Args:
        tables: The rows, of this schema.
        schema: Theirs.
        by: Columns to sort by; they must be of types that Arrow can order.
        piece_bytes: Decoded size of a piece, and of a run.
        scratch: Folder of the temporary file; None: the system's.
    """
    with tempfile.TemporaryFile(prefix="datalake-sort-", dir=scratch) as file:
        keys, runs, total_bytes = [_sort_keys(schema.empty_table(), by)], list[_Run](), 0
        for run in _sorted_runs(tables, by, piece_bytes):
            keys.append(_sort_keys(run, by))
            runs.append(_Run(file, run))
            total_bytes += run.nbytes
            del run
        # runs are in the order that their rows came in, and sorting is stable: of each, rows are taken front to back
        order = _order(pa.concat_tables(keys), by)
        keys.clear()
        count = max(1, int(len(order) * piece_bytes / max(total_bytes, 1)))
        ends = np.cumsum([run.rows for run in runs], dtype=np.int64)
        for start in range(0, len(order), count):
            sources = np.searchsorted(ends, order.slice(start, count).to_numpy(), side="right")
            taken = [run.read(many) for run, many in zip(runs, np.bincount(sources, minlength=len(runs)), strict=True)]
            place = np.empty(len(sources), np.int64)
            place[np.argsort(sources, kind="stable")] = np.arange(len(sources))
            yield pa.concat_tables(taken).combine_chunks().take(pa.array(place))


def _order(keys: pa.Table, by: Sequence[str]) -> pa.Array:
    import pyarrow.compute as pc  # noqa: PLC0415  the kernel merges without

    return pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in by])


def _sort_keys(table: pa.Table, by: Sequence[str]) -> pa.Table:
    """The columns to sort by, categories as the values that they are."""
    columns = [table[name] for name in by]
    plain = [column.cast(column.type.value_type) if pt.is_dictionary(column.type) else column for column in columns]
    return pa.table(plain, names=list(by))


def _sorted_runs(tables: Iterable[pa.Table], by: Sequence[str], run_bytes: int) -> Iterator[pa.Table]:
    """The same rows in sorted tables of one chunk, of about so many bytes: Arrow has no text of more than 2 GiB."""
    held: list[pa.Table] = []
    held_bytes = 0

    def flush() -> pa.Table:
        nonlocal held_bytes
        run = pa.concat_tables(held).combine_chunks()
        held.clear()
        held_bytes = 0
        return run.take(_order(_sort_keys(run, by), by))

    for table in tables:
        for piece, size_bytes in sized_pieces(table, run_bytes):
            if held and held_bytes + size_bytes > run_bytes:
                yield flush()
            held.append(piece)
            held_bytes += size_bytes
    if held:
        yield flush()


class _Run:
    """Sorted rows in a file that others lie in, too.

    Args:
        file: Is written to its end.
        table: The rows.

    Attributes:
        rows: How many there are.
    """

    def __init__(self, file: IO[bytes], table: pa.Table) -> None:
        self.rows = table.num_rows
        start = file.seek(0, os.SEEK_END)
        at_once = max(1, _READ_BYTES * table.num_rows // max(table.nbytes, 1))
        # a stream, since in Arrow's files all batches share the dictionaries of the first
        with pa.ipc.new_stream(pa.PythonFile(file, "w"), table.schema) as writer:
            writer.write_table(table, max_chunksize=at_once)
        file.flush()
        self._section = _Section(file.fileno(), start)
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._left = table.schema.empty_table()

    def read(self, rows: int) -> pa.Table:
        """The next so many rows."""
        if self._batches is None:
            self._batches = iter(pa.ipc.open_stream(pa.PythonFile(self._section, "r")))
        parts, missing = [self._left], rows - self._left.num_rows
        while missing > 0:
            parts.append(pa.Table.from_batches([next(self._batches)]))
            missing -= parts[-1].num_rows
        held = pa.concat_tables(parts)
        self._left = held.slice(rows)
        return held.slice(0, rows)


class _Section(io.RawIOBase):
    """A file from a place on, for a reader among others of the same file."""

    def __init__(self, descriptor: int, start: int) -> None:
        self._descriptor, self._at = descriptor, start

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        read = os.preadv(self._descriptor, [into], self._at)
        self._at += read
        return read
