"""Partitions: from a time to a partition key, to its half-open window, to its Hive path, and back.

Keys are Dagster's: ``2025-01`` (month), ``2025-01-15`` (day), ``2025-01-15-12:00`` (hour), ``v4`` (a table's version).
Everything is UTC. A partition's folder below the feed's follows from its key, whatever the kind of feed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from datalake_assets.core.values import Value
from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "FOLDER_ITSELF",
    "UNKNOWN_PARTITION",
    "PartitionBy",
    "TimeWindow",
    "hive_pairs",
    "key_of",
    "keys_in",
    "keys_of",
    "parse_path",
    "partition_by",
    "partition_columns",
    "partition_key",
    "partition_path",
    "path_of",
    "version_key",
    "version_number",
    "window_of",
]

#: Where quarantined rows go whose partition is not known.
UNKNOWN_PARTITION = "_unknown"

_PATH = re.compile(r"year=(\d{4})/month=(\d{2})(?:/day=(\d{2})(?:/hour=(\d{2}))?)?")
_VERSION = re.compile(r"v([1-9]\d*)")


class PartitionBy(StrEnum):
    """How long a partition of a stream is."""

    MONTH = "month"
    DAY = "day"
    HOUR = "hour"

    @property
    def key_format(self) -> str:
        """The ``strftime`` format of a partition key, as Dagster writes it."""
        return {"month": "%Y-%m", "day": "%Y-%m-%d", "hour": "%Y-%m-%d-%H:%M"}[self.value]

    @property
    def path_format(self) -> str:
        """The ``strftime`` format of a partition's Hive path."""
        parts = ["year=%Y", "month=%m", "day=%d", "hour=%H"]
        return "/".join(parts[: {"month": 2, "day": 3, "hour": 4}[self.value]])


class TimeWindow(Value, frozen=True):
    """A half-open interval ``[start, end)`` of aware UTC times."""

    start: datetime
    end: datetime

    def contains(self, time: datetime) -> bool:
        """Whether ``time`` lies in the window."""
        return self.start <= time < self.end


def _floor(time: datetime, by: PartitionBy) -> datetime:
    time = time.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    if by is PartitionBy.HOUR:
        return time
    time = time.replace(hour=0)
    return time if by is PartitionBy.DAY else time.replace(day=1)


def _next(start: datetime, by: PartitionBy) -> datetime:
    """Where the next partition begins; of the last one that Python's calendar has, its last moment."""
    try:
        if by is PartitionBy.HOUR:
            return start + timedelta(hours=1)
        if by is PartitionBy.DAY:
            return start + timedelta(days=1)
        return (start + timedelta(days=32)).replace(day=1)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def _written(start: datetime, form: str) -> str:
    """As ``strftime`` does, with four digits for each year; the C library's has fewer before the year 1000."""
    return start.strftime(form.replace("%Y", f"{start.year:04}"))


def key_of(time: datetime, by: PartitionBy) -> str:
    """The key of the partition that an aware ``time`` falls in."""
    return _written(_floor(time, by), by.key_format)


def window_of(key: str, by: PartitionBy) -> TimeWindow:
    """The window that a partition key stands for.

    Raises:
        ConfigError: ``key`` is not a key of this kind of partition.
    """
    try:
        start = datetime.strptime(key, by.key_format).replace(tzinfo=UTC)
    except ValueError:
        start = None
    if start is None or start != _floor(start, by) or _written(start, by.key_format) != key:
        example = datetime(2025, 1, 15, 12, tzinfo=UTC).strftime(by.key_format)
        msg = f"{key!r} is not a partition by {by.value}; write it like {example!r}"
        raise ConfigError(msg)
    return TimeWindow(start, _next(start, by))


def keys_in(window: TimeWindow, by: PartitionBy) -> Iterator[str]:
    """The keys of all partitions that overlap ``window``, in time order."""
    start = _floor(window.start, by)
    while start < window.end:
        yield _written(start, by.key_format)
        start = _next(start, by)


