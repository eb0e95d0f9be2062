"""``datalake export``: lands feeds, by the same Dagster assets that the web UI shows."""

from __future__ import annotations

import click

from datalake_assets.cli.session import LakeCommand, Session, json_option, pass_session

__all__ = ["export"]


@click.command(cls=LakeCommand)
@click.option("--all", "everything", is_flag=True, help="Export every active feed.")
@click.option("--stream", metavar="NAME", help="Export this stream.")
@click.option("--table", metavar="NAME", help="Export this table.")
@click.option("--partition", metavar="KEY", help="Only this partition, like 2025-01-15, or a table's version, like v4.")
@click.option("--range", "between", metavar="A..B", help="Only the partitions from A to B, both included.")
@click.option(
    "--parallel",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Feeds exported at once, each in a process of its own.",
)
@click.option("--allow-shrink", is_flag=True, help="Accept that the source has fewer rows than the lake.")
@click.option("--new-epoch", is_flag=True, help="Accept that the source was created anew, or lost rows.")
@json_option
@pass_session
def export(
    session: Session,
    *,
    everything: bool,
    stream: str | None,
    table: str | None,
    partition: str | None,
    between: str | None,
    parallel: int,
    allow_shrink: bool,
    new_epoch: bool,
    as_json: bool,
) -> None:
    """Land what is new at the source: of one feed, or of all.

    Without --partition or --range a stream catches up, and a table gets its next version. What the lake has already
    is not landed twice, so an export can be repeated at any time.

    \b
    datalake export --all
    datalake export --stream transaction_stream --range 2025-01-01..2025-01-31
    """  # noqa: D301  click reads the \b: keep these lines
    if sum((everything, stream is not None, table is not None)) != 1:
        raise click.UsageError("give one of --all, --stream NAME and --table NAME")
    if partition is not None and between is not None:
        raise click.UsageError("give --partition or --range, not both")
    if everything and (partition or between):
        raise click.UsageError("--partition and --range need --stream or --table")
    from datalake_assets.cli import exporting  # noqa: PLC0415  not needed for --help

    request = exporting.ExportRequest(partition, between, allow_shrink=allow_shrink, new_epoch=new_epoch)
    chosen = exporting.all_feeds(session) if everything else exporting.one_feed(session, stream=stream, table=table)
    outcomes = exporting.export_feeds(session, chosen.feeds, request, parallel=parallel, quiet=as_json)
    exporting.print_outcomes(outcomes, as_json=as_json)
    if chosen.problems or any(outcome.error for outcome in outcomes):
        raise click.exceptions.Exit(1)
