"""Checks where nothing is exported: of adopted folders, as steps of their own; and after compactions."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import dagster as dg

from datalake_assets.core.facts import PlannedPartition
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
from datalake_assets.defs.check_results import check_evaluation, check_result
from datalake_assets.defs.checks.nightly import rule_results
from datalake_assets.defs.checks.on_write import DESCRIPTIONS, health_now, size_verdicts
from datalake_assets.defs.metadata import asset_key, event_partition
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runs import tag_run
from datalake_assets.defs.runtime import failures_named
from datalake_assets.feed import Feed, FeedKind
from datalake_assets.lake.feed_compaction import request_of

__all__ = ["folder_checks", "folder_verdicts", "healths_of", "size_evaluations"]

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
