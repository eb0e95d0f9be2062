"""Positions of sources without order: which items, queue messages or dropped objects, a partition holds the rows of.

An item is remembered by a digest of its identity until it can no longer come again. Digests of the last commits stand
in the position itself; many are sealed in an object beside the manifest, which the position names with its checksum. An
item that comes back after it was forgotten would be landed twice, so whoever holds one for so long must not land it.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from datalake_assets.core.values import Value

__all__ = [
    "MAX_RECENT",
    "NEVER",
    "IdsPosition",
    "SealedDigests",
    "SealedIds",
    "checksum_of",
    "digest_of",
    "forgotten_at",
]

#: Bytes of a digest: of a billion items two are alike with a chance of 1 in 10^21.
DIGEST_BYTES = 16
#: Digests that stand in a position itself: 21 KiB of a manifest, which is read and written whole.
MAX_RECENT = 1000
#: When items can be forgotten that can come again at any time, like a file that is dropped anew.
NEVER = datetime(9999, 1, 1, tzinfo=UTC)
#: Seconds; times are rounded up, so that many digests share one.
ROUND_S = 3600


def digest_of(item: str) -> bytes:
    """The digest that an item is remembered by.

    Args:
        item: Its identity, unique within its source, for instance a message's id.
    """
    return hashlib.blake2b(item.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def forgotten_at(moment: datetime) -> int:
    """From when on an item can be forgotten, which cannot come again after ``moment``; Unix seconds."""
    return -int(-moment.timestamp() // ROUND_S) * ROUND_S


class SealedIds(Value, frozen=True):
    """Digests in an object of their own.

    Attributes:
        name: Of the object, beside the manifest.
        items: How many.
        forget_after: Unix seconds; from then on none of them can come again.
        checksum: Of the object's bytes, BLAKE2b of 16 bytes, hexadecimal.
    """

    name: str
    items: int
    forget_after: int
    checksum: str


class IdsPosition(Value, frozen=True):
    """The items whose rows a partition holds, but for those that cannot come again.

    Attributes:
        recent: Digest -> Unix seconds from when on it can be forgotten.
        sealed: Digests in objects of their own.
    """

    recent: Mapping[bytes, int] = msgspec.field(default_factory=dict)
    sealed: tuple[SealedIds, ...] = ()

    def with_items(self, landed: Mapping[bytes, int], *, now: datetime) -> IdsPosition:
        """The position after the rows of some items were landed; what cannot come again is forgotten."""
        second = now.timestamp()
        return IdsPosition(
            {each: at for each, at in {**self.recent, **landed}.items() if at > second},
            tuple(each for each in self.sealed if each.forget_after > second),
        )

    def with_sealed(self, block: SealedIds, digests: Collection[bytes], merged: Iterable[str]) -> IdsPosition:
        """The position with digests moved into an object.

        Args:
            block: The object.
            digests: What it holds that this position may have itself.
            merged: Names of objects whose digests it holds too.
        """
        gone, inside = set(merged), set(digests)
        kept = tuple(each for each in self.sealed if each.name not in gone)
        return IdsPosition({each: at for each, at in self.recent.items() if each not in inside}, (*kept, block))

    def to_merge(self, more: int) -> tuple[SealedIds, ...]:
        """The objects that are worth merging with ``more`` digests, so that there are never many objects.

        An object is taken if it has at most twice as many as would come into it: each digest is written again only as
        often as their number doubles.
        """
        taken: list[SealedIds] = []
        for each in sorted(self.sealed, key=lambda each: each.items):
            if each.items > 2 * more:
                break
            taken.append(each)
            more += each.items
        return tuple(taken)

    @property
    def items(self) -> int:
        """How many items it holds."""
        return len(self.recent) + sum(each.items for each in self.sealed)

    def to_json(self) -> dict[str, Any]:
        """``{"kind": "ids", "recent": {"<seconds>": "<digests, base64>"}, "sealed": [[name, items, …]]}``."""
        by_time: dict[int, list[bytes]] = {}
        for each, at in self.recent.items():
            by_time.setdefault(at, []).append(each)
        recent = {str(at): base64.b64encode(b"".join(sorted(by_time[at]))).decode() for at in sorted(by_time)}
        sealed = [[each.name, each.items, each.forget_after, each.checksum] for each in self.sealed]
        return {"kind": "ids", "recent": recent, "sealed": sealed}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> IdsPosition:
        """The inverse of `to_json`.

        Raises:
            ValueError: It is not such a document.
        """
        recent = {each: int(at) for at, text in document["recent"].items() for each in _digests(base64.b64decode(text))}
        sealed = tuple(SealedIds(str(name), int(items), int(at), str(of)) for name, items, at, of in document["sealed"])
        return cls(recent, sealed)


class SealedDigests(Collection[bytes]):
    """The digests of an object, in its own bytes: ascending, 16 bytes each."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    @classmethod
    def of(cls, body: bytes, block: SealedIds) -> SealedDigests:
        """Takes an object as it was read.

        Raises:
            ValueError: Its bytes are not those that were sealed.
        """
        if checksum_of(body) != block.checksum or len(body) != block.items * DIGEST_BYTES:
            raise ValueError("its bytes are not those that were written")
        return cls(body)

    @classmethod
    def merged(cls, digests: Iterable[bytes], others: Iterable[SealedDigests]) -> SealedDigests:
        """These and those of other objects, each once."""
        body, last = bytearray(), b""
        for each in heapq.merge(sorted(digests), *others):
            if each != last:
                body += each
                last = each
        return cls(bytes(body))

    def __len__(self) -> int:
        """How many."""
        return len(self.body) // DIGEST_BYTES

    def __iter__(self) -> Iterator[bytes]:
        """In ascending order."""
        return (self._at(number) for number in range(len(self)))

    def __contains__(self, digest: object) -> bool:
        """By binary search."""
        if not isinstance(digest, bytes):
            return False
        number = bisect_left(range(len(self)), digest, key=self._at)
        return number < len(self) and self._at(number) == digest

    def _at(self, number: int) -> bytes:
        return self.body[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]


def checksum_of(body: bytes) -> str:
    """The checksum of an object's bytes, as `SealedIds` has it."""
    return hashlib.blake2b(body, digest_size=16).hexdigest()


def _digests(body: bytes) -> list[bytes]:
    if len(body) % DIGEST_BYTES:
        raise ValueError("a digest is cut short")
    return [body[begin : begin + DIGEST_BYTES] for begin in range(0, len(body), DIGEST_BYTES)]
