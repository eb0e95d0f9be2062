"""Mutated Parquet files of five writers: adopted, merged by both kernels, verified; nothing is lost, nothing falls.

    python -m datalake_assets_tests.interop.fuzz FILES [SEED]

Every round takes a small file, changes some bytes of its footer, its page headers or its pages, and merges it with two
whole files of the same writer. Arrow's decoding of the mutated file, before, is what counts: if it fails, the file must
be named and left out; if it gives rows, these are in what was merged, or the file was left out by name. Rounds run in
child processes, for Arrow ends the process over some damage; that is a finding like any other.

Prints the counts, and each finding with the seed that makes it again; exits 1 if there are any.
"""

from __future__ import annotations

import io
import multiprocessing as mp
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import fastparquet
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.core.files import DataFile
from datalake_assets.errors import DatalakeError, UnreadableFile
from datalake_assets.parquet.adopted_footer import bytes_needed, read_adopted_footer
from datalake_assets.parquet.decoding import open_parquet, tables
from datalake_assets.parquet.inputs import Input
from datalake_assets.parquet.outputs import Opener
from datalake_assets.parquet.rewrite import RewriteSettings, Rewritten, rewrite
from datalake_assets.parquet.writer import ParquetSettings
from datalake_assets_tests.parquet.sinks import MemorySink

KERNELS = ("auto", "concat", "reencode")
ROWS = 120
CHILDREN = max(1, (os.cpu_count() or 2) - 1)
#: Seconds after which a child that says nothing counts as one that hangs.
PATIENCE_S = 60
#: Files after which a line says how far it is: whoever ends a campaign early knows what was tried.
PROGRESS_FILES = 1000


def _table(start: int) -> pa.Table:
    numbers = range(start, start + ROWS)
    return pa.table(
        {
            "id": pa.array(numbers, pa.int64()),
            "text": [f"t{number % 7}" for number in numbers],
            "ratio": [None if number % 5 == 0 else number / 3 for number in numbers],
            "at": pa.array([number * 1_000_000 for number in numbers], pa.timestamp("us")),
        }
    )


def _by_pyarrow(start: int, path: Path) -> None:
    nested = pa.array([list(range(number % 4)) for number in range(ROWS)], pa.list_(pa.int32()))
    options = {"write_page_checksum": True, "write_page_index": True, "data_page_size": 256, "write_batch_size": 16}
    pq.write_table(_table(start).append_column("list", nested), path, row_group_size=50, **options)


def _by_bare_pyarrow(start: int, path: Path) -> None:
    pq.write_table(_table(start), path, compression="none", data_page_version="2.0", store_schema=False)


def _by_polars(start: int, path: Path) -> None:
    pl.from_arrow(_table(start)).write_parquet(path, row_group_size=60)


def _by_duckdb(start: int, path: Path) -> None:
    rows = _table(start)  # noqa: F841  the query names it
    duckdb.sql(f"COPY (FROM rows) TO '{path}' (FORMAT parquet)")


def _by_fastparquet(start: int, path: Path) -> None:
    fastparquet.write(str(path), _table(start).to_pandas(), compression="GZIP", write_index=False)


def _by_pandas(start: int, path: Path) -> None:
    frame = _table(start).to_pandas()
    frame["kind"] = pd.Categorical([f"k{number % 3}" for number in range(ROWS)])
    frame.to_parquet(path, compression="zstd")


WRITERS: dict[str, Callable[[int, Path], None]] = {
    "pyarrow": _by_pyarrow,
    "pyarrow v2": _by_bare_pyarrow,
    "Polars": _by_polars,
    "DuckDB": _by_duckdb,
    "fastparquet": _by_fastparquet,
    "pandas": _by_pandas,
}


def seeds(folder: Path) -> dict[str, list[bytes]]:
    """Three whole files of each writer."""
    made = {}
    for name, write in WRITERS.items():
        made[name] = []
        for number in range(3):
            path = folder / f"{name}-{number}.parquet"
            write(number * ROWS, path)
            made[name].append(path.read_bytes())
    return made


