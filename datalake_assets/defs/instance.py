"""The Dagster instance of ``DAGSTER_HOME``, safe to open for the first time from several processes at once."""

import fcntl
import os
from pathlib import Path

import dagster as dg

__all__ = ["open_instance"]

_LOCK = ".opening.lock"


def open_instance() -> dg.DagsterInstance:
    """Opens the instance, one process at a time; dispose of it, or use it as a context.

    A new SQLite history creates its tables when it is opened, and two processes that do so at once fail with ``table
    alembic_version already exists``. The lock dies with its holder.
    """
    home = os.environ.get("DAGSTER_HOME")
    if not home:
        return dg.DagsterInstance.get()  # says that the variable is missing
    with (Path(home) / _LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        instance = dg.DagsterInstance.get()
        # each makes its tables when it is first asked for
        _ = instance.run_storage, instance.event_log_storage, instance.schedule_storage
    return instance
