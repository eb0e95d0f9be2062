"""What the bytes of a file go to: `Sink` for who writes them, `FinishedSink` for who decides what becomes of them.

A store's `StagedWriter` is a `FinishedSink` that ends in a staged file. `Checksum` is what stays known of the bytes;
who only compares checksums need not load what writes Parquet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

import xxhash

from datalake_assets.core.values import Value

__all__ = [
    "ALGORITHM",
    "ByteLike",
    "Checksum",
    "FileCopier",
    "FinishedSink",
    "RangeCopier",
    "ServerSide",
    "Sink",
    "checksum_like",
    "new_checksum",
]

ByteLike = bytes | bytearray | memoryview

FinishedT_co = TypeVar("FinishedT_co", covariant=True)


class Sink(Protocol):
    """What a file is written to."""

    @property
    def closed(self) -> bool:
        """Whether writing has ended."""

    def write(self, data: ByteLike, /) -> int:
        """Appends, all of it; the bytes may change once it has returned. May block while earlier ones are on their way.

        Returns:
            Their number.
        """

    def tell(self) -> int:
        """Bytes written so far."""

    def flush(self) -> None:
        """Need do nothing: whoever finishes the bytes makes them durable."""

    def close(self) -> None:
        """Ends the writing; neither finishes nor discards."""


class FinishedSink(Sink, Protocol[FinishedT_co]):
    """A sink that says what became of it."""

    @property
    def name(self) -> str:
        """Of the file that it becomes, within its folder."""

    def finish(self) -> FinishedT_co:
        """Makes everything durable, still invisible; the same answer when called again."""

    def discard(self) -> None:
        """Drops what was written; idempotent, and without effect after `finish`."""


class ServerSide(Value, frozen=True):
    """Lets the store itself copy an appended file's bytes, where the sink can ask it to (`RangeCopier`).

    Attributes:
        key: Of the file, in the sink's store.
        etag: Of the file; if it has another one by now, that is a `PreconditionFailed`.
        verify: Read the bytes too, and compare them with what the store says that it has copied; otherwise the
            checksum of the whole is not known.
    """

    key: str
    etag: str
    verify: bool = True


@runtime_checkable
class RangeCopier(Protocol):
    """A sink whose store can copy a range of another object without sending it here."""

    def copy_range(
        self, key: str, start: int, end: int, *, etag: str, seen: Callable[[bytes], object] | None = None
    ) -> None:
        """Appends those bytes of the object, if it still has this ETag; otherwise raises `PreconditionFailed`.

        Args:
            key: The object.
            start: Its first byte to copy.
            end: After the last one.
            etag: As the store's `head` or `list` gave it.
            seen: Is given all the bytes in their order, and what the store copies is compared with them.
        """


@runtime_checkable
class FileCopier(Protocol):
    """A sink that can take bytes of another open file by itself."""

    def expect(self, size_bytes: int) -> None:
        """Finds room for so many bytes, which are about to be written; where it cannot, writing them will tell."""

    def copy_from(
        self, descriptor: int, start: int, end: int, *, seen: Callable[[memoryview], object] | None = None
    ) -> int:
        """Appends those bytes of the file, as far as there are any.

        Args:
            descriptor: The file; where it stands does not count, and does not change.
            start: Its first byte to copy.
            end: After the last one.
            seen: Is given all of them in their order, each block before it is written; the next may lie where it lay.

        Returns:
            Their number.
        """


#: Of everything written from now on; format 1 of the lake began with ``blake2b-16``.
ALGORITHM = "xxh3-128"


class _Digest(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


_DIGESTS: dict[str, Callable[[], _Digest]] = {
    "xxh3-128": xxhash.xxh3_128,
    "blake2b-16": partial(hashlib.blake2b, digest_size=16),
}


class Checksum:
    """A digest being computed; its text is ``<algorithm>:<hex>``.

    Args:
        algorithm: One of those that are known; otherwise `ValueError`.
    """

    def __init__(self, algorithm: str) -> None:
        if algorithm not in _DIGESTS:
            raise ValueError(f"unknown digest {algorithm!r}; update datalake_assets")
        self.algorithm, self._digest = algorithm, _DIGESTS[algorithm]()
        self.update = self._digest.update

    def __str__(self) -> str:
        return f"{self.algorithm}:{self._digest.hexdigest()}"


def new_checksum() -> Checksum:
    """The checksum of a file being written."""
    return Checksum(ALGORITHM)


def checksum_like(text: str) -> Checksum:
    """A fresh checksum of the kind of this one, to be compared with it; `ValueError` when the kind is not known."""
    return Checksum(text.partition(":")[0])
