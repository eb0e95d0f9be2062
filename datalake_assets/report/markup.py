"""The templates of the page and its plots: escaped, so that what people wrote cannot become part of the page."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from datalake_assets.core.wording import (
    count_text,
    counted,
    dollars_text,
    many_text,
    moment_text,
    scans_text,
    size_text,
)

__all__ = ["escaped", "macro", "rendered"]

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
