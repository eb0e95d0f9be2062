from __future__ import annotations

from datetime import UTC, datetime

import pytest

from datalake_assets.core.files import DataFile, data_file_name, written_at

NOON = datetime(2025, 1, 15, 12, tzinfo=UTC)


@pytest.mark.parametrize("prefix", ["data", "compacted", "snapshot"])
def test_written_at_reads_the_time_in_our_names(prefix):
    assert written_at(DataFile(data_file_name(prefix, NOON, "a1b2"), 1, 1)) == NOON


def test_written_at_prefers_what_was_recorded():
    recorded = datetime(2025, 1, 16, tzinfo=UTC)
    assert written_at(DataFile(data_file_name("data", NOON, "a1b2"), 1, 1, written_at=recorded)) == recorded


@pytest.mark.parametrize(
    "name",
    [
        "part-00000.parquet",
        "events_20250115_120000_1.parquet",  # another writer's; its clock and zone are unknown
        "data_20250231_120000_1.parquet",  # no such day
        "data_20250115_120000.parquet",
        "data_20250115_120000_1.parquet.tmp",
    ],
)
def test_written_at_is_unknown_for_names_that_are_not_ours(name):
    assert written_at(DataFile(name, 1, 1)) is None
