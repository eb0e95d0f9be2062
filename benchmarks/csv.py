"""A CSV file of 200 MB to Parquet, and to Parquet and Avro: the product beside the usual way and other libraries.

Each run is a process of its own, in turns, so that what else the machine does falls on all. CPU seconds are those of
the work, behind the imports; those of the whole process stand beside. The product finds the types of all values by
itself, keeps decimals exact, and puts bad rows aside; with ``declared`` it is told the types. ``lake`` lands the file
by a feed, in a folder a day, and stands beside the peers that make folders as well.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import boto3

from benchmarks.compaction_rewrites import PEERS_PYTHON
from benchmarks.csv_input import write_csv
from benchmarks.measuring import Target, Used, answer, evict_libraries, medians, print_targets
from datalake_assets.demo.s3_server import S3Server

__all__ = ["main"]

#: Both outputs by the product, and by the usual way.
OURS_BOTH, USUAL = "both declared", "usual"
#: Reads and writes S3 alone: it gets the file on a server of this machine, whose CPU seconds are not counted.
WRANGLER = "awswrangler"
OURS = ("lake", "lake declared", "both", OURS_BOTH, "parquet", "parquet declared")
#: Peers that write a folder a day, as a feed does, with types of a sample of rows, and of all rows; their rows are not
#: in order of time.
BY_DAY, ALL_ROWS = ("duckdb_by_day", "polars_by_day"), ("duckdb_by_day_all",)
PEERS = (USUAL, "pandas", "duckdb", "polars", "pyarrow", *BY_DAY, *ALL_ROWS, WRANGLER)
#: As issue #13 asks for.
WANTED_RATIO, WANTED_RSS_MB = 8.0, 300.0


def main(arguments: Sequence[str]) -> None:
    """Runs all variants in turns and prints the medians and the targets."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks csv", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200, help="size of the file (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each variant (default: %(default)s)")
    parser.add_argument("--only", nargs="*", help="these variants alone")
    parser.add_argument("--peers-python", type=Path, default=PEERS_PYTHON, help="the interpreter that has the peers")
    chosen = parser.parse_args(arguments)
    evict_libraries()
    evict_libraries(chosen.peers_python)
    with tempfile.TemporaryDirectory(prefix="datalake-bench-") as folder:
        place = Path(folder) / "drop"
        place.mkdir()
        source = place / "payments.csv"
        rows = write_csv(source, chosen.megabytes)
        print(f"{source.stat().st_size / 1e6:.0f} MB, {rows:,} rows\n")
        with ExitStack() as stack:
            served = stack.enter_context(_on_s3(source, Path(folder))) if _has_wrangler(chosen) else {}
            runs = _runs(source, Path(folder), chosen, served)
    _report({name: medians(each) for name, each in runs.items() if each}, rows=rows, repeats=chosen.repeats)


def _has_wrangler(chosen: argparse.Namespace) -> bool:
    """Whether awswrangler is asked for, and there."""
    python = str(chosen.peers_python) if chosen.peers_python.exists() else sys.executable
    wanted = not chosen.only or WRANGLER in chosen.only
    return (
        wanted and not subprocess.run([python, "-c", f"import {WRANGLER}"], capture_output=True, check=False).returncode
    )


@contextmanager
def _on_s3(source: Path, folder: Path) -> Iterator[dict[str, str]]:
    """Serves the file from S3; gives what awswrangler has to know."""
    with S3Server(folder / "s3") as server:
        environment = server.environment()
        client = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            region_name=environment["AWS_REGION"],
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        )
        client.upload_file(str(source), server.bucket, source.name)
        yield environment | {"BENCH_BUCKET": server.bucket, "AWS_ENDPOINT_URL": server.endpoint}


def _runs(source: Path, folder: Path, chosen: argparse.Namespace, environment: dict[str, str]) -> dict[str, list[Used]]:
    wanted = [name for name in (*OURS, *PEERS) if not chosen.only or name in chosen.only]
    if not environment:
        wanted = [name for name in wanted if name != WRANGLER]
    runs: dict[str, list[Used]] = {name: [] for name in wanted}
    for number in range(1, chosen.repeats + 1):
        for name in wanted:
            out = folder / "out"
            out.mkdir()
            if name in OURS:
                said = answer("benchmarks.csv_ours", name, str(source), str(out))
            else:
                python = str(chosen.peers_python) if chosen.peers_python.exists() else sys.executable
                told = environment if name == WRANGLER else {}
                said = answer("benchmarks.csv_peers", name, str(source), str(out), python=python, env=told)
            shutil.rmtree(out)
            runs[name].append(Used(**said))
            used = runs[name][-1]
            print(f"run {number}/{chosen.repeats} {name}: {used.work_cpu_s:.2f} CPU-s, {used.rows:,} rows", flush=True)
    return runs


def _report(result: dict[str, Used], *, rows: int, repeats: int) -> None:
    heads = f"{'CPU-s':>8}{'process':>8}{'wall s':>8}{'peak MiB':>10}{'out MiB':>9}{'rows':>12}"
    print(f"\nmedians of {repeats}\n{'':18}{heads}")
    for name, used in result.items():
        figures = (
            f"{used.work_cpu_s:8.2f}{used.cpu_s:8.2f}{used.wall_s:8.1f}{used.peak_rss_mb:10.0f}{used.size_mb:9.1f}"
        )
        print(f"{name:18}{figures}{used.rows:12,.0f}")
    targets = []
    if OURS_BOTH in result and USUAL in result:
        for name in ("both", OURS_BOTH):
            if name in result:
                ratio = result[USUAL].work_cpu_s / result[name].work_cpu_s
                what = f"CPU of the usual way by ours, both outputs ({name})"
                targets.append(Target(what, f"at least {WANTED_RATIO:g}", f"{ratio:.1f}", ratio >= WANTED_RATIO))
    plain = tuple(name for name in PEERS if name not in {USUAL, *BY_DAY, *ALL_ROWS})
    for name, beside in (
        *(("lake", ALL_ROWS), ("lake declared", BY_DAY)),
        *(("parquet", plain), ("parquet declared", plain)),
    ):
        peers = {peer: result[peer].work_cpu_s for peer in beside if peer in result}
        if peers and name in result:
            best, ours = min(peers, key=lambda peer: peers[peer]), result[name].work_cpu_s
            what, wanted = f"CPU-s of Parquet alone ({name})", f"no more than {peers[best]:.2f} of {best}"
            targets.append(Target(what, wanted, f"{ours:.2f}", ours <= peers[best]))
    for name in OURS:
        if name in result:
            peak = result[name].peak_rss_mb
            what = f"peak memory of ours ({name})"
            targets.append(Target(what, f"below {WANTED_RSS_MB:g} MiB", f"{peak:.0f} MiB", peak < WANTED_RSS_MB))
    landed = all(used.rows == rows for used in result.values())
    targets.append(Target("rows of all", f"{rows:,}", "the same" if landed else "others", landed))
    print()
    print_targets(targets)
