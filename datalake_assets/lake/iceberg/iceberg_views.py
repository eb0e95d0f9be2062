"""An Iceberg table at one moment, told as manifests of partitions, which everything above knows how to read.

Iceberg's own metadata is the truth: which files there are, and when they came. What Iceberg has no place for stands in
the table's properties and in the summaries of its snapshots, under names that begin with ``datalake.``: the position,
which commit a snapshot is, and what it did to each partition.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec
from pyiceberg.manifest import DataFile as IcebergFile
from pyiceberg.manifest import ManifestContent, ManifestEntry, ManifestFile
from pyiceberg.table import Table
from pyiceberg.table.refs import SnapshotRefType
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.typedef import Record

from datalake_assets.core.files import DataFile
from datalake_assets.core.item_ids import IdsPosition
from datalake_assets.core.manifest import HISTORY, Commit, Manifest
from datalake_assets.core.partitions import PartitionBy, version_key, version_number
from datalake_assets.core.position import OffsetsPosition, Position, SnapshotPosition, position_from_json
from datalake_assets.errors import ConfigError
from datalake_assets.lake.iceberg.iceberg_schemas import Parted, key_of_value, time_bounds_of, value_of_key
from datalake_assets.lake.iceberg.manifests import Manifests

__all__ = [
    "COMMIT",
    "KIND",
    "PARTITIONS",
    "PAST",
    "POSITION",
    "REMOVED",
    "RUN",
    "WINDOWS",
    "TableView",
    "data_path",
    "path_in_table",
    "position_as_said",
]

#: Of a snapshot: the commit that made it.
COMMIT: Final = "datalake.commit"
#: Of a snapshot: what it did, one of `Manifest`'s kinds of commits.
KIND: Final = "datalake.kind"
#: Of a snapshot: the Dagster run that made it.
RUN: Final = "datalake.run"
#: Of a snapshot: what it did to each partition, as JSON.
PARTITIONS: Final = "datalake.partitions"
#: Of a snapshot: the history of each partition before the feed was converted, as JSON.
PAST: Final = "datalake.past"
#: Of a snapshot and of the table: how much of its source there is.
POSITION: Final = "datalake.position"
#: Characters of a position that summaries repeat.
LONGEST_SAID = 2000
#: Of the table: the positions of partitions that were pulled as a whole, as JSON by key.
WINDOWS: Final = "datalake.windows"
#: Of the table, followed by a version: retention removed that. One property each, since others may remove others.
REMOVED: Final = "datalake.removed."

#: Snapshots whose summaries are read for the history of partitions, the newest; a table may have thousands.
LINEAGE: Final = 100
#: Facts of what never changes that are kept at hand: keys of partitions, what snapshots say.
KNOWN: Final = 10_000
_T = TypeVar("_T")
_BY: Final = {by.value: by for by in PartitionBy}
#: Gives the folder of a partition's own files, below the table's location.
FolderOf = Callable[[str], str]


def path_in_table(table: Table, uri: str) -> str:
    """A file's path below the table's location.

    Raises:
        ConfigError: It lies elsewhere.
    """
    root = _plain(table.location()).rstrip("/") + "/"
    path = _plain(uri)
    if not path.startswith(root):
        raise ConfigError(
            f"{uri} belongs to the Iceberg table at {table.location()} and lies elsewhere; rewrite it there"
        )
    return path.removeprefix(root)


def _plain(uri: str) -> str:
    """Spark says s3a, and file:/ with one slash."""
    scheme, separator, rest = uri.partition(":")
    if not separator or "/" in scheme:
        return uri
    return f"s3://{rest.lstrip('/')}" if scheme in {"s3", "s3a", "s3n"} else f"/{rest.lstrip('/')}"


def data_path(name: str, folder: str) -> str:
    """The path of a data file below the table's location, by its name in a manifest: a plain one is of its folder."""
    return name if "/" in name else f"{folder}/{name}"


def position_as_said(stated: str) -> str:
    """What a snapshot's summary says of the table's position: all of it, or of a long one its checksum.

    Every snapshot's summary is written again with each commit, and a position of items may take 20 kB.
    """
    if len(stated) <= LONGEST_SAID:
        return stated
    return f"blake2b:{hashlib.blake2b(stated.encode(), digest_size=16).hexdigest()}"


@dataclass(frozen=True, slots=True)
class _Line:
    """A data file of a snapshot, and the number of the commit that brought it."""

    file: IcebergFile
    sequence_number: int


