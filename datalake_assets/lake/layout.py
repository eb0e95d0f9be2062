"""The one place that knows where a feed's parts lie in the lake, so that no other module spells a path.

That holds for adopted folders too: what can be adopted, and which addresses overlap. The store of an adopted folder is
rooted at its *parent*, so that staged files lie beside the folder, on its device, and never in it.
"""

from __future__ import annotations

import hashlib
import secrets
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from datalake_assets.core.facts import PartitionFacts
from datalake_assets.core.feed_state import FeedState
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partitions import PartitionBy, partition_by, partition_key, partition_path
from datalake_assets.core.position import position_facts
from datalake_assets.core.values import Value
from datalake_assets.core.wording import name_text
from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import DeltaTableSource, FolderSource
from datalake_assets.lake.adopted.claims import RECORD, Claim
from datalake_assets.lake.commit import Change, Loaded, PartitionLog
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import ObjectInfo, Store, check_key
from datalake_assets.lake.store.swap import change_object, known_object
from datalake_assets.lake.summary import Summary

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as ds

__all__ = [
    "MARKER",
    "FeedFolder",
    "FolderAddress",
    "StateLog",
    "address_of",
    "avro_folder",
    "commit_marks",
    "discarded_folder",
    "folder_store",
    "form_of",
    "marker_key",
    "new_id",
    "overlap",
    "parse_address",
    "quarantine_folder",
    "sink_folder",
]


def form_of(feed: Feed) -> str:
    """What a feed is kept as, and where; others of its forms may lie beside it."""
    return f"{feed.format.type}:{feed.data_path}"


class StateLog:
    """The state of one feed.

    Args:
        store: Where it lives.
        key: Its key.
        new_id: Gives a fresh unique text at every call.
        feed: Whoever changes the state knows the feed as this; None: that is no matter.
    """

    def __init__(self, store: Store, key: str, new_id: Callable[[], str], *, feed: Feed | None = None) -> None:
        self._store, self._key, self._new_id, self._feed = store, key, new_id, feed

    def load(self) -> FeedState:
        """The state; an empty one if there is none yet."""
        return self._state(known_object(self._store, self._key).body)

    def change(self, rule: Callable[[FeedState], FeedState]) -> FeedState:
        """Applies ``rule`` to whatever the state is by then, until no other process got between.

        Args:
            rule: Pure; may be called several times. Returning its argument changes nothing.

        Raises:
            ConfigError: The feed is kept as something else by now, or is being converted.
            PreconditionFailed: Other processes kept getting there first.
        """

        def changed(body: bytes | None) -> bytes | None:
            state = self._checked(self._state(body))
            now = rule(state)
            if now == state:
                return None
            write_id = self._new_id()
            born = state.born if state.write_id else write_id  # of an earlier release's, nobody knows
            return replace(now, write_id=write_id, born=born).to_bytes()

        return self._state(change_object(self._store, self._key, changed))

    def to_write(self) -> FeedState:
        """The state, for whoever is about to write; raises `ConfigError` as `change` does."""
        return self._checked(self.load())

    def _checked(self, state: FeedState) -> FeedState:
        if self._feed is not None:
            state.check_written(form_of(self._feed), feed=self._feed.name)
        return state

    def _state(self, body: bytes | None) -> FeedState:
        return FeedState() if body is None else FeedState.from_bytes(body, where=self._key)


#: How Spark and Hadoop write what everybody else calls s3.
_S3 = {"s3", "s3a", "s3n"}
#: The stores beside a lake's, by the URI of their root; they live as long as the lake's.
_beside: weakref.WeakKeyDictionary[Store, dict[str, Store]] = weakref.WeakKeyDictionary()


class FolderAddress(Value, frozen=True):
    """An adopted folder.

    Attributes:
        root: URI of its parent: an absolute path without links, or ``s3://bucket/prefix``.
        name: Its own name.
    """

    root: str
    name: str

    @property
    def uri(self) -> str:
        """The folder's own URI."""
        return f"{self.root.rstrip('/')}/{self.name}"


