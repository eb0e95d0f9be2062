"""Makes taxi trips in the schema of the TLC's yellow trip records, and their zone lookup, as CSV files by month.

The values are drawn, from a fixed seed: fares follow the meter of the rate card, tips are shares of what was paid by
card, and a few rows are bad in ways that the real files have. With the TLC's own files in their place nothing else
changes: https://www.nyc.gov/site/tlc/about/tlc-trip-record-data.page has them as Parquet, one ``COPY … TO 'x.csv'`` of
DuckDB each.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

TRIP_COLUMNS = (
    "VendorID",
    "tpep_pickup_datetime",
    "tpep_dropoff_datetime",
    "passenger_count",
    "trip_distance",
    "RatecodeID",
    "store_and_fwd_flag",
    "PULocationID",
    "DOLocationID",
    "payment_type",
    "fare_amount",
    "extra",
    "mta_tax",
    "tip_amount",
    "tolls_amount",
    "improvement_surcharge",
    "total_amount",
    "congestion_surcharge",
    "Airport_fee",
)
ZONE_COLUMNS = ("LocationID", "Borough", "Zone", "service_zone")
#: A few of the 265 taxi zones, by their real numbers, with how often trips begin there.
ZONES: dict[int, tuple[str, str, str, int]] = {
    1: ("EWR", "Newark Airport", "EWR", 1),
    43: ("Manhattan", "Central Park", "Yellow Zone", 6),
    48: ("Manhattan", "Clinton East", "Yellow Zone", 8),
    79: ("Manhattan", "East Village", "Yellow Zone", 9),
    90: ("Manhattan", "Flatiron", "Yellow Zone", 6),
    107: ("Manhattan", "Gramercy", "Yellow Zone", 7),
    132: ("Queens", "JFK Airport", "Airports", 12),
    138: ("Queens", "LaGuardia Airport", "Airports", 8),
    142: ("Manhattan", "Lincoln Square East", "Yellow Zone", 9),
    161: ("Manhattan", "Midtown Center", "Yellow Zone", 13),
    162: ("Manhattan", "Midtown East", "Yellow Zone", 10),
    163: ("Manhattan", "Midtown North", "Yellow Zone", 7),
    170: ("Manhattan", "Murray Hill", "Yellow Zone", 8),
    181: ("Brooklyn", "Park Slope", "Boro Zone", 2),
    186: ("Manhattan", "Penn Station/Madison Sq West", "Yellow Zone", 9),
    230: ("Manhattan", "Times Sq/Theatre District", "Yellow Zone", 9),
    236: ("Manhattan", "Upper East Side North", "Yellow Zone", 12),
    237: ("Manhattan", "Upper East Side South", "Yellow Zone", 13),
    239: ("Manhattan", "Upper West Side South", "Yellow Zone", 9),
    255: ("Brooklyn", "Williamsburg (North Side)", "Boro Zone", 2),
}
AIRPORTS = {1, 132, 138}
#: One row in so many cannot be read, and one is of a trip that cannot have been.
UNREADABLE, IMPOSSIBLE = 500, 200


def write_zones(folder: Path) -> Path:
    """Writes ``taxi_zone_lookup.csv``."""
    path = folder / "taxi_zone_lookup.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\r\n")  # as the TLC's is
        writer.writerow(ZONE_COLUMNS)
        writer.writerows((number, *zone[:3]) for number, zone in ZONES.items())
    return path


def write_trips(folder: Path, month: datetime, count: int, *, seed: int = 7) -> Path:
    """Writes the trips that begin in a month, in their order, as ``yellow_tripdata_YYYY-MM.csv``."""
    path = folder / f"yellow_tripdata_{month:%Y-%m}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(TRIP_COLUMNS)
        writer.writerows(trips(month, count, random.Random(f"{seed} {month:%Y-%m}")))
    return path


def trips(month: datetime, count: int, rng: random.Random) -> Iterator[list[object]]:
    """The trips of a month, by the time of their pickup."""
    length_s = int((next_month(month) - month).total_seconds())
    zones, weights = list(ZONES), [zone[3] for zone in ZONES.values()]
    for number, second in enumerate(sorted(rng.randrange(length_s) for _ in range(count)), 1):
        row = _trip(month + timedelta(seconds=second), rng, zones, weights)
        if number % UNREADABLE == 0:
            row[rng.choice((4, 10))] = rng.choice(("n/a", "12,5", "--"))  # no number
        elif number % IMPOSSIBLE == 0:
            _spoil(row, rng)
        yield row


def _trip(pickup: datetime, rng: random.Random, zones: list[int], weights: list[int]) -> list[object]:
    start, end = rng.choices(zones, weights, k=2)
    miles = round(min(rng.lognormvariate(0.7, 0.8) + (9 if {start, end} & AIRPORTS else 0), 60), 2)
    minutes = max(1.0, miles / rng.uniform(7, 16) * 60)
    flat = {start, end} & {132} and rng.random() < 0.4
    fare = 70.0 if flat else round(3.0 + 0.7 * int(miles * 5 * 0.85 + minutes * 0.35), 2)
    night, rush = pickup.hour >= 20 or pickup.hour < 6, 16 <= pickup.hour < 20 and pickup.weekday() < 5
    extra = 1.0 if night else 2.5 if rush else 0.0
    congestion, airport = (2.5 if ZONES[start][2] == "Yellow Zone" else 0.0), (1.75 if start in AIRPORTS else 0.0)
    tolls = 6.94 if {start, end} & AIRPORTS and rng.random() < 0.5 else 0.0
    by_card = rng.random() < 0.8
    before_tip = fare + extra + 0.5 + tolls + 1.0 + congestion + airport
    tip = round(before_tip * rng.choice((0, 0.1, 0.15, 0.2, 0.2, 0.2, 0.25, 0.3)), 2) if by_card else 0.0
    passengers = rng.choices((1, 2, 3, 4, 5, 6, ""), (70, 15, 4, 3, 2, 2, 4))[0]
    return [
        rng.choice((1, 2, 2)),
        f"{pickup:%Y-%m-%d %H:%M:%S}",
        f"{pickup + timedelta(minutes=minutes):%Y-%m-%d %H:%M:%S}",
        passengers,
        miles,
        2 if flat else 1,
        "Y" if rng.random() < 0.005 else "N",
        start,
        end,
        1 if by_card else 2,
        *map(_money, (fare, extra, 0.5, tip, tolls, 1.0, before_tip + tip, congestion, airport)),
    ]


def _money(amount: float) -> str:
    """As the files have it: without zeros at the end."""
    return f"{amount:.2f}".rstrip("0").rstrip(".")


def _spoil(row: list[object], rng: random.Random) -> None:
    """Makes a trip one that cannot have been, as some of the real ones are."""
    what = rng.randrange(3)
    if what == 0:
        row[10] = f"-{row[10]}"  # a negative fare
    elif what == 1:
        ended = datetime.fromisoformat(str(row[1])) - timedelta(minutes=5)
        row[2] = f"{ended:%Y-%m-%d %H:%M:%S}"  # before it began
    else:
        row[4] = 12345.67  # miles


def next_month(month: datetime) -> datetime:
    """The first day of the month after."""
    return (month + timedelta(days=32)).replace(day=1)


def generate(folder: Path, *, first: datetime, months: int, per_month: int) -> list[Path]:
    """Writes trips of some months and the zones; what is there already stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, month = [write_zones(folder)], first
    for _ in range(months):
        paths.append(write_trips(folder, month, per_month))
        month = next_month(month)
    return paths


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=datetime.fromisoformat, default=datetime(2024, 1, 1))
    parser.add_argument("--months", type=int, default=12)
    parser.add_argument("--per-month", type=int, default=10_000)
    chosen = parser.parse_args()
    for path in generate(chosen.folder, first=chosen.first, months=chosen.months, per_month=chosen.per_month):
        print(path)


if __name__ == "__main__":
    main()
