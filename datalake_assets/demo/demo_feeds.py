"""The demo lake's feeds: what a payments company would land from its ksqlDB, one of each way to read a stream.

A queue comes with them, of trades of insiders.
"""

from __future__ import annotations

import datetime as dt

from datalake_assets.demo.filings import FILED_BEFORE, QUEUE
from datalake_assets.feed import ColumnNote, Feed
from datalake_assets.feed_sources import FeedKind, MartSource
from datalake_assets.live_policies import BatchPolicy, Tile
from datalake_assets.policies import (
    Checks,
    Freshness,
    Limits,
    NotNullRule,
    RangeRule,
    RegexRule,
    Rule,
    SqlRule,
    UniqueRule,
)
from datalake_assets.sources.ksqldb.declaration import KsqlDBMode, KsqlDBSource
from datalake_assets.sources.sqs.sqs_model import SqsSource

__all__ = [
    "DEMO_FEED_NAMES",
    "DEMO_MART_NAMES",
    "DEMO_QUEUE_NAMES",
    "demo_feeds",
    "demo_marts",
    "demo_queues",
]

#: The embedded server answers at once: as long as two waits of who reads, so that a moment for which the machine stands
#: still ends no stream early; more would only make the demo slow.
_IDLE_S = 1.0
#: The latest event comes 30 hours after it happened (the generator's MAX_LATE_MS); a day is pulled again until then.
_LATENESS = dt.timedelta(hours=30)
_OWNERS = ("team:payments",)
_FRESH = Freshness(max_commit_age=dt.timedelta(hours=24))
#: The demo's rows end when it is made: one that is exported again long after has no new ones, and is stale.
_FRESH_ROWS = _FRESH.model_copy(update={"max_event_age": dt.timedelta(days=3)})

_STREAMS: tuple[tuple[str, str, str, KsqlDBMode, tuple[str, str] | None], ...] = (
    (
        "transaction_stream",
        "payments",
        "Every card payment as it arrives, its merchant nested. Read by a push query, resumed by offset.",
        KsqlDBMode.OFFSETS,
        None,
    ),
    (
        "transaction_flattened",
        "payments",
        (
            "The same payments with the merchant's fields as columns. A derived stream that carries the source's "
            "partition and offset, read by bounded pull queries."
        ),
        KsqlDBMode.OFFSETS,
        ("SRC_PART", "SRC_OFF"),
    ),
    (
        "transaction_alerts",
        "risk",
        "Payments that a fraud rule objected to. Read by pull queries; a day is replaced as a whole.",
        KsqlDBMode.PULL,
        None,
    ),
    (
        "user_events",
        "users",
        "Log-ins, devices and consent: every kind of nested column. Read by a push query, resumed by offset.",
        KsqlDBMode.OFFSETS,
        None,
    ),
)
_TABLES: tuple[tuple[str, str, str], ...] = (
    ("user_transaction_summary", "users", "Number and volume of payments per user."),
    ("merchant_summary", "payments", "Number and volume of payments per merchant."),
    ("account_balances", "payments", "The balance of every account."),
    ("fraud_scores", "risk", "The latest fraud score of every user."),
)

#: What the rows of some feeds have to meet: a rule of each kind. A few payments are sent twice, as it happens.
_RULES: dict[str, tuple[Rule, ...]] = {
    "transaction_stream": (
        NotNullRule(column="user_id", description="Every payment is somebody's."),
        RegexRule(column="currency", pattern="[A-Z]{3}", description="Currencies are ISO 4217 codes."),
        UniqueRule(
            columns=("transaction_id",),
            limits=Limits(warn=1, error=5),
            description="Payments are sent once; a percent of repetitions a day is known and put up with.",
        ),
    ),
    "transaction_alerts": (
        RangeRule(column="score", min=0, max=1, description="Scores are probabilities."),
        SqlRule(
            name="alert_after_payment",
            query="SELECT * FROM data WHERE detected_at > rowtime + INTERVAL 1 DAY",
            description="An alert is about a payment of the same day.",
        ),
    ),
}

#: What the live view asks of the payments as they come.
_TILES = (
    Tile(name="payments", sql="SELECT count(*) FROM data", kind="number"),
    Tile(
        name="spend per second",
        sql="SELECT date_trunc('second', rowtime) AS second, sum(amount) AS spend FROM data GROUP BY 1 ORDER BY 1",
        kind="series",
    ),
    Tile(
        name="top merchants",
        sql="SELECT merchant.name AS merchant, sum(amount) AS spend FROM data GROUP BY 1 ORDER BY 2 DESC LIMIT 8",
        kind="table",
    ),
)
#: A demo that is watched lands what comes twice as often as others.
_BATCH = BatchPolicy(max_age=dt.timedelta(seconds=2))

_AMOUNT = ColumnNote(description="What was paid.", unit="of `currency`")
_USER = ColumnNote(description="Who paid.", tags={"pii": "indirect"})
#: What some columns mean, as the UI shows it.
_COLUMNS: dict[str, dict[str, ColumnNote]] = {
    "transaction_stream": {
        "transaction_id": ColumnNote(description="The payment; a few are sent twice."),
        "user_id": _USER,
        "amount": _AMOUNT,
        "currency": ColumnNote(description="An ISO 4217 code."),
        "risk_score": ColumnNote(description="How likely the payment is fraud.", unit="probability"),
        "event_time": ColumnNote(description="When the card was used; `rowtime` is when the payment arrived."),
    },
    "transaction_alerts": {
        "user_id": _USER,
        "score": ColumnNote(description="How sure the rule is.", unit="probability"),
        "detected_at": ColumnNote(description="When the rule objected."),
    },
    "account_balances": {"balance": ColumnNote(description="What the account holds.", unit="USD")},
}

