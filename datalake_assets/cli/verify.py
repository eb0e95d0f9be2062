"""``datalake verify`` and ``datalake repair``: is the lake as its manifests say, and make it so."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import click

from datalake_assets.cli.output import one_line, print_json, say, warn
from datalake_assets.cli.session import LakeCommand, Session, WorkCommand, json_option, pass_session
from datalake_assets.errors import ConfigError, DatalakeError, unforeseen_text
from datalake_assets.feed import Feed

__all__ = ["repair", "verify"]

logger = logging.getLogger(__name__)


@click.command(cls=LakeCommand)
@click.argument("name", required=False)
@click.option("--deep", is_flag=True, help="Read every byte; compare checksums and count rows.")
@json_option
@pass_session
def verify(session: Session, *, name: str | None, deep: bool, as_json: bool) -> None:
    """Compare manifests with objects, of NAME or of all feeds.

    Prints a line per difference and exits with 1 if there is any, or if a feed cannot be compared; the others are.
    """
    from datalake_assets.lake.tables import open_table  # noqa: PLC0415  not needed for --help

    feeds, problems = session.feeds(name)
    differences, errors = [], _FeedErrors(is_one=name is not None)
    for feed in feeds:
        with errors.named(feed):
            for each in open_table(session.store, feed).verify(deep=deep):
                line = {"feed": feed.name, "partition": each.key, "what": each.what, "name": each.name}
                differences.append({**line, "detail": each.detail})
                if not as_json:
                    say(one_line(f"{feed.path} {each.key}: {each.what}: {each.name}: {each.detail}"))
    if as_json:
        bad = [{"file": problem.file, "reason": problem.reason} for problem in problems]
        compared = len(feeds) - len(errors.found)
        print_json({"feeds": compared, "differences": differences, "problems": bad, "errors": errors.found})
    elif not differences:
        say(f"{len(feeds) - len(errors.found)} feeds, no differences")
    if differences or problems or errors.found:
        raise click.exceptions.Exit(1)


class _FeedErrors:
    """What went wrong with feeds of which one must not keep the others from their turn.

    Args:
        is_one: The command is about one feed, whose error is the command's.

    Attributes:
        found: The feeds, and why each could not be looked at.
    """

    def __init__(self, *, is_one: bool) -> None:
        self._is_one = is_one
        self.found: list[dict[str, str]] = []

    @contextmanager
    def named(self, feed: Feed) -> Iterator[None]:
        """Says and keeps the error of a feed."""
        try:
            yield
        except DatalakeError as error:
            if self._is_one:
                raise
            self._add(feed, str(error))
        except BrokenPipeError:  # nobody reads the answer any more
            raise
        except Exception as error:
            if self._is_one:
                raise
            logger.exception("%s cannot be looked at", feed.path)
            self._add(feed, unforeseen_text(error))

    def _add(self, feed: Feed, error: str) -> None:
        warn(f"Error: {feed.path}: {error}")
        self.found.append({"feed": feed.name, "error": error})


@click.command(cls=WorkCommand)
@click.argument("name", required=False)
@json_option
@pass_session
def repair(session: Session, *, name: str | None, as_json: bool) -> None:
    """Finish or undo interrupted commits, sweep leftovers, free stuck pool slots.

    Of adopted folders, also take over what they changed.

    Exits with 1 if something must wait, because another writer may still be at it, or a feed cannot be repaired; the
    others are.
    """
    from datalake_assets.lake.tables import open_table  # noqa: PLC0415  not needed for --help

    runs, unusable = _repair_runs()
    feeds, _ = session.feeds(name)
    done, errors = [], _FeedErrors(is_one=name is not None)
    for feed in feeds:
        with errors.named(feed):
            result = open_table(session.store, feed).repair()
            counts = {"finished": result.finished, "undone": result.undone, "swept": result.swept}
            if feed.kind == "folder":
                counts["reconciled"] = result.reconciled
            done.append({"feed": feed.name, **counts, "waiting": list(result.waiting)})
            for line in result.waiting:
                warn(f"waiting: {line}")
            if not as_json and any(counts.values()):
                say(f"{feed.path}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    waiting = any(each["waiting"] for each in done)
    if as_json:
        print_json({"feeds": done, "dead_runs": runs, "errors": errors.found})
    else:
        for run in runs:
            say(f"run {run}: its process is gone; marked as failed")
        if not (
            waiting
            or runs
            or any(each.get(what) for each in done for what in ("finished", "undone", "swept", "reconciled"))
        ):
            say(f"{len(done)} feeds, nothing to repair")
    if waiting or unusable or errors.found:
        raise click.exceptions.Exit(1)


def _repair_runs() -> tuple[list[str], bool]:
    """Fails Dagster runs whose process died; does nothing where Dagster has never run.

    Returns:
        The runs, and whether Dagster's history could not be used: that is reported, and the lake is repaired anyway.
    """
    from datalake_assets.cli.session import existing_home  # noqa: PLC0415  not needed for --help

    home = existing_home()
    if home is None:
        return [], False
    os.environ["DAGSTER_HOME"] = str(home)
    from datalake_assets.defs.feeds.runner import repair_runs  # noqa: PLC0415  not needed for --help
    from datalake_assets.defs.runtime import home_failure, open_instance  # noqa: PLC0415  Dagster takes a second to import

    try:
        with open_instance() as instance:
            return repair_runs(instance), False
    except Exception as error:  # noqa: BLE001  its disk may be full, and the lake's not
        warn(f"Error: {error if isinstance(error, ConfigError) else home_failure(str(home), error)}")
        return [], True
