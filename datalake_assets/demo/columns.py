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

    def fragments(self) -> list[str]:
        """The values as JSON text."""
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
        object.__setattr__(self, "texts", _objects([encode_json(item, self.kind) for item in self.items]))

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

    def fragments(self) -> list[str]:  # noqa: D102 - see Column
        texts: list[str] = self.pool.texts[self.index].tolist()
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

    def fragments(self) -> list[str]:  # noqa: D102 - see Column
        return [encode_json(item, self.kind) for item in self.items]

    def take(self, rows: Longs) -> Values:  # noqa: D102 - see Column
        return Values(self.kind, [self.items[row] for row in rows.tolist()])

    def test(self, predicate: Callable[[Any], Any]) -> Bools:  # noqa: D102 - see Column
        return np.array([item is not None and bool(predicate(item)) for item in self.items], dtype=np.bool_)


def _with_nulls(items: list[Any], nulls: Bools | None, null: Any) -> list[Any]:
    if nulls is not None:
        for row in np.flatnonzero(nulls).tolist():
            items[row] = null
    return items


@dataclass(frozen=True, slots=True, eq=False)
class Ints:
    """A column of INTEGER or BIGINT."""

    kind: SqlType
    data: Longs
    nulls: Bools | None = None

    def values(self) -> list[Any]:  # noqa: D102 - see Column
        return _with_nulls(self.data.tolist(), self.nulls, None)

    def fragments(self) -> list[str]:  # noqa: D102 - see Column
        return _with_nulls(list(map(str, self.data.tolist())), self.nulls, "null")

    def take(self, rows: Longs) -> Ints:  # noqa: D102 - see Column
        return Ints(self.kind, self.data[rows], None if self.nulls is None else self.nulls[rows])

    def test(self, predicate: Callable[[Any], Any]) -> Bools:  # noqa: D102 - see Column
        hits = np.broadcast_to(np.asarray(predicate(self.data), dtype=np.bool_), self.data.shape)
        return hits if self.nulls is None else hits & ~self.nulls


@dataclass(frozen=True, slots=True, eq=False)
class Numbered:
    """A column of STRINGs that differ in a zero-padded number only, such as ``tx-000000000042``."""

    template: str
    data: Longs
    kind: SqlType = field(default_factory=lambda: scalar("STRING"))

    def values(self) -> list[Any]:  # noqa: D102 - see Column
        return list(map(self.template.__mod__, self.data.tolist()))

    def fragments(self) -> list[str]:  # noqa: D102 - see Column
        return list(map(f'"{self.template}"'.__mod__, self.data.tolist()))

    def take(self, rows: Longs) -> Numbered:  # noqa: D102 - see Column
        return Numbered(self.template, self.data[rows])

    def test(self, predicate: Callable[[Any], Any]) -> Bools:  # noqa: D102 - see Column
        return np.array([bool(predicate(item)) for item in self.values()], dtype=np.bool_)


_HUNDREDTHS = _objects([f".{cents:02d}" for cents in range(100)])


@dataclass(frozen=True, slots=True, eq=False)
class Cents:
    """A column of DECIMAL(p, 2), held as hundredths."""

    kind: SqlType
    data: Longs
    nulls: Bools | None = None

    def values(self) -> list[Any]:  # noqa: D102 - see Column
        return _with_nulls([Decimal(cents).scaleb(-2) for cents in self.data.tolist()], self.nulls, None)

    def fragments(self) -> list[str]:  # noqa: D102 - see Column
        whole, rest = np.divmod(np.abs(self.data), 100)
        texts = list(map(add, map(str, whole.tolist()), _HUNDREDTHS[rest].tolist()))
        for row in np.flatnonzero(self.data < 0).tolist():
            texts[row] = "-" + texts[row]
        return _with_nulls(texts, self.nulls, "null")

    def take(self, rows: Longs) -> Cents:  # noqa: D102 - see Column
        return Cents(self.kind, self.data[rows], None if self.nulls is None else self.nulls[rows])

    def test(self, predicate: Callable[[Any], Any]) -> Bools:  # noqa: D102 - see Column
        return np.array([item is not None and bool(predicate(item)) for item in self.values()], dtype=np.bool_)


_THOUSANDTHS = _objects([f'.{ms:03d}"' for ms in range(1000)])
_SECONDS = _objects([f"T{s // 3600:02d}:{s // 60 % 60:02d}:{s % 60:02d}" for s in range(86_400)])


@dataclass(frozen=True, slots=True, eq=False)
class Millis:
    """A column of TIMESTAMP, held as milliseconds since the epoch; compares as that number."""

    kind: SqlType
    data: Longs
    nulls: Bools | None = None

    def values(self) -> list[Any]:  # noqa: D102 - see Column
        return _with_nulls([_EPOCH + dt.timedelta(milliseconds=ms) for ms in self.data.tolist()], self.nulls, None)

    def fragments(self) -> list[str]:  # noqa: D102 - see Column
        days, rest = np.divmod(self.data, _DAY_MS)
        distinct, which = np.unique(days, return_inverse=True)
        dates = _objects([f'"{(_EPOCH + dt.timedelta(days=day)).date().isoformat()}' for day in distinct.tolist()])
        parts = zip(
            dates[which].tolist(), _SECONDS[rest // 1000].tolist(), _THOUSANDTHS[rest % 1000].tolist(), strict=True
        )
        return _with_nulls(list(map("".join, parts)), self.nulls, "null")

    def take(self, rows: Longs) -> Millis:  # noqa: D102 - see Column
        return Millis(self.kind, self.data[rows], None if self.nulls is None else self.nulls[rows])

    def test(self, predicate: Callable[[Any], Any]) -> Bools:  # noqa: D102 - see Column
        hits = np.asarray(predicate(self.data), dtype=np.bool_)
        return hits if self.nulls is None else hits & ~self.nulls
