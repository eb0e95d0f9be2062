"""Mutated Parquet files merged by the native kernel under sanitizers: nothing falls, and no value is wrong.

    python -m datalake_assets_tests.parquet.native_fuzz INPUTS [SEED]

The kernel is built for this with AddressSanitizer, UndefinedBehaviorSanitizer and a map of the edges that are reached.
Each round takes some files of one schema, changes bytes of one of them, and merges them; what reaches new edges joins
the corpus, which is kept small. Everything that was merged is read by pyarrow, which shares no code with the kernel,
and so is the mutated file: where pyarrow reads it, the output has its rows between those of the other files. Where
pyarrow refuses it, or ends the process over it, there is nothing to compare with, which is counted.

Rounds run in child processes. What a child is about to do lies in a file, so that a fall is told from one of pyarrow's.
Prints the counts, and each finding with the files that make it again; exits 1 if there are any.
"""

from __future__ import annotations

import ctypes
import io
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datalake_assets.parquet import native
from datalake_assets.parquet.native import Depth, Kernel, MergeOptions, Part, Refused
from datalake_assets.parquet.native.interface import open_library
from datalake_assets.parquet.pages import page_of
from datalake_assets_tests.parquet.sanitized_kernel import BUILD, build, environment

CHILDREN = max(1, (os.cpu_count() or 2) - 1)
GROUPS = 48
CORPUS = 3000
MEMORY_BYTES = 48 << 20
#: Seconds after which a round counts as one that hangs.
PATIENCE_S = 20
#: A child is replaced after so many rounds: pyarrow may keep what damaged files made it allocate.
ROUNDS = 20_000
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
#: What stands in the state file before a call.
IDLE, KERNEL, ARROW = 0, 1, 2
STATE_BYTES = 1 << 20


# ---- seeds


@dataclass
class Group:
    """Files of one schema, with the rows that pyarrow reads of each."""

    files: list[bytes]
    tables: list[pa.Table] = field(default_factory=list)
    variants: list[tuple[int, bytes]] = field(default_factory=list)


def group(seed: int) -> Group:
    """Small files as writers make them: three of four have values that never repeat, which are copied."""
    chosen = random.Random(seed)
    codec = chosen.choice(["none", "none", "snappy", "snappy", "zstd", "gzip", "lz4", "brotli"])
    options: dict[str, Any] = {
        "compression": codec,
        "data_page_version": chosen.choice(["1.0", "2.0"]),
        "use_dictionary": chosen.random() < 0.6,
        "write_page_index": chosen.random() < 0.2,
        "write_page_checksum": chosen.random() < 0.1,
        "data_page_size": chosen.choice([1 << 20, 200]),
        "store_schema": chosen.random() < 0.1,  # Arrow's own schema would be most of what is mutated
    }
    is_copyish = chosen.random() < 0.75
    kinds = chosen.sample(sorted(COLUMNS), k=chosen.choice([1, 2, 2, 3]))
    if is_copyish:
        options["compression"] = chosen.choice(["none", "snappy", "zstd"])
        kinds = [chosen.choice([kind for kind in COLUMNS if kind.startswith("u_")]), *kinds[1:]]
    if not options["use_dictionary"] and chosen.random() < 0.2:
        options["column_encoding"] = {kind: chosen.choice(ENCODINGS.get(kind, ["PLAIN"])) for kind in kinds}
    rows = chosen.choice([40, 80]) if is_copyish else chosen.choice([1, 9, 60])
    nullable = chosen.random() < 0.7
    files = []
    for _ in range(chosen.choice([4, 5, 6]) if is_copyish else chosen.choice([1, 2, 3])):
        columns = {kind: COLUMNS[kind](chosen, rows, 0.2 if nullable else 0) for kind in kinds}
        body = io.BytesIO()
        pq.write_table(pa.table(columns), body, row_group_size=chosen.choice([10**6, 30]), **options)
        files.append(body.getvalue())
    return Group(files, [decoded(each) for each in files])


