"""``datalake files``: what became of the dropped files of a feed."""

from __future__ import annotations

from typing import Any

import click

from datalake_assets.cli.output import as_table, print_json, say, terminal_width
from datalake_assets.cli.session import Session, WorkCommand, json_option, pass_session
from datalake_assets.core.wording import size_text
from datalake_assets.errors import ConfigError

__all__ = ["files"]

_COLUMNS = ["file", "state", "rows", "rejected", "size", "seconds", "rows/s", "partitions", "reason"]


@click.command(cls=WorkCommand)
@click.argument("name")
@click.option("--refused", is_flag=True, help="Only files that were refused, with the reason.")
@json_option
@pass_session
def files(session: Session, *, name: str, refused: bool, as_json: bool) -> None:
    """Say what became of each dropped file of feed NAME: rows, bytes, seconds, or why it was refused.

    A file counts with what was read of it last. Rejected rows are in quarantine, with their lines.
    """
    from datalake_assets.lake.tables import open_table  # noqa: PLC0415  not needed for --help

    feed = session.registry.get(name)
    landed = open_table(session.store, feed).plan().request.landed if feed.is_exported else None
    if landed is None:
        raise ConfigError(f"feed {name!r} is {feed.written_by}: no files are remembered of it")
    entries = [each for each in landed.entries().to_pylist() if each["refused"] or not refused]
    if as_json:
        print_json({"feed": name, "files": [_document(each) for each in entries]})
    elif entries:
        say(as_table(_COLUMNS, [_row(each) for each in entries], width=terminal_width()))
        rows, size = sum(each["rows"] for each in entries), sum(each["size_bytes"] for each in entries)
        say(f"{len(entries):,} files, {rows:,} rows, {size_text(size)}")
    else:
        say(f"no files of {name} are remembered")


def _state(entry: dict[str, Any]) -> str:
    return "refused" if entry["refused"] else str(entry["state"])


def _document(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": entry["name"],
        "state": _state(entry),
        "rows": entry["rows"],
        "rejected": entry["rejected"],
        "size_bytes": entry["size_bytes"],
        "modified": entry["modified"].isoformat(),
        "seconds": round(entry["seconds"], 3),
        "partitions": entry["partitions"],
        "reason": entry["refused"] or None,
    }


def _row(entry: dict[str, Any]) -> list[Any]:
    speed = f"{entry['rows'] / entry['seconds']:,.0f}" if entry["seconds"] > 0 and entry["rows"] else ""
    figures = [f"{entry['rows']:,}", f"{entry['rejected']:,}", size_text(entry["size_bytes"])]
    parts = len(entry["partitions"])
    return [entry["name"], _state(entry), *figures, f"{entry['seconds']:.2f}", speed, parts, entry["refused"]]
