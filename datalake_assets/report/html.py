"""HTML and SVG from Python, escaped unless it is markup already: what people wrote cannot become part of the page.

How the page looks: light and dark, narrow and wide, on screen and on paper.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

__all__ = ["CSS", "Html", "escaped", "joined", "tag"]

#: Characters that no HTML or XML document may contain, as they are shown.
_FORBIDDEN = dict.fromkeys(
    (*range(9), 11, 12, *range(14, 32), 0x7F, *range(0xD800, 0xE000), 0xFFFE, 0xFFFF), "\N{REPLACEMENT CHARACTER}"
)
_VOID = frozenset({"meta", "br", "hr"})


class Html(str):
    """Text that is markup."""

    __slots__ = ()


def escaped(content: object) -> Html:
    """The content as markup: text is escaped, markup stays as it is, None is nothing."""
    if isinstance(content, Html):
        return content
    return Html("" if content is None else html.escape(str(content).translate(_FORBIDDEN)))


def joined(contents: Iterable[object], between: str = "") -> Html:
    """Several contents, one after the other."""
    return Html(between.join(map(escaped, contents)))


def tag(element: str, /, *contents: object, **attributes: object) -> Html:
    """An element.

    Args:
        element: ``p``, ``rect``, …
        contents: What is in it, see `escaped`.
        attributes: By name; ``_`` stands for ``-``, and one at the end for nothing (``class_``). None leaves it out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if element in _VOID:
        return Html(f"<{element}{written}>")
    return Html(f"<{element}{written}>{joined(contents)}</{element}>")


_LIGHT = """
  --paper: #f6f7f9; --card: #ffffff; --ink: #1c2430; --muted: #5a6575; --grid: #dfe4ec;
  --files: #2f6fdb; --small: #e08a2c; --ok: #2b8a5a; --warn: #a86400; --error: #c43d2e;
"""
_DARK = """
  --paper: #11151b; --card: #191f28; --ink: #e8ecf2; --muted: #9ba7b8; --grid: #2c3644;
  --files: #6ba1ff; --small: #f0a24c; --ok: #4fc08d; --warn: #f0b04c; --error: #ff7d6e;
"""

CSS = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }}
main, header, footer {{ max-width: 76rem; margin: 0 auto; padding: 0 1.25rem; }}
header {{ padding-top: 2rem; }}
footer {{ padding-bottom: 3rem; color: var(--muted); font-size: .875rem; }}
h1 {{ font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; letter-spacing: -.01em; }}
h2 {{ font-size: 1.25rem; margin: 2.5rem 0 .75rem; }}
h3 {{ font-size: 1.125rem; margin: 0; overflow-wrap: anywhere; }}
p {{ margin: .25rem 0; }}
a {{ color: inherit; text-decoration-color: var(--muted); text-underline-offset: .2em; }}
a:focus-visible, [tabindex]:focus-visible, summary:focus-visible {{ outline: 2px solid var(--files);
  outline-offset: 2px; }}
.quiet {{ color: var(--muted); font-size: .875rem; overflow-wrap: anywhere; }}
.headline {{ font-size: 1.125rem; margin: 1rem 0 0; }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 10.5rem), 1fr)); gap: .75rem;
  margin: 1.25rem 0; padding: 0; }}
.tiles > div, figure, .feed, .verdicts {{ background: var(--card); border: 1px solid var(--grid);
  border-radius: .75rem; }}
