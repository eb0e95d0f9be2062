"""Small files of an Iceberg table into few: ours beside pyiceberg, delta-rs, Spark and the Rust library.

``python -m benchmarks iceberg [--files N] [--rows N]``. Each runs in a process of its own on a table of its own, which
it finds ready; afterwards all rows are added up by DuckDB, which took part in none. First on a local disk with a SQLite
catalog, then on the real S3 server with its REST catalog, requests counted by a proxy. One run: wall times depend on
what the machine does besides, CPU times hardly.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.compaction_rewrites import PEERS_PYTHON
from benchmarks.measuring import Stopwatch, Target, Used, answer, child, print_targets, print_used

__all__ = ["main", "make"]

MIB = 1 << 20
DAYS = 4
FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def main(arguments: Sequence[str] = ()) -> None:
    """Prints a line for each, and the targets."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks iceberg", description=__doc__)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--rows", type=int, default=30_000, help="of each file")
    parser.add_argument("--peers-python", type=Path, default=PEERS_PYTHON, help="the interpreter that has the peers")
    given = parser.parse_args(arguments)
    print(f"{given.files} files of {given.rows:,} rows, {DAYS} partitions by day; zstd")
    found = _locally(given.files, given.rows, given.peers_python) | _on_s3(given.files, given.rows, given.peers_python)
    ours = found["ours"]
    best = min(found, key=lambda name: found[name].work_cpu_s if not name.startswith("ours") else float("inf"))
    print_targets(
        [
            _below(f"CPU of the best other's ({best})", ours.work_cpu_s / found[best].work_cpu_s, 0.5),
            _below("peak memory in MB", ours.peak_rss_mb, 512.0),
        ]
    )


