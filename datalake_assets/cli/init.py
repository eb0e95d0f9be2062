"""``datalake init``: makes a new lake."""

from __future__ import annotations

from pathlib import Path

import click

from datalake_assets.cli.output import say
from datalake_assets.cli.session import Session, WorkCommand, pass_session
from datalake_assets.errors import LakeUnavailable

__all__ = ["init"]


@click.command(cls=WorkCommand)
@pass_session
def init(session: Session) -> None:
    """Make a new lake: a folder, or a place in a bucket that commits are safe in.

    Nothing else makes the folder of a lake: one that is gone is an unmounted disk, more likely than not, and must not
    be begun anew. A lake that is there stays as it is.
    """
    lake = session.settings.lake
    if "://" not in lake:
        try:
            Path(lake).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LakeUnavailable(lake, f"the folder cannot be made: {error.strerror}") from error
    session.store.probe()
    say(f"{session.store.uri} {_found(session)}")


def _found(session: Session) -> str:
    """What is there."""
    active, archived = session.registry.list(), session.registry.list(archived=True)
    counts = {
        "": len(active.feeds),
        " archived": len(archived.feeds),
        " invalid": len(active.problems) + len(archived.problems),
    }
    known = [f"{count:,}{what} feed{'s' * (count > 1)}" for what, count in counts.items() if count]
    if known:
        return f"is a lake with {', '.join(known)}"
    is_empty = next(iter(session.store.list("", links=True)), None) is None
    return "is a new lake" if is_empty else "is a lake without feeds; what lies there stays as it is"
