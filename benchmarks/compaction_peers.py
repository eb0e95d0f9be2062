"""What else rewrites many Parquet files as few: each peer as its documentation shows it, in order of rows where it can.

``python -m benchmarks.compaction_peers PEER INPUTS OUTPUT CODEC``, run by an interpreter that has the peer. Nothing of
this package is imported, but to find pages before a clock runs. A peer is told the codec, the level where it takes one,
and the size of files where it takes that; all else is its default. Nobody but us commits, syncs or verifies anything.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.measuring import Stopwatch, Used, print_used

__all__ = [
    "ARROW_ALONE",
    "CODECS_FULL",
    "CODECS_PAGES",
    "CODECS_SYNCED",
    "DECOMPRESSED",
    "FLOORS",
    "PEERS",
    "PROVEN",
    "TARGET_FILE_BYTES",
    "ZSTD_LEVEL",
]

TARGET_FILE_BYTES = 128 * 1024 * 1024
#: Ours, told to those that can be told; by themselves DuckDB and Polars take 3.
ZSTD_LEVEL = 1
#: Rows of a row group where the peer has to be told.
ROW_GROUP_ROWS = 524_288
#: Rows of those that Arrow alone makes, and the columns that have few values.
FLOOR_ROWS, FEW_VALUES = 100_000, ["country", "quantity", "status"]
#: Bytes of pages that are left out of those that codecs alone take, and rows of the pages that they make.
SMALL_PAGE, PAGE_ROWS = 1024, 20_480
#: Read and written at a time where bytes are copied; of which a disk takes multiples of the other one past the cache.
COPIED_BYTES, SECTOR_BYTES = 1 << 20, 4096


def duckdb(inputs: Path, output: Path, codec: str) -> Used:
    """DuckDB's COPY."""
    duckdb = import_module("duckdb")
    connection = duckdb.connect()
    watch = Stopwatch()
    level = f", COMPRESSION_LEVEL {ZSTD_LEVEL}" if codec == "zstd" else ""
    connection.execute(
        f"COPY (FROM read_parquet('{inputs}/*.parquet', hive_partitioning = false)) TO '{output}' "
        f"(FORMAT parquet, COMPRESSION {codec}{level}, FILE_SIZE_BYTES {TARGET_FILE_BYTES})"
    )
    return watch.stop()


def polars(inputs: Path, output: Path, codec: str) -> Used:
    """Polars' streaming sink, into one file."""
    polars = import_module("polars")
    watch = Stopwatch()
    level = ZSTD_LEVEL if codec == "zstd" else None
    rows = polars.scan_parquet(f"{inputs}/*.parquet", hive_partitioning=False)
    rows.sink_parquet(output / "data.parquet", compression=codec, compression_level=level)
    return watch.stop()


def daft(inputs: Path, output: Path, codec: str) -> Used:
    """Daft's write_parquet; it takes no level."""
    daft = import_module("daft")
    watch = Stopwatch()
    with daft.execution_config_ctx(parquet_target_filesize=TARGET_FILE_BYTES):
        daft.read_parquet(f"{inputs}/*.parquet").write_parquet(str(output), compression=codec)
    return watch.stop()


def delta_rs(inputs: Path, output: Path, codec: str) -> Used:
    """delta-rs' OPTIMIZE of a table that has the inputs already; its other files are moved away afterwards."""
    deltalake = import_module("deltalake")
    table = output / "table"
    table.mkdir()
    for file in inputs.glob("*.parquet"):
        (table / file.name).hardlink_to(file)
    deltalake.convert_to_deltalake(str(table))
    level = ZSTD_LEVEL if codec == "zstd" else None
    properties = deltalake.WriterProperties(compression=codec.upper(), compression_level=level)
    delta = deltalake.DeltaTable(str(table))
    watch = Stopwatch()
    delta.optimize.compact(target_size=TARGET_FILE_BYTES, writer_properties=properties)
    used = watch.stop()
    for name in deltalake.DeltaTable(str(table)).get_add_actions()["path"].to_pylist():
        (table / name).rename(output / name)
    for file in table.glob("*.parquet"):
        file.unlink()
    return used


