"""A table's versions as Dagster partitions: Dagster learns of them before a run, and forgets those that are removed."""

from collections.abc import Iterable

import dagster as dg

from datalake_assets.config import Feed, FeedKind
from datalake_assets.defs.metadata import versions_name
from datalake_assets.defs.storage.landing import FeedRead

__all__ = ["add_versions", "drop_versions"]


def add_versions(instance: dg.DagsterInstance, feed: Feed, keys: Iterable[str]) -> None:
    """Makes versions of a table known to Dagster; idempotent, and nothing to do for a stream."""
    if feed.kind is not FeedKind.TABLE:
        return
    known = set(instance.get_dynamic_partitions(versions_name(feed)))
    new = [key for key in keys if key not in known]
    if new:
        instance.add_dynamic_partitions(versions_name(feed), new)


def drop_versions(instance: dg.DagsterInstance, read: FeedRead) -> None:
    """Makes Dagster forget the versions that retention removed during a write."""
    for key in read.report.removed if read.report else ():
        instance.delete_dynamic_partition(versions_name(read.feed), key)
