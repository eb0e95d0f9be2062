"""``datalake sinks``: what was landed, sent on to the sinks that feeds declare; how far they are, what they refused."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from datalake_assets.cli.output import as_table, one_line, print_json, say, terminal_width, warn
from datalake_assets.cli.session import LakeCommand, OrderedGroup, Session, WorkCommand, json_option, pass_session
from datalake_assets.errors import ConfigError, CorruptLake, DatalakeError

if TYPE_CHECKING:
    from datalake_assets.core.row_texts import QuarantinedRow
    from datalake_assets.feed import Feed
    from datalake_assets.sinks.base import DeliveryReport
    from datalake_assets.sinks.courier import Courier

__all__ = ["delivering", "sinks"]

logger = logging.getLogger(__name__)

#: Seconds after which it is looked for a feed that has a sink by now.
_LOOK_AGAIN_S = 30.0
#: Characters of a document that a line shows; ``--json`` has all of it.
_SHOWN = 100

_sink_option = click.option("--sink", "names", multiple=True, metavar="SINK", help="Only this sink; may be repeated.")


@click.group(cls=OrderedGroup)
def sinks() -> None:
    """Send on what was landed to the sinks that feeds declare; look how far they are."""


@sinks.command("list", cls=LakeCommand)
@click.argument("feeds", nargs=-1, metavar="[NAME]...")
@json_option
@pass_session
def list_sinks(session: Session, *, feeds: tuple[str, ...], as_json: bool) -> None:
    """List the sinks of feeds, and how many rows each does not have yet. Asks the lake, and no sink."""
    from datalake_assets.sinks.delivery import sink_lag  # noqa: PLC0415  not needed for --help

    found = [(feed, sink) for feed in _feeds(session, feeds) for sink in feed.sinks]
    lags = [sink_lag(session.store, feed, sink) if sink.takes_rows else None for feed, sink in found]
    if as_json:
        print_json(
            {
                "sinks": [
                    {"feed": feed.name, "sink": sink.label, "type": sink.type, **_lag(lag)}
                    for (feed, sink), lag in zip(found, lags, strict=True)
                ]
            }
        )
    elif found:
        rows = [
            (feed.path, sink.label, sink.type, *(f"{each:,}" for each in _lag(lag).values()))
            for (feed, sink), lag in zip(found, lags, strict=True)
        ]
        head = ("feed", "sink", "type", "rows not sent", "partitions not sent", "dead letters")
        say(as_table(head, rows, width=terminal_width()))
    else:
        say("no feed declares a sink")


@contextmanager
def delivering(session: Session, names: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Delivers what is landed of feeds meanwhile, by `Courier`; gives what says that something was.

    Args:
        session: Of the command.
        names: Of the feeds; none: all.
    """

    def feeds() -> Iterator[Feed]:
        if not names:
            yield from session.registry.list().feeds
        for name in names:
            try:
                yield session.registry.get(name)
            except (ConfigError, CorruptLake) as error:  # it was archived, say; what the others landed is sent on
                logger.warning("sinks of %s: %s", name, error)

    with ExitStack() as stack:
        post = _Post(session, feeds, stack)
        post.landed()
        yield post.landed


class _Post:
    """A courier from the moment on that a feed has a sink, which may be declared while a command goes on."""

    def __init__(self, session: Session, feeds: Callable[[], Iterable[Feed]], stack: ExitStack) -> None:
        self._session, self._feeds, self._stack = session, feeds, stack
        self._lock = threading.Lock()
        self._looked_at = -_LOOK_AGAIN_S
        self._courier: Courier | None = None

    def landed(self) -> None:
        """Says that there may be new rows; returns soon."""
        with self._lock:
            if self._courier is None and time.monotonic() - self._looked_at >= _LOOK_AGAIN_S:
                self._looked_at = time.monotonic()
                self._courier = self._found()
        if self._courier is not None:
            self._courier.landed()

    def _found(self) -> Courier | None:
        try:
            if not any(feed.sinks for feed in self._feeds()):
                return None
        except DatalakeError as error:  # the registry cannot be read for now
            logger.warning("feeds with sinks: %s", error)
            return None
        from datalake_assets.sinks.courier import Courier  # noqa: PLC0415  few lakes have sinks

        session = self._session
        return self._stack.enter_context(Courier(self._feeds, session.store, session.settings, _tell))


def _tell(report: DeliveryReport) -> None:
    for line in report_lines(report):
        say(line)
    if report.error:
        warn(f"Error: {report.feed}: sink {report.sink}: {report.error}")


