"""When a partition is worth another look though nobody writes to it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from datalake_assets.core.compaction.plan import CompactionRequest, again_at, rules_of
from datalake_assets.core.files import DataFile, data_file_name
from datalake_assets.feed import MIB
from datalake_assets.feed import Feed as Declared
from datalake_assets.feed_sources import FeedKind
from datalake_assets.sources.ksqldb.declaration import KsqlDBSource

NOW = datetime(2025, 1, 15, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
RULES = rules_of(Declared(name="s", kind=FeedKind.STREAM, source=KsqlDBSource(object="S")), CompactionRequest())
LATER = NOW + 24 * HOUR


def file(number: int, *, age: timedelta = 48 * HOUR, size_bytes: int = MIB) -> DataFile:
    return DataFile(data_file_name("data", NOW - age, str(number)), 1, size_bytes)


def look(*files: DataFile, closes_at: datetime | None = None, quiet: timedelta = 48 * HOUR, **rules: object):
    return again_at(files, replace(RULES, **rules), now=NOW, closes_at=closes_at, last_commit=NOW - quiet)


def test_open_partition_is_due_when_it_closes():
    assert look(file(1), file(2), closes_at=LATER) == LATER


def test_closed_partition_with_old_files_is_never_due():
    assert look(file(1), file(2), closes_at=NOW - HOUR) is None
    assert look(file(1), file(2)) is None


def test_young_files_are_due_when_the_youngest_is_old_enough():
    young = [file(1, age=HOUR), file(2, age=2 * HOUR)]
    assert look(*young, closes_at=LATER, min_file_age=3 * HOUR) == NOW + 2 * HOUR


def test_partition_that_changed_lately_is_due_when_it_has_been_quiet():
    assert look(file(1), file(2), quiet=HOUR, min_partition_age=4 * HOUR) == NOW + 3 * HOUR


def test_nothing_is_due_where_fewer_than_two_files_could_be_merged():
    assert look(file(1), closes_at=LATER) is None
    assert look(file(1), file(2, size_bytes=500 * MIB), closes_at=LATER) is None
