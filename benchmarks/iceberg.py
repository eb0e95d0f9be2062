"""Small files of an Iceberg table into few: ours beside pyiceberg's read-and-overwrite, and delta-rs on the same rows.

``python -m benchmarks iceberg [--files N] [--rows N]``. Each runs in a process of its own on a table of its own, which
it finds ready; afterwards all rows are added up by DuckDB, which took part in none. One run: wall times depend on what
the machine does besides, CPU times hardly.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.measuring import Stopwatch, Target, Used, child, print_targets, print_used

__all__ = ["main"]

MIB = 1 << 20
DAYS = 4
FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def main(arguments: Sequence[str] = ()) -> None:
    """Prints a line for each, and the targets."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks iceberg", description=__doc__)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--rows", type=int, default=30_000, help="of each file")
    given = parser.parse_args(arguments)
    found: dict[str, Used] = {}
    print(f"{given.files} files of {given.rows:,} rows, {DAYS} partitions by day; zstd")
    print(f"{'':34}{'CPU s':>8}{'wall s':>8}{'RSS MB':>8}{'files':>7}{'MB':>8}")
    for name in WAYS:
        with tempfile.TemporaryDirectory() as folder:
            child(__name__, "make", name, folder, str(given.files), str(given.rows))
            used = child(__name__, "run", name, folder)
            files, size_bytes, rows, total = _content(name, Path(folder))
        expected = given.files * given.rows
        if (rows, total) != (expected, expected * (expected - 1) // 2):
            raise SystemExit(f"{name}: {rows:,} rows instead of {expected:,}")
        found[name] = replace(used, rows=rows, size_mb=size_bytes / MIB)
        figures = f"{used.work_cpu_s:8.2f}{used.wall_s:8.2f}{used.peak_rss_mb:8.0f}"
        print(f"{name:34}{figures}{files:7}{size_bytes / MIB:8.1f}", flush=True)
    ours, theirs = found["ours"], found["pyiceberg, read and overwrite"]
    print_targets(
        [
            _below("CPU of pyiceberg's", ours.work_cpu_s / theirs.work_cpu_s, 1.0),
            _below("peak memory in MB", ours.peak_rss_mb, 512.0),
        ]
    )


def _below(what: str, measured: float, wanted: float) -> Target:
    return Target(what, f"at most {wanted:g}", f"{measured:.2f}", measured <= wanted)


def _content(name: str, folder: Path) -> tuple[int, int, int, int]:
    """Files, bytes, rows and the sum of ids, as DuckDB reads what the table names."""
    duckdb = import_module("duckdb")
    paths = _delta_paths(folder) if name.startswith("delta-rs") else _iceberg_paths(folder)
    listed = ", ".join(f"'{path}'" for path in paths)
    query = f"select count(*), sum(id)::bigint from read_parquet([{listed}])"
    ((rows, total),) = duckdb.connect().execute(query).fetchall()
    return len(paths), sum(path.stat().st_size for path in paths), rows, total


def _iceberg_paths(folder: Path) -> list[Path]:
    with _catalog(folder) as catalog:
        tasks = list(catalog.load_table("n.t").scan().plan_files())
    return [Path(task.file.file_path.removeprefix("file://")) for task in tasks]


def _delta_paths(folder: Path) -> list[Path]:
    deltalake = import_module("deltalake")
    table = deltalake.DeltaTable(str(folder / "delta"))
    return [Path(uri.removeprefix("file://")) for uri in table.file_uris()]


def _catalog(folder: Path) -> Any:
    sql = import_module("pyiceberg.catalog.sql")
    return sql.SqlCatalog("lake", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/warehouse")


def _rows(number: int, count: int) -> Any:
    """Rows of one file, all of one day: numbers, times, few texts and many."""
    np, pa = import_module("numpy"), import_module("pyarrow")
    numbers = np.arange(number * count, (number + 1) * count)
    chosen = np.random.default_rng(number)
    day = FIRST + timedelta(days=number % DAYS)
    seconds = np.sort(chosen.integers(0, 86_400_000_000, count)) + round(day.timestamp() * 1_000_000)
    kinds = np.array(["view", "click", "order", "return"])[chosen.integers(0, 4, count)]
    return pa.table(
        {
            "id": pa.array(numbers),
            "ts": pa.array(seconds).cast(pa.timestamp("us", tz="UTC")),
            "kind": pa.array(kinds.tolist()),
            "url": pa.array([f"https://shop.example/items/{each}" for each in chosen.integers(0, 1 << 40, count)]),
            "amount": pa.array(chosen.normal(50, 20, count)),
        }
    )


def _make(name: str, folder: Path, files: int, rows: int) -> None:
    if name.startswith("delta-rs"):
        deltalake = import_module("deltalake")
        properties = deltalake.WriterProperties(compression="ZSTD")
        for number in range(files):
            deltalake.write_deltalake(
                str(folder / "delta"), _with_day(_rows(number, rows)), mode="append", partition_by=["day"],
                writer_properties=properties,
            )  # fmt: skip
        return
    partitioning, transforms = import_module("pyiceberg.partitioning"), import_module("pyiceberg.transforms")
    with _catalog(folder) as catalog:
        catalog.create_namespace("n")
        table = catalog.create_table("n.t", _rows(0, 1).schema)
        with table.update_spec() as update:
            update.add_field("ts", transforms.DayTransform(), "ts_day")
        assert isinstance(table.spec(), partitioning.PartitionSpec)
        for number in range(files):
            table.append(_rows(number, rows))


def _with_day(rows: Any) -> Any:
    pa = import_module("pyarrow")
    return rows.append_column("day", rows["ts"].cast(pa.date32()))


def ours(folder: Path) -> Used:
    """Our compaction, everything compared as by default."""
    return _ours(folder, verify=True)


def ours_by_numbers(folder: Path) -> Used:
    """Likewise, with ``verify: rows``."""
    return _ours(folder, verify=False)


def _ours(folder: Path, *, verify: bool) -> Used:
    compaction = import_module("datalake_assets.lake.iceberg.iceberg_compaction")
    with _catalog(folder) as catalog:
        table = catalog.load_table("n.t")
        watch = Stopwatch()
        rules = compaction.table_rules(table, force=True, target_file_bytes=128 * MIB)
        settings = compaction.rewrite_settings(table, rules, verify=verify)
        compaction.compact_table(table, rules, settings, now=datetime.now(UTC))
        return watch.stop()


def pyiceberg(folder: Path) -> Used:
    """What its issue tracker tells people to do: read all, and overwrite it."""
    with _catalog(folder) as catalog:
        table = catalog.load_table("n.t")
        watch = Stopwatch()
        table.overwrite(table.scan().to_arrow())
        return watch.stop()


def delta_rs(folder: Path) -> Used:
    """delta-rs' OPTIMIZE of a Delta table with the same rows."""
    deltalake = import_module("deltalake")
    table = deltalake.DeltaTable(str(folder / "delta"))
    properties = deltalake.WriterProperties(compression="ZSTD")
    watch = Stopwatch()
    table.optimize.compact(target_size=128 * MIB, writer_properties=properties)
    return watch.stop()


WAYS: dict[str, Callable[[Path], Used]] = {
    "ours": ours,
    "ours, verify: rows": ours_by_numbers,
    "pyiceberg, read and overwrite": pyiceberg,
    "delta-rs optimize (a Delta table)": delta_rs,
}


def _work() -> None:
    """In the process that is measured, and in the one before that makes its table."""
    what, name, folder, *rest = sys.argv[1:]
    if what == "make":
        watch = Stopwatch()
        _make(name, Path(folder), *map(int, rest))
        print_used(watch.stop())
    else:
        print_used(WAYS[name](Path(folder)))


if __name__ == "__main__":
    _work()
