"""What it costs to read a folder of Parquet files, and which rows are in them; a process of its own.

``python -m benchmarks.compaction_reading FOLDER [READER ...] [values] [order]``. Of each reader, such as ``DuckDB``, it
prints CPU seconds by query: one row by its id, an aggregate of two columns by two others, and all rows with all columns.
For the values, rows are counted and hashes of all of their values added up, independently of their order, by DuckDB:
none of our code has a say in it.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

__all__ = ["READERS", "main"]

#: Runs of each query, of which the median counts. The first clears memory that the others use again.
RUNS = 3
#: The same of a row by its id, which takes milliseconds.
POINTS = 9
POINT = "point"
#: Whose row is looked up: one in the middle of those of 1,000 files.
ROW_ID = 530_017
#: Every column, in forms that all writers agree on.
VALUES = (
    "id, account_id, quantity, price, score, epoch_us(event_time), "
    "country::VARCHAR, status::VARCHAR, session_id::VARCHAR, url::VARCHAR, is_mobile"
)

Query = Callable[[], object]


def main(folder: Path, wanted: Sequence[str]) -> None:
    """Prints what is wanted, as one JSON object."""
    files = sorted(folder.rglob("*.parquet"))
    found: dict[str, object] = {}
    if readers := [reader for reader in READERS if reader in wanted]:
        found["cpu_s"] = _cpu_s_by_query([*map(str, files)], readers)
    if "values" in wanted:
        found |= _values(_source([*map(str, files)]))
    if "order" in wanted:
        found["in_order"] = all(map(_is_in_order, files))
    print(json.dumps(found))


def _source(files: Sequence[str]) -> str:
    return f"read_parquet({files}, hive_partitioning = false)"


def _cpu_s_by_query(files: list[str], readers: Sequence[str]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for reader in readers:
        found[reader] = {}
        for name, query in READERS[reader](files).items():
            found[reader][name] = median(_cpu_s(query) for _ in range(POINTS if name == POINT else RUNS))
    return found


def _by_duckdb(files: list[str]) -> Mapping[str, Query]:
    connection, source = duckdb.connect(), _source(files)
    grouped = f"SELECT country, status, count(*), sum(quantity), avg(price) FROM {source} GROUP BY ALL"
    return {
        POINT: lambda: connection.execute(f"SELECT * FROM {source} WHERE id = {ROW_ID}").fetchall(),
        "aggregate": lambda: connection.execute(grouped).fetchall(),
        "full": lambda: connection.execute(f"SELECT * FROM {source}").to_arrow_table(),
    }


def _by_pyarrow(files: list[str]) -> Mapping[str, Query]:
    def aggregate() -> object:
        columns = ["country", "status", "quantity", "price"]
        table = ds.dataset(files).to_table(columns=columns)
        return table.group_by(["country", "status"]).aggregate([("quantity", "sum"), ("price", "mean")])

    return {
        POINT: lambda: ds.dataset(files).to_table(filter=ds.field("id") == ROW_ID),
        "aggregate": aggregate,
        "full": lambda: [pq.read_table(file, partitioning=None) for file in files],
    }


def _by_polars(files: list[str]) -> Mapping[str, Query]:
    def scanned() -> pl.LazyFrame:
        return pl.scan_parquet(files, hive_partitioning=False)

    keys, figures = [pl.col("country"), pl.col("status")], [pl.len(), pl.col("quantity").sum(), pl.col("price").mean()]
    return {
        POINT: lambda: scanned().filter(pl.col("id") == ROW_ID).collect(),
        "aggregate": lambda: scanned().group_by(keys).agg(figures).collect(),
        "full": lambda: scanned().collect(),
    }


def _by_fastparquet(files: list[str]) -> Mapping[str, Query]:
    fastparquet: Any = import_module("fastparquet")

    def aggregate() -> object:
        columns = ["country", "status", "quantity", "price"]
        grouped = fastparquet.ParquetFile(files).to_pandas(columns).groupby(["country", "status"], observed=True)
        return grouped.agg({"quantity": "sum", "price": "mean"})

    return {
        POINT: lambda: fastparquet.ParquetFile(files).to_pandas(filters=[("id", "==", ROW_ID)], row_filter=True),
        "aggregate": aggregate,
        "full": lambda: fastparquet.ParquetFile(files).to_pandas(),
    }


READERS: Mapping[str, Callable[[list[str]], Mapping[str, Query]]] = {
    "DuckDB": _by_duckdb,
    "pyarrow": _by_pyarrow,
    "Polars": _by_polars,
    "fastparquet": _by_fastparquet,
}


def _values(source: str) -> dict[str, object]:
    query = f"SELECT count(*), sum(hash({VALUES})::HUGEINT) FROM {source}"
    rows, values = duckdb.connect().execute(query).fetchall()[0]
    return {"rows": rows, "values": str(values)}


def _cpu_s(work: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _is_in_order(file: Path) -> bool:
    ids = pq.read_table(file, columns=["id"], partitioning=None)["id"].combine_chunks()
    return bool((np.diff(pa.array(ids).to_numpy()) > 0).all())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
