"""Measures what the trips take as Parquet instead of CSV, and what queries read of them: bytes that the kernel counts.

Each codec gets a lake of its own, landed by the same feeds. Queries are pyarrow's, over the plain files; each runs in a
process of its own, which reads its counter (``rchar`` in ``/proc/self/io``, Linux) before and after.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

import pyarrow.csv as pc
import pyarrow.dataset as ds
from trips import TRIP_COLUMNS

HERE = Path(__file__).parent
CODECS = ("snappy", "zstd")


def land(lake: Path, data: Path, codec: str) -> Path:
    """Lands the trips as a feed, with what cannot be read in quarantine; returns the folder of its files."""
    # imported here, since the processes of queries do without
    from datalake_assets.feed import parse_feed
    from datalake_assets.lake.store import open_store
    from datalake_assets.lake.tables import open_table
    from datalake_assets.settings import load_settings
    from datalake_assets.sources.systems import connect

    lake.mkdir()
    document = json.loads((HERE / "feeds" / "yellow_trips.json").read_text(encoding="utf-8"))
    document["source"]["location"], document["format"]["compression"] = str(data), codec
    feed = parse_feed(json.dumps(document))
    table = open_table(open_store(str(lake)), feed)
    plan = table.plan()
    with connect("files", load_settings(lake=str(lake))) as source:
        table.write(source.read(feed, plan.request), partitions=plan.partitions, run_id="measure")
    return lake / feed.data_path


def revenue(folder: Path, *, month: tuple[int, int] | None, columns: list[str] | None) -> float:
    """The revenue of a month or of all, by columns or by whole rows."""
    where = None if month is None else (ds.field("pickup_year") == month[0]) & (ds.field("pickup_month") == month[1])
    scanned = ds.dataset(folder, partitioning="hive").to_table(columns=columns, filter=where)
    return float(sum(amount for amount in scanned["total_amount"].to_pylist() if amount is not None))


def revenue_of_csv(folder: Path) -> float:
    """The same of all CSV files: there is no way to read less."""
    total = 0.0
    for path in sorted(folder.glob("yellow_tripdata_*.csv")):
        wanted = pc.ConvertOptions(include_columns=["total_amount"], column_types=dict.fromkeys(TRIP_COLUMNS, "string"))
        total += sum(map(float, pc.read_csv(path, convert_options=wanted)["total_amount"].to_pylist()))
    return total


def counted() -> int:
    """Bytes that this process has read so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines())
    return int(fields["rchar"])


def read_by(what: str, folder: Path, month: tuple[int, int]) -> int:
    """Bytes that a query reads, in a process of its own."""
    asked = ["--query", what, "--folder", str(folder), "--month", f"{month[0]}-{month[1]:02}"]
    done = subprocess.run([sys.executable, __file__, *asked], capture_output=True, text=True, check=True)
    return int(done.stdout)


def answer(what: str, folder: Path, month: tuple[int, int]) -> int:
    """Runs a query; returns the bytes that it read."""
    columns = ["total_amount"]
    before = counted()
    if what == "csv":
        revenue_of_csv(folder)
    elif what == "all":
        revenue(folder, month=None, columns=None)
    elif what == "month":
        revenue(folder, month=month, columns=None)
    else:
        revenue(folder, month=month, columns=columns)
    return counted() - before


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--months", type=int, default=12)
    parser.add_argument("--per-month", type=int, default=10_000)
    parser.add_argument("--month", type=lambda text: tuple(map(int, text.split("-"))), default=(2024, 6))
    parser.add_argument("--query", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.query:
        print(answer(chosen.query, chosen.folder, chosen.month))
        return
    from flow import extract  # likewise

    data = chosen.data.resolve()
    extract(data, first=datetime(2024, 1, 1), months=chosen.months, per_month=chosen.per_month)
    csv_bytes = sum(path.stat().st_size for path in data.glob("yellow_tripdata_*.csv"))
    of_csv = read_by("csv", data, chosen.month)
    print(f"{'':8}{'bytes':>12}{'of CSV':>9}   read for the revenue: of all{'of a month':>14}{'its column':>14}")
    print(f"{'CSV':8}{csv_bytes:>12,}{'':9}{of_csv:>31,}{of_csv:>14,}{of_csv:>14,}")
    with tempfile.TemporaryDirectory() as lakes:
        for codec in CODECS:
            folder = land(Path(lakes, codec), data, codec)
            size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
            whole, month, column = (read_by(what, folder, chosen.month) for what in ("all", "month", "column"))
            print(f"{codec:8}{size:>12,}{size / csv_bytes - 1:>+9.1%}{whole:>31,}{month:>14,}{column:>14,}")
            saved = f"{month / whole - 1:+.1%} by months, {column / whole - 1:+.1%} by months and columns"
            print(f"{'':8}bytes scanned against all of it: {saved}; against CSV: {column / of_csv - 1:+.1%}")


if __name__ == "__main__":
    main()
