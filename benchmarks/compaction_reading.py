"""What it costs to read a folder of Parquet files, and which rows are in them; a process of its own.

``python -m benchmarks.compaction_reading FOLDER [values] [order]``: rows are counted and hashes of all of their values
added up, independently of their order, by DuckDB: none of our code has a say in it.

``python -m benchmarks.compaction_reading cost ROUNDS READER,... FOLDER ...`` prints CPU seconds by folder, reader and
query: some rows by their ids, an aggregate of two columns by two others, and all rows with all columns. One process
reads all folders in turns: between processes, what memory costs differs by more than the files do. Spark's JVM is a
process of its own, and counts; it compiles what it runs often, so that its first runs are left out. Whichever way files
were written, all of them are in the page cache in the same way: they are thrown out of it and read again. Of two files
that are the same, one can take 4 % more than the other, by where its pages came to lie and by whose turn was before; so
they are put there anew every few rounds, and turns are shuffled.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

__all__ = ["main", "print_cost", "spark_session"]

#: Rows that are looked up one after the other, all over the files: of a writer's row groups some are small, and a row
#: may lie in one of these.
POINTS = 5
#: Rounds before all files are put into the page cache anew.
ROUNDS_IN_PLACE = 5
#: First runs of a query over each folder that are not counted, where one is not enough.
FIRST_RUNS = {"Spark": 8}
#: CPU seconds of a reading, at the least: a shorter query is asked several times, and the mean counts.
LEAST_S = 0.1
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
    if "values" in wanted:
        found |= _values(_source([*map(str, files)]))
    if "order" in wanted:
        found["in_order"] = all(map(_is_in_order, files))
    print(json.dumps(found))


def print_cost(rounds: int, readers: Sequence[str], folders: list[str]) -> None:
    """Prints CPU seconds of each round by folder, by reader and by query, as one JSON object."""
    files = {folder: [*map(str, sorted(Path(folder).rglob("*.parquet")))] for folder in folders}
    rows = sum(pq.read_metadata(file).num_rows for file in files[folders[0]])
    ids = [rows * (2 * number + 1) // (2 * POINTS) for number in range(POINTS)]
    found: dict[str, dict[str, dict[str, list[float]]]] = {folder: {} for folder in folders}
    turns, shuffled = [*folders], random.Random(0)
    for reader in readers:
        queries = {folder: READERS[reader](files[folder], ids) for folder in folders}
        times: dict[str, int] = {}
        for folder in folders:
            found[folder][reader] = {name: [] for name in queries[folder]}
        for number in range(rounds):
            first_runs = 0 if number % ROUNDS_IN_PLACE else 1 if number else FIRST_RUNS.get(reader, 1)
            if first_runs:
                for folder in folders:
                    _warm(files[folder])
            for name in queries[folders[0]]:
                for folder in folders * first_runs:  # the first run clears memory that the others use again
                    queries[folder][name]()
                if name not in times:
                    times[name] = max(1, round(LEAST_S / _cpu_s(queries[folders[0]][name])))
                shuffled.shuffle(turns)
                for folder in turns:
                    found[folder][reader][name].append(_cpu_s(queries[folder][name], times[name]))
    print(json.dumps(found))


def _warm(files: Sequence[str]) -> None:
    """Has files in the page cache in the pieces in which reading puts them there, however they were written."""
    for file in files:
        with open(file, "rb", buffering=0) as opened:  # noqa: PTH123  to be read past Python's buffers
            os.fsync(opened.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while opened.read(1 << 20):
                pass


def _source(files: Sequence[str]) -> str:
    return f"read_parquet({files}, hive_partitioning = false)"


def _by_duckdb(files: list[str], ids: Sequence[int]) -> Mapping[str, Query]:
    connection, source = duckdb.connect(), _source(files)
    grouped = f"SELECT country, status, count(*), sum(quantity), avg(price) FROM {source} GROUP BY ALL"
    return {
        "point": lambda: [connection.execute(f"SELECT * FROM {source} WHERE id = {each}").fetchall() for each in ids],
        "aggregate": lambda: connection.execute(grouped).fetchall(),
        "full": lambda: connection.sql(f"SELECT * FROM {source}").to_arrow_table(),
    }


def _by_pyarrow(files: list[str], ids: Sequence[int]) -> Mapping[str, Query]:
    def aggregate() -> object:
        columns = ["country", "status", "quantity", "price"]
        table = ds.dataset(files).to_table(columns=columns)
        return table.group_by(["country", "status"]).aggregate([("quantity", "sum"), ("price", "mean")])

    return {
        "point": lambda: [ds.dataset(files).to_table(filter=ds.field("id") == each) for each in ids],
        "aggregate": aggregate,
        "full": lambda: [pq.read_table(file, partitioning=None) for file in files],
    }


def _by_polars(files: list[str], ids: Sequence[int]) -> Mapping[str, Query]:
    def scanned() -> pl.LazyFrame:
        return pl.scan_parquet(files, hive_partitioning=False)

    keys, figures = [pl.col("country"), pl.col("status")], [pl.len(), pl.col("quantity").sum(), pl.col("price").mean()]
    return {
        "point": lambda: [scanned().filter(pl.col("id") == each).collect() for each in ids],
        "aggregate": lambda: scanned().group_by(keys).agg(figures).collect(),
        "full": lambda: scanned().collect(),
    }


def _by_fastparquet(files: list[str], ids: Sequence[int]) -> Mapping[str, Query]:
    fastparquet: Any = import_module("fastparquet")

    def aggregate() -> object:
        columns = ["country", "status", "quantity", "price"]
        grouped = fastparquet.ParquetFile(files).to_pandas(columns).groupby(["country", "status"], observed=True)
        return grouped.agg({"quantity": "sum", "price": "mean"})

    return {
        "point": lambda: [
            fastparquet.ParquetFile(files).to_pandas(filters=[("id", "==", each)], row_filter=True) for each in ids
        ],
        "aggregate": aggregate,
        "full": lambda: fastparquet.ParquetFile(files).to_pandas(),
    }


def _by_spark(files: list[str], ids: Sequence[int]) -> Mapping[str, Query]:
    spark_session()  # functions need one
    functions: Any = import_module("pyspark.sql.functions")

    def scanned() -> Any:
        return spark_session().read.parquet(*files)

    figures = functions.count("*"), functions.sum("quantity"), functions.avg("price")
    return {
        "point": lambda: [scanned().filter(functions.col("id") == each).collect() for each in ids],
        "aggregate": lambda: scanned().groupBy("country", "status").agg(*figures).collect(),
        "full": lambda: scanned().write.format("noop").mode("overwrite").save(),
    }


@cache
def spark_session() -> Any:
    """The one session of this process, on all cores, with a collector that keeps no threads of its own busy."""
    settings = {
        "spark.driver.memory": "2g",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": "-XX:+UseSerialGC",
        "spark.sql.shuffle.partitions": "2",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
    }
    builder = import_module("pyspark.sql").SparkSession.builder.master("local[*]")
    for name, value in settings.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


READERS: Mapping[str, Callable[[list[str], Sequence[int]], Mapping[str, Query]]] = {
    "DuckDB": _by_duckdb,
    "pyarrow": _by_pyarrow,
    "Polars": _by_polars,
    "fastparquet": _by_fastparquet,
    "Spark": _by_spark,
}


def _values(source: str) -> dict[str, object]:
    query = f"SELECT count(*), sum(hash({VALUES})::HUGEINT) FROM {source}"
    rows, values = duckdb.connect().execute(query).fetchall()[0]
    return {"rows": rows, "values": str(values)}


def _cpu_s(work: Callable[[], object], times: int = 1) -> float:
    """CPU seconds of this process, and of Spark's, each time."""
    before = _used_s()
    for _ in range(times):
        work()
    return (_used_s() - before) / times


def _used_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime + (_cpu_s_of(_jvm()) if spark_session.cache_info().currsize else 0.0)


def _jvm() -> int:
    """The process id of Spark's JVM."""
    return int(spark_session().sparkContext._gateway.proc.pid)  # noqa: SLF001  nothing else says which process it is


def _cpu_s_of(pid: int) -> float:
    """CPU seconds of another process, to the nanosecond: clock_getcpuclockid(3), as Linux has it."""
    return time.clock_gettime((~pid << 3) | 2)


def _is_in_order(file: Path) -> bool:
    ids = pq.read_table(file, columns=["id"], partitioning=None)["id"].combine_chunks()
    return bool((np.diff(pa.array(ids).to_numpy()) > 0).all())


if __name__ == "__main__":
    if sys.argv[1] == "cost":
        print_cost(int(sys.argv[2]), sys.argv[3].split(","), sys.argv[4:])
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
