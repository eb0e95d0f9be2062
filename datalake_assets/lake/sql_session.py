"""SQL over the feeds of a lake, run by DuckDB in this process, exact per partition.

Every feed that a query names becomes a view over the files that its manifests name at that moment, so a half-written
commit is never seen. A file that goes away before the first row was handed on makes the query run again, over the files
of then. Rows are handed on as they are made: an answer is never in memory as a whole.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs

from datalake_assets.core.arrow_arrays import has_floats
from datalake_assets.core.partitions import partition_columns
from datalake_assets.core.rules import identifier, literal
from datalake_assets.errors import LakeError, ObjectNotFound, SnapshotExpired
from datalake_assets.feed import Feed
from datalake_assets.lake.exact_answers import exact_query
from datalake_assets.lake.scan import BoundedDataset
from datalake_assets.lake.sql_gate import (
    CheckedQuery,
    SqlLimits,
    SqlRefused,
    SqlSession,
    check_query,
    message_of,
    open_session,
)
from datalake_assets.lake.sql_views import is_taken, show
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import TableReader, TableSnapshot
from datalake_assets.lake.tables import open_table

__all__ = ["LiveRows", "SqlAnswer", "memory_errors_named", "open_answer", "open_arrow_answer"]

logger = logging.getLogger(__name__)

#: Times that a query is run because files that it was reading were replaced.
ATTEMPTS = 5
#: Python rows that are handed on at once: as many as a vector of DuckDB has.
ROWS = 2048
#: Rows of an Arrow batch that is handed on.
ARROW_ROWS = 1 << 13
# what DuckDB takes for a pattern, or for a partition, rather than for a name
_PATTERN = frozenset("*?[{=")


#: What reading an answer fails with: Arrow's reader wraps DuckDB's errors.
_ERRORS = (duckdb.Error, OSError, MemoryError, pa.ArrowException)

Batch = TypeVar("Batch")
#: The schema of the present: ``live.<feed>`` are the rows that a live view has of a feed.
LIVE = "live"
#: Gives the rows of the present, of those of some feeds that it has.
LiveRows = Callable[[Collection[str]], Mapping[str, pa.Table]]


def _as_it_is(table: TableReader) -> TableSnapshot:
    return table.snapshot()


@dataclass(frozen=True, slots=True)
class SqlAnswer(Generic[Batch]):
    """The answer to a query, while it is open.

    Attributes:
        columns: Names of the columns.
        types: Their types, as DuckDB names them.
        schema: Their types in Arrow; None of an answer in Python values.
        batches: The rows, to be read once: lists of tuples, or Arrow batches.
    """

    columns: tuple[str, ...]
    types: tuple[str, ...]
    schema: pa.Schema | None
    batches: Iterator[Batch]


@contextmanager
def open_answer(
    store: Store,
    feeds: Sequence[Feed],
    query: str,
    *,
    limits: SqlLimits | None = None,
    on_begin: Callable[[Callable[[], None]], None] | None = None,
    on_left_out: Callable[[str], None] = logger.warning,
    live: LiveRows | None = None,
) -> Iterator[SqlAnswer[list[tuple[Any, ...]]]]:
    """Answers one SELECT (or DESCRIBE, SUMMARIZE, EXPLAIN, …) over feeds by their names.

    Streams have the columns ``year``, ``month``, … of their partitions, tables ``version`` and the rows of their
    current version, adopted folders what their folders' names say. Times are UTC.

    Args:
        store: The lake.
        feeds: The feeds that the query may name.
        query: The SQL.
        limits: What it may take of the machine.
        on_begin: Called with what ends the query from another thread; again whenever it begins anew.
        on_left_out: Called with a line for each feed that cannot be read, where the query asks for all; and for each
            some files of which do not fit the others, so that no answer has their rows.
        live: Gives the rows that ``live.<feed>`` means; None where there are none such.

    Raises:
        SqlRefused: It is no single read, or DuckDB refuses it; also while rows are read.
        SnapshotExpired: Its files were replaced every time, or after the first rows had been read.
    """
    with ExitStack() as stack:
        yield _begun(
            stack, _Question(store, feeds, query, limits or SqlLimits(), on_begin, on_left_out, live=live), _rows
        )


@contextmanager
def open_arrow_answer(
    store: Store,
    feeds: Sequence[Feed],
    query: str,
    *,
    limits: SqlLimits | None = None,
    on_begin: Callable[[Callable[[], None]], None] | None = None,
    on_left_out: Callable[[str], None] = logger.warning,
    snapshot_of: Callable[[TableReader], TableSnapshot] = _as_it_is,
    live: LiveRows | None = None,
) -> Iterator[SqlAnswer[pa.RecordBatch]]:
    """Answers like `open_answer`, in Arrow batches.

    ``snapshot_of`` says what the query sees of a feed; it is asked again whenever the query begins anew.
    """
    with ExitStack() as stack:
        question = _Question(store, feeds, query, limits or SqlLimits(), on_begin, on_left_out, snapshot_of, live)
        yield _begun(stack, question, _arrow)


@contextmanager
def memory_errors_named() -> Iterator[None]:
    """Names the want of memory of whoever writes an answer: it has to do with what the query may take of the process.

    Raises:
        SqlRefused: There was none left.
    """
    try:
        yield
    except MemoryError as error:  # Arrow's is one, too
        raise SqlRefused(message_of(error)) from error


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of which lake."""

    store: Store
    feeds: Sequence[Feed]
    query: str
    limits: SqlLimits
    on_begin: Callable[[Callable[[], None]], None] | None
    on_left_out: Callable[[str], None]
    snapshot_of: Callable[[TableReader], TableSnapshot] = _as_it_is
    live: LiveRows | None = None

    def live_rows(self, checked: CheckedQuery) -> Mapping[str, pa.Table]:
        """The rows of the present that the query names, by feed."""
        if self.live is None or checked.tables is None or LIVE not in checked.schemas:
            return {}
        return self.live([feed.name for feed in self.feeds if feed.name in checked.tables])

    def views(self, checked: CheckedQuery) -> list[_View]:
        """The feeds that the query names, as they are committed now; where it asks for all, those that have data.

        Where it asks for all, one that cannot be read, such as a folder whose disk is not mounted, hides no other.

        Raises:
            SqlRefused: A feed that it names has no data.
        """
        views = []
        for feed in self.feeds:
            if checked.tables is not None and feed.name not in checked.tables:
                continue
            try:
                table = open_table(self.store, feed)
                snapshot = self.snapshot_of(table)
                dataset = snapshot.dataset()
            except LakeError as error:
                if checked.tables is not None:
                    raise
                self.on_left_out(f"{feed.path} is left out: {error}")
                continue
            if isinstance(dataset, BoundedDataset) and dataset.left_out:
                named, why = min(dataset.left_out.items())
                files = f"{len(dataset.left_out):,} of its files" if len(dataset.left_out) > 1 else "a file of it"
                self.on_left_out(f"{feed.path}: {files} left out, {named}: {why}; see 'datalake verify {feed.name}'")
            if dataset.schema.names:
                views.append(_View(table, snapshot, dataset, root=self.store.path("")))
            elif checked.tables is not None and feed.name not in checked.defined and LIVE not in checked.schemas:
                raise SqlRefused(f"feed {feed.name!r} has no data yet; {_cure(feed)}")
        return views