def mutated(body: bytes, rng: random.Random) -> bytes:
    """The file with a few bytes changed, dropped or doubled, in a place that matters."""
    data = bytearray(body)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    places = [(footer, len(data) - 8), (4, footer), (4, min(footer, 80)), (footer, len(data) - 8)]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        begin, end = rng.choice(places)
        at = rng.randrange(begin, max(begin + 1, min(end, len(data) - 8)))
        _change(data, at, rng)
    if rng.random() < 0.7:
        length = len(data) - 8 - footer
        data[-8:-4] = max(0, length).to_bytes(4, "little")
    return bytes(data)


def _change(data: bytearray, at: int, rng: random.Random) -> None:
    kind = rng.randrange(6)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    elif kind == 2:
        data[at] = (data[at] + rng.choice((1, 2, -1, -2))) % 256
    elif kind == 3:
        data[at] = rng.randrange(256)
    elif kind == 4:
        del data[at]
    else:
        data[at:at] = bytes([data[at]])


def decoded(body: bytes) -> list[str] | None:
    """The rows as Arrow decodes them, as texts without nulls, since files may lack a column; None if it does not."""
    try:
        file = pq.ParquetFile(io.BytesIO(body), page_checksum_verification=True)
        rows = [_text(row) for batch in file.iter_batches() for row in _counted(batch).to_pylist()]
    except (pa.ArrowException, OSError, ValueError, OverflowError, UnicodeDecodeError, RuntimeError):
        return None
    return rows if len(rows) == file.metadata.num_rows else None


