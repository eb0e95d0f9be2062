"""The report of the lake as an asset, with its plots in the UI, and the sensor that refreshes it after exports."""

import json
import time
from collections.abc import Callable, Sequence

import dagster as dg

from datalake_assets.core.report.findings import LakeReport, build_report
from datalake_assets.core.report.series import lake_series
from datalake_assets.core.wording import count_text, counted, dollars_text, moment_text, size_text
from datalake_assets.defs.compaction.job import COMPACT_PARTITION
from datalake_assets.defs.metadata import Metadata, asset_key, failed_checks
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runs import tag_run
from datalake_assets.defs.runtime import cursor_state, failures_named
from datalake_assets.defs.upkeep.maintenance import MAINTENANCE
from datalake_assets.feed import Feed
from datalake_assets.lake.feed_compaction import request_of
from datalake_assets.lake.statistics import lake_statistics
from datalake_assets.policies import Level
from datalake_assets.report.page import page_html
from datalake_assets.report.plots import as_image, cost_bars, freshness_bars, history_steps, size_bars
from datalake_assets.report.thumbnails import (
    INLINE_CHARACTERS,
    cost_thumbnail,
    freshness_thumbnail,
    history_thumbnail,
    size_thumbnail,
)

__all__ = [
    "LAKE_REPORT",
    "PAGE_KEY",
    "RefreshSensor",
    "lake_report_asset",
    "lake_report_sensor",
    "report_lake",
    "report_metadata",
]

LAKE_REPORT = dg.AssetKey("lake_report")
#: Where the page lies in the lake.
PAGE_KEY = "metadata/report/lake_report.html"
INTERVAL_S = 60
#: Seconds between two runs at the least: a report is of the whole lake, and exports come in bursts.
AT_MOST_EVERY_S = 600
#: Of a large lake each partition adds so many: 10,000 are reported every hour, for 3 dollars' worth of GETs a month.
S_PER_PARTITION = 0.36
_PARTITIONS = "datalake/partitions"
#: What makes the report old without materializing anything.
_JOBS = (COMPACT_PARTITION, MAINTENANCE)

_DESCRIPTION = f"""\
The figures of the lake: small files, sizes, freshness, quarantine and costs, of each feed and of all.

Each materialization carries the figures, which plot over time, and the plots of the report. The whole page lies in the
lake as `{PAGE_KEY}`; `datalake report` prints the same. Refreshed after exports and compactions by
`lake_report_sensor`.
"""


