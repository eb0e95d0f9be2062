"""What a compaction did, for whoever asked for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datalake_assets.core.compaction.plan import LeftAlone
from datalake_assets.core.facts import PartitionFacts, PlannedPartition
from datalake_assets.core.values import Value
from datalake_assets.core.wording import size_text

__all__ = ["CompactionProgress", "CompactionReport", "TaskFigures", "tasks_text", "way_text"]


def way_text(kernel: str, *, merged: int, encoded: int) -> str:
    """A kernel, and by what row groups were made anew, for a person.

    Args:
        kernel: As `CompactionReport` has it.
        merged: Row groups that the native kernel merged.
        encoded: Row groups of decoded rows.
    """
    by = " and ".join(["native"] * bool(merged) + ["arrow"] * bool(encoded))
    return f"{kernel} ({by})" if by else kernel


@dataclass(frozen=True, slots=True)
class TaskFigures:
    """What a task took, by the attempt whose result counts.

    Attributes:
        worker: Where it ran, as ``host/pid``; empty: in this process.
        wall_s: From its begin to its end.
        cpu_s: User and system time of the worker meanwhile; None where others work in the same process.
        peak_memory_bytes: Most that the worker has held so far; None likewise.
        waited_s: From when it was handed over to its begin, by the clocks of both machines.
    """

    worker: str = ""
    wall_s: float = 0.0
    cpu_s: float | None = None
    peak_memory_bytes: int | None = None
    waited_s: float = 0.0


class CompactionReport(Value, frozen=True):
    """What the compaction of one partition did.

    Attributes:
        key: Partition key.
        files_before: Files before.
        files_after: Files after.
        files_compacted: Of those before, files that were rewritten.
        files_removed: Files less than before.
        bytes_before: Their size before.
        bytes_after: Their size after.
        rows: Rows that were rewritten.
        kernel: ``concat``, ``reencode`` or ``mixed``; empty if nothing was done.
        compaction_time_ms: Wall time.
        small_files_remaining: Small files now.
        skipped: Files that were there before and were left alone, with the reason.
        partition: The partition now.
        health: How it is now by the feed's policy, whatever was asked for.
        failed: Of those left alone, files at which the merge failed for a reason that nobody foresaw.
        blocked: Of those left alone, files that were due and could not be merged.
        row_groups_merged: Row groups that the native kernel merged page by page.
        row_groups_encoded: Row groups of decoded rows.
        detours: Files that were decoded though the native kernel is there, with the reason.
        tasks: What each rewrite took that other processes did for this one.
    """

    key: str
    files_before: int
    files_after: int
    files_compacted: int
    files_removed: int
    bytes_before: int
    bytes_after: int
    rows: int
    kernel: str
    compaction_time_ms: int
    small_files_remaining: int
    skipped: tuple[LeftAlone, ...]
    partition: PartitionFacts
    health: PlannedPartition
    failed: tuple[LeftAlone, ...] = ()
    blocked: tuple[LeftAlone, ...] = ()
    row_groups_merged: int = 0
    row_groups_encoded: int = 0
    detours: tuple[LeftAlone, ...] = ()
    tasks: tuple[TaskFigures, ...] = ()

    @property
    def way(self) -> str:
        """The kernel, and whether rows were decoded, for a person."""
        return way_text(self.kernel, merged=self.row_groups_merged, encoded=self.row_groups_encoded)

    @property
    def text(self) -> str:
        """What changed, for a person."""
        return (
            f"files {self.files_before:,} -> {self.files_after:,},"
            f" {size_text(self.bytes_before)} -> {size_text(self.bytes_after)}, {self.rows:,} rows,"
            f" {self.way}, {self.compaction_time_ms / 1000:.1f} s{tasks_text(self.tasks)}"
        )

    @property
    def bytes_saved(self) -> int:
        """Bytes less than before; negative if the files grew."""
        return self.bytes_before - self.bytes_after


def tasks_text(tasks: Sequence[TaskFigures]) -> str:
    """What other processes did, for a person; begins with a comma, and is empty if they did nothing."""
    if not tasks:
        return ""
    workers = len({each.worker for each in tasks})
    cpu_s = sum(each.cpu_s or 0.0 for each in tasks)
    return f", {len(tasks)} task{'s' * (len(tasks) > 1)} on {workers} worker{'s' * (workers > 1)}, {cpu_s:.1f} CPU-s"


class CompactionProgress(Value, frozen=True):
    """How far a compaction is: input bytes done, of those planned."""

    bytes_done: int
    bytes_planned: int
