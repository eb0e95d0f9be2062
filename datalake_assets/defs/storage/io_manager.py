"""The lake as Dagster storage: feeds and other people's assets write into it, downstream assets read from it.

What is read are a feed's committed rows, in the type that the downstream asset's parameter is annotated with. Landing a
feed within a run (plan, read, write, report) knows of Dagster only how to log.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Protocol, get_args, get_origin

import dagster as dg
import pyarrow as pa

from datalake_assets.core.batches import Backlog, Batches
from datalake_assets.core.facts import PartitionFacts
from datalake_assets.core.schema import RESERVED_NAMES
from datalake_assets.core.verdicts import SCHEMA, schema_changed
from datalake_assets.defs.metadata import (
    Metadata,
    asset_key,
    check_evaluation,
    data_version,
    partition_metadata,
    recommendation_metadata,
    totals_metadata,
    write_metadata,
)
from datalake_assets.defs.resources import Lake, LakeResource
from datalake_assets.defs.runtime import failures_named, isolated
from datalake_assets.defs.storage.asset_feeds import declared_feed, declared_name
from datalake_assets.defs.storage.mart_assets import lineage_metadata
from datalake_assets.errors import ConfigError, FeedNotFound, SchemaChanged
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import AssetSource
from datalake_assets.lake.frames import FramesByKey, frame_batches
from datalake_assets.lake.table import LakeTable, Progress, WriteReport
from datalake_assets.settings import Environment
from datalake_assets.sources.base import HasBacklog, SourceSystem

__all__ = [
    "FeedRead",
    "ParquetLakeIOManager",
    "RunLog",
    "Selection",
    "feed_of_asset",
    "land",
    "land_output",
    "progress_told_to",
    "read_as",
    "read_feed",
    "reads_begun",
]

#: A run's log gets a line of progress this often.
PROGRESS_INTERVAL_S = 15.0

_listener: ContextVar[Callable[[Progress], None] | None] = ContextVar("progress_listener", default=None)


@dataclass(slots=True)
class FeedRead:
    """What an asset hands to its IO manager: rows that nobody has read yet.

    Attributes:
        feed: The feed.
        table: Its data in the lake.
        batches: Its rows; reading begins with the iteration.
        partitions: The run's partitions.
        allow_shrink: Accept fewer rows than the lake has.
        report: What the write did; None until it is done.
        environment: Sets when compaction is recommended, where the feed's policy doesn't.
        backlog: Asks what waits at the source; None where it cannot tell.
        lineage: Of a mart, tells what its columns are made of.
    """

    feed: Feed
    table: LakeTable
    batches: Batches
    partitions: tuple[str, ...]
    allow_shrink: bool = False
    report: WriteReport | None = None
    environment: Environment = Environment.DEVELOPMENT
    backlog: Callable[[], Backlog] | None = None
    lineage: Callable[[Sequence[str]], Metadata] | None = None

    @property
    def selected(self) -> tuple[PartitionFacts, ...]:
        """The reports of the run's own partitions."""
        own = set(self.partitions)
        return tuple(each for each in self._reports if each.key in own)

    @property
    def beyond(self) -> tuple[PartitionFacts, ...]:
        """The reports of other partitions that received rows."""
        own = set(self.partitions)
        return tuple(each for each in self._reports if each.key not in own)

    @property
    def _reports(self) -> tuple[PartitionFacts, ...]:
        return self.report.partitions if self.report else ()


class RunLog(Protocol):
    """Where a run tells what it does."""

    def info(self, line: str) -> None:
        """Logs a line."""

    def warning(self, line: str) -> None:
        """Logs a line that a person should read."""

    def landed(self, report: PartitionFacts, metadata: Metadata) -> None:
        """Attaches metadata to the materialization of one of the run's partitions."""

    def landed_beyond(self, report: PartitionFacts, metadata: Metadata) -> None:
        """Records a materialization of a partition that the run did not select."""

    def finished(self, read: FeedRead, metadata: Metadata) -> None:
        """Attaches metadata to all of the run's materializations."""

    def drifted(self, feed: Feed, error: SchemaChanged) -> None:
        """Records that the source's columns are no longer the feed's: the run fails before it can check anything."""


