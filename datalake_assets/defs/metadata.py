"""What the UI shows of feeds and partitions: our reports as Dagster metadata, our verdicts as its check results.

Numbers stay numbers and plot.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import dagster as dg
import pyarrow as pa

from datalake_assets.core.compaction.compaction_report import CompactionReport, TaskFigures
from datalake_assets.core.compaction.plan import CompactionRequest, rules_of
from datalake_assets.core.compaction.watch import Report
from datalake_assets.core.facts import Deletion, FailedCheck, PartitionFacts
from datalake_assets.core.partitions import partition_path
from datalake_assets.core.verdicts import FailedChecks, Verdict
from datalake_assets.core.wording import size_text
from datalake_assets.defs.runtime import known_dagster_warnings_ignored
from datalake_assets.feed import ColumnNote, Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.feed_compaction import unusable
from datalake_assets.lake.registry import feed_key
from datalake_assets.lake.table import FeedTotals, WriteReport
from datalake_assets.policies import BUILT_IN_CHECKS, QUEUE_CHECKS, Level
from datalake_assets.settings import Environment

__all__ = [
    "COMPACTION_FAILURES",
    "COMPACTION_TIME",
    "FEED_PARTITION",
    "FILES_COMPACTED",
    "NOTES",
    "PARTITION_ERRORS",
    "UNUSABLE_FILES",
    "Metadata",
    "aimed",
    "asset_key",
    "check_evaluation",
    "check_names",
    "check_result",
    "code_version",
    "column_schema",
    "compaction_metadata",
    "compaction_report_metadata",
    "data_version",
    "deletion_metadata",
    "event_partition",
    "failed_check",
    "failed_checks",
    "feed_metadata",
    "folder_metadata",
    "partition_metadata",
    "recommendation_metadata",
    "rows_key",
    "severity_of",
    "source_key",
    "totals_metadata",
    "versions_name",
    "write_metadata",
]

Metadata = Mapping[str, dg.MetadataValue]

#: On the events of assets without partitions: the partition of their feed.
FEED_PARTITION = "datalake/partition"
#: On observations of compactions, and on no others.
FILES_COMPACTED = "datalake/files_compacted"
#: On observations of compactions: the files that no rewrite can take, each with its ``name`` and the ``reason``.
UNUSABLE_FILES = "datalake/unusable_files"
#: On observations of what cannot be compacted, and on no others.
COMPACTION_FAILURES = "datalake/compaction_failures"
COMPACTION_TIME = "datalake/compaction_time_ms"
#: On the failure of a compaction run: what went wrong with each of its partitions that failed.
PARTITION_ERRORS = "datalake/errors"
#: What a person should know of a write, a line each; not there if there is nothing.
NOTES = "datalake/notes"
#: Unusable files that an observation names; it says how many there are.
_MOST_NAMED = 1_000


def asset_key(feed: Feed) -> dg.AssetKey:
    """``["streams", name]``, ``["tables", name]``, ``["marts", name]``, or the key of the asset that writes it."""
    return dg.AssetKey.from_user_string(feed.asset) if feed.asset else dg.AssetKey([feed.folder, feed.name])


def source_key(feed: Feed) -> dg.AssetKey:
    """What an exported feed reads, as an asset upstream of it: ``["<type>", "ORDERS"]``.

    Dagster takes letters, digits and underscores; an address has others, and gets a digest that tells it apart.
    """
    where = feed.source.where
    name = _ODD.sub("_", where).strip("_")
    if name != where:
        name = f"{name}_{hashlib.blake2b(where.encode(), digest_size=4).hexdigest()}"
    return dg.AssetKey([feed.source.type, name])


_ODD = re.compile(r"[^A-Za-z0-9_]+")


def versions_name(feed: Feed) -> str:
    """The name under which Dagster keeps the versions of a table."""
    return feed.path


def event_partition(feed: Feed, key: str) -> str | None:
    """The partition of a feed's asset that a partition of the feed is; None where the asset has no partitions."""
    return None if feed.asset and feed.kind is not FeedKind.STREAM else key


def rows_key(feed: Feed) -> str:
    """The metadata key of a partition's rows, as Dagster calls it for an asset with partitions, or without.

    A version is all of a table; a folder has more partitions, and what one has is not what Dagster's UI shows as rows.
    """
    if event_partition(feed, "") is not None:
        return "dagster/partition_row_count"
    return "dagster/row_count" if feed.kind is FeedKind.TABLE else "datalake/partition_rows"


def code_version(feed: Feed) -> str:
    """Changes when the feed's declaration does; how it is run, archiving, and notes on columns change nothing."""
    document = feed.model_dump(mode="json", exclude={"revision", "enabled", "columns", "runs"})
    return _digest(json.dumps(document, sort_keys=True))


def data_version(feed: Feed, reports: Iterable[PartitionFacts]) -> dg.DataVersion:
    """What the data of a run's partitions is, as far as downstream assets care.

    A table's is its version. A stream's follows the positions: a row is in the lake iff the position says so. Without
    it, Dagster would take the data to be the same as long as the code version is.
    """
    listed = list(reports)
    if feed.kind is FeedKind.TABLE and len(listed) == 1:
        return dg.DataVersion(listed[0].key)
    return dg.DataVersion(_digest(json.dumps([_content(each) for each in listed], default=str)))


