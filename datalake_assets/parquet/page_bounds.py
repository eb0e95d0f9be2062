"""What a column index states of the values of each page, and whether that can be true.

By bounds pages are left out unread, so that a wrong one loses rows in silence, and nothing vouches for it. So an index
must not contradict itself, the numbers of rows of its pages, or the bounds of its column chunk. A wrong bound that
contradicts nothing is believed, here as by all readers.

Source: apache/parquet-format, src/main/thrift/parquet.thrift: ColumnIndex; PageIndex.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import pyarrow as pa

from datalake_assets.parquet.thrift import I32, TRUE, CompactReader, MalformedThrift

__all__ = ["BoundForm", "Bounds", "page_bounds"]

#: BoundaryOrder: the bounds of pages rise, or fall, from page to page.
_RISING, _FALLING = 1, 2


class Bounds(NamedTuple):
    """What a page states of its values, as Arrow has them: the least and the greatest (None: it has only nulls)."""

    least: pa.Scalar | None
    greatest: pa.Scalar | None
    may_be_null: bool


class BoundForm(NamedTuple):
    """How bounds are written.

    Attributes:
        order: ``SIGNED`` and ``UNSIGNED`` numbers, ``DATE`` and ``TIMESTAMP``, which are signed, or ``STRING``.
        width: Bytes of each; 0: they have several lengths.
        kind: The type that they have in Arrow.
    """

    order: str
    width: int
    kind: pa.DataType


def page_bounds(
    encoded: bytes, form: BoundForm, rows: Sequence[int], extremes: tuple[bytes, bytes] | None
) -> tuple[Bounds, ...] | None:
    """What a column index states of each page; None if Arrow has no such texts.

    Args:
        encoded: The index.
        form: How its bounds are written.
        rows: Of each page.
        extremes: The bounds of the column chunk, if it states any.

    Raises:
        MalformedThrift: It contradicts itself, the rows of its pages, or the bounds of its column chunk.
    """
    index = _read(encoded)
    if not len(index.null_pages) == len(index.least) == len(index.greatest) == len(rows):
        raise MalformedThrift("a column index is not one of its pages")
    if index.nulls is not None:
        _check_nulls(index.nulls, index.null_pages, rows)
    least, greatest = (
        [None if is_null else _value(each, form) for is_null, each in zip(index.null_pages, given, strict=True)]
        for given in (index.least, index.greatest)
    )
    stated = [(low, high) for low, high in zip(least, greatest, strict=True) if low is not None]
    _check_order(stated, index.direction)
    if extremes is not None:
        lowest, highest = (_value(each, form) for each in extremes)
        _check_order(((lowest, low) for low, _ in stated), 0)
        _check_order(((high, highest) for _, high in stated), 0)
    nulls = index.nulls or [1] * len(rows)
    try:
        return tuple(
            Bounds(_scalar(low, form), _scalar(high, form), number > 0)
            for low, high, number in zip(least, greatest, nulls, strict=True)
        )
    except UnicodeDecodeError:  # cut off within a letter
        return None


@dataclass(slots=True)
class _Index:
    """A column index as it is written; ``nulls`` are not stated by all."""

    null_pages: list[bool] = field(default_factory=list)
    least: list[bytes] = field(default_factory=list)
    greatest: list[bytes] = field(default_factory=list)
    direction: int = 0
    nulls: list[int] | None = None


def _read(encoded: bytes) -> _Index:
    reader, index = CompactReader(encoded), _Index()
    for number, kind in reader.fields():
        if number == 1:
            index.null_pages = [byte == TRUE for byte in reader.bools(kind)]
        elif number == 2:  # noqa: PLR2004  min_values
            index.least = reader.binaries(kind)
        elif number == 3:  # noqa: PLR2004  max_values
            index.greatest = reader.binaries(kind)
        elif number == 4:  # noqa: PLR2004  boundary_order
            index.direction = reader.integer(kind, I32)
        elif number == 5:  # noqa: PLR2004  null_counts
            index.nulls = reader.integers(kind)
    return index


def _check_nulls(nulls: Sequence[int], null_pages: Sequence[bool], rows: Sequence[int]) -> None:
    """A page of nulls alone has as many as it has rows; any other has fewer."""
    is_stated = len(nulls) == len(rows) and all(
        0 <= number <= count and (number == count) == is_null
        for number, is_null, count in zip(nulls, null_pages, rows, strict=True)
    )
    if not is_stated:
        raise MalformedThrift("a column index has other nulls than its pages have rows")


def _value(data: bytes, form: BoundForm) -> Any:
    """A bound; Python's order is that of the column then."""
    if not form.width:
        return data
    if len(data) != form.width:
        raise MalformedThrift("a bound has another length than its type")
    return int.from_bytes(data, "little", signed=form.order != "UNSIGNED")


def _check_order(stated: Iterable[tuple[Any, Any]], direction: int) -> None:
    pairs = list(stated)
    holds = all(low <= high for low, high in pairs)
    if direction == _RISING:
        holds = holds and all(one[0] <= next_[0] and one[1] <= next_[1] for one, next_ in pairwise(pairs))
    elif direction == _FALLING:
        holds = holds and all(one[0] >= next_[0] and one[1] >= next_[1] for one, next_ in pairwise(pairs))
    if not holds:
        raise MalformedThrift("the bounds of a column index are not in their order")


def _scalar(value: Any, form: BoundForm) -> pa.Scalar | None:
    """A bound as Arrow has it."""
    if value is None:
        return None
    if form.order == "STRING":
        return pa.scalar(value.decode(), form.kind)
    try:
        if form.order in ("DATE", "TIMESTAMP"):
            return pa.scalar(value, pa.int32() if form.order == "DATE" else pa.int64()).cast(form.kind)
        return pa.scalar(value, form.kind)
    except (pa.ArrowInvalid, OverflowError) as error:
        raise MalformedThrift("a bound is no value of its column") from error
