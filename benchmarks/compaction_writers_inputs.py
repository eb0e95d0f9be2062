"""The small files of `benchmarks.compaction_writers`: tables of each shape, and what each writer makes of them.

Tables of a shape are the same for all writers, and what a writer made of one is read back and compared with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.compaction_inputs import InputFile
from benchmarks.compaction_lakes import build_of_files, feed_of, open_lake
from benchmarks.compaction_rewrites import scratch
from benchmarks.many_files_steps import FIRST_US
from benchmarks.measuring import answer
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.parquet.writer import ParquetFileWriter, ParquetSettings

__all__ = ["SHAPES", "WRITERS", "absence", "land", "tables_of", "write"]

#: Of all tables: rows are in its order, a millisecond apart.
TIME_COLUMN = "event_time"
STATUSES = pa.array(("new", "paid", "sent", "back"))

Shape = Callable[[np.random.Generator, int], pa.Table]
Writer = Callable[[Sequence[pa.Table], Sequence[Path]], None]


def tables_of(shape: str, files: int) -> list[pa.Table]:
    """Tables in the order of their rows' times, one for each file; the same whenever they are made."""
    return [SHAPES[shape](np.random.default_rng(number), number) for number in range(files)]


def absence(writer: str) -> str:
    """What a writer lacks here; empty if it can write."""
    if writer == "Spark" and not find_spec("pyspark"):
        return "pyspark"
    return "java" if writer == "Spark" and not shutil.which("java") else ""


def write(writer: str, tables: Sequence[pa.Table], folder: Path) -> list[Path]:
    """Has a writer make one file of each table in an empty folder, with its defaults; its codec is Snappy.

    Returns:
        The files, in the order of the tables and of their names.

    Raises:
        SystemExit: A file has not the rows of its table, or not in their order.
    """
    files = [folder / f"part-{number:05}.parquet" for number in range(len(tables))]
    WRITERS[writer](tables, files)
    for table, file in zip(tables, files, strict=True):
        if not pq.ParquetFile(file).read(use_threads=False).cast(table.schema).equals(table):
            raise SystemExit(f"{writer} wrote other rows to {file.name} than it was given")
    return files


def land(files: Sequence[Path], tables: Sequence[pa.Table], lake: Path) -> None:
    """Makes a lake of ours of files with these rows, byte by byte as they are, and with their digests."""
    lake.mkdir()
    store = open_lake(str(lake))
    landed = (
        InputFile(
            file.read_bytes(), table.num_rows, *(table[TIME_COLUMN][at].as_py().replace(tzinfo=UTC) for at in (0, -1))
        )
        for file, table in zip(files, tables, strict=True)
    )
    build_of_files(store, landed, schema=pq.read_schema(files[0]))
    FeedRegistry(store).add(feed_of())


def _columns(random: np.random.Generator, number: int, columns: int, rows: int) -> dict[str, pa.Array]:
    times = FIRST_US + (number * rows + np.arange(rows)) * 1_000
    made = {TIME_COLUMN: pa.array(times, pa.timestamp("us"))}
    kinds: tuple[Callable[[], pa.Array], ...] = (
        lambda: pa.array(random.integers(0, 1 << 40, rows)),
        lambda: pa.array(random.normal(size=rows)),
        lambda: _texts("user-", random.integers(0, 1_000_000, rows)),
        lambda: STATUSES.take(pa.array(random.integers(0, len(STATUSES), rows))),
        lambda: pa.array(random.integers(0, 100, rows).astype(np.int32)),
    )
    return made | {f"column_{place}": kinds[place % len(kinds)]() for place in range(columns - 1)}


def _texts(prefix: str, numbers: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), "")


def _flat(columns: int, rows: int) -> Shape:
    return lambda random, number: pa.table(_columns(random, number, columns, rows))


def _with_nulls(random: np.random.Generator, number: int) -> pa.Table:
    rows = 3_000
    made = _columns(random, number, 8, rows)
    for name, values in made.items():
        if name != TIME_COLUMN:
            made[name] = pc.if_else(pa.array(random.random(rows) < 0.5), None, values)
    return pa.table(made)


def _nested(random: np.random.Generator, number: int) -> pa.Table:
    rows = 1_200
    made = _columns(random, number, 4, rows)
    ends = np.concatenate([[0], np.cumsum(random.integers(0, 5, rows))]).astype(np.int32)
    made["items"] = pa.ListArray.from_arrays(pa.array(ends), pa.array(random.integers(0, 1 << 30, int(ends[-1]))))
    inner = [pa.array(random.normal(size=rows)), _texts("city ", random.integers(0, 500, rows))]
    made["place"] = pa.StructArray.from_arrays(inner, names=["score", "city"])
    return pa.table(made)


def _each(write_one: Callable[[pa.Table, Path], object]) -> Writer:
    def write_all(tables: Sequence[pa.Table], files: Sequence[Path]) -> None:
        for table, file in zip(tables, files, strict=True):
            write_one(table, file)

    return write_all


def _by_us(table: pa.Table, file: Path) -> None:
    with file.open("wb", buffering=0) as sink:
        writer = ParquetFileWriter(sink, table.schema, ParquetSettings(), time_column=TIME_COLUMN)
        writer.write(table)
        writer.close()


def _by_duckdb(tables: Sequence[pa.Table], files: Sequence[Path]) -> None:
    connection = duckdb.connect()
    for table, file in zip(tables, files, strict=True):
        connection.register("given", table)
        connection.execute(f"COPY given TO '{file}' (FORMAT parquet)")


def _by_spark(tables: Sequence[pa.Table], files: Sequence[Path]) -> None:
    """All in one job of a process of its own, which ends before anything is measured."""
    with scratch() as folder:
        staged = folder / "staged"
        staged.mkdir()
        for table, file in zip(tables, files, strict=True):
            pq.write_table(table, staged / file.name)
        made = map(Path, answer("benchmarks.compaction_writers_spark", str(staged), str(folder / "written")))
        for source, file in zip(sorted(made, key=_first_time), files, strict=True):
            shutil.move(source, file)


def _first_time(file: Path) -> datetime:
    first: datetime = pq.read_metadata(file).row_group(0).column(0).statistics.min
    return first


SHAPES: Mapping[str, Shape] = {
    "8 columns": _flat(8, 2_000),
    "30 columns": _flat(30, 500),
    "nulls": _with_nulls,
    "nested": _nested,
}
WRITERS: Mapping[str, Writer] = {
    "pyarrow": _each(pq.write_table),
    "Polars": _each(lambda table, file: pl.DataFrame(table).write_parquet(file, compression="snappy")),
    "DuckDB": _by_duckdb,
    "Spark": _by_spark,
    "pandas": _each(lambda table, file: table.to_pandas().to_parquet(file)),
    "ours": _each(_by_us),
}
