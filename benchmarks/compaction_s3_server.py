"""The real S3 server, and in front of it a proxy for each latency, in a process of its own.

``python -m benchmarks.compaction_s3_server FOLDER LATENCY_MS...`` prints one line of JSON: ``environment``, and
``endpoints`` by latency; each line on stdin is answered by the requests since the line before, by method, through
proxies alone; it serves until stdin ends. S3 itself answers a small request after 10 to 30 ms, the server on
this machine after less than one; the proxy delays each request by that much, and knows nothing of HTTP: a request is
what a client says after the server has spoken.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from datalake_assets.demo.s3_server import S3Server

__all__ = ["LatencyProxy", "main", "rounds"]

CHUNK_BYTES = 256 * 1024
METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE")


class _Answered:
    """Whether a connection waits for an answer, and since when."""

    since: float | None = None


def rounds(times: Sequence[tuple[float, float]]) -> int:
    """The most requests of which each came after the answer to the one before had begun: ways there and back in turn.

    Args:
        times: When each request came and when its answer began.
    """
    count, until = 0, -1.0
    for came, answered in sorted(times, key=lambda each: each[1]):
        if came >= until:
            count, until = count + 1, answered
    return count


class LatencyProxy:
    """Delays every request to a server on this machine; runs in a thread until the process ends.

    Args:
        upstream: The server's URL; its Host header passes unchanged, so signatures hold for the proxy's address.
        latency_s: Between the first bytes of a request and their arrival.

    Attributes:
        url: What clients are told.
        requests: How many there were.
        by_method: The same, by method.
        times: When each came and when its answer began, since it was emptied last.
    """

    def __init__(self, upstream: str, latency_s: float) -> None:
        self.requests, self.by_method = 0, Counter[str]()
        self.times: list[tuple[float, float]] = []
        parts = urlsplit(upstream)
        self._upstream, self._latency_s = (parts.hostname, parts.port), latency_s
        self._started = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        self._started.wait()

    async def _serve(self) -> None:
        listener = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        self._started.set()
        await listener.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: asyncio.StreamWriter | None = None
        answered = _Answered()
        try:
            from_server, upstream = await asyncio.open_connection(*self._upstream)
            forward = asyncio.ensure_future(self._requests(reader, upstream, answered))
            backward = asyncio.ensure_future(self._answers(from_server, writer, answered))
            _, running = await asyncio.wait({forward, backward}, return_when=asyncio.FIRST_COMPLETED)
            for task in running:
                task.cancel()
        except OSError:
            pass  # either side went away
        finally:
            for end in (writer, upstream):
                if end is not None:
                    end.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answered: _Answered) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if answered.since is None:
                    answered.since = time.perf_counter()
                    self.requests += 1
                    method = data.partition(b" ")[0].decode(errors="replace")
                    if method in METHODS:  # else it is a body that was waited for
                        self.by_method[method] += 1
                    await asyncio.sleep(self._latency_s)
                writer.write(data)
                await writer.drain()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answered: _Answered) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if answered.since is not None:
                    self.times.append((answered.since, time.perf_counter()))
                    answered.since = None
                writer.write(data)
                await writer.drain()


def main(folder: Path, latencies_ms: Sequence[int]) -> None:
    """Serves until stdin ends."""
    with S3Server(folder) as server:
        proxies = {ms: LatencyProxy(server.endpoint, ms / 1000) for ms in latencies_ms if ms}
        endpoints = {0: server.endpoint} | {ms: proxy.url for ms, proxy in proxies.items()}
        nobody = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
        environment = server.environment() | nobody
        print(json.dumps({"bucket": server.bucket, "environment": environment, "endpoints": endpoints}), flush=True)
        for _ in sys.stdin:
            counted = sum((proxy.by_method for proxy in proxies.values()), Counter())
            for proxy in proxies.values():
                proxy.by_method.clear()
            print(json.dumps(+counted), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(each) for each in sys.argv[2:]])
