"""``datalake compact --dry-run``: what a compaction would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from datalake_assets.cli.compacting import left_alone_lines, left_alone_records, warn_of_unusable
from datalake_assets.cli.session import Session
from datalake_assets.cli.show import one_line, print_json, say, warn
from datalake_assets.config import Feed
from datalake_assets.core.compaction import CompactionPlan, CompactionRequest, Estimate
from datalake_assets.core.compaction_wording import size_text
from datalake_assets.errors import DatalakeError
from datalake_assets.lake.tables import open_table

__all__ = ["plan_document", "plan_lines", "show_plans"]

#: Groups of a partition that are shown unless asked for more.
_GROUPS_SHOWN = 10
#: Files left alone that are named one by one.
_FILES_SHOWN = 10
_CENT = 0.01
#: Nobody decides by less.
_LEAST_DOLLARS = 0.0001

Plans = Sequence[tuple[str, CompactionPlan]]


def show_plans(
    session: Session, feed: Feed, keys: Sequence[str], request: CompactionRequest, *, as_json: bool, verbose: bool
) -> bool:
    """Plans partitions and prints the plans; changes nothing.

    Returns:
        Whether every partition could be planned.
    """
    table = open_table(session.store, feed)
    plans: list[tuple[str, CompactionPlan]] = []
    failed = False
    for key in keys:
        try:
            plan = table.compaction_plan(key, request)
        except DatalakeError as error:
            failed = True
            warn(f"Error: {feed.path} {key}: {error}")
            continue
        plans.append((key, plan))
        warn_of_unusable(feed, key, plan.left_alone)
    if as_json:
        print_json(plan_document(feed, plans))
    elif plans or not failed:
        for line in plan_lines(feed, plans, verbose=verbose):
            say(line)
    return not failed


def plan_document(feed: Feed, plans: Plans) -> dict[str, Any]:
    """What ``--dry-run --json`` prints."""
    return {
        "feed": feed.name,
        "partitions": [
            {
                "partition": key,
                "groups": [
                    {
                        "files": [file.name for file in group.files],
                        "size_bytes": group.size_bytes,
                        # nobody knows before the rewrite what it saves: the plan counts on nothing
                        "predicted_output_bytes": group.size_bytes,
                        "reason": group.reason,
                    }
                    for group in plan.groups
                ],
                "left_alone": left_alone_records(plan.left_alone),
                "estimate": asdict(plan.estimate),
            }
            for key, plan in plans
        ],
        "estimate": asdict(total_estimate(plans)),
    }


def plan_lines(feed: Feed, plans: Plans, *, verbose: bool) -> list[str]:
    """What ``--dry-run`` prints: a paragraph per partition that would change, a total, and what stays."""
    changing = [(key, plan) for key, plan in plans if plan.groups]
    left = [(key, one) for key, plan in plans for one in plan.left_alone]
    number = f"{len(plans):,} partition{'' if len(plans) == 1 else 's'}"
    lines = [line for key, plan in changing for line in _partition_lines(feed, key, plan, verbose=verbose)]
    if changing:
        lines.append(f"{feed.path}: {len(changing):,} of {number} to compact, {_saving(total_estimate(changing))}")
    else:
        lines.append(f"{feed.path}: nothing to compact in {number}")
    return [*lines, *left_alone_lines(left, each=verbose or len(left) <= _FILES_SHOWN)]


def total_estimate(plans: Plans) -> Estimate:
    """The estimates of all partitions together."""
    names = [field.name for field in fields(Estimate)]
    return Estimate(**{name: sum(getattr(plan.estimate, name) for _, plan in plans) for name in names})


def _partition_lines(feed: Feed, key: str, plan: CompactionPlan, *, verbose: bool) -> list[str]:
    lines = [one_line(f"{feed.path} {key}: {_saving(plan.estimate)}")]
    shown = plan.groups if verbose else plan.groups[:_GROUPS_SHOWN]
    for group in shown:
        files = "1 file" if len(group.files) == 1 else f"{len(group.files):,} files"
        lines.append("  " + one_line(f"{files}, {size_text(group.size_bytes)}: {group.reason}"))
    if len(plan.groups) > len(shown):
        lines.append(f"  and {len(plan.groups) - len(shown):,} more groups, see -v")
    return lines


def _saving(estimate: Estimate) -> str:
    return (
        f"files {estimate.files_before:,} -> {estimate.files_after:,},"
        f" {size_text(estimate.bytes_rewritten)} to rewrite for {_dollars(estimate.dollars_cost)};"
        f" saves {estimate.requests_saved:,} requests per scan, {_dollars(estimate.dollars_saved_per_month)} a month"
    )


def _dollars(amount: float) -> str:
    """Digits that say something: ``$12.34``, ``$0.0051``."""
    if amount >= _CENT or amount <= 0:
        return f"${amount:,.2f}"
    return f"${amount:.2g}" if amount >= _LEAST_DOLLARS else f"less than ${_LEAST_DOLLARS}"
