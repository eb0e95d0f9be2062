"""Takes over a folder of other writers' Parquet files, or a table of theirs, as a feed, without touching a byte of it.

Adopting looks at the files' pages too, where these have checksums: what is damaged should be known before it is merged
or asked for. All of a terabyte cannot be read for that, so it says how far it came.

It writes the owner's marker beside the folder, the feed, its manifests and its summary, in this order, so that an
adoption that was interrupted can be repeated, and whoever comes between is refused.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from datalake_assets.core.facts import PagesCompared
from datalake_assets.core.schema import column_named
from datalake_assets.errors import ConfigError, DatalakeError, FeedExists, FeedNotFound, LakeError, UnreadableFile
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.feed_sources import DeltaTableSource, FolderSource, IcebergTableSource, SourceModel
from datalake_assets.lake.adopted.footers import Footers
from datalake_assets.lake.adopted.listing import list_folder
from datalake_assets.lake.adopted.marks import TableMarks
from datalake_assets.lake.adopted.owners import release_ownership, take_ownership
from datalake_assets.lake.adopted.reconcile import reconcile
from datalake_assets.lake.layout import FeedFolder, FolderAddress, address_of, folder_store, overlap, parse_address
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import ObjectInfo, Store
from datalake_assets.lake.table import Reconciliation
from datalake_assets.lake.tables import open_table, release_adopted, take_adopted
from datalake_assets.parquet.adopted_footer import is_time
from datalake_assets.parquet.footer import parse_footer
from datalake_assets.parquet.pages import UnsoundPages, has_checksums, walk_pages
from datalake_assets.parquet.thrift import MalformedThrift

__all__ = ["MAX_FOLDERS", "Adoption", "FirstPageLook", "adopt", "adopt_at"]

#: Dagster slows, then breaks, far above this many partitions of an asset.
MAX_FOLDERS = 20_000


@dataclass(frozen=True, slots=True)
class Adoption:
    """What an adoption came to.

    Attributes:
        feed: The feed, as registered.
        is_new: Whether it was adopted just now; else its files were listed again.
        found: What is in the folder or table.
    """

    feed: Feed
    is_new: bool
    found: Reconciliation


def adopt_at(
    lake: Store,
    address: str,
    name: str,
    *,
    time_column: str | None = None,
    catalog: str = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> Adoption:
    """Makes what lies at an address a feed of the lake: a folder, an Iceberg table or a Delta table; idempotent.

    Args:
        lake: The lake.
        address: A folder, a table's folder, a file of an Iceberg table's metadata, or ``iceberg:NAMESPACE.TABLE``.
        name: The feed's name.
        time_column: The column that rows are ordered by.
        catalog: The catalog of an Iceberg table; empty: the lake's.
        on_progress: Called with how many footers of a folder's files were read, and of how many.

    Raises:
        ConfigError: It cannot be adopted, or not under this name.
        FolderTaken: It is another lake's.
        LakeError: The lake, the folder, the table or its catalog cannot be read, or not be marked as taken.
    """
    source = _source_at(lake, address, catalog)
    if isinstance(source, FolderSource):
        return adopt(lake, address, name, time_column=time_column, on_progress=on_progress)
    return _adopt_table(lake, source, name, time_column)


def _source_at(lake: Store, address: str, catalog: str) -> SourceModel:
    """What lies at an address; of a Delta table with metadata of Iceberg, what writes it is Delta."""
    if address.startswith("iceberg:"):
        document = {"type": "iceberg", "table": address.removeprefix("iceberg:"), "catalog": catalog}
        source = {"name": "x", "kind": "folder", "source": document}
        return parse_feed(json.dumps(source), name=address).source
    if catalog:
        raise ConfigError(f"{address!r} is looked up in no catalog: give 'iceberg:NAMESPACE.TABLE'")
    folder = parse_address(address)
    store = folder_store(lake, folder.root)
    if folder.name.endswith((".metadata.json", ".metadata.json.gz")):
        return IcebergTableSource(uri=folder.uri)
    if any(True for _ in store.list(f"{folder.name}/_delta_log")):
        return DeltaTableSource(uri=folder.uri)
    listed = store.list(f"{folder.name}/metadata")
    if any(each.key.endswith((".metadata.json", ".metadata.json.gz")) for each in listed):
        return IcebergTableSource(uri=folder.uri)
    return FolderSource(uri=folder.uri)


def _adopt_table(lake: Store, source: SourceModel, name: str, time_column: str | None) -> Adoption:
    registry = FeedRegistry(lake)
    document = {"name": name, "kind": "folder", "source": source.model_dump(mode="json"), "time_column": time_column}
    wanted = parse_feed(json.dumps(document), name=name)
    known = _known_table(registry, wanted)
    _refuse_other_column(known, time_column)
    if isinstance(source, DeltaTableSource):
        _refuse_overlaps(lake, registry, wanted, address_of(wanted))
    feed = known or _with_policy(lake, wanted)
    lake.probe()
    taken = take_adopted(lake, feed)
    try:
        feed = known or _added(registry, feed)
    except DatalakeError:
        if taken:
            release_adopted(lake, feed)
        raise
    return Adoption(feed, known is None, open_table(lake, feed).look_again())


def _known_table(registry: FeedRegistry, wanted: Feed) -> Feed | None:
    try:
        known = registry.get(wanted.name)
    except FeedNotFound as error:
        if error.archived:
            raise FeedExists(wanted.name, archived=True) from error
        return None
    if known.source != wanted.source:
        raise FeedExists(wanted.name)
    return known


def _added(registry: FeedRegistry, feed: Feed) -> Feed:
    try:
        return registry.add(feed)
    except FeedExists:
        known = _known_table(registry, feed)
        if known is None:
            raise
        return known


def _with_policy(lake: Store, feed: Feed) -> Feed:
    """The feed, once it is known that its table is one; nothing is written yet.

    Raises:
        ConfigError: There is no such table, or no such time column, or it has too many partitions.
    """
    look = open_table(lake, feed).snapshot()
    if len(look.keys) > MAX_FOLDERS:
        raise ConfigError(
            f"{feed.source.where} cannot be adopted: it has {len(look.keys):,} partitions, and a feed at most"
            f" {MAX_FOLDERS:,}"
        )
    if feed.time_column is not None:
        _check_time_column([look.dataset().schema], feed.time_column)
    if not isinstance(feed.source, IcebergTableSource) or feed.source.table:
        return feed
    # without its catalog it is planned, and nobody should be asked to do what is planned
    return feed.model_copy(update={"compaction": feed.compaction.model_copy(update={"enabled": False})})


def _refuse_other_column(known: Feed | None, time_column: str | None) -> None:
    if known is not None and time_column not in {None, known.time_column}:
        was = f"with the time column {known.time_column!r}" if known.time_column else "without a time column"
        raise ConfigError(f"feed {known.name!r} was adopted {was}, and keeps it")


def adopt(
    lake: Store,
    uri: str,
    name: str,
    *,
    time_column: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Adoption:
    """Makes a folder a feed of the lake, or looks at one again that is; idempotent.

    Args:
        lake: The lake.
        uri: The folder, as a person wrote it.
        name: The feed's name.
        time_column: The column that rows are ordered by.
        on_progress: Called with how many footers were read, and of how many.

    Raises:
        ConfigError: The folder cannot be adopted, or not under this name.
        FolderTaken: It is another lake's.
        LakeError: The lake or the folder cannot be read, or the marker not be written.
    """
    address, registry = parse_address(uri), FeedRegistry(lake)
    known = _registered(registry, name, address)
    feed = known or _feed(name, address, time_column)
    _refuse_other_column(known, time_column)
    _refuse_overlaps(lake, registry, feed, address)
    folder = FeedFolder(lake, feed)
    footers = Footers(folder, pages=FirstPageLook(folder.data_store))
    TableMarks(folder).check()
    if known is None:
        _check_folder(folder, address, footers, on_progress)
    lake.probe()
    taken = take_ownership(lake, feed)
    try:
        feed = known or _register(registry, feed, address)
    except DatalakeError:
        if taken:
            release_ownership(lake, feed)
        raise
    found = reconcile(FeedFolder(lake, feed), footers=footers, on_progress=on_progress)
    return Adoption(feed, known is None, found)


#: Bytes that the first look reads of files' pages at the most: seconds on a disk, a dollar cent of requests on S3.
PAGES_BYTES = 1 << 30
#: Seconds after which it begins with no further row group.
PAGES_S = 30.0
#: Files whose pages are looked at at once; each holds a few MiB.
PAGES_THREADS = 16
#: Up to this size one request for all of a file is faster than several for its parts.
WHOLE_BYTES = 1 << 20


class FirstPageLook:
    """Compares the pages of files with their checksums, within bounds: all of a small folder, a sample of a large one.

    Files come in the order of their names' digests, so that what is not reached lies anywhere in the folder. Whether a
    file has checksums, the first pages of its first, middle and last row group say.

    Args:
        store: Where they are.
        most_bytes: Bytes that are read at the most, but for what is under way then.
        most_s: Seconds after which nothing further is begun.
        clock: Seconds of a clock that only goes forward.

    Attributes:
        compared: What was done so far.
        reached: Keys of the files of which it is known whether they are damaged, as far as checksums tell.
    """

    def __init__(
        self,
        store: Store,
        *,
        most_bytes: int = PAGES_BYTES,
        most_s: float = PAGES_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._left_bytes, self._left_s, self._clock = store, most_bytes, most_s, clock
        self._lock, self._end = threading.Lock(), 0.0
        self.compared, self.reached = PagesCompared(), set[str]()

    def walked(self, size_bytes: int, *, has_checksums: bool) -> bool:
        """Implements `PageLook`."""
        with self._lock:
            if self._left_bytes <= 0 or self._left_s <= 0:
                self.compared.not_compared += 1
                return False
            self._left_bytes -= size_bytes
            self.compared.read_bytes += size_bytes
            self.compared.files += has_checksums
            self.compared.without += not has_checksums
        return True

    def damaged(self, files: Sequence[ObjectInfo]) -> Mapping[str, str]:
        """Implements `PageLook`; what changes meanwhile is left to the next look."""
        began = self._clock()
        self._end = began + self._left_s
        ordered = sorted(files, key=lambda info: hashlib.blake2b(info.key.encode(), digest_size=8).digest())
        with ThreadPoolExecutor(PAGES_THREADS, thread_name_prefix="pages") as pool:
            found = dict(zip((info.key for info in ordered), pool.map(self._look, ordered), strict=True))
        self._left_s -= self._clock() - began
        return {key: reason for key, reason in found.items() if reason}

    def _look(self, info: ObjectInfo) -> str:
        """Why a file is damaged; empty if nothing is known against it."""
        try:
            return self._compare(info)
        except UnreadableFile as error:
            if self._store.changed({info.key: info.etag}):
                self._count("not_compared", info)
                return ""
            self._count("files", info)
            return error.reason
        # its compaction finds out what is wrong, and a request that failed says nothing of the file
        except (UnsoundPages, MalformedThrift, LakeError, OSError):
            self._count("not_compared", info)
            return ""

    def _compare(self, info: ObjectInfo) -> str:
        if self._is_enough():
            self._count("not_compared", info)
            return ""
        with self._opened(info) as native:

            def read_at(offset: int, length: int) -> memoryview:
                self._spend(length)
                return memoryview(native.read_at(length, offset))

            try:
                footer = parse_footer(read_at, info.size_bytes, where=info.key)
            except UnreadableFile as error:  # of which `read_adopted_footer` can make something
                raise UnsoundPages(info.key, error.reason) from error
            if not has_checksums(footer, read_at):
                self._count("without", info)
                return ""
            for number in range(len(footer.row_groups)):
                if self._is_enough():
                    self._count("not_compared", info)
                    return ""
                walk_pages(footer, read_at, [number])
        self._count("files", info)
        return ""

    def _opened(self, info: ObjectInfo) -> pa.NativeFile:
        if "://" in self._store.uri and info.size_bytes <= WHOLE_BYTES:
            return pa.BufferReader(self._store.tail(info.key, info.size_bytes, etag=info.etag))
        return self._store.filesystem().open_input_file(self._store.path(info.key))

    def _is_enough(self) -> bool:
        return self._left_bytes <= 0 or self._clock() > self._end

    def _spend(self, size_bytes: int) -> None:
        with self._lock:
            self._left_bytes -= size_bytes
            self.compared.read_bytes += size_bytes

    def _count(self, what: Literal["files", "without", "not_compared"], info: ObjectInfo) -> None:
        with self._lock:
            if what != "not_compared":
                self.reached.add(info.key)
            setattr(self.compared, what, getattr(self.compared, what) + 1)


def _feed(name: str, address: FolderAddress, time_column: str | None) -> Feed:
    source = {"type": "folder", "uri": address.uri}
    document = {"name": name, "kind": "folder", "source": source, "time_column": time_column}
    return parse_feed(json.dumps(document), name=name)


def _registered(registry: FeedRegistry, name: str, address: FolderAddress) -> Feed | None:
    """The feed of this name, if it is this very folder; None if there is none.

    Raises:
        FeedExists: It is another, or archived.
    """
    try:
        feed = registry.get(name)
    except FeedNotFound as error:
        if error.archived:
            raise FeedExists(name, archived=True) from error
        return None
    if not isinstance(feed.source, FolderSource) or address_of(feed) != address:
        raise FeedExists(name)
    return feed


def _register(registry: FeedRegistry, feed: Feed, address: FolderAddress) -> Feed:
    try:
        return registry.add(feed)
    except FeedExists:
        known = _registered(registry, feed.name, address)
        if known is None:
            raise
        return known


def _refuse_overlaps(lake: Store, registry: FeedRegistry, feed: Feed, address: FolderAddress) -> None:
    if overlap(address.uri, lake.uri):
        raise ConfigError(f"{address.uri} cannot be adopted: it overlaps the lake itself, {lake.uri}")
    for other in registry.list().feeds:
        # the files of an Iceberg table carry marks of their own
        if other.name == feed.name or not isinstance(other.source, FolderSource | DeltaTableSource):
            continue
        if overlap(address.uri, other.source.uri):
            raise ConfigError(
                f"{address.uri} cannot be adopted: it overlaps {other.source.uri}, which is feed {other.name!r}"
            )


def _check_folder(
    folder: FeedFolder, address: FolderAddress, footers: Footers, on_progress: Callable[[int, int], None] | None
) -> None:
    """Refuses what is no folder of Parquet files, or has no such time column; nothing is written yet."""
    store = folder.data_store
    if store.head(folder.data_root) is not None:
        raise ConfigError(f"{address.uri} cannot be adopted: it is a file; give the folder that it lies in")
    if "://" not in address.uri and not Path(address.uri).is_dir():
        raise ConfigError(f"{address.uri} cannot be adopted: there is no such folder")
    listing = list_folder(folder)
    if len(listing.partitions) > MAX_FOLDERS:
        raise ConfigError(
            f"{address.uri} cannot be adopted: {len(listing.partitions):,} folders in it have files, and a feed has at"
            f" most {MAX_FOLDERS:,}; adopt folders in it"
        )
    read = footers.read(listing.partitions, lambda key: [*listing.partitions[key].values()], on_progress=on_progress)
    if not footers.schemas:
        bad = sorted((*listing.problems, *read.problems), key=lambda each: each.name)
        detail = f" that can be read; {bad[0].name}: {bad[0].reason}" if bad else ""
        raise ConfigError(f"{address.uri} cannot be adopted: there are no Parquet files in it{detail}")
    if folder.feed.time_column is not None:
        _check_time_column(footers.schemas, folder.feed.time_column)


def _check_time_column(schemas: Sequence[pa.Schema], name: str) -> None:
    named = ((each, column_named(each.names, name)) for each in schemas)
    kinds = {each.field(found).type for each, found in named if found is not None}
    if any(is_time(kind) for kind in kinds):
        return
    if kinds:
        there = f"it is {min(map(str, kinds))}; give a column of timestamps or dates"
    else:
        there = f"the files have {', '.join(sorted({column for each in schemas for column in each.names}))}"
    raise ConfigError(f"{name!r} cannot be the time column: {there}")
