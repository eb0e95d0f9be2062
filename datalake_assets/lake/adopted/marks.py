"""What lies in an adopted folder or above it and speaks for its files: marks of other formats, and summary files.

The log of a Delta, Iceberg or Hudi table lies at the table's root. A folder inside such a table looks like any folder
of Parquet files, and its compaction destroys the table. So each folder from a partition up to the store's root is asked
for a handful of names, with one bounded request each; and a table may be made of a folder at any time, so that it is
asked again before each commit, unless that was a moment ago.

``_metadata`` is a summary, by which fastparquet, Dask and older writers name the data files of a whole dataset. Their
readers open what it names and nothing else, so that they fail once a file of it was merged. ``_common_metadata`` has
the schema alone, as a rule: it counts if it has row groups. A summary is made of the files' footers, and nobody but its
writer knows whether it is still wanted. So a partition below one is not compacted, until the feed says that the summary
may go: then it is removed just before the commit, and readers list the folder from then on, which is right before the
commit and after it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Final

from datalake_assets.core.table_formats import BEGINNINGS_ABOVE, FILES_ABOVE, FOLDERS_ABOVE, TableFormat, table_mark
from datalake_assets.errors import (
    CommitConflict,
    ConfigError,
    LakeUnavailable,
    ObjectNotFound,
    PreconditionFailed,
    UnreadableFile,
)
from datalake_assets.lake.layout import FeedFolder, folder_store
from datalake_assets.lake.store.base import ObjectInfo, Store, is_far
from datalake_assets.parquet.adopted_footer import TAIL_BYTES, bytes_needed, row_groups

__all__ = ["Level", "SummaryFiles", "TableMarks", "levels_above", "refuse_path", "refused", "refused_file"]

logger = logging.getLogger(__name__)

#: Requests under way: a mark may be missing, and then all have to be made.
THREADS: Final = 16
#: S3 limit: keys in one page of ListObjectsV2; further ones of a folder are not read.
KEYS: Final = 1000
#: Seconds for which an answer is good.
FRESH_S: Final = 10.0


def refused(uri: str, where: str, table: TableFormat) -> ConfigError:
    """The error for a folder that is, holds, or lies in a table of another format.

    Args:
        uri: The adopted folder, or the one that is to be.
        where: The table.
        table: Its format.
    """
    reason = f"{_WHY}; {adoption}" if (adoption := _adoption_of(where, table)) else table.reason
    if where == uri:
        return ConfigError(f"{uri} is {table.value}: {reason}")
    holds = "holds" if where.startswith(f"{uri}/") else "lies in"
    return ConfigError(f"{uri} {holds} {table.value}, {where}: {reason}")


#: Why a folder of a table that can be adopted is not one.
_WHY = "its log says which files count, and compaction would corrupt it"


def _adoption_of(where: str, table: TableFormat) -> str:
    """The command that adopts a table itself; empty if none does."""
    if table is TableFormat.DELTA:
        return f"adopt the table itself with 'datalake adopt {where} --name NAME'"
    if table is TableFormat.ICEBERG:
        return "adopt the table itself with 'datalake adopt iceberg:NAMESPACE.TABLE --catalog CATALOG --name NAME'"
    return ""


def refused_file(uri: str, file: str, table: TableFormat) -> ConfigError:
    """The error for a file in it whose footer has the mark of another format's table."""
    adoption = _adoption_of("TABLE", table)
    reason = f"{_WHY}; {adoption}" if adoption else table.reason
    return ConfigError(
        f"{uri} holds a file of {table.value}, {file}: {reason}, or copy the rows into a folder of their own"
    )


def refuse_path(uri: str, path: str) -> None:
    """Raises `ConfigError` if a path in a folder has the mark of another format's table."""
    found = table_mark(path)
    if found is not None:
        table, below = found
        raise refused(uri, f"{uri}/{below}".rstrip("/"), table)


