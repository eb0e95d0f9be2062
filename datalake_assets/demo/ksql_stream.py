"""Sends one query's result: header, rows as fast as the client takes them, the end that its kind of query has."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from datalake_assets.demo.faults import FaultKind, Faults
from datalake_assets.demo.http_types import Response
from datalake_assets.demo.ksql_errors import KsqlError
from datalake_assets.demo.ksql_query import Query
from datalake_assets.demo.wire import RowWriter

__all__ = ["ResultSender"]

_SLOW_CHUNK_ROWS = 100
# how soon a push query notices new rows
_POLL_S = 0.1
_MID_STREAM = KsqlError(500, 50000, "java.lang.RuntimeException: Failure in processing")


@dataclass(slots=True)
class _Planned:
    """The faults that befall this result; each a row count but for the last two."""

    error_at: int | None
    drop_at: int | None
    garbage_at: int | None
    short_at: int | None
    tombstone_at: int | None
    truncate_at: int | None
    delay_ms: int | None
    no_final_message: bool

    @classmethod
    def of(cls, faults: Faults, query: Query) -> _Planned:
        def rows(kind: FaultKind) -> int | None:
            value = faults.take(kind, query.source)
            return None if value is None else int(value)

        return cls(
            error_at=rows("error_after_rows"),
            drop_at=rows("drop_after_rows"),
            garbage_at=rows("garbage_row"),
            short_at=rows("short_row"),
            tombstone_at=rows("tombstone_row") if query.is_push else None,
            truncate_at=rows("truncate_table_rows") if query.is_table_pull else None,
            delay_ms=rows("slow_rows"),
            no_final_message=rows("no_final_message") is not None,
        )


class _Stop(Exception):
    """The result ends here.

    Args:
        message: The final message.
        error: The error row before the end, if the result fails.
        cut: Whether the connection breaks instead.
    """

    def __init__(self, message: str | None = None, *, error: KsqlError | None = None, cut: bool = False) -> None:
        self.message, self.error, self.cut = message, error, cut
        super().__init__()


class ResultSender:
    """Sends one result.

    Args:
        query: What to send.
        writer: In which format.
        response: Where to.
        faults: What goes wrong.
    """

    def __init__(self, query: Query, writer: RowWriter, response: Response, faults: Faults) -> None:
        self._query, self._writer, self._response = query, writer, response
        self._planned = _Planned.of(faults, query)
        self._sent = 0
        self.closed = asyncio.Event()

    async def send(self) -> None:
        """Send it all; a push query until its limit, or until it is closed."""
        await self._response.start(200, [("content-type", self._writer.content_type)])
        await self._response.write(self._writer.header(self._query).encode())
        try:
            await self._rows()
            message = None if self._query.is_table_pull else "Query Completed"
        except _Stop as stop:
            if stop.cut:
                await self._response.cut()
                return
            if stop.error is not None:
                await self._response.write(self._writer.error(stop.error).encode())
            message = stop.message
        ending = self._writer.end(None if self._planned.no_final_message else message)
        await self._response.write(ending.encode())
        await self._response.end()

    async def _rows(self) -> None:
        await self._send_rows([])
        while not self.closed.is_set():
            batch = self._query.cursor.next()
            if batch is not None:
                await self._send_rows(self._writer.rows(batch))
                # other requests get their turn between blocks, even if this client takes everything at once
                await asyncio.sleep(0)
            elif not self._query.is_push:
                return
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.closed.wait(), _POLL_S)

    async def _send_rows(self, rows: list[str]) -> None:
        """Send rows with their faults; raises _Stop where the result ends."""
        limit = self._query.limit
        ends = self._ends()
        room = min([at for at, _ in ends] + ([] if limit is None else [limit]), default=None)
        kept = rows if room is None else rows[: max(0, room - self._sent)]
        await self._send_text(self._spoiled(kept))
        self._sent += len(kept)
        for at, stop in ends:
            if self._sent >= at:
                raise stop
        if limit is not None and self._sent >= limit:
            raise _Stop(None if self._query.is_table_pull else "Limit Reached")

    def _ends(self) -> list[tuple[int, _Stop]]:
        planned = self._planned
        ends = (
            (planned.error_at, _Stop(error=_MID_STREAM)),
            (planned.drop_at, _Stop(cut=True)),
            (planned.truncate_at, _Stop()),
        )
        return [(at, stop) for at, stop in ends if at is not None]

    def _spoiled(self, rows: list[str]) -> list[str]:
        """The rows with what was planned to be wrong with some of them."""
        spoiled = (
            (self._planned.garbage_at, lambda _row: ['{"row":{"columns":[tru']),
            (self._planned.short_at, lambda row: [_without_last(row)]),
            (self._planned.tombstone_at, lambda row: [*self._writer.tombstone(self._query), row]),
        )
        out = rows
        for at, change in sorted((pair for pair in spoiled if pair[0] is not None), key=lambda pair: -(pair[0] or 0)):
            place = (at or 0) - self._sent
            if 0 <= place < len(rows):
                out = [*out[:place], *change(out[place]), *out[place + 1 :]]
        return out

    async def _send_text(self, rows: list[str]) -> None:
        delay_ms = self._planned.delay_ms
        if delay_ms is None:
            await self._response.write(self._writer.joined(rows).encode())
            return
        for low in range(0, len(rows), _SLOW_CHUNK_ROWS):
            await asyncio.sleep(delay_ms / 1000)
            await self._response.write(self._writer.joined(rows[low : low + _SLOW_CHUNK_ROWS]).encode())


def _without_last(row: str) -> str:
    """A row of no columns: the wrong number, whatever is expected."""
    opening = row.index("[")
    return f"{row[: opening + 1]}{row[row.rindex(']') :]}"
