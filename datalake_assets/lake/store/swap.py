"""Small objects that several processes change: by compare-and-swap, lost answers settled, tried until it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from datalake_assets.core.values import Value
from datalake_assets.errors import AmbiguousWrite, ObjectNotFound, PreconditionFailed, TransientStoreError
from datalake_assets.lake.store.base import Store

__all__ = ["Known", "change_object", "known_object", "retried", "swap_object"]

#: Attempts at one change; each lost one means that another process changed the object.
ATTEMPTS = 20
#: Times that one swap is sent because its answer was lost and nothing came of it.
_SENT = 3

_T = TypeVar("_T")


class Known(Value, frozen=True):
    """An object as it was read; body and ETag are None if there was none."""

    body: bytes | None = None
    etag: str | None = None


def known_object(store: Store, key: str) -> Known:
    """Reads an object that need not be there."""
    try:
        return Known(*store.get(key))
    except ObjectNotFound:
        return Known()


def swap_object(store: Store, key: str, body: bytes, *, etag: str | None) -> str:
    """Writes an object if it still is what it was, and returns its new ETag.

    A lost answer is settled by reading back: where the body is there, it was written. So a body must be unique, by a
    fresh id or a revision in it, unless it does not matter who wrote it.

    Args:
        store: Where it lives.
        key: The object.
        body: Its new content.
        etag: As it was read; None: there was none.

    Raises:
        PreconditionFailed: Somebody else wrote it.
        AmbiguousWrite: Answers were lost again and again, and the object still is what it was.
    """
    is_lost = False

    def send() -> str:
        nonlocal is_lost
        try:
            return store.create(key, body) if etag is None else store.swap(key, body, etag=etag)
        except (AmbiguousWrite, PreconditionFailed) as error:
            is_lost = is_lost or isinstance(error, AmbiguousWrite)
            if not is_lost:
                raise
            found = known_object(store, key)
            if found.etag is not None and found.body == body:
                return found.etag
            if found.etag != etag:
                raise PreconditionFailed(key, "somebody else wrote it, while an answer was lost") from error
            raise

    return retried(send, attempts=_SENT, on=(AmbiguousWrite,))


def change_object(
    store: Store, key: str, rule: Callable[[bytes | None], bytes | None], *, attempts: int = ATTEMPTS
) -> bytes | None:
    """Applies a rule to whatever an object is by then, until no other process got between.

    Args:
        store: Where it lives.
        key: The object.
        rule: Given its body, or None without one, says its new body; None changes nothing. It may be called several
            times. Bodies are to be unique, as for `swap_object`.
        attempts: How often.

    Returns:
        What the object is now.

    Raises:
        PreconditionFailed: Other processes kept getting there first.
        LakeError: The store failed each time.
    """

    def changed() -> bytes | None:
        known = known_object(store, key)
        body = rule(known.body)
        if body is None:
            return known.body
        swap_object(store, key, body, etag=known.etag)
        return body

    return retried(changed, attempts=attempts, on=(PreconditionFailed, AmbiguousWrite, TransientStoreError))


def retried(action: Callable[[], _T], *, attempts: int, on: tuple[type[Exception], ...]) -> _T:
    """Calls ``action`` until it raises none of these; at the last attempt they go on to the caller.

    Nothing waits in between: what another process did is done, and the store's clients wait for a busy store.
    """
    for _ in range(attempts - 1):
        try:
            return action()
        except on:
            continue
    return action()
