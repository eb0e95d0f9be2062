"""Runs as Dagster's launcher and their own processes leave them, for the tests of who sees that these have died."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid

import dagster as dg
from dagster._core.events import EngineEventData  # noqa: TID251  the launcher's own event, which nothing public makes

from datalake_assets.defs.runs import process_tags


@dg.op
def nothing() -> None: ...


@dg.job
def empty() -> None:
    nothing()


def launched_run(instance: dg.DagsterInstance, pid: int | None, *, at: float | None = None, **tags: str):
    """A run as the default launcher leaves it: starting, its process not yet in its step."""
    run = instance.create_run_for_job(empty, tags=tags)
    log(instance, run.run_id, dg.DagsterEventType.RUN_STARTING)
    if pid:
        started = f"Started process for run (pid: {pid})."
        data = EngineEventData.in_process(pid)
        log(instance, run.run_id, dg.DagsterEventType.ENGINE_EVENT, started, data, at=at)
    return instance.get_run_by_id(run.run_id)


def started_run(instance: dg.DagsterInstance, **tags: str) -> dg.DagsterRun:
    """A run that this process works at, and has tagged; the tags given say otherwise."""
    run_id = str(uuid.uuid4())
    instance.create_run_for_job(empty, run_id=run_id, tags={**process_tags(run_id), **tags})
    log(instance, run_id, dg.DagsterEventType.RUN_START)
    return instance.get_run_by_id(run_id)


def log(instance, run_id: str, kind: dg.DagsterEventType, message: str = "", data=None, *, at=None) -> None:
    event = dg.DagsterEvent(kind.value, "empty", event_specific_data=data, message=message)
    entry = dg.EventLogEntry(
        error_info=None,
        level=10,
        user_message="",
        run_id=run_id,
        timestamp=time.time() if at is None else at,
        dagster_event=event,
    )
    instance.handle_new_event(entry)


def dead_pid() -> int:
    """The id of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid
