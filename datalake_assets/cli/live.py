"""``datalake live``: the present of streams on a page, as it comes."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from datalake_assets.cli.output import say
from datalake_assets.cli.session import LakeCommand, Session, pass_session
from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import PositionKind
from datalake_assets.short_process import prepare_long_process

if TYPE_CHECKING:
    from datalake_assets.live.window import LiveWindows

__all__ = ["live", "page_options", "shown_live"]

#: Where the page is, if nobody says another place.
PORT = 8092


def page_options(command: Any) -> Any:
    """``--host`` and ``--port`` of a live page."""
    port = click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=PORT,
        show_default=True,
        help="Port of the page; 0: a free one.",
    )
    host = click.option(
        "--host",
        default="127.0.0.1",
        show_default=True,
        help="Address that the page is at; beyond this machine it asks for a token.",
    )
    return host(port(command))


@click.command(cls=LakeCommand)
@click.argument("names", nargs=-1, metavar="[NAME...]")
@page_options
@pass_session
def live(session: Session, *, names: tuple[str, ...], host: str, port: int) -> None:
    """Show what comes of streams just now on a page, as it comes: rows, rates, ages, rules and tiles.

    Without NAME it shows all streams of numbered rows. It reads their sources as an export does, from where the lake's
    rows end, and commits nothing; 'datalake run --live' lands what it shows. Rows that are late, were there, break a
    rule or go to quarantine are shown as such. It goes on until Ctrl-C or SIGTERM.

    \b
    datalake live insider_trades
    """  # noqa: D301  click reads the \b: keep these lines
    feeds = _numbered(session, names)
    prepare_long_process()
    with session.serving({feed.source.type for feed in feeds}), suppress(KeyboardInterrupt):  # by SIGTERM, too
        from datalake_assets.live.tailing import tailing  # noqa: PLC0415  not needed for --help
        from datalake_assets.sources.systems import connect  # noqa: PLC0415  likewise

        read = partial(connect, settings=session.settings)
        page = shown_live(session, feeds, host=host, port=port, lands=False)
        with page as windows, tailing(session.store, feeds, read, windows):
            threading.Event().wait()
    say("stopped")


def shown_live(
    session: Session, feeds: Iterable[Feed], *, host: str, port: int, lands: bool = True
) -> AbstractContextManager[LiveWindows]:
    """The page of some feeds, as long as the context is open; gives the windows that passes are to be shown to.

    Raises:
        ConfigError: What it needs is not installed, or a feed has no live view.
    """
    try:
        from datalake_assets.live.page_server import serving_live  # noqa: PLC0415  not needed for --help
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'datalake-assets[live]'") from error
    secret = session.settings.live_token
    token = None if secret is None else secret.get_secret_value()
    announce = partial(_announce, session.store.uri)
    return serving_live(session.store, feeds, host=host, port=port, token=token, lands=lands, announce=announce)


def _announce(lake: str, url: str) -> None:
    say(f"live view of {lake} at {url}")


def _numbered(session: Session, names: Sequence[str]) -> tuple[Feed, ...]:
    """The feeds to show; without names, all that can be.

    Raises:
        ConfigError: One of them has no live view, or there is none.
    """
    if names:
        return tuple(session.registry.get(name) for name in dict.fromkeys(names))
    listed = session.feeds()[0]
    found = tuple(feed for feed in listed if not feed.why_not_live and feed.position_kind is PositionKind.OFFSETS)
    if not found:
        raise ConfigError(f"{session.store.uri} has no stream of numbered rows; only these can be looked at live")
    return found
