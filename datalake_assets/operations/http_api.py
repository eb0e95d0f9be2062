"""The write API over HTTP: a token per tenant, one path to post to, and a page that describes it.

Neither a request's body nor its head is ever logged. Whoever sends or reads slowly, or says nothing, keeps nobody else
waiting: connections cost little, and may be many more than the requests that are done at once; and none stays for long
without a whole request.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from datalake_assets.errors import LakeUnavailable
from datalake_assets.operations.access import (
    BUSY,
    TOO_LARGE,
    TOO_SLOW,
    UNAUTHORIZED,
    UNSUPPORTED_FORM,
    Tokens,
    headers_of,
    is_plain,
    status_of,
)
from datalake_assets.operations.answers import Answer, FailureAnswer
from datalake_assets.operations.dispatcher import Operations
from datalake_assets.operations.openapi import PATH, openapi_document, openapi_page
from datalake_assets.operations.requests import MAX_REQUEST_BYTES

__all__ = ["http_app", "http_server", "serve_http"]

#: Requests at the same time; beyond it they are told to come later.
_CONCURRENT = 64
#: Of these, one tenant's: forty threads do the work (AnyIO documentation, "Working with threads").
_PER_TENANT = 8
#: Connections at the same time: a process may mostly have a thousand files open (Linux, RLIMIT_NOFILE).
_CONNECTIONS = 512
#: Seconds until a connection's next head has to be whole; and until a body has, or until some of an answer is taken.
HEAD_S, BODY_S = 10.0, 60.0


def http_app(operations: Operations, tokens: Tokens) -> Starlette:
    """The write API as an ASGI application.

    Args:
        operations: Does the operations.
        tokens: Who may ask.
    """
    turns = _Turns()

    async def do(request: HttpRequest) -> Response:
        tenant = tokens.tenant_of(request.headers.get("authorization", ""))
        if tenant is None:
            return _response(UNAUTHORIZED)
        encoding, kind = (",".join(request.headers.getlist(f"content-{each}")) for each in ("encoding", "type"))
        if not is_plain(encoding, kind):
            return _response(UNSUPPORTED_FORM)
        with turns.of(tenant) as may:
            if not may:
                return _response(BUSY)
            body = await _body(request)
            if isinstance(body, Response):
                return body
            return _response(await run_in_threadpool(operations.answer, body, tenant_id=tenant))

    async def health(_: HttpRequest) -> Response:
        with turns.of("") as may:  # of no tenant
            if not may:
                return _response(BUSY)
            return _response(await run_in_threadpool(operations.answer, {"operation": "HEALTH"}))

    async def document(_: HttpRequest) -> Response:
        return JSONResponse(openapi_document())

    async def page(_: HttpRequest) -> Response:
        return HTMLResponse(openapi_page())

    return Starlette(
        routes=[
            Route(PATH, do, methods=["POST"]),
            Route("/health", health),
            Route("/openapi.json", document),
            Route("/", page),
        ]
    )


class _Turns:
    """Which requests are under way, by whose they are."""

    def __init__(self) -> None:
        self._under_way: Counter[str] = Counter()

    @contextmanager
    def of(self, whose: str) -> Iterator[bool]:
        """Whether another one may be done now; it is under way as long as the context is open."""
        may = self._under_way[whose] < _PER_TENANT and self._under_way.total() < _CONCURRENT
        self._under_way[whose] += may
        try:
            yield may
        finally:
            self._under_way[whose] -= may


async def _body(request: HttpRequest) -> bytes | Response:
    """The body; or an answer if it is too large, of which no more is read than that takes to know, or does not come."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                size += len(part)
                if size > MAX_REQUEST_BYTES:
                    return _response(TOO_LARGE)
                parts.append(part)
    except TimeoutError:
        return _response(TOO_SLOW)
    except ClientDisconnect:  # nobody gets the answer
        return Response(status_code=400)
    return b"".join(parts)


def _response(answer: Answer | FailureAnswer) -> Response:
    return JSONResponse(answer.to_json(), status_code=status_of(answer), headers=headers_of(answer))


class _Impatient(H11Protocol):
    """A connection that ends if no whole head comes in time, or nothing of an answer is taken.

    uvicorn waits for the first head for ever, and for each that comes byte by byte; what comes of a body whose request
    was answered counts as something, too.
    """

    _head: asyncio.TimerHandle | None = None
    _taken: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._await_head()

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and self._head is not None:  # one is whole
            self._head.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # else another request was waiting
            self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taken = self.loop.call_later(BODY_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._taken is not None:
            self._taken.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._taken):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
        self._head = self.loop.call_later(HEAD_S, self._end)

    def _end(self) -> None:
        """Closes the connection; what is left of an answer may be taken until then."""
        self.transport.close()
        self._head = self.loop.call_later(BODY_S, self.transport.abort)


def http_server(operations: Operations, tokens: Tokens) -> uvicorn.Server:
    """The server of the write API, to be run with a socket that listens; see `http_app`."""
    config = uvicorn.Config(
        http_app(operations, tokens),
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        http=_Impatient,  # on h11, which bounds what it reads of a request before it is whole, whoever sends it
    )
    return uvicorn.Server(config)


def serve_http(operations: Operations, tokens: Tokens, *, host: str, port: int, announce: Callable[[str], Any]) -> None:
    """Serves until it is interrupted.

    Args:
        operations: Does the operations.
        tokens: Who may ask.
        host: Address to listen at.
        port: Port; 0: a free one.
        announce: Called with the URL when requests are taken.

    Raises:
        LakeUnavailable: The address cannot be listened at.
    """
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        raise LakeUnavailable(
            f"{host}:{port}", f"cannot listen there: {error.strerror}", cure="choose another"
        ) from error
    with listener:
        announce(f"http://{host}:{listener.getsockname()[1]}")
        with suppress(KeyboardInterrupt):  # uvicorn raises it again when it has ended what it was doing
            http_server(operations, tokens).run(sockets=[listener])
