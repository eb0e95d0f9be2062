"""What a system is that rows come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from datalake_assets.core.batches import Batches, ReadRequest, SourceBatch
from datalake_assets.feed import Feed

__all__ = ["DecodesAgain", "SourceObject", "SourceSystem"]


@dataclass(frozen=True, slots=True)
class SourceObject:
    """Something at a source that could become a feed.

    Attributes:
        name: Its name at the source.
        kind: ``stream`` or ``table``.
        note: Why it cannot be landed, if it can't; empty otherwise.
    """

    name: str
    kind: str
    note: str = ""


class SourceSystem(Protocol):
    """A system that feeds are read from; holds connections, so close it."""

    def read(self, feed: Feed, request: ReadRequest) -> Batches:
        """Prepares to read ``feed``; nothing is read before the iteration."""

    def discover(self) -> Iterator[SourceObject]:
        """Lists what there is to land."""

    def check(self, feed: Feed) -> None:
        """Asks whether ``feed`` could be read.

        Raises:
            SourceError: It could not; says why.
        """

    def close(self) -> None:
        """Closes its connections; idempotent."""


@runtime_checkable
class DecodesAgain(Protocol):
    """A system that can decode rows again which it once sent, and which went to quarantine as they were."""

    def decode(self, feed: Feed, raws: Sequence[bytes]) -> SourceBatch:
        """Decodes rows in the columns that a read of ``feed`` has now; those that still don't fit are rejected.

        Args:
            feed: The feed.
            raws: Rows as they were sent.

        Raises:
            SourceError: Its columns could not be asked for.
        """
