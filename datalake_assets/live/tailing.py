"""Shows feeds that somebody else lands, or nobody: reads their sources as an export does, and commits nothing.

A feed begins where the lake's rows end, so that what is shown is what is new. Each has a thread of its own, which asks
the lake from time to time how much of what it has shown is landed by now, and whether its source is landed anew.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import pyarrow as pa

from datalake_assets.core.batches import Batches, ChangedBatches, ReadRequest, SourceBatch
from datalake_assets.core.position import SourcePartition
from datalake_assets.errors import ConfigError, DatalakeError
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import PositionKind
from datalake_assets.lake.look import look, next_read
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.watching import watched_by
from datalake_assets.live.window import LiveWindows
from datalake_assets.sources.base import Follows, SourceSystem

__all__ = ["Connect", "tailing"]

logger = logging.getLogger(__name__)

#: Seconds between two passes, between two questions to the lake, and after a pass that failed.
_PAUSE_S, _LAKE_S, _FAILED_S = 0.2, 2.0, 2.0


class Connect(Protocol):
    """Connects to a system by its type; the context closes it."""

    def __call__(self, type_: str, /) -> AbstractContextManager[SourceSystem]:
        """The system."""


@contextlib.contextmanager
def tailing(store: Store, feeds: tuple[Feed, ...], connect: Connect, windows: LiveWindows) -> Iterator[None]:
    """Reads feeds, while the block runs, and shows the windows what an export would do.

    Raises:
        ConfigError: A feed's rows are not numbered: to look at a queue is to take from it.
    """
    for feed in feeds:
        if feed.position_kind is not PositionKind.OFFSETS:
            raise ConfigError(
                f"feed {feed.name!r}: who looks at a queue takes from it; land it, with 'datalake run {feed.name}"
                " --live'"
            )
    stopped = threading.Event()
    threads = [
        threading.Thread(
            target=_Tail(store, feed, connect, windows, stopped).run, name=f"live-{feed.name}", daemon=True
        )
        for feed in feeds
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join(timeout=5)


class _Tail:
    """One feed."""

    def __init__(
        self, store: Store, feed: Feed, connect: Connect, windows: LiveWindows, stopped: threading.Event
    ) -> None:
        self._store, self._feed, self._connect = store, feed, connect
        self._registry = FeedRegistry(store)
        self._windows, self._stopped = windows, stopped
        self._seen: dict[SourcePartition, int] = {}
        self._epoch: int | None = None
        self._source_id = ""
        self._asked_lake = 0.0

    def run(self) -> None:
        """Passes, one after another, until it is stopped."""
        while not self._stopped.is_set():
            try:
                self._check_declared()
                with self._connect(self._feed.source.type) as source:
                    while not self._stopped.wait(_PAUSE_S):
                        self._pass(source)
            except DatalakeError as error:
                self._windows.failed(self._feed.name, str(error))
            except Exception as error:
                logger.exception("feed %s cannot be followed", self._feed.name)
                self._windows.failed(self._feed.name, f"{type(error).__name__}: {error}")
            self._stopped.wait(_FAILED_S)

    def _pass(self, source: SourceSystem) -> None:
        self._ask_lake()
        starts = {each: offset + 1 for each, offset in self._seen.items()}
        request = ReadRequest(start_offsets=starts, source_id=self._source_id)
        if self._feed.can_be_followed and isinstance(source, Follows):
            given: Batches = source.follow(self._feed, request)
        else:
            given = source.read(self._feed, request)
        with watched_by(self._windows):
            look(self._store, self._feed, _UntilStopped(given, self), self._seen)

    def goes_on(self, batch: SourceBatch) -> bool:
        """Whether more is wanted of a source that gave this batch."""
        self._source_id = self._source_id or batch.source_id
        epoch = self._epoch
        self._ask_lake()
        self._windows.failed(self._feed.name, "")  # a source that gives something, if no row, can be read
        return epoch == self._epoch and not self._stopped.is_set()

    def _ask_lake(self) -> None:
        """Asks how far the lake is, unless that was just now; where it begins with a source anew, so does the view.

        Until then a source that was created anew is an error, as it is to those who land it.
        """
        if self._epoch is not None and time.monotonic() - self._asked_lake <= _LAKE_S:
            return
        self._asked_lake = time.monotonic()
        self._check_declared()
        window, lacking = self._windows.get(self._feed.name), next_read(self._store, self._feed)
        offsets = lacking.start_offsets or {}
        if self._epoch != lacking.epoch:
            if self._epoch is not None and window is not None:
                window.numbered_anew()
            self._epoch, self._source_id = lacking.epoch, lacking.source_id
            self._seen = {each: offset - 1 for each, offset in offsets.items()}
        if window is not None:
            window.landed_before(offsets)

    def _check_declared(self) -> None:
        """Reads no source that nobody lands any more: of a feed that was archived, or is of another source by now.

        Raises:
            ConfigError: It is not the one to be read.
        """
        if self._registry.get(self._feed.name).source != self._feed.source:
            raise ConfigError(
                f"feed {self._feed.name!r} has another source by now; start 'datalake live' again to see that"
            )


class _UntilStopped(ChangedBatches):
    """Batches that end early when nobody wants them any more."""

    def __init__(self, batches: Batches, tail: _Tail) -> None:
        super().__init__(batches)
        self._tail = tail

    @property
    def schema(self) -> pa.Schema:
        """Implements `Batches`."""
        return self._batches.schema

    def changed(self, batch: SourceBatch) -> SourceBatch:
        """Implements `ChangedBatches`: as it is."""
        return batch

    def __iter__(self) -> Iterator[SourceBatch]:
        """Streams the batches."""
        given = iter(self._batches)
        with contextlib.closing(given) if isinstance(given, Generator) else contextlib.nullcontext():
            for batch in given:
                if not self._tail.goes_on(batch):
                    return
                yield batch
