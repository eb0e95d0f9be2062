"""The tables: sums over the streams' rows so far, kept up to date as the streams grow.

A table is what an aggregation over its stream would hold: it counts expired rows too, and producers' retries twice.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datalake_assets.demo.ksqldb_server import payments as p
from datalake_assets.demo.ksqldb_server.blocks import Block, Bools, GeneratorConfig, Longs, Rows
from datalake_assets.demo.ksqldb_server.ksql_types import SqlType, decimal

__all__ = ["PLAIN_TABLES", "TABLES", "TableSpec", "TableState"]

TOTAL = decimal(38, 2)
_CHUNK_ROWS = 65_536
# sums are kept in two halves: a double is exact for 65,536 summands below 10^9, and an int64 total never overflows
_HALF = 10**9
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class TableSpec:
    """One table.

    Attributes:
        name: Its name in ksqlDB.
        columns: Names and types, the key first.
        source: The stream that it sums up; empty for a plain, non-queryable table.
        statement: How it is declared.
    """

    name: str
    columns: tuple[tuple[str, SqlType], ...]
    source: str
    statement: str

    @property
    def key(self) -> str:
        """The key column's name."""
        return self.columns[0][0]


@dataclass(slots=True)
class _Groups:
    """Counts, exact sums and maxima per group."""

    size: int
    sums: dict[str, tuple[Longs, Longs]] = field(default_factory=dict)
    tops: dict[str, Longs] = field(default_factory=dict)

    def count(self, name: str, group: Longs, where: Bools | None = None) -> None:
        """Add one per row."""
        self.add(name, group if where is None else group[where], None)

    def add(self, name: str, group: Longs, amounts: Longs | None) -> None:
        """Add the amounts, or ones."""
        high, low = self.sums.setdefault(name, (np.zeros(self.size, np.int64), np.zeros(self.size, np.int64)))
        if amounts is None:
            low += np.bincount(group, minlength=self.size)
            return
        upper, lower = np.divmod(amounts, _HALF)
        high += np.bincount(group, weights=upper, minlength=self.size).astype(np.int64)
        low += np.bincount(group, weights=lower, minlength=self.size).astype(np.int64)

    def raise_to(self, name: str, group: Longs, values: Longs) -> None:
        """Keep the greatest value."""
        top = self.tops.setdefault(name, np.full(self.size, np.iinfo(np.int64).min))
        np.maximum.at(top, group, values)

    def total(self, name: str, group: int) -> int:
        """A group's exact sum."""
        high, low = self.sums[name]
        return int(high[group]) * _HALF + int(low[group])

    def top(self, name: str, group: int) -> int | None:
        """A group's greatest value, or None if it has none."""
        value = int(self.tops[name][group])
        return None if value == np.iinfo(np.int64).min else value


def _payments(groups: _Groups, group: Longs, block: Block) -> None:
    """What every table over payments adds up."""
    cents, nulls = p.amount_cents(block.origins)
    status = p.payment_status(block.origins).index
    known, approved = ~nulls, ~nulls & (status == p.APPROVED)
    groups.count("rows", group)
    groups.count("declined", group, status == p.DECLINED)
    groups.add("amount", group[known], cents[known])
    groups.add("approved", group[approved], cents[approved])
    groups.raise_to("amount", group[known], cents[known])
    groups.raise_to("rowtime", group, block.rows.rowtime_ms())


def _by_user(groups: _Groups, block: Block) -> None:
    _payments(groups, p.user_index(block.origins), block)


def _by_merchant(groups: _Groups, block: Block) -> None:
    _payments(groups, p.merchant_index(block.origins), block)


def _by_account(groups: _Groups, block: Block) -> None:
    _payments(groups, p.account_index(block.origins), block)


def _alerts(groups: _Groups, block: Block) -> None:
    alerts = block.origins
    group = p.user_index(alerts.at(alerts.index, stream="TRANSACTION_STREAM"))
    groups.count("rows", group)
    groups.count("open", group, ~p.alert_acknowledged(alerts))
    groups.raise_to("score", group, p.alert_score(alerts))
    groups.raise_to("severity", group, p.alert_severity(alerts))
    groups.raise_to("rowtime", group, block.rows.rowtime_ms())


def _money(cents: int | None) -> Decimal | None:
    return None if cents is None else Decimal(f"{cents}E-2")


def _moment(ms: int | None) -> dt.datetime | None:
    return None if ms is None else _EPOCH + dt.timedelta(milliseconds=ms)


def _user_row(g: _Groups, at: int) -> tuple[Any, ...]:
    last = _moment(g.top("rowtime", at))
    money = (_money(g.total("amount", at)), _money(g.top("amount", at)))
    return (p.user_pool().items[at], g.total("rows", at), *money, last)


def _merchant_row(g: _Groups, at: int) -> tuple[Any, ...]:
    merchant = p.merchant_pool().items[at]
    counts = (g.total("rows", at), g.total("declined", at))
    return (merchant["MERCHANT_ID"], merchant["NAME"], merchant["CITY"], *counts, _money(g.total("amount", at)))


