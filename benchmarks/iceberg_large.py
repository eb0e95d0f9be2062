"""Ten gigabytes of an Iceberg table compacted in little memory, as ``COMPACT`` of the write API does it.

``python -m benchmarks iceberg_large [--gigabytes N]``: files of about 1 MB, in four partitions, on a local disk with a
SQLite catalog. They are links to few files, so that making them takes no time. Each row is counted, and the hashes of
all rows are added up, by DuckDB before and after, which took no part.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from benchmarks.measuring import Stopwatch, Target, answer, child, print_targets, print_used

__all__ = ["main"]

MIB = 1 << 20
#: 512 MB, as the issue asks for; measured in MiB.
WANTED_RSS_MB = 512_000_000 / MIB
#: Files that are written, and rows of each; links to them that one snapshot adds.
WRITTEN, ROWS, AT_ONCE = 32, 36_000, 1000


def main(arguments: Sequence[str] = ()) -> None:
    """Prints what it took, and the targets."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks iceberg_large", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=10.0)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        made = answer(__name__, "make", folder, str(given.gigabytes))
        before = answer(__name__, "values", folder)
        print(f"{before['files']:,} files, {made / 1e9:.1f} GB, {before['rows']:,} rows", flush=True)
        used = child(__name__, "compact", folder)
        after = answer(__name__, "values", folder)
    print(
        f"{after['files']:,} files; {used.work_cpu_s:.1f} CPU-s, {used.wall_s:.0f} s, peak {used.peak_rss_mb:.0f} MiB"
    )
    same = after["rows"] == before["rows"] and after["hashes"] == before["hashes"]
    low = used.peak_rss_mb <= WANTED_RSS_MB
    print_targets(
        [
            Target("peak memory", f"{WANTED_RSS_MB:.0f} MiB", f"{used.peak_rss_mb:.0f} MiB", low),
            Target("rows afterwards", "the same", "the same" if same else "others", same),
        ]
    )


def _table(folder: str) -> Any:
    sql = import_module("pyiceberg.catalog.sql")
    uri, warehouse = f"sqlite:///{folder}/catalog.db", f"file://{folder}/warehouse"
    return sql.SqlCatalog("lake", uri=uri, warehouse=warehouse).load_table("n.t")


def _make(folder: str, gigabytes: float) -> int:
    """Writes some files, and commits links to them until there are enough; the bytes of all."""
    data_files = import_module("datalake_assets.lake.iceberg.data_files")
    transactions = import_module("datalake_assets.lake.iceberg.transactions")
    operation = import_module("pyiceberg.table.snapshots").Operation
    pq = import_module("pyarrow.parquet")
    import_module("benchmarks.iceberg").make("large", folder, WRITTEN, ROWS)
    table = _table(folder)
    templates = [task.file for task in table.scan().plan_files()]
    size_bytes, number = sum(file.file_size_in_bytes for file in templates), 0
    while size_bytes < gigabytes * 1e9:
        added = []
        for _ in range(AT_ONCE):
            like = templates[number % len(templates)]
            path = like.file_path.replace("/00000-0-", f"/link-{number:06d}-")
            os.link(urlsplit(like.file_path).path, urlsplit(path).path)
            added.append(
                data_files.data_file_of(
                    path,
                    pq.read_metadata(urlsplit(path).path),
                    like.file_size_in_bytes,
                    schema=table.schema(),
                    properties=table.properties,
                    spec_id=table.metadata.default_spec_id,
                    partition=like.partition,
                )
            )
            number, size_bytes = number + 1, size_bytes + like.file_size_in_bytes
            if size_bytes >= gigabytes * 1e9:
                break
        transactions.commit_change(table, transactions.TableChange(operation.APPEND, added=added))
    return int(size_bytes)


def _compact(folder: str) -> None:
    record_tables = import_module("datalake_assets.lake.iceberg.record_tables")
    table = record_tables.RecordTable(_table(folder), "n.t")
    watch = Stopwatch()
    table.compact(
        now=datetime.now(UTC), target_bytes=128 * MIB, small_below_bytes=64 * MIB, max_files=1_000_000, only={}
    )
    print_used(watch.stop())


def _values(folder: str) -> dict[str, Any]:
    """How many rows the newest snapshot has, and the sum of their hashes."""
    paths = [urlsplit(task.file.file_path).path for task in _table(folder).scan().plan_files()]
    listed = ", ".join(f"'{path}'" for path in paths)
    query = (
        "select count(*), sum(hash(id, ts, kind, url, amount)::hugeint)::varchar"
        f" from read_parquet([{listed}], hive_partitioning = false)"
    )
    ((rows, hashes),) = import_module("duckdb").connect().execute(query).fetchall()
    return {"files": len(paths), "rows": rows, "hashes": hashes}


def _work() -> None:
    """In the processes before, after, and of the compaction itself."""
    what, folder, *rest = sys.argv[1:]
    if what == "compact":
        _compact(folder)
    else:
        print(import_module("json").dumps(_make(folder, float(rest[0])) if what == "make" else _values(folder)))


if __name__ == "__main__":
    _work()
