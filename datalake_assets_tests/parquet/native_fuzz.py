"""Mutated Parquet files merged by the native kernel under sanitizers: nothing falls, and no value is wrong.

    python -m datalake_assets_tests.parquet.native_fuzz INPUTS [SEED]

The kernel is built for this with AddressSanitizer, UndefinedBehaviorSanitizer and a map of the edges that are reached.
Each round takes some files of one schema, changes bytes of one of them, and merges them; what reaches new edges joins
the corpus, which is kept small. Everything that was merged is read by pyarrow, which shares no code with the kernel,
and so is the mutated file: where pyarrow reads it, the output has its rows between those of the other files. Where
pyarrow refuses it, or ends the process over it, there is nothing to compare with, which is counted.

The comparer (`parquet/proof`) is fuzzed beside: it looks at the same files and at damaged outputs, and may call equal
only what pyarrow reads alike, and read by itself only what pyarrow reads, or at least does not decompress; and of
columns in groups and lists only those that pyarrow reads to the same groups and lists alone as together. What the
kernel's walk passes as pages that may be copied, the walk in Python has to pass too. What `open_parquet` opens, pyarrow
has to survive when it is asked for all that the footer states, and `all_open` has to say the same of it beside another
file.

Rounds run in child processes. What a child is about to do lies in a file, so that a fall is told from one of pyarrow's.
Prints the counts, and each finding with the files that make it again; exits 1 if there are any.
"""

from __future__ import annotations

import ctypes
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
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.errors import UnreadableFile
from datalake_assets.native_library import SWITCH
from datalake_assets.parquet import native
from datalake_assets.parquet.chunk_pages import decompresses
from datalake_assets.parquet.decoding import open_parquet
from datalake_assets.parquet.footer import Footer, parse_footer
from datalake_assets.parquet.joined_footers import all_open
from datalake_assets.parquet.native import Depth, Kernel, MergeOptions, Part, Refused
from datalake_assets.parquet.native.interface import open_library
from datalake_assets.parquet.pages import PageWalk, UnsoundPages, page_of
from datalake_assets.parquet.proof import Compared, Side, Verdict, open_comparer
from datalake_assets.parquet.stated import stated_of
from datalake_assets.parquet.stated_bounds import has_cut_bounds
from datalake_assets.parquet.thrift import MalformedThrift
from datalake_assets_tests.parquet.native_seeds import Group, decoded, group, mutated, reads_alike_alone, same
from datalake_assets_tests.parquet.sanitized_kernel import BUILD, build, build_comparer, environment

CHILDREN = max(1, (os.cpu_count() or 2) - 1)
GROUPS = 48
CORPUS = 3000
MEMORY_BYTES = 48 << 20
#: Seconds after which a round counts as one that hangs.
PATIENCE_S = 20
#: A child is replaced after so many rounds: pyarrow may keep what damaged files made it allocate.
ROUNDS = 20_000
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
#: What stands in the state file before a call; pyarrow may fall, but not after what it opens was looked at.
IDLE, KERNEL, ARROW, GUARDED = 0, 1, 2, 3
STATE_BYTES = 1 << 20


#: Of the comparer's reasons, those that are about what is stated of values: copied pages have it from their inputs.
STATEMENTS = ("bound", "stated", "states", "page index")

# ---- a child


