"""The demo lake: its feeds, and which server it reads: the configured one, or one inside this process.

A demo lake carries ``control/demo.json``, which says what its server serves. Every process that exports such a lake
(a command, a Dagster run) starts a server of its own from it, and since the rows are a pure function of that document,
all of them serve the same rows. The feeds are what a payments company would land from its ksqlDB, one of each way to
read a stream.
"""

from __future__ import annotations

import datetime as dt
import errno
import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from datalake_assets.errors import ConfigError, CorruptLake, ObjectNotFound
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.swap import swap_object
from datalake_assets.settings import Settings
from datalake_assets.sources.ksqldb.declaration import KSQLDB, KsqlDBSettings

if TYPE_CHECKING:
    from datalake_assets.demo.ksqldb_server.blocks import GeneratorConfig

from datalake_assets.feed import ColumnNote, Feed
from datalake_assets.feed_sources import FeedKind, MartSource
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

__all__ = [
    "DEMO_FEED_NAMES",
    "DEMO_KEY",
    "DEMO_MART_NAMES",
    "DEMO_SEED",
    "DemoLake",
    "demo_feeds",
    "demo_marts",
    "demo_stand_in",
    "plan_demo",
    "prepare_demo",
    "read_demo",
    "serve_ksqldb",
    "served_from",
    "source_line",
]


DEMO_KEY = "control/demo.json"
DEMO_SEED = 7
#: A demo begins up to this many days before the day of its first run, so that it has partitions to show.
DEMO_DAYS = 29
#: As many as a small shop's: fewer records make fewer days.
EVENTS_PER_DAY = 250
#: The rows that are asked for last arrive within this time, whatever their number.
LEAST_SPAN = dt.timedelta(seconds=1)


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class DemoPace(BaseModel):
    """How fast a demo lake's rows arrive from one of them on.

    Attributes:
        index: The first row.
        since: When it arrives.
        events_per_day: Rows per day in each stream.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: Annotated[int, Field(ge=0)]
    since: AwareDatetime
    events_per_day: Annotated[int, Field(ge=1)]


class DemoLake(BaseModel):
    """What the embedded server serves for one lake.

    Attributes:
        seed: Another seed gives other rows.
        start: Day of the first row, UTC.
        events_per_day: Rows per day in each stream.
        records: Rows in each stream; None lets them grow with the clock.
        paces: How fast the rows arrive that were asked for later.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = DEMO_SEED
    start: dt.date
    events_per_day: Annotated[int, Field(ge=1)]
    records: Annotated[int, Field(ge=1)] | None = None
    paces: tuple[DemoPace, ...] = ()

    @property
    def start_time(self) -> dt.datetime:
        """Midnight UTC of ``start``."""
        return dt.datetime.combine(self.start, dt.time(), dt.UTC)

    def end_time(self) -> dt.datetime:
        """When the next row after the last would arrive; nothing is served of a later time."""
        last = (
            self.paces[-1]
            if self.paces
            else DemoPace(index=0, since=self.start_time, events_per_day=self.events_per_day)
        )
        return last.since + dt.timedelta(days=((self.records or 0) - last.index) / last.events_per_day)

    def generator(self) -> GeneratorConfig:
        """The embedded server's configuration."""
        from datalake_assets.demo.ksqldb_server.blocks import GeneratorConfig, Pace  # noqa: PLC0415  numpy

        return GeneratorConfig(
            seed=self.seed,
            start=self.start_time,
            events_per_day=self.events_per_day,
            records=self.records,
            paces=tuple(Pace(each.index, each.since, each.events_per_day) for each in self.paces),
        )