def parse_address(uri: str) -> FolderAddress:
    """The address that a person wrote: a path (relative ones too), ``file://…``, ``s3://…`` or ``s3a://…``.

    Raises:
        ConfigError: It cannot be adopted: it has no parent to stage beside it, or is no address at all.
    """
    if "://" not in uri:
        return _local(uri, uri)
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"}:
        return _local(unquote(parts.path), uri)
    if parts.username or parts.password:
        raise ConfigError("a folder's URI must not carry credentials; give them by the AWS conventions")
    if parts.scheme not in _S3 or not parts.netloc:
        raise ConfigError(f"{uri!r} cannot be adopted: give a local folder, or s3://bucket/prefix")
    # a prefix may contain '?' and '#': S3 has no queries
    key = uri.partition("://")[2].partition("/")[2].strip("/")
    if not key:
        raise ConfigError(f"{uri!r} cannot be adopted: a bucket has no place beside it; give a prefix in it")
    above, _, name = check_key(key).rpartition("/")
    return FolderAddress(f"s3://{parts.netloc}/{above}".rstrip("/"), name)


def _local(path: str, written: str) -> FolderAddress:
    if not path.strip():
        raise ConfigError("'' cannot be adopted: give a local folder, or s3://bucket/prefix")
    folder = Path(path).expanduser().resolve()
    if folder == folder.parent:
        raise ConfigError(f"{written!r} cannot be adopted: it has no place beside it; give a folder in it")
    try:
        check_key(str(folder).lstrip("/"))
    except ConfigError as error:
        text = name_text(str(folder))
        raise ConfigError(
            f"{text} cannot be adopted: its path is not UTF-8, or has control characters or a backslash; rename it"
        ) from error
    return FolderAddress(str(folder.parent), folder.name)


def address_of(feed: Feed) -> FolderAddress:
    """The address of an adopted folder's, or Delta table's, feed.

    Raises:
        ConfigError: The feed is of another kind.
    """
    if not isinstance(feed.source, FolderSource | DeltaTableSource):
        raise ConfigError(f"feed {feed.name!r} is a {feed.kind}, not an adopted folder")
    root, _, name = feed.source.uri.rpartition("/")
    return FolderAddress(root or "/", name)


def folder_store(lake: Store, root: str) -> Store:
    """The store at a root beside a lake, reached as the lake is; opened once per lake."""
    known = _beside.setdefault(lake, {})
    if root not in known:
        known[root] = open_store(root, s3=lake.s3)
    return known[root]


#: Begins the name of an owner's marker.
MARKER = ".datalake-owner-"
NAME_MAX_BYTES = 255  # of one file, on disks


def marker_key(name: str) -> str:
    """Where the marker of a folder lies, relative to the folder's parent; a name that is too long, by its digest."""
    if len(f"{MARKER}{name}.json".encode()) > NAME_MAX_BYTES:
        name = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
    return f"{MARKER}{name}.json"


def overlap(one: str, other: str) -> bool:
    """Whether one of two URIs is the other, or lies in it. Local paths are compared with their links resolved."""
    first, second = f"{_plain(one)}/", f"{_plain(other)}/"
    return first.startswith(second) or second.startswith(first)


def _plain(uri: str) -> str:
    return uri.rstrip("/") if "://" in uri else str(Path(uri).resolve()).rstrip("/")


def quarantine_folder(feed: Feed) -> str:
    """Folder, in the lake, of a feed's rows that could not be landed; the same for every kind of table."""
    return f"quarantine/{feed.path}"


def avro_folder(feed: Feed) -> str:
    """Folder of a feed's Avro files, beside its data: whoever lists those finds Parquet alone."""
    return f"avro/{feed.path}"


def discarded_folder(feed: Feed) -> str:
    """Folder, in the lake, of a feed's rows as they came that were landed without some of their values."""
    return f"discarded/{feed.path}"


