"""Damaged CSV scanned by the native scanner under sanitizers: no byte outside is read, and what is said to fit does.

    python -m datalake_assets_tests.sources.files.scan_fuzz INPUTS [SEED]

The scanner is built for this with AddressSanitizer and UndefinedBehaviorSanitizer. Each input is a file of some columns
of which bytes are changed, in memory that ends where it does, as what is written to does. Where records end, and how
many lines that are, is held against the cut in Python. Of records whose quotes stand where they may, the columns that
the scanner says fit are held against the types that `csv_oracle` gives to the texts that Python's csv reads, and the
values that it writes against those that Python's own numbers and calendar have.

Prints the counts, and ends with 1 at the first finding, which it prints.
"""

from __future__ import annotations

import csv
import ctypes
import io
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datalake_assets.sources.files import csv_records
from datalake_assets.sources.files.csv_records import CsvDialect, form_of
from datalake_assets.sources.files.csv_scan import Expected, Look, Scanned, Scanner, open_scanner
from datalake_assets_tests.parquet.sanitized_kernel import build_scanner, environment
from datalake_assets_tests.sources.files.csv_oracle import type_of, value_of

#: Values by what is expected of them.
SEEDS = {
    Expected.ANY: ["", "x", '"a,b"', '"say ""hi"""', '"two\nlines"', "é"],
    Expected.NOTHING: ["", ""],
    Expected.BOOL: ["true", "False", "TRUE", "", '""'],
    Expected.NUMBER: [
        "0",
        "-12",
        "3.25",
        ".5",
        " 7",
        "123456789012345678",
        "0.1234567890123456789",
        '"8"',
        "-9223372036854775808",
        "9223372036854775807",
        "12345678901234567890.123456789012345678",
    ],
    Expected.DOUBLE: [
        "1e5",
        "0.1",
        "-2.5E-3",
        "nan",
        "0.30000000000000004",
        "9007199254740993",
        "1.7976931348623157e308",
    ],
    Expected.DATE: ["2025-01-31", "2024-02-29", "9999-12-31"],
    Expected.TIME: ["2025-01-31 10:11", "2025-01-31T10:11:12.5", "1677-01-01 00:00:00", "0001-03-01 23:59:59.000001"],
    Expected.ZONED: ["2025-01-31T10:11:12Z", "2025-01-31 10:11:12.123456+02:00", "2025-01-31T10:11-0230"],
    Expected.EMPTY: ["", '""'],
}
#: What type a column may have that is said to fit; all may have no value at all.
FITTING = {
    Expected.NOTHING: ("string",),
    Expected.BOOL: ("bool",),
    Expected.NUMBER: ("int64", "decimal128("),
    Expected.DOUBLE: (
        "double",
        "int64",
        "decimal128(",
        "string",
    ),  # such as no decimal holds are text without exponents
    Expected.DATE: ("date32[day]",),
    Expected.TIME: ("timestamp[us]",),
    Expected.ZONED: ("timestamp[us, tz=UTC]",),
    Expected.EMPTY: ("string",),
}
#: Types that values are wanted in, by what is expected of them.
TYPES: dict[Expected, list[pa.DataType]] = {
    Expected.BOOL: [pa.bool_()],
    Expected.NUMBER: [
        pa.int64(),
        pa.int32(),
        pa.decimal128(18, 2),
        pa.decimal128(38, 19),
        pa.decimal128(38, 0),
        pa.decimal128(3, 3),
    ],
    Expected.DOUBLE: [pa.float64()],
    Expected.DATE: [pa.date32()],
    Expected.TIME: [pa.timestamp("us"), pa.timestamp("ns")],
    Expected.ZONED: [pa.timestamp("us", "UTC"), pa.timestamp("ns", "UTC")],
}
#: A record that is no blank line, and a comma between its fields, if each quote stands where it may.
RECORD = re.compile(r'(?:[^"\r\n]|"[^"]*")+')
OUTSIDE = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*\Z)')
MICRO_DIGITS = 6
BYTES = b"0189-+.eE:TZ \"',;\n\r\tax\0\xc3\xff"


