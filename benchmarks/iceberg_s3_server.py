"""The real S3 server with its Iceberg REST catalog, and in front of both a proxy that counts requests.

``python -m benchmarks.iceberg_s3_server FOLDER`` prints one line of JSON, how to reach them; each line on stdin is
answered by the requests since the line before, by method, for S3 and for the catalog. It serves until stdin ends.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.compaction_s3_server import LatencyProxy
from datalake_assets.demo.s3_server import S3Server

__all__ = ["main"]


def main(folder: Path) -> None:
    """Serves until stdin ends."""
    with S3Server(folder) as server:
        s3, catalog = LatencyProxy(server.endpoint, 0.0), LatencyProxy(server.iceberg_endpoint, 0.0)
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
            counted = {"s3": dict(s3.by_method), "catalog": dict(catalog.by_method)}
            s3.by_method.clear()
            catalog.by_method.clear()
            print(json.dumps(counted), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
