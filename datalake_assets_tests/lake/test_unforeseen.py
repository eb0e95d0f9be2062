"""An error that nobody foresaw costs the file or the partition where it happens, named, and nothing else."""

from __future__ import annotations

import pyarrow as pa
import pytest

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.errors import CorruptLake, LakeUnavailable
from datalake_assets.lake import compaction_jobs
from datalake_assets.lake.adopted import footers
from datalake_assets.lake.adopted.adopted_table import AdoptedTable
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.feed_compaction import compact_partition
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.adopted.adopted_folder import ids

FORCE = CompactionRequest(force=True)


@pytest.fixture
def table(store, folder):
    for day in (1, 2):
        for number in range(4):
            folder.write(f"day={day}/{number}.parquet", [10 * day + number])
    return open_table(store, adopt(store, folder.uri, "clicks").feed)


def failing_rewrite(monkeypatch, error: Exception, *, when) -> None:
    rewrite = compaction_jobs.rewrite

    def fail(inputs, *arguments, **options):
        if when([each.file.name for each in inputs]):
            raise error
        return rewrite(inputs, *arguments, **options)

    monkeypatch.setattr(compaction_jobs, "rewrite", fail)


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("a figure\nof two lines"),
        MemoryError(),
        pa.ArrowNotImplementedError("no such type"),
        OverflowError("date value out of range"),
        CorruptLake("compaction", "what was written does not read as what was read"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_at_one_file_leaves_that_one_out_and_merges_the_others(table, folder, monkeypatch, error):
    failing_rewrite(monkeypatch, error, when=lambda names: "2.parquet" in names)

    done = [compact_partition(table, key, FORCE) for key in ("day=1", "day=2")]

    for each in done:
        assert each.report.files_compacted == 3
        (failed,) = each.report.failed
        assert (failed.name, failed.unusable) == ("2.parquet", True)
        assert failed in each.report.skipped
        assert type(error).__name__ in failed.reason or str(error) in failed.reason
        assert "\n" not in failed.reason
        assert str(each.error) == f"1 file was not merged: 2.parquet: {failed.reason}; the others were"
    assert ids(table) == [10, 11, 12, 13, 20, 21, 22, 23]
    assert "day=1/2.parquet" in folder.files()
    assert not list(folder.store.list_staged(""))
    assert list(table.verify(deep=True)) == []


def test_error_that_takes_several_files_leaves_them_all_out(table, folder, monkeypatch):
    failing_rewrite(monkeypatch, ValueError("two are too many"), when=lambda names: len(names) > 1)
    before = folder.files()

    done = compact_partition(table, "day=1", FORCE)

    assert {each.reason for each in done.report.failed} == {
        "not merged together: unexpected ValueError: two are too many (a bug; see where with -v)"
    }
    assert len(done.report.failed) == 4
    assert str(done.error).startswith("4 files were not merged: 0.parquet: not merged together")
    assert folder.files() == before
    assert not list(folder.store.list_staged(""))


def test_error_of_the_store_is_no_fault_of_the_files(table, folder, monkeypatch):
    failing_rewrite(monkeypatch, LakeUnavailable("x", "the disk is full"), when=lambda _: True)

    done = compact_partition(table, "day=1", FORCE)

    assert done.report is None
    assert "the disk is full" in str(done.error)


def test_error_at_one_partition_leaves_the_others_done(table, monkeypatch):
    compact = AdoptedTable.compact

    def fail(self, key, *arguments, **options):
        if key == "day=1":
            raise IndexError("list index out of range")
        return compact(self, key, *arguments, **options)

    monkeypatch.setattr(AdoptedTable, "compact", fail)

    bad, good = [compact_partition(table, key, FORCE) for key in ("day=1", "day=2")]

    assert (bad.report, str(bad.error)) == (
        None,
        "unexpected IndexError: list index out of range (a bug; see where with -v)",
    )
    assert (good.error, good.report.files_after) == (None, 1)


def test_error_at_one_footer_leaves_that_file_out_and_names_it(store, folder, monkeypatch):
    for number in range(3):
        folder.write(f"{number}.parquet", [number])
    read = footers.read_adopted_footer

    def fail(*arguments, where, **options):
        if where.endswith("1.parquet"):
            raise RecursionError("maximum recursion depth exceeded")
        return read(*arguments, where=where, **options)

    monkeypatch.setattr(footers, "load_kernel", lambda: None)  # it would read most of them itself
    monkeypatch.setattr(footers, "read_adopted_footer", fail)

    adoption = adopt(store, folder.uri, "clicks")

    assert [(each.name, each.reason) for each in adoption.found.problems] == [
        ("1.parquet", "unexpected RecursionError: maximum recursion depth exceeded (a bug; see where with -v)")
    ]
    table = open_table(store, adoption.feed)
    assert ids(table) == [0, 2]
    report = table.compact(".", FORCE)
    assert report.rows == 2
    assert [each.name for each in report.skipped if each.unusable] == ["1.parquet"]
