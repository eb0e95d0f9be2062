"""An S3 endpoint of a test's own, which answers every request as the test says."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

__all__ = ["answering"]

_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}


@contextmanager
def answering(
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[str], tuple[int, bytes]],
    *,
    headers: Mapping[str, str] | None = None,
    is_dated: bool = True,
) -> Iterator[str]:
    """The endpoint, for as long as the context is open; anybody's credentials are in the environment.

    Args:
        monkeypatch: Sets them.
        answer: Gives status and body for a request's target.
        headers: Of each answer, besides its length.
        is_dated: Whether answers say when they were given.
    """

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            status, body = answer(self.path)
            (self.send_response if is_dated else self.send_response_only)(status)
            for name, value in {**(headers or {}), "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_PUT = do_POST = do_HEAD = do_DELETE = do_GET  # noqa: N815  the standard library's names

        def log_message(self, *_: Any) -> None: ...

    for name, value in _CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
