"""Rows on their way into an output, in their order: gathered to row groups, which several threads make at once."""

from __future__ import annotations

import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

import pyarrow as pa

from datalake_assets.errors import CorruptLake
from datalake_assets.parquet.inputs import Input, OpenInput
from datalake_assets.parquet.page_merging import Merged, WholeFile, merger_of
from datalake_assets.parquet.rewrite_settings import RewriteSettings
from datalake_assets.parquet.schemas import Shape
from datalake_assets.parquet.segments import Encoder, Segment, SegmentFormat, sized_pieces

__all__ = ["SegmentQueue"]

#: Whose turn it is to make a row group, among all rewrites of a process: more at once than there are cores would push
#: each other's bytes out of the caches, and with fewer threads the last rewrite would leave cores idle.
_turn = threading.Semaphore(os.cpu_count() or 1)


class SegmentQueue:
    """Row groups that are being made; belongs to one thread.

    Args:
        pool: Threads that make them.
        form: How they are encoded.
        settings: How many are made at once, how large they are, and which kernel may make them.
        take: Is given each, in order.

    Attributes:
        rejected: Files that turned out to be bad on the way, with the reason; none of their rows was taken.
        detours: Files that were decoded and encoded though they were to be merged, with the reason.
        counts: Row groups that were made, by what made them: ``encoded`` all, ``merged`` those that the kernel made.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        form: SegmentFormat,
        settings: RewriteSettings,
        take: Callable[[Segment], None],
    ) -> None:
        self._pool, self._at_once, self._take = pool, settings.workers, take
        self._row_group_bytes = settings.parquet.row_group_bytes
        self._encoder = Encoder(form)
        self._merger = merger_of(self._encoder, form, settings)
        self._tables: list[pa.Table] = []
        self._files: list[WholeFile] = []
        self._held_bytes = 0
        self._jobs: deque[Future[Merged]] = deque()
        self.rejected: dict[str, str] = {}
        self.detours: dict[str, str] = {}
        self.counts: Counter[str] = Counter()

    @property
    def held_bytes(self) -> int:
        """Decoded bytes, about, of which no row group is being made yet."""
        return self._held_bytes

    @property
    def merges(self) -> bool:
        """Whether files can be merged as they are."""
        return self._merger is not None

    def add(self, table: pa.Table) -> None:
        """Takes rows."""
        self._begin(tables=True)
        for piece, size_bytes in sized_pieces(table, self._row_group_bytes):
            self._make_room(size_bytes)
            self._tables.append(piece)
            self._held_bytes += size_bytes

    def add_whole(self, piece: pa.Table) -> None:
        """Takes rows that are a row group of their own."""
        self.flush()
        self._tables.append(piece)
        self.flush()

    def look(
        self, given: Input, data: pa.Buffer, like: Shape, may_be_copied: Callable[[int, int, int], bool]
    ) -> WholeFile | None:
        """A file for `add_file`, without opening it; None if that does not do, see `Merger.look`."""
        return self._merger.look(given, data, like, may_be_copied) if self._merger is not None else None

    def whole(self, source: OpenInput) -> WholeFile | None:
        """An input for `add_file`, which may be closed then; None if its rows have to be decoded.

        Raises:
            UnreadableFile: It cannot be read, or must not be decoded.
        """
        return self._merger.whole(source) if self._merger is not None else None

    def parts(self, source: OpenInput) -> Iterator[WholeFile] | None:
        """An input for `add_file`, in parts, which has to stay open meanwhile; see `Merger.parts`."""
        return self._merger.parts(source) if self._merger is not None else None

    def add_file(self, file: WholeFile) -> None:
        """Takes all rows of a file."""
        if file.file.rows:
            self._begin(tables=False)
            self._make_room(file.weight_bytes)
            self._files.append(file)
            self._held_bytes += file.weight_bytes

    def flush(self) -> None:
        """Has a row group made of what is held."""
        tables, files, self._tables, self._files, self._held_bytes = self._tables, self._files, [], [], 0
        if tables or files:
            # while pages are copied, this thread reads, checks and writes for a third of the work, and what waits for
            # it takes memory: files and row groups that are made already
            copies = bool(files) and self._merger is not None and self._merger.copies
            self.drain(max(0, self._at_once - 2) if copies else self._at_once - 1)
            if files:
                assert self._merger is not None  # noqa: S101  for mypy: it made them
                self._jobs.append(self._pool.submit(_in_turn, partial(self._merger.merge, files)))
            else:
                self._jobs.append(self._pool.submit(_in_turn, partial(_encoded, self._encoder, tables)))

    def drain(self, keep: int = 0) -> None:
        """Takes row groups in their order until so many are being made.

        Raises:
            CorruptLake: One does not hold the rows that went in.
        """
        while len(self._jobs) > keep:
            try:
                done = self._jobs.popleft().result()
            except pa.ArrowException as error:
                reason = f"its rows cannot be encoded: {str(error).splitlines()[0]}"
                raise CorruptLake("compaction", reason) from error
            self.rejected |= done.rejected
            self.detours |= done.detours
            for segment in done.segments:
                self._take(segment)
            self.counts["merged"] += done.merged
            self.counts["encoded"] += len(done.segments)

    def close(self) -> None:
        """Waits for what is under way, and drops it."""
        for job in self._jobs:
            job.cancel()
        wait(self._jobs)
        self._jobs.clear()
        self._encoder.close()

    def _begin(self, *, tables: bool) -> None:
        if self._files if tables else self._tables:
            self.flush()

    def _make_room(self, size_bytes: int) -> None:
        if self._held_bytes + size_bytes > self._row_group_bytes:
            self.flush()


def _in_turn(make: Callable[[], Merged]) -> Merged:
    with _turn:
        return make()


def _encoded(encoder: Encoder, tables: list[pa.Table]) -> Merged:
    return Merged([encoder.encode(tables)])
