"""``datalake feeds``: what is landed, as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

import click

from datalake_assets.cli.session import LakeCommand, OrderedGroup, Session, json_option, pass_session
from datalake_assets.cli.show import as_table, print_json, say, warn

if TYPE_CHECKING:
    from datalake_assets.config import Feed

__all__ = ["feeds"]


@click.group(cls=OrderedGroup)
def feeds() -> None:
    """Say what is landed: list, add, check, change, archive and restore feeds."""


@feeds.command("list", cls=LakeCommand)
@click.option("--archived", is_flag=True, help="List the archived feeds instead.")
@json_option
@pass_session
def list_feeds(session: Session, *, archived: bool, as_json: bool) -> None:
    """List the feeds; files that are no feeds are told on stderr and skipped."""
    listing = session.registry.list(archived=archived)
    if as_json:
        problems = [{"file": problem.file, "reason": problem.reason} for problem in listing.problems]
        print_json({"feeds": [feed.model_dump(mode="json") for feed in listing.feeds], "problems": problems})
        return
    for problem in listing.problems:
        warn(f"skipped {problem.file}: {problem.reason}")
    if listing.feeds:
        say(as_table(("feed", "kind", "object", "read by", "partitions", "schedule"), map(_row, listing.feeds)))
    else:
        kind = "archived" if archived else "active"
        say(f"no {kind} feeds in {session.store.uri}; add some with 'datalake feeds add', or see 'datalake demo'")


@feeds.command(cls=LakeCommand)
@click.argument("name")
@pass_session
def show(session: Session, *, name: str) -> None:
    """Print a feed as its JSON document."""
    print_json(session.registry.get(name).model_dump(mode="json"))


@feeds.command(cls=LakeCommand)
@click.argument("name", required=False)
@json_option
@pass_session
def check(session: Session, *, name: str | None, as_json: bool) -> None:
    """Check NAME, or all feeds: is the file valid, and could the source be read?

    Exits with 1 if any feed has a problem.
    """
    from datalake_assets.cli.checking import check_feeds  # noqa: PLC0415  not needed for --help

    results = check_feeds(session, name)
    if as_json:
        print_json({"feeds": [{"feed": result.feed, "problem": result.problem} for result in results]})
    else:
        for result in results:
            if result.problem is None:
                say(f"{result.feed}: ok")
            else:
                warn(f"{result.feed}: {result.problem}")
    if any(result.problem for result in results):
        raise click.exceptions.Exit(1)


@feeds.command(cls=LakeCommand)
@click.option("--file", "document", type=click.File("rb"), metavar="FEED.json", help="Add this document; '-' is stdin.")
@click.option("--from-ksqldb", is_flag=True, help="Add every stream and table of the server that can be landed.")
@click.option("--name", help="Name in the lake: [a-z][a-z0-9_]*.")
@click.option("--kind", type=click.Choice(["stream", "table"]), help="Rows are appended, or landed as snapshots.")
@click.option("--source", type=click.Choice(["ksqldb"]), default="ksqldb", show_default=True, help="Kind of source.")
@click.option("--object", "object_name", metavar="OBJ", help="Name at the source, as ksqlDB lists it.")
@click.option("--mode", type=click.Choice(["offsets", "pull"]), help="How a stream is read.  [default: offsets]")
@click.option("--offset-columns", metavar="PART,OFF", help="Columns that carry source partition and offset.")
@click.option("--rename", multiple=True, metavar="OLD=NEW", help="Name of a column in the lake.")
@click.option("--partition-by", type=click.Choice(["month", "day", "hour"]), help="Partitions.  [default: day]")
@click.option("--time-column", metavar="COL", help="Lake column that partitions.  [default: the record's timestamp]")
@click.option("--start", metavar="DATE", help="First day with rows, like 2025-01-15.  [default: 2025-01-01]")
@click.option("--format", "format_type", type=click.Choice(["parquet"]), help="Table format.  [default: parquet]")
@click.option("--compression", type=click.Choice(["snappy", "zstd"]), help="Codec.  [default: snappy]")
@click.option(
    "--schema-policy", type=click.Choice(["freeze", "evolve"]), help="When columns change.  [default: freeze]"
)
@click.option("--schedule", metavar="CRON", help="When Dagster exports it, in UTC.")
@click.option("--owner", "owners", multiple=True, metavar="WHO", help="team:name or an e-mail address.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Dagster tag.")
@click.option("--group", help="Dagster asset group.")
@click.option("--description", help="Shown in the web UI; Markdown.")
@json_option
@pass_session
def add(session: Session, *, document: BinaryIO | None, from_ksqldb: bool, as_json: bool, **options: Any) -> None:
    """Add a feed from options, or from a file, or all that a ksqlDB server has.

    \b
    datalake feeds add --name orders --kind stream --object ORDERS
    datalake feeds add --from-ksqldb --partition-by month
    datalake feeds add --file orders.json
    """  # noqa: D301  click reads the \b: keep these lines
    from datalake_assets.cli import adding  # noqa: PLC0415  not needed for --help

    options = {name: value for name, value in options.items() if value not in (None, ())}
    skipped: list[dict[str, str]] = []
    if document is not None:
        adding.refuse(options, "--file", from_ksqldb=from_ksqldb)
        added = [adding.add_document(session, document.read(), file=getattr(document, "name", "-"))]
    elif from_ksqldb:
        adding.refuse(
            {name: options[name] for name in ("name", "kind", "object_name") if name in options}, "--from-ksqldb"
        )
        added, skipped = adding.add_discovered(session, options)
    else:
        added = [adding.add_described(session, options)]
    if as_json:
        print_json({"added": [feed.model_dump(mode="json") for feed in added], "skipped": skipped})
        return
    for each in skipped:
        warn(f"skipped {each['object']}: {each['reason']}")
    for feed in added:
        say(f"added {feed.path}, from {feed.source.where}")
    if from_ksqldb:
        say(f"{len(added)} added, {len(skipped)} skipped")


@feeds.command(cls=LakeCommand)
@click.option(
    "--file",
    "document",
    type=click.File("rb"),
    required=True,
    metavar="FEED.json",
    help="The feed as it is to be; '-' is stdin.",
)
@pass_session
def update(session: Session, *, document: BinaryIO) -> None:
    """Change a feed: its checks, schedule, compaction, owners and whatever else its document says.

    The document is that of 'datalake feeds show', changed; its revision tells whether somebody else was faster.

    \b
    datalake feeds show orders > orders.json
    datalake feeds update --file orders.json
    """  # noqa: D301  click reads the \b: keep these lines
    from datalake_assets.cli import adding  # noqa: PLC0415  not needed for --help

    feed = adding.update_document(session, document.read(), file=getattr(document, "name", "-"))
    say(f"updated {feed.path}, revision {feed.revision}")


@feeds.command(cls=LakeCommand)
@click.argument("name")
@pass_session
def archive(session: Session, *, name: str) -> None:
    """Take a feed out of the graph; its data stays."""
    feed = session.registry.archive(name)
    say(f"archived {feed.path}; its data stays, and 'datalake feeds restore {name}' brings it back")


@feeds.command(cls=LakeCommand)
@click.argument("name")
@pass_session
def restore(session: Session, *, name: str) -> None:
    """Bring an archived feed back."""
    say(f"restored {session.registry.restore(name).path}")


def _row(feed: Feed) -> tuple[str, ...]:
    from datalake_assets.config import AssetSource, FolderSource  # noqa: PLC0415  pydantic is not needed for --help

    source, schedule = feed.source, feed.schedule or ""
    if isinstance(source, FolderSource):
        return (feed.name, "folder", source.uri, "others", "folders", schedule)
    if isinstance(source, AssetSource):
        parts = "versions" if feed.kind == "table" else feed.partition_by
        return (feed.name, feed.kind.value, source.asset, "its asset", parts, schedule)
    if feed.kind == "table":
        return (feed.name, "table", source.object, "snapshots", "versions", schedule)
    by = "pulled offsets" if source.offset_columns else source.mode.value
    return (feed.name, "stream", source.object, by, feed.partition_by, schedule)
