"""``python -m datalake_assets_tests.chaos --minutes 10``: kills Dagster's processes at random, and counts every row."""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

from datalake_assets_tests.chaos.rounds import Chaos


def main() -> None:
    """Runs it and prints what happened."""
    parser = argparse.ArgumentParser(description="Kills Dagster's processes at random while a lake is written.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="Empty or new, and kept afterwards.  [default: a temporary one]")
    chosen = parser.parse_args()
    logging.getLogger("datalake_assets").addHandler(logging.NullHandler())
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for line in Chaos(folder, seed=chosen.seed).run(seconds=60 * chosen.minutes):
            print(line, flush=True)


if __name__ == "__main__":
    main()
