"""The plots of a report, as SVG: simple enough to be drawn by hand, and so no plotting library is loaded.

Where things are is worked out here, the elements are in ``templates/plots.svg.j2``. Templates are escaped, so that what
people wrote cannot become part of the page. Plots are fluid: across, everything is in percent of the width, whatever
that is, while texts keep their size. In the page they take its colours, dark ones too; as images of their own
(`as_image`) they bring light ones.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from math import floor, log10
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from datalake_assets.core.facts import SIZE_BUCKETS, bucket_bounds, bucket_label
from datalake_assets.core.report.findings import Age, FeedReport
from datalake_assets.core.report.series import Series
from datalake_assets.core.wording import (
    count_text,
    counted,
    dollars_text,
    many_text,
    moment_text,
    scans_text,
    short_count,
    size_text,
    span_text,
)
from datalake_assets.policies import Level

__all__ = [
    "BARS",
    "Plot",
    "as_image",
    "cost_bars",
    "escaped",
    "freshness_bars",
    "history_steps",
    "macro",
    "rendered",
    "size_bars",
]

#: Characters that no HTML or XML document may contain, as they are shown.
_FORBIDDEN = dict.fromkeys(
    (*range(9), 11, 12, *range(14, 32), 0x7F, *range(0xD800, 0xE000), 0xFFFE, 0xFFFF), "\N{REPLACEMENT CHARACTER}"
)


def escaped(content: object) -> Markup:
    """The content as markup: text is escaped, markup stays as it is, None is nothing."""
    return escape(_shown(content))


def macro(template: str, name: str, /, **values: Any) -> Markup:
    """What a macro of a template makes of some values."""
    return Markup(getattr(_environment().get_template(template).module, name)(**values))  # noqa: S704  it is escaped


def rendered(template: str, /, **values: Any) -> str:
    """A template, filled in."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("datalake_assets.report"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    shown_as = (count_text, counted, dollars_text, many_text, moment_text, scans_text, size_text)
    made.filters.update({each.__name__: each for each in shown_as})
    return made


def _shown(content: object) -> object:
    if isinstance(content, Markup):
        return content
    return "" if content is None else str(content).translate(_FORBIDDEN)


#: Feeds that a plot shows one by one.
BARS = 12
_TEMPLATE = "plots.svg.j2"
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
    body: Markup

    @property
    def svg(self) -> Markup:
        """The plot for the page, as wide as what it is in."""
        return macro(_TEMPLATE, "svg", title=self.title, body=self.body, height=self.height_px)


def as_image(plot: Plot) -> str:
    """A ``data:`` URI of the plot, with colours of its own, for Markdown."""
    image = macro(
        _TEMPLATE,
        "image",
        title=plot.title,
        body=plot.body,
        width=_IMAGE_PX,
        height=plot.height_px,
        margin=_MARGIN_PX,
        colours=_COLOURS,
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
    body = macro(
        _TEMPLATE,
        "steps",
        scale=list(_scale(ticks, height_px)),
        times=list(_times(series.at[0], until)),
        area=f"{small}V{height_px}H{across[0]:g}Z",
        files=files,
        small=small,
        left=_percent(_LEFT),
        width=_percent(1 - _LEFT),
        top=_ABOVE_PX,
        height=height_px,
        across=_ACROSS,
    )
    title = (
        f"Files since {moment_text(series.at[0])}: {count_text(series.files[-1])} now, {count_text(max(series.files))}"
        f" at the most; small files: {count_text(series.small_files[-1])} now, {count_text(max(series.small_files))}"
        " at the most"
    )
    return Plot(title, _ABOVE_PX + height_px + _BELOW_PX, body)


def size_bars(sizes: Sequence[int], small: Sequence[int], *, height_px: int = 150) -> Plot | None:
    """How many files there are of which size, and which of them are small; None without files."""
    if not any(sizes):
        return None
    most = max(sizes)
    bars = [_size_bar(number, sizes[number], small[number], most, height_px) for number in range(SIZE_BUCKETS)]
    body = macro(_TEMPLATE, "buckets", bars=bars, labels=list(_size_labels()), base=_ABOVE_PX + height_px)
    often = max(range(SIZE_BUCKETS), key=sizes.__getitem__)
    title = (
        f"Files by size: {count_text(sum(sizes))} in all, {count_text(sum(small))} of them small; the most,"
        f" {count_text(most)}, have {bucket_label(often)}"
    )
    return Plot(title, _ABOVE_PX + height_px + _BELOW_PX, body)


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
    """What feeds cost a month, now and after a compaction, most expensive first; None if nothing costs anything."""
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
    if rest:  # many cheap feeds together would dwarf the expensive ones, so they get no bars
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
    drawn = [
        {
            "name": row.name,
            "suffix": row.suffix,
            "value": row.value,
            "label": _short(row.name, _LABEL_LENGTH - len(row.suffix)),
            "bars": [(_percent(share), colour) for share, colour in row.bars],
            "mark": None if row.mark is None else _percent(row.mark),
        }
        for row in rows
    ]
    body = macro(_TEMPLATE, "rows", rows=drawn, row_height=row_px, label_height=_LABEL_PX, bar_height=_BAR_PX)
    return Plot(title, row_px * len(rows), body)


def _short(name: str, most: int) -> str:
    """A name that leaves room for what is written beside it; the whole of it is in the title."""
    head, tail = most // 2, (most - 1) // 2
    return name if len(name) <= most else f"{name[:head]}…{name[-tail:]}"


def _size_bar(number: int, files: int, small: int, most: int, height_px: int) -> dict[str, object]:
    wide = 100 / SIZE_BUCKETS
    left, top = number * wide + wide * 0.08, float(_ABOVE_PX + height_px)
    parts = []
    for count, colour in ((small, "small"), (files - small, "files")):
        if count:
            tall = max(2.0, height_px * count / most)
            top -= tall
            parts.append((colour, f"{top:.1f}", f"{tall:.1f}"))
    return {
        "title": f"{bucket_label(number)}: {count_text(files)} files, {count_text(small)} of them small",
        "left": f"{left:g}%",
        "middle": f"{left + wide * 0.42:g}%",
        "width": f"{wide * 0.84:g}%",
        "parts": parts,
        "count": short_count(files) if files else "",
        "count_y": f"{top - 4:.1f}",
    }


def _size_labels() -> Iterator[tuple[str, str]]:
    """The sizes at which some of the buckets begin, and where."""
    for number in range(1, SIZE_BUCKETS, 4):
        yield f"{number * 100 / SIZE_BUCKETS:g}%", size_text(bucket_bounds(number)[0])


def _scale(ticks: Sequence[float], height_px: int) -> Iterator[tuple[str, str]]:
    for tick in ticks:
        yield f"{_ABOVE_PX + height_px * (1 - tick / ticks[-1]):.1f}", short_count(tick)


def _ticks(most: float) -> list[float]:
    """Three or four round amounts from 0 to ``most`` or a little above."""
    power = 10 ** floor(log10(max(most, 1) / 3)) if most > 3 else 1  # noqa: PLR2004  the least steps that are whole
    step = next(each * power for each in (1, 2, 5, 10) if each * power * 4 >= most)
    return [step * number for number in range(max(2, -int(-most // step) + 1))]


def _times(first: datetime, until: datetime) -> Iterator[tuple[str, str, str]]:
    for time, x, anchor in (
        (first, _percent(_LEFT), "start"),
        (first + (until - first) / 2, _percent((1 + _LEFT) / 2), "middle"),
        (until, "100%", "end"),
    ):
        yield x, _moment(time, until - first), anchor


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
