"""A CSV file of so many megabytes: customers' payments, the same for every run."""

from __future__ import annotations

import csv
import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

__all__ = ["COLUMNS", "write_csv"]

#: The columns, with the types that a person would declare.
COLUMNS = {
    "id": "int64",
    "name": "string",
    "amount": "decimal(18,2)",
    "event_time": "timestamptz",
    "active": "boolean",
    "comment": "string",
    "score": "double",
    "region": "string",
}
_BEGIN = datetime(2025, 1, 15, tzinfo=UTC)
_WORDS = (
    "alpha",
    "beta",
    "gamma",
    "delta",
    "eps, comma",
    "zeta [x]",
    "eta",
    "théta",
    'io"ta',
    "kappa",
    "lam'bda",
    "mu",
)
#: Distinct lines that are repeated with other ids, so that making the file takes no longer than reading it.
_LINES = 50_000


def write_csv(path: Path, megabytes: int) -> int:
    """Writes the file, and returns its rows."""
    draw, rows = random.Random(7), 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        while file.tell() < megabytes << 20:
            writer.writerows(_row(draw, number) for number in range(rows, rows + _LINES))
            rows += _LINES
    return rows


def _row(draw: random.Random, number: int) -> list[object]:
    at = _BEGIN + timedelta(milliseconds=draw.randrange(7 * 86_400_000))
    return [
        draw.randrange(10**9),
        f"customer name {draw.randrange(100_000)}",
        f"{draw.randrange(10**5)}.{draw.randrange(100):02}",
        f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z",
        draw.choice(("true", "false")),
        f"{_WORDS[number % 12]} {_WORDS[number * 7 % 12]}",
        repr(draw.random() * 1000),
        draw.choice(("eu-west-1", "us-east-1", "ap-south-1")),
    ]


if __name__ == "__main__":
    print(write_csv(Path(sys.argv[1]), int(sys.argv[2])))
