"""``datalake feeds``: lists, adds, checks and changes feeds, which are documents in the lake.

A feed is made from options, from a file, or from what a source offers. A check asks the feeds' files and sources
whether they could be exported, and changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click
import pyarrow as pa

from datalake_assets.cli.feed_options import (
    STREAMS_ONLY,
    AddCommand,
    Document,
    describe,
    discovery_parameter,
    document_option,
    feed_name,
    parameter,
    refuse,
    typed,
)
from datalake_assets.cli.output import as_table, confirmed, print_json, say, terminal_width, warn
from datalake_assets.cli.session import (
    LakeCommand,
    OrderedGroup,
    Session,
    WorkCommand,
    existing_home,
    json_option,
    pass_session,
    tell_dagster,
)
from datalake_assets.core.batches import ReadRequest
from datalake_assets.core.merging import merged_columns
from datalake_assets.errors import ConfigError, DatalakeError, FeedExists, InvalidFeed, PreconditionFailed
from datalake_assets.feed import Feed, limits_problem, parse_feed, partitions_problem
from datalake_assets.feed_sources import AssetSource, FeedKind, SystemSource
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.tables import check_adopted, open_table
from datalake_assets.sources.base import SourceObject, SourceSystem, System
from datalake_assets.sources.systems import system as system_named
from datalake_assets.sources.systems import systems

__all__ = [
    "CheckResult",
    "add_described",
    "add_discovered",
    "add_document",
    "check_feeds",
    "feeds",
    "update_document",
]


@click.group(cls=OrderedGroup)
def feeds() -> None:
    """Say what is landed: list, add, check, change, archive, restore and remove feeds."""


@feeds.command("list", cls=LakeCommand)
@click.option("--archived", is_flag=True, help="List the archived feeds instead.")
@json_option
@pass_session
def list_feeds(session: Session, *, archived: bool, as_json: bool) -> None:
    """List the feeds; files that are not valid feeds are reported on stderr and skipped.

    Whether Dagster and the sources take them is what 'datalake feeds check' asks.
    """
    listing = session.registry.list(archived=archived)
    if as_json:
        problems = [{"file": problem.file, "reason": problem.reason} for problem in listing.problems]
        print_json({"feeds": [feed.model_dump(mode="json") for feed in listing.feeds], "problems": problems})
        return
    for problem in listing.problems:
        warn(f"skipped {problem.file}: {problem.reason}")
    if listing.feeds:
        columns = ("feed", "kind", "object", "read by", "partitions", "schedule")
        say(as_table(columns, map(_row, listing.feeds), width=terminal_width()))
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
    results = check_feeds(session, name)
    if as_json:
        print_json({"feeds": [_check_document(result) for result in results]})
    else:
        for result in results:
            if result.problem is None:
                say(f"{result.feed}: ok" + ("" if result.rows is None else f", {result.rows:,} rows at the source"))
            else:
                warn(f"{result.feed}: {result.problem}")
    if any(result.problem for result in results):
        raise click.exceptions.Exit(1)


def _check_document(result: CheckResult) -> dict[str, Any]:
    counted = {} if result.rows is None else {"rows": result.rows}
    return {"feed": result.feed, "problem": result.problem, **counted}


@feeds.command(cls=AddCommand)
@document_option("Add this document")
@click.option("--name", help="Name in the lake: [a-z][a-z0-9_]*.")
@click.option("--kind", type=click.Choice(["stream", "table"]), help="Rows are appended, or landed as snapshots.")
@click.option("--partition-by", type=click.Choice(["month", "day", "hour"]), help="Partitions.  [default: day]")
@click.option("--time-column", metavar="COL", help="Lake column that partitions.  [default: the record's timestamp]")
@click.option("--start", metavar="DATE", help="First day with rows, like 2025-01-15.  [default: 2025-01-01]")
@click.option(
    "--format", "format_type", type=click.Choice(["parquet", "iceberg"]), help="Table format.  [default: parquet]"
)
@click.option(
    "--write", type=click.Choice(["append", "merge"]), help="Add each row, or keep one a key.  [default: append]"
)
@click.option("--key", multiple=True, metavar="COL", help="With --write merge: a column of the key; may be repeated.")
@click.option("--order-by", metavar="COL", help="Column whose greatest value is the newest.  [default: the offset]")
@click.option("--delete-when", multiple=True, metavar="COL=VALUE", help="What marks a deletion; may be repeated.")
@click.option("--envelope", type=click.Choice(["debezium"]), help="What the changes are wrapped in.")
@click.option("--compression", type=click.Choice(["snappy", "zstd"]), help="Codec.  [default: snappy]")
@click.option("--also", type=click.Choice(["avro"]), help="Write each file in this format, too.")
@click.option(
    "--schema-policy",
    type=click.Choice(["freeze", "evolve", "discard_row", "discard_value"]),
    help="When columns change.  [default: freeze]",
)
@click.option("--schedule", metavar="CRON", help="When Dagster exports it, in UTC.")
@click.option("--owner", "owners", multiple=True, metavar="WHO", help="team:name or an e-mail address.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Dagster tag.")
@click.option("--group", help="Dagster asset group.")
@click.option("--description", help="Shown in the web UI; Markdown.")
@json_option
@pass_session
def add(session: Session, *, document: Document | None, as_json: bool, source: str, **options: Any) -> None:
    """Add a feed from options, or from a file, or all that a source has.

    \b
    datalake feeds add --name orders --kind stream --object ORDERS
    datalake feeds add --file orders.json
    """  # noqa: D301  click reads the \b: keep these lines
    listed = [type_ for type_ in systems() if options.pop(discovery_parameter(type_), False)]
    options = {name: value for name, value in options.items() if value not in (None, ())}
    skipped: list[dict[str, str]] = []
    if document is not None:
        refuse(options, "--file", listed=listed)
        added = [add_document(session, document.read(), file=document.name)]
    elif listed:
        added, skipped = add_discovered(session, listed, options)
    else:
        added = [add_described(session, system_named(source), options)]
    if as_json:
        print_json({"added": [feed.model_dump(mode="json") for feed in added], "skipped": skipped})
        return
    for each in skipped:
        warn(f"skipped {each['object']}: {each['reason']}")
    for feed in added:
        say(f"added {feed.path}, from {feed.source.where}")
    if listed:
        say(f"{len(added)} added, {len(skipped)} skipped")


@feeds.command(cls=WorkCommand)
@document_option("The feed as it is to be", required=True)
@pass_session
def update(session: Session, *, document: Document) -> None:
    """Change a feed: its checks, schedule, compaction, owners and whatever else its document says.

    The document is that of 'datalake feeds show', changed; its revision tells whether somebody else was faster.

    \b
    datalake feeds show orders > orders.json
    datalake feeds update --file orders.json
    """  # noqa: D301  click reads the \b: keep these lines
    feed = update_document(session, document.read(), file=document.name)
    say(f"updated {feed.path}, revision {feed.revision}")


@feeds.command(cls=WorkCommand)
@click.argument("name")
@pass_session
def archive(session: Session, *, name: str) -> None:
    """Take a feed out of the graph; its data stays."""
    feed = session.registry.archive(name)
    say(f"archived {feed.path}; its data stays, and 'datalake feeds restore {name}' brings it back")


@feeds.command(cls=WorkCommand)
@click.argument("name")
@pass_session
def restore(session: Session, *, name: str) -> None:
    """Bring an archived feed back."""
    say(f"restored {session.registry.restore(name).path}")


@feeds.command(cls=WorkCommand)
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def remove(session: Session, *, name: str, yes: bool) -> None:
    """Delete an archived feed, with its rows and all that is known of it; its name is free again.

    Of a folder that others write, the files stay. What was interrupted is finished by repeating it.
    """
    feed = session.registry.archived(name)
    what = "its files stay" if feed.is_adopted else f"all rows of {feed.path} are deleted"
    if not yes and not confirmed(f"Remove {feed.path}? {what[0].upper()}{what[1:]}, for good"):
        raise ConfigError(f"{feed.path} stays as it is: nobody said yes")
    deleted = session.registry.remove(name)
    _forget_in_dagster(session, feed)
    say(f"removed {feed.path}: {deleted:,} objects deleted")


@feeds.command(cls=WorkCommand)
@click.argument("name")
@click.option("--to", type=click.Choice(["parquet", "iceberg"]), help="What to keep it as.")
@click.option("--drop-old", is_flag=True, help="Delete what the last conversion has left of it.")
@pass_session
def convert(session: Session, *, name: str, to: str | None, drop_old: bool) -> None:
    """Keep a feed as Parquet files or as an Iceberg table from now on, with all its rows.

    Exports are refused meanwhile; readers switch when everything has been copied and compared. The old form stays
    until --drop-old. What was interrupted goes on by repeating it; --to what the feed still is gives it up.
    """
    if (to is None) is not drop_old:
        raise click.UsageError("give --to or --drop-old")
    from datalake_assets.lake import conversion  # noqa: PLC0415  not needed for --help

    feed = session.registry.get(name)
    if to is None:
        conversion.drop_former(session.store, feed, session.registry.convert)
        say(f"dropped the former form of {feed.path}; it is kept as {feed.format.type}")
        return

    def source_schema() -> pa.Schema:
        with session.source(feed.source.type) as source:
            return source.read(feed, ReadRequest()).schema

    done = conversion.convert(session.store, feed, to, source_schema=source_schema, switch=session.registry.convert)
    if done.is_undone:
        say(f"the conversion of {feed.path} is given up; it is kept as {to}, as before")
        return

    form, former = done.feed.format.type, done.feed.format.former
    tell_dagster(session, name, "conversion", {"to": form, "partitions": done.partitions, "rows": done.rows})
    say(f"converted {feed.path} to {form}: {done.partitions:,} partitions, {done.rows:,} rows")
    if former is not None:
        say(f"the {former.type} form stays in {former.folder} until 'datalake feeds convert {name} --drop-old'")


def _forget_in_dagster(session: Session, feed: Feed) -> None:
    """Takes the asset's history, and a table's versions, out of Dagster, where it keeps one; and what waits for it."""
    from datalake_assets.lake.event_queue import EventQueue  # noqa: PLC0415  not needed for --help

    EventQueue(session.store).forget_feed(feed.name)
    home = existing_home()
    if home is None:
        return
    os.environ["DAGSTER_HOME"] = str(home)
    try:
        from datalake_assets.defs.feeds.assets import forget_feed  # noqa: PLC0415  Dagster takes a second to import
        from datalake_assets.defs.runtime import open_instance  # noqa: PLC0415  Dagster takes a second to import

        with open_instance() as instance:
            forget_feed(instance, feed)
    except Exception as error:  # noqa: BLE001  the feed is gone, whatever becomes of its history
        warn(f"its history stays in Dagster: {type(error).__name__}: {error}")


def _row(feed: Feed) -> tuple[str, ...]:
    source, schedule = feed.source, feed.schedule or ""
    if feed.is_adopted:
        parts = "partitions" if feed.is_adopted_table else "folders"
        return (feed.name, source.type, source.where, "others", parts, schedule)
    parts = "versions" if feed.kind is FeedKind.TABLE else feed.partition_by
    by = source.reading(feed.kind) if isinstance(source, SystemSource) else "its asset"
    return (feed.name, feed.kind.value, source.where, by, parts, schedule)


def add_document(session: Session, document: bytes, *, file: str) -> Feed:
    """Adds the feed of a JSON document."""
    feed = parse_feed(document, name=file)
    if feed.is_adopted:
        what = feed.written_by.removeprefix("an adopted ")
        what = f"an {what}" if what.startswith("I") else f"a {what}"
        raise ConfigError(f"{what} is not added but adopted: 'datalake adopt {feed.source.where} --name {feed.name}'")
    if isinstance(feed.source, AssetSource):
        raise ConfigError(f"feed {feed.name!r} is added when its asset {feed.source.asset!r} is first materialized")
    return _register(session, feed)


def _register(session: Session, feed: Feed) -> Feed:
    refuse_unusable(session, feed)
    return session.registry.add(feed)


def update_document(session: Session, document: bytes, *, file: str) -> Feed:
    """Changes the feed of a JSON document to what that says.

    Raises:
        ConfigError: It is not valid, there is no such feed, or it was changed since the document was shown.
    """
    feed = parse_feed(document, name=file)
    # partitions that grew too many over the years must not keep anybody from changing an owner
    refuse_unusable(session, feed, as_before=session.registry.start_of(feed.name) == feed.start)
    try:
        return session.registry.update(feed, expected_revision=feed.revision)
    except PreconditionFailed as error:
        now = session.registry.get(feed.name).revision
        raise ConfigError(
            f"feed {feed.name!r} is at revision {now}, the document is of revision {feed.revision};"
            f" show it again with 'datalake feeds show {feed.name}', and repeat the change"
        ) from error


def add_described(session: Session, system: System, options: Mapping[str, Any]) -> Feed:
    """Adds the feed that options describe."""
    needed = ["name", "kind", *(parameter(option) for option in system.options if option.required)]
    missing = [typed(name) for name in needed if name not in options]
    if missing:
        others = " or ".join(["--file", *(f"--from-{each.type}" for each in systems().values() if each.discovery)])
        raise click.UsageError(f"missing {', '.join(missing)} (or give {others})")
    return _register(session, describe(system, options))


def add_discovered(
    session: Session, listed: Sequence[str], options: Mapping[str, Any]
) -> tuple[list[Feed], list[dict[str, str]]]:
    """Adds what a source has; what cannot be landed, and what is there already, is skipped with the reason."""
    if len(listed) > 1:
        raise click.UsageError(f"give one of {', '.join(f'--from-{type_}' for type_ in listed)}")
    system = system_named(listed[0])
    named = [parameter(option) for option in system.options if option.field == system.object_field]
    refuse({name: options[name] for name in ("name", "kind", *named) if name in options}, f"--from-{system.type}")
    added, skipped = [], []
    with session.source(system.type) as source:
        objects = sorted(source.discover(), key=lambda each: (each.kind, each.name))
    for each in objects:
        try:
            added.append(_add_object(session, system, each, options))
        except InvalidFeed as error:
            skipped.append({"object": each.name, "reason": error.reason})
        except FeedExists as error:
            skipped.append({"object": each.name, "reason": f"there is a feed {error.feed!r} already"})
    return added, skipped


def _add_object(session: Session, system: System, found: SourceObject, options: Mapping[str, Any]) -> Feed:
    if found.note:
        raise InvalidFeed(feed_name(found.name), found.note)
    streams_only = {*STREAMS_ONLY, *(parameter(option) for option in system.options if option.streams_only)}
    kept = {name: value for name, value in options.items() if found.kind == "stream" or name not in streams_only}
    described = {**kept, "name": feed_name(found.name), "kind": found.kind}
    return _register(session, describe(system, described, **{system.object_field: found.name}))


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check of a feed found.

    Attributes:
        feed: The feed's name, or the file that is none.
        problem: On one line; None if there is none.
        rows: Rows that the source says it has; None where it cannot tell.
    """

    feed: str
    problem: str | None = None
    rows: int | None = None


