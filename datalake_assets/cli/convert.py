"""``datalake convert``: files of CSV or JSON into Parquet and Avro, once, without a lake."""

from __future__ import annotations

from typing import Any

import click

from datalake_assets.cli.output import as_table, print_json, say, terminal_width, warn
from datalake_assets.cli.session import Session, WorkCommand, json_option, pass_session
from datalake_assets.core.wording import size_text
from datalake_assets.errors import ConfigError
from datalake_assets.sources.base import FeedOption

__all__ = ["convert"]

_COLUMNS = ["file", "rows", "rejected", "size", "outputs", "ratio", "seconds"]
_FORMATS = ("parquet", "avro")
_TYPES = FeedOption("--column-type", "types", "", shape="pairs")


@click.command(cls=WorkCommand)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option(
    "--to", "formats", metavar="FORMAT,…", default="parquet", show_default=True, help="parquet, avro, or both."
)
@click.option("--pattern", metavar="GLOB", default="*", show_default=True, help="Names of the files that count.")
@click.option(
    "--file-format", type=click.Choice(("auto", "csv", "tsv", "json")), default="auto", help="How files are written."
)
@click.option("--encoding", metavar="NAME", help="What files are written in.  [default: what it looks like]")
@click.option("--null-values", metavar="TEXT,…", default="", help="Texts that are null, besides the empty one.")
@click.option("--column-type", "types", metavar="NAME=TYPE", multiple=True, help="Type of a column; may be repeated.")
@click.option("--compression", type=click.Choice(("snappy", "zstd")), default="snappy", help="Of both formats.")
@click.option("--parallel", type=click.IntRange(1, 64), default=2, show_default=True, help="Files at once.")
@json_option
@pass_session
def convert(session: Session, *, source: str, destination: str, as_json: bool, parallel: int, **chosen: Any) -> None:
    """Convert CSV, TSV or JSON files at SRC to Parquet or Avro at DST, once, without a lake.

    SRC is a file, a folder or an S3 prefix, DST one of the latter two. Each file is read once and becomes one file of
    each format, under its name; it is there as a whole or not at all. Rows that cannot be read are in DST/_rejected,
    with their lines. Values and types are as in feeds of dropped files.

    \b
    datalake convert /data/drop /data/out --to parquet,avro
    datalake convert s3://bucket/in/a.csv.gz . --column-type price=decimal(18,2)
    """  # noqa: D301  click reads the \b: keep these lines
    from datalake_assets.sources.files.file_conversion import (  # noqa: PLC0415  not needed for --help
        convert_files,
        destination_of,
        source_of,
    )

    conversion = _conversion(chosen)
    endpoint = session.settings.s3_endpoint
    files = source_of(source, chosen["pattern"], endpoint=endpoint)
    done = []
    for each in convert_files(files, destination_of(destination, endpoint=endpoint), conversion, workers=parallel):
        done.append(each)
        if each.refused:
            warn(f"Error: {each.name}: {each.refused}")
        elif each.rejected:
            warn(f"{each.name}: {each.rejected:,} rows could not be read; see _rejected/{each.name}.jsonl")
    done.sort(key=lambda each: each.name)
    if as_json:
        print_json({"files": [_document(each) for each in done]})
    elif done:
        say(as_table(_COLUMNS, list(map(_row, done)), width=terminal_width()))
    else:
        say(f"{source} has no files that match {chosen['pattern']}")
    if any(each.refused for each in done):
        raise click.exceptions.Exit(1)


def _conversion(chosen: dict[str, Any]) -> Any:
    from datalake_assets.parquet.writer import ParquetSettings  # noqa: PLC0415  not needed for --help
    from datalake_assets.sources.files.file_conversion import Conversion  # noqa: PLC0415
    from datalake_assets.sources.files.file_reading import ReadingOptions  # noqa: PLC0415
    from datalake_assets.sources.files.text_values import named_type  # noqa: PLC0415

    formats = tuple(dict.fromkeys(each.strip() for each in chosen["formats"].split(",")))
    if not set(formats) <= set(_FORMATS):
        raise click.UsageError(f"--to takes {' and '.join(_FORMATS)}, separated by a comma")
    try:
        types = _TYPES.parsed(chosen["types"])
        for kind in types.values():
            named_type(kind)
    except ValueError as error:
        raise ConfigError(f"--column-type: {error}") from error
    nulls = tuple(dict.fromkeys(("", *filter(None, chosen["null_values"].split(",")))))
    options = ReadingOptions(format=chosen["file_format"], nulls=nulls, declared=frozenset(types))
    compression = chosen["compression"]
    return Conversion(
        formats,
        options,
        chosen["encoding"],
        types,
        ParquetSettings(compression=compression),
        "zstandard" if compression == "zstd" else "snappy",
    )


def _document(each: Any) -> dict[str, Any]:
    return {
        "name": each.name,
        "rows": each.rows,
        "rejected": each.rejected,
        "size_bytes": each.size_bytes,
        "outputs": dict(each.outputs),
        "ratio": round(each.ratio, 3),
        "seconds": round(each.seconds, 3),
        "refused": each.refused or None,
    }


def _row(each: Any) -> list[Any]:
    outputs = ", ".join(size_text(size) for size in each.outputs.values()) or "refused"
    figures = [f"{each.rows:,}", f"{each.rejected:,}", size_text(each.size_bytes)]
    return [each.name, *figures, outputs, f"{each.ratio:.1f}", f"{each.seconds:.1f}"]