def read_feed(
    lake: Lake,
    source: SourceSystem,
    feed: Feed,
    partitions: Sequence[str],
    *,
    allow_shrink: bool,
    new_epoch: bool,
    items: Sequence[str] = (),
) -> FeedRead:
    """Plans a read of a feed's partitions, or of some of its source's items; nothing is read yet."""
    with failures_named(feed):
        table = lake.table(feed)
        plan = table.plan(partitions, new_epoch=new_epoch)
        request = replace(plan.request, items=tuple(items)) if items else plan.request
        batches, environment = _begun.get()(feed, source.read(feed, request)), lake.settings.env
        waiting = functools.partial(source.backlog, feed) if isinstance(source, HasBacklog) else None
        lineage = functools.partial(lineage_metadata, lake, feed) if feed.is_mart else None
        read = FeedRead(feed, table, batches, tuple(partitions), allow_shrink, environment=environment)
        return replace(read, backlog=waiting, lineage=lineage)


def land(read: FeedRead, run_log: RunLog, *, run_id: str, lake_uri: str) -> None:
    """Streams the rows into the lake, commits, and tells what came of it."""
    with failures_named(read.feed):
        try:
            read.report = report = read.table.write(
                read.batches,
                partitions=read.partitions,
                run_id=run_id,
                allow_shrink=read.allow_shrink,
                on_progress=_progress(run_log),
            )
        except SchemaChanged as error:
            run_log.drifted(read.feed, error)
            raise
    for note in report.notes:
        run_log.warning(note)
    if report.rows_quarantined:
        run_log.warning(
            f"{report.rows_quarantined:,} rows of {read.feed.path} could not be landed and are in quarantine"
        )
    lineage: Metadata = {}
    if read.lineage is not None:
        with isolated(run_log.warning, about="the lineage of columns is left out"):  # the rows are landed
            lineage = read.lineage(report.schema.names)
    total = {**write_metadata(report), **totals_metadata(read.feed, report.totals), **lineage}
    for each in read.selected:
        run_log.landed(each, _metadata_of(read, each, report, lake_uri))
    for each in read.beyond:
        run_log.landed_beyond(each, {**_metadata_of(read, each, report, lake_uri), **total})
    run_log.finished(read, total)
    run_log.info(
        f"{read.feed.path}: read {report.rows_read:,} rows, {report.rows_added:+,} in the lake,"
        f" {report.rows_known:,} known, {report.rows_quarantined:,} quarantined"
    )


def _metadata_of(read: FeedRead, one: PartitionFacts, report: WriteReport, lake_uri: str) -> Metadata:
    return {
        **partition_metadata(read.feed, one, lake_uri=lake_uri, schema=report.schema),
        **recommendation_metadata(read.feed, one, read.environment),
    }


@contextmanager
def reads_begun(instead_of: Callable[[Feed, Batches], Batches] | None) -> Iterator[None]:
    """Has the reads of this thread be others while the block runs, which were begun before.

    Args:
        instead_of: Gives for a feed, and the read that a run would begin, the one that it takes; None leaves all as is.
    """
    token = _begun.set(instead_of or _as_read)
    try:
        yield
    finally:
        _begun.reset(token)


def _as_read(_: Feed, batches: Batches) -> Batches:
    return batches


_begun: ContextVar[Callable[[Feed, Batches], Batches]] = ContextVar("reads_begun", default=_as_read)


@contextmanager
def progress_told_to(listener: Callable[[Progress], None] | None) -> Iterator[None]:
    """Tells ``listener`` too how far the writes of this thread are, while the block runs."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def _progress(run_log: RunLog) -> Callable[[Progress], None]:
    listener, told_at = _listener.get(), time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal told_at
        if listener is not None:
            listener(progress)
        if time.monotonic() - told_at >= PROGRESS_INTERVAL_S:
            told_at = time.monotonic()
            run_log.info(f"{progress.rows:,} rows read, {progress.bytes_written:,} bytes written so far")

    return tell


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows and columns are wanted.

    Attributes:
        partitions: Partition keys; None for all, and of a table for the current version.
        columns: Column names; None for all. Of an asset's feed these are the columns that it returned, without those
            that its partitions' folders give (``year``, ``month``, …).
        tell: Called with a line on what a person should know.
    """

    partitions: Sequence[str] | None = None
    columns: Sequence[str] | None = None
    tell: Callable[[str], None] | None = None


def read_as(wanted: Any, table: LakeTable, selection: Selection) -> Any:
    """Reads a feed's committed rows as the wanted type; partitions without data are left out and reported.

    Args:
        wanted: ``pyarrow.Table``, ``pyarrow.RecordBatchReader``, ``pandas.DataFrame``, ``polars.DataFrame``, or a
            ``dict`` of one of these by partition key.
        table: The feed.
        selection: What is wanted of it.

    Raises:
        ConfigError: The type is none of these.
    """
    if get_origin(wanted) is dict and selection.partitions is None:
        raise ConfigError(f"annotate the input with the type of a frame, not {wanted}: it has no partitions")
    convert = _converter(get_args(wanted)[-1] if get_origin(wanted) is dict else wanted)
    if get_origin(wanted) is dict:
        keys = _with_data(table, selection) or ()
        return {key: convert(_reader(table, [key], selection.columns)) for key in keys}
    return convert(_reader(table, _with_data(table, selection), selection.columns))


