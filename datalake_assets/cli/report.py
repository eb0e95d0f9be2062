"""``datalake report``: what the lake amounts to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from datalake_assets.cli.session import LakeCommand, Session, json_option, pass_session
from datalake_assets.cli.show import as_csv, as_table, bytes_text, plain, say
from datalake_assets.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalake_assets.lake.statistics import FeedStatistics

__all__ = ["console_report", "report"]

_PARTITIONS_SHOWN = 10


@click.command(cls=LakeCommand)
@click.option(
    "--format",
    "output",
    type=click.Choice(["console", "csv", "json"]),
    default="console",
    show_default=True,
    help="console: a summary; csv: a line per partition; json: both.",
)
@click.option("--output", "file", type=click.Path(dir_okay=False), metavar="FILE", help="Write it to this file.")
@click.option("--rebuild", is_flag=True, help="Also write every feed's _metadata.json anew.")
@json_option
@pass_session
def report(session: Session, *, output: str, file: str | None, rebuild: bool, as_json: bool) -> None:
    """Report rows, files, small files and sizes, from the manifests."""
    from datalake_assets.lake.statistics import lake_statistics, rebuild_summaries  # noqa: PLC0415  not for --help

    statistics = lake_statistics(session.store, session.feeds()[0])
    if rebuild:
        rebuild_summaries(session.store, statistics)
    text = _render(statistics, "json" if as_json else output, lake=session.store.uri)
    if file is None:
        click.echo(text, nl=False)
        return
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output {file}: {error.strerror}") from error
    say(f"wrote {file}")


def _render(statistics: Sequence[FeedStatistics], output: str, *, lake: str) -> str:
    from datalake_assets.lake.statistics import PARTITION_COLUMNS  # noqa: PLC0415  not needed for --help

    if output == "csv":
        records = [record for each in statistics for record in each.records()]
        return as_csv(PARTITION_COLUMNS, [tuple(record.values()) for record in records])
    if output == "json":
        import json  # noqa: PLC0415

        return json.dumps(plain(_document(statistics, lake)), indent=2) + "\n"
    return console_report(statistics) + "\n"


def _document(statistics: Sequence[FeedStatistics], lake: str) -> dict[str, object]:
    feeds = [
        {
            "feed": each.feed.name,
            "kind": each.feed.kind.value,
            "rows": each.rows,
            "files": each.files,
            "small_files": each.small_files,
            "size_bytes": each.size_bytes,
            "newest_row": each.newest_row,
            "partitions": each.records(),
        }
        for each in statistics
    ]
    return {"lake": lake, "feeds": feeds}


def console_report(statistics: Sequence[FeedStatistics]) -> str:
    """A table of feeds, and one of the partitions with the most small files."""
    if not any(each.partitions for each in statistics):
        return "the lake has no data yet; export some with 'datalake export --all'"
    feeds = as_table(
        ("feed", "partitions", "rows", "files", "small", "size", "newest row"),
        [
            (
                each.feed.path,
                len(each.partitions),
                f"{each.rows:,}",
                each.files,
                each.small_files,
                bytes_text(each.size_bytes),
                f"{each.newest_row:%Y-%m-%d %H:%M:%S}" if each.newest_row else "",
            )
            for each in statistics
        ],
    )
    worst = sorted(
        ((each.feed, partition) for each in statistics for partition in each.partitions if partition.small_files > 1),
        key=lambda pair: (-pair[1].small_files, pair[0].path, pair[1].key),
    )
    if not worst:
        return feeds
    partitions = as_table(
        ("most small files", "partition", "small", "files", "rows", "size"),
        [
            (feed.path, one.key, one.small_files, one.files, f"{one.rows:,}", bytes_text(one.size_bytes))
            for feed, one in worst[:_PARTITIONS_SHOWN]
        ],
    )
    return f"{feeds}\n\n{partitions}"
