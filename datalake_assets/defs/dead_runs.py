"""Runs whose process died: they would stay "started" for ever, and their feed's next run would wait for their slots."""

import socket

import dagster as dg

from datalake_assets.defs.process_tags import HOST_TAG, PID_TAG, is_dead

__all__ = ["repair_runs"]

_UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def repair_runs(instance: dg.DagsterInstance) -> list[str]:
    """Fails the runs whose process on this host is gone, and frees the pool slots that finished runs hold.

    Returns:
        The ids of the runs that were failed. Idempotent.
    """
    dead = [run for run in instance.get_runs(_ours_unfinished()) if is_dead(run)]
    for run in dead:
        instance.report_run_failed(run, f"The run's process {run.tags[PID_TAG]} on {run.tags[HOST_TAG]} is gone.")
    _free_slots(instance)
    return [run.run_id for run in dead]


def _ours_unfinished() -> dg.RunsFilter:
    return dg.RunsFilter(statuses=_UNFINISHED, tags={HOST_TAG: socket.gethostname()})


def _free_slots(instance: dg.DagsterInstance) -> None:
    """Frees the slots of finished runs: not even failing a run frees them."""
    log = instance.event_log_storage
    if not log.supports_global_concurrency_limits:
        return
    for run_id in log.get_concurrency_run_ids():
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            log.free_concurrency_slots_for_run(run_id)
