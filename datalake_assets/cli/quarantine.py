"""``datalake quarantine``: rows that could not be landed, why, and how they get in after all."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from datalake_assets.cli.output import as_table, one_line, print_json, say, terminal_width, warn
from datalake_assets.cli.session import (
    LakeCommand,
    OrderedGroup,
    Session,
    WorkCommand,
    json_option,
    pass_session,
    tell_dagster,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datalake_assets.core.facts import WriteReport
    from datalake_assets.core.row_texts import QuarantinedRow
    from datalake_assets.feed import Feed

__all__ = ["quarantine"]

#: Characters of a row that a line shows; ``--json`` has all of it.
_SHOWN = 100


_discarded_option = click.option(
    "--discarded",
    is_flag=True,
    help="Instead, rows as they came that were landed without values which did not fit the feed's schema.",
)


@click.group(cls=OrderedGroup)
def quarantine() -> None:
    """Look at rows that could not be landed, and land them once the feed was mended."""


@quarantine.command("list", cls=LakeCommand)
@_discarded_option
@json_option
@pass_session
def list_reasons(session: Session, *, discarded: bool, as_json: bool) -> None:
    """Count the rows in quarantine, by feed and reason; each once, by its position in the source."""
    from datalake_assets.lake.quarantined_rows import reasons  # noqa: PLC0415  not needed for --help

    feeds, _ = session.feeds()
    found = [(feed, each) for feed in feeds for each in reasons(_rows(session, feed, discarded=discarded))]
    if as_json:
        print_json(
            {
                "discarded" if discarded else "quarantine": [
                    {
                        "feed": feed.name,
                        "reason": each.reason,
                        "rows": each.rows,
                        "partitions": each.partitions,
                        "example": each.example.raw,
                    }
                    for feed, each in found
                ]
            }
        )
    elif found:
        rows = [(feed.path, f"{each.rows:,}", len(each.partitions), one_line(each.reason)) for feed, each in found]
        say(as_table(("feed", "rows", "partitions", "reason"), rows, width=terminal_width()))
    else:
        say(f"{len(feeds)} feeds, nothing {'discarded' if discarded else 'in quarantine'}")


@quarantine.command(cls=LakeCommand)
@click.argument("name")
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="Rows to show at the most."
)
@_discarded_option
@json_option
@pass_session
def show(session: Session, *, name: str, limit: int, discarded: bool, as_json: bool) -> None:
    """Show rows of NAME that are in quarantine: where they stood in the source, why they are here, and as they are."""
    found = _rows(session, _feed(session, name), discarded=discarded)
    newest = {row.identity: (path, row) for path, row in found}
    shown = list(newest.values())[:limit]
    if as_json:
        print_json({"feed": name, "rows": len(newest), "shown": [_record(path, row) for path, row in shown]})
        return
    if not newest:
        say(f"nothing of {name} {'was discarded' if discarded else 'is in quarantine'}")
        return
    rows = [(row.position, path, one_line(row.reason), one_line(row.raw)[:_SHOWN]) for path, row in shown]
    say(as_table(("position", "partition", "reason", "row"), rows, width=terminal_width()))
    if len(newest) > limit:
        say(f"and {len(newest) - limit:,} more; --limit N shows them")


@quarantine.command(cls=WorkCommand)
@click.argument("name")
@json_option
@pass_session
def replay(session: Session, *, name: str, as_json: bool) -> None:
    """Land the rows of NAME that fit the feed as it is now, each exactly once.

    Mend the feed first: lower its start, for instance. Rows that its source's decoder refused are decoded again, as the
    feed says now. Exits with 1 if rows stay in quarantine, and says why they do.
    """
    report = _replayed(session, _feed(session, name))
    if as_json:
        print_json(
            {"feed": name, "landed": report.rows_added, "stayed": report.stayed, "partitions": _partitions(report)}
        )
    else:
        for each in report.partitions:
            say(f"{name} {each.key}: {each.rows_added:+,} rows")
        say(
            f"{report.rows_added:,} rows landed"
            if report.rows_added or report.stayed
            else f"nothing of {name} is in quarantine"
        )
        for reason, rows in sorted(report.stayed.items(), key=lambda pair: -pair[1]):
            warn(f"{rows:,} rows stay: {reason}")
    if report.stayed:
        raise click.exceptions.Exit(1)


def _rows(session: Session, feed: Feed, *, discarded: bool) -> Iterator[tuple[str, QuarantinedRow]]:
    from datalake_assets.lake.tables import open_table  # noqa: PLC0415  not needed for --help

    table = open_table(session.store, feed)
    return table.discarded() if discarded else table.quarantined()


def _feed(session: Session, name: str) -> Feed:
    feed: Feed = session.registry.get(name)
    return feed


def _replayed(session: Session, feed: Feed) -> WriteReport:
    from datalake_assets.core.batches import ReadRequest  # noqa: PLC0415  not needed for --help
    from datalake_assets.lake.tables import open_table  # noqa: PLC0415  not needed for --help
    from datalake_assets.sources.base import DecodesAgain, DecodesItems  # noqa: PLC0415  not needed for --help

    table = open_table(session.store, feed)
    table.check_replay()
    with session.source(feed.source.type) as source:
        decode = partial(source.decode, feed) if isinstance(source, DecodesAgain) else None
        items = partial(source.decode_items, feed) if isinstance(source, DecodesItems) else None
        report = table.replay(source.read(feed, ReadRequest()), decode, decode_items=items)

    if report.partitions:
        from datalake_assets.core.schema import schema_to_json  # noqa: PLC0415  not needed for --help

        body = {"partitions": report.partitions, "schema": schema_to_json(report.schema)}
        tell_dagster(session, feed.name, "replay", body)
    return report


def _partitions(report: WriteReport) -> list[dict[str, Any]]:
    return [{"partition": each.key, "rows_added": each.rows_added, "rows": each.rows} for each in report.partitions]


def _record(path: str, row: QuarantinedRow) -> dict[str, Any]:
    return {"position": row.position, "partition": path, "reason": row.reason, "raw": row.raw}