def feed_metadata(feed: Feed, *, lake_uri: str) -> dict[str, dg.MetadataValue]:
    """What is known of a feed's asset before any run; ``lake_uri`` is a folder or ``s3://…``."""
    metadata: dict[str, dg.MetadataValue] = {
        "dagster/table_name": dg.MetadataValue.text(feed.name),
        "dagster/uri": dg.MetadataValue.text(_folder_uri(feed, lake_uri)),
        "datalake/source": dg.MetadataValue.text(f"{feed.source.type}: {feed.source.where}"),
    }
    file = Path(lake_uri) / feed_key(feed.name)
    if "://" not in lake_uri and file.is_file():
        with known_dagster_warnings_ignored():
            reference = dg.LocalFileCodeReference(file_path=str(file), line_number=1, label="feed")
            metadata["dagster/code_references"] = dg.CodeReferencesMetadataValue(code_references=[reference])
    return metadata


def partition_metadata(
    feed: Feed, report: PartitionFacts, *, lake_uri: str, schema: pa.Schema
) -> dict[str, dg.MetadataValue]:
    """A partition's facts after a write, for its materialization."""
    return {
        **_partition_now(feed, report, lake_uri=lake_uri),
        "dagster/column_schema": column_schema(feed, schema),
        "datalake/rows_added": dg.MetadataValue.int(report.rows_added),
    }


def totals_metadata(feed: Feed, totals: FeedTotals | None) -> dict[str, dg.MetadataValue]:
    """A stream as a whole, beside one of its partitions: what its page shows first, and what plots without gaps."""
    if totals is None or feed.kind is not FeedKind.STREAM:
        return {}
    return {
        "dagster/row_count": dg.MetadataValue.int(totals.rows),
        "dagster/size_bytes": dg.MetadataValue.int(totals.size_bytes),
        "datalake/feed_files": dg.MetadataValue.int(totals.files),
        "datalake/feed_small_files": dg.MetadataValue.int(totals.small_files),
        "datalake/feed_partitions": dg.MetadataValue.int(totals.partitions),
    }


def compaction_metadata(feed: Feed, report: CompactionReport, *, lake_uri: str) -> dict[str, dg.MetadataValue]:
    """A partition's facts after a compaction, and what that did, for its observation."""
    useless = unusable(report.skipped)
    named = [{"name": each.name, "reason": each.reason} for each in useless[:_MOST_NAMED]]
    return {
        **_partition_now(feed, report.partition, lake_uri=lake_uri),
        FILES_COMPACTED: dg.MetadataValue.int(report.files_compacted),
        UNUSABLE_FILES: dg.MetadataValue.json(named),
        "datalake/files_unusable": dg.MetadataValue.int(len(useless)),
        "datalake/files_removed": dg.MetadataValue.int(report.files_removed),
        "datalake/files_skipped": dg.MetadataValue.int(len(report.skipped)),
        "datalake/bytes_saved": dg.MetadataValue.int(report.bytes_saved),
        "datalake/rows_compacted": dg.MetadataValue.int(report.rows),
        COMPACTION_TIME: dg.MetadataValue.int(report.compaction_time_ms),
        "datalake/kernel": dg.MetadataValue.text(report.kernel or "none"),
        "datalake/row_groups_merged": dg.MetadataValue.int(report.row_groups_merged),
        "datalake/row_groups_encoded": dg.MetadataValue.int(report.row_groups_encoded),
        "datalake/files_decoded": dg.MetadataValue.int(len(report.detours)),
        **_tasks_metadata(report.tasks),
    }


def _tasks_metadata(tasks: Sequence[TaskFigures]) -> dict[str, dg.MetadataValue]:
    """What other processes did for a compaction; nothing if it needed none."""
    if not tasks:
        return {}
    return {
        "datalake/engine_tasks": dg.MetadataValue.json([asdict(each) for each in tasks[:_MOST_NAMED]]),
        "datalake/engine_workers": dg.MetadataValue.int(len({each.worker for each in tasks})),
        "datalake/engine_cpu_s": dg.MetadataValue.float(sum(each.cpu_s or 0.0 for each in tasks)),
    }


def deletion_metadata(feed: Feed, deletion: Deletion, *, lake_uri: str) -> dict[str, dg.MetadataValue]:
    """A partition's facts after rows of it were deleted."""
    facts = deletion.partition or PartitionFacts(deletion.key)
    return {
        **_partition_now(feed, facts, lake_uri=lake_uri),
        "datalake/rows_deleted": dg.MetadataValue.int(deletion.rows_deleted),
    }


def recommendation_metadata(
    feed: Feed, report: PartitionFacts, environment: Environment
) -> dict[str, dg.MetadataValue]:
    """At every so many commits of a partition, by the feed's policy: whether it has enough small files to merge."""
    every = feed.compaction.recommend_every
    if not every or not report.generation or report.generation % every:
        return {}
    rules = rules_of(feed, CompactionRequest(environment=environment))
    return {
        "compaction_recommended": dg.MetadataValue.bool(report.small_files >= rules.min_files),
        "small_files_count": dg.MetadataValue.int(report.small_files),
    }


