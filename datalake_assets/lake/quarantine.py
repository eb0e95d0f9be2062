"""Rows that could not be landed, kept as JSON lines beside the data: nothing is dropped silently."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable

from datalake_assets.core.batches import RejectedRow
from datalake_assets.core.partitions import UNKNOWN_PARTITION
from datalake_assets.lake.store import Store

__all__ = ["Quarantine"]

#: Bytes of lines held before they are written.
FLUSH_BYTES = 1 << 20


class Quarantine:
    """Collects rejected rows of one write; what it was given is durable after `flush`.

    One object holds many lines ``{"raw", "reason", "position"}``; its name is a digest of its content, so that a
    repeated write of the same rows adds nothing.

    Args:
        store: The lake.
        folder: ``quarantine/<kind>/<name>``.
    """

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder
        self._lines: dict[str, list[bytes]] = defaultdict(list)
        self._held_bytes = 0
        self.rows = 0

    def add(self, rows: Iterable[RejectedRow], *, partition_path: str = UNKNOWN_PARTITION) -> None:
        """Takes rows whose partition is known by its Hive path, or isn't known."""
        for row in rows:
            line = _line(row)
            self._lines[partition_path].append(line)
            self._held_bytes += len(line)
            self.rows += 1
        if self._held_bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what is held; call it before the commit that passes over the rows."""
        for path, lines in self._lines.items():
            body = b"\n".join(lines) + b"\n"
            name = hashlib.blake2b(body, digest_size=12).hexdigest()
            self._store.put(f"{self._folder}/{path}/{name}.jsonl", body)
        self._lines.clear()
        self._held_bytes = 0


def _line(row: RejectedRow) -> bytes:
    raw = row.raw.decode("utf-8", errors="backslashreplace")
    return json.dumps({"raw": raw, "reason": row.reason, "position": row.position}, ensure_ascii=False).encode()
