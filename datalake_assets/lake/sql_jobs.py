"""What a query's process is asked, and how it answers: the part of `sql_process` that knows DuckDB.

A job is one query over files, or some queries over rows in memory, which come as a descriptor of memory that both
processes share: nothing is copied, and nothing is on a disk.
"""

from __future__ import annotations

import base64
import json
import mmap
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datalake_assets.core.wording import plain
from datalake_assets.errors import DatalakeError
from datalake_assets.lake.sql_files import IO_THREADS, AskedFiles

if TYPE_CHECKING:
    import pyarrow as pa

    from datalake_assets.lake.sql_gate import SqlSession

__all__ = ["THREADS", "SqlFailed", "SqlJob", "SqlRows", "TableJob", "answered", "failure"]

THREADS = 2
#: Characters of a reason that are told.
_REASON = 1000


class SqlFailed(DatalakeError):
    """A query that was not answered.

    Args:
        kind: ``refused``, ``late``, ``large``, ``busy``; ``expired``: a file of its snapshot is gone; ``unreachable``:
            one cannot be read just now.
        reason: For the person who asked.
    """

    def __init__(self, kind: str, reason: str) -> None:
        self.kind, self.reason = kind, reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class SqlJob:
    """A query over one table.

    Attributes:
        query: The SQL.
        table: The name of the table in it.
        schema: Arrow's IPC message of the table's schema, in base64.
        files: Local Parquet files, by absolute path, that are the table; of files in a store what their names may be.
        sizes: Bytes of each, of files in a store; none of local ones.
        rows: Of all files together; None: whoever asks does not know, and Arrow counts them.
        max_rows: Of the answer.
        max_bytes: Of the rows of the answer, as JSON.
        timeout_s: Seconds that it may take.
    """

    query: str
    table: str
    schema: str
    files: Sequence[str]
    max_rows: int
    max_bytes: int
    timeout_s: float
    sizes: Sequence[int] = ()
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class TableJob:
    """Queries over rows in memory, one after another.

    Attributes:
        queries: The SQL.
        table: The name of the rows in it.
        max_rows: Of each answer.
        max_bytes: Of the rows of each answer, as JSON.
        each_s: Seconds that each may take.
        counted: Places of queries whose rows are counted; the answer is their number.
    """

    queries: Sequence[str]
    table: str
    max_rows: int
    max_bytes: int
    each_s: float
    counted: Sequence[int] = ()

    @property
    def timeout_s(self) -> float:
        """Seconds that all of them may take."""
        return self.each_s * len(self.queries)


@dataclass(frozen=True, slots=True)
class SqlRows:
    """The answer to a query.

    Attributes:
        columns: Names of the columns.
        types: Their types, as DuckDB names them.
        rows: Values as JSON has them: exact numbers and times are texts, bytes base64.
        truncated: Whether there are more rows than were asked for, or than fit.
    """

    columns: list[str]
    types: list[str]
    rows: list[list[Any]]
    truncated: bool


def failure(kind: str, reason: str) -> dict[str, Any]:
    """A reason may hold what a query made: ``error(repeat('x', 1e8))``."""
    return {"kind": kind, "reason": reason if len(reason) <= _REASON else f"{reason[:_REASON]}…"}


def answered(job: SqlJob | TableJob, descriptor: int | None, session: SqlSession | Exception) -> dict[str, Any]:
    """Runs what is asked for, and returns what `SqlRows` is made of, or what `failure` gives.

    Args:
        job: What is asked for; of several queries the answers are a list, ``answers``.
        descriptor: Of a job's shared memory, an Arrow IPC file; or of the socket by which files in a store are read.
        session: Nobody's yet; or why it could not be opened.
    """
    if isinstance(job, TableJob):
        return _answers(job, descriptor, session)
    return _answer(job, socket.socket(fileno=descriptor) if descriptor is not None else None, session)


def _answers(job: TableJob, descriptor: int | None, session: SqlSession | Exception) -> dict[str, Any]:
    import pyarrow as pa  # noqa: PLC0415  loaded before

    from datalake_assets.lake.sql_views import show  # noqa: PLC0415

    pa.set_cpu_count(THREADS)

    def shown() -> SqlSession:
        if isinstance(session, Exception):
            raise session
        assert descriptor is not None  # noqa: S101  for mypy: such a job comes with one
        mapped = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        show(session.connection, job.table, pa.ipc.open_file(pa.py_buffer(mapped)).read_all(), is_temporary=True)
        return session

    ready = _tried(shown)
    if isinstance(ready, dict):
        return ready
    counted = set(job.counted)
    return {
        "answers": [_tried(partial(_one, ready, job, place, place in counted)) for place in range(len(job.queries))]
    }


