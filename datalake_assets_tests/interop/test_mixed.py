"""Files of several writers in one folder: what fits becomes one file by the rule of ``unify.py``, the rest is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets_tests.interop.canonical import differences, rows_of_arrow
from datalake_assets_tests.interop.lakes import KERNELS, Lake
from datalake_assets_tests.interop.names import ALL_READERS, needs_spark
from datalake_assets_tests.interop.readers import spark_reader

ALIKE = ["polars", "duckdb", "fastparquet", "pandas", "compatible", "compact", "pyarrow-old", "spark"]
EVOLVING = ["polars", "pandas", "compatible", "compact"]


def alike(count: int) -> list[pa.Table]:
    """Tables of one schema."""
    return [
        pa.table({"id": pa.array([2 * n, 2 * n + 1], pa.int64()), "text": [f"t{n}", ""], "f64": [1.5 * n, -0.0]})
        for n in range(count)
    ]


def evolving() -> list[pa.Table]:
    """Tables of a schema that changed meanwhile: wider integers, finer times, columns that came and went."""
    kinds = [(pa.int8(), "ms"), (pa.int32(), "ms"), (pa.int64(), "us"), (pa.int16(), "us")]
    more = [{}, {"came": ["x", None]}, {}, {"came": ["", "y"], "later": pa.array([1, None], pa.float64())}]
    return [
        pa.table(
            {
                "id": pa.array([2 * n, 2 * n + 1], pa.int64()),
                "wider": pa.array([n, None], kind),
                "finer": pa.array([0, n], pa.timestamp(unit)),
                **columns,
            }
        )
        for n, ((kind, unit), columns) in enumerate(zip(kinds, more, strict=True))
    ]


def lake_of(paths: Sequence[Path], **settings: str) -> Lake:
    lake = Lake(paths[0].parent / "lake", **settings)
    lake.take(paths)
    return lake


def written(tables: Sequence[pa.Table], names: Sequence[str], writers, folder: Path) -> list[Path]:
    paths = [folder / f"{name}.parquet" for name in names]
    for name, table, path in zip(names, tables, paths, strict=True):
        writers(name)(table, path)
    return paths


@needs_spark
def test_files_of_all_writers_become_one_that_all_readers_read(writers, read, tmp_path):
    tables = alike(len(ALIKE))
    lake = lake_of(written(tables, ALIKE, writers, tmp_path))

    report = lake.compact()

    assert (report.files_after, [left for left in report.skipped if left.unusable]) == (1, [])
    expected = rows_of_arrow(pa.concat_tables(tables))
    for reader in [getattr(name, "values", [name])[0] for name in ALL_READERS]:  # not pandas'
        assert differences(read(reader)(lake.files()), expected) == {}, reader


def test_files_of_all_writers_stay_with_those_alike_when_only_copied(writers, tmp_path):
    names = [name for name in ALIKE if name != "spark"]
    tables = alike(len(names))
    lake = lake_of(written(tables, names, writers, tmp_path), kernel="concat")

    report = lake.compact()

    copied = len(names) - sum(left.unusable for left in report.skipped)
    assert (report.files_compacted, report.kernel) == (copied, "concat")
    found = pa.concat_tables([pq.ParquetFile(path).read() for path in lake.files()], promote_options="permissive")
    assert differences(rows_of_arrow(found), rows_of_arrow(pa.concat_tables(tables))) == {}


def test_schemas_that_changed_are_unified(writers, tmp_path):
    tables = evolving()
    lake = lake_of(written(tables, EVOLVING, writers, tmp_path))

    report = lake.compact()

    assert (report.files_after, [left for left in report.skipped if left.unusable]) == (1, [])
    (path,) = lake.files()
    kinds = {field.name: str(field.type) for field in pq.read_schema(path)}
    assert kinds["wider"] == "int64"
    assert set(kinds) == {"id", "wider", "finer", "came", "later"}
    expected = rows_of_arrow(pa.concat_tables(tables, promote_options="permissive"))
    assert differences(rows_of_arrow(pq.ParquetFile(path).read()), expected) == {}


def test_another_type_stays_and_is_named(tmp_path):
    values = [[1], ["one"], [2], [3.5], [4]]
    paths = [tmp_path / f"{number}.parquet" for number in range(len(values))]
    for number, (value, path) in enumerate(zip(values, paths, strict=True)):
        pq.write_table(pa.table({"id": [number], "n": value}), path)
    lake = lake_of(paths)

    report = lake.compact()

    named = {left.name: left.reason for left in report.skipped if left.unusable}
    assert named.keys() == {"1.parquet", "3.parquet"}
    assert "'n' is int64 in some files and string in others" in named["1.parquet"]
    merged = next(path for path in lake.files() if path.name not in named)
    assert pq.read_table(merged)["n"].to_pylist() == [1, 2, 4]


def test_one_name_under_two_field_ids_stays_and_is_named(writers, tmp_path):
    names = ["pyarrow", "duckdb", "polars", "pandas"]
    lake = lake_of(written(alike(len(names)), names, writers, tmp_path))

    report = lake.compact()

    assert len(lake.files()) == 2
    (named,) = [left for left in report.skipped if left.unusable]
    assert "column 'id' has field ids" in named.reason


@needs_spark
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("later", ["spark", "pyarrow-old"])
def test_spark_sees_the_columns_of_all_files(is_first, later, spark, writers, tmp_path):
    narrow, wide = tmp_path / f"{is_first:d}.parquet", tmp_path / f"{not is_first:d}.parquet"
    writers("spark")(pa.table({"id": [1, 2]}), narrow)
    writers(later)(pa.table({"id": [3, 4], "more": [5, 6]}), wide)
    lake = lake_of(sorted([narrow, wide]), kernel="reencode")

    lake.compact()

    assert spark_reader(spark)(lake.files())["more"] == [None, None, 5, 6]


@pytest.mark.parametrize("kernel", [*KERNELS[1:], "auto"])
def test_int96_of_all_centuries_stays_what_it_was(kernel, read, tmp_path):
    # the last microsecond of 9999, as others mark what has no end
    ends = pa.table({"id": [1, 2], "at": pa.array([0, 253_402_300_799_999_999], pa.timestamp("us"))})
    paths = [tmp_path / f"{number}.parquet" for number in range(3)]
    for path in paths:
        pq.write_table(ends, path, use_deprecated_int96_timestamps=True)
    lake = lake_of(paths, kernel=kernel)

    lake.compact()

    assert set(read("duckdb")(lake.files())["at"]) == set(read("duckdb")(paths)["at"])


@pytest.mark.parametrize("name", ALL_READERS)
def test_row_groups_of_many_codecs_and_pages_are_read_from_one_file(name, read, tmp_path):
    codecs = ["snappy", "gzip", "zstd", "lz4", "none"]
    tables = alike(2 * len(codecs))
    paths = [tmp_path / f"{number}.parquet" for number in range(len(tables))]
    for number, (table, path) in enumerate(zip(tables, paths, strict=True)):
        codec, version = codecs[number % len(codecs)], ("1.0", "2.0")[number // len(codecs)]
        pq.write_table(table, path, compression=codec, data_page_version=version, write_page_checksum=number % 3 == 0)
    lake = lake_of(paths, kernel="concat")

    lake.compact()

    (path,) = lake.files()
    assert pq.read_metadata(path).num_row_groups == len(paths)
    assert differences(read(name)([path]), rows_of_arrow(pa.concat_tables(tables))) == {}
