"""A feed's section of the page: verdict, figures, plots, the partitions to look at, what was compacted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from datalake_assets.core.report.figures import PartitionFigures, PastCommit, Series
from datalake_assets.core.report.findings import Age, FeedReport
from datalake_assets.core.wording import count_text, counted, dollars_text, moment_text, size_text, span_text
from datalake_assets.policies import Level
from datalake_assets.report.html import Html, joined, tag
from datalake_assets.report.plots import Plot, history_steps, size_bars

__all__ = ["badge", "feed_id", "feed_section", "figure"]

#: Partitions, compactions and versions that a section shows.
PARTITIONS, COMPACTIONS, VERSIONS = 10, 5, 10
_HEIGHT_PX = 90
_BADGES = {
    Level.OK: ("✓", "all is well"),
    Level.WARN: ("!", "needs attention"),
    Level.ERROR: ("✕", "something is wrong"),
}


def badge(level: Level) -> Html:
    """A sign for a level, told apart by more than its colour."""
    sign, words = _BADGES[level]
    return tag(
        "span", tag("span", sign, aria_hidden="true"), tag("span", words, class_="hidden"), class_=f"badge {level}"
    )


def feed_id(report: FeedReport) -> str:
    """The anchor of a feed's section."""
    return f"feed-{report.feed.path.replace('/', '-')}"


def figure(title: str, caption: object, plot: Plot | None, *, heading: str = "h3") -> Html:
    """A plot with its title and caption; without a plot, the caption says why."""
    return tag("figure", tag(heading, title), tag("figcaption", caption), plot.svg if plot else None)


def feed_section(report: FeedReport, series: Series, *, until: datetime) -> Html:
    """The section of one feed."""
    feed, statistics = report.feed, report.statistics
    plots = [
        figure("Small files over time", "", history_steps(series, until=until, height_px=_HEIGHT_PX), heading="h4"),
        figure("File sizes", "", size_bars(statistics.sizes, report.small_sizes, height_px=_HEIGHT_PX), heading="h4"),
    ]
    return tag(
        "section",
        tag("header", badge(report.level), tag("h3", feed.path)),
        tag("p", feed.description, class_="quiet") if feed.description else None,
        tag("ul", *(tag("li", finding.text) for finding in report.findings), class_="findings"),
        tag(
            "dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in _figures(report)), class_="figures"
        ),
        tag("div", *plots, class_="plots") if statistics.partitions else None,
        *_tables(report),
        class_="feed",
        id=feed_id(report),
    )


def _figures(report: FeedReport) -> Iterator[tuple[str, str]]:
    statistics = report.statistics
    yield "Rows", count_text(statistics.rows)
    yield "Partitions", count_text(len(statistics.partitions))
    yield "Files", count_text(statistics.files)
    yield "Small files", count_text(statistics.small_files)
    yield "After compaction", f"{counted(report.files_after, 'file')}"
    yield "Size", size_text(statistics.size_bytes)
    if statistics.files:
        yield "Average file", size_text(statistics.size_bytes / statistics.files)
    for age in report.ages:
        if age.at is not None or age.limit is not None:
            yield f"Newest {age.what}", _age(age)
    if statistics.current is not None:
        yield "Current version", f"v{statistics.current.number}, {len(statistics.versions)} kept"
    quarantined = statistics.quarantined
    if quarantined.objects:
        at_least = "" if quarantined.is_exact else "at least "
        yield "In quarantine", f"{at_least}{counted(quarantined.total, 'row')}, {size_text(quarantined.size_bytes)}"
    costs = [_unbroken(dollars_text(cost.dollars)) for cost in (report.cost, report.cost_after)]
    yield "Cost per month", " → ".join(dict.fromkeys(costs))


def _age(age: Age) -> str:
    said = "not known" if age.age is None else f"{_unbroken(span_text(age.age))} ago"
    return said if age.limit is None else f"{said}, limit {_unbroken(span_text(age.limit))}"


def _unbroken(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _tables(report: FeedReport) -> Iterator[Html]:
    worst = report.worst()
    if worst:
        costs = {
            one.key: now.dollars - after.dollars
            for one, now, after in zip(report.statistics.partitions, report.costs, report.costs_after, strict=True)
        }
        yield _table(
            "Partitions to look at",
            _more(len(worst), PARTITIONS, "datalake report --format csv has all"),
            ("Partition", "Files", "Small", "Merged to", "Size", "Rows", "Newest row", "Saves a month"),
            [_partition(one, costs[one.key]) for one in worst[:PARTITIONS]],
        )
    done = sorted(
        ((commit, one.key) for one in report.statistics.partitions for commit in one.compactions),
        key=lambda pair: pair[0].at,
        reverse=True,
    )
    if done:
        yield _table(
            "Compactions",
            _more(len(done), COMPACTIONS, "datalake report --format json has all"),
            ("When", "Partition", "Files merged", "Into", "Rows"),
            [_compaction(*pair) for pair in done[:COMPACTIONS]],
        )
    versions = report.statistics.versions
    if versions:
        yield _table(
            "Versions kept",
            _more(len(versions), VERSIONS, "datalake report --format json has all"),
            ("Version", "As of", "Rows"),
            [(f"v{each.number}", moment_text(each.as_of), count_text(each.rows)) for each in versions[::-1][:VERSIONS]],
        )


def _more(there: int, shown: int, where: str) -> str:
    return f"the first {shown}, and {there - shown:,} more: {where}" if there > shown else ""


def _partition(one: PartitionFigures, saved: float) -> tuple[str, ...]:
    return (
        one.key,
        count_text(one.files),
        count_text(one.small_files),
        count_text(one.files_after),
        size_text(one.size_bytes),
        count_text(one.rows),
        moment_text(one.max_time),
        dollars_text(max(saved, 0.0)),
    )


def _compaction(commit: PastCommit, key: str) -> tuple[str, ...]:
    return (
        moment_text(commit.at),
        key,
        count_text(commit.files_removed),
        count_text(commit.files_added),
        count_text(commit.rows),
    )


def _table(title: str, remark: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    caption = tag("caption", title, joined([" ", tag("span", remark)]) if remark else None)
    head = tag("thead", tag("tr", *(tag("th", column, scope="col") for column in columns)))
    body = tag("tbody", *(tag("tr", *(tag("td", cell) for cell in row)) for row in rows))
    return tag("div", tag("table", caption, head, body), class_="scroll", role="region", aria_label=title, tabindex=0)
