"""``datalake delete``: rows that somebody wants gone, a person's say; shown first, deleted with ``--yes``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import click

from datalake_assets.cli.export import ExportRequest
from datalake_assets.cli.output import one_line, print_json, say, warn
from datalake_assets.cli.session import Session, WorkCommand, json_option, pass_session, tell_dagster
from datalake_assets.core.facts import Deletion, Expired, WaitingRows
from datalake_assets.core.wording import size_text
from datalake_assets.errors import DatalakeError
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind, PositionKind
from datalake_assets.lake.feed_compaction import missing_partitions
from datalake_assets.lake.table import LakeTable
from datalake_assets.lake.tables import open_table

__all__ = ["delete"]

#: Files of a partition that are named one by one; ``--json`` names all.
_FILES_SHOWN = 10


@click.command(cls=WorkCommand)
@click.argument("name")
@click.option(
    "--where", required=True, metavar="CONDITION", help="SQL that is true of the rows to delete: \"user_id = 'U42'\"."
)
@click.option(
    "--partition",
    "partitions",
    multiple=True,
    metavar="KEY",
    help="Only this partition, like 2025-01-15, or a table's version, like v4; can be repeated.",
)
@click.option("--range", "between", metavar="A..B", help="Only a stream's partitions from A to B, both included.")
@click.option("--yes", is_flag=True, help="Delete them; without it nothing is changed.")
@click.option(
    "--quarantine",
    "quarantine_too",
    is_flag=True,
    help="Also those beside the table, in quarantine or kept as they came.",
)
@click.option(
    "--now", "all_past", is_flag=True, help="Also drop a table's past snapshots, which hold the rows for days to come."
)
@json_option
@pass_session
def delete(
    session: Session,
    *,
    name: str,
    where: str,
    partitions: tuple[str, ...],
    between: str | None,
    yes: bool,
    quarantine_too: bool,
    all_past: bool,
    as_json: bool,
) -> None:
    """Delete the rows of a feed that a condition is true of; first shows how many, by partition and file.

    Only files with such rows are written anew, each partition in one commit; all of a table's versions are looked at.
    What an export landed it does not land again. Whatever is interrupted is completed by the same command.

    \b
    datalake delete payments --where "customer_id = 'C-1042'"
    datalake delete payments --where "customer_id = 'C-1042'" --yes
    """  # noqa: D301  click reads the \b: keep these lines
    from datalake_assets.lake.deletion import waiting_rows  # noqa: PLC0415  imports DuckDB, and --help needs none

    if partitions and between is not None:
        raise click.UsageError("give --partition or --range, not both")
    feed = session.registry.get(name)
    table = open_table(session.store, feed)
    if yes and feed.kind is FeedKind.TABLE:
        table.repair()  # a version that no reader sees yet would come to light later, with the rows
    keys = _keys(table, feed, partitions, between)
    if not keys and not table.is_written_by_us:
        table.deletion_plan("", where)  # says why not
    plans = [table.deletion_plan(key, where) for key in keys]
    schema = table.snapshot(keys[:1]).dataset().schema
    # without columns nobody can say what the condition means
    waiting = waiting_rows(session.store, feed, where, schema) if schema.names else _undecided(table)
    done = _Done(feed, plans, waiting, past_stays=_past_text(table))
    if yes:
        _delete(session, table, where, done)
        if quarantine_too and waiting.matching:
            done.waiting_deleted = waiting_rows(session.store, feed, where, schema, delete=True).matching
        if all_past:
            done.expired = table.expire(all_past=True)
        _tell_dagster(session, done)
    if as_json:
        print_json(_document(done))
    else:
        for line in _lines(done):
            say(line)
    if done.failed:
        raise click.exceptions.Exit(1)


@dataclass(slots=True)
class _Done:
    """What was found, and what was done.

    Attributes:
        feed: The feed.
        plans: Each partition's rows that match.
        waiting: Rows that match in quarantine.
        past_stays: How long past states hold the rows, in words; empty if they do not.
        deleted: What was deleted, by partition; None if nothing was to be.
        failed: Why not, by partition.
        waiting_deleted: Rows that were taken out of quarantine.
        expired: What was let go of at once; None if that was not asked for.
    """

    feed: Feed
    plans: Sequence[Deletion]
    waiting: WaitingRows
    past_stays: str
    deleted: dict[str, Deletion] | None = None
    failed: dict[str, str] = field(default_factory=dict)
    waiting_deleted: int = 0
    expired: Expired | None = None


def _undecided(table: LakeTable) -> WaitingRows:
    return WaitingRows(undecided=len({row.identity for _, row in (*table.quarantined(), *table.discarded())}))


def _keys(table: LakeTable, feed: Feed, partitions: Sequence[str], between: str | None) -> tuple[str, ...]:
    if partitions:
        for error in missing_partitions(table, partitions).values():
            raise error
        return tuple(dict.fromkeys(partitions))
    return ExportRequest(between=between).among(table.partitions(), feed)


def _delete(session: Session, table: LakeTable, where: str, done: _Done) -> None:
    """Deletes partition by partition; one that fails is no reason to leave the others as they are."""
    done.deleted = {}
    for plan in done.plans:
        if not plan.matching:
            continue
        try:
            done.deleted[plan.key] = table.delete_rows(plan.key, where)
        except DatalakeError as error:
            done.failed[plan.key] = str(error)
            warn(f"Error: {done.feed.path} {plan.key}: {error}")
            if session.traceback:
                raise


def _tell_dagster(session: Session, done: _Done) -> None:
    changed = [each for each in (done.deleted or {}).values() if each.matching]
    if changed:
        tell_dagster(session, done.feed.name, "deletion", changed)


def _past_text(table: LakeTable) -> str:
    stays = table.past_stays
    if stays is None:
        return ""
    hours = stays.total_seconds() / 3600
    return f"{hours / 24:g} days" if hours >= 48 else f"{hours:g} hours"  # noqa: PLR2004  days are read more easily


def _lines(done: _Done) -> list[str]:
    found = done.deleted if done.deleted is not None else {plan.key: plan for plan in done.plans}
    changed = [each for each in found.values() if each.matching]
    lines = [line for each in changed for line in _partition_lines(done.feed, each)]
    rows, of_rows = sum(each.rows_deleted for each in changed), sum(plan.rows for plan in done.plans)
    what = f"{rows:,} of {of_rows:,} rows in {len(changed):,} of {_count(len(done.plans), 'partition')}"
    if done.deleted is None:
        lines.append(
            f"{done.feed.path}: {what} match; " + ("--yes deletes them" if rows else "nothing is to be deleted")
        )
    else:
        lines.append(f"{done.feed.path}: {what} deleted")
    if done.feed.format.former is not None and rows:
        lines.append(f"its former form holds them too, until 'datalake feeds convert {done.feed.name} --drop-old'")
    return [*lines, *_waiting_lines(done), *(_past_lines(done) if changed or done.expired else ()), *_again_lines(done)]


def _partition_lines(feed: Feed, each: Deletion) -> list[str]:
    files = f"{len(each.matching):,} of {_count(each.files, 'file')}, {size_text(each.bytes_read)}"
    lines = [one_line(f"{feed.path} {each.key}: {each.rows_deleted:,} of {each.rows:,} rows, in {files}")]
    for name, rows in list(each.matching.items())[:_FILES_SHOWN]:
        lines.append("  " + one_line(f"{name}: {rows:,} rows"))
    if len(each.matching) > _FILES_SHOWN:
        lines.append(f"  and {len(each.matching) - _FILES_SHOWN:,} files more, which --json names")
    return lines


def _waiting_lines(done: _Done) -> list[str]:
    """What waits in quarantine, and what to do about it."""
    waiting, name, lines = done.waiting, done.feed.name, []
    if done.waiting_deleted:
        lines.append(f"beside the table: {_count(done.waiting_deleted, 'row')} deleted")
    elif waiting.matching:
        verbs = "matches, and stays" if waiting.matching == 1 else "match, and stay"
        lines.append(f"beside the table: {_count(waiting.matching, 'row')} {verbs}; --quarantine --yes deletes them")
    if waiting.undecided:
        lines.append(
            f"beside the table: {_count(waiting.undecided, 'row')} cannot be told to match or not:"
            f" look with 'datalake quarantine show {name}'"
        )
    return lines


def _past_lines(done: _Done) -> list[str]:
    """Until when past states hold the rows."""
    if done.expired is not None:
        gone = (
            f"{_count(done.expired.snapshots, 'past snapshot')} dropped, {_count(done.expired.files, 'file')} deleted"
        )
        kept = done.expired.kept
        stay = f"; {_count(kept, 'past snapshot')} stay, kept by a branch or a tag of others" if kept else ""
        return [gone + stay]
    if not done.past_stays:
        return []
    how = "'datalake delete … --yes --now' drops them at once, and with them the way back"
    return [f"past snapshots hold these rows until the night after {done.past_stays}; {how}"]


def _again_lines(done: _Done) -> list[str]:
    """What may bring the rows again."""
    return [_again_line(done.feed)] if done.deleted else []


def _again_line(feed: Feed) -> str:
    if not feed.is_exported:
        return f"when its asset writes these partitions again, it writes what it returns then: {feed.asset!r}"
    if feed.write == "merge":
        return "a change of their keys that comes later brings rows again; older ones too, if an order column decides"
    if feed.kind is FeedKind.TABLE:
        return "the next version has what the source has then: delete them there, too"
    return _AGAIN[feed.position_kind]


_AGAIN = {
    PositionKind.OFFSETS: (
        "an export does not land them again, unless the source is read anew from its beginning (--new-epoch)"
    ),
    PositionKind.IDS: "an export does not land their items again",
    PositionKind.WINDOW: "a partition whose rows change at the source is pulled whole again: delete them there, too",
}


def _document(done: _Done) -> dict[str, Any]:
    """What ``--json`` prints; ``failed`` and ``expired`` are there only if there is something to say."""
    deleted = done.deleted
    return {
        "feed": done.feed.name,
        "deleted": deleted is not None,
        "rows_matching": sum(plan.rows_deleted for plan in done.plans),
        "rows_deleted": sum(each.rows_deleted for each in (deleted or {}).values()),
        "partitions": [_record((deleted or {}).get(plan.key, plan)) for plan in done.plans],
        "quarantine": asdict(done.waiting) | {"deleted": done.waiting_deleted},
        "past_snapshots_stay": done.past_stays or None,
        **({"expired": asdict(done.expired)} if done.expired is not None else {}),
        **({"failed": [{"partition": key, "error": why} for key, why in done.failed.items()]} if done.failed else {}),
    }


def _record(each: Deletion) -> dict[str, Any]:
    return {
        "partition": each.key,
        "rows": each.rows,
        "files": each.files,
        "rows_matching": each.rows_deleted,
        "bytes_read": each.bytes_read,
        "matching": dict(each.matching),
    }


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
