"""The story that the demo's data tells: people pay by card at shops, and some payments look wrong.

Every function here says one fact about rows; streams show the facts as columns and tables add them up, so they agree.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from functools import cache
from typing import Any

import numpy as np

from datalake_assets.demo.ksqldb_server.blocks import Bools, Cents, Longs, Millis, Numbered, Pool, Pooled, Rows
from datalake_assets.demo.ksqldb_server.ksql_types import decimal, scalar, struct

__all__ = [
    "ACCOUNTS",
    "AMOUNT",
    "APPROVED",
    "BIGINT",
    "BOOLEAN",
    "DECLINED",
    "DOUBLE",
    "INTEGER",
    "MERCHANTS",
    "MERCHANT_TYPE",
    "SCORES",
    "STRING",
    "TIMESTAMP",
    "USERS",
    "account_index",
    "account_pool",
    "alert_acknowledged",
    "alert_score",
    "alert_severity",
    "amount",
    "amount_cents",
    "event_time",
    "memo",
    "merchant_index",
    "merchant_pool",
    "payment_status",
    "pick",
    "score",
    "transaction_id",
    "user_id",
    "user_index",
    "user_pool",
]

BOOLEAN, INTEGER, BIGINT = scalar("BOOLEAN"), scalar("INTEGER"), scalar("BIGINT")
DOUBLE, STRING, TIMESTAMP = scalar("DOUBLE"), scalar("STRING"), scalar("TIMESTAMP")
AMOUNT = decimal(18, 2)
USERS, ACCOUNTS, MERCHANTS, SCORES = 5_000, 10_000, 400, 1_000
APPROVED, DECLINED = 0, 1
MERCHANT_TYPE = struct(
    MERCHANT_ID=BIGINT,
    NAME=STRING,
    CATEGORY=STRING,
    CITY=STRING,
    LATITUDE=DOUBLE,
    FEE_RATE=decimal(5, 4),
    MEMBER_SINCE=TIMESTAMP,
)

# beyond 2^53, where a reader that goes through floats loses the last digit
_FIRST_USER_ID = 9_007_199_254_740_993
_BIGGEST_CENTS = 10**18 - 1
_STATUSES = ("APPROVED", "DECLINED", "REFUNDED", "PENDING")
_CATEGORIES = ("grocery", "travel", "fuel", "books", "café", "音楽", "pharmacy", "games")
_CITIES = ("Zürich", "København", "São Paulo", "東京", "Nairobi", "Kraków", "New York", "Αθήνα")
_NAMES = (
    "Corner Shop",
    "Bäckerei Müller",
    "O'Neill & Sons",
    "Café\u2028Zwei",
    "🍕 Roma",
)
# one merchant in fifty has a name that JSON must escape, and about one memo in fifty: often enough to meet, as rare
# as in real payments
_ESCAPED_NAMES = ('The "Good" Store', "C:\\Deli")
_SELDOM = 50
_PLAIN_MEMOS: tuple[str | None, ...] = (
    *(None,) * 10,
    *("", "lunch", "monthly rent", "Überweisung", "thanks 🎉", "家賃", "null", "N/A", "  padded  ", "a,b;c|d"),
    *("line\u2028separator", "next\u0085line", "👩‍👩‍👧 trip"),
)
_ESCAPED_MEMOS = ('she said "hi"', "back\\slash\\", "two\nlines", "tab\tbed", "bell\u0007")
_MEMOS = _PLAIN_MEMOS * 11 + _ESCAPED_MEMOS
_STATUS_POOL = Pool(STRING, _STATUSES)
_MEMO_POOL = Pool(STRING, _MEMOS)
_SCORE_POOL = Pool(DOUBLE, tuple(step / SCORES for step in range(SCORES)))
_LOTS = ("APPROVED",) * 15 + ("DECLINED",) * 2 + ("REFUNDED",) * 2 + ("PENDING",)


@cache
def user_pool() -> Pool:
    """The ids of all users."""
    return Pool(BIGINT, tuple(_FIRST_USER_ID + 2 * user for user in range(USERS)))


@cache
def account_pool() -> Pool:
    """The ids of all accounts; accounts 2u and 2u+1 belong to user u."""
    return Pool(STRING, tuple(f"AC-{account:08d}" for account in range(ACCOUNTS)))


@cache
def merchant_pool() -> Pool:
    """All merchants, as STRUCTs."""
    return Pool(MERCHANT_TYPE, tuple(_merchant(number) for number in range(MERCHANTS)))


def _merchant_name(number: int) -> str:
    seldom, rest = divmod(number, _SELDOM)
    return _ESCAPED_NAMES[seldom % len(_ESCAPED_NAMES)] if rest == _SELDOM - 2 else _NAMES[number % len(_NAMES)]


def _merchant(number: int) -> dict[str, Any]:
    opened = dt.datetime(2019, 1, 1, tzinfo=dt.UTC) + dt.timedelta(hours=37 * number, milliseconds=number)
    return {
        "MERCHANT_ID": 10_000 + number,
        "NAME": f"{_merchant_name(number)} {number}",
        "CATEGORY": _CATEGORIES[number // 3 % len(_CATEGORIES)],
        "CITY": None if number % _SELDOM == _SELDOM - 1 else _CITIES[number // 5 % len(_CITIES)],
        "LATITUDE": round(-60 + number * 0.3017, 4),
        "FEE_RATE": Decimal(50 + number).scaleb(-4),
        "MEMBER_SINCE": opened,
    }


def transaction_id(rows: Rows) -> Numbered:
    """The id of each payment, unique but for producers' retries."""
    return Numbered("tx-", rows.index)


