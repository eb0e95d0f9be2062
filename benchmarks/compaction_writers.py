"""Small files of several writers and shapes into few: ours beside Polars, which is the best peer of `compaction`.

Each writer, with its defaults, makes as many files of each shape; the folder is adopted, so that nobody vouches for its
bytes, and merged. CPU after imports, medians of rounds in turns, each in a process of its own. DuckDB reads inputs and
outputs: their rows, and the sum of hashes of all values, have to be the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.compaction_ours import FOLDER
from benchmarks.compaction_rewrites import clone, scratch
from benchmarks.many_files_steps import FIRST_US
from benchmarks.measuring import Target, Used, answer, child, print_targets

__all__ = ["main"]

#: As issue #15 asks for, of the best peer's CPU.
WANTED = {"full": 0.9, "pages": 0.65}
Shape = Callable[[np.random.Generator, int], pa.Table]


def main(arguments: Sequence[str]) -> None:
    """Measures every writer with every shape, and prints figures and targets."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks compaction_writers", description=__doc__)
    parser.add_argument("--files", type=int, default=500, help="of each writer and shape (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contender (default: %(default)s)")
    parser.add_argument("--writers", nargs="+", choices=WRITERS, default=[*WRITERS])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*SHAPES])
    chosen = parser.parse_args(arguments)
    judged: list[Target] = []
    print(
        f"{chosen.files:,} files each; CPU-s\n{'':24}{'KB a file':>10}{'Polars':>8}{'full':>8}{'pages':>8}", flush=True
    )
    for shape in chosen.shapes:
        for writer in chosen.writers:
            with scratch() as folder:
                judged += _measured(folder, shape, writer, files=chosen.files, rounds=chosen.rounds)
    print()
    print_targets(judged)


def _measured(folder: Path, shape: str, writer: str, *, files: int, rounds: int) -> list[Target]:
    lake = folder / "lake"
    inputs = lake / FOLDER
    inputs.mkdir(parents=True)
    for number in range(files):
        WRITERS[writer](SHAPES[shape](np.random.default_rng(number), number), inputs / f"part-{number:05}.parquet")
    size_kb = sum(each.stat().st_size for each in inputs.iterdir()) / files / 1000
    wanted, used, wrong = _values(inputs), dict[str, list[float]](), set[str]()
    for number in range(rounds):
        for name in ("Polars", *WANTED):
            copy = folder / f"{name}-{number}"
            clone(lake, copy)
            cpu_s, output = _by_polars(copy) if name == "Polars" else _by_us(copy, verify=name, files=files)
            used.setdefault(name, []).append(cpu_s)
            wrong |= {name} if _values(output) != wanted else set()
            shutil.rmtree(copy)
    taken = {name: median(each) for name, each in used.items()}
    what = f"{writer}, {shape}"
    print(f"{what:24}{size_kb:10.0f}" + "".join(f"{each:8.2f}" for each in taken.values()), flush=True)
    ratios = {name: taken[name] / taken["Polars"] for name in WANTED}
    judged = [
        Target(f"{what}: {name} by Polars", f"at most {most}", f"{ratios[name]:.2f}", ratios[name] <= most)
        for name, most in WANTED.items()
    ]
    told = f"others by {', '.join(sorted(wrong))}" if wrong else "all"
    return [*judged, Target(f"{what}: rows and values as in the inputs", "all", told, not wrong)]


def _by_polars(lake: Path) -> tuple[float, Path]:
    output = lake / "output"
    output.mkdir()
    used = child("benchmarks.compaction_peers", "Polars sink", str(lake / FOLDER), str(output), "snappy")
    return used.work_cpu_s, output


def _by_us(lake: Path, *, verify: str, files: int) -> tuple[float, Path]:
    settings = {"adopted": True, "verify": verify, "max_files": files}
    used = Used(**answer("benchmarks.compaction_ours", str(lake), json.dumps(settings))["used"])
    return used.work_cpu_s, lake / FOLDER


def _values(folder: Path) -> object:
    query = "SELECT count(*), sum(hash(t)::HUGEINT) FROM read_parquet(?) t"
    return duckdb.connect().execute(query, [f"{folder}/*.parquet"]).fetchall()


def _columns(random: np.random.Generator, number: int, columns: int, rows: int) -> dict[str, pa.Array]:
    times = FIRST_US + (number * rows + np.arange(rows)) * 1_000
    made = {"event_time": pa.array(times, pa.timestamp("us"))}
    kinds: tuple[Callable[[], pa.Array], ...] = (
        lambda: pa.array(random.integers(0, 1 << 40, rows)),
        lambda: pa.array(random.normal(size=rows)),
        lambda: pa.array([f"user-{each}" for each in random.integers(0, 1_000_000, rows)]),
        lambda: pa.array([("new", "paid", "sent", "back")[each] for each in random.integers(0, 4, rows)]),
        lambda: pa.array(random.integers(0, 100, rows).astype(np.int32)),
    )
    return made | {f"column_{place}": kinds[place % len(kinds)]() for place in range(columns - 1)}


def _flat(columns: int, rows: int) -> Shape:
    return lambda random, number: pa.table(_columns(random, number, columns, rows))


def _with_nulls(random: np.random.Generator, number: int) -> pa.Table:
    made = _columns(random, number, 8, 3_000)
    for name, values in made.items():
        if name != "event_time":
            made[name] = pa.array(values.to_numpy(zero_copy_only=False), values.type, mask=random.random(3_000) < 0.5)
    return pa.table(made)


def _nested(random: np.random.Generator, number: int) -> pa.Table:
    rows = 1_200
    made = _columns(random, number, 4, rows)
    ends = np.concatenate([[0], np.cumsum(random.integers(0, 5, rows))]).astype(np.int32)
    made["items"] = pa.ListArray.from_arrays(pa.array(ends), pa.array(random.integers(0, 1 << 30, int(ends[-1]))))
    inner = [pa.array(random.normal(size=rows)), pa.array([f"city {each}" for each in random.integers(0, 500, rows)])]
    made["place"] = pa.StructArray.from_arrays(inner, names=["score", "city"])
    return pa.table(made)


def _by_duckdb(table: pa.Table, path: Path) -> None:
    connection = duckdb.connect()
    connection.register("given", table)
    connection.execute(f"COPY given TO '{path}' (FORMAT parquet)")


SHAPES: Mapping[str, Shape] = {
    "8 columns": _flat(8, 2_000),
    "30 columns": _flat(30, 500),
    "nulls": _with_nulls,
    "nested": _nested,
}
WRITERS: Mapping[str, Callable[[pa.Table, Path], object]] = {
    "pyarrow": pq.write_table,
    "Polars": lambda table, path: pl.DataFrame(table).write_parquet(path, compression="snappy"),
    "DuckDB": _by_duckdb,
    "pandas": lambda table, path: table.to_pandas().to_parquet(path),
}
