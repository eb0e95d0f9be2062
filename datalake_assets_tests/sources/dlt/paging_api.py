"""An API that pages, answers many requests with 429, and grows meanwhile."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

__all__ = ["PagingApi"]

PAGE = 50


class PagingApi:
    """The API, while the context is open; ``GET /events?since=…&page=…``, in the order of ``id``.

    Attributes:
        rows: What it has.
        requests: How many it was asked.
        busy_every: One request in so many is answered 429.
    """

    def __init__(self, *, busy_every: int = 3) -> None:
        self.rows: list[dict[str, Any]] = []
        self.requests, self.busy_every = 0, busy_every
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = api._answer(self.path)
                encoded = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(encoded)))
                self.end_headers()
                self.wfile.write(encoded)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _answer(self, path: str) -> tuple[int, Any]:
        self.requests += 1
        if self.busy_every and self.requests % self.busy_every == 0:
            return 429, {"error": "slow down"}
        asked = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
        since, page = int(asked.get("since", 0)), int(asked.get("page", 1))
        found = [row for row in list(self.rows) if row["id"] >= since]
        return 200, {"items": found[(page - 1) * PAGE : page * PAGE]}

    def grow(self, count: int) -> None:
        """Adds rows."""
        for number in range(len(self.rows) + 1, len(self.rows) + count + 1):
            at = f"2025-0{1 + number % 3}-{1 + number % 28:02}T00:00:00Z"
            self.rows.append({"id": number, "at": at, "price": number / 4, "tags": {"n": [number]}})

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
