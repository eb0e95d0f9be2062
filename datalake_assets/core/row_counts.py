"""Whether all rows are where they belong: what manifests promise, what files hold, what the source delivered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from datalake_assets.core.health import Verdict, limited, worst
from datalake_assets.policies import Checks, Level

__all__ = ["Delivery", "RowCount", "row_count_verdict"]


@dataclass(frozen=True, slots=True)
class RowCount:
    """The rows of one partition, counted twice.

    Attributes:
        key: Partition key.
        promised: Rows by the manifest.
        found: Rows by the footers of the Parquet files; None if there are too many files to open.
        previous: A table: rows of the version before; None if there is none.
    """

    key: str
    promised: int
    found: int | None
    previous: int | None = None

    @property
    def exact(self) -> bool:
        """Whether the files hold what the manifest says."""
        return self.found is None or self.found == self.promised

    @property
    def change_percent(self) -> float | None:
        """Rows gained since the previous version; None without one."""
        return None if not self.previous else 100.0 * (self.promised - self.previous) / self.previous


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of the rows that a source delivered to one export.

    Attributes:
        read: Rows that the source delivered.
        quarantined: Of these, rows put aside.
        known: Of these, rows that the lake had already.
        landed: Rows that the lake has of them: added, or in the partitions and versions that were replaced.
    """

    read: int
    quarantined: int
    known: int
    landed: int

    @property
    def lost(self) -> int:
        """Rows that are nowhere; negative if there are more than were delivered."""
        return self.read - self.quarantined - self.known - self.landed


def row_count_verdict(
    counts: Sequence[RowCount], checks: Checks, *, feed: str, delivery: Delivery | None = None
) -> Verdict:
    """Whether the files hold what the manifests promise, and the lake what the source delivered.

    Args:
        counts: Partitions.
        checks: The feed's limits.
        feed: Its name, for the cure.
        delivery: What the source says; None where it cannot tell, or nothing was written.
    """
    found = [verdict for each in counts for verdict in _judged(each, checks, feed=feed)]
    if delivery is not None and delivery.lost:
        found.append(Verdict(Level.ERROR, lines=(_lost(delivery),)))
    figures: dict[str, float] = {
        "partitions": len(counts),
        "rows_promised": sum(each.promised for each in counts),
        "rows_found": sum(each.promised if each.found is None else each.found for each in counts),
        "partitions_not_opened": sum(each.found is None for each in counts),
    }
    if delivery is not None:
        figures["rows_of_source"] = delivery.read - delivery.quarantined - delivery.known
        figures["rows_landed"] = delivery.landed
    if len(counts) == 1 and counts[0].previous is not None:
        figures["rows_previous"] = counts[0].previous
        figures["change_percent"] = round(counts[0].change_percent or 0.0, 3)
    return Verdict(worst(each.level for each in found), figures, tuple(line for each in found for line in each.lines))


def _judged(count: RowCount, checks: Checks, *, feed: str) -> Iterator[Verdict]:
    if not count.exact:
        line = (
            f"{count.key}: the manifest promises {count.promised:,} rows and the files hold {count.found:,};"
            f" run 'datalake verify {feed}'"
        )
        yield Verdict(Level.ERROR, lines=(line,))
    if count.change_percent is not None:
        line = f"{count.key} has {count.promised:,} rows, the version before had {count.previous:,}"
        yield limited(checks.row_drop_percent, -count.change_percent, line)


def _lost(delivery: Delivery) -> str:
    expected = delivery.read - delivery.quarantined - delivery.known
    return f"the source delivered {expected:,} rows that the lake should have, and {delivery.landed:,} are in it"
