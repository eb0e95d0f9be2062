"""The lake as Dagster storage: feeds stream into it, downstream assets read from it."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import pyarrow as pa

from datalake_assets.defs.landing import FeedRead, land
from datalake_assets.defs.metadata import Metadata, data_version
from datalake_assets.defs.resources import Lake, LakeResource
from datalake_assets.errors import ConfigError
from datalake_assets.lake.base import LakeTable, PartitionReport

__all__ = ["ParquetLakeIOManager"]


class ParquetLakeIOManager(dg.ConfigurableIOManager):
    """Lands what a feed's asset read, and gives downstream assets a feed's committed rows.

    A downstream asset says by its annotation what it wants: ``pyarrow.Table``, ``pyarrow.RecordBatchReader`` (any
    volume) or ``pandas.DataFrame``. ``dg.AssetIn(metadata={"columns": [...]})`` reads only those columns.

    Attributes:
        lake: The lake.
    """

    lake: LakeResource

    def handle_output(self, context: dg.OutputContext, obj: FeedRead) -> None:
        """Streams and commits the rows."""
        land(obj, _OutputLog(context), run_id=context.run_id, lake_uri=self.lake.open().uri)

    def load_input(self, context: dg.InputContext) -> Any:
        """Reads the upstream feed's partitions, in the type that the parameter is annotated with."""
        keys = context.asset_partition_keys if context.has_asset_partitions else None
        wanted = context.dagster_type.typing_type
        table = _table(self.lake.open(), context.asset_key)
        return read_as(wanted, table, partitions=keys, metadata=context.definition_metadata)


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
        self._step.add_asset_metadata(metadata, asset_key=self._context.asset_key, partition_key=report.key)

    def landed_beyond(self, report: PartitionReport, metadata: Metadata) -> None:
        event = dg.AssetMaterialization(self._context.asset_key, partition=report.key, metadata=metadata)
        self._context.log_event(event)

    def finished(self, read: FeedRead, metadata: Metadata) -> None:
        self._context.add_output_metadata(metadata)
        self._step.set_data_version(self._context.asset_key, data_version(read.feed, read.selected))


def read_as(
    wanted: Any, table: LakeTable, *, partitions: Sequence[str] | None, metadata: Mapping[str, Any] | None = None
) -> Any:
    """Reads a feed's committed rows as the wanted type; partitions without data are left out.

    Raises:
        ConfigError: The type is none of those that `ParquetLakeIOManager` names.
    """
    columns = (metadata or {}).get("columns")
    known = set(table.partitions()) if partitions is not None else set()
    keys = None if partitions is None else [key for key in partitions if key in known]
    reader = table.scan(columns=columns, partitions=keys)
    if wanted is pa.RecordBatchReader:
        return reader
    if wanted is pa.Table:
        return reader.read_all()
    if getattr(wanted, "__module__", "").startswith("pandas") and wanted.__name__ == "DataFrame":
        return reader.read_pandas()
    msg = f"annotate the input with pyarrow.Table, pyarrow.RecordBatchReader or pandas.DataFrame, not {wanted}"
    raise ConfigError(msg)


def _table(lake: Lake, key: dg.AssetKey) -> LakeTable:
    return lake.table(lake.registry.get(key.path[-1]))
