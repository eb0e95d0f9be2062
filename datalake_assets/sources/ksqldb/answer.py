"""Answers of a ksqlDB server as raw bytes, within limits of size, time and progress.

No server is trusted to send little, or anything at all: a document has a size and a time, rows must go on coming, and
what is packed is unpacked in pieces of bounded size.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from datalake_assets.errors import IncompleteResponse, SourceRefused, SourceUnavailable
from datalake_assets.sources.ksqldb.failures import TransientFailure, failed_exchange, one_line

__all__ = ["KsqlAnswer", "Limits", "hang_up", "received"]

#: What comes between two looks at the clock counts as progress if it is that much, or whole lines.
_PROGRESS_BYTES = 1024
#: Packed answers are unpacked in pieces of this size: a megabyte may hold a gigabyte.
_PIECE_BYTES = 1 << 20
#: A reader that is busy is not late; whether it waits again is looked at no more often than that.
_SHORTEST_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Limits:
    """What is put up with of one answer; None for anything.

    Attributes:
        size_bytes: Bytes of it, unpacked.
        total_s: Seconds until its end.
        silence_s: Seconds of waiting without progress: blanks, and a few bytes of a line, are none.
    """

    size_bytes: int | None = None
    total_s: float | None = None
    silence_s: float | None = None


@dataclass(slots=True)
class _Received:
    """What came of an answer so far."""

    source: str
    limits: Limits
    began: float = field(default_factory=time.monotonic)
    size_bytes: int = 0
    waited_s: float = 0.0
    pending_bytes: int = 0
    asked: float | None = None
    is_late: bool = False

    def add(self, piece: bytes) -> None:
        """Takes note of bytes.

        Raises:
            SourceRefused: There are more than can be an answer.
        """
        self.size_bytes += len(piece)
        if self.limits.size_bytes is not None and self.size_bytes > self.limits.size_bytes:
            reason = f"its answer is longer than {self.limits.size_bytes:,} bytes"
            raise SourceRefused(self.source, reason, cure="correct DATALAKE_KSQLDB_URL: is it a ksqlDB server?")
        if not piece.isspace():
            self.pending_bytes += len(piece)
            if self.pending_bytes >= _PROGRESS_BYTES or b"\n" in piece:
                self.waited_s, self.pending_bytes = 0.0, 0

    def check_time(self) -> None:
        """Looks at the clock.

        Raises:
            TransientFailure: The answer takes too long, or does not get on.
        """
        limits = self.limits
        if limits.total_s is not None and (self.is_late or time.monotonic() - self.began > limits.total_s):
            raise self._late(f"no whole answer within {limits.total_s:g} s")
        if limits.silence_s is not None and (self.is_late or self.waited_s > limits.silence_s):
            raise self._late(f"no rows within {limits.silence_s:g} s, although the connection is open")

    @property
    def patience_s(self) -> float:
        """Seconds that the wait for more may still take; as long as nobody waits, those of a wait that begins now."""
        now, limits = time.monotonic(), self.limits
        asked = now if self.asked is None else self.asked
        whole_s = math.inf if limits.total_s is None else self.began + limits.total_s - now
        silent_s = math.inf if limits.silence_s is None else limits.silence_s - self.waited_s - (now - asked)
        return min(whole_s, silent_s)

    def _late(self, reason: str) -> TransientFailure:
        cure = "run it again when the server is well, or raise DATALAKE_KSQLDB_TIMEOUT_S"
        return TransientFailure(SourceUnavailable(self.source, reason, cure=cure))


def received(response: httpx.Response, source: str, limits: Limits) -> Iterator[bytes]:
    """An answer's bytes as they come, unpacked.

    Raises:
        TransientFailure: It broke off, takes too long, or does not get on.
        SourceRefused: It is too long, or packed in a way that was not asked for.
    """
    unpacker, so_far = _unpacker(response, source), _Received(source, limits)
    chunks = response.iter_raw()
    with _hung_up_when_late(response, so_far):
        while (chunk := _next_chunk(chunks, so_far)) is not None:
            for piece in (chunk,) if unpacker is None else unpacker.pieces(chunk):
                so_far.add(piece)
                yield piece
            so_far.check_time()
    if unpacker is not None and not unpacker.is_whole:
        raise TransientFailure(IncompleteResponse(source, "the packed answer broke off"))


def _next_chunk(chunks: Iterator[bytes], so_far: _Received) -> bytes | None:
    asked = so_far.asked = time.monotonic()
    try:
        chunk = next(chunks, None)
    except httpx.TransportError:
        if not so_far.is_late:
            raise
        chunk = None
    finally:
        so_far.asked = None
        so_far.waited_s += time.monotonic() - asked
    if so_far.is_late:
        so_far.check_time()
    return chunk


@contextlib.contextmanager
def _hung_up_when_late(response: httpx.Response, so_far: _Received) -> Iterator[None]:
    """Hangs up if a wait for more of an answer takes too long.

    httpx waits for each byte by itself, and hands nothing on while the frame of a chunk, or what follows the last one,
    is incomplete: its sizes, extensions and trailers may drip for ever.
    """
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(max(_SHORTEST_LOOK_S, so_far.patience_s)):
            if so_far.asked is not None and so_far.patience_s <= 0:
                so_far.is_late = True
                hang_up(response.extensions.get("network_stream"))
                return

    if so_far.limits.total_s is not None or so_far.limits.silence_s is not None:
        threading.Thread(target=watch, name="ksqldb-limits", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def hang_up(stream: Any) -> None:
    """Ends what waits for a connection, in whichever thread: closing a socket wakes nobody, shutting it down does."""
    connection = stream and stream.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):  # it was closed long ago
            connection.shutdown(socket.SHUT_RDWR)


def _unpacker(response: httpx.Response, source: str) -> _Unpacker | None:
    packed = response.headers.get("content-encoding", "identity").strip().lower()
    if packed in {"", "identity"}:
        return None
    if packed in {"gzip", "x-gzip", "deflate"}:
        return _Unpacker(source)
    reason = f"its answer is packed as {one_line(packed)!r}, which was not asked for"
    raise SourceRefused(source, reason, cure="have the proxy before it pass answers on as they are")


class _Unpacker:
    """Unpacks gzip or zlib, a bounded piece at a time, however much a few bytes hold."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._zlib = self._fresh()

    @staticmethod
    def _fresh() -> zlib._Decompress:
        return zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: gzip or zlib, by the header

    @property
    def is_whole(self) -> bool:
        """Whether the packed data ended where they say that they do."""
        return self._zlib.eof

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """The pieces that a chunk holds.

        Raises:
            SourceRefused: It is not what it says to be.
        """
        while chunk:
            if self._zlib.eof:
                self._zlib = self._fresh()
            try:
                piece = self._zlib.decompress(chunk, _PIECE_BYTES)
            except zlib.error as error:
                raise SourceRefused(self._source, "its packed answer cannot be unpacked") from error
            chunk = self._zlib.unconsumed_tail or self._zlib.unused_data
            if piece:
                yield piece


class KsqlAnswer:
    """The open answer to a query; close it, or read it to its end.

    Args:
        source: What it is about, for errors.
        response: The answer.
        silence_s: Seconds without progress after which it is given up; None for never, as with push queries.
    """

    def __init__(self, source: str, response: httpx.Response, *, silence_s: float | None = None) -> None:
        self.source = source
        self._response, self._limits = response, Limits(silence_s=silence_s)

    def chunks(self) -> Iterator[bytes]:
        """Streams the raw bytes, once.

        Raises:
            TransientFailure: The answer broke off.
        """
        with failed_exchange(self.source, receiving=True):
            yield from received(self._response, self.source, self._limits)

    def close(self) -> None:
        """Drops the connection unless the answer was read to its end; idempotent."""
        self._response.close()

    def abort(self) -> None:
        """Ends `chunks` in whatever thread waits for it."""
        hang_up(self._response.extensions.get("network_stream"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
