"""Verdicts as Dagster's check results. Figures stay numbers, and plot."""

from typing import Any, get_args

import dagster as dg

from datalake_assets.core.health import Verdict
from datalake_assets.policies import Level

__all__ = ["aimed", "check_evaluation", "check_result", "severity_of"]

#: Dagster's type of a pointer to a materialization, which it names in its signatures and does not export.
_TARGET: Any = get_args(dg.AssetCheckEvaluation.__annotations__["target_materialization_data"])[0]


def check_result(name: str, verdict: Verdict, *, asset_key: dg.AssetKey | None = None) -> dg.AssetCheckResult:
    """What a step says of a check."""
    return dg.AssetCheckResult(
        check_name=name,
        asset_key=asset_key,
        passed=verdict.passed,
        severity=severity_of(verdict),
        metadata=_metadata(verdict),
        description=_description(verdict),
    )


def check_evaluation(
    name: str, verdict: Verdict, *, asset_key: dg.AssetKey, partition: str | None = None
) -> dg.AssetCheckEvaluation:
    """What a run's log, a sensor or a command says of a check.

    With a partition only within a run: the second evaluation of one without a run breaks Dagster's SQLite storage.
    """
    return dg.AssetCheckEvaluation(
        asset_key=asset_key,
        check_name=name,
        passed=verdict.passed,
        severity=severity_of(verdict),
        metadata=_metadata(verdict),
        description=_description(verdict),
        partition=partition,
    )


def aimed(instance: dg.DagsterInstance, evaluation: dg.AssetCheckEvaluation) -> dg.AssetCheckEvaluation:
    """The evaluation with the materialization that it is about: the newest one of its partition, or of its asset.

    Results of steps get theirs from Dagster, logged evaluations do not; and where a partition's last evaluation is not
    about its last materialization, the UI shows the check as missing there.
    """
    asset, partition = evaluation.asset_key, evaluation.partition
    wanted = dg.AssetRecordsFilter(asset, asset_partitions=None if partition is None else [partition])
    newest = instance.fetch_materializations(wanted, limit=1).records
    if not newest:
        return evaluation
    (record,) = newest
    target = _TARGET(storage_id=record.storage_id, run_id=record.event_log_entry.run_id, timestamp=record.timestamp)
    return dg.AssetCheckEvaluation(
        asset_key=asset,
        check_name=evaluation.check_name,
        passed=evaluation.passed,
        metadata=evaluation.metadata,
        target_materialization_data=target,
        severity=evaluation.severity,
        description=evaluation.description,
        partition=partition,
    )


def severity_of(verdict: Verdict) -> dg.AssetCheckSeverity:
    """Of a verdict that is not passed; only an error can block."""
    return dg.AssetCheckSeverity.ERROR if verdict.level is Level.ERROR else dg.AssetCheckSeverity.WARN


def _metadata(verdict: Verdict) -> dict[str, float]:
    return {f"datalake/{name}": figure for name, figure in verdict.figures.items()}


def _description(verdict: Verdict) -> str | None:
    return "; ".join(verdict.lines) or None