.tiles > div {{ padding: .75rem 1rem; }}
.tiles dt {{ color: var(--muted); font-size: .8125rem; }}
.tiles dd {{ margin: 0; font-size: 1.5rem; line-height: 1.3; font-weight: 600; font-variant-numeric: tabular-nums; }}
.tiles dd + dd {{ font-size: .8125rem; font-weight: 400; color: var(--muted); line-height: 1.4; }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: .75rem; }}
figure {{ margin: 0; padding: 1rem; min-width: 0; }}
figure h3, figure h4 {{ font-size: 1rem; margin: 0; font-weight: 600; }}
figcaption {{ color: var(--muted); font-size: .8125rem; margin: 0 0 .75rem; }}
.key {{ display: inline-block; width: .75em; height: .75em; border-radius: 2px; margin: 0 .3em 0 .1em; }}
.key.files {{ background: var(--files); }} .key.small {{ background: var(--small); }}
.key.ok {{ background: var(--ok); }}
svg.plot {{ display: block; overflow: visible; }}
.plot text {{ font: 12px system-ui, sans-serif; fill: var(--muted); font-variant-numeric: tabular-nums; }}
.plot text.strong {{ fill: var(--ink); }}
.plot text.count {{ fill: var(--ink); font-size: 10px; }}
.plot line {{ stroke: var(--grid); }} .plot line.limit {{ stroke: var(--ink); stroke-width: 2; }}
.plot path {{ fill: none; stroke-width: 2; }}
.plot path.files {{ stroke: var(--files); }} .plot path.small {{ stroke: var(--small); }}
.plot path.area {{ fill: var(--small); fill-opacity: .22; stroke: none; }}
.plot rect.files {{ fill: var(--files); }} .plot rect.small {{ fill: var(--small); }}
.plot rect.ok {{ fill: var(--ok); }}
.plot rect.warn {{ fill: var(--warn); }} .plot rect.error {{ fill: var(--error); }}
.plot rect.grid {{ fill: var(--grid); }}
.verdicts {{ list-style: none; margin: 0; padding: 0; }}
.verdicts li {{ display: grid; grid-template-columns: 1.75rem minmax(0, 20rem) minmax(0, 1fr); gap: 0 .5rem;
  padding: .6rem 1rem; border-top: 1px solid var(--grid); overflow-wrap: anywhere; }}
.verdicts li:first-child {{ border-top: 0; }}
.verdicts a {{ font-weight: 600; }}
.verdicts p {{ margin: 0; }}
.findings {{ list-style: none; margin: .5rem 0 0; padding: 0; }}
.badge {{ display: inline-grid; place-items: center; width: 1.35rem; height: 1.35rem; border-radius: 50%;
  font-size: .8rem;
  font-weight: 700; color: var(--card); background: var(--ok); flex: none; }}
.badge.warn {{ background: var(--warn); }} .badge.error {{ background: var(--error); }}
.feed {{ padding: 1.25rem; margin: 0 0 1rem; }}
.feed > header {{ display: flex; gap: .6rem; align-items: center; max-width: none; padding: 0; }}
.feed figure {{ padding: 0; border: 0; background: none; }}
.feed .plots {{ margin: 1rem 0; gap: 1.5rem; }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(45%, 9.5rem), 1fr));
  gap: .6rem 1.25rem;
  margin: 1rem 0; }}
.figures dt {{ color: var(--muted); font-size: .8125rem; }}
.figures dd {{ margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }}
.scroll {{ overflow-x: auto; margin: .75rem 0 0; }}
table {{ border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; font-weight: 600; padding: .25rem 0; font-size: 1rem; }}
caption span {{ font-weight: 400; color: var(--muted); font-size: .8125rem; }}
th, td {{ text-align: right; padding: .35rem 0 .35rem 1rem; border-bottom: 1px solid var(--grid);
  white-space: nowrap; }}
th {{ color: var(--muted); font-weight: 500; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
td:first-child {{ white-space: normal; overflow-wrap: anywhere; min-width: 8rem; }}
summary {{ cursor: pointer; padding: .6rem 1rem; color: var(--muted); }}
.hidden {{ position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }}
@media (max-width: 40rem) {{
  main, header, footer {{ padding-left: .75rem; padding-right: .75rem; }}
  .tiles {{ grid-template-columns: 1fr 1fr; }}
  .tiles dd {{ font-size: 1.25rem; }}
  .verdicts li {{ grid-template-columns: 1.75rem minmax(0, 1fr); }}
  .verdicts li p {{ grid-column: 2; }}
  .feed {{ padding: 1rem .75rem; }}
}}
@media print {{
  :root {{ {_LIGHT} --paper: #fff; font-size: 12px; }}
  body {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
  figure, .tiles > div, tr, .verdicts li {{ break-inside: avoid; }}
  h2, h3, caption {{ break-after: avoid; }}
  .scroll {{ overflow: visible; }}
}}
"""
