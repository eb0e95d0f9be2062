"""Reads compactions from Dagster's event log and run history, once for the sensor, checks and maintenance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import dagster as dg

from datalake_assets.core.compaction.watch import RunOutcome
from datalake_assets.defs.metadata import (
    COMPACTION_FAILURES,
    COMPACTION_TIME,
    FEED_PARTITION,
    FILES_COMPACTED,
    PARTITION_ERRORS,
    UNUSABLE_FILES,
)

__all__ = ["PAGE", "EventPage", "EventReader", "RunEnd", "end_of", "unusable_files"]

#: Events that are read at once; Dagster gives no more than 1,000.
PAGE = 500
#: A partition's newest observations that are searched for its last compaction: others observe folders too.
RECENT = 20
#: The partition of an adopted folder that has no folders in it.
_WHOLE_FOLDER = "."
_RUN_KEY = "dagster/run_key"


@dataclass(frozen=True, slots=True)
class EventPage:
    """Some events in the order of their ids.

    Attributes:
        last_id: Storage id of the last one; that asked for if there are none.
        changed: Partitions whose files changed.
        flawed: Partitions that were compacted, each with whether that left files which no rewrite can take.
        is_last: There are no more events now.
    """

    last_id: int
    changed: tuple[str, ...]
    flawed: Mapping[str, bool]
    is_last: bool


@dataclass(frozen=True, slots=True)
class RunEnd:
    """What became of a run.

    Attributes:
        outcome: Whether it goes on, or how it ended.
        errors: Its error for each partition that failed; empty too if it was killed.
        flawed: Partitions that it compacted, each with whether that left files which no rewrite can take.
        work_s: Seconds that it has merged files.
    """

    outcome: RunOutcome
    errors: Mapping[str, str] = field(default_factory=dict)
    flawed: Mapping[str, bool] = field(default_factory=dict)
    work_s: float = 0.0


class EventReader:
    """Reads the events of one asset.

    Args:
        instance: Dagster's instance.
        asset: The asset.
        by_others: Its files are adopted, so that an observation may be the only sign of a change.
        page: Events that are read at once.
    """

    def __init__(self, instance: dg.DagsterInstance, asset: dg.AssetKey, *, by_others: bool, page: int = PAGE) -> None:
        self._instance, self._asset, self._by_others, self._limit = instance, asset, by_others, page

    def materialized_after(self, storage_id: int) -> EventPage:
        """Materializations: every one may have brought files."""
        records = self._instance.fetch_materializations(
            self._after(storage_id), limit=self._limit, ascending=True
        ).records
        keys = [self._partition(record) for record in records]
        return self._page(storage_id, records, [key for key in keys if key is not None], {})

    def observed_after(self, storage_id: int) -> EventPage:
        """Observations: what compactions left behind and, of a folder, what others may have changed."""
        records = self._instance.fetch_observations(self._after(storage_id), limit=self._limit, ascending=True).records
        changed: list[str] = []
        flawed: dict[str, bool] = {}
        for record in records:
            key, metadata = self._partition(record), _metadata(record)
            if key is None or COMPACTION_FAILURES in metadata:  # the sensor's own report
                continue
            if FILES_COMPACTED in metadata:
                flawed[key] = bool(_files(metadata))
            elif self._by_others:
                changed.append(key)
        return self._page(storage_id, records, changed, flawed)

    def _after(self, storage_id: int) -> dg.AssetRecordsFilter:
        return dg.AssetRecordsFilter(asset_key=self._asset, after_storage_id=storage_id or None)

    def _partition(self, record: dg.EventLogRecord) -> str | None:
        return _partition_of(record) or (_WHOLE_FOLDER if self._by_others else None)

    def _page(
        self, storage_id: int, records: Sequence[dg.EventLogRecord], changed: Sequence[str], flawed: Mapping[str, bool]
    ) -> EventPage:
        last_id = records[-1].storage_id if records else storage_id
        return EventPage(last_id, tuple(dict.fromkeys(changed)), flawed, len(records) < self._limit)


def unusable_files(instance: dg.DagsterInstance, asset: dg.AssetKey, key: str) -> Mapping[str, str]:
    """The files of a partition that its last compaction could not take, by name with the reason."""
    by_partition = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[key])
    for wanted in (by_partition, dg.AssetRecordsFilter(asset_key=asset)):  # the asset may have no partitions
        for record in instance.fetch_observations(wanted, limit=RECENT).records:
            metadata = _metadata(record)
            if FILES_COMPACTED in metadata and _partition_of(record) == key:
                return _files(metadata)
    return {}


def end_of(instance: dg.DagsterInstance, run_key: str) -> RunEnd:
    """What became of the run of a request.

    A run that is nowhere to be found was deleted: its outcome is that of one that failed.
    """
    runs = instance.get_runs(filters=dg.RunsFilter(tags={_RUN_KEY: run_key}), limit=1)
    if not runs:
        return RunEnd(RunOutcome.FAILED)
    (run,) = runs
    if not run.is_finished:
        return RunEnd(RunOutcome.RUNNING)
    flawed, work_s = _compacted(instance, run.run_id)
    if run.is_success:
        return RunEnd(RunOutcome.SUCCEEDED, flawed=flawed, work_s=work_s)
    return RunEnd(RunOutcome.FAILED, _errors(instance, run.run_id), flawed, work_s)


def _compacted(instance: dg.DagsterInstance, run_id: str) -> tuple[Mapping[str, bool], float]:
    """The partitions that a run compacted, each with whether that left files which no rewrite can take; its seconds."""
    flawed: dict[str, bool] = {}
    work_ms = 0
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION):
        event = entry.get_dagster_event().asset_observation_data.asset_observation
        key = _event_partition(event)
        if key is not None and FILES_COMPACTED in event.metadata:
            flawed[key] = bool(_files(event.metadata))
            took = event.metadata.get(COMPACTION_TIME)
            work_ms += took.value or 0 if isinstance(took, dg.IntMetadataValue) else 0
    return flawed, work_ms / 1000


def _errors(instance: dg.DagsterInstance, run_id: str) -> Mapping[str, str]:
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        failure = entry.get_dagster_event().step_failure_data.user_failure_data
        value = failure.metadata.get(PARTITION_ERRORS) if failure else None
        if isinstance(value, dg.JsonMetadataValue) and isinstance(value.data, dict):
            return {str(key): str(error) for key, error in value.data.items()}
    return {}


def _partition_of(record: dg.EventLogRecord) -> str | None:
    event = record.asset_materialization or record.asset_observation
    return _event_partition(event) if event else None


def _event_partition(event: dg.AssetMaterialization | dg.AssetObservation) -> str | None:
    """The feed's partition; that of an asset without partitions is in the event's metadata."""
    value = event.metadata.get(FEED_PARTITION)
    return event.partition or (str(value.value) if value else None)


def _metadata(record: dg.EventLogRecord) -> Mapping[str, dg.MetadataValue]:
    return record.asset_observation.metadata if record.asset_observation else {}


def _files(metadata: Mapping[str, dg.MetadataValue]) -> Mapping[str, str]:
    value = metadata.get(UNUSABLE_FILES)
    if not isinstance(value, dg.JsonMetadataValue) or not isinstance(value.data, list):
        return {}
    return {str(each["name"]): str(each["reason"]) for each in value.data}
