"""The four streams: their columns, in order, and where the values come from."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from datalake_assets.demo.ksqldb_server import payments as p
from datalake_assets.demo.ksqldb_server.blocks import Block, Column, Ints, Millis, Numbered, Pool, Pooled, Rows
from datalake_assets.demo.ksqldb_server.ksql_types import SqlType, array, decimal, map_of, scalar, struct

__all__ = ["PSEUDO_COLUMNS", "STREAMS", "ColumnSpec", "StreamSpec"]


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """One column of a stream."""

    name: str
    kind: SqlType
    make: Callable[[Block], Column]
    key: bool = False


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """One stream.

    Attributes:
        name: Its name in ksqlDB.
        columns: Its columns, key first.
        facts: The stream whose random facts it shows: itself, or the one that it derives from.
        statement: How it is declared.
    """

    name: str
    columns: tuple[ColumnSpec, ...]
    facts: str
    statement: str

    def column(self, name: str) -> ColumnSpec | None:
        """The column or pseudo-column of this name, or None."""
        return next((column for column in (*self.columns, *PSEUDO_COLUMNS) if column.name == name), None)


def _partition(block: Block) -> Pooled:
    return Pooled(_numbers(block.rows.config.partitions), block.rows.partition())


@lru_cache(maxsize=16)
def _numbers(count: int) -> Pool:
    return Pool(p.INTEGER, tuple(range(count)))


PSEUDO_COLUMNS = (
    ColumnSpec("ROWTIME", p.BIGINT, lambda b: Ints(p.BIGINT, b.rows.rowtime_ms())),
    ColumnSpec("ROWPARTITION", p.INTEGER, _partition),
    ColumnSpec("ROWOFFSET", p.BIGINT, lambda b: Ints(p.BIGINT, b.rows.offset())),
)


def _merchant_field(name: str) -> Callable[[Block], Column]:
    pools: list[Pool] = []

    def make(block: Block) -> Column:
        if not pools:
            pools.append(p.merchant_pool().field(name))
        return Pooled(pools[0], p.merchant_index(block.origins))

    return make


_CURRENCIES = Pool(p.STRING, ("EUR", "USD", "CHF", "JPY"))
_MAYBE = Pool(p.BOOLEAN, (True, False, True, False, True, False, True, False, True, None))
_TRANSACTION_ID = ColumnSpec("TRANSACTION_ID", p.STRING, lambda b: p.transaction_id(b.origins), key=True)
_USER_ID = ColumnSpec("USER_ID", p.BIGINT, lambda b: p.user_id(b.origins))
_ACCOUNT_ID = ColumnSpec("ACCOUNT_ID", p.STRING, lambda b: Pooled(p.account_pool(), p.account_index(b.origins)))
_AMOUNT = ColumnSpec("AMOUNT", p.AMOUNT, lambda b: p.amount(b.origins))
_CURRENCY = ColumnSpec("CURRENCY", p.STRING, lambda b: p.pick(b.origins, "currency", _CURRENCIES))
_PAYMENT_TAIL = (
    ColumnSpec("CARD_PRESENT", p.BOOLEAN, lambda b: p.pick(b.origins, "card present", _MAYBE)),
    ColumnSpec("STATUS", p.STRING, lambda b: p.payment_status(b.origins)),
    ColumnSpec("RISK_SCORE", p.DOUBLE, lambda b: p.score(b.origins, "risk")),
    ColumnSpec("EVENT_TIME", p.TIMESTAMP, lambda b: p.event_time(b.origins)),
    ColumnSpec("MEMO", p.STRING, lambda b: p.memo(b.origins)),
)
_TRANSACTIONS = (
    *(_TRANSACTION_ID, _USER_ID, _ACCOUNT_ID, _AMOUNT, _CURRENCY),
    ColumnSpec("MERCHANT", p.MERCHANT_TYPE, lambda b: Pooled(p.merchant_pool(), p.merchant_index(b.origins))),
    *_PAYMENT_TAIL,
)
_FLATTENED = (
    *(_TRANSACTION_ID, _USER_ID, _ACCOUNT_ID, _AMOUNT, _CURRENCY),
    ColumnSpec("MERCHANT_ID", p.BIGINT, _merchant_field("MERCHANT_ID")),
    ColumnSpec("MERCHANT_NAME", p.STRING, _merchant_field("NAME")),
    ColumnSpec("MERCHANT_CATEGORY", p.STRING, _merchant_field("CATEGORY")),
    ColumnSpec("MERCHANT_CITY", p.STRING, _merchant_field("CITY")),
    *_PAYMENT_TAIL,
    ColumnSpec("SRC_PART", p.INTEGER, _partition),
    ColumnSpec("SRC_OFF", p.BIGINT, lambda b: Ints(p.BIGINT, b.rows.offset())),
)


def _payment(block: Block) -> Rows:
    """The payment that an alert is about: the one of the same number."""
    return block.origins.at(block.origins.index, stream="TRANSACTION_STREAM")


_RULES = Pool(p.STRING, ("velocity", "amount_spike", "new_device", "impossible_travel", 'list "B"', "geo\\mismatch"))
_YES_NO = Pool(p.BOOLEAN, (False, True))
_TEXTS = map_of(p.STRING, p.STRING)
_DETAILS = Pool(
    _TEXTS,
    (
        None,
        {},
        {"ip": "203.0.113.7", "asn": "AS64500"},
        {"city": "Zürich", "note": 'quoted "word"'},
        {"model": "v3", "reason": "too fast", "empty": None},
    ),
)
_ALERTS = (
    ColumnSpec("ALERT_ID", p.STRING, lambda b: Numbered("al-", b.origins.index), key=True),
    ColumnSpec("TRANSACTION_ID", p.STRING, lambda b: p.transaction_id(_payment(b))),
    ColumnSpec("USER_ID", p.BIGINT, lambda b: p.user_id(_payment(b))),
    ColumnSpec("AMOUNT", p.AMOUNT, lambda b: p.amount(_payment(b))),
    ColumnSpec("RULE", p.STRING, lambda b: p.pick(b.origins, "rule", _RULES)),
    ColumnSpec("SEVERITY", p.INTEGER, lambda b: Ints(p.INTEGER, p.alert_severity(b.origins))),
    ColumnSpec("SCORE", p.DOUBLE, lambda b: p.score(b.origins, "alert score")),
    ColumnSpec("ACKNOWLEDGED", p.BOOLEAN, lambda b: Pooled(_YES_NO, p.alert_acknowledged(b.origins).astype(np.int64))),
    ColumnSpec("DETECTED_AT", p.TIMESTAMP, lambda b: p.event_time(b.origins)),
    ColumnSpec("DETAILS", _TEXTS, lambda b: p.pick(b.origins, "details", _DETAILS)),
)

_EVENT_TYPES = Pool(p.STRING, ("login", "logout", "card_added", "password_reset", "limit_changed", "anmeldung_ü"))
_TAGS = Pool(array(p.STRING), (None, [], ["new"], ["vip", "beta"], ["a,b", 'c"d', "e\u2028f"], ["x", None, "🎉"]))
_COUNTERS = Pool(map_of(p.STRING, p.INTEGER), (None, {}, {"clicks": 3}, {"clicks": 0, "scrolls": 2**31 - 1}))
_SCREEN = struct(WIDTH=p.INTEGER, HEIGHT=p.INTEGER)
_DEVICE_TYPE = struct(
    OS=p.STRING,
    VERSION=p.STRING,
    SCREEN=_SCREEN,
    PRICE=decimal(10, 2),
    BOUGHT_ON=scalar("DATE"),
    SEEN_AT=p.TIMESTAMP,
    FEATURES=array(p.STRING),
)
_SEEN = dt.datetime(2024, 12, 31, 23, 59, 59, 999000, tzinfo=dt.UTC)
_DEVICES = Pool(
    _DEVICE_TYPE,
    (
        None,
        *(
            {
                "OS": system,
                "VERSION": version,
                "SCREEN": None if width is None else {"WIDTH": width, "HEIGHT": 2 * width},
                "PRICE": Decimal(price),
                "BOUGHT_ON": dt.date(2020, 2, 29),
                "SEEN_AT": _SEEN,
                "FEATURES": ["nfc", None] if version else None,
            }
            for system, version, width, price in (
                ("Android", "15", 1080, "899.90"),
                ("iOS", "18.1", 1170, "1299.00"),
                ("Linux 🐧", None, None, "0.01"),
            )
        ),
    ),
)
_RATIOS = (0.0, -0.5, 11.0, 1e10, 1.5e-7, 123456.789, float("nan"), float("inf"), float("-inf"), None)
_LATENCIES = Pool(p.DOUBLE, _RATIOS)
_PRINTS = Pool(scalar("BYTES"), (None, b"", b"{", b"\x00\xff", bytes(range(64))))
_BIRTHDAYS = Pool(scalar("DATE"), (None, dt.date(1970, 1, 11), dt.date(1999, 12, 31), dt.date(2004, 2, 29)))
_ALARMS = Pool(scalar("TIME"), (None, dt.time(0, 0, 10), dt.time(10, 0), dt.time(23, 59, 59)))


def _event_id(block: Block) -> Ints:
    """Sixty-three random bits: most ids are beyond what a float can hold."""
    return Ints(p.BIGINT, (block.origins.draw("id") >> np.uint64(1)).astype(np.int64))


def _occurred_at(block: Block) -> Millis:
    times = p.event_time(block.origins)
    return Millis(p.TIMESTAMP, times.data, block.origins.below("unknown time", 500) == 0)


_EVENTS = (
    ColumnSpec("EVENT_ID", p.BIGINT, _event_id, key=True),
    ColumnSpec("USER_ID", p.BIGINT, lambda b: p.user_id(b.origins)),
    ColumnSpec("EVENT_TYPE", p.STRING, lambda b: p.pick(b.origins, "type", _EVENT_TYPES)),
    ColumnSpec("SESSION_ID", p.STRING, lambda b: Numbered("s-", b.origins.index // 7)),
    ColumnSpec("TAGS", _TAGS.kind, lambda b: p.pick(b.origins, "tags", _TAGS)),
    ColumnSpec("COUNTERS", _COUNTERS.kind, lambda b: p.pick(b.origins, "counters", _COUNTERS)),
    ColumnSpec("DEVICE", _DEVICE_TYPE, lambda b: p.pick(b.origins, "device", _DEVICES)),
    ColumnSpec("FINGERPRINT", _PRINTS.kind, lambda b: p.pick(b.origins, "fingerprint", _PRINTS)),
    ColumnSpec("LATENCY", p.DOUBLE, lambda b: p.pick(b.origins, "latency", _LATENCIES)),
    ColumnSpec("CONSENT", p.BOOLEAN, lambda b: p.pick(b.origins, "consent", _MAYBE)),
    ColumnSpec("BIRTHDAY", _BIRTHDAYS.kind, lambda b: p.pick(b.origins, "birthday", _BIRTHDAYS)),
    ColumnSpec("ALARM", _ALARMS.kind, lambda b: p.pick(b.origins, "alarm", _ALARMS)),
    ColumnSpec("OCCURRED_AT", p.TIMESTAMP, _occurred_at),
    ColumnSpec("NOTE", p.STRING, lambda b: p.memo(b.origins)),
)


def _declared(name: str, columns: tuple[ColumnSpec, ...]) -> StreamSpec:
    listed = ", ".join(f"{column.name} {column.kind}{' KEY' if column.key else ''}" for column in columns)
    options = f"KAFKA_TOPIC='{name.lower()}', KEY_FORMAT='KAFKA', VALUE_FORMAT='JSON'"
    return StreamSpec(name, columns, name, f"CREATE STREAM {name} ({listed}) WITH ({options});")


STREAMS = MappingProxyType(
    {
        "TRANSACTION_STREAM": _declared("TRANSACTION_STREAM", _TRANSACTIONS),
        "TRANSACTION_FLATTENED": StreamSpec(
            "TRANSACTION_FLATTENED",
            _FLATTENED,
            "TRANSACTION_STREAM",
            "CREATE STREAM TRANSACTION_FLATTENED AS SELECT TRANSACTION_ID, USER_ID, ACCOUNT_ID, AMOUNT, CURRENCY, "
            "MERCHANT->MERCHANT_ID MERCHANT_ID, MERCHANT->NAME MERCHANT_NAME, MERCHANT->CATEGORY MERCHANT_CATEGORY, "
            "MERCHANT->CITY MERCHANT_CITY, CARD_PRESENT, STATUS, RISK_SCORE, EVENT_TIME, MEMO, "
            "ROWPARTITION SRC_PART, ROWOFFSET SRC_OFF FROM TRANSACTION_STREAM EMIT CHANGES;",
        ),
        "TRANSACTION_ALERTS": _declared("TRANSACTION_ALERTS", _ALERTS),
        "USER_EVENTS": _declared("USER_EVENTS", _EVENTS),
    }
)
