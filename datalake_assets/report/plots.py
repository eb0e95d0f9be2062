"""The plots of a report, as SVG: simple enough to be written by hand, and so no plotting library is loaded.

They are fluid: across, everything is in percent of the width, whatever that is, while texts keep their size. In the
page they take its colours, dark ones too; as images of their own (`as_image`) they bring light ones.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import floor, log10

from datalake_assets.core.report.figures import SIZE_BUCKETS, Series, bucket_bounds, bucket_label
from datalake_assets.core.report.findings import Age, FeedReport
from datalake_assets.core.wording import count_text, dollars_text, moment_text, short_count, size_text, span_text
from datalake_assets.policies import Level
from datalake_assets.report.html import Html, joined, tag

__all__ = ["BARS", "Plot", "as_image", "cost_bars", "freshness_bars", "history_steps", "size_bars"]

#: Feeds that a plot shows one by one.
BARS = 12
_IMAGE_PX, _MARGIN_PX = 640, 12
#: Room for labels above and below a plot with axes, and on its left, as a share of the width.
_ABOVE_PX, _BELOW_PX = 20, 22
_LEFT = 0.07
#: A row of a plot with horizontal bars: its label, then the bar.
_LABEL_PX, _BAR_PX, _GAP_PX = 16, 9, 13
_LABEL_LENGTH = 28
#: Width of the coordinates of lines, which are stretched to the plot's.
_ACROSS = 1000
_COLOURS = {
    "ink": "#1c2430",
    "muted": "#5a6575",
    "grid": "#dfe4ec",
    "files": "#2f6fdb",
    "small": "#e08a2c",
    "ok": "#2b8a5a",
    "warn": "#c77700",
    "error": "#c43d2e",
}
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#5a6575}text.strong,text.count{fill:#1c2430}"
    "line{stroke:#dfe4ec}line.limit{stroke:#1c2430;stroke-width:2}path{fill:none;stroke-width:2}path.area{stroke:none;fill-opacity:.25}"
    + "".join(
        f"rect.{name}{{fill:{colour}}}path.{name}{{stroke:{colour}}}path.area.{name}{{fill:{colour};stroke:none}}"
        for name, colour in _COLOURS.items()
    )
)


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing.

    Attributes:
        title: What it shows, in words, for those who don't see it.
        height_px: Its height.
        body: Its elements.
    """

    title: str
    height_px: int
    body: Html

    @property
    def svg(self) -> Html:
        """For the page, as wide as what it is in."""
        title = tag("title", self.title)
        return tag("svg", title, self.body, class_="plot", role="img", width="100%", height=self.height_px)


def as_image(plot: Plot) -> str:
    """A ``data:`` URI of the plot, with colours of its own, for Markdown."""
    image = tag(
        "svg",
        tag("title", plot.title),
        tag("style", Html(_STYLE)),
        tag("rect", width="100%", height="100%", fill="#ffffff"),
        tag("svg", plot.body, x=_MARGIN_PX, y=_MARGIN_PX, width=_IMAGE_PX, height=plot.height_px, overflow="visible"),
        xmlns="http://www.w3.org/2000/svg",
        width=_IMAGE_PX + 2 * _MARGIN_PX,
        height=plot.height_px + 2 * _MARGIN_PX,
    )
    return "data:image/svg+xml;base64," + base64.b64encode(image.encode()).decode()


def history_steps(series: Series, *, until: datetime, height_px: int = 150) -> Plot | None:
    """Files and small files over time, which stay as they are until the next commit; None without a history."""
    if not series:
        return None
    ticks = _ticks(max(series.files))
    across = _shares(series.at, until)
    down = [_heights(amounts, ticks[-1], height_px) for amounts in (series.files, series.small_files)]
    files, small = (_path(across, heights) for heights in down)
    lines = tag(
        "svg",
        tag("path", class_="area small", d=f"{small}V{height_px}H{across[0]:g}Z"),
        tag("path", class_="files", d=files, vector_effect="non-scaling-stroke"),
        tag("path", class_="small", d=small, vector_effect="non-scaling-stroke"),
        x=_percent(_LEFT),
        y=_ABOVE_PX,
        width=_percent(1 - _LEFT),
        height=height_px,
        viewBox=f"0 0 {_ACROSS} {height_px}",
        preserveAspectRatio="none",
        overflow="visible",
    )
    title = (
        f"Files since {moment_text(series.at[0])}: {count_text(series.files[-1])} now, {count_text(max(series.files))}"
        f" at the most; small files: {count_text(series.small_files[-1])} now, {count_text(max(series.small_files))}"
        " at the most"
    )
    body = joined([*_scale(ticks, height_px), lines, *_times(series.at[0], until, height_px)])
    return Plot(title, _ABOVE_PX + height_px + _BELOW_PX, body)


