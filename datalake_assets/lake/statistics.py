"""What a lake amounts to, gathered from its manifests: the figures behind ``datalake report``.

Ten thousand manifests are read in a second or two, so this takes a short cut past `PartitionLog`: the keys come from
one listing per feed, of each manifest only what matters is decoded, and it is planned only where sums do not tell what
compaction would do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import datetime
from typing import Any, TypeVar

from datalake_assets.core.compaction.plan import (
    CompactionRequest,
    outlook_of_facts,
    outlook_of_plan,
    plan_compaction,
    rules_of,
)
from datalake_assets.core.facts import Outlook, PartitionFacts, PlannedPartition
from datalake_assets.core.manifest import Holdings
from datalake_assets.core.partitions import UNKNOWN_PARTITION, key_of, partition_by, partition_key
from datalake_assets.core.quarantined_row import QuarantinedRow
from datalake_assets.core.report.figures import (
    FeedStatistics,
    Quarantined,
    last_arrival,
)
from datalake_assets.errors import CorruptLake, ObjectNotFound
from datalake_assets.feed import Feed, FeedKind
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.base import ObjectInfo, Store
from datalake_assets.lake.summary import Summary

__all__ = ["QUARANTINE_BYTES", "FeedStatistics", "lake_statistics", "rebuild_summaries"]

#: Requests under way at once, where the lake is at the other end of a wire.
THREADS = 16
#: Bytes of a feed's quarantine that are read to count rows; of what lies beyond, nothing is known but its size.
QUARANTINE_BYTES = 8 << 20


_T = TypeVar("_T")
_R = TypeVar("_R")


def lake_statistics(
    store: Store, feeds: Sequence[Feed], request: CompactionRequest | None = None
) -> tuple[FeedStatistics, ...]:
    """What each feed amounts to.

    Takes two listings and two requests per feed, one request per partition, and up to `QUARANTINE_BYTES` of its
    quarantine.

    Args:
        store: The lake.
        feeds: The feeds.
        request: The installation's compaction, for what it would do; default: that of a development environment.

    Raises:
        LakeError: The lake cannot be read. A manifest that is damaged is told in ``problems`` instead.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        threads = pool if "://" in store.uri else None  # local files are not read any faster by threads
        return tuple(_Gathering(store, feed, request or CompactionRequest(), threads).statistics() for feed in feeds)


def rebuild_summaries(store: Store, statistics: Sequence[FeedStatistics]) -> tuple[FeedStatistics, ...]:
    """Writes every feed's ``_metadata.json`` anew; not those of feeds with manifests that cannot be read.

    Returns:
        The feeds that were left out.
    """
    for each in statistics:
        if not each.problems:
            at = each.last_run or each.last_export or store.now()
            Summary(store, each.feed).rebuild(each.partitions, at=at)
    return tuple(each for each in statistics if each.problems)


