"""Figures of partitions and feeds made by hand, for tests of what reports make of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import msgspec

from datalake_assets.core.compaction.plan import CompactionRequest, outlook_of_plan, plan_compaction, rules_of
from datalake_assets.core.facts import Outlook, PartitionFacts, PlannedPartition
from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import PastCommit
from datalake_assets.core.report.figures import FeedStatistics, last_arrival
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.feed_sources import FeedKind

NOON = datetime(2025, 1, 15, 12, tzinfo=UTC)
MIB = 1 << 20


def feed_of(name: str = "clicks", kind: str = "stream", **changes: object) -> Feed:
    """A feed."""
    source = {"type": "folder", "uri": "/raw/x"} if kind == "folder" else {"object": name.upper()}
    return parse_feed(json.dumps({"name": name, "kind": kind, "source": source, **changes}))


def files_of(*sizes: int, at: datetime = NOON) -> tuple[DataFile, ...]:
    """Files of these sizes, of ten rows each, one an hour until ``at``."""
    times = [at - timedelta(hours=len(sizes) - 1 - number) for number in range(len(sizes))]
    return tuple(
        DataFile(f"{number}.parquet", 10, size, time - timedelta(hours=1), time)
        for number, (size, time) in enumerate(zip(sizes, times, strict=True))
    )


def commit_of(
    at: datetime, kind: str = "append", *, state: tuple[int, int, int] | None = None, **more: int
) -> PastCommit:
    """A commit; ``state`` are the files, small files and bytes after it."""
    plain = PastCommit(kind, at, 10, 1, 0)
    known = dict(zip(("files", "small_files", "size_bytes"), state, strict=True)) if state else {}
    return msgspec.structs.replace(plain, **known, **more)


def partition_of(
    feed: Feed,
    key: str,
    *sizes: int,
    history: tuple[PastCommit, ...] = (),
    commits: int | None = None,
    closed: bool = True,
) -> PlannedPartition:
    """A partition with files of these sizes."""
    files, rules = files_of(*sizes), rules_of(feed, CompactionRequest())
    outlook = outlook_of_plan(
        plan_compaction(files, rules, now=NOON, closed=closed), small_below_bytes=feed.small_file_bytes
    )
    history = history or tuple(commit_of(file.max_time) for file in files)
    return planned(feed, key, files, history, outlook, commits=len(history) if commits is None else commits)


def planned(
    feed: Feed,
    key: str,
    files: tuple[DataFile, ...],
    history: tuple[PastCommit, ...],
    outlook: Outlook,
    *,
    commits: int,
) -> PlannedPartition:
    """A partition with these files."""
    facts = PartitionFacts.of(key, files, small_below_bytes=feed.small_file_bytes, generation=commits)
    last_export = last_arrival(history, adopted=feed.kind is FeedKind.FOLDER)
    return PlannedPartition.from_facts(facts, outlook, last_export=last_export, history=history)


def statistics_of(feed: Feed | None = None, *partitions: PlannedPartition, **more: object) -> FeedStatistics:
    """A feed with these partitions."""
    return FeedStatistics(feed or feed_of(), partitions, **more)
