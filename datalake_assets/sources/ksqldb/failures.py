"""What a ksqlDB server's failures mean: which error, for whom, and whether asking again can help.

ksqlDB reuses codes: a busy server answers 429, 503, a masked 500 or, before 8.0.1, a 400 that looks like bad SQL. All
of that is distinguished here, once, so that retries and messages agree.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import httpx

from datalake_assets.errors import (
    DatalakeError,
    IncompleteResponse,
    SourceError,
    SourceRefused,
    SourceUnavailable,
)
from datalake_assets.retrying import attempts

__all__ = [
    "ATTEMPTS",
    "TransientFailure",
    "failed_answer",
    "failed_exchange",
    "failed_rows",
    "one_line",
    "retried",
    "surfaced",
]

_T = TypeVar("_T")

ATTEMPTS = 4
RETRY_BUDGET_S = 30.0
#: The hourly bandwidth budget of pull queries refills slowly; asking again at once is refused again.
_LATE_S = 10.0
#: HTTP statuses of a server, or of a proxy before it, that is busy or restarting.
_BUSY = frozenset({429, 502, 503, 504})
# ksqlDB, ServerUtils / PullQueryExecutor / RateLimiter: the texts that distinguish these cases
_MASKED = "internal error when processing the query"
_NO_HOST = "Unable to execute pull query"
_BANDWIDTH = "bandwidth rate limit"
_LONGEST_MESSAGE = 400
_USERINFO = re.compile(r"//[^/\s@]*@")

_CREDENTIALS = "set DATALAKE_KSQLDB_USER and DATALAKE_KSQLDB_PASSWORD"
_URL = "correct DATALAKE_KSQLDB_URL"
_WELL = "nothing was committed; run it again when the server is well"


class TransientFailure(Exception):
    """A failure that another attempt may not meet; never leaves this package.

    Args:
        error: What callers get if it stays.
        wait_s: Seconds to wait before the next attempt; None leaves it to the back-off.
    """

    def __init__(self, error: SourceError, *, wait_s: float | None = None) -> None:
        self.error, self.wait_s = error, wait_s
        super().__init__(str(error))


def _backoff(error: Exception) -> bool | float:
    if isinstance(error, TransientFailure):
        return True if error.wait_s is None else error.wait_s
    return False


def retried(call: Callable[[], _T]) -> _T:
    """Calls until it succeeds, fails for good, or the bounded attempts are used up.

    Raises:
        SourceError: The last failure.
    """
    with surfaced():
        for attempt in attempts(on=_backoff, attempts=ATTEMPTS, timeout=RETRY_BUDGET_S):
            with attempt:
                return call()
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def surfaced() -> Iterator[None]:
    """Raises a transient failure as the error that it stands for."""
    try:
        yield
    except TransientFailure as failure:
        raise failure.error from failure.__cause__


def one_line(text: str) -> str:
    """A foreign message on one line, bounded, with no credentials of an URL in it."""
    line = _USERINFO.sub("//", " ".join(text.split()))
    return line if len(line) <= _LONGEST_MESSAGE else line[: _LONGEST_MESSAGE - 1] + "…"


def failed_answer(source: str, status: int, body: bytes) -> NoReturn:
    """Raises what an answer other than 200 means.

    Raises:
        TransientFailure: Asking again may help.
        SourceRefused: The server refused, or is none of ksqlDB's.
        SourceUnavailable: It failed.
    """
    code, message = _error_of(body)
    if status in _BUSY:
        what = message or f"answered HTTP {status}"
        raise TransientFailure(SourceUnavailable(source, f"the server is busy: {what}", cure=_WELL))
    if status == httpx.codes.UNAUTHORIZED:
        raise SourceRefused(source, "wrong user or password", cure=_CREDENTIALS)
    if status == httpx.codes.FORBIDDEN:
        reason = f"wrong user or password, or no access: {message or 'HTTP 403'}"
        raise SourceRefused(source, reason, cure=f"{_CREDENTIALS}, or grant this user access")
    if not code:
        raise _not_ksqldb(source, status)
    if status < httpx.codes.INTERNAL_SERVER_ERROR:
        _refused(source, code, message)
    error = SourceUnavailable(source, f"the server failed: {message}", cure=_WELL)
    if _MASKED in message:
        raise TransientFailure(error)
    raise error


def _not_ksqldb(source: str, status: int) -> SourceError:
    if status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return SourceUnavailable(source, f"answered HTTP {status}", cure=_WELL)
    return SourceRefused(source, f"not a ksqlDB server: answered HTTP {status}", cure=_URL)


def _refused(source: str, code: int, message: str) -> NoReturn:
    if _NO_HOST in message:
        raise TransientFailure(SourceUnavailable(source, message, cure=_WELL))
    if _BANDWIDTH in message:
        raise TransientFailure(SourceUnavailable(source, message, cure=_WELL), wait_s=_LATE_S)
    raise SourceRefused(source, message or f"error {code}")


def failed_rows(source: str, message: str) -> NoReturn:
    """Raises what an error that came among the rows means: the answer is incomplete, whatever the reason.

    Raises:
        TransientFailure: Asking again from the start may help.
        IncompleteResponse: It would not.
    """
    message = one_line(message)
    error = IncompleteResponse(source, f"the server gave up while sending rows: {message}")
    if any(text in message for text in (_MASKED, _NO_HOST, "rate limit")):
        raise TransientFailure(error)
    raise error


def _error_of(body: bytes) -> tuple[int, str]:
    """Code and message of ksqlDB's error document; ``(0, "")`` if it is none."""
    try:
        document = json.loads(body)
        return int(document["error_code"]), one_line(str(document.get("message") or ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return 0, ""


@contextmanager
def failed_exchange(source: str, *, receiving: bool = False) -> Iterator[None]:
    """Translates what httpx raises.

    Args:
        source: What is asked.
        receiving: Whether rows were under way, so that a break leaves an incomplete answer.
    """
    try:
        yield
    except httpx.InvalidURL as error:
        raise SourceRefused(source, "not a usable URL", cure=_URL) from error
    except httpx.TransportError as error:
        raise _broken(source, error, receiving=receiving) from error
    except httpx.StreamError as error:  # closed under our feet
        raise IncompleteResponse(source, "the answer was closed before it ended") from error


def _broken(source: str, error: httpx.TransportError, *, receiving: bool) -> DatalakeError | TransientFailure:
    match error:
        case httpx.UnsupportedProtocol():
            return SourceRefused(source, "not a usable URL", cure=_URL)
        case httpx.ConnectTimeout():
            return TransientFailure(SourceUnavailable(source, "no connection in time", cure=f"{_WELL}, or {_URL}"))
        case httpx.ConnectError():
            return _unconnected(source, error)
        case httpx.TimeoutException():
            cure = f"{_WELL}, or raise DATALAKE_KSQLDB_TIMEOUT_S"
            return TransientFailure(SourceUnavailable(source, "no answer in time", cure=cure))
        case _ if receiving:
            return TransientFailure(IncompleteResponse(source, "the connection broke before the answer was complete"))
        case _:
            reason = "the connection broke before an answer came, or it is no HTTP server"
            return TransientFailure(SourceUnavailable(source, reason, cure=f"{_WELL}, or {_URL}"))


def _unconnected(source: str, error: httpx.ConnectError) -> DatalakeError | TransientFailure:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = f"its TLS certificate is not trusted: {one_line(cause.verify_message)}"
            return SourceUnavailable(source, reason, cure="set DATALAKE_KSQLDB_CA_FILE to its authority's PEM file")
        if isinstance(cause, ssl.SSLError):
            reason = f"no TLS connection: {one_line(cause.reason or 'handshake failed')}"
            return SourceUnavailable(source, reason, cure=f"{_URL}: is it http, not https?")
        if isinstance(cause, socket.gaierror):
            return TransientFailure(SourceUnavailable(source, "no such host", cure=_URL))
    reason = "connection refused" if "refused" in str(error).lower() else "cannot connect"
    return TransientFailure(SourceUnavailable(source, reason, cure=f"start the server, or {_URL}"))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
