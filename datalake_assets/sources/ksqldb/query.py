"""A running query, from its header to its verified end, in blocks of decoded rows.

An answer that doesn't end is read in a thread, so that silence shows. Neither a read timeout (it kills the connection)
nor polling the socket (rows may wait in TLS's or HTTP's buffers) can show it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import pyarrow as pa

from datalake_assets.errors import IncompleteResponse, SourceUnavailable
from datalake_assets.feed import Feed
from datalake_assets.sources.ksqldb.answer import KsqlAnswer
from datalake_assets.sources.ksqldb.client import KsqlClient, Properties
from datalake_assets.sources.ksqldb.columns import AnswerLayout, layout_of
from datalake_assets.sources.ksqldb.declaration import declared
from datalake_assets.sources.ksqldb.decode.response import ResponseEnd, StreamedRowParser
from datalake_assets.sources.ksqldb.decode.rows import DecodedRows
from datalake_assets.sources.ksqldb.failures import TransientFailure, failed_rows
from datalake_assets.sources.ksqldb.sql_types import Column

__all__ = ["EARLIEST", "PullQuery", "Pump", "PushQuery", "Query"]

#: Rows are handed on when this much has come,
_BLOCK_BYTES = 4 << 20
#: or when nothing more came for this long,
_PAUSE_S = 0.05
#: or when the first of them has waited this long.
_LONGEST_HOLD_S = 1.0
#: The thread stops reading, and TCP the server, while this much waits to be taken.
_FULL_BYTES = 2 * _BLOCK_BYTES
#: Time for a server to end the query when asked; the connection then serves again.
_JOIN_S = 0.5


class Pump:
    """A thread that reads an answer ahead of its one consumer, within bounded memory; `stop` it.

    Args:
        answer: The answer.
        hold_s: Rows are handed on when the first of them has waited this long.
    """

    def __init__(self, answer: KsqlAnswer, *, hold_s: float = _LONGEST_HOLD_S) -> None:
        self._answer, self._hold_s = answer, hold_s
        self._changed = threading.Condition()
        self._chunks: list[bytes] = []
        self._size_bytes = self._received_bytes = 0
        self._over = self._stopped = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ksqldb-push", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the answer ended, and all of it was taken."""
        with self._changed:
            return self._over and not self._chunks and self._error is None

    def take(self, timeout_s: float) -> bytes:
        """The next bytes; none if there were none in time, or ever will be.

        Raises:
            Exception: What reading raised, after all bytes before it were taken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._chunks or self._over, timeout_s)
            if self._chunks:
                self._gather()
            elif self._error is not None:
                raise self._error
            taken, self._chunks = self._chunks, []
            self._size_bytes = 0
            self._changed.notify_all()
        return b"".join(taken)

    def _gather(self) -> None:
        deadline = time.monotonic() + self._hold_s
        before = -1
        while before != self._received_bytes and not self._over and self._size_bytes < _BLOCK_BYTES:
            before = self._received_bytes
            patience_s = min(_PAUSE_S, deadline - time.monotonic())
            if patience_s <= 0:
                return
            self._changed.wait(patience_s)

    def stop(self) -> None:
        """Ends the reading; bytes not taken are dropped. Idempotent."""
        with self._changed:
            self._stopped = True
            self._chunks.clear()
            self._changed.notify_all()
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            self._answer.abort()
            self._thread.join(_JOIN_S)
        self._answer.close()

    def _run(self) -> None:
        try:
            for chunk in self._answer.chunks():
                if not self._put(chunk):
                    return
        except BaseException as error:  # noqa: BLE001  raised again in the consumer's thread
            self._error = error
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _put(self, chunk: bytes) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._size_bytes < _FULL_BYTES)
            if self._stopped:
                return False
            self._chunks.append(chunk)
            self._size_bytes += len(chunk)
            if not chunk.isspace():  # the keepalives of servers before 0.24 are silence too
                self._received_bytes += len(chunk)
                self._changed.notify_all()
        return True


_COMPLETED = "Query Completed"
_LIMITED = "Limit Reached"
#: The property that has a push query begin with the oldest row.
EARLIEST = "auto.offset.reset"


@dataclass(frozen=True, slots=True)
class Query:
    """A query and how to read its answer.

    Attributes:
        sql: The statement.
        source: What it reads, for errors.
        feed: What it is read for.
        properties: Query properties.
        time: Source name of the column that partitions; None for tables.
        numbering: Source names of the columns that carry source partition and offset.
        push: Whether it goes on with every change.
        says_completed: Whether the answer must end with a completion message; table pulls have none.
        limited: Whether it may end before that, since it has a LIMIT.
        hold_s: Of a push query: rows are handed on when the first of them has waited this long.
    """

    sql: str
    source: str
    feed: Feed
    properties: Properties
    time: str | None = None
    numbering: tuple[str, str] | None = None
    push: bool = False
    says_completed: bool = False
    limited: bool = False
    hold_s: float = _LONGEST_HOLD_S

    @property
    def object(self) -> str:
        """The name of what it reads."""
        return declared(self.feed).object


class _Running:
    """What pull and push queries share: the parser, and what the header says.

    Attributes:
        layout: The answer's columns.
        query_id: The server's name of the query, if it has one.
    """

    layout: AnswerLayout

    def __init__(self, query: Query) -> None:
        self.query_id: str | None = None
        self.query = query
        self._parser = StreamedRowParser(
            self._lay_out, keeps_tombstones=query.numbering is not None and query.feed.write == "merge"
        )
        self._blocks: list[DecodedRows] = []

    def _lay_out(self, columns: tuple[Column, ...]) -> pa.Schema:
        self.layout = layout_of(columns, self.query.feed, time=self.query.time, numbering=self.query.numbering)
        return self.layout.decoded

    def _feed(self, chunk: bytes) -> list[DecodedRows]:
        blocks = self._parser.feed(chunk)
        if self._parser.error is not None:
            failed_rows(self.query.source, self._parser.error.message)
        if self._parser.header is not None:
            self.query_id = self._parser.header.query_id
        return blocks

    def _finish(self) -> tuple[DecodedRows, ResponseEnd]:
        """The last rows, and how the answer ended; a broken end is an error."""
        rows, end = self._parser.finish()
        if end.error is not None:
            failed_rows(self.query.source, end.error.message)
        if end.partial or not end.closed:
            self._incomplete("the answer broke off")
        return rows, end

    def _incomplete(self, reason: str) -> None:
        raise TransientFailure(IncompleteResponse(self.query.source, reason))


class PullQuery(_Running):
    """A query that ends: its answer counts only as a whole.

    Raises:
        TransientFailure: It could not be opened, or broke off before its header; another attempt may succeed.
        SourceError: It failed for good.
        InvalidFeed: Its columns don't fit the feed.
    """

    def __init__(self, client: KsqlClient, query: Query) -> None:
        super().__init__(query)
        self._client, self._complete = client, False
        self._answer: KsqlAnswer = client.query(query.sql, source=query.source, properties=query.properties)
        self._chunks = self._answer.chunks()
        try:
            while self._parser.header is None:
                chunk = next(self._chunks, b"")
                self._blocks += self._feed(chunk) if chunk else [self._finish()[0]]
        except BaseException:
            self.close()
            raise

    def blocks(self) -> Iterator[DecodedRows]:
        """Streams the rows, once; the last ones only after the answer proved to be complete."""
        yield from self._blocks
        for chunk in self._chunks:
            yield from self._feed(chunk)
        rows, end = self._finish()
        complete = {_COMPLETED, _LIMITED} if self.query.limited else {_COMPLETED}
        if self.query.says_completed and end.final_message not in complete:
            self._incomplete("the answer ended without its completion message")
        self._complete = True
        yield rows

    def close(self) -> None:
        """Drops the answer, and ends a stream's query at the server if it may still run there; idempotent."""
        self._answer.close()
        if self.query.says_completed and not self._complete and self.query_id:
            self._complete = True
            self._client.close_query(self.query_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


#: An answer that breaks off does so soon after its first rows; before they are handed on, it can be asked for again.
_SOON_S = 0.1


class PushQuery(_Running):
    """A query that goes on with every change, until it is closed.

    Attributes:
        ended: Whether the server ended it; that says nothing about completeness.
    """

    def __init__(self, client: KsqlClient, query: Query) -> None:
        super().__init__(query)
        self._client, self.ended = client, False
        answer = client.query(query.sql, source=query.source, properties=query.properties, endless=True)
        self._pump = Pump(answer, hold_s=query.hold_s)
        deadline = time.monotonic() + client.timeout_s
        try:
            while self._parser.header is None and not self.ended:
                self._blocks += self._take(max(0.0, deadline - time.monotonic()))
                if self._parser.header is None and time.monotonic() >= deadline:
                    error = SourceUnavailable(query.source, f"no answer within {client.timeout_s:g} s")
                    raise TransientFailure(error)  # noqa: TRY301  the pump must be stopped, whatever failed
        except BaseException:
            self.close()
            raise

    def poll(self, timeout_s: float) -> list[DecodedRows]:
        """The rows that came; blocks without rows if there were none in time.

        Raises:
            TransientFailure: The connection broke, or the server sent an error.
            IncompleteResponse: The answer ended before it said that it was complete.
        """
        held, self._blocks = self._blocks, []  # rows that came along with the header needn't wait for more
        return [*held, *self._take(min(timeout_s, _SOON_S) if held else timeout_s)]

    def _take(self, timeout_s: float) -> list[DecodedRows]:
        chunk = self._pump.take(timeout_s)
        blocks = self._feed(chunk) if chunk else []
        if chunk and self._parser.header is not None:  # before it, nobody knows of any columns
            blocks.append(self._parser.take())
        if self._parser.error is not None:
            failed_rows(self.query.source, self._parser.error.message)
        if not self._pump.ended or self.ended:
            return blocks
        self.ended = True
        return [*blocks, self._finish()[0]]

    def close(self) -> None:
        """Ends the query at the server, so that it leaves nothing behind there, and drops the answer; idempotent."""
        if not self.ended and self._parser.header is not None and self.query_id:
            self._client.close_query(self.query_id)
        self.ended = True
        self._pump.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
