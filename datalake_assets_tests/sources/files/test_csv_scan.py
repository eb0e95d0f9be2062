"""The scanner says what Arrow's slower look says, and both what Python's own numbers and calendar say."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterable
from functools import partial
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datalake_assets.sources.files import csv_scan
from datalake_assets.sources.files.contents import ContentLimits, prepared
from datalake_assets.sources.files.csv_records import blocks
from datalake_assets.sources.files.csv_scan import CsvForm, Expected, Scanned, load_scanner
from datalake_assets.sources.files.csv_values import Parsed
from datalake_assets.sources.files.file_reading import OtherTypes, ReadableFile, ReadingOptions, opened
from datalake_assets_tests.sources.files import scan_fuzz
from datalake_assets_tests.sources.files.csv_oracle import type_of

DIGITS = st.text("0123456789", max_size=21)
ONE_DIGIT = st.sampled_from("0123456789")
CLOCKS = st.builds(
    "{}{}{}{}{}".format,
    st.dates().map(str) | st.sampled_from(["9999-12-31", "2262-04-11", "1677-09-22", "2025-02-29", "2024-02-29"]),
    st.sampled_from(["T", " "]),
    st.sampled_from(["10:11", "23:59:59", "24:00:00", "10", "00:00:60", "1:00:00", "12:61"]),
    st.sampled_from(["", "", ".5", ".123456", ".1234567", ".123456789", ".", ".1234567890"]),
    st.sampled_from(["", "Z", "+02", "+0230", "-02:30", "+24:00", "+2", "z"]),
)
NUMBERS = st.one_of(
    st.builds("{}{}.{}".format, st.sampled_from(["", "-"]), DIGITS, DIGITS),
    st.builds("{}{}e{}".format, DIGITS, st.sampled_from(["", ".", ".5", ".25000"]), st.integers(-330, 330)),
    st.integers(-(10**20), 10**20).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(1e-7, 1e7).map(repr),
    st.builds("{:.{}f}".format, st.floats(1e-3, 1e16), st.integers(0, 20)),
    st.sampled_from(
        ["0", "-0", "007", "+1", "0x1", "5.", ".5", "1e400", "1e-400", "1" + "0" * 38, "NaN", "-inf", "INF"]
    ),
)
#: Columns are mostly of one kind; each may be a hair's breadth from another.
COLUMNS = st.one_of(
    *(
        st.lists(values | st.sampled_from(["", "", '""']), min_size=1, max_size=14)
        for values in (
            NUMBERS,
            st.integers(-5, 2000).map(str),
            st.floats(0, 1000).map(repr),
            CLOCKS,
            st.dates().map(str),
            st.sampled_from(["true", "False", "TRUE", " true", "t"]),
            st.datetimes().map(str),
            NUMBERS | CLOCKS | st.sampled_from(["x", "a,b", 'say "hi"', "two\nlines", "é"]),
        )
    )
)


def written(texts: list[str], *, spaces: int, all_quoted: bool) -> tuple[bytes, list[str | None]]:
    """A file of a number and a text in each record, and the texts as they are to be read."""
    sink = io.StringIO()
    meant: list[str | None] = []
    sink.write("n,v\n")
    for number, text in enumerate(texts):
        is_empty = text == '""'
        padded = " " * (spaces * (number % 3)) + text if text and not is_empty else text
        quoted = all_quoted or is_empty or any(each in padded for each in ',"\n')
        said = "" if is_empty else padded
        meant.append(None if not said and not quoted else said)
        doubled = said.replace('"', '""')
        sink.write(f"{number}," + (f'"{doubled}"' if quoted else said) + "\n")
    return sink.getvalue().encode(), meant


def reading(data: bytes) -> ReadableFile:
    ready = prepared(io.BytesIO(data), is_kept=True, encoding=None, limits=ContentLimits())
    return opened("a.csv", ready, ReadingOptions(header=True, delimiter=","))


def values(parsed: Iterable[Parsed]) -> str:
    """The second column as a text, in which nan is nan, and times are numbers: Python has not all of them."""
    column = pa.chunked_array([each.rows.column(1) for each in parsed])
    is_time = pa.types.is_timestamp(column.type)
    return str((column.cast(pa.int64()) if is_time else column).to_pylist())


@pytest.fixture(scope="module", autouse=True)
def _there() -> None:
    if load_scanner() is None:
        pytest.skip(csv_scan.scanner_status())


@settings(max_examples=120, deadline=None)
@given(COLUMNS, st.integers(6, 200), st.integers(0, 1), st.booleans())
@example(["2025-01-31 10:00:00", "2025-01-31"], 30, 0, False)
@example(["1e3", "1e400"], 8, 0, False)
@example(["1", '""'], 6, 0, False)
@example(["1" + "0" * 38, "1e3"], 50, 0, False)
@example(["2025-01-31 10:00:00.123456789", "9999-12-31 10:00:00"], 40, 0, False)
def test_the_type_is_what_all_values_say_however_the_file_is_cut_and_looked_at(texts, size, spaces, all_quoted):
    data, meant = written(texts, spaces=spaces, all_quoted=all_quoted)
    expected = type_of(meant)
    rows = []
    for switch in ("", "0"):
        with (
            patch.dict(os.environ, {"DATALAKE_NATIVE": switch}),
            patch("datalake_assets.sources.files.file_reading.blocks", partial(blocks, size=size)),
            patch("datalake_assets.sources.files.csv_values.SAMPLED_BYTES", 16),
        ):
            file = reading(data)
            types = {name: kind.type for name, kind in file.kinds().items()}
            assert str(types["v"]) == expected, (switch, meant)
            parsed = list(file.rows(types))
            assert [bad for each in parsed for bad in each.bad] == []
            rows.append(values(parsed))
            guess = reading(data).guessed({})
            assert guess is not None
            try:
                found = values(guess[1])
            except OtherTypes:
                pass
            else:
                assert (guess[0], found) == (types, rows[-1])
    assert rows[0] == rows[1]


FITTING = {
    Expected.BOOL: ["true", "FALSE"],
    Expected.NUMBER: ["12", "-0.5", ".25", " 7 ", "123456789012345678"],
    Expected.DOUBLE: [
        "1e5",
        "-2.5E-3",
        "0.30000000000000004",
        "3.141592653589793e-05",
        "1.4285714285714286e-201",
        "nan",
    ],
    Expected.DATE: ["2025-01-31", "2024-02-29"],
    Expected.TIME: ["2025-01-31 10:11", "2025-01-31T10:11:12.123456"],
    Expected.ZONED: ["2025-01-31T10:11:12Z", "2025-01-31 10:11+02:00", "2025-01-31 10:11-0230"],
}
UNSURE = {
    Expected.NOTHING: ["1", '""'],
    Expected.BOOL: [" true", "t", "1"],
    Expected.NUMBER: ["007", "+1", "0x1", "1e5", "1234567890123456789", "1.2.3", "-", "."],
    Expected.DOUBLE: ["9007199254740993", "1e400", "1e-300", "inf", "e5", "1e"],
    Expected.DATE: ["2025-02-29", "2025-01-31T10:11"],
    Expected.TIME: [
        "2025-01-31",
        "2025-01-31 10",
        "2025-01-31 24:00",
        "2025-01-31 10:11:12.1234567",
        "1677-09-22 00:00",
    ],
    Expected.ZONED: ["2025-01-31 10:11", "2025-01-31 10:11+24:00"],
    Expected.EMPTY: ["x"],
}


def scanned(expected: Expected, *texts: str, nulls: tuple[str, ...] = ()) -> list[Scanned] | None:
    scanner = load_scanner()
    assert scanner is not None
    data = "".join(f"{number},{text}\n" for number, text in enumerate(texts)).encode()
    return scanner.scan(data, [(Expected.ANY, 0), (expected, 6)], CsvForm(",", '"', nulls))


def test_what_fits_is_known_to_fit_and_what_takes_longer_is_left_to_others():
    """Or else nothing would be won, and no other test would notice."""
    for expected, texts in FITTING.items():
        found = scanned(expected, *texts, "", '""', "NA", nulls=("NA", "-1"))
        assert found is not None
        assert found[1].values == len(texts)
    for expected, texts in UNSURE.items():
        assert [scanned(expected, text) for text in texts] == [None] * len(texts)
    assert scanned(Expected.NUMBER, "1", '"NA"', nulls=("NA",)) is None
    assert scanned(Expected.NUMBER, "1", "2,3") is None
    found = scanned(Expected.NUMBER, "-12", "0.125", "0")
    assert found is not None
    assert (found[1].digits, found[1].scale, found[1].has_point, found[1].in_doubt) == (2, 3, True, False)
    doubtful = scanned(Expected.NUMBER, "9007199254740.993")
    assert doubtful is not None
    assert doubtful[1].in_doubt


def test_damaged_files_are_scanned_without_a_fault():
    """A short run of `scan_fuzz`, which has sanitizers where a compiler is."""
    if shutil.which("g++") is None:
        pytest.skip("there is no compiler")
    assert scan_fuzz.main(1500) == 0