@dataclass(frozen=True, slots=True)
class Level:
    """A folder on the way from a partition to the store's root.

    Attributes:
        store: The store that lists it.
        path: The folder, relative to that store's root.
        is_inside: It is the adopted folder, or lies in it.
    """

    store: Store
    path: str
    is_inside: bool = False

    def below(self, name: str) -> str:
        """The key of a name in it."""
        return f"{self.path}/{name}".lstrip("/")


def levels_above(folder: FeedFolder, key: str) -> Iterator[Level]:
    """The folder of a partition and those above it: in the adopted folder by its own store, then up to the root."""
    own, top = folder.data_store, _top(folder.data_store.uri)
    yield from (Level(own, each, is_inside=True) for each in _upwards(folder.data_folder(key)) if each)
    store = folder_store(folder.store, top)
    yield from (Level(store, each) for each in _upwards(own.uri.removeprefix(top)))


class TableMarks:
    """Looks above an adopted folder; remembers for a moment what it saw.

    Args:
        folder: The feed.
    """

    def __init__(self, folder: FeedFolder) -> None:
        self._folder, self._top = folder, _top(folder.data_store.uri)
        self._uri = f"{folder.data_store.uri.rstrip('/')}/{folder.data_root}"
        self._seen: dict[str, float] = {}

    def check(self, key: str | None = None) -> None:
        """Sees to it that nothing above is a table of another format.

        Args:
            key: Look from this partition's folder upwards; None: from the adopted folder itself.

        Raises:
            ConfigError: Something is.
            TransientStoreError: The store cannot answer for now.
        """
        path = self._folder.data_root if key is None else self._folder.data_folder(key)
        own = f"{self._folder.data_store.uri.rstrip('/')}/{path}".removeprefix(self._top).strip("/")
        found = table_mark(f"{own}/x.parquet")
        if found is not None:
            table, above = found
            raise refused(self._uri, f"{self._top.rstrip('/')}/{above}", table)
        now = time.monotonic()
        due = [each for each in _upwards(own) if now - self._seen.get(each, float("-inf")) >= FRESH_S]
        self._look([Level(folder_store(self._folder.store, self._top), each) for each in due])
        self._seen |= dict.fromkeys(due, now)

    def _look(self, levels: list[Level]) -> None:
        looks = [(level, name) for level in levels for name in (*FOLDERS_ABOVE, *FILES_ABOVE, *BEGINNINGS_ABOVE)]
        with ThreadPoolExecutor(THREADS, thread_name_prefix="marks") as pool:  # no thread before it is needed
            answers = pool.map if is_far(self._top) else map
            for (level, _), mark in zip(looks, answers(lambda look: _mark(*look), looks), strict=True):
                if mark is not None:
                    raise refused(self._uri, f"{self._top.rstrip('/')}/{level.path}".rstrip("/") or "/", mark)


def _mark(level: Level, name: str) -> TableFormat | None:
    try:
        return next(_marks(level, name), None)
    except LakeUnavailable:  # what we may not see there, nobody can respect
        return None


def _marks(level: Level, name: str) -> Iterator[TableFormat]:
    key = level.below(name)
    if name in FILES_ABOVE:
        there = level.store.head(key)
        paths = [there.key] if there is not None else []
    elif name in BEGINNINGS_ABOVE:
        paths = [info.key for info in level.store.beginning(key)]
    else:
        paths = [info.key for info in islice(level.store.list(key), KEYS)]
    for path in paths:
        found = table_mark(path[len(level.path) :].lstrip("/"))
        if found is not None and not found[1]:
            yield found[0]


def _top(uri: str) -> str:
    """The root of the store that a folder is in: a bucket, or the file system's."""
    bucket, _, _ = uri.removeprefix("s3://").partition("/")
    return f"s3://{bucket}" if uri.startswith("s3://") else "/"


def _upwards(path: str) -> list[str]:
    """A folder and all those above it, up to the root."""
    parts = [part for part in path.split("/") if part]
    return ["/".join(parts[:depth]) for depth in range(len(parts), -1, -1)]


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
