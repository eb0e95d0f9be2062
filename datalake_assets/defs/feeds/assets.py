"""Feeds as assets: one asset per feed, partitioned, each landing its feed through the lake's IO manager.

A table's partitions are its versions: each is added to Dagster before its run, and deleted when the lake removes it.

A feed's document says owners, tags, groups, cron lines and names of checks. What Dagster accepts of them is Dagster's
to say, and it says it when definitions are built and resolved, of all of them at once. Where that fails, each feed is
built by itself, and those that it refuses are left out and named, so that they harm no other (`usable_feeds`). In
their place stand assets that nothing can run, which say why (`left_out_definitions`).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import dagster as dg

from datalake_assets.core.partitions import PartitionBy
from datalake_assets.defs.checks.on_write import check_specs, evaluate_checks
from datalake_assets.defs.metadata import (
    asset_key,
    code_version,
    column_schema,
    feed_metadata,
    source_key,
    totals_metadata,
    versions_name,
)
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runs import tag_run
from datalake_assets.defs.runtime import failures_named, known_dagster_warnings_ignored
from datalake_assets.defs.storage.io_manager import FeedRead, read_feed
from datalake_assets.defs.storage.mart_assets import upstream
from datalake_assets.errors import DatalakeError
from datalake_assets.feed import MAX_PARTITIONS, Feed, partitions_problem
from datalake_assets.feed_sources import FeedKind, MartSource
from datalake_assets.lake.registry import FeedProblem, feed_key

__all__ = [
    "IO_MANAGER_KEY",
    "LEFT_OUT_CHECK",
    "ExportConfig",
    "RefusedFeed",
    "UsableFeeds",
    "add_partitions",
    "add_versions",
    "drop_versions",
    "feed_asset",
    "forget_feed",
    "left_out_definitions",
    "left_out_evaluation",
    "left_out_keys",
    "partitions_of",
    "source_assets",
    "usable_feeds",
    "writer_pool",
]


def add_versions(instance: dg.DagsterInstance, feed: Feed, keys: Iterable[str]) -> None:
    """Makes versions of a table known to Dagster; idempotent, and nothing to do for a stream."""
    if feed.kind is FeedKind.TABLE:
        add_partitions(instance, feed, list(keys))


#: Times that partitions are added: of two processes that add one at once, Dagster's storage refuses one.
_ADDINGS = 5


def add_partitions(instance: dg.DagsterInstance, feed: Feed, keys: Sequence[str]) -> None:
    """Makes dynamic partitions known to Dagster, those that are not; others may be doing so, too."""
    for left in reversed(range(_ADDINGS)):
        known = set(instance.get_dynamic_partitions(versions_name(feed)))
        new = [key for key in keys if key not in known]
        if not new:
            return
        try:
            instance.add_dynamic_partitions(versions_name(feed), new)
        except Exception:  # each of Dagster's storages has errors of its own
            if not left:
                raise
        else:
            return


def empty_partitions(instance: dg.DagsterInstance, read: FeedRead) -> Iterator[dg.AssetMaterialization]:
    """Materializations of the stream's partitions that nobody sent rows for, which would show as missing.

    Only of a source whose every row was read: then a partition between others that has no rows by now has none.
    """
    reports = read.report.partitions if read.report else ()
    if read.report is None or not any(each.position.get("kind") == "offsets" for each in reports):
        return
    materialized = instance.get_materialized_partitions(asset_key(read.feed))
    known = materialized.union(each.key for each in reports)
    first, last = min(known), max(each.key for each in reports)
    between = [key for key in partitions_of(read.feed).get_partition_keys() if first < key < last and key not in known]
    for key in between[-MOST_EMPTY:]:
        metadata = {
            **totals_metadata(read.feed, read.report.totals),
            "dagster/column_schema": column_schema(read.feed, read.report.schema),
            "dagster/partition_row_count": dg.MetadataValue.int(0),
        }
        yield dg.AssetMaterialization(asset_key(read.feed), partition=key, metadata=metadata)


def drop_versions(instance: dg.DagsterInstance, read: FeedRead) -> None:
    """Makes Dagster forget the versions that retention removed during a write."""
    for key in read.report.removed if read.report else ():
        instance.delete_dynamic_partition(versions_name(read.feed), key)


def forget_feed(instance: dg.DagsterInstance, feed: Feed) -> None:
    """Makes Dagster forget a feed that is gone: its asset's history and its versions."""
    for key in instance.get_dynamic_partitions(versions_name(feed)):
        instance.delete_dynamic_partition(versions_name(feed), key)
    if feed.asset is None:
        instance.wipe_assets([asset_key(feed)])


