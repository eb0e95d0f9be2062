"""What the checks say of a feed's partitions, and why: file sizes, small files, schema, quarantine, freshness, rows.

Pure: figures in, verdicts out. A partition is judged by its own compaction policy: small files that nothing can be
done about (a lone one, say) are counted and not held against it. Row counts compare what manifests promise, what files
hold, and what the source delivered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from datalake_assets.core.compaction.plan import CompactionPlan, CompactionRules, outlook_of_plan
from datalake_assets.core.facts import FailedCheck, PartitionFacts, PlannedPartition
from datalake_assets.core.files import DataFile
from datalake_assets.core.partitions import PartitionBy, TimeWindow, key_of, keys_in, window_of
from datalake_assets.core.values import Value
from datalake_assets.core.wording import files_text, size_text
from datalake_assets.errors import SchemaChanged
from datalake_assets.policies import Checks, Freshness, Level, Limits

if TYPE_CHECKING:
    from datalake_assets.core.batches import Backlog

__all__ = [
    "FILE_SIZE",
    "FRESHNESS",
    "QUARANTINE",
    "QUEUE_DEPTH",
    "ROW_COUNT",
    "SCHEMA",
    "SMALL_FILES",
    "Delivery",
    "Drift",
    "FailedChecks",
    "PartitionFooters",
    "RowCount",
    "Verdict",
    "counts_as_fresh",
    "depth_band",
    "file_size_verdict",
    "fresh_partitions",
    "freshness_verdict",
    "health_of",
    "limited",
    "quarantine_verdict",
    "queue_depth_verdict",
    "row_count_verdict",
    "schema_changed",
    "schema_verdict",
    "small_files_verdict",
    "worst",
]

#: Names of the checks.
FILE_SIZE, FRESHNESS, QUARANTINE = "file_size", "freshness", "quarantine"
ROW_COUNT, SCHEMA, SMALL_FILES = "row_count", "schema", "small_files"
#: Of feeds whose source can tell what waits.
QUEUE_DEPTH = "queue_depth"

#: Partitions that a verdict names one by one.
_NAMED = 5


class Drift(Value, frozen=True):
    """A file whose columns are not the feed's, or cannot even be read.

    Attributes:
        name: The file.
        what: How they differ, for a person.
    """

    name: str
    what: str


class PartitionFooters(Value, frozen=True):
    """What the footers of a partition's files say.

    Attributes:
        key: Partition key.
        files: Files that were opened.
        rows: Their rows.
        columns: Columns of the feed's contract.
        drifts: Files with other columns than the feed's contract.
    """

    key: str
    files: int = 0
    rows: int = 0
    columns: int = 0
    drifts: tuple[Drift, ...] = ()


class Verdict(Value, frozen=True):
    """What a check found.

    Attributes:
        level: How bad it is.
        figures: Numbers, which plot; by name, without a prefix.
        lines: What is wrong, one line for a person each.
    """

    level: Level = Level.OK
    figures: Mapping[str, float] = msgspec.field(default_factory=dict)
    lines: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return self.level is Level.OK


#: By check that was ever evaluated: what did not pass; empty where all did.
FailedChecks = Mapping[str, Sequence[FailedCheck]]


def health_of(
    key: str,
    files: Sequence[DataFile],
    plan: CompactionPlan,
    rules: CompactionRules,
    *,
    last_write: datetime | None = None,
) -> PlannedPartition:
    """The figures of a partition's files and of its compaction plan."""
    return PlannedPartition.from_facts(
        PartitionFacts.of(key, files, small_below_bytes=rules.small_file_bytes),
        outlook_of_plan(plan, small_below_bytes=rules.small_file_bytes),
        unusable=[(each.name, each.reason) for each in plan.left_alone if each.unusable],
        last_write=last_write,
    )


def worst(levels: Iterable[Level]) -> Level:
    """The worst of them; OK if there is none."""
    order = (Level.OK, Level.WARN, Level.ERROR)
    return max(levels, key=order.index, default=Level.OK)


def limited(limits: Limits, figure: float, line: str) -> Verdict:
    """Compares one figure with its limits; ``line`` says what is wrong if it is above one."""
    level = limits.level(figure)
    return Verdict(level, lines=() if level is Level.OK else (line,))


def file_size_verdict(partitions: Sequence[PlannedPartition], checks: Checks) -> Verdict:
    """Whether the bytes lie in files of a good size: not in small ones that could be merged, nor in oversize ones."""
    size, files = _sum(partitions, "size_bytes"), _sum(partitions, "files")
    found = [
        limited(limits, share, f"{each.key}: {share:.0f} % of its {size_text(each.size_bytes)} lie in {what}")
        for each in partitions
        for limits, share, what in (
            (
                checks.small_bytes_percent,
                _percent(each.small_bytes_to_merge, each.size_bytes),
                f"small files that compaction would merge ({files_text(each.files_to_merge)} to merge)",
            ),
            (
                checks.oversize_bytes_percent,
                _percent(each.bytes_to_split, each.size_bytes),
                f"{files_text(each.files_to_split)} that compaction would split",
            ),
        )
    ]
    figures = {
        "partitions": len(partitions),
        "size_bytes": size,
        "average_file_bytes": size / files if files else 0,
        "small_bytes_percent": _percent(_sum(partitions, "small_bytes"), size),
        "mergeable_bytes_percent": _percent(_sum(partitions, "small_bytes_to_merge"), size),
        "oversize_bytes_percent": _percent(_sum(partitions, "bytes_to_split"), size),
    }
    return Verdict(worst(each.level for each in found), figures, _lines(line for each in found for line in each.lines))


