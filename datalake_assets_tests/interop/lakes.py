"""A lake with one partition, of files that others wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from datalake_assets.core.compaction.compaction_report import CompactionReport
from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.files import DataFile
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake.commit import Change, Planned
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store import open_store

__all__ = ["KERNELS", "Lake"]

KERNELS = ["concat", "reencode"]
DAY = "2025-01-01"


class Lake:
    """One feed, and its one partition.

    Args:
        folder: For the lake.
        settings: Of the feed's compaction.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.root, self.feed = folder, _feed(settings)
        self._folder = FeedFolder(open_store(str(folder)), self.feed)
        self._log = self._folder.log(DAY)
        self.table = HiveTable(self._folder.store, self.feed)

    def take(self, paths: Sequence[Path], rows: Mapping[str, int] | None = None) -> None:
        """Commits copies of files under their own names, their checksums unknown, in the order given.

        Args:
            paths: The files.
            rows: Of those that cannot be asked, by name.
        """
        store, files = self._folder.store, []
        for path in paths:
            with store.stage(self._log.key_of(path.name)) as sink:
                sink.write(path.read_bytes())
                staged = sink.finish()
            count = (rows or {}).get(path.name)
            known = pq.read_metadata(path).num_rows if count is None else count
            files.append((staged, DataFile(path.name, rows=known, size_bytes=path.stat().st_size)))
        self._log.commit(Change("taken", "append", tuple(files), lambda _: Planned()))

    def compact(self) -> CompactionReport:
        """Merges whatever can be merged."""
        return self.table.compact(DAY, CompactionRequest(force=True))

    def files(self) -> list[Path]:
        """The committed files, in their order."""
        manifest = self._log.load().manifest
        return [self.root / self._log.key_of(file.name) for file in manifest.files]

    def differences(self) -> list[str]:
        """What ``datalake verify --deep`` finds."""
        return [f"{found.what}: {found.name}: {found.detail}" for found in self.table.verify(deep=True)]


def _feed(settings: Mapping[str, Any]) -> Feed:
    source = {"type": "ksqldb", "object": "S"}
    document = {"name": "s", "kind": "stream", "source": source, "start": DAY, "compaction": dict(settings)}
    return parse_feed(json.dumps(document))
