"""What the log of a Delta table says of it at one version, and the rows that it has then; nothing here changes it.

What ``deltalake`` cannot rewrite without loss it is not asked to. A table whose protocol has a feature that is not
known here to be indifferent to rewriting is read and reported, and refused by the feature's name. The library's own
Arrow dataset reads nulls from a table with column mapping, and says nothing. So such a table is read by its SQL engine,
which has both right, deletion vectors and column mapping.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import cached_property, partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from datalake_assets.core.compaction.cost import estimate_of
from datalake_assets.core.compaction.plan import (
    CompactionPlan,
    CompactionRules,
    LeftAlone,
    again_at,
    plan_compaction,
)
from datalake_assets.core.facts import FileChanges
from datalake_assets.core.files import DataFile
from datalake_assets.core.partitions import FOLDER_ITSELF
from datalake_assets.core.rules import identifier, literal
from datalake_assets.errors import ConfigError, CorruptLake, LakeError, ObjectNotFound
from datalake_assets.feed import Feed
from datalake_assets.lake.adopted.delta_rows import (
    FarValue,
    QueriedDataset,
    believed_columns,
    have_same_values,
    line_of,
    opened,
    told_rows,
)
from datalake_assets.lake.scan import BoundedDataset
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import Difference, Logged
from datalake_assets.parquet.adopted_footer import INT96_UNIT
from datalake_assets.parquet.decoding import far_time_column, open_parquet, tables

if TYPE_CHECKING:
    from deltalake.table import FilterConjunctionType

__all__ = ["COMMIT", "DeltaLook", "MergedFiles", "failure"]

#: Features of a protocol that rewriting files leaves as they were (Delta protocol, "Table Features"). Of every other
#: one, rows have something that the library does not carry over: ids, vectors, names of their own.
INDIFFERENT = frozenset(
    {"appendOnly", "invariants", "checkConstraints", "generatedColumns", "changeDataFeed", "timestampNtz"}
)
#: The newest protocol of a writer that names no features (Delta protocol, "Writer version requirements"); what its
#: later ones bring, a table has only if its properties say so.
UNNAMED_WRITER = 6
#: Entries of the log that are looked through for the newest write.
HISTORY = 100
#: Commits that are read one by one since the last look; beyond, partitions are told apart by their files.
COMMITS = 1000
#: What changes no rows, of the operations that a log names.
_UPKEEP = ("OPTIMIZE", "VACUUM", "SET ", "UNSET ", "ADD ", "DROP ", "CREATE TABLE", "REORG", "FSCK", "UPGRADE")
#: Footers that are read at once, of files of which the log does not say how many rows they have.
THREADS = 32
#: What a column has that no 64-bit nanoseconds hold.
_FAR = "before 1677 or after 2262, in 96 bits, which deltalake would change"
#: How Hive writes a null into a path.
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
#: What our commits carry in their ``commitInfo``.
COMMIT = "datalake.commit"


def _reason_of(protocol: Any, configuration: Mapping[str, str]) -> str:
    """Why the library is not asked to rewrite a table; empty if it can be."""
    if configuration.get("delta.columnMapping.mode", "none") != "none":
        return "it has column mapping, which deltalake does not write"
    if configuration.get("delta.enableDeletionVectors", "").lower() == "true":
        return "it has deletion vectors switched on, which deltalake does not write"
    features = {*(protocol.writer_features or ()), *(protocol.reader_features or ())} - INDIFFERENT
    if features:
        return f"its protocol has {', '.join(sorted(features))}, which deltalake does not carry over"
    if protocol.min_writer_version > UNNAMED_WRITER and protocol.writer_features is None:
        return f"its protocol is of writer version {protocol.min_writer_version}, which is not known here"
    if configuration.get("delta.enableRowTracking", "").lower() == "true":
        return "it has row tracking, which deltalake does not carry over"
    return ""


@dataclass(frozen=True, slots=True)
class MergedFiles:
    """What an optimize did, by the log: version, files that joined and left, their rows, where, what is wrong."""

    version: int = 0
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    rows: int = 0
    rows_removed: int = 0
    keys: frozenset[str] = frozenset()
    why_changed: str = ""


class DeltaLook:
    """A Delta table at one version; implements `TableLook`.

    Args:
        table: The table.
        store: The store of the folder that it lies in.
        name: Its own folder there.
        feed: The feed.
    """

    def __init__(self, table: DeltaTable, store: Store, name: str, feed: Feed) -> None:
        self.table, self._store, self._name, self._feed = table, store, name, feed
        metadata = table.metadata()
        self._id, self._columns = str(metadata.id), tuple(metadata.partition_columns)
        self._reason = _reason_of(table.protocol(), metadata.configuration)
        self._values: dict[str, tuple[object, ...]] = {}
        self._far: dict[str, str] = {}
        found: dict[str, list[DataFile]] = defaultdict(list)
        actions = pa.table(table.get_add_actions(flatten=True))
        self._believed, rows = believed_columns(self.schema, self._columns, actions), told_rows(actions, self._told())
        counted = self._all_counted([row["path"] for row in rows if row["num_records"] is None])
        for row in rows:
            values = tuple(row[f"partition.{column}"] for column in self._columns)
            key = _key(self._columns, values)
            self._values[key] = values
            found[key].append(self._data_file(row, counted))
        self._files = {key: tuple(files) for key, files in found.items()}

    def _told(self) -> list[str]:
        """What is asked of each file; the bounds of other columns may be many, and longer than its path."""
        own = [f"min.{self._feed.time_column}", f"max.{self._feed.time_column}"]
        own += [f"partition.{name}" for name in self._columns]
        return ["path", "num_records", "size_bytes", "modification_time", *own]

    def _data_file(self, row: Mapping[str, Any], counted: Mapping[str, int]) -> DataFile:
        column = self._feed.time_column
        stated = (row.get(f"{which}.{column}", row.get(f"partition.{column}")) for which in ("min", "max"))
        low, high = stated if column is not None else (None, None)
        return DataFile(
            name=row["path"],
            rows=counted[row["path"]] if row["num_records"] is None else row["num_records"],
            size_bytes=row["size_bytes"],
            min_time=_moment(low),
            max_time=_moment(high),
            written_at=datetime.fromtimestamp(row["modification_time"] / 1000, UTC),
        )

    def _all_counted(self, paths: Sequence[str]) -> Mapping[str, int]:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="footers") as pool:
            return dict(zip(paths, pool.map(self._counted, paths), strict=True))

    def _counted(self, path: str) -> int:
        """The rows of a file of which the log does not say how many; one that cannot be read has none for anybody."""
        try:
            return self._rows_in(path)
        except (pa.ArrowException, OSError, ValueError):
            return 0

    def _rows_in(self, path: str) -> int:
        with self._opened(path) as source:
            return int(open_parquet(source).metadata.num_rows)

    def _opened(self, path: str) -> AbstractContextManager[pa.NativeFile]:
        return opened(self._store, self._key_of(path))

    def _key_of(self, path: str) -> str:
        """A file's key in the store: the log has its path as a URI."""
        if "://" in path or path.startswith(("/", "file:")):
            raise LakeError(path, "the table names a file outside its folder", cure="look at it with Delta's own tools")
        return f"{self._name}/{unquote(path)}"

    @property
    def version(self) -> str:
        """Implements `TableLook`: with the table's id, since one that was made anew counts from 0."""
        return f"{self.table.version()} {self._id}"

    @cached_property
    def schema(self) -> pa.Schema:
        """Implements `TableLook`."""
        return pa.schema(self.table.schema().to_arrow())

    @property
    def why_not_compacted(self) -> str:
        """Implements `TableLook`."""
        if self._feed.compaction.sort_by:
            return "its feed's policy sorts rows, and deltalake keeps their order"
        return self._reason or _why_not_locked(self._store)

    def logged(self, location: str) -> Logged:
        """What engines need to read the table, whose folder has this address."""
        named = [(key, unquote(file.name)) for key, files in self._files.items() for file in files]
        elsewhere = [name for key, name in named if name.rpartition("/")[0] != ("" if key == FOLDER_ITSELF else key)]
        reason = "its files do not lie in folders of their partitions' values" if elsewhere else ""
        return Logged(
            format="delta",
            location=location.rstrip("/"),
            version=self.version,
            files=tuple(sorted(f"{location.rstrip('/')}/{name}" for _, name in named)),
            why_not_plain=self._reason or reason,
            hive_columns=self._columns,
        )

    def partitions(self) -> tuple[str, ...]:
        """Implements `TableLook`."""
        return tuple(sorted(self._files))

    def files(self, key: str) -> Sequence[DataFile]:
        """Implements `TableLook`."""
        return self._files.get(key, ())

    def digest(self, key: str) -> str:
        """Implements `TableLook`; a deletion vector of another version is part of it, as far as one can be told."""
        version = str(self.table.version()) if self._reason else ""
        names = sorted(file.name for file in self.files(key))
        return blake2b("\n".join([version, *names]).encode(), digest_size=8).hexdigest()

    def last_write(self, key: str) -> datetime | None:
        """Implements `TableLook`: of merged files the log has the time of the merge, and so no later one counts."""
        newest = max((file.written_at for file in self.files(key) if file.written_at is not None), default=None)
        if newest is None or self._newest_write is None:
            return newest
        return min(newest, self._newest_write)

    @cached_property
    def _newest_write(self) -> datetime | None:
        """When the table's rows were last changed, if the log still tells."""
        for entry in self.table.history(HISTORY):
            if not str(entry.get("operation", "")).startswith(_UPKEEP) and entry.get("timestamp") is not None:
                return datetime.fromtimestamp(entry["timestamp"] / 1000, UTC)
        return None

    def changes_since(self, version: str) -> Mapping[str, FileChanges] | None:
        """Implements `TableLook`: what commits did that they say changed data."""
        number, _, id_ = version.partition(" ")
        if id_ != self._id or not number.isdecimal() or not 0 <= self.table.version() - int(number) <= COMMITS:
            return None
        if not all(_is_plain(value) for values in self._values.values() for value in values):
            return None
        found: dict[str, FileChanges] = defaultdict(FileChanges)
        for each in range(int(number) + 1, self.table.version() + 1):
            actions = self._actions(each)
            if actions is None:
                return None
            for action in actions:
                self._count(action, found)
        return found

    def _actions(self, version: int) -> list[dict[str, Any]] | None:
        """What a commit did; None if the log does not tell any more."""
        try:
            body, _ = self._store.get(f"{self._name}/_delta_log/{version:020}.json")
        except ObjectNotFound:
            return None
        return [json.loads(line) for line in body.splitlines() if line.strip()]

    def commit_of(self, commit_id: str) -> MergedFiles | None:
        """What a commit of ours did that came after this look; None if there is none."""
        version = self.table.version()
        while (actions := self._actions(version := version + 1)) is not None:
            if not any((each.get("commitInfo") or {}).get(COMMIT) == commit_id for each in actions):
                continue
            added = [each["add"] for each in actions if "add" in each]
            removed = [each["remove"] for each in actions if "remove" in each]
            return MergedFiles(
                version=version,
                added=tuple(each["path"] for each in added),
                removed=tuple(each["path"] for each in removed),
                rows=sum(self._rows_in(each["path"]) for each in added),
                rows_removed=sum(self._rows_in(each["path"]) for each in removed),
                keys=frozenset(self._key_in_log(each) for each in (*added, *removed)),
                why_changed=self.why_too_far(each["path"] for each in removed),
            )
        return None

    def has_same_values(self, merged: MergedFiles) -> bool:
        """Whether the files that joined have the values of those that left; all of them are read.

        Raises:
            OSError: One cannot be read.
            pa.ArrowException: Likewise.
        """
        stated = pa.schema([each for each in self.schema if each.name not in self._columns])
        return have_same_values(merged.removed, merged.added, stated, self._opened)

    def _key_in_log(self, action: Mapping[str, Any]) -> str:
        values = action.get("partitionValues") or {}
        return _key(self._columns, tuple(values.get(column) or None for column in self._columns))

    def _count(self, action: Mapping[str, Any], found: dict[str, FileChanges]) -> None:
        for what in ("add", "remove"):
            each = action.get(what)
            if each is None or not each.get("dataChange", True):
                continue
            key = self._key_in_log(each)
            now = found[key]
            found[key] = FileChanges(now.added + (what == "add"), now.removed + (what == "remove"))

    def closes_at(self, key: str) -> datetime | None:
        """When no more rows are expected in a partition: the day after its date; None if it has none."""
        dates = [value for value in self._values.get(key, ()) if type(value) is date]
        if not dates or max(dates) >= date(9999, 12, 30):
            return None
        day = max(dates)
        return datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1) + self._feed.lateness

    def plan(
        self, key: str, rules: CompactionRules, *, now: datetime, excluded: Mapping[str, str] | None = None
    ) -> CompactionPlan:
        """Implements `TableLook`."""
        files = self.files(key)
        if reason := self._reason or self._why_unnamed(key):
            return _nothing(files, reason)
        last, closes_at = self.last_write(key), self.closes_at(key)
        closed = closes_at is not None and closes_at <= now
        whole = replace(rules, split_above_bytes=0)  # deltalake splits no file
        plan = plan_compaction(files, whole, now=now, closed=closed, last_commit=last, excluded=excluded)
        small = (file.name for file in files if file.size_bytes < whole.target_file_bytes)
        if plan.groups and (reason := self.why_too_far(small)):
            return _nothing(files, reason)
        usable = [file for file in files if file.name not in (excluded or {})]
        again = again_at(usable, whole, now=now, closes_at=closes_at, last_commit=last)
        youngest = max((file.written_at for file in files if file.written_at is not None), default=None)
        if not plan.groups or rules.force or youngest is None or now - youngest >= rules.min_file_age:
            return replace(plan, again_at=again)
        waits = "waits for younger files: deltalake merges all"
        return replace(_nothing(files, waits), again_at=youngest + rules.min_file_age)

    def why_too_far(self, paths: Iterable[str]) -> str:
        """Why the library must not read some files: it takes 96-bit times for nanoseconds, and changes far ones."""
        wanted = list(paths) if "timestamp" in str(self.schema) else []
        with ThreadPoolExecutor(THREADS, thread_name_prefix="footers") as pool:
            found = zip(wanted, pool.map(self._far_column, wanted), strict=True)
            return next((f"{path} has {column!r} {_FAR}" for path, column in found if column), "")

    def _far_column(self, path: str) -> str:
        """The column of a file, which never changes; of one that cannot be read, the library says that."""
        if path not in self._far:
            try:
                with self._opened(path) as source:
                    self._far[path] = far_time_column(open_parquet(source, int96_unit=INT96_UNIT))
            except (pa.ArrowException, OSError, ValueError):
                return ""
        return self._far[path]

    def _why_unnamed(self, key: str) -> str:
        values = self._values.get(key, ())
        if all(map(_is_plain, values)):
            return ""
        return "its partition cannot be named to deltalake: only texts, whole numbers and dates can"

    def filters(self, key: str) -> FilterConjunctionType | None:
        """How the library is told of a partition; None for all of a table without partitions."""
        pairs = zip(self._columns, self._values[key], strict=True)
        return [(column, "=", "" if value is None else str(value)) for column, value in pairs] or None

    def dataset(self, keys: Sequence[str], *, where: ds.Expression | None = None) -> ds.Dataset:  # noqa: ARG002
        """Implements `TableLook`."""
        if self._reason or any(type(value) is FarValue for values in self._values.values() for value in values):
            names = [file.name for key in keys for file in self.files(key)]
            return QueriedDataset.of(
                self.table,
                self.schema,
                self.paths(keys),
                where="true" if len(keys) == len(self._files) else self.where_sql(keys),
                refusal=partial(self.why_too_far, names),
            )
        wanted = {unquote(file.name) for key in keys for file in self.files(key)}
        try:
            read = ds.ParquetReadOptions(coerce_int96_timestamp_unit=INT96_UNIT)
            whole = self.table.to_pyarrow_dataset(parquet_read_options=read, schema=self._believed)
        except DeltaError as error:
            raise failure(self._feed, error) from error
        kept = [each for each in whole.get_fragments() if each.path in wanted]
        if len(kept) != len(wanted):
            raise CorruptLake(self._feed.source.where, "its files cannot be told apart by their names")
        return BoundedDataset(kept, self.schema, whole.format, whole.filesystem)

    def paths(self, keys: Sequence[str]) -> set[str]:
        """Implements `TableLook`; with the version, where a file may lose rows under its name."""
        version = {f"version {self.table.version()}"} if self._reason else set()
        return version | {file.name for key in keys for file in self.files(key)}

    def where_sql(self, keys: Sequence[str]) -> str:
        """What is true, in the library's SQL, of the rows of some partitions."""
        if reason := next(filter(None, map(self._why_unnamed, keys)), ""):
            raise ConfigError(f"{self._feed.source.where}: {reason}; ask for the whole table")
        parts = []
        for key in keys:
            pairs = zip(self._columns, self._values.get(key, ()), strict=True)
            terms = [f"{identifier(column)} {_is_sql(value)}" for column, value in pairs]
            parts.append(f"({' AND '.join(terms) or 'true'})")
        return " OR ".join(parts) or "false"

    def footers(self, key: str) -> Mapping[str, str]:
        """Implements `TableLook`."""
        found = {}
        for file in self.files(key):
            try:
                with self._opened(file.name) as source:
                    rows = open_parquet(source).metadata.num_rows
                if rows != file.rows:
                    found[file.name] = f"has {rows} rows, its log says {file.rows}"
            except FileNotFoundError:
                raise
            except (pa.ArrowException, OSError, ValueError) as error:
                found[file.name] = f"cannot be read: {line_of(error)}"
        return found

    def verify(self, keys: Sequence[str], *, deep: bool) -> Iterator[Difference]:
        """Implements `TableLook`."""
        for key in keys:
            for file in self.files(key):
                yield from self._compared(key, file, deep=deep)

    def _compared(self, key: str, file: DataFile, *, deep: bool) -> Iterator[Difference]:
        name = unquote(file.name)
        info = self._store.head(self._key_of(file.name))
        if info is None:
            yield Difference(key, "missing", name, f"the table's log names it, {file.size_bytes} bytes")
        elif info.size_bytes != file.size_bytes:
            yield Difference(key, "size", name, f"{info.size_bytes} bytes, the table's log says {file.size_bytes}")
        elif deep:
            try:
                with self._opened(file.name) as source:
                    rows = sum(
                        piece.num_rows for piece in tables(open_parquet(source, int96_unit=INT96_UNIT), source=source)
                    )
            except (pa.ArrowException, OSError, ValueError) as error:
                yield Difference(key, "rows", name, f"cannot be read: {line_of(error)}")
                return
            if rows != file.rows:
                yield Difference(key, "rows", name, f"{rows} rows, the table's log says {file.rows}")


