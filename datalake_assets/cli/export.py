"""``datalake export``: lands feeds, by the same Dagster assets that the web UI shows.

Feeds are exported one after the other in this process; reads that end by silence are begun before their turn, so that
the silences of several pass at once. With ``--parallel``, each in a child process that runs
``datalake export`` for it, at most so many at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from datalake_assets.cli.export_results import checks_failed, print_results, result_of_document
from datalake_assets.cli.output import ExportProgress, one_line, warn
from datalake_assets.cli.session import Session, WorkCommand, json_option, pass_session, prepare_home
from datalake_assets.cli.signals import heeded_afterwards
from datalake_assets.core.facts import ExportResult
from datalake_assets.core.partitions import PartitionBy, TimeWindow, keys_in, window_of
from datalake_assets.errors import ConfigError, DatalakeError
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import PositionKind
from datalake_assets.lake.marts.mart_order import made_in_order, made_in_waves
from datalake_assets.lake.registry import RegistryListing
from datalake_assets.lake.table import Progress
from datalake_assets.lake.tables import open_table

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from datalake_assets.sources.reads_ahead import ReadsAhead

__all__ = [
    "ExportRequest",
    "all_feeds",
    "export",
    "export_feeds",
    "export_in_children",
    "export_in_turn",
    "one_feed",
    "reads_ahead",
]


@click.command(cls=WorkCommand)
@click.option("--all", "everything", is_flag=True, help="Export every active feed.")
@click.option("--stream", metavar="NAME", help="Export this stream.")
@click.option("--table", metavar="NAME", help="Export this table.")
@click.option("--mart", metavar="NAME", help="Make this mart anew, where what it reads has changed.")
@click.option("--partition", metavar="KEY", help="Only this partition, like 2025-01-15, or a table's version, like v4.")
@click.option("--range", "between", metavar="A..B", help="Only the partitions from A to B, both included.")
@click.option(
    "--parallel",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Feeds exported at once, each in a process of its own.",
)
@click.option("--allow-shrink", is_flag=True, help="Accept that the source has fewer rows than the lake.")
@click.option("--new-epoch", is_flag=True, help="Accept that the source was created anew, or lost rows.")
@click.option("--ignore-checks", is_flag=True, help="Exit 0 also when a check of the rows that were landed failed.")
@click.option("--ends-with-parent", is_flag=True, hidden=True, help="End when standard input does.")
@json_option
@pass_session
def export(
    session: Session,
    *,
    everything: bool,
    stream: str | None,
    table: str | None,
    mart: str | None,
    partition: str | None,
    between: str | None,
    parallel: int,
    allow_shrink: bool,
    new_epoch: bool,
    ignore_checks: bool,
    ends_with_parent: bool,
    as_json: bool,
) -> None:
    """Land what is new at the source: of one feed, or of all.

    Without --partition or --range a stream catches up, and a table gets its next version; a stream that is read by
    offsets can do nothing else, since each new row is landed whatever its day. What the lake has already
    is not landed twice, so an export can be repeated at any time.

    \b
    datalake export --all
    datalake export --stream transaction_alerts --range 2025-01-01..2025-01-31
    """  # noqa: D301  click reads the \b: keep these lines
    if ends_with_parent:
        end_with_parent()
    if sum((everything, stream is not None, table is not None, mart is not None)) != 1:
        raise click.UsageError("give one of --all, --stream NAME, --table NAME and --mart NAME")
    if partition is not None and between is not None:
        raise click.UsageError("give --partition or --range, not both")
    if everything and (partition or between):
        raise click.UsageError("--partition and --range need --stream, --table or --mart")

    request = ExportRequest(partition, between, allow_shrink=allow_shrink, new_epoch=new_epoch)
    chosen = all_feeds(session) if everything else one_feed(session, stream=stream, table=table, mart=mart)
    results = export_feeds(session, chosen.feeds, request, parallel=parallel, quiet=as_json)
    print_results(results, as_json=as_json)
    if chosen.problems or not all(result.success for result in results):
        raise click.exceptions.Exit(1)
    if not ignore_checks and any(map(checks_failed, results)):
        raise click.exceptions.Exit(CHECKS_FAILED)


#: Exit code of an export whose rows were landed and failed a check: an error, not a warning.
CHECKS_FAILED = 3
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

    def among(self, keys: Iterable[str], feed: Feed) -> tuple[str, ...]:
        """Those of a table's partitions that are meant, in their order; all where none are named.

        Raises:
            ConfigError: None of them is there, or they are none of this feed's.
        """
        named = self.partitions(feed)
        if named is None:
            return tuple(keys)
        wanted = set(named)
        found = tuple(key for key in keys if key in wanted)
        if not found:
            raise ConfigError(f"feed {feed.name!r} has no partitions in {self.partition or self.between}")
        return found

    def refuse_for_offsets(self, feed: Feed) -> None:
        """Refuses a selection of partitions where an export lands whatever is new, in whatever partition it belongs.

        Raises:
            ConfigError: The feed is read by offsets or by items, and partitions are named.
        """
        option = "--partition" if self.partition is not None else "--range"
        if self.partition is None and self.between is None:
            return
        if feed.is_exported and feed.position_kind in {PositionKind.OFFSETS, PositionKind.IDS}:
            raise ConfigError(
                f"feed {feed.name!r} is read by {feed.position_kind.value}: an export lands every new row, whatever its"
                f" day, and {option} can select none of them; leave it out"
            )

    def arguments(self) -> list[str]:
        """The options of a child process."""
        chosen = (("--allow-shrink", self.allow_shrink), ("--new-epoch", self.new_epoch))
        named = (("--partition", self.partition), ("--range", self.between))
        return [f"{name}={value}" for name, value in named if value] + [name for name, given in chosen if given]


def all_feeds(session: Session) -> RegistryListing:
    """Every active feed that is exported, marts after what they read; files that are no feeds are reported on stderr.

    Raises:
        ConfigError: There are no feeds.
    """
    listed, problems = session.feeds()
    feeds = made_in_order([feed for feed in listed if feed.is_exported])
    if not feeds and not problems:
        none = "no feeds; add some with 'datalake feeds add', or see 'datalake demo'"
        others = "only adopted folders and feeds of assets: nothing is exported to them"
        raise ConfigError(f"{session.store.uri} has {others if listed else none}")
    return RegistryListing(feeds, problems)


def one_feed(session: Session, *, stream: str | None, table: str | None, mart: str | None = None) -> RegistryListing:
    """The feed of this name.

    Raises:
        ConfigError: There is none, or it is of the other kind.
    """
    name = stream or table or mart or ""
    feed = session.registry.get(name)
    if feed.is_adopted:
        open_table(session.store, feed).plan()  # raises, and says what can be done
    if not feed.is_exported:
        _ = feed.exported_from  # raises, and says who writes it
    wanted = "mart" if mart is not None else "table" if stream is None else "stream"
    if wanted not in {feed.kind.value, "mart" if feed.is_mart else ""}:
        raise ConfigError(f"feed {name!r} is a {feed.kind}; export it with --{feed.kind} {name}")
    return RegistryListing((feed,))


def export_feeds(
    session: Session, feeds: Sequence[Feed], request: ExportRequest, *, parallel: int = 1, quiet: bool = False
) -> list[ExportResult]:
    """Exports feeds; one feed's failure is reported on stderr and in its result, and the others go on.

    Raises:
        DatalakeError: Nothing could be begun: no source is configured, or a partition is not one of the feed's.
    """
    for feed in feeds:
        request.partitions(feed)
        request.refuse_for_offsets(feed)
    prepare_home()
    with session.serving({feed.source.type for feed in feeds}), ExportProgress(quiet=quiet) as progress:
        _refuse_unconfigured(session, feeds)
        if parallel > 1 and len(feeds) > 1:
            return export_in_children(session, feeds, request, progress, parallel=parallel)
        with reads_ahead(session, feeds, request) as ahead, ExitStack() as stack:
            ahead.begin(0)
            with heeded_afterwards():
                # Dagster takes a second to import, which children, usage errors and reads ahead need not wait for
                from datalake_assets.defs.feeds.runner import warm_up  # noqa: PLC0415
                from datalake_assets.defs.resources import Lake  # noqa: PLC0415
                from datalake_assets.defs.runtime import open_instance  # noqa: PLC0415
                from datalake_assets.defs.upkeep.queued_events import report_queued  # noqa: PLC0415

                instance = stack.enter_context(open_instance())
                warm_up(session.settings)
            done = export_in_turn(session, feeds, request, progress, instance=instance, ahead=ahead)
            report_queued(Lake(session.settings), instance)  # Dagster is loaded: what waits for it need not wait on
            return done


def reads_ahead(session: Session, feeds: Sequence[Feed], request: ExportRequest) -> ReadsAhead:
    """What begins the feeds' reads before their turn; nothing where a person decides of what is found at the source."""
    from datalake_assets.sources.reads_ahead import ReadsAhead  # noqa: PLC0415  not needed for --help
    from datalake_assets.sources.systems import connect  # noqa: PLC0415  not needed for --help

    return ReadsAhead(
        () if request.new_epoch else feeds,
        plan=lambda feed: open_table(session.store, feed).plan().request,
        connect=lambda type_: connect(type_, session.settings),
    )


