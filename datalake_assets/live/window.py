"""A feed's present: its last rows in memory, each with what became of it, bounded by age, rows and bytes.

Rows come by the pass that lands them (`datalake_assets.lake.watching`), before they are committed: they are *seen*.
Once their pass has ended well they are *landed*. Where nobody lands here, a row is landed when the lake's own position
is beyond it. A pass that failed may have committed some of its rows: all that it showed is taken back when the next
pass reads them again, and a row that the next pass finds in the lake is one that landed, not one that was sent twice.
So no row is shown twice, or counted twice, for a fault of ours.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datalake_assets.core.batches import RejectedRow
from datalake_assets.core.position import Ints, Runs, SourcePartition, merged_runs, runs_of, within
from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.live.chunks import (
    CHUNK_ROWS,
    NO_TIME,
    Chunk,
    Mask,
    owned,
    runs_of_chunks,
    tables_together,
    times_of,
)
from datalake_assets.live.seconds import LOOKED_BACK_S, Figures, Totals
from datalake_assets.parquet.fingerprint import row_hashes
from datalake_assets.policies import MIB, UniqueRule

__all__ = ["LiveWindow", "LiveWindows", "RefusedRow", "WindowView"]

#: Chunks that are joined at once.
_JOINED = 16
#: Rows of quarantine that are remembered, and characters of each.
_REFUSED, _RAW = 500, 600
#: Runs of numbers of a pass that are remembered, by source partition, in case that it fails.
_MOST_RUNS = 10_000
_US = 1_000_000


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that went to quarantine.

    Attributes:
        at: When, in seconds since 1970.
        reason: Why.
        position: Where it stood in the source.
        raw: The row as text, or how it begins.
    """

    at: float
    reason: str
    position: str
    raw: str


@dataclass(frozen=True, slots=True)
class WindowView:
    """The window at one moment; it changes no more.

    Attributes:
        rows: Rows in it.
        size_bytes: What they take of memory.
        totals: Rows since the view began.
        newest_time: Event time of the newest row since then, in seconds since 1970; None without one.
        newest_seen_at: When the last row came, likewise.
        refused: Rows of quarantine, the newest last.
        error: Why the last pass failed; empty if it did not.
    """

    rows: int
    size_bytes: int
    totals: Totals
    newest_time: float | None
    newest_seen_at: float | None
    refused: tuple[RefusedRow, ...]
    error: str


