"""A store whose process dies at a change that a test chooses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from datalake_assets.lake.store.base import Store


class Killed(BaseException):
    """The process is gone."""


class MortalStore:
    """A store whose process dies at its n-th change: before it, or after it and before anybody heard of it."""

    CHANGES = ("put", "create", "swap", "delete", "publish", "stage")

    def __init__(self, store: Store) -> None:
        self._store, self.left, self.after = store, -1, False
        self._counting = threading.Lock()  # files are published by several threads

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        return self._mortal(value) if name in self.CHANGES else value

    def _mortal(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **named: Any) -> Any:
            with self._counting:
                self.left -= 1
                is_last = self.left == 0
            if is_last and not self.after:
                raise Killed
            result = change(*arguments, **named)
            if is_last:
                raise Killed
            return result

        return changed