def _refuse_unconfigured(session: Session, feeds: Sequence[Feed]) -> None:
    """Raises what is wrong with the settings of the sources if none of them can be connected to."""
    from datalake_assets.sources.systems import connect  # noqa: PLC0415  not needed for --help

    errors = []
    types = {feed.source.type for feed in feeds}
    for type_ in sorted(types):
        try:
            with connect(type_, session.settings):
                pass
        except ConfigError as error:
            errors.append(error)
    if errors and len(errors) == len(types):
        raise errors[0]


def _ended(progress: ExportProgress, result: ExportResult) -> ExportResult:
    """Shows that a feed's export has ended, and why if it failed."""
    name = result.feed
    progress.finish(name, rows=result.rows_added, seconds=result.seconds, failed=not result.success)
    if result.error is not None:
        warn(f"Error: {result.error}" if name in result.error else f"Error: {name}: {result.error}")
    for note in result.notes:
        warn(f"{name}: {note}")
    for check in result.checks:
        found = "failed" if check.level == "error" else "warns"
        warn(f"{name}: check {check.check} {found}{f': {check.what}' if check.what else ''}")
    if result.rows_quarantined:
        warn(f"{name}: {result.rows_quarantined:,} rows went to quarantine; 'datalake quarantine show {name}' says why")
    return result


