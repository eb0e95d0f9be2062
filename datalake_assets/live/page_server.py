"""The live page over HTTP: read-only, one page without a build step, and a stream of events that keeps it moving.

A server on the loopback answers whoever asks it by a loopback name, so that no page of another site reaches it by a
name of its own; any other server asks for a token. Tokens are compared in equal time, and never logged.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow as pa
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from datalake_assets.errors import ConfigError, LakeUnavailable
from datalake_assets.feed import NAME_PATTERN, Feed
from datalake_assets.lake.store.base import Store
from datalake_assets.live.board import Board
from datalake_assets.live.servers import LiveServer, new_token, registered
from datalake_assets.live.window import LiveWindow, LiveWindows

__all__ = ["LEAST_TOKEN", "live_app", "opened_at", "serving_live"]

#: Seconds between two documents that a page is sent, and the longest without one.
_TICK_S, _IDLE_S = 0.25, 1.0
#: Connections at the same time; those who keep one open are among them.
_CONCURRENT = 64
#: Windows that are sent at the same time, each as a whole.
_WINDOWS_AT_ONCE = 2
#: Seconds that one may take, and bytes of a part of it.
_SENT_S, _PART_BYTES = 60.0, 1 << 16
#: Characters of a token.
LEAST_TOKEN = 32
_COOKIE = "datalake_live"
#: Feeds that a request may name.
_MOST_NAMES = 200
#: The page's parts, by path: file and type.
_FILES = {
    "/": ("live.html", "text/html; charset=utf-8"),
    "/live.css": ("live.css", "text/css; charset=utf-8"),
    "/live.js": ("live.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def live_app(board: Board, *, token: str | None, local: bool, closing: Callable[[], bool]) -> Starlette:
    """The page as an ASGI application.

    Args:
        board: What it shows.
        token: What readers have to know. On the loopback nobody has to.
        local: Whether the server is on the loopback.
        closing: Whether the server is about to end; open streams do then.
    """
    windows_sent = threading.BoundedSemaphore(_WINDOWS_AT_ONCE)
    files = resources.files("datalake_assets.live").joinpath("page")
    bodies = {path: (files.joinpath(name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}

    async def file(request: Request) -> Response:
        body, kind = bodies[request.url.path]
        return Response(body, headers={**_HEADERS, "Content-Type": kind})

    async def state(request: Request) -> Response:
        names = _names(request)
        if names is None:
            return _plain(400, "feeds are named as the lake has them, with commas between")
        body = await run_in_threadpool(board.document, names)
        return Response(body, headers={**_HEADERS, "Content-Type": "application/json"})

    async def events(request: Request) -> Response:
        names = _names(request)
        if names is None:
            return _plain(400, "feeds are named as the lake has them, with commas between")
        if request.method == "HEAD":
            return Response(headers=_HEADERS)
        headers = {**_HEADERS, "Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
        return StreamingResponse(_stream(board, names, closing), headers=headers)

    async def rows(request: Request) -> Response:
        window = board.windows.get(str(request.path_params["name"]))
        if window is None:
            return _plain(404, "that feed is not shown here")
        if not windows_sent.acquire(blocking=False):
            return _plain(503, "others are being sent windows; ask again")
        return await _window(window, windows_sent.release)

    routes = [Route(path, file) for path in bodies]
    routes += [Route("/state", state), Route("/events", events), Route("/feeds/{name}/rows.arrow", rows)]
    guard = Middleware(_Guard, token=token, local=local)
    return Starlette(routes=routes, middleware=[guard])


async def _stream(board: Board, names: frozenset[str], closing: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Documents as server-sent events: at once when something has changed, and now and then when nothing has."""
    yield b"retry: 1000\n\n"
    last, sent_at = b"", 0.0
    while not closing():
        began = time.monotonic()
        document = await run_in_threadpool(board.document, names)
        body = document.partition(b',"feeds":')[2]
        if body != last or began - sent_at >= _IDLE_S:
            last, sent_at = body, began
            yield b"data: " + document + b"\n\n"
        await asyncio.sleep(max(0.05, _TICK_S - (time.monotonic() - began)))


def _names(request: Request) -> frozenset[str] | None:
    """The feeds that a request names; None if they cannot be names."""
    text = request.query_params.get("feeds", "")
    names = [each for each in text.split(",") if each] if len(text) <= _MOST_NAMES * 130 else ["?"]
    if len(names) > _MOST_NAMES or not all(NAME_PATTERN.fullmatch(each) for each in names):
        return None
    return frozenset(names)


class _Window(StreamingResponse):
    """A window, in parts: what waits for a slow reader is held once, and not for long."""

    def __init__(self, body: memoryview, release: Callable[[], None]) -> None:
        headers = {"Content-Type": "application/vnd.apache.arrow.stream", "Content-Length": str(len(body))}
        super().__init__(_parts(body), headers={**_HEADERS, **headers})
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(TimeoutError):  # then it is not whole, which its reader sees by its length
                async with asyncio.timeout(_SENT_S):
                    await super().__call__(scope, receive, send)
        finally:
            self._release()


