"""``datalake feeds``: lists, adds, checks and changes feeds, which are documents in the lake.

A feed is made from options, from a file, or from what a source offers. A check asks the feeds' files and sources
whether they could be exported, and changes nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from datalake_assets.cli.output import as_table, print_json, say, terminal_width, warn
from datalake_assets.cli.session import (
    LakeCommand,
    OrderedGroup,
    Session,
    WorkCommand,
    existing_home,
    json_option,
    pass_session,
)
from datalake_assets.core.batches import ReadRequest
from datalake_assets.errors import ConfigError, DatalakeError, FeedExists, InvalidFeed, PreconditionFailed
from datalake_assets.feed import (
    AssetSource,
    Feed,
    FeedKind,
    FolderSource,
    SystemSource,
    ages_problem,
    parse_feed,
    partitions_problem,
)
from datalake_assets.lake.adopted.owners import check_ownership
from datalake_assets.lake.registry import feed_key
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.tables import open_table
from datalake_assets.sources.base import FeedOption, SourceObject, SourceSystem, System
from datalake_assets.sources.systems import system as system_named
from datalake_assets.sources.systems import systems

if TYPE_CHECKING:
    from datalake_assets.feed import Feed

__all__ = [
    "CheckResult",
    "add_described",
    "add_discovered",
    "add_document",
    "check_feeds",
    "describe",
    "feed_name",
    "feeds",
    "refuse",
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
    """List the feeds; files that are not valid feeds are reported on stderr and skipped."""
    listing = session.registry.list(archived=archived)
    left_out = {} if archived else _left_out(session, listing.feeds)
    if as_json:
        problems = [{"file": problem.file, "reason": problem.reason} for problem in listing.problems]
        problems += [{"file": feed_key(name), "reason": reason} for name, reason in left_out.items()]
        print_json({"feeds": [feed.model_dump(mode="json") for feed in listing.feeds], "problems": problems})
        return
    for problem in listing.problems:
        warn(f"skipped {problem.file}: {problem.reason}")
    for name, reason in left_out.items():
        warn(f"left out of Dagster: {feed_key(name)}: {reason}")
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


class _AddCommand(WorkCommand):
    """Offers what every registered source declares, besides the options of all feeds."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The parameters, those of the sources first."""
        return [*_source_parameters(), *super().get_params(ctx)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the options, and for each source those that it takes."""
        shared = [*_source_choices(), *super().get_params(ctx)]
        with formatter.section("Options"):
            formatter.write_dl([record for each in shared if (record := each.get_help_record(ctx)) is not None])
        for type_, system in systems().items():
            offered = [_source_option(option) for option in system.options]
            with formatter.section(f"Options of source {type_}"):
                formatter.write_dl([record for each in offered if (record := each.get_help_record(ctx)) is not None])


def _source_parameters() -> list[click.Parameter]:
    offered = {option.flag: _source_option(option) for system in systems().values() for option in system.options}
    return [*_source_choices(), *offered.values()]


def _source_choices() -> list[click.Option]:
    """Which source: the one to take a feed's rows from, or the one to list."""
    known = systems()
    listed = [(type_, system.discovery) for type_, system in known.items() if system.discovery]
    source = click.Choice(list(known))
    return [
        *(click.Option([f"--from-{type_}", _from(type_)], is_flag=True, help=text) for type_, text in listed),
        click.Option(["--source"], type=source, default=next(iter(known)), show_default=True, help="Kind of source."),
    ]


def _from(type_: str) -> str:
    return f"from_{type_.replace('-', '_')}"


def _source_option(option: FeedOption) -> click.Option:
    return click.Option(
        [option.flag, _parameter(option)],
        type=click.Choice(list(option.choices)) if option.choices else str,
        multiple=option.shape == "pairs",
        metavar=option.metavar,
        help=option.help,
    )


def _parameter(option: FeedOption) -> str:
    """The name under which click hands on what was typed."""
    return "source_" + option.flag.lstrip("-").replace("-", "_")


@feeds.command(cls=_AddCommand)
@click.option("--file", "document", type=click.File("rb"), metavar="FEED.json", help="Add this document; '-' is stdin.")
@click.option("--name", help="Name in the lake: [a-z][a-z0-9_]*.")
@click.option("--kind", type=click.Choice(["stream", "table"]), help="Rows are appended, or landed as snapshots.")
@click.option("--partition-by", type=click.Choice(["month", "day", "hour"]), help="Partitions.  [default: day]")
@click.option("--time-column", metavar="COL", help="Lake column that partitions.  [default: the record's timestamp]")
@click.option("--start", metavar="DATE", help="First day with rows, like 2025-01-15.  [default: 2025-01-01]")
@click.option(
    "--format", "format_type", type=click.Choice(["parquet", "iceberg"]), help="Table format.  [default: parquet]"
)
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
def add(session: Session, *, document: BinaryIO | None, as_json: bool, source: str, **options: Any) -> None:
    """Add a feed from options, or from a file, or all that a source has.

    \b
    datalake feeds add --name orders --kind stream --object ORDERS
    datalake feeds add --file orders.json
    """  # noqa: D301  click reads the \b: keep these lines
    listed = [type_ for type_ in systems() if options.pop(_from(type_), False)]
    options = {name: value for name, value in options.items() if value not in (None, ())}
    skipped: list[dict[str, str]] = []
    if document is not None:
        refuse(options, "--file", listed=listed)
        added = [add_document(session, document.read(), file=getattr(document, "name", "-"))]
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
    feed = update_document(session, document.read(), file=getattr(document, "name", "-"))
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
    if not yes:
        click.confirm(f"Remove {feed.path}? {what[0].upper()}{what[1:]}, for good", abort=True, err=True)
    deleted = session.registry.remove(name)
    _forget_in_dagster(feed)
    say(f"removed {feed.path}: {deleted:,} objects deleted")


def _forget_in_dagster(feed: Feed) -> None:
    """Takes the asset's history, and a table's versions, out of Dagster, where it keeps one."""
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
    if isinstance(source, FolderSource):
        return (feed.name, "folder", source.uri, "others", "folders", schedule)
    parts = "versions" if feed.kind is FeedKind.TABLE else feed.partition_by
    by = source.reading(feed.kind) if isinstance(source, SystemSource) else "its asset"
    return (feed.name, feed.kind.value, source.where, by, parts, schedule)


_OPTION_NAMES = {"format_type": "--format", "owners": "--owner", "tags": "--tag"}
#: Options that mean nothing to a table.
_STREAMS_ONLY = ("partition_by", "time_column")
_LONGEST_NAME = 128


def refuse(options: Mapping[str, Any], mode: str, *, listed: Sequence[str] = ()) -> None:
    """Refuses options that a way of adding does not take.

    Raises:
        click.UsageError: There is one.
    """
    given = [_typed(name) for name in options] + [f"--from-{type_}" for type_ in listed]
    if given:
        raise click.UsageError(f"{mode} cannot be combined with {', '.join(sorted(given))}")


def _typed(name: str) -> str:
    """An option as it is typed."""
    return _OPTION_NAMES.get(name, "--" + name.removeprefix("source_").replace("_", "-"))


def add_document(session: Session, document: bytes, *, file: str) -> Feed:
    """Adds the feed of a JSON document."""
    feed = parse_feed(document, name=file)
    if feed.is_adopted:
        raise ConfigError(f"a folder is not added but adopted: 'datalake adopt {feed.source.where} --name {feed.name}'")
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
    needed = ["name", "kind", *(_parameter(option) for option in system.options if option.required)]
    missing = [_typed(name) for name in needed if name not in options]
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
    named = [_parameter(option) for option in system.options if option.field == system.object_field]
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
    streams_only = {*_STREAMS_ONLY, *(_parameter(option) for option in system.options if option.streams_only)}
    kept = {name: value for name, value in options.items() if found.kind == "stream" or name not in streams_only}
    described = {**kept, "name": feed_name(found.name), "kind": found.kind}
    return _register(session, describe(system, described, **{system.object_field: found.name}))


def feed_name(object_name: str) -> str:
    """A feed's name for an object at a source: lower case, and ``_`` for what the lake does not allow."""
    name = re.sub(r"[^a-z0-9_]", "_", object_name.lower())
    return (name if name[:1].isalpha() else f"feed_{name.lstrip('_')}")[:_LONGEST_NAME]


def describe(system: System, options: Mapping[str, Any], **fields: Any) -> Feed:
    """The feed that options describe.

    Args:
        system: What it is exported from.
        options: What was typed.
        fields: Of the source's model, besides.

    Raises:
        InvalidFeed: They are not a feed.
        click.UsageError: A pair is not written as one, or the source does not take an option.
    """
    source = {"type": system.type, **_source_fields(system, options), **fields}
    document: dict[str, Any] = {"source": source, "tags": _pairs(options.get("tags", ()), "--tag")}
    plain = ("name", "kind", "partition_by", "time_column", "start", "schema_policy", "schedule", "owners", "group")
    document |= {name: options[name] for name in (*plain, "description") if name in options}
    written = {"type": options.get("format_type"), "compression": options.get("compression")}
    document["format"] = {name: value for name, value in written.items() if value is not None}
    return parse_feed(json.dumps(document), name=str(options["name"]))


def _source_fields(system: System, options: Mapping[str, Any]) -> dict[str, Any]:
    taken = {_parameter(option): option for option in system.options}
    others = sorted(_typed(name) for name in options if name.startswith("source_") and name not in taken)
    if others:
        takes = ", ".join(option.flag for option in system.options) or "no options of its own"
        raise click.UsageError(f"source {system.type} does not take {', '.join(others)}; it takes {takes}")
    fields = {}
    for name, option in taken.items():
        if name in options:
            try:
                fields[option.field] = option.parsed(options[name])
            except ValueError as error:
                raise click.UsageError(f"{option.flag} {error}") from error
    return fields


def _pairs(texts: Iterable[str], option: str) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise click.UsageError(f"{option} {text!r} is not written as KEY=VALUE")
        pairs[name] = value
    return pairs


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
    now = datetime.now(UTC)
    too_many = {feed.name: reason for feed in feeds if (reason := partitions_problem(feed, now)) is not None}
    refused = too_many | _left_out(session, feeds)
    results += [CheckResult(feed, reason) for feed, reason in refused.items()]
    feeds = [feed for feed in feeds if feed.name not in refused]
    results += [_check_folder(session.store, feed) for feed in feeds if feed.is_adopted]
    results += [CheckResult(feed.name) for feed in feeds if isinstance(feed.source, AssetSource)]
    exported = [feed for feed in feeds if feed.is_exported]
    for type_ in dict.fromkeys(feed.source.type for feed in exported):
        results += _check_exported(session, type_, [feed for feed in exported if feed.source.type == type_])
    return results


def _check_exported(session: Session, type_: str, feeds: Sequence[Feed]) -> list[CheckResult]:
    """Checks feeds of one source."""
    try:
        with session.source(type_) as source:
            return [_check(session.store, source, feed) for feed in feeds]
    except ConfigError as error:
        return [CheckResult(feed.name, str(error)) for feed in feeds]


def _check_folder(store: Store, feed: Feed) -> CheckResult:
    try:
        check_ownership(store, feed)
        _refuse_misfits(store, feed)
    except DatalakeError as error:
        return CheckResult(feed.name, str(error))
    return CheckResult(feed.name)


def _check(store: Store, source: SourceSystem, feed: Feed) -> CheckResult:
    try:
        source.check(feed)
        _refuse_misfits(store, feed, source=source)
        rows = source.count(feed)
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
    too_many = None if as_before else partitions_problem(feed, datetime.now(UTC))
    problem = too_many or ages_problem(feed) or _left_out(session, (feed,)).get(feed.name)
    if problem is not None:
        raise InvalidFeed(feed.name, problem)
    if feed.is_iceberg:
        open_table(session.store, feed).partitions()  # asks its catalog, which has to know the lake
    _refuse_misfits(session.store, feed)


def _left_out(session: Session, feeds: Sequence[Feed]) -> dict[str, str]:
    """Why feeds are no part of the code location, by name."""
    if not feeds:
        return {}
    from datalake_assets.defs.build import refused_feeds  # noqa: PLC0415  Dagster takes a second to import

    return {each.feed.name: each.reason for each in refused_feeds(session.settings, feeds)}


def _refuse_misfits(store: Store, feed: Feed, *, source: SourceSystem | None = None) -> None:
    """Binds what a feed says of columns to those that the lake knows of, or else the source."""
    if not feed.checks.rules and not feed.compaction.sort_by:
        return
    from datalake_assets.lake.broken_rules import refuse_misfits  # noqa: PLC0415  DuckDB

    known = open_table(store, feed).snapshot([]).dataset().schema
    if known.names:
        refuse_misfits(feed, known)
    else:
        refuse_misfits(feed, None if source is None else source.read(feed, ReadRequest()).schema)
