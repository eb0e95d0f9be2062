"""``python -m benchmarks.csv_ours VARIANT CSV FOLDER``: the product on a CSV file."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.csv_input import COLUMNS
from benchmarks.measuring import Stopwatch, Used, print_used
from datalake_assets.feed import parse_feed
from datalake_assets.lake.store import open_store
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import load_settings
from datalake_assets.sources.files.file_conversion import Conversion, convert_files, destination_of, source_of
from datalake_assets.sources.files.file_reading import ReadingOptions
from datalake_assets.sources.systems import connect

__all__ = ["main"]


def main(variant: str, source: Path, folder: Path) -> None:
    """Runs one variant and prints what it used."""
    watch = Stopwatch()
    if variant.startswith("lake"):
        rows = _landed(source, folder, declared=variant.endswith("declared"))
    else:
        rows = _converted(source, folder, declared=variant.endswith("declared"), only_parquet="both" not in variant)
    used: Used = watch.stop()
    size = sum(each.stat().st_size for each in folder.rglob("*") if each.suffix in {".parquet", ".avro"})
    print_used(replace(used, rows=rows, size_mb=size / (1 << 20)))


def _landed(source: Path, folder: Path, *, declared: bool) -> int:
    """Through a feed: the ledger, quarantine, a partition a day, and commits."""
    said = {"type": "files", "location": str(source.parent), "min_age_s": 0, "columns": COLUMNS if declared else {}}
    feed = parse_feed(json.dumps({"name": "s", "kind": "stream", "time_column": "event_time", "source": said}))
    store = open_store(str(folder))
    table = open_table(store, feed)
    plan = table.plan()
    with connect("files", load_settings()) as files:
        return table.write(files.read(feed, plan.request), partitions=plan.partitions, run_id="bench").rows_added


def _converted(source: Path, folder: Path, *, declared: bool, only_parquet: bool) -> int:
    """As ``datalake convert`` does it."""
    types = dict(COLUMNS) if declared else {}
    conversion = Conversion(
        ("parquet",) if only_parquet else ("parquet", "avro"),
        ReadingOptions(declared=frozenset(types)),
        types=types,
    )
    files = source_of(str(source), "*", endpoint=None)
    return sum(
        each.rows for each in convert_files(files, destination_of(str(folder), endpoint=None), conversion, workers=1)
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
