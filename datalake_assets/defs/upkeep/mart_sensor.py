"""The sensor that makes a mart anew when what it reads has changed.

It asks the event log first, one query however many partitions there are, and looks at manifests only when something
happened to an input, when the mart itself was changed, and once an hour: an event can be lost. Whether the mart is
stale is the lake's to say. A run that failed is tried again after a minute, then after twice as long each time.
"""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg

from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.runtime import cursor_state
from datalake_assets.defs.upkeep.queue_depth import is_running
from datalake_assets.errors import DatalakeError
from datalake_assets.feed import Feed

__all__ = ["MartSensor", "mart_sensor"]

#: Seconds between two looks.
INTERVAL_S = 30
#: Seconds after which a failed run is tried again, at first and at the most.
FIRST_WAIT_S, LONGEST_WAIT_S = 60.0, 3_600.0
#: Seconds after which the lake is asked though the event log tells of nothing.
LOOK_ANYWAY_S = 3_600.0


class MartSensor:
    """What the sensor of a mart does at each tick.

    Args:
        feed: The mart.
        inputs: The assets of the feeds that it reads.
        is_stale: Asks the lake.
        blocked_by: The blocking check of an input that fails; empty if there is none.
        next_run: The run that makes it anew.
    """

    def __init__(
        self,
        feed: Feed,
        inputs: Sequence[dg.AssetKey],
        *,
        is_stale: Callable[[], bool],
        next_run: Callable[[dg.DagsterInstance], dg.RunRequest],
        blocked_by: Callable[[dg.DagsterInstance], str] = lambda _: "",
    ) -> None:
        self._feed, self._inputs, self._is_stale, self._next_run = feed, list(inputs), is_stale, next_run
        self._blocked_by = blocked_by

    def tick(self, instance: dg.DagsterInstance, cursor: str | None, *, now: float) -> dg.SensorResult:
        """One tick.

        Args:
            instance: Dagster's instance.
            cursor: What the last tick returned; anything that cannot be read counts as none.
            now: Seconds since 1970.
        """
        state = cursor_state(cursor)
        newest = self._newest(instance)
        if newest == state.get("made_of") and now - _number(state.get("looked_at")) < LOOK_ANYWAY_S:
            return _skip("nothing that it reads has changed", cursor)
        attempt = int(_number(state.get("attempt"))) if state.get("asked_for") == newest else 0
        if waits_for := self._waits_for(instance, attempt, _number(state.get("asked_at")), now):
            return _skip(waits_for, cursor)
        try:
            if not self._is_stale():
                return _skip("it is up to date", json.dumps({"made_of": newest, "looked_at": round(now)}))
            request = self._next_run(instance)
        except DatalakeError as error:
            return _skip(str(error), cursor)
        asked = {"made_of": state.get("made_of"), "asked_for": newest, "asked_at": round(now), "attempt": attempt + 1}
        return dg.SensorResult(run_requests=[request], cursor=json.dumps(asked))

    def _waits_for(self, instance: dg.DagsterInstance, attempt: int, asked_at: float, now: float) -> str:
        """Why no run is asked for by now; empty if one can be."""
        if is_running(instance, self._feed):
            return "a run of it is under way"
        wait_s = asked_at + _wait_s(attempt) - now if attempt else 0
        if wait_s > 0:
            return f"its last run failed, and is tried again in {wait_s:.0f} s"
        blocked = self._blocked_by(instance)
        return f"it waits for check {blocked}" if blocked else ""

    def _newest(self, instance: dg.DagsterInstance) -> list[Any]:
        """The revision of the mart; of each input the newest materialization and the newest observation."""
        records = {each.asset_entry.asset_key: each.asset_entry for each in instance.get_asset_records(self._inputs)}
        found = [records.get(key) for key in self._inputs]
        events = [
            [each.last_materialization_storage_id or 0, each.last_observation_storage_id or 0] if each else [0, 0]
            for each in found
        ]
        return [self._feed.revision, *events]


def _wait_s(attempt: int) -> float:
    return float(min(FIRST_WAIT_S * 2 ** (attempt - 1), LONGEST_WAIT_S))


def _number(found: Any) -> float:
    return float(found) if isinstance(found, int | float) else 0.0


def _skip(reason: str, cursor: str | None) -> dg.SensorResult:
    return dg.SensorResult(skip_reason=reason, cursor=cursor)


def mart_sensor(
    feed: Feed,
    inputs: Sequence[dg.AssetKey],
    *,
    is_stale: Callable[[], bool],
    next_run: Callable[[dg.DagsterInstance], dg.RunRequest],
    blocked_by: Callable[[dg.DagsterInstance], str],
) -> dg.SensorDefinition:
    """The sensor of a mart; see `MartSensor` for its arguments."""
    sensor = MartSensor(feed, inputs, is_stale=is_stale, next_run=next_run, blocked_by=blocked_by)

    @dg.sensor(
        name=f"mart_sensor_{feed.name}",
        target=dg.AssetSelection.assets(asset_key(feed)),
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Makes {feed.path} anew when what it reads has changed.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return sensor.tick(context.instance, context.cursor, now=time.time())

    return look
