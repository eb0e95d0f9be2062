"""What the checks of the feeds say, from Dagster's own records."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from datalake_assets.cli.show import as_table
from datalake_assets.config import Feed
from datalake_assets.defs.instance import open_instance

__all__ = ["checks_summary"]


def checks_summary(feeds: Sequence[Feed]) -> str:
    """A line per check: how many feeds passed it at its latest evaluation, and which did not."""
    wanted = {dg.AssetKey([feed.kind.folder, feed.name]): feed.name for feed in feeds}
    latest: dict[tuple[str, str], bool] = {}
    with open_instance() as instance:
        for key, name in wanted.items():
            for check, passed in _evaluations(instance, key).items():
                latest[check, name] = passed
    rows = []
    for check in sorted({check for check, _ in latest}):
        results = {name: passed for (of, name), passed in latest.items() if of == check}
        failed = sorted(name for name, passed in results.items() if not passed)
        rows.append((check, f"{len(results) - len(failed)} of {len(results)}", ", ".join(failed)))
    return as_table(("check", "passed", "failed for"), rows) if rows else "no checks have run"


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
