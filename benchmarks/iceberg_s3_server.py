"""The real S3 server with its Iceberg REST catalog, and in front of both a proxy that counts requests.

``python -m benchmarks.iceberg_s3_server FOLDER`` prints one line of JSON, how to reach them; each line on stdin is
answered by the requests since the line before, by method, for S3 and for the catalog. It serves until stdin ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import cast

from benchmarks.compaction_s3_server import LatencyProxy
from datalake_assets.demo.s3_server import S3Server

__all__ = ["main"]

METHODS = (b"GET", b"HEAD", b"PUT", b"POST", b"DELETE")


class CountingProxy(LatencyProxy):
    """Counts requests by their method.

    Attributes:
        counted: So far.
    """

    def __init__(self, upstream: str) -> None:
        self.counted: Counter[str] = Counter()
        super().__init__(upstream, 0.0)

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answered: asyncio.Event
    ) -> None:
        watched = _Watched(reader, answered, self.counted)
        await super()._requests(cast("asyncio.StreamReader", watched), writer, answered)  # it asks for read alone


class _Watched:
    def __init__(self, reader: asyncio.StreamReader, answered: asyncio.Event, counted: Counter[str]) -> None:
        self._reader, self._answered, self._counted = reader, answered, counted

    async def read(self, most: int) -> bytes:
        data = await self._reader.read(most)
        method = data.partition(b" ")[0]
        if method in METHODS and self._answered.is_set():  # else a body that was waited for
            self._counted[method.decode()] += 1
        return data


def main(folder: Path) -> None:
    """Serves until stdin ends."""
    with S3Server(folder) as server:
        s3, catalog = CountingProxy(server.endpoint), CountingProxy(server.iceberg_endpoint)
        environment = server.environment()
        access = {
            "endpoint": s3.url,
            "catalog": catalog.url,
            "key": environment["AWS_ACCESS_KEY_ID"],
            "secret": environment["AWS_SECRET_ACCESS_KEY"],
            "region": environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1",
        }
        print(json.dumps(access), flush=True)
        for _ in sys.stdin:
            counted = {"s3": dict(s3.counted), "catalog": dict(catalog.counted)}
            s3.counted.clear()
            catalog.counted.clear()
            print(json.dumps(counted), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
