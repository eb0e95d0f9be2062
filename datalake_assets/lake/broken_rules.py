"""All that DuckDB does with a feed's own rules, so that what is refused when they are declared cannot fail later.

It counts the rows that break them, over exactly the committed files of a partition; and before a feed is declared,
DuckDB and Arrow are asked whether they take its rules and its columns at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from datalake_assets.core.rules import DATA, RuleCount, columns_of, counting_query, is_row_rule, literal, repeats_query
from datalake_assets.core.schema import RESERVED_NAMES
from datalake_assets.errors import ConfigError, InvalidFeed, SnapshotExpired
from datalake_assets.feed import Feed
from datalake_assets.lake.sql_gate import (
    SqlLimits,
    SqlRefused,
    SqlSession,
    SqlTimedOut,
    check_query,
    message_of,
    open_session,
)
from datalake_assets.lake.sql_views import as_taken, hide, show
from datalake_assets.lake.table import TableReader, TableSnapshot
from datalake_assets.lake.watching import MARKS
from datalake_assets.live_policies import Tile
from datalake_assets.policies import RegexRule, Rule, SqlRule, UniqueRule

__all__ = ["count_broken", "refuse_misfits"]

#: Times that a partition is counted because files that were being read were replaced.
ATTEMPTS = 5
#: A check runs beside whatever else the machine does: an export, a compaction.
LIMITS = SqlLimits(memory="512MB", threads=4)
#: The view of the rows that a person's query returns.
BROKEN = "broken"
#: Seconds for which a rule's query is tried before its feed is declared.
TRIAL_S = 1.0
#: Rows that a tile's query is asked for when it is tried.
_TRIED_ROWS = 20
#: Seconds for counting the rows where no rule says another limit.
TIMEOUT_S = 600.0


def count_broken(
    table: TableReader, rules: Sequence[Rule], keys: Sequence[str] | None, *, seen: TableSnapshot | None = None
) -> Iterator[tuple[Rule, RuleCount]]:
    """Counts the rows that break rules, in a session that sees the rows and neither files nor the network."""
    per_feed = [rule for rule in rules if isinstance(rule, UniqueRule) and rule.across == "feed"]
    per_partition = [rule for rule in rules if rule not in per_feed]
    try:
        for rule in rules:
            if isinstance(rule, SqlRule):
                _checked(rule)
    except _Unevaluated as error:
        raise _error(table, error.rules, error) from error
    # a query is part of a feed's declaration: it sees the rows, and neither files nor the network
    with open_session(limits=LIMITS) as session:
        for key in table.snapshot().keys if keys is None else keys:
            if per_partition:
                known = seen.only(key) if seen is not None and key in seen.keys else None
                yield from _counted(table, session, per_partition, key, partitions=[key], seen=known)
        if per_feed:
            yield from _counted(table, session, per_feed, "", partitions=None)


def refuse_misfits(feed: Feed, schema: pa.Schema | None) -> None:
    """Asks DuckDB for the feed's rules and tiles, and Arrow for its columns, before any row is there.

    A query that a person wrote is bound, and run on a row of nulls for a second at the most.

    Args:
        feed: The feed as it is to be.
        schema: Its columns; None while nobody knows them: then only what needs none is asked.

    Raises:
        InvalidFeed: A rule, a tile or a column does not work; says which one and why.
    """
    with open_session(limits=LIMITS) as session:
        for rule in feed.checks.rules:
            try:
                _ask(session, rule, schema)
            except _Unevaluated as error:
                raise InvalidFeed(feed.name, f"rule {rule.check_name!r}: {error.reason}") from error
            except ConfigError as error:
                raise InvalidFeed(feed.name, str(error)) from error
        for tile in feed.tiles:
            try:
                _try_tile(session, tile, schema)
            except (SqlRefused, duckdb.Error) as error:
                reason = error.reason if isinstance(error, SqlRefused) else message_of(error)
                raise InvalidFeed(feed.name, f"tile {tile.name!r}: {reason}") from error
    if schema is None:
        return
    for column in feed.compaction.sort_by:
        try:
            pc.sort_indices(schema.empty_table(), sort_keys=[(column, "ascending")])
        except pa.ArrowException as error:
            reason = " ".join(str(error).split())
            raise InvalidFeed(feed.name, f"compaction.sort_by: {column!r} cannot be sorted by: {reason}") from error


def _ask(session: SqlSession, rule: Rule, schema: pa.Schema | None) -> None:
    if isinstance(rule, SqlRule):
        _checked(rule)
    if isinstance(rule, RegexRule):
        _numbers(session, [rule], f"SELECT regexp_full_match('', {literal(rule.pattern)})::INT")
    if schema is None:
        return
    _check_columns((rule,), schema.names)
    # on a row of nulls DuckDB compares each bound with its column's type, which it would not on none
    taken = as_taken(schema)
    session.connection.register(DATA, pa.table([pa.nulls(1, field.type) for field in taken], names=taken.names))
    try:
        # a query that was bound is run, too: some texts are converted only then
        _evaluate(session, [rule], timeout_s=TRIAL_S)
    except _Unevaluated as error:
        if not error.is_too_dear:  # one that takes its time is well
            raise
    finally:
        session.connection.unregister(DATA)


def _try_tile(session: SqlSession, tile: Tile, schema: pa.Schema | None) -> None:
    """Lets the gate look at a tile's query, and binds and runs it on a row of nulls, if its columns are known."""
    checked = session.check(tile.sql)
    if schema is None:
        return
    own = {} if tile.history else {name: kind for name, kind in MARKS.items() if name not in schema.names}
    taken = as_taken(pa.schema([*(each for each in schema if each.name not in RESERVED_NAMES), *own.items()]))
    session.connection.register(DATA, pa.table([pa.nulls(1, field.type) for field in taken], names=taken.names))
    try:
        with suppress(SqlTimedOut), session.bounded(), session.limited(TRIAL_S):  # one that takes its time is well
            # a view takes the query as it is, with its semicolon and its comments
            session.connection.execute(f"CREATE OR REPLACE TEMP VIEW {BROKEN} AS {checked.text}")
            query = f"SELECT * FROM {BROKEN} LIMIT {_TRIED_ROWS}"  # noqa: S608  our own
            session.run(lambda: session.connection.execute(query).fetchall())
    finally:
        session.connection.unregister(DATA)


