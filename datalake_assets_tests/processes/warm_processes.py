"""Starts Python's processes from one that has imported what they need: importing was most of what they did.

A command takes one or two CPU seconds to import what it uses, and tests start hundreds. With `installed`, whoever
starts one gets a child that was forked from a waiting process instead: a child of the one who asked, with its own
process id, so that it is waited for, interrupted and killed as any other. It has the environment, folder, descriptors,
session, process group and ignored signals that it was asked with, and runs its module or script from the beginning. It
differs in what is imported already: tests of what a process imports, and of how long that takes, start theirs by
``-c``, which is left to Python unless the program begins with `FORKED`.

What starts such processes itself (`_NESTS`) has a waiting process of its own, forked from the one that it is from.
``TESTS_COLD=1`` leaves all to Python.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import io
import json
import os
import runpy
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module, invalidate_caches
from multiprocessing import util
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["COLD", "FORKED", "IS_COLD", "SINGLE", "Hooks", "Waiting", "fork_when_asked", "install", "installed"]

#: The variable that has Python start processes: of all of them, or of those that have it in their environment.
COLD = "TESTS_COLD"
#: The first line of a program that is given by ``-c`` and may be forked.
FORKED = "# whatever is imported\n"
#: What is run by ``-m``, and the scripts beside Python that are the same.
_MODULES = frozenset(
    {
        "dagster",
        "dagster._daemon",
        "dagster_webserver",
        "datalake_assets.cli",
        "datalake_assets.lake.sql_process",
        "datalake_assets_tests.crash.child",
        "datalake_assets_tests.crash.iceberg_exports",
    }
)
_SCRIPTS = frozenset({"datalake", "dagster"})
#: Of these, what is given another import path than this process has: the same places by their names.
_WITH_PATH = frozenset({"datalake_assets.lake.sql_process"})
#: What a process of multiprocessing runs; Dagster's code server starts one for each run.
_SPAWNED = "from multiprocessing.spawn import spawn_main"
#: Arguments of what starts further processes of these kinds.
_NESTS = frozenset({"dev", "code-server", "api", "--parallel"})
#: Variables that Python, or what it imports, looks at when it starts: with others a process is Python's to start.
_LOOKED_AT = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC", "ARROW_", "TESTS_", "GRPC_", "OPENBLAS_", "OMP_")
#: A forked process has none of its parent's threads; numpy would start some when it is imported.
SINGLE = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
#: What commands, Dagster's and ours, import before they do something.
_IMPORTED = [
    "dagster",
    "dagster._cli",
    "dagster._cli.api",
    "dagster._cli.dev",
    "dagster._daemon.daemon",
    "dagster._grpc.server",
    "dagster._core.definitions.external_asset",
    "dagster._core.definitions.repository_definition.repository_data_builder",
    "dagster._core.execution.plan.active",
    "dagster._core.executor.in_process",
    "dagster._core.instance.factory",
    "dagster._core.instance.runs.run_domain",
    "dagster._core.storage.event_log.sqlite.sqlite_event_log",
    "dagster._core.storage.noop_compute_log_manager",
    "dagster._core.storage.root",
    "dagster._core.storage.runs.sqlite.sqlite_run_storage",
    "dagster._core.storage.schedules.sqlite.sqlite_schedule_storage",
    "dagster._core.storage.sqlite_storage",
    "dagster._core.system_config.composite_descent",
    "dagster._utils.test.definitions",
    "alembic.command",
    "boto3",
    "duckdb",
    "encodings.idna",
    "fsspec.implementations.local",
    "h2.connection",
    "httpx",
    "jinja2",
    "numpy",
    "obstore.store",
    "orjson",
    "rich.progress",
    "sqlalchemy.dialects.sqlite",
    "stamina",
    "upath",
    "upath.core",
    "upath.implementations.local",
    "pyarrow.compute",
    "pyarrow.csv",
    "pyarrow.dataset",
    "pyarrow.fs",
    "pyarrow.parquet",
    "concurrent.futures.thread",
    "multiprocessing.popen_spawn_posix",
    "multiprocessing.queues",
    "multiprocessing.spawn",
    "multiprocessing.synchronize",
    "datalake_assets.defs.build",
    "datalake_assets.defs.feeds.runner",
    "datalake_assets.demo.demo_lake",
    "datalake_assets.demo.ksqldb_server.ksql_server",
    "datalake_assets.lake.exact_answers",
    "datalake_assets.lake.hive",
    "datalake_assets.lake.hive_snapshot",
    "datalake_assets.lake.inspection",
    "datalake_assets.lake.item_replacing",
    "datalake_assets.lake.landing",
    "datalake_assets.lake.marts.mart_inputs",
    "datalake_assets.lake.sql_process",
    "datalake_assets.lake.sql_scans",
    "datalake_assets.lake.tables",
    "datalake_assets.lake.watching",
    "datalake_assets.parquet.rolling",
    "datalake_assets.sources.ksqldb.source",
    "datalake_assets.sources.sqs.sqs",
    "datalake_assets.cli.app",
    "datalake_assets.cli.compact",
    "datalake_assets.cli.demo",
    "datalake_assets.cli.export",
    "datalake_assets.cli.feeds",
    "datalake_assets.cli.report",
    "datalake_assets.cli.run",
    "datalake_assets.cli.sql",
    "datalake_assets.cli.verify",
]
#: Signals that nobody can ignore, and those that Python ignores in each process.
_NOT_INHERITED = {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}
_LENGTHS = struct.Struct(">II")
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, <linux/prctl.h>
_prctl = ctypes.CDLL(None).prctl
IS_COLD = bool(os.environ.get(COLD)) or not sys.platform.startswith("linux")


@contextmanager
def installed(*, is_first_forked: bool = False) -> Iterator[None]:
    """Has this process start those that it knows from waiting ones; from the second one on with an environment.

    Args:
        is_first_forked: Whether the very first one is, too: of many that will come, most have its environment.
    """
    if IS_COLD:
        yield
        return
    hooks = Hooks(begun_at=2, is_first_forked=is_first_forked)
    hooks.install()
    try:
        yield
    finally:
        hooks.remove()


def install() -> None:
    """Likewise, until this process ends, and from the first one on."""
    if not IS_COLD:
        Hooks(begun_at=1).install()


class Waiting:
    """A process that forks others when it is asked to.

    Args:
        connection: To it.
        process: It, if this process started it.
    """

    def __init__(self, connection: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self._connection, self._process = connection, process
        self._one_at_a_time = threading.Lock()

    def start(self, asked: dict[str, Any], fds: Mapping[int, int]) -> int:
        """Starts one that has descriptors of ours by their numbers there; returns its process id."""
        body = json.dumps({**asked, "fds": list(fds)}).encode()
        with self._one_at_a_time:
            _prctl(_SUBREAPER, 1, 0, 0, 0)  # whose parent ends becomes our child: the new process does
            try:
                socket.send_fds(self._connection, [_LENGTHS.pack(len(body), len(fds))], list(fds.values()))
                self._connection.sendall(body)
                return int(_LENGTHS.unpack(_received(self._connection, _LENGTHS.size))[0])
            finally:
                _prctl(_SUBREAPER, 0, 0, 0, 0)

    def close(self) -> None:
        """Ends it."""
        self._connection.close()
        if self._process is not None:
            self._process.wait(30)


class Hooks:
    """What stands in the place of Python's functions that start a process.

    Args:
        begun_at: For the how manieth process with such an environment a waiting one is started.
        waiting: One that waits already, and the environment that it has.
        knows: What a command line has Python run, if it is one that a waiting process runs.
        is_first_forked: Whether the very first process starts a waiting one, whatever ``begun_at`` says.
    """

    def __init__(
        self,
        *,
        begun_at: int,
        is_first_forked: bool = False,
        waiting: tuple[Waiting, Mapping[str, str]] | None = None,
        knows: Callable[[Sequence[str]], dict[str, Any] | None] | None = None,
    ) -> None:
        self._begun_at, self._is_first_forked = begun_at, is_first_forked
        self._pid, self._knows = os.getpid(), knows or _what_runs
        self._waiting = {} if waiting is None else {_looked_at(waiting[1]): waiting[0]}
        self._wanted, self._starting = Counter[frozenset[tuple[str, str]]](), threading.Lock()
        self._fork_exec: Callable[..., int] = subprocess._fork_exec
        self._spawn: Callable[..., int] = util.spawnv_passfds

    def install(self) -> None:
        """Puts them there."""
        subprocess._fork_exec, util.spawnv_passfds = self._forked, self._spawned

    def remove(self) -> None:
        """Puts Python's own there again, and ends what waits."""
        subprocess._fork_exec, util.spawnv_passfds = self._fork_exec, self._spawn
        for waiting in self._waiting.values():
            waiting.close()

    def _waits(self, environment: Mapping[str, str]) -> Waiting | None:
        """The waiting process with such an environment, if there is one or ought to be."""
        if environment.get(COLD) or os.getpid() != self._pid:  # a fork of ours has no such connection
            return None
        kind = _looked_at(environment)
        with self._starting:
            self._wanted[kind] += 1
            begun_at = 1 if self._is_first_forked and self._wanted.total() == 1 else self._begun_at
            if kind not in self._waiting and self._wanted[kind] >= begun_at:
                ours, theirs = socket.socketpair()
                with theirs:
                    process = subprocess.Popen(
                        [sys.executable, __file__, str(theirs.fileno())],
                        env={**environment, **SINGLE},
                        pass_fds=[theirs.fileno()],
                        stdin=subprocess.DEVNULL,
                    )
                self._waiting[kind] = Waiting(ours, process)
            return self._waiting.get(kind)

    def _forked(self, *asked_for: Any) -> int:
        """As ``_posixsubprocess.fork_exec``; what it takes is in the order of Python 3.11 to 3.13."""
        args, _, close_fds, keep, cwd, env, *rest = asked_for
        stdin, _, _, stdout, _, stderr, _, report, _, session, group, *owner, umask, before, _ = rest
        runs = self._knows([os.fsdecode(each) for each in args])
        if runs and close_fds and owner == [None] * 3 and umask < 0 and before is None:
            environment = _decoded(os.environb if env is None else dict(each.partition(b"=")[::2] for each in env))
            if waiting := self._waits(os.environ if runs.get("module") in _WITH_PATH else environment):
                folder = str(Path.cwd() / ("" if cwd is None else os.fsdecode(cwd)))
                asked = {**runs, **_signals(), "environment": environment, "folder": folder}
                asked |= {"session": session, "group": group}
                given = {0: stdin, 1: stdout, 2: stderr}
                own = {number: number if fd < 0 else fd for number, fd in given.items()}
                return waiting.start(asked, {**_open(own), **{fd: fd for fd in keep if fd != report}})
        return self._fork_exec(*asked_for)

    def _spawned(self, path: Any, args: Any, keep: Any) -> int:
        """As ``multiprocessing.util.spawnv_passfds``."""
        runs = self._knows([os.fsdecode(each) for each in args])
        environment = dict(os.environ)
        if runs and (waiting := self._waits(environment)):
            asked = {**runs, **_signals(), "environment": environment, "folder": str(Path.cwd())}
            asked |= {"session": False, "group": -1}
            return waiting.start(asked, {**_open({0: 0, 1: 1, 2: 2}), **{fd: fd for fd in map(int, keep)}})
        return self._spawn(path, args, keep)