def size_bars(sizes: Sequence[int], small: Sequence[int], *, height_px: int = 150) -> Plot | None:
    """How many files there are of which size, and which of them are small; None without files."""
    if not any(sizes):
        return None
    most = max(sizes)
    bars = [_size_bar(number, sizes[number], small[number], most, height_px) for number in range(SIZE_BUCKETS)]
    base = tag("line", x1=0, x2="100%", y1=_ABOVE_PX + height_px, y2=_ABOVE_PX + height_px)
    often = max(range(SIZE_BUCKETS), key=sizes.__getitem__)
    title = (
        f"Files by size: {count_text(sum(sizes))} in all, {count_text(sum(small))} of them small; the most,"
        f" {count_text(most)}, have {bucket_label(often)}"
    )
    return Plot(title, _ABOVE_PX + height_px + _BELOW_PX, joined([base, *bars, *_size_labels(height_px)]))


def freshness_bars(ages: Sequence[tuple[str, Age]]) -> Plot | None:
    """Ages against their limits, the latest first; None if nothing has a limit.

    Args:
        ages: With the name of each one's feed.
    """
    limited = [(name, age, age.age / age.limit) for name, age in ages if age.age is not None and age.limit]
    if not limited:
        return None
    limited.sort(key=lambda one: -one[2])
    rows = [
        _Row(
            name=name,
            suffix=f", {age.what}s",
            value=f"{span_text(age.age or timedelta())} of {span_text(age.limit or timedelta())}",
            bars=((min(share, 2) / 2, age.level.value),),
            mark=0.5,
        )
        for name, age, share in limited[:BARS]
    ]
    late = sum(age.level is not Level.OK for _, age, _ in limited)
    return _bars(rows, f"Ages against their limits: {late} of {len(limited)} are late")


def cost_bars(feeds: Sequence[FeedReport]) -> Plot | None:
    """What feeds cost a month, now and after a compaction, the dearest first; None if nothing costs anything."""
    costs = [(each.feed.name, each.cost.dollars, each.cost_after.dollars) for each in feeds]
    costs.sort(key=lambda one: -one[1])
    shown, rest = (costs, []) if len(costs) <= BARS else (costs[: BARS - 1], costs[BARS - 1 :])
    most = max((max(now, after) for _, now, after in shown), default=0)
    if not most:
        return None
    rows = [
        _Row(name, "", f"{_cents(now)} → {_cents(after)}", ((now / most, "files"), (after / most, "ok")))
        for name, now, after in shown
    ]
    if rest:  # many cheap feeds together would dwarf the dear ones, so they get no bars
        now, after = sum(one[1] for one in rest), sum(one[2] for one in rest)
        rows.append(_Row(f"{len(rest)} other feeds", "", f"{_cents(now)} → {_cents(after)}", ((0, "files"), (0, "ok"))))
    now, after = sum(one[1] for one in costs), sum(one[2] for one in costs)
    return _bars(rows, f"Cost per month: {dollars_text(now)} now, {dollars_text(after)} after compaction")


def _cents(dollars: float) -> str:
    return dollars_text(dollars).replace("under 1 cent", "< 1¢")


@dataclass(frozen=True, slots=True)
class _Row:
    """Horizontal bars, each a share of the width with its colour; what they are; and a mark across them."""

    name: str
    suffix: str
    value: str
    bars: tuple[tuple[float, str], ...]
    mark: float | None = None


def _bars(rows: Sequence[_Row], title: str) -> Plot:
    row_px = _LABEL_PX + _GAP_PX + _BAR_PX * len(rows[0].bars)
    return Plot(title, row_px * len(rows), joined(_row(row, number * row_px) for number, row in enumerate(rows)))


def _row(row: _Row, top: int) -> Html:
    parts = [
        tag("title", f"{row.name}{row.suffix}: {row.value}"),
        tag(
            "text",
            f"{_short(row.name, _LABEL_LENGTH - len(row.suffix))}{row.suffix}",
            x=0,
            y=top + _LABEL_PX - 4,
            class_="strong",
        ),
        tag("text", row.value, x="100%", y=top + _LABEL_PX - 4, text_anchor="end"),
    ]
    for number, (share, colour) in enumerate(row.bars):
        y = top + _LABEL_PX + number * _BAR_PX
        parts.append(tag("rect", class_="grid", x=0, y=y, width="100%", height=_BAR_PX - 1, rx=2, opacity=0.5))
        parts.append(tag("rect", class_=colour, x=0, y=y, width=_percent(share), height=_BAR_PX - 1, rx=2))
    if row.mark is not None:
        x, y = _percent(row.mark), top + _LABEL_PX
        parts.append(tag("line", class_="limit", x1=x, x2=x, y1=y - 2, y2=y + _BAR_PX * len(row.bars) + 1))
    return tag("g", *parts)