def _counted(
    table: TableReader,
    session: SqlSession,
    rules: Sequence[Rule],
    key: str,
    *,
    partitions: Sequence[str] | None,
    seen: TableSnapshot | None = None,
) -> list[tuple[Rule, RuleCount]]:
    """Counts once more whenever files were replaced meanwhile."""
    for _ in range(ATTEMPTS):
        snapshot, seen = seen or table.snapshot(partitions), None
        try:
            dataset = snapshot.dataset()
        except SnapshotExpired:
            continue
        _check_columns(rules, dataset.schema.names)
        try:
            show(session.connection, DATA, dataset)
            rows, broken = _evaluate(session, rules)
        except (_Unevaluated, duckdb.Error) as error:
            if not snapshot.has_expired():
                raise _error(table, error.rules if isinstance(error, _Unevaluated) else rules, error) from error
        else:
            return [(rule, RuleCount(key, rows, count)) for rule, count in broken]
        finally:
            hide(session.connection, DATA)
    raise SnapshotExpired(table.feed.path, "files were replaced each time its rules were evaluated")


class _Unevaluated(Exception):
    """Rules that DuckDB, or the gate before it, did not evaluate.

    Attributes:
        rules: The rules.
        reason: Why, for a person.
        is_too_dear: Whether they took more time or memory than they may.
    """

    def __init__(self, rules: Sequence[Rule], reason: str, *, is_too_dear: bool = False) -> None:
        self.rules, self.reason, self.is_too_dear = rules, reason, is_too_dear
        super().__init__(reason)


def _evaluate(
    session: SqlSession, rules: Sequence[Rule], *, timeout_s: float | None = None
) -> tuple[int, list[tuple[Rule, int]]]:
    """Counts the rows, and for each rule those that break it."""
    of_rows = [rule for rule in rules if is_row_rule(rule)]
    rows, *counts = _numbers(session, of_rows, counting_query(of_rows), timeout_s=timeout_s)
    broken = list(zip(of_rows, counts, strict=True))
    for rule in rules:
        if isinstance(rule, UniqueRule):
            broken += zip([rule], _numbers(session, [rule], repeats_query(rule), timeout_s=timeout_s), strict=True)
        elif isinstance(rule, SqlRule):
            # a view takes the query as it is, with its semicolon and its comments
            view = f"CREATE OR REPLACE TEMP VIEW {BROKEN} AS {_checked(rule)}"
            query = f"SELECT count(*) FROM {BROKEN}"  # noqa: S608  our own name
            broken += zip([rule], _numbers(session, [rule], view, query, timeout_s=timeout_s), strict=True)
    return rows, broken


def _checked(rule: SqlRule) -> str:
    try:
        return check_query(rule.query).text
    except SqlRefused as error:
        raise _Unevaluated([rule], error.reason) from error


def _numbers(session: SqlSession, rules: Sequence[Rule], *statements: str, timeout_s: float | None = None) -> list[int]:
    """The numbers that the last of some statements gives."""
    allowed_s = max((rule.timeout_s for rule in rules), default=TIMEOUT_S)
    # our own queries make no large values, and may read what a process with other threads has no memory left for
    is_bounded = any(isinstance(rule, SqlRule) for rule in rules)
    try:
        with (
            session.bounded() if is_bounded else nullcontext(),
            session.limited(allowed_s if timeout_s is None else timeout_s),
        ):
            for statement in statements:
                found = session.run(partial(_fetched, session, statement))
    except SqlTimedOut as error:
        cure = ", or give the rule a larger timeout_s"
        raise _Unevaluated(rules, f"{error.reason}{cure}", is_too_dear=True) from error
    except duckdb.Error as error:
        is_too_dear = isinstance(error, duckdb.OutOfMemoryException)
        raise _Unevaluated(rules, message_of(error), is_too_dear=is_too_dear) from error
    return [int(number) for number in found[0]]


def _fetched(session: SqlSession, statement: str) -> list[tuple[Any, ...]]:
    return session.connection.execute(statement).fetchall()


def _check_columns(rules: Iterable[Rule], columns: Sequence[str]) -> None:
    for rule in rules:
        for column in columns_of(rule):
            if column not in columns and columns:
                known = ", ".join(columns)
                raise ConfigError(f"rule {rule.check_name!r} names column {column!r}; the feed has {known}")


def _error(table: TableReader, rules: Sequence[Rule], cause: Exception) -> ConfigError:
    names = ", ".join(repr(rule.check_name) for rule in rules)
    return ConfigError(f"rule {names} of feed {table.feed.name!r} cannot be evaluated: {message_of(cause)}")
