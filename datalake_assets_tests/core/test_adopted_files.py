"""Which files of an adopted folder are data."""

from __future__ import annotations

import pytest

from datalake_assets.core.files import FileKind, file_kind


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("part-0.parquet", FileKind.DATA),
        ("year=2025/part-00000-0a.c000.snappy.parquet", FileKind.DATA),
        ("a/b/x.PARQUET", FileKind.DATA),
        ("x.parq", FileKind.DATA),
        ("x.pq", FileKind.DATA),
        ("_day=1/x.parquet", FileKind.DATA),
        ("000000_0", FileKind.PERHAPS),
        ("day=1/20250115_120000_00001_abcde", FileKind.PERHAPS),
        ("_SUCCESS", FileKind.OTHER),
        ("_metadata", FileKind.OTHER),
        ("_x.parquet", FileKind.OTHER),
        (".x.parquet", FileKind.OTHER),
        (".x.parquet.crc", FileKind.OTHER),
        ("_temporary/0/x.parquet", FileKind.OTHER),
        (".hive-staging_1/x.parquet", FileKind.OTHER),
        ("x.parquet.tmp", FileKind.OTHER),
        ("x.parquet._COPYING_", FileKind.OTHER),
        ("day=1_$folder$", FileKind.OTHER),
        ("readme.txt", FileKind.OTHER),
        ("x.csv", FileKind.OTHER),
    ],
)
def test_file_kind(path, kind):
    assert file_kind(path, 10) is kind


def test_empty_file_is_data_only_if_its_name_says_so():
    assert file_kind("x.parquet", 0) is FileKind.DATA
    assert file_kind("day=1", 0) is FileKind.OTHER
