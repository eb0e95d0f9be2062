"""SQL of people who must not harm each other: each query in a process of its own, with bounds that nothing gets past.

The gate (`sql_gate`) says what a query may do; what it takes is DuckDB's to count, and DuckDB does not count a value
that a function is just making, nor does an interrupt end one. So a query that is served to many runs in a process that
has only so much memory, and is killed when its time is up.

Starting an interpreter with DuckDB and Arrow takes a second or two, forking one a hundredth: a waiting process, which
runs no query itself and starts no threads, forks one for each. Opening a session takes several hundredths, so the next
query's process is forked, and opens its own, while nobody waits. They end when their parents do.

Files in a store are read by the parent, who has the credentials (`sql_files`).
"""

from __future__ import annotations

import json
import os
import resource
import secrets
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self, TypeAlias

from datalake_assets.lake.sql_files import ReadableFile, serving
from datalake_assets.lake.sql_jobs import THREADS, SqlFailed, SqlJob, SqlRows, TableJob, answered, failure

if TYPE_CHECKING:
    from datalake_assets.lake.sql_gate import SqlSession

__all__ = ["SqlProcesses"]

#: Of memory that a query may take besides what an idle process has; DuckDB spills to disk before.
MEMORY_BYTES = 1 << 30
#: Of one row group at least, and of the answer, on top of what DuckDB is given.
DUCKDB_MEMORY = "256MB"
_SPILL_PERCENT = 5
#: Seconds after the time limit until the process is killed: an interrupt ends most queries at once.
_GRACE_S = 1.0
#: Seconds that a query waits for its turn; whoever waits keeps a thread.
_WAIT_S = 2.0
#: Seconds for which a session is good that was opened before its query: it has looked how much room the disk has.
_FRESH_S = 600.0
#: What a process says once it has its query.
_TAKEN = b"t"
#: Longest answer of a process; the limits of a job are below it.
_MOST_BYTES = 64 << 20
_LENGTH = struct.Struct(">Q")


class SqlProcesses:
    """Runs queries in processes; safe to use from several threads.

    Args:
        most: Queries that run at the same time; others wait for a moment.
    """

    def __init__(self, most: int = 4) -> None:
        self._free = threading.BoundedSemaphore(most)
        self._waiting: list[_Waiting] = []
        self._end = weakref.finalize(self, _end_all, self._waiting)

    def answer(self, job: SqlJob, open_file: Callable[[str], ReadableFile] | None = None) -> SqlRows:
        """Runs a query.

        Args:
            job: The query.
            open_file: Opens a file of the job, if they are in a store; used by several threads.

        Raises:
            SqlFailed: It was refused or ended.
        """
        if not self._free.acquire(timeout=min(job.timeout_s, _WAIT_S)):
            raise SqlFailed("busy", "too many queries run just now")
        lent = (lambda: serving(job.files, job.sizes, open_file)) if job.sizes and open_file else nullcontext
        try:
            answer = self._exchanged(job, lent)
        finally:
            self._free.release()
        if "kind" in answer:
            raise SqlFailed(answer["kind"], answer["reason"])
        return SqlRows(**answer)

    def answers(self, job: TableJob, memory: int) -> list[SqlRows | SqlFailed]:
        """Runs queries over one table, in one process.

        Args:
            job: The queries.
            memory: Descriptor of memory, or of a file, that is an Arrow IPC file: the table. It stays the caller's.

        Returns:
            An answer, or why there is none, for each query.

        Raises:
            SqlFailed: There is none to any: one of them took more than it may, or the table cannot be read.
        """
        if not self._free.acquire(timeout=min(job.timeout_s, _WAIT_S)):
            raise SqlFailed("busy", "too many queries run just now")
        try:
            answer = self._exchanged(job, lambda: nullcontext(memory))
        finally:
            self._free.release()
        if "kind" in answer:
            raise SqlFailed(answer["kind"], answer["reason"])
        return [SqlFailed(**each) if "kind" in each else SqlRows(**each) for each in answer["answers"]]

    def _exchanged(self, job: SqlJob | TableJob, lent: Callable[[], AbstractContextManager[_Lent]]) -> dict[str, Any]:
        """The answer of a process that waits; of a new one if that has ended meanwhile."""
        for _ in range(2):
            try:
                waiting = self._waiting.pop()
            except IndexError:
                waiting = _started()
            with lent() as theirs:
                answer = waiting.exchange(job, theirs)
            if answer is not None:
                self._waiting.append(waiting)
                return answer
            _end_all([waiting])
            self.close()
        return failure("busy", "the processes of queries end at once")

    def warm(self) -> None:
        """Starts a process ahead of the first query, which would wait for it."""
        if not self._waiting:
            self._waiting.append(_started())

    def close(self) -> None:
        """Ends the processes that wait; the next query starts another."""
        _end_all(self._waiting)


