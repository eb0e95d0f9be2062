"""A server that speaks ksqlDB's protocol over generated data, so that demo and tests need no Kafka.

HTTP/1.1, HTTP/2 with prior knowledge, the h2c upgrade and, with an SSL context, TLS with ALPN, all on one port.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from datalake_assets.demo.ksqldb_server.faults import Faults
from datalake_assets.demo.ksqldb_server.generator import Generator, GeneratorConfig
from datalake_assets.demo.ksqldb_server.http1 import serve_http1
from datalake_assets.demo.ksqldb_server.http2 import PREFACE, serve_http2
from datalake_assets.demo.ksqldb_server.ksql_app import KsqlApp

__all__ = ["KsqlServer"]

# how long a stopping server waits for its clients to take the ends of their results
_GRACE_S = 1.0


class KsqlServer:
    """The server; a context manager that runs it in a thread of its own.

    Args:
        config: The data.
        host: The address to listen on.
        port: The port; 0 takes a free one.
        auth: User and password for HTTP Basic; None lets everybody in.
        ssl_context: Serves TLS with this context, which is changed to offer HTTP/2.
        faults: What goes wrong; may be changed while the server runs.
        clock: Seconds since the epoch, for streams that grow.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        auth: tuple[str, str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        faults: Faults | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.faults = faults if faults is not None else Faults()
        self.generator = Generator(config, clock=clock)
        self._host, self._port, self._ssl = host, port, ssl_context
        if ssl_context is not None:
            ssl_context.set_alpn_protocols(["h2", "http/1.1"])
        self._app = KsqlApp(self.generator, self.faults, auth)
        self._connections: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop: asyncio.Event | None = None

    @property
    def port(self) -> int:
        """The port that is listened on; the one asked for before the server starts."""
        return self._port

    @property
    def url(self) -> str:
        """The server's URL, without credentials."""
        return f"{'http' if self._ssl is None else 'https'}://{self._host}:{self._port}"

    def __enter__(self) -> Self:
        listening = threading.Event()
        failures: list[BaseException] = []

        def run() -> None:
            try:
                asyncio.run(self._serve(listening.set))
            except BaseException as exc:  # noqa: BLE001 - handed to the thread that started us
                failures.append(exc)
                listening.set()

        self._thread = threading.Thread(target=run, name="ksqldb", daemon=True)
        self._thread.start()
        listening.wait()
        if failures:
            self._thread.join()
            raise failures[0]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop ended on its own
                self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join()

    def serve_forever(self, announce: Callable[[str], None] = print) -> None:
        """Serve in the foreground until SIGINT or SIGTERM; only in the main thread.

        Args:
            announce: Called with the URL once the server listens.
        """
        asyncio.run(self._serve(lambda: announce(self.url), signals=(signal.SIGINT, signal.SIGTERM)))

    async def _serve(self, listening: Callable[[], None], *, signals: tuple[signal.Signals, ...] = ()) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        for number in signals:
            self._loop.add_signal_handler(number, self._stop.set)
        server = await asyncio.start_server(self._connected, self._host, self._port, ssl=self._ssl)
        self._port = server.sockets[0].getsockname()[1]
        try:
            listening()
            await self._stop.wait()
        finally:
            server.close()
            await self._close_connections()

    async def _close_connections(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._app.close_queries(), _GRACE_S)
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
        try:
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # the client went away, or never spoke HTTP
        except asyncio.CancelledError:
            writer.transport.abort()  # the server stops, and waits for nobody
        finally:
            await _closed(writer)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = b""
        while PREFACE.startswith(first) and len(first) < len(PREFACE):
            data = await reader.read(len(PREFACE) - len(first))
            if not data:
                return
            first += data
        if first == PREFACE:
            await serve_http2(reader, writer, self._app, first)
            return
        upgrade = await serve_http1(reader, writer, self._app, first, cleartext=self._ssl is None)
        if upgrade is not None:
            await serve_http2(reader, writer, self._app, upgrade.rest, upgrade=upgrade)


async def _closed(writer: asyncio.StreamWriter) -> None:
    """Close a connection; a client that does not take the rest is cut off when the server stops."""
    writer.close()
    try:
        await writer.wait_closed()
    except (ConnectionError, ssl.SSLError):
        pass
    except asyncio.CancelledError:
        writer.transport.abort()
