"""A real HTTP server that says what a test tells it to: for answers that the embedded server never gives."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STREAMED = "application/vnd.ksql.v1+json"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True)
class Answer:
    """``body`` is sent chunk by chunk; ``cut`` drops the connection instead of ending it."""

    body: Iterable[bytes] = ()
    status: int = 200
    content_type: str | None = "application/json"
    cut: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class ScriptedServer:
    url: str
    requests: list[Request]

    def paths(self) -> list[str]:
        return [request.path for request in self.requests]


def document(value: object, status: int = 200) -> Answer:
    return Answer([json.dumps(value).encode()], status)


def info(version: str = "0.29.0") -> Answer:
    return document({"KsqlServerInfo": {"version": version, "serverStatus": "RUNNING"}})


def error(code: int, message: str, status: int) -> Answer:
    return document({"@type": "generic_error", "error_code": code, "message": message}, status)


def description(name: str, kind: str = "STREAM", /, *, topic: str = "", **types: str) -> Answer:
    fields = [{"name": column, "schema": {"type": type_}} for column, type_ in types.items()]
    entity = {"name": name, "type": kind, "fields": fields, "windowType": None, "writeQueries": [{}], "statement": ""}
    entity |= {"topic": topic} if topic else {}
    return document([{"@type": "sourceDescription", "sourceDescription": entity, "warnings": []}])


def rows(schema: str, *values: list[Any], end: bytes = b'{"finalMessage":"Query Completed"}]') -> Answer:
    header = json.dumps({"header": {"queryId": "q1", "schema": schema}}, ensure_ascii=False)
    lines = [json.dumps({"row": {"columns": value}}, ensure_ascii=False) for value in values]
    return Answer(
        ["\n".join([f"[{header},", *(f"{line}," for line in lines), ""]).encode() + end], content_type=STREAMED
    )


def always(answer: Answer) -> Callable[[Request], Answer]:
    return lambda _: answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    server: _Server

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"null"))

    def _serve(self, body: Any) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, body)
        self.server.requests.append(request)
        answer = self.server.handle(request)
        self.send_response(answer.status)
        if answer.content_type:
            self.send_header("content-type", answer.content_type)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(OSError):
            self._send(answer)
        self.close_connection = self.close_connection or answer.cut

    def _send(self, answer: Answer) -> None:
        for chunk in filter(None, answer.body):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.flush()
        self.wfile.write(b"" if answer.cut else b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, handle: Callable[[Request], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.handle, self.requests = handle, []

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def scripted(handle: Callable[[Request], Answer], *, tls: ssl.SSLContext | None = None) -> Iterator[ScriptedServer]:
    """Serves what ``handle`` answers, on a port of its own."""
    server = _Server(handle)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    url = f"https://localhost:{server.server_port}" if tls else f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield ScriptedServer(url, server.requests)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
