"""Which rows exist, when and where they arrive: pure functions of (seed, stream, index), so any process agrees.

Row ``index`` of a stream arrives ``index * 86400 / events_per_day`` seconds after the start and lives in source
partition ``index % partitions`` at offset ``index // partitions``.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from datalake_assets.demo.columns import Longs
from datalake_assets.errors import ConfigError

__all__ = ["DAY_MS", "MAX_LATE_MS", "Block", "GeneratorConfig", "Rows"]

DAY_MS = 86_400_000
_HOUR_MS = 3_600_000
# the latest event arrives 30 hours after it happened, so that some fall in an earlier day
MAX_LATE_MS = 30 * _HOUR_MS
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_DEFAULT_START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
# constants of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_U27, _U30, _U31 = np.uint64(27), np.uint64(30), np.uint64(31)


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """What the generated streams are made from.

    Attributes:
        seed: Another seed gives other rows.
        start: When the first row arrives: an aware UTC midnight.
        events_per_day: Rows per day in each stream.
        records: Exactly so many rows in each stream, whatever the time; None lets the streams grow with the clock.
        retention_rows: Only so many of the latest rows of each stream are still there; None keeps all.
        partitions: Source partitions of each stream.
    """

    seed: int = 7
    start: dt.datetime = _DEFAULT_START
    events_per_day: int = 250
    records: int | None = None
    retention_rows: int | None = None
    partitions: int = 4

    def __post_init__(self) -> None:
        if self.start.utcoffset() != dt.timedelta(0) or self.start.time() != dt.time(0):
            raise ConfigError(f"start {self.start.isoformat()} must be midnight in UTC, with its time zone")
        counts: Iterable[tuple[str, int | None, int]] = (
            ("events_per_day", self.events_per_day, 1),
            ("partitions", self.partitions, 1),
            ("records", self.records, 0),
            ("retention_rows", self.retention_rows, 0),
        )
        for name, value, least in counts:
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}")

    @property
    def start_ms(self) -> int:
        """The start in milliseconds since the epoch."""
        return (self.start - _EPOCH) // dt.timedelta(milliseconds=1)

    def rows_by(self, now_ms: int) -> int:
        """How many rows each stream has had by then, expired ones included."""
        if self.records is not None:
            return self.records
        elapsed_ms = now_ms - self.start_ms
        return 0 if elapsed_ms < 0 else ((elapsed_ms + 1) * self.events_per_day - 1) // DAY_MS + 1

    def first_index_at(self, ms: int) -> int:
        """The first index that arrives at or after this time."""
        elapsed_ms = max(0, ms - self.start_ms)
        return -(-elapsed_ms * self.events_per_day // DAY_MS)


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
            self._drawn[fact] = self._draw(fact)
        return self._drawn[fact]

    def _draw(self, fact: str) -> NDArray[np.uint64]:
        x = self.index.astype(np.uint64) * _GOLDEN + np.uint64(_stream_key(self.config.seed, self.stream, fact))
        x = (x ^ (x >> _U30)) * _MIX_1
        x = (x ^ (x >> _U27)) * _MIX_2
        return x ^ (x >> _U31)

    def below(self, fact: str, bound: int) -> Longs:
        """A random integer in [0, bound) per row for this fact."""
        return (self.draw(fact) % np.uint64(bound)).astype(np.int64)

    def at(self, index: Longs, *, stream: str | None = None) -> Rows:
        """Other rows, of the same stream unless another is named."""
        return Rows(self.config, stream or self.stream, index)

    def arrival_ms(self) -> Longs:
        """When each row arrived, in milliseconds since the epoch."""
        return self.config.start_ms + self.index * DAY_MS // self.config.events_per_day

    def rowtime_ms(self) -> Longs:
        """When each event happened: mostly seconds before it arrived, some hours, a few more than a day."""
        bits = self.draw("lateness")
        share, size = (bits % np.uint64(1000)).astype(np.int64), (bits >> np.uint64(10)).astype(np.int64)
        late = np.where(share < 970, size % 30_000, np.where(share < 996, size % (4 * _HOUR_MS), 0))  # noqa: PLR2004 - shares
        late = np.where(share >= 996, DAY_MS + size % (MAX_LATE_MS - DAY_MS), late)  # noqa: PLR2004 - in thousandths
        return np.maximum(self.arrival_ms() - late, self.config.start_ms)

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
