"""The tests' own table keeps the contract of a table that is written: what passes with it says something."""

import pytest

from datalake_assets.testing.tables import ExportedCase, ReplaceContract, TableReaderContract, VersionsContract
from datalake_assets_tests.defs.fakes import MemoryTable, stream, table

DAYS = ("2025-01-01", "2025-01-02")


class MemoryCase(ExportedCase):
    plans = DAYS

    def __init__(self, memory: MemoryTable) -> None:
        self.memory = memory

    def open(self) -> MemoryTable:
        return self.memory


class MemoryVersionsCase(MemoryCase):
    plans = None
    time_column = None
    absent_key = "v9"


class TestMemoryStream(TableReaderContract, ReplaceContract):
    @pytest.fixture
    def case(self) -> MemoryCase:
        return MemoryCase(MemoryTable(stream()))


class TestMemoryVersions(TableReaderContract, VersionsContract):
    @pytest.fixture
    def case(self) -> MemoryVersionsCase:
        return MemoryVersionsCase(MemoryTable(table()))
