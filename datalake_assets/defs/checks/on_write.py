"""The checks that an export evaluates itself, over the partitions that it wrote: cheap, and no steps of their own.

Rules that cost more are in `datalake_assets.defs.checks.at_rest`, the checks of adopted folders in
`datalake_assets.defs.checks.at_rest`. What a check means is in `datalake_assets.core.verdicts`. How fresh a feed is
follows from its newest export in Dagster's event log and its newest row in its manifests.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import dagster as dg

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.facts import PartitionFacts, PlannedPartition, WriteReport
from datalake_assets.core.partitions import PartitionBy, version_number
from datalake_assets.core.rules import RuleCount, rule_verdict
from datalake_assets.core.schema import DISCARDING
from datalake_assets.core.verdicts import (
    FILE_SIZE,
    FRESHNESS,
    QUARANTINE,
    QUEUE_DEPTH,
    ROW_COUNT,
    SCHEMA,
    SMALL_FILES,
    Delivery,
    PartitionFooters,
    RowCount,
    Verdict,
    counts_as_fresh,
    file_size_verdict,
    fresh_partitions,
    freshness_verdict,
    quarantine_verdict,
    queue_depth_verdict,
    row_count_verdict,
    schema_verdict,
    small_files_verdict,
)
from datalake_assets.defs.compaction_events import unusable_files
from datalake_assets.defs.metadata import aimed, asset_key, check_evaluation, check_result
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runtime import failures_named, known_dagster_warnings_ignored
from datalake_assets.defs.storage.io_manager import FeedRead
from datalake_assets.errors import SnapshotExpired, SourceError
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind, PositionKind
from datalake_assets.lake.feed_compaction import request_of
from datalake_assets.lake.layout import quarantine_folder
from datalake_assets.lake.table import TableReader, TableSnapshot
from datalake_assets.policies import Level

__all__ = [
    "DESCRIPTIONS",
    "CheckedPartition",
    "check_specs",
    "evaluate_checks",
    "evaluations_now",
    "freshness_of",
    "has_backlog",
    "health_now",
    "look_at",
    "newest_commit",
    "newest_event",
    "on_write_check_keys",
    "size_verdicts",
]

#: Materializations that are searched, newest first: late rows of other days come between.
_LOOKED_AT = 500


def freshness_of(
    instance: dg.DagsterInstance, table: TableReader, *, now: datetime, key: dg.AssetKey | None = None
) -> Verdict | None:
    """Judges a feed's freshness; None if it was never exported.

    Args:
        instance: Whose event log knows the exports.
        table: The feed's data.
        now: The time.
        key: Its asset; default: the one of our own code location.
    """
    feed = table.feed
    own = key or asset_key(feed)
    if instance.get_latest_materialization_event(own) is None:
        return None
    watches_rows = feed.freshness.max_event_age or feed.freshness.fail_event_age
    event = newest_event(table) if watches_rows else None
    commit = newest_commit(instance, feed, now=now, key=own)
    return freshness_verdict(feed.freshness, commit=commit, event=event, now=now)


def newest_commit(
    instance: dg.DagsterInstance, feed: Feed, *, now: datetime, key: dg.AssetKey | None = None
) -> datetime | None:
    """When the feed was last exported, with new rows or without: of a stream, its current partition or the one before.

    Returns:
        The time by Dagster's event log; None if that is too long ago to matter, or never happened.
    """
    own = key or asset_key(feed)
    if feed.kind is not FeedKind.STREAM:
        entry = instance.get_latest_materialization_event(own)
        return None if entry is None else datetime.fromtimestamp(entry.timestamp, UTC)
    by = PartitionBy(feed.partition_by)
    keys = fresh_partitions(by, feed.freshness, now=now)
    found = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=own, asset_partitions=keys), limit=_LOOKED_AT
    )
    for record in found.records:
        at = datetime.fromtimestamp(record.timestamp, UTC)
        if record.partition_key is not None and counts_as_fresh(by, record.partition_key, at=at):
            return at
    return None


def newest_event(table: TableReader, *, known: Mapping[str, PartitionFacts] | None = None) -> datetime | None:
    """The newest row of a stream, by its time column; None for a table, and where there is none.

    Args:
        table: The feed's data.
        known: Facts of some partitions: these are not asked for again.
    """
    if table.feed.kind is FeedKind.TABLE:
        return None
    for key in reversed(table.partitions()):
        report = known[key] if known and key in known else table.report(key)
        if report is not None and report.max_time is not None:
            return report.max_time
    return None


#: What each check means, for the UI.
DESCRIPTIONS = {
    ROW_COUNT: (
        "The partition's files hold the rows that its manifest promises, the lake has every row that the source"
        " delivered, and a table keeps its rows."
    ),
    SCHEMA: "Every file has the columns of the feed's contract, and the export's rows fitted it.",
    FILE_SIZE: "The bytes lie in files of a good size: few in small files that could be merged, none in oversize ones.",
    SMALL_FILES: "The partition has no more small files than the feed's compaction policy lets it have.",
    FRESHNESS: "The newest export and the newest row are no older than the feed allows.",
    QUARANTINE: "Few of the export's rows had to be put aside.",
}
#: Of feeds whose source can tell.
QUEUE_DEPTH_DESCRIPTION = "Few messages wait in the queue: reading keeps up with sending."
#: Checks of a feed as a whole, not of its partitions.
_OF_ALL = frozenset({FRESHNESS, QUARANTINE, QUEUE_DEPTH})
#: A partition of more files than this is not opened file by file within the run that wrote to it.
MAX_FOOTERS = 500
#: Up to this many partitions of a run each has evaluations of its own recorded; above, only those that did not pass.
ALL_TOLD = 100
#: Another writer or a compaction may come between reading the manifest and reading the files.
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class CheckedPartition:
    """What was seen of one partition after a write.

    Attributes:
        count: Its rows.
        health: Its files.
        footers: What they say of themselves; None if there are too many.
        broken: Rows that break the feed's rules, by the rules' check names.
    """

    count: RowCount
    health: PlannedPartition
    footers: PartitionFooters | None = None
    broken: Mapping[str, RuleCount] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Partition key."""
        return self.count.key

    @classmethod
    def of_nothing(cls, key: str) -> "CheckedPartition":
        """The figures of a partition without files."""
        return cls(RowCount(key, 0, 0), PlannedPartition(key))


