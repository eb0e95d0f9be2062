"""What the bytes of a file go to: `Sink` for who writes them, `FinishedSink` for who decides what becomes of them.

A store's `StagedWriter` is a `FinishedSink` that ends in a staged file.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

__all__ = ["ByteLike", "FinishedSink", "Sink"]

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
