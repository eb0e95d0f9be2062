"""The report as one HTML file: nothing to load, nothing to run, for the screen and for paper.

What it says is gathered here, how that looks is in ``templates``: light and dark, narrow and wide. A feed's section has
its verdict, figures, plots, the partitions to look at, and what was compacted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from datalake_assets.core.compaction.cost import (
    FOOTER_BYTES,
    GET_DOLLARS,
    GETS_PER_FILE,
    LIST_DOLLARS,
    STORAGE_DOLLARS_PER_BYTE,
)
from datalake_assets.core.facts import PlannedPartition
from datalake_assets.core.manifest import PastCommit
from datalake_assets.core.report.findings import Age, FeedReport, LakeReport
from datalake_assets.core.report.series import Series, lake_series
from datalake_assets.core.wording import (
    count_text,
    counted,
    dollars_text,
    many_text,
    moment_text,
    size_text,
    span_text,
)
from datalake_assets.policies import Level
from datalake_assets.report.plots import BARS, Plot, cost_bars, freshness_bars, history_steps, rendered, size_bars

__all__ = ["page_html"]

#: Feeds that get a section of their own; the others are in the list above, and in the CSV.
SECTIONS = 60
#: Feeds that the list shows.
LISTED = 200
#: Feeds up to which the list is filled with those in which nothing is wrong.
LISTED_WELL = 20
#: Checks that did not pass, partitions, compactions and versions that a section shows.
CHECKS_SHOWN, PARTITIONS, COMPACTIONS, VERSIONS = 10, 10, 5, 10
_HEIGHT_PX = 90
#: A sign for each level, so that more than its colour shows it, and what it means.
_BADGES = {
    Level.OK.value: ("✓", "all is well"),
    Level.WARN.value: ("!", "needs attention"),
    Level.ERROR.value: ("✕", "something is wrong"),
}
#: In US dollars, in the units of AWS's price list: per 1,000 requests, per GB and month.
_PRICES = {
    "listings": LIST_DOLLARS * 1000,
    "gets": GET_DOLLARS * 1000,
    "storage": STORAGE_DOLLARS_PER_BYTE * 1000**3,
    "gets_per_file": GETS_PER_FILE,
    "footer_bytes": FOOTER_BYTES,
}


def page_html(report: LakeReport) -> str:
    """The whole page."""
    whole, series = lake_series(report.statistics)
    in_order = sorted(zip(report.feeds, series, strict=True), key=lambda pair: _place(pair[0]))
    return rendered(
        "page.html.j2",
        report=report,
        badges=_BADGES,
        headline=_headline(report),
        tiles=_tiles(report),
        verdicts=_verdicts([each for each, _ in in_order]),
        series=whole,
        plots=_plots(report, whole),
        sections=[_section(each, series, until=report.at) for each, series in in_order[:SECTIONS]],
        more_feeds=len(in_order) - SECTIONS,
        prices=_PRICES,
    )


def _place(report: FeedReport) -> tuple[int, float, str]:
    """What is wrong first, then what costs most."""
    order = (Level.ERROR, Level.WARN, Level.OK)
    return order.index(report.level), report.cost_after.dollars - report.cost.dollars, report.feed.path


def _headline(report: LakeReport) -> str:
    wrong = sum(each.level is not Level.OK for each in report.feeds)
    if wrong:
        return f"{wrong:,} of {counted(len(report.feeds), 'feed')} {'needs' if wrong == 1 else 'need'} attention."
    if not report.partitions:
        return "The lake has no data yet; export some with 'datalake export --all'."
    return "All is well."


def _tiles(report: LakeReport) -> tuple[tuple[str, str, str], ...]:
    share = f"{100 * report.small_files / report.files:.0f} % of all" if report.files else "there are none"
    saved = report.cost.dollars - report.cost_after.dollars
    return (
        ("Small files", count_text(report.small_files), share),
        ("Files", count_text(report.files), f"{count_text(report.files_after)} after compaction"),
        ("Rows", many_text(report.rows), f"in {counted(report.partitions, 'partition')}"),
        ("Size", size_text(report.size_bytes), f"in {counted(len(report.feeds), 'feed')}"),
        ("S3 per month", dollars_text(report.cost.dollars), f"compaction saves {dollars_text(max(saved, 0))}"),
        (
            "In quarantine",
            ("" if report.quarantine_is_exact else "≥ ") + count_text(report.quarantined),
            "row" if report.quarantined == 1 else "rows",
        ),
    )


def _verdicts(ordered: Sequence[FeedReport]) -> dict[str, object]:
    """The verdicts that are shown, with the anchor of the feed's section, and how many there are more."""
    wrong = [each for each in ordered if each.level is not Level.OK]
    well = [each for each in ordered if each.level is Level.OK]
    shown = [*wrong[:LISTED], *well[: max(0, LISTED_WELL - len(wrong))]]
    sections = {each.feed.path for each in ordered[:SECTIONS]}
    hidden_wrong = len(wrong) - min(len(wrong), LISTED)
    hidden_well = len(ordered) - len(shown) - hidden_wrong
    more = [f"{hidden_wrong:,} more that need attention"] * (hidden_wrong > 0)
    more += [f"{counted(hidden_well, 'feed')} more with nothing to do"] * (hidden_well > 0)
    return {
        "shown": [(each, _feed_id(each) if each.feed.path in sections else "") for each in shown],
        "more": more,
    }


