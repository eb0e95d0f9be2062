"""What every part of the glue needs of Dagster: its instance, our errors as its failures, its warnings kept quiet.

An error becomes one line for a person, with culprit, cause and cure as metadata. The instance of ``DAGSTER_HOME`` can
be opened for the first time from several processes at once. Warnings that we cause on purpose are silenced where we
cause them and nowhere else.
"""

import fcntl
import json
import logging
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import dagster as dg

from datalake_assets.errors import (
    AmbiguousWrite,
    CommitConflict,
    ConfigError,
    DatalakeError,
    EngineError,
    IncompleteResponse,
    LakeError,
    SnapshotExpired,
    SourceError,
    SourceUnavailable,
    TransientStoreError,
    unforeseen_text,
)
from datalake_assets.feed import Feed

__all__ = [
    "PASSING",
    "as_failure",
    "cursor_state",
    "failures_named",
    "home_failure",
    "isolated",
    "known_dagster_warnings_ignored",
    "open_instance",
]

logger = logging.getLogger(__name__)

#: Errors that may be gone at the next attempt; the others fail the same way however often a run is retried.
PASSING = (
    AmbiguousWrite,
    CommitConflict,
    EngineError,
    IncompleteResponse,
    SnapshotExpired,
    SourceUnavailable,
    TransientStoreError,
)


def as_failure(error: DatalakeError, feed: Feed | str) -> dg.Failure:
    """The failure that stands for an error of this package; ``feed`` may be a mere name, of a feed that there isn't."""
    cause, cure = str(error), ""
    if isinstance(error, SourceError):
        cause, cure = f"{error.source}: {error.reason}", error.cure
    elif isinstance(error, LakeError):
        cause, cure = f"{error.where}: {error.reason}", error.cure
    elif isinstance(error, EngineError):
        cause, cure = f"engine {error.engine}: {error.reason}", error.cure
    return dg.Failure(
        description=str(error),
        metadata={
            "datalake/feed": feed if isinstance(feed, str) else feed.path,
            "datalake/error": type(error).__name__,
            "datalake/cause": cause,
            "datalake/cure": cure or "correct what it names, then run it again",
        },
        allow_retries=isinstance(error, PASSING),
    )


@contextmanager
def failures_named(feed: Feed | str) -> Iterator[None]:
    """Turns a `DatalakeError` into the `dagster.Failure` of a feed."""
    try:
        yield
    except DatalakeError as error:
        raise as_failure(error, feed) from error


@contextmanager
def isolated(tell: Callable[[str], None], *, about: str = "") -> Iterator[None]:
    """Ends an error of one feed here, of whatever kind it is: the others have their turn all the same.

    Args:
        tell: Called with a line that says what failed.
        about: What the line begins with.
    """
    try:
        yield
    except dg.Failure as error:
        line = error.description or ""
    except DatalakeError as error:
        line = str(error)
    except Exception as error:
        logger.exception(about or "an error that no code foresaw")
        line = unforeseen_text(error)
    else:
        return
    tell(f"{about}: {line}" if about else line)


