"""What is in a feed's partitions at one moment: the manifests, and the files that they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

from datalake_assets.core.compaction.plan import CompactionRequest, rules_of
from datalake_assets.core.facts import PartitionFacts, PlannedPartition
from datalake_assets.core.feed_state import FeedState
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partitions import version_key
from datalake_assets.core.verdicts import PartitionFooters
from datalake_assets.errors import SnapshotExpired
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.compaction_plans import partition_health, plan_of
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.base import is_far
from datalake_assets.lake.store.swap import retried

if TYPE_CHECKING:
    import pyarrow.dataset as ds

__all__ = ["HiveSnapshot"]

#: Manifests that are read at once.
THREADS = 16
#: Times that manifests are read because files that they name had been merged before these were looked for.
LOOKS = 5


class HiveSnapshot:
    """Some partitions of a feed, by manifests of which each is read once; implements `TableSnapshot`.

    Args:
        folder: The feed's corner of the lake.
        partitions: Their keys; None: all, or the current version of a table with versions.
        known: Manifests that were read, or written, a moment ago.
    """

    def __init__(
        self,
        folder: FeedFolder,
        partitions: Sequence[str] | None,
        *,
        known: Mapping[str, Manifest] = MappingProxyType({}),
    ) -> None:
        self._folder = folder
        self._given = None if partitions is None else tuple(partitions)
        self._manifests = dict(known)
        self._files: set[str] = set()

    @property
    def feed(self) -> Feed:
        """Implements `TableSnapshot`."""
        return self._folder.feed

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Implements `TableSnapshot`."""
        if self._given is not None:
            return self._given
        if self.feed.kind is not FeedKind.TABLE:
            return self._all_keys()
        current = self._state.current
        return (version_key(current.number),) if current else ()

    def _all_keys(self) -> tuple[str, ...]:
        return self._folder.partition_keys()

    def only(self, key: str) -> HiveSnapshot:
        """Implements `TableSnapshot`."""
        one = HiveSnapshot(self._folder, [key], known={key: self._load([key])[0]})
        one._state = self._state  # read here, and so once for all
        return one

    def report(self, key: str) -> PartitionFacts | None:
        """Implements `TableSnapshot`."""
        (manifest,) = self._load([key])
        return self._folder.report(key, manifest) if manifest.generation else None

    def health(
        self, key: str, request: CompactionRequest, *, excluded: Mapping[str, str] | None = None
    ) -> PlannedPartition:
        """Implements `TableSnapshot`."""
        (manifest,) = self._load([key])
        rules = rules_of(self.feed, request)
        plan = plan_of(self._folder, key, manifest, rules, excluded or {})
        return partition_health(key, manifest, plan, rules)

    def footers(self, key: str) -> PartitionFooters:
        """Implements `TableSnapshot`."""
        from datalake_assets.lake.scan import partition_footers  # noqa: PLC0415  pyarrow.dataset imports pandas, exports need neither

        return partition_footers(self._folder, key, self._dataset([key]))

    def dataset(self, *, where: ds.Expression | None = None) -> ds.Dataset:
        """Implements `TableSnapshot`."""
        return self._dataset(self.keys, where=where)

    def manifests(self) -> dict[str, Manifest]:
        """The manifests of its partitions; those that are not known yet are read several at once."""
        return dict(zip(self.keys, self._load(self.keys), strict=True))

    def contents(self) -> Mapping[str, str]:
        """Implements `TableSnapshot`."""
        return {key: manifest.content for key, manifest in self.manifests().items() if manifest.content}

    def has_expired(self) -> bool:
        """Implements `TableSnapshot`."""
        now = HiveSnapshot(self._folder, self._given)
        try:
            return not self._files <= set(now._dataset(now.keys).files)
        except SnapshotExpired:
            return True

    def _dataset(self, keys: Sequence[str], *, where: ds.Expression | None = None) -> ds.FileSystemDataset:
        from datalake_assets.lake.scan import committed_files  # noqa: PLC0415  pyarrow.dataset imports pandas, exports need neither

        unread = [key for key in keys if key not in self._manifests]

        def begin() -> ds.FileSystemDataset:
            try:
                return committed_files(self._folder, keys, self._state.schema, self._load, where=where)
            except SnapshotExpired:
                for key in unread:  # nothing was said of these yet
                    self._manifests.pop(key, None)
                raise

        dataset = retried(begin, attempts=LOOKS if unread else 1, on=(SnapshotExpired,))
        self._files.update(dataset.files)
        return dataset

    @cached_property
    def _state(self) -> FeedState:
        return self._folder.state.load()

    def _load(self, keys: Sequence[str]) -> list[Manifest]:
        """Manifests; those that are not known yet are read several at once."""
        unread = [key for key in dict.fromkeys(keys) if key not in self._manifests]
        if len(unread) <= (1 if is_far(self._folder.store.uri) else THREADS):  # a folder may be on a network, too
            self._manifests.update((key, self._read(key)) for key in unread)
        elif unread:
            with ThreadPoolExecutor(THREADS) as pool:
                self._manifests.update(zip(unread, pool.map(self._read, unread), strict=True))
        return [self._manifests[key] for key in keys]

    def _read(self, key: str) -> Manifest:
        return self._folder.log(key).load().manifest
