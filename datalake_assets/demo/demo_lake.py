"""The demo lake, and which servers it reads: the configured ones, or some inside this process.

A demo lake carries ``control/demo.json``, which says what its servers serve. Every process that exports such a lake
(a command, a Dagster run) starts servers of its own from it, and since the rows are a pure function of that document,
all of them serve the same rows.
"""

from __future__ import annotations

import datetime as dt
import errno
import math
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from datalake_assets.demo.filings import FILED_BEFORE, QUEUE_REGION, FilingsQueue, SentFilings, runs_of_numbers
from datalake_assets.errors import ConfigError, CorruptLake, LakeError, ObjectNotFound, PreconditionFailed
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.swap import retried, swap_object
from datalake_assets.settings import Settings
from datalake_assets.sources.ksqldb.declaration import KSQLDB, KsqlDBSettings
from datalake_assets.sources.sqs.sqs_model import SQS, SqsSettings

if TYPE_CHECKING:
    from datalake_assets.demo.ksqldb_server.blocks import GeneratorConfig

__all__ = [
    "DEMO_KEY",
    "DEMO_SEED",
    "DemoLake",
    "demo_stand_in",
    "growing_demo",
    "has_own_queue",
    "plan_demo",
    "prepare_demo",
    "read_demo",
    "serve_ksqldb",
    "served_from",
    "source_lines",
    "source_url",
]


DEMO_KEY = "control/demo.json"
DEMO_SEED = 7
#: A demo begins up to this many days before the day of its first run, so that it has partitions to show.
DEMO_DAYS = 29
#: As many as a small shop's: fewer records make fewer days.
EVENTS_PER_DAY = 250
#: Of so many rows of a stream one is a filing: insiders trade less often than cards are used.
ROWS_PER_FILING = 10
#: The rows that are asked for last arrive within this time, whatever their number.
LEAST_SPAN = dt.timedelta(seconds=1)


