"""Rewrites in threads of this process: the engine of most lakes, which needs nothing beside it."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar

from datalake_assets.core.compaction.compaction_report import TaskFigures
from datalake_assets.engines.base import Cancelled, Done, Share, Task

__all__ = ["ThreadEngine"]

ResultT = TypeVar("ResultT")
#: More threads of one task would wait for its input.
THREADS = 2


class ThreadEngine:
    """Implements `Engine`: results come in the order of the tasks."""

    name = "local"
    is_remote = False

    def share(self, tasks: int, *, memory_bytes: int, thread_bytes: int) -> Share:
        """Implements `Engine`: while one task begins or ends, with one thread busy, another keeps the machine so.

        There may be more threads than cores, as memory allows: they take turns (`parquet/segment_queue.py`), and the
        task that is left at the end has several.
        """
        held = max(1, memory_bytes // thread_bytes)
        threads = min(os.cpu_count() or 1, held)
        at_once = min(tasks, max(min(threads, THREADS), threads // THREADS))
        return Share(at_once, min(held // at_once, THREADS))

    def run(
        self,
        tasks: Sequence[Task[ResultT]],
        share: Share,
        *,
        on_progress: Callable[[int, int], None],
        drop: Callable[[ResultT], None],
    ) -> Generator[Done[ResultT]]:
        """Implements `Engine`."""
        stopped = threading.Event()

        def report(index: int, done: int) -> None:
            if stopped.is_set():
                raise Cancelled
            on_progress(index, done)

        def work(index: int, task: Task[ResultT], given: float) -> Done[ResultT]:
            began = time.monotonic()
            result = task.run(partial(report, index))
            ended = time.monotonic()
            return Done(index, result, TaskFigures(wall_s=ended - began, waited_s=began - given))

        with ThreadPoolExecutor(share.at_once, thread_name_prefix="compaction") as pool:
            given = time.monotonic()
            jobs = deque(pool.submit(copy_context().run, work, index, task, given) for index, task in enumerate(tasks))
            try:
                while jobs:
                    yield jobs.popleft().result()
            finally:
                stopped.set()
                _give_up(jobs, drop)


def _give_up(jobs: Iterable[Future[Done[ResultT]]], drop: Callable[[ResultT], None]) -> None:
    for job in jobs:
        if not job.cancel() and job.exception() is None:
            drop(job.result().result)