def _locally(files: int, rows: int, peers: Path) -> dict[str, Used]:
    print(f"\nlocal disk, SQLite catalog{'':8}{'CPU s':>8}{'wall s':>8}{'RSS MB':>8}{'files':>7}{'MB':>8}")
    found = {}
    for name in (*WAYS, SPARK):
        if name == SPARK and (lack := _lack("spark", peers)):
            print(f"{name:34}  not run: there is no {lack}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            child(__name__, "make", name, folder, str(files), str(rows))
            if name == SPARK:
                used = child("benchmarks.iceberg_peers", "spark", folder, python=str(peers))
            else:
                used = child(__name__, "run", name, folder)
            found[name] = _judged(
                name, used, _delta_paths(folder) if name == DELTA else _iceberg_paths(folder), files * rows
            )
    return found


def _on_s3(files: int, rows: int, peers: Path) -> dict[str, Used]:
    print(f"\nS3 server, REST catalog{'':11}{'CPU s':>8}{'wall s':>8}{'RSS MB':>8}{'files':>7}{'MB':>8}  requests")
    found = {}
    for name in (OURS_ON_S3, RUST):
        if name == RUST and (lack := _lack("rust", peers)):
            print(f"{name:34}  not run: there is no {lack}")
            continue
        with tempfile.TemporaryDirectory() as folder, _s3_server(folder) as (access, counted):
            child(__name__, "make", name, access, str(files), str(rows))
            counted()
            if name == RUST:
                used = child("benchmarks.iceberg_peers", "rust", access, python=str(peers))
            else:
                used = child(__name__, "run", name, access)
            requests = counted()
            paths = answer(__name__, "fetch", name, access, folder)
            told = "; ".join(f"{where} {_counts(each)}" for where, each in requests.items())
            found[name] = _judged(name, used, [Path(path) for path in paths], files * rows, told)
    return found


def _counts(requests: dict[str, int]) -> str:
    return ", ".join(f"{count} {method}" for method, count in sorted(requests.items())) or "none"


def _lack(name: str, peers: Path) -> str:
    if not peers.exists():
        return f"{peers}: first `make bench`"
    return str(answer("benchmarks.iceberg_peers", "missing", name, python=str(peers)))


@contextmanager
def _s3_server(folder: str) -> Iterator[tuple[str, Callable[[], dict[str, dict[str, int]]]]]:
    """How to reach a new one, and a function that tells the requests since it was called last."""
    command = [sys.executable, "-m", "benchmarks.iceberg_s3_server", f"{folder}/s3"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        to_server, from_server = process.stdin, process.stdout
        assert to_server is not None
        assert from_server is not None

        def counted() -> dict[str, dict[str, int]]:
            to_server.write("\n")
            to_server.flush()
            found: dict[str, dict[str, int]] = json.loads(from_server.readline())
            return found

        yield from_server.readline().strip(), counted
        to_server.close()


def _judged(name: str, used: Used, paths: Sequence[Path], expected: int, told: str = "") -> Used:
    """Prints a line, once all rows are found to be there, as DuckDB reads what the table names."""
    duckdb = import_module("duckdb")
    listed = ", ".join(f"'{path}'" for path in paths)
    query = f"select count(*), sum(id)::bigint from read_parquet([{listed}])"
    ((rows, total),) = duckdb.connect().execute(query).fetchall()
    if (rows, total) != (expected, expected * (expected - 1) // 2):
        raise SystemExit(f"{name}: {rows:,} rows instead of {expected:,}")
    size_mb = sum(path.stat().st_size for path in paths) / MIB
    figures = f"{used.work_cpu_s:8.2f}{used.wall_s:8.2f}{used.peak_rss_mb:8.0f}"
    print(f"{name:34}{figures}{len(paths):7}{size_mb:8.1f}  {told}".rstrip(), flush=True)
    return replace(used, rows=rows, size_mb=size_mb)


def _below(what: str, measured: float, wanted: float) -> Target:
    return Target(what, f"at most {wanted:g}", f"{measured:.2f}", measured <= wanted)


def _iceberg_paths(folder: str) -> list[Path]:
    with _catalog(folder) as catalog:
        tasks = list(catalog.load_table("n.t").scan().plan_files())
    return [Path(urlsplit(task.file.file_path).path) for task in tasks]


def _delta_paths(folder: str) -> list[Path]:
    deltalake = import_module("deltalake")
    table = deltalake.DeltaTable(f"{folder}/delta")
    return [Path(uri.removeprefix("file://")) for uri in table.file_uris()]


def _fetched(access: str, folder: str) -> list[str]:
    """The table's data files, copied to a local folder."""
    with _catalog(access) as catalog:
        table = catalog.load_table("n.t")
        paths = []
        for number, task in enumerate(table.scan().plan_files()):
            paths.append(f"{folder}/{number}.parquet")
            with table.io.new_input(task.file.file_path).open() as opened:
                Path(paths[-1]).write_bytes(opened.read())
    return paths


def _catalog(place: str) -> Any:
    """The catalog of a local folder; or, of what `benchmarks.iceberg_s3_server` says, its REST catalog."""
    if not place.startswith("{"):
        sql = import_module("pyiceberg.catalog.sql")
        return sql.SqlCatalog("lake", uri=f"sqlite:///{place}/catalog.db", warehouse=f"file://{place}/warehouse")
    access, rest = json.loads(place), import_module("pyiceberg.catalog.rest")
    properties = {
        "uri": access["catalog"],
        "warehouse": "s3://warehouse",
        "credential": f"{access['key']}:{access['secret']}",
        "oauth2-server-uri": f"{access['catalog']}/v1/oauth/tokens",
        "s3.endpoint": access["endpoint"],
        "s3.access-key-id": access["key"],
        "s3.secret-access-key": access["secret"],
        "s3.region": access["region"],
    }
    return rest.RestCatalog("lake", **properties)


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


def make(name: str, folder: str, files: int, rows: int) -> None:
    """The table that is to be compacted: so many files of so many rows."""
    if name == DELTA:
        deltalake = import_module("deltalake")
        properties = deltalake.WriterProperties(compression="ZSTD")
        for number in range(files):
            deltalake.write_deltalake(
                f"{folder}/delta", _with_day(_rows(number, rows)), mode="append", partition_by=["day"],
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


def ours(folder: str) -> Used:
    """Our compaction, everything compared as by default."""
    return _ours(folder, verify="full")


def ours_by_pages(folder: str) -> Used:
    """Likewise, with ``verify: pages``."""
    return _ours(folder, verify="pages")


def ours_by_numbers(folder: str) -> Used:
    """Likewise, with ``verify: rows``."""
    return _ours(folder, verify="rows")


def _ours(folder: str, *, verify: str) -> Used:
    compaction = import_module("datalake_assets.lake.iceberg.iceberg_compaction")
    with _catalog(folder) as catalog:
        table = catalog.load_table("n.t")
        watch = Stopwatch()
        rules = compaction.table_rules(table, force=True, target_file_bytes=128 * MIB)
        settings = compaction.rewrite_settings(table, rules, verify=verify)
        compaction.compact_table(table, rules, settings, now=datetime.now(UTC))
        return watch.stop()


def pyiceberg(folder: str) -> Used:
    """What its issue tracker tells people to do: read all, and overwrite it."""
    with _catalog(folder) as catalog:
        table = catalog.load_table("n.t")
        watch = Stopwatch()
        table.overwrite(table.scan().to_arrow())
        return watch.stop()


def delta_rs(folder: str) -> Used:
    """delta-rs' OPTIMIZE of a Delta table with the same rows."""
    deltalake = import_module("deltalake")
    table = deltalake.DeltaTable(f"{folder}/delta")
    properties = deltalake.WriterProperties(compression="ZSTD")
    watch = Stopwatch()
    table.optimize.compact(target_size=128 * MIB, writer_properties=properties)
    return watch.stop()


DELTA, SPARK, RUST = "delta-rs optimize (a Delta table)", "Spark rewrite_data_files", "iceberg-compaction (Rust)"
OURS_ON_S3 = "ours, on S3"
WAYS: dict[str, Callable[[str], Used]] = {
    "ours": ours,
    "ours, verify: pages": ours_by_pages,
    "ours, verify: rows": ours_by_numbers,
    "pyiceberg, read and overwrite": pyiceberg,
    DELTA: delta_rs,
}


def _work() -> None:
    """In the process that is measured, in the one before that makes its table, and the one after that fetches it."""
    what, name, place, *rest = sys.argv[1:]
    if what == "make":
        watch = Stopwatch()
        make(name, place, *map(int, rest))
        print_used(watch.stop())
    elif what == "fetch":
        print(json.dumps(_fetched(place, *rest)))
    else:
        print_used(WAYS.get(name, ours)(place))


if __name__ == "__main__":
    _work()