def _one(session: SqlSession, job: TableJob, place: int, is_counted: bool) -> dict[str, Any]:  # noqa: FBT001  `partial`
    query = job.queries[place]
    if is_counted:
        # a view takes the query as it is, with its semicolon and its comments
        with session.limited(job.each_s):
            session.connection.execute(f"CREATE OR REPLACE TEMP VIEW {_COUNTED} AS {session.check(query).text}")
        query = f"SELECT count(*) FROM {_COUNTED}"  # noqa: S608  our own name
    return _run(session, query, job, job.each_s)


#: The view of rows that are counted; no feed has a blank in its name.
_COUNTED = '"the counted"'


def _tried(what: Callable[[], Any], on_error: Callable[[str], dict[str, Any]] | None = None) -> Any:
    """What a function gives, or why it failed; ``on_error`` knows more of errors that may be nobody's fault."""
    import duckdb  # noqa: PLC0415  loaded before
    import pyarrow as pa  # noqa: PLC0415

    from datalake_assets.lake.sql_gate import SqlRefused, SqlTimedOut, message_of  # noqa: PLC0415

    try:
        return what()
    except SqlTimedOut as error:
        return failure("late", error.reason)
    except SqlRefused as error:
        return failure("refused", error.reason)
    except duckdb.OutOfMemoryException:
        return failure("large", "it takes more memory than a query may; ask for less")
    except (duckdb.Error, OSError, pa.ArrowException) as error:
        message = message_of(error)
        return failure("refused", message) if on_error is None else on_error(message)


def _run(session: SqlSession, query: str, job: SqlJob | TableJob, timeout_s: float) -> dict[str, Any]:
    from datalake_assets.lake.exact_answers import exact_query  # noqa: PLC0415  loaded before

    checked = session.check(query)
    with session.limited(timeout_s):
        exact = exact_query(session.connection, checked.text)
        return _fetched(session.connection.execute(exact), job)


def _answer(job: SqlJob, files: socket.socket | None, session: SqlSession | Exception) -> dict[str, Any]:
    import pyarrow as pa  # noqa: PLC0415  loaded before

    from datalake_assets.core.schema import schema_from_json  # noqa: PLC0415
    from datalake_assets.lake.sql_views import show  # noqa: PLC0415

    pa.set_cpu_count(THREADS)
    if files is not None:
        pa.set_io_thread_count(IO_THREADS)  # of all of this process, which is this query's own
    asked = None if files is None else AskedFiles(files)

    def run() -> dict[str, Any]:
        if isinstance(session, Exception):
            raise session
        checked = session.check(job.query)  # before anything is read
        if asked is not None and checked.names_columns:
            asked.announce()
        columns, files_of = schema_from_json(job.schema).empty_table(), partial(_dataset, job, asked)
        # a name of DuckDB's own views is free for a temporary one
        show(session.connection, job.table, columns, is_temporary=True, as_schema=files_of)
        return _run(session, job.query, job, job.timeout_s)

    found: dict[str, Any] = _tried(run, lambda message: _failed(job, asked, message))
    return found


def _failed(job: SqlJob, asked: AskedFiles | None, message: str) -> dict[str, Any]:
    """Why a query failed that may do what it did: perhaps not by its own fault."""
    is_gone = not all(Path(file).exists() for file in job.files) if asked is None else asked.is_gone
    if is_gone:
        return failure("expired", "a file of the snapshot was removed meanwhile")
    if asked is not None and asked.is_unreachable:
        return failure("unreachable", "a file of the table cannot be read just now; ask again later")
    return failure("refused", _without_paths(message, job.files))


def _dataset(job: SqlJob, asked: AskedFiles | None, schema: pa.Schema) -> Any:
    """The files as Arrow reads them; where only the first column is wanted, which is in no file, none is read."""
    from datalake_assets.lake.sql_scans import local_rows, stored_rows  # noqa: PLC0415  loaded before

    if asked is None:
        return local_rows(job.files, schema, job.rows)
    return stored_rows(asked, job.sizes, schema, job.rows)


def _without_paths(reason: str, files: Sequence[str]) -> str:
    """The reason without where the lake lies."""
    for folder in sorted({str(Path(file).parent) for file in files}, key=len, reverse=True):
        reason = reason.replace(f"{folder}/", "")
    return reason


def _fetched(connection: Any, job: SqlJob | TableJob) -> dict[str, Any]:
    """The rows of an answer, as many as may be."""
    described = connection.description or []
    names, types = [str(column[0]) for column in described], [str(column[1]) for column in described]
    left = job.max_bytes - len(json.dumps([names, types]).encode())
    if left < 0:
        return failure("large", "its columns alone are more than an answer may have; ask for fewer")
    rows: list[list[Any]] = []
    truncated = False
    while not truncated and (batch := connection.fetchmany(256)):
        for row in batch:
            values = [plain(value, binary=lambda data: base64.b64encode(data).decode()) for value in row]
            left -= len(json.dumps(values, ensure_ascii=False).encode())
            if left < 0 or len(rows) == job.max_rows:
                truncated = True
                break
            rows.append(values)
    return {"columns": names, "types": types, "rows": rows, "truncated": truncated}