def cursor_state(cursor: str | None) -> dict[str, Any]:
    """What a sensor's last tick kept; nothing if that cannot be read, of another release or by somebody's hand."""
    try:
        state = json.loads(cursor or "{}")
    except (ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


_LOCK = ".opening.lock"
#: Dagster's messages list all that it would have taken.
_LONGEST = 300


def open_instance() -> dg.DagsterInstance:
    """Opens the instance, one process at a time; dispose of it, or use it as a context.

    A new SQLite history creates its tables when it is opened, and two processes that do so at once fail with ``table
    alembic_version already exists``. The lock dies with its holder.

    Raises:
        ConfigError: The folder, its ``dagster.yaml`` or its history cannot be used.
    """
    home = os.environ.get("DAGSTER_HOME")
    if not home:
        return dg.DagsterInstance.get()  # says that the variable is missing
    try:
        with (Path(home) / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return _opened()
    except Exception as error:  # YAML's, SQLAlchemy's and Dagster's own errors have nothing in common
        raise home_failure(home, error) from error


def home_failure(home: str, error: Exception) -> ConfigError:
    """What Dagster's folder, or the disk that it is on, fails with, on one line."""
    cause = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    text = cause if len(cause) <= _LONGEST else f"{cause[:_LONGEST]} …"
    return ConfigError(f"DAGSTER_HOME {home} cannot be used: {text}; mend it, or name another folder")


def _opened() -> dg.DagsterInstance:
    _read_migrations_once()
    instance = dg.DagsterInstance.get()
    # each makes its tables when it is first asked for
    runs, events, _ = instance.run_storage, instance.event_log_storage, instance.schedule_storage
    if type(events).__name__ == "SqliteEventLogStorage":
        _keep_connections(events, "run_connection", "index_connection")
        _know_tables(events)
    if type(runs).__name__ == "SqliteRunStorage":
        _keep_connections(runs, "connect")
    return instance


#: Where Dagster's migrations are, as it names the place to Alembic.
_MIGRATIONS = "dagster:_core/storage/alembic"


@cache
def _read_migrations_once() -> None:
    """Has this process read Dagster's migrations once: Dagster reads all of them twice for each new database.

    They are some ninety modules, and in SQLite each run has a database of its own: that took a fifth of the CPU.
    They are Dagster's own files, which stay as they are while it is imported. Others' migrations are read as ever.
    """
    from alembic.script import ScriptDirectory  # noqa: PLC0415  Dagster's, as SQLAlchemy is

    read, known = ScriptDirectory.from_config, dict[str, ScriptDirectory]()

    def read_once(config: Any) -> ScriptDirectory:
        place = config.get_main_option("script_location")
        if place != _MIGRATIONS:
            return read(config)
        if place not in known:
            known[place] = read(config)
        return known[place]

    ScriptDirectory.from_config = staticmethod(read_once)  # type: ignore[method-assign]  # it is looked up so


#: Databases that stay open: that of each run of a command, of which one goes on at a time, and the index of them all.
_KEPT = 4
#: Seconds to wait for another process that writes, as Dagster does.
_BUSY_S = 30


def _keep_connections(storage: Any, *methods: str) -> None:
    """Has a storage in SQLite files keep the connections that some of its methods give.

    Dagster opens a file, and compiles a statement, for each of the two thousand statements of an export of eight feeds:
    2.6 of 6.2 CPU seconds. Its storages in servers have pools. What is replaced is pinned by
    `test_upstream_characterization.py`; each statement still is a transaction of its own.
    """
    kept = _KeptConnections()
    for name in methods:
        setattr(storage, name, partial(kept.connect, name, getattr(storage, name)))
    dispose = storage.dispose

    def dispose_of_all() -> None:
        dispose()
        kept.close()

    storage.dispose = dispose_of_all


def _know_tables(storage: Any) -> None:
    """Has a storage ask once for each table that is there: Dagster opens the file anew to ask, at each check's event.

    That took one in fourteen CPU seconds of an export. A table that is there stays; one that is not may come.
    """
    has_table, there = storage.has_table, set[str]()

    def has_table_now(name: str) -> bool:
        if name not in there and has_table(name):
            there.add(name)
        return name in there

    storage.has_table = has_table_now


class _KeptConnections:
    """One pool for each database; a thread at a time uses them, as with Dagster's own."""

    def __init__(self) -> None:
        self._engines: OrderedDict[tuple[str, ...], Any] = OrderedDict()
        self._lock = threading.RLock()

    @contextmanager
    def connect(self, method: str, first: Callable[..., AbstractContextManager[Any]], *shard: str) -> Iterator[Any]:
        """A connection in a transaction, which ends with the context.

        Args:
            method: The storage's method that this stands for.
            first: The method itself, which also makes the tables.
            shard: Its arguments.
        """
        key = (method, *shard)
        with self._lock:
            if key not in self._engines:
                with first(*shard) as connection:
                    self._engines[key] = _pooled(connection.engine.url)
                if len(self._engines) > _KEPT:
                    self._engines.popitem(last=False)[1].dispose()
            self._engines.move_to_end(key)
            with self._engines[key].connect() as connection, connection.begin():
                yield connection

    def close(self) -> None:
        """Closes all; another use opens them again."""
        with self._lock:
            while self._engines:
                self._engines.popitem()[1].dispose()


def _pooled(url: Any) -> Any:
    from sqlalchemy import create_engine  # noqa: PLC0415  Dagster's, and there where it keeps a history
    from sqlalchemy.pool import QueuePool  # noqa: PLC0415

    options = {"timeout": _BUSY_S, "check_same_thread": False}  # the lock sees to the threads
    return create_engine(url, poolclass=QueuePool, pool_size=1, max_overflow=-1, connect_args=options)


@contextmanager
def known_dagster_warnings_ignored() -> Iterator[None]:
    """Ignores, while the block runs, what Dagster says about features that we have chosen knowing that.

    Beta and preview: backfill policies, partitioned checks, code references, freshness policies. They are pinned by
    `test_upstream_characterization.py`. Deprecated: Dagster 1.13's own initialisation of nested resources reads
    ``InitResourceContext.dagster_run``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        warnings.simplefilter("ignore", dg.PreviewWarning)
        warnings.filterwarnings("ignore", r"InitResourceContext\.dagster_run is deprecated", DeprecationWarning)
        yield