def check_feeds(session: Session, name: str | None) -> list[CheckResult]:
    """Checks one feed, or all active ones and the files that are not valid feeds.

    Raises:
        FeedNotFound: There is no such feed.
    """
    if name is not None:
        feeds, results = [session.registry.get(name)], []
    else:
        listing = session.registry.list()
        feeds = list(listing.feeds)
        results = [CheckResult(problem.file, problem.reason) for problem in listing.problems]
    refused = {feed.name: problem for feed in feeds if (problem := limits_problem(feed)) is not None}
    refused |= _refused_by_dagster(session, [feed for feed in feeds if feed.name not in refused])
    results += [CheckResult(feed, reason) for feed, reason in refused.items()]
    feeds = [feed for feed in feeds if feed.name not in refused]
    results += [_check(session.store, feed) for feed in feeds if feed.is_adopted]
    results += [CheckResult(feed.name) for feed in feeds if isinstance(feed.source, AssetSource)]
    exported = [feed for feed in feeds if feed.is_exported]
    for type_ in dict.fromkeys(feed.source.type for feed in exported):
        results += _check_exported(session, type_, [feed for feed in exported if feed.source.type == type_])
    return results


def _check_exported(session: Session, type_: str, feeds: Sequence[Feed]) -> list[CheckResult]:
    try:
        with session.source(type_) as source:
            return [_check(session.store, feed, source) for feed in feeds]
    except ConfigError as error:
        return [CheckResult(feed.name, str(error)) for feed in feeds]