def _what_runs(args: Sequence[str]) -> dict[str, Any] | None:
    """What a command line has Python run, if it is one of those that are known."""
    program = Path(args[0])
    is_python, beside = args[0] == sys.executable, program.parent == Path(sys.executable).parent
    nests = not _NESTS.isdisjoint(args)
    if beside and program.name in _SCRIPTS:
        return {"script": args[0], "argv": list(args), "nests": nests}
    if is_python and args[1:2] == ["-m"] and args[2] in _MODULES:
        return {"module": args[2], "argv": ["-m", *args[3:]], "nests": nests}
    if is_python and len(args) > 1 and args[1].endswith(".py") and args[1] != __file__:
        return {"script": args[1], "argv": list(args[1:]), "nests": nests}
    if is_python and args[1:2] == ["-c"] and args[2].startswith(FORKED):
        return {"code": args[2], "argv": ["-c", *args[3:]], "nests": False}
    if is_python and args[-3:-2] == ["-c"] and args[-2].startswith(_SPAWNED):
        return {"code": args[-2], "argv": ["-c", args[-1]], "nests": False}
    return None


def _decoded(environment: Mapping[bytes, bytes]) -> dict[str, str]:
    return {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()}


def _looked_at(environment: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(each for each in environment.items() if each[0].startswith(_LOOKED_AT) and each[0] not in SINGLE)


def _signals() -> dict[str, list[int]]:
    """What a process has from the one that starts it: which signals it ignores, and which it holds back."""
    ignored = [number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN]
    return {"ignored": ignored, "blocked": list(signal.pthread_sigmask(signal.SIG_BLOCK, ()))}


def _open(fds: Mapping[int, int]) -> dict[int, int]:
    """Those that are: a standard stream may be closed."""
    found = {}
    for number, fd in fds.items():
        with suppress(OSError):
            os.fstat(fd)
            found[number] = fd
    return found


def _received(connection: socket.socket, count: int) -> bytes:
    body = b""
    while len(body) < count and (part := connection.recv(count - len(body))):
        body += part
    return body


def _serve(connection: socket.socket) -> tuple[dict[str, Any], dict[int, int]]:
    """Forks a process for each request; returns in that, with the request and its descriptors by their numbers.

    The waiting process itself ends with the one that asks.
    """
    while True:
        head, fds, _, _ = socket.recv_fds(connection, _LENGTHS.size, 250)
        head += _received(connection, _LENGTHS.size - len(head))
        if len(head) < _LENGTHS.size:
            os._exit(0)
        length, _ = _LENGTHS.unpack(head)
        asked = json.loads(_received(connection, length))
        told, tells = os.pipe()
        between = os.fork()
        if not between:
            between = os.getpid()
            if child := os.fork():
                os.write(tells, child.to_bytes(4, "big"))
                os._exit(0)
            if asked["session"]:
                os.setsid()
            if asked["group"] >= 0:
                os.setpgid(0, asked["group"])
            os.close(tells)
            while os.getppid() == between:  # its parent is the one that asked, as soon as that has ended
                time.sleep(0.0005)
            return asked, dict(zip(asked["fds"], fds, strict=True))
        os.close(tells)
        for fd in fds:
            os.close(fd)
        child = int.from_bytes(os.read(told, 4), "big")
        os.read(told, 1)  # nothing comes: it has closed it, and leads its session
        os.close(told)
        os.waitpid(between, 0)
        connection.sendall(_LENGTHS.pack(child, 0))


def _become(asked: dict[str, Any], fds: Mapping[int, int]) -> None:
    """Makes this process what was asked for, but for what it runs."""
    beyond = max([*fds, 99]) + 1
    kept = {number: fcntl.fcntl(fd, fcntl.F_DUPFD, beyond) for number, fd in fds.items()}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  numbers
        with suppress(OSError):
            if int(name) not in kept.values():
                os.close(int(name))
    for number, fd in kept.items():
        os.dup2(fd, number)
        os.close(fd)
    for number in signal.valid_signals() - _NOT_INHERITED:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in asked["ignored"] else default)
    signal.pthread_sigmask(signal.SIG_SETMASK, asked["blocked"])
    os.chdir(asked["folder"])
    single = {name: os.environ[name] for name in SINGLE}
    os.environ.clear()
    os.environ.update({**single, **asked["environment"]})
    time.tzset()
    sys.argv = sys.orig_argv = list(asked["argv"])
    sys.path[0] = os.path.dirname(os.path.realpath(asked["script"])) if "script" in asked else asked["folder"]  # noqa: PTH120
    if asked.get("module") in _WITH_PATH:
        named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[1:] = [*named, *(each for each in sys.path[1:] if each not in named)]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = _stream(number, getattr(sys, name)) if number in fds else None
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    invalidate_caches()


