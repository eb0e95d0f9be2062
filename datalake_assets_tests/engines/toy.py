"""An engine that treats tasks as a cluster may at its worst: all is pickled, and results come last first.

If it ``doubles``, each task runs twice: the first attempt is taken for lost, and goes on to its end all the same.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from datalake_assets import engines
from datalake_assets.engines import worker
from datalake_assets.engines.base import Cancelled, Done, Share, Task, transient

__all__ = ["DoublingEngine", "ToyEngine", "toy"]


class ToyEngine:
    """Implements `Engine`."""

    name = "toy"
    is_remote = True
    doubles = False

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.zombies: list[Any] = []

    def share(self, tasks: int, *, memory_bytes: int, thread_bytes: int) -> Share:
        return Share(min(tasks, 2), 1)

    def run(
        self,
        tasks: Sequence[Task[Any]],
        share: Share,
        *,
        on_progress: Callable[[int, int], None],
        drop: Callable[[Any], None],
    ) -> Generator[Done[Any]]:
        stopped = threading.Event()

        def progress(_: int) -> None:
            if stopped.is_set():
                raise Cancelled

        payloads = [pickle.dumps(task.run) for task in tasks]
        self.payloads += payloads
        with ThreadPoolExecutor(len(tasks)) as pool:
            jobs = {index: pool.submit(self._outcome, each, progress) for index, each in enumerate(payloads)}
            try:
                while jobs:
                    index = self._next(jobs)
                    outcome = jobs.pop(index).result()
                    if outcome.error is not None:
                        raise outcome.error
                    yield Done(index, outcome.result, outcome.figures)
            finally:
                stopped.set()
                for job in jobs.values():
                    if job.exception() is None and job.result().error is None:
                        drop(job.result().result)

    def _next(self, jobs: dict[int, Future[worker.Outcome]]) -> int:
        while not (done := [index for index, job in jobs.items() if job.done()]):
            time.sleep(0.001)
        return max(done)

    def _outcome(self, payload: bytes, progress: Callable[[int], None]) -> worker.Outcome:
        def attempt() -> worker.Outcome:
            done = worker.do(payload, time.time(), progress)
            return pickle.loads(pickle.dumps(done))  # noqa: S301

        try:
            lost = attempt()
        except Exception as error:
            if not transient(error):
                raise
            return attempt()
        if not self.doubles or lost.error is not None:
            return lost
        self.zombies.append(lost.result)
        return attempt()


class DoublingEngine(ToyEngine):
    """Does each task twice."""

    doubles = True


#: The one that settings mean by ``toy``, while there is one.
current: list[ToyEngine] = []


def current_engine() -> ToyEngine:
    return current[-1]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[DoublingEngine]:
    """The doubling engine by its name; what it was given can be seen."""
    made = DoublingEngine()
    monkeypatch.setattr(f"{__name__}.current", [made])
    monkeypatch.setitem(engines.ENGINES, "toy", (__name__, "current_engine"))
    engines.open_engine.cache_clear()
    yield made
    engines.open_engine.cache_clear()
