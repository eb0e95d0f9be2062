"""Many small files of a day into few: ours beside the peers, on the same inputs and codec, in turns.

Each contender is a process of its own with both cores to itself; what the one before wrote is on disk by then. Inputs
are in the page cache. Ours is the whole of `HiveTable.compact`: plan, rewrite, verification, fsync, commit, removal of
the inputs. The peers only write.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.compaction_peers import (
    ARROW_ALONE,
    CODECS_FULL,
    CODECS_PAGES,
    CODECS_SYNCED,
    DECOMPRESSED,
    FLOORS,
    PEERS,
)
from benchmarks.measuring import Used, answer

__all__ = [
    "MEDIUM",
    "REENCODED",
    "TINY",
    "TINY_ZSTD",
    "Contender",
    "Result",
    "Run",
    "Workload",
    "clone",
    "contenders",
    "measure",
    "scratch",
    "size_mb",
]

#: Where `make bench` puts the peers: beside the environment of this interpreter.
PEERS_PYTHON = Path(f"{sys.prefix}-peers") / "bin" / "python"
#: Of a peer's run: one of them crashes now and then.
ATTEMPTS = 3
#: Of the inputs.
INPUT_CODEC = "snappy"
#: Rounds of reading for each of rewriting: readers differ by a few hundredths, and so do two readings of the same.
READINGS = 4


@dataclass(frozen=True, slots=True)
class Workload:
    """Inputs and what is to become of them.

    Attributes:
        name: For people.
        files: Input files.
        rows: Rows of each.
        codec: Of the output.
        ours: Our settings, by name; the first is what users get, and what is held to the targets.
        read_by: Who reads the outputs, of `benchmarks.compaction_reading`.
    """

    name: str
    files: int
    rows: int
    codec: str
    ours: Mapping[str, Mapping[str, Any]]
    read_by: tuple[str, ...] = ()


#: What users get, who choose nothing.
OURS = "ours"
_VERIFY: Mapping[str, Mapping[str, Any]] = {
    OURS: {"verify": "full"},
    "ours, verify=pages": {"verify": "pages"},
    "ours, verify=rows": {"verify": "rows"},
}
#: The way that is taken where the kernel was not built.
_BY_ARROW: Mapping[str, Mapping[str, Any]] = {"ours, no kernel": {"native": False}}
_ZSTD = {"compression": "zstd", "kernel": "reencode"}
_ADOPTED: Mapping[str, Mapping[str, Any]] = {
    "ours, adopted": {"adopted": True},
    "ours, adopted, pages": {"adopted": True, "verify": "pages"},
    "ours, adopted, rows": {"adopted": True, "verify": "rows"},
}
_FLOOR_OF = {ARROW_ALONE: _BY_ARROW, DECOMPRESSED: _ADOPTED}
TINY = Workload(
    "tiny",
    1_000,
    1_060,
    "snappy",
    {**_VERIFY, **_BY_ARROW},
    read_by=("DuckDB", "pyarrow", "Polars", "fastparquet", "Spark"),
)
TINY_ZSTD = Workload(
    "tiny-zstd", 1_000, 1_060, "zstd", {name: {**settings, "compression": "zstd"} for name, settings in _VERIFY.items()}
)
MEDIUM = Workload("medium", 200, 60_000, "snappy", {**_VERIFY, **_ADOPTED}, read_by=("DuckDB", "pyarrow"))
REENCODED = Workload(
    "medium-zstd",
    200,
    60_000,
    "zstd",
    {
        **{name: {**settings, **_ZSTD} for name, settings in _VERIFY.items()},
        "ours, profile=compact": {"verify": "full", "profile": "compact", **_ZSTD},
    },
)
WORKLOADS = {workload.name: workload for workload in (TINY, TINY_ZSTD, MEDIUM, REENCODED)}


@dataclass(frozen=True, slots=True)
class Contender:
    """Somebody who rewrites.

    Attributes:
        name: For people.
        python: The interpreter that has it.
        settings: Ours; None for a peer.
    """

    name: str
    python: str
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One rewrite, and what its output is like.

    Attributes:
        used: What it used.
        size_mb: Its output.
        files: Its output files.
        kernel: Ours only.
    """

    used: Used
    size_mb: float
    files: int
    kernel: str = ""


@dataclass(slots=True)
class Result:
    """All runs of one contender.

    Attributes:
        contender: Who.
        runs: One per round.
        rows_are_same: Number and values of the rows are those of the inputs.
        in_order: Rows are in the order of time within each file.
        failures: Runs that did not end well, and were repeated.
        reading: CPU seconds of reading the output in each round of that, by reader and by query.
    """

    contender: Contender
    runs: list[Run] = field(default_factory=list)
    rows_are_same: bool = True
    in_order: bool = True
    failures: int = 0
    reading: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    def median(self, figure: str) -> float:
        """Of a figure of `Run` or of its `Used`."""
        return median(self.each(figure))

    def each(self, figure: str) -> list[float]:
        """A figure of `Run` or of its `Used`, by round."""
        return [getattr(run if hasattr(run, figure) else run.used, figure) for run in self.runs]


def contenders(workload: Workload, *, python: Path = PEERS_PYTHON) -> list[Contender]:
    """Ours and all peers that can be had; says which cannot."""
    found = [Contender(name, sys.executable, settings) for name, settings in workload.ours.items()]
    own = ("pyarrow", *FLOORS) if python.exists() else tuple(PEERS)  # pyarrow's way with the same pyarrow as ours
    for name, (module, _) in PEERS.items():
        if name in _FLOOR_OF and not _FLOOR_OF[name].keys() <= workload.ours.keys():
            continue  # it is the floor of that way alone
        if name in (CODECS_FULL, CODECS_PAGES, CODECS_SYNCED) and workload.codec == INPUT_CODEC:
            continue  # nothing has to be compressed again
        if name not in own:
            found.append(Contender(name, str(python)))
        elif find_spec(module):
            found.append(Contender(name, sys.executable))
    return found


