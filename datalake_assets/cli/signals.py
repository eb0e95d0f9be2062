"""What SIGTERM and SIGINT do to a command, wherever it runs.

SIGTERM interrupts every command as Ctrl-C does. A shell has SIGINT ignored by what its scripts start in the
background; such a command goes on ignoring it, and heeds SIGTERM all the same. Dagster, within a run, gives SIGTERM the
handler that SIGINT has, and leaves it so: where that ignores everything, nothing but SIGKILL would end a command. So
the handler of both is ours, and tells the signals apart by their numbers.
"""

from __future__ import annotations

import signal
from types import FrameType

__all__ = ["heed", "heed_signals"]

_ignored = False


def heed_signals() -> frozenset[int]:
    """Has SIGTERM interrupt this process, and SIGINT unless it is ignored; only in the main thread.

    Returns:
        The signals that end it.
    """
    global _ignored  # noqa: PLW0603  so are handlers of signals
    if signal.getsignal(signal.SIGINT) is not heed:
        _ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, heed)
    return frozenset({signal.SIGTERM} if _ignored else {signal.SIGTERM, signal.SIGINT})


def heed(number: int, _frame: FrameType | None) -> None:
    """Handles SIGINT and SIGTERM.

    Raises:
        KeyboardInterrupt: The process is to end.
    """
    if number != signal.SIGINT or not _ignored:
        raise KeyboardInterrupt
