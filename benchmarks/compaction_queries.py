"""Three queries over one day of a lake, as readers ask them that know nothing of us; a process of its own.

``python -m benchmarks.compaction_queries ENGINE FOLDER ID`` times, each with the listing of the folder and the reading
of footers: the number of rows, an aggregate of one column, and one row by its id. The folder is a path or an S3 URI.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import duckdb
import polars as pl
import pyarrow.dataset as ds
import pyarrow.fs as pafs

from datalake_assets.settings import load_settings

__all__ = ["ENGINES"]

Query = Callable[[], object]

SQL = {
    "count(*)": "SELECT count(*) FROM day",
    "sum of a column": "SELECT sum(quantity) FROM day",
    "point lookup": "SELECT * FROM day WHERE id = {row_id}",
}


def duckdb_native(folder: str, row_id: int) -> dict[str, Query]:
    """DuckDB's own reader; none for S3 without its extension, which the network has and which is not asked for here."""
    connection = duckdb.connect()
    if "://" in folder:
        try:
            connection.execute("LOAD httpfs")
        except duckdb.Error:
            return {}
        host = urlsplit(load_settings().s3_endpoint or "").netloc
        connection.execute(
            f"CREATE SECRET (TYPE s3, PROVIDER credential_chain, ENDPOINT '{host}', URL_STYLE 'path', USE_SSL false)"
        )
    source = f"read_parquet('{folder}/*.parquet', hive_partitioning = false)"
    return {
        name: _sql(connection, query.replace(" day", f" {source}").format(row_id=row_id)) for name, query in SQL.items()
    }


def duckdb_arrow(folder: str, row_id: int) -> dict[str, Query]:
    """DuckDB over an Arrow dataset, which Arrow's own S3 client feeds: how it is done without the extension."""

    def asked(query: str) -> Query:
        def run() -> object:
            connection = duckdb.connect()
            connection.register("day", _dataset(folder))
            return connection.execute(query).fetchall()

        return run

    return {name: asked(query.format(row_id=row_id)) for name, query in SQL.items()}


def polars(folder: str, row_id: int) -> dict[str, Query]:
    """Polars' lazy scan."""
    endpoint = load_settings().s3_endpoint
    options = {"aws_endpoint_url": endpoint, "aws_allow_http": "true"} if "://" in folder and endpoint else None
    day = pl.scan_parquet(f"{folder}/*.parquet", storage_options=options, hive_partitioning=False)
    asked = {
        "count(*)": day.select(pl.len()),
        "sum of a column": day.select(pl.col("quantity").sum()),
        "point lookup": day.filter(pl.col("id") == row_id),
    }
    return {name: query.collect for name, query in asked.items()}


ENGINES: dict[str, Callable[[str, int], dict[str, Query]]] = {
    "duckdb": duckdb_native,
    "duckdb-arrow": duckdb_arrow,
    "polars": polars,
}


def _sql(connection: duckdb.DuckDBPyConnection, query: str) -> Query:
    return lambda: connection.execute(query).fetchall()


def _dataset(folder: str) -> ds.Dataset:
    if "://" not in folder:
        return ds.dataset(folder, format="parquet", partitioning=None)
    parts = urlsplit(folder)
    endpoint = load_settings().s3_endpoint or ""
    filesystem = pafs.S3FileSystem(endpoint_override=urlsplit(endpoint).netloc, scheme=urlsplit(endpoint).scheme)
    return ds.dataset(f"{parts.netloc}{parts.path}", format="parquet", filesystem=filesystem, partitioning=None)


def main(engine: str, folder: str, row_id: int) -> None:
    """Prints the wall time of each query in seconds; nothing if the engine cannot read there."""
    taken = {}
    for name, query in ENGINES[engine](folder, row_id).items():
        began = time.perf_counter()
        query()
        taken[name] = time.perf_counter() - began
    print(json.dumps(taken))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
