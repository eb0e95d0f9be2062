"""What SQL that people write may do here: read what it was given, within limits, and nothing else.

Commands, feeds' rules and whatever else runs somebody's SQL come through this gate. It is shut twice. DuckDB's own
settings keep a session from files, networks, extensions and this process's variables, and cannot be changed back. And
a query has to be one read, by DuckDB's own parser: a statement that would write is refused before it is run, also where
an EXPLAIN ANALYZE or a common table expression wraps it, and so is a table function that is not known to be harmless
(some read files, some take addresses in memory, and each release brings new ones).

Memory is DuckDB's to count but for what a function makes of a value, or of a batch of them: that has no limit but the
process's own, which is lowered while somebody's query runs. What would go beyond it fails, and DuckDB says so.
"""

from __future__ import annotations

import atexit
import os
import re
import resource
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import duckdb

from datalake_assets.core.rules import literal
from datalake_assets.errors import ConfigError, duckdb_interrupted

__all__ = [
    "CheckedQuery",
    "SqlLimits",
    "SqlRefused",
    "SqlSession",
    "SqlTimedOut",
    "check_query",
    "checking_connection",
    "interruptible",
    "message_of",
    "open_session",
]

T = TypeVar("T")


class SqlRefused(ConfigError):
    """A query that is no query, or not a valid one, or that takes more than it may.

    Args:
        reason: What is wrong with it, and what to do.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the query cannot be run: {reason}")


class SqlTimedOut(SqlRefused):
    """A query that was ended when its time was up.

    Args:
        timeout_s: Seconds that it had.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        super().__init__(f"it was not done after {timeout_s:g} s, and was ended; ask for less")


@dataclass(frozen=True, slots=True)
class SqlLimits:
    """What a query may take of the machine.

    Attributes:
        memory: Of memory, as DuckDB writes it: ``512MB``, or a share like ``50%``. Beyond it DuckDB works on disk.
        uncounted_percent: Of the machine's memory, what may come on top that DuckDB does not count: values that
            functions make, and batches that Arrow reads. At least 1 GiB.
        spill_percent: Of what is free on the disk of temporary files.
        threads: Cores; None for all.
    """

    memory: str = "50%"
    uncounted_percent: int = 25
    spill_percent: int = 50
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class CheckedQuery:
    """A query that passed the gate.

    Attributes:
        text: What is to be run: what was checked, and nothing around it.
        tables: Names that it reads by, in lower case; None where it asks for all there are.
        defined: Of these, names that it defines itself; they may mean tables all the same.
        schemas: Names of schemas that it names before tables, in lower case.
        names_columns: Whether it names columns, or all of them; where it does not, rows may be counted all the same.
    """

    text: str
    tables: frozenset[str] | None
    defined: frozenset[str] = frozenset()
    schemas: frozenset[str] = frozenset()
    names_columns: bool = True


#: Statements that only read; DESCRIBE, SUMMARIZE, SHOW, VALUES and FROM are SELECTs to DuckDB's parser.
_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
#: Expressions of columns.
_COLUMNS = frozenset({"COLUMN_REF", "STAR", "POSITIONAL_REFERENCE"})
#: Table functions that make rows of their arguments, or describe the views of the session.
_TABLE_FUNCTIONS = frozenset(
    {
        *("range", "generate_series", "repeat", "repeat_row", "unnest", "json_each", "json_tree"),
        *("regexp_split_to_table", "histogram", "histogram_values", "test_all_types"),
        *("duckdb_columns", "duckdb_tables", "duckdb_views", "duckdb_functions", "duckdb_types", "duckdb_keywords"),
        *("pg_timezone_names", "icu_calendar_names", "pragma_version"),
    }
)
#: Words that have no place in a PIVOT whose values a query finds first, since such a PIVOT is not parsed whole.
_NO_PIVOT_WORDS = frozenset({"insert", "update", "delete", "merge", "copy"})
_EXPLAIN = re.compile(r"EXPLAIN\s+(?P<options>ANALYZE\s+|\([\w\s,]*\)\s*|)(?P<query>.*)", re.IGNORECASE | re.DOTALL)
_ONE_READ = "give one SELECT; nothing else is run here"
#: Set before the session is locked. Each keeps it from something outside of it.
_LOCKED = (
    "autoinstall_known_extensions = false",
    "autoload_known_extensions = false",
    "allow_community_extensions = false",
    "allow_persistent_secrets = false",
    "secret_directory = ''",
    "home_directory = ''",
    "python_enable_replacements = false",
    "python_scan_all_frames = false",
    "enable_external_access = false",
    "lock_configuration = true",
)


