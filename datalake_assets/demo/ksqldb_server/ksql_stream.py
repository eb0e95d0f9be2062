"""Sends one query's result: header, rows as fast as the client takes them, the end that its kind of query has."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from datalake_assets.demo.ksqldb_server.faults import FaultKind, Faults
from datalake_assets.demo.ksqldb_server.http1 import Response
from datalake_assets.demo.ksqldb_server.ksql_errors import KsqlError
from datalake_assets.demo.ksqldb_server.ksql_query import Query
from datalake_assets.demo.ksqldb_server.wire import RowWriter, row_values

__all__ = ["ResultSender"]

_SLOW_CHUNK_ROWS = 100
# how soon a push query notices new rows
_POLL_S = 0.1
_MID_STREAM = KsqlError(500, 50000, "java.lang.RuntimeException: Failure in processing")


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


@dataclass(frozen=True, slots=True)
class _Planned:
    """The faults that befall this result.

    Attributes:
        error_at: After how many rows it fails.
        drop_at: After how many the connection breaks.
        truncate_at: After how many it ends as if it were complete.
        spoils: Which row each kind of bad row is.
        late_ms: What the first row waits for.
        delay_ms: What each chunk waits for.
        no_final_message: Whether the end says nothing.
    """

    error_at: int | None
    drop_at: int | None
    truncate_at: int | None
    spoils: Mapping[str, int]
    late_ms: int | None
    delay_ms: int | None
    no_final_message: bool

    @classmethod
    def of(cls, faults: Faults, query: Query) -> _Planned:
        def taken(kind: FaultKind) -> int | None:
            value = faults.take(kind, query.source)
            return None if value is None else int(value)

        kinds: tuple[FaultKind, ...] = ("garbage_row", "short_row", *(("tombstone_row",) if query.is_push else ()))
        spoils = {kind: taken(kind) for kind in kinds}
        return cls(
            error_at=taken("error_after_rows"),
            drop_at=taken("drop_after_rows"),
            truncate_at=taken("truncate_table_rows") if query.is_table_pull else None,
            spoils={kind: at for kind, at in spoils.items() if at is not None},
            late_ms=taken("late_rows"),
            delay_ms=taken("slow_rows"),
            no_final_message=taken("no_final_message") is not None,
        )

    def ends(self) -> list[tuple[int, _Stop]]:
        """Where the result ends early, and how."""
        ends = (
            (self.error_at, _Stop(error=_MID_STREAM)),
            (self.drop_at, _Stop(cut=True)),
            (self.truncate_at, _Stop()),
        )
        return [(at, stop) for at, stop in ends if at is not None]


class ResultSender:
    """Sends one result.

    Args:
        query: What to send.
        writer: In which format.
        response: Where to.
        faults: What goes wrong.

    Attributes:
        is_push: Whether it goes on until it is closed.
        closed: Set it to end the result as if it were complete.
        done: Is set when nothing more will be sent.
    """

    def __init__(self, query: Query, writer: RowWriter, response: Response, faults: Faults) -> None:
        self._query, self._writer, self._response = query, writer, response
        self._planned = _Planned.of(faults, query)
        self._sent = 0
        self.is_push = query.is_push
        self.closed, self.done = asyncio.Event(), asyncio.Event()

    async def send(self) -> None:
        """Send it all; a push query until its limit, or until it is closed."""
        await self._response.start(200, [("content-type", self._writer.content_type)])
        await self._response.write(self._writer.header(self._query))
        try:
            await self._rows()
            message = None if self._query.is_table_pull else "Query Completed"
        except _Stop as stop:
            if stop.cut:
                await self._response.cut()
                return
            if stop.error is not None:
                await self._response.write(self._writer.error(stop.error))
            message = stop.message
        ending = self._writer.end(None if self._planned.no_final_message else message)
        await self._response.write(ending)
        await self._response.end()

    async def _rows(self) -> None:
        if self._planned.late_ms is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.closed.wait(), self._planned.late_ms / 1000)
        await self._send_rows([])
        while not self.closed.is_set():
            batch = self._query.cursor.next()
            if batch is not None:
                await self._send_rows(row_values(batch))
                # other requests get their turn between blocks, even if this client takes everything at once
                await asyncio.sleep(0)
            elif not self._query.is_push:
                return
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.closed.wait(), _POLL_S)

    async def _send_rows(self, rows: list[bytes]) -> None:
        """Send rows with their faults; raises _Stop where the result ends."""
        limit = self._query.limit
        ends = self._planned.ends()
        room = min([at for at, _ in ends] + ([] if limit is None else [limit]), default=None)
        kept = rows if room is None else rows[: max(0, room - self._sent)]
        await self._send_kept(kept)
        self._sent += len(kept)
        for at, stop in ends:
            if self._sent >= at:
                raise stop
        if limit is not None and self._sent >= limit:
            raise _Stop(None if self._query.is_table_pull else "Limit Reached")

    async def _send_kept(self, rows: list[bytes]) -> None:
        size = len(rows) if self._planned.delay_ms is None else _SLOW_CHUNK_ROWS
        for low in range(0, len(rows), size or 1):
            if self._planned.delay_ms is not None:
                await asyncio.sleep(self._planned.delay_ms / 1000)
            await self._response.write(self._text(rows[low : low + size], self._sent + low))

    def _text(self, rows: list[bytes], first: int) -> bytes:
        """The rows as they are sent, where ``first`` is the number of the first of them."""
        writer, spoiled = self._writer, self._spoiled(len(rows), first)
        if not spoiled:
            between = writer.closing + writer.between + writer.opening
            return writer.joined(writer.opening + between.join(rows) + writer.closing)
        whole = [[writer.opening + row + writer.closing] for row in rows]
        for place, kind in spoiled:
            whole[place] = self._spoil(whole[place], kind, rows[place])
        return writer.joined(writer.between.join(row for group in whole for row in group))

    def _spoiled(self, rows: int, first: int) -> list[tuple[int, str]]:
        return [(at - first, kind) for kind, at in self._planned.spoils.items() if 0 <= at - first < rows]

    def _spoil(self, sent: list[bytes], kind: str, values: bytes) -> list[bytes]:
        if kind == "garbage_row":
            return [self._writer.opening + b"tru"]
        if kind == "short_row":
            return [self._writer.opening + self._writer.closing]
        return [*self._writer.tombstone(self._query, values), *sent]