def plan_demo(current: DemoLake | None, records: int, *, now: dt.datetime) -> DemoLake:
    """What a demo lake is to serve so that every stream has ``records`` rows, the last of them a few minutes old.

    Rows that are added arrive between the end of those that are there and now, so that none has to change.

    Args:
        current: What it serves now; None for a new lake.
        records: Rows wanted in each stream. Streams never shrink: fewer than now leaves it as it is.
        now: Aware UTC.
    """
    if current is None:
        days = min(max(1, records // EVENTS_PER_DAY), DEMO_DAYS)
        start = now.date() - dt.timedelta(days=days)
        elapsed = now - dt.datetime.combine(start, dt.time(), dt.UTC)
        return DemoLake(start=start, events_per_day=_pace(records, elapsed), records=records)
    if current.records is None or records <= current.records:
        return current
    end = current.end_time()
    pace = DemoPace(
        index=current.records, since=end, events_per_day=_pace(records - current.records, max(now - end, LEAST_SPAN))
    )
    return current.model_copy(update={"records": records, "paces": (*current.paces, pace)})


def _pace(records: int, time: dt.timedelta) -> int:
    """The least number of rows a day with which so many arrive within this time."""
    return math.ceil(records * (dt.timedelta(days=1) / time))


def read_demo(store: Store) -> DemoLake | None:
    """What this lake's embedded server serves; None if it is no demo lake.

    Raises:
        CorruptLake: ``control/demo.json`` is not such a document.
    """
    return _read(store)[0]


def prepare_demo(store: Store, records: int) -> DemoLake:
    """Makes a lake a demo lake that serves so many rows, or raises what one serves; idempotent.

    Raises:
        PreconditionFailed: Another process does the same at this moment.
    """
    current, etag = _read(store)
    wanted = plan_demo(current, records, now=store.now())
    if wanted == current:
        return wanted
    body = wanted.model_dump_json(indent=2).encode() + b"\n"
    swap_object(store, DEMO_KEY, body, etag=None if current is None else etag)
    return wanted


@contextmanager
def demo_stand_in(settings: Settings, store: Store, types: Collection[str]) -> Iterator[Settings]:
    """The settings, with the URL of a demo lake's own server where they name none; implements `StandIn`.

    Args:
        settings: What is configured; if that is a server, it wins.
        store: The lake; one that is no demo lake is left without a server.
        types: The types of sources that are to be read; the server runs only if it is of one of them.
    """
    demo = None
    if KSQLDB.type in types and not settings.of(KsqlDBSettings).ksqldb_url:
        demo = read_demo(store)
    if demo is None:
        yield settings
        return
    from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer  # noqa: PLC0415  costs a server's imports

    with KsqlServer(demo.generator()) as server:
        yield settings.of(KsqlDBSettings).model_copy(update={"ksqldb_url": server.url})


def source_line(settings: Settings) -> str:
    """Where a demo lake's rows come from, for its first screen: the system, and its server."""
    return f"ksqlDB  {settings.of(KsqlDBSettings).ksqldb_url}"


def served_from(
    records: int | None, events_per_day: int | None, start: dt.datetime | None, *, now: dt.datetime
) -> tuple[dt.datetime, int]:
    """When the rows of a server in the foreground begin, and how many there are a day.

    Rows of a certain number end now, as a demo's do: a feed of theirs would be late from its first export on. Rows
    that grow with the clock began some weeks ago.

    Raises:
        ConfigError: They would have begun before every clock's epoch.
    """
    if start is None and records is not None and events_per_day is None:
        demo = plan_demo(None, records, now=now)
        return demo.start_time, demo.events_per_day
    pace = EVENTS_PER_DAY if events_per_day is None else events_per_day
    if start is not None or records is None:
        today = now.replace(hour=0, minute=0, second=0, microsecond=0)
        return start or today - dt.timedelta(days=DEMO_DAYS), pace
    if records / pace > (now - _EPOCH) / dt.timedelta(days=1):
        raise ConfigError(f"{records:,} rows, {pace:,} a day, would begin before 1970; give more --events-per-day")
    return now - dt.timedelta(days=records / pace), pace


def serve_ksqldb(
    *,
    port: int,
    records: int | None,
    events_per_day: int | None,
    seed: int,
    start: dt.datetime | None,
    user: str | None,
    password: str | None,
    faults: Sequence[str],
    announce: Callable[[str], None],
) -> None:
    """Runs the embedded ksqlDB server until SIGINT or SIGTERM; `announce` is called with its URL.

    Raises:
        ConfigError: The port is taken, a fault is none, or the rows would begin before there was a clock.
    """
    from datalake_assets.demo.ksqldb_server.blocks import GeneratorConfig  # noqa: PLC0415  costs numpy's import
    from datalake_assets.demo.ksqldb_server.faults import Faults, parse_fault  # noqa: PLC0415  costs numpy's import
    from datalake_assets.demo.ksqldb_server.ksql_errors import InvalidOption  # noqa: PLC0415  costs numpy's import
    from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer  # noqa: PLC0415  costs numpy's import

    first = start.replace(tzinfo=dt.UTC) if start else None
    begin, pace = served_from(records, events_per_day, first, now=dt.datetime.now(dt.UTC))
    try:
        server = KsqlServer(
            GeneratorConfig(seed=seed, start=begin, events_per_day=pace, records=records),
            port=port,
            auth=None if user is None or password is None else (user, password),
            faults=Faults([parse_fault(fault) for fault in faults]),
        )
        server.serve_forever(announce)
    except InvalidOption as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO).lower()
        raise ConfigError(f"port {port}: {reason}; give another with --port") from error


def _read(store: Store) -> tuple[DemoLake | None, str]:
    try:
        document, etag = store.get(DEMO_KEY)
    except ObjectNotFound:
        return None, ""
    try:
        return DemoLake.model_validate_json(document), etag
    except ValidationError as error:
        raise CorruptLake(
            f"{store.uri}/{DEMO_KEY}", "it does not say what the demo serves", cure="mend it, or delete it"
        ) from error


#: The embedded server answers at once; waiting longer for stragglers only makes the demo slow.
_IDLE_S = 0.5
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
        owners=_OWNERS,
        tags={"demo": "", "domain": group},
        group=group,
        description=description,
        columns=_COLUMNS.get(name, {}),
    )