IO_MANAGER_KEY = "lake_io_manager"
#: Empty partitions that one run reports; each is an event, and more wait for the next run.
MOST_EMPTY = 500
#: Dagster refuses a freshness policy of less than a minute.
_SHORTEST_POLICY = timedelta(minutes=1)
_CRON = {PartitionBy.MONTH: "0 0 1 * *", PartitionBy.DAY: "0 0 * * *", PartitionBy.HOUR: "0 * * * *"}


class ExportConfig(dg.Config):
    """What a person can decide for one run of a feed, in the launchpad or on the command line.

    Attributes:
        allow_shrink: Accept that the source has fewer rows than the lake.
        new_epoch: Accept that the source was recreated, or has lost rows that were never read.
        items: Of sources with named items, such as dropped files: look at these alone; none means all.
    """

    allow_shrink: bool = False
    new_epoch: bool = False
    items: list[str] = []  # noqa: RUF012  pydantic copies defaults


def partitions_of(feed: Feed) -> dg.PartitionsDefinition[str]:
    """A stream's time partitions up to and including the current one; a table's versions."""
    if feed.kind is FeedKind.TABLE:
        return dg.DynamicPartitionsDefinition(name=versions_name(feed))
    by = PartitionBy(feed.partition_by)
    start = feed.start_time.replace(day=1) if by is PartitionBy.MONTH else feed.start_time
    return dg.TimeWindowPartitionsDefinition(
        start=start, fmt=by.key_format, cron_schedule=_CRON[by], timezone="UTC", end_offset=1
    )


def writer_pool(feed: Feed) -> str:
    """The pool that keeps two exports of a feed from doing the same work; exactness never rests on it."""
    return f"lake/{feed.path}/write"


def feed_asset(
    feed: Feed,
    *,
    lake_uri: str,
    feeds: Mapping[str, Feed] = MappingProxyType({}),
    run_partitions: int | None = None,
) -> dg.AssetsDefinition:
    """The asset of a feed.

    Args:
        feed: The feed.
        lake_uri: The lake's address, for the links that the UI shows.
        feeds: The lake's feeds by name: a mart is downstream of those that it reads.
        run_partitions: Partitions of a stream that a run of a backfill exports; None for all of them.
    """
    partitions = partitions_of(feed)
    with known_dagster_warnings_ignored():
        asset = dg.asset(
            key=asset_key(feed),
            partitions_def=partitions,
            backfill_policy=_backfill_policy(feed, run_partitions),
            required_resource_keys={"lake", feed.source.type},
            io_manager_key=IO_MANAGER_KEY,
            check_specs=check_specs(feed, partitions),
            pool=writer_pool(feed),
            kinds={"parquet", "duckdb" if feed.is_mart else feed.source.type},
            owners=list(feed.owners),
            tags=feed.tags,
            group_name=feed.group or feed.folder,
            description=feed.description or _description(feed),
            code_version=code_version(feed),
            metadata=feed_metadata(feed, lake_uri=lake_uri),
            deps=upstream(feed, feeds),
            freshness_policy=_freshness_policy(feed),
        )
        return asset(_landing(feed))


def _description(feed: Feed) -> str:
    if isinstance(feed.source, MartSource):
        return f"Made of other feeds, by SQL:\n\n```sql\n{feed.source.query}\n```"
    return f"{feed.source.where}, as Parquet in the lake."


def source_assets(feeds: Iterable[Feed]) -> list[dg.AssetSpec]:
    """What the feeds read, as external assets upstream of them: each once, though several feeds read it."""
    read = {source_key(feed): feed.source for feed in feeds if feed.is_exported and not feed.is_mart}
    return [
        dg.AssetSpec(
            key,
            kinds={source.type},
            group_name="sources",
            description=f"{source.where}, as {source.type} has it; read by the feeds downstream.",
        )
        for key, source in read.items()
    ]


