"""``datalake notify``: tell people something, by the channels of the installation; also to try these out."""

from __future__ import annotations

import click

from datalake_assets.cli.output import say, warn
from datalake_assets.cli.session import LakeCommand, Session, pass_session

__all__ = ["notify"]


@click.command(cls=LakeCommand)
@click.argument("title")
@click.option("--text", default="", metavar="TEXT", help="More of it.")
@click.option(
    "--level",
    type=click.Choice(["info", "alert", "failure", "recovery"]),
    default="info",
    show_default=True,
    help="How bad it is.",
)
@pass_session
def notify(session: Session, *, title: str, text: str, level: str) -> None:
    """Send a message: to the webhook, the topic and the addresses that settings name, and to the log.

    Exits with 1 if one of them has not taken it.

    \b
    datalake notify "the batch of January is in" --text "1,204,332 trips, 12 in quarantine"
    """  # noqa: D301  click reads the \b: keep these lines
    from datalake_assets.notify.channels import open_channels, send  # noqa: PLC0415  not needed for --help
    from datalake_assets.notify.incidents import Message  # noqa: PLC0415  not needed for --help

    channels = open_channels(session.settings)
    message = Message(f"notify {title}", level, title, text)  # type: ignore[arg-type]  # one of the choices
    failed = send(channels, message)
    for name, error in failed.items():
        warn(f"Error: {name}: {error}")
    taken = [each.name for each in channels if each.name not in failed]
    say(f"sent to {', '.join(taken)}" if taken else "sent to nobody")
    if failed:
        raise click.exceptions.Exit(1)
