"""Several things read at once, each by a thread, and what comes of them in one stream of bounded length."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

__all__ = ["side_by_side"]

#: Results that wait to be taken; a batch comes of a few MiB of text.
WAITING = 4
#: Seconds after which a reader looks whether anybody still listens.
LOOK_S = 0.2

_T = TypeVar("_T")
_S = TypeVar("_S")


def side_by_side(things: Sequence[_T], read: Callable[[_T], Iterator[_S]], *, workers: int) -> Iterator[_S]:
    """What ``read`` gives of each thing, as it comes: in order of each, in no order among them.

    Whoever stops listening stops the readers.

    Raises:
        BaseException: What a reader raised first.
    """
    if workers == 1 or len(things) <= 1:
        for one in things:
            yield from read(one)
        return
    readers = _Readers(read)
    pool = ThreadPoolExecutor(min(workers, len(things)), "side-by-side")
    try:
        for one in things:
            pool.submit(readers.run, one)
        yield from readers.results(len(things))
    finally:
        readers.stopped.set()
        pool.shutdown(cancel_futures=True)


class _End:
    """A reader came to its end."""


class _Readers(Generic[_T, _S]):
    """What readers have in common."""

    def __init__(self, read: Callable[[_T], Iterator[_S]]) -> None:
        self._read = read
        self._queue: queue.Queue[_S | _End | BaseException] = queue.Queue(WAITING)
        self.stopped = threading.Event()

    def run(self, one: _T) -> None:
        """Reads one thing; in a thread of its own."""
        try:
            for each in self._read(one):
                if not self._hand_on(each):
                    return
            self._hand_on(_End())
        except BaseException as error:  # noqa: BLE001  it is raised where the results are wanted
            self._hand_on(error)

    def _hand_on(self, what: _S | _End | BaseException) -> bool:
        while not self.stopped.is_set():
            try:
                self._queue.put(what, timeout=LOOK_S)
            except queue.Full:
                continue
            return True
        return False

    def results(self, left: int) -> Iterator[_S]:
        """What comes of so many things."""
        while left:
            what = self._queue.get()
            if isinstance(what, BaseException):
                raise what
            if isinstance(what, _End):
                left -= 1
            else:
                yield what
