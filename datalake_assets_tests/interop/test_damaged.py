"""What cannot be read is reported by its name and left as it is, and everything else is merged."""

from __future__ import annotations

import multiprocessing
from io import BytesIO

import pyarrow.parquet as pq
import pytest

from datalake_assets_tests.interop.damage import DAMAGES, ROWS, encrypted, good
from datalake_assets_tests.interop.lakes import KERNELS, Lake


@pytest.fixture
def around(tmp_path):
    """Two good files, and room for a bad one between them."""
    paths = [tmp_path / name for name in ("a.parquet", "b.parquet", "c.parquet")]
    paths[0].write_bytes(good(0))
    paths[2].write_bytes(good(ROWS))
    return paths


@pytest.mark.parametrize("kernel", [*KERNELS, "auto"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_compact_leaves_a_damaged_file_alone_and_names_it(damage, kernel, around, tmp_path):
    body = DAMAGES[damage]()
    around[1].write_bytes(body)
    lake = Lake(tmp_path / "lake", kernel=kernel)
    lake.take(around, rows={"b.parquet": ROWS})

    report = lake.compact()

    assert [left.name for left in report.skipped if left.unusable] == ["b.parquet"]
    assert (report.files_before, report.files_compacted, report.files_after) == (3, 2, 2)
    kept, merged = sorted(lake.files(), key=lambda path: path.name != "b.parquet")
    assert kept.read_bytes() == body
    assert pq.read_table(merged)["id"].to_pylist() == list(range(2 * ROWS))


@pytest.mark.parametrize("kernel", KERNELS)
def test_compact_changes_nothing_where_all_files_are_damaged(kernel, tmp_path):
    paths = [tmp_path / f"{number}.parquet" for number in range(len(DAMAGES))]
    for path, damage in zip(paths, DAMAGES.values(), strict=True):
        path.write_bytes(damage())
    lake = Lake(tmp_path / "lake", kernel=kernel)
    lake.take(paths, rows={path.name: ROWS for path in paths})

    report = lake.compact()

    # the last one is not looked at: there is nothing left to merge it with
    assert len([left.name for left in report.skipped if left.unusable]) >= len(paths) - 1
    assert {left.name for left in report.skipped} == {path.name for path in paths}
    assert report.files_compacted == 0
    assert [path.read_bytes() for path in lake.files()] == [path.read_bytes() for path in paths]


def test_compact_survives_a_file_with_an_encrypted_column(around, tmp_path):
    around[1].write_bytes(encrypted(plaintext_footer=True))

    # in a process of its own, which might not
    child = multiprocessing.get_context("spawn").Process(target=_compact, args=(around, tmp_path / "lake"))
    child.start()
    child.join()

    assert child.exitcode == 0


def _compact(paths, folder):
    lake = Lake(folder, kernel="auto")
    lake.take(paths, rows={"b.parquet": ROWS})
    assert [left.name for left in lake.compact().skipped if left.unusable] == ["b.parquet"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_one_that_pyarrow_reports(damage):
    body = DAMAGES[damage]()

    with pytest.raises((OSError, ValueError)):
        pq.ParquetFile(BytesIO(body), page_checksum_verification=True).read()