def drawn(draw: random.Random) -> tuple[bytes, list[Expected]]:
    """A file, some bytes of which were changed, and what its columns were meant to be."""
    columns = draw.choices(list(SEEDS), k=draw.randint(1, 4))
    end = draw.choice(["\n", "\n", "\r\n", "\r"])
    rows = (",".join(draw.choice(SEEDS[each]) for each in columns) for _ in range(draw.randint(1, 9)))
    data = bytearray("".join(row + end for row in rows).encode())
    for _ in range(draw.choice([0, 0, 1, 1, 2, 5])):
        at = draw.randrange(len(data))
        what = draw.randrange(3)
        data[at : at + (what > 0)] = bytes([draw.choice(BYTES)]) if what < 2 else b""
        if not data:
            data = bytearray(b"\n")
    return bytes(data), columns


class Exact:
    """The library, called with memory that ends where the data do; so that a byte behind them is another's."""

    def __init__(self, scanner: Scanner) -> None:
        self._scanner = scanner
        for function in (scanner._index, scanner._columns):
            function.argtypes = (ctypes.c_void_p, *function.argtypes[1:])

    def cut(self, data: bytes, dialect: CsvDialect, *, is_end: bool) -> tuple[int, int] | None:
        """As `Scanner.cut`."""
        return self._scanner.cut(_alone(data), len(data), form_of(dialect), is_end=is_end)

    def scan(self, data: bytes, looks: list[Look], dialect: CsvDialect) -> list[Scanned] | None:
        """As `Scanner.scan`."""
        lines = data.count(b"\n") + data.count(b"\r")
        return self._scanner.scan(_alone(data), looks, form_of(dialect), lines=lines)


def exact_room(size: int) -> pa.Buffer:
    """As `pyarrow.allocate_buffer`, which gives more than it is asked for."""
    return pa.py_buffer(np.empty(size, np.uint8))


def _alone(data: bytes) -> Any:
    """The data in memory of their size, which are so many that ctypes allocates it."""
    return (ctypes.c_char * len(data)).from_buffer_copy(data)


def check(exact: Exact, draw: random.Random, counts: Counter[str]) -> str:
    """One input; what is wrong with it, or nothing."""
    data, columns = drawn(draw)
    data = b"\n" * max(0, 32 - len(data)) + data
    nulls = draw.choice([("",), ("",), ("", "x", "0")])
    quote = draw.choice(['"'] * 7 + [""])
    dialect, is_end = CsvDialect(quote=quote, header=False, is_utf8=True, nulls=nulls), draw.random() < 0.5
    found = exact.cut(data, dialect, is_end=is_end)
    size, _, is_plain = csv_records._cut(data, dialect, is_end=is_end)
    expected = (size, csv_records._lines(data[:size])) if is_plain else None
    if found != expected:
        return f"cut {data!r} is_end={is_end}: {found}, not {expected}"
    whole = data[: found[0]] if found is not None else b""
    looks = [look_for(draw, each) for each in columns]
    seen = exact.scan(whole, looks, dialect) if len(whole) >= 32 else None
    counts["not plain" if found is None else "unsure" if seen is None else "fits"] += 1
    if seen is not None and any(each.array is not None for each in seen):
        counts["with values"] += 1
    wrong = _wrong_scan(whole, looks, seen, dialect) if seen is not None else ""
    return f"scan {whole!r}, {wrong}" if wrong else ""


def look_for(draw: random.Random, expected: Expected) -> Look:
    """One of the ways to look at a column."""
    most = draw.choice([6, 9])
    if expected not in TYPES:
        return Look(expected, most, draw.choice([None, pa.string()]))
    kind = draw.choice([None, pa.string(), *TYPES[expected], *TYPES[expected]])
    return Look(expected, most, kind, is_settled=draw.random() < 0.3, is_exact=draw.random() < 0.7)


