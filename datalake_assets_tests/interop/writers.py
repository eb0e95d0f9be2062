"""Each writer, given the torture table in parts, writes a file per part the way its documentation says."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

import duckdb
import fastparquet
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.parquet.writer import ParquetFileWriter, ParquetSettings
from datalake_assets_tests.interop.spark import conf
from datalake_assets_tests.interop.torture import with_field_ids

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["SPARK_WRITERS", "WRITERS", "Writer", "spark_writer"]

Writer: TypeAlias = Callable[[pa.Table, Path], None]
"""Writes rows to the path given, which has the suffix ``.parquet``."""


_NULLABLE = {
    kind: pd.api.types.pandas_dtype(str(kind).replace("int", "Int").replace("uI", "UI"))
    for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
}


def write_pyarrow(table: pa.Table, path: Path) -> None:
    """pyarrow with field ids, key-value metadata and dictionaries."""
    kept = {"owner": "interop", "ünï": "cödé"}
    schema = with_field_ids(table.schema).with_metadata(kept)
    pq.write_table(table.cast(schema), path, store_decimal_as_integer=True, write_page_index=True)


def write_pyarrow_old(table: pa.Table, path: Path) -> None:
    """pyarrow as others once wrote: format 1.0, INT96, decimals of fixed length, no Arrow schema, but v2 pages."""
    pq.write_table(
        table,
        path,
        version="1.0",
        use_deprecated_int96_timestamps=True,
        store_schema=False,
        use_compliant_nested_type=False,
        data_page_version="2.0",
        compression="gzip",
        row_group_size=7,
    )


def write_pandas(table: pa.Table, path: Path) -> None:
    """pandas, with an index of its own and attributes."""
    frame = table.to_pandas(types_mapper=pd.ArrowDtype)
    frame.index = pd.Index(range(1000, 1000 + len(frame)), name="index")
    frame.attrs = {"owner": "interop"}
    frame.to_parquet(path)


def write_duckdb(table: pa.Table, path: Path) -> None:
    """DuckDB's COPY, with field ids and key-value metadata."""
    options = "FORMAT parquet, FIELD_IDS 'auto', KV_METADATA {owner: 'interop'}, ROW_GROUP_SIZE 2048"
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("rows", table)
        connection.execute(f"COPY (FROM rows) TO '{path}' ({options})")


def write_polars(table: pa.Table, path: Path) -> None:
    """Polars."""
    pl.from_arrow(table).write_parquet(path, metadata={"owner": "interop"})


def write_fastparquet(table: pa.Table, path: Path, times: str = "int64") -> None:
    """fastparquet, integers with nulls as pandas' nullable ones."""
    frame = table.to_pandas(types_mapper=_NULLABLE.get)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Series.values returning an ndarray that drops timezone", DeprecationWarning)
        fastparquet.write(str(path), frame, times=times, custom_metadata={"owner": "interop"}, write_index=False)


def write_ours(table: pa.Table, path: Path, profile: str = "compatible") -> None:
    """Ours."""
    with path.open("wb") as file:
        parquet = ParquetFileWriter(file, table.schema, ParquetSettings(profile=profile), metadata={"owner": "interop"})
        parquet.write(table)
        parquet.close()


WRITERS: Mapping[str, Writer] = {
    "pyarrow": write_pyarrow,
    "pyarrow-old": write_pyarrow_old,
    "pandas": write_pandas,
    "duckdb": write_duckdb,
    "polars": write_polars,
    "fastparquet": write_fastparquet,
    "fastparquet-int96": lambda table, path: write_fastparquet(table, path, "int96"),
    "compatible": write_ours,
    "compact": lambda table, path: write_ours(table, path, "compact"),
}

SPARK_WRITERS: Mapping[str, Mapping[str, Any]] = {
    "spark": {"outputTimestampType": "TIMESTAMP_MICROS"},
    "spark-legacy": {"outputTimestampType": "INT96", "writeLegacyFormat": "true"},
}


def spark_writer(spark: SparkSession, name: str) -> Writer:
    """Spark, by one of `SPARK_WRITERS`."""

    def write_spark(table: pa.Table, path: Path) -> None:
        with TemporaryDirectory() as folder, conf(spark, **SPARK_WRITERS[name]):
            source = f"{folder}/rows.parquet"
            pq.write_table(table, source)
            spark.read.parquet(source).coalesce(1).write.parquet(f"{folder}/out")
            (written,) = Path(folder, "out").glob("*.parquet")
            written.replace(path)

    return write_spark
