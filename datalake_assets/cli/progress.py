"""How far an export is: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from datalake_assets.cli.show import say

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = ["ExportProgress"]


class ExportProgress:
    """Tells how far each feed's export is, while the context is open.

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

    def begin(self, feed: str) -> None:
        """A feed's export begins."""
        if self._bars is not None:
            self._tasks[feed] = self._bars.add_task(feed, total=None, state="reading")

    def advance(self, feed: str, *, rows: int) -> None:
        """So many rows of a feed have been written so far."""
        if self._bars is not None:
            self._bars.update(self._tasks[feed], state=f"{rows:,} rows read")

    def finish(self, feed: str, *, rows: int, seconds: float, failed: bool) -> None:
        """A feed's export has ended; ``rows`` is what it added."""
        if self._bars is not None:
            state = "failed" if failed else f"{rows:+,} rows"
            self._bars.update(self._tasks[feed], total=1, completed=1, state=state)
        elif not self._quiet and not failed:
            say(f"{feed}: {rows:+,} rows in {seconds:.1f} s")


def _bars() -> Bars:
    from rich.console import Console  # noqa: PLC0415  only on a terminal
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415  likewise

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
