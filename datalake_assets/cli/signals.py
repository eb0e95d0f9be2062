"""What SIGTERM and SIGINT do to a command, wherever it runs.

SIGTERM interrupts every command as Ctrl-C does. A shell has SIGINT ignored by what its scripts start in the
background; such a command goes on ignoring it, and heeds SIGTERM all the same. Dagster, within a run, gives SIGTERM the
handler that SIGINT has, and leaves it so: where that ignores everything, nothing but SIGKILL would end a command. So
the handler of both is ours, and tells the signals apart by their numbers.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["heed", "heed_signals", "heeded_afterwards"]

_ignored = False
#: The signals that came while a block holds them back; None while none does.
_held: list[int] | None = None


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
    if number == signal.SIGINT and _ignored:
        return
    if _held is None or _held:
        raise KeyboardInterrupt
    _held.append(number)


@contextmanager
def heeded_afterwards() -> Iterator[None]:
    """Has a signal interrupt only at the end of the block, which takes a second or so; a second signal does it at once.

    For imports, and for what opens databases: libraries take an interruption for errors of their own there, which they
    log, or raise as another error.

    Raises:
        KeyboardInterrupt: A signal came, and the block ended without an error.
    """
    global _held  # noqa: PLW0603  so are handlers of signals
    came: list[int] = []
    _held = came
    try:
        yield
    finally:
        _held = None
    if came:
        raise KeyboardInterrupt
