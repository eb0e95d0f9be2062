"""A store simulated in memory, in which everything that can go wrong between two operations does.

It keeps the `Store` contract with the semantics of S3 (a multipart upload becomes visible at once and whole; a request
that timed out may land later) or of a local folder (publishing is a link and an unlink; what was not synced may be gone
after a power cut). Before each step of an operation it calls `pause`: a scheduler switches to another worker there, or
never comes back. Without a scheduler and without faults it is a plain store.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa

from datalake_assets.errors import (
    AmbiguousWrite,
    CorruptLake,
    LakeError,
    LakeUnavailable,
    ObjectNotFound,
    PreconditionFailed,
    TransientStoreError,
    UploadGone,
)
from datalake_assets.lake.store.base import (
    ObjectInfo,
    RequestCounts,
    StagedFile,
    StagedSink,
    StaleUpload,
    check_key,
    check_prefix,
)
from datalake_assets.lake.store.s3_access import AWS_CONVENTIONS

__all__ = ["Faults", "Leftover", "Object", "SimulatedStore"]

Result = TypeVar("Result")
START = datetime(2025, 1, 15, tzinfo=UTC)


@dataclass(slots=True)
class Faults:
    """Probabilities, per request.

    Attributes:
        busy: Refused, nothing applied.
        lost: Applied, the acknowledgement lost; a retry inside a client may make it look refused.
        late: Timed out; it lands later, or never.
        refused: A publish is refused for good.
        unavailable: Refused in a way that ends the worker through its handlers.
    """

    busy: float = 0.0
    lost: float = 0.0
    late: float = 0.0
    refused: float = 0.0
    unavailable: float = 0.0

    @classmethod
    def drawn(cls, rng: random.Random, *, local: bool) -> Faults:
        """From fair weather to a storm."""
        return cls(
            busy=rng.choice([0, 0.05, 0.2]),
            lost=rng.choice([0, 0, 0.1, 0.3]),
            late=0 if local else rng.choice([0, 0.05, 0.3]),
            refused=rng.choice([0, 0, 0.02, 0.15]),
            unavailable=rng.choice([0, 0, 0.01]),
        )


@dataclass(frozen=True, slots=True)
class Object:
    """What is stored under a key; ``token`` is the staged file that it was, if any."""

    body: bytes
    etag: str
    at: datetime
    token: str = ""


@dataclass(slots=True)
class Leftover:
    """Something staged: ``body`` is None while it is being written."""

    key: str
    at: datetime
    body: bytes | None = None


class _Writer(StagedSink):
    def __init__(self, store: SimulatedStore, key: str, token: str) -> None:
        super().__init__(key)
        self._store, self._token, self._body = store, token, bytearray()

    def _append(self, data: memoryview) -> None:
        self._store.step("part")
        self._body += data

    def _seal(self) -> StagedFile:
        self._store.seal(self._token, bytes(self._body), self.key)
        return StagedFile(self.key, len(self._body), self._token, ("part",))

    def _drop(self) -> None:
        self._store.discard_staged(StagedFile(self.key, 0, self._token))

    def _abandon(self) -> None:
        """A process that died cleans nothing up."""


class SimulatedStore:
    """An in-memory `Store`.

    Args:
        rng: Decides which faults happen.
        local: Local semantics instead of S3's.

    Attributes:
        pause: Called before each step, with its name.
        faults: May be changed at any time.
        objects: What is visible, by key.
        staging: What is staged, by token.
        limbo: Requests that timed out and may land.
        changes: Counts changes of what is visible.
        on_drop: Told of each staged file that is lost: token, by what, and `operations` when that was asked.
        operations: Steps so far.
    """

    uri = "simulated://lake"
    s3 = AWS_CONVENTIONS

    def __init__(self, rng: random.Random, *, local: bool = False) -> None:
        self.local, self._rng, self.faults = local, rng, Faults()
        self.pause: Callable[[str], None] = lambda _what: None
        self.on_drop: Callable[[str, str, int], None] = lambda _token, _how, _asked_at: None
        self.objects: dict[str, Object] = {}
        self.staging: dict[str, Leftover] = {}
        self.limbo: list[Callable[[], object]] = []
        self.changes = self.operations = 0
        self.requests = RequestCounts()
        self._judged: dict[str, bool] = {}  # token -> whether its publishing is refused for good
        self._published: dict[str, str] = {}  # token -> key, of S3's completed uploads
        self._unsynced: dict[str, Object | None] = {}  # key -> what a power cut may bring back
        self._unlinked: dict[str, Leftover] = {}  # staged names whose unlink a power cut may undo
        self._ticks = 0

    def now(self) -> datetime:
        """A clock that never shows a time twice."""
        self._ticks += 1
        return START + timedelta(seconds=self._ticks)

    def step(self, what: str, *, reads: bool = False) -> None:
        """Let others go first; then perhaps refuse."""
        self.pause(what)
        self.operations += 1
        luck = self._rng.random()
        if luck < self.faults.busy / (3 if reads else 1):
            raise TransientStoreError(self.uri, f"busy ({what})")
        if luck > 1 - self.faults.unavailable:
            raise LakeUnavailable(self.uri, f"no access ({what})")

    def _write(self, what: str, apply: Callable[[], Result], *, misleading: type[LakeError] | None = None) -> Result:
        self.step(what)
        if self._rng.random() < self.faults.late:
            self.limbo.append(apply)
            raise AmbiguousWrite(self.uri, f"timed out ({what})")
        result = apply()
        if self._rng.random() < self.faults.lost:
            # a client that retries by itself meets its own first attempt
            if misleading and self._rng.random() < 0.3:
                raise misleading(self.uri, f"retried after it was applied ({what})")
            raise AmbiguousWrite(self.uri, f"the answer was lost ({what})")
        return result

    def land(self) -> None:
        """One of the requests that timed out arrives; or it never does."""
        if self.limbo:
            request = self.limbo.pop(self._rng.randrange(len(self.limbo)))
            try:
                if self._rng.random() < 0.8:
                    request()
            except (PreconditionFailed, UploadGone):
                pass

    def power_cut(self) -> None:
        """Local: each change that was not synced is undone, or not."""
        for key, before in self._unsynced.items():
            if self._rng.random() < 0.5:
                if before is None and key in self.objects:
                    self.on_drop(self.objects[key].token, "power cut", self.operations)
                self._place(key, before)
        for token, leftover in self._unlinked.items():
            if self._rng.random() < 0.5:
                self.staging[token] = leftover
        self._unsynced.clear()
        self._unlinked.clear()

    def _place(self, key: str, thing: Object | None) -> None:
        self.changes += 1
        if thing is None:
            self.objects.pop(key, None)
        else:
            self.objects[key] = thing

    def _object(self, body: bytes, token: str = "") -> Object:
        at = self.now()
        return Object(bytes(body), f"{self._ticks}", at, token)

    def get(self, key: str) -> tuple[bytes, str]:
        self.step("get", reads=True)
        if check_key(key) not in self.objects:
            raise ObjectNotFound(key)
        return self.objects[key].body, self.objects[key].etag

    def tail(self, key: str, size_bytes: int, *, etag: str) -> bytes:
        self.step("tail", reads=True)
        if check_key(key) not in self.objects:
            raise ObjectNotFound(key)
        if self._info(key).etag != etag:
            raise PreconditionFailed(key)
        return self.objects[key].body[-size_bytes:]

    def head(self, key: str) -> ObjectInfo | None:
        self.step("head", reads=True)
        return self._info(key) if check_key(key) in self.objects else None

    def _info(self, key: str) -> ObjectInfo:
        thing = self.objects[key]
        return ObjectInfo(key, len(thing.body), f"head-{thing.etag}", thing.at)

    def create(self, key: str, body: bytes) -> str:
        return self._conditional(check_key(key), body, None)

    def swap(self, key: str, body: bytes, *, etag: str) -> str:
        return self._conditional(check_key(key), body, etag)

    def _conditional(self, key: str, body: bytes, etag: str | None) -> str:
        def apply() -> str:
            there = self.objects.get(key)
            if (there.etag if there else None) != etag:
                raise PreconditionFailed(key)
            self._place(key, self._object(body))
            return self.objects[key].etag

        return self._write("cas", apply, misleading=PreconditionFailed)

    def put(self, key: str, body: bytes) -> str:
        def apply() -> str:
            self._place(check_key(key), self._object(body))
            return self.objects[key].etag

        return self._write("put", apply)

    def list(self, prefix: str, *, links: bool = False) -> Iterator[ObjectInfo]:
        self.step("list", reads=True)
        yield from [self._info(key) for key in self.objects if _below(key, prefix)]

    def delete(self, keys: Iterable[str]) -> None:
        """One by one: any of them may fail, or the process may die in between."""
        for key in keys:
            self._write("delete", partial(self._delete, check_key(key)))
        if self.local:
            self._unsynced.clear()

    def _delete(self, key: str) -> None:
        if key in self.objects:
            if self.local:
                self._unsynced.setdefault(key, self.objects[key])
            self._place(key, None)

    def delete_if(self, etags: Mapping[str, str]) -> tuple[str, ...]:
        """One by one, as `delete`."""
        kept = [key for key, etag in etags.items() if not self._write("delete", partial(self._delete_if, key, etag))]
        if self.local:
            self._unsynced.clear()
        return tuple(kept)

    def changed(self, etags: Mapping[str, str]) -> tuple[str, ...]:
        there = {key: self.head(key) for key in etags}
        return tuple(key for key, info in there.items() if info is None or info.etag != etags[key])

    def _delete_if(self, key: str, etag: str) -> bool:
        """Whether it is gone."""
        if check_key(key) in self.objects and self._info(key).etag != etag:
            return False
        self._delete(key)
        return True

    def stage(self, key: str) -> _Writer:
        self.step("stage")
        token = f"{'' if self.local else 'upload-'}{self.now():%d%H%M%S}"
        self.staging[token] = Leftover(check_key(key), self.now())
        return _Writer(self, key, token)

    def seal(self, token: str, body: bytes, key: str) -> None:
        """The end of a staged file's writing."""
        self.step("seal")
        if token not in self.staging:
            raise UploadGone(key, "swept while it was written")
        self.staging[token].body = body

    def publish(self, staged: StagedFile) -> None:
        self._judged.setdefault(staged.token, self._rng.random() < self.faults.refused)
        if self._judged[staged.token]:
            self.step("refuse")
            self.on_drop(staged.token, "refused", self.operations)
            raise CorruptLake(staged.key, "refused for good")
        if self.local:
            self._link(staged)
        else:
            self._write("publish", lambda: self._complete(staged), misleading=UploadGone)

    def _complete(self, staged: StagedFile) -> None:
        leftover = self.staging.get(staged.token)
        if leftover is None or leftover.body is None:
            # S3 answers a repeated CompleteMultipartUpload like the first one, for a while
            if self._published.get(staged.token) == staged.key and self._rng.random() < 0.5:
                return
            raise UploadGone(staged.key, "no such upload")
        self._place(staged.key, self._object(leftover.body, staged.token))
        del self.staging[staged.token]
        self._published[staged.token] = staged.key

    def _link(self, staged: StagedFile) -> None:
        self.step("link")
        leftover = self.staging.get(staged.token)
        if leftover is None or leftover.body is None:
            raise UploadGone(staged.key, "its staged file is gone")
        if staged.key in self.objects:
            self.step("samefile")
            if staged.token not in self.staging or staged.key not in self.objects:
                raise UploadGone(staged.key, "its staged file is gone")
            if self.objects[staged.key].token != staged.token:
                raise CorruptLake(staged.key, "another file has this name")
        else:
            self._unsynced.setdefault(staged.key, None)
            self._place(staged.key, self._object(leftover.body, staged.token))
        self.step("unlink")
        self._unlink(staged.token)

    def _unlink(self, token: str) -> None:
        if token in self.staging:
            self._unlinked[token] = self.staging.pop(token)

    def has_staged(self, staged: StagedFile) -> bool:
        self.step("has_staged", reads=True)
        return staged.token in self.staging

    def read_staged(self, staged: StagedFile) -> Iterator[bytes] | None:
        if not self.local:
            return None
        self.step("read_staged", reads=True)
        leftover = self.staging.get(staged.token)
        if leftover is None or leftover.body is None:
            raise UploadGone(staged.key, "its staged file is gone")
        return iter((leftover.body,))

    def discard_staged(self, staged: StagedFile) -> None:
        self._discard(staged.token, "discarded")

    def discard_stale(self, upload: StaleUpload) -> None:
        self._discard(upload.token, "swept")

    def _discard(self, token: str, how: str) -> None:
        asked_at = self.operations

        def apply() -> None:
            # S3: an abort may have to be repeated (AWS API reference, AbortMultipartUpload)
            if token in self.staging and self._rng.random() >= 2 * self.faults.late:
                if self.local:
                    self._unlink(token)
                else:
                    del self.staging[token]
                self.on_drop(token, how, asked_at)

        self._write("discard", apply)

    def list_staged(self, prefix: str) -> Iterator[StaleUpload]:
        self.step("list_staged", reads=True)
        found = [(token, item) for token, item in self.staging.items() if _below(item.key, prefix)]
        yield from [StaleUpload(item.key, token, item.at) for token, item in found]

    def sync(self, keys: Iterable[str]) -> None:
        """Local: one data folder, so that its fsync makes all of it durable."""
        if list(keys) and self.local:
            self.step("sync")
            self._unsynced.clear()

    def filesystem(self) -> Any:
        """Of what Arrow's gives, the reading of whole files."""
        return self

    def open_input_file(self, key: str) -> pa.BufferReader:
        self.step("read", reads=True)
        if key not in self.objects:
            raise FileNotFoundError(key)
        return pa.BufferReader(self.objects[key].body)

    def path(self, key: str) -> str:
        return check_prefix(key)

    def probe(self) -> None:
        """Its conditional writes are enforced."""


def _below(key: str, prefix: str) -> bool:
    return not check_prefix(prefix) or key.startswith(f"{prefix}/")
