"""``datalake catalog``: enter feeds in catalogs, so that engines find them by name, and keep views of SQL over them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from datalake_assets.cli.output import as_table, one_line, print_json, say, terminal_width
from datalake_assets.cli.session import LakeCommand, OrderedGroup, Session, json_option, pass_session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datalake_assets.catalog.base import Outcome
    from datalake_assets.catalog.entries import Entry, NotEntered
    from datalake_assets.feed import Feed

__all__ = ["catalog"]


@click.group(cls=OrderedGroup)
def catalog() -> None:
    """Enter feeds in catalogs, so that DuckDB, Athena and Spark find them by name.

    \b
    datalake catalog sync
    duckdb -readonly lake/lake.duckdb "SELECT count(*) FROM transaction_stream"
    """  # noqa: D301  click reads the \b: keep these lines


@catalog.command(cls=LakeCommand)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--to",
    "kinds",
    multiple=True,
    metavar="CATALOG",
    help="duckdb or glue; can be repeated.  [default: DATALAKE_CATALOG, or duckdb for a local lake]",
)
@click.option("--prune", is_flag=True, help="Also drop from the catalog what no active feed or view has; data stay.")
@json_option
@pass_session
def sync(session: Session, *, names: tuple[str, ...], kinds: tuple[str, ...], prune: bool, as_json: bool) -> None:
    """Create what a catalog lacks, and bring up to date what it has: all feeds and views, or the feeds NAME.

    Exits with 1 if a feed or a view could not be entered; the others are.
    """
    from datalake_assets.catalog.sync import catalog_kinds, sync_catalogs  # noqa: PLC0415  not needed for --help

    if names and prune:
        raise click.UsageError("--prune is for all feeds; leave the names out")
    feeds = _feeds(session, names)
    if not catalog_kinds(session.settings, session.store, kinds):
        raise click.UsageError("no catalog is set for this lake; give one with --to, or set DATALAKE_CATALOG")
    told = sync_catalogs(session.settings, session.store, feeds, kinds=kinds, is_whole=not names, prune=prune)
    if as_json:
        print_json([_plain(each) for each in told])
    else:
        _show(told)
    if any(each.state == "failed" for each in told):
        raise click.exceptions.Exit(1)


def _feeds(session: Session, names: tuple[str, ...]) -> tuple[Feed, ...]:
    return tuple(session.feeds(name)[0][0] for name in dict.fromkeys(names)) if names else session.feeds()[0]


def _plain(each: Outcome) -> dict[str, object]:
    return {
        "catalog": each.catalog,
        "name": each.name,
        "state": each.state,
        "partitions_added": each.partitions_added,
        "partitions_removed": each.partitions_removed,
        "partitions_moved": each.partitions_moved,
        "detail": each.detail,
    }


def _show(told: list[Outcome]) -> None:
    if not told:
        say("there is nothing to enter: the lake has no feeds and no views")
        return
    columns = ("catalog", "name", "state", "partitions added", "removed", "moved", "")
    rows = [
        (
            each.catalog,
            each.name,
            each.state.replace("_", " "),
            each.partitions_added,
            each.partitions_removed,
            each.partitions_moved,
            one_line(each.detail),
        )
        for each in told
    ]
    say(as_table(columns, rows, width=terminal_width()))


@catalog.command(cls=LakeCommand)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--dialect",
    type=click.Choice(["spark", "athena", "duckdb"]),
    default="spark",
    show_default=True,
    help="Whose SQL: spark is that of a Hive metastore, too.",
)
@click.option("--replace", is_flag=True, help="Also make tables anew, after columns have changed; data stay.")
@pass_session
def ddl(session: Session, *, names: tuple[str, ...], dialect: str, replace: bool) -> None:
    """Print the statements that enter feeds and views, for an engine that is not reached from here.

    They can be run again. What cannot be entered stands in the comments at the end.

    \b
    datalake catalog ddl > lake.sql && spark-sql -f lake.sql
    """  # noqa: D301  click reads the \b: keep these lines
    from datalake_assets.catalog.sync import Wanted  # noqa: PLC0415  not needed for --help

    wanted = Wanted.of(session.store, _feeds(session, names), is_whole=not names)
    if dialect == "duckdb":
        from datalake_assets.catalog.duckdb_file import duckdb_view, why_no_view  # noqa: PLC0415  not needed for --help
        from datalake_assets.core.rules import identifier  # noqa: PLC0415  not needed for --help

        not_printed = {each.name: why_no_view(each) for each in wanted.entries}
        statements = [duckdb_view(each) for each in wanted.entries if not not_printed[each.name]]
        statements += [f"CREATE OR REPLACE VIEW {identifier(each.name)} AS {each.query}\n" for each in wanted.views]
    else:
        from datalake_assets.catalog.metastore import Dialect, why_not_printed  # noqa: PLC0415  not needed for --help
        from datalake_assets.catalog.metastore import ddl as hive_ddl  # noqa: PLC0415  not needed for --help

        database = session.settings.catalog_database
        chosen: Dialect = "athena" if dialect == "athena" else "spark"
        not_printed = {each.name: why_not_printed(each, chosen, replace=replace) for each in wanted.entries}
        statements = [*hive_ddl(wanted.entries, wanted.views, database=database, dialect=chosen, replace=replace)]
    for statement in statements:
        say(f"{statement};")
    for line in _left_out(wanted.entries, wanted.left_out, is_hive=dialect != "duckdb", not_printed=not_printed):
        say(f"-- {one_line(line)}")


def _left_out(
    entries: tuple[Entry, ...], feeds: tuple[NotEntered, ...], *, is_hive: bool, not_printed: Mapping[str, str]
) -> list[str]:
    lines = [f"{each.feed.path} is left out: {each.reason}" for each in feeds]
    lines += [f"{each.feed.path} is left out: {reason}" for each in entries if (reason := not_printed[each.name])]
    for each in entries if is_hive else ():
        lines += [
            f"{each.feed.path}: column {name!r} is left out: Hive has no such type or name" for name in each.unreadable
        ]
    return lines


@catalog.command(cls=LakeCommand)
@json_option
@pass_session
def views(session: Session, *, as_json: bool) -> None:
    """List the views of SQL that catalogs are given beside the feeds."""
    from datalake_assets.catalog.views import ViewRegistry  # noqa: PLC0415  not needed for --help

    found = ViewRegistry(session.store).list()
    if as_json:
        print_json([each.model_dump(mode="json") for each in found])
        return
    rows = [(each.name, one_line(each.query), one_line(each.description)) for each in found]
    say(as_table(("view", "query", "description"), rows, width=terminal_width()) if rows else "there are no views")


@catalog.command("add-view", cls=LakeCommand)
@click.argument("name")
@click.argument("query")
@click.option("--description", default="", metavar="TEXT", help="Shown in the catalog.")
@pass_session
def add_view(session: Session, *, name: str, query: str, description: str) -> None:
    """Keep QUERY as view NAME, or change it: one SELECT over feeds, in DuckDB's SQL.

    Compare year, month, day and hour with text of their digits, as in month = '01': that holds in every engine.

    \b
    datalake catalog add-view january "SELECT * FROM transaction_stream WHERE month = '01'"
    """  # noqa: D301  click reads the \b: keep these lines
    from pydantic import ValidationError  # noqa: PLC0415  not needed for --help

    from datalake_assets.catalog.views import View, ViewRegistry  # noqa: PLC0415  not needed for --help
    from datalake_assets.policies import problems_line  # noqa: PLC0415  not needed for --help

    try:
        view = View(name=name, query=query, description=description)
    except ValidationError as error:
        raise click.UsageError(problems_line(error)) from error
    stored = ViewRegistry(session.store).put(view, session.feeds()[0])
    say(f"view {stored.name}, revision {stored.revision}; 'datalake catalog sync' enters it")


@catalog.command("remove-view", cls=LakeCommand)
@click.argument("name")
@pass_session
def remove_view(session: Session, *, name: str) -> None:
    """Forget view NAME; 'datalake catalog sync --prune' drops it from the catalogs."""
    from datalake_assets.catalog.views import ViewRegistry  # noqa: PLC0415  not needed for --help

    ViewRegistry(session.store).remove(name)
    say(f"view {name} was removed")