def _check(store: Store, feed: Feed, source: SourceSystem | None = None) -> CheckResult:
    """Checks a feed at its source, or an adopted one where its files are."""
    try:
        if source is None:
            check_adopted(store, feed)
        else:
            source.check(feed)
        _refuse_misfits(store, feed, source=source)
        rows = None if source is None else source.count(feed)
    except DatalakeError as error:
        return CheckResult(feed.name, str(error))
    return CheckResult(feed.name, rows=rows)


def refuse_unusable(session: Session, feed: Feed, *, as_before: bool = False) -> None:
    """Asks Dagster, DuckDB and Arrow whether they take a feed as it is to be.

    Args:
        session: Whose lake it is for.
        feed: The feed.
        as_before: Its partitions begin where they did.

    Raises:
        InvalidFeed: One of them does not; says which field and why.
    """
    declared = feed.source.problem() if isinstance(feed.source, SystemSource) else None
    problem = (
        declared
        or _mart_problem(session, feed)
        or limits_problem(feed)
        or _refused_by_dagster(session, (feed,), as_before=as_before).get(feed.name)
    )
    if problem is not None:
        raise InvalidFeed(feed.name, problem)
    if feed.is_iceberg:
        open_table(session.store, feed).partitions()  # asks its catalog, which has to know the lake
    _refuse_misfits(session.store, feed)


