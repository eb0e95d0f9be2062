"""How far a command is: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from datalake_assets.cli.show import bytes_text, say

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = ["AdoptProgress", "CompactProgress", "ExportProgress"]


class _CommandProgress:
    """Bars by name on stderr while the context is open, if that is a terminal.

    Args:
        quiet: Tell nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            self._bars = _bars()
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def _show(self, name: str, state: str, *, done: float | None = None, total: float | None = None) -> None:
        """Makes, or changes, the bar of this name; without a total it pulses."""
        if self._bars is None:
            return
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, state=state)
        self._bars.update(self._tasks[name], completed=done, total=total, state=state)


class ExportProgress(_CommandProgress):
    """Tells how far each feed's export is."""

    def begin(self, feed: str) -> None:
        """A feed's export begins."""
        self._show(feed, "reading")

    def advance(self, feed: str, *, rows: int) -> None:
        """So many rows of a feed have been written so far."""
        self._show(feed, f"{rows:,} rows read")

    def finish(self, feed: str, *, rows: int, seconds: float, failed: bool) -> None:
        """A feed's export has ended; ``rows`` is what it added."""
        if self._bars is not None:
            self._show(feed, "failed" if failed else f"{rows:+,} rows", done=1, total=1)
        elif not self._quiet and not failed:
            say(f"{feed}: {rows:+,} rows in {seconds:.1f} s")


class AdoptProgress(_CommandProgress):
    """Tells how far the first look at a folder is."""

    def advance(self, read: int, total: int) -> None:
        """So many footers have been read, of so many."""
        self._show("footers", f"{read:,} of {total:,}", done=read, total=total)


class CompactProgress(_CommandProgress):
    """Tells how far the compaction of a feed is, by bytes, and what became of each partition.

    Args:
        feed: The feed.
        partitions: How many there are to do.
        quiet: Tell nothing.
    """

    def __init__(self, feed: str, *, partitions: int, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._feed, self._partitions, self._number = feed, partitions, 0
        self._lines: list[str] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for line in self._lines:
            say(line)

    def begin(self) -> None:
        """The next partition begins."""
        self._number += 1
        self._show(self._feed, self._place, done=0)

    def advance(self, key: str, *, bytes_done: int, bytes_planned: int) -> None:
        """So many of the bytes planned for a partition have been rewritten."""
        state = f"{key}: {bytes_text(bytes_done)} of {bytes_text(bytes_planned)}, {self._place}"
        self._show(self._feed, state, done=bytes_done, total=bytes_planned)

    def tell(self, line: str) -> None:
        """What became of a partition: told at once, or, where a bar would be in the way, when it has gone."""
        if self._bars is not None:
            self._lines.append(line)
        elif not self._quiet:
            say(line)

    @property
    def _place(self) -> str:
        return f"partition {self._number:,} of {self._partitions:,}"


def _bars() -> Bars:
    from rich.console import Console  # noqa: PLC0415  only on a terminal
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415  likewise

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[state]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
