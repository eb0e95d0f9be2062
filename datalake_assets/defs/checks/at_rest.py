"""Checks of data at rest: nightly ones of whole feeds and of rules, and those of folders, which others write."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.facts import PlannedPartition
from datalake_assets.core.rules import RuleCount, rule_verdict
from datalake_assets.core.verdicts import (
    FILE_SIZE,
    FRESHNESS,
    SCHEMA,
    SMALL_FILES,
    Drift,
    PartitionFooters,
    Verdict,
    freshness_verdict,
    schema_verdict,
)
from datalake_assets.defs.checks.on_write import DESCRIPTIONS, health_now, size_verdicts
from datalake_assets.defs.metadata import asset_key, check_evaluation, check_result, event_partition
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runs import tag_run
from datalake_assets.defs.runtime import failures_named
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.feed_compaction import request_of
from datalake_assets.lake.table import TableReader
from datalake_assets.policies import Rule

__all__ = [
    "EVALUATE_CHECKS",
    "evaluate_checks_job",
    "folder_checks",
    "folder_verdicts",
    "healths_of",
    "nightly_checks",
    "rule_checks",
    "rule_results",
    "size_evaluations",
]

EVALUATE_CHECKS = "evaluate_checks"
#: Metadata in which an evaluation says where it left off: the next one begins there.
_STATE = "datalake/state"
#: Events that are fetched at once.
_PAGE = 1_000
#: Executions that are searched for the last evaluation: those of runs that died left none.
_EXECUTIONS = 20


@dataclass(frozen=True, slots=True)
class _Last:
    """The evaluation before."""

    evaluation: dg.AssetCheckEvaluation
    position: int
    broken: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Changes:
    """What was written since an evaluation: partition keys, and where the next one begins."""

    keys: frozenset[str]
    position: int


def rule_checks(feed: Feed) -> dg.AssetChecksDefinition:
    """The checks of a feed's rules that say ``when = "schedule"``; one step evaluates those that are asked for."""
    key = asset_key(feed)
    specs = [
        dg.AssetCheckSpec(rule.check_name, asset=key, description=rule.description or None)
        for rule in feed.checks.rules_on_schedule
    ]

    @dg.multi_asset_check(
        specs=specs, name=f"rules_of_{feed.kind}_{feed.name}", can_subset=True, required_resource_keys={"lake"}
    )
    def evaluate(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        tag_run(context.instance, context.run)
        names = {each.name for each in context.selected_asset_check_keys}
        yield from rule_results(context.instance, context.resources.lake.open().table(feed), names)

    return evaluate


def evaluate_checks_job(checks: Sequence[dg.AssetChecksDefinition]) -> Any:
    """The job of the checks that no export evaluates; its type, `dagster.define_asset_job`'s, has no public name."""
    return dg.define_asset_job(
        EVALUATE_CHECKS,
        selection=dg.AssetSelection.checks(*checks),
        description="Evaluates the checks that no export does: expensive rules over what changed, and adopted folders.",
        executor_def=dg.in_process_executor,
    )


def nightly_checks(job: Any) -> dg.ScheduleDefinition:
    """03:00 UTC, after the nightly maintenance has begun."""
    return dg.ScheduleDefinition(
        name="nightly_checks",
        job=job,
        cron_schedule="0 3 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Evaluates the checks that no export does.",
    )


def rule_results(instance: dg.DagsterInstance, table: TableReader, names: set[str]) -> Iterator[dg.AssetCheckResult]:
    """Evaluates the rules of these names over what changed since they were evaluated last.

    Raises:
        dagster.Failure: A rule cannot be evaluated: it names a column that isn't there, or its query is wrong.
    """
    feed = table.feed
    rules = [rule for rule in feed.checks.rules if rule.check_name in names]
    last = {rule.check_name: _last(instance, feed, rule) for rule in rules}
    for since in sorted({_position(each) for each in last.values()}):
        group = [rule for rule in rules if _position(last[rule.check_name]) == since]
        changes = _changes(instance, feed, since) if table.is_written_by_us else _changes_by_others(table, since)
        if since >= 0 and not changes.keys:
            yield from (_repeated(each.evaluation) for rule in group if (each := last[rule.check_name]) is not None)
            continue
        before = {key for rule in group if (each := last[rule.check_name]) is not None for key in each.broken}
        with failures_named(feed):
            counts = list(table.count_broken(group, _keys(table, since, changes, before)))
        for rule in group:
            yield _result(feed, rule, [count for of, count in counts if of is rule], changes.position)


def _position(last: _Last | None) -> int:
    """-1: it was never evaluated."""
    return -1 if last is None else last.position


def _keys(table: TableReader, since: int, changes: _Changes, before: set[str]) -> list[str] | None:
    if since < 0:
        return None
    there = set(table.partitions())
    return sorted(there & (changes.keys | before), key=lambda key: (len(key), key))


def _result(feed: Feed, rule: Rule, counts: Sequence[RuleCount], position: int) -> dg.AssetCheckResult:
    verdict: Verdict = rule_verdict(rule, counts)
    broken = [each.key for each in counts if each.key and rule.limits.level(each.percent) != "ok"]
    result = check_result(rule.check_name, verdict, asset_key=asset_key(feed))
    state = {"broken": broken, "position": position, "rule": _digest(rule)}
    return result._replace(metadata={**result.metadata, _STATE: dg.MetadataValue.json(state)})


def _repeated(evaluation: dg.AssetCheckEvaluation) -> dg.AssetCheckResult:
    """Nothing was written, so nothing has changed."""
    return dg.AssetCheckResult(
        check_name=evaluation.check_name,
        asset_key=evaluation.asset_key,
        passed=evaluation.passed,
        severity=evaluation.severity,
        metadata=evaluation.metadata,
        description=evaluation.description,
    )


def _last(instance: dg.DagsterInstance, feed: Feed, rule: Rule) -> _Last | None:
    """The last evaluation of this very rule; None if it was another rule then."""
    key = dg.AssetCheckKey(asset_key(feed), rule.check_name)
    for record in instance.event_log_storage.get_asset_check_execution_history(key, limit=_EXECUTIONS):
        event = record.event.dagster_event if record.event else None
        if event is None or event.event_type is not dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            continue
        evaluation = event.asset_check_evaluation_data
        state: Any = evaluation.metadata[_STATE].value if _STATE in evaluation.metadata else {}
        if state.get("rule") != _digest(rule):
            return None
        return _Last(evaluation, state["position"], tuple(state["broken"]))
    return None


def _changes(instance: dg.DagsterInstance, feed: Feed, since: int) -> _Changes:
    """The partitions that were materialized after an event, and the newest event of all."""
    if since < 0:  # every partition is evaluated; only the newest event matters
        newest = instance.fetch_materializations(asset_key(feed), limit=1).records
        return _Changes(frozenset(), newest[0].storage_id if newest else 0)
    keys: set[str] = set()
    position = since
    while True:
        after = dg.AssetRecordsFilter(asset_key=asset_key(feed), after_storage_id=position)
        page = instance.fetch_materializations(after, limit=_PAGE, ascending=True).records
        keys.update(record.partition_key for record in page if record.partition_key)
        position = max([position, *(record.storage_id for record in page)])
        if len(page) < _PAGE:
            return _Changes(frozenset(keys), position)


def _changes_by_others(table: TableReader, since: int) -> _Changes:
    """The partitions that others changed after a time, in milliseconds since 1970: Dagster need not know of that."""
    written = {key: table.snapshot([key]).health(key, CompactionRequest()).last_write for key in table.partitions()}
    times = {key: int(at.timestamp() * 1000) for key, at in written.items() if at is not None}
    return _Changes(frozenset(key for key, at in times.items() if at > since), max(times.values(), default=0))


def _digest(rule: Rule) -> str:
    """Changes when the rule does: then every partition is evaluated anew."""
    return hashlib.blake2b(json.dumps(rule.model_dump(mode="json")).encode(), digest_size=8).hexdigest()


#: Manifests that are read at once.
THREADS = 8
_NAMES = (SCHEMA, FILE_SIZE, SMALL_FILES, FRESHNESS)


def folder_checks(feed: Feed) -> dg.AssetChecksDefinition:
    """The checks of an adopted folder, of the files that were there at the last look; its rules among them."""
    described = {name: DESCRIPTIONS[name] for name in _NAMES}
    described |= {rule.check_name: rule.description for rule in feed.checks.rules}
    specs = [
        dg.AssetCheckSpec(name, asset=asset_key(feed), description=text or None) for name, text in described.items()
    ]

    @dg.multi_asset_check(
        specs=specs, name=f"checks_of_{feed.kind}_{feed.name}", can_subset=True, required_resource_keys={"lake"}
    )
    def evaluate(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        tag_run(context.instance, context.run)
        names = {each.name for each in context.selected_asset_check_keys}
        yield from _results(context.instance, context.resources.lake.open(), feed, names)

    return evaluate


def folder_verdicts(feed: Feed, partitions: list[PlannedPartition], *, now: datetime) -> dict[str, Verdict]:
    """What the checks say of a folder's partitions, by name; its rules are apart."""
    footers = [
        PartitionFooters(each.key, each.files, each.rows, 0, tuple(Drift(*one) for one in each.unusable))
        for each in partitions
    ]
    commit = max((each.last_write for each in partitions if each.last_write), default=None)
    event = max((each.max_time for each in partitions if each.max_time), default=None)
    return {
        SCHEMA: schema_verdict(footers),
        **size_verdicts(feed, partitions),
        FRESHNESS: freshness_verdict(feed.freshness, commit=commit, event=event, now=now),
    }


def size_evaluations(
    instance: dg.DagsterInstance,
    lake: Lake,
    feed: Feed,
    compacted: Sequence[PlannedPartition],
    *,
    each_partition: bool = True,
) -> Iterator[dg.AssetCheckEvaluation]:
    """What `file_size` and `small_files` say after a compaction, for the log of its run.

    Of a stream or table each of the partitions, and these together; of a folder, and of an asset without partitions,
    all that its readers get. An asset of another project need not have these checks: then they are shown nowhere.

    Args:
        instance: Dagster's instance.
        lake: The lake.
        feed: The feed.
        compacted: How the partitions that were compacted are now, by the feed's policy.
        each_partition: Report each partition, too.
    """
    if not compacted:
        return
    whole = not lake.table(feed).is_written_by_us or event_partition(feed, "") is None
    each_partition = each_partition and not whole
    known = {each.key: each for each in compacted}
    partitions = healths_of(instance, lake, feed, None if whole else list(known), known=known)
    for name, verdict in size_verdicts(feed, partitions).items():
        for each in partitions if each_partition else ():
            one = size_verdicts(feed, [each])[name]
            yield check_evaluation(name, one, asset_key=asset_key(feed), partition=each.key)
        if not each_partition or len(partitions) > 1:
            yield check_evaluation(name, verdict, asset_key=asset_key(feed))


def healths_of(
    instance: dg.DagsterInstance,
    lake: Lake,
    feed: Feed,
    keys: Sequence[str] | None = None,
    *,
    known: Mapping[str, PlannedPartition] | None = None,
) -> list[PlannedPartition]:
    """How a feed's partitions are: one request for each that is not known, and one listing where no keys are given."""
    request = request_of(lake.settings)

    def look(key: str) -> PlannedPartition:
        if known and key in known:
            return known[key]
        return health_now(instance, lake.table(feed).snapshot([key]), key, request)

    with ThreadPoolExecutor(THREADS) as pool:
        return [each for each in pool.map(look, _all_keys(lake, feed) if keys is None else keys) if each.files]


def _all_keys(lake: Lake, feed: Feed) -> Sequence[str]:
    """All partitions; of a table whose asset has no partitions, the version that readers get."""
    keys = lake.table(feed).partitions()
    return keys[-1:] if feed.kind is FeedKind.TABLE and event_partition(feed, "") is None else keys


def _results(instance: dg.DagsterInstance, lake: Lake, feed: Feed, names: set[str]) -> Iterator[dg.AssetCheckResult]:
    if names.intersection(_NAMES):
        with failures_named(feed):
            verdicts = folder_verdicts(feed, healths_of(instance, lake, feed), now=datetime.now(UTC))
        for name in _NAMES:
            if name in names:
                yield check_result(name, verdicts[name], asset_key=asset_key(feed))
    yield from rule_results(instance, lake.table(feed), names.difference(_NAMES))