@contextmanager
def open_session(*, readable: Iterable[str] = (), limits: SqlLimits) -> Iterator[SqlSession]:
    """Opens a session that is locked already; its temporary files go with it.

    Args:
        readable: Local files that DuckDB may read itself, by absolute path.
        limits: What a query may take.

    Raises:
        KeyboardInterrupt: A signal came while DuckDB worked, which makes a `RuntimeError` of what its handler raised.
    """
    with duckdb_interrupted(), tempfile.TemporaryDirectory(prefix="datalake-sql-") as spill:
        config: dict[str, str | bool | int | float | list[str]] = {
            "temp_directory": str(Path(spill, "spill")),
            **({} if limits.threads is None else {"threads": str(limits.threads)}),
        }
        with duckdb.connect(config=config) as connection:
            files = ", ".join(map(literal, readable))
            room = shutil.disk_usage(spill).free * limits.spill_percent // 100
            uncounted = _memory_limit(connection) * limits.uncounted_percent // _OWN_PERCENT
            settings = (
                "TimeZone = 'UTC'",
                f"memory_limit = {literal(limits.memory)}",
                f"max_temp_directory_size = '{room}B'",  # ignored where the connection gets it as it begins
                f"allowed_paths = [{files}]",
                *_LOCKED,
            )
            connection.execute("; ".join(f"SET {each}" for each in settings))
            memory = _memory_limit(connection) + max(uncounted, LEAST_UNCOUNTED)
            with ThreadPoolExecutor(1, "DuckDB") as worker:  # no thread before it is needed
                yield SqlSession(connection, memory, worker)


def check_query(query: str) -> CheckedQuery:
    """Lets a query through that is one read, whatever it reads: by its text; nothing of it runs.

    Raises:
        SqlRefused: It is not, or DuckDB cannot parse it.
        KeyboardInterrupt: As `open_session` raises it.
    """
    with duckdb_interrupted(), checking_connection() as connection:
        return _check(connection, query)


def checking_connection() -> duckdb.DuckDBPyConnection:
    """A connection to a locked database without rows, for statements of our own that ask what DuckDB knows; close it.

    It has one thread, the caller's, and what it registers goes with it.
    """
    return _checking.cursor()


class _Checking:
    """That database, kept as long as the process: a session takes 20 ms to open, a check one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: By process: one that was forked leaves that of its parent alone, which another thread may have been using.
        self._kept: dict[int, duckdb.DuckDBPyConnection] = {}

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own for a caller, who closes it."""
        with self._lock:
            if os.getpid() not in self._kept:
                self._kept[os.getpid()] = self._opened()
            return self._kept[os.getpid()].cursor()

    def _opened(self) -> duckdb.DuckDBPyConnection:
        # without a thread, so that a process which is forked from this one can take its copy down
        connection = duckdb.connect(config={"threads": 1, "async_threads": 0})
        settings = (f"memory_limit = {literal(SqlLimits().memory)}", *_LOCKED)
        connection.execute("; ".join(f"SET {each}" for each in settings))
        atexit.register(self._close, os.getpid())
        return connection

    def _close(self, process: int) -> None:
        """At the end: DuckDB's client reports what is left of it by the page."""
        if process == os.getpid():
            self._kept.pop(process).close()


_checking = _Checking()

#: Seconds between two interrupts of a query.
_INTERRUPT_S = 0.05
#: What Arrow needs to read some row groups at once, and DuckDB beside what it counts.
LEAST_UNCOUNTED = 1 << 30
#: Of the memory of the machine, or the container, that DuckDB allows itself (DuckDB documentation, "memory_limit").
_OWN_PERCENT = 80
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def _memory_limit(connection: duckdb.DuckDBPyConnection) -> int:
    ((text,),) = connection.execute("SELECT current_setting('memory_limit')").fetchall()
    number, unit = text.split()
    return int(float(number) * _UNITS[unit])


