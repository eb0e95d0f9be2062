"""Figures of a feed's present by the second: rates, and how old rows were when they were seen and when they landed.

Ages are counted in classes that grow by a tenth, so that a minute of any number of rows takes as much room as one of
none, and a percentile is right within a twentieth of itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["LOOKED_BACK_S", "PERCENTILES", "Ages", "Figures", "Second", "Totals"]

#: Seconds that a chart looks back at the most, and a step more; each second takes some kilobytes.
LOOKED_BACK_S = 660

#: Percentiles that are shown, by their names.
PERCENTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
#: Lowest age that is told from none, in seconds, how classes grow, and the upper bound of the last one.
_LEAST_S, _GROWTH, _MOST_S = 0.001, 1.1, 100 * 86_400.0
_CLASSES = int(np.ceil(np.log(_MOST_S / _LEAST_S) / np.log(_GROWTH))) + 1


@dataclass(slots=True)
class Ages:
    """How often rows were how old.

    Attributes:
        counts: Rows by class of age; none until there is a row.
    """

    counts: npt.NDArray[np.uint32] | None = None

    def add(self, ages_s: npt.NDArray[np.float64]) -> None:
        """Counts rows; a negative age, of a clock that is ahead, is none."""
        if not len(ages_s):
            return
        classes = np.floor(np.log(np.clip(ages_s, _LEAST_S, _MOST_S) / _LEAST_S) / np.log(_GROWTH)).astype(np.int64)
        counted = np.bincount(classes, minlength=_CLASSES).astype(np.uint32)
        self.counts = counted if self.counts is None else self.counts + counted

    def merge(self, other: Ages) -> None:
        """Counts the rows of another, too."""
        if other.counts is not None:
            self.counts = other.counts.copy() if self.counts is None else self.counts + other.counts

    def percentiles(self) -> dict[str, float] | None:
        """Ages in seconds by the names of `PERCENTILES`; None without rows."""
        if self.counts is None:
            return None
        upto = np.cumsum(self.counts, dtype=np.int64)
        found = {}
        for name, share in PERCENTILES.items():
            place = int(np.searchsorted(upto, share * int(upto[-1])))
            found[name] = round(_LEAST_S * _GROWTH ** (place + 0.5), 4)
        return found


@dataclass(slots=True)
class Totals:
    """Rows since the view began.

    Attributes:
        seen: That were read, each once.
        landed: Of these, that are known to be committed.
        known: That came again, and that the lake had already.
        late: Of those seen: older than what came before.
        duplicate: Of those seen: with the key of an earlier one.
        quarantined: That could not be landed.
    """

    seen: int = 0
    landed: int = 0
    known: int = 0
    late: int = 0
    duplicate: int = 0
    quarantined: int = 0


@dataclass(slots=True)
class Second(Totals):
    """What a second brought.

    Attributes:
        arrivals: Batches of rows that came.
        seen_ages: How old rows were when they were seen.
        landed_ages: How old rows were when they were committed in this second.
    """

    arrivals: int = 0
    seen_ages: Ages = field(default_factory=Ages)
    landed_ages: Ages = field(default_factory=Ages)


class Figures:
    """Totals since the beginning, and the last seconds one by one.

    Args:
        kept_s: Seconds that are kept.
    """

    def __init__(self, kept_s: int) -> None:
        self.totals = Totals()
        self._kept_s = max(kept_s, 1)
        self._seconds: dict[int, Second] = {}

    def at(self, now_s: float) -> Second:
        """The second of a moment, to be added to; those that are too old go."""
        number = int(now_s)
        found = self._seconds.get(number)
        if found is None:
            found = self._seconds[number] = Second()
            for old in [each for each in self._seconds if each <= number - self._kept_s]:
                del self._seconds[old]
        return found

    def since(self, first_s: float, last_s: float) -> Iterator[tuple[int, Second]]:
        """The seconds in ``[first_s, last_s)`` in which something came, in order."""
        for number in sorted(self._seconds):
            if first_s <= number < last_s:
                yield number, self._seconds[number]

    def ages(self, first_s: float, last_s: float) -> tuple[Ages, Ages]:
        """How old rows were when they were seen, and when they were committed, in ``[first_s, last_s)``."""
        seen, landed = Ages(), Ages()
        for _, second in self.since(first_s, last_s):
            seen.merge(second.seen_ages)
            landed.merge(second.landed_ages)
        return seen, landed
