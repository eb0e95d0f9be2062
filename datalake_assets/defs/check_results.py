"""Verdicts as Dagster's check results. Figures stay numbers, and plot."""

from collections.abc import Iterable, Iterator
from typing import Any, get_args

import dagster as dg

from datalake_assets.core.verdicts import FailedCheck, FailedChecks, Verdict
from datalake_assets.defs.metadata import asset_key
from datalake_assets.feed import Feed
from datalake_assets.policies import BUILT_IN_CHECKS, Level

__all__ = [
    "aimed",
    "check_evaluation",
    "check_result",
    "failed_check",
    "failed_checks",
    "severity_of",
]

#: Executions of a check that are searched: the newest of each partition is among them, unless there are more.
_EXECUTIONS = 200

#: Dagster's type of a pointer to a materialization, which it names in its signatures and does not export.
_TARGET: Any = get_args(dg.AssetCheckEvaluation.__annotations__["target_materialization_data"])[0]


def check_result(
    name: str, verdict: Verdict, *, asset_key: dg.AssetKey | None = None, with_figures: bool = True
) -> dg.AssetCheckResult:
    """What a step says of a check; without figures of an empty partition, to which plots would fall."""
    return dg.AssetCheckResult(
        check_name=name,
        asset_key=asset_key,
        passed=verdict.passed,
        severity=severity_of(verdict),
        metadata=_metadata(verdict) if with_figures else {},
        description=_description(verdict),
    )


def check_evaluation(
    name: str,
    verdict: Verdict,
    *,
    asset_key: dg.AssetKey,
    partition: str | None = None,
    with_figures: bool = True,
) -> dg.AssetCheckEvaluation:
    """What a run's log, a sensor or a command says of a check; figures as for `check_result`.

    With a partition only within a run: the second evaluation of one without a run breaks Dagster's SQLite storage.
    """
    return dg.AssetCheckEvaluation(
        asset_key=asset_key,
        check_name=name,
        passed=verdict.passed,
        severity=severity_of(verdict),
        metadata=_metadata(verdict) if with_figures else {},
        description=_description(verdict),
        partition=partition,
    )


def aimed(
    instance: dg.DagsterInstance, evaluations: Iterable[dg.AssetCheckEvaluation]
) -> Iterator[dg.AssetCheckEvaluation]:
    """Evaluations with the materializations that they are about: the newest one of the partition, or of the asset.

    Results of steps get theirs from Dagster, logged evaluations do not; and where a partition's last evaluation is not
    about its last materialization, the UI shows the check as missing there. One query per partition, however many
    checks it has.
    """
    targets: dict[tuple[dg.AssetKey, str | None], Any] = {}
    for each in evaluations:
        place = (each.asset_key, each.partition)
        if place not in targets:
            targets[place] = _newest(instance, *place)
        yield dg.AssetCheckEvaluation(
            asset_key=each.asset_key,
            check_name=each.check_name,
            passed=each.passed,
            metadata=each.metadata,
            target_materialization_data=targets[place],
            severity=each.severity,
            description=each.description,
            partition=each.partition,
        )


def _newest(instance: dg.DagsterInstance, asset: dg.AssetKey, partition: str | None) -> Any:
    wanted = dg.AssetRecordsFilter(asset, asset_partitions=None if partition is None else [partition])
    newest = instance.fetch_materializations(wanted, limit=1).records
    if not newest:
        return None
    (record,) = newest
    return _TARGET(storage_id=record.storage_id, run_id=record.event_log_entry.run_id, timestamp=record.timestamp)


def severity_of(verdict: Verdict) -> dg.AssetCheckSeverity:
    """The severity of a verdict that is not passed; only an error can block."""
    return dg.AssetCheckSeverity.ERROR if verdict.level is Level.ERROR else dg.AssetCheckSeverity.WARN


def _metadata(verdict: Verdict) -> dict[str, float]:
    return {f"datalake/{name}": figure for name, figure in verdict.figures.items()}


def _description(verdict: Verdict) -> str | None:
    return "; ".join(verdict.lines) or None


def failed_check(evaluation: dg.AssetCheckEvaluation) -> FailedCheck:
    """An evaluation that did not pass, as commands and the report have it."""
    return FailedCheck(
        evaluation.check_name,
        evaluation.severity.value.lower(),
        evaluation.partition or "",
        evaluation.description or "",
    )


def failed_checks(instance: dg.DagsterInstance, feeds: Iterable[Feed]) -> dict[str, FailedChecks]:
    """What the feeds' rows do not pass now, by Dagster's history: by the feed's name, then by check."""
    return {feed.name: dict(_failed_checks(instance, feed)) for feed in feeds}


def _failed_checks(instance: dg.DagsterInstance, feed: Feed) -> Iterator[tuple[str, tuple[FailedCheck, ...]]]:
    asset = asset_key(feed)
    for name in (*BUILT_IN_CHECKS, *(rule.check_name for rule in feed.checks.rules)):
        history = instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(asset, name), limit=_EXECUTIONS
        )
        evaluated = list(_evaluated(history))
        if evaluated:
            newest_run = evaluated[0][0]
            yield (
                name,
                tuple(
                    failed_check(evaluation)
                    for run, evaluation in _newest_each(evaluated)
                    if not evaluation.passed and (run == newest_run or _still_holds(instance, evaluation))
                ),
            )


def _evaluated(history: Iterable[Any]) -> Iterator[tuple[str, dg.AssetCheckEvaluation]]:
    """The evaluations among executions, with their runs: those of runs that died left none."""
    for record in history:
        event = record.event.dagster_event if record.event else None
        if event is not None and event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            yield record.run_id, event.asset_check_evaluation_data


def _newest_each(
    evaluated: Iterable[tuple[str, dg.AssetCheckEvaluation]],
) -> Iterator[tuple[str, dg.AssetCheckEvaluation]]:
    """The newest evaluation of each partition, and the newest of none."""
    seen: set[str | None] = set()
    for run, evaluation in evaluated:
        if evaluation.partition not in seen:
            seen.add(evaluation.partition)
            yield run, evaluation


def _still_holds(instance: dg.DagsterInstance, evaluation: dg.AssetCheckEvaluation) -> bool:
    """Whether what an earlier run found of a partition holds: later ones judged other partitions.

    What a run found of all that it wrote stands in its partitions' evaluations. A run over many partitions leaves no
    evaluation of one that passes, but a materialization.
    """
    aim = evaluation.target_materialization_data
    if evaluation.partition is None or aim is None:
        return False
    newest = _newest(instance, evaluation.asset_key, evaluation.partition)
    return newest is not None and newest.storage_id == aim.storage_id
