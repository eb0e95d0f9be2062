"""Manifests of Iceberg tables, which list files: read once and kept at hand, and the writer that pyiceberg lacks."""

from __future__ import annotations

import json
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache
from typing import Any, Self

from pyiceberg.avro.decoder import new_decoder
from pyiceberg.avro.file import AvroFile
from pyiceberg.avro.reader import Reader
from pyiceberg.avro.resolver import resolve_reader
from pyiceberg.io import FileIO
from pyiceberg.manifest import (
    DEFAULT_READ_VERSION,
    MANIFEST_ENTRY_SCHEMAS,
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    ManifestWriterV2,
    _inherit_from_manifest,
)
from pyiceberg.schema import Schema
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.utils.schema_conversion import AvroSchemaConversion

from datalake_assets.errors import CorruptLake, DatalakeError
from datalake_assets.lake.iceberg.object_reads import LeanIO
from datalake_assets.lake.store.base import is_far

__all__ = ["DeleteManifestWriter", "Manifests", "entries_of", "manifests_of", "schema_of_spec"]

#: Entries of manifests that are kept at hand; a kilobyte or two each.
CACHED_ENTRIES = 50_000
#: Lists of manifests that are kept at hand: those of the newest snapshots.
CACHED_LISTS = 16
#: Manifests that are fetched at once; what takes the time is the way to the store.
FETCHED = 16


class DeleteManifestWriter(ManifestWriterV2):
    """Writes manifests of delete files, for which pyiceberg has no writer."""

    def content(self) -> ManifestContent:
        """Which files it lists."""
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "deletes"}


@dataclass
class _Listed:
    """What a manifest lists."""

    entries: list[ManifestEntry]

    @cached_property
    def by_partition(self) -> Mapping[str, list[ManifestEntry]]:
        """By the text of the partition."""
        found: dict[str, list[ManifestEntry]] = defaultdict(list)
        for entry in self.entries:
            found[repr(entry.data_file.partition)].append(entry)
        return found


def schema_of_spec(metadata: TableMetadata, spec_id: int) -> Schema | None:
    """The newest schema that has all columns which a partition spec is made of; None if it is forgotten.

    Columns of an old spec may be dropped. In the present schema its values have no type then, and pyiceberg writes a
    manifest without them, which it cannot read.
    """
    sources = {each.source_id for each in metadata.specs()[spec_id].fields}
    earlier = sorted(metadata.schemas, key=lambda each: each.schema_id, reverse=True)
    return next((each for each in (metadata.schema(), *earlier) if sources <= each.field_ids), None)


def manifests_of(snapshot: Snapshot, io: FileIO) -> list[ManifestFile]:
    """The manifests of a snapshot.

    Raises:
        CorruptLake: What lists them cannot be read.
        FileNotFoundError: It is gone.
    """
    with _named(snapshot.manifest_list):
        return snapshot.manifests(io)


def entries_of(manifest: ManifestFile, io: FileIO, *, discard_deleted: bool = True) -> list[ManifestEntry]:
    """What a manifest lists.

    Raises:
        CorruptLake: It cannot be read: it is damaged, or another engine wrote what pyiceberg does not know.
        FileNotFoundError: It is gone.
    """
    with _named(manifest.manifest_path), _ManifestAvro(io.new_input(manifest.manifest_path)) as listed:
        return [
            _inherit_from_manifest(entry, manifest)
            for entry in listed
            if not discard_deleted or entry.status != ManifestEntryStatus.DELETED
        ]


class _ManifestAvro(AvroFile[ManifestEntry]):
    """A manifest as `ManifestFile.fetch_manifest_entry` reads it, but for what is worked out of its schema.

    pyiceberg does that for each file anew, most of what a small one takes; those of a table state the same schema.
    """

    def __enter__(self) -> Self:
        with self.input_file.open() as stream:
            self.decoder = new_decoder(stream.read())
        self.header = self._read_header()
        self.schema, self.reader = _read_as(self.header.meta["avro.schema"])
        return self


