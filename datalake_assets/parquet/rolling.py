"""Rows to few, large files per partition: buffered, split by partition, rolled at a target size, in bounded memory."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from datalake_assets.parquet.writer import FileStats, ParquetSettings, ParquetSink, Sink

__all__ = ["Bounds", "RollingWriter"]

FinishedT = TypeVar("FinishedT")
FinishedT_co = TypeVar("FinishedT_co", covariant=True)

MIB = 1 << 20
#: Row groups that wait for the encoder; one more blocks the reader.
WAITING = 1


class FinishedSink(Sink, Protocol[FinishedT_co]):
    """A sink that says what became of it."""

    def finish(self) -> FinishedT_co:
        """Makes what was written durable."""

    def discard(self) -> None:
        """Drops what was written."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What bounds a writer.

    Attributes:
        buffered_bytes: Decoded rows held over all partitions; beyond, the largest buffer becomes a row group.
        open_files: Files open at once; beyond, the one written to least recently is finished.
        rows: Rows of a row group.
        age_s: Seconds after which a buffer becomes a row group, full or not.
    """

    buffered_bytes: int = 96 * MIB
    open_files: int = 32
    rows: int = 1 << 20
    age_s: float = 300.0


@dataclass(slots=True)
class _Buffer:
    since: float
    batches: list[pa.RecordBatch] = field(default_factory=list)
    size_bytes: int = 0
    rows: int = 0


@dataclass(slots=True)
class _OpenFile(Generic[FinishedT]):
    sink: FinishedSink[FinishedT]
    parquet: ParquetSink


class RollingWriter(Generic[FinishedT]):
    """Writes record batches into files by partition; encodes in a thread of its own while the caller reads on.

    Args:
        schema: Schema of all batches.
        settings: How files are written.
        open_file: Begins a file of a partition.
        discard: Drops a finished file; called by `abort`.
        partition_of: Gives the partition key of every time; a plain key where all rows go to one partition.
        time_column: The column that ``partition_of`` is asked about, and that rows are sorted by.
        metadata: Key-value metadata of the files' footers.
        bounds: See `Bounds`.
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
        metadata: Mapping[str, str] | None = None,
        bounds: Bounds | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._schema, self._settings, self._bounds = schema, settings, bounds or Bounds()
        self._open_file, self._discard, self._partition_of = open_file, discard, partition_of
        self._time_column, self._metadata, self._clock = time_column, metadata, clock
        self._buffers: dict[str, _Buffer] = {}
        self._files: OrderedDict[str, _OpenFile[FinishedT]] = OrderedDict()
        self._finished: dict[str, list[tuple[FinishedT, FileStats]]] = {}
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="parquet-encoder")
        self._jobs: deque[Future[None]] = deque()
        self.bytes_written = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Takes rows; blocks while the encoder is behind.

        Raises:
            Exception: Whatever an earlier write to a file raised.
        """
        for key, rows in self._split(batch):
            buffer = self._buffers.setdefault(key, _Buffer(self._clock()))
            buffer.batches.append(rows)
            buffer.rows += rows.num_rows
            buffer.size_bytes += rows.nbytes
            if buffer.size_bytes >= self._settings.row_group_bytes or buffer.rows >= self._bounds.rows:
                self._flush(key)
        self._bound()

    def close(self) -> Mapping[str, list[tuple[FinishedT, FileStats]]]:
        """Finishes all files and returns them by partition key; partitions without rows have none."""
        for key in list(self._buffers):
            self._flush(key)
        while self._jobs:
            self._jobs.popleft().result()
        self._encoder.submit(self._finish_all).result()
        self._encoder.shutdown()
        return self._finished

    def abort(self) -> None:
        """Drops everything, finished files too; idempotent."""
        self._encoder.shutdown(cancel_futures=True)
        for file in self._files.values():
            file.sink.discard()
        for files in self._finished.values():
            for finished, _ in files:
                self._discard(finished)
        self._files.clear()
        self._finished.clear()
        self._buffers.clear()

    def write_empty(self, key: str) -> None:
        """Writes a file without rows, for a partition whose readers need a schema."""
        self._submit(lambda: self._open_only(key))

    def _split(self, batch: pa.RecordBatch) -> list[tuple[str, pa.RecordBatch]]:
        if not batch.num_rows:
            return []
        if isinstance(self._partition_of, str):
            return [(self._partition_of, batch)]
        keys = self._partition_of(batch.column(self._time_column))
        names = keys.dictionary.to_pylist()
        if len(names) == 1:
            return [(names[0], batch)]
        return [(name, batch.filter(pc.equal(keys.indices, code))) for code, name in enumerate(names)]

    def _bound(self) -> None:
        while sum(buffer.size_bytes for buffer in self._buffers.values()) > self._bounds.buffered_bytes:
            self._flush(max(self._buffers, key=lambda key: self._buffers[key].size_bytes))
        oldest = self._clock() - self._bounds.age_s
        for key in [key for key, buffer in self._buffers.items() if buffer.since <= oldest]:
            self._flush(key)

    def _flush(self, key: str) -> None:
        buffer = self._buffers.pop(key)
        table = pa.Table.from_batches(buffer.batches, schema=self._schema)
        if table.num_rows:
            self._submit(lambda: self._encode(key, table))

    def _submit(self, job: Callable[[], None]) -> None:
        while len(self._jobs) > WAITING:
            self._jobs.popleft().result()
        self._jobs.append(self._encoder.submit(job))

    # What follows runs in the encoder's thread.

    def _encode(self, key: str, table: pa.Table) -> None:
        file = self._file(key)
        before = file.parquet.size_bytes
        file.parquet.write(table)
        self.bytes_written += file.parquet.size_bytes - before
        if file.parquet.size_bytes >= self._settings.target_file_bytes:
            self._finish(key)

    def _file(self, key: str) -> _OpenFile[FinishedT]:
        if key not in self._files:
            while len(self._files) >= self._bounds.open_files:
                self._finish(next(iter(self._files)))
            sink = self._open_file(key)
            parquet = ParquetSink(
                sink, self._schema, self._settings, time_column=self._time_column, metadata=self._metadata
            )
            self._files[key] = _OpenFile(sink, parquet)
        self._files.move_to_end(key)
        return self._files[key]

    def _open_only(self, key: str) -> None:
        self._file(key)

    def _finish(self, key: str) -> None:
        file = self._files[key]
        stats = file.parquet.close()
        finished = file.sink.finish()
        del self._files[key]
        self._finished.setdefault(key, []).append((finished, stats))

    def _finish_all(self) -> None:
        for key in list(self._files):
            self._finish(key)
