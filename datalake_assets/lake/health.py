"""How healthy a partition is, from its manifest alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from datalake_assets.core.compaction import CompactionRequest, rules_of
from datalake_assets.core.health import PartitionHealth, health_of
from datalake_assets.core.manifest import Manifest
from datalake_assets.lake import compaction
from datalake_assets.lake.layout import FeedFolder

__all__ = ["partition_health"]


def partition_health(
    folder: FeedFolder,
    key: str,
    manifest: Manifest,
    request: CompactionRequest,
    *,
    excluded: Mapping[str, str] | None = None,
) -> PartitionHealth:
    """What a partition amounts to, and what its compaction policy would do.

    Args:
        folder: The feed.
        key: Partition key.
        manifest: Its manifest.
        request: The installation's compaction.
        excluded: Files that no compaction can take, with the reason.
    """
    rules = rules_of(folder.feed, request)
    plan = compaction.plan_of(folder, key, manifest, rules, dict(excluded or {}))
    last = max((commit.at for commit in manifest.history if commit.kind != "compact"), default=None)
    return replace(health_of(key, manifest.files, plan, rules), last_write=last)
