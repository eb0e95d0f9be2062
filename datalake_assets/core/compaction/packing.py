"""Puts files together so that few are left: by size tiers while a partition grows, then as few as possible.

Everything here is about sizes and times, nothing about policies. Two properties hold for every packing:

- No bin holds more bytes than its capacity.
- No two bins fit into one (each was opened because what opened it fitted into no other). So to pack the results again
  changes nothing, and a plan is a fixed point.

Bundles come in the order of `Bundle.place`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import chain

from datalake_assets.core.files import DataFile
from datalake_assets.core.values import Value

__all__ = ["TIER_BASE_BYTES", "Bundle", "as_few_as_possible", "by_tiers", "tier_bounds", "tier_of", "time_order"]

#: Tier 0 ends at this times the fan-in. A file of this size costs more by its requests than by its bytes.
TIER_BASE_BYTES = 64 * 1024
_BEFORE_ALL = datetime.min.replace(tzinfo=UTC)


def time_order(file: DataFile) -> tuple[datetime, str]:
    """Sorts files by their earliest row, then by name; files without times come first."""
    return file.min_time or _BEFORE_ALL, file.name


class Bundle(Value, frozen=True):
    """A file, or files that are taken for one because their merge is planned already.

    Attributes:
        files: In time order.
        size_bytes: Predicted size of the merge: the sum. Merged files rarely come out larger than that.
    """

    files: tuple[DataFile, ...]
    size_bytes: int

    @classmethod
    def of(cls, file: DataFile) -> Bundle:
        """One file."""
        return cls((file,), file.size_bytes)

    @classmethod
    def merged(cls, bundles: Iterable[Bundle]) -> Bundle:
        """All files of ``bundles``."""
        files = sorted(chain.from_iterable(bundle.files for bundle in bundles), key=time_order)
        return cls(tuple(files), sum(file.size_bytes for file in files))

    def place(self) -> tuple[datetime, int, str]:
        """Sorts bundles by time. Of equal times size decides, as a merge has another name than what it is made of."""
        began, name = time_order(self.files[0])
        return began, self.size_bytes if self.files[0].min_time else 0, name


Bin = list[Bundle]


def tier_of(size_bytes: int, fan_in: int) -> int:
    """The size tier: ``floor(log(size / base))`` to the base ``fan_in``, and at least 0."""
    tier = 0
    while size_bytes >= tier_bounds(tier, fan_in)[1]:
        tier += 1
    return tier


def tier_bounds(tier: int, fan_in: int) -> tuple[int, int]:
    """Sizes in a tier: from the first, below the second."""
    return TIER_BASE_BYTES * fan_in**tier if tier else 0, TIER_BASE_BYTES * fan_in ** (tier + 1)


def by_tiers(bundles: Sequence[Bundle], capacity: int, *, small_below: int, fan_in: int, at_least: int) -> list[Bin]:
    """Packs each size tier of small bundles that has ``at_least`` of them; all others stay alone."""
    tiers: dict[int, list[Bundle]] = defaultdict(list)
    bins: list[Bin] = []
    for bundle in bundles:
        if bundle.size_bytes < small_below:
            tiers[tier_of(bundle.size_bytes, fan_in)].append(bundle)
        else:
            bins.append([bundle])
    for tier in tiers.values():
        bins += _pack(tier, capacity) if len(tier) >= at_least else [[bundle] for bundle in tier]
    return bins


def as_few_as_possible(bundles: Sequence[Bundle], capacity: int, *, small_below: int) -> list[Bin]:
    """Packs all bundles, each at most ``capacity``.

    The small ones are packed among themselves, then into what room the others have. Only if it leaves fewer files all
    are packed anew, as that rewrites large ones too.
    """
    fewest = _fewest_bins(bundles, capacity)
    if len(bundles) <= fewest:
        return [[bundle] for bundle in bundles]
    small = [bundle for bundle in bundles if bundle.size_bytes < small_below]
    others = [[bundle] for bundle in bundles if bundle.size_bytes >= small_below]
    small_first = _any_fit([*others, *_pack(small, capacity)], capacity)
    return small_first if len(small_first) <= fewest else min(small_first, _pack(bundles, capacity), key=len)


def _fewest_bins(bundles: Iterable[Bundle], capacity: int) -> int:
    """No packing takes fewer: less than their bytes does not hold them."""
    return -(-sum([bundle.size_bytes for bundle in bundles]) // capacity)


def _pack(bundles: Sequence[Bundle], capacity: int) -> list[Bin]:
    """Packs neighbours (next fit) unless the largest first (best fit decreasing) take fewer bins.

    Neighbours in time keep the time ranges of files and row groups narrow, so that readers can skip them.
    """
    neighbours = _any_fit(_next_fit(bundles, capacity), capacity)
    if len(neighbours) <= _fewest_bins(bundles, capacity):
        return neighbours
    largest_first = sorted(bundles, key=lambda bundle: -bundle.size_bytes)
    return min(neighbours, _any_fit([[bundle] for bundle in largest_first], capacity), key=len)


def _next_fit(bundles: Iterable[Bundle], capacity: int) -> list[Bin]:
    """Fills one bin after the other, in the order given."""
    bins: list[Bin] = []
    room = -1
    for bundle in bundles:
        if not bins or bundle.size_bytes > room:
            bins.append([])
            room = capacity
        bins[-1].append(bundle)
        room -= bundle.size_bytes
    return bins


def _any_fit(bins: Iterable[Bin], capacity: int) -> list[Bin]:
    """Puts each bin, whole, into the fullest one that it fits into (best fit), or leaves it a bin of its own."""
    packed: list[Bin] = []
    rooms: list[tuple[int, int]] = []  # bytes free and index of each packed bin, sorted
    for each in bins:
        size = sum(bundle.size_bytes for bundle in each)
        at = bisect_left(rooms, (size, -1))
        if at == len(rooms):
            packed.append(list(each))
            room, index = capacity, len(packed) - 1
        else:
            room, index = rooms.pop(at)
            packed[index] += each
        insort(rooms, (room - size, index))
    return packed
