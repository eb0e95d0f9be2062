"""Follows streams: reads each as it comes, and commits it batch by batch, until it is told to end.

A batch is landed as an export lands what it reads, by the same table, so that positions, schema, rules of placement and
quarantine are the same, and it does not matter which of them landed a row. A process may be killed anywhere: the next
one begins at the position that was committed. Nothing is read ahead of the commit but what the source's own buffers
hold, which is what holds a fast source back.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, Self

from datalake_assets.continuous.micro_batches import MicroBatch, Pacing, has_rows
from datalake_assets.core.batches import Batches, SourceBatch
from datalake_assets.core.facts import WriteReport
from datalake_assets.core.position import SourcePartition
from datalake_assets.errors import ConfigError, DatalakeError, FeedNotFound, unforeseen_text
from datalake_assets.feed import Feed
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import LakeTable
from datalake_assets.lake.tables import open_table
from datalake_assets.sources.base import Follows, SourceSystem

__all__ = ["Follower", "Following", "FollowingLog", "Landed"]

logger = logging.getLogger(__name__)

#: Seconds after which it is told what was landed.
REPORT_S = 30.0
#: Seconds after which it is looked whether the feed is still what it was.
LOOK_S = 10.0
#: Seconds after which the position is committed of a source that went on, though no row came: Kinesis's says until when
#: it was read, and what brokers have of a topic may end with markers alone.
POSITION_S = 600.0
#: Seconds before a feed that failed is tried again: doubled from the first to the second.
SHORTEST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
#: Time for followers to commit what they have once they are told to end.
GRACE_S = 60.0


@dataclass(frozen=True, slots=True)
class Landed:
    """What was landed of a feed since it was last told.

    Attributes:
        table: Where to.
        report: All batches as one write; `WriteReport.partitions` are as they are now.
        batches: How many these were.
        seconds: Time from the first row of each to its commit, in sum.
    """

    table: LakeTable
    report: WriteReport
    batches: int
    seconds: float

    def and_then(self, later: Landed) -> Landed:
        """Both as one."""
        batches, seconds = self.batches + later.batches, self.seconds + later.seconds
        return Landed(later.table, self.report.and_then(later.report), batches, seconds)

    @property
    def feed(self) -> Feed:
        """The feed."""
        return self.table.feed


class FollowingLog(Protocol):
    """Whom it is told what comes of following; called in the threads of the followers."""

    def landed(self, landed: Landed) -> None:
        """Some batches were committed; told now and then, and at the end."""

    def failed(self, feed: str, error: DatalakeError, *, again_in_s: float) -> None:
        """A feed cannot be followed for now; it is tried again."""

    def gone(self, feed: str, reason: str) -> None:
        """A feed is followed no longer."""


class Follower:
    """Follows one feed, in one thread.

    Args:
        store: The lake.
        name: The feed's name.
        connect: Connects to systems of a type.
        log: Told what comes of it.
        ending: Set when it is to end.
        run_id: Of the Dagster run; empty if there is none.
        report_s: Seconds after which it is told what was landed.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        connect: Callable[[str], AbstractContextManager[SourceSystem]],
        log: FollowingLog,
        ending: threading.Event,
        run_id: str = "",
        report_s: float = REPORT_S,
    ) -> None:
        self._store, self._name, self._connect, self._log = store, name, connect, log
        self._ending, self._run_id, self._report_s = ending, run_id, report_s
        self._registry = FeedRegistry(store)
        self._wait_s = SHORTEST_WAIT_S
        self._untold: Landed | None = None
        self._told_at = 0.0

    def run(self) -> None:
        """Follows the feed until it is told to end, or the feed is gone; failures are told and tried again."""
        while not self._ending.is_set():
            try:
                self._follow()
            except FeedNotFound as error:
                self._tell()
                self._log.gone(self._name, str(error))
                return
            except DatalakeError as error:
                self._wait_after(error)
            except Exception as error:  # the other feeds can be followed
                logger.exception("feed %s", self._name)
                self._wait_after(DatalakeError(f"feed {self._name}: {unforeseen_text(error)}"))
        self._tell()

    def _wait_after(self, error: DatalakeError) -> None:
        self._tell()
        self._log.failed(self._name, error, again_in_s=self._wait_s)
        self._ending.wait(self._wait_s)
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)

    def _follow(self) -> None:
        """Follows the feed as it is declared now, until its reading has to begin anew."""
        feed = self._registry.get(self._name)
        if not feed.can_be_followed:
            raise ConfigError(f"feed {feed.name!r} cannot be followed any more: it is read otherwise now")
        table = open_table(self._store, feed)
        with self._connect(feed.source.type) as source:
            if not isinstance(source, Follows):
                raise ConfigError(f"source {feed.source.type!r} of feed {feed.name!r} cannot be followed")
            reading = source.follow(feed, table.plan().request)
            with contextlib.closing(iter(reading)) as rows:
                self._land(table, reading, rows)

    def _land(self, table: LakeTable, reading: Batches, rows: Iterator[SourceBatch]) -> None:
        """Lands batch after batch, until the reading ends, the feed is another, or this is to end."""
        pacing = Pacing(table.feed.batch)
        looked = committed_at = time.monotonic()
        reached: Mapping[SourcePartition, int] = {}
        for batch in rows:
            has_moved = batch.read_to != reached and time.monotonic() - committed_at >= POSITION_S
            if has_rows(batch) or has_moved:
                micro = MicroBatch(reading, rows, pacing, self._ending.is_set, [batch])
                self._commit(table, micro)
                if micro.failure is not None:
                    raise micro.failure
                if micro.ended:
                    return
                reached, committed_at = micro.taken[-1].read_to, time.monotonic()
            self._wait_s = SHORTEST_WAIT_S
            if self._ending.is_set():
                return
            if time.monotonic() - self._told_at >= self._report_s:
                self._tell()
            if time.monotonic() - looked >= LOOK_S:
                looked = time.monotonic()
                if self._registry.get(self._name) != table.feed:
                    return

    def _commit(self, table: LakeTable, micro: MicroBatch) -> None:
        began = time.monotonic()
        report = table.write(micro, partitions=(), run_id=self._run_id)
        ended = time.monotonic()
        if not report.rows_read:
            return
        micro.pacing.committed(report, seconds=ended - micro.over_at)
        logger.info(
            "%s: %d rows in %.2f s, committed in %.3f s; the next batch waits %.2f s",
            table.feed.path,
            report.rows_added,
            ended - began,
            ended - micro.over_at,
            micro.pacing.age_s,
        )
        one = Landed(table, report, 1, ended - began)
        self._untold = one if self._untold is None else self._untold.and_then(one)
        if not self._told_at:
            self._tell()  # the first one at once: it shows that all is well

    def _tell(self) -> None:
        self._told_at = time.monotonic()
        if self._untold is not None:
            told, self._untold = self._untold, None
            self._log.landed(told)