def _masked(values: list[Any], chosen: random.Random, share: float, kind: pa.DataType) -> pa.Array:
    return pa.array([None if chosen.random() < share else value for value in values], kind)


#: Columns by kind: those of ``u`` never repeat a value.
COLUMNS: dict[str, Any] = {
    "u_long": lambda r, n, p: _masked([r.getrandbits(62) for _ in range(n)], r, p, pa.int64()),
    "u_int": lambda r, n, p: _masked(r.sample(range(10**6), n), r, p, pa.int32()),
    "u_time": lambda r, n, p: _masked(
        [10**15 + i * 1000 + r.randrange(999) for i in range(n)], r, p, pa.timestamp("us")
    ),
    "u_double": lambda r, n, p: _masked([r.gauss(0, 9) for _ in range(n)], r, p, pa.float64()),
    "u_text": lambda r, n, p: _masked([f"{r.getrandbits(64):x}" for _ in range(n)], r, p, pa.string()),
    "u_fixed": lambda r, n, p: _masked([r.randbytes(5) for _ in range(n)], r, p, pa.binary(5)),
    "flag": lambda r, n, p: _masked([r.random() < 0.5 for _ in range(n)], r, p, pa.bool_()),
    "few": lambda r, n, p: _masked([r.choice(["AT", "DE", ""]) for _ in range(n)], r, p, pa.string()),
    "small": lambda r, n, p: _masked([r.randrange(4) for _ in range(n)], r, p, pa.uint32()),
    "float": lambda r, n, p: _masked([r.choice([0.0, -0.0, float("nan"), 1.5]) for _ in range(n)], r, p, pa.float32()),
    "list": lambda r, n, p: _masked(
        [[r.randrange(9) for _ in range(r.randrange(4))] for _ in range(n)], r, p, pa.list_(pa.int32())
    ),
    "deep": lambda r, n, p: _masked(
        [[{"a": f"x{r.randrange(5)}", "b": [r.randrange(3)]}] * r.randrange(3) for _ in range(n)],
        r,
        p,
        pa.list_(pa.struct({"a": pa.string(), "b": pa.list_(pa.int64())})),
    ),
}
ENCODINGS = {
    "u_long": ["DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"],
    "u_int": ["DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"],
    "u_time": ["DELTA_BINARY_PACKED"],
    "u_double": ["BYTE_STREAM_SPLIT"],
    "u_text": ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"],
    "u_fixed": ["DELTA_BYTE_ARRAY"],
    "flag": ["RLE"],
    "few": ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"],
}

# ---- mutations

_BYTES = (0, 1, 2, 3, 0x0F, 0x10, 0x15, 0x7F, 0x80, 0x81, 0xFE, 0xFF)


def mutated(body: bytes, other: bytes, chosen: random.Random) -> bytes:
    """The file with some changes: bits, bytes, stretches of itself and of another, lengths, its end."""
    changed = bytearray(body)
    footer_bytes = int.from_bytes(body[-8:-4], "little") if len(body) >= 12 else 0
    footer_from = max(4, len(body) - 8 - footer_bytes)
    for _ in range(chosen.choice([1, 1, 1, 2, 3, 8])):
        # a third in the footer, where the lengths are; a third near the start of the first pages; a third anywhere
        low, high = chosen.choice([(footer_from, len(changed)), (4, min(200, len(changed))), (0, len(changed))])
        if low >= high:
            continue
        place = chosen.randrange(low, high)
        way = chosen.randrange(8)
        if way <= 2:
            changed[place] ^= 1 << chosen.randrange(8)
        elif way <= 4:
            changed[place] = chosen.choice(_BYTES)
        elif way == 5:
            changed[place] = (changed[place] + chosen.choice([-2, -1, 1, 2])) % 256
        elif way == 6:
            size = chosen.randrange(1, 9)
            source = chosen.choice([bytes(changed), other])
            start = chosen.randrange(max(1, len(source) - size))
            piece = source[start : start + size]
            changed[place : place + len(piece)] = piece
        elif chosen.random() < 0.2:
            del changed[place:]
        else:
            changed[place:place] = chosen.randbytes(chosen.randrange(1, 4))
    return bytes(changed)


