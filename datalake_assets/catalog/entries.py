"""What a catalog is to say of each feed, read from the lake: columns, partitions and where they lie.

An engine that asks a catalog lists folders itself. So only feeds are entered by their folders which hold rows and
nothing else: those in Hive layout, and adopted folders. Of a table its current version is entered, a folder of its own,
so that a new version is one change of one address. Of Iceberg and Delta tables logs of their own say which files count,
and a folder has more: they are entered as what they are, for engines that read the log, or by the list of their files.
So are, for DuckDB, adopted folders in which a pattern finds other files than the lake reads: links, files whose columns
do not fit, names that end otherwise. Engines of Hadoop's have no patterns, and pass over hidden files by themselves.

The columns of paths (``year``, ``month``, …) are text, with the digits that the folders have: Hive's metastore would
keep ``month=01`` of a number as ``1``, and enter the folder once more as ``01`` when somebody lets it look for
partitions (``MSCK REPAIR TABLE``), which doubles its rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.types as pt

from datalake_assets.core.partitions import hive_pairs, partition_columns, partition_path
from datalake_assets.core.schema import spellings
from datalake_assets.errors import DatalakeError, unforeseen_text
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.layout import address_of, folder_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import LakeTable, Logged, TellsItsLog
from datalake_assets.lake.tables import open_table

__all__ = ["FOLDER_COLUMN", "Column", "Entry", "NotEntered", "as_uri", "entries_of", "entry_of", "hive_type"]

logger = logging.getLogger(__name__)

#: The column of an adopted folder whose folders' names say nothing of the rows: the folder's path.
FOLDER_COLUMN = "folder"
#: Hive's widest decimal (Hive LanguageManual, "Decimals").
_MAX_DIGITS = 38
#: What DuckDB takes for a pattern rather than for a name.
_PATTERN = frozenset("*?[")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_]+")
_HIVE_TYPES: Mapping[pa.DataType, str] = {
    pa.bool_(): "boolean",
    pa.int8(): "tinyint",
    pa.int16(): "smallint",
    pa.int32(): "int",
    pa.int64(): "bigint",
    pa.uint8(): "smallint",  # the next wider type: Hive has no unsigned ones
    pa.uint16(): "int",
    pa.uint32(): "bigint",
    pa.uint64(): "decimal(20,0)",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.date32(): "date",
    pa.date64(): "date",
    pa.string(): "string",
    pa.large_string(): "string",
    pa.string_view(): "string",
    pa.binary(): "binary",
    pa.large_binary(): "binary",
    pa.binary_view(): "binary",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the data files.

    Attributes:
        name: Its name in the lake.
        kind: Its type in Arrow.
        hive_type: Its type in Hive's words, which Glue, Athena and Spark share; empty if Hive has none.
        comment: What people should know of it; empty for nothing.
    """

    name: str
    kind: pa.DataType
    hive_type: str
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A feed as catalogs have it.

    Attributes:
        feed: The feed.
        lake: The lake's address: who owns what is entered.
        location: Address of the data folder; of a table, of its current version.
        columns: The columns of the files, without those of paths.
        partition_columns: The columns of paths, in their order.
        partitions: Address of each partition's folder, by the values of these columns as the path has them.
        version: A table's current version; empty for others.
        listed: All columns that `LakeTable.scan` gives, in its order.
        logged: What the log of an Iceberg or Delta table says; None for folders.
        time_column: The column that the columns of paths follow from, where no path says them.
        named: The files of a local adopted folder, where `pattern` finds others than these.
    """

    feed: Feed
    lake: str
    location: str
    columns: tuple[Column, ...]
    partition_columns: tuple[str, ...] = ()
    partitions: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    version: str = ""
    listed: tuple[str, ...] = ()
    logged: Logged | None = None
    time_column: str | None = None
    named: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name in the catalog, which is the feed's."""
        return self.feed.name

    @property
    def hive_columns(self) -> tuple[Column, ...]:
        """The columns that Hive can have: names that differ in case alone are one there, and none of them is read."""
        names = [each.name.lower() for each in self.columns] + [each.lower() for each in self.partition_columns]
        return tuple(each for each in self.columns if each.hive_type and names.count(each.name.lower()) == 1)

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Names of the columns that Hive cannot have."""
        known = {each.name for each in self.hive_columns}
        return tuple(each.name for each in self.columns if each.name not in known)

    @property
    def pattern(self) -> str:
        """Which files are a folder's, below it, in DuckDB's way: in an adopted one, none that is hidden."""
        if not self.feed.is_adopted:
            return f"{'' if self.version or not self.partition_columns else '**/'}*.parquet"
        if FOLDER_COLUMN in self.partition_columns:
            return "**/[!_.]*.parquet"
        above = ("*" if _PATTERN & set(name) else f"{name}=*" for name in self.partition_columns)
        return "/".join([*above, "[!_.]*.parquet"])

    @property
    def digest(self) -> str:
        """Changes whenever a catalog has to be changed, partitions aside."""
        columns = [(each.name, str(each.kind), each.comment) for each in self.columns]
        told = [self.location, columns, self.partition_columns, self.listed, self.feed.description, self.pattern]
        told += self.named
        if self.logged is not None:
            told += [self.logged.metadata, self.logged.version, self.logged.files]
        return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class NotEntered:
    """A feed that catalogs cannot have, and why."""

    feed: Feed
    reason: str


def entries_of(store: Store, feeds: Iterable[Feed]) -> tuple[list[Entry], list[NotEntered]]:
    """What catalogs are to say of feeds; one that cannot be read stops no other.

    Args:
        store: The lake.
        feeds: The feeds; each costs a listing of its manifests, and one of them.
    """
    entries: list[Entry] = []
    left_out: list[NotEntered] = []
    for feed in feeds:
        try:
            found = entry_of(store, feed)
        except DatalakeError as error:
            found = NotEntered(feed, str(error))
        except Exception as error:
            logger.exception("what catalogs are to say of %s", feed.path)
            found = NotEntered(feed, unforeseen_text(error))
        if isinstance(found, Entry):
            entries.append(found)
        else:
            left_out.append(found)
    return entries, left_out


def entry_of(store: Store, feed: Feed) -> Entry | NotEntered:
    """What catalogs are to say of a feed, by its manifests as they are now.

    Raises:
        DatalakeError: It cannot be read.
    """
    table = open_table(store, feed)
    if isinstance(table, TellsItsLog):
        return _logged_entry(store, table, table.logged())
    keys = table.partitions() if feed.kind is not FeedKind.TABLE else table.snapshot().keys
    if not keys:
        return NotEntered(feed, "it has no data yet")
    schema = table.snapshot(keys[-1:]).dataset().schema
    root = address_of(feed).uri if feed.is_adopted else f"{store.uri}/{feed.data_path}"
    paths = [partition_path(feed, key) for key in keys]
    if feed.kind is FeedKind.TABLE:
        return _entry(store, table, schema, f"{root}/{paths[-1]}", paths[-1:], version=keys[-1])
    if feed.is_adopted and any(_holds(one, other) for one, other in _neighbours(paths)):
        return NotEntered(feed, "its files lie in folders above others of its files, which some engines read twice")
    entry = _entry(store, table, schema, root, paths)
    is_asked = feed.is_adopted and "://" not in store.uri  # else no DuckDB file has it
    return replace(entry, named=_named(store, table, entry)) if is_asked else entry


def _named(store: Store, table: LakeTable, entry: Entry) -> tuple[str, ...]:
    """The files that the lake reads of an adopted folder; none if the entry's pattern finds these, and none too many.

    Files that came since the lake looked last are none too many: it will read them, too.
    """
    address = address_of(entry.feed)
    theirs, wanted, below = folder_store(store, address.root), _matches(entry), len(f"{address.name}/")
    there = list(theirs.list(address.name, links=True))
    found = {each.key for each in there if wanted(each.key[below:])}
    dataset = table.snapshot().dataset()
    has_others = any(each.is_link for each in there) or not found.isdisjoint(getattr(dataset, "left_out", ()))
    is_plain = not has_others and {theirs.path(key) for key in found}.issuperset(dataset.files)
    return () if is_plain else tuple(sorted(dataset.files))


def _matches(entry: Entry) -> Callable[[str], bool]:
    """Whether a path below an adopted folder is one that its pattern finds."""
    parts = {"**": "(?:.*/)?", "[!_.]*.parquet": r"[^/_.][^/]*\.parquet"}
    texts = [parts.get(each, f"{re.escape(each.rstrip('*'))}[^/]*/") for each in entry.pattern.split("/")]
    return lambda path: re.fullmatch("".join(texts), path, re.DOTALL) is not None


def _logged_entry(store: Store, table: LakeTable, logged: Logged | None) -> Entry | NotEntered:
    feed = table.feed
    if logged is None or not logged.files:
        return NotEntered(feed, "it has no data yet")
    is_misread = (
        feed.is_exported and logged.why_not_plain
    )  # its files may be none that are read by names: then of no file
    schema = table.snapshot([] if is_misread else None).dataset().schema
    of_paths = set(partition_columns(feed)) if feed.is_exported else set()
    columns = tuple(
        Column(each.name, each.type, hive_type(each.type) or "", _comment(feed, each.name))
        for each in schema
        if each.name not in of_paths
    )
    version = table.snapshot().keys[-1] if feed.kind is FeedKind.TABLE else ""
    return Entry(
        feed,
        store.uri,
        logged.location,
        columns,
        version=version,
        listed=tuple(schema.names),
        logged=logged,
        time_column=feed.row_time if of_paths else None,
    )


def _entry(
    store: Store, table: LakeTable, schema: pa.Schema, root: str, paths: Sequence[str], *, version: str = ""
) -> Entry:
    feed = table.feed
    named = {tuple(name for name, _ in hive_pairs(path)) for path in paths}
    of_paths = {name for names in named for name in names}
    others = {other for each in schema for other in spellings(each)}
    columns = [each for each in schema if each.name not in of_paths and each.name not in others]
    told = tuple(
        Column(each.name, each.type, hive_type(each.type) or "", _comment(feed, each.name)) for each in columns
    )
    listed = tuple(each.name for each in schema if each.name not in others)
    entry = Entry(feed, store.uri, root, told, version=version, listed=listed)
    if version or paths == [""]:
        return entry
    is_hive = len(named) == 1 and all(path.count("/") + 1 == len(hive_pairs(path)) for path in paths)
    names = next(iter(named)) if is_hive else (FOLDER_COLUMN,)
    folders = {
        tuple(unquote(value) for _, value in hive_pairs(path)) if is_hive else (path,): f"{root}/{path}"
        for path in paths
    }
    return Entry(feed, store.uri, root, told, names, folders, listed=listed)


def _comment(feed: Feed, name: str) -> str:
    note = feed.columns.get(name)
    return note.text if note is not None else ""


def _neighbours(paths: Sequence[str]) -> Iterable[tuple[str, str]]:
    ordered = sorted(f"{path}/" if path else "" for path in paths)
    return pairwise(ordered)


def _holds(one: str, other: str) -> bool:
    return other.startswith(one)


def as_uri(address: str) -> str:
    """The address of a folder as engines of Hadoop's want it, who decode nothing in it (Hadoop, ``Path(String)``)."""
    return address if "://" in address else f"file://{address}"


