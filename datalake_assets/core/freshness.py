"""Whether a feed is as fresh as it should be, by its newest export and its newest row."""

from __future__ import annotations

from datetime import datetime, timedelta

from datalake_assets.core.health import Verdict, worst
from datalake_assets.core.partitions import PartitionBy, TimeWindow, key_of, keys_in, window_of
from datalake_assets.policies import Freshness, Level

__all__ = ["counts_as_fresh", "fresh_partitions", "freshness_verdict"]

#: Partitions in which the newest export is looked for at the most.
MAX_PARTITIONS = 100


def freshness_verdict(policy: Freshness, *, commit: datetime | None, event: datetime | None, now: datetime) -> Verdict:
    """Compares ages with a policy; without one the ages are reported and nothing is wrong.

    Args:
        policy: What the feed allows.
        commit: Its newest export; None if there was none.
        event: Its newest row; None without one, or without a time column.
        now: The time.
    """
    figures: dict[str, float] = {}
    lines, levels = [], []
    for name, at, warn, fail in (
        ("commit", commit, policy.max_commit_age, policy.fail_commit_age),
        ("event", event, policy.max_event_age, policy.fail_event_age),
    ):
        age = None if at is None else now - at
        if age is not None:
            figures[f"{name}_age_hours"] = _hours(age)
        for limit, level, prefix in ((warn, Level.WARN, "max"), (fail, Level.ERROR, "fail")):
            if limit is not None:
                figures[f"{prefix}_{name}_age_hours"] = _hours(limit)
                if age is None or age > limit:
                    levels.append(level)
        exceeded = [limit for limit in (fail, warn) if limit is not None and (age is None or age > limit)]
        if exceeded:
            lines.append(f"the newest {name} is {_readable(age)} old, the feed allows {_readable(exceeded[0])}")
    return Verdict(worst(levels), figures, tuple(lines))


def counts_as_fresh(by: PartitionBy, key: str, *, at: datetime) -> bool:
    """Whether an export of a partition at some time makes the feed fresh: if it was the current or the last one then.

    Filling in old partitions says nothing about today's rows.
    """
    current = window_of(key_of(at, by), by)
    return key in {key_of(current.start, by), key_of(current.start - timedelta(seconds=1), by)}


def fresh_partitions(by: PartitionBy, policy: Freshness, *, now: datetime) -> tuple[str, ...]:
    """Keys of the partitions in which an export can be that is fresh enough, newest last."""
    limits = [limit for limit in (policy.max_commit_age, policy.fail_commit_age) if limit is not None]
    earliest = window_of(key_of(now - max(limits, default=timedelta(0)), by), by)
    before = window_of(key_of(earliest.start - timedelta(seconds=1), by), by)
    window = TimeWindow(before.start, window_of(key_of(now, by), by).end)
    return tuple(keys_in(window, by))[-MAX_PARTITIONS:]


def _hours(age: timedelta) -> float:
    return round(age / timedelta(hours=1), 3)


def _readable(age: timedelta | None) -> str:
    return "infinitely" if age is None else str(timedelta(seconds=round(age.total_seconds())))