DEMO_FEED_NAMES = tuple(name for name, *_ in (*_STREAMS, *_TABLES))

#: Form 4 filings have these members: EDGAR's own, of its data sets.
_FILING = {
    "accession_number": "string not null",
    "filed_at": "timestamptz not null",
    "transaction_date": "date not null",
    "ticker": "string not null",
    "issuer": "string",
    "owner": "string not null",
    "is_director": "boolean",
    "is_officer": "boolean",
    "officer_title": "string",
    "transaction_code": "string not null",
    "shares": "long not null",
    "price": "decimal(12,4)",
    "shares_after": "long",
}
DEMO_QUEUE_NAMES = ("insider_trades",)

#: What is made of the feeds, by SQL: one by day, one of all there is.
_MARTS: tuple[tuple[str, FeedKind, str, str, str], ...] = (
    (
        "daily_payments",
        FeedKind.STREAM,
        "payments",
        "Payments of each day by currency and category, and how many of them a rule objected to.",
        """
SELECT t.currency, t.merchant.category AS category,
       count(DISTINCT t.transaction_id) AS payments,
       CAST(sum(t.amount) AS DECIMAL(18, 2)) AS amount,
       count(DISTINCT a.transaction_id) AS objected
FROM transaction_stream t
LEFT JOIN transaction_alerts a USING (transaction_id)
GROUP BY ALL
""",
    ),
    (
        "risky_users",
        FeedKind.TABLE,
        "risk",
        "Users with alerts, by how much they paid.",
        """
SELECT f.user_id, f.alert_count, f.max_score, s.txn_count AS payments, s.total_amount
FROM fraud_scores f
JOIN user_transaction_summary s USING (user_id)
WHERE f.alert_count > 0
ORDER BY s.total_amount DESC
""",
    ),
)
DEMO_MART_NAMES = tuple(name for name, *_ in _MARTS)


def demo_marts(start: dt.date) -> tuple[Feed, ...]:
    """The two marts of a demo lake.

    Args:
        start: The first day that its streams have rows on.
    """
    return tuple(
        Feed(
            name=name,
            kind=kind,
            source=MartSource(query=query),
            start=start,
            owners=_OWNERS,
            tags={"demo": "", "domain": group},
            group=group,
            description=description,
        )
        for name, kind, group, description, query in _MARTS
    )


def demo_queues(start: dt.date) -> tuple[Feed, ...]:
    """The feed of a demo lake that is read from a queue: trades of insiders, by month of filing.

    Args:
        start: The first day that its streams have rows on.
    """
    (name,) = DEMO_QUEUE_NAMES
    return (
        Feed(
            name=name,
            kind=FeedKind.STREAM,
            source=SqsSource(queue=QUEUE, fields=_FILING, idle_s=_IDLE_S),
            time_column="filed_at",
            partition_by="month",
            start=start - FILED_BEFORE,
            freshness=_FRESH_ROWS,
            checks=Checks(
                rules=(
                    RangeRule(column="shares", min=1, description="Nobody reports a trade of nothing."),
                    UniqueRule(columns=("accession_number",), description="A filing has a number of its own."),
                )
            ),
            owners=("team:markets",),
            tags={"demo": "", "domain": "filings"},
            group="filings",
            description="Trades of insiders in the shares of their companies, from Form 4 filings in a queue.",
            columns={
                "accession_number": ColumnNote(description="EDGAR's number of the filing."),
                "owner": ColumnNote(description="Who traded.", tags={"pii": "direct"}),
                "transaction_code": ColumnNote(
                    description="P: bought, S: sold, A: granted, M: option exercised, F: withheld for tax."
                ),
                "price": ColumnNote(unit="USD"),
                "shares_after": ColumnNote(description="Shares that the owner has afterwards."),
            },
        ),
    )


def demo_feeds(start: dt.date) -> tuple[Feed, ...]:
    """The eight feeds of a demo lake.

    Args:
        start: The first day that its streams have rows on.
    """
    streams = (
        _feed(name, FeedKind.STREAM, group, description, start, mode=mode, offset_columns=offsets)
        for name, group, description, mode, offsets in _STREAMS
    )
    tables = (_feed(name, FeedKind.TABLE, group, description, start) for name, group, description in _TABLES)
    return (*streams, *tables)


def _feed(
    name: str,
    kind: FeedKind,
    group: str,
    description: str,
    start: dt.date,
    *,
    mode: KsqlDBMode = KsqlDBMode.OFFSETS,
    offset_columns: tuple[str, str] | None = None,
) -> Feed:
    return Feed(
        name=name,
        kind=kind,
        source=KsqlDBSource(object=name.upper(), mode=mode, offset_columns=offset_columns, idle_s=_IDLE_S),
        start=start,
        lateness=_LATENESS,
        freshness=_FRESH if kind is FeedKind.TABLE else _FRESH_ROWS,
        checks=Checks(rules=_RULES.get(name, ())),
        tiles=_TILES if name == "transaction_stream" else (),
        batch=_BATCH,
        owners=_OWNERS,
        tags={"demo": "", "domain": group},
        group=group,
        description=description,
        columns=_COLUMNS.get(name, {}),
    )
