"""Spares tests what Dagster's SQLite storages do anew for each database and each statement.

Each new database is made table by table, and each run has one of its own; each statement gets an engine of its own,
which compiles it once more; in memory each gets a connection of its own. That was half the CPU of an export in a new
``DAGSTER_HOME``. Processes that tests start do all of it, as does whoever has a database already.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import uuid
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.pool import QueuePool

__all__ = ["spare_storages"]

_ENGINES = 32


def spare_storages(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Has databases copied from the first of their kind, which ``folder`` keeps, and engines kept."""
    # here, as it takes seconds: where nobody has imported Dagster there is nothing to spare
    from dagster._core.storage.event_log import in_memory as events_in_memory  # noqa: PLC0415, TID251
    from dagster._core.storage.event_log.sqlite import sqlite_event_log as events  # noqa: PLC0415, TID251
    from dagster._core.storage.runs import in_memory as runs_in_memory  # noqa: PLC0415, TID251
    from dagster._core.storage.runs.sqlite import sqlite_run_storage as runs  # noqa: PLC0415, TID251
    from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage as schedules  # noqa: PLC0415, TID251

    for module in (events_in_memory, runs_in_memory):
        patch.setattr(module, "create_engine", _pooled(module.create_engine))
    for module in (events, runs, schedules):
        patch.setattr(module, "create_engine", _kept(module.create_engine))
    _copy_new_shards(patch, events.SqliteEventLogStorage, folder / "events.db")
    _copy_new_databases(patch, runs.SqliteRunStorage, folder / "runs.db")
    _copy_new_databases(patch, schedules.SqliteScheduleStorage, folder / "schedules.db")


def _pooled(create_engine: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps a connection to a database in memory, which is of one instance; Dagster makes one for each statement."""

    def create(url: str, **_: object) -> Any:
        return create_engine(
            url, poolclass=QueuePool, pool_size=1, max_overflow=-1, connect_args={"check_same_thread": False}
        )

    return create


def _kept(create_engine: Callable[..., Any]) -> Callable[..., Any]:
    """Gives the engine of a file that it gave before; none of them holds a connection (``NullPool``)."""
    engines: dict[tuple[str, str], Any] = {}

    def create(url: str, **options: object) -> Any:
        key = (url, repr(sorted(options.items())))
        if key not in engines:
            if len(engines) == _ENGINES:
                engines.pop(next(iter(engines)))
            engines[key] = create_engine(url, **options)
        return engines[key]

    return create


def _copy_new_shards(patch: pytest.MonkeyPatch, storage: Any, first: Path) -> None:
    original = storage._initdb

    def make(self: Any, engine: Any, **options: bool) -> None:
        with _Copied(engine.url.database, first):
            original(self, engine, **options)

    patch.setattr(storage, "_initdb", make)


def _copy_new_databases(patch: pytest.MonkeyPatch, storage: Any, first: Path) -> None:
    original = storage.from_local.__func__

    def make(cls: Any, base_dir: str, inst_data: Any = None) -> Any:
        Path(base_dir).mkdir(parents=True, exist_ok=True)
        with _Copied(os.path.join(base_dir, first.name), first):  # noqa: PTH118  base_dir as it is
            return original(cls, base_dir, inst_data)

    patch.setattr(storage, "from_local", classmethod(make))


class _Copied:
    """A database that is copied from the first of its kind before Dagster looks at it; the first is kept afterwards.

    Dagster goes on from there as from any database that it finds. A file appears whole or not at all.
    """

    def __init__(self, path: str, first: Path) -> None:
        self._path, self._first = Path(path), first

    def __enter__(self) -> None:
        self._is_new = not self._path.exists()
        if self._is_new and self._first.exists():
            _appear(self._path, lambda beside: shutil.copyfile(self._first, beside))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._is_new and not self._first.exists():
            _appear(self._first, self._keep)

    def _keep(self, beside: Path) -> None:
        with closing(sqlite3.connect(self._path)) as connection:
            connection.execute("vacuum into ?", [str(beside)])
        with closing(sqlite3.connect(beside)) as connection:
            connection.execute("pragma journal_mode = wal")


def _appear(path: Path, write: Callable[[Path], object]) -> None:
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    write(beside)
    with suppress(FileExistsError):
        path.hardlink_to(beside)
    beside.unlink()
