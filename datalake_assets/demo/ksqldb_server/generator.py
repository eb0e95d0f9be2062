"""The demo's data, as the server serves it and as tests can know it without asking the server."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from datalake_assets.demo.ksqldb_server.blocks import DAY_MS, Block, GeneratorConfig, Longs, Rows
from datalake_assets.demo.ksqldb_server.stream_data import PSEUDO_COLUMNS, STREAMS, StreamSpec

__all__ = ["BLOCK_ROWS", "Generator", "GeneratorConfig"]

# rows made at a time: large enough for vector operations, small enough not to hold up other requests
BLOCK_ROWS = 8_192
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_EPOCH_DATE = dt.date(1970, 1, 1)


class Generator:
    """The generated streams at the present time.

    Args:
        config: What they are made from.
        clock: Seconds since the epoch; only growing streams look at it.
    """

    def __init__(self, config: GeneratorConfig, *, clock: Callable[[], float] = time.time) -> None:
        self.config, self._clock = config, clock

    def count(self) -> int:
        """How many rows every stream has had so far: the index after the latest."""
        return self.config.rows_by(int(self._clock() * 1000))

    def oldest(self) -> int:
        """The index of the oldest row that is still there."""
        kept = self.config.retention_rows
        return 0 if kept is None else max(0, self.count() - kept)

    def offsets(self) -> dict[int, tuple[int, int]]:
        """The oldest offset of each source partition, and the one after its latest."""
        return {
            partition: (self._offset_after(partition, self.oldest()), self._offset_after(partition, self.count()))
            for partition in range(self.config.partitions)
        }

    def block(self, stream: str, index: Longs) -> Block:
        """These rows of a stream, by global index."""
        return Block.of(Rows(self.config, STREAMS[stream].facts, index))

    def rows_per_day(self, stream: str) -> dict[dt.date, int]:
        """How many of the present rows happened on each UTC day, by ROWTIME; days without any are left out."""
        counts: dict[dt.date, int] = {}
        for index in self._indices():
            days, each = np.unique(self.block(stream, index).rows.rowtime_ms() // DAY_MS, return_counts=True)
            for day, rows in zip(days.tolist(), each.tolist(), strict=True):
                date = _EPOCH_DATE + dt.timedelta(days=day)
                counts[date] = counts.get(date, 0) + rows
        return dict(sorted(counts.items()))

    def rows(self, stream: str) -> Iterator[dict[str, Any]]:
        """The rows that are there now as exact Python values, in order of their global index.

        Each has ``ROWTIME`` (an aware UTC datetime), ``ROWPARTITION`` and ``ROWOFFSET`` beside the stream's columns.
        Decimals are Decimal, timestamps aware datetimes, BYTES bytes, MAPs and STRUCTs dicts.
        """
        spec = STREAMS[stream]
        columns = (*PSEUDO_COLUMNS, *spec.columns)
        names = tuple(column.name for column in columns)
        for index in self._indices():
            block = self.block(stream, index)
            for values in zip(*(column.make(block).values() for column in columns), strict=True):
                row = dict(zip(names, values, strict=True))
                row["ROWTIME"] = _EPOCH + dt.timedelta(milliseconds=row["ROWTIME"])
                yield row

    def spec(self, stream: str) -> StreamSpec:
        """What the stream is made of."""
        return STREAMS[stream]

    def _indices(self) -> Iterator[Longs]:
        first, stop = self.oldest(), self.count()
        for low in range(first, stop, BLOCK_ROWS):
            yield np.arange(low, min(stop, low + BLOCK_ROWS), dtype=np.int64)

    def _offset_after(self, partition: int, index: int) -> int:
        return max(0, -(-(index - partition) // self.config.partitions))
