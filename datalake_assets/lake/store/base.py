"""What the lake needs of an object store: conditional writes, and files that are durable before anybody sees them.

Two stores keep this contract, a local folder and S3, and one suite holds both to it: `datalake_assets.testing.stores`,
and for staged files `datalake_assets.testing.staged_files`. Everything above this module is written against `Store`, so
that a commit is the same code on a laptop and in a bucket.

The staged writers of all stores share the life of a sink, from the first byte to finished or discarded (`StagedSink`).
pyarrow calls `close` unasked, exceptions leave `with` blocks, and writers get lost; none of that may publish anything,
nor leave anything behind.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self

import msgspec

from datalake_assets.core.values import Value
from datalake_assets.errors import ConfigError, PreconditionFailed, UnsafeStore
from datalake_assets.lake.store.s3_access import CatalogAccess, S3Access
from datalake_assets.parquet.sinks import ByteLike, FinishedSink

if TYPE_CHECKING:
    import pyarrow.fs

__all__ = [
    "STAGING",
    "ObjectInfo",
    "RequestClass",
    "RequestCounts",
    "StagedFile",
    "StagedSink",
    "StagedWriter",
    "StaleUpload",
    "Store",
    "check_conditional_writes",
    "check_key",
    "check_prefix",
    "is_far",
    "is_reserved",
]

RequestClass = Literal["put", "get", "list", "delete"]

# The one folder of a lake that is ours alone: staged and temporary files, locks, probes. No listing shows it.
STAGING = ".staging"


class ObjectInfo(msgspec.Struct, frozen=True, gc=False):
    """One visible object; a struct, since hundreds of thousands are made at a time.

    Attributes:
        key: Relative to the lake.
        size_bytes: Its length.
        etag: Changes when the object does; comparable only with the ETags of `head` and `list` (see `Store.swap`).
        modified_at: When it was last written: aware UTC, by the store's clock.
        is_link: It is a link, and the rest describes that link; only where links were asked for.
    """

    key: str
    size_bytes: int
    etag: str
    modified_at: datetime
    is_link: bool = False


class StagedFile(Value, frozen=True):
    """A whole file, durable and invisible to every reader until it is published; survives the process as plain data.

    Attributes:
        key: Where `Store.publish` makes it visible.
        size_bytes: Its length.
        token: S3: the upload id. Local: a key under `.staging/`.
        parts: S3: the parts' ETags in order.
    """

    key: str
    size_bytes: int
    token: str
    parts: tuple[str, ...] = ()


class StaleUpload(Value, frozen=True):
    """Something staged, finished or not, that nobody has published yet.

    Attributes:
        key: Where it was to become visible.
        token: As in `StagedFile`.
        started_at: Aware UTC, by the store's clock. Local: the last write.
    """

    key: str
    token: str
    started_at: datetime


class StagedWriter(FinishedSink[StagedFile], Protocol):
    """A binary sink for `pyarrow.parquet.ParquetWriter`; nothing that it wrote is visible, whatever happens to it.

    Use it as a context: leaving the block without `finish` discards what was written, and so does losing the writer.
    `close` only ends the writing (libraries call it unasked): `finish` still works after it.
    """

    def readable(self) -> bool:
        """Never."""

    def writable(self) -> bool:
        """Until closed."""

    def seekable(self) -> bool:
        """Never."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Store(Protocol):
    """One lake's objects. Safe to use from threads.

    Keys are relative, `/`-separated and checked: `ConfigError` for `..`, a leading `/`, an empty segment, a control
    character, or a first segment of `.staging`. Every method may raise `LakeUnavailable` (a person must mend something)
    and `TransientStoreError` (nobody may decide anything now); a write whose answer is lost raises `AmbiguousWrite`.
    """

    @property
    def uri(self) -> str:
        """The lake, fit for messages: no credentials in it."""

    @property
    def requests(self) -> Mapping[RequestClass, int]:
        """Requests so far, by class: `put` (POST too), `get` (HEAD too), `list`, `delete`; repeated writes count."""

    @property
    def s3(self) -> S3Access:
        """How S3 is reached by stores opened beside this one."""

    @property
    def catalog(self) -> CatalogAccess:
        """Which catalog knows the lake's Iceberg tables."""

    def get(self, key: str) -> tuple[bytes, str]:
        """Body and ETag; for small objects. Raises `ObjectNotFound`."""

    def tail(self, key: str, size_bytes: int, *, etag: str) -> bytes:
        """The last bytes of an object, or all of them, if it still has this ETag of `head` or `list`.

        Raises:
            ObjectNotFound: It is gone.
            PreconditionFailed: It is another now.
        """

    def head(self, key: str) -> ObjectInfo | None:
        """What is stored under the key, or None. Never reads the body."""

    def create(self, key: str, body: bytes) -> str:
        """Write only if nothing is there, and return the ETag; otherwise raises `PreconditionFailed`."""

    def swap(self, key: str, body: bytes, *, etag: str) -> str:
        """Write only if the object still has this ETag, and return the new one; otherwise raises `PreconditionFailed`.

        Args:
            key: The object; absent counts as changed.
            body: The new content. Make it unique (a fresh id inside): then a lost answer can be settled by `get`, and
                an object that changed away and back is not taken for the same.
            etag: As returned by `get`, `create`, `swap` or `put`. Those of `head` and `list` are of another kind in a
                local lake, where they must not cost the reading of data files, and never match here.
        """

    def put(self, key: str, body: bytes) -> str:
        """Write whatever is there, and return the ETag: summaries, quarantine."""

    def list(self, prefix: str, *, links: bool = False) -> Iterator[ObjectInfo]:
        """Every object below the folder `prefix` (`""`: the lake), recursively, in no promised order.

        Args:
            prefix: The folder.
            links: Give links for what they are, whatever they point to, and nothing that lies behind one. Otherwise
                links to files count as files, and others are passed over. Only a local folder has links.
        """

    def keys(self, prefix: str) -> Iterator[str]:
        """The keys of all that `list` shows there with links, in no promised order; cheaper, where no more is asked."""

    def beginning(self, key: str) -> Sequence[ObjectInfo]:
        """Objects in one folder whose names begin as the key's last segment does; those deeper below don't count.

        Of many, no more than one page of a listing has: 1,000.
        """

    def delete(self, keys: Iterable[str]) -> None:
        """Delete; absent keys are fine. Returns only once each single delete was acknowledged."""

    def delete_if(self, etags: Mapping[str, str]) -> tuple[str, ...]:
        """Delete objects that still are what they were; for adopted files, which other writers change too.

        Args:
            etags: By key; as `head` and `list` give them. Absent keys are fine.

        Returns:
            The keys of those that are others now; they stay. All else is gone, and was acknowledged.
        """

    def changed(self, etags: Mapping[str, str]) -> tuple[str, ...]:
        """The keys whose objects are gone, links, or others than those with these ETags of `head` and `list`."""

    def stage(self, key: str) -> StagedWriter:
        """Begin a file that `publish` can make visible under the key."""

    def publish(self, staged: StagedFile) -> None:
        """Make a staged file visible, whole, at once.

        Raises:
            UploadGone: Nothing is staged under its token: somebody published it, or it was discarded.
            AmbiguousWrite: It may be visible now, or later.
            CorruptLake: The store will never publish it: other content has its key, or its parts are not as recorded.
        """

    def has_staged(self, staged: StagedFile) -> bool:
        """Whether it could still be published."""

    def read_staged(self, staged: StagedFile) -> Iterator[bytes | memoryview] | None:
        """The bytes of a staged file in chunks, as they are in the store now; each may lie where the one before lay.

        None where it cannot be read before it is published, and the store has verified each byte on its arrival.
        Raises `UploadGone`.
        """

    def discard_staged(self, staged: StagedFile) -> None:
        """Drop a staged file; idempotent. A published one stays."""

    def list_staged(self, prefix: str) -> Iterator[StaleUpload]:
        """What is staged for keys below the folder `prefix` (`""`: the lake): finished, or with bytes in the store."""

    def discard_stale(self, upload: StaleUpload) -> None:
        """Drop what `list_staged` showed; idempotent."""

    def sync(self, keys: Iterable[str]) -> None:
        """Make the directory entries of published keys durable. Local: fsync of the folders; S3: nothing to do."""

    def tidy(self) -> None:
        """Remove what the store keeps for itself and nobody needs at the moment; it makes that again when it is needed.

        Local: locks that nobody holds, and empty folders, so that `.staging` is gone if nothing is staged. S3: nothing.
        """

    def now(self) -> datetime:
        """The store's clock, aware UTC: ages are counted by it."""

    def filesystem(self) -> pyarrow.fs.FileSystem:
        """Arrow's own filesystem, for dataset scans (one over fsspec aborts at interpreter exit)."""

    def path(self, key: str) -> str:
        """The key's path in `filesystem()`; `""` is the lake itself."""

    def probe(self) -> None:
        """Prove once per process that conditional writes are enforced, and leave nothing behind.

        Raises:
            UnsafeStore: They are not.
        """


