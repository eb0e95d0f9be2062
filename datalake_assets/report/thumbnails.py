"""Plots so small that Dagster's UI shows them at once: Markdown of a thousand characters or more waits for a click.

(Its ``MarkdownMetadataEntry`` compares with 1,000, in 1.13.27.) So every character counts here: whole numbers, relative
paths, no titles. The plots proper are `datalake_assets.report.plots`. The colours suit light and dark backgrounds.
"""

from __future__ import annotations

import base64
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby

from markupsafe import Markup

from datalake_assets.core.compaction.cost import MonthlyCost
from datalake_assets.core.facts import SIZE_BUCKETS
from datalake_assets.core.report.findings import Age
from datalake_assets.core.report.series import Series
from datalake_assets.core.wording import dollars_text, short_count, span_text
from datalake_assets.policies import Level
from datalake_assets.report.plots import escaped

__all__ = ["INLINE_CHARACTERS", "cost_thumbnail", "freshness_thumbnail", "history_thumbnail", "size_thumbnail"]

#: Markdown of fewer characters is shown inline.
INLINE_CHARACTERS = 1000
_WIDTH_PX, _HEIGHT_PX = 272, 60  # the column of values in a window of 1,400 px
_BLUE, _AMBER, _GREY = "#2f6fdb", "#e08a2c", "#888"
_LEVELS = {Level.OK: "#2b8a5a", Level.WARN: "#c77700", Level.ERROR: "#c43d2e"}
_BUCKET_PX = _WIDTH_PX // SIZE_BUCKETS


def history_thumbnail(series: Series, *, until: datetime) -> str | None:
    """Files and small files over time, as Markdown; None without a history."""
    if not series:
        return None
    most = max(*series.files, 1)
    style = "%Y-%m-%d" if until - series.at[0] > timedelta(days=3) else "%m-%d %H:%M"
    ends = _text(0, 90, series.at[0].strftime(style)), _text(_WIDTH_PX, 90, until.strftime(style), end=True)
    last = f"{short_count(series.small_files[-1])} small files of {short_count(series.files[-1])}"

    def drawing(steps: int) -> Markup:
        small, files = (_steps(series, amounts, most, until, steps) for amounts in (series.small_files, series.files))
        area = _path(f"{small}V74H0z", fill=_AMBER)
        return Markup().join([_text(0, 10, last), area, _path(files, fill="none", stroke=_BLUE), *ends])

    return _fitting("small files over time", drawing, 92, sizes=(72, 36, 24, 18, 12, 6, 1))


def size_thumbnail(sizes: Sequence[int], small: Sequence[int]) -> str | None:
    """Files by size, as Markdown; None without files."""
    if not any(sizes):
        return None
    most = max(sizes)
    parts = [_text(0, 10, f"at the most {short_count(most)}")]
    parts += [_text(place * _BUCKET_PX, 88, name) for place, name in ((1, "64K"), (5, "1M"), (9, "16M"), (13, "256M"))]
    tall = [round(_HEIGHT_PX * count / most) for count in sizes]
    small_tall = [round(_HEIGHT_PX * count / most) for count in small]
    parts.append(_bars(small_tall, [0] * SIZE_BUCKETS, _AMBER))
    parts.append(_bars([whole - part for whole, part in zip(tall, small_tall, strict=True)], small_tall, _BLUE))
    return _fitting("files by size in bytes", lambda _: Markup().join(parts), 92, sizes=(1,))


def freshness_thumbnail(ages: Sequence[tuple[str, Age]]) -> str | None:
    """The ages that are nearest to their limits, or beyond, as Markdown; None if nothing has a limit."""
    limited = [(name, age, age.age / age.limit) for name, age in ages if age.age is not None and age.limit]
    limited.sort(key=lambda one: -one[2])
    if not limited:
        return None

    def drawing(rows: int) -> Markup:
        return Markup().join(part for number, one in enumerate(limited[:rows]) for part in _age(number * 24, *one))

    return _fitting("ages against their limits", drawing, 24, sizes=range(min(5, len(limited)), 0, -1), grows=True)


