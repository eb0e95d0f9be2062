"""The contract of `LakeTable`, as suites that every table runs: one for each role, and for each way to be written.

A table of another format subclasses `TableCase`, which says how its rows get in, and runs the suites of what it can do:

    class TestMyTable(TableReaderContract, AppendContract, CompactionContract, FilesContract):
        @pytest.fixture
        def case(self, tmp_path):
            return MyCase(tmp_path)

Row ``i`` has the ``id`` ``i`` and happens ``i`` hours after 2025-01-01: rows 0 to 23 are those of the first day.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import pyarrow.dataset as ds
import pytest

from datalake_assets.core.batches import InMemoryBatches, ReadRequest, SourceBatch
from datalake_assets.core.compaction.plan import CompactionPlan, CompactionRequest
from datalake_assets.errors import ConfigError
from datalake_assets.lake.feed_compaction import Rehearses
from datalake_assets.lake.statistics import lake_statistics
from datalake_assets.testing.table_cases import (
    DAY,
    FORCE,
    ExportedCase,
    TableCase,
    exact_ids,
    ids_of,
    numbered_rows,
    rows_of,
    write_as_sent,
)

__all__ = [
    "AppendContract",
    "CompactionContract",
    "ExportedCase",
    "FilesContract",
    "NotExportedContract",
    "ReplaceContract",
    "TableCase",
    "TableReaderContract",
    "VersionsContract",
    "ids_of",
    "numbered_rows",
    "rows_of",
]


class TableReaderContract:
    """What readers rely on, whoever writes."""

    @pytest.fixture
    def case(self) -> TableCase:
        """An empty table, for each test."""
        raise NotImplementedError

    def test_nothing_is_read_of_a_table_that_nobody_wrote(self, case: TableCase) -> None:
        table = case.open()
        reports = [table.report(key) for key in table.partitions()]
        assert sum(each.rows + each.files for each in reports if each is not None) == 0
        assert table.scan().read_all().num_rows == 0
        assert table.report(case.absent_key) is None

    def test_a_scan_gives_what_was_written(self, case: TableCase) -> None:
        case.write(range(30))
        assert ids_of(case.open()) == list(range(30))

    def test_partitions_are_in_order_and_make_up_the_whole(self, case: TableCase) -> None:
        case.write(range(30))
        table = case.open()
        keys = table.partitions()
        assert list(keys) == sorted(keys, key=lambda key: (len(key), key))
        assert sorted(each for key in keys for each in ids_of(table, partitions=[key])) == list(range(30))

    def test_a_scan_gives_the_columns_and_rows_that_were_asked_for(self, case: TableCase) -> None:
        case.write(range(30))
        read = case.open().scan(columns=["id"], where=ds.field("id") < 3).read_all()
        assert read.column_names == ["id"]
        assert sorted(read["id"].to_pylist()) == [0, 1, 2]

    def test_all_that_a_snapshot_says_of_a_partition_agrees(self, case: TableCase) -> None:
        case.write(range(30))
        table = case.open()
        snapshot = table.snapshot(table.partitions())
        assert snapshot.keys == table.partitions()
        for key in snapshot.keys:
            report, health, footers = snapshot.report(key), snapshot.health(key, FORCE), snapshot.footers(key)
            assert report is not None
            rows = snapshot.only(key).dataset().count_rows()
            assert (report.key, health.key, footers.key) == (key, key, key)
            assert report.rows == health.rows == footers.rows == rows == len(ids_of(table, partitions=[key]))
            assert report.files == health.files == footers.files
            assert report.size_bytes == health.size_bytes > 0
            assert footers.drifts == ()

    def test_a_snapshot_without_keys_is_what_a_scan_reads(self, case: TableCase) -> None:
        case.write(range(30))
        table = case.open()
        assert sorted(table.snapshot().dataset().to_table()["id"].to_pylist()) == ids_of(table)
        assert not table.snapshot().has_expired()

    def test_reports_of_a_write_are_what_readers_see(self, case: TableCase) -> None:
        written = case.write(range(30))
        if written is None:
            return  # somebody else wrote it
        table = case.open()
        for each in written.partitions:
            seen = table.report(each.key)
            assert seen is None or (seen.rows, seen.files, seen.size_bytes) == (each.rows, each.files, each.size_bytes)
        assert written.rows_added == sum(each.rows for each in written.partitions) == 30

    def test_a_purged_table_has_neither_rows_nor_memory(self, case: TableCase) -> None:
        case.write(range(30))
        assert case.open().purge() > 0
        table = case.open()
        assert table.partitions() == ()
        assert list(table.quarantined()) == []
        assert table.purge() == 0


class _WriterContract:
    """What every table that we write promises its writers."""

    @pytest.fixture
    def case(self) -> ExportedCase:
        """An empty table, for each test."""
        raise NotImplementedError

    def test_it_is_ours(self, case: ExportedCase) -> None:
        table = case.open()
        assert table.is_written_by_us
        assert table.look_again().changed == []

    def test_the_same_rows_again_change_nothing(self, case: ExportedCase) -> None:
        first = case.write(range(30))
        before = [case.open().report(each.key) for each in first.partitions]
        versions = [each.key for each in first.partitions] if case.time_column is None else None
        again = case.write(range(30), partitions=case.plans or versions)
        assert again.rows_added == 0
        assert [case.open().report(each.key) for each in first.partitions] == before
        assert ids_of(case.open()) == list(range(30))

    def test_nothing_is_in_quarantine_of_rows_that_fit(self, case: ExportedCase) -> None:
        case.write(range(30))
        assert list(case.open().quarantined()) == []

    def test_what_was_written_is_seen_as_it_was_committed(self, case: ExportedCase) -> None:
        table = case.open()
        plan = table.plan(case.plans)
        report = table.write(case.batches(range(30), plan.request), partitions=plan.partitions, run_id="run")
        landed = [each for each in report.partitions if each.files]
        seen = table.written([each.key for each in landed])
        assert seen.keys == tuple(each.key for each in landed)
        for each in landed:
            facts, footers = seen.report(each.key), seen.footers(each.key)
            assert facts is not None
            assert (facts.rows, facts.files, facts.size_bytes) == (each.rows, each.files, each.size_bytes)
            assert (footers.rows, footers.drifts) == (each.rows, ())
            assert facts == case.open().report(each.key)
        assert sorted(seen.dataset().to_table()["id"].to_pylist()) == list(range(30))

    def test_a_write_acknowledges_its_source_once_committed(self, case: ExportedCase) -> None:
        table = case.open()
        plan = table.plan(case.plans)
        batches = case.batches(range(30), plan.request)
        table.write(batches, partitions=plan.partitions, run_id="run")
        assert not isinstance(batches, InMemoryBatches) or batches.acknowledged
        assert len(ids_of(case.open())) == 30


class AppendContract(_WriterContract):
    """A table whose rows are appended, each once."""

    def test_rows_that_come_later_join_those_that_are_there(self, case: ExportedCase) -> None:
        case.write(range(10))
        later = case.write(range(10, 30))
        assert (later.rows_added, ids_of(case.open())) == (20, list(range(30)))

    def test_rows_that_were_there_are_known_and_land_once(self, case: ExportedCase) -> None:
        case.write(range(10))
        later = case.write(range(5, 30))
        assert (later.rows_added, later.rows_known, ids_of(case.open())) == (20, 5, list(range(30)))

    def test_rows_that_could_not_be_decoded_wait_and_are_landed_once(self, case: ExportedCase) -> None:
        written = write_as_sent(case, numbered_rows([*range(3), *range(4, 30)], rejected=[3]))
        assert (written.rows_read, written.rows_added, written.rows_quarantined) == (30, 29, 1)
        ((_, waiting),) = case.open().quarantined()
        assert (waiting.raw, waiting.reason, waiting.offset) == ("3", "not a row", (0, 3))

        def decode(raws: Sequence[bytes]) -> SourceBatch:
            return numbered_rows([int(raw) for raw in raws])

        table = case.open()
        table.check_replay()
        landed = table.replay(case.batches([], ReadRequest()), decode)
        assert (landed.rows_added, dict(landed.stayed)) == (1, {})
        seen = {each.key: case.open().report(each.key) for each in landed.partitions}
        assert [each and each.rows for each in seen.values()] == [each.rows for each in landed.partitions]
        assert ids_of(case.open()) == list(range(30))
        assert list(case.open().quarantined()) == []
        again = case.open().replay(case.batches([], ReadRequest()), decode)
        assert (again.rows_added, again.partitions, dict(again.stayed)) == (0, (), {})

    def test_rows_that_still_cannot_be_decoded_stay_with_the_reason(self, case: ExportedCase) -> None:
        write_as_sent(case, numbered_rows([*range(3), *range(5, 30)], rejected=[3, 4]))

        def decode(raws: Sequence[bytes]) -> SourceBatch:
            return numbered_rows([3], rejected=[4]) if raws else numbered_rows([])

        landed = case.open().replay(case.batches([], ReadRequest()), decode)
        assert (landed.rows_added, dict(landed.stayed)) == (1, {"not a row": 1})
        assert [row.position for _, row in case.open().quarantined()] == ["0:4"]
        nothing = case.open().replay(case.batches([], ReadRequest()), None)
        assert (nothing.rows_added, sum(nothing.stayed.values())) == (0, 1)
        assert ids_of(case.open()) == [*range(4), *range(5, 30)]

    def test_a_replayed_row_is_known_to_a_read_from_the_beginning(self, case: ExportedCase) -> None:
        write_as_sent(case, numbered_rows([*range(3), *range(4, 30)], rejected=[3]))
        case.open().replay(case.batches([], ReadRequest()), lambda raws: numbered_rows([int(raw) for raw in raws]))
        again = case.write(range(30))
        assert (again.rows_added, again.rows_known, ids_of(case.open())) == (0, 30, list(range(30)))


class _PulledContract(_WriterContract):
    """A table whose rows come anew with each pull, those that did not fit before among them."""

    def test_its_quarantine_is_not_replayed(self, case: ExportedCase) -> None:
        case.write(range(30))
        for replay in (case.open().check_replay, lambda: case.open().replay(case.batches([], ReadRequest()), None)):
            with pytest.raises(ConfigError, match=case.open().feed.name):
                replay()
        assert ids_of(case.open()) == list(range(30))


class ReplaceContract(_PulledContract):
    """A table whose partitions are replaced as a whole."""

    def test_a_replaced_partition_has_the_new_rows_only(self, case: ExportedCase) -> None:
        case.write(range(30))
        case.write([*range(12), *range(24, 30)])
        assert ids_of(case.open()) == [*range(12), *range(24, 30)]


class VersionsContract(_PulledContract):
    """A table whose every write is a new version; its feed keeps the last two."""

    def test_readers_get_the_newest_version_and_may_ask_for_the_one_before(self, case: ExportedCase) -> None:
        case.write(range(10))
        case.write(range(20))
        table = case.open()
        assert table.partitions() == ("v1", "v2")
        assert (ids_of(table), ids_of(table, partitions=["v1"])) == (list(range(20)), list(range(10)))

    def test_a_version_beyond_retention_is_removed_for_good(self, case: ExportedCase) -> None:
        for count in (10, 11, 12):
            case.write(range(count))
        table = case.open()
        assert table.partitions() == ("v2", "v3")
        assert table.removed(["v1", "v2", "v9"]) == ("v1",)
        assert ids_of(table) == list(range(12))


class NotExportedContract:
    """A table that something else writes, and we look after."""

    @pytest.fixture
    def case(self) -> TableCase:
        """An empty table, for each test."""
        raise NotImplementedError

    def test_nothing_is_exported_to_it(self, case: TableCase) -> None:
        table = case.open()
        assert not table.is_written_by_us
        with pytest.raises(ConfigError, match="nothing is exported"):
            table.plan()
        with pytest.raises(ConfigError, match="nothing is exported"):
            table.write(InMemoryBatches((SourceBatch(rows_of([1])),)), partitions=["x"], run_id="run")

    def test_nothing_is_put_aside_or_landed_later(self, case: TableCase) -> None:
        case.write(range(10))
        table = case.open()
        assert list(table.quarantined()) == []
        with pytest.raises(ConfigError, match=table.feed.name):
            table.check_replay()
        with pytest.raises(ConfigError, match=table.feed.name):
            table.replay(InMemoryBatches((numbered_rows([11]),)), None)
        assert ids_of(case.open()) == list(range(10))

    def test_another_look_takes_over_what_others_changed(self, case: TableCase) -> None:
        case.write(range(10))
        table = case.open()
        table.look_again()
        case.take_away()
        found = table.look_again()
        assert found.removed > 0
        assert ids_of(case.open()) == []


class CompactionContract:
    """What a table with many small files promises those who merge them."""

    @pytest.fixture
    def case(self) -> TableCase:
        """An empty table, for each test."""
        raise NotImplementedError

    def test_compaction_keeps_rows_and_bounds_files(self, case: TableCase) -> None:
        key = case.scatter(range(DAY), files=12)
        table = case.open()
        plans: list[CompactionPlan] = []
        planned = table.compaction_plan(key, FORCE)
        report = table.compact(key, FORCE, on_plan=plans.append)
        assert (report.files_before, report.files_compacted, report.files_after) == (12, 12, 1)
        assert [[file.name for file in group.files] for group in plans[0].groups] == [
            [file.name for file in group.files] for group in planned.groups
        ]
        now = table.report(key)
        assert now is not None
        assert (now.rows, now.files, now.size_bytes) == (DAY, 1, report.bytes_after)
        assert ids_of(case.open()) == list(range(DAY))
        assert list(table.verify(deep=True)) == []

    def test_what_was_merged_is_left_alone(self, case: TableCase) -> None:
        key = case.scatter(range(DAY), files=6)
        case.open().compact(key, FORCE)
        again = case.open().compact(key, FORCE)
        assert (again.files_compacted, again.rows, again.kernel) == (0, 0, "")
        assert not again.health.needs_compaction

    def test_a_plan_changes_nothing(self, case: TableCase) -> None:
        key = case.scatter(range(DAY), files=6)
        before = case.open().report(key)
        assert case.open().compaction_plan(key, FORCE).groups
        assert case.open().report(key) == before

    def test_a_rehearsal_foresees_the_compaction_and_changes_nothing(self, case: TableCase) -> None:
        key = case.scatter(range(DAY), files=6)
        table = case.open()
        if not isinstance(table, Rehearses):
            pytest.skip("it goes by its plan")
        before = table.report(key)
        assert key in table.rehearsed_partitions()
        done = table.rehearse(key, FORCE, most_bytes=1 << 30)
        assert case.open().report(key) == before
        report = case.open().compact(key, FORCE)
        assert sum(len(group.files) for group in done.plan.groups) == report.files_compacted
        assert [each.name for each in done.plan.left_alone] == [each.name for each in report.skipped]
        assert (done.untried_bytes, report.blocked) == (0, ())

    def test_health_that_a_compaction_reports_is_what_a_snapshot_says(self, case: TableCase) -> None:
        key = case.scatter(range(DAY), files=6)
        report = case.open().compact(key, FORCE)
        assert report.health == case.open().snapshot([key]).health(key, CompactionRequest())

    def test_a_snapshot_stays_as_it_was_and_says_that_it_has_expired(self, case: TableCase) -> None:
        key = case.scatter(range(DAY), files=6)
        snapshot = case.open().snapshot([key])
        before = snapshot.report(key)
        snapshot.dataset()
        assert not snapshot.has_expired()
        case.open().compact(key, FORCE)
        assert snapshot.report(key) == before
        assert snapshot.has_expired()
        assert not case.open().snapshot([key]).has_expired()

    def test_scans_are_exact_while_files_are_merged(self, case: TableCase) -> None:
        key = case.scatter(range(DAY), files=12)
        merging = threading.Thread(
            target=lambda: [case.open().compact(key, CompactionRequest(force=True, max_files=3)) for _ in range(5)]
        )
        merging.start()
        try:
            seen = [exact_ids(case)]
            while merging.is_alive():
                seen.append(exact_ids(case))
        finally:
            merging.join()
        assert all(each == list(range(DAY)) for each in seen)
        assert ids_of(case.open()) == list(range(DAY))


class FilesContract:
    """What a table of files promises when some are lost, or a process dies."""

    @pytest.fixture
    def case(self) -> TableCase:
        """An empty table, for each test."""
        raise NotImplementedError

    def test_nothing_differs_of_what_was_just_written(self, case: TableCase) -> None:
        case.write(range(30))
        assert list(case.open().verify(deep=True)) == []

    def test_verify_names_a_file_that_was_removed(self, case: TableCase) -> None:
        case.write(range(30))
        gone = case.files()[0]
        case.data_store.delete([gone])
        (found,) = case.open().verify()
        assert (found.what, found.name) == ("missing", gone)
        assert found.key in case.open().partitions()

    def test_verify_names_a_file_that_was_changed(self, case: TableCase) -> None:
        case.write(range(30))
        changed = case.files()[0]
        case.data_store.put(changed, case.data_store.get(changed)[0] + b"x")
        assert {each.name for each in case.open().verify()} == {changed}

    def test_deep_verify_names_a_file_whose_bytes_differ(self, case: TableCase) -> None:
        case.write(range(30))
        changed = case.files()[0]
        body = bytearray(case.data_store.get(changed)[0])
        body[4] ^= 0xFF
        case.data_store.put(changed, bytes(body))
        assert {each.name for each in case.open().verify(deep=True)} == {changed}

    def test_repair_finishes_or_undoes_what_a_dead_process_had_begun(self, case: TableCase) -> None:
        self.begin(case)
        before = case.open().scan().read_all().num_rows
        with case.dying():
            self.change(case)
        repaired = case.open().repair()
        assert (repaired.finished, repaired.undone, repaired.waiting) == ((1, 0, ()) if case.finishes else (0, 1, ()))
        if not case.finishes:
            assert case.open().scan().read_all().num_rows == before
            assert list(case.open().verify(deep=True)) == []
            self.change(case)
        assert ids_of(case.open()) == list(range(DAY))
        assert list(case.open().verify(deep=True)) == []
        again = case.open().repair()
        assert (again.finished, again.undone, again.swept) == (0, 0, 0)

    def begin(self, case: TableCase) -> None:
        """What is there before."""

    def change(self, case: TableCase) -> None:
        """A change of one commit, after which rows 0 to 23 are there."""
        case.write(range(DAY))

    def test_figures_of_a_report_are_what_a_scan_gives(self, case: TableCase) -> None:
        case.write(range(30))
        table = case.open()
        (figures,) = lake_statistics(case.store, [table.feed])
        reports = {key: table.report(key) for key in table.partitions()}
        assert {each.key: (each.rows, each.files, each.size_bytes) for each in figures.partitions} == {
            key: (each.rows, each.files, each.size_bytes) for key, each in reports.items() if each is not None
        }
        assert sum(each.rows for each in figures.partitions) == len(ids_of(table)) == 30
        assert figures.problems == ()

    def test_purging_spares_the_files_of_others_and_no_other(self, case: TableCase) -> None:
        case.write(range(30))
        before, is_ours = case.files(), case.open().is_written_by_us or case.data_store is case.store
        case.open().purge()
        assert case.files() == ([] if is_ours else before)

    def test_a_summary_is_rebuilt_from_figures(self, case: TableCase) -> None:
        case.write(range(30))
        table = case.open()
        figures = table.figures(CompactionRequest())
        first = figures.partitions[0]
        table.rebuild_summary(replace(figures, partitions=(first,)))
        part = case.open().totals()
        assert part is not None
        assert (part.partitions, part.rows, part.files, part.size_bytes) == (
            1,
            first.rows,
            first.files,
            first.size_bytes,
        )
        table.rebuild_summary(figures)
        whole, reports = case.open().totals(), [table.report(key) for key in table.partitions()]
        assert whole is not None
        assert (whole.partitions, whole.rows) == (len(figures.partitions), 30)
        assert (whole.files, whole.size_bytes) == (
            sum(each.files for each in reports if each),
            sum(each.size_bytes for each in reports if each),
        )
