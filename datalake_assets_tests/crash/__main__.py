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
from datalake_assets_tests.crash.change_rounds import CHANGES, ChangeRounds
from datalake_assets_tests.crash.child import CHANGE, ICEBERG, MERGE, Forker
from datalake_assets_tests.crash.cli_rounds import CliRounds
from datalake_assets_tests.crash.compact_rounds import CompactRounds
from datalake_assets_tests.crash.iceberg_rounds import WAYS, IcebergRounds
from datalake_assets_tests.crash.merge_rounds import MergeRounds, Sizes
from datalake_assets_tests.crash.rounds import Rounds
from datalake_assets_tests.operations.shared_catalogs import ready_rest_catalog

#: Kills of each protocol step in a full run of 100 rounds.
ENOUGH = 5
FULL = 100
KINDS: dict[str, Any] = {
    "export": Rounds,
    "compact": CompactRounds,
    "iceberg": IcebergRounds,
    "merge": MergeRounds,
    "change": ChangeRounds,
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
    chosen = parser.parse_args()
    logging.getLogger("datalake_assets").addHandler(logging.NullHandler())
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        lakes, environment = f"{folder}/lakes", {}
        Path(lakes).mkdir()
        options: dict[str, Any] = {}
        if chosen.store == "s3":
            server = stack.enter_context(S3Server(Path(folder) / "s3", grace_s=1))
            lakes, environment = f"s3://{server.bucket}/crash", server.environment()
            os.environ.update(environment)
        if chosen.what == "iceberg":
            options["ways"] = chosen.way or WAYS
        if chosen.what == "change":
            options["ways"] = chosen.way or CHANGES
        if chosen.what == "merge":
            options["sizes"] = Sizes(chosen.changes, chosen.keys, chosen.batches, chosen.kills)
        if chosen.catalog == "rest":
            options["rest"] = ready_rest_catalog(stack.enter_context(S3Server(Path(folder) / "s3", grace_s=1))).theirs
        own = {"iceberg": {ICEBERG: "1"}, "merge": {MERGE: "1"}, "change": {CHANGE: "1"}}.get(chosen.what, {})
        forker = stack.enter_context(Forker(dict(os.environ) | own))
        endpoint = environment.get("DATALAKE_S3_ENDPOINT")
        rounds = KINDS[chosen.what](lakes, forker, endpoint=endpoint, seed=chosen.seed, **options)
        chosen.rounds = getattr(rounds, "rounds", chosen.rounds)
        stack.callback(rounds.close)
        rounds.prepare()
        commands = chosen.rounds // 10 if chosen.what == "export" else 0  # a tenth through the command line
        for number in range(chosen.rounds - commands):
            print(f"{number + 1}: {rounds.round()}", flush=True)
        if commands:
            _kill_commands(f"{lakes}/cli", environment, commands, seed=chosen.seed)
    where = chosen.store if chosen.what != "iceberg" else f"{chosen.catalog} ({', '.join(chosen.way or WAYS)})"
    print(f"{chosen.rounds} rounds on {where} in {time.monotonic() - began:.0f} s: no row lost, none twice")
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
