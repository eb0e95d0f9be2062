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
from pathlib import Path
from typing import Any

from datalake_assets.demo.s3_server import S3Server
from datalake_assets_tests.crash.child import ICEBERG, Forker
from datalake_assets_tests.crash.cli_rounds import CliRounds
from datalake_assets_tests.crash.compact_rounds import CompactRounds
from datalake_assets_tests.crash.iceberg_rounds import IcebergRounds
from datalake_assets_tests.crash.rounds import Rounds

#: Kills of each protocol step in a full run of 100 rounds.
ENOUGH = 5
FULL = 100
KINDS: dict[str, Any] = {"export": Rounds, "compact": CompactRounds, "iceberg": IcebergRounds}


def main() -> None:
    """Runs the rounds and prints what was hit."""
    parser = argparse.ArgumentParser(
        description="Kills exports, compactions or upkeep of Iceberg tables, and counts rows."
    )
    parser.add_argument("--what", choices=[*KINDS], default="export")
    parser.add_argument("--rounds", type=int, default=FULL)
    parser.add_argument("--store", choices=["local", "s3"], default="local")
    parser.add_argument("--seed", type=int, default=0)
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
        forker = stack.enter_context(Forker(dict(os.environ) | ({ICEBERG: "1"} if chosen.what == "iceberg" else {})))
        rounds = KINDS[chosen.what](lakes, forker, endpoint=environment.get("DATALAKE_S3_ENDPOINT"), seed=chosen.seed)
        stack.callback(rounds.close)
        rounds.prepare()
        commands = chosen.rounds // 10 if chosen.what == "export" else 0  # a tenth through the command line
        for number in range(chosen.rounds - commands):
            print(f"{number + 1}: {rounds.round()}", flush=True)
        if commands:
            _kill_commands(f"{lakes}/cli", environment, commands, seed=chosen.seed)
    print(f"{chosen.rounds} rounds on {chosen.store} in {time.monotonic() - began:.0f} s: no row lost, none twice")
    print("kills by step:", _figures(rounds.hits, (*rounds.steps, "discard", "roll back")))
    print("kills by moment:", _figures(rounds.moments, rounds.moments))
    print("happened:", _figures(rounds.happened, rounds.happened))
    rare = [step for step in rounds.steps if rounds.hits[step] < ENOUGH]
    assert chosen.rounds < FULL or not rare, f"too few kills of {rare}"


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
