"""Verdicts as Dagster's check results. Figures stay numbers, and plot."""

import dagster as dg

from datalake_assets.core.health import Verdict
from datalake_assets.policies import Level

__all__ = ["check_evaluation", "check_result", "severity_of"]


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


def severity_of(verdict: Verdict) -> dg.AssetCheckSeverity:
    """Of a verdict that is not passed; only an error can block."""
    return dg.AssetCheckSeverity.ERROR if verdict.level is Level.ERROR else dg.AssetCheckSeverity.WARN


def _metadata(verdict: Verdict) -> dict[str, float]:
    return {f"datalake/{name}": figure for name, figure in verdict.figures.items()}


def _description(verdict: Verdict) -> str | None:
    return "; ".join(verdict.lines) or None
