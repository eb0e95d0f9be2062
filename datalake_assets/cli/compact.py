"""``datalake compact``: merges the small files of a feed's partitions."""

from __future__ import annotations

import click

from datalake_assets.cli.session import LakeCommand, Session, json_option, pass_session

__all__ = ["compact"]


@click.command(cls=LakeCommand)
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
    from datalake_assets.cli import compacting, planning  # noqa: PLC0415  not needed for --help
    from datalake_assets.lake.feed_compaction import request_of  # noqa: PLC0415  likewise
    from datalake_assets.lake.tables import look_again, open_table  # noqa: PLC0415  likewise

    request = request_of(session.settings, force=force, target_file_size_mb=target_file_size_mb, max_files=max_files)
    feed = session.registry.get(name)
    if not dry_run:
        look_again(open_table(session.store, feed))
    keys = compacting.chosen_partitions(session, feed, partitions, between)
    run = planning.show_plans if dry_run else compacting.compact_feed
    if not run(session, feed, keys, request, as_json=as_json, verbose=verbose or session.verbose):
        raise click.exceptions.Exit(1)
