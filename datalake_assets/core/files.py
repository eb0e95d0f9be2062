"""Data files and what is known of them without opening them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

__all__ = ["DataFile", "PartitionStats", "data_file_name"]


@dataclass(frozen=True, slots=True)
class DataFile:
    """One committed Parquet file of a partition.

    Attributes:
        name: File name within the partition's folder.
        rows: Number of rows.
        size_bytes: Size of the file.
        min_time: Earliest time in the feed's time column; None if it has none.
        max_time: Latest time, likewise.
        checksum: Digest of the file's bytes, ``blake2b-16:<hex>``; empty when unknown (an adopted file).
        etag: The store's ETag as it was when the file was published; empty when unknown.
    """

    name: str
    rows: int
    size_bytes: int
    min_time: datetime | None = None
    max_time: datetime | None = None
    checksum: str = ""
    etag: str = ""


@dataclass(frozen=True, slots=True)
class PartitionStats:
    """What a partition amounts to."""

    files: int
    small_files: int
    rows: int
    size_bytes: int

    @classmethod
    def of(cls, files: Iterable[DataFile], *, small_below_bytes: int) -> PartitionStats:
        """Adds up ``files``; those below ``small_below_bytes`` count as small."""
        listed = list(files)
        return cls(
            files=len(listed),
            small_files=sum(file.size_bytes < small_below_bytes for file in listed),
            rows=sum(file.rows for file in listed),
            size_bytes=sum(file.size_bytes for file in listed),
        )


def data_file_name(prefix: str, at: datetime, unique: str) -> str:
    """``<prefix>_20250115_120000_<unique>.parquet``; ``prefix`` is ``data``, ``compacted`` or ``snapshot``."""
    return f"{prefix}_{at:%Y%m%d_%H%M%S}_{unique}.parquet"
