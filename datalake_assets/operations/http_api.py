"""The write API over HTTP: a token per tenant, one path to post to, and a page that describes it.

Neither a request's body nor its head is ever logged.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from datalake_assets.errors import LakeUnavailable
from datalake_assets.operations.access import BUSY, TOO_LARGE, UNAUTHORIZED, Tokens, status_of
from datalake_assets.operations.answers import Answer, FailureAnswer
from datalake_assets.operations.dispatcher import Operations
from datalake_assets.operations.openapi import PATH, openapi_document, openapi_page
from datalake_assets.operations.requests import MAX_REQUEST_BYTES

__all__ = ["http_app", "serve_http"]

#: Requests at the same time; beyond it they are told to come later.
_CONCURRENT = 64
#: Of these, one tenant's: forty threads do the work (AnyIO documentation, "Working with threads").
_PER_TENANT = 8


def http_app(operations: Operations, tokens: Tokens) -> Starlette:
    """The write API as an ASGI application.

    Args:
        operations: Does the operations.
        tokens: Who may ask.
    """
    under_way: Counter[str] = Counter()

    async def do(request: HttpRequest) -> Response:
        tenant = tokens.tenant_of(request.headers.get("authorization", ""))
        if tenant is None:
            return _response(UNAUTHORIZED)
        if under_way[tenant] >= _PER_TENANT:
            return _response(BUSY)
        under_way[tenant] += 1
        try:
            body = await _body(request)
            if body is None:
                return _response(TOO_LARGE)
            return _response(await run_in_threadpool(operations.answer, body, tenant_id=tenant))
        except ClientDisconnect:  # nobody gets the answer
            return Response(status_code=400)
        finally:
            under_way[tenant] -= 1

    async def health(_: HttpRequest) -> Response:
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


async def _body(request: HttpRequest) -> bytes | None:
    """The body; None if it is too large, of which no more is read than that takes to know."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_REQUEST_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)


def _response(answer: Answer | FailureAnswer) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if answer is UNAUTHORIZED else None
    return JSONResponse(answer.to_json(), status_code=status_of(answer), headers=headers)


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
        config = uvicorn.Config(
            http_app(operations, tokens),
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_CONCURRENT,
            http="h11",  # which bounds what it reads of a request before it is whole, whoever sends it
        )
        announce(f"http://{host}:{listener.getsockname()[1]}")
        with suppress(KeyboardInterrupt):  # uvicorn raises it again when it has ended what it was doing
            uvicorn.Server(config).run(sockets=[listener])
