"""The options of ``datalake feeds add``: those of all feeds, those that sources offer, and the feed they describe."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import click

from datalake_assets.cli.session import WorkCommand
from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.named_documents import read_named_file, read_stream
from datalake_assets.sources.base import FeedOption, System
from datalake_assets.sources.systems import systems

__all__ = [
    "STREAMS_ONLY",
    "AddCommand",
    "Document",
    "describe",
    "discovery_parameter",
    "document_option",
    "feed_name",
    "parameter",
    "refuse",
    "typed",
]

FC = TypeVar("FC", bound=Callable[..., Any] | click.Command)

#: Options that mean nothing to a table.
STREAMS_ONLY = ("partition_by", "time_column", "write", "key", "order_by", "delete_when", "envelope")
_OPTION_NAMES = {"format_type": "--format", "owners": "--owner", "tags": "--tag"}
_LONGEST_NAME = 128


class Document(NamedTuple):
    """A document that a person names.

    Attributes:
        name: Its file, for messages.
        read: Gives what is in it.
    """

    name: str
    read: Callable[[], bytes]


class _DocumentFile(click.Path):
    """A file of a document, read whole; ``-`` is standard input."""

    def __init__(self) -> None:
        super().__init__(allow_dash=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click has it; usage is wrong if there is no such file."""
        if value == "-":
            return Document("<stdin>", lambda: read_stream(sys.stdin.buffer, "<stdin>"))
        try:
            data = read_named_file(value)
        except OSError as error:
            self.fail(f"'{value}': {error.strerror}", param, ctx)
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        return Document(value, lambda: data)


def document_option(what: str, *, required: bool = False) -> Callable[[FC], FC]:
    """The option that names a feed's document."""
    return click.option(
        "--file",
        "document",
        type=_DocumentFile(),
        required=required,
        metavar="FEED.json",
        help=f"{what}; '-' is stdin.",
    )


class AddCommand(WorkCommand):
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
        *(
            click.Option([f"--from-{type_}", discovery_parameter(type_)], is_flag=True, help=text)
            for type_, text in listed
        ),
        click.Option(["--source"], type=source, default=next(iter(known)), show_default=True, help="Kind of source."),
    ]


def discovery_parameter(type_: str) -> str:
    """The parameter that asks for all that a source has."""
    return f"from_{type_.replace('-', '_')}"


def _source_option(option: FeedOption) -> click.Option:
    return click.Option(
        [option.flag, parameter(option)],
        type=click.Choice(list(option.choices)) if option.choices else str,
        multiple=option.shape == "pairs",
        metavar=option.metavar,
        help=option.help,
    )


def parameter(option: FeedOption) -> str:
    """The name under which click hands on what was typed of a source's option."""
    return "source_" + option.flag.lstrip("-").replace("-", "_")


def refuse(options: Mapping[str, Any], mode: str, *, listed: Sequence[str] = ()) -> None:
    """Refuses options that a way of adding does not take.

    Raises:
        click.UsageError: There is one.
    """
    given = [typed(name) for name in options] + [f"--from-{type_}" for type_ in listed]
    if given:
        raise click.UsageError(f"{mode} cannot be combined with {', '.join(sorted(given))}")


def typed(name: str) -> str:
    """An option as it is typed."""
    return _OPTION_NAMES.get(name, "--" + name.removeprefix("source_").replace("_", "-"))


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
    plain = (
        "name",
        "kind",
        "write",
        "key",
        "partition_by",
        "time_column",
        "start",
        "schema_policy",
        "schedule",
        "owners",
        "group",
    )
    document |= {name: options[name] for name in (*plain, "description") if name in options}
    written: dict[str, Any] = {"type": options.get("format_type"), "compression": options.get("compression")}
    written["also"] = [options["also"]] if "also" in options else None
    document |= _merging(options)
    document["format"] = {name: value for name, value in written.items() if value is not None}
    return parse_feed(json.dumps(document), name=str(options["name"]))


def _merging(options: Mapping[str, Any]) -> dict[str, Any]:
    """How changes are merged; nothing where nothing is said of it."""
    told: dict[str, Any] = {name: options[name] for name in ("order_by", "envelope") if name in options}
    marks = [each.partition("=") for each in options.get("delete_when", ())]
    columns = {column for column, _, _ in marks}
    if not all(column and separator for column, separator, _ in marks):
        raise click.UsageError("--delete-when is not written as COL=VALUE")
    if len(columns) > 1:
        raise click.UsageError(f"--delete-when names several columns: {', '.join(sorted(columns))}")
    if columns:
        told |= {"delete_column": columns.pop(), "delete_values": [value for _, _, value in marks]}
    return {"merge": told} if told else {}


def _source_fields(system: System, options: Mapping[str, Any]) -> dict[str, Any]:
    taken = {parameter(option): option for option in system.options}
    others = sorted(typed(name) for name in options if name.startswith("source_") and name not in taken)
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
