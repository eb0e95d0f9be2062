"""Whether a pull of a table can be believed.

A ksqlDB server may answer a failed table scan with a well-formed, shorter, even empty result
(``HARouting.executeRounds`` closes the row queue before its error gets through; ksqlDB 0.29 and later). Nothing in the
answer shows it, so a sudden fall of the row count is what there is to go by.
"""

from __future__ import annotations

__all__ = ["agree", "suspicious"]

#: A fall by more than this share against the last version is pulled again.
FALL = 0.10
#: Two pulls within this share of each other agree.
AGREE = 0.01


def suspicious(rows: int, *, previous_rows: int) -> bool:
    """Whether ``rows`` is so few, after ``previous_rows``, that the pull may have been cut short."""
    return previous_rows > 0 and (rows == 0 or rows < previous_rows * (1 - FALL))


def agree(first_rows: int, second_rows: int) -> bool:
    """Whether two pulls saw the same table, allowing for changes in between."""
    return abs(first_rows - second_rows) <= max(first_rows, second_rows) * AGREE
