"""A webhook and a mail server that keep what they are sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from aiosmtpd.controller import Controller

from datalake_assets_tests.ports import free_port


class Webhook:
    """What was posted, and the statuses with which the next posts are answered."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.statuses: list[int] = []
        self.url = ""


@contextmanager
def running_webhook() -> Iterator[Webhook]:
    hook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = hook.statuses.pop(0) if hook.statuses else 200
            if status == 200:
                hook.texts.append(body["text"])
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        hook.url = f"http://127.0.0.1:{server.server_port}/services/T0/B0/secret"
        yield hook
        server.shutdown()


class Mails:
    """Mails that were taken, and the answer to the next one if it is not to be taken."""

    def __init__(self) -> None:
        self.taken: list[tuple[list[str], object]] = []
        self.answers: list[str] = []

    async def handle_DATA(self, _server, _session, envelope):  # noqa: N802  aiosmtpd's name
        if self.answers:
            return self.answers.pop(0)
        self.taken.append((envelope.rcpt_tos, message_from_bytes(envelope.content, policy=policy.default)))
        return "250 OK"


@contextmanager
def running_mail_server() -> Iterator[tuple[Mails, str]]:
    mails = Mails()
    port = free_port()
    controller = Controller(mails, hostname="127.0.0.1", port=port, ready_timeout=60)
    controller.start()
    try:
        yield mails, f"smtp://127.0.0.1:{port}"
    finally:
        controller.stop()
