"""Processes that die between any two changes that they make to a lake: one round for each place to die at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest

from datalake_assets.lake.store.local import LocalStore
from datalake_assets.testing.table_cases import Died

__all__ = ["kill_points"]

#: What changes a lake.
CHANGES = ("create", "swap", "put", "delete", "delete_if", "stage", "publish", "discard_staged", "sync")


@contextmanager
def _dying(number: int, also: tuple[tuple[Any, str], ...]) -> Iterator[list[str]]:
    """Lets the process die after ``number`` changes, when the next is about to be made; from then on all fails."""
    seen: list[str] = []
    dead = False

    def mortal(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(change)
        def run(*args: Any, **options: Any) -> Any:
            nonlocal dead
            if dead:
                raise Died
            if len(seen) == number:
                dead = True
                raise Died
            seen.append(name)
            return change(*args, **options)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(LocalStore, name, mortal(name, getattr(LocalStore, name)))
        for owner, name in also:
            patch.setattr(owner, name, mortal(name, getattr(owner, name)))
        yield seen


def kill_points(
    run: Callable[[int], Callable[[], object]],
    check: Callable[[int], object],
    *,
    also: tuple[tuple[Any, str], ...] = (),
    every: int = 1,
) -> list[str]:
    """Lets a process die at each change that it makes, and looks each time at what is there then.

    Args:
        run: Gives what is to be interrupted, by the number of the round.
        check: Looks at the lake after a round; raises if it is not as it should be.
        also: Functions that change something besides the store, each by its owner and its name.
        every: Die at each change, or at some of them.

    Returns:
        The changes that an undisturbed run makes.
    """
    number = 0
    while True:
        action = run(number)
        with _dying(number, also) as seen:
            try:
                action()
            except Died:
                pass
            else:
                return seen
        check(number)
        number += every
