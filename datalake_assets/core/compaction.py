"""Which files of a partition are worth merging, and why the others are left alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from datalake_assets.config import Environment, Feed
from datalake_assets.core.files import DataFile

__all__ = [
    "CompactionGroup",
    "CompactionPlan",
    "CompactionRequest",
    "CompactionRules",
    "Estimate",
    "LeftAlone",
    "plan_compaction",
    "rules_of",
]


@dataclass(frozen=True, slots=True)
class CompactionRequest:
    """What one command or run asks for, over a feed's policy.

    Attributes:
        environment: Sets ``min_files`` where the policy doesn't.
        force: Merge whatever can be merged: no minimum of files or ages, no estimate.
        target_file_bytes: In place of the format's.
        max_files: In place of the policy's.
    """

    environment: Environment = Environment.DEVELOPMENT
    force: bool = False
    target_file_bytes: int | None = None
    max_files: int | None = None


@dataclass(frozen=True, slots=True)
class CompactionRules:
    """A feed's policy with everything resolved; see `CompactionPolicy`."""

    target_file_bytes: int
    small_file_bytes: int
    min_files: int
    max_files: int
    max_bytes: int
    fan_in: int
    split_above_bytes: int
    min_file_age: timedelta
    min_partition_age: timedelta
    force: bool = False


@dataclass(frozen=True, slots=True)
class CompactionGroup:
    """Files that become one file (or, of a file that is too large, several).

    Attributes:
        files: In time order.
        reason: Why, for a person.
    """

    files: tuple[DataFile, ...]
    reason: str

    @property
    def size_bytes(self) -> int:
        """Bytes of the inputs."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """A file that stays as it is, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a plan would save, and cost.

    Attributes:
        files_before: Files of the partition now.
        files_after: Files after the plan.
        bytes_rewritten: Bytes read and written anew.
        requests_saved: LIST and GET requests that one full scan of the partition saves.
        dollars_saved_per_month: At S3 list prices and the scans assumed.
        dollars_cost: Of the requests that the rewrite itself makes.
    """

    files_before: int
    files_after: int
    bytes_rewritten: int
    requests_saved: int
    dollars_saved_per_month: float
    dollars_cost: float


@dataclass(frozen=True, slots=True)
class CompactionPlan:
    """What to merge in one partition."""

    groups: tuple[CompactionGroup, ...]
    left_alone: tuple[LeftAlone, ...]
    estimate: Estimate


def rules_of(feed: Feed, request: CompactionRequest) -> CompactionRules:
    """The rules that a feed is compacted by."""
    raise NotImplementedError


def plan_compaction(
    files: Sequence[DataFile],
    rules: CompactionRules,
    *,
    now: datetime,
    closed: bool,
    last_commit: datetime | None = None,
    excluded: Mapping[str, str] | None = None,
) -> CompactionPlan:
    """Plans the compaction of one partition.

    Args:
        files: All its committed files.
        rules: See `rules_of`.
        now: The store's time.
        closed: No more rows are expected: it should end as as few files as its bytes allow.
        last_commit: When the partition last changed; None if unknown.
        excluded: Files that must stay, by name, with the reason: unreadable ones, others' schemas.
    """
    raise NotImplementedError