def _counted(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Times as numbers, since Python's end with the year 9999, and texts as bytes, since some are no UTF-8 any more."""
    columns = [_plain(each) for each in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _plain(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        return _plain(column.dictionary_decode())
    if pa.types.is_timestamp(column.type):
        return column.view(pa.int64())
    if pa.types.is_string_view(column.type):
        return _plain(column.cast(pa.large_string()))
    if pa.types.is_string(column.type):
        return column.view(pa.binary())
    return column.view(pa.large_binary()) if pa.types.is_large_string(column.type) else column


def _text(row: dict[str, Any]) -> str:
    return repr(sorted((name, repr(value)) for name, value in row.items() if value is not None))


def _input(name: str, body: bytes, rows: int) -> Input:
    return Input(DataFile(name, rows, len(body)), lambda: pa.BufferReader(body))


def _merged(files: list[Input], kernel: Any) -> Rewritten[bytes]:
    settings = RewriteSettings(ParquetSettings(row_group_bytes=4000), kernel=kernel, time_column="at", workers=1)
    opener = Opener(MemorySink, lambda _: None, lambda body: iter([body]))
    return rewrite(files, settings, opener, metadata={})


def look(bodies: list[bytes], rng: random.Random, say: Callable[[str], None]) -> tuple[str, str]:
    """One round: what became of a mutated file, and what was wrong; empty if nothing was."""
    bad = mutated(bodies[1], rng)
    kernel = rng.choice(KERNELS)
    say("reading")
    rows = decoded(bad)
    say("adopting")
    try:
        needed = bytes_needed(bad[-8:], len(bad), where="bad")
        adopted = read_adopted_footer(bad[-max(needed, 8) :], len(bad), time_column="at", where="bad")
    except UnreadableFile:
        return "refused at adoption", ""  # some that Arrow reads are, too: those of another number of rows
    say(f"merging by {kernel}")
    good = [_input("first", bodies[0], ROWS), _input("last", bodies[2], ROWS)]
    result = _merged([good[0], _input("bad", bad, adopted.file.rows), good[1]], kernel)
    return _judged(result, bodies, bad, rows)


def _judged(result: Rewritten[bytes], bodies: list[bytes], bad: bytes, rows: list[str] | None) -> tuple[str, str]:
    expected = {"first": decoded(bodies[0]) or [], "last": decoded(bodies[2]) or [], "bad": rows}
    if not result.outputs:
        return "nothing merged", "" if "bad" in result.rejected else f"good files left alone: {result.rejected}"
    if "bad" in result.rewritten and rows is None:
        return "swallowed", "a file that does not decode was merged"
    found = [row for body, _ in result.outputs for row in decoded(body) or ["does not decode"]]
    wanted = [row for name in result.rewritten for row in expected[name] or []]
    if sorted(found) != sorted(wanted):
        return "changed", _first_difference(sorted(found), sorted(wanted))
    for body, stats in result.outputs:
        if sum(piece.num_rows for piece in tables(open_parquet(pa.BufferReader(body)))) != stats.rows:
            return "changed", "verify would find another number of rows"
    if "bad" in result.rewritten:
        return "merged", ""
    return "left alone, the others merged" if result.rejected.get("bad") else "lost", ""


def _first_difference(found: list[str], wanted: list[str]) -> str:
    unlike = next(((a, b) for a, b in zip(found, wanted, strict=False) if a != b), ("", ""))
    return f"{len(found)} rows for {len(wanted)}; {unlike[0][:150]} for {unlike[1][:150]}"


def _rounds(made: dict[str, list[bytes]], numbers: range, seed: int, pipe: Any) -> None:
    for number in numbers:
        rng = random.Random(f"{seed}-{number}")
        writer = rng.choice(list(made))
        state = ["beginning"]

        def say(what: str, state: list[str] = state, number: int = number, writer: str = writer) -> None:
            state[0] = what
            pipe.send((number, writer, what, None))

        try:
            outcome = look(made[writer], rng, say)
        except (DatalakeError, Exception) as error:  # noqa: BLE001  whatever it is, it is a finding
            at = [f"{Path(each.filename).stem}:{each.lineno}" for each in traceback.extract_tb(error.__traceback__)]
            outcome = ("fell", f"{state[0]}: {type(error).__name__}: {error} at {' '.join(at[-5:])}"[:400])
        pipe.send((number, writer, "done", outcome))
    pipe.close()


class _Child:
    """A process that works through some rounds, and what was last heard of it."""

    def __init__(self, made: dict[str, list[bytes]], numbers: range, seed: int) -> None:
        self.numbers, self.heard = numbers, (numbers.start, "", "beginning")
        self.at = time.monotonic()
        self.pipe, theirs = mp.get_context("fork").Pipe(duplex=False)
        self.process = mp.get_context("fork").Process(target=_rounds, args=(made, numbers, seed, theirs), daemon=True)
        self.process.start()
        theirs.close()


def campaign(made: dict[str, list[bytes]], files: int, seed: int) -> Iterator[tuple[int, str, str, str]]:
    """All rounds: number, writer, outcome and finding of each."""
    share = -(-files // CHILDREN)
    work = [range(start, min(files, start + share)) for start in range(0, files, share)]
    children = [_Child(made, numbers, seed) for numbers in work]
    while children:
        for child in list(children):
            yield from _heard(child)
            if child.process.is_alive() and time.monotonic() - child.at > PATIENCE_S:
                child.process.kill()
                child.process.join()
            if not child.process.is_alive():
                yield from _heard(child)
                children.remove(child)
                if child.heard[0] in child.numbers[:-1] or child.heard[2] != "done":
                    number, writer, what = child.heard
                    yield number, writer, f"process ended while {what}", f"exit {child.process.exitcode}"
                    children.append(_Child(made, range(number + 1, child.numbers.stop), seed))
        time.sleep(0.02)


def _heard(child: _Child) -> Iterator[tuple[int, str, str, str]]:
    try:
        while child.pipe.poll():
            number, writer, what, outcome = child.pipe.recv()
            child.heard, child.at = (number, writer, what), time.monotonic()
            if outcome is not None:
                yield number, writer, *outcome
    except EOFError:
        return


def main() -> int:
    """Prints the counts and the findings."""
    files, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        made = seeds(Path(folder))
    counts: Counter[str] = Counter()
    findings = 0
    for number, writer, outcome, finding in campaign(made, files, seed):
        counts[outcome] += 1
        if finding:
            findings += 1
            print(f"FINDING {seed}-{number} {writer}: {outcome}: {finding}", flush=True)
        if (done := counts.total()) % PROGRESS_FILES == 0:
            print(f"{done} of {files} after {time.monotonic() - began:.0f} s, {findings} findings", flush=True)
    print(f"{files} mutated files of {len(made)} writers in {time.monotonic() - began:.0f} s, {findings} findings")
    for outcome, count in counts.most_common():
        print(f"{count:8} {outcome}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
