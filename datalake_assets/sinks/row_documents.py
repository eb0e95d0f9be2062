"""Rows as documents: JSON objects with ids that are the same whenever a row is sent, and differ where rows do.

A row whose source numbers it has that number for an id. Others are known by their content, and equal rows of a
partition by a count: which of them is which makes no difference.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from datalake_assets.core.position import Ints, OffsetsPosition, numbers_of, position_from_json
from datalake_assets.core.row_texts import row_to_text, values_of
from datalake_assets.sinks.base import PARTITION_FIELD, Document

__all__ = ["ByContent", "ByPosition", "NoPositions", "is_numbered_once"]

_DIGEST_BYTES = 16


class NoPositions(Exception):
    """Rows of a partition have no position: they were landed before positions were."""


def is_numbered_once(position: dict[str, Any] | None) -> bool:
    """Whether no two rows of a partition can have one position: its source was never recreated."""
    found = position_from_json(position)
    return isinstance(found, OffsetsPosition) and all(epoch == 0 for epoch, _ in found.next_offsets.values())


def _bodies(rows: pa.RecordBatch, partition: str) -> Iterator[bytes]:
    """Rows as JSON objects, without their nulls: so a column that is added later changes nothing of older rows."""
    columns = [values_of(column) for column in rows.columns]
    names = rows.schema.names
    for values in zip(*columns, strict=True):
        row = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        yield row_to_text(row | {PARTITION_FIELD: partition})


def _ids(rows: pa.RecordBatch, columns: tuple[str, str]) -> list[str]:
    """Ids of rows that have positions."""
    partitions, offsets = _positions(rows, columns)
    return [f"{one}-{other}" for one, other in zip(partitions.tolist(), offsets.tolist(), strict=True)]


def _positions(rows: pa.RecordBatch, columns: tuple[str, str]) -> tuple[Ints, Ints]:
    found = [rows.column(name) for name in columns if name in rows.schema.names]
    if len(found) < len(columns) or any(each.null_count for each in found):
        raise NoPositions
    if not (all(map(_is_integer, found)) or all(pa.types.is_string(each.type) for each in found)):
        raise NoPositions
    return numbers_of(*found)


def _is_integer(column: pa.Array) -> bool:
    return bool(pa.types.is_integer(column.type))


def _lacking(position: OffsetsPosition, partitions: Ints, offsets: Ints) -> npt.NDArray[np.bool_]:
    """Which rows were not there at a position."""
    lacking = np.zeros(len(offsets), dtype=np.bool_)
    for partition in np.unique(partitions).tolist():
        of_it = np.flatnonzero(partitions == partition)
        lacking[of_it] = position.lacks(0, partition, offsets[of_it])
    return lacking


@dataclass(slots=True)
class ByPosition:
    """Documents of rows that have positions.

    Attributes:
        partition: Key of the lake's partition.
        columns: Which have source partition and offset.
        sent: The partition's position when all of it had been sent: the same fence as the lake's. None: nothing was.
        until: A later one of its positions: rows that were not there then are left out. None: none are.
        given: Rows so far that are to be sent.
    """

    partition: str
    columns: tuple[str, str]
    sent: OffsetsPosition | None = None
    until: OffsetsPosition | None = None
    given: int = 0

    def documents(self, rows: pa.RecordBatch) -> Iterator[Document]:
        """The documents of those rows that are to be sent.

        Raises:
            NoPositions: A row has none.
        """
        partitions, offsets = _positions(rows, self.columns)
        wanted = np.ones(rows.num_rows, dtype=np.bool_)
        if self.sent is not None:
            wanted &= _lacking(self.sent, partitions, offsets)
        if self.until is not None:
            wanted &= ~_lacking(self.until, partitions, offsets)
        rows = rows.filter(pa.array(wanted))
        self.given += rows.num_rows
        for id_, body in zip(_ids(rows, self.columns), _bodies(rows, self.partition), strict=True):
            yield Document(id_, body)

    def ids(self, rows: pa.RecordBatch) -> list[str]:
        """The ids of all of some rows, whether they are to be sent or not.

        Raises:
            NoPositions: A row has none.
        """
        return _ids(rows, self.columns)


class ByContent:
    """Documents of rows that are known by their content alone; all of a partition go through one of these.

    Args:
        partition: Key of the lake's partition.
    """

    def __init__(self, partition: str) -> None:
        self._partition = partition
        self._seen: Counter[bytes] = Counter()

    def documents(self, rows: pa.RecordBatch) -> Iterator[Document]:
        """The documents of rows."""
        for body in _bodies(rows, self._partition):
            digest = hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
            count = self._seen[digest]
            self._seen[digest] += 1
            yield Document(f"{self._partition}-{digest.hex()}{f'-{count}' if count else ''}", body)
