"""Where the parts of a feed lie that is kept as an Iceberg table: rows below the table's location, the rest as ever."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import pyarrow as pa
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io.pyarrow import pyarrow_to_schema
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.refs import MAIN_BRANCH, SnapshotRefType
from pyiceberg.table.snapshots import ancestors_of
from pyiceberg.table.update import AssertRefSnapshotId, RemoveSnapshotsUpdate

from datalake_assets.core.manifest import Manifest
from datalake_assets.errors import CommitConflict, ConfigError, TransientStoreError
from datalake_assets.lake.commit import Change, Loaded, PartitionLog
from datalake_assets.lake.iceberg.catalog_commits import check_format, commit_updates, delete_quietly
from datalake_assets.lake.iceberg.column_defaults import defaulted
from datalake_assets.lake.iceberg.commit_records import leaving
from datalake_assets.lake.iceberg.iceberg_catalogs import (
    chooses_location,
    create_table,
    drop_table,
    load_table,
    location_of,
    talking,
)
from datalake_assets.lake.iceberg.iceberg_commits import commit_together
from datalake_assets.lake.iceberg.iceberg_planning import why_too_new
from datalake_assets.lake.iceberg.iceberg_schemas import Parted, fresh_ids, is_storable, partition_spec, with_field_ids
from datalake_assets.lake.iceberg.iceberg_views import TableView, data_path, path_in_table
from datalake_assets.lake.iceberg.manifests import Manifests
from datalake_assets.lake.iceberg.snapshot_files import may_be_misnamed
from datalake_assets.lake.layout import FeedFolder, folder_store
from datalake_assets.lake.store.base import Store
from datalake_assets.parquet.keys import FIELD_ID

if TYPE_CHECKING:
    import pyarrow.dataset as ds

__all__ = ["IcebergFolder"]

#: Folder of the data files below a table's location, as Iceberg's own writers have it.
DATA = "data"
#: The readers of each thread, since what they keep is changed without a lock.
_readers = threading.local()
#: Attempts at adding columns; each lost one means that another writer got there first.
ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class IcebergFolder(FeedFolder):
    """One feed's corner of a lake, whose rows are an Iceberg table; one commit takes in all partitions.

    Attributes:
        cell: What is known of the table by now.
    """

    cell: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def commits_at_once(self) -> bool:
        """Implements `FeedFolder`: a snapshot has all."""
        return True

    @property
    def commits(self) -> str:
        """Folder of what is known of commits under way."""
        return f"{self.control}/commits"

    @property
    def data_store(self) -> Store:
        """Implements `FeedFolder`: a catalog may keep its tables elsewhere."""
        return self._place()[0]

    @property
    def data_root(self) -> str:
        """Implements `FeedFolder`."""
        return f"{self._place()[1]}/{DATA}"

    def data_folder(self, key: str) -> str:
        """Implements `FeedFolder`."""
        return f"{self._place()[1]}/{self._below(key)}"

    def file_key(self, key: str, name: str) -> str:
        """Implements `FeedFolder`."""
        return f"{self._place()[1]}/{data_path(name, self._below(key))}"

    def path_below(self, key: str) -> str:
        """The path below the table's location of a file, by its key in the data store."""
        return key.removeprefix(f"{self._place()[1]}/")

    def uri_of(self, key: str, table: Table) -> str:
        """The URI of a file, by its key in the data store."""
        return f"{table.location().rstrip('/')}/{self.path_below(key)}"

    def log(self, key: str) -> PartitionLog:
        """Implements `FeedFolder`."""
        return _IcebergLog(self, key)

    def partition_keys(self) -> tuple[str, ...]:
        """Implements `FeedFolder`."""
        return self.view().partitions()

    def why_final(self, key: str) -> str:
        """Implements `FeedFolder`: a merge is a snapshot on the newest, and what is not of that stays as it is."""
        table = self.seen().table
        if table is not None and (reason := why_too_new(table.metadata)):
            return reason
        if table is not None and (name := defaulted(table.schema().as_struct())):
            return f"may have files without column {name!r}, to which another engine gave a default for their rows"
        if self.by is not None or self.seen().is_read_from_head(key):
            return ""
        return "is of a version that is not the newest"

    def check_names(self, files: ds.FileSystemDataset) -> None:
        """Implements `FeedFolder`: Iceberg knows columns by number, and other engines rename them."""
        view = self.cell.get("looked") or self.view()
        if view.table is None or not may_be_misnamed(view.table.metadata):
            return
        schema = view.table.schema()
        for fragment in files.get_fragments():
            for name, number in _numbered(fragment.physical_schema):
                now = schema.find_column_name(number)
                if name != now:
                    raise ConfigError(
                        f"the Iceberg table of feed {self.feed.name!r} has {f'{now!r} for' if now else 'no'} column"
                        f" {name!r} of {fragment.path} by now: another engine renamed or dropped it; give it its name"
                        " again, or read the table with that engine"
                    )

    def probe(self) -> None:
        """Implements `FeedFolder`: what decides is the catalog, and the lake's lists of commits under way."""
        self.store.probe()

    def pinned(self) -> IcebergFolder:
        """Implements `FeedFolder`."""
        view = self.view()  # first, since it brings the reader
        return replace(self, cell={**self.cell, "view": view})

    def view(self) -> TableView:
        """The table as it is now."""
        found = self.cell["looked"] = self.view_of(load_table(self.store, self.feed))
        return found

    def seen(self) -> TableView:
        """The table as it was when this write began; as it is now, if none has."""
        view: TableView = self.cell.get("view") or self.view()
        return view

    def view_of(self, table: Table | None) -> TableView:
        """A table as it was loaded."""
        return TableView(table, self.by, self._below, None if table is None else self.reader(table))

    def reader(self, table: Table) -> Manifests:
        """Reads the table's manifests; each one once, by whatever instance of this thread."""
        known: dict[str, Any] = self.cell
        if not chooses_location(self.store):  # else access to the files may be lent, and end
            by_store: weakref.WeakKeyDictionary[Store, dict[str, Any]]
            by_store = _readers.__dict__.setdefault("by_store", weakref.WeakKeyDictionary())
            tables = by_store.setdefault(self.store, {})
            known = tables.setdefault(str(table.metadata.table_uuid), {})
        reader: Manifests = known.setdefault("reader", Manifests(table.io))
        return reader

    def commit(
        self,
        changes: Mapping[str, Change],
        *,
        bases: Mapping[str, Loaded] | None = None,  # noqa: ARG002  the catalog says what they are by now
    ) -> Iterator[tuple[str, Loaded]]:
        """Implements `FeedFolder`: all changes, or none."""
        if not changes:
            return
        after = commit_together(self, changes)
        for key in changes:
            yield key, Loaded(None, after.manifest(key))

    def delete_all(self) -> int:
        """Implements `FeedFolder`."""
        deleted = self.delete_form()
        return deleted + FeedFolder.delete_all(self)

    def has_form(self) -> bool:
        """Implements `FeedFolder`."""
        store, root = self._place()
        is_own = store is self.store
        return load_table(self.store, self.feed) is not None or (
            is_own and next(iter(store.list(root)), None) is not None
        )

    def delete_form(self) -> int:
        """Implements `FeedFolder`: the catalog forgets the table first, so that nobody reads half of it."""
        table = load_table(self.store, self.feed)
        store, root = self._place()
        drop_table(self.store, self.feed)
        self.cell.clear()
        keys = [info.key for info in store.list(root)] if table is not None or store is self.store else []
        store.delete(keys)
        return len(keys)

    def can_hold(self, kind: pa.DataType) -> bool:
        """Implements `FeedFolder`."""
        return is_storable(kind)

    def part_of(self) -> Callable[[pa.RecordBatch], pa.DictionaryArray] | None:
        """Implements `FeedFolder`."""
        if not self.feed.format.parts:
            return None
        table = self.seen().table
        if table is None:
            raise AssertionError
        return Parted(table.schema(), table.spec(), is_by_time=self.by is not None).of_rows

    def prepared(self, schema: pa.Schema, *, time_column: str | None) -> pa.Schema:
        """Implements `FeedFolder`: the table is there and has these columns; files get their ids."""
        for attempt in range(ATTEMPTS):
            table = load_table(self.store, self.feed) if attempt else self.seen().table
            if table is None:
                table = self._create(schema, time_column)
                self.cell["view"] = self.view_of(table)
            check_format(table)
            self._check_spec(table, time_column)
            new = [column for column in schema if column.name not in table.schema().column_names]
            if not new:
                return with_field_ids(schema, table.schema())
            former = {name for each in table.schemas().values() for name in each.column_names}
            if lost := [column.name for column in new if column.name in former]:
                raise ConfigError(
                    f"the Iceberg table of feed {self.feed.name!r} has no column {lost[0]!r} any more:"
                    " another engine renamed or dropped it; give it its name again"
                )
            try:
                with talking(self.store), table.update_schema() as update:
                    update.union_by_name(pa.schema([column.with_metadata(None) for column in new]))
                self.cell["view"] = self.view_of(table)
            except CommitFailedException:
                continue
        raise TransientStoreError(self.feed.path, "other writers kept changing the Iceberg table's columns")

    def expire_versions(self, view: TableView) -> TableView:
        """Lets go of the snapshots of versions that no tag keeps any more, and deletes the files that only they had."""
        table, kept = view.table, view.versions
        if table is None or not kept:
            return view
        newest = kept[max(kept)].sequence_number or 0
        refs = table.metadata.refs  # the tags of versions, and whatever others keep
        stays = {each.snapshot_id for each in refs.values()} | {
            each.snapshot_id
            for ref in refs.values()
            for each in ancestors_of(table.metadata.snapshot_by_id(ref.snapshot_id), table.metadata)
            if ref.snapshot_ref_type is SnapshotRefType.BRANCH and ref is not refs.get(MAIN_BRANCH)
        }
        gone = [
            each for each in table.snapshots() if each.snapshot_id not in stays and (each.sequence_number or 0) < newest
        ]
        if not gone:
            return view
        only_there = view.paths_of(gone) - view.paths_of(each for each in table.snapshots() if each not in gone)
        names = [path_in_table(table, uri) for uri in sorted(only_there)]
        rows = [f"{self._place()[1]}/{name}" for name in names if name.startswith(f"{DATA}/")]
        updates = tuple(RemoveSnapshotsUpdate(snapshot_ids=[each.snapshot_id]) for each in gone)
        numbers = {each.snapshot_id for each in gone}
        unmoved = tuple(AssertRefSnapshotId(ref=name, snapshot_id=ref.snapshot_id) for name, ref in refs.items())

        def is_there() -> bool:
            return numbers.isdisjoint(each.snapshot_id for each in table.snapshots())

        try:
            with leaving(self, rows):
                with talking(self.store):
                    commit_updates(table, updates, unmoved, is_there=is_there)
                delete_quietly(table.io, sorted(only_there))
        except CommitConflict:  # the next one removed does it; a repair forgets the list
            return self.view()
        return self.view_of(table)

    def _below(self, key: str) -> str:
        """Folder of a partition's own files, below the table's location."""
        return f"{DATA}/{self.partition_path(key)}".rstrip("/")

    def _place(self) -> tuple[Store, str]:
        """The store that the table lies in, and the key of its location there."""
        if "place" not in self.cell:
            beside = not self.store.catalog.uri
            table = None if beside else load_table(self.store, self.feed)
            location = location_of(self.store, self.feed) if table is None else table.location()
            place = self._located(location)
            if table is None and not beside:
                return place  # where it will be, the catalog says once it is there
            self.cell["place"] = place
        known: tuple[Store, str] = self.cell["place"]
        return known

    def _located(self, location: str) -> tuple[Store, str]:
        parts = urlsplit(location)
        plain = location if parts.scheme not in {"", "file"} else parts.path
        own = f"{self.store.uri.rstrip('/')}/"
        if plain.startswith(own):
            return self.store, plain.removeprefix(own).rstrip("/")
        if parts.scheme in {"s3", "s3a", "s3n"}:
            return folder_store(self.store, f"s3://{parts.netloc}"), parts.path.strip("/")
        if parts.scheme not in {"", "file"}:
            raise ConfigError(f"the Iceberg table of feed {self.feed.name!r} lies at {location}: neither local nor S3")
        above, _, name = plain.rstrip("/").rpartition("/")
        return folder_store(self.store, above or "/"), name

    def _check_spec(self, table: Table, time_column: str | None) -> None:
        wanted = partition_spec(table.schema(), self.by, time_column, self.feed.format.parts)
        if _fields_of(table.spec()) != _fields_of(wanted):
            raise ConfigError(
                f"the Iceberg table of feed {self.feed.name!r} is partitioned by {_spec_text(table.spec())}, not by"
                f" {_spec_text(wanted)}: another engine changed it, or the feed's time column or parts are others now"
            )

    def _create(self, schema: pa.Schema, time_column: str | None) -> Table:
        own: Schema = pyarrow_to_schema(fresh_ids(schema))
        spec = partition_spec(own, self.by, time_column, self.feed.format.parts)
        written = self.feed.format
        properties = {
            "format-version": "2",
            # a commit that is tried again on another base would double rows: ours are planned anew (ADR 022)
            "commit.retry.num-retries": "0",
            "write.parquet.compression-codec": written.compression,
            "write.target-file-size-bytes": str(written.target_file_size_bytes),
            "write.metadata.delete-after-commit.enabled": "true",
            "write.metadata.previous-versions-max": "100",
        }
        return create_table(self.store, self.feed, own, spec=spec, properties=properties)


