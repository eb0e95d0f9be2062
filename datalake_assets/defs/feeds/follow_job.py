"""The job that follows streams: `datalake run` as a run of Dagster, which goes on until it is terminated."""

import queue
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import dagster as dg

from datalake_assets.continuous.following import Following, Landed
from datalake_assets.core.facts import PartitionFacts
from datalake_assets.defs.checks.on_write import evaluations_now
from datalake_assets.defs.metadata import asset_key, partition_metadata, totals_metadata, write_metadata
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runs import tag_run
from datalake_assets.defs.runtime import failures_named, isolated, known_dagster_warnings_ignored
from datalake_assets.errors import ConfigError, DatalakeError
from datalake_assets.feed import Feed
from datalake_assets.sources.base import SourceSystem

__all__ = ["FOLLOW", "FollowConfig", "follow_jobs"]

FOLLOW = "follow_streams"
#: Seconds after which a run tells Dagster what it landed: each partition is an event.
REPORT_S = 60.0
#: Seconds after which the rules of a feed are evaluated again: that reads the partitions that were written, whole.
RULES_S = 600.0
_POLL_S = 0.5

_DESCRIPTION = """\
Follows streams: commits their rows in batches as they come, by each feed's `batch` policy, as `datalake run` does. It
goes on until it is terminated; what was read by then is committed first, and the next run goes on from there. A run
that was killed leaves nothing half-done either.
"""


class FollowConfig(dg.Config):
    """What to follow.

    Attributes:
        feeds: Names of feeds; none means all active ones that can be followed.
    """

    feeds: list[str] = []  # noqa: RUF012  pydantic copies defaults


def follow_jobs(
    lake: Lake, feeds: Sequence[Feed], connect: Callable[[str], AbstractContextManager[SourceSystem]]
) -> list[dg.JobDefinition]:
    """The job, if there is a feed that can be followed.

    Args:
        lake: The lake.
        feeds: Its feeds.
        connect: Connects to systems of a type.
    """
    known = {feed.name: feed for feed in feeds if feed.can_be_followed}

    @dg.op(name="follow", description="Follows streams until it is terminated.")
    def follow(context: dg.OpExecutionContext, config: FollowConfig) -> None:
        tag_run(context.instance, context.run)
        follow_until_ended(_RunLog(context, lake), lake, _chosen(known, config), connect)

    @dg.job(name=FOLLOW, description=_DESCRIPTION, executor_def=dg.in_process_executor)
    def follow_streams() -> None:
        follow()

    return [follow_streams] if known else []


def _chosen(known: dict[str, Feed], config: FollowConfig) -> list[str]:
    names = config.feeds or list(known)
    for name in names:
        with failures_named(name):
            if name not in known:
                raise ConfigError(f"feed {name!r} is none that can be followed; there are {', '.join(sorted(known))}")
    return names


def follow_until_ended(
    log: "_RunLog", lake: Lake, names: Sequence[str], connect: Callable[[str], AbstractContextManager[SourceSystem]]
) -> None:
    """Follows feeds until this thread is interrupted, or all of them are gone; tells in this thread what they do."""
    try:
        with Following(lambda: lake.store, connect=connect, log=log, run_id=log.run_id, report_s=REPORT_S) as following:
            for name in names:
                following.follow(name)
            while not following.is_over:
                log.tell(wait_s=_POLL_S)
                following.check()
    finally:
        log.tell()


@dataclass(slots=True)
class _RunLog:
    """Collects in the followers' threads what the run's own tells Dagster; implements `FollowingLog`.

    Attributes:
        context: The run's.
        lake: The lake.
    """

    context: dg.OpExecutionContext
    lake: Lake
    _landed: "queue.SimpleQueue[Landed]" = field(default_factory=queue.SimpleQueue)
    _ruled_at: dict[str, float] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        """The run's."""
        return str(self.context.run.run_id)

    def landed(self, landed: Landed) -> None:
        """Implements `FollowingLog`."""
        self._landed.put(landed)

    def failed(self, feed: str, error: DatalakeError, *, again_in_s: float) -> None:
        """Implements `FollowingLog`."""
        self.context.log.warning("%s: %s; tried again in %g s", feed, error, again_in_s)

    def gone(self, feed: str, reason: str) -> None:
        """Implements `FollowingLog`."""
        self.context.log.warning("%s is followed no longer: %s", feed, reason)

    def tell(self, *, wait_s: float = 0.0) -> None:
        """Tells Dagster what was landed by now; waits for it, for a while."""
        try:
            landed = self._landed.get(timeout=wait_s) if wait_s else self._landed.get_nowait()
            while True:
                self._tell(landed)
                landed = self._landed.get_nowait()
        except queue.Empty:
            return

    def _tell(self, landed: Landed) -> None:
        feed, report = landed.feed, landed.report
        log = self.context.log
        log.info("%s: %d rows in %d batches", feed.path, report.rows_added, landed.batches)
        for note in report.notes:
            log.warning(note)
        total = {**write_metadata(report), **totals_metadata(feed, report.totals)}
        with known_dagster_warnings_ignored():
            for each in report.partitions:
                self.context.log_event(self._materialization(landed, each, total))
            now = time.monotonic()
            rules = now - self._ruled_at.get(feed.name, -RULES_S) >= RULES_S
            if rules:
                self._ruled_at[feed.name] = now
            with isolated(log.warning, about=f"{feed.path}: checks could not be evaluated"):
                # whole feeds, outside of the run: a run can evaluate a check of a partition once
                for evaluation in evaluations_now(self.context.instance, self.lake, feed, report, rules=rules):
                    self.context.instance.report_runless_asset_event(evaluation)

    def _materialization(
        self, landed: Landed, each: PartitionFacts, total: dict[str, dg.MetadataValue]
    ) -> dg.AssetMaterialization:
        feed = landed.feed
        metadata = partition_metadata(feed, each, lake_uri=self.lake.uri, schema=landed.report.schema)
        batches = {"datalake/batches": dg.MetadataValue.int(landed.batches)}
        return dg.AssetMaterialization(asset_key(feed), partition=each.key, metadata={**metadata, **total, **batches})
