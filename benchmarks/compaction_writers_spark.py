"""Spark's files of `benchmarks.compaction_writers`: one of each file of a folder; a process of its own.

``python -m benchmarks.compaction_writers_spark INPUTS OUTPUT`` prints the new files' paths, in no order. Rows of a file
stay together and in their order.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.compaction_reading import spark_session

__all__ = ["main"]

#: More than any file has. Opening a file is said to cost as much as a partition may have: so each has one of its own,
#: and each partition is a file again.
PARTITION_BYTES = 128 << 20


def main(inputs: str, output: str) -> None:
    """Writes all files in one job, with Spark's own writer and its defaults."""
    session = spark_session()
    for name in ("maxPartitionBytes", "openCostInBytes"):
        session.conf.set(f"spark.sql.files.{name}", PARTITION_BYTES)
    session.read.parquet(inputs).write.parquet(output)
    print(json.dumps([*map(str, Path(output).glob("*.parquet"))]))


if __name__ == "__main__":
    main(*sys.argv[1:])
