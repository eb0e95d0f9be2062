"""A feed's own rules, counted by DuckDB over exactly the committed files of a partition.

Before a feed is declared, DuckDB and Arrow are asked whether they take its rules and its columns at all.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from datalake_assets.core.rules import DATA, RuleCount, columns_of, counting_query, is_row_rule, own_query
from datalake_assets.errors import ConfigError, InvalidFeed, SnapshotExpired
from datalake_assets.feed import Feed
from datalake_assets.lake.sql_views import as_taken, hide, show
from datalake_assets.lake.table import TableReader, TableSnapshot
from datalake_assets.policies import RegexRule, Rule, SqlRule, UniqueRule

__all__ = ["count_broken", "refuse_misfits"]

#: Times that a partition is counted because files that were being read were replaced.
ATTEMPTS = 5
#: Beyond this DuckDB works on disk.
MEMORY_LIMIT = "512MB"
#: Seconds for which a rule's query is tried before its feed is declared.
TRIAL_S = 1.0


def count_broken(
    table: TableReader, rules: Sequence[Rule], keys: Sequence[str] | None, *, seen: TableSnapshot | None = None
) -> Iterator[tuple[Rule, RuleCount]]:
    """Counts the rows that break rules; see `LakeTable.count_broken`."""
    per_feed = [rule for rule in rules if isinstance(rule, UniqueRule) and rule.across == "feed"]
    per_partition = [rule for rule in rules if rule not in per_feed]
    with tempfile.TemporaryDirectory(prefix="datalake-rules-") as spill, _connect(spill) as connection:
        for key in table.snapshot().keys if keys is None else keys:
            if per_partition:
                known = seen.only(key) if seen is not None and key in seen.keys else None
                yield from _counted(table, connection, per_partition, key, partitions=[key], seen=known)
        if per_feed:
            yield from _counted(table, connection, per_feed, "", partitions=None)


def refuse_misfits(feed: Feed, schema: pa.Schema | None) -> None:
    """Asks DuckDB for the feed's rules and Arrow for its columns, before any row is there.

    A query that a person wrote is bound, and run on a row of nulls for a second at the most.

    Args:
        feed: The feed as it is to be.
        schema: Its columns; None while nobody knows them: then only what needs none is asked.

    Raises:
        InvalidFeed: A rule or a column does not work; says which one and why.
    """
    with _connect(None) as connection:
        for rule in feed.checks.rules:
            try:
                _ask(connection, rule, schema)
            except duckdb.Error as error:
                raise InvalidFeed(feed.name, f"rule {rule.check_name!r}: {_reason(error)}") from error
            except ConfigError as error:
                raise InvalidFeed(feed.name, str(error)) from error
    if schema is None:
        return
    for column in feed.compaction.sort_by:
        try:
            pc.sort_indices(schema.empty_table(), sort_keys=[(column, "ascending")])
        except pa.ArrowException as error:
            reason = " ".join(str(error).split())
            raise InvalidFeed(feed.name, f"compaction.sort_by: {column!r} cannot be sorted by: {reason}") from error


def _ask(connection: duckdb.DuckDBPyConnection, rule: Rule, schema: pa.Schema | None) -> None:
    if isinstance(rule, SqlRule):
        _refuse_other_statements(connection, rule)
    if isinstance(rule, RegexRule):
        connection.execute("SELECT regexp_full_match('', ?)", [rule.pattern]).fetchall()
    if schema is None:
        return
    _check_columns((rule,), schema.names)
    # on a row of nulls DuckDB compares each bound with its column's type, which it would not on none
    taken = as_taken(schema)
    connection.register(DATA, pa.table([pa.nulls(1, field.type) for field in taken], names=taken.names))
    try:
        if is_row_rule(rule):
            connection.execute(counting_query((rule,))).fetchall()
        elif isinstance(rule, UniqueRule | SqlRule):
            connection.execute(f"EXPLAIN {own_query(rule)}").fetchall()
            _try_briefly(connection, own_query(rule))
    finally:
        connection.unregister(DATA)


def _try_briefly(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    """Runs a query that was bound: some texts are converted only then. One that takes its time is well."""
    timer = threading.Timer(TRIAL_S, connection.interrupt)
    timer.start()
    try:
        connection.execute(query).fetchall()
    except (duckdb.InterruptException, duckdb.OutOfMemoryException):
        return
    finally:
        timer.cancel()


def _connect(spill: str | None) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(config={"memory_limit": MEMORY_LIMIT, "temp_directory": spill or ""})
    # a query is part of a feed's declaration: it sees the rows, and neither files nor the network
    connection.execute("SET TimeZone = 'UTC'; SET enable_external_access = false; SET lock_configuration = true")
    return connection


def _counted(
    table: TableReader,
    connection: duckdb.DuckDBPyConnection,
    rules: Sequence[Rule],
    key: str,
    *,
    partitions: Sequence[str] | None,
    seen: TableSnapshot | None = None,
) -> list[tuple[Rule, RuleCount]]:
    """Counts once more whenever files were replaced meanwhile."""
    for _ in range(ATTEMPTS):
        snapshot, seen = seen or table.snapshot(partitions), None
        dataset = snapshot.dataset()
        _check_columns(rules, dataset.schema.names)
        try:
            return _counts(connection, dataset, rules, key)
        except duckdb.Error as error:
            if not snapshot.has_expired():
                reason = _reason(error)
                raise ConfigError(
                    f"{_names(rules)} of feed {table.feed.name!r} cannot be evaluated: {reason}"
                ) from error
    raise SnapshotExpired(table.feed.path, "files were replaced each time its rules were evaluated")


def _counts(
    connection: duckdb.DuckDBPyConnection, dataset: ds.Dataset, rules: Sequence[Rule], key: str
) -> list[tuple[Rule, RuleCount]]:
    show(connection, DATA, dataset)
    try:
        of_rows = [rule for rule in rules if is_row_rule(rule)]
        rows, *broken = _numbers(connection, counting_query(of_rows))
        counts = list(zip(of_rows, broken, strict=True))
        counts += [(rule, _own(connection, rule)) for rule in rules if isinstance(rule, UniqueRule | SqlRule)]
        return [(rule, RuleCount(key, rows, count)) for rule, count in counts]
    finally:
        hide(connection, DATA)


def _own(connection: duckdb.DuckDBPyConnection, rule: UniqueRule | SqlRule) -> int:
    if isinstance(rule, SqlRule):
        _refuse_other_statements(connection, rule)
    return _numbers(connection, own_query(rule))[0]


def _refuse_other_statements(connection: duckdb.DuckDBPyConnection, rule: SqlRule) -> None:
    statements = connection.extract_statements(rule.query)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise ConfigError(f"rule {rule.check_name!r}: give one SELECT that returns the rows which break it")


def _reason(error: duckdb.Error) -> str:
    """What DuckDB says, without the place in a query that people have not written as it is."""
    return " ".join(str(error).split("\n\nLINE ", 1)[0].split())


def _numbers(connection: duckdb.DuckDBPyConnection, query: str) -> list[int]:
    (found,) = connection.execute(query).fetchall()
    return [int(number) for number in found]


def _check_columns(rules: Iterable[Rule], columns: Sequence[str]) -> None:
    for rule in rules:
        for column in columns_of(rule):
            if column not in columns and columns:
                known = ", ".join(columns)
                raise ConfigError(f"rule {rule.check_name!r} names column {column!r}; the feed has {known}")


def _names(rules: Sequence[Rule]) -> str:
    return f"rule {', '.join(repr(rule.check_name) for rule in rules)}"
