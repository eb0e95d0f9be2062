"""What a write names is on the disk before the catalog names it: the order of the calls, since no kill can show it."""

from __future__ import annotations

import pytest
from pyiceberg.io import load_file_io

from datalake_assets.lake.iceberg.durable_files import DURABLE_FILES
from datalake_assets_tests.lake.iceberg.iceberg_tables import check_synced_before_commit, recorded_syncs
from datalake_assets_tests.operations.conftest import ORDERS, SCHEMA


@pytest.mark.parametrize("operation", ["WRITE", "COMPACT"])
def test_each_file_that_a_commit_names_was_synced_with_its_folder_before(ask, orders, stored, operation):
    with recorded_syncs() as synced:
        for number in range(3):
            ask("WRITE", **orders, records=[{"id": number}])
        if operation == "COMPACT":
            ask("COMPACT", **orders)
    check_synced_before_commit(stored(), synced)


def test_folder_of_a_new_tenant_is_on_the_disk_before_its_catalog(ask, lake):
    with recorded_syncs() as synced:
        ask("CREATE_TABLE", **ORDERS, schema=SCHEMA)
    before = synced[: synced.index(0)]
    assert {lake.stat().st_ino, (lake / "tenants").stat().st_ino} <= set(before)


def test_file_that_is_there_is_not_overwritten_unasked(tmp_path):
    file = load_file_io(DURABLE_FILES).new_output(str(tmp_path / "a" / "b"))
    with file.create() as stream:
        stream.write(b"first")

    with pytest.raises(FileExistsError):
        file.create()

    with file.create(overwrite=True) as stream:
        stream.write(b"second")
    assert (tmp_path / "a" / "b").read_bytes() == b"second"
