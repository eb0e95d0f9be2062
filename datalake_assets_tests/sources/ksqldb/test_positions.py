"""Offsets in order, and what out of order means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.errors import SourceRefused
from datalake_assets.sources.ksqldb.positions import OrderWatch

blocks = st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20)), min_size=1, max_size=8), max_size=8)


def add(watch: OrderWatch, rows: list[tuple[int, int]]) -> None:
    partitions, offsets = zip(*rows, strict=True)
    watch.add(np.array(partitions, np.int32), np.array(offsets, np.int64))


@given(blocks)
def test_order_is_refused_exactly_when_a_row_comes_late_for_the_first_time(read: list[list[tuple[int, int]]]) -> None:
    watch, seen = OrderWatch("S"), set()
    for rows in read:
        late = False
        for row in rows:
            late = late or (row not in seen and any(p == row[0] and o > row[1] for p, o in seen))
            seen.add(row)
        if late:
            with pytest.raises(SourceRefused, match="comes after later ones"):
                add(watch, rows)
            return
        add(watch, rows)


def test_order_error_names_partition_and_cure() -> None:
    watch = OrderWatch("http://h S")
    add(watch, [(3, 7), (3, 9)])
    with pytest.raises(SourceRefused) as raised:
        add(watch, [(3, 8)])
    assert str(raised.value) == (
        "http://h S: offset 8 of source partition 3 comes after later ones: the stream is partitioned anew, so "
        "positions mean nothing; derive it without PARTITION BY, or use mode 'pull'"
    )
