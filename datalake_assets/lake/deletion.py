"""Rows that a person wants gone: those that an SQL condition is true of, out of exactly the files that hold them.

The condition decides of each row by itself. So it is one expression, checked by its tree, without queries in it and
without functions whose answer changes from call to call; DuckDB then counts the rows of each file that it is true of,
and, while a file is written anew, says again which they are. Both have to agree before anything is committed.

The files of a partition that hold such rows are replaced in one commit, as a compaction does it: whoever merges one of
them meanwhile wins or loses, and the loser plans anew. The position stays: the source's rows count as landed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, TypeAlias

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds

from datalake_assets.core.batches import QuarantinedRow, row_from_text
from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.facts import Deletion
from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partitions import hive_pairs
from datalake_assets.core.rules import DATA, identifier
from datalake_assets.core.schema import schema_from_json
from datalake_assets.errors import (
    CommitConflict,
    ConfigError,
    CorruptLake,
    DatalakeError,
    ObjectNotFound,
    UnreadableFile,
)
from datalake_assets.feed import Feed, FeedKind
from datalake_assets.lake.commit import Change, Loaded, Planned
from datalake_assets.lake.compaction import as_inputs, footer_of, staging_opener
from datalake_assets.lake.compaction_inputs import Inputs
from datalake_assets.lake.layout import FeedFolder, discarded_folder, quarantine_folder
from datalake_assets.lake.quarantined_rows import quarantine_objects, take_out
from datalake_assets.lake.scan import committed_files, with_given
from datalake_assets.lake.sql_gate import SqlLimits, SqlRefused, SqlSession, hide, message_of, open_session, show
from datalake_assets.lake.store.base import StagedFile, Store
from datalake_assets.lake.store.swap import retried
from datalake_assets.parquet.decodable import ROW_GROUPS_HELD
from datalake_assets.parquet.rewrite import RewriteSettings, Rewritten, rewrite
from datalake_assets.parquet.writer import ParquetSettings

__all__ = ["RowCondition", "WaitingRows", "delete_rows", "deletion_plan", "open_condition", "waiting_rows"]

logger = logging.getLogger(__name__)

Mask: TypeAlias = npt.NDArray[np.bool_]

#: Times that a partition is begun anew because somebody else replaced one of its files meanwhile.
ATTEMPTS = 20
#: What evaluating a condition may take, beside what rewriting takes.
LIMITS = SqlLimits(memory="512MB", threads=2)
#: Seconds for the rows of one file, or of a piece of it.
TIMEOUT_S = 600.0
#: What a row is numbered by; a condition cannot name it, since it is no column of the feed.
_NUMBER = "row number"
#: Where something stands in a query, which its tree says besides.
_PLACES = frozenset({"query_location", "query_location_length"})


class RowCondition:
    """A condition on the rows of a feed, as it stands after WHERE; only what it is true of counts, not what is null.

    Args:
        session: A session of its own.
        text: The SQL.
        schema: The feed's columns, those of its paths among them.

    Raises:
        SqlRefused: It is not one condition, or not on each row by itself.
    """

    def __init__(self, session: SqlSession, text: str, schema: pa.Schema) -> None:
        self._session, self._schema = session, schema
        self._number = _NUMBER
        while self._number in schema.names:
            self._number += "_"
        session.check(f"SELECT * FROM {DATA} WHERE (\n{text}\n)")  # noqa: S608  what the gate is for
        #: The columns that it is about, in lower case.
        self.names = _check_tree(session.connection, text, schema.names)
        self._sql = f"(\n{text}\n)"
        self._check_type()

    def _check_type(self) -> None:
        with self._shown(self._schema.empty_table()):
            # aggregates and windows may stand in a list of columns, and not here
            self._run(f"DESCRIBE SELECT * FROM {DATA} WHERE {self._sql}")  # noqa: S608  it was checked
            query = f"DESCRIBE SELECT {self._sql} AS condition FROM {DATA}"  # noqa: S608  it was checked
            kind = self._run(query)["column_type"][0].as_py()
        if kind != "BOOLEAN":
            raise SqlRefused(f"it is no condition but a value of type {kind}; compare it with something")

    def count(self, dataset: ds.Dataset) -> tuple[int, int]:
        """How many rows there are, and of how many it is true."""
        with self._shown(dataset):
            query = f"SELECT count(*), count(*) FILTER (WHERE {self._sql}) FROM {DATA}"  # noqa: S608  it was checked
            rows, matching = (column[0].as_py() for column in self._run(query).columns)
        return rows, matching

    def matching(self, rows: pa.Table) -> Mask:
        """Which of some rows it is true of; they have the columns that a reader of the feed sees."""
        numbered = rows.append_column(self._number, pa.array(np.arange(rows.num_rows)))
        query = f"SELECT {identifier(self._number)} AS number, {self._sql} IS TRUE AS matches FROM {DATA}"  # noqa: S608  it was checked
        with self._shown(numbered):
            found = self._run(query)
        mask = np.zeros(rows.num_rows, dtype=np.bool_)
        mask[found.filter(found["matches"])["number"].to_numpy()] = True
        return mask

    @contextmanager
    def _shown(self, rows: ds.Dataset | pa.Table) -> Iterator[None]:
        try:
            show(self._session.connection, DATA, rows)
            yield
        finally:
            hide(self._session.connection, DATA)

    def _run(self, query: str) -> pa.Table:
        try:
            with self._session.bounded(), self._session.limited(TIMEOUT_S):
                return self._session.connection.sql(query).to_arrow_table()
        except duckdb.Error as error:
            raise SqlRefused(message_of(error)) from error


@contextmanager
def open_condition(text: str, schema: pa.Schema) -> Iterator[RowCondition]:
    """A condition in a session that sees rows it is given, and neither files nor the network.

    Raises:
        ConfigError: It is none, or cannot be evaluated.
    """
    try:
        with open_session(limits=LIMITS) as session:
            yield RowCondition(session, text, schema)
    except SqlRefused as error:
        raise ConfigError(f"the condition cannot be used: {error.reason}") from error


def _check_tree(connection: duckdb.DuckDBPyConnection, text: str, columns: Sequence[str]) -> frozenset[str]:
    """Sees to it that a text is one expression, and that its answer follows from a row alone; names its columns.

    Raises:
        SqlRefused: It is not.
    """
    try:
        plain = _where(connection, f"SELECT * FROM {DATA} WHERE {text}\n")  # noqa: S608  only parsed
        braced = _where(connection, f"SELECT * FROM {DATA} WHERE (\n{text}\n)")  # noqa: S608  only parsed
        if plain is None or plain != braced:
            raise SqlRefused("give one condition, as it stands after WHERE, and nothing behind it")
        nodes = list(_nodes(braced))
    except RecursionError as error:
        raise SqlRefused("it is nested too deeply") from error
    if any(node.get("class") == "SUBQUERY" for node in nodes):
        raise SqlRefused("it has a query in it; a condition decides of each row by itself: list the values instead")
    if any(node.get("class") == "STAR" for node in nodes):
        raise SqlRefused("it has a * in it; name the columns")
    changing = _changing_functions()
    for node in nodes:
        name = str(node.get("function_name", "")).lower()
        if name in changing:
            raise SqlRefused(f"function {name!r} has another answer at another call; write its answer down instead")
    known = {name.lower() for name in (*columns, DATA)}
    parameters = [each for node in nodes if node.get("class") == "LAMBDA" for each in _nodes(node.get("lhs"))]
    known |= {name.lower() for each in parameters for name in _named(each)}
    names = [named for node in nodes if (named := [each.lower() for each in _named(node)])]
    for first, *_ in names:
        if first not in known:  # current_date and the like are columns to the parser
            raise SqlRefused(f"it names {first!r}; the feed has {', '.join(columns) or 'no columns yet'}")
    return frozenset(name for named in names for name in named)


def _named(node: Mapping[str, Any]) -> list[str]:
    return list(node.get("column_names", ())) if node.get("class") == "COLUMN_REF" else []


def _where(connection: duckdb.DuckDBPyConnection, query: str) -> Any:
    """The tree of a query's condition; None if there is more to the query than that."""
    ((found,),) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchall()
    document = json.loads(found)
    if document["error"]:
        return None
    trees = [_without_places(each["node"]) for each in document["statements"]]
    if len(trees) != 1:
        return None
    where = trees[0].pop("where_clause", None)
    if query != _BARE and _where_less(connection) != trees[0]:
        return None
    return where


