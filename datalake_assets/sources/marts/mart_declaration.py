"""What marts declare of themselves as a source; what they may say is `datalake_assets.feed_sources.MartSource`."""

from __future__ import annotations

from datalake_assets.feed_sources import MartSource
from datalake_assets.sources.base import FeedOption, System

__all__ = ["MARTS"]

MARTS = System(
    model=MartSource,
    connect="datalake_assets.lake.marts.mart_reading:connect",
    options=(
        FeedOption("--query", "query", "A SELECT that reads feeds by their names.", "SQL", required=True),
        FeedOption(
            "--whole", "whole", "Streams that each partition reads whole.", "FEED,…", shape="list", streams_only=True
        ),
    ),
    object_field="query",
)