def compaction_report_metadata(report: Report) -> dict[str, dg.MetadataValue]:
    """How much of a partition cannot be compacted, for the observation that says why."""
    return {
        COMPACTION_FAILURES: dg.MetadataValue.int(report.failures),
        "datalake/files_unusable": dg.MetadataValue.int(report.unusable),
        "datalake/files_waiting": dg.MetadataValue.int(report.waiting),
    }


def folder_metadata(feed: Feed, report: PartitionFacts, *, lake_uri: str) -> dict[str, dg.MetadataValue]:
    """The facts of an adopted folder's partition, for its observation."""
    return _partition_now(feed, report, lake_uri=lake_uri)


def _partition_now(feed: Feed, report: PartitionFacts, *, lake_uri: str) -> dict[str, dg.MetadataValue]:
    """What materializations and observations of a partition both say, so that the UI plots them as one line."""
    path = partition_path(feed, report.key)
    metadata: dict[str, dg.MetadataValue] = {
        rows_key(feed): dg.MetadataValue.int(report.rows),
        "dagster/uri": dg.MetadataValue.text(f"{_folder_uri(feed, lake_uri)}/{path}".rstrip("/")),
        "dagster/table_name": dg.MetadataValue.text(feed.name),
        "datalake/position": dg.MetadataValue.text(_position_text(report)),
    }
    if report.files or feed.kind is not FeedKind.STREAM:  # a plot would fall to 0 at each empty partition
        metadata |= {
            "datalake/files": dg.MetadataValue.int(report.files),
            "datalake/small_files": dg.MetadataValue.int(report.small_files),
            "datalake/size_bytes": dg.MetadataValue.int(report.size_bytes),
            "datalake/size": dg.MetadataValue.text(size_text(report.size_bytes)),
        }
    if event_partition(feed, report.key) is None:
        metadata[FEED_PARTITION] = dg.MetadataValue.text(report.key)
    if report.min_time and report.max_time:
        metadata["datalake/oldest_event"] = dg.MetadataValue.timestamp(report.min_time)
        metadata["datalake/newest_event"] = dg.MetadataValue.timestamp(report.max_time)
    return metadata


def _position_text(report: PartitionFacts) -> str:
    """JSON on one line: as a JSON value, the UI gives every number of each source partition a line of its own."""
    return json.dumps(dict(report.position), default=str)


def _folder_uri(feed: Feed, lake_uri: str) -> str:
    """Where a feed's data are: in the lake, or in what was adopted."""
    return feed.source.where if feed.is_adopted else f"{lake_uri}/{feed.data_path}"


def write_metadata(report: WriteReport) -> dict[str, dg.MetadataValue]:
    """What a whole write did. Of a run over many partitions every one shows these same totals."""
    notes: dict[str, dg.MetadataValue] = {NOTES: dg.MetadataValue.json(list(report.notes))} if report.notes else {}
    if report.misfits:
        notes |= {
            "datalake/misfits": dg.MetadataValue.json(dict(report.misfits)),
            "datalake/values_discarded": dg.MetadataValue.int(report.values_discarded),
        }
    return notes | {
        "datalake/rows_read": dg.MetadataValue.int(report.rows_read),
        "datalake/rows_known": dg.MetadataValue.int(report.rows_known),
        "datalake/rows_quarantined": dg.MetadataValue.int(report.rows_quarantined),
        "datalake/s3_requests": dg.MetadataValue.int(sum(report.requests.values())),
        "datalake/s3_put_requests": dg.MetadataValue.int(report.requests.get("put", 0)),
    }


def column_schema(feed: Feed, schema: pa.Schema) -> dg.TableSchemaMetadataValue:
    """Columns with their Arrow types and what the feed says of them, for the asset's "Columns" tab."""
    columns = []
    for field in schema:
        note = feed.columns.get(field.name, ColumnNote())
        constraints = dg.TableColumnConstraints(nullable=field.nullable)
        columns.append(
            dg.TableColumn(field.name, str(field.type), note.text or None, constraints=constraints, tags=note.tags)
        )
    return dg.TableSchemaMetadataValue(schema=dg.TableSchema(columns=columns))


def _content(report: PartitionFacts) -> list[object]:
    """What a partition's rows follow from; not when they were pulled, since the same rows may be pulled again."""
    position = {name: value for name, value in sorted(report.position.items()) if name != "as_of"}
    return [report.key, report.rows, position]


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


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


def check_names(feed: Feed) -> tuple[str, ...]:
    """Names of all checks that a feed may have."""
    return (*BUILT_IN_CHECKS, *QUEUE_CHECKS, *(rule.check_name for rule in feed.checks.rules))


def _failed_checks(instance: dg.DagsterInstance, feed: Feed) -> Iterator[tuple[str, tuple[FailedCheck, ...]]]:
    asset = asset_key(feed)
    for name in check_names(feed):
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
