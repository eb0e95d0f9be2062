"""Where a feed's parts lie in the lake, and what its partitions amount to."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from datalake_assets.config import Feed, FeedKind
from datalake_assets.core.files import PartitionStats
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partition_paths import partition_by, partition_key, partition_path
from datalake_assets.core.partitions import PartitionBy
from datalake_assets.lake.addresses import address_of, folder_store
from datalake_assets.lake.base import PartitionReport
from datalake_assets.lake.commit import PartitionLog
from datalake_assets.lake.state import StateLog
from datalake_assets.lake.store import Store
from datalake_assets.lake.summary import Summary

__all__ = ["FeedFolder", "new_id"]


def new_id() -> str:
    """A fresh unique text: 64 random bits in hexadecimal."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class FeedFolder:
    """One feed's corner of a lake.

    Attributes:
        store: The lake.
        feed: The feed.
        new_id: Gives a fresh unique text at every call.
    """

    store: Store
    feed: Feed
    new_id: Callable[[], str] = field(default=new_id)

    @property
    def by(self) -> PartitionBy | None:
        """Length of the partitions; None for a table's versions, and for others' folders."""
        return partition_by(self.feed)

    @property
    def data_store(self) -> Store:
        """Where the data files live: the lake, or beside an adopted folder."""
        return folder_store(self.store, address_of(self.feed).root) if self.is_foreign else self.store

    @property
    def is_foreign(self) -> bool:
        """Whether others write to the data folder too."""
        return self.feed.kind is FeedKind.FOLDER

    @property
    def control(self) -> str:
        """Folder of manifests and state."""
        return f"control/{self.feed.path}"

    @property
    def data_root(self) -> str:
        """Folder of all partitions' data files, in the data store."""
        return address_of(self.feed).name if self.is_foreign else self.feed.path

    @property
    def quarantine(self) -> str:
        """Folder of rows that could not be landed."""
        return f"quarantine/{self.feed.path}"

    @property
    def state(self) -> StateLog:
        """The feed's state."""
        return StateLog(self.store, f"{self.control}/feed.json", self.new_id)

    @property
    def summary(self) -> Summary:
        """The feed's ``_metadata.json``."""
        return Summary(self.store, self.feed)

    def data_folder(self, key: str) -> str:
        """Folder of a partition's data files, in the data store."""
        return f"{self.data_root}/{self.partition_path(key)}".rstrip("/")

    def partition_path(self, key: str) -> str:
        """A partition's path below the data root; "" for an adopted folder itself."""
        return partition_path(self.feed, key)

    def log(self, key: str) -> PartitionLog:
        """The manifest of a partition."""
        manifest_key = "/".join(filter(None, (self.control, self.partition_path(key), "manifest.json")))
        return PartitionLog(
            self.store,
            manifest_key,
            self.data_folder(key),
            self.new_id,
            data_store=self.data_store,
            guarded=self.is_foreign,
            small_file_bytes=self.feed.small_file_bytes,
        )

    def partition_keys(self) -> tuple[str, ...]:
        """Keys of all partitions that have a manifest, in time or version order; one listing."""
        found = set()
        for info in self.store.list(self.control):
            path = info.key.removeprefix(f"{self.control}/").removesuffix("manifest.json").rstrip("/")
            key = partition_key(self.feed, path) if info.key.endswith("/manifest.json") else None
            if key is not None:
                found.add(key)
        return tuple(sorted(found, key=lambda key: (0 if self.is_foreign else len(key), key)))

    def report(self, key: str, manifest: Manifest, *, before: Manifest | None = None) -> PartitionReport:
        """What a partition amounts to, and what was added since ``before`` (default: nothing)."""
        stats = PartitionStats.of(manifest.files, small_below_bytes=self.feed.small_file_bytes)
        base = before or manifest
        known = {file.name for file in base.files}
        return PartitionReport(
            key=key,
            rows_added=manifest.rows - base.rows,
            files_added=sum(file.name not in known for file in manifest.files),
            rows=stats.rows,
            files=stats.files,
            small_files=stats.small_files,
            size_bytes=stats.size_bytes,
            min_time=min((file.min_time for file in manifest.files if file.min_time), default=None),
            max_time=max((file.max_time for file in manifest.files if file.max_time), default=None),
            position=manifest.position.to_json() if manifest.position else {},
            generation=manifest.generation,
        )
