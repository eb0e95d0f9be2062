"""The write API as an AWS Lambda function behind an API Gateway: ``datalake_assets.operations.lambda_handler.handler``.

Events of REST APIs and of HTTP APIs (payload formats 1.0 and 2.0) are answered as the HTTP server answers them. A
schedule's events compact the tables of all tenants.
Settings come from the function's environment.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from datalake_assets.operations.access import (
    TOO_LARGE,
    UNAUTHORIZED,
    UNSUPPORTED_FORM,
    Tokens,
    headers_of,
    is_plain,
    status_of,
)
from datalake_assets.operations.answers import Answer, Code, Failure, FailureAnswer
from datalake_assets.operations.dispatcher import Operations
from datalake_assets.operations.openapi import PATH, openapi_document
from datalake_assets.operations.requests import MAX_REQUEST_BYTES
from datalake_assets.settings import load_settings

__all__ = ["handler"]

_NO_PATH = FailureAnswer(error=Failure(code=Code.INVALID_REQUEST, message=f"post requests to {PATH}"))


#: Sources of scheduled events: rules of EventBridge, and its Scheduler.
_SCHEDULES = frozenset({"aws.events", "aws.scheduler"})
#: Milliseconds that a function must have left for another table to be begun.
LEAST_MS = 60_000


@cache
def _operations() -> Operations:
    return Operations.of(load_settings())


@cache
def _tokens() -> Tokens:
    return Tokens.of(load_settings())


def handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Answers one event.

    Args:
        event: What API Gateway sends for a request; or a schedule's, which compacts what needs it, of all tenants.
        context: Lambda's.

    Raises:
        ValueError: The event is none of these; Lambda reports it as the function's error.
    """
    if event.get("source") in _SCHEDULES and "requestContext" not in event:
        return _operations().compact_all(may_go_on=lambda: _left_ms(context) > LEAST_MS)
    if "requestContext" not in event:
        raise ValueError("this function takes events of an API Gateway, in payload format 1.0 or 2.0, or of a schedule")
    method, path = _line(event)
    if method == "GET" and path.endswith("/openapi.json"):
        return _response(200, openapi_document())
    if method == "GET" and path.endswith("/health"):
        return _answered(_operations().answer({"operation": "HEALTH"}))
    if method != "POST" or not path.endswith(PATH):
        return _response(404, _NO_PATH.to_json())
    tenant = _tokens().tenant_of(_header(event, "authorization"))
    if tenant is None:
        return _answered(UNAUTHORIZED)
    body = _body(event)
    return _answered(body if isinstance(body, FailureAnswer) else _operations().answer(body, tenant_id=tenant))


def _left_ms(context: Any) -> int:
    return int(context.get_remaining_time_in_millis())


def _line(event: Mapping[str, Any]) -> tuple[str, str]:
    """Method and path; the path may begin with the name of a stage."""
    if event.get("version") == "2.0":
        return event["requestContext"]["http"]["method"], event["rawPath"]
    return event["httpMethod"], event["path"]


def _header(event: Mapping[str, Any], wanted: str) -> str:
    """A header that is there once; empty otherwise."""
    headers = event.get("headers") or {}
    found = [value for name, value in headers.items() if name.lower() == wanted]
    return str(found[0]) if len(found) == 1 else ""


def _body(event: Mapping[str, Any]) -> bytes | FailureAnswer:
    """The body; or an answer if it is too large, or in another form than it can be read in."""
    if not is_plain(_header(event, "content-encoding"), _header(event, "content-type")):
        return UNSUPPORTED_FORM
    text = event.get("body") or ""
    if len(text) > 2 * MAX_REQUEST_BYTES:
        return TOO_LARGE
    if not event.get("isBase64Encoded"):
        return str(text).encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _answered(answer: Answer | FailureAnswer) -> dict[str, Any]:
    return _response(status_of(answer), answer.to_json(), headers_of(answer))


def _response(
    status: int, document: Mapping[str, Any], more: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    headers = {"content-type": "application/json", **more}
    return {"statusCode": status, "headers": headers, "body": json.dumps(document), "isBase64Encoded": False}