async def _window(window: LiveWindow, release: Callable[[], None]) -> Response:
    try:
        return _Window(await run_in_threadpool(lambda: _ipc(window.table())), release)
    except BaseException:
        release()
        raise


async def _parts(body: memoryview) -> AsyncIterator[memoryview]:
    for start in range(0, len(body), _PART_BYTES):
        yield body[start : start + _PART_BYTES]


def _ipc(table: pa.Table | None) -> memoryview:
    sink = pa.BufferOutputStream()
    rows = pa.table({}) if table is None else table
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return memoryview(sink.getvalue())


def _plain(status: int, text: str, **headers: str) -> Response:
    return Response(f"{text}\n", status, headers={**_HEADERS, "Content-Type": "text/plain; charset=utf-8", **headers})


class _Guard:
    """Lets those in who may read, and nobody do anything but read."""

    def __init__(self, app: ASGIApp, *, token: str | None, local: bool) -> None:
        self._app, self._local = app, local
        self._digest = None if token is None else _digest(token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        refusal = self._refusal(request)
        await (self._app if refusal is None else refusal)(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        if request.method not in {"GET", "HEAD"}:
            return _plain(405, "the live view is read-only", Allow="GET, HEAD")
        if self._local:
            reached_by = _host_of(request.headers.get("host", ""))
            return None if _is_loopback(reached_by) else _plain(421, "ask for it as 127.0.0.1 or localhost")
        given = request.query_params.get("token")
        if given is not None and request.url.path == "/":
            return self._with_cookie(given)
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        held = bearer.strip() if scheme.lower() == "bearer" else request.cookies.get(_COOKIE, "")
        if self._is_token(held):
            return None
        return _plain(
            401, "open the page by the address that 'datalake live' printed", **{"WWW-Authenticate": "Bearer"}
        )

    def _with_cookie(self, given: str) -> Response:
        """Keeps a token from the address bar and its history."""
        if not self._is_token(given):
            return _plain(401, "that is not the token of this live view")
        answer = RedirectResponse("/", 303, headers=_HEADERS)
        # strict is not sent after a link of another site, such as a chat; whoever has it can only read, and only here
        answer.set_cookie(_COOKIE, given, httponly=True, samesite="lax")
        return answer

    def _is_token(self, text: str) -> bool:
        return self._digest is not None and hmac.compare_digest(_digest(text), self._digest)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _host_of(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def serving_live(
    store: Store,
    feeds: Iterable[Feed],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    lands: bool = True,
    announce: Callable[[str], Any],
) -> Iterator[LiveWindows]:
    """Shows feeds on a page, while the block runs; the server has a thread of its own.

    Args:
        store: The lake.
        feeds: The feeds.
        host: Address to listen at.
        port: Port; 0: a free one.
        token: What readers elsewhere have to know; None: a new one.
        lands: Whether the passes that are shown to the windows commit what they accept.
        announce: Called with the page's address when it can be opened.

    Returns:
        The windows; show them the passes (`datalake_assets.lake.watching.watched_by`).

    Raises:
        ConfigError: A feed has no live view, or the token is too short.
        LakeUnavailable: The address cannot be listened at.
    """
    if token is not None and (len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable()):
        raise ConfigError(f"the token of the live view is not {LEAST_TOKEN} or more printable characters")
    shown = tuple(feeds)
    windows = LiveWindows(shown, lands=lands)
    listener = _listener(host, port)
    with listener:
        local = _is_loopback(listener.getsockname()[0])
        known = token or new_token()
        board = Board(windows, store)
        server = _server(board, None if local else known, local=local)
        with board.open(), _running(server, [listener]):
            url = _url(host, listener.getsockname()[1])
            with registered(LiveServer(os.getpid(), url, known, store.uri, tuple(each.name for each in shown))):
                announce(url if local else opened_at(url, known))
                yield windows


def _listener(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LakeUnavailable(f"{host}:{port}", f"cannot listen there: {reason}", cure="choose another") from error


def opened_at(url: str, token: str) -> str:
    """The address that opens a page which asks for a token."""
    return f"{url}/?token={quote(token, safe='')}"


def _url(host: str, port: int) -> str:
    reached = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104  shown, not bound
    return f"http://{reached}:{port}"


def _server(board: Board, token: str | None, *, local: bool) -> uvicorn.Server:
    def closing() -> bool:
        return bool(server.should_exit)

    config = uvicorn.Config(
        live_app(board, token=token, local=local, closing=closing),
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_CONCURRENT,
        timeout_graceful_shutdown=1,
        lifespan="off",
        ws="none",
        http="h11",  # which bounds what it reads of a request before it is whole, whoever sends it
    )
    server = uvicorn.Server(config)
    return server


@contextmanager
def _running(server: uvicorn.Server, listeners: Sequence[socket.socket]) -> Iterator[None]:
    thread = threading.Thread(target=server.run, args=(list(listeners),), name="live-page", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=5)
