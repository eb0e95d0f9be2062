"""A table under test: how it is opened and written, and the rows that are in it.

Row ``i`` has the ``id`` ``i`` and happens ``i`` hours after 2025-01-01: rows 0 to 23 are those of the first day.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from datalake_assets.core.batches import Batches, InMemoryBatches, ReadRequest, RejectedRow, SourceBatch
from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.errors import SnapshotExpired
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import LakeTable, WriteReport

__all__ = [
    "DAY",
    "FORCE",
    "SCHEMA",
    "START",
    "Died",
    "ExportedCase",
    "TableCase",
    "exact_ids",
    "ids_of",
    "numbered_rows",
    "rows_of",
    "write_as_sent",
]

START = datetime(2025, 1, 1, tzinfo=UTC)
SCHEMA = pa.schema([("id", pa.int64()), ("rowtime", pa.timestamp("ms", "UTC"))])
FORCE = CompactionRequest(force=True)
#: Rows of a day.
DAY = 24


def rows_of(ids: Sequence[int]) -> pa.RecordBatch:
    """Rows with these ids, at their hours."""
    times = [START + timedelta(hours=number) for number in ids]
    return pa.record_batch([pa.array(ids, pa.int64()), pa.array(times, SCHEMA.field(1).type)], schema=SCHEMA)


def numbered_rows(ids: Sequence[int], *, rejected: Sequence[int] = ()) -> SourceBatch:
    """Rows as a source sends them that numbers them as the ids are; some it could not decode."""
    return SourceBatch(
        rows_of(ids),
        pa.array([0] * len(ids), pa.int32()),
        pa.array(ids, pa.int64()),
        tuple(RejectedRow(str(number).encode(), "not a row", f"0:{number}") for number in rejected),
    )


def ids_of(table: LakeTable, *, partitions: Sequence[str] | None = None) -> list[int]:
    """The ids in a table, in order."""
    found: list[int] = table.scan(columns=["id"], partitions=partitions).read_all()["id"].to_pylist()
    return sorted(found)


def exact_ids(case: TableCase) -> list[int]:
    """The ids in a table whose files are being replaced: a scan that was overtaken begins again, as readers do."""
    while True:
        with contextlib.suppress(SnapshotExpired):
            return ids_of(case.open())


def write_as_sent(case: ExportedCase, *sent: SourceBatch) -> WriteReport:
    """Plans and writes what a source sends, with what it could not decode."""
    table = case.open()
    plan = table.plan(case.plans)
    return table.write(InMemoryBatches(sent, case.time_column, plan.request), partitions=plan.partitions, run_id="run")


class Died(BaseException):
    """The process is gone."""


class TableCase(ABC):
    """A table under test: how it is opened and written.

    Attributes:
        absent_key: A partition key that it might have, and has not.
        finishes: Whether a commit whose process died with all files written is finished by whoever comes next; else it
            is undone, and its rows come with the next write.
    """

    absent_key = "2025-03-01"
    finishes = True

    @abstractmethod
    def open(self) -> LakeTable:
        """The table as another process would open it."""

    @abstractmethod
    def write(self, ids: Sequence[int]) -> WriteReport | None:
        """Puts rows in as its writer does; None where that is not us."""

    def scatter(self, ids: Sequence[int], *, files: int) -> str:
        """Puts rows of the first day in, as so many small files; returns their partition's key."""
        step = -(-len(ids) // files)
        for start in range(0, len(ids), step):
            self.write(ids[start : start + step])
        return self.open().partitions()[0]

    @property
    def data_store(self) -> Store:
        """Where its data files are."""
        raise NotImplementedError

    @property
    def data_root(self) -> str:
        """The folder of its data files, in there."""
        raise NotImplementedError

    @property
    def store(self) -> Store:
        """The lake."""
        raise NotImplementedError

    def take_away(self) -> None:
        """Whoever writes it takes all rows out."""
        self.data_store.delete(self.files())

    def files(self) -> list[str]:
        """Keys of its data files, in there."""
        return sorted(info.key for info in self.data_store.list(self.data_root))

    @contextmanager
    def dying(self) -> Iterator[None]:
        """The process dies in here, after a commit was decided and before anybody sees its files."""

        def die(*_: object) -> None:
            raise Died

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(self.data_store), "publish", die)
            with pytest.raises(Died):
                yield


class ExportedCase(TableCase):
    """A table that we write: of rows that a source sends.

    Attributes:
        time_column: What partitions them; None for a table with versions.
        plans: Partition keys of a plan that covers the first two days; None: it catches up.
    """

    time_column: str | None = "rowtime"
    plans: tuple[str, ...] | None = None

    def batches(self, ids: Sequence[int], request: ReadRequest) -> Batches:
        """What the source sends; numbered as the ids are."""
        return InMemoryBatches((numbered_rows(ids),), self.time_column, request)

    def write(self, ids: Sequence[int], *, partitions: Sequence[str] | None = None) -> WriteReport:
        """Plans and writes."""
        table = self.open()
        plan = table.plan(partitions if partitions is not None else self.plans)
        batches = self.batches(ids, plan.request)
        return table.write(batches, partitions=plan.partitions, run_id="run", allow_shrink=True)
