"""The figures of a feed by its manifests, read fast enough for a report of the whole lake.

Ten thousand manifests are read in a second or two, so this takes a short cut past `PartitionLog`: the keys come from
one listing, of each manifest only what matters is decoded, and a plan is made only where sums do not settle what
compaction would do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import TypeVar

from datalake_assets.core.compaction.plan import (
    CompactionRequest,
    outlook_of_facts,
    outlook_of_plan,
    plan_compaction,
    rules_of,
)
from datalake_assets.core.facts import Outlook, PartitionFacts, PlannedPartition
from datalake_assets.core.manifest import Holdings
from datalake_assets.core.partitions import key_of, partition_by, partition_key
from datalake_assets.core.report.figures import FeedStatistics, last_arrival
from datalake_assets.errors import CorruptLake, ObjectNotFound
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.layout import FeedFolder

__all__ = ["manifest_figures"]

_T = TypeVar("_T")
_R = TypeVar("_R")


def manifest_figures(folder: FeedFolder, request: CompactionRequest, threads: Executor | None) -> FeedStatistics:
    """The figures of a feed, but for its quarantine, from its manifests alone."""
    return _Gathering(folder, request, threads).statistics()


class _Gathering:
    """Gathers the figures of one feed."""

    def __init__(self, folder: FeedFolder, request: CompactionRequest, threads: Executor | None) -> None:
        self._folder, self._threads = folder, threads
        self._store, self._feed, self._by = folder.store, folder.feed, partition_by(folder.feed)
        self._rules, self._now = rules_of(self._feed, request), self._store.now()
        # keys sort as their windows do, so one comparison of texts tells whether a partition is closed
        self._first_open = key_of(self._now - self._feed.lateness, self._by) if self._by else None

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
            # nothing is exported to an adopted folder: what its summary says is when that was made
            last_run=None if self._feed.is_adopted else self._folder.summary.last_export(),
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
        kept = {file.name: file.kept_as_is for file in holdings.files if file.kept_as_is}
        closed = self._first_open is None or facts.key < self._first_open
        last = holdings.history[-1].at if holdings.history else None
        known = outlook_of_facts(
            facts, self._rules, now=self._now, closed=closed, last_commit=last, all_usable=not kept
        )
        if known is not None:
            return known
        plan = plan_compaction(
            holdings.files, self._rules, now=self._now, closed=closed, last_commit=last, excluded=kept
        )
        return outlook_of_plan(plan, small_below_bytes=self._feed.small_file_bytes)
