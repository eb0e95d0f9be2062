"""Digests of files: which one is written, and how those that were written earlier are still verified.

XXH3 guards against damage, not against forgery, as does everything else in a manifest; it is about ten times as fast as
BLAKE2b, whose cost was that of copying a file (`parquet/concat.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Protocol

import xxhash

__all__ = ["ALGORITHM", "Checksum", "checksum_like", "new_checksum"]

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
