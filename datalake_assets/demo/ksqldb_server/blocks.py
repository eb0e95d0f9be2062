"""Generated rows in blocks of columns: the same values as Python objects, as JSON text, and for comparing.

A demo server has to outrun the client that it exercises, so text is made per block: values drawn from a pool are
encoded once and picked by index, numbers are formatted in bulk. Rows are pure functions of (seed, stream, index), so
any process agrees: row ``index`` arrives ``index * 86400 / events_per_day`` seconds after the start (or after that of a
later pace) and lives in source partition ``index % partitions`` at offset ``index // partitions``.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from operator import add
from typing import Any, Protocol, Self

import numpy as np
import orjson
from numpy.typing import NDArray

from datalake_assets.demo.ksqldb_server.ksql_errors import InvalidOption
from datalake_assets.demo.ksqldb_server.ksql_types import SqlType, encode_json, scalar

__all__ = [
    "DAY_MS",
    "MAX_LATE_MS",
    "Block",
    "Bools",
    "Cents",
    "Column",
    "GeneratorConfig",
    "Ints",
    "Longs",
    "Millis",
    "Numbered",
    "Pace",
    "Pool",
    "Pooled",
    "Rows",
    "Values",
]

Longs = NDArray[np.int64]
Bools = NDArray[np.bool_]
Objects = NDArray[np.object_]

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
#: Milliseconds of a day.
DAY_MS = 86_400_000


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
    return np.fromiter(items, dtype=object, count=len(items))


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
class _Numbers:
    """A column that is held as integers."""

    kind: SqlType
    data: Longs
    nulls: Bools | None = None

    def take(self, rows: Longs) -> Self:
        return type(self)(self.kind, self.data[rows], None if self.nulls is None else self.nulls[rows])

    def test(self, predicate: Callable[[Any], Any]) -> Bools:
        hits = np.broadcast_to(np.asarray(predicate(self.data), dtype=np.bool_), self.data.shape)
        return hits if self.nulls is None else hits & ~self.nulls


@dataclass(frozen=True, slots=True, eq=False)
class Ints(_Numbers):
    """A column of INTEGER or BIGINT."""

    def values(self) -> list[Any]:  # noqa: D102 - see Column
        return _with_nulls(self.data.tolist(), self.nulls, None)

    def fragments(self) -> list[bytes]:  # noqa: D102 - see Column
        return _with_nulls(_decimals(self.data), self.nulls, b"null")


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
class Cents(_Numbers):
    """A column of DECIMAL(p, 2), held as hundredths."""

    def values(self) -> list[Any]:  # noqa: D102 - see Column
        return _with_nulls([Decimal(cents).scaleb(-2) for cents in self.data.tolist()], self.nulls, None)

    def fragments(self) -> list[bytes]:  # noqa: D102 - see Column
        whole, rest = np.divmod(np.abs(self.data), 100)
        texts = list(map(add, _decimals(whole), _HUNDREDTHS[rest].tolist()))
        for row in np.flatnonzero(self.data < 0).tolist():
            texts[row] = b"-" + texts[row]
        return _with_nulls(texts, self.nulls, b"null")

    def test(self, predicate: Callable[[Any], Any]) -> Bools:  # noqa: D102 - see Column
        return np.array([item is not None and bool(predicate(item)) for item in self.values()], dtype=np.bool_)


def _clock() -> NDArray[np.uint8]:
    """Each second of a day as ``T23:59:59.``."""
    digits, seconds = _digit_table(2), np.arange(86_400)
    text = np.tile(np.frombuffer(b"Thh:mm:ss.", dtype=np.uint8), (len(seconds), 1))
    for place, unit in ((1, seconds // 3600), (4, seconds // 60 % 60), (7, seconds % 60)):
        text[:, place : place + 2] = digits[unit]
    return text


_THREE_DIGITS = _digit_table(3)
_CLOCK = _clock()


@dataclass(frozen=True, slots=True, eq=False)
class Millis(_Numbers):
    """A column of TIMESTAMP, held as milliseconds since the epoch; compares as that number."""

    def values(self) -> list[Any]:  # noqa: D102 - see Column
        return _with_nulls([_EPOCH + dt.timedelta(milliseconds=ms) for ms in self.data.tolist()], self.nulls, None)

    def fragments(self) -> list[bytes]:  # noqa: D102 - see Column
        days, rest = np.divmod(self.data, DAY_MS)
        distinct, which = np.unique(days, return_inverse=True)
        dates = [(_EPOCH + dt.timedelta(days=day)).date().isoformat() for day in distinct.tolist()]
        text = np.empty((len(self.data), 25), dtype=np.uint8)
        text[:, [0, 24]] = ord('"')
        text[:, 1:11] = np.array([list(date.encode()) for date in dates], dtype=np.uint8).reshape(-1, 10)[which]
        text[:, 11:21] = _CLOCK[rest // 1000]
        text[:, 21:24] = _THREE_DIGITS[rest % 1000]
        return _with_nulls(_lines(text), self.nulls, b"null")


_HOUR_MS = 3_600_000
# the latest event arrives 30 hours after it happened, so that some fall in an earlier day
MAX_LATE_MS = 30 * _HOUR_MS
_NO_END = 1 << 62
_DEFAULT_START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
# constants of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_U27, _U30, _U31 = np.uint64(27), np.uint64(30), np.uint64(31)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast rows arrive from one of them on, until the next pace begins.

    Attributes:
        index: The first row of this pace.
        since: When it arrives; aware.
        events_per_day: Rows per day in each stream.
        punctual: Whether events arrive when they happen, but for four in a thousand, which are a day late or more.
        broken_every: One in so many rows has a first value of another type; None: none has.
    """

    index: int
    since: dt.datetime
    events_per_day: int
    punctual: bool = False
    broken_every: int | None = None


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """What the generated streams are made from.

    Attributes:
        seed: Another seed gives other rows.
        start: When the first row arrives: an aware UTC midnight.
        events_per_day: Rows per day in each stream.
        records: Exactly so many rows in each stream, whatever the time; None lets the streams grow with the clock.
        paces: Later paces in the order of their rows and times.
        punctual: Whether events arrive when they happen, but for four in a thousand, which are a day late or more.
        broken_every: One in so many rows of the streams has a first value of another type; None: none has.
        retention_rows: Only so many of the latest rows of each stream are still there; None keeps all.
        partitions: Source partitions of each stream.
    """

    seed: int = 7
    start: dt.datetime = _DEFAULT_START
    events_per_day: int = 250
    records: int | None = None
    retention_rows: int | None = None
    partitions: int = 4
    paces: tuple[Pace, ...] = ()
    until: dt.datetime | None = None

    def __post_init__(self) -> None:
        if self.start.utcoffset() != dt.timedelta(0) or self.start.time() != dt.time(0):
            raise InvalidOption(f"start {self.start.isoformat()} must be midnight in UTC, with its time zone")
        for name, least in {"events_per_day": 1, "partitions": 1, "records": 0, "retention_rows": 0}.items():
            value: int | None = getattr(self, name)
            if value is not None and value < least:
                raise InvalidOption(f"{name} is {value}; it must be at least {least}")

    @property
    def start_ms(self) -> int:
        """The start in milliseconds since the epoch."""
        return _ms(self.start)

    def rows_by(self, now_ms: int) -> int:
        """How many rows each stream has had by then, expired ones included."""
        if self.records is not None:
            return self.records
        if self.until is not None:
            now_ms = min(now_ms, _ms(self.until))
        rows = 0
        for first, since_ms, events_per_day, end in self.segments():
            elapsed_ms = now_ms - since_ms
            if elapsed_ms >= 0:
                rows = min(first + ((elapsed_ms + 1) * events_per_day - 1) // DAY_MS + 1, end)
        return rows

    def first_index_at(self, ms: int) -> int:
        """The first index that arrives at or after this time."""
        found = 0
        for index, since_ms, events_per_day, end in self.segments():
            found = min(index - (-max(0, ms - since_ms) * events_per_day // DAY_MS), end)
            if found < end:
                break
        return found

    def arrival_ms(self, index: Longs) -> Longs:
        """When rows arrive, in milliseconds since the epoch."""
        arrival = np.zeros_like(index)
        for first, since_ms, events_per_day, _ in self.segments():
            arrival = np.where(index >= first, since_ms + (index - first) * DAY_MS // events_per_day, arrival)
        return arrival

    def segments(self) -> Iterable[tuple[int, int, int, int]]:
        """Of each pace its first row, when that arrives in milliseconds, rows a day, and the first row of the next."""
        paces = (Pace(0, self.start, self.events_per_day), *self.paces)
        ends = (*(each.index for each in self.paces), _NO_END)
        for pace, end in zip(paces, ends, strict=True):
            yield pace.index, _ms(pace.since), pace.events_per_day, end


def _ms(moment: dt.datetime) -> int:
    """Milliseconds since the epoch."""
    return (moment - _EPOCH) // dt.timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some rows of a stream.

    Attributes:
        config: Where they come from.
        stream: Whose random facts they show: derived streams name the one that they derive from.
        index: Their global indices.
    """

    config: GeneratorConfig
    stream: str
    index: Longs
    _drawn: dict[str, NDArray[np.uint64]] = field(default_factory=dict)

    def draw(self, fact: str) -> NDArray[np.uint64]:
        """Sixty-four random bits per row for this fact, the same for ever."""
        if fact not in self._drawn:
            x = self.index.astype(np.uint64) * _GOLDEN + np.uint64(_stream_key(self.config.seed, self.stream, fact))
            x = (x ^ (x >> _U30)) * _MIX_1
            x = (x ^ (x >> _U27)) * _MIX_2
            self._drawn[fact] = x ^ (x >> _U31)
        return self._drawn[fact]

    def below(self, fact: str, bound: int) -> Longs:
        """A random integer in [0, bound) per row for this fact."""
        return (self.draw(fact) % np.uint64(bound)).astype(np.int64)

    def at(self, index: Longs, *, stream: str | None = None) -> Rows:
        """Other rows, of the same stream unless another is named."""
        return Rows(self.config, stream or self.stream, index)

    def arrival_ms(self) -> Longs:
        """When each row arrived, in milliseconds since the epoch."""
        return self.config.arrival_ms(self.index)

    def rowtime_ms(self) -> Longs:
        """When each event happened: mostly seconds before it arrived, some hours, a few more than a day."""
        bits = self.draw("lateness")
        share, size = (bits % np.uint64(1000)).astype(np.int64), (bits >> np.uint64(10)).astype(np.int64)
        late = np.where(share < 970, size % 30_000, np.where(share < 996, size % (4 * _HOUR_MS), 0))  # noqa: PLR2004 - shares
        for pace, mine in self._paces():
            if pace.punctual:
                late = np.where(mine, 0, late)
        late = np.where(share >= 996, DAY_MS + size % (MAX_LATE_MS - DAY_MS), late)  # noqa: PLR2004 - in thousandths
        return np.maximum(self.arrival_ms() - late, self.config.start_ms)

    def broken(self) -> Longs:
        """Places of the rows that are broken."""
        broken = np.zeros(len(self.index), dtype=np.bool_)
        for pace, mine in self._paces():
            if pace.broken_every:
                broken |= mine & (self.index % pace.broken_every == pace.broken_every - 1)
        return np.flatnonzero(broken)

    def _paces(self) -> Iterable[tuple[Pace, Bools]]:
        """The later paces, and which of the rows came at each."""
        ends = (*(each.index for each in self.config.paces[1:]), _NO_END)
        for pace, end in zip(self.config.paces, ends, strict=True) if self.config.paces else ():
            yield pace, (self.index >= pace.index) & (self.index < end)

    def partition(self) -> Longs:
        """The source partition of each row."""
        return self.index % self.config.partitions

    def offset(self) -> Longs:
        """The offset of each row in its source partition."""
        return self.index // self.config.partitions

    def origins(self) -> Rows:
        """The rows whose content these show: themselves, but for one in 200 that a producer sent again.

        A retry has the key, and so the source partition, of the row that it repeats.
        """
        bits = self.draw("retry")
        back = ((bits >> np.uint64(8)) % np.uint64(3) + np.uint64(1)).astype(np.int64) * self.config.partitions
        again = (bits % np.uint64(200) == 0) & (self.index >= back)
        return self.at(np.where(again, self.index - back, self.index))


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows, and the rows whose content they show."""

    rows: Rows
    origins: Rows

    @classmethod
    def of(cls, rows: Rows) -> Block:
        """The block of these rows."""
        return cls(rows, rows.origins())


@lru_cache(maxsize=1024)
def _stream_key(seed: int, stream: str, fact: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{stream}/{fact}".encode(), digest_size=8).digest(), "little")