class _View:
    """A feed as a query sees it."""

    def __init__(self, table: TableReader, snapshot: TableSnapshot, dataset: ds.Dataset, *, root: str) -> None:
        self._feed, self._snapshot, self._dataset = table.feed, snapshot, dataset
        # adopted folders have names that DuckDB would expand, and columns that it would type by itself
        by_itself = table.is_listed_plainly and not _PATTERN & set(root)
        is_local = isinstance(dataset.filesystem, pafs.LocalFileSystem)
        is_plain = is_local and by_itself and is_taken(dataset.schema)
        self.read_by_duckdb: Sequence[str] = dataset.files if is_plain else ()

    def register(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Makes the view: DuckDB's own reader over local files, Arrow's over all else."""
        if self.read_by_duckdb:
            query = _files_query(self._feed, self._dataset)
            connection.execute(f"CREATE VIEW {identifier(self._feed.name)} AS {query}")
            return
        show(connection, self._feed.name, self._dataset)

    def has_expired(self) -> bool:
        """Whether files of it are no longer in the manifests."""
        try:
            return self._snapshot.has_expired()
        except LakeError:
            return False


def _files_query(feed: Feed, dataset: ds.Dataset) -> str:
    columns = ", ".join(map(identifier, dataset.schema.names))
    listed = ", ".join(map(literal, dataset.files))
    given = [column for column in partition_columns(feed) if column in dataset.schema.names]
    kinds = ", ".join(f"'{column}': {'VARCHAR' if column == 'version' else 'INTEGER'}" for column in given)
    # files may be older than a change of the policy: only a feed that was never changed has always been frozen
    union = feed.schema_policy != "freeze" or feed.revision > 1
    options = f"hive_partitioning = true, hive_types = {{{kinds}}}, union_by_name = {union}"
    if any(has_floats(each.type) for each in dataset.schema):  # else DuckDB takes bounds for those of NaN, too
        options += ", can_have_nan = true"
    return f"SELECT {columns} FROM read_parquet([{listed}], {options})"  # noqa: S608  all are quoted


@dataclass(frozen=True, slots=True)
class _Begun(Generic[Batch]):
    """What running a query gives."""

    columns: Sequence[str]
    types: Sequence[str]
    schema: pa.Schema | None
    batches: Iterator[Batch]


def _rows(connection: duckdb.DuckDBPyConnection, text: str) -> _Begun[list[tuple[Any, ...]]]:
    connection.execute(exact_query(connection, text))
    described = connection.description or []
    batches = iter(partial(connection.fetchmany, ROWS), [])
    return _Begun([column[0] for column in described], [str(column[1]) for column in described], None, batches)


def _arrow(connection: duckdb.DuckDBPyConnection, text: str) -> _Begun[pa.RecordBatch]:
    relation = connection.sql(text)
    reader = relation.to_arrow_reader(ARROW_ROWS)
    return _Begun(relation.columns, list(map(str, relation.types)), reader.schema, reader)


def _begun(
    stack: ExitStack, question: _Question, run: Callable[[duckdb.DuckDBPyConnection, str], _Begun[Batch]]
) -> SqlAnswer[Batch]:
    """Runs a query until it has its first rows; its session stays open as long as ``stack``."""
    checked = check_query(question.query)
    present = question.live_rows(checked)
    for attempt in range(ATTEMPTS):
        views = question.views(checked)
        with ExitStack() as opened:
            # the files that DuckDB may read are fixed when its session begins
            files = [file for view in views for file in view.read_by_duckdb]
            session = opened.enter_context(open_session(readable=files, limits=question.limits))
            opened.enter_context(session.bounded())
            if question.on_begin is not None:
                question.on_begin(session.interrupt)
            try:
                _show_present(session.connection, present)
                begun, first = session.run(partial(_first, session.connection, views, checked.text, run))
            except _ERRORS as error:
                if not any(view.has_expired() for view in views):
                    _raise_for_missing(files)
                    raise SqlRefused(message_of(error)) from error
                if attempt == ATTEMPTS - 1:
                    raise SnapshotExpired(question.store.uri, "files were replaced each time the query ran") from error
                continue
            stack.push(opened.pop_all())
            batches = _guarded(question.store, views, chain(first, _by_one(session, begun.batches)))
            return SqlAnswer(tuple(begun.columns), tuple(begun.types), begun.schema, batches)
    raise AssertionError


def _first(
    connection: duckdb.DuckDBPyConnection,
    views: Sequence[_View],
    text: str,
    run: Callable[[duckdb.DuckDBPyConnection, str], _Begun[Batch]],
) -> tuple[_Begun[Batch], list[Batch]]:
    """Runs a query, and reads its first rows if there are any."""
    for view in views:
        view.register(connection)
    begun = run(connection, text)
    return begun, list(islice(begun.batches, 1))


def _show_present(connection: duckdb.DuckDBPyConnection, present: Mapping[str, pa.Table]) -> None:
    """Makes ``live.<feed>`` of the rows of the present, which are the same however often the query begins anew."""
    if present:
        connection.execute(f"CREATE SCHEMA {LIVE}")
    for name, rows in present.items():
        show(connection, name, rows, schema=LIVE)


def _raise_for_missing(files: Sequence[str]) -> None:
    """DuckDB takes the name of a file that is not there for a pattern, and says that it may not look for it."""
    for file in files:
        if not Path(file).exists():
            raise ObjectNotFound(file)


def _by_one(session: SqlSession, batches: Iterator[Batch]) -> Iterator[Batch]:
    while (batch := session.run(partial(next, batches, None))) is not None:
        yield batch


def _guarded(store: Store, views: Sequence[_View], batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches; nothing can be run again once some have been handed on."""
    try:
        yield from batches
    except _ERRORS as error:
        if any(view.has_expired() for view in views):
            raise SnapshotExpired(store.uri, "a file was compacted or replaced during the query") from error
        raise SqlRefused(message_of(error)) from error


def _cure(feed: Feed) -> str:
    """How a feed without data gets some."""
    if feed.is_adopted:
        return (
            f"'datalake verify {feed.name}' names files that cannot be read, 'datalake repair {feed.name}' looks again"
        )
    if not feed.is_exported:
        return f"materialize asset {feed.asset!r}"
    return f"export it with 'datalake export --{feed.kind} {feed.name}'"
