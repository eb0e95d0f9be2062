"""Running exports: one feed after the other in this process, or several in child processes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from datalake_assets.cli.home import prepare_home
from datalake_assets.cli.progress import ExportProgress
from datalake_assets.cli.session import Session
from datalake_assets.cli.show import as_table, bytes_text, print_json, say, warn
from datalake_assets.config import Feed, FeedKind
from datalake_assets.core.partitions import PartitionBy, TimeWindow, keys_in, parse_path, version_number, window_of
from datalake_assets.demo.embedded import ksqldb_url
from datalake_assets.errors import ConfigError, DatalakeError, ObjectNotFound
from datalake_assets.lake.base import Progress
from datalake_assets.lake.folder_table import refuse_export
from datalake_assets.lake.registry import RegistryListing
from datalake_assets.lake.store import Store

if TYPE_CHECKING:
    from dagster import DagsterInstance

__all__ = [
    "ExportRequest",
    "Outcome",
    "all_feeds",
    "export_feeds",
    "one_feed",
    "outcome_table",
    "print_outcomes",
    "tell",
]


#: What Dagster makes of a Ctrl-C during a run: the run fails with it, and is recorded as failed.
_INTERRUPT = "DagsterExecutionInterruptedError"


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to export of each feed.

    Attributes:
        partition: One partition key, or None.
        between: ``A..B``, or None.
        allow_shrink: Accept fewer rows than the lake has.
        new_epoch: Accept a source that was created anew.
    """

    partition: str | None = None
    between: str | None = None
    allow_shrink: bool = False
    new_epoch: bool = False

    def partitions(self, feed: Feed) -> tuple[str, ...] | None:
        """The partition keys that are meant; None for whatever is new.

        Raises:
            ConfigError: They are none of this feed's.
        """
        if self.partition is not None:
            return (self.partition,)
        if self.between is None:
            return None
        first, separator, last = self.between.partition("..")
        if not separator or not first or not last:
            raise ConfigError(f"--range {self.between!r} is not written as A..B, like 2025-01-01..2025-01-31")
        if feed.kind != "stream":
            raise ConfigError(f"feed {feed.name!r} is a {feed.kind} and has no range of days; name its --partition")
        by = PartitionBy(feed.partition_by)
        start, end = window_of(first, by), window_of(last, by)
        if end.start < start.start:
            raise ConfigError(f"--range {self.between!r} ends before it begins")
        return tuple(keys_in(TimeWindow(start.start, end.end), by))

    def arguments(self) -> list[str]:
        """The options of a child process."""
        chosen = (("--allow-shrink", self.allow_shrink), ("--new-epoch", self.new_epoch))
        named = (("--partition", self.partition), ("--range", self.between))
        return [f"{name}={value}" for name, value in named if value] + [name for name, given in chosen if given]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an export of one feed came to.

    Attributes:
        feed: Its name.
        kind: ``stream`` or ``table``.
        rows: Rows in the lake now; of a table, those of its newest version.
        new_rows: Rows that were added, net; of a table, against the version before.
        quarantined: Rows that were read and could not be landed.
        files: Data files of those rows.
        size_bytes: Their size.
        partitions: Partitions with data; of a table, versions.
        landed: The partitions that the run is about, and others that received rows.
        seconds: Wall time.
        run_id: The Dagster run; empty if there was none.
        error: One line; None on success.
    """

    feed: str
    kind: str
    rows: int = 0
    new_rows: int = 0
    quarantined: int = 0
    files: int = 0
    size_bytes: int = 0
    partitions: int = 0
    landed: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    run_id: str = ""
    error: str | None = None


def all_feeds(session: Session) -> RegistryListing:
    """Every active feed that is exported, streams first; files that are none are told on stderr.

    Raises:
        ConfigError: There are no feeds.
    """
    listed, problems = session.feeds()
    feeds = tuple(feed for feed in listed if feed.is_exported)
    if listed and not feeds and not problems:
        raise ConfigError(f"{session.store.uri} has only feeds that others write: nothing is exported to them")
    if not feeds and not problems:
        raise ConfigError(
            f"{session.store.uri} has no feeds; add some with 'datalake feeds add', or see 'datalake demo'"
        )
    return RegistryListing(feeds, problems)


def one_feed(session: Session, *, stream: str | None, table: str | None) -> RegistryListing:
    """The feed of this name.

    Raises:
        ConfigError: There is none, or it is of the other kind.
    """
    name = stream or table or ""
    feed = session.registry.get(name)
    if feed.kind is FeedKind.FOLDER:
        raise refuse_export(feed)
    if not feed.is_exported:
        _ = feed.ksqldb  # raises, and says who writes it
    wanted = "table" if stream is None else "stream"
    if feed.kind != wanted:
        raise ConfigError(f"feed {name!r} is a {feed.kind}; export it with --{feed.kind} {name}")
    return RegistryListing((feed,))


def export_feeds(
    session: Session, feeds: Sequence[Feed], request: ExportRequest, *, parallel: int = 1, quiet: bool = False
) -> list[Outcome]:
    """Exports feeds; one feed's failure is told on stderr and in its outcome, and the others go on.

    Raises:
        DatalakeError: Nothing could be begun: no server, or partitions that are none.
    """
    for feed in feeds:
        request.partitions(feed)
    prepare_home()
    with ksqldb_url(session.settings, session.store) as url, ExportProgress(quiet=quiet) as progress:
        session.use(ksqldb_url=url)
        if parallel > 1 and len(feeds) > 1:
            from datalake_assets.cli.children import export_in_children  # noqa: PLC0415  rarely needed

            return export_in_children(session, feeds, request, progress, parallel=parallel)
        # Dagster takes a second to import, which children and usage errors need not wait for
        from datalake_assets.defs.instance import open_instance  # noqa: PLC0415

        with open_instance() as instance:
            return [tell(progress, _export_here(session, feed, request, progress, instance)) for feed in feeds]


def print_outcomes(outcomes: Sequence[Outcome], *, as_json: bool) -> None:
    """Prints the table, or the document, of an export."""
    if as_json:
        print_json({"feeds": [asdict(outcome) for outcome in outcomes]})
    elif any(outcome.error is None for outcome in outcomes):
        say("\n" + outcome_table(outcomes))


def outcome_table(outcomes: Sequence[Outcome]) -> str:
    """A line per feed that was exported."""
    done = [outcome for outcome in outcomes if outcome.error is None]
    quarantine = any(outcome.quarantined for outcome in done)
    columns = ["feed", "rows", "new rows", "files", "size", "partitions", "seconds"]
    rows = [
        [
            f"{outcome.kind}s/{outcome.feed}",
            f"{outcome.rows:,}",
            f"{outcome.new_rows:,}",
            outcome.files,
            bytes_text(outcome.size_bytes),
            outcome.partitions,
            f"{outcome.seconds:.1f}",
            *([outcome.quarantined] if quarantine else []),
        ]
        for outcome in done
    ]
    return as_table([*columns, "quarantined"] if quarantine else columns, rows)


def tell(progress: ExportProgress, outcome: Outcome) -> Outcome:
    """Tells that a feed's export has ended, and why if it failed."""
    progress.finish(outcome.feed, rows=outcome.new_rows, seconds=outcome.seconds, failed=outcome.error is not None)
    if outcome.error is not None:
        warn(
            f"Error: {outcome.feed}: {outcome.error}"
            if outcome.feed not in outcome.error
            else f"Error: {outcome.error}"
        )
    return outcome


