# ruff: noqa: INP001  a program of one file
"""Sends generated Form 4 filings to a queue: ``python filings.py QUEUE --count 500 --bad 5``.

They are like those of `datalake demo`: with the fields of EDGAR's own data sets; companies, people and prices are made
up, from a seed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import boto3

from datalake_assets.demo.filings import filing

#: Filings are of the last so many days.
DAYS = 60
#: SQS limit: 10 messages per batch (AWS API reference).
BATCH = 10


def filings(count: int, *, bad: int = 0, seed: int = 4, now: datetime | None = None) -> Iterator[str]:
    """Bodies of messages, the first ``bad`` of which are none."""
    chance, end = random.Random(seed), now or datetime.now(UTC)  # noqa: S311  made up, and the same again
    for number in range(count):
        one = filing(number, chance, end - timedelta(seconds=chance.randrange(DAYS * 86_400)))
        if number < bad:
            one["shares"] = "many"
        yield json.dumps(one)


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
