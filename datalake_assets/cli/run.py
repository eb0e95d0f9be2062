"""``datalake run``: lands what comes, pass after pass, until it is told to end; the worker of a container or a unit.

Each pass exports the feeds that have something to land, by the same assets as ``datalake export``. A feed whose source
can tell what waits is left alone while nothing does; others are exported in each pass.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from types import FrameType

import click

from datalake_assets.cli.export import ExportRequest, export_feeds, print_results
from datalake_assets.cli.output import warn
from datalake_assets.cli.session import Session, WorkCommand, pass_session
from datalake_assets.errors import ConfigError, DatalakeError
from datalake_assets.feed import Feed
from datalake_assets.lake.marts.mart_order import made_in_order
from datalake_assets.lake.table import IsStale

__all__ = ["run"]


@click.command(cls=WorkCommand)
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "everything", is_flag=True, help="Every active stream that is exported, new ones too.")
@click.option(
    "--every",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait after a pass.",
)
@click.option("--passes", type=click.IntRange(min=1), metavar="N", help="End after so many passes.  [default: never]")
@pass_session
def run(session: Session, *, names: tuple[str, ...], everything: bool, every: float, passes: int | None) -> None:
    """Land what comes of streams, pass after pass, until it is told to end.

    SIGTERM ends it as Ctrl-C does, with exit code 0: an export that is under way is given up, and what it committed
    stays. A pass that fails is reported, and the next one tries again.

    \b
    datalake run insider_trades
    """  # noqa: D301  click reads the \b: keep these lines
    if bool(names) == everything:
        raise click.UsageError("give NAME..., or --all")
    _streams(session, names)  # what cannot be run is told at once
    with _ended_by_sigterm() as pause:
        for number in count(1):
            _pass(session, names)
            if number == passes:
                return
            pause(every)


def _pass(session: Session, names: Sequence[str]) -> None:
    try:
        for feed in _streams(session, names):
            if _waits(session, feed):
                print_results(export_feeds(session, [feed], ExportRequest()), as_json=False)
    except DatalakeError as error:
        warn(f"Error: {error}")


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

    Dagster takes SIGTERM for Ctrl-C in a run, and leaves it so; and an interruption can be lost, where Dagster defers
    it to the end of a step, or in what Python calls on its own. So which signals came is read where the interpreter
    itself writes it, and waiting ends with any that nobody heeded. Where SIGINT is ignored, as of what a shell's script
    starts in the background, it stays so, and a run must not take that for SIGTERM's handler.
    """
    ends_it = {signal.SIGTERM, signal.SIGINT}
    interrupted = signal.getsignal(signal.SIGINT)
    if interrupted is signal.SIG_IGN:
        ends_it.remove(signal.SIGINT)
        signal.signal(signal.SIGINT, _heed_sigterm)
    receiving, sending = os.pipe()
    os.set_blocking(sending, False)
    os.set_blocking(receiving, False)
    woken = signal.set_wakeup_fd(sending, warn_on_full_buffer=False)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    came = bytearray()

    def look() -> None:
        with suppress(BlockingIOError):
            came.extend(os.read(receiving, 1 << 16))

    def pause(seconds: float) -> None:
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            select.select([receiving], [], [], left)
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
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupted)
        signal.set_wakeup_fd(woken)
        os.close(receiving)
        os.close(sending)


def _heed_sigterm(number: int, frame: FrameType | None) -> None:
    """Handles SIGINT where it is ignored, and SIGTERM where Dagster gives it the same handler."""
    if number == signal.SIGTERM:
        signal.default_int_handler(number, frame)