def cost_thumbnail(now: MonthlyCost, after: MonthlyCost) -> str | None:
    """What the lake costs a month, now and after compaction, as Markdown; None if it costs nothing."""
    most = max(now.dollars, after.dollars)
    if not most:
        return None
    rows = []
    for top, name, cost in ((0, "now", now), (28, "after compaction", after)):
        requests, storage = (
            round(_WIDTH_PX * dollars / most) for dollars in (cost.request_dollars, cost.storage_dollars)
        )
        rows += [
            _text(
                0,
                top + 11,
                f"{name} {dollars_text(cost.dollars)}",
            ),
            _path(f"M0 {top + 15}h{requests}v8h-{requests}z", fill=_BLUE),
            _path(f"M{requests} {top + 15}h{storage}v8h-{storage}z", fill=_GREY),
        ]
    return _fitting("cost per month", lambda _: Markup().join(rows), 54, sizes=(1,))


def _age(top: int, name: str, age: Age, share: float) -> Iterator[Markup]:
    """A bar that ends at its limit's half of the width, or beyond, with a mark at the limit."""
    wide = round(_WIDTH_PX / 2 * min(share, 2))
    label = f"{name}, {age.what}s: {span_text(age.age)} of {span_text(age.limit)}" if age.age and age.limit else name
    yield _text(0, top + 11, label)
    yield _path(f"M0 {top + 14}h{wide}v6h-{wide}z", fill=_LEVELS[age.level])
    yield _path(f"M{_WIDTH_PX // 2} {top + 13}v8", stroke=_GREY)


def _steps(series: Series, amounts: Sequence[int], most: int, until: datetime, steps: int) -> str:
    """The amount at the end of each of so many equal spans of time, as a line from the left."""
    first = series.at[0]
    span = (until - first) / steps
    # how many commits came before the end of each span; the last one ends with all of them
    known = [bisect_left(series.at, first + number * span, lo=1) for number in range(1, steps)]
    down = [74 - round(_HEIGHT_PX * amounts[count - 1] / most) for count in (*known, len(series.at))]
    path, before = f"M0 {down[0]}", down[0]
    for y, equal in groupby(down):
        path += f"v{y - before}" * (y != before) + f"h{sum(1 for _ in equal) * _WIDTH_PX // steps}"
        before = y
    return path


def _bars(tall: Sequence[int], below: Sequence[int], colour: str) -> Markup:
    """Bars of these heights, which stand on others."""
    return _path(
        "".join(
            f"M{number * _BUCKET_PX} {74 - under}v-{high}h{_BUCKET_PX - 2}v{high}z"
            for number, (high, under) in enumerate(zip(tall, below, strict=True))
            if high
        ),
        fill=colour,
    )


def _text(x: int, y: int, words: str, *, end: bool = False) -> Markup:
    place = _attribute("x", str(x) if x else "")
    anchor = _attribute("text-anchor", "end" if end else "")
    return Markup('<text{} y="{}"{}>{}</text>').format(place, y, anchor, escaped(words))


def _path(line: str, *, fill: str = "", stroke: str = "") -> Markup:
    if not line:
        return Markup()
    return Markup('<path d="{}"{}{}/>').format(line, _attribute("fill", fill), _attribute("stroke", stroke))


def _attribute(name: str, value: str) -> Markup:
    return Markup(' {}="{}"').format(name, value) if value else Markup()


def _fitting(
    words: str, drawing: Callable[[int], Markup], height_px: int, *, sizes: Sequence[int], grows: bool = False
) -> str | None:
    """The Markdown of the first size whose drawing is short enough; None if none is."""
    for size in sizes:
        tall = height_px * size if grows else height_px
        root = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH_PX}" height="{tall}" font-size="11"'
        svg = f'{root} font-family="sans-serif" fill="{_GREY}">{drawing(size)}</svg>'
        markdown = f"![{words}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"
        if len(markdown) < INLINE_CHARACTERS:
            return markdown
    return None
