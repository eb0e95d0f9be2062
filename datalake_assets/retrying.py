"""Repeats what may succeed the next time, by stamina, which is imported when something is first tried.

Importing it costs a command that tries nothing a sixth of its time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["attempts", "log_retries"]

_logged = False


def log_retries() -> None:
    """Has retries logged as everything else is, in this process.

    Where structlog is installed, and Dagster brings it, stamina would print them to stdout. That is a whole process's
    to decide: a program calls this, a library does not.
    """
    global _logged  # noqa: PLW0603  stamina's hooks are global too
    _logged = True


def attempts(on: type[Exception] | tuple[type[Exception], ...] | Callable[..., Any], **how: Any) -> Iterator[Any]:
    """The attempts at something, bounded, with pauses; each is a context in which it is tried.

    Args:
        on: The errors after which it is tried again, or a function of the error that tells.
        how: As of ``stamina.retry_context``.
    """
    import stamina  # noqa: PLC0415  see the module

    if _logged:
        stamina.instrumentation.set_on_retry_hooks((stamina.instrumentation.LoggingOnRetryHook,))
    return iter(stamina.retry_context(on, **how))