# ---- comparing, by pyarrow alone


def decoded(body: Any) -> pa.Table:
    """What pyarrow reads; raises what it raises."""
    return pq.ParquetFile(pa.BufferReader(body), pre_buffer=False).read(use_threads=False)


def same(wanted: list[pa.Table], found: pa.Table, *, is_sorted: bool) -> bool:
    """Whether the rows are equal bit by bit, NaN and the signs of zeros too."""
    joined = pa.concat_tables(wanted)
    if is_sorted:
        joined = joined.take(pc.sort_indices(joined.column(0)))
    if joined.num_rows != found.num_rows or not joined.schema.remove_metadata().equals(found.schema.remove_metadata()):
        return False
    return all(_bits(one).equals(_bits(other)) for one, other in zip(joined.columns, found.columns, strict=True))


def _bits(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers as their bits, since no NaN equals itself, and texts as bytes, since damage makes them no texts."""
    if pa.types.is_floating(column.type):
        ints = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[column.type.bit_width]
        return pa.chunked_array([chunk.view(ints) for chunk in column.chunks], ints)
    return column.cast(_untexted(column.type))


def _untexted(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_untexted(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([each.with_type(_untexted(each.type)) for each in kind])
    return kind


# ---- a child


class Child:
    """Rounds in this process."""

    def __init__(self, seed: int, state: Path) -> None:
        self.random = random.Random(seed)
        with state.open("r+b") as file:
            self.state = mmap.mmap(file.fileno(), STATE_BYTES)
        self.groups = [group(seed * 1000 + place) for place in range(GROUPS)]
        self.counts: Counter[str] = Counter()
        library = open_library(Path(os.environ[native._VARIABLE]))
        self.new_edges = library.pm_new_edges
        self.new_edges.restype = ctypes.c_uint32
        self.library = library
        self.kernel = Kernel(library)
        self.corpus = 0

    def note(self, what: int, files: list[bytes] | None = None) -> None:
        """Notes what is about to be done, and with which files."""
        if files is not None:
            packed = b"".join(len(each).to_bytes(4, "little") + each for each in files)[: STATE_BYTES - 8]
            self.state[4:8] = len(packed).to_bytes(4, "little")
            self.state[8 : 8 + len(packed)] = packed
        self.state[0] = what

    def round(self) -> None:
        chosen = self.random
        of = chosen.choice(self.groups)
        place, body = chosen.choice(of.variants) if of.variants and chosen.random() < 0.6 else (-1, b"")
        if place < 0:
            place = chosen.randrange(len(of.files))
            body = of.files[place]
        changed = mutated(body, chosen.choice(chosen.choice(self.groups).files), chosen)
        files = [*of.files[:place], changed, *of.files[place + 1 :]]
        options = MergeOptions(
            codec=chosen.choice(["none", "snappy", "zstd"]) if chosen.random() < 0.1 else self._codec(of.files[0]),
            page_rows=chosen.choice([20_000, 50]),
            page_bytes=chosen.choice([1 << 20, 300]),
            memory_bytes=MEMORY_BYTES,
            time_leaf=0 if chosen.random() < 0.25 else None,
            order=chosen.choice(["keep", "sort"]),
            key_values=None if chosen.random() < 0.1 else {},
        )
        signal.alarm(PATIENCE_S)
        self.counts["mutated inputs"] += 1
        self.note(KERNEL, files)
        look = self.kernel.check([Part(changed)], Depth(chosen.randrange(4)), memory_bytes=MEMORY_BYTES)[0]
        self.counts["looked at, sound" if look.refused is None else "looked at, refused"] += 1
        # as when all is compared anyway: then the kernel takes the bytes on trust, and its values may be wrong
        is_trusted = chosen.random() < 0.2
        parts = [
            Part(each, proven=is_trusted or (at != place and chosen.random() < 0.5)) for at, each in enumerate(files)
        ]
        try:
            merged = self.kernel.merge(parts, options)
        except Refused as error:
            self.note(IDLE)
            self.counts[f"refused: {error.kind.name.lower()}"] += 1
            if error.kind is native.Refusal.INTERNAL:
                self.finding("internal", files, str(error))
            merged = None
        if self.new_edges() and self.corpus < CORPUS:
            of.variants.append((place, changed))
            self.corpus += 1
        if merged is not None:
            self.counts["merged"] += 1
            self.counts["merged, with copied pages"] += merged.copied_pages > 0
            self.compare(of, place, changed, merged, files, options=options, is_trusted=is_trusted)
        signal.alarm(0)

    def compare(
        self,
        of: Group,
        place: int,
        changed: bytes,
        merged: native.Merged,
        files: list[bytes],
        *,
        options: MergeOptions,
        is_trusted: bool,
    ) -> None:
        self.note(ARROW)
        try:
            table = decoded(changed)
            wanted = [*of.tables[:place], table, *of.tables[place + 1 :]]
            if not all(each.schema.remove_metadata().equals(table.schema.remove_metadata()) for each in wanted):
                self.counts["merged, but pyarrow reads another schema"] += 1
                return
        except (pa.ArrowException, OSError, ValueError, UnicodeDecodeError, OverflowError):
            self.counts["merged, but pyarrow refuses the input"] += 1
            return
        finally:
            self.note(IDLE)
        self.note(ARROW)
        try:
            is_sorted = merged.unsorted and options.order == "sort"
            if same(wanted, decoded(pa.py_buffer(merged.view)), is_sorted=is_sorted):
                self.counts["compared, equal"] += 1
            elif self.codecs_disagree(changed):
                self.counts["merged, but codec libraries disagree on a damaged page"] += 1
            elif is_trusted:
                self.counts["merged on trust, and the comparison finds it"] += 1
            else:
                self.finding("wrong values", files, str(options))
        except (pa.ArrowException, OSError, ValueError) as error:
            if is_trusted:
                self.counts["merged on trust, and the comparison finds it"] += 1
                return
            self.finding("unreadable output", files, f"{error}; {options}")
        self.note(IDLE)

    def codecs_disagree(self, body: bytes) -> bool:
        """Whether some page decompresses to other bytes in Arrow's release of a codec's library than in the kernel's.

        A damaged frame without a checksum has no meaning that all releases agree on.
        """
        metadata = pq.ParquetFile(pa.BufferReader(body)).metadata
        for number in range(metadata.num_row_groups):
            for place in range(metadata.num_columns):
                column = metadata.row_group(number).column(place)
                if column.compression == "UNCOMPRESSED":
                    continue
                at = column.dictionary_page_offset or column.data_page_offset
                end = at + column.total_compressed_size
                while at < end:
                    page = page_of(body[at:end])
                    at += page.header_bytes
                    if self._reads_apart(column.compression, body[at : at + page.size_bytes], page.plain_bytes):
                        return True
                    at += page.size_bytes
        return False

    def _reads_apart(self, codec: str, packed: bytes, plain_bytes: int) -> bool:
        number = {"SNAPPY": 1, "GZIP": 2, "BROTLI": 4, "ZSTD": 6, "LZ4": 7}[codec]
        levels = max(0, packed.find(ZSTD_MAGIC)) if codec == "ZSTD" else 0  # uncompressed, in pages of version 2
        packed, plain_bytes = packed[levels:], plain_bytes - levels
        ours = ctypes.create_string_buffer(plain_bytes)
        sizes = (ctypes.c_uint64(len(packed)), ctypes.c_uint64(plain_bytes))
        if not self.library.pm_decompresses(number, packed, sizes[0], ours, sizes[1]):
            return False
        try:
            theirs = pa.Codec("lz4_raw" if number == 7 else codec.lower()).decompress(packed, plain_bytes)
        except (pa.ArrowException, OSError):
            return True
        return ours.raw != theirs.to_pybytes()

    def finding(self, what: str, files: list[bytes], why: str) -> None:
        folder = Path(tempfile.mkdtemp(prefix="native-fuzz-", dir=BUILD))
        for place, body in enumerate(files):
            (folder / f"{place}.parquet").write_bytes(body)
        self.counts[f"FINDING: {what}"] += 1
        print(json.dumps({"finding": what, "files": str(folder), "why": why[:600]}), flush=True)

    @staticmethod
    def _codec(body: bytes) -> str:
        codec = pq.read_metadata(pa.BufferReader(body)).row_group(0).column(0).compression.lower()
        return {"uncompressed": "none"}.get(codec, codec) if codec in {"uncompressed", "snappy", "zstd"} else "none"

    def run(self, rounds: int) -> None:
        for number in range(rounds):
            self.round()
            if number % 500 == 499:
                self.counts["corpus"] = self.corpus
                print(json.dumps(self.counts), flush=True)
        print(json.dumps(self.counts), flush=True)


# ---- the campaign


def child(library: Path, seed: int, rounds: int) -> Counter[str]:
    """Runs a child to its end, whatever that is, and returns its counts."""
    with tempfile.NamedTemporaryFile(prefix="native-fuzz-state-") as state:
        state.truncate(STATE_BYTES)
        command = [sys.executable, "-m", __spec__.name, "--child", str(seed), str(rounds), state.name]
        done = subprocess.Popen(
            command, env=environment(library), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        out, err = done.communicate()
        counts: Counter[str] = Counter()
        for line in out.splitlines():
            told = json.loads(line)
            if "finding" in told:
                print(line, flush=True)
            else:
                counts = Counter(told)
        if done.returncode:
            with Path(state.name).open("rb") as file:
                held = file.read()
            _note_fall(held, done.returncode, err, counts)
        return counts


def _note_fall(held: bytes, code: int, err: str, counts: Counter[str]) -> None:
    if held[0] == ARROW:
        counts["pyarrow ended the process"] += 1
        return
    folder = Path(tempfile.mkdtemp(prefix="native-fuzz-", dir=BUILD))
    packed, place = held[8 : 8 + int.from_bytes(held[4:8], "little")], 0
    number = 0
    while place < len(packed):
        size = int.from_bytes(packed[place : place + 4], "little")
        (folder / f"{number}.parquet").write_bytes(packed[place + 4 : place + 4 + size])
        place, number = place + 4 + size, number + 1
    (folder / "stderr.txt").write_text(err)
    what = "hangs" if code == -signal.SIGALRM else "falls"
    counts[f"FINDING: {what}"] += 1
    print(json.dumps({"finding": what, "code": code, "files": str(folder), "why": err[-600:]}), flush=True)


def campaign(inputs: int, seed: int) -> int:
    """Mutates so many inputs; returns the number of findings."""
    library = build()
    total: Counter[str] = Counter()
    began = time.monotonic()
    with ThreadPoolExecutor(CHILDREN) as pool:
        rounds = min(ROUNDS, max(1, inputs // CHILDREN))
        running = {pool.submit(child, library, seed + number, rounds) for number in range(CHILDREN)}
        seed += CHILDREN
        while running:
            ended = {each for each in running if each.done()}
            running -= ended
            for each in ended:
                total += each.result()
                if total["mutated inputs"] < inputs:
                    running.add(pool.submit(child, library, seed, rounds))
                    seed += 1
                print(f"{time.monotonic() - began:.0f} s: {json.dumps(total)}", flush=True)
            time.sleep(0.2)
    return sum(count for what, count in total.items() if what.startswith("FINDING"))


def main(arguments: list[str]) -> int:
    """The campaign, or one of its children."""
    if arguments[:1] == ["--child"]:
        seed, rounds, state = arguments[1:]
        np.random.seed(int(seed))  # noqa: NPY002  whatever else draws from it
        Child(int(seed), Path(state)).run(int(rounds))
        return 0
    inputs = int(arguments[0]) if arguments else 1_000_000
    return min(campaign(inputs, int(arguments[1]) if len(arguments) > 1 else 1), 1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
