"""Spares processes what Dagster's SQLite storages do anew for each database and each statement.

Each new database is made table by table, and each run has one of its own; each statement gets an engine of its own,
which compiles it once more; in memory each gets a connection of its own; all migrations are read for each instance.
That was half the CPU of an export in a new ``DAGSTER_HOME``. Whoever has a database already goes on with it as ever,
and a test of a history's beginning takes ``FOLDER`` from the environment of its processes.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.pool import QueuePool, StaticPool

__all__ = ["FOLDER", "MODULES", "compiling_once", "read_migrations", "spare", "spare_migrations"]

#: The variable that names the folder which keeps the first database of each kind.
FOLDER = "TESTS_DATABASES"
#: Dagster's modules that are spared; processes that tests start come by those in memory hardly ever.
MODULES = tuple(
    f"dagster._core.storage.{name}"
    for name in (
        "event_log.in_memory",
        "runs.in_memory",
        "event_log.sqlite.sqlite_event_log",
        "runs.sqlite.sqlite_run_storage",
        "schedules.sqlite.sqlite_schedule_storage",
    )
)
_EVENTS = "dagster._core.storage.event_log.sqlite.sqlite_event_log"
_ENGINES = 32


def spare(set_attribute: Callable[[object, str, object], None], folder: Path, name: str) -> None:
    """Has databases copied from the first of their kind, which ``folder`` keeps, and engines kept.

    Args:
        set_attribute: Python's own, or a patch's.
        folder: For all processes.
        name: One of `MODULES`, imported.
    """
    module = sys.modules[name]
    if name.endswith(".in_memory"):
        _spare_memory(set_attribute, module)
        return
    set_attribute(module, "create_engine", _kept(compiling_once(module.create_engine)))
    if name.endswith("sqlite_event_log"):
        _copy_new_shards(set_attribute, module.SqliteEventLogStorage, folder / "events.db")
    elif name.endswith("sqlite_run_storage"):
        _copy_new_databases(set_attribute, module.SqliteRunStorage, folder / "runs.db")
    else:
        _copy_new_databases(set_attribute, module.SqliteScheduleStorage, folder / "schedules.db")


def spare_migrations(set_attribute: Callable[[object, str, object], None]) -> None:
    """Has Alembic read each of Dagster's migrations once, not for each database that an instance begins with."""
    read, scripts = ScriptDirectory.from_config, dict[str | None, ScriptDirectory]()

    def read_once(config: Config) -> ScriptDirectory:
        place = config.get_main_option("script_location")
        if place not in scripts:
            scripts[place] = read(config)
        return scripts[place]

    set_attribute(ScriptDirectory, "from_config", read_once)


def read_migrations() -> None:
    """Reads them for all processes that are forked from this one, which has imported Dagster's storages."""
    spare_migrations(setattr)
    storage = sys.modules[_EVENTS]
    ScriptDirectory.from_config(storage.get_alembic_config(storage.__file__)).as_revision_number("head")


def _spare_memory(set_attribute: Callable[[object, str, object], None], module: Any) -> None:
    """Has databases in memory copied, and connected to once; what tables they have is known of all of them."""
    begun = _Begun(module)
    set_attribute(module, "create_engine", _pooled(module.create_engine))
    if module.__name__.endswith("event_log.in_memory"):
        storage, connect = module.InMemoryEventLogStorage, "_connect"
        set_attribute(module, "SqlEventLogStorageMetadata", begun)
        set_attribute(storage, "has_table", lambda _, name: name in begun.metadata.tables)
        set_attribute(storage, "_has_asset_key_col_on_connection", lambda *_: True)
    else:
        storage, connect = module.InMemoryRunStorage, "connect"
        set_attribute(module, "RunStorageSqlMetadata", begun)
        for name in ("has_run_stats_index_cols", "has_backfill_id_column", "has_backfill_tags_table"):
            set_attribute(storage, name, lambda _: True)
    set_attribute(module, "stamp_alembic_rev", lambda *_: None)  # what is copied is stamped

    @contextmanager
    def connected(self: Any) -> Iterator[Any]:
        """As Dagster's own, without what a connection is told but once."""
        with getattr(self, "_db_lock", nullcontext()), self._engine.connect() as connection, connection.begin():
            yield connection

    set_attribute(storage, connect, connected)


