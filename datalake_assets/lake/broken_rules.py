"""A feed's own rules, counted by DuckDB over exactly the committed files of a partition."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence

import duckdb
import pyarrow.dataset as ds

from datalake_assets.core.rules import DATA, RuleCount, columns_of, counting_query, is_row_rule, own_query
from datalake_assets.errors import ConfigError, SnapshotExpired
from datalake_assets.feed import FeedKind
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.scan import exact_dataset
from datalake_assets.policies import Rule, SqlRule, UniqueRule

__all__ = ["count_broken"]

#: Times that a partition is counted because files that were being read were replaced.
ATTEMPTS = 5
#: Beyond this DuckDB works on disk.
MEMORY_LIMIT = "512MB"


def count_broken(
    folder: FeedFolder, rules: Sequence[Rule], keys: Sequence[str] | None
) -> Iterator[tuple[Rule, RuleCount]]:
    """Counts the rows that break rules; see `LakeTable.count_broken`."""
    per_feed = [rule for rule in rules if isinstance(rule, UniqueRule) and rule.across == "feed"]
    per_partition = [rule for rule in rules if rule not in per_feed]
    with tempfile.TemporaryDirectory(prefix="datalake-rules-") as spill, _connect(spill) as connection:
        for key in _all_keys(folder) if keys is None else keys:
            if per_partition:
                yield from _counted(folder, connection, per_partition, key, [key])
        if per_feed:
            yield from _counted(folder, connection, per_feed, "", None)


def _connect(spill: str) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(config={"memory_limit": MEMORY_LIMIT, "temp_directory": spill})
    # a query is part of a feed's declaration: it sees the rows, and neither files nor the network
    connection.execute("SET TimeZone = 'UTC'; SET enable_external_access = false; SET lock_configuration = true")
    return connection


def _all_keys(folder: FeedFolder) -> tuple[str, ...]:
    if folder.feed.kind is not FeedKind.TABLE:
        return folder.partition_keys()
    current = folder.state.load().current
    return (f"v{current.number}",) if current else ()


def _counted(
    folder: FeedFolder,
    connection: duckdb.DuckDBPyConnection,
    rules: Sequence[Rule],
    key: str,
    partitions: Sequence[str] | None,
) -> list[tuple[Rule, RuleCount]]:
    """Counts once more whenever files were replaced meanwhile."""

    def committed() -> ds.Dataset:
        return exact_dataset(folder, partitions=partitions)

    for _ in range(ATTEMPTS):
        dataset = committed()
        _check_columns(rules, dataset.schema.names)
        try:
            return _counts(connection, dataset, rules, key)
        except duckdb.Error as error:
            if set(dataset.files) <= set(committed().files):
                text = " ".join(str(error).split("\n\nLINE ", 1)[0].split())
                raise ConfigError(
                    f"{_names(rules)} of feed {folder.feed.name!r} cannot be evaluated: {text}"
                ) from error
    raise SnapshotExpired(folder.feed.path, "files were replaced each time its rules were evaluated")


def _counts(
    connection: duckdb.DuckDBPyConnection, dataset: ds.Dataset, rules: Sequence[Rule], key: str
) -> list[tuple[Rule, RuleCount]]:
    connection.register(DATA, dataset if dataset.files else dataset.schema.empty_table())
    try:
        of_rows = [rule for rule in rules if is_row_rule(rule)]
        rows, *broken = _numbers(connection, counting_query(of_rows))
        counts = list(zip(of_rows, broken, strict=True))
        counts += [(rule, _own(connection, rule)) for rule in rules if isinstance(rule, UniqueRule | SqlRule)]
        return [(rule, RuleCount(key, rows, count)) for rule, count in counts]
    finally:
        connection.unregister(DATA)


def _own(connection: duckdb.DuckDBPyConnection, rule: UniqueRule | SqlRule) -> int:
    if isinstance(rule, SqlRule):
        statements = connection.extract_statements(rule.query)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise ConfigError(f"rule {rule.check_name!r}: give one SELECT that returns the rows which break it")
    return _numbers(connection, own_query(rule))[0]


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