def user_index(rows: Rows) -> Longs:
    """Which user pays: some pay far more often than others."""
    return np.minimum(rows.below("user", USERS), rows.below("user again", USERS))


def user_id(rows: Rows) -> Pooled:
    """The id of the user who pays."""
    return Pooled(user_pool(), user_index(rows))


def account_index(rows: Rows) -> Longs:
    """Which of the user's two accounts pays."""
    return 2 * user_index(rows) + rows.below("account", 2)


def merchant_index(rows: Rows) -> Longs:
    """Which merchant is paid."""
    return np.minimum(rows.below("merchant", MERCHANTS), rows.below("merchant again", MERCHANTS))


def amount_cents(rows: Rows) -> tuple[Longs, Bools]:
    """The amounts in hundredths, and where they are NULL: mostly small, refunds negative, a few huge."""
    bits = rows.draw("amount")
    size, dice = (bits >> np.uint64(14)).astype(np.int64), (bits % np.uint64(10_000)).astype(np.int64)
    cents = 1 + np.where(dice < 9_300, size % 50_000, size % 5_000_000)  # noqa: PLR2004 - shares in ten thousandths
    cents = np.where((dice >= 9_800) & (dice < 9_975), -cents, cents)  # noqa: PLR2004 - as above
    cents = np.where(dice >= 9_995, _BIGGEST_CENTS - size % 1_000_000, cents)  # noqa: PLR2004 - as above
    return cents, (dice >= 9_975) & (dice < 9_995)  # noqa: PLR2004 - as above


def amount(rows: Rows) -> Cents:
    """The amounts as a column."""
    return Cents(AMOUNT, *amount_cents(rows))


def payment_status(rows: Rows) -> Pooled:
    """What became of each payment."""
    lots = np.array([_STATUSES.index(status) for status in _LOTS], dtype=np.int64)
    return Pooled(_STATUS_POOL, lots[rows.below("status", len(_LOTS))])


def event_time(rows: Rows) -> Millis:
    """When the person acted, a little before the event's own timestamp."""
    return Millis(TIMESTAMP, np.maximum(rows.rowtime_ms() - rows.below("reaction", 5_000), rows.config.start_ms))


def memo(rows: Rows) -> Pooled:
    """What the payer wrote: often nothing, sometimes what breaks naive parsers."""
    return pick(rows, "memo", _MEMO_POOL)


def score(rows: Rows, fact: str) -> Pooled:
    """A number in [0, 1) with three decimals."""
    return pick(rows, fact, _SCORE_POOL)


def pick(rows: Rows, fact: str, pool: Pool) -> Pooled:
    """One of the pool's values per row."""
    return Pooled(pool, rows.below(fact, len(pool.items)))


def alert_score(rows: Rows) -> Longs:
    """The alerts' scores in thousandths."""
    return rows.below("alert score", SCORES)


def alert_severity(rows: Rows) -> Longs:
    """The alerts' severities, 1 to 5, from their scores."""
    return 1 + alert_score(rows) // 200


def alert_acknowledged(rows: Rows) -> Bools:
    """Whether somebody looked at the alert."""
    acknowledged: Bools = rows.below("acknowledged", 3) == 0
    return acknowledged