def small_files_verdict(partitions: Sequence[PlannedPartition], checks: Checks) -> Verdict:
    """Whether no partition has more small files than its compaction policy, and the feed's limits, let it have."""
    found = [_small_files(each, checks.small_files) for each in partitions]
    figures = {
        "partitions": len(partitions),
        "partitions_to_compact": sum(each.needs_compaction for each in partitions),
        "files": _sum(partitions, "files"),
        "small_files": _sum(partitions, "small_files"),
        "most_small_files": max((each.small_files for each in partitions), default=0),
        "files_after_compaction": _sum(partitions, "files_after"),
        "unusable_files": sum(len(each.unusable) for each in partitions),
    }
    return Verdict(worst(each.level for each in found), figures, _lines(line for each in found for line in each.lines))


def schema_verdict(
    footers: Sequence[PartitionFooters], *, misfits: Mapping[str, int] | None = None, values_discarded: int = 0
) -> Verdict:
    """Whether the files have the columns of the feed's contract, and an export's rows did.

    Args:
        footers: What the files have.
        misfits: Values of the export that did not fit, by the reason; it warns of them, as they are not in the files.
        values_discarded: Of these, values of rows that were landed without them.
    """
    drifts = [(each.key, drift) for each in footers for drift in each.drifts]
    figures: dict[str, float] = {
        "source_columns_changed": 0,
        "columns": max((each.columns for each in footers), default=0),
        "files_looked_at": sum(each.files for each in footers),
        "files_drifted": len(drifts),
    }
    if misfits is not None:
        figures |= {"values_misfit": sum(misfits.values()), "values_discarded": values_discarded}
    found = sorted((misfits or {}).items(), key=lambda pair: -pair[1])
    lines = _lines(
        [
            *(f"{key}: {drift.name} {drift.what}" for key, drift in drifts),
            *(f"{why}: {count:,}" for why, count in found),
        ]
    )
    return Verdict(Level.ERROR if drifts else Level.WARN if found else Level.OK, figures, lines)


def schema_changed(error: SchemaChanged) -> Verdict:
    """What `schema` says of an export that its source's columns stopped."""
    return Verdict(Level.ERROR, {"source_columns_changed": 1}, (str(error),))


def quarantine_verdict(*, rows_read: int, rows_quarantined: int, checks: Checks, where: str) -> Verdict:
    """Whether few enough of an export's rows had to be put aside; ``where`` is their folder."""
    percent = _percent(rows_quarantined, rows_read)
    line = f"{rows_quarantined:,} of {rows_read:,} rows could not be landed; they are in {where}, with their reasons"
    found = limited(checks.quarantined_percent, percent, line)
    figures = {"rows_read": rows_read, "rows_quarantined": rows_quarantined, "quarantined_percent": percent}
    return Verdict(found.level, figures, found.lines)


def _small_files(partition: PlannedPartition, limits: Limits) -> Verdict:
    level = limits.level(partition.small_files)
    if partition.needs_compaction:
        level = worst([level, Level.WARN])
    if level is Level.OK:
        return Verdict()
    what = f"{partition.key}: {files_text(partition.files)}, {partition.small_files:,} of them small"
    if partition.needs_compaction:
        return Verdict(level, lines=(f"{what}; compaction would leave {partition.files_after:,}",))
    return Verdict(
        level, lines=(f"{what}; the feed allows {limits.warn if limits.warn is not None else limits.error:g}",)
    )


def _lines(lines: Iterable[str]) -> tuple[str, ...]:
    """The first few, and how many more there are."""
    listed = list(lines)
    more = len(listed) - _NAMED
    return (*listed[:_NAMED], f"and {more:,} more") if more > 0 else tuple(listed)


def _sum(partitions: Iterable[PlannedPartition], name: str) -> int:
    figure: Callable[[PlannedPartition], int] = lambda each: int(getattr(each, name))  # noqa: E731
    return sum(map(figure, partitions))


def _percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 3) if whole else 0.0


#: At most so many partitions are searched for the newest export.
MAX_PARTITIONS = 100