def _export_here(
    session: Session, feed: Feed, request: ExportRequest, progress: ExportProgress, instance: DagsterInstance
) -> Outcome:
    from datalake_assets.defs.feeds.runner import export_feed  # noqa: PLC0415  Dagster takes a second

    progress.begin(feed.name)
    began = time.monotonic()

    def advance(done: Progress) -> None:
        progress.advance(feed.name, rows=done.rows)

    try:
        result = export_feed(
            session.settings,
            feed.name,
            partitions=request.partitions(feed),
            allow_shrink=request.allow_shrink,
            new_epoch=request.new_epoch,
            instance=instance,
            on_progress=advance,
        )
    except DatalakeError as error:
        return Outcome(feed.name, feed.kind.value, seconds=time.monotonic() - began, error=str(error))
    if result.error is not None and _INTERRUPT in result.error:
        raise KeyboardInterrupt
    landed = [asdict(partition) for partition in result.partitions]
    outcome = Outcome(
        feed=feed.name,
        kind=feed.kind.value,
        new_rows=result.rows_added,
        quarantined=result.rows_quarantined,
        landed=landed,
        seconds=round(result.seconds, 3),
        run_id=result.run_id,
        error=result.error if result.error is not None or result.success else "the run failed",
    )
    return outcome if outcome.error is not None else _with_totals(session.store, feed, outcome)


def _with_totals(store: Store, feed: Feed, outcome: Outcome) -> Outcome:
    """Adds what the feed amounts to, by its summary: one request, however many partitions."""
    try:
        summary = json.loads(store.get(f"metadata/{feed.path}/_metadata.json")[0])
    except (ObjectNotFound, ValueError):
        return outcome
    partitions = summary["partitions"]
    if feed.kind == "table" and outcome.landed:
        newest = outcome.landed[-1]
        return replace(
            outcome,
            rows=newest["rows"],
            new_rows=newest["rows"] - _rows_before(newest["key"], partitions),
            files=newest["files"],
            size_bytes=newest["size_bytes"],
            partitions=len(partitions),
        )
    return replace(
        outcome,
        rows=summary["total_records"],
        files=sum(partition["files"] for partition in partitions),
        size_bytes=round(summary["total_size_mb"] * 1_000_000),
        partitions=len(partitions),
    )


def _rows_before(key: str, partitions: Sequence[Mapping[str, Any]]) -> int:
    """Rows of the newest version that is older than a table's version ``key``; 0 if it is the first."""
    older = {}
    for partition in partitions:
        version = parse_path(partition["path"], None)
        if version is not None and version_number(version) < version_number(key):
            older[version_number(version)] = int(partition["records"])
    return older[max(older)] if older else 0
