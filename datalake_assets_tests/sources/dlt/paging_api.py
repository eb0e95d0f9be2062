"""An API that pages, answers many requests with 429, and grows meanwhile; and resources of dlt that read it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import dlt
from dlt.sources.rest_api import rest_api_resources

__all__ = ["PagingApi", "broken", "counted", "events", "nobody", "odd", "plain"]

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


def events(url: str) -> Any:
    """dlt's own REST source, read on by ``id``."""
    config: Any = {
        "client": {"base_url": url, "paginator": {"type": "page_number", "base_page": 1, "total_path": None}},
        "resources": [
            {
                "name": "events",
                "primary_key": "id",
                "endpoint": {
                    "path": "events",
                    "data_selector": "items",
                    "params": {"since": {"type": "incremental", "cursor_path": "id", "initial_value": 0}},
                },
            }
        ],
    }
    return rest_api_resources(config)[0]


@dlt.resource(name="counted")
def counted(url: str) -> Iterator[dict[str, Any]]:
    """A state of its own, and rows that are alike."""
    state = dlt.current.resource_state()
    state["runs"] = state.get("runs", 0) + 1
    for _ in range(3):
        yield {"at": "2025-01-01T00:00:00Z", "run": 1 if url == "same" else state["runs"]}


plain = dlt.resource([{"id": 1, "mixed": 1}, {"id": 2, "mixed": "x"}], name="plain")


#: Values that dlt's own JSON has no place for, or takes for others.
odd = dlt.resource(
    [
        {"id": 1, "number": float("inf"), "large": 2**70, "text": "\uf0261.5", "nested": {"n": 2**70}},
        {"id": 2, "number": float("-inf"), "large": -(2**65), "text": "\uf0272024-01-01", "nested": None},
        {"id": 3, "number": 0.5, "large": 1, "text": "\ud800", "nested": ["\uf0261.5"]},
    ],
    name="odd",
)


def nobody() -> None:
    """Makes no resource."""


@dlt.resource
def broken(url: str) -> Iterator[dict[str, Any]]:
    """Fails after a row."""
    yield {"id": 1, "at": "2025-01-01T00:00:00Z"}
    raise ValueError(f"cannot read {url}?key=s3cret")