def _short(name: str, most: int) -> str:
    """A name that leaves room for what is written beside it; the whole of it is in the title."""
    head, tail = most // 2, (most - 1) // 2
    return name if len(name) <= most else f"{name[:head]}…{name[-tail:]}"


def _size_bar(number: int, files: int, small: int, most: int, height_px: int) -> Html:
    wide = 100 / SIZE_BUCKETS
    left, top = number * wide + wide * 0.08, float(_ABOVE_PX + height_px)
    parts = [tag("title", f"{bucket_label(number)}: {count_text(files)} files, {count_text(small)} of them small")]
    for count, colour in ((small, "small"), (files - small, "files")):
        if count:
            tall = max(2.0, height_px * count / most)
            top -= tall
            parts.append(
                tag(
                    "rect",
                    class_=colour,
                    x=f"{left:g}%",
                    y=f"{top:.1f}",
                    width=f"{wide * 0.84:g}%",
                    height=f"{tall:.1f}",
                )
            )
    if files:
        middle = f"{left + wide * 0.42:g}%"
        parts.append(
            tag("text", short_count(files), x=middle, y=f"{top - 4:.1f}", text_anchor="middle", class_="count")
        )
    return tag("g", *parts)


def _size_labels(height_px: int) -> Iterator[Html]:
    """The sizes at which some of the buckets begin."""
    y = _ABOVE_PX + height_px
    for number in range(1, SIZE_BUCKETS, 4):
        x = f"{number * 100 / SIZE_BUCKETS:g}%"
        yield tag("line", x1=x, x2=x, y1=y, y2=y + 5)
        yield tag("text", size_text(bucket_bounds(number)[0]), x=x, y=y + 18, text_anchor="middle")


def _scale(ticks: Sequence[float], height_px: int) -> Iterator[Html]:
    for tick in ticks:
        y = f"{_ABOVE_PX + height_px * (1 - tick / ticks[-1]):.1f}"
        yield tag("line", x1=0, x2="100%", y1=y, y2=y)
        yield tag("text", short_count(tick), x=0, y=y, dy=-4)


def _ticks(most: float) -> list[float]:
    """Three or four round amounts from 0 to ``most`` or a little above."""
    power = 10 ** floor(log10(max(most, 1) / 3)) if most > 3 else 1  # noqa: PLR2004  the least steps that are whole
    step = next(each * power for each in (1, 2, 5, 10) if each * power * 4 >= most)
    return [step * number for number in range(max(2, -int(-most // step) + 1))]


def _times(first: datetime, until: datetime, height_px: int) -> Iterator[Html]:
    y = _ABOVE_PX + height_px + 17
    middle = _percent((1 + _LEFT) / 2)
    for time, x, anchor in (
        (first, _percent(_LEFT), "start"),
        (first + (until - first) / 2, middle, "middle"),
        (until, "100%", "end"),
    ):
        yield tag("text", _moment(time, until - first), x=x, y=y, text_anchor=anchor)


def _moment(time: datetime, span: timedelta) -> str:
    return f"{time:%Y-%m-%d}" if span > timedelta(days=3) else f"{time:%m-%d %H:%M}"


def _shares(times: Sequence[datetime], until: datetime) -> list[float]:
    """Where times lie between the first and ``until``, then ``until`` itself; out of `_ACROSS`."""
    first = times[0]
    span = max(until - first, timedelta(seconds=1))
    return [*(round(min(1.0, (time - first) / span) * _ACROSS, 1) for time in times), float(_ACROSS)]


def _heights(amounts: Sequence[int], top: float, height_px: int) -> list[float]:
    return [round(height_px * (1 - amount / top), 1) for amount in amounts]


def _path(across: Sequence[float], heights: Sequence[float]) -> str:
    """A line that keeps each height until the next one's place."""
    steps = (f"H{x:g}V{y:g}" for x, y in zip(across[1:], heights[1:], strict=False))
    return f"M{across[0]:g} {heights[0]:g}{''.join(steps)}H{across[-1]:g}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