def _lag(report: DeliveryReport | None) -> dict[str, int]:
    if report is None:
        return {"lag_rows": 0, "lag_partitions": 0, "dead_letters": 0}
    return {"lag_rows": report.lag_rows, "lag_partitions": report.partitions, "dead_letters": report.refused}


@sinks.command(cls=WorkCommand)
@click.argument("feeds", nargs=-1, metavar="[NAME]...")
@_sink_option
@json_option
@pass_session
def deliver(session: Session, *, feeds: tuple[str, ...], names: tuple[str, ...], as_json: bool) -> None:
    """Send to the sinks of NAME, or of all feeds, what they do not have yet.

    Exits with 1 if a sink did not take all; what it lacks stays due.
    """
    from datalake_assets.sinks.delivery import deliver as deliver_feed  # noqa: PLC0415  not needed for --help

    reports = [
        each
        for feed in _feeds(session, feeds)
        for each in deliver_feed(session.store, feed, session.settings, names=names)
    ]
    if as_json:
        print_json({"deliveries": [asdict(each) for each in reports]})
    else:
        for each in reports:
            for line in report_lines(each):
                say(line)
        if not reports:
            say("no feed declares a sink")
    for each in reports:
        if each.error:
            warn(f"Error: {each.feed}: sink {each.sink}: {each.error}")
    if any(each.error for each in reports):
        raise click.exceptions.Exit(1)


def report_lines(report: DeliveryReport) -> Iterator[str]:
    """What a delivery did, for a person; nothing if there was nothing to do."""
    parts = [f"{report.sent:,} sent"] if report.sent or not report.error else []
    parts += [f"{report.removed:,} removed"] if report.removed else []
    parts += [f"{report.refused:,} refused, which are dead letters"] if report.refused else []
    parts += [f"{report.lag_rows:,} rows wait"] if report.lag_rows else []
    if parts:
        yield f"{report.feed} to {report.sink}: {', '.join(parts)}"


@sinks.command("dead-letters", cls=LakeCommand)
@click.argument("name")
@_sink_option
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    metavar="N",
    help="Documents to show at the most.",
)
@json_option
@pass_session
def dead_letters(session: Session, *, name: str, names: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Show documents that sinks of NAME refused, and why. Their rows are in the lake."""
    feed = session.registry.get(name)
    chosen = [each.label for each in feed.sinks if not names or each.label in names]
    found = [(sink, row) for sink in chosen for row in _letters(session, feed, sink)]
    if as_json:
        shown = [{"sink": sink, "id": row.position, "reason": row.reason, "document": row.raw} for sink, row in found]
        print_json({"feed": name, "dead_letters": len(found), "shown": shown[:limit]})
        return
    if not found:
        say(f"no sink of {name} has refused a document")
        return
    rows = [(sink, row.position, one_line(row.reason), one_line(row.raw)[:_SHOWN]) for sink, row in found[:limit]]
    say(as_table(("sink", "id", "reason", "document"), rows, width=terminal_width()))
    if len(found) > limit:
        say(f"and {len(found) - limit:,} more; --limit N shows them")


def _letters(session: Session, feed: Feed, sink: str) -> list[QuarantinedRow]:
    from datalake_assets.sinks.delivery import dead_letters as letters  # noqa: PLC0415  not needed for --help

    return list(letters(session.store, feed, sink))


@sinks.command(cls=WorkCommand)
@click.argument("name")
@_sink_option
@pass_session
def resend(session: Session, *, name: str, names: tuple[str, ...]) -> None:
    """Forget what sinks of NAME have, so that the next delivery sends everything; each row over its own document.

    For a sink that has lost documents, or whose mapping was mended: what it refused is sent again, too.
    """
    from datalake_assets.sinks.delivery import forget_delivered  # noqa: PLC0415  not needed for --help

    feed = session.registry.get(name)
    for sink in _chosen(feed, names):
        partitions = forget_delivered(session.store, feed, sink)
        say(f"{name} to {sink}: {partitions:,} partitions are to be sent again")


def _chosen(feed: Feed, names: Sequence[str]) -> list[str]:
    known = [each.label for each in feed.sinks if each.takes_rows]
    unknown = [each for each in names if each not in known]
    if unknown or not known:
        raise ConfigError(f"feed {feed.name!r} has no sink {unknown[0] if unknown else 'for rows'!r}")
    return [each for each in known if not names or each in names]


def _feeds(session: Session, names: Sequence[str]) -> list[Any]:
    """The feeds of these names, or all that declare a sink."""
    if names:
        return [session.registry.get(name) for name in dict.fromkeys(names)]
    return [each for each in session.feeds()[0] if each.sinks]
