"""What Dagster knows of marts: which assets they are made of, by partition and by column."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from datalake_assets.defs.metadata import Metadata, asset_key, source_key
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runtime import known_dagster_warnings_ignored
from datalake_assets.errors import DatalakeError
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind

if TYPE_CHECKING:
    from datalake_assets.lake.marts.mart_inputs import MartInputs  # DuckDB

__all__ = ["lineage_metadata", "upstream"]


def upstream(feed: Feed, feeds: Mapping[str, Feed]) -> list[dg.AssetDep]:
    """What the asset of an exported feed is made of: the system that it reads, or the feeds that its SQL reads.

    Args:
        feed: The feed.
        feeds: The feeds of the lake, by name.
    """
    if not feed.is_mart:
        return [dg.AssetDep(source_key(feed))]
    from datalake_assets.lake.marts.mart_inputs import MartInputs  # noqa: PLC0415  DuckDB; other feeds need none

    try:
        inputs = MartInputs.of(feed, feeds.values())
    except DatalakeError:  # each run says why; and a feed that is looked at by itself has no inputs yet
        return []
    with known_dagster_warnings_ignored():
        return [
            dg.AssetDep(asset_key(each), partition_mapping=_mapping(inputs, each)) for each in inputs.inputs.values()
        ]


def _mapping(inputs: "MartInputs", each: Feed) -> dg.PartitionMapping | None:
    if each.asset is not None:
        return None  # another project's; it knows its partitions
    if inputs.reads_by_partition(each):
        return dg.TimeWindowPartitionMapping(allow_nonexistent_upstream_partitions=True)
    return dg.LastPartitionMapping() if each.kind is FeedKind.TABLE else dg.AllPartitionMapping()


def lineage_metadata(lake: Lake, feed: Feed, columns: Sequence[str]) -> Metadata:
    """The columns that those of a mart are made of; nothing where they are not known.

    Dagster's own form of it, which Dagster+ draws, and a table for its open-source UI, which draws no columns.
    """
    from datalake_assets.lake.marts.mart_inputs import MartInputs  # noqa: PLC0415  DuckDB; other feeds need none
    from datalake_assets.lake.marts.mart_lineage import column_lineage  # noqa: PLC0415  likewise

    inputs = MartInputs.of(feed, lake.registry.list().feeds).inputs
    schemas = {name: lake.table(each).snapshot([]).dataset().schema for name, each in inputs.items()}
    found = column_lineage(feed, columns, schemas)
    if not found:
        return {}
    by_column = {
        column: [dg.TableColumnDep(asset_key=asset_key(inputs[name]), column_name=read) for name, read in each]
        for column, each in found.items()
    }
    lines = [
        f"| {column} | {', '.join(f'{inputs[name].path}.{read}' for name, read in each)} |"
        for column, each in found.items()
    ]
    return {
        "dagster/column_lineage": dg.MetadataValue.column_lineage(dg.TableColumnLineage(by_column)),
        "datalake/made_of": dg.MetadataValue.md("\n".join(["| column | made of |", "|---|---|", *lines])),
    }