def _nothing(files: Sequence[DataFile], reason: str) -> CompactionPlan:
    """A plan that leaves all files alone."""
    return CompactionPlan((), tuple(LeftAlone(file.name, reason) for file in files), estimate_of([], files=len(files)))


def _key(columns: Sequence[str], values: Sequence[object]) -> str:
    """A partition's path, as Hive has it."""
    pairs = zip(columns, values, strict=True)
    parts = (
        f"{quote(name, safe='')}={HIVE_NULL if value is None else quote(str(value), safe='')}" for name, value in pairs
    )
    return "/".join(parts) or FOLDER_ITSELF


def _is_plain(value: object) -> bool:
    """Whether a value of a partition is written in one way alone; times and truth values are not."""
    return value is None or type(value) in {str, int, date}


def _is_sql(value: object) -> str:
    if value is None:
        return "IS NULL"
    if isinstance(value, int):
        return f"= {value}"
    return f"= {'DATE ' if isinstance(value, date) else ''}{literal(str(value))}"


def _moment(value: object) -> datetime | None:
    if isinstance(value, datetime):
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    return datetime(value.year, value.month, value.day, tzinfo=UTC) if isinstance(value, date) else None


def failure(feed: Feed, error: Exception) -> LakeError:
    """What the library raised, as an error of ours."""
    cure = "look at it with the engine that writes it"
    return LakeError(feed.source.where, f"deltalake: {line_of(error)}", cure=cure)


def _why_not_locked(store: Store) -> str:
    """Why commits are not safe where a table lies; empty if they are.

    On S3 the writers of a Delta table exclude each other by conditional writes, or by a lock in DynamoDB. Whoever takes
    the other way than they do can have a commit of his overwritten, and one that he built on it double rows.
    """
    if "://" not in store.uri or os.environ.get("AWS_CONDITIONAL_PUT") or os.environ.get("AWS_S3_LOCKING_PROVIDER"):
        return ""
    return (
        "on S3, all writers of a table have to lock alike: set AWS_CONDITIONAL_PUT=etag if all of its writers use"
        " conditional writes, or AWS_S3_LOCKING_PROVIDER=dynamodb if they use that"
    )
