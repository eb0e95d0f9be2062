"""Deliveries beside a process that lands: in a thread of their own, so that a slow or absent sink holds nothing up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Self

from datalake_assets.errors import DatalakeError, unforeseen_text
from datalake_assets.feed import Feed
from datalake_assets.lake.layout import commit_marks
from datalake_assets.lake.store.base import ObjectInfo, Store
from datalake_assets.settings import Settings
from datalake_assets.sinks.base import DeliveryReport
from datalake_assets.sinks.delivery import deliver

__all__ = ["Courier"]

logger = logging.getLogger(__name__)

#: Seconds after which it looks anyway: for rows that others landed, and for what a sink did not take.
_AGAIN_S = 3.0
#: Seconds after which all partitions are looked at, whether they changed or not: somebody may want all sent anew.
_LOOK_ANYWAY_S = 600.0
#: Seconds at the most until a feed whose delivery failed is looked at again; twice as long each time till then.
_LONGEST_WAIT_S = 60.0
#: Seconds that an interruption waits for a delivery under way: what it does not finish is due the next time.
_LAST_S = 5.0


class Courier:
    """Delivers what is landed of some feeds, while the context is open, and at its end what was landed until then.

    Args:
        feeds: Gives the feeds, as they are by then.
        store: The lake.
        settings: The installation.
        tell: Called, from the thread, with each report of something that was done or failed.
    """

    def __init__(
        self,
        feeds: Callable[[], Iterable[Feed]],
        store: Store,
        settings: Settings,
        tell: Callable[[DeliveryReport], None],
    ) -> None:
        self._feeds, self._store, self._settings, self._tell = feeds, store, settings, tell
        self._changed = threading.Event()
        self._ends = False
        #: Of each feed its revision, what a listing showed of its partitions when sinks had all of them, and when all
        #: were looked at.
        self._sent: dict[str, tuple[int, Mapping[str, ObjectInfo] | None, float]] = {}
        #: Of each feed whose delivery failed when to try again, by the monotonic clock, and how long that is to wait.
        self._failed: dict[str, tuple[float, float]] = {}
        self._thread = threading.Thread(target=self._run, name="sinks", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends = True
        self._changed.set()
        self._thread.join(None if kind is None else _LAST_S)

    def landed(self) -> None:
        """Says that there may be new rows; returns at once."""
        self._changed.set()

    def _run(self) -> None:
        while True:
            self._changed.wait(_AGAIN_S)
            self._changed.clear()
            ends = self._ends  # before the last look, which has all that was landed until then
            for feed in self._known():
                for each in self._delivered(feed) if ends or self._is_due(feed) else ():
                    if each.partitions or each.error:
                        self._tell(each)
            if ends:
                return

    def _known(self) -> list[Feed]:
        try:
            return [feed for feed in self._feeds() if any(sink.takes_rows for sink in feed.sinks)]
        except DatalakeError as error:  # the registry cannot be read for now
            logger.warning("feeds with sinks: %s", error)
            return []

    def _is_due(self, feed: Feed) -> bool:
        """Whether a feed is looked at now: one whose sink takes nothing neither fills the log nor holds others up."""
        return time.monotonic() >= self._failed.get(feed.name, (0.0, 0.0))[0]

    def _delivered(self, feed: Feed) -> list[DeliveryReport]:
        reports = self._tried(feed)
        if any(each.error for each in reports):
            wait_s = min(2 * self._failed.get(feed.name, (0.0, _AGAIN_S / 2))[1], _LONGEST_WAIT_S)
            self._failed[feed.name] = time.monotonic() + wait_s, wait_s
        else:
            self._failed.pop(feed.name, None)
        return reports

    def _tried(self, feed: Feed) -> list[DeliveryReport]:
        try:
            return self._deliver_changed(feed)
        except DatalakeError as error:
            return [DeliveryReport(feed.name, "", error=str(error))]
        except Exception as error:  # the next delivery tries again, and landing goes on
            logger.warning("delivery of %s", feed.name, exc_info=True)
            return [DeliveryReport(feed.name, "", error=unforeseen_text(error))]

    def _deliver_changed(self, feed: Feed) -> list[DeliveryReport]:
        """Delivers the partitions that changed: one listing tells, where asking for each costs a request."""
        listed = commit_marks(self._store, feed)
        revision, before, looked_at = self._sent.get(feed.name, (-1, None, 0.0))
        now = time.monotonic()
        keys = None
        is_recent = now - looked_at < _LOOK_ANYWAY_S
        if is_recent and revision == feed.revision and listed is not None and before is not None:
            keys = [key for key, info in listed.items() if before.get(key) != info]
        if keys == []:
            return []
        reports = deliver(self._store, feed, self._settings, partitions=keys)
        if not any(each.error for each in reports):
            self._sent[feed.name] = (feed.revision, listed, now if keys is None else looked_at)
        return reports
