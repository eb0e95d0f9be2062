"""A request and its answer, whatever version of HTTP carries them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol
from urllib.parse import urlsplit

__all__ = ["MAX_BODY_BYTES", "Handler", "Headers", "Request", "Response", "path_of", "reason_of"]

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
