"""Rewrites by the workers of a Ray cluster: for those who keep one anyway, or want this machine's cores in processes.

Ray is asked for as little as can be. Tasks get paths and give back names, so that nothing lies in its object store and
nothing spills; what a task takes of CPUs and memory is declared, and Ray sees to it that no node takes on more. Ray
repeats a task whose worker or node is gone, and one that raised what may pass. A worker whose node was taken for dead
may finish its task all the same: the driver never hears of it, and what it staged nobody commits (ADR 047).

Progress is told by whole tasks: one that is lost begins anew.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from datalake_assets.engines.base import Done, Share, Task
from datalake_assets.engines.worker import Outcome
from datalake_assets.errors import ConfigError, DatalakeError, EngineError, unforeseen_text

__all__ = ["RayEngine"]

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
PACKAGE: Final = "datalake-assets"
#: Repetitions of a task whose worker died, or which raised what may pass; Ray's own default.
RETRIES: Final = 3
#: What a worker takes before it does anything: the interpreter, Ray, Arrow and numpy (`benchmarks scale`).
WORKER_BYTES: Final = 200 << 20
#: Of a cluster that is started here: results are a few kB, and Ray takes no less (its documentation, "Object Store").
OBJECT_STORE_BYTES: Final = 80 << 20
#: Threads of one task at the most, where there are more cores than tasks.
THREADS: Final = 2
#: Between two looks at a cluster that finishes nothing.
LOOK_S: Final = 5.0
#: After so long without any node that could take a task, nobody waits for one.
WITHOUT_NODE_S: Final = 60.0
#: For workers that were told to stop.
CANCEL_S: Final = 10.0
#: To reach a cluster; Ray itself goes on for many minutes.
CONNECT_S: Final = 5.0


class RayEngine:
    """Implements `Engine`."""

    name = "ray"
    is_remote = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._work: Any = None

    def share(self, tasks: int, *, memory_bytes: int, thread_bytes: int) -> Share:  # noqa: ARG002  each has its own
        """Implements `Engine`: Ray queues what does not run yet."""
        self._connect()
        cores = [node["Resources"].get("CPU", 0) for node in _nodes()]
        wide = THREADS * tasks <= sum(cores) and max(cores, default=0) >= THREADS
        return Share(tasks, THREADS if wide else 1)

    def run(
        self,
        tasks: Sequence[Task[ResultT]],
        share: Share,
        *,
        on_progress: Callable[[int, int], None],  # noqa: ARG002  none is told
        drop: Callable[[ResultT], None],
    ) -> Generator[Done[ResultT]]:
        """Implements `Engine`."""
        work = self._connect()
        for task in tasks:
            _check_fits(share.threads, _memory_of(task))
        pending: dict[Any, int] = {}
        try:
            for index, task in enumerate(tasks):
                options = {"num_cpus": share.threads, "memory": _memory_of(task), "name": task.name or "datalake"}
                pending[work.options(**options).remote(_pickled(task), _version(), time.time())] = index
            while pending:
                for ref in _finished(list(pending), share.threads):
                    index = pending.pop(ref)
                    yield _done(index, ref)
        finally:
            _cancel(list(pending), drop)

    def _connect(self) -> Any:
        """The remote function, once the cluster is reached."""
        with self._lock:
            ray = _ray()
            if self._work is None or not ray.is_initialized():
                if not ray.is_initialized():
                    _initialize(ray)
                self._work = ray.remote(max_retries=RETRIES, retry_exceptions=True)(_bootstrap())
            return self._work


def _ray() -> Any:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns of what will be so
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray  # noqa: PLC0415  an extra, which takes seconds to import
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the engine 'ray' takes a package that is not installed ({error.name}): pip install '{PACKAGE}[ray]'"
        ) from error
    return ray


def _bootstrap() -> Callable[..., Any]:
    """What workers are sent: pickled as it stands, so that it runs where our package is missing, and says so."""

    def work(payload: bytes, version: str, given_at: float) -> Any:
        import os  # noqa: PLC0415  nothing of this module is there
        import socket  # noqa: PLC0415
        from importlib import metadata  # noqa: PLC0415

        worker = f"{socket.gethostname()}/{os.getpid()}"
        try:
            mine = metadata.version("datalake-assets")
            if mine != version:  # what it calls a task may be something else
                return worker, f"has datalake-assets {mine}, and this process {version}"
            from datalake_assets.engines.worker import do  # noqa: PLC0415  may be missing there
        except ModuleNotFoundError as error:  # that of a package without its metadata is one, too
            return worker, f"has no package {error.name or 'datalake-assets'!r}"
        return do(payload, given_at)

    return work


def _initialize(ray: Any) -> None:
    """Connects to the cluster that `RAY_ADDRESS` names, or to one on this machine, or starts one there."""
    address = os.environ.get("RAY_ADDRESS", "")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": "datalake"}
    with _one_line(address), _signals_kept():
        _keep_stdout(ray)
        if address and address != "local":
            _reach(address)
            ray.init(address=address, **quiet)
            return
        if not address:
            with contextlib.suppress(ConnectionError):
                ray.init(address="auto", **quiet)
                return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody unasked
        os.environ.setdefault("RAY_worker_niceness", "0")  # else 15 more than ours: threads would have ours, too
        logger.info("starting a Ray cluster on this machine")
        ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
        atexit.register(ray.shutdown)


@contextmanager
def _one_line(address: str) -> Iterator[None]:
    try:
        yield
    except DatalakeError:
        raise
    except Exception as error:
        reason = f"no cluster at {address or 'this machine'} ({_line(error)})"
        raise EngineError("ray", reason, cure="start one with 'ray start --head', or mend RAY_ADDRESS") from error


def _keep_stdout(ray: Any) -> None:
    """What Ray has to say of dead workers goes to the log, a line each; by itself it prints pages to stdout.

    No setting keeps it from that (Ray 2.60, ``listen_error_messages``), and stdout belongs to what a command answers.
    """

    def logged(data: Mapping[str, Any], *_: Any, **__: Any) -> None:
        for text in data.get("lines", ()):
            logger.info("%s: %s", data.get("pid", "ray"), _line(text))

    if hasattr(ray._private.worker, "print_to_stdstream"):  # noqa: SLF001  there is no other way
        ray._private.worker.print_to_stdstream = logged  # noqa: SLF001


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts a handler of its own in the place of that by which Dagster ends a run in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _reach(address: str) -> None:
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname and parts.port:
        socket.create_connection((parts.hostname, parts.port), timeout=CONNECT_S).close()


def _version() -> str:
    return metadata.version(PACKAGE)


def _memory_of(task: Task[Any]) -> int:
    return WORKER_BYTES + task.memory_bytes


def _pickled(task: Task[Any]) -> bytes:
    return pickle.dumps(task.run, protocol=pickle.HIGHEST_PROTOCOL)


def _nodes() -> list[Mapping[str, Any]]:
    import ray  # noqa: PLC0415  imported by whoever connected

    with _one_line(os.environ.get("RAY_ADDRESS", "")):
        nodes: list[Mapping[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
    return [node for node in nodes if node["Alive"]]


def _fits(cpus: int, memory_bytes: int) -> bool:
    has = (node["Resources"] for node in _nodes())
    return any(each.get("CPU", 0) >= cpus and each.get("memory", 0) >= memory_bytes for each in has)


def _check_fits(cpus: int, memory_bytes: int) -> None:
    """Ray would wait for ever for a node that there is not."""
    if not _fits(cpus, memory_bytes):
        raise EngineError(
            "ray",
            f"no node of the cluster has {cpus} CPU and {memory_bytes >> 20} MiB of memory for a task",
            cure="add one, or lower the feed's row groups",
        )


def _finished(pending: Sequence[Any], cpus: int) -> Sequence[Any]:
    """Some that are done; waits for the first."""
    import ray  # noqa: PLC0415  see `_nodes`

    alone_since: float | None = None
    while True:
        with _one_line(os.environ.get("RAY_ADDRESS", "")):
            done, _ = ray.wait(list(pending), num_returns=1, timeout=LOOK_S)
        if done:
            return list(done)
        if _fits(cpus, 0):
            alone_since = None
        elif alone_since is None:
            alone_since = time.monotonic()
        elif time.monotonic() - alone_since > WITHOUT_NODE_S:
            raise EngineError("ray", f"the cluster has had no node with a CPU for {WITHOUT_NODE_S:.0f} s")


def _done(index: int, ref: Any) -> Done[Any]:
    outcome = _outcome(ref)
    if outcome.error is not None:
        raise outcome.error
    return Done(index, outcome.result, outcome.figures)


def _outcome(ref: Any) -> Outcome:
    """What a worker made of a task.

    Raises:
        DatalakeError: What a repetition might have mended and did not.
        EngineError: The task could not be run.
    """
    import ray  # noqa: PLC0415  see `_nodes`

    try:
        found = ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, DatalakeError):
            raise cause from error
        reason = unforeseen_text(cause) if isinstance(cause, Exception) else _line(error)
        raise EngineError("ray", f"a task failed {RETRIES + 1} times: {reason}") from error
    except ray.exceptions.RayError as error:
        cure = "look for memory in Ray's logs; run it again: what was committed is kept"
        raise EngineError("ray", f"a task was lost {RETRIES + 1} times ({_line(error)})", cure=cure) from error
    if not isinstance(found, Outcome):
        raise _misfit(*found)
    return found


def _misfit(worker: str, reason: str) -> EngineError:
    cure = f"install {PACKAGE}=={_version()} on every node"
    return EngineError("ray", f"the worker {worker} {reason}", cure=cure)


def _cancel(pending: Sequence[Any], drop: Callable[[Any], None]) -> None:
    """Stops what is under way, and drops what came of it all the same; what is lost here is swept by its age."""
    if not pending:
        return
    import ray  # noqa: PLC0415  see `_nodes`

    if not ray.is_initialized():
        return
    for ref in pending:
        with contextlib.suppress(Exception):
            ray.cancel(ref, force=False)
    done, late = list[Any](), list(pending)
    with contextlib.suppress(Exception):  # the cluster is gone: so is what was under way
        done, late = ray.wait(late, num_returns=len(late), timeout=CANCEL_S)
    for ref in late:
        with contextlib.suppress(Exception):
            ray.cancel(ref, force=True)
    for ref in done:
        with contextlib.suppress(Exception):
            outcome = _outcome(ref)
            if outcome.error is None:
                drop(outcome.result)


def _line(error: BaseException | str) -> str:
    """The line of an error of Ray that says most; its own texts are pages."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