class _ProcessMemory:
    """The limit of this process's memory, lowered while there are queries of people, and put back after the last."""

    def __init__(self) -> None:
        self._lock, self._queries = threading.Lock(), 0
        self._before = resource.RLIM_INFINITY

    @contextmanager
    def limited(self, more_bytes: int) -> Iterator[None]:
        """Fails allocations that would add so much to what the process has now; nothing where Linux's /proc is not."""
        with self._lock:
            now, hard = resource.getrlimit(resource.RLIMIT_DATA)
            used = _used_bytes()
            if used is None:
                most = now
            elif not self._queries:
                self._before, most = now, used + more_bytes if now < 0 else min(now, used + more_bytes)
            else:
                most = max(now, used + more_bytes) if self._before < 0 else now
            resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
            self._queries += 1
        try:
            yield
        finally:
            with self._lock:
                self._queries -= 1
                if not self._queries and used is not None:
                    resource.setrlimit(resource.RLIMIT_DATA, (self._before, hard))


_process_memory = _ProcessMemory()


def _used_bytes() -> int | None:
    """What the process has of the memory that RLIMIT_DATA is about: private and writable (man 5 proc, statm)."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[5]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def interruptible(call: Callable[[], T], connection: duckdb.DuckDBPyConnection, worker: Executor) -> T:
    """What a call of DuckDB's gives; a signal that comes meanwhile interrupts it.

    In the main thread DuckDB's client looks for signals by itself, and where it has several threads it mostly waits for
    ever then (2.0: a task is lost, and all threads are idle). So the main thread lets the worker call, and waits.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    answer, interruption = worker.submit(call), None
    while not answer.done():
        try:
            wait([answer], None if interruption is None else _INTERRUPT_S)
        except BaseException as error:  # noqa: BLE001  whatever a handler raises, once DuckDB has ended
            interruption = interruption or error
        if interruption is not None:
            connection.interrupt()  # again and again: one that comes before the query runs is forgotten
    if interruption is not None:
        raise interruption
    return answer.result()


