"""Partitions of files that nobody wrote, and what is planned of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from datalake_assets.core.compaction.plan import CompactionPlan, CompactionRules, plan_compaction
from datalake_assets.core.files import DataFile

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
DAY = datetime(2025, 1, 15, tzinfo=UTC)
NOW = DAY + timedelta(days=2)
#: The defaults in production.
PRODUCTION = CompactionRules(
    target_file_bytes=128 * MIB,
    small_file_bytes=64 * MIB,
    min_files=20,
    max_files=10_000,
    max_bytes=64 * GIB,
    fan_in=8,
    split_above_bytes=256 * MIB,
    min_file_age=timedelta(0),
    min_partition_age=timedelta(0),
)
DEVELOPMENT = replace(PRODUCTION, min_files=3)


def file_of(number: int, size_bytes: int, **rest: object) -> DataFile:
    """The file whose rows are those of one minute."""
    begin = DAY + timedelta(minutes=number)
    return DataFile(f"f{number:05}", 10, size_bytes, begin, begin + timedelta(minutes=1), **rest)


def files_of(*sizes: int) -> list[DataFile]:
    return [file_of(number, size) for number, size in enumerate(sizes)]


def plan_of(files, rules=PRODUCTION, *, closed=False, now=NOW, **rest) -> CompactionPlan:
    return plan_compaction(files, rules, now=now, closed=closed, **rest)


def grouped(plan: CompactionPlan) -> list[list[str]]:
    return [[file.name for file in group.files] for group in plan.groups]


def sizes_grouped(plan: CompactionPlan) -> list[list[int]]:
    return [[file.size_bytes // MIB for file in group.files] for group in plan.groups]


def reasons(plan: CompactionPlan) -> set[str]:
    return {left.reason for left in plan.left_alone}
