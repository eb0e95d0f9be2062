"""A table of PostgreSQL into a lake: the product beside `pandas.read_sql(chunksize=10000)` and dlt, in turns.

Each run is a process of its own. CPU seconds are those of the work in that process; the server's, which all cost alike,
are not among them. The product reads on by a number, commits day by day and keeps decimals exact.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence

from benchmarks.measuring import Target, Used, child, medians, print_targets
from datalake_assets_tests.sources.sql.database_servers import Postgres

__all__ = ["main"]

OURS, PEERS = "ours", ("pandas", "dlt", "dlt pyarrow")
TABLE = """CREATE TABLE events (id bigint PRIMARY KEY, customer text, amount numeric(18, 2), at timestamptz,
active boolean, note text, score double precision, region bigint);
INSERT INTO events SELECT i, 'customer ' || i % 50000, (i * 7919 % 100000000) / 100.0,
timestamptz '2025-01-01' + (i * 7919 % 604800) * interval '1 second', i % 3 = 0,
repeat('note ', (i % 12)::int), i / 7.0, i % 97 FROM generate_series(1, {rows}::bigint) i"""


def main(arguments: Sequence[str]) -> None:
    """Runs all variants in turns and prints the medians and the targets."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks sql", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the table (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each variant (default: %(default)s)")
    parser.add_argument("--only", nargs="*", help="these variants alone")
    chosen = parser.parse_args(arguments)
    wanted = [name for name in (OURS, *PEERS) if not chosen.only or name in chosen.only]
    runs: dict[str, list[Used]] = {name: [] for name in wanted}
    with Postgres() as server:
        database = server.database()
        server.run(database, TABLE.format(rows=chosen.rows))
        for number in range(1, chosen.repeats + 1):
            for name in wanted:
                module = "benchmarks.sql_ours" if name == OURS else "benchmarks.sql_peers"
                with tempfile.TemporaryDirectory(prefix="datalake-bench-") as folder:
                    used = child(module, name, server.url(database), folder)
                runs[name].append(used)
                print(
                    f"run {number}/{chosen.repeats} {name}: {used.work_cpu_s:.2f} CPU-s, {used.rows:,} rows", flush=True
                )
                assert used.rows == chosen.rows
    _report({name: medians(each) for name, each in runs.items()}, repeats=chosen.repeats)


def _report(result: dict[str, Used], *, repeats: int) -> None:
    print(f"\nmedians of {repeats}\n{'':14}{'CPU-s':>8}{'wall s':>8}{'peak MiB':>10}{'out MiB':>9}")
    for name, used in result.items():
        print(f"{name:14}{used.work_cpu_s:8.2f}{used.wall_s:8.1f}{used.peak_rss_mb:10.0f}{used.size_mb:9.1f}")
    if OURS in result:
        mine = result[OURS].work_cpu_s
        print_targets(
            [
                Target(f"CPU of {name} by ours", "at least 1", f"{used.work_cpu_s / mine:.1f}", used.work_cpu_s >= mine)
                for name, used in result.items()
                if name != OURS
            ]
        )
