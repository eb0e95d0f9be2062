"""What commands pay before they work: CPU seconds of whole processes, beside the interpreter and the libraries below.

The lake has one day of a stream in one file, with nothing due: so commands do next to nothing, and what they use is
what it takes to start them. One more compaction merges twenty files of 50 rows, for which Arrow and numpy are loaded.
The floor is measured in the same rounds: the machine's own pace is in all figures alike.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.measuring import Target, answer, print_targets

__all__ = ["main"]

#: What nothing of ours can be below, and what it consists of.
FLOORS = {
    "python": "pass",
    "python, click": "import click",
    "python, click, pydantic": "import click, pydantic\nclass A(pydantic.BaseModel): x: int = 0",
    "python, pyarrow and numpy": "import pyarrow.lib",
}
#: As issue #15 asks for, in CPU seconds of the process; a compaction that merges has none of its own.
COMMANDS: dict[str, tuple[tuple[str, ...], float | None]] = {
    "--help": (("--help",), 0.10),
    "verify": (("verify",), 0.30),
    "report": (("report",), 0.30),
    "compact, nothing due": (("compact", "events"), 0.30),
    "compact, 20 files to merge": (("compact", "events", "--force"), None),
}
#: What telling Dagster may cost on top, in CPU seconds.
TELLING_S = 0.30


def main(arguments: Sequence[str]) -> None:
    """Runs everything in turn, several rounds, and prints the median of each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default: %(default)s)")
    rounds = parser.parse_args(arguments).rounds
    with tempfile.TemporaryDirectory(prefix="datalake-bench-") as folder:
        used = _measured(Path(folder), rounds)
    for name in FLOORS:
        print(f"      {name}: {used[name]:.3f} s")
    targets = [_target(name, used[name], most_s) for name, (_, most_s) in COMMANDS.items()]
    more = used[_told(_MERGING)] - used[_MERGING]
    print_targets([*targets, _target("telling Dagster of it, more", more, TELLING_S)])


_MERGING = "compact, 20 files to merge"


def _told(name: str) -> str:
    return f"{name}, with DAGSTER_HOME"


def _target(name: str, cpu_s: float, most_s: float | None) -> Target:
    wanted = "none" if most_s is None else f"at most {most_s:g} s"
    return Target(name, wanted, f"{cpu_s:.3f} s of CPU", most_s is None or cpu_s <= most_s)


def _measured(folder: Path, rounds: int) -> dict[str, float]:
    used: dict[str, list[float]] = {}
    idle = folder / "idle"
    for lake, files in ((idle, 1), (folder / "due", 20)):
        lake.mkdir()
        answer("benchmarks.compaction_lakes", str(lake), str(files), "50")
    for number in range(rounds):
        for name, code in FLOORS.items():
            used.setdefault(name, []).append(_cpu_s([sys.executable, "-c", code]))
        for name, (command, _) in COMMANDS.items():
            lake = _due(folder, f"{number}") if name == _MERGING else idle
            used.setdefault(name, []).append(_cpu_s([*_CLI, *command, "--lake", str(lake)], home=None))
        lake, home = _due(folder, f"{number}-told"), folder / "home"
        telling = [*_CLI, *COMMANDS[_MERGING][0], "--lake", str(lake)]
        used.setdefault(_told(_MERGING), []).append(_cpu_s(telling, home=home))
    return {name: median(figures) for name, figures in used.items()}


_CLI = (sys.executable, "-m", "datalake_assets.cli")


def _due(folder: Path, name: str) -> Path:
    """A lake in which files are due; each compaction gets one of its own."""
    return Path(shutil.copytree(folder / "due", folder / f"due-{name}"))


def _cpu_s(command: Sequence[str], *, home: Path | None = None) -> float:
    """CPU seconds of a process that must succeed."""
    environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    if home is not None:
        environment["DAGSTER_HOME"] = str(home)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return used.ru_utime + used.ru_stime
