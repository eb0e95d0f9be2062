"""HTTP/1.1 on one connection, with the request and answer that HTTP/2 shares.

Requests come one after another; answers are chunked; a connection can be upgraded to HTTP/2.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol
from urllib.parse import urlsplit

import h11

__all__ = [
    "MAX_BODY_BYTES",
    "Handler",
    "Headers",
    "Request",
    "Response",
    "Upgrade",
    "path_of",
    "reason_of",
    "serve_http1",
]

# far above any statement; a body beyond it is refused
MAX_BODY_BYTES = 8 * 1024 * 1024

Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Request:
    """A request that has arrived whole.

    Attributes:
        method: GET, POST, …
        path: Without host and query, even if the target was in absolute form.
        headers: By lower-case name.
        body: The body.
        http_version: ``1.0``, ``1.1`` or ``2``.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    http_version: str


class Response(Protocol):
    """Where an answer goes. Every method may raise ConnectionError once the client is gone.

    Attributes:
        started: Whether the head was sent, so that the status can no longer change.
    """

    started: bool

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head; without a Content-Length the body ends when it is ended."""
        ...

    async def write(self, data: bytes) -> None:
        """Send a part of the body; returns when the client has taken enough of what was sent before."""
        ...

    async def end(self) -> None:
        """Send the end of the body."""
        ...

    async def cut(self) -> None:
        """Send what was written, then break the connection without ending the body."""
        ...


Handler = Callable[[Request, Response], Awaitable[None]]


def path_of(target: str) -> str:
    """The path of a request target in origin form (``/x?y``) or absolute form (``http://host/x``)."""
    return urlsplit(target).path or "/"


def reason_of(status: int) -> str:
    """The reason phrase, which some clients cannot do without."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


_READ_BYTES = 65_536
_PAYLOAD_TOO_LARGE = 413


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A request that asked to go on in HTTP/2.

    Attributes:
        request: Answered as stream 1.
        settings: The ``HTTP2-Settings`` header.
        rest: What the client sent after the request.
    """

    request: Request
    settings: str
    rest: bytes


class _Response:
    def __init__(self, connection: h11.Connection, writer: asyncio.StreamWriter, method: str) -> None:
        self._connection, self._writer, self._method = connection, writer, method
        self.started = False

    async def start(self, status: int, headers: Headers) -> None:
        self.started = True
        await self._send(h11.Response(status_code=status, reason=reason_of(status).encode(), headers=headers))

    async def write(self, data: bytes) -> None:
        if data and self._method != "HEAD":
            await self._send(h11.Data(data=data))

    async def end(self) -> None:
        await self._send(h11.EndOfMessage())

    async def cut(self) -> None:
        await self._writer.drain()
        self._writer.close()

    async def _send(self, event: h11.Response | h11.Data | h11.EndOfMessage) -> None:
        try:
            data = self._connection.send(event)
        except h11.LocalProtocolError as exc:
            raise ConnectionResetError("the client broke the protocol") from exc
        self._writer.write(data or b"")
        await self._writer.drain()


async def serve_http1(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler, first: bytes, *, cleartext: bool
) -> Upgrade | None:
    """Serve requests until the client leaves; returns early if one asks to go on in HTTP/2.

    Args:
        reader: From the client.
        writer: To the client.
        handler: Answers requests.
        first: What was read already.
        cleartext: Whether an upgrade to HTTP/2 may be asked for.
    """
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(first)
    while True:
        request = await _next_request(connection, reader, writer)
        if request is None:
            return None
        settings = _upgrade_settings(request) if cleartext else None
        if settings is not None:
            await _switch(connection, writer)
            return Upgrade(request, settings, connection.trailing_data[0])
        await _answer(connection, reader, writer, handler, request)
        if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
            return None
        connection.start_next_cycle()


async def _next_request(
    connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Request | None:
    head: h11.Request | None = None
    body = bytearray()
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as exc:
            await _refuse(connection, writer, exc.error_status_hint)
            return None
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            connection.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BODY_BYTES:
                await _refuse(connection, writer, _PAYLOAD_TOO_LARGE)
                return None
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            return _request(head, bytes(body))
        else:
            return None


def _request(head: h11.Request, body: bytes) -> Request:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
    target = head.target.decode("latin-1")
    return Request(head.method.decode(), path_of(target), headers, body, head.http_version.decode())


async def _refuse(connection: h11.Connection, writer: asyncio.StreamWriter, status: int) -> None:
    if connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
        headers = [("content-length", "0"), ("connection", "close")]
        response = _Response(connection, writer, "GET")
        await response.start(status, headers)
        await response.end()


def _upgrade_settings(request: Request) -> str | None:
    wanted = {token.strip().lower() for token in request.headers.get("upgrade", "").split(",")}
    return request.headers.get("http2-settings") if "h2c" in wanted else None


async def _switch(connection: h11.Connection, writer: asyncio.StreamWriter) -> None:
    headers = [("connection", "upgrade"), ("upgrade", "h2c")]  # as Netty writes it: some clients compare to the letter
    head = h11.InformationalResponse(status_code=101, reason=reason_of(101).encode(), headers=headers)
    writer.write(connection.send(head) or b"")
    await writer.drain()


async def _answer(
    connection: h11.Connection,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    handler: Handler,
    request: Request,
) -> None:
    """Answer, and stop at once if the client leaves."""
    answer = asyncio.ensure_future(handler(request, _Response(connection, writer, request.method)))
    watch = asyncio.ensure_future(_departed(connection, reader))
    try:
        await asyncio.wait({answer, watch}, return_when=asyncio.FIRST_COMPLETED)
        if watch.done() and watch.result():
            raise ConnectionResetError("the client left")
        await answer
    finally:
        for task in (watch, answer):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await task


async def _departed(connection: h11.Connection, reader: asyncio.StreamReader) -> bool:
    """Wait until the client sends the next request early (False) or leaves (True)."""
    try:
        data = await reader.read(_READ_BYTES)
    except ConnectionError:
        return True
    if data:
        connection.receive_data(data)
    return not data