class TableView:
    """A table at one moment; None: one that was never written.

    Args:
        table: As it was loaded.
        by: Length of its partitions; None for a table with versions.
        folder_of: Gives the folder of a partition's own files, below the table's location.
        reader: Reads its manifests.
    """

    def __init__(
        self, table: Table | None, by: PartitionBy | None, folder_of: FolderOf, reader: Manifests | None
    ) -> None:
        self.table, self._by, self._folder_of, self._reader = table, by, folder_of, reader
        self._lines: dict[tuple[int, str], list[_Line]] = {}
        self._manifests: dict[str, Manifest] = {}

    def partitions(self) -> tuple[str, ...]:
        """Partitions with files, or versions; in order."""
        if self.table is None:
            return ()
        if self._by is None:
            return tuple(version_key(number) for number in sorted(self.versions))
        return tuple(sorted({*self._keys_in(self._head), *self._history, *self.windows}))

    @cached_property
    def versions(self) -> Mapping[int, Snapshot]:
        """The snapshots of a table's versions, by number: those that a tag keeps."""
        if self.table is None:
            return {}
        found, metadata = {}, self.table.metadata
        for name, ref in metadata.refs.items():
            if ref.snapshot_ref_type is SnapshotRefType.TAG and name.removeprefix("v").isdecimal():
                snapshot = self._by_id.get(ref.snapshot_id)
                if snapshot is not None:
                    found[version_number(name)] = snapshot
        return found

    def manifest(self, key: str) -> Manifest:
        """What a partition holds."""
        if self.table is None:
            return Manifest()
        if key not in self._manifests:
            self._manifests[key] = self._manifest(key)
        return self._manifests[key]

    def _manifest(self, key: str) -> Manifest:
        lines = self._lines_of(key)
        history = self._history.get(key, [])
        numbers = [line.sequence_number for line in lines] + [number for number, _ in history]
        return Manifest(
            generation=max(numbers, default=0),
            files=tuple(self._data_file(key, line) for line in lines),
            position=self._position(key),
            history=tuple(commit for _, commit in history)[-HISTORY:],
            deleted=f"{REMOVED}{key}" in self._properties,
        )

    def paths(self, key: str) -> dict[str, str]:
        """The URIs of a partition's files, by their names in its manifest."""
        return {self._name(key, line.file): line.file.file_path for line in self._lines_of(key)}

    def is_committed(self, commit_id: str) -> bool:
        """Whether a snapshot that is still there was made by a commit."""
        snapshots = self.table.snapshots() if self.table is not None else []
        return any(_said(snapshot).get(COMMIT) == commit_id for snapshot in snapshots)

    def named_files(self) -> set[str]:
        """The paths, below the table's location, of all data and delete files that snapshots name."""
        if self.table is None:
            return set()
        found = set()
        for snapshot in self.table.snapshots():
            for entry in self._entries(snapshot, deletes_too=True):
                found.add(path_in_table(self.table, entry.data_file.file_path))
        return found

    def paths_of(self, snapshots: Iterable[Snapshot]) -> set[str]:
        """The URIs of all files that snapshots name: manifest lists, manifests and data files."""
        found = set()
        for snapshot in snapshots:
            found.add(snapshot.manifest_list)
            found |= {manifest.manifest_path for manifest in self._reader.of(snapshot)} if self._reader else set()
            found |= {entry.data_file.file_path for entry in self._entries(snapshot, deletes_too=True)}
        return found

    def head_paths(self) -> list[str]:
        """The URIs of all data files of the newest snapshot."""
        return [entry.data_file.file_path for entry in self._entries(self._head)] if self._head is not None else []

    @cached_property
    def windows(self) -> Mapping[str, Any]:
        """The positions of partitions that were pulled as a whole, as JSON by key."""
        return dict(json.loads(self._properties.get(WINDOWS, "{}")))

    @property
    def _properties(self) -> Mapping[str, str]:
        return self.table.properties if self.table is not None else {}

    @cached_property
    def _by_id(self) -> Mapping[int, Snapshot]:
        """The snapshots by number; pyiceberg looks through all of them for each."""
        return {each.snapshot_id: each for each in self.table.snapshots()} if self.table is not None else {}

    @cached_property
    def _head(self) -> Snapshot | None:
        number = self.table.metadata.current_snapshot_id if self.table is not None else None
        return None if number is None else self._by_id.get(number)

    def _lineage(self) -> Iterator[Snapshot]:
        """The newest snapshot and those that it was built on, newest first."""
        snapshot = self._head
        while snapshot is not None:
            yield snapshot
            snapshot = self._by_id.get(snapshot.parent_snapshot_id or 0)

    def _lines_of(self, key: str) -> list[_Line]:
        """The data files of a partition, in the snapshot that it is read from."""
        snapshot, wanted = self._snapshot(key), key if self._by is not None else ""
        if snapshot is None:
            return []
        at = (snapshot.snapshot_id, wanted)
        if at not in self._lines:
            lines = [
                _Line(entry.data_file, entry.sequence_number or 0)
                for key, entries in self._partitioned(snapshot)
                if key == wanted
                for entry in entries
            ]
            self._lines[at] = sorted(lines, key=lambda line: (line.sequence_number, line.file.file_path))
        return self._lines[at]

    def _snapshot(self, key: str) -> Snapshot | None:
        """The snapshot that a partition is read from.

        Of a version it is the one with its tag, or the head, if that was made of it: by a compaction, or an append of
        others. Versions may be committed in another order than their numbers have.
        """
        if self._by is not None:
            return self._head
        tagged = self.versions.get(version_number(key))
        return self._head if tagged is not None and self._is_head_made_of(tagged) else tagged

    def _is_head_made_of(self, tagged: Snapshot) -> bool:
        for each in self._lineage():
            if each.snapshot_id == tagged.snapshot_id:
                return True
            if _said(each).get(KIND) in {"snapshot", "convert"}:
                return False
        return False

    def is_read_from_head(self, key: str) -> bool:
        """Whether what a partition holds is in the newest snapshot."""
        head = self._head
        return head is not None and self._snapshot(key) is head

    def check_not_rolled_back(self) -> None:
        """Refuses to go on where another engine took the table back: the position is that of rows which are gone.

        Raises:
            ConfigError: The newest snapshot that states a position states another than the table.
        """
        stated = self._properties.get(POSITION)
        if self.table is None or stated is None:
            return
        for each in islice(self._lineage(), LINEAGE):
            said = _said(each).get(POSITION)
            if said is not None and said not in {stated, position_as_said(stated)}:
                raise ConfigError(
                    f"Iceberg table {'.'.join(self.table.name())} was rolled back by another engine: rows of later"
                    " snapshots are missing, and would not be read again; make the newest snapshot of before the"
                    " current one, or remove the feed and add it anew"
                )
            if said is not None:
                return

    def newest_as_of(self) -> datetime | None:
        """When the pull of the newest version began; None without versions."""
        found = [self._position(version_key(number)) for number in self.versions]
        return max((each.as_of for each in found if isinstance(each, SnapshotPosition)), default=None)

    def _position(self, key: str) -> Position | None:
        if self._by is None:
            tagged = self.versions.get(version_number(key))
            return position_from_json(json.loads(_said(tagged).get(POSITION, "null")))
        if WINDOWS in self._properties:
            return position_from_json(self.windows.get(key))
        position = position_from_json(json.loads(self._properties.get(POSITION, "null")))
        return position if isinstance(position, OffsetsPosition | IdsPosition) else None

    @cached_property
    def _history(self) -> dict[str, list[tuple[int, Commit]]]:
        """The commits of each partition that the snapshots still tell of, oldest first, with their numbers."""
        found: dict[str, list[tuple[int, Commit]]] = defaultdict(list)
        told = {each.snapshot_id: each for each in (*islice(self._lineage(), LINEAGE), *self.versions.values())}
        for snapshot in sorted(told.values(), key=lambda each: each.sequence_number or 0):
            for key, commit in self._once(("commits", snapshot.snapshot_id), partial(_commits_of, snapshot)):
                found[key].append((snapshot.sequence_number or 0, commit))
        return found

    def _keys_in(self, snapshot: Snapshot | None) -> set[str]:
        """The partitions that a snapshot has files of; "" for an unpartitioned table."""
        return {key for key, _ in self._partitioned(snapshot)} if snapshot is not None else set()

    def _partitioned(self, snapshot: Snapshot) -> Iterator[tuple[str, Sequence[ManifestEntry]]]:
        """The data files of a snapshot, in pieces of one partition each; a partition may have several."""
        if self._reader is None:
            return
        for manifest in self._data_manifests(snapshot):
            for value, entries in self._reader.by_partition(manifest).items():
                yield self._known_key(value, entries[0].data_file), entries

    def has_deletes(self) -> bool:
        """Whether the newest snapshot has files that say which rows are gone."""
        listed = self._reader.of(self._head) if self._reader is not None else []
        return any(manifest.content is not ManifestContent.DATA for manifest in listed)

    def _data_manifests(self, snapshot: Snapshot) -> Iterator[ManifestFile]:
        if self.table is None or self._reader is None:
            return
        for manifest in self._reader.of(snapshot):
            if manifest.content is not ManifestContent.DATA:
                name = ".".join(self.table.name())
                raise ConfigError(
                    f"Iceberg table {name}: another engine deleted rows by delete files; 'datalake repair' applies them"
                )
            yield manifest

    def _entries(self, snapshot: Snapshot, *, deletes_too: bool = False) -> Iterator[ManifestEntry]:
        if self._reader is None:
            return
        manifests = self._reader.of(snapshot) if deletes_too else list(self._data_manifests(snapshot))
        for _, entries in self._reader.all_entries(manifests):
            yield from entries

    def _known_key(self, value: str, file: IcebergFile) -> str:
        """The key of a file's partition, whose values are this text; files of one partition are many."""
        return self._once(("key", self._by, file.spec_id, value), lambda: self._key_of(file))

    def _once(self, what: Hashable, work_out: Callable[[], _T]) -> _T:
        """What never changes is worked out once for all views of the table; forgotten before it takes much memory."""
        known = self._reader.known if self._reader is not None else {}
        if what not in known:
            if len(known) >= KNOWN:
                known.clear()
            known[what] = work_out()
        found: _T = known[what]
        return found

    def _key_of(self, file: IcebergFile) -> str:
        if self._by is None:
            return ""
        table = self.table
        spec = table.specs()[file.spec_id] if table is not None else None
        by = _BY.get(str(spec.fields[0].transform)) if spec is not None and spec.fields else None
        if by is not self._by:
            raise ConfigError(
                f"{file.file_path}: its partition is not one by {self._by.value}; another engine wrote it"
            )
        return key_of_value(file.partition[0], self._by)

    @cached_property
    def _parted(self) -> Mapping[int, Parted]:
        """How files are kept apart besides by time, by the ids of specs; the table has had some."""
        if self.table is None:
            return {}
        schema, is_by_time = self.table.schema(), self._by is not None
        return {number: Parted(schema, spec, is_by_time=is_by_time) for number, spec in self.table.specs().items()}

    def partition_of(self, key: str, part: str) -> tuple[int, Record]:
        """The spec's id and the values of a partition, for a file of rows of ``part``."""
        if self.table is None:
            raise AssertionError
        spec_id = int(part.partition(":")[0]) if part else self._spec_by_time()
        time = [] if self._by is None else [value_of_key(key, self._by)]
        return spec_id, Record(*time, *self._parted[spec_id].values(part))

    def _spec_by_time(self) -> int:
        """The spec for files that are not kept apart by more than time: the table's own, unless others changed that."""
        own = self.table.metadata.default_spec_id if self.table is not None else 0
        return max((number for number, each in self._parted.items() if not each.is_parted), default=own)

    @property
    def has_parts_alone(self) -> bool:
        """Whether files have always been kept apart by more than time."""
        return all(each.is_parted for each in self._parted.values())

    @property
    def is_parted(self) -> bool:
        """Whether files are kept apart by more than time."""
        return self.table is not None and self._parted[self.table.metadata.default_spec_id].is_parted

    def _part(self, file: IcebergFile) -> str:
        """What a file is kept apart by, besides time; where that is nothing, files of all specs may be merged."""
        if not self.is_parted:
            return ""
        values = [file.partition[place] for place in range(self._by is not None, len(file.partition))]
        return self._parted[file.spec_id].text(values)

    def _data_file(self, key: str, line: _Line) -> DataFile:
        file, table = line.file, self.table
        low, high = time_bounds_of(file, table.metadata) if table is not None else (None, None)
        return DataFile(
            name=self._name(key, file),
            rows=file.record_count,
            size_bytes=file.file_size_in_bytes,
            min_time=low,
            max_time=high,
            part=self._part(file),
        )

    def _name(self, key: str, file: IcebergFile) -> str:
        if self.table is None:
            return file.file_path
        path = path_in_table(self.table, file.file_path)
        folder, _, name = path.rpartition("/")
        return name if folder == self._folder_of(key) else path


def _commits_of(snapshot: Snapshot) -> list[tuple[str, Commit]]:
    """What a snapshot says that it did, by partition; before that, what it says of the time before a conversion."""
    said, at = _said(snapshot), _time_of(snapshot)
    done = json.loads(said.get(PARTITIONS, "{}"))
    kind, run_id = said.get(KIND, ""), said.get(RUN, "")
    past = json.loads(said.get(PAST, "{}")).items()
    return [
        *((key, msgspec.convert(line, Commit)) for key, lines in past for line in lines),
        *((key, Commit(kind=kind, at=at, run_id=run_id, **each)) for key, each in done.items()),
    ]


def _said(snapshot: Snapshot | None) -> Mapping[str, str]:
    summary = snapshot.summary if snapshot is not None else None
    return summary.additional_properties if summary is not None else {}


def _time_of(snapshot: Snapshot) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=snapshot.timestamp_ms)
