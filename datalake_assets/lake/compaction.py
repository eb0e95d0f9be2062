"""Compaction of a partition: plan, rewrite, commit."""

from __future__ import annotations

from collections.abc import Callable

from datalake_assets.core.compaction import CompactionPlan, CompactionRequest
from datalake_assets.lake.base import CompactionProgress, CompactionReport
from datalake_assets.lake.layout import FeedFolder

__all__ = ["compact", "plan"]


def plan(folder: FeedFolder, key: str, request: CompactionRequest) -> CompactionPlan:
    """What `compact` would do; see `LakeTable.compaction_plan`."""
    raise NotImplementedError


def compact(
    folder: FeedFolder,
    key: str,
    request: CompactionRequest,
    *,
    run_id: str = "",
    on_progress: Callable[[CompactionProgress], None] | None = None,
) -> CompactionReport:
    """Merges small files; see `LakeTable.compact`."""
    raise NotImplementedError
