"""The scanner says what Arrow's slower look says, and both what Python's own numbers and calendar say."""

from __future__ import annotations

import io
import math
import os
import shutil
from collections.abc import Iterable
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datalake_assets.sources.files import csv_scan
from datalake_assets.sources.files.contents import ContentLimits, prepared
from datalake_assets.sources.files.csv_records import blocks
from datalake_assets.sources.files.csv_scan import CsvForm, Expected, Look, Scanned, load_scanner
from datalake_assets.sources.files.csv_values import Parsed, infer
from datalake_assets.sources.files.file_reading import OtherTypes, ReadableFile, ReadingOptions, opened
from datalake_assets.sources.files.text_values import named_type
from datalake_assets_tests.sources.files import scan_fuzz
from datalake_assets_tests.sources.files.csv_oracle import records_in, type_of

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


def test_a_column_that_is_another_later_is_looked_at_to_the_end_and_others_are_not():
    """Or else nothing would be won, and no other test would notice."""
    texts = [f"{number},x,{number / 10 ** (1 + number // 100):.{1 + number // 100}f}\n" for number in range(900)]
    data = ("n,w,d\n" + "".join(texts)).encode()
    with patch("datalake_assets.sources.files.file_reading.blocks", partial(blocks, size=500)):
        file = reading(data)
        first = file.guessed({})
        assert first is not None
        with pytest.raises(OtherTypes):
            list(first[1])
        with patch("datalake_assets.sources.files.file_reading.infer", wraps=infer) as look:
            second = file.guessed({})
            assert {tuple(call.args[2]) for call in look.call_args_list} == {("d",)}
        assert second is not None
        rows = pa.Table.from_batches([each.rows for each in second[1]])
    assert (str(first[0]["d"]), str(second[0]["d"])) == ("decimal128(18, 1)", "decimal128(18, 9)")
    landed = [f"{n},{w},{d.normalize():f}" for n, w, d in zip(*rows.to_pydict().values(), strict=True)]
    read = [text.strip().split(",") for text in texts]
    assert landed == [f"{n},{w},{Decimal(d).normalize():f}" for n, w, d in read]


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
            again, guesses = reading(data), 0
            while (guess := again.guessed({})) is not None:
                guesses += 1
                try:
                    found = values(guess[1])
                except OtherTypes:
                    continue
                assert (guess[0], found) == (types, rows[-1])
                break
            assert 1 <= guesses <= 2
            assert guess is not None or {name: kind.type for name, kind in again.kinds().items()} == types
    assert rows[0] == rows[1]


#: Fields as they stand in a file, of all kinds and none.
RAW = st.one_of(
    NUMBERS,
    CLOCKS,
    st.dates().map(str),
    st.sampled_from(
        ["true", "FALSE", "", '""', "NA", '"NA"', "x", '"a,b"', '"say ""hi"""', '"two\nlines"', "é", '"7"', " 7 "]
    ),
    st.sampled_from(
        ["-0", "-0.0", "5e-324", "2147483648", "9223372036854775808", "99.995", "0x1F", "0001-01-01", "1_0"]
    ),
    st.sampled_from(["9007199254740993", "0001-01-01T00:00+02:00", "9999-12-31T23:59-02:00", "1\0", '"']),
)
TYPES = ("string", "boolean", "int32", "int64", "float", "double", "date", "timestamp", "timestamp_ns", "timestamptz")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(RAW, RAW), min_size=1, max_size=9),
    st.tuples(*2 * [st.sampled_from([*TYPES, "timestamptz_ns", "decimal(4,2)", "decimal(18,2)", "decimal(38,19)"])]),
    st.sampled_from([frozenset(), frozenset({"v"}), frozenset({"v", "w"})]),
    st.integers(6, 200),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
@example([("007", "1e3")], ("int64", "decimal(18,2)"), frozenset({"v", "w"}), 50, "\n")
def test_rows_and_bad_records_are_the_same_with_and_without_the_scanner(records, types, declared, size, end):
    data = end.join(["v,w", *(",".join(each) for each in records)]).encode()
    wanted = {name: named_type(kind) for name, kind in zip("vw", types, strict=True)}
    found = []
    for switch in ("", "0"):
        with (
            patch.dict(os.environ, {"DATALAKE_NATIVE": switch}),
            patch("datalake_assets.sources.files.file_reading.blocks", partial(blocks, size=size)),
        ):
            ready = prepared(io.BytesIO(data), is_kept=True, encoding=None, limits=ContentLimits())
            options = ReadingOptions(header=True, delimiter=",", nulls=("", "NA"), declared=declared)
            parsed = list(opened("a.csv", ready, options).rows(wanted))
            found.append([list(map(values_of, parsed)), [bad for each in parsed for bad in each.bad]])
    assert found[0] == found[1]