#: What a process is lent for a job: a socket, which is its own then; a descriptor, which is not; or nothing.
_Lent: TypeAlias = socket.socket | int | None


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A waiting process, and where it is given sockets, which pipes cannot carry."""

    process: subprocess.Popen[bytes]
    control: socket.socket

    def exchange(self, job: SqlJob | TableJob, theirs: _Lent) -> dict[str, Any] | None:
        """Sends a job and reads its answer; None if the process has ended."""
        assert self.process.stdin is not None  # noqa: S101  for mypy: it has pipes
        assert self.process.stdout is not None  # noqa: S101  likewise
        try:
            _send(self.process.stdin, _message(asdict(job)))
            if isinstance(theirs, int):
                socket.send_fds(self.control, [b"f"], [theirs])
            elif theirs is not None:
                socket.send_fds(self.control, [b"f"], [theirs.fileno()])
                theirs.close()  # so that its last owner's end is the end
            return _receive(self.process.stdout)
        except (OSError, ValueError):
            return None


def _job(document: dict[str, Any]) -> SqlJob | TableJob:
    return TableJob(**document) if "queries" in document else SqlJob(**document)


def _end_all(processes: list[_Waiting]) -> None:
    while processes:
        each = processes.pop()
        each.process.kill()
        each.process.communicate()
        each.control.close()


def _started() -> _Waiting:
    """A waiting process. It gets this one's import path, and nothing else that is secret."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TMPDIR", "TZ") if name in os.environ}
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept | {"PYTHONPATH": os.pathsep.join(sys.path)},
            pass_fds=[theirs.fileno()],
        )
    return _Waiting(process, ours)


def _message(document: dict[str, Any]) -> bytes:
    """A document, and before it its length: whoever ends before it is written whole is found out."""
    text = json.dumps(document).encode()
    return _LENGTH.pack(len(text)) + text


def _is_whole(message: bytes) -> bool:
    size = _LENGTH.size
    return len(message) >= size and len(message) - size == _LENGTH.unpack(message[:size])[0]


def _send(file: BinaryIO | Any, message: bytes) -> None:
    file.write(message)
    file.flush()


def _receive(file: BinaryIO | Any) -> dict[str, Any] | None:
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    found: dict[str, Any] = json.loads(file.read(_LENGTH.unpack(head)[0]))
    return found


def main() -> None:
    """Waits for jobs on standard input, and forks a process for each; ends with its parent."""
    import duckdb  # noqa: F401, PLC0415  what every query needs is loaded once
    import pyarrow.dataset  # noqa: PLC0415
    import pyarrow.parquet  # noqa: F401, PLC0415

    from datalake_assets.lake import exact_answers, sql_gate, sql_scans, sql_views  # noqa: F401, PLC0415

    control = socket.socket(fileno=int(sys.argv[1]))
    child = _Child.forked(control)
    while (document := _receive(sys.stdin.buffer)) is not None:
        job, files = _job(document), None
        if isinstance(job, TableJob) or job.sizes:
            files = socket.recv_fds(control, 1, 1)[1][0]
        answer = None if child.is_stale else child.answer(job, files)
        child.end()
        if answer is None:  # it ended while it waited, which one that has just begun does not
            child = _Child.forked(control)
            answer = child.answer(job, files) or _message(failure("busy", "the processes of queries end at once"))
            child.end()
        if files is not None:
            os.close(files)
        _send(sys.stdout.buffer, answer)
        child = _Child.forked(control)  # while nobody waits
    child.end()


