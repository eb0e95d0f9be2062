"""``datalake sql``: questions to the lake."""

from __future__ import annotations

import click

from datalake_assets.cli.output import as_csv, as_table, print_json, say, terminal_width, warn
from datalake_assets.cli.session import LakeCommand, Session, json_option, pass_session

__all__ = ["sql"]

#: More rows than anybody reads on a terminal.
_ROWS_SHOWN = 100


@click.command(cls=LakeCommand)
@click.argument("query", metavar="QUERY")
@click.option(
    "--format",
    "output",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="Output.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    help=f"Rows to print at the most; 0 for all.  [default: {_ROWS_SHOWN} in a table, else all]",
)
@json_option
@pass_session
def sql(session: Session, *, query: str, output: str, limit: int | None, as_json: bool) -> None:
    """Answer a SELECT over the feeds, by DuckDB, exactly as committed.

    Streams have the columns year, month, day (hour) of their partitions; tables are read at their current version.

    \b
    datalake sql "select day, count(*) from transaction_stream group by day order by day"
    """  # noqa: D301  click reads the \b: keep these lines
    from datalake_assets.lake.sql_session import run_sql  # noqa: PLC0415  DuckDB and pyarrow are not needed for --help

    output = "json" if as_json else output
    most = limit if limit is not None else (_ROWS_SHOWN if output == "table" else 0)
    result = run_sql(session.store, session.feeds()[0], query, limit=most or None)
    if output == "json":
        print_json([dict(zip(result.columns, row, strict=True)) for row in result.rows])
    elif output == "csv":
        click.echo(as_csv(result.columns, result.rows), nl=False)
    else:
        say(as_table(result.columns, result.rows, width=terminal_width()))
        if result.truncated:
            warn(f"the first {most} rows; --limit 0 prints all")