def check_specs(feed: Feed, partitions: dg.PartitionsDefinition[str]) -> list[dg.AssetCheckSpec]:
    """The checks of a feed's asset that its exports evaluate.

    ``freshness``, ``quarantine`` and ``queue_depth`` are about the feed as a whole, the others about partitions.
    """
    described = _described(feed)
    with known_dagster_warnings_ignored():
        return [
            dg.AssetCheckSpec(
                name,
                asset=asset_key(feed),
                description=text or None,
                blocking=name in feed.checks.blocking,
                partitions_def=None if name in _OF_ALL else partitions,
            )
            for name, text in described.items()
        ]


def on_write_check_keys(feed: Feed) -> list[dg.AssetCheckKey]:
    """The checks that belong to an export; expensive rules have a schedule of their own."""
    return [dg.AssetCheckKey(asset_key(feed), name) for name in _described(feed)]


def _described(feed: Feed) -> dict[str, str]:
    """What the checks that an export evaluates mean, by name."""
    queue = {QUEUE_DEPTH: QUEUE_DEPTH_DESCRIPTION} if has_backlog(feed) else {}
    return {**DESCRIPTIONS, **queue, **{rule.check_name: rule.description for rule in feed.checks.rules_on_write}}


def has_backlog(feed: Feed) -> bool:
    """Whether the feed's source can tell what waits."""
    return feed.is_exported and feed.exported_from.has_backlog


def evaluate_checks(context: dg.AssetExecutionContext, read: FeedRead, lake: Lake) -> Iterator[dg.AssetCheckResult]:
    """Reports all checks: of the run's partition, or of each of its range (as events) and of the range as a whole.

    Partitions that received rows besides have events of their own.
    """
    with failures_named(read.feed):
        looks = _looks(context.instance, read, request_of(lake.settings))
    for event in aimed(context.instance, _evaluations(read, looks)):
        context.log_event(event)
    own_keys = set(read.partitions)
    has_files = any(look.health.files for look in looks if look.key in own_keys)
    for name, verdict in _results(read, looks).items():
        yield check_result(name, verdict, asset_key=asset_key(read.feed), with_figures=has_files)
    yield check_result(FRESHNESS, _freshness_now(read, datetime.now(UTC)))
    yield check_result(QUARANTINE, _quarantine(read, lake))
    if has_backlog(read.feed):
        yield check_result(QUEUE_DEPTH, _queue_depth(read))


def _looks(instance: dg.DagsterInstance, read: FeedRead, request: CompactionRequest) -> list[CheckedPartition]:
    """Looks at the partitions that a write changed, and at all of the run's own: Dagster waits for their checks."""
    own = {each.key for each in read.selected} if len(read.selected) <= ALL_TOLD else set()
    reports = [each for each in (*read.selected, *read.beyond) if each.key in own or _is_changed(each)]
    # the write has seen each manifest: none is read again, for rules, sizes or footers
    snapshot = read.table.written([each.key for each in reports if each.files])
    broken = _broken(read.table, snapshot)
    return [
        look_at(instance, read.table, snapshot.only(each.key), request, broken=broken.get(each.key, {}))
        if each.files
        else CheckedPartition.of_nothing(each.key)
        for each in reports
    ]