class LiveWindow:
    """A feed's present. Implements `PassWatch`; safe to read from other threads.

    Args:
        feed: The feed.
        lands: Whether the passes that are shown to it commit what they accept.
        clock: Seconds since 1970.

    Attributes:
        figures: What came by the second; read it within `locked`.
        began_at: When it was made.
    """

    def __init__(self, feed: Feed, *, lands: bool = True, clock: Callable[[], float] = time.time) -> None:
        self.feed, self._lands, self._clock = feed, lands, clock
        self._policy = feed.live
        self.figures = Figures(min(int(self._policy.minutes * 60), LOOKED_BACK_S) + 1)
        self.began_at = clock()
        self.locked = threading.RLock()
        self._settled: deque[Chunk] = deque()
        self._pending: deque[Chunk] = deque()
        self._rows = self._bytes = 0
        self._newest_time = NO_TIME
        self._newest_seen_at: float | None = None
        self._codes: dict[SourcePartition, int] = {}
        self._watermarks: dict[int, int] = {}
        self._watermarks_before: dict[int, int] = {}
        self._accepted, self._again = _Numbers(), _Numbers()
        self._unnumbered = Totals()
        self._gone = 0
        self._unique = _unique_columns(feed)
        self._counts: list[dict[int, int]] = [{} for _ in self._unique]
        self._refused: deque[RefusedRow] = deque(maxlen=_REFUSED)
        self._error = ""

    def begin(self) -> LiveWindow:
        """A pass begins: what one that failed has shown is taken back, and comes again."""
        with self.locked:
            self._again.come_again(self._accepted)
            self._accepted = _Numbers()
            if self._pending or self._gone:
                totals, taken_back = self.figures.totals, self._unnumbered
                totals.seen -= taken_back.seen
                totals.late -= taken_back.late
                totals.duplicate -= taken_back.duplicate
                self._unnumbered = Totals()
                for chunk in self._pending:
                    self._forget(chunk)
                self._pending.clear()
                self._watermarks, self._gone = dict(self._watermarks_before), 0
            self._watermarks_before = dict(self._watermarks)
        return self

    def accepted(self, rows: pa.RecordBatch, partitions: Ints | None, offsets: Ints | None) -> None:
        """Implements `PassWatch`."""
        with self.locked:
            self._error = ""  # what failed before does not any more
            chunk = self._chunk(rows, partitions, offsets)
            fresh = ~self._again.taken(chunk)
            self._count(chunk, fresh)
            if self._lands:
                self._accepted.add(chunk)
                self._keep(self._pending, chunk)
            else:  # what is looked at is not taken back, nor looked at again
                self._keep(self._settled, chunk)
                self._join()

    def known(self, rows: pa.RecordBatch, partitions: Ints | None, offsets: Ints | None) -> None:
        """Implements `PassWatch`: what a pass has committed that failed is landed; all else was sent again."""
        with self.locked:
            count = rows.num_rows
            if partitions is not None and self._again:
                chunk = self._chunk(rows, partitions, offsets)
                ours = self._again.taken(chunk, for_good=True)
                if ours.any():
                    kept = self._chunk(rows.filter(pa.array(ours)), chunk.partitions[ours], chunk.offsets[ours])
                    kept.landed[:] = True
                    self._mark_duplicates(kept)
                    self.figures.totals.landed += len(kept)
                    self._keep(self._settled, kept)
                    count -= len(kept)
            self.figures.totals.known += count
            self.figures.at(self._clock()).known += count

    def quarantined(self, rows: Sequence[RejectedRow]) -> None:
        """Implements `PassWatch`; a row that is refused again is the same row."""
        now = self._clock()
        with self.locked:
            there = {each.position for each in self._refused if each.position}
            new = [each for each in rows if not each.position or each.position not in there]
            for each in new:
                raw = each.raw[:_RAW].decode("utf-8", errors="backslashreplace")
                self._refused.append(RefusedRow(now, each.reason[:_RAW], each.position, raw))
            self.figures.totals.quarantined += len(new)
            self.figures.at(now).quarantined += len(new)

    def ended(self, error: BaseException | None) -> None:
        """Implements `PassWatch`."""
        with self.locked:
            self._error = "" if error is None else " ".join(str(error).split()) or type(error).__name__
            if error is not None:
                return
            self._accepted, self._again = _Numbers(), _Numbers()
            self._unnumbered = Totals()
            self.figures.totals.landed += self._gone
            self._gone = 0
            for chunk in self._pending:
                self._land(chunk, ~chunk.landed)
                self._settled.append(chunk)
            self._pending.clear()
            self._join()

    def failed(self, reason: str) -> None:
        """Its source cannot be read; cleared by the next pass that ends well."""
        with self.locked:
            self._error = " ".join(reason.split())

    def landed_before(self, next_offsets: Mapping[SourcePartition, int]) -> None:
        """The lake has all rows below these offsets, by source partition: whoever lands them is another."""
        with self.locked:
            for chunk in self._settled:
                which = np.zeros(len(chunk), dtype=np.bool_)
                for partition, offset in next_offsets.items():
                    which |= (chunk.partitions == self._codes.get(partition, -2)) & (chunk.offsets < offset)
                self._land(chunk, which & ~chunk.landed)

    def numbered_anew(self) -> None:
        """The source was created anew: what the lake says of its numbers is not about rows that came until now."""
        with self.locked:
            for chunk in self._settled:
                chunk.partitions[:] = -1

    def view(self) -> WindowView:
        """The window now; what is too old goes."""
        with self.locked:
            self._prune()
            newest = None if self._newest_time == NO_TIME else self._newest_time / _US
            totals = Totals(**{each.name: getattr(self.figures.totals, each.name) for each in fields(Totals)})
            refused = tuple(self._refused)
            return WindowView(self._rows, self._bytes, totals, newest, self._newest_seen_at, refused, self._error)

    def last(self, count: int) -> pa.Table | None:
        """The last rows that came, with their marks, in the order in which they came; None without any."""
        with self.locked:
            chunks: list[Chunk] = []
            for chunk in reversed([*self._settled, *self._pending]):
                wanted = count - sum(map(len, chunks))
                if wanted <= 0:
                    break
                chunks.append(chunk if len(chunk) <= wanted else chunk.after(len(chunk) - wanted))
            tables = [each.table() for each in reversed(chunks) if len(each)]
        return tables_together(tables) if tables else None

    def table(self) -> pa.Table | None:
        """All rows with their marks, in the order in which they came; None without any."""
        with self.locked:
            self._prune()
            tables = [each.table() for each in (*self._settled, *self._pending) if len(each)]
        return tables_together(tables) if tables else None

    def _chunk(self, rows: pa.RecordBatch, partitions: Ints | None, offsets: Ints | None) -> Chunk:
        count = rows.num_rows
        none = np.full(count, -1, dtype=np.int64)
        return Chunk(
            rows=owned(rows),
            times=times_of(rows, self.feed.row_time),
            seen_at=np.full(count, int(self._clock() * _US), dtype=np.int64),
            landed=np.zeros(count, dtype=np.bool_),
            late=np.zeros(count, dtype=np.bool_),
            duplicate=np.zeros(count, dtype=np.bool_),
            partitions=none if partitions is None else self._codes_of(partitions),
            offsets=none if offsets is None else offsets,
            keys=self._hashes(rows),
        )

    def _codes_of(self, partitions: Ints) -> Ints:
        """Source partitions by small numbers: some sources name them."""
        if not partitions.dtype.hasobject and len(partitions) and (partitions == partitions[0]).all():
            only = self._codes.setdefault(int(partitions[0]), len(self._codes))
            return np.full(len(partitions), only, dtype=np.int64)
        codes = [self._codes.setdefault(each, len(self._codes)) for each in partitions.tolist()]
        return np.array(codes, dtype=np.int64)

    def _hashes(self, rows: pa.RecordBatch) -> tuple[npt.NDArray[np.uint64], ...]:
        """Hashes of the values that have to be unique; 0 where one of them is null, as `repeats_query` has it."""
        found = []
        for columns in self._unique:
            if not set(columns) <= set(rows.schema.names):
                found.append(np.zeros(rows.num_rows, dtype=np.uint64))
                continue
            chosen = rows.select(list(columns))
            hashes = np.asarray(row_hashes(chosen)).astype(np.uint64, copy=True)
            for column in chosen.columns:
                hashes[np.asarray(pc.is_null(column))] = 0
            found.append(hashes)
        return tuple(found)

    def _count(self, chunk: Chunk, fresh: Mask) -> None:
        """Marks what is late or was there, and counts what is seen for the first time."""
        self._mark_late(chunk)
        self._mark_duplicates(chunk)
        now = self._clock()
        second, totals = self.figures.at(now), self.figures.totals
        is_numbered = bool(len(chunk)) and chunk.partitions[0] >= 0
        for each in (second, totals) if is_numbered else (second, totals, self._unnumbered):
            each.seen += int(fresh.sum())
            each.late += int((chunk.late & fresh).sum())
            each.duplicate += int((chunk.duplicate & fresh).sum())
        second.arrivals += 1
        timed = fresh & (chunk.times != NO_TIME)
        second.seen_ages.add(now - chunk.times[timed] / _US)
        if len(chunk):
            self._newest_seen_at = now
            self._newest_time = max(self._newest_time, int(chunk.times.max()))

    def _mark_duplicates(self, chunk: Chunk) -> None:
        for keys, counts in zip(chunk.keys, self._counts, strict=True):
            for index, key in enumerate(keys.tolist()):
                if key:
                    seen = counts.get(key, 0)
                    counts[key] = seen + 1
                    chunk.duplicate[index] |= seen > 0

    def _mark_late(self, chunk: Chunk) -> None:
        after_us = int(self._policy.late_after.total_seconds() * _US)
        for partition in np.unique(chunk.partitions).tolist():
            of_it = np.flatnonzero(chunk.partitions == partition)
            times = chunk.times[of_it]
            before = np.maximum.accumulate(np.r_[self._watermarks.get(partition, NO_TIME), times])
            newest = before[:-1]
            chunk.late[of_it] = (times != NO_TIME) & (newest != NO_TIME) & (times < newest - after_us)
            self._watermarks[partition] = int(before[-1])

    def _land(self, chunk: Chunk, which: Mask) -> None:
        if not which.any():
            return
        now = self._clock()
        chunk.landed[which] = True
        second = self.figures.at(now)
        for each in (second, self.figures.totals):
            each.landed += int(which.sum())
        second.landed_ages.add(now - chunk.times[which & (chunk.times != NO_TIME)] / _US)

    def _keep(self, where: deque[Chunk], chunk: Chunk) -> None:
        where.append(chunk)
        self._rows, self._bytes = self._rows + len(chunk), self._bytes + chunk.size_bytes
        self._prune()

    def _forget(self, chunk: Chunk) -> None:
        self._rows, self._bytes = self._rows - len(chunk), self._bytes - chunk.size_bytes
        for keys, counts in zip(chunk.keys, self._counts, strict=True):
            for key in keys.tolist():
                if key and (left := counts.get(key, 0) - 1) > 0:
                    counts[key] = left
                else:
                    counts.pop(key, None)

    def _prune(self) -> None:
        """Lets go of what is too old or too much, the oldest first."""
        now = self._clock()
        oldest = int((now - self._policy.minutes * 60) * _US)
        most_bytes = self._policy.max_mb * MIB
        for chunks in (self._settled, self._pending):
            while chunks:
                first = chunks[0]
                gone = int(np.searchsorted(first.seen_at, oldest))
                gone = max(gone, self._rows - self._policy.max_rows)
                if self._bytes > most_bytes:
                    gone = max(gone, -(-(self._bytes - most_bytes) * len(first) // max(first.size_bytes, 1)))
                if gone <= 0:
                    break
                chunks.popleft()
                self._forget(first)
                before = self._rows
                if gone < len(first):
                    self._put_back(chunks, first, gone)
                if chunks is self._pending:
                    self._gone += len(first) - (self._rows - before)
        while self._refused and self._refused[0].at < oldest / _US:
            self._refused.popleft()

    def _put_back(self, chunks: deque[Chunk], first: Chunk, gone: int) -> None:
        # of a large chunk more than has to: it is not copied for each row that leaves it
        rest = first.after(max(gone, len(first) // 8 if len(first) > CHUNK_ROWS // 8 else 0))
        if not len(rest):
            return
        for keys, counts in zip(rest.keys, self._counts, strict=True):
            for key in filter(None, keys.tolist()):
                counts[key] = counts.get(key, 0) + 1
        chunks.appendleft(rest)
        self._rows, self._bytes = self._rows + len(rest), self._bytes + rest.size_bytes

    def _join(self) -> None:
        """Joins small chunks at the end, so that there are few of them however often rows come."""
        chunks = self._settled
        small = 0
        while small < len(chunks) and len(chunks[-1 - small]) < CHUNK_ROWS:
            small += 1
        if small < _JOINED:
            return
        last = [chunks.pop() for _ in range(small)][::-1]
        self._bytes -= sum(each.size_bytes for each in last)
        for same in runs_of_chunks(last):
            joined = Chunk.joined(same) if len(same) > 1 else same[0]
            chunks.append(joined)
            self._bytes += joined.size_bytes


class LiveWindows:
    """The windows of some feeds; implements `Watcher`, and sees the passes of no others.

    Args:
        feeds: The feeds.
        lands: As of `LiveWindow`.
        clock: Likewise.

    Raises:
        ConfigError: One of them has no live view; says why.
    """

    def __init__(self, feeds: Iterable[Feed], *, lands: bool = True, clock: Callable[[], float] = time.time) -> None:
        self._windows: dict[str, LiveWindow] = {}
        for feed in feeds:
            if feed.why_not_live:
                raise ConfigError(f"feed {feed.name!r}: {feed.why_not_live}")
            self._windows[feed.name] = LiveWindow(feed, lands=lands, clock=clock)

    def begin(self, feed: Feed) -> LiveWindow | None:
        """Implements `Watcher`."""
        window = self.get(feed.name)
        return None if window is None else window.begin()

    def failed(self, name: str, reason: str) -> None:
        """A feed's source cannot be read just now; shown until a pass ends well."""
        window = self.get(name)
        if window is not None:
            window.failed(reason)

    def get(self, name: str) -> LiveWindow | None:
        """The window of a feed; None if it is not shown."""
        return self._windows.get(name)

    def __iter__(self) -> Iterator[LiveWindow]:
        return iter(self._windows.values())


class _Numbers:
    """Source numbers of rows, as runs; of rows without numbers none."""

    def __init__(self) -> None:
        self._runs: dict[int, Runs] = {}
        self._taken: dict[int, Runs] = {}
        self._done: dict[int, Runs] = {}

    def __bool__(self) -> bool:
        return bool(self._runs)

    def add(self, chunk: Chunk) -> None:
        """Takes note of a chunk's rows; of a source whose numbers are far apart, not of all."""
        for partition, offsets in _by_partition(chunk):
            known = self._runs.get(partition, ())
            if len(known) < _MOST_RUNS:
                self._runs[partition] = merged_runs(known, runs_of(offsets))

    def come_again(self, more: _Numbers) -> None:
        """Takes note of another's rows, too, and says of all that they are among them, but of those taken for good."""
        for partition, runs in more._runs.items():
            known = self._runs.get(partition, ())
            if len(known) < _MOST_RUNS:
                self._runs[partition] = merged_runs(known, runs)
        self._taken = dict(self._done)

    def taken(self, chunk: Chunk, *, for_good: bool = False) -> Mask:
        """Which of a chunk's rows are among them; each row is said to be so once, or once until they come again."""
        found = np.zeros(len(chunk), dtype=np.bool_)
        if not self._runs:
            return found
        for partition, offsets in _by_partition(chunk):
            taken = self._taken.get(partition, ())
            there = within(self._runs.get(partition, ()), offsets) & ~within(taken, offsets)
            found[chunk.partitions == partition] = there
            runs = runs_of(offsets[there])
            self._taken[partition] = merged_runs(taken, runs)
            if for_good:
                self._done[partition] = merged_runs(self._done.get(partition, ()), runs)
        return found


def _by_partition(chunk: Chunk) -> Iterator[tuple[int, Ints]]:
    for partition in np.unique(chunk.partitions).tolist():
        if partition >= 0:
            yield partition, chunk.offsets[chunk.partitions == partition]


def _unique_columns(feed: Feed) -> tuple[tuple[str, ...], ...]:
    """Columns whose values no two rows may share; of changes that are merged, a key comes again by design."""
    rules = [each for each in feed.checks.rules if isinstance(each, UniqueRule)]
    return tuple(tuple(each.columns) for each in rules if feed.write != "merge" or set(each.columns) != set(feed.key))
