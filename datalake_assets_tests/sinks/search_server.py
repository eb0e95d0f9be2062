"""Search servers of their own, pinned packages, each a process on loopback, and what they have, asked by plain HTTP.

osmem says that it is OpenSearch and has no rollover; noida-db says that it is Elasticsearch, and has it. Neither is the
real one: what they lack is said in the how-to.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

import httpx

from datalake_assets_tests.ports import free_port

_STARTED_WITHIN_S = 120.0
_PAGE = 10_000


class SearchServer:
    """A server, while the context is open; dies with this process, however that ends."""

    def __init__(self, kind: Literal["osmem", "noida"] = "osmem") -> None:
        self._kind = kind

    def __enter__(self) -> Self:
        package = {"osmem": "osmem_server", "noida": "noida_db"}[self._kind]
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        folder, port = Path(spec.origin).parent, free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="search-")
        self.url = f"http://127.0.0.1:{port}"
        command = {
            "osmem": [folder / "bin" / "osmem-server", "-addr", f"127.0.0.1:{port}", "-no-stdin-watch"],
            "noida": [
                *(folder / "noida-db", "start", "--data-dir", self._folder.name),
                *("--only", "elasticsearch", "--elasticsearch-port", str(port)),
            ],
        }[self._kind]
        # a shell that waits for its standard input kills it when this process is gone
        self._process = subprocess.Popen(
            ["sh", "-c", '"$@" & server=$!; read _; kill -9 $server', "sh", *map(str, command)],  # noqa: S607
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._client = httpx.Client(base_url=self.url, timeout=60)
        deadline = time.monotonic() + _STARTED_WITHIN_S
        while True:
            try:
                self._client.get("/")
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._process.communicate(b"\n")
        self._folder.cleanup()

    def documents(self, base: str) -> list[dict[str, Any]]:
        """All documents of the indices whose names begin so, each with its ``_id`` and ``_index``."""
        self._client.post(f"/{base}-*/_refresh")
        body = {"size": _PAGE, "query": {"match_all": {}}}
        answer = self._client.post(f"/{base}-*/_search", params={"scroll": "1m"}, json=body)
        if answer.status_code == 404:
            return []
        found: list[dict[str, Any]] = []
        while True:
            answer.raise_for_status()
            page = answer.json()
            hits = page["hits"]["hits"]
            found += [{**hit["_source"], "_id": hit["_id"], "_index": hit["_index"]} for hit in hits]
            if len(hits) < _PAGE:
                return found
            again = {"scroll": "1m", "scroll_id": page["_scroll_id"]}
            answer = self._client.post("/_search/scroll", content=json.dumps(again), headers=_JSON)

    def get(self, path: str) -> Any:
        """What the server answers."""
        answer = self._client.get(path)
        answer.raise_for_status()
        return answer.json()


_JSON = {"Content-Type": "application/json"}
