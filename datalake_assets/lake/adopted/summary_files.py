"""Summary files: ``_metadata``, by which fastparquet, Dask and older writers name the data files of a whole dataset.

Their readers open what it names and nothing else, so that they fail once a file of it was merged. ``_common_metadata``
has the schema alone, as a rule: it counts if it has row groups. A summary is made of the files' footers, and nobody but
its writer knows whether it is still wanted. So a partition below one is not compacted, until the feed says that the
summary may go: then it is removed just before the commit, and readers list the folder from then on, which is right
before the commit and after it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

from datalake_assets.errors import (
    CommitConflict,
    ConfigError,
    LakeUnavailable,
    ObjectNotFound,
    PreconditionFailed,
    UnreadableFile,
)
from datalake_assets.lake.adopted.marks import Level, levels_above
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.base import ObjectInfo, Store
from datalake_assets.parquet.adopted_footer import TAIL_BYTES, bytes_needed, row_groups

__all__ = ["SummaryFiles"]

logger = logging.getLogger(__name__)

#: parquet-mr: ParquetFileWriter.PARQUET_METADATA_FILE and PARQUET_COMMON_METADATA_FILE.
NAMES: Final = ("_metadata", "_common_metadata")


class SummaryFiles:
    """The summary files that may name a partition's files: in its folder, and in each above, up to the store's root.

    Args:
        folder: The feed.
    """

    def __init__(self, folder: FeedFolder) -> None:
        self._folder = folder
        self._names_files: dict[tuple[str, str], bool] = {}

    def refusal(self, key: str) -> str:
        """Why a partition must not be compacted; empty if it may."""
        for level, info in self._found(key):
            if level.is_inside and self._folder.feed.compaction.summary_files == "remove":
                continue
            cure = 'let the feed\'s compaction have "summary_files": "remove"'
            reason = f"{level.store.uri.rstrip('/')}/{info.key} names its files, and readers that go by it would fail"
            return f"{reason}; delete it, or {cure if level.is_inside else 'adopt the folder that it lies in'}"
        return ""

    def check(self, key: str) -> None:
        """Raises `ConfigError` if a partition must not be compacted."""
        reason = self.refusal(key)
        if reason:
            raise ConfigError(f"{self._folder.data_folder(key)} is not compacted: {reason}")

    def remove(self, key: str) -> None:
        """Removes those that name a partition's files, if the feed allows it.

        Raises:
            ConfigError: It does not.
            CommitConflict: One was written again meanwhile.
        """
        self.check(key)
        for level, info in list(self._found(key)):
            for kept in level.store.delete_if({info.key: info.etag}):
                raise CommitConflict(f"{level.store.uri}/{kept}", "it was written again just now")
            logger.info("removed %s/%s, which named files that are merged", level.store.uri, info.key)

    def _found(self, key: str) -> Iterator[tuple[Level, ObjectInfo]]:
        """The summary files that name data files."""
        for level in levels_above(self._folder, key):
            for name in NAMES:
                try:
                    info = level.store.head(level.below(name))
                except LakeUnavailable:  # what we may not see there, nobody can respect
                    continue
                if info is not None and self._has_row_groups(level.store, info):
                    yield level, info

    def _has_row_groups(self, store: Store, info: ObjectInfo) -> bool:
        known = f"{store.uri}/{info.key}", info.etag
        if known not in self._names_files:
            self._names_files[known] = _has_row_groups(store, info)
        return self._names_files[known]


def _has_row_groups(store: Store, info: ObjectInfo) -> bool:
    """Whether a summary has row groups; True too where that cannot be known."""
    try:
        tail = store.tail(info.key, TAIL_BYTES, etag=info.etag) if info.size_bytes else b""
        needed = bytes_needed(tail, info.size_bytes, where=info.key)
        if needed > len(tail):
            tail = store.tail(info.key, needed, etag=info.etag)
        return row_groups(tail, info.size_bytes, where=info.key) > 0
    except (UnreadableFile, PreconditionFailed, ObjectNotFound):
        return True