def _stream(number: int, before: io.TextIOWrapper) -> io.TextIOWrapper:
    """A standard stream as Python makes it."""
    plain = before.write_through  # with PYTHONUNBUFFERED
    # as long as the process lives
    raw = open(number, "wb" if number else "rb", buffering=0 if plain and number else -1, closefd=False)  # noqa: SIM115
    is_by_line = not plain and (os.isatty(number) or number == 2)
    coded = {"encoding": before.encoding, "errors": before.errors, "newline": "\n" if number else None}
    return io.TextIOWrapper(raw, line_buffering=is_by_line, write_through=plain, **coded)


def _leave(connection: socket.socket) -> None:
    """Lets go of all that is open but for a connection."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  numbers
        if int(name) not in {0, 1, 2, connection.fileno()}:
            with suppress(OSError):
                os.close(int(name))


def _main(connection: socket.socket) -> None:
    for name in _IMPORTED:
        import_module(name)
    import_module("spared_storages").read_migrations()
    gc.collect()
    gc.freeze()
    fork_when_asked(connection)


def fork_when_asked(connection: socket.socket) -> NoReturn:
    """Forks a process for each request, until whoever asks has ended."""
    while True:
        asked, fds = _serve(connection)
        connection.detach()  # its number is given to something else
        _become(asked, fds)
        if not asked["nests"]:
            break
        ours, theirs = socket.socketpair()
        if os.fork():
            theirs.close()
            Hooks(begun_at=1, waiting=(Waiting(ours), asked["environment"])).install()
            break
        ours.close()
        _leave(theirs)
        connection = theirs
    _leave_with(_result_of(asked))


def _result_of(asked: dict[str, Any]) -> int:
    """Runs what was asked for; the exit code that Python would give, negative for a signal."""
    try:
        if "module" in asked:
            runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
        elif "script" in asked:
            runpy.run_path(asked["script"], run_name="__main__")
        else:
            exec(asked["code"], {"__name__": "__main__"})  # noqa: S102  as Python does
    except SystemExit as ended:
        if isinstance(ended.code, int | None):
            return (ended.code or 0) & 0xFF
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001  the last place that could
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _leave_with(code: int) -> NoReturn:
    """Ends this process as Python does, without taking down what was imported: of that others make use."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):
                stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])))
