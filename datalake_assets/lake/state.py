"""A feed's state in the store: read, and changed by compare-and-swap until it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from datalake_assets.core.feed_state import FeedState
from datalake_assets.errors import AmbiguousWrite, ObjectNotFound, PreconditionFailed, TransientStoreError
from datalake_assets.lake.store import Store

__all__ = ["StateLog"]

#: Attempts at one change; each lost one means that another process changed the state.
ATTEMPTS = 20


class StateLog:
    """The state of one feed.

    Args:
        store: Where it lives.
        key: Its key.
        new_id: Gives a fresh unique text at every call.
    """

    def __init__(self, store: Store, key: str, new_id: Callable[[], str]) -> None:
        self._store, self._key, self._new_id = store, key, new_id

    def load(self) -> FeedState:
        """The state; an empty one if there is none yet."""
        return self._load()[1]

    def change(self, rule: Callable[[FeedState], FeedState]) -> FeedState:
        """Applies ``rule`` to whatever the state is by then, until no other process got between.

        Args:
            rule: Pure; may be called several times. Returning its argument changes nothing.

        Raises:
            PreconditionFailed: Other processes kept getting there first.
        """
        for attempt in range(ATTEMPTS):
            etag, state = self._load()
            changed = rule(state)
            if changed == state:
                return state
            try:
                return self._swap(etag, replace(changed, write_id=self._new_id()))
            except (PreconditionFailed, TransientStoreError):
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError

    def _load(self) -> tuple[str | None, FeedState]:
        try:
            body, etag = self._store.get(self._key)
        except ObjectNotFound:
            return None, FeedState()
        return etag, FeedState.from_bytes(body, where=self._key)

    def _swap(self, etag: str | None, state: FeedState) -> FeedState:
        try:
            if etag is None:
                self._store.create(self._key, state.to_bytes())
            else:
                self._store.swap(self._key, state.to_bytes(), etag=etag)
        except AmbiguousWrite:
            if self._load()[1].write_id != state.write_id:
                raise PreconditionFailed(self._key, "an unanswered write was not applied") from None
        return state
