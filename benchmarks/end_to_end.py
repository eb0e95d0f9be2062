"""The demo's feeds, four streams and four tables, through Dagster into a new lake, in this one process.

Measured after the imports: much is imported only when it is first needed, so a first pass into another new lake is done
before, and not counted. Counted is all else that a first export costs: Dagster's new instance (SQLite files in a new
``DAGSTER_HOME``), the embedded server, the registry, one run per feed with its checks.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pyarrow.dataset  # noqa: F401  imported by the first export otherwise

from benchmarks.lakes import rows_and_size_mb
from benchmarks.measuring import Stopwatch, Target, Used, print_targets
from datalake_assets.cli.export import ExportRequest, all_feeds, export_in_turn, reads_ahead
from datalake_assets.cli.output import ExportProgress
from datalake_assets.cli.session import Session, prepare_home
from datalake_assets.core.facts import ExportResult
from datalake_assets.defs.runtime import open_instance
from datalake_assets.demo.demo_feeds import demo_feeds
from datalake_assets.demo.demo_lake import prepare_demo
from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer  # noqa: F401  imported by the server's start otherwise
from datalake_assets.sources.ksqldb.declaration import KsqlDBSource
from datalake_assets.sources.ksqldb.source import KsqlDB  # noqa: F401  imported by the first export otherwise

__all__ = ["main"]

#: As issues #2 and #15 ask for: with Dagster's history in SQLite, and in memory.
WANTED_S, WANTED_IN_MEMORY_S = 5.0, 3.0


def main(arguments: Sequence[str]) -> None:
    """Exports all feeds once and prints what each took, and the targets."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks end_to_end", description=__doc__)
    parser.add_argument("--records", type=int, default=1000, help="rows of each stream (default: %(default)s)")
    parser.add_argument(
        "--ephemeral", action="store_true", help="keep Dagster's history in memory, not in SQLite files"
    )
    chosen = parser.parse_args(arguments)
    records = chosen.records
    print("first pass, which imports what it needs")
    one_pass(records, ephemeral=chosen.ephemeral)
    print("\nsecond pass, counted")
    results, used, rows = one_pass(records, ephemeral=chosen.ephemeral)
    print(f"\n{used.wall_s:.2f} s, {used.cpu_s - used.startup_cpu_s:.2f} CPU-s, {used.peak_rss_mb:.0f} MiB")
    silences = ", ".join(f"{each:g} s" for each in _silences())
    print(f"push queries have no end but silence, here of {silences}: they are begun before their turn\n")
    wanted_s = WANTED_IN_MEMORY_S if chosen.ephemeral else WANTED_S
    failed = [result for result in results if result.error]
    print_targets(
        [
            Target("all feeds", f"less than {wanted_s:g} s", f"{used.wall_s:.2f} s", used.wall_s < wanted_s),
            Target("rows in streams", f"{4 * records:,}", f"{rows['streams']:,}", rows["streams"] == 4 * records),
            Target("rows in tables", "some", f"{rows['tables']:,}", rows["tables"] > 0),
            Target("failed feeds", "none", str(len(failed)), not failed),
        ]
    )


def _silences() -> list[float]:
    """Seconds for which each of the demo's push queries waits for rows that do not come."""
    feeds = [feed for feed in demo_feeds(dt.date(2025, 1, 1)) if feed.ends_by_silence]
    return [feed.source.idle_s for feed in feeds if isinstance(feed.source, KsqlDBSource)]


def one_pass(records: int, *, ephemeral: bool) -> tuple[list[ExportResult], Used, dict[str, int]]:
    """One export of all feeds into a new lake, with a new history: the results, what it took, and rows by kind."""
    with tempfile.TemporaryDirectory(prefix="datalake-bench-") as folder:
        lake = Path(folder) / "lake"
        lake.mkdir()
        os.environ["DAGSTER_HOME"] = str(Path(folder) / "dagster")
        watch = Stopwatch()
        results = export(str(lake), records, ephemeral=ephemeral)
        used = watch.stop()
        rows = {name: rows_and_size_mb(lake / name)[0] for name in ("streams", "tables")}
    return results, used, rows


def export(lake: str, records: int, *, ephemeral: bool) -> list[ExportResult]:
    """What `datalake demo` does, without its console, its queue and its marts."""
    session = Session(lake)
    with _timed("lake and feeds"):
        for feed in demo_feeds(prepare_demo(session.store, records).start):
            session.registry.add(feed)
        feeds, request = all_feeds(session).feeds, ExportRequest()
    prepare_home()
    with (
        session.serving({"ksqldb"}),
        ExportProgress() as progress,
        reads_ahead(session, feeds, request) as ahead,
    ):
        ahead.begin(0)
        with _timed("Dagster's instance"):
            instance = dg.DagsterInstance.ephemeral() if ephemeral else open_instance()
        with instance:
            return export_in_turn(session, feeds, request, progress, instance=instance, ahead=ahead)


@contextmanager
def _timed(what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    print(f"{what:34}{time.perf_counter() - began:6.2f} s", flush=True)
