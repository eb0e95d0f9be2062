"""What commands did without Dagster, kept in the lake until somebody shows it there.

Importing Dagster to report one event costs ten times what compacting a partition does. So a command writes a small
object, and the sensor of the code location, which has Dagster loaded anyway, reports it and deletes the object. Who
reports one claims it first by compare-and-swap; where the claimant dies, another takes over, and looks for what was
reported already. This module knows no Dagster: what a kind of event means is `datalake_assets.defs`' to say.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias

import msgspec

from datalake_assets.errors import CorruptLake, PreconditionFailed
from datalake_assets.lake.layout import new_id
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.swap import known_object, swap_object

__all__ = ["EVENTS", "EventKind", "EventQueue", "QueuedEvent"]

#: Where the objects lie in the lake.
EVENTS = "control/events"
EventKind: TypeAlias = Literal["compaction", "deletion", "conversion", "replay", "landing"]
#: A claim that is older was made by a process that died: reporting one event takes milliseconds.
LEASE = timedelta(minutes=10)
#: Where one waits longer, nobody fetches them: the sensor looks every 30 seconds.
OVERDUE = timedelta(minutes=15)
#: Events that wait at the most, before commands report them themselves.
MOST_WAITING = 1_000
_TIME = "%Y%m%dT%H%M%S%f"


class QueuedEvent(msgspec.Struct, frozen=True):
    """Something that a command did to a feed, outside of every run.

    Attributes:
        id: Names it, also in Dagster's event log.
        feed: Name of the feed.
        kind: What was done.
        at: When: aware UTC, by the store's clock.
        body: What is to be said of it; its form follows from the kind.
        claims: How often somebody has begun to report it.
        claimed_at: When that was last; None before the first time.
        claim_id: Fresh for every claim.
    """

    id: str
    feed: str
    kind: EventKind
    at: datetime
    body: Any
    claims: int = 0
    claimed_at: datetime | None = None
    claim_id: str = ""

    @property
    def may_be_reported(self) -> bool:
        """Whether somebody else may have reported it, or some of it, before dying."""
        return self.claims > 1


class EventQueue:
    """The events of a lake that wait.

    Args:
        store: The lake.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, feed: str, kind: EventKind, body: Any) -> str:
        """Keeps an event, durably; returns its key.

        Args:
            feed: Name of the feed.
            kind: What was done.
            body: What msgspec can take apart: texts, numbers, times, lists, mappings, dataclasses, structs.
        """
        at = self._store.now().astimezone(UTC)
        event = QueuedEvent(new_id(), feed, kind, at, msgspec.to_builtins(body))
        key = f"{EVENTS}/{at.strftime(_TIME)}_{event.id}.json"
        swap_object(self._store, key, _bytes(event), etag=None)
        return key

    def waiting(self) -> Sequence[str]:
        """Keys of all that wait, the oldest first."""
        return sorted(each.key for each in self._store.list(EVENTS) if each.key.endswith(".json"))

    def is_neglected(self) -> bool:
        """Whether nobody seems to report them: one waits for long, or many do."""
        waiting = self.waiting()
        if not waiting:
            return False
        oldest = waiting[0].removeprefix(f"{EVENTS}/").partition("_")[0]
        return len(waiting) > MOST_WAITING or oldest < (self._store.now().astimezone(UTC) - OVERDUE).strftime(_TIME)

    def claim(self, key: str) -> QueuedEvent | None:
        """Takes an event to be reported by the caller alone; None if it is another's by now, or gone.

        Raises:
            CorruptLake: It is no event.
        """
        known, now = known_object(self._store, key), self._store.now().astimezone(UTC)
        if known.body is None:
            return None
        event = _event(known.body, where=key)
        if event.claimed_at is not None and now - event.claimed_at < LEASE:
            return None
        mine = msgspec.structs.replace(event, claims=event.claims + 1, claimed_at=now, claim_id=new_id())
        try:
            swap_object(self._store, key, _bytes(mine), etag=known.etag)
        except PreconditionFailed:
            return None
        return mine

    def forget_feed(self, feed: str) -> None:
        """Removes the events of a feed that was removed: another one may get its name. What is no event stays."""
        gone = []
        for key in self.waiting():
            body = known_object(self._store, key).body
            with suppress(CorruptLake):  # of a later release, perhaps: whoever reports events names it
                if body is not None and _event(body, where=key).feed == feed:
                    gone.append(key)
        self._store.delete(gone)

    def forget(self, key: str) -> None:
        """Removes an event that was reported."""
        self._store.delete([key])


def _bytes(event: QueuedEvent) -> bytes:
    return json.dumps(msgspec.to_builtins(event)).encode()


def _event(body: bytes, *, where: str) -> QueuedEvent:
    try:
        return msgspec.convert(json.loads(body), QueuedEvent)
    except (ValueError, msgspec.ValidationError) as error:
        raise CorruptLake(where, f"it is no event: {error}") from error