class Following:
    """Followers of several feeds, each in a thread of its own, which end together.

    Args:
        store: The lake.
        connect: Connects to systems of a type.
        log: Told what comes of it.
        run_id: Of the Dagster run; empty if there is none.
        report_s: Seconds after which it is told what was landed.
    """

    def __init__(
        self,
        store: Callable[[], Store],
        *,
        connect: Callable[[str], AbstractContextManager[SourceSystem]],
        log: FollowingLog,
        run_id: str = "",
        report_s: float = REPORT_S,
    ) -> None:
        self._store, self._connect, self._log, self._run_id, self._report_s = store, connect, log, run_id, report_s
        self._ending = threading.Event()
        self._threads: dict[str, threading.Thread] = {}
        self._error: BaseException | None = None

    def follow(self, name: str) -> None:
        """Begins to follow a feed, if it is not followed yet."""
        if name in self._threads and self._threads[name].is_alive():
            return
        follower = Follower(
            self._store(),
            name,
            connect=self._connect,
            log=self._log,
            ending=self._ending,
            run_id=self._run_id,
            report_s=self._report_s,
        )
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(self._run, follower), name=f"follow-{name}", daemon=True)
        self._threads[name] = thread
        thread.start()

    def _run(self, follower: Follower) -> None:
        try:
            follower.run()
        except BaseException as error:  # noqa: BLE001  raised again by `check`, in the thread that waits
            self._error = self._error or error

    def check(self) -> None:
        """Raises what ended a follower: telling what became of it failed, or the interpreter is to end."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    @property
    def is_over(self) -> bool:
        """Whether no feed is followed: each is gone, or was never there."""
        return not any(each.is_alive() for each in self._threads.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Has all commit what they have, and waits for it; what hangs is left to its crash safety.

        What a follower raised at the very end is raised here, unless something else is; then it is logged.
        """
        self._ending.set()
        ends = time.monotonic() + GRACE_S
        for thread in self._threads.values():
            thread.join(max(0.0, ends - time.monotonic()))
        left = [name for name, thread in self._threads.items() if thread.is_alive()]
        if left:
            logger.warning("%s did not end within %g s and is given up", ", ".join(left), GRACE_S)
        if kind is None:
            self.check()
        elif self._error is not None:
            logger.error("a follower failed at the end", exc_info=self._error)
