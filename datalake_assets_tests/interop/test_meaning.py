"""What Spark reads of its own files is the same before and after a merge: calendars, legacy layouts, lengths."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from datalake_assets.parquet.elements import encoded_schema
from datalake_assets_tests.interop.lakes import KERNELS, Lake
from datalake_assets_tests.interop.names import needs_spark
from datalake_assets_tests.interop.spark import conf

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = needs_spark
MICROS = {"outputTimestampType": "TIMESTAMP_MICROS"}


def write(spark: SparkSession, query: str, path: Path, **settings: str) -> Path:
    with TemporaryDirectory() as folder, conf(spark, **MICROS, **settings):
        spark.sql(query).coalesce(1).write.parquet(f"{folder}/out")
        (written,) = Path(folder, "out").glob("*.parquet")
        written.replace(path)
    return path


def seen(spark: SparkSession, paths: Sequence[Path]) -> list[tuple[object, ...]]:
    frame = spark.read.parquet(*map(str, paths))
    return sorted(tuple(map(str, row)) for row in frame.selectExpr("id", "string(d)", "string(t)").collect())


@contextlib.contextmanager
def utc(spark: SparkSession) -> Iterator[None]:
    before = spark.conf.get("spark.sql.session.timeZone")
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    try:
        yield
    finally:
        spark.conf.set("spark.sql.session.timeZone", before)


@pytest.mark.parametrize("kernel", [*KERNELS, "auto"])
@pytest.mark.parametrize("modes", ["LLC", "CCL"])
def test_dates_of_two_calendars_are_never_in_one_file(modes, kernel, spark, tmp_path):
    query = "select {} id, date'1500-01-01' d, timestamp'1500-01-01 00:00:00' t"
    named = {"L": "LEGACY", "C": "CORRECTED"}
    with utc(spark):
        paths = [
            write(spark, query.format(n), tmp_path / f"{n}.parquet", datetimeRebaseModeInWrite=named[mode])
            for n, mode in enumerate(modes)
        ]
        before = seen(spark, paths)
        lake = Lake(tmp_path / "lake", kernel=kernel)
        lake.take(paths)
        report = lake.compact()

        assert (report.files_after, [left.name for left in report.skipped if left.unusable]) == (2, ["2.parquet"])
        assert seen(spark, lake.files()) == before == [(str(n), "1500-01-01", "1500-01-01 00:00:00") for n in range(3)]


@pytest.mark.parametrize("legacy", ["true", "false"])
def test_layouts_of_spark_stay_byte_for_byte(legacy, spark, tmp_path):
    query = (
        "select {0} id, array({0}, null) l, map('a', {0}) m, named_struct('x', array(named_struct('y', {0}))) s,"
        " 1.5bd d, date'2025-01-01' day, timestamp'2025-01-01 00:00:00' t, cast(1 as decimal(30, 2)) w"
    )
    paths = [
        write(spark, query.format(n), tmp_path / f"{n}.parquet", writeLegacyFormat=legacy, respectSummaryFiles="false")
        for n in range(3)
    ]
    schemas = {_schema(path) for path in paths}
    before = sorted(map(str, spark.read.parquet(*map(str, paths)).collect()))
    lake = Lake(tmp_path / "lake", kernel="reencode")
    lake.take(paths)
    report = lake.compact()

    assert (report.kernel, [left.reason for left in report.skipped if left.unusable]) == ("reencode", [])
    (path,) = lake.files()
    assert {_schema(path)} == schemas
    assert sorted(map(str, spark.read.parquet(str(path)).collect())) == before
    kept = pq.read_metadata(path).metadata
    assert {key for key in kept if not key.startswith(b"datalake.")} == set(pq.read_metadata(paths[0]).metadata)


def _schema(path: Path) -> bytes:
    body = path.read_bytes()
    length = int.from_bytes(body[-8:-4], "little")
    return encoded_schema(body[-8 - length : -8])


@pytest.mark.parametrize("kernel", [*KERNELS, "auto"])
def test_lengths_that_spark_notes_stay(kernel, spark, tmp_path):
    query = "select {} id, cast('abc' as varchar({})) v"
    spark.conf.set("spark.sql.preserveCharVarcharTypeInfo", "true")
    paths = [write(spark, query.format(n, length), tmp_path / f"{n}.parquet") for n, length in enumerate((5, 5, 7))]
    lake = Lake(tmp_path / "lake", kernel=kernel)
    lake.take(paths)
    lake.compact()
    noted = {_noted(path) for path in paths}
    assert {_noted(path) for path in lake.files()} == noted


def _noted(path: Path) -> bytes:
    text = pq.read_metadata(path).metadata[b"org.apache.spark.sql.parquet.row.metadata"]
    return text[text.index(b'"name":"v"') :] if b'"name":"v"' in text else text[text.index(b'"v"') :]
