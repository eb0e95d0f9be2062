"""Verdicts as Dagster's check results. Figures stay numbers, and plot."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

import dagster as dg

from datalake_assets.core.verdicts import Verdict
from datalake_assets.defs.runtime import open_instance
from datalake_assets.feed import Feed
from datalake_assets.policies import Level

__all__ = ["aimed", "check_evaluation", "check_result", "latest_results", "severity_of"]

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


def latest_results(feeds: Sequence[Feed]) -> dict[tuple[str, str], bool]:
    """Whether each feed passed each check in the latest run that materialized it, by check and feed."""
    latest: dict[tuple[str, str], bool] = {}
    with open_instance() as instance:
        for feed in feeds:
            for check, passed in _evaluations(instance, dg.AssetKey([feed.kind.folder, feed.name])).items():
                latest[check, feed.name] = passed
    return latest


def _evaluations(instance: dg.DagsterInstance, key: dg.AssetKey) -> dict[str, bool]:
    """The latest evaluation of each check of an asset."""
    run = _latest_run(instance, key)
    if run is None:
        return {}
    logs = instance.all_logs(run, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    found: dict[str, bool] = {}
    for entry in logs:
        event = entry.dagster_event
        evaluation = event.asset_check_evaluation_data if event else None
        if evaluation is not None and evaluation.asset_key == key:
            found[evaluation.check_name] = found.get(evaluation.check_name, True) and evaluation.passed
    return found


def _latest_run(instance: dg.DagsterInstance, key: dg.AssetKey) -> str | None:
    event = instance.get_latest_materialization_event(key)
    return event.run_id if event else None
