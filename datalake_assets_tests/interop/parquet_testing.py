"""Every file of apache/parquet-testing, merged with a copy of itself by both kernels: rightly, or named and left alone.

    python -m datalake_assets_tests.interop.parquet_testing FOLDER

Either there is one file afterwards, with the rows, types, schema and metadata of both, or none, and a reason. What is
compared is what Arrow reads, which had no part in putting the file together. Prints the counts, and exits 1 if a file
is neither.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing as mp
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.core.files import DataFile
from datalake_assets.errors import UnreadableFile
from datalake_assets.parquet.adopted_footer import bytes_needed, read_adopted_footer
from datalake_assets.parquet.inputs import Input
from datalake_assets.parquet.outputs import Opener
from datalake_assets.parquet.rewrite import RewriteSettings, rewrite
from datalake_assets.parquet.writer import ParquetSettings
from datalake_assets_tests.parquet.sinks import MemorySink

KERNELS = ("auto", "concat", "reencode")
#: Rows from this size on are compared as Arrow has them.
LARGE_BYTES = 1 << 24


@dataclass(frozen=True)
class Outcome:
    """What became of a file: ``merged``, ``left alone`` or ``wrong``, and why."""

    what: str
    why: str


def outcome(path: Path, kernel: Any) -> Outcome:
    """Looks at a file as adoption does, merges it with a copy of itself, and compares."""
    body = path.read_bytes()
    try:
        needed = bytes_needed(body[-8:], len(body), where=path.name)
        told = read_adopted_footer(body[-needed:], len(body), time_column=None, where=path.name)
    except UnreadableFile as error:
        return Outcome("left alone", error.reason)
    files = [Input(DataFile(name, told.file.rows, len(body)), lambda: pa.BufferReader(body)) for name in "ab"]
    opener = Opener(MemorySink, lambda _: None, lambda body: iter([body]))
    result = rewrite(files, RewriteSettings(ParquetSettings(), kernel=kernel), opener, metadata={})
    if not result.outputs:
        reasons = set(result.rejected.values())
        return Outcome("left alone", reasons.pop()) if len(reasons) == 1 else Outcome("wrong", f"{result.rejected}")
    difference = _difference(path, [body for body, _ in result.outputs])
    return Outcome("wrong", difference) if difference else Outcome("merged", f"{result.copied} row groups copied")


def _apart(path: Path, kernel: str) -> Outcome:
    """In a process of its own, which Arrow may end."""
    context = mp.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def work() -> None:
        try:
            found = outcome(path, kernel)
        except Exception as error:  # noqa: BLE001  whatever it is, it is wrong
            found = Outcome("wrong", f"{type(error).__name__}: {error}")
        theirs.send(found)

    process = context.Process(target=work)
    process.start()
    theirs.close()
    try:
        found: Outcome = ours.recv()
    except EOFError:
        found = Outcome("wrong", "the process ended")
    process.join()
    return found


def _difference(path: Path, merged: list[bytes]) -> str:
    """What merged files say otherwise than twice the file that they were made of; empty if nothing."""
    one = pq.ParquetFile(path, page_checksum_verification=True)
    rows = _values(one)
    outputs = [pq.ParquetFile(io.BytesIO(body), page_checksum_verification=True) for body in merged]
    found = set() if [*rows, *rows] == [row for each in outputs for row in _values(each)] else {"values"}
    for both in outputs:
        checks = {
            "types": one.schema_arrow.remove_metadata().equals(
                both.schema_arrow.remove_metadata(), check_metadata=True
            ),
            "Parquet schema": _elements(one) == _elements(both),
            "metadata": _key_values(one) == _key_values(both),
            # of a row group without rows there is nothing that it could be said of
            "column metadata": not both.metadata.num_row_groups or _of_columns(one) == _of_columns(both),
        }
        found |= {name for name, holds in checks.items() if not holds}
    return ", ".join(f"other {name}" for name in sorted(found))


def _values(file: pq.ParquetFile) -> list[str]:
    """Digests of the rows. Python's text of a float is exact, and of a NaN it is one."""
    found = []
    for batch in file.iter_batches(1):
        try:
            encoded = repr(batch.to_pylist() if batch.nbytes < LARGE_BYTES else None).encode(errors="surrogatepass")
        except (pa.ArrowException, ValueError, OverflowError, UnicodeDecodeError):  # what Python has no value for
            encoded = b"None"
        found.append(hashlib.sha256(bytes(batch.serialize()) if encoded == b"None" else encoded).hexdigest())
    return found


def _elements(file: pq.ParquetFile) -> list[str]:
    schema = file.schema
    lines = str(schema).splitlines()[1:]
    return [*lines, *(repr(schema.column(index)) for index in range(len(schema)))][: len(lines)]


def _key_values(file: pq.ParquetFile) -> dict[bytes, Any]:
    """Without what is compared as types, and what pandas says of one file's row numbers (ADR 014)."""
    found: dict[bytes, Any] = dict(file.metadata.metadata or {})
    kept = {key: value for key, value in found.items() if not key.startswith(b"datalake.") and key != b"ARROW:schema"}
    if b"pandas" in kept:
        document = json.loads(kept[b"pandas"])
        document["index_columns"] = [each for each in document["index_columns"] if not isinstance(each, dict)]
        kept[b"pandas"] = document
    return kept


def _of_columns(file: pq.ParquetFile) -> list[Any]:
    if not file.metadata.num_row_groups:
        return []
    group = file.metadata.row_group(0)
    return [group.column(index).metadata for index in range(group.num_columns) if group.column(index).metadata]


def main() -> int:
    """Prints what became of each file, and the counts."""
    folder = Path(sys.argv[1])
    paths = sorted(path for path in folder.rglob("*") if path.suffix == ".parquet" or ".parquet.enc" in path.name)
    paths = [path for path in paths if path.suffix != ".json"]
    wrong = 0
    for kernel in KERNELS:
        counts: Counter[str] = Counter()
        for path in paths:
            found, is_bad = _apart(path, kernel), path.parent.name == "bad_data"
            if is_bad and found.what == "merged":
                found = Outcome("wrong", "merged")
            counts[f"{found.what}{' (bad_data)' if is_bad else ''}"] += 1
            print(f"{kernel:9} {found.what:10} {path.relative_to(folder)}: {found.why}", flush=True)
        wrong += counts["wrong"] + counts["wrong (bad_data)"]
        print(f"{kernel}: {len(paths)} files:", ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