def export_in_turn(
    session: Session,
    feeds: Sequence[Feed],
    request: ExportRequest,
    progress: ExportProgress,
    *,
    instance: DagsterInstance,
    ahead: ReadsAhead,
) -> list[ExportResult]:
    """Exports feeds one after the other, while those that follow may be read already; their results, in that order.

    Args:
        session: Of the command; the sources are being served.
        feeds: The feeds.
        request: What to export of each.
        progress: Told how far each is.
        instance: Dagster's instance.
        ahead: What begins reads before their turn.
    """
    done = []
    for turn, feed in enumerate(feeds):
        ahead.begin(turn)
        result = _export_here(session, feed, request, progress, instance=instance, ahead=ahead)
        done.append(_ended(progress, result))
        ahead.end(feed)
    return done


def _export_here(
    session: Session,
    feed: Feed,
    request: ExportRequest,
    progress: ExportProgress,
    *,
    instance: DagsterInstance,
    ahead: ReadsAhead,
) -> ExportResult:
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
            instead_of=ahead.instead_of,
        )
    except DatalakeError as error:
        return ExportResult(feed.name, feed.kind.value, seconds=time.monotonic() - began, error=str(error))
    if result.error is not None and _INTERRUPT in result.error:
        raise KeyboardInterrupt
    return _with_totals(session, feed, result)


def _with_totals(session: Session, feed: Feed, result: ExportResult) -> ExportResult:
    if not result.success:
        return result
    return replace(result, totals=open_table(session.store, feed).totals(), folder=feed.folder)


#: Time for a child to end its run after Ctrl-C.
_GRACE_S = 20.0


def export_in_children(
    session: Session, feeds: Sequence[Feed], request: ExportRequest, progress: ExportProgress, *, parallel: int
) -> list[ExportResult]:
    """Exports each feed in a process of its own, a mart when what it reads is done; their results, in that order."""
    children = _Children(session, request)
    lock = threading.Lock()

    def run(feed: Feed) -> ExportResult:
        progress.begin(feed.name)
        result = children.run(feed)
        with lock:
            return result if children.interrupted else _ended(progress, _with_totals(session, feed, result))

    with ThreadPoolExecutor(parallel) as pool:
        try:
            return [result for wave in made_in_waves(feeds) for result in pool.map(run, wave)]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children.interrupt()
            raise


def _answered(child: subprocess.Popen[str]) -> tuple[str, str]:
    """What a child prints until it ends; its standard input stays open meanwhile."""
    if child.stdout is None or child.stderr is None or child.stdin is None:
        raise AssertionError
    with child, ThreadPoolExecutor(1) as reader:
        errors = reader.submit(child.stderr.read)
        answer = child.stdout.read()
        child.wait()
        return answer, errors.result()


def end_with_parent() -> None:
    """Ends this process as Ctrl-C would once its standard input ends, which the parent holds; by force if it hangs."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()


class _Children:
    """The child processes of one command, so that none outlives it.

    Attributes:
        interrupted: Whether they were asked to end.
    """

    def __init__(self, session: Session, request: ExportRequest) -> None:
        settings = session.settings
        self._command = [sys.executable, "-m", "datalake_assets.cli", "--lake", settings.lake, "export", "--json"]
        self._command += request.arguments()
        self._environment = session.environment
        self.interrupted = False
        self._running: list[subprocess.Popen[str]] = []
        self._starting = threading.Lock()

    def run(self, feed: Feed) -> ExportResult:
        """Exports a feed and waits for it; starts nothing any more once they were asked to end."""
        with self._starting:
            if self.interrupted:
                return ExportResult(feed.name, feed.kind.value, error="it was not started")
            child = self._started(feed)
            self._running.append(child)
        answer, errors = _answered(child)
        try:
            document: dict[str, Any] = json.loads(answer)["feeds"][0]
        except (ValueError, LookupError):
            lines = [line for line in errors.splitlines() if line.strip()]
            last = one_line(lines[-1]).removeprefix("Error: ") if lines else "it said nothing"
            return ExportResult(feed.name, feed.kind.value, error=f"its process ended with {child.returncode}: {last}")
        return result_of_document(document)

    def _started(self, feed: Feed) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._command, "--ends-with-parent", f"--{feed.kind}", feed.name],
            env=self._environment,
            # nothing comes: it ends when this process does, however that happens
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,  # a terminal's Ctrl-C is this process's, which interrupts each once
        )

    def interrupt(self) -> None:
        """Ends the children that still run as Ctrl-C would, and kills those that stay."""
        with self._starting:  # a child that is being started is one of them
            self.interrupted = True
        for child in self._running:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for child in self._running:
            try:
                child.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                child.kill()
