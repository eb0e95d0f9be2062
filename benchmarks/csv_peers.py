"""``python -m benchmarks.csv_peers PEER CSV FOLDER``: a CSV file by another library; nothing of ours is imported.

Each is used as its documentation shows it for files that need not fit into memory, with the settings that it has. What
it imports is there before its time begins, as ours is.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.measuring import Stopwatch, print_used

__all__ = ["PEERS", "main"]

CHUNK_ROWS = 100_000


def usual(source: Path, folder: Path) -> int:
    """The usual way: pandas in chunks to Parquet, and each chunk's records to Avro by fastavro."""
    import fastavro  # noqa: PLC0415  each peer alone
    import pandas as pd  # noqa: PLC0415  each peer alone
    import pyarrow as pa  # noqa: PLC0415  each peer alone
    import pyarrow.parquet as pq  # noqa: PLC0415  each peer alone

    schema = fastavro.parse_schema(
        {
            "type": "record",
            "name": "row",
            "fields": [
                {"name": "id", "type": ["null", "long"]},
                {"name": "name", "type": ["null", "string"]},
                {"name": "amount", "type": ["null", "double"]},
                {"name": "event_time", "type": ["null", {"type": "long", "logicalType": "timestamp-micros"}]},
                {"name": "active", "type": ["null", "boolean"]},
                {"name": "comment", "type": ["null", "string"]},
                {"name": "score", "type": ["null", "double"]},
                {"name": "region", "type": ["null", "string"]},
            ],
        }
    )
    rows, parquet = 0, None

    def chunks() -> Any:
        nonlocal rows, parquet
        for chunk in pd.read_csv(source, chunksize=CHUNK_ROWS, parse_dates=["event_time"]):
            table = pa.Table.from_pandas(chunk, preserve_index=False)
            parquet = parquet or pq.ParquetWriter(folder / "usual.parquet", table.schema)
            parquet.write_table(table)
            rows += len(chunk)
            yield from chunk.to_dict("records")

    with (folder / "usual.avro").open("wb") as out:
        fastavro.writer(out, schema, chunks(), codec="snappy" if _has_snappy() else "deflate")
    if parquet is not None:
        parquet.close()
    return rows


def _has_snappy() -> bool:
    try:
        import cramjam  # noqa: F401, PLC0415  fastavro's
    except ImportError:
        return False
    return True


def pandas(source: Path, folder: Path) -> int:
    """Pandas in chunks, to Parquet."""
    import pandas as pd  # noqa: PLC0415  each peer alone
    import pyarrow as pa  # noqa: PLC0415  each peer alone
    import pyarrow.parquet as pq  # noqa: PLC0415  each peer alone

    rows, parquet = 0, None
    for chunk in pd.read_csv(source, chunksize=CHUNK_ROWS, parse_dates=["event_time"]):
        table = pa.Table.from_pandas(chunk, preserve_index=False)
        parquet = parquet or pq.ParquetWriter(folder / "pandas.parquet", table.schema)
        parquet.write_table(table)
        rows += len(chunk)
    if parquet is not None:
        parquet.close()
    return rows


def duckdb(source: Path, folder: Path) -> int:
    """DuckDB's COPY."""
    import duckdb as db  # noqa: PLC0415  each peer alone

    db.execute(f"COPY (FROM read_csv('{source}')) TO '{folder}/duckdb.parquet' (FORMAT parquet)")
    return int(db.execute(f"SELECT count(*) FROM '{folder}/duckdb.parquet'").fetchall()[0][0])


def duckdb_by_day(source: Path, folder: Path, *, sampled: int = 20_480) -> int:
    """DuckDB's COPY into a folder a day, as feeds have it; types are those of its sample of rows."""
    import duckdb as db  # noqa: PLC0415  each peer alone

    days = ", ".join(f"{part}(event_time) AS {part}" for part in ("year", "month", "day"))
    query = f"SELECT *, {days} FROM read_csv('{source}', sample_size = {sampled})"
    db.execute("SET TimeZone = 'UTC'")
    db.execute(f"COPY ({query}) TO '{folder}/days' (FORMAT parquet, PARTITION_BY (year, month, day))")
    return int(db.execute(f"SELECT count(*) FROM '{folder}/days/**/*.parquet'").fetchall()[0][0])


def duckdb_by_day_all(source: Path, folder: Path) -> int:
    """The same with types found over the whole file, as the product finds them."""
    return duckdb_by_day(source, folder, sampled=-1)


def polars(source: Path, folder: Path) -> int:
    """Polars' streaming engine."""
    import polars as pl  # noqa: PLC0415  each peer alone

    pl.scan_csv(source, try_parse_dates=True).sink_parquet(folder / "polars.parquet", compression="snappy")
    return int(pl.scan_parquet(folder / "polars.parquet").select(pl.len()).collect().item())


def polars_by_day(source: Path, folder: Path) -> int:
    """Polars' streaming engine, into a folder a day."""
    import polars as pl  # noqa: PLC0415  each peer alone

    time = pl.col("event_time").dt
    parts = [time.year().alias("year"), time.month().alias("month"), time.day().alias("day")]
    days = pl.PartitionBy(folder / "days", key=parts)
    pl.scan_csv(source, try_parse_dates=True).sink_parquet(days, compression="snappy", mkdir=True)
    return int(pl.scan_parquet(folder / "days/**/*.parquet").select(pl.len()).collect().item())


def pyarrow(source: Path, folder: Path) -> int:
    """Arrow's streaming reader."""
    import pyarrow.parquet as pq  # noqa: PLC0415  each peer alone
    from pyarrow import csv  # noqa: PLC0415  each peer alone

    rows = 0
    with csv.open_csv(source) as reader, pq.ParquetWriter(folder / "pyarrow.parquet", reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def awswrangler(source: Path, folder: Path) -> int:
    """Awswrangler in chunks, from and to the S3 server of the environment."""
    import awswrangler as wr  # noqa: PLC0415  each peer alone

    bucket = os.environ["BENCH_BUCKET"]
    rows = 0
    for chunk in wr.s3.read_csv(f"s3://{bucket}/{source.name}", chunksize=CHUNK_ROWS, parse_dates=["event_time"]):
        wr.s3.to_parquet(chunk, path=f"s3://{bucket}/out/", dataset=True, mode="append")
        rows += len(chunk)
    (folder / "awswrangler.parquet").touch()
    return rows


PEERS = {
    each.__name__: each
    for each in (usual, pandas, duckdb, duckdb_by_day, duckdb_by_day_all, polars, polars_by_day, pyarrow, awswrangler)
}
#: What each imports.
IMPORTS = {
    "usual": ("fastavro", "pandas", "pyarrow.parquet"),
    "pandas": ("pandas", "pyarrow.parquet"),
    "duckdb": ("duckdb",),
    "duckdb_by_day": ("duckdb",),
    "duckdb_by_day_all": ("duckdb",),
    "polars": ("polars",),
    "polars_by_day": ("polars",),
    "pyarrow": ("pyarrow.parquet", "pyarrow.csv"),
    "awswrangler": ("awswrangler",),
}


def main(peer: str, source: Path, folder: Path) -> None:
    """Runs one peer and prints what it used."""
    for module in IMPORTS[peer]:
        import_module(module)
    watch = Stopwatch()
    rows = PEERS[peer](source, folder)
    used = watch.stop()
    size = sum(each.stat().st_size for each in folder.rglob("*") if each.suffix in {".parquet", ".avro"})
    print_used(replace(used, rows=rows, size_mb=size / (1 << 20)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