def pyarrow(inputs: Path, output: Path, codec: str) -> Used:
    """Read a file, write it, one after the other."""
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    watch = Stopwatch()
    level = ZSTD_LEVEL if codec == "zstd" else None
    files = sorted(inputs.glob("*.parquet"))
    schema = parquet.read_schema(files[0])
    number, waiting, rows = 0, [], 0
    writer: Any = None
    for file in files:
        waiting.append(parquet.read_table(file, partitioning=None))
        rows += waiting[-1].num_rows
        if rows < ROW_GROUP_ROWS and file != files[-1]:
            continue
        path = output / f"{number:04}.parquet"
        writer = writer or parquet.ParquetWriter(path, schema, compression=codec, compression_level=level)
        writer.write_table(arrow.concat_tables(waiting), row_group_size=ROW_GROUP_ROWS)
        waiting, rows = [], 0
        if path.stat().st_size >= TARGET_FILE_BYTES:
            writer.close()
            number, writer = number + 1, None
    if writer:
        writer.close()
    return watch.stop()


def byte_copy(inputs: Path, output: Path, _: str) -> Used:
    """Each file as it is: no peer, but what no rewrite can undercut, and a measure of what the machine does besides."""
    block = memoryview(bytearray(1 << 20))
    watch = Stopwatch()
    for file in sorted(inputs.glob("*.parquet")):
        with file.open("rb", buffering=0) as source, (output / file.name).open("wb", buffering=0) as target:
            while count := source.readinto(block):
                target.write(block[:count])
    return watch.stop()


def proven_copy(inputs: Path, output: Path, _: str) -> Used:
    """All files in few, one behind the other, synced, read back and digested: what no copy undercuts that proves bytes.

    What is stored of each file has to have the digest that the file is known by, and an output has one of its own.
    """
    return _proven_copy(inputs, output, {})


def decompressed_copy(inputs: Path, output: Path, _: str) -> Used:
    """The same of files that nobody vouches for, which have to be readable: each page is decompressed once besides.

    By Arrow's own codec, and no header, level or value is looked at: where pages are is known before the clock runs.
    """
    return _proven_copy(inputs, output, {file: [*chain(*_compressed_pages(file))] for file in inputs.glob("*.parquet")})


def _compressed_pages(file: Path) -> list[list[tuple[int, int, int]]]:
    """Of each column where pages' compressed bytes begin, how many they are, and how many they make.

    Raises:
        SystemExit: Some are of another codec than Snappy, or of version 2, whose levels are not compressed.
    """
    chunk_pages, parquet = import_module("datalake_assets.parquet.chunk_pages"), import_module("pyarrow.parquet")
    version_2 = import_module("datalake_assets.parquet.pages").DATA_PAGE_V2
    source = import_module("pyarrow").OSFile(str(file))
    found = list[list[tuple[int, int, int]]]()
    for chunks in zip(*chunk_pages.Chunks(parquet.read_metadata(file), source), strict=True):
        pages = [(page, begin) for chunk in chunks for page, _, begin in chunk.pages()]
        if any(chunk.codec() != "snappy" for chunk in chunks) or any(page.kind == version_2 for page, _ in pages):
            raise SystemExit(f"{file.name} has pages that are not of Snappy and version 1: no codec is measured alone")
        found.append([(begin, page.size_bytes, page.plain_bytes) for page, begin in pages])
    return found


def _proven_copy(inputs: Path, output: Path, pages: dict[Path, list[tuple[int, int, int]]]) -> Used:
    """Past the page cache, which takes half of the time of going through it, as far as the file system can."""
    xxhash, arrow = import_module("xxhash"), import_module("pyarrow")
    block = memoryview(mmap.mmap(-1, COPIED_BYTES))
    files = sorted(inputs.glob("*.parquet"))
    known = {file: xxhash.xxh3_128(file.read_bytes()).digest() for file in files}
    watch = Stopwatch()
    while files:
        some, size_bytes = list[tuple[Path, int]](), 0
        while files and size_bytes < TARGET_FILE_BYTES:
            some.append((files[0], files[0].stat().st_size))
            size_bytes += some[-1][1]
            if pages:
                body = arrow.py_buffer(files[0].read_bytes())
                for begin, packed_bytes, plain_bytes in pages[files[0]]:
                    arrow.decompress(body.slice(begin, packed_bytes), plain_bytes, codec="snappy")
            files.pop(0)
        with open(output / f"{len(files):04}.parquet", "xb+", buffering=0, opener=_uncached) as target:
            _copy_all(target, [file for file, _ in some], block)
            target.truncate(size_bytes)
            os.fsync(target.fileno())
            target.seek(0)
            whole, view = xxhash.xxh3_128(), block[:0]
            for file, size in some:
                stored, left = xxhash.xxh3_128(), size
                while left:
                    if not view:
                        view = block[: target.readinto(block)]
                        whole.update(view)
                    stored.update(view[:left])
                    left, view = max(0, left - len(view)), view[left:]
                if stored.digest() != known[file]:
                    raise SystemExit(f"{file.name} does not read back as it was")
    return watch.stop()


