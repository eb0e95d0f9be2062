"""Data files and what is known of them without opening them; and what the files of an adopted folder are."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache

import msgspec

__all__ = ["DataFile", "FileKind", "data_file_name", "file_kind", "written_at"]

#: Names that `data_file_name` gave; times in other writers' names are not trusted.
_OUR_NAME = re.compile(
    r"(?:data|compacted|snapshot)_([0-9]{4})([0-9]{2})([0-9]{2})_([0-9]{2})([0-9]{2})([0-9]{2})_.+\.parquet"
)


def _unknown() -> None:
    """A default that is written down, as `null`."""


class DataFile(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """One committed Parquet file of a partition; its JSON has these fields, in this order.

    As a struct it is changed by `msgspec.structs.replace`, not by that of `dataclasses`.

    Attributes:
        name: File name within the partition's folder.
        rows: Number of rows.
        size_bytes: Size of the file.
        min_time: Earliest time in the feed's time column; None if it has none.
        max_time: Latest time in that column; None if it has none.
        checksum: Digest of the file's bytes, ``xxh3-128:<hex>``, ``blake2b-16:<hex>`` in lakes of before; empty
            when unknown (an adopted file).
        etag: The store's ETag as it was when the file was published; empty when unknown.
        written_at: When the store last saw the file change; None for files whose name has the time.
        left_out: Why scans leave the file out, and compaction alone: its columns do not fit the others'. Empty if they
            do. This, the one before and the one after are only in the JSON if they say something.
        damaged: Why compaction leaves the file alone, which scans read: a page's checksum is not that of its bytes.
        part: Of an Iceberg table whose files are kept apart by more than time: the values that all rows of the file
            have, as JSON. Files of one part are merged with each other alone. In no manifest's JSON.
    """

    name: str
    rows: int
    size_bytes: int
    min_time: datetime | None = msgspec.field(default_factory=_unknown)
    max_time: datetime | None = msgspec.field(default_factory=_unknown)
    checksum: str = msgspec.field(default_factory=str)
    etag: str = msgspec.field(default_factory=str)
    written_at: datetime | None = None
    left_out: str = ""
    damaged: str = ""
    part: str = ""

    @property
    def kept_as_is(self) -> str:
        """Why compaction leaves the file alone; empty if it need not."""
        return self.left_out or self.damaged


def data_file_name(prefix: str, at: datetime, unique: str) -> str:
    """``<prefix>_20250115_120000_<unique>.parquet``; ``prefix`` is ``data``, ``compacted`` or ``snapshot``."""
    return f"{prefix}_{at:%Y%m%d_%H%M%S}_{unique}.parquet"


def written_at(file: DataFile) -> datetime | None:
    """When a file was written: as recorded, else by its name if it is one of ours; None if nobody knows."""
    if file.written_at is not None:
        return file.written_at
    named = _OUR_NAME.fullmatch(file.name)
    if named is None:
        return None
    try:
        year, month, day, hour, minute, second = map(int, named.groups())
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:  # digits, but no date: not ours after all
        return None


_EXTENSIONS = (".parquet", ".parq", ".pq")
#: Hadoop's S3 connectors marked folders by empty objects of such names.
_FOLDER_MARK = "_$folder$"


class FileKind(Enum):
    """What a file is, by its path."""

    DATA = "its name says that it is Parquet"
    PERHAPS = "its name says nothing: Hive and Athena write Parquet files like 000000_0"
    OTHER = "hidden, temporary, a marker, or of another format"


def file_kind(path: str, size_bytes: int) -> FileKind:
    """What the file at a path, relative to the adopted folder, is.

    Files and folders that begin with ``_`` or ``.`` are hidden, as for Spark and Arrow, unless they are a partition
    (``_day=1/``). Temporary names end in something else than a Parquet extension.
    """
    folder, _, name = path.rpartition("/")
    if _is_hidden(name) or _is_below_hidden(folder):
        return FileKind.OTHER
    if name.lower().endswith(_EXTENSIONS):
        return FileKind.DATA
    if "." in name or name.endswith(_FOLDER_MARK) or not size_bytes:
        return FileKind.OTHER
    return FileKind.PERHAPS


@lru_cache(maxsize=1024)  # asked for each file of a folder in turn
def _is_below_hidden(path: str) -> bool:
    return any(_is_hidden(folder) and "=" not in folder for folder in path.split("/"))


def _is_hidden(name: str) -> bool:
    return name.startswith(("_", "."))
