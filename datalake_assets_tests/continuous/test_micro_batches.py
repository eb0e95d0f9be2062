"""A batch ends by rows, bytes, age or when it is told to, gives the same rows again, and waits as long as it pays."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from itertools import repeat

import pyarrow as pa
import pytest
from pydantic import ValidationError

from datalake_assets.continuous.micro_batches import MicroBatch, Pacing
from datalake_assets.core.batches import InMemoryBatches, RejectedRow, SourceBatch
from datalake_assets.core.facts import PartitionFacts, WriteReport
from datalake_assets.errors import SourceUnavailable
from datalake_assets.live_policies import BatchPolicy

SCHEMA = pa.schema([("n", pa.int64())])


def some(rows: int, rejected: int = 0) -> SourceBatch:
    numbers = pa.array(range(rows), pa.int64())
    aside = tuple(RejectedRow(b"x" * 100_000, "odd", f"0:{each}") for each in range(rejected))
    partitions, offsets = pa.array([0] * rows, pa.int32()), numbers
    return SourceBatch(pa.RecordBatch.from_arrays([numbers], schema=SCHEMA), partitions, offsets, aside)


@dataclass
class Clock:
    """Goes on by a second with each look."""

    now: float = 0.0
    step: float = 1.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@dataclass
class Reader:
    """Counts what was read ahead of it."""

    given: int = 0
    batches: list[SourceBatch] = field(default_factory=list)

    def __iter__(self):
        for batch in repeat(some(10)):
            self.given += 1
            yield batch


def micro(rows, policy: BatchPolicy, *, clock=None, ends=lambda: False, first=None) -> MicroBatch:
    first = first or some(10)
    return MicroBatch(InMemoryBatches((first,)), iter(rows), Pacing(policy), ends, [first], clock or Clock(step=0.0))


@pytest.mark.parametrize(
    ("policy", "clock", "batches"),
    [
        (BatchPolicy(max_rows=35), None, 4),
        (BatchPolicy(max_bytes=64 * 1024, max_rows=10**6), None, 64 * 1024 // 80 + 1),
        (BatchPolicy(max_age=timedelta(seconds=7), longest_age=timedelta(seconds=7)), Clock(), 7),
    ],
    ids=["rows", "bytes", "age"],
)
def test_a_batch_ends_by_its_policy_and_nothing_more_is_read(policy, clock, batches):
    reader = Reader()
    batch = micro(reader, policy, clock=clock)
    assert sum(1 for _ in batch) == batches
    assert reader.given == batches - 1
    assert batch.over_at or clock is None


def test_rejected_rows_count_for_rows_and_bytes():
    assert sum(1 for _ in micro(repeat(some(0, rejected=2)), BatchPolicy(max_rows=13))) == 3
    assert sum(1 for _ in micro(repeat(some(0, rejected=1)), BatchPolicy(max_bytes=500_000))) == 6


def test_a_batch_gives_the_same_rows_again_and_reads_no_further():
    reader = Reader()
    batch = micro(reader, BatchPolicy(max_rows=50), clock=Clock(step=0.001))
    first = list(batch)
    assert list(batch) == first
    assert reader.given == 4


def test_a_batch_whose_iteration_was_given_up_goes_on_where_it_was():
    reader = Reader()
    batch = micro(reader, BatchPolicy(max_rows=50), clock=Clock(step=0.001))
    begun = iter(batch)
    given = [next(begun), next(begun)]
    begun.close()
    assert list(batch)[:2] == given
    assert reader.given == 4


def test_a_batch_ends_when_it_is_told_to():
    ended = iter([False, False, True])
    assert sum(1 for _ in micro(Reader(), BatchPolicy(), ends=lambda: next(ended))) == 3


def test_what_came_before_a_failure_is_a_batch():
    def failing():
        yield some(10)
        raise SourceUnavailable("s", "it went away")

    batch = micro(failing(), BatchPolicy())
    assert (sum(1 for _ in batch), str(batch.failure).startswith("s: it went away")) == (2, True)
    assert not batch.ended


def test_a_reading_that_ends_ends_its_batch():
    batch = micro([some(1)], BatchPolicy())
    assert (sum(1 for _ in batch), batch.ended, batch.failure) == (2, True, None)


def report(small_files: int) -> WriteReport:
    facts = tuple(PartitionFacts(key, small_files=files) for key, files in (("a", 1), ("b", small_files)))
    return WriteReport(facts, 10, 0, 0, SCHEMA, {})


@pytest.mark.parametrize(
    ("small_files", "commit_s", "age_s"),
    [(1, 0.1, 2), (100, 0.1, 2), (350, 0.1, 7), (10_000, 0.1, 30), (1, 5, 5), (1, 500, 30)],
)
def test_a_batch_waits_longer_where_files_pile_up_or_commits_take_long(small_files, commit_s, age_s):
    pacing = Pacing(BatchPolicy(max_age=timedelta(seconds=2), longest_age=timedelta(seconds=30), small_files=100))
    assert pacing.age_s == 2
    for _ in range(40):
        pacing.committed(report(small_files), seconds=commit_s)
    assert pacing.age_s == pytest.approx(age_s)
    for _ in range(40):  # a compaction came
        pacing.committed(report(3), seconds=0.1)
    assert pacing.age_s == 2


def test_the_longest_wait_is_no_shorter_than_the_usual_one():
    with pytest.raises(ValidationError, match="longest_age: it must be no shorter than max_age"):
        BatchPolicy(max_age=timedelta(seconds=61))