def measure(workload: Workload, who: Sequence[Contender], *, rounds: int) -> dict[str, Result]:
    """Every contender in every round, in turns; without the peers that kept failing.

    Their outputs of the first round are kept, and read afterwards.
    """
    results = {contender.name: Result(contender) for contender in who}
    with scratch() as folder:
        lake = folder / "lake"
        lake.mkdir()
        answer("benchmarks.compaction_lakes", str(lake), str(workload.files), str(workload.rows))
        wanted = answer("benchmarks.compaction_reading", str(lake), "values")
        outputs: dict[str, Path] = {}
        for number in range(1, rounds + 1):
            for name, result in list(results.items()):
                kept = folder / f"output-{len(outputs)}" if _is_read(workload, name) and name not in outputs else None
                if not _add_run(result, lake, workload.codec, folder / "run", wanted, kept=kept):
                    del results[name]
                    print(f"  {name} failed {ATTEMPTS} times in a row, and is left out", flush=True)
                    continue
                print(f"  round {number}/{rounds} {name}: {_line(result.runs[-1])}", flush=True)
                if kept is not None:
                    outputs[name] = kept
        if outputs := {name: path for name, path in outputs.items() if name in results}:
            _read(workload, outputs, results, rounds=READINGS * rounds)
    return results


def _is_read(workload: Workload, name: str) -> bool:
    """Whether reading an output tells anything: ours are all the same."""
    return bool(workload.read_by) and name not in FLOORS and not name.startswith(f"{OURS}, ")


def _read(workload: Workload, outputs: Mapping[str, Path], results: Mapping[str, Result], *, rounds: int) -> None:
    """Reads all outputs, one after the other in each round."""
    paths = [*map(str, outputs.values())]
    found = answer("benchmarks.compaction_reading", "cost", str(rounds), ",".join(workload.read_by), *paths)
    for name, path in outputs.items():
        results[name].reading = found[str(path)]


def _add_run(
    result: Result, lake: Path, codec: str, folder: Path, wanted: Mapping[str, object], *, kept: Path | None
) -> bool:
    """One more run, the first of them checked; False if a peer fails time and again. Ours may not fail at all."""
    for _ in range(ATTEMPTS):
        try:
            is_rewrite = result.contender.name not in FLOORS
            check = is_rewrite and not result.runs
            run, found = _run(result.contender, lake, codec, folder, check=check, kept=kept)
        except SystemExit as error:
            if result.contender.settings is not None:
                raise
            result.failures += 1
            print(f"  {error}", flush=True)
            continue
        result.runs.append(run)
        if found:
            result.rows_are_same = all(found[each] == wanted[each] for each in wanted)
            result.in_order = bool(found["in_order"])
        return True
    return False


def _line(run: Run) -> str:
    return f"{run.used.work_cpu_s:.2f} CPU-s, {run.used.wall_s:.2f} s, {run.used.peak_rss_mb:.0f} MiB"


def _run(
    contender: Contender, lake: Path, codec: str, folder: Path, *, check: bool, kept: Path | None
) -> tuple[Run, Mapping[str, object] | None]:
    """One rewrite into a new folder, of which only the output may be kept."""
    rewrite = _ours if contender.settings is not None else _peer
    try:
        used, kernel, output = rewrite(contender, lake, codec, folder)
        found = answer("benchmarks.compaction_reading", str(output), "values", "order") if check else None
        files = list(output.rglob("*.parquet"))
        run = Run(used, size_mb(output), len(files), kernel=kernel)
        if kept is not None:
            output.rename(kept)
        return run, found
    finally:
        shutil.rmtree(folder, ignore_errors=kept is not None)


def _ours(contender: Contender, lake: Path, _: str, folder: Path) -> tuple[Used, str, Path]:
    clone(lake, folder)
    os.sync()
    settings = dict(contender.settings or {})
    env = {} if settings.pop("native", True) else {"DATALAKE_NATIVE": "0"}
    found = answer("benchmarks.compaction_ours", str(folder), json.dumps(settings), env=env)
    if found["imported_late"]:
        print(f"  imported while the clock ran: {', '.join(found['imported_late'])}", file=sys.stderr)
    return Used(**found["used"]), found["kernel"], folder / "streams"


def _peer(contender: Contender, lake: Path, codec: str, folder: Path) -> tuple[Used, str, Path]:
    folder.mkdir()
    os.sync()
    inputs = next(lake.rglob("*.parquet")).parent
    arguments = (contender.name, str(inputs), str(folder), codec)
    return Used(**answer("benchmarks.compaction_peers", *arguments, python=contender.python)), "", folder


def clone(lake: Path, target: Path) -> None:
    """A lake of its own with the same data files, by hard links: compaction unlinks its inputs and changes none."""
    shutil.copytree(lake, target, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    if source.endswith(".parquet"):
        Path(target).hardlink_to(source)
    else:
        shutil.copy2(source, target)


def size_mb(folder: Path) -> float:
    """MiB of all Parquet files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*.parquet")) / (1024 * 1024)


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, which goes whatever happens."""
    with tempfile.TemporaryDirectory(prefix="datalake-bench-") as folder:
        yield Path(folder)