class SqlSession:
    """A locked session of DuckDB.

    Args:
        connection: A connection that `open_session` has locked.
        memory_bytes: What a query may add to the memory of this process.
        worker: One thread, for what the main thread waits for.

    Attributes:
        connection: For statements of our own, and for queries that passed `check`; those that take their time by `run`.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, memory_bytes: int, worker: Executor) -> None:
        self.connection = connection
        self._memory_bytes, self._worker = memory_bytes, worker

    def check(self, query: str) -> CheckedQuery:
        """Lets a query through that is one read.

        Raises:
            SqlRefused: It is not, or DuckDB cannot parse it.
        """
        return _check(self.connection, query)

    def run(self, call: Callable[[], T]) -> T:
        """What a call of DuckDB's gives; a signal that comes meanwhile interrupts it."""
        return interruptible(call, self.connection, self._worker)

    def interrupt(self) -> None:
        """Ends what runs, if something does; for other threads, also when the session has ended."""
        with suppress(duckdb.ConnectionException):
            self.connection.interrupt()

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Fails what runs within it, in this process, and would take more memory than it may."""
        with _process_memory.limited(self._memory_bytes):
            yield

    @contextmanager
    def limited(self, timeout_s: float) -> Iterator[None]:
        """Ends what runs within it after some seconds.

        A function that makes one large value of small ones is ended when it has made it.

        Raises:
            SqlTimedOut: The time is up.
        """
        late = threading.Event()

        def end() -> None:
            late.set()
            self.interrupt()

        timer = threading.Timer(timeout_s, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        except duckdb.InterruptException as error:
            if not late.is_set():
                raise
            raise SqlTimedOut(timeout_s) from error
        finally:
            timer.cancel()
            timer.join()  # a process that ends meanwhile would report the session as leaked, by the page


def _check(connection: duckdb.DuckDBPyConnection, query: str) -> CheckedQuery:
    try:
        query.encode()
        return _checked(connection, query)
    except UnicodeEncodeError as error:
        raise SqlRefused("it is not text in UTF-8") from error
    except duckdb.Error as error:
        raise SqlRefused(message_of(error)) from error


def _checked(connection: duckdb.DuckDBPyConnection, query: str) -> CheckedQuery:
    kind, text = _only_statement(connection, query)
    if kind == duckdb.StatementType.SELECT:
        return _checked_select(connection, text)
    explained = _EXPLAIN.fullmatch(text.strip()) if kind == duckdb.StatementType.EXPLAIN else None
    if explained is not None:
        # put together again: what is run is what was checked, whatever a comment hid from the pattern
        kind, inner = _only_statement(connection, explained["query"])
        if kind == duckdb.StatementType.SELECT:
            checked = _checked_select(connection, inner)
            return replace(checked, text=f"EXPLAIN {explained['options']}{checked.text}")
    if kind == duckdb.StatementType.MULTI:
        return _checked_pivot(connection, text)
    raise SqlRefused(_ONE_READ)


def _only_statement(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[object, str]:
    try:
        (statement,) = connection.extract_statements(query)
        kind = statement.type
    except ValueError as error:  # none, or several; or of a kind that DuckDB's client has no name for
        raise SqlRefused(_ONE_READ) from error
    return kind, statement.query


def _checked_select(connection: duckdb.DuckDBPyConnection, text: str) -> CheckedQuery:
    """Checks a SELECT by the tree that DuckDB's parser makes of it, in DuckDB: it may be too deep for Python."""
    found = connection.execute(
        "SELECT tree->>'error_message', json_extract_string(tree, '$..type'),"
        " json_extract_string(tree, '$..function.function_name'), json_extract_string(tree, '$..table_name'),"
        " json_extract_string(tree, '$..cte_map.map[*].key'), json_extract_string(tree, '$..schema_name')"
        " FROM (SELECT json_serialize_sql(?::VARCHAR) AS tree)",
        [text],
    ).fetchall()
    ((error, types, functions, tables, defined, schemas),) = found
    if error is not None:
        raise SqlRefused(error)
    if any(name.endswith("_NODE") and name not in _NODES for name in types):
        raise SqlRefused(_ONE_READ)
    for name in functions:
        if name.lower() not in _TABLE_FUNCTIONS:
            raise SqlRefused(
                f"table function {name!r} is not offered here; a query reads feeds by their names, and nothing else"
            )
    if any(name.startswith('"') for name in tables):  # how SHOW TABLES and the like name what they show
        return CheckedQuery(text, None)
    named, own, before = (frozenset(map(str.lower, filter(None, each))) for each in (tables, defined, schemas))
    return CheckedQuery(text, named, own, before, names_columns=not _COLUMNS.isdisjoint(types))


def _checked_pivot(connection: duckdb.DuckDBPyConnection, text: str) -> CheckedQuery:
    """Checks a PIVOT by its words: DuckDB takes it for several statements, and has no tree for them."""
    words = frozenset(re.findall(r"\w+", text.lower()))
    offered = connection.execute(
        "SELECT DISTINCT lower(function_name) FROM duckdb_functions() WHERE function_type IN ('table', 'table_macro')"
    ).fetchall()
    for name in {name for (name,) in offered} - _TABLE_FUNCTIONS | _NO_PIVOT_WORDS:
        if name in words:
            raise SqlRefused(f"a PIVOT with the word {name!r} in it is not run here; list its values with IN (…)")
    if not words & {"pivot", "pivot_wider"}:
        raise SqlRefused(_ONE_READ)
    return CheckedQuery(text, words)


def message_of(error: Exception) -> str:
    """DuckDB's message on one line, without what stands below it: excerpts, locked settings, tracebacks."""
    text = " ".join(_BELOW.split(str(error), maxsplit=1)[0].split())
    if isinstance(error, duckdb.OutOfMemoryException | MemoryError):
        return f"it takes more memory than it may ({text or 'no memory left'}); ask for less"
    return text


_BELOW = re.compile(r"\n\nLINE |\s+Possible solutions:|\. Detail: Python exception: Traceback")
