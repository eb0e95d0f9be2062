"""What a compaction would do with a partition, by its manifest: the plan, and the health that shows in checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from datalake_assets.core.compaction.plan import CompactionPlan, CompactionRules, again_at, plan_compaction
from datalake_assets.core.facts import UPKEEP, PlannedPartition
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partitions import window_of
from datalake_assets.core.verdicts import health_of
from datalake_assets.lake.layout import FeedFolder

__all__ = ["partition_health", "plan_of"]


def plan_of(
    folder: FeedFolder, key: str, manifest: Manifest, rules: CompactionRules, excluded: Mapping[str, str]
) -> CompactionPlan:
    """The plan of a partition whose manifest is known; ``excluded`` are files that must stay, with the reason."""
    now = folder.store.now()
    excluded = {file.name: file.kept_as_is for file in manifest.files if file.kept_as_is} | dict(excluded)
    if manifest.files and (reason := folder.why_final(key)):
        excluded = dict.fromkeys((file.name for file in manifest.files), reason) | excluded
    last, closes_at = manifest.history[-1].at if manifest.history else None, _closes_at(folder, key)
    closed = closes_at is None or closes_at <= now
    plan = plan_compaction(manifest.files, rules, now=now, closed=closed, last_commit=last, excluded=excluded)
    usable = [file for file in manifest.files if file.name not in excluded]
    return replace(plan, again_at=again_at(usable, rules, now=now, closes_at=closes_at, last_commit=last))


def partition_health(key: str, manifest: Manifest, plan: CompactionPlan, rules: CompactionRules) -> PlannedPartition:
    """A partition's facts, and what its compaction policy would do by ``plan``."""
    last = max((commit.at for commit in manifest.history if commit.kind not in UPKEEP), default=None)
    return health_of(key, manifest.files, plan, rules, last_write=last)


def _closes_at(folder: FeedFolder, key: str) -> datetime | None:
    """When no more rows are expected; None where none are: versions never change, of adopted folders nobody knows."""
    by = folder.by
    return None if by is None else window_of(key, by).end + folder.feed.lateness