def _account_row(g: _Groups, at: int) -> tuple[Any, ...]:
    owner = p.user_pool().items[at // 2]
    balance = _money(-g.total("approved", at))
    return (p.account_pool().items[at], owner, balance, g.total("rows", at), _moment(g.top("rowtime", at)))


def _fraud_row(g: _Groups, at: int) -> tuple[Any, ...]:
    score = (g.top("score", at) or 0) / p.SCORES
    return (p.user_pool().items[at], g.total("rows", at), g.total("open", at), score, g.top("severity", at))


@dataclass(frozen=True, slots=True)
class _Recipe:
    facts: str
    size: int
    add: Callable[[_Groups, Block], None]
    row: Callable[[_Groups, int], tuple[Any, ...]]


_RECIPES = {
    "USER_TRANSACTION_SUMMARY": _Recipe("TRANSACTION_STREAM", p.USERS, _by_user, _user_row),
    "MERCHANT_SUMMARY": _Recipe("TRANSACTION_STREAM", p.MERCHANTS, _by_merchant, _merchant_row),
    "ACCOUNT_BALANCES": _Recipe("TRANSACTION_STREAM", p.ACCOUNTS, _by_account, _account_row),
    "FRAUD_SCORES": _Recipe("TRANSACTION_ALERTS", p.USERS, _alerts, _fraud_row),
}


def _summed(name: str, source: str, select: str, *columns: tuple[str, SqlType]) -> TableSpec:
    made = f"CREATE TABLE {name} AS SELECT {select}"
    statement = f"{made} FROM {source} GROUP BY {columns[0][0]} EMIT CHANGES;"
    return TableSpec(name, columns, source, statement)


TABLES = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            _summed(
                *("USER_TRANSACTION_SUMMARY", "TRANSACTION_STREAM"),
                "USER_ID, COUNT(*) TXN_COUNT, SUM(AMOUNT) TOTAL_AMOUNT, MAX(AMOUNT) MAX_AMOUNT, "
                "FROM_UNIXTIME(MAX(ROWTIME)) LAST_SEEN",
                *(("USER_ID", p.BIGINT), ("TXN_COUNT", p.BIGINT), ("TOTAL_AMOUNT", TOTAL)),
                *(("MAX_AMOUNT", p.AMOUNT), ("LAST_SEEN", p.TIMESTAMP)),
            ),
            _summed(
                *("MERCHANT_SUMMARY", "TRANSACTION_FLATTENED"),
                "MERCHANT_ID, LATEST_BY_OFFSET(MERCHANT_NAME) MERCHANT_NAME, LATEST_BY_OFFSET(MERCHANT_CITY, false) "
                "MERCHANT_CITY, COUNT(*) TXN_COUNT, COUNT_IF(STATUS = 'DECLINED') DECLINED_COUNT, SUM(AMOUNT) "
                "TOTAL_AMOUNT",
                *(("MERCHANT_ID", p.BIGINT), ("MERCHANT_NAME", p.STRING), ("MERCHANT_CITY", p.STRING)),
                *(("TXN_COUNT", p.BIGINT), ("DECLINED_COUNT", p.BIGINT), ("TOTAL_AMOUNT", TOTAL)),
            ),
            _summed(
                *("ACCOUNT_BALANCES", "TRANSACTION_FLATTENED"),
                "ACCOUNT_ID, LATEST_BY_OFFSET(USER_ID) USER_ID, -SUM(CASE WHEN STATUS = 'APPROVED' THEN AMOUNT END) "
                "BALANCE, COUNT(*) TXN_COUNT, FROM_UNIXTIME(MAX(ROWTIME)) UPDATED_AT",
                *(("ACCOUNT_ID", p.STRING), ("USER_ID", p.BIGINT), ("BALANCE", TOTAL)),
                *(("TXN_COUNT", p.BIGINT), ("UPDATED_AT", p.TIMESTAMP)),
            ),
            _summed(
                *("FRAUD_SCORES", "TRANSACTION_ALERTS"),
                "USER_ID, COUNT(*) ALERT_COUNT, COUNT_IF(NOT ACKNOWLEDGED) OPEN_ALERTS, MAX(SCORE) MAX_SCORE, "
                "MAX(SEVERITY) MAX_SEVERITY",
                *(("USER_ID", p.BIGINT), ("ALERT_COUNT", p.BIGINT), ("OPEN_ALERTS", p.BIGINT)),
                *(("MAX_SCORE", p.DOUBLE), ("MAX_SEVERITY", p.INTEGER)),
            ),
        )
    }
)
PLAIN_TABLES = MappingProxyType(
    {
        "USERS": TableSpec(
            "USERS",
            (("USER_ID", p.BIGINT), ("NAME", p.STRING), ("EMAIL", p.STRING)),
            "",
            "CREATE TABLE USERS (USER_ID BIGINT PRIMARY KEY, NAME STRING, EMAIL STRING) "
            "WITH (KAFKA_TOPIC='users', KEY_FORMAT='KAFKA', VALUE_FORMAT='JSON');",
        )
    }
)


class TableState:
    """A table's rows, brought up to date on demand."""

    def __init__(self, config: GeneratorConfig, name: str) -> None:
        self.spec = TABLES[name]
        self._config, self._recipe = config, _RECIPES[name]
        self._reset()

    def _reset(self) -> None:
        self._groups, self._done = _Groups(self._recipe.size), 0

    def rows(self, count: int) -> dict[int, tuple[Any, ...]]:
        """The table after ``count`` rows of its stream: a row by group, and ROWTIME in milliseconds last.

        Costs only the rows added since the last call.
        """
        if count < self._done:
            self._reset()
        for low in range(self._done, count, _CHUNK_ROWS):
            index = np.arange(low, min(count, low + _CHUNK_ROWS), dtype=np.int64)
            self._recipe.add(self._groups, Block.of(Rows(self._config, self._recipe.facts, index)))
        self._done = count
        if not count:
            return {}
        present: NDArray[np.int64] = np.flatnonzero(self._groups.sums["rows"][1])
        groups = self._groups
        return {at: (*self._recipe.row(groups, at), groups.top("rowtime", at)) for at in present.tolist()}
