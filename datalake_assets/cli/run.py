"""``datalake run``: lands what comes of streams until it is told to end; the worker of a container or a unit.

Streams that their source gives as they come are followed, each in a thread, and committed batch by batch. Others are
exported in passes, by the same assets as ``datalake export``: one whose source can tell what waits is left alone while
nothing does.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from typing import TYPE_CHECKING

import click

from datalake_assets.cli.deliver import delivering
from datalake_assets.cli.export import ExportRequest, export_feeds
from datalake_assets.cli.export_results import print_results
from datalake_assets.cli.live import page_options, shown_live
from datalake_assets.cli.output import say, warn
from datalake_assets.cli.session import Session, WorkCommand, pass_session, tell_dagster
from datalake_assets.cli.signals import heed_signals
from datalake_assets.errors import ConfigError, DatalakeError, unforeseen_text
from datalake_assets.feed import Feed
from datalake_assets.lake.marts.mart_order import made_in_order
from datalake_assets.lake.table import IsStale
from datalake_assets.short_process import prepare_long_process

if TYPE_CHECKING:
    from datalake_assets.continuous.following import Following, Landed

__all__ = ["run", "run_until_ended"]

logger = logging.getLogger(__name__)

#: Seconds after a pass, if nobody says others.
_EVERY_S = 5.0


@click.command(cls=WorkCommand)
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "everything", is_flag=True, help="Every active stream that is exported, new ones too.")
@click.option(
    "--every",
    type=click.FloatRange(min=0, min_open=True),
    default=_EVERY_S,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait after a pass over streams that cannot be followed.",
)
@click.option(
    "--passes",
    type=click.IntRange(min=1),
    metavar="N",
    help="End after so many passes; none is followed.  [default: never]",
)
@click.option("--live", "is_live", is_flag=True, help="Show what is landed on a page, before it is committed.")
@page_options
@pass_session
def run(
    session: Session,
    *,
    names: tuple[str, ...],
    everything: bool,
    every: float,
    passes: int | None,
    is_live: bool,
    host: str,
    port: int,
) -> None:
    """Land what comes of streams until it is told to end.

    Streams of numbered rows, such as topics, are followed: rows are committed in batches as they come, by the feed's
    'batch' policy. Others are exported pass after pass.

    SIGTERM ends it as Ctrl-C does, with exit code 0: what was read of a batch is committed; an export that is under way
    is given up, and what it committed stays. What fails is reported, and tried again. What is landed is sent on to the
    sinks that feeds declare, which hold nothing up.

    \b
    datalake run insider_trades
    """  # noqa: D301  click reads the \b: keep these lines
    if bool(names) == everything:
        raise click.UsageError("give NAME..., or --all")
    feeds = _streams(session, names)  # what cannot be run is told at once
    with (
        _ended_by_sigterm() as pause,
        delivering(session, names) as landed,
        _shown(session, feeds, host=host, port=port) if is_live else nullcontext(),
    ):
        if passes is None:
            with session.serving({feed.source.type for feed in feeds}), _following(session, landed) as following:
                _go_on(session, names, following, lambda: (landed(), pause(every)))
            return
        for number in count(1):
            _pass(session, names)
            landed()
            if number == passes:
                return
            pause(every)


def run_until_ended(session: Session, feeds: Sequence[Feed], *, host: str, port: int) -> None:
    """Follows feeds until SIGTERM or Ctrl-C, with a page that shows what is landed."""
    names, page = [feed.name for feed in feeds], _shown(session, feeds, host=host, port=port)
    with (
        suppress(KeyboardInterrupt),
        _ended_by_sigterm() as pause,
        delivering(session, names) as landed,
        page,
        session.serving({feed.source.type for feed in feeds}),
        _following(session, landed) as following,
    ):
        _go_on(session, names, following, lambda: (landed(), pause(_EVERY_S)))


@contextmanager
def _shown(session: Session, feeds: Sequence[Feed], *, host: str, port: int) -> Iterator[None]:
    """Shows what is landed, of feeds that have a live view, as long as the context is open."""
    from datalake_assets.lake.watching import watched_by  # noqa: PLC0415  not needed for --help

    shown = [feed for feed in feeds if not feed.why_not_live]
    for feed in feeds:
        if feed.why_not_live:
            warn(f"{feed.path} is landed, and not shown: {feed.why_not_live}")
    with shown_live(session, shown, host=host, port=port) as windows, watched_by(windows):
        yield


def _go_on(session: Session, names: Sequence[str], following: Following, pause: Callable[[], object]) -> None:
    """Follows what can be followed, and exports the rest again and again; returns when nothing is left to do."""
    followed: set[str] = set()
    while True:
        left = [name for name in names if name not in followed]
        feeds = _streams_now(session, left) if left or not names else []
        for feed in feeds:
            if feed.can_be_followed:
                following.follow(feed.name)  # again, if it was gone and has come back
                followed.add(feed.name)
        others = [feed.name for feed in feeds if feed.name not in followed]
        if others:
            _pass(session, others)
        pause()
        following.check()
        if names and not left and following.is_over:
            return


@contextmanager
def _following(session: Session, landed: Callable[[], None]) -> Iterator[Following]:
    """Followers that end with the context; they tell Dagster what they do by way of the lake."""
    from datalake_assets.continuous.following import Following  # noqa: PLC0415  not needed for --help
    from datalake_assets.sources.systems import connect  # noqa: PLC0415  likewise

    settings, store = session.settings, session.store
    with Following(
        lambda: store, connect=lambda type_: connect(type_, settings), log=_Log(session, landed)
    ) as following:
        yield following


class _Log:
    """Says what followers do, a line at a time; implements `FollowingLog`."""

    def __init__(self, session: Session, landed: Callable[[], None]) -> None:
        self._session, self._landed = session, landed
        self._failed: dict[str, str] = {}

    def landed(self, landed: Landed) -> None:
        """Implements `FollowingLog`."""
        from datalake_assets.core.schema import schema_to_json  # noqa: PLC0415  loaded by now

        feed, report = landed.feed, landed.report
        self._landed()
        self._failed.pop(feed.name, None)
        rows = f"{report.rows_added:,} rows in {landed.batches:,} {'batch' if landed.batches == 1 else 'batches'}"
        aside = f", {report.rows_quarantined:,} to quarantine" if report.rows_quarantined else ""
        small = max((each.small_files for each in report.partitions), default=0)
        say(f"{feed.path}: {rows}{aside}, {landed.seconds / landed.batches:.1f} s each; small files {small:,}")
        sys.stdout.flush()
        for note in report.notes:
            warn(f"{feed.name}: {note}")
        body = {"partitions": report.partitions, "schema": schema_to_json(report.schema), "rows_read": report.rows_read}
        body |= {"rows_quarantined": report.rows_quarantined, "batches": landed.batches}
        tell_dagster(self._session, feed.name, "landing", body)

    def failed(self, feed: str, error: DatalakeError, *, again_in_s: float) -> None:
        """Implements `FollowingLog`: the same failure again and again is said once."""
        from datalake_assets.lake.watching import show_failure  # noqa: PLC0415  loaded by now

        text = str(error)
        show_failure(feed, text)
        if self._failed.get(feed) != text:
            self._failed[feed] = text
            warn(f"Error: {text if feed in text else f'{feed}: {text}'}; tried again in {again_in_s:g} s")

    def gone(self, feed: str, reason: str) -> None:
        """Implements `FollowingLog`."""
        warn(f"{feed} is followed no longer: {reason}")


def _pass(session: Session, names: Sequence[str]) -> None:
    """Exports what waits, feed by feed: one that fails holds no other up."""
    for feed in _streams_now(session, names):
        with _told(feed.path):
            if _waits(session, feed):
                print_results(export_feeds(session, [feed], ExportRequest()), as_json=False)


@contextmanager
def _told(feed: str) -> Iterator[None]:
    """Says what fails of a feed, and goes on."""
    try:
        yield
    except DatalakeError as error:
        warn(f"Error: {error}")
    except Exception as error:  # the other feeds can be landed
        logger.exception("%s", feed)
        warn(f"Error: {feed}: {unforeseen_text(error)}")


def _streams_now(session: Session, names: Sequence[str]) -> list[Feed]:
    """Those of the feeds to run that are there; says what is wrong with the others."""
    found: list[Feed] = []
    for some in [[name] for name in names] or [[]]:
        with _told(some[0] if some else "feeds"):
            found += _streams(session, some)
    return found


def _streams(session: Session, names: Sequence[str]) -> list[Feed]:
    """The feeds to run; without names, all streams that are exported.

    Raises:
        ConfigError: One of them is no such feed.
    """
    if not names:
        return list(made_in_order([each for each in session.feeds()[0] if each.is_exported and each.kind == "stream"]))
    found = [session.registry.get(name) for name in dict.fromkeys(names)]
    for feed in found:
        _ = feed.exported_from  # raises, and says who writes it
        if feed.kind != "stream":
            raise ConfigError(f"feed {feed.name!r} is a {feed.kind}; give it a schedule: only streams run on and on")
    return found


def _waits(session: Session, feed: Feed) -> bool:
    """Whether there may be something to land.

    Raises:
        SourceError: The source could not be asked.
    """
    from datalake_assets.sources.base import HasBacklog  # noqa: PLC0415  not needed for --help

    if feed.is_mart:
        from datalake_assets.lake.tables import open_table  # noqa: PLC0415  not needed for --help

        table = open_table(session.store, feed)
        return not isinstance(table, IsStale) or table.is_stale()
    if not feed.exported_from.has_backlog:
        return True
    with session.source(feed.source.type) as source:
        return not isinstance(source, HasBacklog) or source.backlog(feed).waiting > 0


@contextmanager
def _ended_by_sigterm() -> Iterator[Callable[[float], None]]:
    """Lets SIGTERM interrupt what is inside, and ends it well; gives what waits for some seconds.

    An interruption can be lost, where Dagster defers it to the end of a step, or in what Python calls on its own. So
    which signals came is read where the interpreter itself writes it, and waiting ends with any that nobody heeded.
    """
    prepare_long_process()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ends_it = heed_signals()
    receiving, sending = os.pipe()
    os.set_blocking(sending, False)
    os.set_blocking(receiving, False)
    waiting = select.poll()  # select takes no number beyond 1,024
    waiting.register(receiving, select.POLLIN)
    woken = signal.set_wakeup_fd(sending, warn_on_full_buffer=False)
    came = bytearray()

    def look() -> None:
        with suppress(BlockingIOError):
            came.extend(os.read(receiving, 1 << 16))

    def pause(seconds: float) -> None:
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            waiting.poll(1000 * left)
            look()
            if ends_it & set(came):
                raise KeyboardInterrupt

    try:
        yield pause
    except KeyboardInterrupt:
        look()
        if signal.SIGTERM not in came:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken)
        os.close(receiving)
        os.close(sending)
