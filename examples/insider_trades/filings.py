# ruff: noqa: INP001  a program of one file
"""Sends generated Form 4 filings to a queue: ``python filings.py QUEUE --count 500 --bad 5``.

A Form 4 says within two business days what a director, an officer or a large owner traded in the shares of the company.
The rows have the fields of EDGAR's own data sets; companies, people and prices are made up, from a seed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import boto3

ISSUERS = [("ACME", "Acme Corp"), ("GLBX", "Globex Inc"), ("INIT", "Initech Holdings"), ("UMBR", "Umbrella plc")]
OWNERS = ["Ada Byron", "Grace Murray", "Alan Mathison", "Edsger Wybe", "Barbara Jane"]
TITLES = ["CEO", "CFO", "General Counsel", None]
CODES = "PPSSSAMF"
#: Filings are of the last so many days.
DAYS = 60
#: SQS limit: 10 messages per batch (AWS API reference).
BATCH = 10


def filings(count: int, *, bad: int = 0, seed: int = 4, now: datetime | None = None) -> Iterator[str]:
    """Bodies of messages, the first ``bad`` of which are none."""
    chance, end = random.Random(seed), now or datetime.now(UTC)  # noqa: S311  made up, and the same again
    for number in range(count):
        filing = _filing(number, chance, end)
        if number < bad:
            filing["shares"] = "many"
        yield json.dumps(filing)


def _filing(number: int, chance: random.Random, end: datetime) -> dict[str, Any]:
    ticker, issuer = chance.choice(ISSUERS)
    filed = end - timedelta(seconds=chance.randrange(DAYS * 86_400))
    title = chance.choice(TITLES)
    shares = chance.randrange(1, 50_000)
    return {
        "accession_number": f"{1_000_000_000 + number:010}-{filed:%y}-{number % 1_000_000:06}",
        "filed_at": filed.isoformat(timespec="seconds"),
        "transaction_date": f"{filed - timedelta(days=chance.randrange(3)):%Y-%m-%d}",
        "ticker": ticker,
        "issuer": issuer,
        "owner": chance.choice(OWNERS),
        "is_director": title is None,
        "is_officer": title is not None,
        "officer_title": title,
        "transaction_code": chance.choice(CODES),
        "shares": shares,
        "price": str(Decimal(chance.randrange(10_000, 5_000_000)) / 10_000),
        "shares_after": shares + chance.randrange(1_000_000),
    }


def main() -> None:
    """Makes the queue if it is not there, and sends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("queue")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--bad", type=int, default=0, help="filings that cannot be read")
    chosen = parser.parse_args()
    region, endpoint = os.environ.get("AWS_REGION"), os.environ.get("DATALAKE_SQS_ENDPOINT")
    sqs = boto3.client("sqs", region_name=region, endpoint_url=endpoint)
    url = sqs.create_queue(QueueName=chosen.queue)["QueueUrl"]
    bodies = list(filings(chosen.count, bad=chosen.bad))
    for begin in range(0, len(bodies), BATCH):
        some = bodies[begin : begin + BATCH]
        entries = [{"Id": str(number), "MessageBody": body} for number, body in enumerate(some)]
        failed = sqs.send_message_batch(QueueUrl=url, Entries=entries).get("Failed")
        if failed:
            raise SystemExit(f"not sent: {failed}")
    print(f"sent {len(bodies):,} filings to {chosen.queue}")  # noqa: T201  a command


if __name__ == "__main__":
    main()
