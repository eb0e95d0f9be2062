"""When to compact a partition that grows: what is rewritten, and how many files readers find meanwhile.

A simulation of one partition that gets a file of 100 KiB a minute for a day, 140.6 MiB, with the defaults of a feed
(128 MiB target). Write amplification is bytes rewritten by bytes landed, not counting that they were landed once; live
files are counted after each minute. A merge is one file of the sum of its inputs. Whole-partition policies merge, on
their trigger, all files below 75 % of the target, as Iceberg and Glue do. The tiered rows and all that happens when the
partition closes are decided by the product's planner.

The tiered rows take ``min_files`` equal to ``fan_in``, unless they say ``from 20``, which is production's default: it
rewrites less and leaves a few files more.

An earlier, independent simulation found 40.8x, 7.5x and 8.7x for the first three rows, 4.6x, 2.7x and 1.9x for the
tiers, and the same mean files for all. The tiers are better here because the planner cascades: a merge that would fill
the next tier is planned together with that, and its bytes are written once. Without it k=8 rewrites 1 + 0.98 + 0.71 =
2.69 times. That every 10 minutes and from 50 files come out 2 % and 5 % higher is unexplained; the product decides
neither.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import msgspec

from benchmarks.measuring import Target, print_targets
from datalake_assets.core.compaction.plan import CompactionRules, plan_compaction
from datalake_assets.core.files import DataFile

__all__ = ["Outcome", "main", "simulate"]

MINUTES = 24 * 60
FILE_BYTES = 100 * 1024
MIB = 1024 * 1024
RULES = CompactionRules(
    target_file_bytes=128 * MIB,
    small_file_bytes=64 * MIB,
    min_files=8,
    max_files=10_000,
    max_bytes=64 * 1024 * MIB,
    fan_in=8,
    split_above_bytes=0,
    min_file_age=timedelta(0),
    min_partition_age=timedelta(0),
)
BEGIN = datetime(2025, 1, 15, tzinfo=UTC)
#: What the earlier simulation found.
EXPECTED = {"tiered, k=8": (2.7, 11), "hourly": (7.5, 31)}

#: Files, and minutes since the partition began: the groups of files to merge now.
Policy = Callable[[list[DataFile], int], list[list[DataFile]]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a policy did.

    Attributes:
        write_amplification: Bytes rewritten by bytes landed.
        mean_files: Files that a reader finds, averaged over the minutes.
        most_files: At the worst minute.
        last_files: Once the partition is closed.
        merges: How many commits.
    """

    write_amplification: float
    mean_files: float
    most_files: int
    last_files: int
    merges: int


def every(minutes: int) -> Policy:
    """All small files, every so often."""
    return lambda files, minute: [] if minute % minutes else _all_below_three_quarters(files)


def from_files(count: int) -> Policy:
    """All small files, once there are so many."""

    def policy(files: list[DataFile], _minute: int) -> list[list[DataFile]]:
        groups = _all_below_three_quarters(files)
        return groups if sum(map(len, groups)) >= count else []

    return policy


def tiered(fan_in: int, *, min_files: int | None = None) -> Policy:
    """What the product plans for an open partition, each minute."""
    rules = replace(RULES, fan_in=fan_in, min_files=min_files or fan_in)

    def policy(files: list[DataFile], minute: int) -> list[list[DataFile]]:
        now = BEGIN + timedelta(minutes=minute)
        return [list(group.files) for group in plan_compaction(files, rules, now=now, closed=False).groups]

    return policy


def never(_files: list[DataFile], _minute: int) -> list[list[DataFile]]:
    """Nothing, while the partition is open."""
    return []


def _all_below_three_quarters(files: list[DataFile]) -> list[list[DataFile]]:
    small = [file for file in files if file.size_bytes < 0.75 * RULES.target_file_bytes]
    return [small] if len(small) > 1 else []


def simulate(policy: Policy, *, at_close: bool = False) -> Outcome:
    """Lets a partition grow for a day under a policy, and compacts it at the end if so wished."""
    files: list[DataFile] = []
    counts: list[int] = []
    rewritten = merges = 0
    for minute in range(1, MINUTES + 1):
        begin = BEGIN + timedelta(minutes=minute - 1)
        files.append(DataFile(f"{minute:05}", 1, FILE_BYTES, begin, begin + timedelta(minutes=1)))
        groups = policy(files, minute)
        files, rewritten, merges = _merged(files, groups), rewritten + _bytes(groups), merges + len(groups)
        counts.append(len(files))
    if at_close:
        plan = plan_compaction(files, RULES, now=BEGIN + timedelta(days=1), closed=True)
        groups = [list(group.files) for group in plan.groups]
        files, rewritten, merges = _merged(files, groups), rewritten + _bytes(groups), merges + len(groups)
    landed = MINUTES * FILE_BYTES
    return Outcome(rewritten / landed, sum(counts) / MINUTES, max(counts), len(files), merges)


def _bytes(groups: list[list[DataFile]]) -> int:
    return sum(file.size_bytes for group in groups for file in group)


def _merged(files: list[DataFile], groups: list[list[DataFile]]) -> list[DataFile]:
    gone = {file.name for group in groups for file in group}
    merged = [msgspec.structs.replace(group[0], rows=len(group), size_bytes=_bytes([group])) for group in groups]
    return sorted([file for file in files if file.name not in gone] + merged, key=lambda file: file.name)


def main(arguments: Sequence[str]) -> None:
    """Prints all policies, and how far two of them are from what was expected."""
    argparse.ArgumentParser(prog="python -m benchmarks policies", description=__doc__).parse_args(arguments)
    outcomes = {
        "every 10 minutes": simulate(every(10)),
        "hourly": simulate(every(60)),
        "from 50 files": simulate(from_files(50)),
        "tiered, k=4": simulate(tiered(4)),
        "tiered, k=8": simulate(tiered(8)),
        "tiered, k=16": simulate(tiered(16)),
        "tiered, k=8, from 20": simulate(tiered(8, min_files=20)),
        "at close": simulate(never, at_close=True),
        "tiered, k=8 + close": simulate(tiered(8), at_close=True),
        "same, from 20": simulate(tiered(8, min_files=20), at_close=True),
    }
    print(f"{'':22}{'rewritten':>10}{'mean files':>12}{'most':>6}{'at last':>9}{'merges':>8}")
    for name, each in outcomes.items():
        files = f"{each.mean_files:12.1f}{each.most_files:6}{each.last_files:9}"
        print(f"{name:22}{each.write_amplification:9.2f}x{files}{each.merges:8}")
    print_targets([_target(name, outcomes[name], *expected) for name, expected in EXPECTED.items()])


def _target(name: str, outcome: Outcome, amplification: float, files: int) -> Target:
    near = abs(outcome.write_amplification / amplification - 1) < 0.1 and abs(outcome.mean_files / files - 1) < 0.1
    seen = f"{outcome.write_amplification:.1f}x, {outcome.mean_files:.0f} files"
    return Target(name, f"about {amplification:g}x, {files} files", seen, near)