#: Of the rows of a demo that grows, one in so many is broken.
LIVE_BROKEN_EVERY = 199
#: How long a demo's streams go on growing after the process that has them grow was killed.
LIVE_LEASE = dt.timedelta(minutes=1)
#: Attempts at a change of the document; each lost one means that another process made one.
ATTEMPTS = 5
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class DemoPace(BaseModel):
    """How fast a demo lake's rows arrive from one of them on.

    Attributes:
        index: The first row.
        since: When it arrives.
        events_per_day: Rows per day in each stream.
        punctual: Whether events arrive when they happen, but for a few that are a day late or more.
        broken_every: One in so many rows is broken; None: none is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: Annotated[int, Field(ge=0)]
    since: AwareDatetime
    events_per_day: Annotated[int, Field(ge=1)]
    punctual: bool = False
    broken_every: Annotated[int, Field(ge=2)] | None = None


class DemoLake(BaseModel):
    """What the embedded server serves for one lake.

    Attributes:
        seed: Another seed gives other rows.
        start: Day of the first row, UTC.
        events_per_day: Rows per day in each stream.
        records: Rows in each stream; None lets them grow with the clock.
        paces: How fast the rows arrive that were asked for later.
        grows_until: Streams that grow just now do so by the clock up to then. It is moved on meanwhile: after a kill
            they stop. None: they do not grow, or for ever.
        filings: What was sent to the queue of filings.
        filings_deleted: Runs of the numbers of those that were read and deleted, each with its first and its last.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = DEMO_SEED
    start: dt.date
    events_per_day: Annotated[int, Field(ge=1)]
    records: Annotated[int, Field(ge=1)] | None = None
    paces: tuple[DemoPace, ...] = ()
    grows_until: AwareDatetime | None = None
    filings: tuple[SentFilings, ...] = ()
    filings_deleted: tuple[tuple[int, int], ...] = ()

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
            paces=tuple(
                Pace(each.index, each.since, each.events_per_day, each.punctual, each.broken_every)
                for each in self.paces
            ),
            until=self.grows_until,
        )

    def settled(self, now: dt.datetime) -> DemoLake:
        """What it serves once its streams grow no longer: the rows that there are by now.

        Args:
            now: Aware UTC.
        """
        if self.grows_until is None:
            return self
        rows = self.generator().rows_by((now - _EPOCH) // dt.timedelta(milliseconds=1))
        return self.model_copy(update={"records": rows, "grows_until": None})

    def growing(self, events_per_s: int, now: dt.datetime) -> DemoLake:
        """What it serves while its streams grow from now on, so many rows a second, for a while."""
        settled = self.settled(now)
        pace = DemoPace(
            index=settled.records or 0,
            since=now,
            events_per_day=events_per_s * 86_400,
            punctual=True,
            broken_every=LIVE_BROKEN_EVERY,
        )
        paces = (*settled.paces, pace)
        return settled.model_copy(update={"records": None, "paces": paces, "grows_until": now + LIVE_LEASE})

    def with_filings(self, count: int, *, now: dt.datetime) -> DemoLake:
        """What it serves once so many filings were sent; filings never become fewer."""
        sent = sum(each.count for each in self.filings)
        if count <= sent:
            return self
        since = self.filings[-1].sent if self.filings else self.start_time - FILED_BEFORE
        return self.model_copy(
            update={"filings": (*self.filings, SentFilings(first=sent, count=count - sent, since=since, sent=now))}
        )

    def without_filings(self, numbers: Collection[int]) -> DemoLake:
        """What it serves once these filings were deleted from the queue, too."""
        known = {number for first, last in self.filings_deleted for number in range(first, last + 1)}
        return self.model_copy(update={"filings_deleted": runs_of_numbers(known.union(numbers))})

    def to_bytes(self) -> bytes:
        """The document, as a lake keeps it."""
        left_out = {"grows_until"} if self.grows_until is None else None
        return self.model_dump_json(indent=2, exclude=left_out).encode() + b"\n"


def plan_demo(current: DemoLake | None, records: int, *, now: dt.datetime) -> DemoLake:
    """What a demo lake is to serve so that every stream has ``records`` rows, the last of them a few minutes old.

    Its queue gets a tenth as many filings.

    Rows that are added arrive between the end of those that are there and now, so that none has to change.

    Args:
        current: What it serves now; None for a new lake.
        records: Rows wanted in each stream. Streams never shrink: fewer than now leaves it as it is.
        now: Aware UTC.
    """
    return _with_rows(current, records, now).with_filings(math.ceil(records / ROWS_PER_FILING), now=now)


def _with_rows(current: DemoLake | None, records: int, now: dt.datetime) -> DemoLake:
    if current is None:
        days = min(max(1, records // EVENTS_PER_DAY), DEMO_DAYS)
        start = now.date() - dt.timedelta(days=days)
        elapsed = now - dt.datetime.combine(start, dt.time(), dt.UTC)
        return DemoLake(start=start, events_per_day=_pace(records, elapsed), records=records)
    current = current.settled(now)
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
    swap_object(store, DEMO_KEY, wanted.to_bytes(), etag=None if current is None else etag)
    return wanted


@contextmanager
def growing_demo(store: Store, events_per_s: int) -> Iterator[dict[str, str]]:
    """Has a demo lake's streams grow while the block runs; gives the settings of the server that has them.

    Other processes that read the lake meanwhile get the same rows. Afterwards the streams stay as they are; after a
    kill they have grown for a minute at the most.

    Args:
        store: A demo lake.
        events_per_s: Rows a second in each stream.
    """
    from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer  # noqa: PLC0415  costs a server's imports

    demo = _changed(store, lambda now: now.growing(events_per_s, store.now()))
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(LIVE_LEASE.total_seconds() / 3):
            with suppress(LakeError):  # the next time will do
                _changed(store, lambda now: now.model_copy(update={"grows_until": store.now() + LIVE_LEASE}))

    renewing = threading.Thread(target=go_on, name="demo-grows", daemon=True)
    renewing.start()
    try:
        with KsqlServer(demo.model_copy(update={"grows_until": None}).generator()) as server:
            yield {"ksqldb_url": server.url}
    finally:
        ended.set()
        renewing.join()
        _changed(store, lambda now: now.settled(store.now()))


def _changed(store: Store, change: Callable[[DemoLake], DemoLake]) -> DemoLake:
    current, etag = _read(store)
    if current is None:
        raise ConfigError(f"{store.uri} is no demo lake")
    wanted = change(current)
    swap_object(store, DEMO_KEY, wanted.to_bytes(), etag=etag)
    return wanted


@contextmanager
def demo_stand_in(settings: Settings, store: Store, types: Collection[str]) -> Iterator[Settings]:
    """The settings, with the URLs of a demo lake's own servers where they name none; implements `StandIn`.

    Args:
        settings: What is configured; if that is a server, it wins.
        store: The lake; one that is no demo lake is left without servers.
        types: The types of sources that are to be read; only servers of these run.
    """
    streams = KSQLDB.type in types and not settings.of(KsqlDBSettings).ksqldb_url
    queues = SQS.type in types and has_own_queue(settings)
    demo = read_demo(store) if streams or queues else None
    with ExitStack() as servers:
        if demo is not None and streams:
            from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer  # noqa: PLC0415  a server's imports

            url = servers.enter_context(KsqlServer(demo.generator())).url
            settings = settings.of(KsqlDBSettings).model_copy(update={"ksqldb_url": url})
        if demo is not None and queues:
            queue = servers.enter_context(_served_queue(store, demo))
            own = {"sqs_endpoint": queue.url, "sqs_region": QUEUE_REGION, "sqs_unsigned": True}
            settings = settings.of(SqsSettings).model_copy(update=own)
        yield settings


@contextmanager
def _served_queue(store: Store, demo: DemoLake) -> Iterator[FilingsQueue]:
    """The queue; what was deleted from it meanwhile is written down, so that no other process is given it again."""
    with FilingsQueue(demo.filings, seed=demo.seed, deleted=demo.filings_deleted) as queue:
        try:
            yield queue
        finally:
            if queue.deleted:
                with suppress(LakeError):  # it is given again, and known
                    retried(
                        lambda: _changed(store, lambda now: now.without_filings(queue.deleted)),
                        attempts=ATTEMPTS,
                        on=(PreconditionFailed,),
                    )


def source_url(settings: Settings) -> str | None:
    """The server that the settings name; None: a demo lake has its own."""
    return settings.of(KsqlDBSettings).ksqldb_url


def has_own_queue(settings: Settings) -> bool:
    """Whether a demo lake's filings come from a queue of its own: the settings name no server of queues."""
    return not settings.of(SqsSettings).sqs_endpoint


def source_lines(settings: Settings, configured: Settings) -> list[str]:
    """Where a demo lake's rows come from, for its first screen: the systems, and their servers.

    Args:
        settings: By which they are reached.
        configured: What a person has set.
    """
    streams = f"ksqlDB  {source_url(settings)}{'' if source_url(configured) else ' (embedded)'}"
    if not has_own_queue(configured):
        return [streams]
    return [streams, f"SQS     {settings.of(SqsSettings).sqs_endpoint} (embedded)"]


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
