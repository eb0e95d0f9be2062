"""An HTTP/1.1 proxy that fails on request: what a network does to an S3 client, in front of a real server.

The Host header passes unchanged, so that signatures still verify. Standard library only.

=================  ==================================================================================
`reset`            the connection is reset; the server never sees the request
`stall`            no answer for `argument` seconds, then a reset; the server never sees the request
`latency`          forwarded after `argument` seconds
`status`           answered with `argument = (status, S3 error code)`; the server never sees the request
`drop_response`    the server applies the request, its answer is lost
`refuse_after`     the server applies the request, and is answered for with `argument`, as of `status`
`truncate`         half of the answer's body, then a reset
=================  ==================================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from dataclasses import dataclass, field
from typing import Any, Literal, Self

__all__ = ["Fault", "FaultProxy"]

Kind = Literal["reset", "stall", "latency", "status", "drop_response", "refuse_after", "truncate"]
CHUNK = 64 * 1024
HEAD_LIMIT = 1 << 20
BODILESS = {204, 304}


@dataclass
class Fault:
    """What to do to matching requests.

    Attributes:
        kind: See the module.
        argument: Of the kind.
        times: How many requests it is for; -1 = all.
        method: The HTTP method; "" = any.
        path: Searched in the request's target, query included.
    """

    kind: Kind
    argument: Any = None
    times: int = 1
    method: str = ""
    path: re.Pattern[str] = field(default_factory=lambda: re.compile(""))

    def takes(self, method: str, target: str) -> bool:
        return self.times != 0 and self.method in {"", method} and bool(self.path.search(target))


@dataclass(frozen=True)
class Head:
    """The start line and headers of one message."""

    raw: bytes

    @property
    def words(self) -> list[str]:
        return self.raw.partition(b"\r\n")[0].decode("latin-1").split(" ")

    def header(self, name: bytes) -> bytes:
        found = re.search(rb"\r\n" + name + rb": *([^\r]*)", self.raw.lower())
        return found[1] if found else b""


class FaultProxy:
    """Runs in a thread of its own while the context is open.

    Args:
        host: The server's.
        port: The server's.

    Attributes:
        url: What clients are told as their endpoint.
        log: (method, path without query, kind of the fault or "") of each request.
    """

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._faults: list[Fault] = []
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self.log: list[tuple[str, str, str]] = []
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def add(self, kind: Kind, argument: Any = None, *, times: int = 1, method: str = "", path: str = "") -> None:
        """Do this to the next matching requests; earlier faults go first."""
        self._faults.append(Fault(kind, argument, times, method, re.compile(path)))

    def clear(self) -> None:
        """Forget faults and log."""
        self._faults.clear()
        self.log.clear()

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=HEAD_LIMIT)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._started.set()
        await self._stopping.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: asyncio.StreamWriter | None = None
        try:
            from_server, upstream = await asyncio.open_connection(*self._upstream, limit=HEAD_LIMIT)
            while await self._exchange(reader, writer, from_server, upstream):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # either side went away, or the proxy stops
        finally:
            for end in (writer, upstream):
                if end is not None:
                    end.transport.abort()

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        from_server: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
    ) -> bool:
        """One request and its answer; True if the connection goes on."""
        head = Head(await reader.readuntil(b"\r\n\r\n"))
        method, target = head.words[:2]
        fault = self._take(method, target)
        if fault and not await self._goes_on(fault, head, reader, writer):
            return False
        upstream.write(head.raw)
        sending = asyncio.ensure_future(_copy_body(reader, head, upstream))
        try:
            answer = await _answer(from_server, writer)
            if fault and fault.kind == "drop_response":
                await sending
                await _copy_body(from_server, answer, None, request=method)
                return False
            if fault and fault.kind == "refuse_after":
                await sending
                await _copy_body(from_server, answer, None, request=method)
                await _refuse(fault.argument, None, reader, writer)
                return False
            if fault and fault.kind == "truncate":
                writer.write(answer.raw + await from_server.readexactly(int(answer.header(b"content-length")) // 2))
                await writer.drain()
                return False
            writer.write(answer.raw)
            await _copy_body(from_server, answer, writer, request=method)
            await sending
        finally:
            sending.cancel()
        return answer.header(b"connection") != b"close"

    def _take(self, method: str, target: str) -> Fault | None:
        fault = next((fault for fault in self._faults if fault.takes(method, target)), None)
        if fault:
            fault.times -= 1
        self.log.append((method, target.partition("?")[0], fault.kind if fault else ""))
        return fault

    @staticmethod
    async def _goes_on(fault: Fault, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Do what comes before the server; True if it shall see the request."""
        if fault.kind in {"latency", "stall"}:
            await asyncio.sleep(fault.argument)
        if fault.kind == "status":
            await _refuse(fault.argument, head, reader, writer)
        return fault.kind not in {"reset", "stall", "status"}


async def _refuse(
    refusal: tuple[int, str], head: Head | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Refuses a request; of its head None if its body was read."""
    if head and not head.header(b"expect"):  # who expects 100 has not sent the body yet
        await _copy_body(reader, head, None)
    status, code = refusal
    body = (
        b""
        if head and head.words[0] == "HEAD"
        else f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
    )
    length = f"Content-Length: {len(body)}\r\nConnection: close"
    writer.write(f"HTTP/1.1 {status} Injected\r\nContent-Type: application/xml\r\n{length}\r\n\r\n".encode() + body)
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def _answer(from_server: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Head:
    """The final answer's head; interim ones are passed on."""
    while True:
        head = Head(await from_server.readuntil(b"\r\n\r\n"))
        if head.words[1] != "100":
            return head
        writer.write(head.raw)
        await writer.drain()


async def _copy_body(
    reader: asyncio.StreamReader, head: Head, writer: asyncio.StreamWriter | None, *, request: str = ""
) -> None:
    """Copy a message's body; with no writer, swallow it. `request`: the method, if the message is an answer."""
    if request and (request == "HEAD" or int(head.words[1]) in BODILESS):
        return
    if b"chunked" in head.header(b"transfer-encoding"):
        await _copy_chunks(reader, writer)
        return
    left = int(head.header(b"content-length") or 0)
    while left:
        data = await reader.read(min(left, CHUNK))
        if not data:
            raise ConnectionResetError
        left -= len(data)
        await _send(data, writer)


async def _copy_chunks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None) -> None:
    while True:
        line = await reader.readline()
        size = int(line.partition(b";")[0], 16)
        data = await reader.readexactly(size) if size else b""
        await _send(line + data, writer)
        trailer = await reader.readline()
        await _send(trailer, writer)
        while not size and trailer not in {b"\r\n", b""}:
            trailer = await reader.readline()
            await _send(trailer, writer)
        if not size:
            return


async def _send(data: bytes, writer: asyncio.StreamWriter | None) -> None:
    if writer is not None:
        with contextlib.suppress(ConnectionResetError):
            writer.write(data)
            await writer.drain()
