"""``python -m benchmarks.sql_peers PEER URL FOLDER``: a table of PostgreSQL by another way.

Nothing of ours is imported. Each is used as its documentation shows it, with rows in folders of a day if it has them.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.measuring import Stopwatch, print_used

__all__ = ["main"]


def with_pandas(url: str, folder: Path) -> int:
    """``pandas.read_sql`` in chunks of 10,000 rows from a cursor on the server, each appended to its days' folders."""
    import pandas as pd  # noqa: PLC0415  each peer alone
    import sqlalchemy as sa  # noqa: PLC0415  each peer alone

    rows = 0
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect().execution_options(stream_results=True) as connection:
        for number, chunk in enumerate(pd.read_sql("SELECT * FROM events", connection, chunksize=10_000)):
            chunk["day"] = chunk["at"].dt.strftime("%Y-%m-%d")
            name = f"{number}-{{i}}.parquet"
            chunk.to_parquet(
                folder, partition_cols=["day"], basename_template=name, existing_data_behavior="overwrite_or_ignore"
            )
            rows += len(chunk)
    return rows


def with_dlt(url: str, folder: Path, *, backend: Literal["sqlalchemy", "pyarrow"]) -> int:
    """By ``sql_table`` of dlt into its filesystem destination, as Parquet."""
    os.environ |= {"RUNTIME__DLTHUB_TELEMETRY": "false", "DLT_DATA_DIR": str(folder / "dlt")}
    import dlt  # noqa: PLC0415  each peer alone
    from dlt.sources.sql_database import sql_table  # noqa: PLC0415  each peer alone

    credentials = url.replace("postgresql://", "postgresql+psycopg://")
    table = sql_table(credentials, table="events", backend=backend, chunk_size=10_000)
    destination = dlt.destinations.filesystem(bucket_url=(folder / "lake").as_uri())
    pipeline = dlt.pipeline("bench", destination=destination, dataset_name="lake", pipelines_dir=str(folder / "dlt"))
    pipeline.run(table, loader_file_format="parquet").raise_on_failed_jobs()
    trace: Any = pipeline.last_trace
    return int(trace.last_normalize_info.row_counts["events"])


def main(peer: str, url: str, folder: Path) -> None:
    """Runs a peer and prints what it used."""
    watch = Stopwatch()
    if peer == "pandas":
        rows = with_pandas(url, folder)
    else:
        rows = with_dlt(url, folder, backend="pyarrow" if peer.endswith("pyarrow") else "sqlalchemy")
    used = watch.stop()
    size = sum(each.stat().st_size for each in folder.rglob("*.parquet"))
    print_used(replace(used, rows=rows, size_mb=size / (1 << 20)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