def sink_folder(feed: Feed, sink: str = "") -> str:
    """Folder, in the lake, of what a sink of a feed has, and of its dead letters; without a name, of all its sinks."""
    return f"sinks/{feed.path}/{sink}".rstrip("/")


def new_id() -> str:
    """A fresh unique text: 64 random bits in hexadecimal."""
    return secrets.token_hex(8)


def commit_marks(store: Store, feed: Feed) -> dict[str, ObjectInfo] | None:
    """By partition, what changes with every commit to it, from one listing; None where a listing cannot tell."""
    return None if feed.is_iceberg or feed.is_adopted else FeedFolder(store, feed).marks()


@dataclass(frozen=True, slots=True)
class FeedFolder:
    """One feed's corner of a lake.

    Attributes:
        store: The lake.
        feed: The feed.
        new_id: Gives a fresh unique text at every call.
    """

    store: Store
    feed: Feed
    new_id: Callable[[], str] = field(default=new_id)

    @property
    def by(self) -> PartitionBy | None:
        """Length of the partitions; None for a table's versions, and for adopted folders."""
        return partition_by(self.feed)

    @property
    def data_store(self) -> Store:
        """Where the data files live: the lake, or beside an adopted folder."""
        return folder_store(self.store, address_of(self.feed).root) if self.is_adopted else self.store

    @property
    def is_adopted(self) -> bool:
        """Whether the data folder is adopted: other writers change it too."""
        return self.feed.is_adopted

    @property
    def control(self) -> str:
        """Folder of manifests and state."""
        return f"control/{self.feed.path}"

    @property
    def data_root(self) -> str:
        """Folder of all partitions' data files, in the data store."""
        return address_of(self.feed).name if self.is_adopted else self.feed.data_path

    @property
    def quarantine(self) -> str:
        """Folder of rows that could not be landed."""
        return quarantine_folder(self.feed)

    @property
    def state(self) -> StateLog:
        """The feed's state."""
        return StateLog(self.store, f"{self.control}/feed.json", self.new_id, feed=self.feed)

    @property
    def claim(self) -> Claim:
        """The lake's claim to an adopted folder."""
        address = address_of(self.feed)
        return Claim(
            lake=self.store,
            record=f"{self.control}/{RECORD}",
            beside=self.data_store,
            marker=marker_key(address.name),
            uri=address.uri,
            feed=self.feed.name,
            new_id=self.new_id,
            open_lake=partial(folder_store, self.store),
        )

    @property
    def summary(self) -> Summary:
        """The feed's ``_metadata.json``."""
        return Summary(self.store, self.feed)

    def delete_all(self) -> int:
        """Deletes every object of the feed in the lake; not the files of an adopted folder. Returns their number."""
        data = () if self.is_adopted else (self.data_root,)
        deleted = 0
        # rows first: a feed that is restored after half of this misses files, and never lands rows twice
        beside = (self.quarantine, discarded_folder(self.feed), sink_folder(self.feed), self.summary.folder)
        for prefix in (*data, avro_folder(self.feed), *beside, self.control):
            keys = [info.key for info in self.store.list(prefix)]
            self.store.delete(keys)
            deleted += len(keys)
        return deleted

    def has_form(self) -> bool:
        """Whether there is anything that `delete_form` would delete."""
        manifests = (info for info in self.store.list(self.control) if info.key.endswith("/manifest.json"))
        return next(iter(self.store.list(self.data_root)), None) is not None or next(manifests, None) is not None

    def delete_form(self) -> int:
        """Deletes the rows and the manifests of this form of the feed, and nothing else; returns how many objects."""
        data = [info.key for info in self.store.list(self.data_root)]
        manifests = [info.key for info in self.store.list(self.control) if info.key.endswith("/manifest.json")]
        self.store.delete(data)
        self.store.delete(manifests)
        return len(data) + len(manifests)

    def data_folder(self, key: str) -> str:
        """Folder of a partition's data files, in the data store."""
        return f"{self.data_root}/{self.partition_path(key)}".rstrip("/")

    def file_key(self, key: str, name: str) -> str:
        """Key of a data file of a partition, in the data store, by its name in the manifest."""
        return f"{self.data_folder(key)}/{name}"

    def partition_path(self, key: str) -> str:
        """A partition's path below the data root; "" for an adopted folder itself."""
        return partition_path(self.feed, key)

    def log(self, key: str) -> PartitionLog:
        """The manifest of a partition."""
        manifest_key = "/".join(filter(None, (self.control, self.partition_path(key), "manifest.json")))
        return PartitionLog(
            self.store,
            manifest_key,
            self.data_folder(key),
            self.new_id,
            data_store=self.data_store,
            guarded=self.is_adopted,
            claim=self.claim.renew if self.is_adopted else None,
            small_file_bytes=self.feed.small_file_bytes,
        )

    @property
    def commits_at_once(self) -> bool:
        """Whether one commit takes in all partitions, which then share one position in their source."""
        return False

    def why_final(self, key: str) -> str:  # noqa: ARG002  others need it
        """Why no file of a partition can be merged any more; empty if they can."""
        return ""

    def check_names(self, files: ds.FileSystemDataset) -> None:
        """Refuses files that cannot be read by the names of their columns."""

    def probe(self) -> None:
        """Proves that the store which commits rely on enforces conditional writes."""
        self.data_store.probe()

    def pinned(self) -> FeedFolder:
        """The same, for one write: what is read of it is read once."""
        return self

    def can_hold(self, kind: pa.DataType) -> bool:  # noqa: ARG002  others need it
        """Whether the table can have a column of a type."""
        return True

    def part_of(self) -> Callable[[pa.RecordBatch], pa.DictionaryArray] | None:
        """Gives a text for each row: rows whose texts differ do not go to one file; None if all may.

        The table is ready for rows, see `prepared`.
        """
        return None

    def prepared(self, schema: pa.Schema, *, time_column: str | None) -> pa.Schema:  # noqa: ARG002  others need it
        """The schema of data files, once all is made ready for rows of a feed's schema."""
        return schema

    def commit(
        self, changes: Mapping[str, Change], *, bases: Mapping[str, Loaded] | None = None
    ) -> Iterator[tuple[str, Loaded]]:
        """Commits changes by partition; yields each one's manifest once it is committed.

        Args:
            changes: What is to be.
            bases: Settled manifests as they were last seen, which saves reading them.

        Raises:
            CommitConflict: A change cannot be made any more; staged files of the others are the caller's.
        """
        for key, change in changes.items():
            yield key, self.log(key).commit(change, base=(bases or {}).get(key))[0]

    def partition_keys(self) -> tuple[str, ...]:
        """Keys of all partitions that have a manifest, in time or version order; one listing."""
        found = set()
        for info in self.store.list(self.control):
            key = self._partition_of(info.key)
            if key is not None:
                found.add(key)
        return tuple(sorted(found, key=lambda key: (0 if self.is_adopted else len(key), key)))

    def marks(self) -> dict[str, ObjectInfo]:
        """What a listing shows of each partition's manifest."""
        listed = ((self._partition_of(info.key), info) for info in self.store.list(self.control))
        return {key: info for key, info in listed if key is not None}

    def _partition_of(self, object_key: str) -> str | None:
        """The partition whose manifest an object is; None if it is none of the feed's."""
        if not object_key.endswith("/manifest.json"):
            return None
        path = object_key.removeprefix(f"{self.control}/").removesuffix("manifest.json").rstrip("/")
        return partition_key(self.feed, path)

    def report(self, key: str, manifest: Manifest, *, before: Manifest | None = None) -> PartitionFacts:
        """A partition's facts, and what was added since ``before`` (default: nothing)."""
        base = before or manifest
        known = {file.name for file in base.files}
        return PartitionFacts.of(
            key,
            manifest.files,
            small_below_bytes=self.feed.small_file_bytes,
            generation=manifest.generation,
            position=position_facts(manifest.position),
            rows_added=manifest.rows - base.rows,
            files_added=sum(file.name not in known for file in manifest.files),
        )