def _converter(wanted: Any) -> Callable[[pa.RecordBatchReader], Any]:
    if wanted is pa.RecordBatchReader:
        return lambda reader: reader
    if wanted is pa.Table:
        return lambda reader: reader.read_all()
    library, name = getattr(wanted, "__module__", "").partition(".")[0], getattr(wanted, "__name__", "")
    if (library, name) == ("pandas", "DataFrame"):
        return lambda reader: reader.read_pandas()
    if (library, name) == ("polars", "DataFrame"):
        return functools.partial(wanted)  # takes streams of Arrow
    msg = (
        "annotate the input with pyarrow.Table, pyarrow.RecordBatchReader, pandas.DataFrame or polars.DataFrame, or a"
        f" dict of one of them by partition key, not {wanted}"
    )
    raise ConfigError(msg)


def _with_data(table: LakeTable, selection: Selection) -> list[str] | None:
    """The partitions to read; None if none were named."""
    if selection.partitions is None:
        return None
    partitions, known = selection.partitions, set(table.partitions())
    missing = [key for key in partitions if key not in known]
    if missing and selection.tell is not None:
        named = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")  # noqa: PLR2004  enough for a line
        selection.tell(f"{table.feed.path} has no data in {len(missing):,} of {len(partitions):,} partitions: {named}")
    return [key for key in partitions if key in known]


def _reader(table: LakeTable, partitions: Sequence[str] | None, columns: Sequence[str] | None) -> pa.RecordBatchReader:
    reader = table.scan(columns=columns, partitions=partitions)
    return reader if columns is not None else _own_columns(table.feed, reader)


