"""Whether a file is still the one that a manifest names, though its ETag is another.

An ETag is a shortcut: while it is the same, so is the file. In a lake that was copied to another bucket or machine,
with its folders, ETags differ, and every file is the same. Then name, size and checksum decide. Files of other writers
have no checksum in a manifest; for them size and footer decide, if their ETags could differ by a copy alone:

- S3's does if one of the two is of an upload in parts; two of whole objects are digests of their bytes.
- On a disk it does if the time is the same, or if no file of the folder has the time and inode that it had: of a folder
  where some have them, the others were written anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from datalake_assets.core.files import DataFile
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.base import ObjectInfo
from datalake_assets.parquet.adopted_footer import AdoptedFooter
from datalake_assets.parquet.writer import checksum_like

__all__ = ["is_same_file", "looks_copied"]

#: Files that all have another ETag before a folder counts as copied: a single one is rewritten often enough.
LEAST = 2
CHUNK_BYTES = 8 << 20
#: The ETags that `LocalStore` gives.
_ON_DISK = re.compile(r"(?P<size>\d+)-(?P<time>\d+)-(?P<inode>\d+)")


def looks_copied(known: Iterable[tuple[DataFile, ObjectInfo]]) -> bool:
    """Whether a folder on a disk seems to be a copy of the one that its manifests describe.

    Args:
        known: Files of its manifests that are there by name, with what is there.
    """
    listed = list(known)
    return len(listed) >= LEAST and all(
        info.etag != file.etag and info.size_bytes == file.size_bytes and _ON_DISK.fullmatch(info.etag)
        for file, info in listed
    )


def is_same_file(folder: FeedFolder, key: str, file: DataFile, found: AdoptedFooter, *, copied: bool) -> bool:
    """Whether what is there under a file's name, with another ETag, is that file.

    Args:
        folder: The feed.
        key: The partition.
        file: As the manifest has it.
        found: What is there.
        copied: The folder looks like a copy.
    """
    now = found.file
    if (now.size_bytes, now.rows) != (file.size_bytes, file.rows):
        return False
    if file.checksum:
        return _has_checksum(folder, folder.log(key).key_of(file.name), file.checksum)
    may_be_copy = copied or _differ_by_copy(file.etag, now.etag)
    return may_be_copy and (now.min_time, now.max_time) == (file.min_time, file.max_time)


def _differ_by_copy(one: str, other: str) -> bool:
    here, there = _ON_DISK.fullmatch(one), _ON_DISK.fullmatch(other)
    if here is not None and there is not None:
        return here["time"] == there["time"]
    return "-" in one or "-" in other


def _has_checksum(folder: FeedFolder, name: str, wanted: str) -> bool:
    store = folder.data_store
    try:
        digest = checksum_like(wanted)
        with store.filesystem().open_input_file(store.path(name)) as opened:
            while chunk := opened.read(CHUNK_BYTES):
                digest.update(chunk)
    except (OSError, ValueError):  # gone by now, or a checksum of a later release: the next look decides
        return False
    return str(digest) == wanted
