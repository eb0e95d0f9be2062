"""Where a feed's partitions lie below its folder, whatever kind of feed it is."""

from __future__ import annotations

from datalake_assets.config import Feed, FeedKind
from datalake_assets.core.partitions import PartitionBy, parse_path, path_of

__all__ = ["FOLDER_ITSELF", "hive_pairs", "partition_by", "partition_key", "partition_path"]

#: The partition of the files that lie in an adopted folder itself, not in a folder below it.
FOLDER_ITSELF = "."


def partition_by(feed: Feed) -> PartitionBy | None:
    """The length of a stream's partitions; None for a table and a folder, whose partitions are no times."""
    return PartitionBy(feed.partition_by) if feed.kind is FeedKind.STREAM else None


def partition_path(feed: Feed, key: str) -> str:
    """A partition's path, relative to its feed's folder; of a folder its own relative path, "" for the folder itself.

    Raises:
        ConfigError: ``key`` is no key of this feed's.
    """
    if feed.kind is FeedKind.FOLDER:
        return "" if key == FOLDER_ITSELF else key
    return path_of(key, partition_by(feed))


def partition_key(feed: Feed, path: str) -> str | None:
    """The inverse of `partition_path`; None if it is no such path."""
    if feed.kind is FeedKind.FOLDER:
        return path or FOLDER_ITSELF
    return parse_path(path, partition_by(feed))


def hive_pairs(path: str) -> list[tuple[str, str]]:
    """The ``name=value`` parts of a path, in order; values as they are written. Other parts say nothing of the rows."""
    parts = (part.partition("=") for part in path.split("/"))
    return [(name, value) for name, separator, value in parts if separator and name]
