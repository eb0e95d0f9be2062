"""When a partition that has nothing to merge now is worth another look, though nobody writes to it meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from datalake_assets.core.compaction import CompactionRules
from datalake_assets.core.files import DataFile, written_at

__all__ = ["again_at"]


def again_at(
    files: Sequence[DataFile],
    rules: CompactionRules,
    *,
    now: datetime,
    closes_at: datetime | None,
    last_commit: datetime | None,
) -> datetime | None:
    """The first time at which the passing of time alone may make another plan of the same files.

    Args:
        files: The files of the partition that can be read.
        rules: What they are merged by.
        now: The store's time.
        closes_at: When the partition closes; None if it never does, or always was.
        last_commit: When it last changed; None if unknown.

    Returns:
        None if nothing will change: fewer than two files could be merged, or none of them is too young or waits for the
        partition to close. Of several files that are too young the time of the youngest, so that one look does.
    """
    mergeable = [file for file in files if file.size_bytes <= rules.target_file_bytes]
    if len(mergeable) < 2:  # noqa: PLR2004  one file is no merge
        return None
    times = [] if closes_at is None else [closes_at]
    if last_commit is not None:
        times.append(last_commit + rules.min_partition_age)
    ages = [written + rules.min_file_age for file in mergeable if (written := written_at(file)) is not None]
    times += [max(ages)] if ages else []
    return min((time for time in times if time > now), default=None)
