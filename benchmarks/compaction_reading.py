"""What it costs to read a folder of Parquet files, and which rows are in them; a process of its own.

``python -m benchmarks.compaction_reading FOLDER [cost] [values] [order]``. Cost is CPU seconds of an aggregate by
DuckDB and of a full read by pyarrow, file by file. For the values, rows are counted and hashes of all of their values
added up, independently of their order, by DuckDB: none of our code has a say in it.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["main"]

#: Runs of the aggregate, of which the median counts.
AGGREGATES = 5
#: The same of the full read. The first clears memory that the others use again, for more than all that follows takes.
READS = 5
#: Every column, in forms that all writers agree on.
VALUES = (
    "id, account_id, quantity, price, score, epoch_us(event_time), "
    "country::VARCHAR, status::VARCHAR, session_id::VARCHAR, url::VARCHAR, is_mobile"
)


def main(folder: Path, wanted: Sequence[str]) -> None:
    """Prints what is wanted, as one JSON object."""
    files = sorted(folder.rglob("*.parquet"))
    source = f"read_parquet({[str(file) for file in files]}, hive_partitioning = false)"
    found: dict[str, object] = {}
    if "cost" in wanted:
        found |= _cost(files, source)
    if "values" in wanted:
        found |= _values(source)
    if "order" in wanted:
        found["in_order"] = all(map(_is_in_order, files))
    print(json.dumps(found))


def _cost(files: Sequence[Path], source: str) -> dict[str, float]:
    connection = duckdb.connect()
    query = f"SELECT country, status, count(*), sum(quantity), avg(price) FROM {source} GROUP BY ALL"
    return {
        "aggregate_cpu_s": median(_cpu_s(lambda: connection.execute(query).fetchall()) for _ in range(AGGREGATES)),
        "read_cpu_s": median(_cpu_s(lambda: _read(files)) for _ in range(READS)),
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


def _read(files: Sequence[Path]) -> None:
    for file in files:
        pq.read_table(file, partitioning=None)


def _is_in_order(file: Path) -> bool:
    ids = pq.read_table(file, columns=["id"], partitioning=None)["id"].combine_chunks()
    return bool((np.diff(pa.array(ids).to_numpy()) > 0).all())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