def _landing(feed: Feed) -> Callable[..., Iterator[dg.Output[FeedRead] | dg.AssetCheckResult]]:
    def land_feed(
        context: dg.AssetExecutionContext, config: ExportConfig
    ) -> Iterator[dg.Output[FeedRead] | dg.AssetCheckResult]:
        tag_run(context.instance, context.run)
        lake, read = _read(feed, context.partition_keys, config, context.resources)
        yield dg.Output(read)
        for event in empty_partitions(context.instance, read):
            context.log_event(event)
        drop_versions(context.instance, read)
        yield from evaluate_checks(context, read, lake)

    return land_feed


def _read(feed: Feed, keys: Sequence[str], config: ExportConfig, resources: Any) -> tuple[Lake, FeedRead]:
    with failures_named(feed):
        lake, source = resources.lake.open(), getattr(resources, feed.source.type).open()
    read = read_feed(
        lake,
        source,
        feed,
        keys,
        allow_shrink=config.allow_shrink,
        new_epoch=config.new_epoch,
        items=config.items,
    )
    return lake, read


def _backfill_policy(feed: Feed, run_partitions: int | None) -> dg.BackfillPolicy:
    if feed.kind is FeedKind.TABLE:
        # its versions are pulled one by one: each is what the table was at one moment
        return dg.BackfillPolicy.multi_run(1)
    if run_partitions is None:
        return dg.BackfillPolicy.single_run()
    return dg.BackfillPolicy.multi_run(run_partitions)


def _freshness_policy(feed: Feed) -> dg.FreshnessPolicy | None:
    limit = feed.freshness.max_commit_age
    return None if limit is None else dg.FreshnessPolicy.time_window(fail_window=max(limit, _SHORTEST_POLICY))


#: A feed that has come to so many partitions over the years is kept; above, Dagster's UI is slow for everybody.
LOADED_PARTITIONS = 10 * MAX_PARTITIONS


@dataclass(frozen=True, slots=True)
class RefusedFeed:
    """A feed that cannot be part of a code location, and why, on one line."""

    feed: Feed
    reason: str

    @property
    def problem(self) -> FeedProblem:
        """The same, of the feed's file."""
        return FeedProblem(feed_key(self.feed.name), self.reason, self.feed.kind)


@dataclass(frozen=True, slots=True)
class UsableFeeds:
    """What could be built.

    Attributes:
        definitions: Those of the feeds that Dagster takes.
        refused: The other feeds.
    """

    definitions: dg.Definitions
    refused: tuple[RefusedFeed, ...] = ()


def usable_feeds(feeds: Sequence[Feed], build: Callable[[Sequence[Feed]], dg.Definitions]) -> UsableFeeds:
    """Builds the definitions of all feeds that Dagster takes.

    Args:
        feeds: The feeds.
        build: Makes the definitions of some of them; resolved here, since Dagster looks at much of it only then.

    Raises:
        Exception: As Dagster raises it, if the definitions of no feed at all do not load either.
    """
    now = datetime.now(UTC)
    refused = [
        RefusedFeed(feed, reason)
        for feed in feeds
        if (reason := partitions_problem(feed, now, most=LOADED_PARTITIONS)) is not None
    ]
    kept = _without(feeds, refused)
    try:
        return UsableFeeds(_resolved(kept, build), tuple(refused))
    except Exception:  # noqa: BLE001  whatever it is, one feed must not take the others down
        _resolved((), build)
    refused += [RefusedFeed(feed, reason) for feed in kept if (reason := _refusal((feed,), build)) is not None]
    kept = _without(feeds, refused)
    if _refusal(kept, build) is not None:
        refused += _at_odds(kept, build)
    return UsableFeeds(_resolved(_without(feeds, refused), build), tuple(refused))


def _at_odds(feeds: Sequence[Feed], build: Callable[[Sequence[Feed]], dg.Definitions]) -> list[RefusedFeed]:
    """The feeds that do not go together with those before them, though each loads by itself."""
    kept: list[Feed] = []
    refused = []
    for feed in feeds:
        reason = _refusal((*kept, feed), build)
        if reason is None:
            kept.append(feed)
        else:
            refused.append(RefusedFeed(feed, reason))
    return refused


