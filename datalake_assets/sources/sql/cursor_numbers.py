"""Numbers of rows by their cursor values, and what they are numbers of.

A position is a number. It means something in one table, by one column, alone: whoever changes what a feed reads would
have rows below the old position never read, or all rows read and landed once more.
"""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from datalake_assets.errors import SourceError

__all__ = ["Numbering", "number_of", "numbers_of", "unit_of", "value_of"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Numbering:
    """What numbers the rows of a feed.

    Attributes:
        database: Its name in the settings.
        relation: The table or view, quoted; empty of a query, which may be another one by now and read the same.
        cursor: The column.
        unit: What its values count: ``number``, ``day`` or ``microsecond``.
    """

    database: str
    relation: str
    cursor: str
    unit: str

    @classmethod
    def of(cls, text: str) -> Numbering | None:
        """The inverse of `to_text`; None of what is no such text, as where another system numbered the rows."""
        try:
            return cls(*map(str, json.loads(text)))
        except (ValueError, TypeError):
            return None

    def to_text(self, *, before: str = "") -> str:
        """As a feed's state has it.

        Args:
            before: As it has it now; what that says of the relation is kept where this is a query.
        """
        known = self.of(before)
        relation = known.relation if known is not None and not self.relation else self.relation
        return json.dumps([self.database, relation, self.cursor, self.unit], ensure_ascii=False)

    def goes_on_as(self, other: Numbering) -> bool:
        """Whether another one can be of the same numbers, as far as is known."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return all(one == another or not one or not another for one, another in pairs)

    @property
    def told(self) -> str:
        """For a person."""
        return f"{self.relation or 'a query'} of {self.database} by {self.cursor}, a {self.unit}"


def unit_of(kind: Any) -> str:
    """What the values of a cursor of this type count."""
    return "number" if pt.is_integer(kind) else "day" if pt.is_date(kind) else "microsecond"


def numbers_of(column: pa.Array) -> npt.NDArray[np.int64]:
    """The numbers of cursor values, int64; those of values that are none are 0."""
    if pt.is_decimal(column.type):
        column = column.cast(pa.int64())
    whole = column.view(pa.int32()) if column.type == pa.date32() else column
    return np.asarray((whole if pt.is_integer(whole.type) else whole.view(pa.int64())).cast(pa.int64()).fill_null(0))


def number_of(value: int | datetime | date) -> int:
    """The number of a cursor value; a naive time is UTC's."""
    if isinstance(value, datetime):
        return ((value if value.tzinfo else value.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND
    return (value - _EPOCH.date()).days if isinstance(value, date) else value


def value_of(number: int, kind: pa.DataType) -> int | datetime | date:
    """The cursor value of a number.

    Raises:
        SourceError: It lies beyond Python's calendar.
    """
    if pt.is_integer(kind):
        return number
    try:
        if pt.is_date(kind):
            return _EPOCH.date() + timedelta(days=number)
        moment = _EPOCH + number * _MICROSECOND
    except OverflowError as error:
        raise SourceError("cursor", f"{number} is no time that can be asked for", cure="correct the row") from error
    return moment if kind.tz else moment.replace(tzinfo=None)
