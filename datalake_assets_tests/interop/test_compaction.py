"""Every writer's files, merged by both kernels, hold what they held, and every reader sees in them what it saw."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets_tests.interop.canonical import Rows, differences, rows_of_arrow
from datalake_assets_tests.interop.lakes import KERNELS, Lake
from datalake_assets_tests.interop.names import ALL_WRITERS, PAIRS
from datalake_assets_tests.interop.readers import read_pyarrow
from datalake_assets_tests.interop.torture import TABLE, parts
from datalake_assets_tests.interop.writers import write_pyarrow

OUR_KEYS = {b"datalake.feed", b"datalake.commit_id", b"datalake.run_id", b"datalake.position"}
#: Notes on one file's rows, of no use once they are merged.
OF_ONE_FILE = {b"pandas", b"ARROW:schema"}
#: Writers of 96-bit timestamps, whose files are copied and never encoded again.
NEVER_ENCODED = {"pyarrow-old", "fastparquet-int96", "spark-legacy"}
TIMES = {"time_s", "time_ms", "time_us", "time_ns"}


def _values(case):
    return getattr(case, "values", (case,))


def _with_kernels(cases):
    """Each case with each kernel, but for those that are never encoded again."""
    for case in cases:
        values, marks = _values(case), getattr(case, "marks", ())
        for kernel in KERNELS:
            if kernel != "reencode" or values[0] not in NEVER_ENCODED:
                yield pytest.param(*values, kernel, marks=marks)


@pytest.fixture(scope="session")
def merged(inputs, tmp_path_factory) -> Callable[[str, str, str], list[Path]]:
    """What becomes of a writer's files (see `inputs`) by a kernel; by none: the files."""

    @cache
    def compacted(writer: str, kernel: str, reader: str) -> list[Path]:
        if not kernel:
            return inputs(writer, reader)
        lake = Lake(tmp_path_factory.mktemp(f"{writer}-{kernel}"), kernel=kernel)
        lake.take(inputs(writer, reader))
        report = lake.compact()
        unusable = [left.reason for left in report.skipped if left.unusable]
        assert (unusable, report.kernel, report.files_after) == ([], kernel, 1)
        assert lake.differences() == []
        return lake.files()

    return compacted


@pytest.fixture(scope="session")
def seen(read, merged) -> Callable[[str, str, str], Rows]:
    """What a reader sees in what `merged` gives."""

    @cache
    def rows(writer: str, kernel: str, reader: str) -> Rows:
        return read(reader)(merged(writer, kernel, "spark" if reader == "spark" else ""))

    return rows


def fields_of(schema: pa.Schema) -> list[str]:
    """Names, types, nullability and metadata (field ids) of all fields, nested ones too; lists' items by one name."""

    def described(field: pa.Field, name: str) -> list[str]:
        kind = field.type
        lines = [f"{name}: {'' if kind.num_fields else kind} {field.nullable} {field.metadata}"]
        for index in range(kind.num_fields):
            part = kind.field(index)
            lines += [
                f"{name}.{line}" for line in described(part, part.name if pa.types.is_struct(kind) else str(index))
            ]
        return lines

    return [line for field in schema for line in described(field, field.name)]


def leaves_of(path: Path) -> list[tuple[object, ...]]:
    """What Parquet itself says of a file's columns; an INT64 is the same whether annotated as one or not."""
    schema = pq.ParquetFile(path).schema
    columns = [schema.column(index) for index in range(len(schema))]
    return [
        (column.name if column.max_repetition_level == 0 else "", _logical(column), column.max_definition_level)
        for column in columns
    ]


def _logical(column: Any) -> str:
    kind = str(column.logical_type)
    return "None" if kind in {"Int(bitWidth=32, isSigned=true)", "Int(bitWidth=64, isSigned=true)"} else kind


def texts_of(path: Path) -> dict[bytes, bytes]:
    return {key: value for key, value in (pq.read_metadata(path).metadata or {}).items() if key not in OF_ONE_FILE}


