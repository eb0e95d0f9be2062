"""``datalake compact``: merges the small files of a feed's partitions, or with ``--dry-run`` shows what it would do."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, fields
from functools import partial
from typing import Any

import click

from datalake_assets.cli.export import ExportRequest
from datalake_assets.cli.output import CompactProgress, one_line, print_json, say, warn
from datalake_assets.cli.session import Session, WorkCommand, json_option, pass_session, tell_dagster
from datalake_assets.core.compaction.compaction_report import CompactionProgress, CompactionReport, tasks_text, way_text
from datalake_assets.core.compaction.plan import CompactionPlan, CompactionRequest, Estimate, LeftAlone
from datalake_assets.core.facts import PartitionFacts, Problem
from datalake_assets.core.wording import size_text
from datalake_assets.errors import ConfigError, DatalakeError, unforeseen_text
from datalake_assets.feed import Feed
from datalake_assets.lake.feed_compaction import (
    Compacted,
    Rehearses,
    by_reason,
    compact_partitions,
    kernel_of,
    missing_partitions,
    most_small_files_first,
    rehearsed,
    unusable,
)
from datalake_assets.lake.table import LakeTable
from datalake_assets.lake.tables import open_table

__all__ = [
    "chosen_partitions",
    "compact",
    "compact_feed",
    "document",
    "left_alone_lines",
    "left_alone_records",
    "line_of",
    "plan_document",
    "plan_lines",
    "show_plans",
    "total_line",
    "warn_of_problems",
    "warn_of_unusable",
]


logger = logging.getLogger(__name__)


@click.command(cls=WorkCommand)
@click.argument("name")
@click.option(
    "--partition",
    "partitions",
    multiple=True,
    metavar="KEY",
    help="Only this partition, like 2025-01-15, or a table's version, like v4; can be repeated.",
)
@click.option("--range", "between", metavar="A..B", help="Only a stream's partitions from A to B, both included.")
@click.option(
    "--dry-run", is_flag=True, help="Say what would be merged, what that saves, and what not; change nothing."
)
@click.option("--force", is_flag=True, help="Merge what can be merged, however few and however young the files are.")
@click.option(
    "--target-file-size-mb",
    type=click.IntRange(1, 4096),
    metavar="N",
    help="Size of the files to make, in MiB.  [default: the feed's format]",
)
@click.option(
    "--max-files",
    type=click.IntRange(min=2),
    metavar="N",
    help="Merge at most so many files of a partition.  [default: the feed's policy]",
)
@click.option("-v", "--verbose", is_flag=True, help="List each file that was left alone.")
@json_option
@pass_session
def compact(
    session: Session,
    *,
    name: str,
    partitions: tuple[str, ...],
    between: str | None,
    dry_run: bool,
    force: bool,
    target_file_size_mb: int | None,
    max_files: int | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """Merge the small files of a feed into few large ones with the same rows.

    Takes every partition, those with most small files first. Exports may go on meanwhile; whatever is interrupted is
    finished by the next command.

    \b
    datalake compact transaction_stream --dry-run
    datalake compact transaction_stream --partition 2025-01-15 --partition 2025-01-16
    """  # noqa: D301  click reads the \b: keep these lines
    if partitions and between is not None:
        raise click.UsageError("give --partition or --range, not both")
    from datalake_assets.lake.feed_compaction import request_of  # noqa: PLC0415  not needed for --help

    request = request_of(session.settings, force=force, target_file_size_mb=target_file_size_mb, max_files=max_files)
    feed = session.registry.get(name)
    table, is_all = open_table(session.store, feed), not partitions and between is None
    if dry_run:
        keys = chosen_partitions(session, feed, partitions, between, known={}, table=table)
        problems = table.rehearsed_problems() if isinstance(table, Rehearses) and is_all else ()
        done = show_plans(
            session, feed, keys, request, as_json=as_json, verbose=verbose or session.verbose, table=table
        )
        warn_of_problems(feed, keys, problems)
    else:
        seen = table.look_again()
        if seen.why_not_compacted:
            raise ConfigError(f"feed {name!r} is only looked at, and not compacted: {seen.why_not_compacted}")
        keys = chosen_partitions(session, feed, partitions, between, known=seen.partitions)
        done = compact_feed(session, feed, keys, request, as_json=as_json, verbose=verbose or session.verbose)
        done = not (is_all and warn_of_problems(feed, keys, seen.problems)) and done
    if not done:
        raise click.exceptions.Exit(1)


#: Files of a partition that are warned of one by one.
_WARNINGS = 50
_TOTALS = (
    "files_before",
    "files_after",
    "files_compacted",
    "files_removed",
    "bytes_before",
    "bytes_after",
    "bytes_saved",
    "rows",
    "kernel",
    "row_groups_merged",
    "row_groups_encoded",
    "compaction_time_ms",
    "small_files_remaining",
)


def chosen_partitions(
    session: Session,
    feed: Feed,
    partitions: Sequence[str],
    between: str | None,
    *,
    known: Mapping[str, PartitionFacts],
    table: LakeTable | None = None,
) -> tuple[str, ...]:
    """The partitions that the options name, those with most small files first; ``known`` holds facts of some.

    Args:
        session: Of the command.
        feed: The feed.
        partitions: Keys.
        between: The first and the last one.
        known: Facts of some.
        table: The one whose compaction is rehearsed; None: opened, and asked for what it holds.

    Raises:
        ConfigError: They are none of this feed's.
    """
    present = table.rehearsed_partitions() if isinstance(table, Rehearses) else None
    table = table or open_table(session.store, feed)
    if partitions:
        for key, error in missing_partitions(table, partitions).items():
            if key not in (present or ()):
                raise error
        keys = tuple(dict.fromkeys(partitions))
    else:
        keys = ExportRequest(between=between).among(table.partitions() if present is None else present, feed)
    return most_small_files_first(lambda: open_table(session.store, feed), keys, known=known)


def compact_feed(
    session: Session, feed: Feed, keys: Sequence[str], request: CompactionRequest, *, as_json: bool, verbose: bool
) -> bool:
    """Compacts partitions, tells what came of each, and tells Dagster, where it keeps a history.

    Returns:
        Whether all that was due was done.
    """
    done: list[Compacted] = []
    try:
        _compact(session, feed, keys, request, done, quiet=as_json)
    finally:
        _tell_dagster(session, feed, done)
    if as_json:
        print_json(document(feed, done))
    else:
        _print_totals(feed, done, verbose=verbose)
    blocked = sum(len(each.report.blocked) for each in done if each.report is not None)
    if blocked:
        be = "was due and was not merged: it is" if blocked == 1 else "were due and were not merged: they are"
        warn(f"Error: {feed.path}: {_count(blocked, 'file')} {be} named above")
    return not blocked and not any(each.error for each in done)


def document(feed: Feed, done: Sequence[Compacted]) -> dict[str, Any]:
    """What ``--json`` prints; ``failed`` and ``blocked`` are there only if something that was due was not done."""
    reports = [each.report for each in done if each.report is not None]
    failed = [{"partition": each.key, "error": str(each.error)} for each in done if each.error is not None]
    blocked = [{"partition": one.key, **each} for one in reports for each in left_alone_records(one.blocked)]
    return {
        "feed": feed.name,
        "partitions": [_record(report) for report in reports],
        **_totals(reports),
        "skipped": [{"partition": one.key, **each} for one in reports for each in left_alone_records(one.skipped)],
        "decoded": [{"partition": one.key, **each} for one in reports for each in left_alone_records(one.detours)],
        **({"failed": failed} if failed else {}),
        **({"blocked": blocked} if blocked else {}),
    }


def line_of(feed: Feed, report: CompactionReport) -> str:
    """What happened to a partition, for a person."""
    return one_line(f"{feed.path} {report.key}: {report.text}")


def total_line(feed: Feed, done: Sequence[Compacted]) -> str:
    """What happened to all partitions together."""
    reports = [each.report for each in done if each.report is not None]
    changed = [each.report for each in done if each.report is not None and each.changed]
    left = [each for report in reports for each in report.skipped]
    if not changed:
        reasons = [f"; {_count(len(names), 'file')}: {reason}" for reason, names in by_reason(left).items()]
        return one_line(f"{feed.path}: nothing to compact in {_count(len(reports), 'partition')}{''.join(reasons)}")
    total = _totals(changed)
    way = way_text(total["kernel"], merged=total["row_groups_merged"], encoded=total["row_groups_encoded"])
    return (
        f"{feed.path}: {len(changed):,} of {_count(len(done), 'partition')} compacted,"
        f" files {total['files_before']:,} -> {total['files_after']:,},"
        f" {size_text(total['bytes_before'])} -> {size_text(total['bytes_after'])}, {total['rows']:,} rows,"
        f" {way}, {total['compaction_time_ms'] / 1000:.1f} s"
        + tasks_text([task for report in changed for task in report.tasks])
    )


def left_alone_lines(left_alone: Sequence[tuple[str, LeftAlone]], *, each: bool, what: str = "left alone") -> list[str]:
    """Why files were left alone: a line per reason with their number and an example, or a line per file.

    Args:
        left_alone: With the partition that each is in.
        each: Name every file.
        what: What was done with them.
    """
    if each:
        return [one_line(f"{what}: {key}/{one.name}: {one.reason}") for key, one in left_alone]
    lines = []
    for reason, names in by_reason([LeftAlone(f"{key}/{one.name}", one.reason) for key, one in left_alone]).items():
        example = names[0] if len(names) == 1 else f"{_count(len(names), 'file')}, like {names[0]}"
        lines.append(one_line(f"{what}: {example}: {reason}"))
    return lines


def left_alone_records(left_alone: Iterable[LeftAlone]) -> list[dict[str, str]]:
    """Files that were left alone, for ``--json``."""
    return [{"name": each.name, "reason": each.reason} for each in left_alone]


def warn_of_unusable(feed: Feed, key: str, left_alone: Iterable[LeftAlone]) -> None:
    """Names the files of a partition that no rewrite can take, each on a line on stderr."""
    found = unusable(left_alone)
    for each in found[:_WARNINGS]:
        warn(f"{feed.path} {key}: {each.name}: {each.reason}")
    if len(found) > _WARNINGS:
        warn(f"{feed.path} {key}: and {len(found) - _WARNINGS:,} files more, which --json names")


def warn_of_problems(feed: Feed, keys: Sequence[str], problems: Sequence[Problem]) -> bool:
    """Names the data files that are in no partition that is looked at, since they cannot be read; whether there are."""
    looked_at = set(keys)
    found = [each for each in problems if each.key not in looked_at]
    for each in found[:_WARNINGS]:
        warn(f"{feed.path} {each.key}: {each.name.rpartition('/')[2]}: cannot be read: {each.reason}")
    if len(found) > _WARNINGS:
        warn(f"{feed.path}: and {len(found) - _WARNINGS:,} files more, which 'datalake verify {feed.name}' names")
    return bool(found)


def _compact(
    session: Session,
    feed: Feed,
    keys: Sequence[str],
    request: CompactionRequest,
    done: list[Compacted],
    *,
    quiet: bool,
) -> None:
    """Adds to ``done`` what became of each partition, so that an interrupt leaves there what is committed."""
    with CompactProgress(feed.path, partitions=len(keys), quiet=quiet) as progress:

        def advance(key: str, now: CompactionProgress) -> None:
            progress.advance(key, bytes_done=now.bytes_done, bytes_planned=now.bytes_planned)

        compacted = compact_partitions(
            partial(open_table, session.store, feed),
            keys,
            request,
            on_begin=lambda _: progress.begin(),
            on_progress=advance,
        )
        with closing(compacted):
            for each in compacted:
                done.append(each)
                _tell(progress, feed, each)


def _tell(progress: CompactProgress, feed: Feed, one: Compacted) -> None:
    if one.error is not None:
        warn(f"Error: {feed.path} {one.key}: {one.error}")
    if one.report is not None:
        if one.changed:
            progress.tell(line_of(feed, one.report))
        warn_of_unusable(feed, one.key, one.report.skipped)


def _print_totals(feed: Feed, done: Sequence[Compacted], *, verbose: bool) -> None:
    if any(each.changed for each in done) or not any(each.error for each in done):
        say(total_line(feed, done))
    if verbose or any(each.changed for each in done):
        left = [(each.key, one) for each in done if each.report is not None for one in each.report.skipped]
        for line in left_alone_lines(left, each=verbose):
            say(line)
        decoded = [(each.key, one) for each in done if each.report is not None for one in each.report.detours]
        for line in left_alone_lines(decoded, each=verbose, what="decoded, not merged page by page"):
            say(line)


def _record(report: CompactionReport) -> dict[str, Any]:
    figures = {name: getattr(report, name) for name in _TOTALS}
    named = {"skipped": left_alone_records(report.skipped), "decoded": left_alone_records(report.detours)}
    tasks = {"tasks": [asdict(each) for each in report.tasks]} if report.tasks else {}
    return {"partition": report.key, **figures, **named, **tasks}


def _totals(reports: Iterable[CompactionReport]) -> dict[str, Any]:
    listed = list(reports)
    return {
        name: kernel_of(listed) if name == "kernel" else sum(getattr(report, name) for report in listed)
        for name in _TOTALS
    }


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _tell_dagster(session: Session, feed: Feed, done: Sequence[Compacted]) -> None:
    """Tells Dagster what was compacted, if it keeps a history; the data are committed, whatever becomes of this."""
    reports = [each.report for each in done if each.report is not None and each.changed]
    if reports:
        tell_dagster(session, feed.name, "compaction", reports)


#: Groups of a partition that are shown unless asked for more.
_GROUPS_SHOWN = 10
#: Files left alone that are named one by one.
_FILES_SHOWN = 10
_CENT = 0.01
#: Nobody decides by less.
_LEAST_DOLLARS = 0.0001

#: Bytes of files whose merge a dry run tries, in all partitions together: seconds.
REHEARSED_BYTES = 256 << 20

Plans = Sequence[tuple[str, CompactionPlan]]


def show_plans(
    session: Session,
    feed: Feed,
    keys: Sequence[str],
    request: CompactionRequest,
    *,
    as_json: bool,
    verbose: bool,
    table: LakeTable | None = None,
) -> bool:
    """Plans partitions and prints the plans; changes nothing.

    Returns:
        Whether every partition could be planned.
    """
    table = table or open_table(session.store, feed)
    plans: list[tuple[str, CompactionPlan]] = []
    failed, tried_bytes, untried_bytes = False, 0, 0
    for key in keys:
        try:
            seen = rehearsed(table, key, request, most_bytes=REHEARSED_BYTES - tried_bytes)
            plan = seen.plan
            tried_bytes, untried_bytes = tried_bytes + seen.tried_bytes, untried_bytes + seen.untried_bytes
        except DatalakeError as error:
            failed = True
            warn(f"Error: {feed.path} {key}: {error}")
            continue
        except Exception as error:  # the other partitions can be planned
            logger.exception("no plan for %s %s", feed.path, key)
            failed = True
            warn(f"Error: {feed.path} {key}: {unforeseen_text(error)}")
            continue
        plans.append((key, plan))
        warn_of_unusable(feed, key, plan.left_alone)
    if as_json:
        print_json({**plan_document(feed, plans), "tried_bytes": tried_bytes, "untried_bytes": untried_bytes})
    elif plans or not failed:
        for line in plan_lines(feed, plans, verbose=verbose):
            say(line)
        if untried_bytes:
            more = f"what of {size_text(untried_bytes)} more cannot be merged, the run will tell"
            say(f"merges of {size_text(tried_bytes)} were tried; {more}")
    return not failed


def plan_document(feed: Feed, plans: Plans) -> dict[str, Any]:
    """What ``--dry-run --json`` prints."""
    return {
        "feed": feed.name,
        "partitions": [
            {
                "partition": key,
                "groups": [
                    {
                        "files": [file.name for file in group.files],
                        "size_bytes": group.size_bytes,
                        # nobody knows before the rewrite what it saves: the plan counts on nothing
                        "predicted_output_bytes": group.size_bytes,
                        "reason": group.reason,
                    }
                    for group in plan.groups
                ],
                "left_alone": left_alone_records(plan.left_alone),
                "estimate": asdict(plan.estimate),
            }
            for key, plan in plans
        ],
        "estimate": asdict(total_estimate(plans)),
    }


def plan_lines(feed: Feed, plans: Plans, *, verbose: bool) -> list[str]:
    """What ``--dry-run`` prints: a paragraph per partition that would change, a total, and what stays."""
    changing = [(key, plan) for key, plan in plans if plan.groups]
    left = [(key, one) for key, plan in plans for one in plan.left_alone]
    number = f"{len(plans):,} partition{'' if len(plans) == 1 else 's'}"
    lines = [line for key, plan in changing for line in _partition_lines(feed, key, plan, verbose=verbose)]
    if changing:
        lines.append(f"{feed.path}: {len(changing):,} of {number} to compact, {_saving(total_estimate(changing))}")
    else:
        lines.append(f"{feed.path}: nothing to compact in {number}")
    return [*lines, *left_alone_lines(left, each=verbose or len(left) <= _FILES_SHOWN)]


def total_estimate(plans: Plans) -> Estimate:
    """The estimates of all partitions together."""
    names = [field.name for field in fields(Estimate)]
    return Estimate(**{name: sum(getattr(plan.estimate, name) for _, plan in plans) for name in names})


def _partition_lines(feed: Feed, key: str, plan: CompactionPlan, *, verbose: bool) -> list[str]:
    lines = [one_line(f"{feed.path} {key}: {_saving(plan.estimate)}")]
    shown = plan.groups if verbose else plan.groups[:_GROUPS_SHOWN]
    for group in shown:
        files = "1 file" if len(group.files) == 1 else f"{len(group.files):,} files"
        lines.append("  " + one_line(f"{files}, {size_text(group.size_bytes)}: {group.reason}"))
    if len(plan.groups) > len(shown):
        lines.append(f"  and {len(plan.groups) - len(shown):,} more groups, see -v")
    return lines


def _saving(estimate: Estimate) -> str:
    return (
        f"files {estimate.files_before:,} -> {estimate.files_after:,},"
        f" {size_text(estimate.bytes_rewritten)} to rewrite for {_dollars(estimate.dollars_cost)};"
        f" saves {estimate.requests_saved:,} requests per scan, {_dollars(estimate.dollars_saved_per_month)} a month"
    )


def _dollars(amount: float) -> str:
    """Digits that say something: ``$12.34``, ``$0.0051``."""
    if amount >= _CENT or amount <= 0:
        return f"${amount:,.2f}"
    return f"${amount:.2g}" if amount >= _LEAST_DOLLARS else f"less than ${_LEAST_DOLLARS}"
