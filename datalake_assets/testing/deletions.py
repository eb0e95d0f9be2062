"""The contract of `LakeTable.delete_rows`, as a suite for each table whose rows are ours; a case is one of `tables`."""

from __future__ import annotations

import pytest

from datalake_assets.errors import ConfigError
from datalake_assets.testing.table_cases import DAY, FORCE, TableCase, ids_of

__all__ = ["DeletionContract", "NoDeletionContract"]

#: What is no condition on each row by itself.
NO_CONDITIONS = (
    "",
    "id",
    "id = 3; SELECT 1",
    "id = 3 ORDER BY id",
    "id = 1) OR (id = 2",
    "id IN (SELECT id FROM data)",
    "random() < 0.5",
    "rowtime < now()",
    "rowtime < current_timestamp",
    "nothing = 3",
    "count(*) > 1",
    "id = ?",
)


class DeletionContract:
    """A table that rows can be deleted of."""

    @pytest.fixture
    def case(self) -> TableCase:
        """An empty table, for each test."""
        raise NotImplementedError

    def test_rows_that_a_condition_is_true_of_are_gone_and_no_others(self, case: TableCase) -> None:
        case.write(range(30))
        table = case.open()
        for key in table.partitions():
            table.delete_rows(key, "id % 10 = 7 OR nullif(id, 3) > 27")
        assert ids_of(case.open()) == [number for number in range(30) if number % 10 != 7 and number <= 27]
        assert list(case.open().verify(deep=True)) == []

    def test_a_plan_of_a_deletion_foresees_it_and_changes_nothing(self, case: TableCase) -> None:
        case.write(range(30))
        table, files = case.open(), case.files()
        key = table.partitions()[0]
        planned, before = table.deletion_plan(key, "id < 2"), table.report(key)
        assert (planned.rows_deleted, planned.partition, case.files(), table.report(key)) == (2, None, files, before)
        done = table.delete_rows(key, "id < 2")
        now = case.open().report(key)
        assert before is not None
        assert now is not None
        assert (done.matching, done.rows, done.files) == (planned.matching, before.rows, before.files)
        assert done.partition is not None
        assert (done.partition.rows, done.partition.rows_added, now.rows) == (before.rows - 2, -2, before.rows - 2)
        assert (now.size_bytes, now.position) == (done.partition.size_bytes, before.position)
        again = case.open().delete_rows(key, "id < 2")
        assert (again.rows_deleted, again.partition, case.open().report(key)) == (0, None, now)

    def test_a_partition_may_lose_all_of_its_rows(self, case: TableCase) -> None:
        case.write(range(30))
        table = case.open()
        for key in table.partitions():
            table.delete_rows(key, "true")
        assert ids_of(case.open()) == []
        assert case.open().scan().schema.names[:2] == ["id", "rowtime"]
        assert list(case.open().verify(deep=True)) == []
        assert case.open().repair().waiting == ()

    def test_what_is_no_condition_is_refused_and_nothing_is_changed(self, case: TableCase) -> None:
        case.write(range(30))
        table, files = case.open(), case.files()
        for text in NO_CONDITIONS:
            with pytest.raises(ConfigError, match="condition"):
                table.delete_rows(table.partitions()[0], text)
        assert case.files() == files

    def test_rows_can_be_merged_after_some_were_deleted(self, case: TableCase) -> None:
        case.write(range(DAY))
        table = case.open()
        key = table.partitions()[0]
        table.delete_rows(key, "id = 5")
        table.compact(key, FORCE)
        assert ids_of(case.open()) == [number for number in range(DAY) if number != 5]

    def test_a_deletion_whose_process_died_is_whole_or_not_there(self, case: TableCase) -> None:
        case.write(range(DAY))
        key = case.open().partitions()[0]
        with case.dying():
            case.open().delete_rows(key, "id < 20")
        case.open().repair()
        assert ids_of(case.open()) == list(range(20 if case.finishes else 0, DAY))
        case.open().delete_rows(key, "id < 20")
        assert ids_of(case.open()) == list(range(20, DAY))
        assert list(case.open().verify(deep=True)) == []


class NoDeletionContract:
    """A table whose rows are others'."""

    @pytest.fixture
    def case(self) -> TableCase:
        """An empty table, for each test."""
        raise NotImplementedError

    def test_no_rows_of_others_are_deleted(self, case: TableCase) -> None:
        case.write(range(30))
        table, files = case.open(), case.files()
        for refused in (table.deletion_plan, table.delete_rows):
            with pytest.raises(ConfigError, match=table.feed.name):
                refused(table.partitions()[0], "id < 2")
        assert case.files() == files
