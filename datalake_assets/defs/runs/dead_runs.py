"""Runs whose process died: they would stay "started" for ever, and their feed's next run would wait for their slots."""

import json
import logging
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import dagster as dg

from datalake_assets.defs.runs.process_tags import HOST_TAG, PID_TAG, RUN_TAG, has_lived_since, is_dead

__all__ = ["fail_dead", "repair_runs", "repaired_meanwhile"]

logger = logging.getLogger(__name__)

#: Seconds between two repairs while a command's run goes on.
INTERVAL_S = 15.0

_UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
#: Where Dagster's default launcher had the run's process started, and what that process says first. A run tags itself
#: when its step begins; until then, and while it waits for its pool, this is all that is known of its process.
_LAUNCHED_BY_TAG = ".dagster/grpc_info"
_STARTED = "Started process for run (pid: "
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def repair_runs(instance: dg.DagsterInstance) -> list[str]:
    """Fails the runs whose process on this host is gone, and frees the pool slots that finished runs hold.

    Returns:
        The ids of the runs that were failed. Idempotent.
    """
    failed = fail_dead(instance, instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED)))
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
