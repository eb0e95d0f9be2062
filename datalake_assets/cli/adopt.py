"""``datalake adopt``: takes over a folder of other writers' Parquet files, or a table of theirs, where it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from datalake_assets.cli.output import AdoptProgress, as_table, one_line, print_json, say, terminal_width, warn
from datalake_assets.cli.session import Session, WorkCommand, json_option, pass_session
from datalake_assets.core.wording import files_text, size_text

if TYPE_CHECKING:
    from datalake_assets.core.facts import PagesCompared, Problem
    from datalake_assets.lake.adopted.adoption import Adoption

__all__ = ["adopt"]

#: More lines of one kind than anybody reads.
_NAMES_SHOWN = 20


@click.command(cls=WorkCommand)
@click.argument("address")
@click.option("--name", required=True, metavar="NAME", help="Name in the lake: [a-z][a-z0-9_]*.")
@click.option("--time-column", metavar="COL", help="Column of timestamps or dates that rows are ordered by.")
@click.option(
    "--catalog",
    metavar="CATALOG",
    default="",
    help="Catalog of an Iceberg table: a URL, 'glue', or a name of pyiceberg's configuration.  [default: the lake's]",
)
@json_option
@pass_session
def adopt(session: Session, *, address: str, name: str, time_column: str | None, catalog: str, as_json: bool) -> None:
    """Take over what others write at ADDRESS, as feed NAME: a folder of Parquet files, or a table.

    The files stay where they are and as they are: of a folder only the footers are read, and a marker is put beside it
    so that no other lake compacts it too; an Iceberg table gets a property that says so. Afterwards it can be queried,
    verified and compacted like any feed. Adopting it again takes in what others wrote since.

    An Iceberg table is named as its catalog has it; by its folder, or a file of its metadata, it is only looked at. A
    Delta table is named by its folder.

    \b
    datalake adopt /data/clicks --name clicks --time-column ts
    datalake adopt s3://bucket/raw/clicks --name clicks
    datalake adopt iceberg:sales.orders --catalog glue --name orders
    """  # noqa: D301  click reads the \b: keep these lines
    from datalake_assets.lake.adopted.adoption import adopt_at  # noqa: PLC0415  not needed for --help

    with AdoptProgress(quiet=as_json) as progress:
        adoption = adopt_at(
            session.store, address, name, time_column=time_column, catalog=catalog, on_progress=progress.advance
        )
    for line in adoption.found.waiting:
        warn(f"waiting: {line}")
    if as_json:
        print_json(_document(adoption))
    else:
        _print(adoption)
    if adoption.found.waiting:
        raise click.exceptions.Exit(1)


def _document(adoption: Adoption) -> dict[str, Any]:
    found = adoption.found
    return {
        "feed": adoption.feed.name,
        "uri": adoption.feed.source.where,
        "adopted": adoption.is_new,
        **_totals(adoption),
        "added": found.added,
        "rewritten": found.rewritten,
        "removed": found.removed,
        "damaged": [{"name": each.name, "reason": each.reason} for each in _by_name([*found.problems, *found.damaged])],
        "pages": _pages(found.pages),
        "links": [{"name": each.name, "reason": each.reason} for each in _by_name(found.links)],
        "left_out": [{"name": each.name, "reason": each.reason} for each in _by_name(found.left_out)],
        "other_files": found.other_files,
        "not_compacted": found.why_not_compacted,
        "footers_read": found.footers_read,
        "seconds": round(found.footers_s, 3),
        "waiting": list(found.waiting),
    }


def _pages(pages: PagesCompared | None) -> dict[str, int]:
    names = {"files_compared": "files", "files_without_checksums": "without", "files_not_compared": "not_compared"}
    return {name: getattr(pages, field, 0) for name, field in {**names, "bytes_read": "read_bytes"}.items()}


def pages_line(feed: str, pages: PagesCompared) -> str:
    """How far pages were compared with their checksums; empty if there was nothing to look at."""
    parts = [
        f"all of {files_text(pages.files)}" if pages.files else "",
        f"{files_text(pages.without)} without any" if pages.without else "",
        f"{files_text(pages.not_compared)} not, or not to the end: 'datalake verify {feed} --deep' reads everything"
        if pages.not_compared
        else "",
    ]
    said = "; ".join(filter(None, parts))
    return f"pages compared with their checksums ({size_text(pages.read_bytes)} read): {said}" if said else ""


def _totals(adoption: Adoption) -> dict[str, int]:
    reports = [report for report in adoption.found.partitions.values() if report.files]
    return {
        "partitions": len(reports),
        "files": sum(report.files for report in reports),
        "rows": sum(report.rows for report in reports),
        "size_bytes": sum(report.size_bytes for report in reports),
        "small_files": sum(report.small_files for report in reports),
    }


def _print(adoption: Adoption) -> None:
    feed, found, totals = adoption.feed, adoption.found, _totals(adoption)
    say(f"{'adopted' if adoption.is_new else 'looked again at'} {feed.source.where} as {feed.path}")
    if not adoption.is_new:
        say(f"files that joined: {found.added:,}, were rewritten: {found.rewritten:,}, left: {found.removed:,}")
    if found.footers_read:
        rate = found.footers_read / max(found.footers_s, 0.001)
        say(f"footers read: {found.footers_read:,} in {found.footers_s:.1f} s ({rate:,.0f} a second)")
    if found.pages is not None and (line := pages_line(feed.name, found.pages)):
        say(line)
    say()
    shown = (feed.path, totals["partitions"], f"{totals['rows']:,}", totals["files"], totals["small_files"])
    parts = "partitions" if feed.is_adopted_table else "folders"
    columns = ("feed", parts, "rows", "files", "small", "size")
    say(as_table(columns, [(*shown, size_text(totals["size_bytes"]))], width=terminal_width()))
    _print_names("files that cannot be read, and stay where they are", found.problems)
    _print_names("files with damaged pages, left out of compaction; queries that read these pages fail", found.damaged)
    _print_names("files that do not fit the others, and are left out of queries and compaction", found.left_out)
    _print_names("links, which are neither followed nor deleted", found.links, reasons=False)
    if found.other_files:
        say(f"\nother files, left alone (hidden ones, markers, other formats): {found.other_files:,}")
    if found.why_not_compacted:
        say(f"\nlooked at, and not compacted: {found.why_not_compacted}")
    say("\nnext:")
    say(f"  datalake compact {feed.name} --dry-run")
    say(f"  datalake verify {feed.name}")


def _print_names(what: str, problems: list[Problem], *, reasons: bool = True) -> None:
    if not problems:
        return
    say(f"\n{what}: {len(problems):,}")
    for each in _by_name(problems)[:_NAMES_SHOWN]:
        say(f"  {one_line(each.name)}{f': {each.reason}' if reasons else ''}")
    if len(problems) > _NAMES_SHOWN:
        say(f"  and {len(problems) - _NAMES_SHOWN:,} more; --json lists them all")


def _by_name(problems: list[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda each: each.name)