#: What files of texts are made of, and what damages them.
PIECES = st.sampled_from([b"a", b"NA", b",", b",", b'"', b'""', b"\n", b"\r\n", b"\r", b"\0", b"\xc3\xa9", b"\xff"])
WHOLE = st.sampled_from(
    [b'"a,b"', b'"say ""hi"""', b'"two\r\nlines"', b'""', b"", b"NA", b'"NA"', b"\xef\xbb\xbf", b"y" * 40]
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(PIECES, max_size=25).map(b"".join)
    | st.lists(st.lists(WHOLE, min_size=1, max_size=3).map(b",".join), max_size=8).map(b"\n".join),
    st.integers(1, 3),
    st.integers(5, 70),
)
@example(b'"a",', 2, 70)
def test_texts_and_bad_lines_are_those_of_the_grammar(data, fields, size):
    names = [f"c{number}" for number in range(fields)]
    head = ",".join(names).encode() + b"\n"
    rows, bad = records_in(head + data, fields, ("", "NA"))
    for switch in ("", "0"):
        with (
            patch.dict(os.environ, {"DATALAKE_NATIVE": switch}),
            patch("datalake_assets.sources.files.file_reading.blocks", partial(blocks, size=size)),
        ):
            ready = prepared(io.BytesIO(head + data), is_kept=True, encoding="utf-8", limits=ContentLimits())
            options = ReadingOptions(delimiter=",", header=True, nulls=("", "NA"), declared=names)
            parsed = list(opened("a.csv", ready, options).rows(dict.fromkeys(names, pa.string())))
        assert [list(row.values()) for each in parsed for row in each.rows.to_pylist()] == rows[1:], switch
        assert [record.line for each in parsed for record in each.bad] == bad, switch


def values_of(parsed: Parsed) -> str:
    """Its rows as a text; times are numbers."""
    columns = parsed.rows.columns
    return str([(each.cast(pa.int64()) if pa.types.is_timestamp(each.type) else each).to_pylist() for each in columns])


EVERYTHING = """i,j,d,f,b,day,t,z,s,n
1,,1.5,1e3,true,2025-01-31,2025-01-31 10:11:12.5,2025-01-31T10:11:12+02:00,"a ""b"", c",
-9223372036854775808, 7 ,-0.25,0.30000000000000004,FALSE,0001-01-01,1969-12-31 23:59:59.999999,0001-01-01T00:00Z,,
NA,"",12345678901234567890.125,nan,,,,,"",
"""


@pytest.mark.parametrize("declared", [False, True])
def test_the_scanner_reads_what_files_are_made_of_by_itself(declared):
    """Or else nothing would be won, and no other test would notice."""
    ready = prepared(io.BytesIO(EVERYTHING.encode()), is_kept=True, encoding=None, limits=ContentLimits())
    types = {name: named_type(kind) for name, kind in zip("idf", ("int64", "decimal(38,3)", "double"), strict=True)}
    file = opened("a.csv", ready, ReadingOptions(nulls=("", "NA"), declared=types if declared else ()))
    guess, rows = file.guessed(types if declared else {}) or ({}, iter(()))
    with patch("datalake_assets.sources.files.csv_values._read", side_effect=AssertionError):
        (one,) = rows
        kinds = {name: str(kind) for name, kind in guess.items()}
        (again,) = file.rows(guess)
    assert list(kinds.values()) == [
        *("int64", "int64", "decimal128(38, 3)", "double", "bool", "date32[day]", "timestamp[us]"),
        *("timestamp[us, tz=UTC]", "string", "string"),
    ]
    assert values_of(one) == values_of(again)
    one.rows.validate(full=True)
    at = int(datetime(2025, 1, 31, 10, 11, 12, tzinfo=UTC).timestamp()) * 10**6
    assert values_of(one) == str(
        [
            [1, -9223372036854775808, None],
            [None, 7, None],
            [Decimal("1.500"), Decimal("-0.250"), Decimal("12345678901234567890.125")],
            [1000.0, 0.30000000000000004, math.nan],
            [True, False, None],
            [date(2025, 1, 31), date(1, 1, 1), None],
            [at + 500_000, -1, None],
            [at - 7_200_000_000, -62135596800 * 10**6, None],
            ['a "b", c', None, ""],
            [None, None, None],
        ]
    )


FITTING = {
    Expected.BOOL: ["true", "FALSE"],
    Expected.NUMBER: ["12", "-0.5", ".25", " 7 ", "1234567890123456789"],
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
    Expected.NUMBER: ["007", "+1", "0x1", "1e5", "9223372036854775808", "1.2.3", "-", "."],
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
    return scanner.scan(data, [Look(), Look(expected, 6)], CsvForm(",", '"', nulls), lines=len(texts))


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
