"""Rows to few, large files per partition: buffered, split by partition, rolled at a target size, in bounded memory."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeAlias, TypeVar

import msgspec
import numpy as np
import pyarrow as pa

from datalake_assets.core.arrow_arrays import numbers_in, of_numbers
from datalake_assets.core.files import DataFile
from datalake_assets.parquet.sinks import FinishedSink
from datalake_assets.parquet.writer import SAMPLE_ROWS, Encodings, ParquetFileWriter, ParquetSettings

__all__ = ["Bounds", "FileBeside", "RollingWriter"]

FinishedT = TypeVar("FinishedT")
#: A partition, and what the rows of a file have in common within it.
_Place: TypeAlias = tuple[str, str]

MIB = 1 << 20
#: Row groups that wait for the encoder; one more blocks the reader.
WAITING = 1
#: Small batches are joined this many at a time: each costs kilobytes of bookkeeping that its size does not show.
JOINED_BATCHES = 128
SMALL_BATCH_BYTES = 64 << 10
#: Row groups after which memory that is free goes back to the system. What an open file keeps of each lies among larger
#: blocks that are free by then: without it, an export of 2 GB held 75 MiB more at its end than at its beginning.
RELEASED_ROW_GROUPS = 4


@dataclass(frozen=True, slots=True)
class Bounds:
    """What bounds a writer.

    Attributes:
        buffered_bytes: Decoded rows held, over all partitions. Half of it is for buffers: beyond, the largest becomes a
            row group, however small. The other half is for row groups that wait for the encoder: beyond, the reader
            waits.
        open_files: Files open at once; beyond, the one written to least recently is finished.
        buffers: Files for which rows wait; beyond, the largest buffer becomes a row group, however small.
        rows: Rows of a row group.
        age_s: Seconds after which a buffer becomes a row group, full or not.
    """

    buffered_bytes: int = 64 * MIB
    open_files: int = 32
    buffers: int = 1024
    rows: int = 1 << 20
    age_s: float = 300.0


@dataclass(slots=True)
class _Buffer:
    since: float
    batches: list[pa.RecordBatch] = field(default_factory=list)
    size_bytes: int = 0
    rows: int = 0
    joined: int = 0  # batches at the front that are done with

    def add(self, rows: pa.RecordBatch) -> None:
        """Takes rows."""
        self.batches.append(rows)
        self.rows += rows.num_rows
        self.size_bytes += rows.nbytes
        if len(self.batches) - self.joined >= JOINED_BATCHES:
            self._join()

    def _join(self) -> None:
        loose = self.batches[self.joined :]
        if sum(batch.nbytes for batch in loose) < SMALL_BATCH_BYTES * len(loose):
            self.batches[self.joined :] = [pa.concat_batches(loose)]
        self.joined = len(self.batches)


@dataclass(slots=True)
class _OpenFile(Generic[FinishedT]):
    sink: FinishedSink[FinishedT]
    parquet: ParquetFileWriter
    beside: FileBeside | None = None


class FileBeside(Protocol):
    """A second file of the same rows."""

    def write(self, rows: pa.RecordBatch) -> None:
        """Appends rows."""

    def finish(self) -> None:
        """Ends it."""

    def discard(self) -> None:
        """Gives it up."""


class RollingWriter(Generic[FinishedT]):
    """Writes record batches into files by partition; encodes in a thread of its own while the caller reads on.

    What is little enough to be encoded at the end alone is encoded by whoever closes.

    Args:
        schema: Schema of all batches.
        settings: How files are written.
        open_file: Begins a file of a partition.
        discard: Drops a finished file; called by `abort`.
        partition_of: Gives the partition key of every time; a plain key where all rows go to one partition.
        time_column: The column that ``partition_of`` is asked about, and that rows are sorted by.
        part_of: Gives what rows of one file have to have in common within a partition, as a text for each row; None if
            that is nothing. Each finished file says its text.
        beside: Begins a second file of the same rows, of another format, by partition key and the name of the first.
        metadata: Gives the key-value metadata of a file's footer by partition key, when the file is finished; called
            in the encoder's thread, if there is one.
        bounds: Limits of memory and open files; by default also wide enough for two row groups.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        schema: pa.Schema,
        settings: ParquetSettings,
        *,
        open_file: Callable[[str], FinishedSink[FinishedT]],
        discard: Callable[[FinishedT], None],
        partition_of: Callable[[pa.Array], pa.DictionaryArray] | str,
        time_column: str | None = None,
        part_of: Callable[[pa.RecordBatch], pa.DictionaryArray] | None = None,
        beside: Callable[[str, str], FileBeside] | None = None,
        metadata: Callable[[str], Mapping[str, str]] | None = None,
        bounds: Bounds | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._schema, self._settings = schema, settings
        self._bounds = bounds or Bounds(buffered_bytes=max(Bounds().buffered_bytes, 2 * settings.row_group_bytes))
        self._open_file, self._discard, self._partition_of = open_file, discard, partition_of
        self._time_column, self._metadata, self._clock = time_column, metadata, clock
        self._part_of, self._beside = part_of, beside
        self._buffers: dict[_Place, _Buffer] = {}
        self._files: OrderedDict[_Place, _OpenFile[FinishedT]] = OrderedDict()
        self._finished: dict[str, list[tuple[FinishedT, DataFile]]] = {}
        self._encodings: Encodings | None = None
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="parquet-encoder")
        self._jobs: deque[tuple[Future[None], int]] = deque()
        self._has_all = self._has_thread = False
        self._buffered_bytes = self._waiting_bytes = self._row_groups = 0
        self.bytes_written = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Takes rows; blocks while the encoder is behind.

        Raises:
            ValueError: A row has no partition.
            Exception: Whatever an earlier write to a file raised.
        """
        for key, of_partition in self._split(batch):
            for part, rows in [("", of_partition)] if self._part_of is None else _taken(of_partition, self._part_of):
                self._buffer((key, part), rows)
        self._bound()

    def _buffer(self, place: _Place, rows: pa.RecordBatch) -> None:
        buffer = self._buffers.setdefault(place, _Buffer(self._clock()))
        buffer.add(rows)
        self._buffered_bytes += rows.nbytes
        if buffer.size_bytes >= self._settings.row_group_bytes or buffer.rows >= self._bounds.rows:
            self._flush(place)
        elif len(self._buffers) > self._bounds.buffers:
            self._flush(self._largest())

    def _largest(self) -> _Place:
        return max(self._buffers, key=lambda place: self._buffers[place].size_bytes)

    def close(self) -> Mapping[str, list[tuple[FinishedT, DataFile]]]:
        """Finishes all files and returns them by partition key; partitions without rows have none."""
        self._has_all = True
        for place in list(self._buffers):
            self._flush(place)
        while self._jobs:
            self._await_oldest()
        if self._has_thread:
            self._encoder.submit(self._finish_all).result()
        else:
            self._finish_all()
        self._encoder.shutdown()
        return self._finished

    def abort(self) -> None:
        """Drops everything, finished files too; idempotent."""
        self._encoder.shutdown(cancel_futures=True)
        for file in self._files.values():
            file.parquet.abandon()
            file.sink.discard()
            if file.beside is not None:
                file.beside.discard()
        for files in self._finished.values():
            for finished, _ in files:
                self._discard(finished)
        self._files.clear()
        self._finished.clear()
        self._buffers.clear()

    def write_empty(self, key: str) -> None:
        """Writes a file without rows, for a partition whose readers need a schema."""
        self._submit(lambda: self._open_only((key, "")), 0)

    def _split(self, batch: pa.RecordBatch) -> list[tuple[str, pa.RecordBatch]]:
        if not batch.num_rows:
            return []
        if isinstance(self._partition_of, str):
            return [(self._partition_of, batch)]
        keys = self._partition_of(batch.column(self._time_column))
        if keys.null_count:
            raise ValueError(f"{keys.null_count} rows have no {self._time_column} and thus no partition")
        return _taken(batch, lambda _: keys)

    def _bound(self) -> None:
        while self._buffered_bytes > self._bounds.buffered_bytes // 2:
            self._flush(self._largest())
        while self._jobs and self._waiting_bytes > self._bounds.buffered_bytes // 2:
            self._await_oldest()
        oldest = self._clock() - self._bounds.age_s
        for place in [place for place, buffer in self._buffers.items() if buffer.since <= oldest]:
            self._flush(place)

    def _flush(self, place: _Place) -> None:
        buffer = self._buffers.pop(place)
        self._buffered_bytes -= buffer.size_bytes
        self._submit(lambda: self._encode(place, buffer), buffer.size_bytes)

    def _submit(self, job: Callable[[], None], size_bytes: int) -> None:
        if self._has_all and not self._has_thread:  # nobody reads on meanwhile, and a thread takes a millisecond
            job()
            return
        self._has_thread = True
        while self._jobs and (len(self._jobs) > WAITING or self._jobs[0][0].done()):
            self._await_oldest()
        self._jobs.append((self._encoder.submit(job), size_bytes))
        self._waiting_bytes += size_bytes

    def _await_oldest(self) -> None:
        job, size_bytes = self._jobs.popleft()
        job.result()
        self._waiting_bytes -= size_bytes

    # What follows runs in the encoder's thread, if there is one.

    def _encode(self, place: _Place, buffer: _Buffer) -> None:
        file = self._file(place)
        before = file.parquet.size_bytes
        if file.beside is not None:
            for rows in buffer.batches:
                file.beside.write(rows)
        file.parquet.write_batches(buffer.batches)
        self._row_groups += 1
        if self._row_groups % RELEASED_ROW_GROUPS == 0:
            pa.default_memory_pool().release_unused()
        if buffer.rows >= SAMPLE_ROWS:
            self._encodings = file.parquet.encodings  # what suits one partition suits the next
        self.bytes_written += file.parquet.size_bytes - before
        if file.parquet.size_bytes >= self._settings.target_file_bytes:
            self._finish(place)

    def _file(self, place: _Place) -> _OpenFile[FinishedT]:
        if place not in self._files:
            while len(self._files) >= self._bounds.open_files:
                self._finish(next(iter(self._files)))
            sink = self._open_file(place[0])
            parquet = ParquetFileWriter(
                sink,
                self._schema,
                self._settings,
                time_column=self._time_column,
                encodings=self._encodings,
            )
            beside = self._beside(place[0], sink.name) if self._beside is not None else None
            self._files[place] = _OpenFile(sink, parquet, beside)
        self._files.move_to_end(place)
        return self._files[place]

    def _open_only(self, place: _Place) -> None:
        self._file(place)

    def _finish(self, place: _Place) -> None:
        file = self._files[place]
        key, part = place
        written = file.parquet.close(self._metadata(key) if self._metadata else None, name=file.sink.name)
        if file.beside is not None:
            file.beside.finish()
        finished = file.sink.finish()
        del self._files[place]
        self._finished.setdefault(key, []).append((finished, msgspec.structs.replace(written, part=part)))

    def _finish_all(self) -> None:
        for place in list(self._files):
            self._finish(place)


def _taken(
    batch: pa.RecordBatch, names_of: Callable[[pa.RecordBatch], pa.DictionaryArray]
) -> list[tuple[str, pa.RecordBatch]]:
    """The rows by name, in their order."""
    named = names_of(batch)
    names = named.dictionary.to_pylist()
    if len(names) == 1:
        return [(names[0], batch)]
    codes = numbers_in(named.indices)
    if len(names) <= 1 << 16:
        codes = codes.astype(np.uint16)  # numpy sorts these by their digits, in a tenth of the time
    rows = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes, minlength=len(names)))[:-1])
    # Copies, not slices: the rows of a quiet partition would keep whole batches in memory.
    return [(name, batch.take(of_numbers(which))) for name, which in zip(names, rows, strict=True) if len(which)]