@dataclass(frozen=True, slots=True)
class _Child:
    """A process for one query, which opens its session before that comes, and the parent's ends of what leads there."""

    pid: int
    folder: Path
    jobs: socket.socket
    answers: int
    since: float

    @classmethod
    def forked(cls, control: socket.socket) -> Self:
        """One that waits for its query; ``control`` is not for it."""
        name = f"datalake-query-{secrets.token_hex(8)}"
        folder = Path(tempfile.gettempdir(), name)  # a killed query leaves its files
        read_end, write_end = os.pipe()
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            ours.close()
            control.close()
            _run(folder, theirs, write_end)
        os.close(write_end)
        theirs.close()
        return cls(pid, folder, ours, read_end, time.monotonic())

    @property
    def is_stale(self) -> bool:
        """Whether it has waited so long that there may be another amount of room on the disk."""
        return time.monotonic() - self.since > _FRESH_S

    def answer(self, job: SqlJob | TableJob, files: int | None) -> bytes | None:
        """Has it run its query; the answer as it came from there, or None if it had ended before."""
        deadline = time.monotonic() + job.timeout_s + _GRACE_S
        with suppress(OSError):  # it has ended: then there is no answer
            socket.send_fds(self.jobs, [b"j"], [files] if files is not None else [])
            self.jobs.sendall(_message(asdict(job)))
        message, is_late = _read_until(self.answers, deadline)
        if is_late:
            return _message(failure("late", f"it was not done after {job.timeout_s:g} s, and was ended; ask for less"))
        if not message.startswith(_TAKEN):
            return None
        if not _is_whole(message := message.removeprefix(_TAKEN)):
            return _message(failure("large", "it takes more memory than a query may; ask for less"))
        return message

    def end(self) -> None:
        """Kills it, if it has not ended, and removes its files."""
        os.close(self.answers)
        self.jobs.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        shutil.rmtree(self.folder, ignore_errors=True)


def _read_until(descriptor: int, deadline: float) -> tuple[bytes, bool]:
    """What is written until the other end closes, and whether that was too late."""
    parts: list[bytes] = []
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    while sum(map(len, parts)) <= _MOST_BYTES:
        if not waiting.poll(1000 * max(0.0, deadline - time.monotonic())):
            return b"", True
        part = os.read(descriptor, 1 << 20)
        if not part:
            return b"".join(parts), False
        parts.append(part)
    return b"", False


def _run(folder: Path, jobs: socket.socket, write_end: int) -> None:
    """In the process of a query: opens a session, waits for the query, and never returns."""
    import duckdb  # noqa: PLC0415  loaded before

    from datalake_assets.lake.sql_gate import SqlLimits, open_session  # noqa: PLC0415

    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        folder.mkdir(mode=0o700)
        tempfile.tempdir = str(folder)
        _bound_memory()
        limits = SqlLimits(memory=DUCKDB_MEMORY, spill_percent=_SPILL_PERCENT, threads=THREADS)
        with ExitStack() as stack:
            session: SqlSession | Exception
            try:
                session = stack.enter_context(open_session(limits=limits))
            except (duckdb.Error, OSError) as error:
                session = error
            message, given, _, _ = socket.recv_fds(jobs, 1, 1)
            if not message:  # its parent has ended, or been killed
                shutil.rmtree(folder, ignore_errors=True)
                os._exit(0)
            with jobs.makefile("rb") as file:
                document = _receive(file)
            assert document is not None  # noqa: S101  for mypy: else the parent has ended
            os.write(write_end, _TAKEN)
            job = _job(document)
            _bound_time(job.timeout_s)
            answer = answered(job, given[0] if given else None, session)
            with os.fdopen(write_end, "wb") as out:
                out.write(_message(answer))
            os._exit(0)
    except BaseException:  # noqa: BLE001  whatever it is, the parent must not run on in two processes
        os._exit(1)


def _bound_memory() -> None:
    _lower(resource.RLIMIT_DATA, MEMORY_BYTES + _data_bytes())
    _lower(resource.RLIMIT_CORE, 0)


def _bound_time(timeout_s: float) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + timeout_s + 2 * _GRACE_S) * THREADS + 1)


def _lower(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    lower = most if hard == resource.RLIM_INFINITY else min(most, hard)  # nobody may raise it again
    resource.setrlimit(kind, (lower, lower))


def _data_bytes() -> int:
    """What an idle process has, mostly room that allocators keep; elsewhere than on Linux a guess."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))
    except OSError:
        return 2 << 30


if __name__ == "__main__":
    main()
