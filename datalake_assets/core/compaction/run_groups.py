"""How a backlog of partitions is cut into runs: which go together, in what order, and what a run will take.

A run on somebody's cluster costs a container that starts, so it should be worth minutes of work; and it holds what it
has not begun yet, so it should not be worth hours. Partitions are grouped by the bytes that their plans rewrite, and
the groups that save most for what they cost come first. Pure, like the plans.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from datalake_assets.core.compaction.cost import REWRITE_BYTES_PER_CPU_S

__all__ = [
    "MAX_PARTITIONS",
    "RunEstimate",
    "Wanted",
    "chosen_runs",
    "cut_into_runs",
    "estimated_run",
    "is_full",
    "run_bytes",
]

#: Partitions of one run, however small they are.
MAX_PARTITIONS = 100
#: Seconds that a run should not take longer than, where a feed's files are merged more slowly than others.
LONGEST_S = 900.0
#: Seconds of work of one core for which a run is given another core.
SECONDS_PER_CORE = 300.0
#: Cores that a run is given at the most; row groups are made on as many threads as memory and cores allow.
MOST_CORES = 4
#: What a run's process holds besides decoded rows (measured by `python -m datalake_assets_tests.fanout`).
BASE_MEMORY_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """A partition that a run should merge.

    Attributes:
        key: The partition.
        files: Digest of the files to merge.
        size_bytes: Of these files.
        benefit: What it saves in a month for what it costs once.
    """

    key: str
    files: str
    size_bytes: int = 0
    benefit: float = 0.0


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """What a run is expected to take.

    Attributes:
        size_bytes: Bytes of the files to merge.
        work_s: Seconds in which they are merged, without what a run costs anyway.
        cores: Cores that it should have.
        memory_bytes: Memory that its process should have.
    """

    size_bytes: int
    work_s: float
    cores: int
    memory_bytes: int


def cut_into_runs(wanted: Sequence[Wanted], *, max_bytes: int, most: int = MAX_PARTITIONS) -> list[tuple[Wanted, ...]]:
    """Groups of partitions, a run each; those that save most for what they cost first.

    Args:
        wanted: The partitions, in any order; none is there twice.
        max_bytes: Bytes of a group at the most; a partition that has more is a group by itself.
        most: Partitions of a group at the most.

    Returns:
        Every partition in one group. Groups follow from the partitions alone, whatever order they come in.
    """
    groups: list[list[Wanted]] = []
    filled = 0
    for each in sorted(wanted, key=lambda each: (-each.benefit, each.key)):
        if not groups or len(groups[-1]) >= most or filled + each.size_bytes > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(each)
        filled += each.size_bytes
    return [tuple(group) for group in groups]


def is_full(group: Sequence[Wanted], *, max_bytes: int, most: int) -> bool:
    """Whether a group has half of what it may have: a run that need not wait for more."""
    return len(group) >= most or 2 * sum(each.size_bytes for each in group) >= max_bytes


def chosen_runs(
    groups: Mapping[str, Sequence[tuple[Wanted, ...]]], *, busy: Collection[str], runs: int, partitions: int
) -> list[tuple[str, tuple[Wanted, ...]]]:
    """The groups to ask for now, as far as there is room.

    Feeds that no run is about are served first, one group each, so that no feed waits for the end of another's backlog;
    then whichever group saves most for what it costs.

    Args:
        groups: By feed, each feed's in its own order, which is kept; feeds in the order of their turn.
        busy: Feeds that runs are about already.
        runs: Runs that there is room for.
        partitions: Partitions that there is room for.
    """
    left = {feed: deque(each) for feed, each in groups.items() if each}
    waiting = deque(feed for feed in left if feed not in busy)
    chosen: list[tuple[str, tuple[Wanted, ...]]] = []
    while left and len(chosen) < runs:
        feed = waiting.popleft() if waiting else max(left, key=lambda feed: left[feed][0][0].benefit)
        group = left[feed].popleft()
        if not left[feed]:
            del left[feed]
        if len(group) > partitions:
            break
        partitions -= len(group)
        chosen.append((feed, group))
    return chosen


def run_bytes(most: int, pace: float) -> int:
    """Bytes of a run: ``most``, or what a feed merges in `LONGEST_S` if that is less.

    Args:
        most: What the installation or the feed says.
        pace: Bytes per second that the feed's runs have merged; 0 if nobody knows.
    """
    return min(most, max(1, round(pace * LONGEST_S))) if pace else most


def estimated_run(group: Sequence[Wanted], *, pace: float, memory_bytes: int) -> RunEstimate:
    """What a run of a group will take.

    Args:
        group: The partitions.
        pace: Bytes per second that the feed's runs have merged; 0 if nobody knows: then what one core decodes and
            encodes.
        memory_bytes: Of decoded rows that a compaction may hold.
    """
    size_bytes = sum(each.size_bytes for each in group)
    work_s = size_bytes / (pace or REWRITE_BYTES_PER_CPU_S)
    cores = min(MOST_CORES, max(1, ceil(size_bytes / REWRITE_BYTES_PER_CPU_S / SECONDS_PER_CORE)))
    return RunEstimate(size_bytes, work_s, cores, BASE_MEMORY_BYTES + memory_bytes)
