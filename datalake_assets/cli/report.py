"""``datalake report``: the figures of the lake, and what to do about them."""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from datalake_assets.cli.output import as_table, say, terminal_width, warn
from datalake_assets.cli.session import LakeCommand, Session, existing_home, json_option, pass_session
from datalake_assets.core.wording import dollars_text, scans_text, size_text
from datalake_assets.errors import ConfigError, DatalakeError

if TYPE_CHECKING:
    from datalake_assets.core.report.figures import SinkLag
    from datalake_assets.core.report.findings import FeedReport, LakeReport
    from datalake_assets.core.verdicts import FailedChecks
    from datalake_assets.feed import Feed

__all__ = ["console_report", "lake_report", "report"]

#: Where the page goes that nobody wants on a terminal.
PAGE = "lake_report.html"
_PARTITIONS_SHOWN = 10
#: More than a million a second: whatever costs follow from more are no numbers for a person, nor for JSON.
MOST_SCANS_PER_DAY = 1e11


def _finite(_context: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    """Ranges let NaN through."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("give a number")
    return value


@click.command(cls=LakeCommand)
@click.option(
    "--format",
    "output",
    type=click.Choice(["console", "csv", "json", "html", "prometheus", "cloudwatch"]),
    default="console",
    show_default=True,
    help="console: a summary; csv: a line per partition; json: everything; html: a page with plots; prometheus: metrics"
    " as its text; cloudwatch: metrics, alarms and a dashboard, as arguments of its API.",
)
@click.option(
    "--output",
    "file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help=f"Write it to this file.  [default: standard output; html on a terminal: {PAGE}]",
)
@click.option("--feed", "names", multiple=True, metavar="NAME", help="Only this feed; can be repeated.")
@click.option(
    "--scans-per-day",
    type=click.FloatRange(min=0, max=MOST_SCANS_PER_DAY),
    callback=_finite,
    metavar="N",
    help="How often each partition is read, for the costs.  [default: 1]",
)
@click.option(
    "--cost-limit",
    type=click.FloatRange(min=0),
    callback=_finite,
    metavar="USD",
    help="CloudWatch: dollars a month on S3 above which there is an alarm.  [default: 10]",
)
@click.option("--raw", is_flag=True, help="CSV: leave names that a spreadsheet takes for a formula without a quote.")
@click.option("--rebuild", is_flag=True, help="Also write every feed's _metadata.json anew.")
@json_option
@pass_session
def report(
    session: Session,
    *,
    output: str,
    file: str | None,
    names: tuple[str, ...],
    scans_per_day: float | None,
    cost_limit: float | None,
    raw: bool,
    rebuild: bool,
    as_json: bool,
) -> None:
    """Report small files, sizes, freshness, quarantine and costs, from the manifests.

    \b
    datalake report --format html --output lake.html
    datalake report --format csv --feed transaction_stream
    datalake report --format prometheus --output /var/lib/node_exporter/datalake.prom
    """  # noqa: D301  click reads the \b: keep these lines
    with _no_collections():
        feeds = tuple(session.feeds(name)[0][0] for name in dict.fromkeys(names)) if names else session.feeds()[0]
        found = lake_report(session, feeds, scans_per_day=scans_per_day)
        _warn_of_problems(found)
        if rebuild:
            _rebuild(session, found)
        output = "json" if as_json else output
        if output == "cloudwatch" and names:
            raise click.UsageError("--format cloudwatch has alarms of the whole lake; leave --feed out")
        if file is None and output == "html" and sys.stdout.isatty():
            file = PAGE
        width = None if file else terminal_width()
        if output in {"prometheus", "cloudwatch"}:
            _write(_metrics(session, found, output, cost_limit=cost_limit), file)
            return
        _write(_render(found, output, raw=raw, width=width), file)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Keeps Python from looking for cycles: a million small objects are in none, and the search takes a fifth."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _write(text: str, file: str | None) -> None:
    if file is None:
        click.echo(text, nl=False)
        return
    try:
        whole = Path(f"{file}.{os.getpid()}") if Path(file).suffix == ".prom" else Path(file)
        whole.write_text(text, encoding="utf-8")
        if whole != Path(file):  # collectors read such files whenever they like
            whole.replace(file)
    except OSError as error:
        raise ConfigError(f"--output {file}: {error.strerror}") from error
    say(f"wrote {file}")


def lake_report(session: Session, feeds: Sequence[Feed], *, scans_per_day: float | None = None) -> LakeReport:
    """The report of some feeds of the session's lake."""
    from datalake_assets.core.report.findings import SCANS_PER_DAY, build_report  # noqa: PLC0415  not needed for --help
    from datalake_assets.lake.feed_compaction import request_of  # noqa: PLC0415  not needed for --help
    from datalake_assets.lake.statistics import lake_statistics  # noqa: PLC0415  not needed for --help

    statistics = lake_statistics(session.store, feeds, request_of(session.settings))
    statistics = tuple(replace(each, sinks=_sink_lags(session, each.feed)) for each in statistics)
    scans = SCANS_PER_DAY if scans_per_day is None else scans_per_day
    return build_report(
        statistics,
        lake=session.store.uri,
        at=session.store.now(),
        scans_per_day=scans,
        failed_checks=_failed_checks(feeds),
    )


def _sink_lags(session: Session, feed: Feed) -> tuple[SinkLag, ...]:
    if not feed.sinks:
        return ()
    from datalake_assets.core.report import figures  # noqa: PLC0415  not needed for --help
    from datalake_assets.sinks.delivery import sink_lag  # noqa: PLC0415  few feeds have sinks

    try:
        lags = [sink_lag(session.store, feed, sink) for sink in feed.sinks if sink.takes_rows]
    except DatalakeError as error:
        warn(f"the sinks of {feed.path} are left out: {error}")
        return ()
    return tuple(figures.SinkLag(each.sink, each.lag_rows, each.refused) for each in lags)


def _warn_of_problems(found: LakeReport) -> None:
    for each in found.statistics:
        for problem in each.problems:
            warn(f"left out {each.feed.path} {problem}")


def _failed_checks(feeds: Sequence[Feed]) -> Mapping[str, FailedChecks] | None:
    """What the feeds' rows do not pass, where there is Dagster's history; the report holds without it."""
    home = existing_home()
    if home is None:
        return None
    from datalake_assets.defs.metadata import failed_checks  # noqa: PLC0415  Dagster, not needed for --help
    from datalake_assets.defs.runtime import open_instance  # noqa: PLC0415  Dagster, not needed for --help

    os.environ["DAGSTER_HOME"] = str(home)
    try:
        with open_instance() as instance:
            return failed_checks(instance, feeds)
    except ConfigError as error:
        warn(f"checks are left out: {error}")
        return None


def _rebuild(session: Session, found: LakeReport) -> None:
    from datalake_assets.lake.statistics import rebuild_summaries  # noqa: PLC0415  not needed for --help

    for each in rebuild_summaries(session.store, found.statistics):
        warn(f"the summary of {each.feed.path} stays as it was: not all of its manifests can be read")


def _metrics(session: Session, found: LakeReport, output: str, *, cost_limit: float | None) -> str:
    from datalake_assets.network import aws_region  # noqa: PLC0415  not needed for --help
    from datalake_assets.report import metrics  # noqa: PLC0415  not needed for --help

    depths = _queue_depths(session, [each.feed for each in found.feeds])
    if output == "prometheus":
        return metrics.prometheus_text(found, depths)
    limit = metrics.COST_LIMIT if cost_limit is None else cost_limit
    region = aws_region() or "us-east-1"
    return metrics.cloudwatch_text(found, depths, region=region, cost_limit=limit, topic=session.settings.notify_sns)


def _queue_depths(session: Session, feeds: Sequence[Feed]) -> dict[str, int]:
    """What waits at the sources that can tell, by feed; one that does not answer is named and left out."""
    from datalake_assets.sources.base import HasBacklog  # noqa: PLC0415  not needed for --help

    found: dict[str, int] = {}
    asked = [feed for feed in feeds if feed.is_exported and feed.exported_from.has_backlog]
    for kind in dict.fromkeys(feed.source.type for feed in asked):
        try:
            with session.source(kind) as system:
                for feed in (each for each in asked if each.source.type == kind):
                    try:
                        if isinstance(system, HasBacklog):
                            found[feed.name] = system.backlog(feed).waiting
                    except DatalakeError as error:
                        warn(f"queue depth is left out: {error}")
        except DatalakeError as error:  # none of its kind can be asked
            warn(f"queue depth is left out: {error}")
    return found


def _render(found: LakeReport, output: str, *, raw: bool, width: int | None) -> str:
    if output == "console":
        lags = [(each.feed, lag) for each in found.statistics for lag in each.sinks if lag.rows or lag.dead_letters]
        lines = [
            f"{feed.path} to {lag.sink}: {lag.rows:,} rows not sent, {lag.dead_letters:,} dead letters"
            for feed, lag in lags
        ]
        return "\n".join([console_report(found, width=width), *lines]) + "\n"
    from datalake_assets.report import documents, page  # noqa: PLC0415  not needed for --help

    if output == "html":
        return page.page_html(found)
    return documents.csv_text(found, raw=raw) if output == "csv" else documents.json_text(found)


def console_report(found: LakeReport, *, width: int | None = None) -> str:
    """A table of feeds, a verdict for each, and the partitions that compaction makes the most of.

    Args:
        found: The report.
        width: Of the terminal, in columns, for `as_table`.
    """
    if not any(each.statistics.partitions for each in found.feeds):
        return "the lake has no data yet; export some with 'datalake export --all'"
    parts = [_feeds(found, width=width), "\n".join(_verdicts(found)), *_worst(found, width=width)]
    costs = (
        f"on S3, read {scans_text(found.scans_per_day)}: {dollars_text(found.cost.dollars)} a month,"
        f" after compaction {dollars_text(found.cost_after.dollars)}"
    )
    return "\n\n".join([*parts, costs])


def _verdicts(found: LakeReport) -> Iterator[str]:
    """A line for each feed that somebody should look at, and one for the others."""
    from datalake_assets.policies import Level  # noqa: PLC0415  not needed for --help

    watched = [each for each in found.feeds if each.level is not Level.OK]
    yield from (f"{each.feed.path}: {each.verdict}" for each in watched)
    healthy = len(found.feeds) - len(watched)
    if healthy:
        yield f"{healthy:,} feed{' is' if healthy == 1 else 's are'} healthy: nothing to merge, nothing late"


def _feeds(found: LakeReport, *, width: int | None) -> str:
    columns = ("feed", "partitions", "rows", "files", "small", "size", "newest row", "last export", "cost a month")
    return as_table(columns, [_feed(each) for each in found.feeds], width=width)


def _feed(each: FeedReport) -> tuple[object, ...]:
    statistics = each.statistics
    newest, last = statistics.newest_row, statistics.last_export
    return (
        each.feed.path,
        len(statistics.partitions),
        f"{statistics.rows:,}",
        statistics.files,
        statistics.small_files,
        size_text(statistics.size_bytes),
        f"{newest:%Y-%m-%d %H:%M:%S}" if newest else "",
        f"{last:%Y-%m-%d %H:%M:%S}" if last else "",
        dollars_text(each.cost.dollars),
    )


def _worst(found: LakeReport, *, width: int | None) -> list[str]:
    worst = [(each.feed, partition) for each in found.feeds for partition in each.worst()]
    worst.sort(key=lambda pair: (pair[1].files_after - pair[1].files, -pair[1].small_files, pair[0].path, pair[1].key))
    if not worst:
        return []
    table = as_table(
        ("most small files", "partition", "small", "files", "after", "rows", "size"),
        [
            (
                feed.path,
                one.key,
                one.small_files,
                one.files,
                one.files_after,
                f"{one.rows:,}",
                size_text(one.size_bytes),
            )
            for feed, one in worst[:_PARTITIONS_SHOWN]
        ],
        width=width,
    )
    more = len(worst) - _PARTITIONS_SHOWN
    return [f"{table}\nand {more:,} more; --format csv lists all" if more > 0 else table]
