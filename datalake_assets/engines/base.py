"""What a rewrite needs of whatever runs it: pieces of work go in, results come out, and nothing else is agreed on.

An engine knows nothing of lakes. What makes it safe to lose a piece of work, or to do it twice, lies in the work: it
*stages* under names of its own, and only who gets its result commits. So an engine may repeat a task whose worker is
gone, and a worker that was given up may finish all the same: nobody takes what it made.

`datalake_assets.testing.engines` holds every engine to this contract.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Generic, Protocol, TypeVar

from datalake_assets.core.compaction.compaction_report import TaskFigures
from datalake_assets.core.values import Value
from datalake_assets.errors import AmbiguousWrite, DatalakeError, TransientStoreError

__all__ = ["Cancelled", "Done", "Engine", "Progress", "Share", "Task", "transient"]

ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)

#: Called by a task with the work that it has done so far; raises `Cancelled` if that is not wanted any more.
Progress = Callable[[int], None]


class Cancelled(Exception):
    """Nobody wants a task's result any more; the task drops what it has made, and lets this pass."""


class Task(Value, Generic[ResultT_co], frozen=True):
    """A piece of work for any process.

    Attributes:
        run: Does it. Module-level code and values that can be pickled, without credentials. It may be called several
            times, at the same time too, in processes that die in the middle; each call makes things of its own.
        name: What is done, for people who watch the engine.
        memory_bytes: That the work may take; what the process takes anyway is not in it.
    """

    run: Callable[[Progress], ResultT_co]
    name: str = ""
    memory_bytes: int = 0


class Done(Value, Generic[ResultT_co], frozen=True):
    """A task that came to its end.

    Attributes:
        index: Its place among the tasks.
        result: What it returned.
        figures: What it took.
    """

    index: int
    result: ResultT_co
    figures: TaskFigures


class Share(Value, frozen=True):
    """How an engine is divided among tasks.

    Attributes:
        at_once: Tasks that run at the same time.
        threads: Threads that each may use.
    """

    at_once: int
    threads: int


class Engine(Protocol):
    """Runs tasks. Used from several threads at once."""

    @property
    def name(self) -> str:
        """What settings call it."""

    @property
    def is_remote(self) -> bool:
        """Whether tasks run in other processes, where no progress is told and no memory of this one is shared."""

    def share(self, tasks: int, *, memory_bytes: int, thread_bytes: int) -> Share:
        """How so many tasks are to be run.

        Args:
            tasks: How many; at least one.
            memory_bytes: That tasks in this process may hold together; one elsewhere, for itself.
            thread_bytes: That each of their threads holds.

        Raises:
            ConfigError: The engine's package is not installed.
            EngineError: It cannot be reached.
        """

    def run(
        self,
        tasks: Sequence[Task[ResultT]],
        share: Share,
        *,
        on_progress: Callable[[int, int], None],
        drop: Callable[[ResultT], None],
    ) -> Generator[Done[ResultT]]:
        """Runs tasks, and hands each result on once, in whatever order; closing it cancels the others.

        Args:
            tasks: What is to be done.
            share: What `share` said.
            on_progress: Called in any thread with a task's index and the work that it has done so far; not at all
                where the engine is remote.
            drop: Given the results that nobody takes any more.

        Raises:
            Exception: What a task raised; the others are cancelled. If repeating may help (`transient`), a remote
                engine has done so.
            EngineError: A task could not be run, or was lost again and again.
        """


def transient(error: BaseException) -> bool:
    """Whether a task that raised this may come through in another attempt, by another worker perhaps."""
    return isinstance(error, AmbiguousWrite | TransientStoreError) or not isinstance(error, DatalakeError | Cancelled)
