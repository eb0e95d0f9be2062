"""Objects of a store as its contract sees them: what is listed, staged, visible, and who won a race."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs

from datalake_assets.errors import PreconditionFailed
from datalake_assets.lake.store.base import StagedFile, Store

__all__ = ["DATA", "KEY", "keys", "outcomes", "staged", "visible"]

#: An object and a data file, as lakes have them.
KEY = "control/streams/payments/year=2025/manifest.json"
DATA = "streams/payments/year=2025/month=01/data_1.parquet"


def keys(store: Store, prefix: str = "") -> list[str]:
    """What a listing shows."""
    return sorted(info.key for info in store.list(prefix))


def staged(store: Store, key: str = DATA, body: bytes = b"rows") -> StagedFile:
    """A file that is staged and whole."""
    with store.stage(key) as sink:
        sink.write(body)
        return sink.finish()


def visible(store: Store) -> list[str]:
    """What any reader could see: our listing, Arrow's, and in a local lake the disk itself."""
    selector = pyarrow.fs.FileSelector(store.path(""), recursive=True, allow_not_found=True)
    seen = {info.path for info in store.filesystem().get_file_info(selector) if info.is_file}
    seen = {path for path in seen if ".staging" not in Path(path).relative_to(store.path("")).parts}
    for folder, _, names in os.walk(store.uri):
        if ".staging" not in Path(folder).parts:
            seen |= {f"{folder}/{name}" for name in names}
    return sorted({*keys(store), *(os.path.relpath(path, store.path("")) for path in seen)})


def outcomes(attempts: list[Callable[[], object]]) -> list[str]:
    """Start all at once; the name of each one's error, or "won"."""
    barrier = threading.Barrier(len(attempts))

    def run(attempt: Callable[[], object]) -> str:
        barrier.wait()
        try:
            attempt()
        except PreconditionFailed as error:
            return type(error).__name__
        return "won"

    with ThreadPoolExecutor(len(attempts)) as threads:
        return sorted(threads.map(run, attempts))
