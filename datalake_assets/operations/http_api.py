"""The write API over HTTP: a token per tenant, one path to post to, and a page that describes it.

A token is compared with every known one in the same time, whether it is known or not, and is never logged: neither is a
request's body nor its head.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from datalake_assets.errors import ConfigError, LakeUnavailable
from datalake_assets.operations.dispatcher import Operations
from datalake_assets.operations.openapi import PATH, openapi_document, openapi_page
from datalake_assets.operations.requests import MAX_REQUEST_BYTES, NAME_PATTERN, Answer, Code, Failure, FailureAnswer

__all__ = ["STATUS", "Tokens", "http_app", "serve_http"]

#: HTTP's status of a failure. What may have been done is none of those that clients repeat by themselves.
STATUS = {
    Code.INVALID_REQUEST: 400,
    Code.QUERY_REFUSED: 400,
    Code.UNAUTHORIZED: 401,
    Code.FORBIDDEN: 403,
    Code.TABLE_NOT_FOUND: 404,
    Code.SNAPSHOT_NOT_FOUND: 404,
    Code.TABLE_EXISTS: 409,
    Code.TABLE_UNREADABLE: 409,
    Code.KEY_REUSED: 409,
    Code.CONFLICT: 409,
    Code.LIMIT_EXCEEDED: 413,
    Code.INVALID_RECORDS: 422,
    Code.QUERY_TIMED_OUT: 422,
    Code.OUTCOME_UNKNOWN: 500,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
}
#: Characters of a token: 128 random bits in hexadecimal have as many.
LEAST_TOKEN = 32
#: Requests at the same time; beyond it they are told to come later.
_CONCURRENT = 64
_UNAUTHORIZED = FailureAnswer(
    error=Failure(code=Code.UNAUTHORIZED, message="give a tenant's token as 'Authorization: Bearer TOKEN'")
)
_TOO_LARGE = FailureAnswer(
    error=Failure(
        code=Code.LIMIT_EXCEEDED,
        message=f"the request is larger than {MAX_REQUEST_BYTES} bytes; write fewer records at a time",
        details={"limit_bytes": MAX_REQUEST_BYTES},
    )
)


class Tokens:
    """Who may ask as which tenant.

    Args:
        tokens: Tokens by tenant; several while one is being replaced.

    Raises:
        ConfigError: A token is too short, is two tenants', or a tenant's name is none.
    """

    def __init__(self, tokens: Mapping[str, list[str]]) -> None:
        self._tenants: dict[bytes, str] = {}
        for tenant, each in tokens.items():
            if not NAME_PATTERN.fullmatch(tenant):
                raise ConfigError(f"{tenant!r} cannot be a tenant: names match {NAME_PATTERN.pattern}")
            for token in each:
                digest = _digest(token)
                if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
                    raise ConfigError(f"a token of {tenant!r} is not {LEAST_TOKEN} or more printable characters")
                if self._tenants.setdefault(digest, tenant) != tenant:
                    raise ConfigError(f"{tenant!r} and {self._tenants[digest]!r} have the same token")
        if not self._tenants:
            raise ConfigError("there is no token for any tenant, so nobody could ask for anything")

    @classmethod
    def read(cls, file: str) -> Tokens:
        """The tokens of a file: a JSON object of a token, or a list of tokens, by tenant.

        Raises:
            ConfigError: It cannot be read, or is something else; no part of it is repeated.
        """
        try:
            found = json.loads(Path(file).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"the tokens' file {file} cannot be read: {error.strerror}") from error
        except ValueError:
            raise ConfigError(f"the tokens' file {file} is not a JSON document in UTF-8") from None
        if not isinstance(found, dict) or not all(map(_is_token, found.values())):
            raise ConfigError(f"the tokens' file {file} is not an object of a token, or a list of tokens, by tenant")
        return cls({tenant: each if isinstance(each, list) else [each] for tenant, each in found.items()})

    def tenant_of(self, authorization: str) -> str | None:
        """Whose token an ``Authorization`` header has; None if it is nobody's."""
        scheme, _, token = authorization.partition(" ")
        given, found = _digest(token.strip()), None
        for digest, tenant in self._tenants.items():  # all of them, so that the time tells nothing
            if hmac.compare_digest(digest, given):
                found = tenant
        return found if scheme.lower() == "bearer" else None


def _is_token(value: object) -> bool:
    return all(isinstance(each, str) for each in (value if isinstance(value, list) else [value]))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def http_app(operations: Operations, tokens: Tokens) -> Starlette:
    """The write API as an ASGI application.

    Args:
        operations: Does the operations.
        tokens: Who may ask.
    """

    async def do(request: HttpRequest) -> Response:
        tenant = tokens.tenant_of(request.headers.get("authorization", ""))
        if tenant is None:
            return _response(_UNAUTHORIZED)
        body = await _body(request)
        if body is None:
            return _response(_TOO_LARGE)
        return _response(await run_in_threadpool(operations.answer, body, tenant_id=tenant))

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
    failure = answer.error if isinstance(answer, FailureAnswer) else None
    headers = {"WWW-Authenticate": "Bearer"} if failure is not None and failure.code == Code.UNAUTHORIZED else None
    status = 200 if failure is None else STATUS[failure.code]
    return JSONResponse(answer.to_json(), status_code=status, headers=headers)


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
        )
        announce(f"http://{host}:{listener.getsockname()[1]}")
        with suppress(KeyboardInterrupt):  # uvicorn raises it again when it has ended what it was doing
            uvicorn.Server(config).run(sockets=[listener])
