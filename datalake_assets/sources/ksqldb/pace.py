"""When an endless query is over: by silence, and by the time that it has taken.

A query of ksqlDB that goes on with every change does not say where its stream ended when it began.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from datalake_assets.sources.ksqldb.decode.rows import DecodedRows
from datalake_assets.sources.ksqldb.query import PushQuery

__all__ = ["LONGEST_PUSH_S", "Pace"]

#: A read of a stream that never pauses ends after this long, wherever it is; the next one goes on.
LONGEST_PUSH_S = 3600.0
_LONGEST_POLL_S = 0.5


class Pace:
    """When a read that has no end is over.

    Only time that was spent waiting for the server counts as silence, so that a busy consumer, or a machine that slept,
    ends no read early.

    Args:
        idle_s: Silence that counts as the end, once rows have come.
        long_s: Silence after which nothing will ever come.
        clock: Monotonic seconds.

    Attributes:
        long_s: See above; at least the idle time.
    """

    def __init__(self, idle_s: float, long_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._idle_s, self.long_s = clock, idle_s, max(idle_s, long_s)
        self._began = clock()
        self._silence_s = 0.0

    def poll(self, running: PushQuery, *, longest_s: float = _LONGEST_POLL_S) -> list[DecodedRows]:
        """Waits for the next rows of a query, for a while."""
        left_s = self._idle_s - self._silence_s
        patience_s = min(longest_s, left_s) if left_s > 0 else longest_s
        began = self._clock()
        blocks = running.poll(patience_s)
        self._silence_s += min(self._clock() - began, patience_s)
        return blocks

    def restart(self) -> None:
        """A row came."""
        self._silence_s = 0.0

    @property
    def is_quiet(self) -> bool:
        """Whether nothing came for the idle time."""
        return self._silence_s >= self._idle_s

    @property
    def is_quiet_for_long(self) -> bool:
        """Whether nothing came for so long that it never will."""
        return self._silence_s >= self.long_s

    @property
    def is_overdue(self) -> bool:
        """Whether the read has taken as long as any may."""
        return self._clock() - self._began >= LONGEST_PUSH_S