_BARE = f"SELECT * FROM {DATA} WHERE (true)"  # noqa: S608  our own


def _where_less(connection: duckdb.DuckDBPyConnection) -> Any:
    """The tree of our own query, without its condition."""
    ((found,),) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [_BARE]).fetchall()
    tree = _without_places(json.loads(found)["statements"][0]["node"])
    tree.pop("where_clause")
    return tree


def _without_places(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _without_places(each) for name, each in tree.items() if name not in _PLACES}
    return [_without_places(each) for each in tree] if isinstance(tree, list) else tree


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """All objects of a tree."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


@cache
def _changing_functions() -> frozenset[str]:
    """The functions whose answer does not follow from their arguments, and the macros that are made of such."""
    with duckdb.connect() as connection:
        functions = connection.execute(
            "SELECT lower(function_name), stability, macro_definition FROM duckdb_functions()"
        ).fetchall()
    changing = {name for name, stability, _ in functions if stability not in {"CONSISTENT", None}}
    words = changing | {"current_timestamp", "current_time", "localtime", "localtimestamp", "select"}
    while True:
        more = {
            name
            for name, _, made_of in functions
            if made_of is not None and name not in changing and not words.isdisjoint(_words(made_of))
        }
        if not more:
            return frozenset(changing)
        changing |= more
        words |= more


def _words(text: str) -> set[str]:
    return set("".join(each if each.isalnum() or each == "_" else " " for each in text.lower()).split())


@dataclass(frozen=True, slots=True)
class WaitingRows:
    """Rows of a feed beside its table, in quarantine or kept as they came, each counted once.

    Attributes:
        matching: Those that a condition is true of.
        undecided: Those that nobody can decide on: not decoded, or of other columns than the condition is about.
    """

    matching: int = 0
    undecided: int = 0


def waiting_rows(store: Store, feed: Feed, where: str, schema: pa.Schema, *, delete: bool = False) -> WaitingRows:
    """Looks for rows beside a feed's table that a condition is true of, and deletes them if that is wanted.

    Args:
        store: The lake.
        feed: The feed.
        where: The condition.
        schema: The columns that a reader of the feed sees.
        delete: Whether to delete these rows there.
    """
    matching: set[str] = set()
    undecided: set[str] = set()
    with open_condition(where, schema) as condition:

        def is_gone(path: str, rows: Sequence[QuarantinedRow]) -> list[bool]:
            found = _decided(condition, schema, path, rows)
            for row, matches in zip(rows, found, strict=True):
                if matches is None:
                    undecided.add(row.identity)
                elif matches:
                    matching.add(row.identity)
            return [bool(each) for each in found]

        for folder in (quarantine_folder(feed), discarded_folder(feed)):
            if delete:
                take_out(store, folder, is_gone)
            else:
                for _, path, rows in quarantine_objects(store, folder):
                    is_gone(path, rows)
    return WaitingRows(len(matching), len(undecided - matching))


def _known_columns(condition: RowCondition, row: QuarantinedRow) -> bytes | None:
    """A decoded row without columns that are none of the feed's, or of another type; None if these would decide."""
    others = set(schema_from_json(row.columns).names) if row.columns else set()
    if not others:
        return row.raw.encode()
    if condition.names & {name.lower() for name in others}:
        return None
    document = json.loads(row.raw)
    if not isinstance(document, dict):
        return None
    return json.dumps({name: value for name, value in document.items() if name not in others}).encode()


