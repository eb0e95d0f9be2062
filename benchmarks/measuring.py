"""What a process used, and figures beside their targets. Standard library only: measuring must not weigh anything.

A child's peak memory can count that of the process that started it (Linux carries it over an ``exec``), so the parent
of what is measured stays small.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

__all__ = [
    "Stopwatch",
    "Target",
    "Used",
    "answer",
    "child",
    "children_rss_mb",
    "evict_libraries",
    "medians",
    "print_targets",
    "print_used",
    "server",
]

_MIB = 1024 * 1024
#: getrusage(2): ru_maxrss is in KiB on Linux, in bytes on macOS.
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024
#: Where `python -m benchmarks` finds this package.
_HOME = Path(__file__).parent.parent


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
        startup_rss_mb: Most memory that it had held before the work began, in MiB.
    """

    cpu_s: float
    startup_cpu_s: float
    wall_s: float
    peak_rss_mb: float
    rows: int = 0
    size_mb: float = 0.0
    startup_rss_mb: float = 0.0

    @property
    def work_cpu_s(self) -> float:
        """User and system time of the work alone."""
        return self.cpu_s - self.startup_cpu_s


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _peak_rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES / _MIB


def children_rss_mb() -> float:
    """Most memory that any process held which this one started and has waited for, in MiB; 0 without any."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _MAXRSS_BYTES / _MIB


@dataclass(slots=True)
class Stopwatch:
    """Measures the process that it is in; begins when it is made."""

    _startup_cpu_s: float = field(default_factory=_cpu_s)
    _startup_rss_mb: float = field(default_factory=_peak_rss_mb)
    _began: float = field(default_factory=time.perf_counter)

    def stop(self) -> Used:
        """What was used until now."""
        wall_s = time.perf_counter() - self._began
        return Used(_cpu_s(), self._startup_cpu_s, wall_s, _peak_rss_mb(), startup_rss_mb=self._startup_rss_mb)


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that we hold ourselves to."""

    what: str
    wanted: str
    measured: str
    met: bool


def answer(module: str, *arguments: str, python: str = sys.executable, env: Mapping[str, str] | None = None) -> Any:
    """Runs a module in a process of its own, and returns the JSON document that it prints as its last line.

    Args:
        module: One of this package.
        arguments: Its arguments.
        python: The interpreter; another one need not have this package installed.
        env: Environment variables besides those of this process.

    Raises:
        SystemExit: It failed; what it said is on stderr.
    """
    command = [python, "-m", module, *arguments]
    environment = os.environ | dict(env or {})
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=_HOME, env=environment)
    if done.returncode:
        raise SystemExit(f"{module} {' '.join(arguments)} failed with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def evict_libraries(python: Path = Path(sys.executable)) -> None:
    """Has Linux read the libraries of an interpreter's environment from disk again, where nobody is using them.

    Peak memory counts the pages of libraries that are mapped, and around each that is used Linux maps those that lie in
    the same piece of the page cache. Pieces are large where a file was written a while ago, as by pip, and small where
    it was read: pyarrow alone has 30 MiB more in a new environment than after the machine was started.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    os.sync()  # what is not on disk yet stays
    for library in python.parent.parent.rglob("*.so*"):
        with library.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def child(module: str, *arguments: str, python: str = sys.executable) -> Used:
    """What a module used, in a process of its own that ends with `print_used`; see `answer`."""
    return Used(**answer(module, *arguments, python=python))


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
