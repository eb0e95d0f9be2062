"""Small files of several writers and shapes into few: ours beside Polars, which is the best peer of `compaction`.

Each writer, with its defaults, makes as many files of each shape of the same tables. They are merged as files of a lake
of ours, which knows their digests (own), and as files of a folder that is adopted, so that nobody vouches for their
bytes (adopted). Beside them is what the codec alone takes, as no rewrite undercuts it that compresses pages anew: files
decompressed twice (floor full) or once (floor pages), joined, compressed, and that decompressed. CPU-s after imports,
medians of rounds in turns, each in a process of its own; in parentheses by Polars. DuckDB reads inputs and outputs:
their rows, and the sum of hashes of all values, have to be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import duckdb
import pyarrow as pa

from benchmarks.compaction_ours import FOLDER
from benchmarks.compaction_peers import CODECS_FULL, CODECS_PAGES
from benchmarks.compaction_rewrites import INPUT_CODEC, clone, scratch
from benchmarks.compaction_writers_inputs import SHAPES, WRITERS, absence, land, tables_of, write
from benchmarks.measuring import Target, Used, answer, child, print_targets

__all__ = ["main"]

#: As issue #15 asks for, of the best peer's CPU.
WANTED = {"full": 0.9, "pages": 0.65}
#: Whose files they are when they are merged.
KINDS = ("own", "adopted")
POLARS = "Polars"
FLOORS = {"floor full": CODECS_FULL, "floor pages": CODECS_PAGES}

Output = tuple[float, Path]


def main(arguments: Sequence[str]) -> None:
    """Measures every writer with every shape, and prints figures and targets."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks compaction_writers", description=__doc__)
    parser.add_argument("--files", type=int, default=1_000, help="of each writer and shape (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contender (default: %(default)s)")
    parser.add_argument("--writers", nargs="+", choices=WRITERS, default=[*WRITERS])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*SHAPES])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS], help="whose files (default: both)")
    chosen = parser.parse_args(arguments)
    for writer in chosen.writers:
        if missing := absence(writer):
            print(f"{writer} is left out: there is no {missing}")
    writers = [writer for writer in chosen.writers if not absence(writer)]
    names = [f"{kind} {verify}" for kind in chosen.kinds for verify in WANTED]
    heads = "".join(f"{name:>12}" for name in FLOORS) + "".join(f"{name:>16}" for name in names)
    print(f"{chosen.files:,} files each; CPU-s, and by Polars\n{'':20}{'KB a file':>10}{POLARS:>8}{heads}", flush=True)
    judged: list[Target] = []
    for shape in chosen.shapes:
        tables = tables_of(shape, chosen.files)
        for writer in writers:
            with scratch() as folder:
                judged += _measured(folder, shape, writer, tables, kinds=chosen.kinds, rounds=chosen.rounds)
    print()
    print_targets(judged)


def _measured(
    folder: Path, shape: str, writer: str, tables: Sequence[pa.Table], *, kinds: Sequence[str], rounds: int
) -> list[Target]:
    """One line of figures, and what is held to targets."""
    inputs = folder / "adopted" / FOLDER
    inputs.mkdir(parents=True)
    files = write(writer, tables, inputs)
    land(files, tables, folder / "own")
    size_kb = sum(each.stat().st_size for each in files) / len(files) / 1000
    contenders: dict[str, Callable[[Path], Output]] = {POLARS: partial(_by_peer, "Polars sink", inputs)}
    contenders |= {name: partial(_by_peer, peer, inputs) for name, peer in FLOORS.items()}
    for kind in kinds:
        for verify in WANTED:
            contenders[f"{kind} {verify}"] = partial(_by_us, folder / kind, verify=verify, files=len(files))
    used, wrong = _in_turns(contenders, folder / "run", wanted=_values(inputs), rounds=rounds)
    cpu_s = {name: median(each) for name, each in used.items()}
    what = f"{writer}, {shape}"
    print(f"{what:20}{size_kb:10.0f}{_figures(cpu_s, contenders)}", flush=True)
    judged = [
        Target(f"{what}: {kind} {verify} by Polars", f"at most {most}", f"{ratio:.2f}", ratio <= most)
        for kind in kinds
        for verify, most in WANTED.items()
        for ratio in [cpu_s[f"{kind} {verify}"] / cpu_s[POLARS]]
    ]
    told = f"others by {', '.join(sorted(wrong))}" if wrong else "all"
    return [*judged, Target(f"{what}: rows and values as in the inputs", "all", told, not wrong)]


def _in_turns(
    contenders: Mapping[str, Callable[[Path], Output]], folder: Path, *, wanted: object, rounds: int
) -> tuple[Mapping[str, list[float]], set[str]]:
    """CPU seconds of each round by contender, without floors that could not be had, and who changed values."""
    used, wrong, going = dict[str, list[float]](), set[str](), dict(contenders)
    for _ in range(rounds):
        for name, rewrite in [*going.items()]:
            os.sync()  # what was written before is not written back while this one is measured
            try:
                cpu_s, output = rewrite(folder)
            except SystemExit:
                if name not in FLOORS:
                    raise
                del going[name]
            else:
                used.setdefault(name, []).append(cpu_s)
                wrong |= {name} if _values(output) != wanted else set()
            shutil.rmtree(folder)
    return used, wrong


def _figures(cpu_s: Mapping[str, float], names: Sequence[str] | Mapping[str, object]) -> str:
    told = ""
    for name in names:
        if name == POLARS:
            told += f"{cpu_s[name]:8.2f}"
        elif name in FLOORS:
            told += f"{cpu_s[name]:12.2f}" if name in cpu_s else f"{'-':>12}"
        else:
            told += f"{cpu_s[name]:9.2f} ({cpu_s[name] / cpu_s[POLARS]:.2f})"
    return told


def _by_peer(peer: str, inputs: Path, output: Path) -> Output:
    output.mkdir()
    used = child("benchmarks.compaction_peers", peer, str(inputs), str(output), INPUT_CODEC)
    return used.work_cpu_s, output


def _by_us(lake: Path, copy: Path, *, verify: str, files: int) -> Output:
    clone(lake, copy)
    settings = {"adopted": lake.name == "adopted", "verify": verify, "max_files": files}
    found = answer("benchmarks.compaction_ours", str(copy), json.dumps(settings))
    if found["skipped"] or found["files_before"] != files or found["files_after"] >= files:
        raise SystemExit(f"not all {files} files were merged: {found}")
    return Used(**found["used"]).work_cpu_s, copy / FOLDER


def _values(folder: Path) -> object:
    query = "SELECT count(*), sum(hash(t)::HUGEINT) FROM read_parquet(?, hive_partitioning = false) t"
    return duckdb.connect().execute(query, [f"{folder}/**/*.parquet"]).fetchall()
