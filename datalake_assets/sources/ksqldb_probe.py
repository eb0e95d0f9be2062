"""Looks at which source offsets a stream has, when a read leaves that in doubt."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from datalake_assets.parquet.rows import DecodedRows
from datalake_assets.sources.ksqldb_batches import numbers_of
from datalake_assets.sources.ksqldb_client import KsqlClient
from datalake_assets.sources.ksqldb_columns import Layout
from datalake_assets.sources.ksqldb_positions import Seen
from datalake_assets.sources.ksqldb_query import PullQuery, PushQuery, Query
from datalake_assets.sources.ksqldb_sql import before, select

__all__ = ["LONGEST_PUSH_S", "Pace", "older", "scan"]

#: A read of a stream that never pauses ends after this long, wherever it is; the next one goes on.
LONGEST_PUSH_S = 3600.0
_LONGEST_POLL_S = 0.5


class Pace:
    """When a read that has no end is over.

    Only time that was spent waiting for the server counts as silence, so that a busy consumer, or a machine that slept,
    ends no read early.

    Args:
        idle_s: Silence that counts as the end.
        long_s: Silence after which nothing will ever come.
        clock: Monotonic seconds.
    """

    def __init__(self, idle_s: float, long_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._idle_s, self._long_s = clock, idle_s, max(idle_s, long_s)
        self._began = clock()
        self._silence_s = 0.0

    def poll(self, running: PushQuery) -> list[DecodedRows]:
        """Waits for the next rows of a query, for a while."""
        left_s = self._idle_s - self._silence_s
        patience_s = min(_LONGEST_POLL_S, left_s) if left_s > 0 else _LONGEST_POLL_S
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
        return self._silence_s >= self._long_s

    @property
    def is_overdue(self) -> bool:
        """Whether the read has taken as long as any may."""
        return self._clock() - self._began >= LONGEST_PUSH_S


def older(client: KsqlClient, query: Query, ends: Mapping[int, int]) -> Seen:
    """One row or more before the end of each source partition that has any, by a bounded query."""
    numbering = _numbering(query)
    found = Seen()
    with PullQuery(client, _probe(query, select(numbering, query.object, where=[before(numbering, ends)]))) as running:
        for block in running.blocks():
            _note(found, running.layout, block)
            if ends.keys() <= found.extents.keys():
                break
    return found


def scan(client: KsqlClient, query: Query, enough: Callable[[Seen], bool]) -> Seen:
    """Reads source offsets from the oldest row on, until enough is known or there are no more.

    All source partitions are read, whichever are of interest, so that silence means the end.
    """
    return (_push_scan if query.push else _pull_scan)(client, query, enough)


def _pull_scan(client: KsqlClient, query: Query, enough: Callable[[Seen], bool]) -> Seen:
    found = Seen()
    with PullQuery(client, _probe(query, select(_numbering(query), query.object))) as running:
        for block in running.blocks():
            _note(found, running.layout, block)
            if enough(found):
                break
    return found


def _push_scan(client: KsqlClient, query: Query, enough: Callable[[Seen], bool]) -> Seen:
    found = Seen()
    pace = Pace(query.feed.ksqldb.idle_s, client.timeout_s)
    with PushQuery(client, _probe(query, select(_numbering(query), query.object, push=True))) as running:
        while not (running.ended or pace.is_quiet or pace.is_overdue or enough(found)):
            for block in pace.poll(running):
                _note(found, running.layout, block)
                if block.lines:
                    pace.restart()
    return found


def _probe(query: Query, sql: str) -> Query:
    return replace(query, sql=sql, time=None)


def _numbering(query: Query) -> tuple[str, str]:
    if query.numbering is None:
        raise AssertionError("only numbered queries are probed")
    return query.numbering


def _note(found: Seen, layout: Layout, block: DecodedRows) -> None:
    for rows in block.table.to_batches():
        if layout.numbering is not None and rows.num_rows:
            found.add(*numbers_of(rows, layout.numbering))