def _without(feeds: Sequence[Feed], refused: Sequence[RefusedFeed]) -> tuple[Feed, ...]:
    names = {each.feed.name for each in refused}
    return tuple(feed for feed in feeds if feed.name not in names)


def _resolved(feeds: Sequence[Feed], build: Callable[[Sequence[Feed]], dg.Definitions]) -> dg.Definitions:
    definitions = build(feeds)
    dg.Definitions.validate_loadable(definitions)
    return definitions


def _refusal(feeds: Sequence[Feed], build: Callable[[Sequence[Feed]], dg.Definitions]) -> str | None:
    try:
        _resolved(feeds, build)
    except DatalakeError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  Dagster refuses by errors of many kinds, pydantic's and Python's among them
        return f"Dagster refuses it: {_first_sentence(error)}"
    return None


def _first_sentence(error: BaseException) -> str:
    """What the innermost of a chain of errors says, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


#: Dagster's messages may list whole documents.
_LONGEST = 400


#: The check of an asset that stands for a feed which was left out; it never passes, and goes with the asset.
LEFT_OUT_CHECK = "declaration"
_LEFT_OUT = "left_out"
#: Names that Dagster takes are made of these.
_ODD = re.compile(r"[^A-Za-z0-9_]")
_LONGEST_NAME, _LONGEST_REASON = 128, 2_000


def left_out_keys(problems: Iterable[FeedProblem]) -> dict[dg.AssetKey, FeedProblem]:
    """The assets that stand for feeds that were left out: each has the key that the feed's own asset would have."""
    keys: dict[dg.AssetKey, FeedProblem] = {}
    for problem in problems:
        folder = problem.kind.folder if problem.kind else "feeds"
        name = _ODD.sub("_", problem.name)[:_LONGEST_NAME] or "_"
        key = dg.AssetKey([folder, name])
        while key in keys:  # two odd names may become one
            name += "_"
            key = dg.AssetKey([folder, name])
        keys[key] = problem
    return keys


def left_out_definitions(problems: Mapping[dg.AssetKey, FeedProblem], *, lake_uri: str) -> dg.Definitions:
    """Assets that nothing can run, in a group of their own, which say why their feeds were left out.

    All that Dagster judges of them is ours, and only the text of the reason is the feed's: a stand-in cannot be refused
    for what its feed was refused for.
    """
    specs = [_stand_in(key, problem, lake_uri=lake_uri) for key, problem in problems.items()]
    return dg.Definitions(assets=specs, asset_checks=[_left_out_check(key, each) for key, each in problems.items()])


def _stand_in(key: dg.AssetKey, problem: FeedProblem, *, lake_uri: str) -> dg.AssetSpec:
    reason = _shown(problem.reason)
    file = _shown(f"{lake_uri}/{problem.file}")
    return dg.AssetSpec(
        key,
        kinds={_LEFT_OUT},
        tags={"datalake/left_out": ""},
        group_name=_LEFT_OUT,
        # indented by four, so that Markdown takes no part of it for a link or a picture
        description=f"This feed is left out: it cannot be loaded as it is declared.\n\n    {reason}\n\n{_MEND}",
        metadata={"datalake/left_out": dg.MetadataValue.text(reason), "datalake/file": dg.MetadataValue.text(file)},
    )


_MEND = "Correct its declaration; `datalake feeds check` says whether it is well. All other feeds go on meanwhile."


def _left_out_check(key: dg.AssetKey, problem: FeedProblem) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=key, name=LEFT_OUT_CHECK, description="Fails while the feed cannot be loaded as declared.")
    def declaration() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=False, description=_shown(problem.reason))

    return declaration


def left_out_evaluation(key: dg.AssetKey, problem: FeedProblem) -> dg.AssetCheckEvaluation:
    """What a sensor says of the check of a feed that was left out; nobody would evaluate it by hand."""
    return dg.AssetCheckEvaluation(
        asset_key=key, check_name=LEFT_OUT_CHECK, passed=False, metadata={}, description=_shown(problem.reason)
    )


def _shown(text: str) -> str:
    """On one line, not too long, and of characters that can be stored."""
    line = " ".join(text.encode(errors="replace").decode().replace("\0", " ").split())
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]} …"