def _broken(table: TableReader, snapshot: TableSnapshot) -> dict[str, dict[str, RuleCount]]:
    """The rows that break the feed's rules, by partition; what is true of the whole feed stands in each."""
    rules, keys = table.feed.checks.rules_on_write, snapshot.keys
    found: dict[str, dict[str, RuleCount]] = {key: {} for key in keys}
    for rule, count in table.count_broken(rules, keys, seen=snapshot) if rules and keys else ():
        for key in [count.key] if count.key else keys:
            found[key][rule.check_name] = count
    return found


def look_at(
    instance: dg.DagsterInstance,
    table: TableReader,
    snapshot: TableSnapshot,
    request: CompactionRequest,
    *,
    broken: Mapping[str, RuleCount],
) -> CheckedPartition:
    """Looks at the one partition of a snapshot, and the footers of its files; ``broken`` is known of its rows."""
    (key,) = snapshot.keys
    health = health_now(instance, snapshot, key, request)
    footers, count = _count(table, snapshot, health)
    return CheckedPartition(count, health, footers, broken)


def health_now(
    instance: dg.DagsterInstance, snapshot: TableSnapshot, key: str, request: CompactionRequest
) -> PlannedPartition:
    """How a partition is; files that its last compaction could not take are nothing that another one could merge."""
    health = snapshot.health(key, request)
    unusable = unusable_files(instance, asset_key(snapshot.feed), key) if health.needs_compaction else {}
    return snapshot.health(key, request, excluded=unusable) if unusable else health


def size_verdicts(feed: Feed, partitions: Sequence[PlannedPartition]) -> dict[str, Verdict]:
    """What `file_size` and `small_files` say of partitions."""
    return {
        FILE_SIZE: file_size_verdict(partitions, feed.checks),
        SMALL_FILES: small_files_verdict(partitions, feed.checks),
    }


def evaluations_now(
    instance: dg.DagsterInstance,
    lake: Lake,
    feed: Feed,
    report: WriteReport,
    *,
    rules: bool,
) -> Iterator[dg.AssetCheckEvaluation]:
    """What the checks say after rows were landed outside of the feed's own runs, of all partitions that got some.

    Args:
        instance: Dagster's instance.
        lake: The lake.
        feed: The feed.
        report: What was landed.
        rules: Whether the feed's rules are evaluated, which reads these partitions, whole.
    """
    table, request = lake.table(feed), request_of(lake.settings)
    snapshot = table.snapshot([each.key for each in report.partitions if each.files])
    broken = _broken(table, snapshot) if rules else {}
    looks = [look_at(instance, table, snapshot.only(key), request, broken=broken.get(key, {})) for key in snapshot.keys]
    of_rules = {rule.check_name for rule in feed.checks.rules_on_write}
    for name, verdict in _verdicts(feed, looks).items() if looks else ():
        if rules or name not in of_rules:
            yield check_evaluation(name, verdict, asset_key=asset_key(feed))
    newest = max((each.max_time for each in report.partitions if each.max_time), default=None)
    fresh = freshness_verdict(feed.freshness, commit=datetime.now(UTC), event=newest, now=datetime.now(UTC))
    yield check_evaluation(FRESHNESS, fresh, asset_key=asset_key(feed))
    where = f"{lake.uri}/{quarantine_folder(feed)}"
    aside = quarantine_verdict(
        rows_read=report.rows_read, rows_quarantined=report.rows_quarantined, checks=feed.checks, where=where
    )
    yield check_evaluation(QUARANTINE, aside, asset_key=asset_key(feed))


def _is_changed(report: PartitionFacts) -> bool:
    return bool(report.files_added or report.rows_added)


def _verdicts(
    feed: Feed,
    looks: Sequence[CheckedPartition],
    *,
    delivery: Delivery | None = None,
    report: WriteReport | None = None,
) -> dict[str, Verdict]:
    """What the checks of partitions say, by name; of an export as a whole, what became of its rows, too."""
    misfits = None if report is None or feed.schema_policy not in DISCARDING else report.misfits
    counts, footers = [each.count for each in looks], [each.footers for each in looks if each.footers is not None]
    verdicts = {
        ROW_COUNT: row_count_verdict(counts, feed.checks, feed=feed.name, delivery=delivery),
        SCHEMA: schema_verdict(
            footers, misfits=misfits, values_discarded=0 if report is None else report.values_discarded
        ),
        **size_verdicts(feed, [each.health for each in looks]),
    }
    for rule in feed.checks.rules_on_write:
        found = dict.fromkeys(each.broken[rule.check_name] for each in looks if rule.check_name in each.broken)
        verdicts[rule.check_name] = rule_verdict(rule, list(found))  # a finding about the whole feed counts once
    return verdicts


