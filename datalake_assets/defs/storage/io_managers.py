"""The lake as Dagster storage: feeds stream into it, downstream assets read from it."""

from typing import Any

import dagster as dg

from datalake_assets.config import Feed
from datalake_assets.core.health import SCHEMA, schema_changed
from datalake_assets.defs.check_results import check_evaluation
from datalake_assets.defs.failures import failures_named
from datalake_assets.defs.metadata import Metadata, data_version
from datalake_assets.defs.resources import Lake, LakeResource
from datalake_assets.defs.storage.inputs import Selection, read_as
from datalake_assets.defs.storage.landing import FeedRead, land
from datalake_assets.defs.storage.outputs import feed_of_asset, land_output
from datalake_assets.errors import SchemaChanged
from datalake_assets.lake.base import PartitionReport

__all__ = ["ParquetLakeIOManager"]


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

    def landed(self, report: PartitionReport, metadata: Metadata) -> None:
        key = report.key if self._context.has_asset_partitions else None
        self._step.add_asset_metadata(metadata, asset_key=self._context.asset_key, partition_key=key)

    def landed_beyond(self, report: PartitionReport, metadata: Metadata) -> None:
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