class RequestCounts(Mapping[RequestClass, int]):
    """A thread-safe counter of requests by class, which reads like a mapping."""

    def __init__(self) -> None:
        self._counts: Counter[RequestClass] = Counter()
        self._lock = threading.Lock()

    def add(self, kind: RequestClass, count: int = 1) -> None:
        """Count requests of one class."""
        with self._lock:
            self._counts[kind] += count

    def __getitem__(self, kind: RequestClass) -> int:
        with self._lock:
            return self._counts[kind]

    def __iter__(self) -> Iterator[RequestClass]:
        return iter(("put", "get", "list", "delete"))

    def __len__(self) -> int:
        return 4

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self)})"


_NO_NAMES = frozenset({"", ".", ".."})
# DeleteObjects carries keys in XML, which has no way to write control characters
_NOT_IN_KEYS = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff\\]")


def check_key(key: str) -> str:
    """The key itself, if it can name an object on every store; otherwise raises `ConfigError`."""
    segments = key.split("/")
    if _NOT_IN_KEYS.search(key) or not _NO_NAMES.isdisjoint(segments):
        raise ConfigError(f"{key!r} cannot be a key: relative, '/' between names, no '.', '..' or empty name")
    if is_reserved(key):
        raise ConfigError(f"{key!r} cannot be a key: {STAGING!r} is reserved")
    return key


