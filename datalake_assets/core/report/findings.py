"""What a lake's figures mean: is it fresh, which feeds need compaction, and what that saves.

Pure: `FeedStatistics` in, a `LakeReport` out. Every format of ``datalake report``, and the asset ``lake_report``, shows
this one model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from datalake_assets.core.compaction.cost import MonthlyCost, monthly_cost
from datalake_assets.core.facts import SIZE_BUCKETS, FailedCheck, PlannedPartition
from datalake_assets.core.report.figures import FeedStatistics
from datalake_assets.core.verdicts import FILE_SIZE, FRESHNESS, SMALL_FILES, FailedChecks
from datalake_assets.core.wording import counted, dollars_text, files_text, span_text
from datalake_assets.feed import Feed
from datalake_assets.policies import Level

__all__ = ["DAYS_PER_MONTH", "SCANS_PER_DAY", "Age", "FeedReport", "Finding", "LakeReport", "build_report"]

#: Assumed, where nobody says otherwise: each partition is read once a day.
SCANS_PER_DAY = 1.0
DAYS_PER_MONTH = 30
#: Partitions of which a finding says what a check found.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Age:
    """How old something of a feed is, and how old it may be.

    Attributes:
        what: ``export`` or ``row``: the newest one.
        at: When it was; None if nobody knows.
        age: How long ago that is by the store's clock; None if ``at`` is.
        warn: From here on it is late; None for no limit.
        fail: From here on that is an error; None for no limit.
    """

    what: str
    at: datetime | None
    age: timedelta | None
    warn: timedelta | None
    fail: timedelta | None

    @property
    def limit(self) -> timedelta | None:
        """The first limit; None without any."""
        return self.fail if self.warn is None else self.warn

    @property
    def level(self) -> Level:
        """What the limits say of the age; one that is not known is above all of them, as the check has it too."""
        for limit, level in ((self.fail, Level.ERROR), (self.warn, Level.WARN)):
            if limit is not None and (self.age is None or self.age > limit):
                return level
        return Level.OK

    @property
    def text(self) -> str:
        """``the newest row is 3 days old, the feed allows 24 h``."""
        line = f"the newest {self.what} is {'not known' if self.age is None else f'{span_text(self.age)} old'}"
        limit = self.fail if self.level is Level.ERROR else self.limit
        return line if limit is None else f"{line}, the feed allows {span_text(limit)}"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a person should know of a feed, in plain words."""

    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class FeedReport:
    """A feed, with what its figures mean.

    Attributes:
        statistics: The figures.
        ages: Of the newest export and the newest row.
        costs: What each partition costs per month, in the order of the partitions.
        costs_after: What each would cost per month after a compaction, in the same order.
        cost: What all of them cost per month.
        cost_after: What all of them would cost per month after a compaction.
        failed_checks: The checks that did not pass, as far as they hold now; None where nobody knows.
        findings: The verdict; never empty.
    """

    statistics: FeedStatistics
    ages: tuple[Age, ...]
    costs: tuple[MonthlyCost, ...]
    costs_after: tuple[MonthlyCost, ...]
    cost: MonthlyCost
    cost_after: MonthlyCost
    failed_checks: tuple[FailedCheck, ...] | None
    findings: tuple[Finding, ...]

    @property
    def feed(self) -> Feed:
        """The feed."""
        return self.statistics.feed

    @property
    def level(self) -> Level:
        """The worst of the findings."""
        order = (Level.OK, Level.WARN, Level.ERROR)
        return max((finding.level for finding in self.findings), key=order.index)

    @property
    def verdict(self) -> str:
        """All findings on one line."""
        return "; ".join(finding.text for finding in self.findings)

    @property
    def files_after(self) -> int:
        """Data files after a compaction."""
        return sum(partition.files_after for partition in self.statistics.partitions)

    @property
    def small_sizes(self) -> tuple[int, ...]:
        """Number of small files by size bucket, as `bucket_of` cuts them."""
        left, small = self.statistics.small_files, []
        for files in self.statistics.sizes:
            small.append(min(files, left))
            left -= small[-1]
        return tuple(small)

    def worst(self) -> list[PlannedPartition]:
        """The partitions with more small files than one, or to compact; those first that this makes the most of."""
        small = (each for each in self.statistics.partitions if each.small_files > 1 or each.files_to_rewrite)
        return sorted(small, key=lambda each: (each.files_after - each.files, -each.small_files, each.key))


