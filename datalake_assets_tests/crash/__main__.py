"""``python -m datalake_assets_tests.crash --rounds 100 --store local|s3``: kills and counts every row."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datalake_assets.demo.s3_server import S3Server
from datalake_assets_tests.crash.broker_rounds import BrokerRounds
from datalake_assets_tests.crash.change_rounds import CHANGES, ChangeRounds
from datalake_assets_tests.crash.child import (
    CHANGE,
    DLT,
    FILES,
    ICEBERG,
    MARTS,
    MERGE,
    QUEUE,
    SHARDS,
    SINKS,
    SQL,
    TOPIC,
    Forker,
)
from datalake_assets_tests.crash.cli_rounds import CliRounds
from datalake_assets_tests.crash.compact_rounds import CompactRounds
from datalake_assets_tests.crash.dlt_rounds import DltRounds
from datalake_assets_tests.crash.file_rounds import FileRounds
from datalake_assets_tests.crash.iceberg_rounds import WAYS, IcebergRounds
from datalake_assets_tests.crash.mart_rounds import MartRounds
from datalake_assets_tests.crash.merge_rounds import MergeRounds, Sizes
from datalake_assets_tests.crash.queue_rounds import Load, QueueRounds
from datalake_assets_tests.crash.ray_rounds import RayRounds
from datalake_assets_tests.crash.rounds import Rounds
from datalake_assets_tests.crash.shard_rounds import ShardRounds
from datalake_assets_tests.crash.sink_rounds import SinkRounds
from datalake_assets_tests.crash.sql_rounds import SqlRounds, Table
from datalake_assets_tests.crash.topic_rounds import TopicRounds
from datalake_assets_tests.operations.shared_catalogs import ready_rest_catalog

#: Kills of each protocol step in a full run of 100 rounds.
ENOUGH = 5
FULL = 100
#: What tells the children which tasks they are for, where not the usual ones.
WARM = {
    "iceberg": ICEBERG,
    "merge": MERGE,
    "change": CHANGE,
    "queue": QUEUE,
    "files": FILES,
    "marts": MARTS,
    "sql": SQL,
    "dlt": DLT,
    "topic": TOPIC,
    "sinks": SINKS,
    "shards": SHARDS,
}
KINDS: dict[str, Any] = {
    "ray": RayRounds,
    "export": Rounds,
    "compact": CompactRounds,
    "iceberg": IcebergRounds,
    "merge": MergeRounds,
    "change": ChangeRounds,
    "queue": QueueRounds,
    "files": FileRounds,
    "marts": MartRounds,
    "sql": SqlRounds,
    "dlt": DltRounds,
    "topic": TopicRounds,
    "broker": BrokerRounds,
    "sinks": SinkRounds,
    "shards": ShardRounds,
}


def main() -> None:
    """Runs the rounds and prints what was hit."""
    parser = argparse.ArgumentParser(
        description="Kills exports, compactions, merges, deletions, conversions or upkeep of tables, and counts rows."
    )
    parser.add_argument("--what", choices=[*KINDS], default="export")
    parser.add_argument("--rounds", type=int, default=FULL)
    parser.add_argument("--store", choices=["local", "s3"], default="local")
    parser.add_argument(
        "--way",
        choices=[*WAYS, *CHANGES],
        action="append",
        help="what is killed of Iceberg tables, or changes; else all",
    )
    parser.add_argument("--catalog", choices=["sqlite", "rest"], default="sqlite", help="of Iceberg tables")
    parser.add_argument("--seed", type=int, default=0)
    for name, default in asdict(Sizes()).items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"with --what merge; default: {default}")
    for name, default in asdict(Load()).items():
        how = {"action": "store_true"} if default is False else {"type": int, "default": default}
        parser.add_argument(f"--{name}", **how, help=f"with --what queue; default: {default}")
    for name, default in asdict(Table()).items():
        parser.add_argument(
            f"--{name}", type=type(default), default=default, help=f"with --what sql; default: {default}"
        )
    parser.add_argument("--idempotent", action="store_true", help="with --what broker: the producer is")
    chosen = parser.parse_args()
    logging.getLogger("datalake_assets").addHandler(logging.NullHandler())
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        lakes, environment = f"{folder}/lakes", {}
        Path(lakes).mkdir()
        if chosen.store == "s3":
            server = stack.enter_context(S3Server(Path(folder) / "s3", grace_s=1))
            lakes, environment = f"s3://{server.bucket}/crash", server.environment()
            os.environ.update(environment)
        options = _options(chosen)
        if chosen.catalog == "rest":
            options["rest"] = ready_rest_catalog(stack.enter_context(S3Server(Path(folder) / "s3", grace_s=1))).theirs
        own = {WARM[chosen.what]: "1"} if chosen.what in WARM else {}
        forker = stack.enter_context(Forker(dict(os.environ) | own))
        endpoint = environment.get("DATALAKE_S3_ENDPOINT")
        rounds = KINDS[chosen.what](lakes, forker, endpoint=endpoint, seed=chosen.seed, **options)
        chosen.rounds = getattr(rounds, "rounds", chosen.rounds)
        stack.callback(rounds.close)
        rounds.prepare()
        commands = chosen.rounds // 10 if chosen.what == "export" else 0  # a tenth through the command line
        chosen.rounds = _run(rounds, chosen.rounds - commands) + commands
        if commands:
            _kill_commands(f"{lakes}/cli", environment, commands, seed=chosen.seed)
    where = chosen.store if chosen.what != "iceberg" else f"{chosen.catalog} ({', '.join(chosen.way or WAYS)})"
    print(f"{chosen.rounds} rounds on {where} in {time.monotonic() - began:.0f} s: no row lost, none twice")
    print("kills by step:", _figures(rounds.hits, (*rounds.steps, "discard", "roll back")))
    print("kills by moment:", _figures(rounds.moments, rounds.moments))
    print("happened:", _figures(rounds.happened, rounds.happened))
    if chosen.what == "queue":
        assert rounds.hits.total() >= chosen.deaths, "the queue was empty before so many workers were killed"
    assert rounds.hits.total(), "nobody was killed"
    rare = [step for step in rounds.steps if rounds.hits[step] < ENOUGH]
    is_full = (chosen.deaths if chosen.what == "queue" else chosen.rounds) >= FULL and chosen.what != "sql"
    assert not (is_full and rare), f"too few kills of {rare}"


def _options(chosen: argparse.Namespace) -> dict[str, Any]:
    """What the rounds of one kind take besides."""
    if chosen.what in {"iceberg", "change"}:
        return {"ways": chosen.way or (WAYS if chosen.what == "iceberg" else CHANGES)}
    if chosen.what == "merge":
        return {"sizes": Sizes(chosen.changes, chosen.keys, chosen.batches, chosen.kills)}
    if chosen.what == "ray":
        return {"kills": chosen.kills}
    if chosen.what == "broker":
        return {"kills": chosen.kills, "is_idempotent": chosen.idempotent}
    if chosen.what == "sql":
        return {"table": Table(chosen.rows, chosen.killed, chosen.cursor)}
    return {"load": Load(chosen.messages, chosen.deaths, chosen.fifo)} if chosen.what == "queue" else {}


def _run(rounds: Any, most: int) -> int:
    """Runs so many rounds, or until they are done; returns how many."""
    for number in range(1, most + 1):
        print(f"{number}: {rounds.round()}", flush=True)
        if getattr(rounds, "is_done", False):
            return number
    return most


def _kill_commands(lake: str, environment: dict[str, str], rounds: int, *, seed: int) -> None:
    commands = CliRounds(lake, environment, seed=seed)
    with contextlib.closing(commands):
        for number in range(rounds):
            print(f"command {number + 1}: {commands.round()}", flush=True)
    print("commands:", _figures(commands.happened, commands.happened))


def _figures(counts: Counter[str], names: Iterable[str]) -> str:
    return ", ".join(f"{counts[name]:,} {name}" for name in names)


if __name__ == "__main__":
    main()
