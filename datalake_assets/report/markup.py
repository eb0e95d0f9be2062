"""HTML and SVG from Python, escaped unless it is markup already: what people wrote cannot become part of the page."""

from __future__ import annotations

import html
from collections.abc import Iterable

__all__ = ["Html", "escaped", "joined", "tag"]

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
