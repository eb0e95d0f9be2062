"""What a worker in another process does with a task, whatever engine sent it: run it, and say what came of it."""

from __future__ import annotations

import os
import pickle
import resource
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final

from datalake_assets.core.compaction.compaction_report import TaskFigures
from datalake_assets.engines.base import Progress, transient
from datalake_assets.errors import DatalakeError

__all__ = ["Outcome", "do"]

#: getrusage(2): ru_maxrss is in KiB on Linux, in bytes on macOS.
_MAXRSS_BYTES: Final = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task.

    Attributes:
        result: What it returned.
        error: Why it failed, where repeating it is no use; names the worker.
        figures: What it took.
    """

    result: Any = None
    error: DatalakeError | None = None
    figures: TaskFigures = field(default_factory=TaskFigures)


def _ignored(_: int) -> None:
    """Nobody is told."""


def do(payload: bytes, given_at: float, progress: Progress = _ignored) -> Outcome:
    """Runs a task.

    Args:
        payload: ``Task.run``, pickled.
        given_at: When it was handed over, in seconds since the epoch.
        progress: Told how far it is; may cancel it.

    Raises:
        Exception: Another attempt may come through; its text names the worker.
    """
    worker = f"{socket.gethostname()}/{os.getpid()}"
    began, cpu_s = time.time(), _cpu_s()
    try:
        result = pickle.loads(payload)(progress)  # noqa: S301  from whoever may run code here anyway
    except Exception as error:
        if isinstance(error, DatalakeError):
            error.args = (f"worker {worker}: {error}", *error.args[1:])
        if transient(error) or not isinstance(error, DatalakeError):
            raise
        return Outcome(error=error)
    figures = TaskFigures(
        worker=worker,
        wall_s=time.time() - began,
        cpu_s=_cpu_s() - cpu_s,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES,
        waited_s=max(0.0, began - given_at),
    )
    return Outcome(result, figures=figures)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