def _decided(
    condition: RowCondition, schema: pa.Schema, path: str, rows: Sequence[QuarantinedRow]
) -> list[bool | None]:
    """Whether the condition is true of each row; None where it cannot be told."""
    given = {name: value for name, value in hive_pairs(path) if name in schema.names}
    found: list[bool | None] = [None] * len(rows)
    values: dict[int, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        with suppress(ValueError, pa.ArrowException):
            known = _known_columns(condition, row)
            if row.decoded and known is not None:
                typed = {name: pa.scalar(text).cast(schema.field(name).type).as_py() for name, text in given.items()}
                values[number] = row_from_text(known, schema) | typed
    columns = [pa.array([each[field.name] for each in values.values()], field.type) for field in schema]
    mask = condition.matching(pa.Table.from_arrays(columns, schema=schema)) if values else ()
    for number, matches in zip(values, mask, strict=True):
        found[number] = bool(matches)
    return found


def deletion_plan(folder: FeedFolder, key: str, where: str) -> Deletion:
    """Does what `TableKeeper.deletion_plan` promises, for the feed of a folder."""
    return _retried(lambda: _Partition(folder, key, where).planned(folder.log(key).load()))


def delete_rows(folder: FeedFolder, key: str, where: str, *, run_id: str = "") -> Deletion:
    """Does what `TableKeeper.delete_rows` promises, for the feed of a folder."""
    folder.probe()
    return _retried(lambda: _Partition(folder, key, where).delete(run_id))


def _retried(run: Callable[[], Deletion]) -> Deletion:
    return retried(run, attempts=ATTEMPTS, on=(CommitConflict,))


class _Partition:
    """One partition that rows are deleted of."""

    def __init__(self, folder: FeedFolder, key: str, where: str) -> None:
        self._folder, self._key, self._where = folder, key, where
        self._log = folder.log(key)

    def planned(self, loaded: Loaded) -> Deletion:
        """How many rows of which files match."""
        dataset = self._dataset(loaded.manifest)
        with open_condition(self._where, dataset.schema) as condition:
            return self._counted(condition, loaded.manifest, dataset)

    def delete(self, run_id: str) -> Deletion:
        """Rewrites the files that have such rows, and commits."""
        self._folder.state.to_write()
        loaded = self._log.settle(self._log.load())
        dataset = self._dataset(loaded.manifest)
        with open_condition(self._where, dataset.schema) as condition:
            found = self._counted(condition, loaded.manifest, dataset)
            if not found.matching:
                return found
            commit_id = self._folder.new_id()
            metadata = footer_of(self._folder, loaded.manifest, commit_id=commit_id, run_id=run_id)
            files = self._rewritten(condition, loaded.manifest, dataset, found.matching, metadata)
        after = self._committed(loaded, found, Change(commit_id, "erase", files, lambda _: None, run_id))
        partition = self._folder.report(self._key, after, before=loaded.manifest)
        self._folder.summary.merge([partition], removed=(), at=None)
        return replace(found, partition=partition)

    def _dataset(self, manifest: Manifest) -> ds.FileSystemDataset:
        return committed_files(self._folder, [self._key], self._folder.state.load().schema, lambda _: [manifest])

    def _counted(self, condition: RowCondition, manifest: Manifest, dataset: ds.FileSystemDataset) -> Deletion:
        matching, read = {}, 0
        for file, fragment in zip(manifest.files, dataset.get_fragments(), strict=True):
            one = ds.FileSystemDataset([fragment], dataset.schema, dataset.format, dataset.filesystem)
            with self._gone_named(file):
                rows, count = condition.count(one)
            if rows != file.rows:
                where = self._log.key_of(file.name)
                raise CorruptLake(where, f"{rows} rows, {file.rows} were committed", cure="look with 'datalake verify'")
            if count:
                matching[file.name] = count
                read += file.size_bytes
        return Deletion(self._key, manifest.rows, len(manifest.files), matching, read)

    @contextmanager
    def _gone_named(self, file: DataFile) -> Iterator[None]:
        """Tells a file that was merged meanwhile from one that is missing, or cannot be read.

        Raises:
            CommitConflict: It was merged, or replaced.
        """
        try:
            yield
        except (ObjectNotFound, UnreadableFile, OSError, SqlRefused, pa.ArrowException) as error:
            if not any(file == each for each in self._log.load().manifest.files):
                raise CommitConflict(self._log.data_folder, "a file was merged or replaced meanwhile") from error
            key = self._log.key_of(file.name)
            if self._folder.data_store.head(key) is None:
                raise CorruptLake(key, "a committed file is gone", cure="look with 'datalake verify'") from error
            if isinstance(error, DatalakeError):
                raise
            raise CorruptLake(key, f"cannot be read: {' '.join(str(error).split())}") from error

    def _rewritten(
        self,
        condition: RowCondition,
        manifest: Manifest,
        dataset: ds.FileSystemDataset,
        matching: Mapping[str, int],
        metadata: Mapping[str, str],
    ) -> tuple[tuple[StagedFile, DataFile], ...]:
        """The rows that stay of each file that has others, staged; all or none."""
        # readers of a version learn its columns from a file, though it have no rows
        keeps_one = self._folder.feed.kind is FeedKind.TABLE and manifest.rows == sum(matching.values())
        staged: list[tuple[StagedFile, DataFile]] = []
        try:
            for file, fragment in zip(manifest.files, dataset.get_fragments(), strict=True):
                count = matching.get(file.name, 0)
                if not count or (count == file.rows and not keeps_one):
                    continue
                keeps_one = keeps_one and count != file.rows
                given = ds.get_partition_keys(fragment.partition_expression)
                keep = partial(_kept, condition, dataset.schema, given)
                with self._gone_named(file):
                    staged += self._without(file, keep, metadata, rows=file.rows - count)
        except BaseException:
            self._discard(staged)
            raise
        return tuple(staged)

    def _without(
        self, file: DataFile, keep: Callable[[pa.Table], pa.Table], metadata: Mapping[str, str], *, rows: int
    ) -> list[tuple[StagedFile, DataFile]]:
        """One file written anew, by the rewriter's rules."""
        store = self._folder.data_store
        inputs = Inputs(store, self._log, [file], adopted=False, may_copy=False)
        with closing(inputs):
            given = [replace(each, keep=keep, copy_source=None) for each in inputs.files]
            opener = staging_opener(self._folder, self._log, prefix="data")
            done: Rewritten[StagedFile] = rewrite(given, self._settings(), opener, metadata=metadata)
        where = self._log.key_of(file.name)
        outputs = [(staged, as_inputs(one, [file])) for staged, one in done.outputs]
        if file.name in done.rejected:
            raise UnreadableFile(where, f"it cannot be written anew: {done.rejected[file.name]}")
        if sum(one.rows for _, one in outputs) != rows:
            self._discard(outputs)
            raise CorruptLake(where, "the condition was true of other rows at a second look; nothing was deleted")
        return outputs

    def _settings(self) -> RewriteSettings:
        written = self._folder.feed.format
        return RewriteSettings(
            parquet=ParquetSettings(
                compression=written.compression,
                profile=written.profile,
                target_file_bytes=written.target_file_size_bytes,
                row_group_bytes=written.row_group_bytes,
            ),
            verify=True,
            time_column=self._folder.feed.row_time,
            workers=1,
            row_bytes=CompactionRequest().memory_bytes // ROW_GROUPS_HELD,
        )

    def _discard(self, staged: Sequence[tuple[StagedFile, DataFile]]) -> None:
        for each, _ in staged:
            self._folder.data_store.discard_staged(each)

    def _committed(self, loaded: Loaded, found: Deletion, change: Change) -> Manifest:
        gone = {file.name: file for file in loaded.manifest.files if file.name in found.matching}

        def planned(base: Manifest) -> Planned:
            there = {file.name: file for file in base.files}
            if any(there.get(name) != file for name, file in gone.items()):
                raise CommitConflict(self._log.data_folder, "a file was merged or replaced meanwhile")
            return Planned(remove=tuple(gone))

        after, _ = self._log.commit(replace(change, plan=planned), base=loaded)
        self._folder.state.to_write()  # else it was of what the feed was before, and readers still get the rows
        logger.info("deleted %d rows of %s", found.rows_deleted, self._log.data_folder)
        return after.manifest


def _kept(condition: RowCondition, schema: pa.Schema, given: Mapping[str, object], rows: pa.Table) -> pa.Table:
    """The rows of a piece of a file that stay."""
    return rows.filter(pa.array(~condition.matching(with_given(rows, schema, given))))