def _numbered(fields: Iterable[pa.Field], above: str = "") -> Iterator[tuple[str, int]]:
    """Full names and numbers of a file's columns, and of the fields in them."""
    for each in fields:
        name, number = f"{above}{each.name}", (each.metadata or {}).get(FIELD_ID)
        if number is not None:
            yield name, int(number)
        if pa.types.is_struct(each.type):
            yield from _numbered(each.type, f"{name}.")
        elif pa.types.is_list(each.type) or pa.types.is_large_list(each.type):
            yield from _numbered([each.type.value_field.with_name("element")], f"{name}.")
        elif pa.types.is_map(each.type):
            yield from _numbered([each.type.key_field, each.type.item_field], f"{name}.")


def _fields_of(spec: PartitionSpec) -> list[tuple[int, str]]:
    return [(each.source_id, str(each.transform)) for each in spec.fields]


def _spec_text(spec: PartitionSpec) -> str:
    return ", ".join(f"{each.name} ({each.transform})" for each in spec.fields) or "nothing"


class _IcebergLog(PartitionLog):
    """A partition of an Iceberg table, as the state machine of a partition sees it; the catalog is its truth."""

    def __init__(self, folder: IcebergFolder, key: str) -> None:
        super().__init__(
            folder.store,
            f"{folder.control}/commits",
            folder.data_folder(key),
            folder.new_id,
            data_store=folder.data_store,
        )
        self._folder, self._key = folder, key

    def key_of(self, name: str) -> str:
        """Implements `PartitionLog`."""
        return self._folder.file_key(self._key, name)

    def load(self) -> Loaded:
        """Implements `PartitionLog`."""
        return Loaded(None, self._folder.seen().manifest(self._key))

    def settle(self, loaded: Loaded) -> Loaded:
        """Implements `PartitionLog`: nothing is to settle in a snapshot; what can't be written is refused."""
        if (table := self._folder.seen().table) is not None:
            check_format(table)
        return loaded

    def commit(self, change: Change, *, base: Loaded | None = None) -> tuple[Loaded, bool]:  # noqa: ARG002
        """Implements `PartitionLog`."""
        planned: list[bool] = []

        def plan(on: Manifest) -> Any:
            found = change.plan(on)
            planned[:] = [found is not None]
            return found

        ((_, loaded),) = self._folder.commit({self._key: replace(change, plan=plan)})
        return loaded, planned[-1:] == [True]

    def reconcile(self, *_: Any, **__: Any) -> NoReturn:
        """Never: nobody else writes it unseen."""
        raise NotImplementedError