class Child:
    """Rounds in this process."""

    def __init__(self, seed: int, state: Path) -> None:
        self.random = random.Random(seed)
        with state.open("r+b") as file:
            self.state = mmap.mmap(file.fileno(), STATE_BYTES)
        self.groups = [group(seed * 1000 + place) for place in range(GROUPS)]
        self.counts: Counter[str] = Counter()
        library = open_library(Path(os.environ[SWITCH]))
        self.library = library
        self.kernel = Kernel(library)
        self.comparer = open_comparer(build_comparer())
        self.new_edges = [each.pm_new_edges for each in (library, self.comparer._library)]
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
            page_least_bytes=chosen.choice([64 << 10, 0]),
            page_bytes=chosen.choice([1 << 20, 300]),
            memory_bytes=MEMORY_BYTES,
            time_leaf=0 if chosen.random() < 0.25 and not pa.types.is_nested(of.tables[0].schema.types[0]) else None,
            order=chosen.choice(["keep", "sort"]),
            key_values=None if chosen.random() < 0.1 else {},
        )
        signal.alarm(PATIENCE_S)
        self.counts["mutated inputs"] += 1
        self.note(KERNEL, files)
        look = self.kernel.check([Part(changed)], Depth(chosen.randrange(4)), memory_bytes=MEMORY_BYTES)[0]
        self.counts["looked at, sound" if look.refused is None else "looked at, refused"] += 1
        self.look(changed, of.files[place])
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
        if merged is not None:
            self.counts["merged"] += 1
            self.counts["merged, with copied pages"] += merged.copied_pages > 0
            self.compare(of, place, changed, merged, files, options=options, is_trusted=is_trusted)
        if sum([new_edges() for new_edges in self.new_edges]) and self.corpus < CORPUS:
            of.variants.append((place, changed))
            self.corpus += 1
        signal.alarm(0)

    def look(self, changed: bytes, like: bytes) -> None:
        """Has the mutated file read by the comparer alone, and walked as one that is to be copied."""
        self.opens(changed)
        if self.random.random() < 0.3:  # it takes as long as all else here
            self.open_beside(like, changed)
        self.note(KERNEL, [changed])
        (known,) = self.kernel.check([Part(changed)], memory_bytes=MEMORY_BYTES)
        (refused,) = self.kernel.walk([Part(changed)], memory_bytes=MEMORY_BYTES)
        if refused is None:
            self.note(IDLE)
            self.walk(changed)
            self.note(KERNEL, [changed])
        told = self.comparer.read(Side(pa.py_buffer(changed), known.rows), memory_bytes=MEMORY_BYTES)
        self.counts[f"read alone: {told.verdict.name.lower()}"] += 1
        if told.verdict is not Verdict.EQUAL:
            return
        self.note(ARROW)
        try:
            found = decoded(changed)
            if found.num_rows != known.rows:
                self.finding("comparer reads other rows", [changed], f"{known.rows}, pyarrow {found.num_rows}")
            self.counts["read alone, with groups"] += any(map(pa.types.is_nested, found.schema.types))
            if not reads_alike_alone(changed, found):
                self.finding("comparer reads columns of a group that do not fit together", [changed], "")
        except (pa.ArrowException, OSError, ValueError) as error:
            if self.is_taken(changed):
                self.finding("comparer reads what pyarrow does not", [changed], str(error))
        self.note(KERNEL)

    def is_taken(self, body: bytes) -> bool:
        """Whether pyarrow opens and decompresses a file, which is asked before anybody takes the comparer's word."""
        if not self.opens(body):
            return False
        source = pa.BufferReader(body)
        return decompresses(open_parquet(source).metadata, source)

    def walk(self, body: bytes) -> None:
        """Walks pages in Python, as `ConcatWriter` does while it copies them."""
        try:
            footer = parse_footer(lambda offset, length: body[offset : offset + length], len(body), where="")
        except UnreadableFile:  # nothing is copied then
            self.counts["walked, but its footer is refused"] += 1
            return
        try:
            self._walk(footer, body)
            self.counts["walked by both"] += 1
        except (UnreadableFile, UnsoundPages, MalformedThrift) as error:
            self.finding("walk", [body], str(error))

    @staticmethod
    def _walk(footer: Footer, body: bytes) -> None:
        chosen = [number for number, group in enumerate(footer.row_groups) if group.rows]
        walk = PageWalk(footer, chosen)
        for start, end in sorted((footer.row_groups[number].start, footer.row_groups[number].end) for number in chosen):
            walk.feed(start, body[start:end])
        walk.finish()
        for place in (pair[0] for number in chosen for pair in footer.layouts[number].indexes if walk.pages):
            if place:
                walk.check_offset_index(body[place.offset : place.offset + place.length])

    def opens(self, body: bytes) -> bool:
        """Whether pyarrow takes its metadata, which are looked at by it before anybody reads pages."""
        self.note(GUARDED, [body])
        source = pa.BufferReader(body)
        try:
            metadata = open_parquet(source).metadata
            stated_of(metadata)
            if has_cut_bounds(source):
                return True
        except (pa.ArrowException, OSError, ValueError):
            return False
        finally:
            self.note(IDLE)
        self.note(GUARDED)
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            stated = [group.column(place).statistics for place in range(group.num_columns)]
            self.counts["guarded statistics"] += sum(each is not None for each in stated)
        self.note(IDLE)
        return True

    def open_beside(self, like: bytes, body: bytes) -> None:
        """Has pyarrow say whether it takes its metadata together with those of a sound file, and alone."""
        self.note(GUARDED, [like, body])
        files = [pa.py_buffer(each) for each in (like, body)]
        self.counts["opened with another file"] += any(len(each.files) > 1 for each in self.comparer.join(files))
        if (beside := all_open(files, self.comparer)) != all_open(files[1:], self.comparer):
            self.finding("opens beside another file or alone", [like, body], f"beside: {beside}")
        self.note(IDLE)

    def proven(self, of: Group, place: int, files: list[bytes], rows: int, output: bytes) -> Compared:
        """What the comparer says of the files and an output of so many rows."""
        counts = [table.num_rows for table in of.tables]
        counts[place] = rows - sum(counts) + counts[place]
        sides = [Side(pa.py_buffer(each), count) for each, count in zip(files, counts, strict=True)]
        size = int.from_bytes(output[-8:-4], "little")
        footer = output[max(0, len(output) - 8 - size) : -8]
        self.note(KERNEL, [*files, output])
        made, asks = Side(pa.py_buffer(output), rows), self.random.random() < 0.5
        found = self.comparer.compare(sides, made, footer, memory_bytes=MEMORY_BYTES, asks_arrow=asks)
        self.note(IDLE)
        return found

    def judge(self, found: Compared | None, told: str, files: list[bytes], output: bytes, why: str) -> None:
        """Counts what the comparer said, if it was asked, beside what pyarrow says: equal, different, or refused."""
        if found is None:
            return
        what = f"comparer: {found.verdict.name.lower()}, pyarrow: {told}"
        if (
            found.verdict is Verdict.UNCLEAR
            or told == "refused"
            or (told == "equal") == (found.verdict is Verdict.EQUAL)
        ):
            self.counts[what] += 1
        elif told == "equal" and any(word in found.reason for word in STATEMENTS):
            self.counts["comparer: what an input states is wrong, pyarrow: equal"] += 1  # to which it is blind
        elif not any(self.codecs_disagree(each) for each in (*files, output)):
            self.finding(what, [*files, output], f"{found.reason}; {why}")

    def damage(self, of: Group, place: int, files: list[bytes], merged: native.Merged, table: pa.Table) -> None:
        """Has the comparer look at a damaged output; pages that pyarrow does not read must not pass."""
        whole = bytes(merged.view)
        pages = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
        if in_pages := self.random.random() < 0.8:
            damaged = mutated(whole[:pages], whole, self.random)[:pages].ljust(pages, b"\0") + whole[pages:]
        else:
            damaged = mutated(whole, whole, self.random)
        found = self.proven(of, place, files, merged.rows, damaged)
        self.counts["damaged outputs"] += 1
        if found.verdict is not Verdict.EQUAL:
            self.counts[f"damaged outputs, comparer: {found.verdict.name.lower()}"] += 1
            return
        self.note(ARROW)
        try:
            told = "equal" if same([table], decoded(damaged), is_sorted=False) else "different"
        except (pa.ArrowException, OSError, ValueError):
            told = "different" if in_pages else "refused"
        self.note(IDLE)
        self.judge(found, told, files, damaged, "a damaged output")

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
        is_sorted = bool(merged.unsorted and options.order == "sort")
        told = None if is_sorted else self.proven(of, place, files, merged.rows, bytes(merged.view))
        self.note(ARROW)
        try:
            table = decoded(changed)
            wanted = [*of.tables[:place], table, *of.tables[place + 1 :]]
            if not all(each.schema.remove_metadata().equals(table.schema.remove_metadata()) for each in wanted):
                self.counts["merged, but pyarrow reads another schema"] += 1
                return
        except (pa.ArrowException, OSError, ValueError, UnicodeDecodeError, OverflowError):
            self.counts["merged, but pyarrow refuses the input"] += 1
            self.judge(told, "refused", files, bytes(merged.view), "")
            if told is not None and told.verdict is Verdict.EQUAL and self.is_taken(changed):
                self.finding("comparer: equal, of what pyarrow does not read", files, str(options))
            return
        finally:
            self.note(IDLE)
        self.note(ARROW)
        try:
            found = decoded(pa.py_buffer(merged.view))
            is_same = same(wanted, found, is_sorted=is_sorted)
            self.judge(told, "equal" if is_same else "different", files, bytes(merged.view), str(options))
            if is_same:
                self.counts["compared, equal"] += 1
                self.damage(of, place, files, merged, found)
            elif self.codecs_disagree(changed):
                self.counts["merged, but codec libraries disagree on a damaged page"] += 1
            elif is_trusted:
                self.counts["merged on trust, and the comparison finds it"] += 1
            else:
                self.finding("wrong values", files, str(options))
        except (pa.ArrowException, OSError, ValueError) as error:
            self.judge(told, "different", files, bytes(merged.view), str(error))
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
    if held[0] == ARROW and "Traceback (most recent call last)" not in err:
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
    build_comparer()
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