def _mart_problem(session: Session, feed: Feed) -> str | None:
    if not feed.is_mart:
        return None
    from datalake_assets.lake.marts.mart_inputs import mart_problem  # noqa: PLC0415  DuckDB

    return mart_problem(feed, session.registry.list().feeds)


def _refused_by_dagster(session: Session, feeds: Sequence[Feed], *, as_before: bool = False) -> dict[str, str]:
    """Why feeds are no part of the code location, by name; partitions that are as before may be too many."""
    if not feeds:
        return {}
    from datalake_assets.defs.build import refused_feeds  # noqa: PLC0415  Dagster takes a second to import

    now, counted = datetime.now(UTC), () if as_before else feeds
    too_many = {feed.name: reason for feed in counted if (reason := partitions_problem(feed, now)) is not None}
    refused = refused_feeds(session.settings, [feed for feed in feeds if feed.name not in too_many])
    return too_many | {each.feed.name: each.reason for each in refused}


def _refuse_misfits(store: Store, feed: Feed, *, source: SourceSystem | None = None) -> None:
    """Binds what a feed says of columns to those that the lake knows of, or else the source."""
    if not (feed.checks.rules or feed.compaction.sort_by or feed.tiles):
        return
    from datalake_assets.lake.broken_rules import refuse_misfits  # noqa: PLC0415  DuckDB

    known = open_table(store, feed).snapshot([]).dataset().schema
    if not known.names and source is not None:
        known = merged_columns(feed, source.read(feed, ReadRequest()).schema)
    refuse_misfits(feed, known if known.names else None)
