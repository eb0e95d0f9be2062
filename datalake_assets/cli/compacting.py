"""Running a compaction, and telling what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from datalake_assets.cli.exporting import ExportRequest
from datalake_assets.cli.progress import CompactProgress
from datalake_assets.cli.session import Session
from datalake_assets.cli.show import one_line, print_json, say, warn
from datalake_assets.config import Feed
from datalake_assets.core.compaction import CompactionRequest, LeftAlone
from datalake_assets.core.compaction_wording import size_text
from datalake_assets.errors import ConfigError
from datalake_assets.lake.base import CompactionProgress, CompactionReport
from datalake_assets.lake.feed_compaction import (
    Compacted,
    by_reason,
    compact_partitions,
    kernel_of,
    missing_partitions,
    most_small_files_first,
    unusable,
)
from datalake_assets.lake.tables import open_table

__all__ = [
    "chosen_partitions",
    "compact_feed",
    "document",
    "left_alone_lines",
    "left_alone_records",
    "line_of",
    "total_line",
    "warn_of_unusable",
]

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
    "compaction_time_ms",
    "small_files_remaining",
)


def chosen_partitions(session: Session, feed: Feed, partitions: Sequence[str], between: str | None) -> tuple[str, ...]:
    """The partitions that the options name, those with most small files first.

    Raises:
        ConfigError: They are none of this feed's.
    """
    table = open_table(session.store, feed)
    if partitions:
        for error in missing_partitions(table, partitions).values():
            raise error
        keys = tuple(dict.fromkeys(partitions))
    else:
        named = ExportRequest(between=between).partitions(feed)
        keys = tuple(key for key in table.partitions() if named is None or key in named)
        if not keys and between is not None:
            raise ConfigError(f"feed {feed.name!r} has no partitions in {between}")
    return most_small_files_first(lambda: open_table(session.store, feed), keys)


def compact_feed(
    session: Session, feed: Feed, keys: Sequence[str], request: CompactionRequest, *, as_json: bool, verbose: bool
) -> bool:
    """Compacts partitions, tells what came of each, and tells Dagster, where it keeps a history.

    Returns:
        Whether no partition failed.
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
    return not any(each.error for each in done)


def document(feed: Feed, done: Sequence[Compacted]) -> dict[str, Any]:
    """What ``--json`` prints; ``failed`` is there only if a partition failed."""
    reports = [each.report for each in done if each.report is not None]
    failed = [{"partition": each.key, "error": str(each.error)} for each in done if each.error is not None]
    return {
        "feed": feed.name,
        "partitions": [_record(report) for report in reports],
        **_totals(reports),
        "skipped": [{"partition": one.key, **each} for one in reports for each in left_alone_records(one.skipped)],
        **({"failed": failed} if failed else {}),
    }


def line_of(feed: Feed, report: CompactionReport) -> str:
    """What happened to a partition, for a person."""
    return one_line(
        f"{feed.path} {report.key}: files {report.files_before:,} -> {report.files_after:,},"
        f" {size_text(report.bytes_before)} -> {size_text(report.bytes_after)}, {report.rows:,} rows,"
        f" {report.kernel}, {report.compaction_time_ms / 1000:.1f} s"
    )


def total_line(feed: Feed, done: Sequence[Compacted]) -> str:
    """What happened to all partitions together."""
    reports = [each.report for each in done if each.report is not None]
    changed = [each.report for each in done if each.report is not None and each.changed]
    left = [each for report in reports for each in report.skipped]
    if not changed:
        reasons = [f"; {_count(len(names), 'file')}: {reason}" for reason, names in by_reason(left).items()]
        return one_line(f"{feed.path}: nothing to compact in {_count(len(reports), 'partition')}{''.join(reasons)}")
    total = _totals(changed)
    return (
        f"{feed.path}: {len(changed):,} of {_count(len(done), 'partition')} compacted,"
        f" files {total['files_before']:,} -> {total['files_after']:,},"
        f" {size_text(total['bytes_before'])} -> {size_text(total['bytes_after'])}, {total['rows']:,} rows,"
        f" {total['kernel']}, {total['compaction_time_ms'] / 1000:.1f} s"
    )


def left_alone_lines(left_alone: Sequence[tuple[str, LeftAlone]], *, each: bool) -> list[str]:
    """Why files were left alone: a line per reason with their number and an example, or a line per file.

    Args:
        left_alone: With the partition that each is in.
        each: Name every file.
    """
    if each:
        return [one_line(f"left alone: {key}/{one.name}: {one.reason}") for key, one in left_alone]
    lines = []
    for reason, names in by_reason([LeftAlone(f"{key}/{one.name}", one.reason) for key, one in left_alone]).items():
        example = names[0] if len(names) == 1 else f"{_count(len(names), 'file')}, like {names[0]}"
        lines.append(one_line(f"left alone: {example}: {reason}"))
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
    table = open_table(session.store, feed)
    with CompactProgress(feed.path, partitions=len(keys), quiet=quiet) as progress:

        def advance(key: str, now: CompactionProgress) -> None:
            progress.advance(key, bytes_done=now.bytes_done, bytes_planned=now.bytes_planned)

        for key in keys:
            progress.begin()
            for each in compact_partitions(table, [key], request, on_progress=advance):
                done.append(each)
                _tell(progress, feed, each)


def _tell(progress: CompactProgress, feed: Feed, one: Compacted) -> None:
    if one.error is not None:
        warn(f"Error: {feed.path} {one.key}: {one.error}")
    elif one.report is not None:
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


def _record(report: CompactionReport) -> dict[str, Any]:
    figures = {name: getattr(report, name) for name in _TOTALS}
    return {"partition": report.key, **figures, "skipped": left_alone_records(report.skipped)}


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
    if not reports:
        return
    from datalake_assets.cli.home import home_to_tell  # noqa: PLC0415  rarely needed

    try:
        if home_to_tell() is None:
            return
        # Dagster takes a second to import: only once everything is committed, and only if there is somebody to tell
        from datalake_assets.defs.compaction.job import report_compactions  # noqa: PLC0415
        from datalake_assets.defs.resources import Lake  # noqa: PLC0415

        report_compactions(Lake(session.settings), feed, reports)
    except Exception as error:  # noqa: BLE001  a history that cannot be written is no reason to fail
        warn(f"not shown in Dagster: {type(error).__name__}: {error}")