def path_of(key: str, by: PartitionBy | None) -> str:
    """The Hive path of a partition, relative to its table; ``by=None`` means a table's version.

    Raises:
        ConfigError: ``key`` is not a key of this kind of partition.
    """
    if by is None:
        version_number(key)
        return f"version={key}"
    return _written(window_of(key, by).start, by.path_format)


def parse_path(path: str, by: PartitionBy | None) -> str | None:
    """The key behind a relative Hive path, or None if it is no such path; the inverse of `path_of`."""
    if by is None:
        key = path.removeprefix("version=")
        return key if path.startswith("version=") and _VERSION.fullmatch(key) else None
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    year, month, day, hour = (int(part) if part else None for part in match.groups())
    try:
        start = datetime(year or 0, month or 0, 1 if day is None else day, hour or 0, tzinfo=UTC)
    except ValueError:
        return None
    key = key_of(start, by)
    return key if _written(start, by.path_format) == path else None


def version_key(number: int) -> str:
    """The partition key of a table's version."""
    return f"v{number}"


def version_number(key: str) -> int:
    """The number of a table's version.

    Raises:
        ConfigError: ``key`` is not a version.
    """
    match = _VERSION.fullmatch(key)
    if match is None:
        msg = f"{key!r} is not a table version; write it like 'v4'"
        raise ConfigError(msg)
    return int(match.group(1))


def keys_of(times: pa.Array, by: PartitionBy) -> pa.DictionaryArray:
    """The partition key of every time, vectorised.

    Args:
        times: ``timestamp[*, UTC]`` or naive timestamps, taken as UTC; nulls give null keys.
        by: The kind of partition.
    """
    import pyarrow as pa  # noqa: PLC0415  who only names partitions need not load it
    import pyarrow.compute as pc  # noqa: PLC0415

    from datalake_assets.core.arrow_arrays import of_texts  # noqa: PLC0415

    naive = times if times.type.tz is None else times.cast(pa.timestamp(times.type.unit))
    # a tenth of the time of rounding down to days, which is what most feeds have
    floored = naive.cast(pa.date32()) if by is PartitionBy.DAY else pc.floor_temporal(naive, unit=by.value)
    encoded = pc.dictionary_encode(floored)
    begins = encoded.dictionary.cast(pa.timestamp("s")).to_pylist()
    keys = of_texts([key_of(value.replace(tzinfo=UTC), by) for value in begins])
    return pa.DictionaryArray.from_arrays(encoded.indices, keys)


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
    if feed.is_adopted:
        return "" if key == FOLDER_ITSELF else key
    path = path_of(key, partition_by(feed))
    return "/".join(f"{feed.partition_prefix}{part}" for part in path.split("/")) if feed.partition_prefix else path


def partition_columns(feed: Feed) -> tuple[str, ...]:
    """The columns that a feed's paths give, in their order; none of an adopted folder, whose paths say anything."""
    by = partition_by(feed)
    if feed.is_adopted:
        return ()
    if by is None:
        return ("version",)
    return tuple(f"{feed.partition_prefix}{part.partition('=')[0]}" for part in by.path_format.split("/"))


def partition_key(feed: Feed, path: str) -> str | None:
    """The inverse of `partition_path`; None if it is no such path."""
    if feed.is_adopted:
        return path or FOLDER_ITSELF
    parts, prefix = path.split("/"), feed.partition_prefix
    if not all(part.startswith(prefix) for part in parts):
        return None
    return parse_path("/".join(part.removeprefix(prefix) for part in parts), partition_by(feed))


def hive_pairs(path: str) -> list[tuple[str, str]]:
    """The ``name=value`` parts of a path, in order; values as they are written. Other parts say nothing of the rows."""
    parts = (part.partition("=") for part in path.split("/"))
    return [(name, value) for name, separator, value in parts if separator and name]