@dataclass(frozen=True, slots=True)
class LakeReport:
    """A lake.

    Attributes:
        lake: Its address, fit for messages.
        at: When the figures were gathered, by the store's clock.
        scans_per_day: How often each partition is read, as costs assume.
        feeds: Its feeds.
    """

    lake: str
    at: datetime
    scans_per_day: float
    feeds: tuple[FeedReport, ...]

    @property
    def statistics(self) -> tuple[FeedStatistics, ...]:
        """The figures of the feeds."""
        return tuple(each.statistics for each in self.feeds)

    @property
    def partitions(self) -> int:
        """Partitions with data."""
        return sum(len(each.partitions) for each in self.statistics)

    @property
    def rows(self) -> int:
        """Rows."""
        return sum(each.rows for each in self.statistics)

    @property
    def files(self) -> int:
        """Data files."""
        return sum(each.files for each in self.statistics)

    @property
    def small_files(self) -> int:
        """The number of small files among them."""
        return sum(each.small_files for each in self.statistics)

    @property
    def files_after(self) -> int:
        """Data files after a compaction."""
        return sum(each.files_after for each in self.feeds)

    @property
    def size_bytes(self) -> int:
        """Size of the data files."""
        return sum(each.size_bytes for each in self.statistics)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Files by size."""
        return _by_bucket(each.statistics.sizes for each in self.feeds)

    @property
    def small_sizes(self) -> tuple[int, ...]:
        """Small files by size; what is small differs from feed to feed."""
        return _by_bucket(each.small_sizes for each in self.feeds)

    @property
    def quarantined(self) -> int:
        """Rows that could not be landed."""
        return sum(each.quarantined.total for each in self.statistics)

    @property
    def quarantine_is_exact(self) -> bool:
        """Whether all of them were counted."""
        return all(each.quarantined.is_exact for each in self.statistics)

    @property
    def cost(self) -> MonthlyCost:
        """What it costs per month."""
        return sum((each.cost for each in self.feeds), MonthlyCost())

    @property
    def cost_after(self) -> MonthlyCost:
        """What it would cost after a compaction."""
        return sum((each.cost_after for each in self.feeds), MonthlyCost())


def build_report(
    statistics: Sequence[FeedStatistics],
    *,
    lake: str,
    at: datetime,
    scans_per_day: float = SCANS_PER_DAY,
    failed_checks: Mapping[str, FailedChecks] | None = None,
) -> LakeReport:
    """Draws conclusions.

    Args:
        statistics: The figures of all feeds.
        lake: The lake's address.
        at: The store's time; ages are counted by it.
        scans_per_day: How often each partition is read.
        failed_checks: What did not pass when it was last evaluated, by the feed's name; None where there is no history.
    """
    scans = scans_per_day * DAYS_PER_MONTH
    feeds = [
        _feed_report(each, at, scans, None if failed_checks is None else failed_checks.get(each.feed.name, {}))
        for each in statistics
    ]
    return LakeReport(lake, at, scans_per_day, tuple(feeds))


def _feed_report(statistics: FeedStatistics, at: datetime, scans: float, evaluated: FailedChecks | None) -> FeedReport:
    partitions = statistics.partitions
    costs = tuple(monthly_cost(each.files, each.size_bytes, scans=scans) for each in partitions)
    after = tuple(
        monthly_cost(each.files_after, each.size_bytes, scans=scans, fewer=each.files - each.files_after)
        for each in partitions
    )
    ages = _ages(statistics, at)
    cost, cost_after = sum(costs, MonthlyCost()), sum(after, MonthlyCost())
    failed = None
    if evaluated is not None:
        failed = tuple(each for found in evaluated.values() for each in found if _is_of_now(each, statistics))
    findings = tuple(_findings(statistics, ages, cost.dollars - cost_after.dollars, failed or ()))
    return FeedReport(statistics, ages, costs, after, cost, cost_after, failed, findings)


def _is_of_now(failed: FailedCheck, statistics: FeedStatistics) -> bool:
    """Whether a check that failed is about something that is there now, and that the report does not judge itself."""
    if failed.check == FRESHNESS:
        return False
    partitions = statistics.partitions
    if statistics.current is not None:  # nobody reads the other versions of a table
        partitions = tuple(each for each in partitions if each.key == f"v{statistics.current.number}")
    about = [each for each in partitions if failed.partition in {"", each.key}]
    if failed.check in {FILE_SIZE, SMALL_FILES}:  # files may have been merged since
        return any(each.files_to_rewrite for each in about)
    return bool(about) or not failed.partition


def _ages(statistics: FeedStatistics, now: datetime) -> tuple[Age, ...]:
    policy, row = statistics.feed.freshness, statistics.newest_row
    export = max((at for at in (statistics.last_export, statistics.last_run) if at), default=None)
    return (
        Age("export", export, now - export if export else None, policy.max_commit_age, policy.fail_commit_age),
        Age("row", row, now - row if row else None, policy.max_event_age, policy.fail_event_age),
    )


def _findings(
    statistics: FeedStatistics, ages: Iterable[Age], saved: float, failed: Iterable[FailedCheck]
) -> Iterator[Finding]:
    """What is wrong first, and that all is well if nothing is."""
    found = [*_problems(statistics), *_failed(failed)]
    if statistics.partitions:  # there is nothing to be late of before the first export
        found += [Finding(each.level, each.text) for each in ages if each.level is not Level.OK]
    found += _compaction(statistics, saved)
    quarantined = statistics.quarantined
    if quarantined.total:
        at_least = "" if quarantined.is_exact else "at least "
        found.append(Finding(Level.WARN, f"{at_least}{counted(quarantined.total, 'row')} in quarantine"))
    yield from found
    if not any(each.level is not Level.OK for each in found):
        yield Finding(Level.OK, _all_well(statistics))


def _problems(statistics: FeedStatistics) -> Iterator[Finding]:
    if statistics.unreadable:
        yield Finding(Level.ERROR, f"cannot be read: {statistics.unreadable}")
    count = len(statistics.problems)
    if count:
        what = f"{counted(count, 'manifest')} cannot be read: run 'datalake verify {statistics.feed.name}'"
        yield Finding(Level.ERROR, what)


def _failed(checks: Iterable[FailedCheck]) -> Iterator[Finding]:
    """A finding for each check, errors first."""
    by_name: dict[str, list[FailedCheck]] = {}
    for each in sorted(checks, key=lambda each: (each.level != Level.ERROR, each.check, each.partition)):
        by_name.setdefault(each.check, []).append(each)
    for name, failed in by_name.items():
        level = Level(failed[0].level)
        what = "; ".join(dict.fromkeys(each.what for each in failed[:_NAMED] if each.what))
        more = f"; and {len(failed) - _NAMED:,} more partitions" if len(failed) > _NAMED else ""
        verb = "failed" if level is Level.ERROR else "warns"
        yield Finding(level, f"check {name} {verb}{f': {what}' if what else ''}{more}")


def _compaction(statistics: FeedStatistics, saved: float) -> Iterator[Finding]:
    todo = [each for each in statistics.partitions if each.files_to_rewrite]
    if not todo:
        return
    small = sum(each.small_files for each in todo if each.files_to_rewrite > each.files_to_split)
    large = sum(each.files_to_split for each in todo)
    files = " and ".join([files_text(small, "small ")] * (small > 0) + [files_text(large, "large ")] * (large > 0))
    files = files or files_text(sum(each.files_to_rewrite for each in todo))
    saves = f", saves {dollars_text(saved)} a month" if saved > 0 else ""
    where = f"in {counted(len(todo), 'partition')}"
    off = "" if statistics.feed.compaction.enabled else "; it is switched off for this feed"
    yield Finding(Level.WARN, f"needs compaction: {files} {where}{saves}{off}")


def _all_well(statistics: FeedStatistics) -> str:
    if not statistics.partitions:
        return "no data yet"
    small = statistics.small_files
    if not small:
        return "healthy: no small files"
    return f"healthy: {files_text(small, 'small ')}, nothing to merge"


def _by_bucket(listed: Iterable[Sequence[int]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*listed, strict=True))) or (0,) * SIZE_BUCKETS