def freshness_verdict(policy: Freshness, *, commit: datetime | None, event: datetime | None, now: datetime) -> Verdict:
    """Compares ages with a policy; without one the ages are reported and nothing is wrong.

    A feed that is exported every hour may have no row of this year, and one with rows of today may wait for its next
    export since yesterday: if either is too old, the verdict says both.

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
            lines.append(f"the newest {name} is {_readable(age)}, the feed allows {_span(exceeded[0])}")
        elif age is not None:
            lines.append(f"the newest {name} is {_readable(age)}")
    return Verdict(worst(levels), figures, tuple(lines) if levels else ())


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


def queue_depth_verdict(backlog: Backlog, limits: Limits) -> Verdict:
    """Judges what waits in a feed's queue: ``perfect`` if nothing, ``normal``, ``attention`` or ``problem``.

    Args:
        backlog: What waits.
        limits: More than ``warn`` needs attention, more than ``error`` is a problem.
    """
    level, waiting = limits.level(backlog.waiting), backlog.waiting
    figures = {"queue_depth": waiting, "in_flight": backlog.in_flight, "delayed": backlog.delayed}
    if level is Level.OK:
        return Verdict(level, figures)
    limit = limits.error if level is Level.ERROR else limits.warn
    line = (
        f"{waiting:,} messages wait, more than {limit:,.0f}: {depth_band(backlog, limits)}; if they stay, let more"
        " requests run at once (receivers), larger batches (batch_records, batch_bytes), no or a higher rate limit"
        " (messages_per_s), or more workers"
    )
    return Verdict(level, figures, (line,))


def depth_band(backlog: Backlog, limits: Limits) -> str:
    """The verdict in a word, for people."""
    words = {Level.OK: "normal", Level.WARN: "attention", Level.ERROR: "problem"}
    return words[limits.level(backlog.waiting)] if backlog.waiting else "perfect"


def _hours(age: timedelta) -> float:
    return round(age / timedelta(hours=1), 3)


def _readable(age: timedelta | None) -> str:
    return "not known" if age is None else f"{_span(age)} old"


def _span(age: timedelta) -> str:
    return str(timedelta(seconds=round(age.total_seconds())))


class RowCount(Value, frozen=True):
    """The rows of one partition, counted twice.

    Attributes:
        key: Partition key.
        promised: Rows by the manifest.
        found: Rows by the footers of the Parquet files; None if there are too many files to open.
        previous: A table: rows of the version before; None if there is none.
    """

    key: str
    promised: int
    found: int | None
    previous: int | None = None

    @property
    def exact(self) -> bool:
        """Whether the files hold what the manifest says."""
        return self.found is None or self.found == self.promised

    @property
    def change_percent(self) -> float | None:
        """Rows gained since the previous version; None without one."""
        return None if not self.previous else 100.0 * (self.promised - self.previous) / self.previous


class Delivery(Value, frozen=True):
    """What became of the rows that a source delivered to one export.

    Attributes:
        read: Rows that the source delivered.
        quarantined: Of these, rows put aside.
        known: Of these, rows that the lake had already.
        landed: Rows that the lake has of them: added, or in the partitions and versions that were replaced.
    """

    read: int
    quarantined: int
    known: int
    landed: int

    @property
    def lost(self) -> int:
        """Rows that are nowhere; negative if there are more than were delivered."""
        return self.read - self.quarantined - self.known - self.landed


def row_count_verdict(
    counts: Sequence[RowCount], checks: Checks, *, feed: str, delivery: Delivery | None = None
) -> Verdict:
    """Whether the files hold what the manifests promise, and the lake what the source delivered.

    Args:
        counts: Partitions.
        checks: The feed's limits.
        feed: Its name, for the cure.
        delivery: What the source says; None where it cannot tell, or nothing was written.
    """
    found = [verdict for each in counts for verdict in _judged(each, checks, feed=feed)]
    if delivery is not None and delivery.lost:
        found.append(Verdict(Level.ERROR, lines=(_lost(delivery),)))
    figures: dict[str, float] = {
        "partitions": len(counts),
        "rows_promised": sum(each.promised for each in counts),
        "rows_found": sum(each.promised if each.found is None else each.found for each in counts),
        "partitions_not_opened": sum(each.found is None for each in counts),
    }
    if delivery is not None:
        figures["rows_of_source"] = delivery.read - delivery.quarantined - delivery.known
        figures["rows_landed"] = delivery.landed
    if len(counts) == 1 and counts[0].previous is not None:
        figures["rows_previous"] = counts[0].previous
        figures["change_percent"] = round(counts[0].change_percent or 0.0, 3)
    return Verdict(worst(each.level for each in found), figures, tuple(line for each in found for line in each.lines))


def _judged(count: RowCount, checks: Checks, *, feed: str) -> Iterator[Verdict]:
    if not count.exact:
        line = (
            f"{count.key}: the manifest promises {count.promised:,} rows and the files hold {count.found:,};"
            f" run 'datalake verify {feed}'"
        )
        yield Verdict(Level.ERROR, lines=(line,))
    if count.change_percent is not None:
        line = f"{count.key} has {count.promised:,} rows, the version before had {count.previous:,}"
        yield limited(checks.row_drop_percent, -count.change_percent, line)


def _lost(delivery: Delivery) -> str:
    expected = delivery.read - delivery.quarantined - delivery.known
    return f"the source delivered {expected:,} rows that the lake should have, and {delivery.landed:,} are in it"
