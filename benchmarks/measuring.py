"""What a process used, and figures beside their targets. Standard library only: measuring must not weigh anything.

A child's peak memory can count that of the process that started it (Linux carries it over an ``exec``), so the parent
of what is measured stays small.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import median

__all__ = ["Stopwatch", "Target", "Used", "child", "medians", "print_targets", "print_used", "server"]

_MIB = 1024 * 1024
#: getrusage(2): ru_maxrss is in KiB on Linux, in bytes on macOS.
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True)
class Used:
    """What one process used.

    Attributes:
        cpu_s: User and system time from its start to the end of its work.
        startup_cpu_s: Of these, before the work began: the interpreter and its imports.
        wall_s: Time of the work alone.
        peak_rss_mb: Most memory that it held, in MiB.
        rows: Rows that it left in its lake.
        size_mb: Size of the lake's data files, in MiB.
    """

    cpu_s: float
    startup_cpu_s: float
    wall_s: float
    peak_rss_mb: float
    rows: int = 0
    size_mb: float = 0.0

    @property
    def work_cpu_s(self) -> float:
        """User and system time of the work alone."""
        return self.cpu_s - self.startup_cpu_s


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@dataclass(slots=True)
class Stopwatch:
    """Measures the process that it is in; begins when it is made."""

    _startup_cpu_s: float = field(default_factory=_cpu_s)
    _began: float = field(default_factory=time.perf_counter)

    def stop(self) -> Used:
        """What was used until now."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES / _MIB
        return Used(_cpu_s(), self._startup_cpu_s, time.perf_counter() - self._began, peak)


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that we hold ourselves to."""

    what: str
    wanted: str
    measured: str
    met: bool


def child(module: str, *arguments: str) -> Used:
    """Runs a module in a process of its own, which prints a `Used` as its last line.

    Raises:
        SystemExit: It failed; what it said is on stderr.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{module} {' '.join(arguments)} failed with exit code {done.returncode}")
    return Used(**json.loads(done.stdout.splitlines()[-1]))


def print_used(used: Used) -> None:
    """Hands the figures to the process that waits in `child`."""
    print(json.dumps(asdict(used)))


@contextmanager
def server(module: str, *arguments: str) -> Iterator[str]:
    """Runs a server in a process of its own, which prints its URL and ends when its stdin does."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise SystemExit(f"{module} did not start")
        try:
            yield url
        finally:
            process.stdin.close()


def medians(runs: Sequence[Used]) -> Used:
    """The median of each figure."""
    return Used(**{name: median(asdict(run)[name] for run in runs) for name in asdict(runs[0])})


def print_targets(targets: Sequence[Target]) -> None:
    """Prints each target and whether it was met."""
    for target in targets:
        print(f"{'ok  ' if target.met else 'MISS'}  {target.what}: {target.measured} (target: {target.wanted})")
