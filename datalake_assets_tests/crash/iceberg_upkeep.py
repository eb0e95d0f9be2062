"""What is killed of Iceberg: a compaction, an expiry or a removal of orphans that ends itself at a drawn operation.

Operations are what reaches the disk or the catalog: a file begun, a file deleted, a commit. Run as a task of
`Forker`, which has imported this before it forks.
"""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import Table

from datalake_assets.lake.iceberg.iceberg_expiry import expire_snapshots, remove_orphans
from datalake_assets_tests.lake.iceberg.iceberg_tables import compact, sqlite_catalog

__all__ = ["keep_up", "upkeep"]


def upkeep(table: Table, what: str) -> None:
    """One of the three."""
    now = datetime.now(UTC) + timedelta(days=5)  # files are as old as they are; the clock is ahead
    if what == "compact":
        compact(table)
    elif what == "expire":
        expire_snapshots(table, older_than=now, keep_last=2)
    else:
        remove_orphans(table, older_than=now - timedelta(days=2), now=now)


def keep_up(*, folder: str, what: str, number: int, moment: str, log: str) -> None:
    """Does it, and dies before or after the ``number``-th operation; 0 for never. ``log`` gets a line for each."""
    lines = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    count = 0

    def pass_by(step: str, call: Any, *given: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        os.write(lines, f"{step}\n".encode())
        if count == number and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*given, **named)
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    new_output, delete, commit_table = PyArrowFileIO.new_output, PyArrowFileIO.delete, SqlCatalog.commit_table
    PyArrowFileIO.new_output = lambda *given: pass_by("write", new_output, *given)  # type: ignore[method-assign]
    PyArrowFileIO.delete = lambda *given: pass_by("delete", delete, *given)  # type: ignore[method-assign]
    SqlCatalog.commit_table = lambda *given: pass_by("commit", commit_table, *given)  # type: ignore[method-assign]
    with sqlite_catalog(Path(folder)) as catalog:
        upkeep(catalog.load_table("n.t"), what)
