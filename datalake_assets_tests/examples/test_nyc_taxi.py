"""The batch flow, as its reader would run it: one command, then what stands in the files is what the CSV files say."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import duckdb
import pyarrow.dataset as ds
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "nyc_taxi"
MONTHS, TRIPS = 2, 1_000


class Webhook(BaseHTTPRequestHandler):
    """Keeps what it is told in ``server.told``."""

    def do_POST(self) -> None:
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def webhook() -> Iterator[tuple[str, list[dict[str, object]]]]:
    """A server that is told news; its URL, and what it was told."""
    with HTTPServer(("127.0.0.1", 0), Webhook) as server:
        server.told = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", server.told
        finally:
            server.shutdown()
            thread.join()


def run(script: str, *arguments: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DATALAKE_", "DAGSTER_"))}
    environment |= {"DAGSTER_HOME": str(home / "dagster"), "PYTHONWARNINGS": "ignore", **more}
    command = [sys.executable, str(EXAMPLE / script), *arguments]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=240, check=False)


def rows_of(folder: Path, *columns: str) -> list[tuple[object, ...]]:
    table = ds.dataset(folder, partitioning="hive").to_table(columns=list(columns))
    return sorted(zip(*(column.to_pylist() for column in table.columns), strict=True))


def is_readable(trip: dict[str, str]) -> bool:
    try:
        _ = Decimal(trip["fare_amount"]), float(trip["trip_distance"])
    except ArithmeticError:
        return False
    except ValueError:
        return False
    return True


def is_possible(trip: dict[str, str]) -> bool:
    began, ended = (datetime.fromisoformat(trip[f"tpep_{what}_datetime"]) for what in ("pickup", "dropoff"))
    return Decimal(trip["fare_amount"]) >= 0 and ended > began and 0 <= float(trip["trip_distance"]) <= 500


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_flow_lands_validates_joins_and_tells_and_a_repetition_changes_nothing(tmp_path: Path) -> None:
    said = ("--data", "data", "--lake", "lake", "--months", str(MONTHS), "--per-month", str(TRIPS))
    with webhook() as (url, told):
        first = run("flow.py", *said, home=tmp_path, DATALAKE_NOTIFY_WEBHOOK=url)
    assert first.returncode == 0, first.stdout + first.stderr
    assert ["NYC taxi trips are up to date" in json.dumps(each) for each in told] == [True]
    assert len(re.findall(r"^check \w+: passed$", first.stdout, re.MULTILINE)) == 4
    assert f"{MONTHS * 2:>5,} in quarantine" in first.stdout
    lake, data = tmp_path / "lake", tmp_path / "data"

    trips = [
        trip for path in sorted(data.glob("yellow_*.csv")) for trip in csv.DictReader(path.read_text().splitlines())
    ]
    lookup = csv.DictReader((data / "taxi_zone_lookup.csv").read_text().splitlines())
    zones = {zone["LocationID"]: zone["Zone"] for zone in lookup}
    good = [trip for trip in trips if is_readable(trip)]
    kept = [trip for trip in good if is_possible(trip)]
    assert len(trips) == MONTHS * TRIPS
    assert 0 < len(kept) < len(good) < len(trips)
    columns = ("picked_up_at", "pickup_zone", "dropoff_zone", "total_amount", "pickup_month")
    assert rows_of(lake / "marts" / "trips_enriched", *columns) == sorted(
        (
            at := datetime.fromisoformat(trip["tpep_pickup_datetime"]),
            zones[trip["PULocationID"]],
            zones[trip["DOLocationID"]],
            Decimal(trip["total_amount"]).quantize(Decimal("0.01")),
            at.month,
        )
        for trip in kept
    )
    reasons = Counter(reason for (reason,) in rows_of(lake / "marts" / "trips_rejected", "reason"))
    assert reasons.total() == len(good) - len(kept)
    with duckdb.connect(str(lake / "lake.duckdb"), read_only=True) as catalog:
        ((busiest, count),) = catalog.execute(
            "SELECT pickup_zone, trips FROM busiest_zones ORDER BY trips DESC, pickup_zone LIMIT 1"
        ).fetchall()
    begun = Counter(zones[trip["PULocationID"]] for trip in kept)
    assert (count, begun[busiest]) == (max(begun.values()), count)

    written = sorted(lake.rglob("*.parquet"))
    again = run("flow.py", *said, home=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert [path for path in sorted(lake.rglob("*.parquet")) if "tables" not in path.parts] == [
        path for path in written if "tables" not in path.parts
    ]


@pytest.mark.slow
def test_bad_months_keep_the_marts_from_being_made(tmp_path: Path) -> None:
    said = ("--data", "data", "--lake", "lake", "--months", "1", "--per-month", "200")
    assert run("trips.py", "data", "--months", "1", "--per-month", "200", home=tmp_path).returncode == 0
    (path,) = (tmp_path / "data").glob("yellow_*.csv")
    head, *lines = path.read_text().splitlines()
    fare = head.split(",").index("fare_amount")
    bad = [",".join([*fields[:fare], "-1", *fields[fare + 1 :]]) for fields in (line.split(",") for line in lines[:50])]
    path.write_text("\n".join([head, *bad, *lines[50:], ""]))

    done = run("flow.py", *said, home=tmp_path)

    assert done.returncode == 1
    assert "failed: possible_trips" in done.stdout
    assert not (tmp_path / "lake" / "marts").exists()


@pytest.mark.slow
def test_measurement_reads_less_of_a_month_than_of_all(tmp_path: Path) -> None:
    said = ("--data", "data", "--months", "3", "--per-month", "1500", "--month", "2024-02")
    done = run("measure.py", *said, home=tmp_path)

    assert done.returncode == 0, done.stderr
    for codec in ("snappy", "zstd"):
        (size, share, whole, month, column) = re.search(
            rf"^{codec} +([\d,]+) +-([\d.]+)% +([\d,]+) +([\d,]+) +([\d,]+)$", done.stdout, re.MULTILINE
        ).groups()
        counts = [int(text.replace(",", "")) for text in (column, month, whole)]
        assert float(share) > 50
        assert int(size.replace(",", "")) <= counts[2]
        assert counts == sorted(counts)
        assert counts[1] < counts[2] / 2