def _plots(report: LakeReport, whole: Series) -> dict[str, object]:
    ages = [(each.feed.name, age) for each in report.feeds for age in each.ages]
    limited = sum(age.limit is not None and age.age is not None for _, age in ages)
    return {
        "history": history_steps(whole, until=report.at),
        "sizes": size_bars(report.sizes, report.small_sizes),
        "freshness": freshness_bars(ages),
        "freshness_shown": f"the {BARS} latest of {limited:,}" if limited > BARS else "all that have a limit",
        "cost": cost_bars(report.feeds),
    }


@dataclass(frozen=True, slots=True)
class _Table:
    """A table: its title, with a remark, its columns and rows."""

    title: str
    remark: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class _Section:
    """A feed's section: its anchor, the feed, figures by name, plots, tables."""

    id: str
    report: FeedReport
    figures: tuple[tuple[str, str], ...]
    history: Plot | None
    sizes: Plot | None
    tables: tuple[_Table, ...]


def _section(report: FeedReport, series: Series, *, until: datetime) -> _Section:
    return _Section(
        id=_feed_id(report),
        report=report,
        figures=tuple(_figures(report)),
        history=history_steps(series, until=until, height_px=_HEIGHT_PX),
        sizes=size_bars(report.statistics.sizes, report.small_sizes, height_px=_HEIGHT_PX),
        tables=tuple(_tables(report)),
    )


def _feed_id(report: FeedReport) -> str:
    return f"feed-{report.feed.path.replace('/', '-')}"


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
    if (read := statistics.read_files) is not None:
        refused = f", {counted(read.refused, 'file')} refused" if read.refused else ""
        what = f"{counted(read.landed, 'file')}, {size_text(read.size_bytes)}, {counted(read.rows, 'row')}"
        yield "Dropped files landed", f"{what} in {read.seconds:,.1f} s{refused}"
    quarantined = statistics.quarantined
    if quarantined.objects:
        at_least = "" if quarantined.is_exact else "at least "
        yield "In quarantine", f"{at_least}{counted(quarantined.total, 'row')}, {size_text(quarantined.size_bytes)}"
    costs = [_unbroken(dollars_text(cost.dollars)) for cost in (report.cost, report.cost_after)]
    yield "Cost per month", " → ".join(dict.fromkeys(costs))


def _age(age: Age) -> str:
    text = "not known" if age.age is None else f"{_unbroken(span_text(age.age))} ago"
    return text if age.limit is None else f"{text}, limit {_unbroken(span_text(age.limit))}"


def _unbroken(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _tables(report: FeedReport) -> Iterator[_Table]:
    failed = report.failed_checks or ()
    if failed:
        yield _Table(
            "Checks that did not pass",
            _more(len(failed), CHECKS_SHOWN, "datalake report --format json has all"),
            ("Check", "Level", "Partition", "What is wrong"),
            tuple((each.check, each.level, each.partition or "all", each.what) for each in failed[:CHECKS_SHOWN]),
        )
    yield from _tables_of_figures(report)


def _tables_of_figures(report: FeedReport) -> Iterator[_Table]:
    yield from _worst_partitions(report)
    yield from _column_notes(report)
    yield from _past_compactions(report)
    yield from _kept_versions(report)


def _worst_partitions(report: FeedReport) -> Iterator[_Table]:
    worst = report.worst()
    if worst:
        costs = {
            one.key: now.dollars - after.dollars
            for one, now, after in zip(report.statistics.partitions, report.costs, report.costs_after, strict=True)
        }
        yield _Table(
            "Partitions to look at",
            _more(len(worst), PARTITIONS, "datalake report --format csv has all"),
            ("Partition", "Files", "Small", "Merged to", "Size", "Rows", "Newest row", "Saves a month"),
            tuple(_partition(one, costs[one.key]) for one in worst[:PARTITIONS]),
        )


def _column_notes(report: FeedReport) -> Iterator[_Table]:
    notes = report.feed.columns
    if notes:
        yield _Table(
            "What columns mean",
            "",
            ("Column", "Unit", "Meaning", "Tags"),
            tuple((name, note.unit, note.description, _listed(note.tags)) for name, note in notes.items()),
        )


def _past_compactions(report: FeedReport) -> Iterator[_Table]:
    done = sorted(
        ((commit, one.key) for one in report.statistics.partitions for commit in one.compactions),
        key=lambda pair: pair[0].at,
        reverse=True,
    )
    if done:
        yield _Table(
            "Compactions",
            _more(len(done), COMPACTIONS, "datalake report --format json has all"),
            ("When", "Partition", "Files merged", "Into", "Rows"),
            tuple(_compaction(*pair) for pair in done[:COMPACTIONS]),
        )


def _kept_versions(report: FeedReport) -> Iterator[_Table]:
    versions = report.statistics.versions
    if versions:
        yield _Table(
            "Versions kept",
            _more(len(versions), VERSIONS, "datalake report --format json has all"),
            ("Version", "As of", "Rows"),
            tuple(
                (f"v{each.number}", moment_text(each.as_of), count_text(each.rows))
                for each in versions[::-1][:VERSIONS]
            ),
        )


def _listed(tags: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {value}" if value else name for name, value in tags.items())


def _more(there: int, shown: int, where: str) -> str:
    return f"the first {shown}, and {there - shown:,} more: {where}" if there > shown else ""


def _partition(one: PlannedPartition, saved: float) -> tuple[str, ...]:
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