class _Gathering:
    """Gathers the figures of one feed."""

    def __init__(self, store: Store, feed: Feed, request: CompactionRequest, threads: Executor | None) -> None:
        self._folder, self._threads = FeedFolder(store, feed), threads
        self._store, self._feed, self._by = store, feed, partition_by(feed)
        self._rules, self._now = rules_of(feed, request), store.now()
        # keys sort as their windows do, so one comparison of texts tells whether a partition is closed
        self._first_open = key_of(self._now - feed.lateness, self._by) if self._by else None

    def statistics(self) -> FeedStatistics:
        """All of them."""
        state = self._folder.state.load() if self._feed.kind is FeedKind.TABLE else None
        found = list(self._map(self._partition, self._manifests()))
        partitions = [each for each in found if isinstance(each, PlannedPartition)]
        kept = None if state is None else set(state.keys)
        return FeedStatistics(
            feed=self._feed,
            partitions=tuple(each for each in partitions if each.files and (kept is None or each.key in kept)),
            emptied=tuple(each for each in partitions if not each.files),
            versions=state.versions if state else (),
            current=state.current if state else None,
            quarantined=self._quarantined(),
            last_run=_last_run(self._store, self._feed),
            problems=tuple(each for each in found if isinstance(each, str)),
        )

    def _map(self, function: Callable[[_T], _R], items: Iterable[_T]) -> Iterable[_R]:
        return map(function, items) if self._threads is None else self._threads.map(function, items)

    def _manifests(self) -> list[tuple[str, str]]:
        """Partition key and object of every manifest, in time or version order."""
        root, end = f"{self._folder.control}/", "/manifest.json"
        found = []
        for info in self._store.list(self._folder.control):
            if info.key.endswith(end):
                path = info.key[len(root) : -len(end)] if len(info.key) > len(root) + len(end) else ""
                key = partition_key(self._feed, path)
                if key is not None:
                    found.append((key, info.key))
        is_adopted = self._folder.is_adopted
        return sorted(found, key=lambda pair: (0 if is_adopted else len(pair[0]), pair[0]))

    def _partition(self, named: tuple[str, str]) -> PlannedPartition | str | None:
        """The figures; what is wrong with the manifest; or None if there is none, or nothing in it."""
        key, name = named
        try:
            holdings = Holdings.from_bytes(self._store.get(name)[0], where=name)
        except ObjectNotFound:
            return None
        except CorruptLake as error:
            return f"{key}: {error.reason}"
        if not holdings.generation:
            return None
        facts = PartitionFacts.of(
            key, holdings.files, small_below_bytes=self._feed.small_file_bytes, generation=holdings.generation
        )
        return PlannedPartition.from_facts(
            facts,
            self._outlook(holdings, facts),
            last_export=last_arrival(holdings.history, adopted=self._feed.is_adopted),
            history=holdings.history,
        )

    def _outlook(self, holdings: Holdings, facts: PartitionFacts) -> Outlook:
        left_out = {file.name: file.left_out for file in holdings.files if file.left_out}
        closed = self._first_open is None or facts.key < self._first_open
        last = holdings.history[-1].at if holdings.history else None
        known = outlook_of_facts(
            facts, self._rules, now=self._now, closed=closed, last_commit=last, all_usable=not left_out
        )
        if known is not None:
            return known
        plan = plan_compaction(
            holdings.files, self._rules, now=self._now, closed=closed, last_commit=last, excluded=left_out
        )
        return outlook_of_plan(plan, small_below_bytes=self._feed.small_file_bytes)

    def _quarantined(self) -> Quarantined:
        listed = sorted(self._store.list(self._folder.quarantine), key=lambda info: info.key)
        taken = list(_within(listed, QUARANTINE_BYTES))
        found: dict[str, set[str]] = {}
        for info, body in zip(taken, self._map(self._body, taken), strict=True):
            rows = (QuarantinedRow.from_line(line).identity for line in body.split(b"\n") if line)
            found.setdefault(self._quarantine_key(info.key), set()).update(rows)
        return Quarantined(
            objects=len(listed),
            size_bytes=sum(info.size_bytes for info in listed),
            rows={key: len(distinct) for key, distinct in sorted(found.items())},
            is_exact=len(taken) == len(listed),
        )

    def _body(self, info: ObjectInfo) -> bytes:
        try:
            return self._store.get(info.key)[0]
        except ObjectNotFound:  # somebody has just cleaned up
            return b""

    def _quarantine_key(self, name: str) -> str:
        path = name.removeprefix(f"{self._folder.quarantine}/").rpartition("/")[0]
        return (None if path == UNKNOWN_PARTITION else partition_key(self._feed, path)) or UNKNOWN_PARTITION


def _within(listed: Iterable[ObjectInfo], budget_bytes: int) -> Iterator[ObjectInfo]:
    for info in listed:
        budget_bytes -= info.size_bytes
        if budget_bytes < 0:
            return
        yield info


def _last_run(store: Store, feed: Feed) -> datetime | None:
    """What the summary says; it is never the truth, so whatever is wrong with it is no error here."""
    if feed.is_adopted:  # nothing is exported to it: what its summary says is when that was made
        return None
    try:
        document: Mapping[str, Any] = json.loads(store.get(Summary(store, feed).key)[0])
        at = datetime.fromisoformat(document["last_export"])
    except (ObjectNotFound, ValueError, KeyError, TypeError):
        return None
    return at if at.tzinfo else None
