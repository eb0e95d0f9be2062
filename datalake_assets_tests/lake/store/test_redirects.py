"""A bucket of another region answers every request by a redirect, with or without a body: it is named as such."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from datalake_assets.errors import LakeUnavailable
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.s3_access import S3Access

ANSWERS = [
    (301, "PermanentRedirect"),
    (301, ""),
    (302, ""),
    (307, "TemporaryRedirect"),
    (307, ""),
    (308, ""),
]
REQUESTS: dict[str, Callable[[Store], Any]] = {
    "get": lambda store: store.get("a"),
    "list": lambda store: list(store.list("a")),
    "head": lambda store: store.head("a"),
    "put": lambda store: store.put("a", b"x"),
    "create": lambda store: store.create("a", b"x"),
    "delete": lambda store: store.delete(["a"]),
}


@pytest.fixture(params=ANSWERS, ids=lambda answer: f"{answer[0]}-{answer[1] or 'no-body'}")
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store whose bucket is in another region."""
    status, code = request.param

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode() if code else b""
            body = b"" if self.command == "HEAD" else body
            self.send_response(status)
            self.send_header("x-amz-bucket-region", "eu-west-1")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_POST = do_HEAD = do_DELETE = do_GET  # noqa: N815  the standard library's names

        def log_message(self, *_: Any) -> None: ...

    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield open_store("s3://lake/x", s3=S3Access(endpoint=f"http://127.0.0.1:{server.server_port}"))
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_bucket_of_another_region_is_named(elsewhere: Store, request_name: str):
    with pytest.raises(LakeUnavailable, match="the bucket is in another region; set AWS_REGION"):
        REQUESTS[request_name](elsewhere)