@lru_cache(maxsize=64)
def _read_as(stated: str) -> tuple[Schema, Reader]:
    """What manifests are read by that state this schema; nothing of a file is kept in it."""
    schema = AvroSchemaConversion().avro_to_iceberg(json.loads(stated))
    enums: dict[int, Callable[..., Enum]] = {0: ManifestEntryStatus, 101: FileFormat, 134: DataFileContent}
    wanted = MANIFEST_ENTRY_SCHEMAS[DEFAULT_READ_VERSION]
    return schema, resolve_reader(schema, wanted, {-1: ManifestEntry, 2: DataFile}, enums)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Says which file it is that cannot be read: pyiceberg raises whatever a wrong byte leads to."""
    try:
        yield
    except (OSError, DatalakeError, MemoryError):
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise CorruptLake(path, f"pyiceberg cannot read it ({text})") from error


class Manifests:
    """Reads manifests; what was read lately is kept, as a manifest never changes.

    Args:
        io: The table's.

    Attributes:
        known: What the table's user has worked out of what never changes.
    """

    def __init__(self, io: FileIO) -> None:
        self._io = LeanIO(io)
        self._kept: OrderedDict[str, _Listed] = OrderedDict()
        self._entries = 0
        self._lists: OrderedDict[str, list[ManifestFile]] = OrderedDict()
        self.known: dict[Hashable, Any] = {}

    def of(self, snapshot: Snapshot | None) -> list[ManifestFile]:
        """A snapshot's manifests that list any file; nobody may change these."""
        if snapshot is None:
            return []
        path = snapshot.manifest_list
        if path not in self._lists:
            listed = manifests_of(snapshot, self._io)
            found = [each for each in listed if each.has_added_files() or each.has_existing_files()]
            self._lists[path] = found
            while len(self._lists) > CACHED_LISTS:
                self._lists.popitem(last=False)
            return found
        self._lists.move_to_end(path)
        return self._lists[path]

    def entries(self, manifest: ManifestFile) -> list[ManifestEntry]:
        """What a manifest lists and has not deleted; nobody may change these."""
        return self._listed(manifest).entries

    def all_entries(self, manifests: Sequence[ManifestFile]) -> Iterator[tuple[ManifestFile, list[ManifestEntry]]]:
        """The same of several manifests, in their order; where they are far away, some are fetched ahead."""
        wanted = [each for each in manifests if not self.at_hand(each) and is_far(each.manifest_path)]
        if len(wanted) <= 1:
            yield from ((each, self.entries(each)) for each in manifests)
            return
        left, ahead = iter(wanted), deque[tuple[str, Future[list[ManifestEntry]]]]()
        with ThreadPoolExecutor(FETCHED, thread_name_prefix="manifests") as pool:
            for manifest in manifests:
                while len(ahead) < FETCHED and (each := next(left, None)) is not None:
                    ahead.append((each.manifest_path, pool.submit(entries_of, each, self._io)))
                if ahead and ahead[0][0] == manifest.manifest_path:
                    path, fetched = ahead.popleft()
                    yield manifest, self._keep(path, fetched.result()).entries
                else:
                    yield manifest, self.entries(manifest)

    def by_partition(self, manifest: ManifestFile) -> Mapping[str, list[ManifestEntry]]:
        """The same by the text of the partition's values, of one spec; nobody may change these."""
        return self._listed(manifest).by_partition

    def _listed(self, manifest: ManifestFile) -> _Listed:
        path = manifest.manifest_path
        if path in self._kept:
            self._kept.move_to_end(path)
            return self._kept[path]
        return self._keep(path, entries_of(manifest, self._io))

    def _keep(self, path: str, entries: list[ManifestEntry]) -> _Listed:
        found = self._kept[path] = _Listed(entries)
        self._entries += len(found.entries)
        while self._entries > CACHED_ENTRIES and len(self._kept) > 1:
            self._entries -= len(self._kept.popitem(last=False)[1].entries)
        return found

    def at_hand(self, manifest: ManifestFile) -> bool:
        """Whether its entries need not be fetched."""
        return manifest.manifest_path in self._kept