@pytest.mark.parametrize(("writer", "kernel"), [*_with_kernels(ALL_WRITERS)])
class TestMergedFile:
    def test_has_the_same_rows(self, writer, kernel, merged):
        before = [pq.ParquetFile(path).read() for path in merged(writer, "", "")]

        after = [pq.ParquetFile(path).read() for path in merged(writer, kernel, "")]

        expected = [rows_of_arrow(table) for table in before]
        columns = {name: [value for part in expected for value in part[name]] for name in expected[0]}
        assert differences(rows_of_arrow(after[0]), columns) == {}

    def test_has_the_same_types_nullability_and_field_ids(self, writer, kernel, merged):
        (after,) = merged(writer, kernel, "")

        assert fields_of(pq.read_schema(after)) == fields_of(pq.read_schema(merged(writer, "", "")[0]))

    def test_has_the_same_parquet_types(self, writer, kernel, merged):
        (after,) = merged(writer, kernel, "")

        assert leaves_of(after) == leaves_of(merged(writer, "", "")[0])

    def test_keeps_the_key_values(self, writer, kernel, merged):
        (after,) = merged(writer, kernel, "")

        found = texts_of(after)

        assert {key: found.pop(key, b"") for key in OUR_KEYS}[b"datalake.feed"] == b"s"
        assert found == texts_of(merged(writer, "", "")[-1])


@pytest.mark.parametrize(("writer", "reader", "kernel"), [*_with_kernels(PAIRS)])
def test_reader_sees_the_same_rows_as_before(writer, reader, kernel, seen):
    before = seen(writer, "", reader)

    after = seen(writer, kernel, reader)
    if reader == "fastparquet" and kernel == "reencode":
        # it knows times by a field of theirs that Arrow does not write any more
        before, after = ({name: rows[name] for name in rows if name not in TIMES} for rows in (before, after))

    assert after.keys() == before.keys()
    assert differences(after, before) == {}


@pytest.mark.parametrize("writer", [each for each in ALL_WRITERS if _values(each)[0] in NEVER_ENCODED])
def test_files_with_96_bit_timestamps_stay_when_all_is_to_be_encoded_again(writer, inputs, tmp_path):
    lake = Lake(tmp_path / "lake", kernel="reencode")
    lake.take(inputs(writer, ""))

    report = lake.compact()

    assert (report.files_compacted, len(lake.files())) == (0, 3)
    assert all("96-bit timestamps" in left.reason for left in report.skipped[:2])


@pytest.mark.parametrize("column", ["uuid", "pair"])
def test_column_can_be_encoded_again(column, tmp_path):
    # beside one that DuckDB has no hash for
    table = TABLE.select(["id", "f16", column])
    paths = [tmp_path / f"{number}.parquet" for number in range(3)]
    for path, part in zip(paths, parts(table), strict=True):
        write_pyarrow(part, path)
    lake = Lake(tmp_path / "lake", kernel="reencode")
    lake.take(paths)

    lake.compact()

    assert differences(read_pyarrow(lake.files()), rows_of_arrow(table)) == {}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("value", ["INTERVAL 3 DAY", "'12:00:00+02'::TIMETZ", "{'a': 1}::VARIANT", "'{}'::JSON"])
def test_types_that_arrow_has_none_for_stay_or_the_file_does(value, kernel, tmp_path):
    paths = [tmp_path / f"{number}.parquet" for number in range(3)]
    with duckdb.connect() as connection:
        for path in paths:
            connection.execute(f"COPY (SELECT 1 AS id, {value} AS value) TO '{path}' (FORMAT parquet)")
        before = connection.read_parquet(str(paths[0])).types
        lake = Lake(tmp_path / "lake", kernel=kernel)
        lake.take(paths)

        lake.compact()

        assert {tuple(connection.read_parquet(str(path)).types[:2]) for path in lake.files()} == {tuple(before)}


def test_times_stay_adjusted_to_utc(tmp_path):
    table = TABLE.select(["id", "time_us"])
    paths = [tmp_path / f"{number}.parquet" for number in range(3)]
    for path, part in zip(paths, parts(table), strict=True):
        pq.write_table(part, path, write_time_adjusted_to_utc=True)
    lake = Lake(tmp_path / "lake", kernel="reencode")
    lake.take(paths)

    lake.compact()

    assert {str(leaves_of(path)) for path in lake.files()} == {str(leaves_of(paths[0]))}
