"""Whether a document is a request at all: its size, its depth, and every field of it, before anything is done."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from datetime import time as time_of_day
from decimal import Decimal
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from datalake_assets.errors import DatalakeError
from datalake_assets.operations.answers import REQUEST_TOO_LARGE, Code, Failure, shown_name
from datalake_assets.operations.requests import MAX_DEPTH, MAX_REQUEST_BYTES, Request, operation_of, request_models
from datalake_assets.policies import problem_text

__all__ = ["RequestRefused", "checked_request"]

#: Problems of a request that are named.
_PROBLEMS = 20
_REQUESTS: TypeAdapter[Request] = TypeAdapter(Request)
_SMALL = frozenset({int, float, bool, type(None)})
_VALUES = (str, int, float, bool, bytes, type(None), date, time_of_day, Decimal, uuid.UUID)


class RequestRefused(DatalakeError):
    """A request that is not done, for a reason that its caller can act on.

    Args:
        code: What went wrong.
        message: For people.
        retryable: Whether the same request may succeed later.
        details: What the code is about.
    """

    def __init__(self, code: Code, message: str, *, retryable: bool = False, **details: Any) -> None:
        self.failure = Failure(code=code, message=message, retryable=retryable, details=details)
        super().__init__(message)


def checked_request(request: bytes | str | Mapping[str, Any]) -> Request:
    """The request, if it is one.

    Raises:
        RequestRefused: It is too large, too deep, no JSON, or not what any operation takes.
    """
    if isinstance(request, bytes | str):
        _measure(_parsed(request))  # which is gone by the time that another is made
        document = _exactly_parsed(request)
    else:
        _measure(document := request)
    try:
        return _REQUESTS.validate_python(document)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
    named = [{"field": _place(each["loc"]), "problem": _reason(each)} for each in problems[:_PROBLEMS]]
    first = named[0]
    message = f"{first['field'] or 'the request'}: {first['problem']}"
    raise RequestRefused(Code.INVALID_REQUEST, message, problems=named, problems_count=len(problems))


def _parsed(request: bytes | str) -> Any:
    if len(request) > MAX_REQUEST_BYTES:
        raise _too_large()
    try:
        return orjson.loads(request)
    except ValueError:
        reason = "the request is not one JSON document in UTF-8 (numbers are finite, and nothing is nested too deeply)"
        raise RequestRefused(Code.INVALID_REQUEST, reason) from None


def _exactly_parsed(request: bytes | str) -> Any:
    """A document that was measured, with its integers whole: orjson makes floats of those beyond 64 bits.

    Raises:
        RequestRefused: An object has a field twice, so that one of its values would be lost.
    """
    try:
        return json.loads(request, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        reason = "an integer has thousands of digits, or something is nested too deeply"
        raise RequestRefused(Code.INVALID_REQUEST, reason) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RequestRefused(Code.INVALID_REQUEST, "an object has a field twice")
    return found


def _too_large() -> RequestRefused:
    return RequestRefused(REQUEST_TOO_LARGE.code, REQUEST_TOO_LARGE.message, **REQUEST_TOO_LARGE.details)


def _measure(document: Any) -> None:
    """Walks through a request once, whatever its shape; takes no memory for it but for what lies in each other.

    Raises:
        RequestRefused: It is too large, too deep, or has something in it that JSON has not.
    """
    left = MAX_REQUEST_BYTES
    within: list[Iterator[Any]] = [iter((document,))]
    while within:
        if len(within) > MAX_DEPTH + 1:
            message = f"lists and objects lie in each other more than {MAX_DEPTH} deep"
            raise RequestRefused(Code.LIMIT_EXCEEDED, message, limit_depth=MAX_DEPTH)
        for value in within[-1]:
            parts, size = _parts(value)
            left -= size
            if left < 0:
                raise _too_large()
            if parts is not None:
                within.append(iter(parts))
                break
        else:
            within.pop()


def _parts(value: Any) -> tuple[Iterable[Any] | None, int]:
    """What lies in a value, None if it cannot have parts; and what it takes by itself, about as many bytes as written.

    Raises:
        RequestRefused: JSON has nothing like it.
    """
    if type(value) in _SMALL:
        return None, 1
    if isinstance(value, list | tuple):
        return value, len(value) + 1
    if isinstance(value, dict | Mapping):  # the former is looked at faster
        if not all(isinstance(key, str) for key in value):
            raise RequestRefused(Code.INVALID_REQUEST, "the keys of objects are texts")
        return value.values(), 2 * len(value) + sum(map(len, value)) + 1
    if not isinstance(value, _VALUES):
        raise RequestRefused(Code.INVALID_REQUEST, f"a value of Python's type {type(value).__name__} is not taken")
    return None, len(value) + 1 if isinstance(value, str | bytes) else 1


def _place(path: Sequence[int | str]) -> str:
    """Where a problem is, without the name of the operation, which pydantic begins with."""
    return shown_name(".".join(map(str, path[1:])))


def _reason(problem: Mapping[str, Any]) -> str:
    if problem["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        return f"'operation' is one of {', '.join(map(operation_of, request_models()))}"
    return problem_text(problem)
