"""Adopted folders and tables as assets: observable, since their data is not made here; with their own partitions.

A person clicks "Observe"; Dagster then takes in what others changed. Nothing is ever reported as materialized.
"""

from collections.abc import Callable, Iterable, Iterator

import dagster as dg

from datalake_assets.defs.feeds.assets import add_partitions
from datalake_assets.defs.metadata import (
    asset_key,
    code_version,
    column_schema,
    feed_metadata,
    folder_metadata,
    versions_name,
)
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runs import tag_run
from datalake_assets.defs.runtime import failures_named, known_dagster_warnings_ignored
from datalake_assets.feed import Feed
from datalake_assets.lake.table import Reconciliation

__all__ = ["folder_asset", "keep_partitions", "observations", "remarks"]

#: Up to this many partitions all of them are observed each time; above, those that changed or are new.
ALL_TOLD = 1_000
#: What Dagster does not take in a partition key, of what a path may contain.
_NO_KEY = "..."
_DATA_VERSION = "dagster/data_version"
#: What Dagster's UI has pictures of.
_KINDS = {"folder": {"parquet", "folder"}, "iceberg": {"iceberg"}, "delta": {"deltalake"}}


def folder_asset(feed: Feed, *, lake_uri: str) -> dg.AssetsDefinition:
    """The asset of an adopted folder or table.

    Args:
        feed: The feed.
        lake_uri: The lake's address.
    """
    with known_dagster_warnings_ignored():
        spec = dg.AssetSpec(
            asset_key(feed),
            partitions_def=dg.DynamicPartitionsDefinition(name=versions_name(feed)),
            kinds=_KINDS[feed.source.type],
            owners=list(feed.owners),
            tags=feed.tags,
            group_name=feed.group or feed.kind.folder,
            description=feed.description or f"{feed.source.where}, which others write.",
            code_version=code_version(feed),
            metadata=feed_metadata(feed, lake_uri=lake_uri),
        )

        # the decorator for one asset is deprecated within, and knows no owners
        observable = dg.multi_observable_source_asset(
            name=spec.key.to_python_identifier(), specs=[spec], required_resource_keys={"lake"}
        )
        asset: dg.AssetsDefinition = observable(_look_at(feed))
        return asset


def _look_at(feed: Feed) -> Callable[..., Iterator[dg.ObserveResult]]:
    def look(context: dg.AssetExecutionContext) -> Iterator[dg.ObserveResult]:
        tag_run(context.instance, context.run)
        yield _look(context, feed, context.resources.lake.open())

    return look


def _look(context: dg.AssetExecutionContext, feed: Feed, lake: Lake) -> dg.ObserveResult:
    with failures_named(feed):
        found = lake.table(feed).look_again(run_id=context.run.run_id)
    new = keep_partitions(context.instance, feed, found)
    for event in observations(feed, found, new, lake_uri=lake.uri):
        context.log_event(event)
    for line in remarks(found):
        context.log.warning(line)
    context.log.info("%d files joined, %d were rewritten, %d left", found.added, found.rewritten, found.removed)
    return dg.ObserveResult(metadata=_totals(feed, found))


def _totals(feed: Feed, found: Reconciliation) -> dict[str, dg.MetadataValue]:
    """The figures of the folder as a whole."""
    reports = found.partitions.values()
    figures = {
        "dagster/row_count": sum(each.rows for each in reports),
        "datalake/partitions": sum(each.files > 0 for each in reports),
        "datalake/files": sum(each.files for each in reports),
        "datalake/small_files": sum(each.small_files for each in reports),
        "datalake/size_bytes": sum(each.size_bytes for each in reports),
        "datalake/files_unreadable": len(found.problems),
        "datalake/files_left_out": len(found.left_out),
    }
    metadata: dict[str, dg.MetadataValue] = {name: dg.MetadataValue.int(value) for name, value in figures.items()}
    if found.schema is not None:
        metadata["dagster/column_schema"] = column_schema(feed, found.schema)
    return metadata


def keep_partitions(instance: dg.DagsterInstance, feed: Feed, found: Reconciliation) -> set[str]:
    """Keeps Dagster's partitions in step with the folders that have files; returns the keys that it did not know."""
    there = {key for key, report in found.partitions.items() if report.files and _NO_KEY not in key}
    known = set(instance.get_dynamic_partitions(versions_name(feed)))
    new = there - known
    add_partitions(instance, feed, sorted(new))
    for key in sorted(known - there):
        instance.delete_dynamic_partition(versions_name(feed), key)
    return new


def observations(
    feed: Feed, found: Reconciliation, new: Iterable[str], *, lake_uri: str
) -> Iterator[dg.AssetObservation]:
    """Each partition's facts; its data version changes when its files' writer changes them, not when we merge them."""
    observed = set(found.partitions) if len(found.partitions) <= ALL_TOLD else {*new, *found.changed}
    for key in sorted(observed):
        report = found.partitions[key]
        if report.files and _NO_KEY not in key:
            yield dg.AssetObservation(
                asset_key(feed),
                partition=key,
                metadata=folder_metadata(feed, report, lake_uri=lake_uri),
                tags={_DATA_VERSION: found.versions[key]},
            )


def remarks(found: Reconciliation) -> Iterator[str]:
    """What a person should know of a look at a folder, line by line."""
    for each in found.problems:
        yield f"{each.name} cannot be read, and stays where it is: {each.reason}"
    for each in found.links:
        yield f"{each.name} stays where it is: {each.reason}"
    for each in found.left_out:
        yield f"{each.name} is left out of queries and compaction: {each.reason}"
    for line in found.waiting:
        yield f"waiting: {line}"
    for key in found.partitions:
        if _NO_KEY in key:
            yield f"{key} cannot be a partition in Dagster, which takes no '...' in a key"
