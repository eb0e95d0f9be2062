"""Servers that take connections and say nothing, or a byte now and then, without an end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

#: Seconds for which they would go on.
HELD_S = 8.0

Behaviour = Callable[[socket.socket, threading.Event], None]


def silent(_: socket.socket, over: threading.Event) -> None:
    over.wait(HELD_S)


def dripping(begin: bytes) -> Behaviour:
    def drip(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(begin)
        while not over.wait(0.05):
            connection.sendall(b"x")

    return drip


@contextmanager
def server(behaviour: Behaviour) -> Iterator[int]:
    """The port of a server that takes connections and does as a test says."""
    over = threading.Event()

    def serve() -> None:
        with ExitStack() as threads:
            while not over.is_set():
                with suppress(TimeoutError):
                    connection, _ = listening.accept()
                    thread = threading.Thread(target=attend, args=(connection,))
                    threads.callback(thread.join)
                    thread.start()

    def attend(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            behaviour(connection, over)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            over.set()
            thread.join()