def check_prefix(prefix: str) -> str:
    """The folder itself, if it is `""` or could be a key; otherwise raises `ConfigError`."""
    return check_key(prefix) if prefix else prefix


def is_far(uri: str) -> bool:
    """Whether files there are so far away that several are read at once: threads take longer than a disk.

    Args:
        uri: Of a store, or of a file; a path of this machine, too.
    """
    return "://" in uri and not uri.startswith("file:")


def is_reserved(key: str) -> bool:
    """Whether the key lies in the folder that no listing shows."""
    return key == STAGING or key.startswith(f"{STAGING}/")


class _Swap(Protocol):
    def __call__(self, body: bytes, /, *, etag: str) -> str: ...


def check_conditional_writes(uri: str, *, create: Callable[[bytes], str], swap: _Swap) -> None:
    """Two writes that a safe store must refuse; raises `UnsafeStore` if one gets through.

    Args:
        uri: The lake.
        create: As `Store.create`, of a scratch object that does not exist yet; the caller deletes it.
        swap: As `Store.swap`, of the same.
    """
    create(b"first")
    try:
        create(b"second")
    except PreconditionFailed:
        pass
    else:
        raise UnsafeStore(uri, "the store overwrote an object despite 'If-None-Match: *'")
    try:
        swap(b"third", etag="0" * 32)
    except PreconditionFailed:
        return
    raise UnsafeStore(uri, "the store overwrote an object despite an 'If-Match' that did not match")


class StagedSink:
    """Base of the `StagedWriter`s: a store implements `_append`, `_seal` and `_drop`, and `_abandon` if it differs."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._size_bytes = 0
        self._closed = False
        self._discarded = False
        self._staged: StagedFile | None = None

    def _append(self, data: memoryview) -> None:
        raise NotImplementedError

    def _seal(self) -> StagedFile:
        raise NotImplementedError

    def _drop(self) -> None:
        raise NotImplementedError

    def _abandon(self) -> None:
        """What garbage collection does in place of `_drop`: it may run inside any lock, so it must take none."""
        self._drop()

    @property
    def name(self) -> str:
        """Of the file, within its folder."""
        return self.key.rpartition("/")[2]

    @property
    def closed(self) -> bool:
        """No more writes."""
        return self._closed

    def write(self, data: ByteLike, /) -> int:
        """Append, all of it."""
        if self._closed:
            raise ValueError("write to closed file")
        view = memoryview(data).cast("B")
        self._append(view)
        self._size_bytes += len(view)
        return len(view)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._size_bytes

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """End the writing; neither finishes nor discards."""
        self._closed = True

    def readable(self) -> bool:
        """Never."""
        return False

    def writable(self) -> bool:
        """Until closed."""
        return not self._closed

    def seekable(self) -> bool:
        """Never."""
        return False

    def finish(self) -> StagedFile:
        """Make everything durable, still invisible."""
        if self._discarded:
            raise ValueError("finish of a discarded file")
        self._closed = True
        if self._staged is None:
            self._staged = self._seal()
        return self._staged

    def discard(self) -> None:
        """Drop what was written; without effect after `finish`, or a second time."""
        if self._staged is None and not self._discarded:
            self._closed = self._discarded = True
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def __del__(self) -> None:
        if getattr(self, "_staged", None) is None and not getattr(self, "_discarded", True):
            self._discarded = True
            with contextlib.suppress(Exception):  # nobody is left to tell; the sweep by age finds what stays
                self._abandon()