def _results(read: FeedRead, looks: Sequence[CheckedPartition]) -> dict[str, Verdict]:
    """The verdicts that Dagster files under the run's partition, or under none for a range.

    A finding of one partition is not held against another; but a check that blocks judges all that the run wrote.
    """
    own_keys = set(read.partitions)
    own = [each for each in looks if each.key in own_keys]
    delivery = _delivery(read)
    verdicts = _verdicts(read.feed, own, delivery=delivery, report=read.report)
    of_all = _verdicts(read.feed, looks, delivery=delivery, report=read.report)
    return verdicts | {name: of_all[name] for name in read.feed.checks.blocking if name in verdicts}


def _evaluations(read: FeedRead, looks: Sequence[CheckedPartition]) -> Iterator[dg.AssetCheckEvaluation]:
    """What is worth its event, which costs more than the look: what Dagster waits for, and what is, or was, wrong."""
    own_keys = set(read.partitions)
    is_range = len(own_keys) > 1
    new = {each.key for each in read.beyond if each.files == each.files_added}
    for look in looks:
        is_own = look.key in own_keys
        if is_own and not is_range:
            continue  # that is the run's result
        passes_too = len(looks) <= ALL_TOLD and (is_own or look.key not in new)
        for name, verdict in _verdicts(read.feed, [look]).items():
            if passes_too or name == ROW_COUNT or not verdict.passed:
                key, has_files = asset_key(read.feed), look.health.files > 0
                yield check_evaluation(name, verdict, asset_key=key, partition=look.key, with_figures=has_files)


def _delivery(read: FeedRead) -> Delivery | None:
    """What became of the source's rows; None where the lake's rows need not be this export's, or were merged."""
    report = read.report
    if report is None or not any(each.files_added for each in report.partitions) or read.feed.write == "merge":
        return None
    landed = report.rows_added
    if read.feed.position_kind not in {PositionKind.OFFSETS, PositionKind.IDS}:
        # replaced as a whole, unless the rows were the same, or somebody else's are newer
        if not all(each.files_added or not each.rows for each in read.selected):
            return None
        landed = sum(each.rows for each in read.selected)
    return Delivery(report.rows_read, report.rows_quarantined, report.rows_known, landed)


def _freshness_now(read: FeedRead, now: datetime) -> Verdict:
    """An export has just been: even one of an old partition says that the feed's source answers."""
    policy = read.feed.freshness
    with failures_named(read.feed):
        known = {each.key: each for each in (*read.selected, *read.beyond)}
        newest = newest_event(read.table, known=known) if policy.max_event_age or policy.fail_event_age else None
    newest = newest or max((each.max_time for each in read.selected if each.max_time), default=None)
    return freshness_verdict(policy, commit=now, event=newest, now=now)


def _quarantine(read: FeedRead, lake: Lake) -> Verdict:
    report = read.report
    return quarantine_verdict(
        rows_read=report.rows_read if report else 0,
        rows_quarantined=report.rows_quarantined if report else 0,
        checks=read.feed.checks,
        where=f"{lake.uri}/{quarantine_folder(read.feed)}",
    )


def _queue_depth(read: FeedRead) -> Verdict:
    """What waits after the export; that it cannot be asked takes nothing from the rows that were landed."""
    try:
        backlog = read.backlog() if read.backlog else None
    except SourceError as error:
        return Verdict(Level.WARN, lines=(f"the queue could not be asked: {error}",))
    if backlog is None:
        return Verdict(Level.WARN, lines=("the source cannot tell what waits",))
    return queue_depth_verdict(backlog, read.feed.checks.queue_depth)


def _count(
    table: TableReader, snapshot: TableSnapshot, health: PlannedPartition
) -> tuple[PartitionFooters | None, RowCount]:
    """Compares what the files hold with what ``health`` saw promised; of what changed meanwhile, with what is now."""
    key, previous = health.key, _previous_rows(table, health.key)
    promised: PlannedPartition | PartitionFacts | None = health
    footers, count = None, RowCount(key, 0, None, previous)
    for attempt in range(_ATTEMPTS):
        if attempt:
            snapshot = table.snapshot([key])
            promised = snapshot.report(key)
        if promised is None:
            return None, RowCount(key, 0, 0, previous)
        try:
            footers = snapshot.footers(key) if promised.files <= MAX_FOOTERS else None
        except SnapshotExpired:
            continue
        count = RowCount(key, promised.rows, footers.rows if footers else None, previous)
        if count.exact:
            break
    return footers, count


def _previous_rows(table: TableReader, key: str) -> int | None:
    if table.feed.kind is not FeedKind.TABLE:
        return None
    older = [each for each in table.partitions() if version_number(each) < version_number(key)]
    report = table.report(older[-1]) if older else None
    return None if report is None else report.rows
