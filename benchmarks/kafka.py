"""A topic to Parquet: CPU, rows a second and memory of ours, of a plain loop and of dlt, in one run.

The broker is the one that tests use, a process of its own, whose CPU does not count. Ours lands each message exactly
once into day partitions; the loop writes what comes into files and remembers nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from datalake_assets_tests.sources.kafka.kafka_server import KafkaServer, TestTopic

__all__ = ["main"]

PARTITIONS, DAYS, SIZE = 8, 5, 200


def main(arguments: Sequence[str]) -> None:
    """Sends, and reads it all by each way in turn."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks kafka", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=["ours", "loop", "dlt"])
    chosen = parser.parse_args(arguments)
    found: dict[str, list[list[float]]] = {way: [] for way in chosen.ways}
    with KafkaServer() as server:
        topic = server.topic(PARTITIONS)
        _send(topic, chosen.messages)
        for _ in range(chosen.rounds):
            for way, used in found.items():
                used.append(_read(way, server.servers, topic.name, chosen.messages))
    print(f"{chosen.messages:,} messages of {SIZE} bytes, {PARTITIONS} partitions; medians of {chosen.rounds} rounds")
    print(f"{'':6} {'CPU-s':>7} {'a million':>10} {'wall s':>7} {'rows/s':>9} {'MiB':>6}")
    for way, used in found.items():
        cpu, wall, peak, rows = (median(each) for each in zip(*used, strict=True))
        print(f"{way:6} {cpu:7.2f} {cpu / rows * 1e6:10.2f} {wall:7.1f} {rows / wall:9,.0f} {peak:6.0f}")


def _send(topic: TestTopic, count: int) -> None:
    per_partition = count // PARTITIONS
    for partition in range(PARTITIONS):
        topic.send([_body(partition * per_partition + number) for number in range(per_partition)], partition=partition)


def _body(number: int) -> str:
    at = f"2026-11-{1 + number % DAYS:02}T{number % 24:02}:00:00Z"
    body = {"n": number, "name": f"name {number % 1000}", "price": number % 997 / 4, "at": at, "note": ""}
    body["note"] = "x" * (SIZE - len(json.dumps(body)))
    return json.dumps(body)


def _read(way: str, servers: str, topic: str, count: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "lake").mkdir()
        command = [sys.executable, "-m", "benchmarks.kafka_peers", way, servers, topic, f"{folder}/lake"]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    used: list[float] = json.loads(answer)
    assert used[3] == count, f"{way} has {used[3]:,} rows"
    return used
