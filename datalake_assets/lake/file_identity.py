"""Whether a stored file is the one that is meant, when its ETag cannot tell: by size and checksum.

An ETag is a shortcut that another bucket or machine does not keep. A file that was read whole is known by the checksum
of its bytes; one in a bucket that is too large for that by the checksum of its end, which says where everything in it
lies and between which bounds its values are. The latter counts only in a folder that was copied, and where a copy
alone could have changed the ETag.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Final

from datalake_assets.core.manifest import Garbage
from datalake_assets.errors import ObjectNotFound, PreconditionFailed
from datalake_assets.lake.store.base import ObjectInfo, Store
from datalake_assets.parquet.sinks import checksum_like, new_checksum

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Leftover",
    "checksum_of",
    "covers_all",
    "differ_by_copy",
    "end_checksum",
    "has_checksum",
    "is_on_disk",
    "leftover_of",
    "read_checksum",
    "stored_checksum",
]

#: Bytes that are hashed at a time.
CHUNK_BYTES: Final = 8 << 20
#: Bytes at the end of a file that stand for all of it: they hold the footers of most files whole.
END_BYTES: Final = 64 * 1024
#: Begins the checksum of a file's end.
_END = "end-"
#: It is gone or another by now, cannot be read at the moment, or the checksum is one of a later release.
_UNDECIDED = (ObjectNotFound, PreconditionFailed, OSError, ValueError)
#: The ETags that `LocalStore` gives.
_ON_DISK = re.compile(r"(?P<size>\d+)-(?P<time>\d+)-(?P<inode>\d+)")


def checksum_of(body: bytes) -> str:
    """The checksum of a file whose bytes are at hand."""
    digest = new_checksum()
    digest.update(body)
    return str(digest)


def stored_checksum(store: Store, key: str, *, like: str = "") -> str:
    """The checksum of a file's bytes, which are read for it.

    Args:
        store: Where it is.
        key: The file.
        like: A checksum of the kind that is wanted; empty for the kind that new files get.

    Raises:
        OSError: It cannot be read, or is gone.
        ValueError: The kind is not known.
    """
    with store.filesystem().open_input_file(store.path(key)) as opened:
        return read_checksum(opened, like=like)


def read_checksum(opened: pa.NativeFile, *, like: str = "") -> str:
    """The checksum of what is left of an open file; ``like`` and errors are those of `stored_checksum`."""
    digest = checksum_like(like) if like else new_checksum()
    while chunk := opened.read(CHUNK_BYTES):
        digest.update(chunk)
    return str(digest)


def end_checksum(store: Store, key: str, *, etag: str) -> str:
    """The checksum of a file's last 64 KiB, if it still has this ETag; for what would take too long to read.

    Raises:
        ObjectNotFound: It is gone.
        PreconditionFailed: It is another now.
    """
    return f"{_END}{checksum_of(store.tail(key, END_BYTES, etag=etag))}"


def has_checksum(store: Store, key: str, wanted: str, *, etag: str) -> bool:
    """Whether a file has a checksum that `checksum_of`, `stored_checksum` or `end_checksum` gave.

    Args:
        store: Where it is.
        key: The file.
        wanted: The checksum.
        etag: Of the file as it is now.
    """
    try:
        return _checksum_there(store, key, wanted, etag=etag) == wanted
    except _UNDECIDED:  # the next look decides
        return False


def _checksum_there(store: Store, key: str, like: str, *, etag: str) -> str:
    return end_checksum(store, key, etag=etag) if like.startswith(_END) else stored_checksum(store, key, like=like)


def covers_all(checksum: str) -> bool:
    """Whether a checksum is one of all bytes: not of a file's end, and not missing."""
    return bool(checksum) and not checksum.startswith(_END)


def differ_by_copy(one: str, other: str) -> bool:
    """Whether two ETags of one name may be of the same bytes, copied.

    S3's may if one of the two is of an upload in parts; two of whole objects are digests of their bytes. On a disk they
    may if size and time are the same.
    """
    here, there = _ON_DISK.fullmatch(one), _ON_DISK.fullmatch(other)
    if here is not None and there is not None:
        return here.group("size", "time") == there.group("size", "time")
    return "-" in one or "-" in other


class Leftover(Enum):
    """What lies under the name of a file that was replaced and is to be deleted, with another ETag than it had."""

    COPY = "that file, copied"
    OTHER = "another file, written by somebody else"
    UNKNOWN = "nobody can say which"


def leftover_of(store: Store, garbage: Garbage, info: ObjectInfo, *, copied: bool) -> Leftover:
    """What a file is that goes by the name of a replaced one.

    Manifests of the first release have no more than its ETag. On a disk that has size and time; in a bucket it says
    nothing, as copying in other parts or under another key changes it. Of a large file in a bucket, size and end may
    be the same, and a value in between have been mended.

    Args:
        store: Where it is.
        garbage: What was replaced.
        info: What is there.
        copied: The folder was copied since.
    """
    here = _ON_DISK.fullmatch(garbage.etag)
    size_bytes = int(here["size"]) if here and garbage.size_bytes is None else garbage.size_bytes
    if size_bytes not in {None, info.size_bytes}:
        return Leftover.OTHER
    may_be_copy = copied and differ_by_copy(garbage.etag, info.etag)
    if not garbage.checksum:
        return Leftover.COPY if may_be_copy and is_on_disk(info.etag) else Leftover.UNKNOWN
    try:
        is_same = _checksum_there(store, info.key, garbage.checksum, etag=info.etag) == garbage.checksum
    except _UNDECIDED:
        return Leftover.UNKNOWN
    if not is_same:
        return Leftover.OTHER
    return Leftover.COPY if covers_all(garbage.checksum) or may_be_copy else Leftover.UNKNOWN


def is_on_disk(etag: str) -> bool:
    """Whether an ETag is one of `LocalStore`."""
    return _ON_DISK.fullmatch(etag) is not None
