"""Whose an adopted Iceberg table is to keep in order: a property of the table says so, and every lake respects it.

A table in a catalog has no folder that is surely its own, so that its owner's marker is one of its properties,
``datalake.adopted-by``. Two lakes that compacted one table could lose no row, since each commit is a compare-and-swap
on the newest snapshot; they would undo each other's work, night after night. So a copy of a lake need not be told from
the lake itself, as it must be for folders (ADR 025). A table without its catalog is only looked at, and has no owner.

A catalog compares no properties: of two lakes that set one at once, the last would win, and the first believe that it
had. Snapshots are compared, so that a table is taken with an empty one, on top of the one that was seen without owner.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

from pyiceberg.exceptions import ValidationError
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update import RemovePropertiesUpdate

from datalake_assets.errors import CommitConflict, ConfigError, CorruptLake, FolderTaken, LakeError, TransientStoreError
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import IcebergTableSource
from datalake_assets.lake.adopted.owners import lake_id
from datalake_assets.lake.iceberg.catalog_commits import commit_updates
from datalake_assets.lake.iceberg.iceberg_catalogs import OWNER, load_others_table, metadata_table, talking
from datalake_assets.lake.iceberg.iceberg_planning import why_too_new
from datalake_assets.lake.iceberg.transactions import TableChange, commit_change
from datalake_assets.lake.layout import folder_store, parse_address
from datalake_assets.lake.store.base import Store
from datalake_assets.parquet.failed_requests import failed_request

__all__ = ["check_owner", "load_adopted", "release_table", "source_of", "take_table"]

#: The table property that says which lake and which feed keep it in order.
ADOPTED_BY = "datalake.adopted-by"
#: Times that it is set on a table that others are changing.
ATTEMPTS = 10
#: ``00012-<uuid>.metadata.json`` of catalogs, ``v12.metadata.json`` of Hadoop tables; either may be packed.
_METADATA = re.compile(r"(?:v(\d+)|(\d+)-[^/]+)(?:\.gz)?\.metadata\.json(?:\.gz)?")


def source_of(feed: Feed) -> IcebergTableSource:
    """The source of an adopted Iceberg table's feed."""
    if not isinstance(feed.source, IcebergTableSource):
        raise ConfigError(f"feed {feed.name!r} is {feed.written_by}, not an adopted Iceberg table")
    return feed.source


def load_adopted(store: Store, source: IcebergTableSource) -> Table:
    """The table as it is now: as its catalog has it, or by its newest metadata.

    Raises:
        ConfigError: There is no such table.
        LakeError: The catalog, or the metadata, cannot be read.
    """
    if source.table:
        return load_others_table(store, source)
    uri = newest_metadata(store, source.uri)
    try:
        return metadata_table(store, f"file://{uri}" if "://" not in uri else uri)
    except (OSError, ValueError, KeyError, ValidationError) as error:
        if (failure := failed_request(error, uri)) is not None:
            raise failure from error
        raise CorruptLake(uri, f"it is not the metadata of an Iceberg table: {_line(error)}") from error


def newest_metadata(store: Store, uri: str) -> str:
    """The newest metadata file of a table, by its folder; a file that is named itself is it."""
    if uri.endswith((".metadata.json", ".metadata.json.gz")):
        return uri
    address = parse_address(uri)
    found = []
    for info in folder_store(store, address.root).list(f"{address.name}/metadata"):
        above, _, file = info.key.rpartition("/")
        name = _METADATA.fullmatch(file)
        if name is not None and above == f"{address.name}/metadata":
            found.append((int(name[1] or name[2]), info.modified_at, info.key))
    if not found:
        raise ConfigError(f"{uri} is no Iceberg table: there is no metadata file in {uri}/metadata")
    # a commit that lost leaves a file with the winner's number, and none is written on it
    return f"{address.root.rstrip('/')}/{max(found)[2]}"


def take_table(lake: Store, feed: Feed) -> bool:
    """Makes a table this lake's and this feed's; again is no change. Returns whether it was taken just now.

    Raises:
        FolderTaken: It is another's.
        LakeError: The catalog failed, or refuses.
    """
    source = source_of(feed)
    table = load_adopted(lake, source)
    _refuse_feeds(table, source)
    if _is_only_looked_at(table, source):
        return False
    mine, taken = json.dumps({"lake_id": lake_id(lake), "lake": lake.uri, "feed": feed.name}), False
    for _ in range(ATTEMPTS):
        owner = _owner(table)
        _check(lake, feed, owner)
        if owner is not None:
            return taken
        with contextlib.suppress(CommitConflict), talking(lake, where=source.where):
            commit_change(table, TableChange(Operation.REPLACE, set_properties={ADOPTED_BY: mine}))
            taken = True
        table = load_adopted(lake, source)
    raise TransientStoreError(source.where, "other writers kept changing the table's properties")


def _is_only_looked_at(table: Table, source: IcebergTableSource) -> bool:
    """Whether nothing of ours changes it: what nobody keeps in order has no owner, and cannot be given one."""
    return not source.table or bool(why_too_new(table.metadata))


def check_owner(lake: Store, feed: Feed, table: Table) -> None:
    """Raises `FolderTaken` unless a table is this lake's and this feed's, or nothing of ours changes it."""
    if _is_only_looked_at(table, source_of(feed)):
        return
    owner = _owner(table)
    if owner is None:
        source = source_of(feed)
        at = f" --catalog {source.catalog}" if source.catalog else ""
        cure = f"adopt it again with 'datalake adopt {source.where}{at} --name {feed.name}'"
        raise FolderTaken(source.where, f"its property {ADOPTED_BY} is gone", cure=cure)
    _check(lake, feed, owner)


def release_table(lake: Store, feed: Feed) -> None:
    """Gives a table free if it is this lake's and this feed's; idempotent."""
    source = source_of(feed)
    if not source.table:
        return
    for _ in range(ATTEMPTS):
        table = load_adopted(lake, source)
        owner = _owner(table)
        if owner is None or (owner.get("lake_id"), owner.get("feed")) != (lake_id(lake), feed.name):
            return
        with contextlib.suppress(CommitConflict), talking(lake, where=source.where):
            update = RemovePropertiesUpdate(removals=[ADOPTED_BY])
            commit_updates(table, [update], (), is_there=lambda: ADOPTED_BY not in table.properties)  # noqa: B023  called at once


def _refuse_feeds(table: Table, source: IcebergTableSource) -> None:
    """A table that is a feed of a lake has an owner already, which compacts it."""
    if (lake := table.properties.get(OWNER)) is not None:
        raise ConfigError(f"{source.where} cannot be adopted: it is a feed of the lake {lake}, which keeps it in order")


def _owner(table: Table) -> Mapping[str, Any] | None:
    body = table.properties.get(ADOPTED_BY)
    if body is None:
        return None
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        name = ".".join(table.name())
        raise LakeError(name, f"its property {ADOPTED_BY} is no owner", cure="look at it, then remove the property")
    return found


def _check(lake: Store, feed: Feed, owner: Mapping[str, Any] | None) -> None:
    if owner is None or (owner.get("lake_id"), owner.get("feed")) == (lake_id(lake), feed.name):
        return
    whose = f"feed {owner.get('feed')!r} of the lake {owner.get('lake')}"
    cure = f"archive that feed first; if it is no more, remove the table's property {ADOPTED_BY}"
    raise FolderTaken(source_of(feed).where, f"it is kept in order by {whose}", cure=cure)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