def hive_type(kind: pa.DataType) -> str | None:
    """A type in Hive's words; None if it has no type that holds all values (Hive LanguageManual, "Hive Data Types").

    Signed or not, an integer becomes the narrowest type that holds it.
    """
    if pt.is_dictionary(kind):
        return hive_type(kind.value_type)
    if pt.is_decimal(kind):
        return f"decimal({kind.precision},{kind.scale})" if kind.precision <= _MAX_DIGITS and kind.scale >= 0 else None
    if pt.is_timestamp(kind):
        return "timestamp"
    if pt.is_nested(kind):
        return _nested(kind)
    return "binary" if pt.is_fixed_size_binary(kind) else _HIVE_TYPES.get(kind)


def _nested(kind: pa.DataType) -> str | None:
    if pt.is_struct(kind):
        parts = [(each.name, hive_type(each.type)) for each in kind]
        if not parts or not all(part and _PLAIN_NAME.fullmatch(name) for name, part in parts):
            return None
        return f"struct<{','.join(f'{name}:{part}' for name, part in parts)}>"
    if pt.is_map(kind):
        key, item = hive_type(kind.key_type), hive_type(kind.item_type)
        return f"map<{key},{item}>" if key and item else None
    if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind):
        item = hive_type(kind.value_type)
        return f"array<{item}>" if item else None
    return None
