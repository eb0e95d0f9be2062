"""The report as one HTML file: nothing to load, nothing to run, for the screen and for paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datalake_assets.core.compaction.cost import (
    FOOTER_BYTES,
    GET_DOLLARS,
    GETS_PER_FILE,
    LIST_DOLLARS,
    STORAGE_DOLLARS_PER_BYTE,
)
from datalake_assets.core.report.figures import Series, lake_series
from datalake_assets.core.report.findings import FeedReport, LakeReport
from datalake_assets.core.wording import (
    count_text,
    counted,
    dollars_text,
    many_text,
    moment_text,
    scans_text,
    size_text,
)
from datalake_assets.policies import Level
from datalake_assets.report.html import CSS, Html, joined, tag
from datalake_assets.report.plots import BARS, Plot, cost_bars, freshness_bars, history_steps, size_bars
from datalake_assets.report.sections import badge, feed_id, feed_section, figure

__all__ = ["page_html"]

#: Feeds that get a section of their own; the others are in the list above, and in the CSV.
SECTIONS = 60
#: Feeds that the list shows; of those that are well, fewer.
LISTED, LISTED_WELL = 200, 20


def page_html(report: LakeReport) -> str:
    """The whole page."""
    whole, series = lake_series(report.statistics)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content="datalake report"),
        tag("title", f"Lake report: {report.lake}"),
        tag("style", Html(CSS)),
    )
    in_order = sorted(zip(report.feeds, series, strict=True), key=lambda pair: _place(pair[0]))
    ordered = [each for each, _ in in_order]
    main = tag("main", _tiles(report), *_verdicts(ordered), *_plots(report, whole), *_sections(report, in_order))
    body = tag("body", _header(report), main, _footer(report))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _place(report: FeedReport) -> tuple[int, float, str]:
    """What is wrong first, then what costs most."""
    order = (Level.ERROR, Level.WARN, Level.OK)
    return order.index(report.level), report.cost_after.dollars - report.cost.dollars, report.feed.path


def _header(report: LakeReport) -> Html:
    wrong = sum(each.level is not Level.OK for each in report.feeds)
    said = (
        "All is well." if report.partitions else "The lake has no data yet; export some with 'datalake export --all'."
    )
    if wrong:
        verb = "needs" if wrong == 1 else "need"
        said = f"{wrong:,} of {counted(len(report.feeds), 'feed')} {verb} attention."
    return tag(
        "header",
        tag("h1", "Lake report"),
        tag("p", f"{report.lake}, {moment_text(report.at)} UTC", class_="quiet"),
        tag("p", said, class_="headline"),
    )


def _tiles(report: LakeReport) -> Html:
    share = f"{100 * report.small_files / report.files:.0f} % of all" if report.files else "there are none"
    saved = report.cost.dollars - report.cost_after.dollars
    tiles = (
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
    return tag(
        "dl",
        *(tag("div", tag("dt", name), tag("dd", value), tag("dd", remark)) for name, value, remark in tiles),
        class_="tiles",
    )


def _verdicts(ordered: Sequence[FeedReport]) -> Iterator[Html]:
    if not ordered:
        return
    wrong = [each for each in ordered if each.level is not Level.OK]
    well = [each for each in ordered if each.level is Level.OK]
    shown = [*wrong[:LISTED], *well[: max(0, LISTED_WELL - len(wrong))]]
    yield tag("h2", "Verdicts")
    sections = {each.feed.path for each in ordered[:SECTIONS]}
    yield tag("ul", *(_verdict(each, has_section=each.feed.path in sections) for each in shown), class_="verdicts")
    hidden_wrong = len(wrong) - min(len(wrong), LISTED)
    hidden_well = len(ordered) - len(shown) - hidden_wrong
    more = [f"{hidden_wrong:,} more that need attention"] * (hidden_wrong > 0)
    more += [f"{counted(hidden_well, 'feed')} more with nothing to do"] * (hidden_well > 0)
    if more:
        yield tag("p", f"And {', '.join(more)}; 'datalake report' lists all.", class_="quiet")


def _verdict(report: FeedReport, *, has_section: bool) -> Html:
    path = report.feed.path
    name = tag("a", path, href=f"#{feed_id(report)}") if has_section else tag("span", path)
    return tag("li", badge(report.level), name, tag("p", report.verdict))


def _plots(report: LakeReport, whole: Series) -> Iterator[Html]:
    if not report.partitions:
        return
    ages = [(each.feed.name, age) for each in report.feeds for age in each.ages]
    limited = sum(age.limit is not None and age.age is not None for _, age in ages)
    shown = f"the {BARS} latest of {limited:,}" if limited > BARS else "all that have a limit"
    yield tag("h2", "The lake as a whole")
    yield tag(
        "div",
        figure("Small files over time", _history_caption(whole), history_steps(whole, until=report.at)),
        figure("File sizes", _KEYS, size_bars(report.sizes, report.small_sizes)),
        _freshness(shown, freshness_bars(ages)),
        figure(
            "Cost per month",
            joined([tag("span", class_="key files"), "now  ", tag("span", class_="key ok"), "after compaction"]),
            cost_bars(report.feeds),
        ),
        class_="plots",
    )


def _freshness(shown: str, plot: Plot | None) -> Html:
    if plot is None:
        caption = "No feed has a limit: 'freshness' in a feed's declaration sets one."
        return figure("Freshness", caption, None)
    caption = f"Age of the newest row or export; the mark is its limit, the end twice that. Shown: {shown}."
    return figure("Freshness", caption, plot)


_KEYS = joined([tag("span", class_="key small"), "small  ", tag("span", class_="key files"), "others"])


def _history_caption(series: Series) -> Html:
    text = joined([tag("span", class_="key small"), "small files  ", tag("span", class_="key files"), "all files"])
    late = series.entered_late
    if not late:
        return text
    verb = "enters" if late == 1 else "enter"
    return joined(
        [text, f". {late:,} of {counted(series.partitions, 'partition')} {verb} with the first commit still remembered"]
    )


def _sections(report: LakeReport, in_order: Sequence[tuple[FeedReport, Series]]) -> Iterator[Html]:
    if not in_order:
        return
    yield tag("h2", "Feeds")
    for each, series in in_order[:SECTIONS]:
        yield feed_section(each, series, until=report.at)
    more = len(in_order) - SECTIONS
    if more > 0:
        yield tag("p", f"And {counted(more, 'feed')} more: 'datalake report --feed NAME' shows each.", class_="quiet")


def _footer(report: LakeReport) -> Html:
    get, listing = GET_DOLLARS * 1000, LIST_DOLLARS * 1000
    storage = STORAGE_DOLLARS_PER_BYTE * 1000**3
    prices = f"${listing:.4f} per 1,000 LIST and ${get:.4f} per 1,000 GET requests, ${storage:.3f} per GB-month"
    notes = (
        f"Costs are what S3 Standard in us-east-1 charges by its price list: {prices}. Each partition is assumed to be"
        f" read as a whole {scans_text(report.scans_per_day)}, with {GETS_PER_FILE} GET requests per file and a LIST"
        " request per 1,000 files. Writing, and transfer to other regions, are not counted.\n"
        "After compaction: what the compaction planner would make of the files now, by each feed's policy. Each file"
        f" less also saves {FOOTER_BYTES:,} bytes of footer.\n"
        "Small files are those below the feed's small_file_bytes. Newest row: the latest time in the feed's time"
        " column. Newest export: the last one, with new rows or without.\n"
        "History: each partition remembers its last 20 commits. One that remembers all of them begins with no files;"
        " others enter with the first commit that they remember.\n"
        "Every partition: datalake report --format csv. All figures: datalake report --format json."
    )
    return tag("footer", tag("h2", "How to read this"), *(tag("p", note) for note in notes.split("\n")))
