"""AWS Lambda on this machine: its Invoke API for boto3, and its Runtime API for the real runtime client.

boto3 → HTTP → here → HTTP → ``awslambdaric``, which runs the handler in a process of its own, as in the cloud.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import boto3
from botocore.config import Config

_TIMEOUT_S = 120


@dataclass
class _Invocation:
    payload: bytes
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    done: threading.Event = field(default_factory=threading.Event)
    answer: bytes = b""
    is_error: bool = False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # with small writes Nagle's algorithm and delayed acknowledgements cost 90 ms a request
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class _Invoke(_Handler):
    def do_POST(self) -> None:
        invocation = _Invocation(self._body())
        self.server.known[invocation.id] = invocation
        self.server.waiting.put(invocation)
        invocation.done.wait(_TIMEOUT_S)
        headers = {"X-Amz-Function-Error": "Unhandled"} if invocation.is_error else {}
        self._answer(200, invocation.answer, headers)


class _Runtime(_Handler):
    def do_GET(self) -> None:
        invocation = self.server.waiting.get()
        if invocation is None:
            return
        headers = {
            "Lambda-Runtime-Aws-Request-Id": invocation.id,
            "Lambda-Runtime-Deadline-Ms": str(int((time.time() + _TIMEOUT_S) * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:0:function:operations",
            "Content-Type": "application/json",
        }
        self._answer(200, invocation.payload, headers)

    def do_POST(self) -> None:
        body = self._body()
        *_, request_id, kind = self.path.split("/")
        invocation = self.server.known.get(request_id)
        if invocation is not None:
            invocation.answer, invocation.is_error = body, kind == "error"
            invocation.done.set()
        self._answer(202, b"{}")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, handler: type[_Handler], waiting: queue.Queue[Any], known: dict[str, _Invocation]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.waiting, self.known = waiting, known
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class LambdaFunction:
    """A function, from its first invocation on; to be used as a context."""

    def __init__(self, handler: str, environment: Mapping[str, str]) -> None:
        self._handler, self._environment = handler, environment

    def __enter__(self) -> Self:
        self._waiting: queue.Queue[Any] = queue.Queue()
        known: dict[str, _Invocation] = {}
        self._servers = [_Server(handler, self._waiting, known) for handler in (_Invoke, _Runtime)]
        invoke, runtime = (server.server_port for server in self._servers)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DATALAKE_"))},
            **self._environment,
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{runtime}",
            "_HANDLER": self._handler,
            "AWS_LAMBDA_FUNCTION_NAME": "operations",
            "AWS_LAMBDA_FUNCTION_VERSION": "1",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1024",
            "AWS_LAMBDA_LOG_GROUP_NAME": "group",
            "AWS_LAMBDA_LOG_STREAM_NAME": "stream",
            "LAMBDA_TASK_ROOT": str(Path.cwd()),
            "AWS_REGION": "us-east-1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "awslambdaric", self._handler], env=environment, stdout=subprocess.DEVNULL
        )
        self._client = boto3.Session().client(
            "lambda",
            endpoint_url=f"http://127.0.0.1:{invoke}",
            region_name="us-east-1",
            aws_access_key_id="x",
            aws_secret_access_key="x",
            config=Config(retries={"total_max_attempts": 1}, read_timeout=_TIMEOUT_S),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._process.kill()
        self._process.wait()
        self._waiting.put(None)
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def invoke(self, event: Mapping[str, Any]) -> tuple[Any, bool]:
        """What the function gives for an event, and whether it failed."""
        response = self._client.invoke(FunctionName="operations", Payload=json.dumps(event).encode())
        with response["Payload"] as payload:
            return json.loads(payload.read()), "FunctionError" in response