class _Begun:
    """Stands for the tables of a storage in memory: they are made once, in a database that others are copied from."""

    def __init__(self, module: Any) -> None:
        self._module, self._create_engine, self._stamp = module, module.create_engine, module.stamp_alembic_rev
        is_event_log = module.__name__.endswith("event_log.in_memory")
        self.metadata = module.SqlEventLogStorageMetadata if is_event_log else module.RunStorageSqlMetadata
        self._one_at_a_time, self._first = threading.Lock(), None

    def create_all(self, connection: Any) -> None:
        """As the metadata does, and stamps them."""
        with self._one_at_a_time:
            if self._first is None:
                self._first = self._made()
            self._first.connection.driver_connection.backup(connection.connection.driver_connection)

    def _made(self) -> Any:
        engine = self._create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
        connection = engine.connect()
        with connection.begin():
            self.metadata.create_all(connection)
            self._stamp(
                self._module.get_alembic_config(self._module.__file__, "sqlite/alembic/alembic.ini"), connection
            )
        return connection


def _pooled(create_engine: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps a connection to a database in memory, which is of one instance; Dagster makes one for each statement.

    What one of them compiled, all others have.
    """

    def create(url: str, **_: object) -> Any:
        engine = create_engine(
            url, poolclass=QueuePool, pool_size=1, max_overflow=-1, connect_args={"check_same_thread": False}
        )
        event.listen(engine, "connect", lambda made, _: made.execute("pragma foreign_keys = on"))
        return engine

    return compiling_once(create)


def compiling_once(create_engine: Callable[..., Any]) -> Callable[..., Any]:
    """Has engines share a dialect, and by that what was compiled for it: a statement takes a millisecond."""
    first: list[Any] = []

    def create(*arguments: object, **options: object) -> Any:
        engine = create_engine(*arguments, **options)
        if not first:
            first.append(engine)
        elif first[0].dialect.server_version_info is not None:  # its first connection has told
            engine.dialect = engine.pool._dialect = first[0].dialect
            engine._compiled_cache = first[0]._compiled_cache
        return engine

    return create


def _kept(create_engine: Callable[..., Any]) -> Callable[..., Any]:
    """Gives the engine of a file that it gave before; none of them holds a connection (``NullPool``)."""
    engines: dict[tuple[str, str], Any] = {}
    one_at_a_time = threading.Lock()

    def create(url: str, **options: object) -> Any:
        key = (url, repr(sorted(options.items())))
        with one_at_a_time:
            if key not in engines:
                if len(engines) == _ENGINES:
                    engines.pop(next(iter(engines)))
                engines[key] = create_engine(url, **options)
            return engines[key]

    return create


def _copy_new_shards(set_attribute: Callable[[object, str, object], None], storage: Any, first: Path) -> None:
    original = storage._initdb

    def make(self: Any, engine: Any, **options: bool) -> None:
        with _Copied(engine.url.database, first):
            original(self, engine, **options)

    set_attribute(storage, "_initdb", make)


def _copy_new_databases(set_attribute: Callable[[object, str, object], None], storage: Any, first: Path) -> None:
    original = storage.from_local.__func__

    def make(cls: Any, base_dir: str, inst_data: Any = None) -> Any:
        Path(base_dir).mkdir(parents=True, exist_ok=True)
        with _Copied(os.path.join(base_dir, first.name), first):  # noqa: PTH118  base_dir as it is
            return original(cls, base_dir, inst_data)

    set_attribute(storage, "from_local", classmethod(make))


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