def _uncached(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | getattr(os, "O_DIRECT", 0), 0o666)
    except OSError:
        Path(path).unlink(missing_ok=True)
        return os.open(path, flags, 0o666)


def _copy_all(target: FileIO, files: Sequence[Path], block: memoryview) -> None:
    """Writes files one behind the other, in whole blocks: the last of them has more bytes than are left."""
    filled = 0
    for file in files:
        with file.open("rb", buffering=0) as source:
            while count := source.readinto(block[filled:]):
                filled += count
                if filled == len(block):
                    _write_block(target, block)
                    filled = 0
    _write_block(target, block[: -(-filled // SECTOR_BYTES) * SECTOR_BYTES])


def _write_block(target: FileIO, block: memoryview) -> None:
    if target.write(block) != len(block):
        raise SystemExit("a block was written in part")


def codecs_full(inputs: Path, output: Path, codec: str) -> Used:
    """What no rewrite to another codec undercuts that proves values: inputs decompressed twice, outputs once."""
    return _codecs_alone(inputs, output, codec, readings=2)


def codecs_pages(inputs: Path, output: Path, codec: str) -> Used:
    """The same where who made an output proves it: inputs decompressed once."""
    return _codecs_alone(inputs, output, codec, readings=1)


def codecs_synced(inputs: Path, output: Path, codec: str) -> Used:
    """The first of both on all cores, and what was compressed written and synced: how soon it can be done."""
    return _codecs_alone(inputs, output, codec, readings=2, threads=os.cpu_count() or 1)


def _codecs_alone(inputs: Path, output: Path, codec: str, *, readings: int, threads: int = 0) -> Used:
    """Files read, and their pages decompressed, joined by column, compressed and decompressed again; nothing else.

    No header, level or value is looked at, and nothing is written unless there are threads. Pages of a few bytes, which
    cost more to call than to decompress, are left out. Where pages are is known before the clock runs. In place of
    outputs, the inputs are.
    """
    parquet = import_module("pyarrow.parquet")
    files = sorted(inputs.glob("*.parquet"))
    pages = {
        file: [[each for each in column if each[2] >= SMALL_PAGE] for column in _compressed_pages(file)]
        for file in files
    }
    groups: list[dict[Path, int]] = [{}]
    for file in files:
        if sum(groups[-1].values()) >= FLOOR_ROWS:
            groups.append({})
        groups[-1][file] = parquet.read_metadata(file).num_rows

    def coded(group: dict[Path, int]) -> list[bytes]:
        return _coded({file: pages[file] for file in group}, sum(group.values()), codec, readings=readings)

    watch = Stopwatch()
    if threads:
        with ThreadPoolExecutor(threads) as pool:
            _write_synced(pool.map(coded, groups), output / "codecs.bin")
    else:
        for group in groups:
            coded(group)
    used = watch.stop()
    for file in files:
        (output / file.name).hardlink_to(file)
    return used


def _coded(pages: dict[Path, list[list[tuple[int, int, int]]]], rows: int, codec: str, *, readings: int) -> list[bytes]:
    """The pages of files that become one row group, by column, as another codec has them."""
    arrow = import_module("pyarrow")
    snappy, other = arrow.Codec("snappy"), arrow.Codec(codec, ZSTD_LEVEL if codec == "zstd" else None)
    some = [(places, arrow.py_buffer(file.read_bytes())) for file, places in pages.items()]
    made: list[bytes] = []
    for column in range(len(some[0][0])):
        for _ in range(readings):
            plain = [
                snappy.decompress(body.slice(begin, packed_bytes), plain_bytes)
                for places, body in some
                for begin, packed_bytes, plain_bytes in places[column]
            ]
        whole = memoryview(b"".join(plain))
        page_bytes = min(max(len(whole) * PAGE_ROWS // rows, 64 << 10), 1 << 20)
        for at in range(0, len(whole), page_bytes):
            page = whole[at : at + page_bytes]
            made.append(other.compress(page))
            other.decompress(made[-1], len(page))
    return made


def _write_synced(groups: Iterable[list[bytes]], path: Path) -> None:
    """Each as it is made, synced whenever a file would be full."""
    written = 0
    with path.open("wb", buffering=0) as target:
        for group in groups:
            written += sum(target.write(memoryview(page)) for page in group)
            if written >= TARGET_FILE_BYTES:
                os.fsync(target.fileno())
                written = 0
        os.fsync(target.fileno())


def proven_by_arrow(inputs: Path, output: Path, codec: str) -> Used:
    """Decoded, encoded and decoded again by Arrow, and nothing else.

    What no rewrite can undercut that proves its values, where Arrow is the codec. Row groups have as many rows as ours,
    columns the encodings that we choose, which cost less than Arrow's own, and memory comes from the same allocator.
    Each row group is a file.
    """
    arrow, parquet, xxhash = import_module("pyarrow"), import_module("pyarrow.parquet"), import_module("xxhash")
    if "jemalloc" in arrow.supported_memory_backends():
        arrow.set_memory_pool(arrow.jemalloc_memory_pool())
    watch = Stopwatch()
    options = {"compression": codec, "compression_level": ZSTD_LEVEL if codec == "zstd" else None}
    waiting: list[Any] = []
    files = sorted(inputs.glob("*.parquet"))
    for number, file in enumerate(files, start=1):
        body = file.read_bytes()
        xxhash.xxh3_128(body).digest()
        waiting.append(parquet.ParquetFile(arrow.BufferReader(body)).read(use_threads=False))
        if sum(table.num_rows for table in waiting) < FLOOR_ROWS and number < len(files):
            continue
        rows, sink = arrow.concat_tables(waiting), arrow.BufferOutputStream()
        parquet.write_table(rows, sink, use_dictionary=FEW_VALUES, write_page_index=True, **options)
        encoded = sink.getvalue()
        if not parquet.ParquetFile(arrow.BufferReader(encoded)).read(use_threads=False).equals(rows):
            raise SystemExit("what was encoded does not read as it was")
        with (output / f"{number:04}.parquet").open("wb", buffering=0) as target:
            target.write(encoded)
            os.fsync(target.fileno())
        waiting.clear()
    return watch.stop()


#: Those that are no peers.
PROVEN, DECOMPRESSED = "byte copy, proven", "byte copy, decompressed"
ARROW_ALONE = "Arrow alone, proven"
CODECS_FULL, CODECS_PAGES, CODECS_SYNCED = "codecs alone, full", "codecs alone, pages", "codecs alone, synced"
FLOORS = ("byte copy", PROVEN, DECOMPRESSED, ARROW_ALONE, CODECS_FULL, CODECS_PAGES, CODECS_SYNCED)
#: Each peer by the module that it comes in.
PEERS: dict[str, tuple[str, Callable[[Path, Path, str], Used]]] = {
    "DuckDB COPY": ("duckdb", duckdb),
    "Polars sink": ("polars", polars),
    "Daft": ("daft", daft),
    "delta-rs": ("deltalake", delta_rs),
    "pyarrow": ("pyarrow", pyarrow),
    FLOORS[0]: ("io", byte_copy),
    PROVEN: ("xxhash", proven_copy),
    DECOMPRESSED: ("xxhash", decompressed_copy),
    ARROW_ALONE: ("xxhash", proven_by_arrow),
    CODECS_FULL: ("pyarrow", codecs_full),
    CODECS_PAGES: ("pyarrow", codecs_pages),
    CODECS_SYNCED: ("pyarrow", codecs_synced),
}


def main(peer: str, inputs: Path, output: Path, codec: str) -> None:
    """Rewrites the inputs into an empty folder."""
    print_used(PEERS[peer][1](inputs, output, codec))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
