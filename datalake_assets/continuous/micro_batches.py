"""When a batch of an endless read is over, and the batch itself, as an export reads it.

A batch ends by its rows, its bytes, or the age of its first row. The age grows where commits cannot keep up, and where
they leave more small files than are merged meanwhile: then a second of latency buys fewer files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from datalake_assets.core.batches import Batches, ReadRequest, SourceBatch
from datalake_assets.core.facts import WriteReport
from datalake_assets.errors import SourceError
from datalake_assets.live_policies import BatchPolicy

__all__ = ["MicroBatch", "Pacing", "has_rows"]

#: Of its time, commits may take so much at the most; the rest is for rows to come.
_COMMIT_SHARE = 0.5
#: What the newest commit counts for in what commits take.
_NEWEST = 0.3


def has_rows(batch: SourceBatch) -> bool:
    """Whether there is anything to land, or to put aside."""
    return bool(batch.rows.num_rows or batch.rejected)


@dataclass(slots=True)
class Pacing:
    """How long a batch waits for rows, by what came of those before.

    Attributes:
        policy: The feed's.
        commit_s: What a commit takes, in seconds, lately.
        crowding: Small files of the fullest partition that the last batch wrote to, by those that it may have.
    """

    policy: BatchPolicy
    commit_s: float = 0.0
    crowding: float = 0.0

    @property
    def age_s(self) -> float:
        """Seconds that the first row of a batch waits for its commit."""
        aimed = self.policy.max_age.total_seconds()
        keeping_up = self.commit_s * (1 - _COMMIT_SHARE) / _COMMIT_SHARE
        return min(max(aimed * max(1.0, self.crowding), keeping_up), self.policy.longest_age.total_seconds())

    def committed(self, report: WriteReport, *, seconds: float) -> None:
        """Takes note of a batch that was committed.

        Args:
            report: What it wrote.
            seconds: What its commits took, after its last row was read.
        """
        first = not self.commit_s
        self.commit_s = seconds if first else _NEWEST * seconds + (1 - _NEWEST) * self.commit_s
        fullest = max((each.small_files for each in report.partitions), default=0)
        self.crowding = fullest / self.policy.small_files


@dataclass(slots=True)
class MicroBatch:
    """Rows of an endless read that are committed together; implements `Batches`.

    It reads on while it is iterated, so that rows are staged as they come. Iterated again, as after a conflict of
    commits, it gives the same rows.

    Attributes:
        reading: The endless read.
        rows: Its iteration.
        pacing: When the batch is over.
        ends: Whether it is to end at once.
        clock: Seconds, monotonic.
        taken: What was read so far; at first what the batch begins with.
        failure: Why the read broke off; what came before can be landed all the same.
        ended: Whether the read ended.
        over_at: When its last row had been read, by the clock; 0.0 before.
    """

    reading: Batches
    rows: Iterator[SourceBatch]
    pacing: Pacing
    ends: Callable[[], bool]
    taken: list[SourceBatch]
    clock: Callable[[], float] = time.monotonic
    failure: SourceError | None = None
    ended: bool = False
    over_at: float = 0.0
    _count: int = field(default=0, init=False)
    _bytes: int = field(default=0, init=False)

    @property
    def schema(self) -> pa.Schema:
        """Implements `Batches`."""
        return self.reading.schema

    @property
    def time_column(self) -> str | None:
        """Implements `Batches`."""
        return self.reading.time_column

    @property
    def request(self) -> ReadRequest:
        """Implements `Batches`."""
        return self.reading.request

    @property
    def recreated(self) -> bool:
        """Implements `Batches`."""
        return self.reading.recreated

    @property
    def unfinished(self) -> str:
        """Implements `Batches`: an endless read never comes to its end, and nobody need be told."""
        return ""

    def acknowledge(self) -> None:
        """Implements `Batches`."""
        self.reading.acknowledge()

    def __iter__(self) -> Iterator[SourceBatch]:
        """Streams the batch; what was given before comes again."""
        yield from list(self.taken)
        if self.over_at:
            return
        began = self.clock()
        self._count = self._bytes = 0
        for batch in self.taken:
            self._add(batch)
        while not self._is_over(began):
            try:
                batch = next(self.rows)
            except StopIteration:
                self.ended = True
                break
            except SourceError as error:
                self.failure = error
                break
            self.taken.append(batch)
            self._add(batch)
            yield batch
        self.over_at = self.clock()

    def _add(self, batch: SourceBatch) -> None:
        self._count += batch.rows.num_rows + len(batch.rejected)
        self._bytes += batch.rows.nbytes + sum(len(row.raw) for row in batch.rejected)

    def _is_over(self, began: float) -> bool:
        policy = self.pacing.policy
        return (
            self._count >= policy.max_rows
            or self._bytes >= policy.max_bytes
            or self.clock() - began >= self.pacing.age_s
            or self.ends()
        )
