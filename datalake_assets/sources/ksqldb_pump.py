"""Reads an answer that doesn't end, in a thread, so that silence can be told from rows.

Neither a read timeout (it kills the connection) nor polling the socket (rows may wait in TLS's or HTTP's buffers) can.
"""

from __future__ import annotations

import threading
import time

from datalake_assets.sources.ksqldb_client import KsqlAnswer

__all__ = ["Pump"]

#: Rows are handed on when this much has come,
_BLOCK_BYTES = 4 << 20
#: or when nothing more came for this long,
_PAUSE_S = 0.05
#: or when the first of them has waited this long.
_LONGEST_HOLD_S = 1.0
#: The thread stops reading, and TCP the server, while this much waits to be taken.
_FULL_BYTES = 2 * _BLOCK_BYTES
#: Time for a server that was told to end the query to do so; the connection then serves again.
_JOIN_S = 0.5


class Pump:
    """A thread that reads an answer ahead of its one consumer, within bounded memory; `stop` it."""

    def __init__(self, answer: KsqlAnswer) -> None:
        self._answer = answer
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
        deadline = time.monotonic() + _LONGEST_HOLD_S
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
