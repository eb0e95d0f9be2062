"""What is killed of Iceberg: an append of the write API, a compaction, an expiry or a removal of orphans.

It ends itself at a drawn operation. Operations are what reaches the store or the catalog: a file begun, a file deleted,
a commit. Run as a task of `Forker`, which has imported this before it forks.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import Table

from datalake_assets.lake.iceberg.iceberg_expiry import expire_snapshots, remove_orphans
from datalake_assets.lake.iceberg.record_appends import Appended, SmallFilesProfile, WriteKey
from datalake_assets.lake.iceberg.record_tables import RecordTable
from datalake_assets_tests.lake.iceberg.iceberg_tables import compact, rows, sqlite_catalog

__all__ = ["APPENDED", "append", "keep_up", "opened_catalog", "upkeep"]

#: Rows of one append.
APPENDED = 3


@contextmanager
def opened_catalog(folder: str, rest: Mapping[str, str] | None) -> Iterator[Catalog]:
    """The catalog in a folder, or a REST catalog by its properties."""
    if rest is None:
        with sqlite_catalog(Path(folder)) as catalog:
            yield catalog
    else:
        yield load_catalog("crash", **rest)


def append(table: Table, first: int) -> Appended:
    """Rows with the ids from ``first`` on, under a key that is theirs."""
    data = rows(first, APPENDED).cast(table.schema().as_arrow())
    profile = SmallFilesProfile(every=5, at_least=3, below_bytes=64 << 20)
    return RecordTable(table, "n.t").append(data, key=WriteKey(f"key {first}", f"rows {first}"), profile=profile)


def upkeep(table: Table, what: str) -> None:
    """One of the other three."""
    now = datetime.now(UTC) + timedelta(days=5)  # files are as old as they are; the clock is ahead
    if what == "compact":
        compact(table)
    elif what == "expire":
        expire_snapshots(table, older_than=now, keep_last=2)
    else:
        remove_orphans(table, older_than=now - timedelta(days=2), now=now)


def keep_up(
    *,
    folder: str,
    rest: Mapping[str, str] | None,
    name: str,
    what: str,
    first: int,
    step: str,
    number: int,
    moment: str,
    log: str,
) -> None:
    """Does it, and dies before or after the ``number``-th operation that is a ``step``; ``log`` gets a line then."""
    count = 0

    def pass_by(kind: str, call: Any, *given: Any, **named: Any) -> Any:
        nonlocal count
        count += kind == step
        is_last = kind == step and count == number  # a commit to SQLite has a write in it
        if is_last:
            Path(log).write_text(kind)
        if is_last and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*given, **named)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    with opened_catalog(folder, rest) as catalog:
        table, kind = catalog.load_table(name), type(catalog)
        new_output, delete, commit_table = PyArrowFileIO.new_output, PyArrowFileIO.delete, kind.commit_table
        PyArrowFileIO.new_output = lambda *given: pass_by("write", new_output, *given)  # type: ignore[method-assign]
        PyArrowFileIO.delete = lambda *given: pass_by("delete", delete, *given)  # type: ignore[method-assign]
        kind.commit_table = lambda *given: pass_by("commit", commit_table, *given)  # type: ignore[method-assign]
        if what == "append":
            append(table, first)
        else:
            upkeep(table, what)