def _own_columns(feed: Feed, reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """Without what partitions add: an asset gets back what it returned, and may return it again."""
    names = [name for name in reader.schema.names if name not in RESERVED_NAMES]
    if not isinstance(feed.source, AssetSource) or names == reader.schema.names:
        return reader
    schema = pa.schema([reader.schema.field(name) for name in names])

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in reader:
            yield batch.select(names)

    return pa.RecordBatchReader.from_batches(schema, batches())


def land_output(
    lake: Lake, spec: dg.AssetSpec, output: Any, run_log: RunLog, *, partitions: Sequence[str] | None, run_id: str
) -> None:
    """Writes what an asset returned for the partitions of a run, which its rows replace; or as a table's new version.

    Args:
        lake: The lake.
        spec: The asset.
        output: A frame that `frame_batches` takes, or a dict of such frames by partition key.
        run_log: Where the run tells what it does.
        partitions: The run's partitions; None if the asset has none.
        run_id: The Dagster run.

    Raises:
        dagster.Failure: The output cannot be landed; nothing of the partition at fault was committed.
    """
    with failures_named(f"asset {spec.key.to_user_string()}"):
        from datalake_assets.defs.storage.asset_feeds import declare  # noqa: PLC0415  definitions load without stores

        declared = declared_feed(spec)
        if declared.is_adopted:
            raise ConfigError(
                f"asset {declared.asset!r}: its metadata 'dagster/uri' says that something else writes its files, and"
                " it returned rows; remove the metadata, or return nothing ('-> None')"
            )
        batches = _batches(declared, output, partitions)
        feed = declare(lake.store, declared)
        table = lake.table(feed)
        keys = table.plan(partitions).partitions
    read = FeedRead(feed, table, batches, keys, allow_shrink=True, environment=lake.settings.env)
    land(read, run_log, run_id=run_id, lake_uri=lake.uri)


def feed_of_asset(lake: Lake, key: dg.AssetKey, metadata: Mapping[str, Any]) -> Feed:
    """The feed that an asset's data are in: one that the asset writes, or one of ours.

    Args:
        lake: The lake.
        key: The asset.
        metadata: Of its definition, as far as it is known here.

    Raises:
        FeedNotFound: The lake has none yet, or has archived it.
        ConfigError: The feed of that name is another asset's.
    """
    name = declared_name(key, metadata)
    for each in dict.fromkeys((name, key.path[-1])):
        try:
            feed = lake.registry.get(each)
        except FeedNotFound as error:
            if error.archived:
                raise
            continue
        if asset_key(feed) == key:
            return feed
    raise ConfigError(
        f"asset {key.to_user_string()!r} is not in the lake {lake.uri}; materialize it first, with the same lake"
    )


def _batches(feed: Feed, output: Any, partitions: Sequence[str] | None) -> Batches:
    asset, time_column = feed.asset or "", feed.time_column if partitions else None
    if not isinstance(output, dict):
        return frame_batches(output, asset=asset, time_column=time_column)
    if partitions is None:
        raise ConfigError(f"asset {asset!r} returned a dict and has no partitions; return one frame")
    missing, others = sorted(set(partitions) - set(output)), sorted(set(map(str, output)) - set(partitions))
    if missing or others:
        parts = [("lacks", missing), ("has others:", others)]
        fault = " and ".join(f"{what} {', '.join(keys[:5])}" for what, keys in parts if keys)
        raise ConfigError(
            f"asset {asset!r} returned a dict that {fault}; return one frame for each partition of the run, an empty"
            " one for a partition without rows"
        )
    return FramesByKey({key: frame_batches(output[key], asset=asset, time_column=time_column) for key in partitions})


class ParquetLakeIOManager(dg.ConfigurableIOManager):
    """Stores in the lake what assets return, and gives downstream assets the committed rows.

    It serves anybody's assets. One with time partitions (whole months, days or hours, UTC) becomes a stream of the
    lake: the rows that it returns replace its partition's, so that a repetition never doubles any. One without
    partitions becomes a table: each run makes a new version, and readers get the newest. What can be returned, and what
    metadata an asset can have, is in ``docs/how-to/use-it-in-your-own-project.md``.

    A downstream asset says by its annotation what it wants: ``pyarrow.Table``, ``pyarrow.RecordBatchReader`` (any
    volume), ``pandas.DataFrame``, ``polars.DataFrame``, or a ``dict`` of one of them by partition key.
    ``dg.AssetIn(metadata={"columns": [...]})`` reads only those columns.

    Attributes:
        lake: The lake.
    """

    lake: LakeResource

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Streams and commits the rows."""
        lake, log = self.lake.open(), _OutputLog(context)
        if isinstance(obj, FeedRead):
            land(obj, log, run_id=context.run_id, lake_uri=lake.uri)
            return
        keys = context.asset_partition_keys if context.has_asset_partitions else None
        land_output(lake, _spec(context), obj, log, partitions=keys, run_id=context.run_id)

    def load_input(self, context: dg.InputContext) -> Any:
        """Reads the upstream asset's partitions, in the type that the parameter is annotated with."""
        keys = context.asset_partition_keys if context.has_asset_partitions else None
        columns = context.definition_metadata.get("columns")
        selection = Selection(keys, columns, tell=context.log.warning)
        return _read(self.lake.open(), context.asset_key, context.upstream_output, selection, context.dagster_type)


class _OutputLog:
    """A run's log, by way of the context that an IO manager gets."""

    def __init__(self, context: dg.OutputContext) -> None:
        self._context = context
        # the public twin, AssetExecutionContext.add_asset_metadata, is out of an IO manager's reach
        self._step: Any = context.step_context

    def info(self, line: str) -> None:
        self._context.log.info(line)

    def warning(self, line: str) -> None:
        self._context.log.warning(line)

    def landed(self, report: PartitionFacts, metadata: Metadata) -> None:
        key = report.key if self._context.has_asset_partitions else None
        self._step.add_asset_metadata(metadata, asset_key=self._context.asset_key, partition_key=key)

    def landed_beyond(self, report: PartitionFacts, metadata: Metadata) -> None:
        event = dg.AssetMaterialization(self._context.asset_key, partition=report.key, metadata=metadata)
        self._context.log_event(event)

    def finished(self, read: FeedRead, metadata: Metadata) -> None:
        self._context.add_output_metadata(metadata)
        self._step.set_data_version(self._context.asset_key, data_version(read.feed, read.selected))

    def drifted(self, feed: Feed, error: SchemaChanged) -> None:
        if feed.is_exported:
            event = check_evaluation(SCHEMA, schema_changed(error), asset_key=self._context.asset_key)
            self._step.instance.report_runless_asset_event(event)


def _spec(context: dg.OutputContext) -> dg.AssetSpec:
    if not context.has_asset_key:
        raise dg.Failure(f"{context.step_key} is no asset; the lake stores assets only", allow_retries=False)
    return context.asset_spec


def _read(lake: Lake, key: dg.AssetKey, output: dg.OutputContext | None, selection: Selection, wanted: Any) -> Any:
    with failures_named(f"asset {key.to_user_string()}"):
        feed = feed_of_asset(lake, key, output.definition_metadata if output else {})
        return read_as(wanted.typing_type, lake.table(feed), selection)
