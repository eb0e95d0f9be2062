"""Feeds from what a person typed, wrote, or what a server has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import click

from datalake_assets.cli.session import Session
from datalake_assets.config import AssetSource, Feed, FeedKind, parse_feed
from datalake_assets.errors import ConfigError, FeedExists, InvalidFeed, PreconditionFailed
from datalake_assets.sources.base import SourceObject

__all__ = ["add_described", "add_discovered", "add_document", "describe", "feed_name", "refuse", "update_document"]

_OPTION_NAMES = {"object_name": "--object", "format_type": "--format", "owners": "--owner", "tags": "--tag"}
_OF_SOURCE = ("mode", "properties")
_LONGEST_NAME = 128


def refuse(options: Mapping[str, Any], mode: str, *, from_ksqldb: bool = False) -> None:
    """Refuses options that a way of adding does not take.

    Raises:
        click.UsageError: There is one; ``--source`` has a default and is let through.
    """
    given = [_OPTION_NAMES.get(name, f"--{name.replace('_', '-')}") for name in options if name != "source"]
    if from_ksqldb:
        given.append("--from-ksqldb")
    if given:
        raise click.UsageError(f"{mode} cannot be combined with {', '.join(sorted(given))}")


def add_document(session: Session, document: bytes, *, file: str) -> Feed:
    """Adds the feed of a JSON document."""
    feed = parse_feed(document, name=file)
    if feed.kind is FeedKind.FOLDER:
        raise ConfigError(f"a folder is not added but adopted: 'datalake adopt {feed.source.where} --name {feed.name}'")
    if isinstance(feed.source, AssetSource):
        raise ConfigError(f"feed {feed.name!r} is added when its asset {feed.source.asset!r} is first materialized")
    return session.registry.add(feed)


def update_document(session: Session, document: bytes, *, file: str) -> Feed:
    """Changes the feed of a JSON document to what that says.

    Raises:
        ConfigError: It is not valid, there is no such feed, or it was changed since the document was shown.
    """
    feed = parse_feed(document, name=file)
    try:
        return session.registry.update(feed, expected_revision=feed.revision)
    except PreconditionFailed as error:
        now = session.registry.get(feed.name).revision
        raise ConfigError(
            f"feed {feed.name!r} is at revision {now}, the document is of revision {feed.revision};"
            f" show it again with 'datalake feeds show {feed.name}', and repeat the change"
        ) from error


def add_described(session: Session, options: Mapping[str, Any]) -> Feed:
    """Adds the feed that options describe."""
    missing = [
        f"--{name}"
        for name, option in (("name", "name"), ("kind", "kind"), ("object", "object_name"))
        if option not in options
    ]
    if missing:
        raise click.UsageError(f"missing {', '.join(missing)} (or give --file or --from-ksqldb)")
    return session.registry.add(describe(options))


def add_discovered(session: Session, options: Mapping[str, Any]) -> tuple[list[Feed], list[dict[str, str]]]:
    """Adds what the server has; what cannot be landed, and what is there already, is skipped with the reason."""
    added, skipped = [], []
    with session.source() as source:
        objects = sorted(source.discover(), key=lambda each: (each.kind, each.name))
    for each in objects:
        try:
            added.append(_add_object(session, each, options))
        except InvalidFeed as error:
            skipped.append({"object": each.name, "reason": error.reason})
        except FeedExists as error:
            skipped.append({"object": each.name, "reason": f"there is a feed {error.feed!r} already"})
    return added, skipped


def _add_object(session: Session, found: SourceObject, options: Mapping[str, Any]) -> Feed:
    if found.note:
        raise InvalidFeed(feed_name(found.name), found.note)
    streams_only = ("mode", "offset_columns", "partition_by", "time_column")
    kept = {name: value for name, value in options.items() if found.kind == "stream" or name not in streams_only}
    return session.registry.add(
        describe({**kept, "name": feed_name(found.name), "kind": found.kind, "object_name": found.name})
    )


def feed_name(object_name: str) -> str:
    """A feed's name for an object at a source: lower case, and ``_`` for what the lake does not allow."""
    name = re.sub(r"[^a-z0-9_]", "_", object_name.lower())
    return (name if name[:1].isalpha() else f"feed_{name.lstrip('_')}")[:_LONGEST_NAME]


def describe(options: Mapping[str, Any]) -> Feed:
    """The feed that options describe.

    Raises:
        InvalidFeed: They are not a feed.
        click.UsageError: A pair is not written as one.
    """
    source: dict[str, Any] = {"type": options.get("source", "ksqldb"), "object": options["object_name"]}
    source |= {name: options[name] for name in _OF_SOURCE if name in options}
    if "offset_columns" in options:
        source["offset_columns"] = [part.strip() for part in options["offset_columns"].split(",")]
    source["rename"] = _pairs(options.get("rename", ()), "--rename")
    document: dict[str, Any] = {"source": source, "tags": _pairs(options.get("tags", ()), "--tag")}
    plain = ("name", "kind", "partition_by", "time_column", "start", "schema_policy", "schedule", "owners", "group")
    document |= {name: options[name] for name in (*plain, "description") if name in options}
    written = {"type": options.get("format_type"), "compression": options.get("compression")}
    document["format"] = {name: value for name, value in written.items() if value is not None}
    return parse_feed(json.dumps(document), name=str(options["name"]))


def _pairs(texts: Iterable[str], option: str) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise click.UsageError(f"{option} {text!r} is not written as KEY=VALUE")
        pairs[name] = value
    return pairs
