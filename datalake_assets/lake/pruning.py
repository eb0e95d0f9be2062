"""By which conditions Arrow may leave out row groups.

Bounds of floats say nothing of rows that are not a number, and Arrow takes them for true of all rows: by ``x <= 2`` it
finds that ``not x < 5`` is true of no row. Where comparisons are only joined by "and" and "or", no row is lost.
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.dataset as ds

from datalake_assets.core.arrow_arrays import has_floats

__all__ = ["may_prune"]

# what Arrow writes of a condition; a text within that looks like it does no harm
_CALLED = re.compile(r"(\w+)\(")
_PLAIN = frozenset({"is_in", "is_nan", "is_null", "is_valid"})
#: A comparison of what is true or false.
_OF_TRUTHS = re.compile(r"\) (?:==|!=|<=?|>=?) |(?:==|!=|<=?|>=?) (?:\(|true|false)")


def may_prune(where: ds.Expression, schema: pa.Schema) -> bool:
    """Whether no row is lost if Arrow leaves out row groups by what they state of their values.

    Args:
        where: The condition.
        schema: Columns that it is about.
    """
    text = str(where)
    is_plain = _PLAIN.issuperset(_CALLED.findall(text)) and not _OF_TRUTHS.search(text)
    return is_plain or not any(has_floats(each.type) and each.name in text for each in schema)