def _wrong_scan(whole: bytes, looks: list[Look], seen: list[Scanned], dialect: CsvDialect) -> str:
    text, quoting = whole.decode("latin-1"), csv.QUOTE_MINIMAL if dialect.quote else csv.QUOTE_NONE
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), quoting=quoting) if row]
    if dialect.quote:
        raw = [OUTSIDE.split(each) for each in RECORD.findall(text)]
    else:
        raw = [each.split(",") for each in re.split("[\r\n]", text) if each]
    if [len(row) for row in rows] != [len(looks)] * len(raw):
        return "it has other fields"
    for number, (look, column) in enumerate(zip(looks, seen, strict=True)):
        texts = [None if each[number] in dialect.nulls else row[number] for each, row in zip(raw, rows, strict=True)]
        is_sure = look.expected is not Expected.ANY and not look.is_settled
        wrong = _wrong(look, column, texts) if is_sure else ""
        if not wrong and column.array is not None:
            wrong = _wrong_values(look, column.array, texts)
        if wrong:
            return f"column {number} {look}: {wrong}"
    return ""


def _wrong_values(look: Look, array: pa.Array, texts: list[str | None]) -> str:
    name = str(look.type)
    array.validate(full=name != "string")  # whether bytes are UTF-8 is known before
    if name == "string":
        expected: list[object] = [None if text is None else text.encode("latin-1") for text in texts]
        found = array.cast(pa.binary()).to_pylist()
    else:
        expected = [value_of(text, name, settled=look.is_settled) if text else None for text in texts]
        found = (array.cast(pa.int64()) if name.startswith("timestamp") else array).to_pylist()
    same = [
        repr(one) == repr(other) if isinstance(one, float) else one == other
        for one, other in zip(found, expected, strict=True)
    ]
    return "" if all(same) else f"{found}, not {expected}"


def _wrong(look: Look, column: Scanned, texts: list[str | None]) -> str:
    expects = look.expected
    plain = [text.strip(" \t") for text in texts if text]
    if column.values != len(plain):
        return f"{column.values} values, not {len(plain)}"
    kind = type_of(texts)
    # nanoseconds and years that they do not reach are told apart by whoever asks
    fitting = (*FITTING[expects], *(("timestamp[ns", "string") if look.most_digits > MICRO_DIGITS else ()))
    if plain and not any(kind.startswith(each) for each in fitting):
        return f"it is {kind}"
    are_kept = type_of([*plain, "1e3"]) == "double"
    if (expects is Expected.DOUBLE or (expects is Expected.NUMBER and not column.in_doubt)) and not are_kept:
        return "a double does not keep it"
    if expects is Expected.NUMBER:
        scale = max((len(text.partition(".")[2]) for text in plain), default=0)
        digits = max((len(text.lstrip("-").partition(".")[0].lstrip("0")) for text in plain), default=0)
        if (column.digits, column.scale, column.has_point) != (digits, scale, any("." in text for text in plain)):
            return f"{column}"
    return ""


def child(library: Path, inputs: int, seed: int) -> int:
    """Scans in this process; its sanitizers end it at once."""
    pa.allocate_buffer = exact_room
    exact, draw, counts = Exact(open_scanner(library)), random.Random(seed), Counter[str]()
    for number in range(inputs):
        if wrong := check(exact, draw, counts):
            print(f"FOUND at input {number} of seed {seed}: {wrong}")
            return 1
    print(f"{inputs:,} inputs: " + ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items())))
    return 0 if min(counts["fits"], counts["with values"]) > inputs / 20 else 1


def main(inputs: int, seed: int = 7) -> int:
    """Builds the scanner and scans in a child; its exit code."""
    library = build_scanner()
    command = [
        sys.executable,
        "-m",
        __spec__.name if __spec__ else __name__,
        "child",
        str(library),
        str(inputs),
        str(seed),
    ]
    return subprocess.run(command, env=environment(library), check=False).returncode


if __name__ == "__main__":
    if sys.argv[1] == "child":
        sys.exit(child(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
    sys.exit(main(*(int(each) for each in sys.argv[1:])))
