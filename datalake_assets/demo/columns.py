"""Columns of a block of generated rows: the same values as Python objects, as JSON text, and for comparing.

A demo server has to outrun the client that it exercises, so text is made per block: values drawn from a pool are
encoded once and picked by index, numbers are formatted in bulk.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from operator import add
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from datalake_assets.demo.ksql_types import SqlType, encode_json, scalar

__all__ = ["Bools", "Cents", "Column", "Ints", "Longs", "Millis", "Numbered", "Pool", "Pooled", "Values"]

Longs = NDArray[np.int64]
Bools = NDArray[np.bool_]
Objects = NDArray[np.object_]

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_DAY_MS = 86_400_000


class Column(Protocol):
    """Values of one column for a block of rows."""

    @property
    def kind(self) -> SqlType:
        """The SQL type."""
        ...

    def values(self) -> list[Any]:
        """The values as Python objects, exact."""
        ...

    def fragments(self) -> list[bytes]:
        """The values as JSON text in UTF-8."""
        ...

    def take(self, rows: Longs) -> Column:
        """The same column for these rows of the block, in this order."""
        ...

    def test(self, predicate: Callable[[Any], Any]) -> Bools:
        """Where the predicate holds; NULL never satisfies one.

        Args:
            predicate: Takes a value; for integer columns it must take an array as well, as the operators do.
        """
        ...


def _objects(items: Sequence[Any]) -> Objects:
    out = np.empty(len(items), dtype=object)
    for i, item in enumerate(items):
        out[i] = item
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """A small set of values that a column draws from, with their JSON text."""

    kind: SqlType
    items: tuple[Any, ...]
    objects: Objects = field(init=False)
    texts: Objects = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "objects", _objects(self.items))
        object.__setattr__(self, "texts", _objects([encode_json(item, self.kind).encode() for item in self.items]))

    def field(self, name: str) -> Pool:
        """The pool of one field of a STRUCT."""
        kind = self.kind.field(name)
        if kind is None:
            raise KeyError(name)
        return Pool(kind, tuple(None if item is None else item[name] for item in self.items))


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """A column whose values come from a pool."""

    pool: Pool
    index: Longs

    @property
    def kind(self) -> SqlType:  # noqa: D102 - see Column
        return self.pool.kind

    def values(self) -> list[Any]:  # noqa: D102 - see Column
        return list(self.pool.objects[self.index])

    def fragments(self) -> list[bytes]:  # noqa: D102 - see Column
        texts: list[bytes] = self.pool.texts[self.index].tolist()
        return texts

    def take(self, rows: Longs) -> Pooled:  # noqa: D102 - see Column
        return Pooled(self.pool, self.index[rows])

    def test(self, predicate: Callable[[Any], Any]) -> Bools:  # noqa: D102 - see Column
        hits = np.array([item is not None and bool(predicate(item)) for item in self.pool.items], dtype=np.bool_)
        return hits[self.index]

    def struct_field(self, name: str) -> Pooled:
        """One field of a STRUCT column; NULL where the struct is NULL."""
        return Pooled(self.pool.field(name), self.index)


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """A column of plain Python values: for small results such as tables."""

    kind: SqlType
    items: list[Any]

    def values(self) -> list[Any]:  # noqa: D102 - see Column
        return self.items

    def fragments(self) -> list[bytes]:  # noqa: D102 - see Column
        return [encode_json(item, self.kind).encode() for item in self.items]

    def take(self, rows: Longs) -> Values:  # noqa: D102 - see Column
        return Values(self.kind, [self.items[row] for row in rows.tolist()])

    def test(self, predicate: Callable[[Any], Any]) -> Bools:  # noqa: D102 - see Column
        return np.array([item is not None and bool(predicate(item)) for item in self.items], dtype=np.bool_)


def _with_nulls(items: list[Any], nulls: Bools | None, null: Any) -> list[Any]:
    if nulls is not None:
        for row in np.flatnonzero(nulls).tolist():
            items[row] = null
    return items


def _decimals(data: Longs) -> list[bytes]:
    """Each integer as text."""
    return orjson.dumps(data.tolist())[1:-1].split(b",") if len(data) else []


@dataclass(frozen=True, slots=True, eq=False)
class Ints:
    """A column of INTEGER or BIGINT."""

    kind: SqlType
    data: Longs
    nulls: Bools | None = None

    def values(self) -> list[Any]:  # noqa: D102 - see Column
        return _with_nulls(self.data.tolist(), self.nulls, None)

    def fragments(self) -> list[bytes]:  # noqa: D102 - see Column
        return _with_nulls(_decimals(self.data), self.nulls, b"null")

    def take(self, rows: Longs) -> Ints:  # noqa: D102 - see Column
        return Ints(self.kind, self.data[rows], None if self.nulls is None else self.nulls[rows])

    def test(self, predicate: Callable[[Any], Any]) -> Bools:  # noqa: D102 - see Column
        hits = np.broadcast_to(np.asarray(predicate(self.data), dtype=np.bool_), self.data.shape)
        return hits if self.nulls is None else hits & ~self.nulls


def _digit_table(width: int) -> NDArray[np.uint8]:
    """The decimal digits of every number of this width, zero-padded, as ASCII."""
    return np.array([list(f"{n:0{width}d}".encode()) for n in range(10**width)], dtype=np.uint8)


_FOUR_DIGITS = _digit_table(4)


@dataclass(frozen=True, slots=True, eq=False)
class Numbered:
    """A column of STRINGs that differ in a zero-padded number of twelve digits only: ``tx-000000000042``."""

    prefix: str
    data: Longs
    kind: SqlType = field(default_factory=lambda: scalar("STRING"))

    def values(self) -> list[Any]:  # noqa: D102 - see Column
        return list(map(f"{self.prefix}%012d".__mod__, self.data.tolist()))

    def fragments(self) -> list[bytes]:  # noqa: D102 - see Column
        start = list(f'"{self.prefix}'.encode())
        text = np.empty((len(self.data), len(start) + 13), dtype=np.uint8)
        text[:, : len(start)] = start
        text[:, -1] = ord('"')
        rest = self.data
        for place in (len(start) + 8, len(start) + 4, len(start)):
            rest, group = np.divmod(rest, 10_000)
            text[:, place : place + 4] = _FOUR_DIGITS[group]
        return _lines(text)

    def take(self, rows: Longs) -> Numbered:  # noqa: D102 - see Column
        return Numbered(self.prefix, self.data[rows])

    def test(self, predicate: Callable[[Any], Any]) -> Bools:  # noqa: D102 - see Column
        return np.array([bool(predicate(item)) for item in self.values()], dtype=np.bool_)


def _lines(text: NDArray[np.uint8]) -> list[bytes]:
    """Each row of a matrix of characters."""
    lines: list[bytes] = text.view(f"S{text.shape[1]}").ravel().tolist()
    return lines


_HUNDREDTHS = _objects([f".{cents:02d}".encode() for cents in range(100)])


@dataclass(frozen=True, slots=True, eq=False)
class Cents:
    """A column of DECIMAL(p, 2), held as hundredths."""

    kind: SqlType
    data: Longs
    nulls: Bools | None = None

    def values(self) -> list[Any]:  # noqa: D102 - see Column
        return _with_nulls([Decimal(cents).scaleb(-2) for cents in self.data.tolist()], self.nulls, None)

    def fragments(self) -> list[bytes]:  # noqa: D102 - see Column
        whole, rest = np.divmod(np.abs(self.data), 100)
        texts = list(map(add, _decimals(whole), _HUNDREDTHS[rest].tolist()))
        for row in np.flatnonzero(self.data < 0).tolist():
            texts[row] = b"-" + texts[row]
        return _with_nulls(texts, self.nulls, b"null")

    def take(self, rows: Longs) -> Cents:  # noqa: D102 - see Column
        return Cents(self.kind, self.data[rows], None if self.nulls is None else self.nulls[rows])

    def test(self, predicate: Callable[[Any], Any]) -> Bools:  # noqa: D102 - see Column
        return np.array([item is not None and bool(predicate(item)) for item in self.values()], dtype=np.bool_)


_THREE_DIGITS = _digit_table(3)
_CLOCK = np.array(
    [list(f"T{s // 3600:02d}:{s // 60 % 60:02d}:{s % 60:02d}.".encode()) for s in range(86_400)], dtype=np.uint8
)


@dataclass(frozen=True, slots=True, eq=False)
class Millis:
    """A column of TIMESTAMP, held as milliseconds since the epoch; compares as that number."""

    kind: SqlType
    data: Longs
    nulls: Bools | None = None

    def values(self) -> list[Any]:  # noqa: D102 - see Column
        return _with_nulls([_EPOCH + dt.timedelta(milliseconds=ms) for ms in self.data.tolist()], self.nulls, None)

    def fragments(self) -> list[bytes]:  # noqa: D102 - see Column
        days, rest = np.divmod(self.data, _DAY_MS)
        distinct, which = np.unique(days, return_inverse=True)
        dates = [(_EPOCH + dt.timedelta(days=day)).date().isoformat() for day in distinct.tolist()]
        text = np.empty((len(self.data), 25), dtype=np.uint8)
        text[:, [0, 24]] = ord('"')
        text[:, 1:11] = np.array([list(date.encode()) for date in dates], dtype=np.uint8).reshape(-1, 10)[which]
        text[:, 11:21] = _CLOCK[rest // 1000]
        text[:, 21:24] = _THREE_DIGITS[rest % 1000]
        return _with_nulls(_lines(text), self.nulls, b"null")

    def take(self, rows: Longs) -> Millis:  # noqa: D102 - see Column
        return Millis(self.kind, self.data[rows], None if self.nulls is None else self.nulls[rows])

    def test(self, predicate: Callable[[Any], Any]) -> Bools:  # noqa: D102 - see Column
        hits = np.asarray(predicate(self.data), dtype=np.bool_)
        return hits if self.nulls is None else hits & ~self.nulls
