"""Each reader, asked for all rows of some files the way its documentation says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import duckdb
import fastparquet
import polars as pl
import pyarrow.parquet as pq

from datalake_assets_tests.interop.canonical import Rows, rows_of_arrow, rows_of_pandas
from datalake_assets_tests.interop.spark import quiet

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["READERS", "Reader", "spark_reader"]

Reader: TypeAlias = Callable[[Sequence[Path]], Rows]
"""Reads files that have one schema."""


def read_pyarrow(paths: Sequence[Path]) -> Rows:
    """pyarrow, the reference."""
    return rows_of_arrow(pq.read_table([str(path) for path in paths], partitioning=None))


def read_duckdb(paths: Sequence[Path]) -> Rows:
    """DuckDB, through SQL."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        files = connection.read_parquet([str(path) for path in paths], hive_partitioning=False)
        return rows_of_arrow(files.to_arrow_table())


def read_polars(paths: Sequence[Path]) -> Rows:
    """Polars."""
    return rows_of_arrow(pl.read_parquet(list(paths), hive_partitioning=False).to_arrow())


def read_fastparquet(paths: Sequence[Path]) -> Rows:
    """fastparquet, into pandas."""
    with contextlib.ExitStack() as opened:
        # it leaves files open, to be collected
        files = fastparquet.ParquetFile(
            [str(path) for path in paths], open_with=lambda path, mode="rb": opened.enter_context(Path(path).open(mode))
        )
        return rows_of_pandas(files.to_pandas(index=False))


def spark_reader(spark: SparkSession) -> Reader:
    """Spark, by the vectorised reader that it uses unasked."""

    def read_spark(paths: Sequence[Path]) -> Rows:
        frame = spark.read.parquet(*[str(path) for path in paths])
        with quiet():
            return rows_of_arrow(frame.toArrow())

    return read_spark


READERS: Mapping[str, Reader] = {
    "pyarrow": read_pyarrow,
    "duckdb": read_duckdb,
    "polars": read_polars,
    "fastparquet": read_fastparquet,
}
