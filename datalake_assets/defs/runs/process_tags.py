"""Which process a run is in: written on the run, so that others can tell when it is gone.

Dagster's default launcher cannot tell that a run's process died; run monitoring notices only runs that never started.
"""

import os
import socket
import subprocess
from functools import cache
from pathlib import Path

import dagster as dg

__all__ = ["HOST_TAG", "PID_TAG", "RUN_TAG", "STARTED_TAG", "has_lived_since", "is_dead", "process_tags", "tag_run"]

# of no interest to people, who would see them on each line of the list of runs: Dagster's web UI hides this prefix
HOST_TAG = ".dagster/datalake_process_host"
PID_TAG = ".dagster/datalake_process_pid"
STARTED_TAG = ".dagster/datalake_process_started"
#: The run that the other tags speak of: a run that repeats another one begins with the tags of that one.
RUN_TAG = ".dagster/datalake_process_of_run"

# proc(5): /proc/<pid>/stat, field 22 is starttime; after the command's closing parenthesis comes field 3
_STARTTIME = 22 - 3
# the kernel says when it booted to the second, and clocks are set
_CLOCK_S = 5.0


def process_tags(run_id: str) -> dict[str, str]:
    """Tags that say that a run is in this process: host, pid, and when it started, since pids are used again."""
    pid = os.getpid()
    return {HOST_TAG: socket.gethostname(), PID_TAG: str(pid), STARTED_TAG: _own_start(pid), RUN_TAG: run_id}


def tag_run(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Writes on a run that it is in this process; again when a run is resumed in another one."""
    tags = process_tags(run.run_id)
    if any(run.tags.get(key) != value for key, value in tags.items()):
        instance.add_run_tags(run.run_id, tags)


def is_dead(run: dg.DagsterRun) -> bool:
    """Whether the run's process was on this host and is gone; False if it is not known yet."""
    if run.tags.get(HOST_TAG) != socket.gethostname() or run.tags.get(RUN_TAG) != run.run_id:
        return False
    return started_at(int(run.tags.get(PID_TAG, "0"))) != run.tags.get(STARTED_TAG)


def started_at(pid: int) -> str:
    """When a process started, in a form that only its own kind compares with; empty if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return "" if Path("/proc/self").exists() else _started_at_by_ps(pid)
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in {"Z", "X"} else fields[_STARTTIME]


def has_lived_since(pid: int, at: float) -> bool:
    """Whether there is such a process, and it is not one that started after ``at``, in seconds since 1970.

    Where there is no /proc, any process of this id counts.
    """
    started = started_at(pid)
    if not started or not Path("/proc/self").exists():
        return bool(started)
    return _booted_at() + int(started) / os.sysconf("SC_CLK_TCK") <= at + _CLOCK_S


@cache
def _booted_at() -> float:
    lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("btime ")))


def _started_at_by_ps(pid: int) -> str:
    command = ["/bin/ps", "-o", "lstart=", "-p", str(pid)]  # macOS has no /proc
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout.strip()


@cache
def _own_start(pid: int) -> str:
    return started_at(pid)
