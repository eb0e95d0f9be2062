"""A store that kills its own process at a drawn operation: -9, no handler runs, nothing is flushed."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

from datalake_assets.core.manifest import Manifest
from datalake_assets.errors import AmbiguousWrite
from datalake_assets.lake.store.base import StagedFile, StagedWriter, StaleUpload, Store

__all__ = ["KILLED", "MOMENTS", "STEPS", "KillPoint", "KillingStore", "Moment", "die_at"]

Moment = Literal["before", "during", "after", "lost", "asleep"]
MOMENTS: tuple[Moment, ...] = ("before", "during", "after", "lost")

#: What an operation is to the commit protocol (design section 3), and around it.
STEPS = ("stage", "prepare", "publish", "sync", "commit", "delete", "sweep", "feed state", "metadata", "quarantine")

#: Exit code of a process that was killed.
KILLED = -signal.SIGKILL

Result = TypeVar("Result")


def die_at(owner: type, operation: str, *, number: int, moment: str) -> None:
    """Has this process die before or after the ``number``-th time that a class does something; 0 for never."""
    left, real = [number], getattr(owner, operation)

    def around(*given: Any, **named: Any) -> Any:
        left[0] -= 1
        dies = left[0] == 0
        if dies and moment == "before":
            _die()
        result = real(*given, **named)
        if dies:
            _die()
        return result

    setattr(owner, operation, around)


@dataclass(frozen=True, slots=True)
class KillPoint:
    """When to die.

    Attributes:
        step: At a write of this step,
        number: namely at the n-th, counted from 1; 0 never.
        moment: Before it, while it is under way, after it; or some operations later, its answer having been lost. Or
            not at all: asleep, the process stops before it until it is woken.
        seed: Of what else is random.
    """

    step: str = ""
    number: int = 0
    moment: Moment = "before"
    seed: int = 0


class KillingStore:
    """A `Store` in front of another that counts writes and dies at one; reads pass through.

    Args:
        store: The real one.
        point: When to die.
        log: A file that gets one line per write, ``step``, and ``step moment`` where the process dies.
    """

    def __init__(self, store: Store, point: KillPoint, log: str) -> None:
        self._store, self._point, self._rng = store, point, random.Random(point.seed)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._lock = threading.RLock()  # writes of several threads are counted, and die, one at a time
        self._counts: Counter[str] = Counter()
        self._left: int | None = None  # operations until death, once an answer was lost
        self._manifests: dict[str, Manifest] = {}

    def __getattr__(self, name: str) -> Any:
        """Whatever is no operation: the URI, the clock, the paths."""
        return getattr(self._store, name)

    def _write(self, step: str, call: Callable[[], Result], *, may_be_lost: bool = True) -> Result:
        with self._lock:
            self._pass()
            self._counts[step] += 1
            if (step, self._counts[step]) != (self._point.step, self._point.number):
                self._note(step)
                return call()
            moment = self._point.moment if may_be_lost or self._point.moment != "lost" else "after"
            self._note(f"{step} {moment}")
            if moment == "before":
                _die()
            if moment == "asleep":
                os.kill(os.getpid(), signal.SIGSTOP)
                time.sleep(0.02)  # until it arrives
            if moment == "during":
                self._die_soon()
            try:
                result = call()
            finally:
                if moment == "after":
                    _die()
            if moment == "lost":
                self._left = self._rng.randrange(4)
                raise AmbiguousWrite(self._store.uri, f"the answer was lost ({step})")
            return result

    def _pass(self) -> None:
        if self._left is not None:
            if not self._left:
                _die()
            self._left -= 1

    def _read(self, call: Callable[[], Result]) -> Result:
        with self._lock:
            self._pass()
        return call()

    def _note(self, line: str) -> None:
        os.write(self._log, f"{line}\n".encode())

    def _die_soon(self) -> None:
        # about as long as a write takes
        delay_s = self._rng.uniform(0, 0.02 if self._store.uri.startswith("s3:") else 0.004)

        def wait_and_die() -> None:
            time.sleep(delay_s)
            _die()

        threading.Thread(target=wait_and_die, daemon=True).start()

    def get(self, key: str) -> tuple[bytes, str]:
        body, etag = self._read(lambda: self._store.get(key))
        self._remember(key, body)
        return body, etag

    def _remember(self, key: str, body: bytes) -> Manifest | None:
        if not key.endswith("/manifest.json"):
            return None
        self._manifests[key] = Manifest.from_bytes(body, where=key)
        return self._manifests[key]

    def head(self, key: str) -> Any:
        return self._read(lambda: self._store.head(key))

    def has_staged(self, staged: StagedFile) -> bool:
        return self._read(lambda: self._store.has_staged(staged))

    def create(self, key: str, body: bytes) -> str:
        return self._write(self._step(key, body), lambda: self._store.create(key, body))

    def swap(self, key: str, body: bytes, *, etag: str) -> str:
        return self._write(self._step(key, body), lambda: self._store.swap(key, body, etag=etag))

    def put(self, key: str, body: bytes) -> str:
        return self._write(self._step(key, body), lambda: self._store.put(key, body))

    def _step(self, key: str, body: bytes) -> str:
        before = self._manifests.get(key, Manifest())
        manifest = self._remember(key, body)
        if manifest is None:
            steps = {"control": "feed state", "metadata": "metadata", "quarantine": "quarantine"}
            return steps[key.partition("/")[0]]
        if manifest.pending is not None:
            return "prepare"
        if manifest.generation > before.generation:
            return "commit"
        return "sweep" if before.pending is None else "roll back"

    def delete(self, keys: Iterable[str]) -> None:
        wanted = list(keys)
        self._write("delete", lambda: self._store.delete(wanted))

    def delete_if(self, etags: Mapping[str, str]) -> tuple[str, ...]:
        return self._write("delete", lambda: self._store.delete_if(etags))

    def stage(self, key: str) -> StagedWriter:
        writer = self._write("stage", lambda: self._store.stage(key), may_be_lost=False)
        return _KillingWriter(writer, self._write)  # type: ignore[return-value]  # the rest by __getattr__

    def publish(self, staged: StagedFile) -> None:
        self._write("publish", lambda: self._store.publish(staged))

    def discard_staged(self, staged: StagedFile) -> None:
        self._write("discard", lambda: self._store.discard_staged(staged))

    def discard_stale(self, upload: StaleUpload) -> None:
        self._write("discard", lambda: self._store.discard_stale(upload))

    def sync(self, keys: Iterable[str]) -> None:
        wanted = list(keys)
        if self._store.uri.startswith("s3:"):  # does nothing there
            self._store.sync(wanted)
        else:
            self._write("sync", lambda: self._store.sync(wanted), may_be_lost=False)


class _KillingWriter:
    def __init__(self, writer: StagedWriter, write: Callable[..., Any]) -> None:
        self._writer, self._write = writer, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def write(self, data: Any, /) -> int:
        return self._write("stage", lambda: self._writer.write(data), may_be_lost=False)

    def finish(self) -> StagedFile:
        return self._write("stage", self._writer.finish, may_be_lost=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.discard()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # until it arrives