def lake_report_asset(feeds: Sequence[Feed] = (), *, lake_uri: str) -> dg.AssetsDefinition:
    """The asset; it reads the registry anew in each run, and one manifest per partition.

    Args:
        feeds: What it reports on, upstream of it.
        lake_uri: The lake's address.
    """

    @dg.asset(
        key=LAKE_REPORT,
        deps=[asset_key(feed) for feed in feeds],
        metadata={"dagster/uri": dg.MetadataValue.text(f"{lake_uri}/{PAGE_KEY}")},
        group_name="lake",
        kinds={"report"},
        description=_DESCRIPTION,
        required_resource_keys={"lake"},
    )
    def lake_report(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        tag_run(context.instance, context.run)
        lake = context.resources.lake.open()
        return dg.MaterializeResult(metadata=report_lake(lake, context.instance, warn=context.log.warning))

    return lake_report


def report_lake(lake: Lake, instance: dg.DagsterInstance, *, warn: Callable[[str], None]) -> Metadata:
    """Makes the report, writes its page into the lake, and returns what the UI shows of it.

    Args:
        lake: The lake.
        instance: Whose history knows which checks did not pass.
        warn: Called with a line on what had to be left out.

    Raises:
        dagster.Failure: The lake cannot be read, or the page cannot be written.
    """
    with failures_named(LAKE_REPORT.to_user_string()):
        listing = lake.registry.list()
        feeds = sorted(listing.feeds, key=lambda feed: feed.path)
        statistics = lake_statistics(lake.store, feeds, request_of(lake.settings))
        failed = failed_checks(instance, feeds)
        report = build_report(statistics, lake=lake.uri, at=lake.store.now(), failed_checks=failed)
        lake.store.put(PAGE_KEY, page_html(report).encode())
    for problem in listing.problems:
        warn(f"{problem.file} is skipped: {problem.reason}")
    for each in statistics:
        for line in each.problems:
            warn(f"left out {each.feed.path} {line}")
    return report_metadata(report, page=f"{lake.uri}/{PAGE_KEY}")


def report_metadata(report: LakeReport, *, page: str) -> dict[str, dg.MetadataValue]:
    """Figures that plot, verdicts, small plots that show at once, and the rest behind a click.

    Args:
        report: The report.
        page: Where its page is.
    """
    ages = [(each.feed.name, age) for each in report.feeds for age in each.ages]
    history, _ = lake_series(report.statistics)
    images = {
        "small_files_over_time": history_thumbnail(history, until=report.at),
        "file_sizes": size_thumbnail(report.sizes, report.small_sizes),
        "freshness": freshness_thumbnail(ages),
        "monthly_cost": cost_thumbnail(report.cost, report.cost_after),
    }
    plots = (
        history_steps(history, until=report.at),
        size_bars(report.sizes, report.small_sizes),
        freshness_bars(ages),
        cost_bars(report.feeds),
    )
    large = [f"![{plot.title}]({as_image(plot)})\n\n{plot.title}." for plot in plots if plot is not None]
    return {
        "dagster/uri": dg.MetadataValue.text(page),
        "datalake/verdicts": dg.MetadataValue.md(_verdicts(report)),
        **{f"datalake/{name}": dg.MetadataValue.md(image) for name, image in images.items() if image},
        "datalake/report": dg.MetadataValue.md("\n\n".join([_table(report), *large])),
        **_figures(report),
    }


def _figures(report: LakeReport) -> dict[str, dg.MetadataValue]:
    counts = {
        "feeds": len(report.feeds),
        "feeds_needing_attention": sum(each.level is not Level.OK for each in report.feeds),
        "partitions": report.partitions,
        "rows": report.rows,
        "files": report.files,
        "small_files": report.small_files,
        "files_after_compaction": report.files_after,
        "size_bytes": report.size_bytes,
        "rows_in_quarantine": report.quarantined,
    }
    costs = {"monthly_cost_usd": report.cost.dollars, "monthly_cost_after_usd": report.cost_after.dollars}
    return {
        **{f"datalake/{name}": dg.MetadataValue.int(count) for name, count in counts.items()},
        **{f"datalake/{name}": dg.MetadataValue.float(round(dollars, 6)) for name, dollars in costs.items()},
    }


def _verdicts(report: LakeReport) -> str:
    """What is to be done, as far as it shows at once; then how many feeds there are besides."""
    lines: list[str] = []
    wrong = [each for each in report.feeds if each.level is not Level.OK]
    for each in wrong:
        line = f"- `{each.feed.path}` {each.verdict}"
        if sum(map(len, lines)) + len(line) > INLINE_CHARACTERS - 200:
            break
        lines.append(line)
    more, well = len(wrong) - len(lines), len(report.feeds) - len(wrong)
    lines += [f"- and {more:,} more that need attention"] * (more > 0)
    lines += [f"- {counted(well, 'feed')} with nothing to do"] * (well > 0)
    return "\n".join(lines) or "There are no feeds yet."


def _table(report: LakeReport) -> str:
    rows = [
        (
            each.feed.path,
            count_text(each.statistics.rows),
            f"{count_text(each.statistics.files)} → {count_text(each.files_after)}",
            count_text(each.statistics.small_files),
            size_text(each.statistics.size_bytes),
            moment_text(each.statistics.newest_row),
            moment_text(each.ages[0].at),
            f"{dollars_text(each.cost.dollars)} → {dollars_text(each.cost_after.dollars)}",
        )
        for each in report.feeds
    ]
    head = "| feed | rows | files, compacted | small | size | newest row | newest export | a month, compacted |"
    return "\n".join([head, "|---|---:|---:|---:|---:|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def lake_report_sensor(feeds: Sequence[Feed], *, at_most_every_s: float = AT_MOST_EVERY_S) -> dg.SensorDefinition:
    """The sensor that materializes `lake_report` after exports, compactions and maintenance; quiet otherwise.

    Args:
        feeds: The feeds that are watched.
        at_most_every_s: Seconds between two runs at the least.
    """
    refresh = RefreshSensor([asset_key(feed) for feed in feeds], at_most_every_s=at_most_every_s)

    @dg.sensor(
        name="lake_report_sensor",
        target=dg.AssetSelection.assets(LAKE_REPORT),
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Refreshes lake_report after exports, compactions and maintenance: at most every ten minutes, and every"
            " hour for 10,000 partitions."
        ),
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return refresh.tick(context.instance, context.cursor, now=time.time())

    return look


class RefreshSensor:
    """What the sensor does at each tick: three queries, however many partitions and events there are.

    Args:
        keys: Assets whose materializations make the report old.
        at_most_every_s: Seconds between two runs at the least; what happens meanwhile is reported afterwards.
        of: The asset that becomes old.
        jobs: Jobs that make it old without materializing anything.
    """

    def __init__(
        self,
        keys: Sequence[dg.AssetKey],
        *,
        at_most_every_s: float,
        of: dg.AssetKey = LAKE_REPORT,
        jobs: Sequence[str] = _JOBS,
    ) -> None:
        self._keys, self._at_most_every_s, self._of, self._jobs = list(keys), at_most_every_s, of, jobs
        self._name = of.to_user_string()

    def tick(self, instance: dg.DagsterInstance, cursor: str | None, *, now: float) -> dg.SensorResult:
        """One tick.

        Args:
            instance: Dagster's instance.
            cursor: What the last tick returned; anything that cannot be read counts as none.
            now: Seconds since 1970.
        """
        before = cursor_state(cursor)
        newest = self._newest(instance)
        if not any(newest) or newest == before.get("newest"):
            return dg.SensorResult(skip_reason=f"nothing has changed since the last {self._name}", cursor=cursor)
        wait_s = before.get("asked_at", 0) + self._spacing_s(instance) - now
        if wait_s > 0:
            return dg.SensorResult(skip_reason=f"the next {self._name} is due in {wait_s:.0f} s", cursor=cursor)
        run_key = "/".join(map(str, newest))
        asked = json.dumps({"newest": newest, "asked_at": round(now)})
        return dg.SensorResult(run_requests=[dg.RunRequest(run_key=run_key, asset_selection=[self._of])], cursor=asked)

    def _spacing_s(self, instance: dg.DagsterInstance) -> float:
        """Longer for a large lake: a report reads a manifest per partition."""
        last = instance.get_latest_materialization_event(self._of)
        metadata = last.asset_materialization.metadata if last and last.asset_materialization else {}
        partitions = metadata[_PARTITIONS].value if _PARTITIONS in metadata else 0
        return max(self._at_most_every_s, float(str(partitions)) * S_PER_PARTITION)

    def _newest(self, instance: dg.DagsterInstance) -> list[int | str]:
        """The newest materialization of a feed, and the newest run of each job; 0 and "" for none."""
        entries = [each.asset_entry for each in instance.get_asset_records(self._keys)] if self._keys else []
        newest = max((each.last_materialization_storage_id or 0 for each in entries), default=0)
        return [newest, *(_newest_run(instance, job) for job in self._jobs)]


def _newest_run(instance: dg.DagsterInstance, job: str) -> str:
    ended = dg.RunsFilter(job_name=job, statuses=[dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE])
    runs = instance.get_runs(filters=ended, limit=1)
    return runs[0].run_id if runs else ""
