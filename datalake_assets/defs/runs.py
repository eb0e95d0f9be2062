"""Ties each Dagster run to its process and its code location, so that a run whose process died can be ended.

Dagster's default launcher does not notice that a run's process died; run monitoring notices only runs that never
started. Such a run would stay "started" for ever, and its feed's next run would wait for its slot. So a run's tags name
its process, and others can see when that is gone.

The public API (`JobDefinition.execute_in_process`, `execute_job`) creates runs that belong to no code location: the UI
cannot run those again, and no run-failure sensor sees them. So this module, and no other, reaches below `dagster`;
`test_upstream_characterization.py` pins what it reaches for.
"""

import json
import logging
import os
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob  # noqa: TID251  see above
from dagster._core.execution.api import execute_run  # noqa: TID251  see above
from dagster._core.remote_origin import (  # noqa: TID251  see above
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)

__all__ = [
    "HOST_TAG",
    "LOCATION_NAME",
    "PID_TAG",
    "RUN_TAG",
    "STARTED_TAG",
    "UNFINISHED",
    "fail_dead",
    "has_lived_since",
    "is_dead",
    "process_tags",
    "repair_runs",
    "repaired_meanwhile",
    "run_job_here",
    "tag_run",
]

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


logger = logging.getLogger(__name__)

#: Seconds between two repairs while a command's run goes on.
INTERVAL_S = 15.0

#: Of runs that have left the queue and have not ended.
UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
#: Tag of Dagster's default launcher: the server that it had the run's process started by. A run tags itself when its
#: step begins; until then, and while it waits for its pool, this tag and the next line are all that is known of it.
_LAUNCHED_BY_TAG = ".dagster/grpc_info"
#: How the first line begins that the run's process logs.
_STARTED = "Started process for run (pid: "
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def repair_runs(instance: dg.DagsterInstance) -> list[str]:
    """Fails the runs whose process on this host is gone, and frees the pool slots that finished runs hold.

    Returns:
        The ids of the runs that were failed. Idempotent.
    """
    failed = fail_dead(instance, instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)))
    _free_slots(instance)
    return failed


@contextmanager
def repaired_meanwhile(instance: dg.DagsterInstance) -> Iterator[None]:
    """Goes on repairing while the block runs: it may wait for the slot of a run that dies, without any daemon."""
    ended = threading.Event()

    def repair() -> None:
        while not ended.wait(INTERVAL_S):
            try:
                repair_runs(instance)
            except Exception as error:  # noqa: BLE001  whatever Dagster's storage says: the next time will do
                logger.debug("runs could not be repaired: %s", error)

    thread = threading.Thread(target=repair, name="repair-runs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def fail_dead(instance: dg.DagsterInstance, unfinished: Iterable[dg.DagsterRun]) -> list[str]:
    """Fails those of the runs whose process on this host is gone; their ids.

    A process may have ended its run as it should, since the run was read; so that is read again, once it is gone.
    """
    failed = []
    for run in unfinished:
        pid = _dead_process(instance, run)
        if pid and not _finished(instance, run.run_id):
            host = run.tags.get(HOST_TAG, socket.gethostname())
            instance.report_run_failed(run, f"The run's process {pid} on {host} is gone.")
            failed.append(run.run_id)
    return failed


def _dead_process(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """The id of the run's process if that was on this host and is gone; else empty."""
    if run.tags.get(RUN_TAG) == run.run_id:
        return run.tags[PID_TAG] if is_dead(run) else ""
    if not _launched_here(run):
        return ""
    started = [
        (entry.message, entry.timestamp)
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
        if entry.message.startswith(_STARTED)
    ]
    if not started:
        return ""  # Dagster's run monitoring fails it in time
    message, at = started[-1]
    pid = message.removeprefix(_STARTED).partition(")")[0]
    return "" if has_lived_since(int(pid), at) else pid


def _launched_here(run: dg.DagsterRun) -> bool:
    server = json.loads(run.tags.get(_LAUNCHED_BY_TAG, "{}"))
    return "socket" in server or server.get("host") in {*_LOOPBACK, socket.gethostname()}


def _finished(instance: dg.DagsterInstance, run_id: str) -> bool:
    run = instance.get_run_by_id(run_id)
    return run is None or run.is_finished


def _free_slots(instance: dg.DagsterInstance) -> None:
    """Frees the slots of finished runs: not even failing a run frees them."""
    log = instance.event_log_storage
    if not log.supports_global_concurrency_limits:
        return
    for run_id in log.get_concurrency_run_ids():
        if _finished(instance, run_id):
            log.free_concurrency_slots_for_run(run_id)


#: The name of our code location in ``workspace.yaml``.
LOCATION_NAME = "datalake_assets"
#: How Dagster calls the one repository of a `Definitions` object.
_REPOSITORY_NAME = "__repository__"


def run_job_here(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    *,
    asset_key: dg.AssetKey,
    run_config: Mapping[str, Any],
    tags: Mapping[str, str],
) -> dg.JobExecutionResult:
    """Materializes one asset of a job in this process, and tags the run with it."""
    run_id = str(uuid.uuid4())
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(LOCATION_NAME), _REPOSITORY_NAME)
    run = instance.create_run_for_job(
        job_def=job,
        run_config=run_config,
        run_id=run_id,
        tags={**process_tags(run_id), **tags},
        asset_selection=frozenset([asset_key]),
        remote_job_origin=RemoteJobOrigin(repository, job.name),
    )
    return execute_run(InMemoryJob(job), run, instance)
