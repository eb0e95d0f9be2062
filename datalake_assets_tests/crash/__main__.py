"""``python -m datalake_assets_tests.crash --rounds 100 --store local|s3``: kills exports and counts every row."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import tempfile
import time
from pathlib import Path

from datalake_assets.demo.s3 import S3Server
from datalake_assets_tests.crash.child import Forker
from datalake_assets_tests.crash.cli_rounds import CliRounds
from datalake_assets_tests.crash.rounds import Rounds

#: Kills of each protocol step in a full run of 100 rounds.
ENOUGH = 5
FULL = 100


def main() -> None:
    """Runs the rounds, a tenth of them through the command line, and prints what was hit."""
    parser = argparse.ArgumentParser(description="Kills exports and counts every row.")
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
        forker = stack.enter_context(Forker(dict(os.environ)))
        rounds = Rounds(lakes, forker, endpoint=environment.get("DATALAKE_S3_ENDPOINT"), seed=chosen.seed)
        stack.callback(rounds.close)
        rounds.prepare()
        for number in range(chosen.rounds - chosen.rounds // 10):
            print(f"{number + 1}: {rounds.round()}", flush=True)
        commands = CliRounds(f"{lakes}/cli", environment, seed=chosen.seed)
        stack.callback(commands.close)
        for number in range(chosen.rounds // 10):
            print(f"command {number + 1}: {commands.round()}", flush=True)
    print(f"{chosen.rounds} rounds on {chosen.store} in {time.monotonic() - began:.0f} s: no row lost, none twice")
    print(
        "kills by step:", ", ".join(f"{rounds.hits[step]} {step}" for step in (*rounds.steps, "discard", "roll back"))
    )
    print("kills by moment:", ", ".join(f"{count} {moment}" for moment, count in rounds.moments.items()))
    print("exports:", dict(rounds.happened), "; commands:", dict(commands.happened))
    rare = [step for step in rounds.steps if rounds.hits[step] < ENOUGH]
    assert chosen.rounds < FULL or not rare, f"too few kills of {rare}"


if __name__ == "__main__":
    main()
