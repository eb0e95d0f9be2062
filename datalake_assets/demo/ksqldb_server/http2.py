"""HTTP/2 on one connection: many streams, each with the client's flow control."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

from datalake_assets.demo.ksqldb_server.http1 import MAX_BODY_BYTES, Handler, Headers, Request, Upgrade, path_of

__all__ = ["PREFACE", "serve_http2"]

# what a client with prior knowledge sends first (RFC 9113, section 3.4)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_READ_BYTES = 65_536
# headers that mean nothing in HTTP/2 and are forbidden there (RFC 9113, section 8.2.2)
_FORBIDDEN = frozenset({"connection", "transfer-encoding", "upgrade", "keep-alive"})


@dataclass(slots=True)
class _Stream:
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)
    may_send: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Future[None] | None = None
    gone: bool = False


class _Response:
    def __init__(self, connection: _Connection, stream_id: int, stream: _Stream) -> None:
        self._connection, self._id, self._stream = connection, stream_id, stream
        self.started = False

    async def start(self, status: int, headers: Headers) -> None:
        self._check()
        self.started = True
        allowed = [(name, value) for name, value in headers if name not in _FORBIDDEN]
        self._connection.state.send_headers(self._id, [(":status", str(status)), *allowed])
        await self._connection.flush()

    async def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            size = await self._room(len(rest))
            self._connection.state.send_data(self._id, bytes(rest[:size]))
            rest = rest[size:]
            await self._connection.flush()

    async def _room(self, wanted: int) -> int:
        """How much may be sent now; waits until it is something."""
        state = self._connection.state
        while True:
            self._check()
            self._stream.may_send.clear()
            size = min(wanted, state.local_flow_control_window(self._id), state.max_outbound_frame_size)
            if size > 0:
                return size
            await self._stream.may_send.wait()

    async def end(self) -> None:
        self._check()
        self._connection.state.end_stream(self._id)
        await self._connection.flush()

    async def cut(self) -> None:
        await self._connection.cut()

    def _check(self) -> None:
        if self._stream.gone:
            raise ConnectionResetError("the client closed the stream")
        if self._connection.is_cut or self._connection.writer.is_closing():
            raise ConnectionResetError("the client left")


class _Connection:
    def __init__(self, writer: asyncio.StreamWriter, handler: Handler) -> None:
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.state = h2.connection.H2Connection(config)
        self.writer, self._handler = writer, handler
        self._streams: dict[int, _Stream] = {}
        self.is_cut = False

    async def flush(self) -> None:
        if self.is_cut:
            raise ConnectionResetError("the connection was cut")
        self.writer.write(self.state.data_to_send())
        await self.writer.drain()

    async def cut(self) -> None:
        await self.flush()
        self.is_cut = True
        # what was sent still arrives: closing with the client's window updates unread would reset the connection
        if self.writer.can_write_eof():
            self.writer.write_eof()
        else:
            self.writer.close()

    def begin(self, upgrade: Upgrade | None) -> None:
        if upgrade is None:
            self.state.initiate_connection()
            return
        try:
            self.state.initiate_upgrade_connection(upgrade.settings.encode())
        except (h2.exceptions.ProtocolError, ValueError) as exc:
            raise ConnectionResetError("the client's HTTP2-Settings cannot be read") from exc
        self._streams[1] = _Stream({})
        self._start(1, upgrade.request)

    async def receive(self, data: bytes) -> bool:
        """Act on what the client sent; False once the connection is over."""
        try:
            events = self.state.receive_data(data)
        except h2.exceptions.ProtocolError:
            await self.flush()
            return False
        for event in events:
            self._act(event)
        await self.flush()
        return not any(isinstance(event, h2.events.ConnectionTerminated) for event in events)

    def _act(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._streams[event.stream_id] = _Stream({str(name): str(value) for name, value in event.headers})
        elif isinstance(event, h2.events.DataReceived):
            self._received(event)
        elif isinstance(event, h2.events.StreamEnded):
            self._requested(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self._dropped(event.stream_id)
        elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            for stream in self._streams.values():
                stream.may_send.set()

    def _received(self, event: h2.events.DataReceived) -> None:
        self.state.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        stream.body += event.data or b""
        if len(stream.body) > MAX_BODY_BYTES:
            self.state.reset_stream(event.stream_id, h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
            del self._streams[event.stream_id]

    def _requested(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or stream.task is not None:
            return
        plain = {name: value for name, value in stream.headers.items() if not name.startswith(":")}
        path = path_of(stream.headers.get(":path", "/"))
        self._start(stream_id, Request(stream.headers.get(":method", ""), path, plain, bytes(stream.body), "2"))

    def _start(self, stream_id: int, request: Request) -> None:
        self._streams[stream_id].task = asyncio.ensure_future(self._answer(stream_id, request))

    async def _answer(self, stream_id: int, request: Request) -> None:
        stream = self._streams[stream_id]
        try:
            await self._handler(request, _Response(self, stream_id, stream))
        except (ConnectionError, h2.exceptions.ProtocolError):
            stream.gone = True  # the client went away; nobody is left to tell
        finally:
            self._streams.pop(stream_id, None)

    def _dropped(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.gone = True
            stream.may_send.set()
            if stream.task is not None:
                stream.task.cancel()

    async def close(self) -> None:
        tasks = [stream.task for stream in self._streams.values() if stream.task is not None]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def serve_http2(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    handler: Handler,
    first: bytes,
    *,
    upgrade: Upgrade | None = None,
) -> None:
    """Serve streams until the client leaves.

    Args:
        reader: From the client.
        writer: To the client.
        handler: Answers requests.
        first: What was read already.
        upgrade: The HTTP/1.1 request that led here, answered as stream 1.
    """
    connection = _Connection(writer, handler)
    connection.begin(upgrade)
    try:
        await connection.flush()
        data = first or await reader.read(_READ_BYTES)
        while data and (connection.is_cut or await connection.receive(data)):
            data = await reader.read(_READ_BYTES)
    finally:
        await connection.close()
