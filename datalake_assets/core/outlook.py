"""What a compaction would do with a partition, in figures: from sums where these settle it, else from a plan.

A plan names files and gives reasons, and so takes a hundred times as long as what a report wants of it. Of most
partitions sums tell the same; tests hold `outlook_of_sums` to what `plan_compaction` says.
"""

from __future__ import annotations

from datetime import datetime

from datalake_assets.core.compaction import CompactionPlan, CompactionRules
from datalake_assets.core.compaction_estimate import Rewrite, is_worth_it
from datalake_assets.core.figures import FileSums, Outlook

__all__ = ["outlook_of_plan", "outlook_of_sums"]


def outlook_of_plan(plan: CompactionPlan) -> Outlook:
    """What a plan amounts to."""
    return Outlook(
        files_after=plan.estimate.files_after,
        files_to_rewrite=sum(len(group.files) for group in plan.groups),
        files_to_split=sum(len(group.files) == 1 for group in plan.groups),
        bytes_to_rewrite=plan.estimate.bytes_rewritten,
    )


def outlook_of_sums(
    sums: FileSums,
    rules: CompactionRules,
    *,
    now: datetime,
    closed: bool,
    last_commit: datetime | None = None,
    all_usable: bool = True,
) -> Outlook | None:
    """What a plan of these files would amount to; None where only `plan_compaction` can tell.

    Args:
        sums: Of the partition's files; its small files are at least those of ``rules``.
        rules: As for `plan_compaction`.
        now: Likewise.
        closed: Likewise.
        last_commit: Likewise.
        all_usable: Whether none of the files must stay as it is.
    """
    as_few = closed or rules.force
    if not sums.files or (last_commit is not None and rules.must_wait(last_commit, now=now)):
        return Outlook(sums.files)
    if sums.largest_bytes > rules.target_file_bytes:
        return None
    fit_nowhere = sums.size_bytes > (sums.files - 1) * rules.target_file_bytes  # one file less could not hold the bytes
    if fit_nowhere or (not as_few and sums.small_files < rules.min_files):
        return Outlook(sums.files)
    if as_few and all_usable and _becomes_one_file(sums, rules):
        return Outlook(1, files_to_rewrite=sums.files, bytes_to_rewrite=sums.size_bytes)
    return None


def _becomes_one_file(sums: FileSums, rules: CompactionRules) -> bool:
    """Of files that are all taken, in a partition that should have as few as its bytes allow."""
    return (
        sums.size_bytes <= rules.target_file_bytes
        and 1 < sums.files <= rules.max_files
        and sums.size_bytes <= rules.max_bytes
        and (rules.force or not rules.min_file_age)
        and (rules.force or is_worth_it(Rewrite(sums.files, 1, sums.size_bytes)))
    )
