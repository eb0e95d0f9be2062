"""What is read of CSV is what the file says: held against Python's csv, pandas and DuckDB, and against itself."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable
from contextlib import closing
from decimal import Decimal
from functools import partial
from unittest.mock import patch

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake_assets.sources.files import csv_records, csv_values, text_values
from datalake_assets.sources.files.contents import BadFile
from datalake_assets.sources.files.csv_records import Block, CsvDialect, blocks, records_of
from datalake_assets.sources.files.file_reading import OtherTypes, ReadingOptions, opened
from datalake_assets.sources.files.text_values import Kind, classified, joined, named_type
from datalake_assets_tests.sources.files.dropping import contents, read


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few bytes: each border is met."""
    monkeypatch.setattr(csv_records, "BLOCK_BYTES", 16)
    real = csv_records.blocks
    monkeypatch.setattr(
        "datalake_assets.sources.files.file_reading.blocks",
        lambda stream, dialect, **at: real(stream, dialect, **at, size=16),
    )


COLUMNS = {
    "whole numbers": (["1", "-20", "", "9223372036854775807"], "int64"),
    "numbers beyond 64 bits": (["1", "9223372036854775808"], "decimal128(38, 0)"),
    "numbers beyond 38 digits": (["1" * 39, "2"], "string"),
    "decimals of one scale": (["1.5", "2", "-0.125"], "decimal128(18, 3)"),
    "long decimals": (["12345678901234567.5", "0.25"], "decimal128(38, 2)"),
    "exponents": (["1e5", "2.5", "nan"], "double"),
    "exponents that a double cannot hold": (["1e400", "1"], "string"),
    "exponents beside more digits than a double has": (["1e5", "0.123456789012345678901"], "string"),
    "exponents beside a number that no double is": (["1e3", "9007199254740993"], "string"),
    "exponents beside long numbers that doubles are": (["1e3", "9007199254740992", "0.1234567890123456"], "double"),
    "doubles with all their digits": (["3.141592653589793e-05", "0.10000000000000001", "123456.789"], "double"),
    "more digits than the next double has": (["1.2345678901234567e-05", "1.5"], "string"),
    "numbers that would vanish": (["1e-400", "1e-5"], "string"),
    "an exponent after decimals": (["1.5", "2.25", "1e3"], "double"),
    "an exponent in upper case": (["1.5", "2.25", "1.E3"], "double"),
    "an exponent after numbers that doubles are": (["1.5", "0.1234567890123456", "2", "1e3"], "double"),
    "an exponent after a number that no double is": (["1.5", "9007199254740993", "2", "1e3"], "string"),
    "zeros among exponents": (["1e3", "0", "0.0", "-0.0e0"], "double"),
    "shortest texts in other forms": (["1E3", "0.30000000000000004", "5.0E-324", "1.7976931348623157e+308"], "string"),
    "long shortest texts": (["1e3", "0.30000000000000004", "-2.2250738585072013e-280", "inf"], "double"),
    "infinities and no numbers in other words": (["1e3", "INF", "NAN"], "string"),
    "no numbers among doubles": (["1e3", "nan", "-inf", "NaN"], "double"),
    "leading zeros": (["007", "12"], "string"),
    "leading signs": (["+7", "12"], "string"),
    "hexadecimal": (["0x10", "12"], "string"),
    "spaces around numbers": ([" 7", "12 "], "int64"),
    "days": (["2025-01-31", "1999-12-01"], "date32[day]"),
    "days that are none": (["2025-02-30", "1999-12-01"], "string"),
    "times": (["2025-01-31 10:00:00", "1999-12-01T01:02:03.5"], "timestamp[us]"),
    "nanoseconds": (["2025-01-31 10:00:00.123456789"], "timestamp[ns]"),
    "times with zones": (["2025-01-31T10:00:00Z", "2025-01-31T10:00:00+02:00"], "timestamp[us, tz=UTC]"),
    "times with and without zones": (["2025-01-31T10:00:00Z", "2025-01-31T10:00:00"], "string"),
    "days and times": (["2025-01-31", "2025-01-31 10:00:00"], "string"),
    "truths": (["true", "False", ""], "bool"),
    "ones and zeros": (["1", "0"], "int64"),
    "truths and numbers": (["true", "1"], "string"),
    "nothing": (["", ""], "string"),
    "words": (["a", "1"], "string"),
    "words of null": (["NULL", "NA"], "string"),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_has_the_narrowest_type_that_holds_each_value(name):
    texts, expected = COLUMNS[name]
    data = "k,v\n" + "".join(f"{number},{text}\n" for number, text in enumerate(texts))
    types, rows, bad = read(data, header=True)
    assert (types["v"], len(rows), bad) == (expected, len(texts), [])
    for text, (_, value) in zip(texts, rows, strict=True):
        if text == "":
            assert value is None
        elif isinstance(value, bool):
            assert text.lower() == str(value).lower()
        elif isinstance(value, int | Decimal):
            assert Decimal(text.strip()) == value
        elif isinstance(value, float):
            assert float(text) == value or math.isnan(value)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("native", ["", "0"])
def test_the_type_is_the_same_however_the_file_is_cut(name, native, monkeypatch):
    monkeypatch.setenv("DATALAKE_NATIVE", native)
    texts, expected = COLUMNS[name]
    types, rows, bad = read("k,v\n" + "".join(f"{n},{text}\n" for n, text in enumerate(texts)), header=True)
    assert (types["v"], len(rows), bad) == (expected, len(texts), [])


def test_what_was_inferred_is_not_looked_at_again(monkeypatch):
    monkeypatch.setenv("DATALAKE_NATIVE", "0")
    values = [number / 7e20 for number in range(2000)]
    data = "n,x,d\n" + "".join(f"{number},{value!r},{number}.25\n" for number, value in enumerate(values))
    ready = contents(data.encode())
    with patch.object(csv_values, "needs_a_look", wraps=csv_values.needs_a_look) as look:
        file = opened("a.csv", ready, ReadingOptions())
        types = {name: kind.type for name, kind in file.kinds().items()}
        before = look.call_count
        rows = pa.Table.from_batches([each.rows for each in file.rows(types)])
        assert look.call_count == before
        others = list(file.rows({**types, "n": pa.int32()}))
        assert look.call_count > before
    expected = {"n": [*range(2000)], "x": values}
    assert {name: rows[name].to_pylist() for name in expected} == expected
    assert [each for one in others for each in one.rows.column("n").to_pylist()] == expected["n"]


def test_null_is_an_empty_text_without_quotes():
    assert read('a,b\n1,\n2,""\n3,x\n')[1] == [(1, None), (2, ""), (3, "x")]
    assert read('a,b\n1,\n"",2\n')[1] == [(1, None), (None, 2)]
    assert read("a,b\n1,NA\n2,x\n", nulls=("", "NA"))[1] == [(1, None), (2, "x")]


def test_a_file_is_not_read_for_types_that_are_all_declared():
    file = opened("a.csv", contents(b"v,w\n007,x\n"), ReadingOptions(declared={"v", "w"}))
    with patch("datalake_assets.sources.files.file_reading.blocks", wraps=blocks) as read_blocks:
        assert file.kinds() == {"v": Kind(), "w": Kind()}
        assert read_blocks.call_count == 0
        assert [one.rows.num_rows for one in file.rows({"v": pa.int64(), "w": pa.string()})] == [1]
        assert read_blocks.call_count == 1


def test_declared_types_take_numbers_in_any_form():
    file = opened("a.csv", contents(b"v\n007\n+3\nx\n99999999999999999999\n"), ReadingOptions(declared={"v"}))
    (parsed,) = file.rows({"v": pa.int64()})
    assert parsed.rows.column("v").to_pylist() == [7, 3]
    assert [bad.line for bad in parsed.bad] == [4, 5]


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        ("a,b\r\n1,2\r\n", [(1, 2)]),
        ("a,b\r1,2\r3,4", [(1, 2), (3, 4)]),
        ("a;b\n1,5;2\n", [("1,5", 2)]),
        ("a\tb\n1\t2\n", [(1, 2)]),
        ("a|b\n1|2\n", [(1, 2)]),
        ("1,2\n3,4\n", [(1, 2), (3, 4)]),
        ("\ufeffa,b\n1,2\n", [(1, 2)]),
        ('a,b\n"1\n2",x\n', [("1\n2", "x")]),
        ('a,b\n"say ""hi""",x\n', [('say "hi"', "x")]),
        ('a,b\n5" pipe,x\n', [('5" pipe', "x")]),
        ("a,b\n\n1,2\n\n\n3,4\n", [(1, 2), (3, 4)]),
        ("a\n\n\nb\n", [("b",)]),
        ("a,b\n1,2", [(1, 2)]),
        ('"a","b"\n1,2\n', [(1, 2)]),
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_dialects_are_told_from_the_file(data, rows, cut, request):
    if cut:
        request.getfixturevalue("small_blocks")
    assert read(data)[1:] == (rows, [])


@pytest.mark.parametrize("quote", ['"', ""])
def test_a_file_that_ends_before_its_first_record_is_refused(quote):
    with closing(contents(b"about\nthis\n")) as ready, pytest.raises(BadFile, match="no record"):
        opened("a.csv", ready, ReadingOptions(quote=quote, skip_lines=5))


def test_names_that_are_there_twice_or_not_at_all_are_numbered():
    assert list(read("a,a,\n1,2,3\n", header=True)[0]) == ["a", "a_2", "column_3"]


@pytest.mark.parametrize("cut", [False, True])
def test_bad_rows_have_their_lines(cut, request):
    if cut:
        request.getfixturevalue("small_blocks")
    data = 'a,b\n1,"two\nlines"\n3\n"x"y,1\n4,5,6\n7,\xff\n8,9\n'.encode("latin-1") + "10,ü\n".encode()
    _, rows, bad = read(data)
    assert [row[0] for row in rows] == [1, 8, 10]
    assert [line for line, _ in bad] == [4, 5, 6, 7]


@pytest.mark.parametrize("cut", [False, True])
def test_a_quote_that_never_ends_takes_the_rest_into_quarantine_and_nothing_before(cut, request):
    if cut:
        request.getfixturevalue("small_blocks")
    _, rows, bad = read('a,b\n1,2\n3,"open\n4,5\n6,7\n')
    assert (rows, [line for line, _ in bad]) == ([(1, 2)], [3])


def test_records_are_bounded(monkeypatch):
    monkeypatch.setattr(csv_records, "MAX_RECORD_BYTES", 100)
    found = list(blocks(io.BytesIO(b'a\n"' + b"x" * 1000), CsvDialect(), size=10))
    assert [(each.line, each.unended) for each in found] == [(1, False), (2, True)]
    assert len(found[1].data) < 300


# against others

FIELD = st.text(st.sampled_from('ab0 ",\n\r;é'), max_size=6)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(FIELD, min_size=2, max_size=2), min_size=1, max_size=8), st.integers(7, 40))
def test_texts_are_what_pythons_csv_wrote(rows, size):
    sink = io.StringIO()
    csv.writer(sink, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([["x", "y"], *rows])
    data, dialect = sink.getvalue().encode(), CsvDialect()
    found = []
    for block in blocks(io.BytesIO(data), dialect, size=size):
        assert block.is_plain
        parsed = csv_values.decode(block, ("x", "y"), {"x": pa.string(), "y": pa.string()}, dialect, declared=())
        assert not parsed.bad
        found += [[row["x"], row["y"]] for row in parsed.rows.to_pylist()]
    assert found == [["x", "y"], *rows]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from('a1",\n\r'), max_size=30))
def test_records_are_where_pythons_csv_finds_them_or_are_bad(text):
    """Whatever stands in a file: quotes that Python takes in another way are never landed."""
    dialect, data = CsvDialect(), text.encode()
    expected = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    rows, bad = [], 0
    for block in blocks(io.BytesIO(data), dialect, size=1 << 20):
        records = records_of(block, dialect)
        if block.unended:
            bad += 1
            break
        for start, end, odd in zip(records.starts.tolist(), records.ends.tolist(), records.odd.tolist(), strict=True):
            bad += odd
            rows.append(csv_records.fields_of(data[start:end], dialect) if not odd else None)
    if not bad:
        assert rows == expected
    else:
        good = rows[: rows.index(None)] if None in rows else rows
        assert expected[: len(good)] == good


def awkward(rows: int) -> str:
    """A file with most that is awkward, in a form that pandas and DuckDB read as it is meant."""
    draw = np.random.default_rng(7)
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["id", "price", "name", "day", "at", "ok", "zip"])
    for number in range(rows):
        name = draw.choice(["plain", 'say "hi"', "two\nlines", "a,b", "ünï", " spaced "])
        price = "" if number % 11 == 0 else f"{draw.integers(-(10**9), 10**9)}.{draw.integers(0, 100):02}"
        day = f"20{draw.integers(10, 30):02}-{draw.integers(1, 13):02}-{draw.integers(1, 29):02}"
        at = f"{day} {draw.integers(0, 24):02}:{draw.integers(0, 60):02}:00.{draw.integers(0, 10**6):06}"
        writer.writerow([number, price, name, day, at, draw.choice(["true", "false"]), f"{draw.integers(0, 10**5):05}"])
    return sink.getvalue()


DUCKDB_TYPES = ("BIGINT", "DECIMAL(18,2)", "VARCHAR", "DATE", "TIMESTAMP", "BOOLEAN", "VARCHAR")


def test_values_are_those_that_pandas_and_duckdb_read(tmp_path):
    text = awkward(3000)
    types, rows, bad = read(text)
    assert (types["price"], types["zip"], types["at"], bad) == ("decimal128(18, 2)", "string", "timestamp[us]", [])
    frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    columns = dict(zip(("id", "price", "name", "day", "at", "ok", "zip"), DUCKDB_TYPES, strict=True))
    duck = duckdb.read_csv(str(tmp_path / "a.csv"), header=True, columns=columns).fetchall()
    assert duck == rows
    texts = [tuple(row) for row in frame.itertuples(index=False)]
    assert [(str(r[0]), "" if r[1] is None else str(r[1]), r[2], str(r[3]), r[6]) for r in rows] == [
        (t[0], "" if t[1] == "" else str(Decimal(t[1])), t[2], t[3], t[6]) for t in texts
    ]


VALUE = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**6), max_value=10**6).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.dates().map(str),
    st.sampled_from(["", "true", "False", "007", "+1", "0x1", " 5", "x", '"', "a,b", "-0", ".5", "5.", "1e3"]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(VALUE, min_size=1, max_size=20))
def test_looking_with_care_gives_what_looking_at_once_gives(values):
    sink = io.StringIO()
    csv.writer(sink, lineterminator="\n").writerows([[n, v] for n, v in enumerate(values)])
    dialect, names = CsvDialect(), ("n", "v")
    block = next(blocks(io.BytesIO(sink.getvalue().encode()), dialect))
    kind = classified(pa.array([v or None for v in values], pa.string())).type
    schema = pa.schema([("n", pa.int64()), ("v", kind)])
    at_once = csv_values._decoded_at_once(block, names, schema, dialect, ())
    with_care = csv_values._decoded_with_care(block, names, schema, dialect, ())
    assert with_care.bad == []
    if at_once is not None:
        assert str(at_once.to_pylist()) == str(with_care.rows.to_pylist())  # as texts, in which nan is nan


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(VALUE, VALUE), min_size=1, max_size=12), st.integers(8, 64), st.booleans())
def test_rows_are_the_same_whether_their_types_were_inferred_before_or_not(values, size, is_damaged):
    sink = io.StringIO()
    csv.writer(sink, lineterminator="\n").writerows([["v", "w"], *values])
    data = sink.getvalue().encode() + (b"\xff,\xc3\xa9\n" if is_damaged else b"")
    small = partial(blocks, size=size)
    with patch("datalake_assets.sources.files.file_reading.blocks", small):
        file = opened("a.csv", contents(data, "utf-8"), ReadingOptions(header=True))
        types = {name: kind.type for name, kind in file.kinds().items()}
        anew = opened("a.csv", contents(data, "utf-8"), ReadingOptions(header=True))
        found = [written(one.rows(types)) for one in (file, anew)]
        first = opened("a.csv", contents(data, "utf-8"), ReadingOptions(header=True))
        guessed = first.guessed({})
        assert guessed is not None
        try:
            found.append(written(guessed[1]))
        except OtherTypes:
            assert {name: kind.type for name, kind in first.kinds().items()} == types
        else:
            assert guessed[0] == types
    assert len(set(found)) == 1


def written(parsed: Iterable[csv_values.Parsed]) -> str:
    """All rows and bad records, as a text in which nan is nan."""
    return str([(each.rows.schema.types, each.rows.to_pylist(), each.bad) for each in parsed])


#: Of bytes of which some begin a field that is no number as Arrow would read it.
FIELDS = st.text(st.sampled_from('017x+- \ta.,"\n\r'), max_size=24)
ODD = re.compile(r'(?:^|[,"\n\r])[-\x20\t]?+(?:0[0-9xX]|[-+\x20\t])')


@settings(max_examples=500, deadline=None)
@given(FIELDS, st.integers(1, 9))
def test_fields_that_need_a_look_are_found_wherever_they_begin(text, piece):
    with patch.object(text_values, "_PIECE", piece):
        assert text_values.needs_a_look(text.encode(), ",", '"') == bool(ODD.search(text))


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("09.eEx-,\n"), max_size=20), st.integers(1, 9))
def test_no_exponent_is_overlooked(text, piece):
    with patch.object(text_values, "_PIECE", piece):
        assert text_values.may_have_exponents(text.encode()) == bool(re.search("[0-9.][eE]", text))


@given(st.lists(VALUE, min_size=1, max_size=8), st.lists(VALUE, min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_a_joined_type_holds_the_values_of_both(one, other):
    kinds = [classified(pa.array([v or None for v in values], pa.string())) for values in (one, other)]
    joint = joined(*kinds)
    assert joined(kinds[1], kinds[0]) == joint
    assert joined(joint, Kind()) == joint
    texts = pa.array([v or None for v in (*one, *other)], pa.string())
    _, fits = csv_values.converted(texts, joint.type, declared=False)
    assert fits.all()


@pytest.mark.parametrize("data", [b"\xc3\xbc,a\xff\n1,2\n", b"PK\5\6\0\0\n1\n", "a,b\n1,2\n".encode("utf-32-le")])
def test_no_column_is_named_by_what_is_no_text(data):
    with closing(contents(data)) as ready, pytest.raises(BadFile, match="no text"):
        opened("a.csv", ready, ReadingOptions())


def test_names_of_types_are_known():
    assert named_type("decimal(18,2)") == pa.decimal128(18, 2)
    for name in ("decimal(39,2)", "decimal(2,3)", "decimal(a,b)", "decimal(1)", "varchar"):
        with pytest.raises(ValueError, match="is no type of a column"):
            named_type(name)


@pytest.mark.parametrize("text", ["9007199254740993", "1e-400", "1.00000000000000001", "1e400"])
def test_a_later_number_that_no_double_is_is_bad_and_no_other(text):
    file = opened("a.csv", contents(f"v\n{text}\n0.5\n1e-7\n".encode()), ReadingOptions())
    (parsed,) = file.rows({"v": pa.float64()})
    assert (parsed.rows.column("v").to_pylist(), [each.line for each in parsed.bad]) == ([0.5, 1e-7], [2])


@settings(max_examples=200, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(1, 20))
def test_a_number_is_no_double_if_its_digits_would_be_others(value, digits):
    text = f"{value:.{digits - 1}e}"
    is_kept = Decimal(f"{float(text):.{digits - 1}e}") == Decimal(text) and not math.isinf(float(text))
    assert classified(pa.array([text])).name == ("double" if is_kept else "text")


@pytest.mark.parametrize("neighbour", ["2", "007"])
def test_a_row_is_the_same_whatever_stands_beside_it(neighbour):
    """One that needs a look makes its whole block be read with care."""
    data = f"v,n\n1e3,1\n-1.5E-1,2\n1e-3,3\n.5,{neighbour}\n".encode()
    file = opened("a.csv", contents(data), ReadingOptions())
    (parsed,) = file.rows({"v": pa.decimal128(18, 2), "n": pa.int64()})
    found = [*map(str, parsed.rows.column("v").to_pylist())]
    assert (found[:2], parsed.bad[0].line) == (["1000.00", "-0.15"], 4)


#: What Arrow's reader of CSV makes a value of that is none of the type.
NO_VALUES = {
    "0x1F": ("int64", "int32"),
    "-0X1f": ("int64",),
    "NAN": ("double", "float"),
    "-nan": ("double",),
    "nan(1)": ("double",),
    "1e400": ("double",),
    "1e39": ("float",),
    "123.4": ("decimal(4,2)",),
    "1e3": ("decimal(4,2)",),
    "99999999999999999.5": ("decimal(18,2)",),
}


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("native", ["", "0"])
@pytest.mark.parametrize("way", ["guessed", "rows"])
def test_a_value_that_is_none_of_its_type_is_bad_whatever_stands_beside_it(declared, native, way, monkeypatch):
    monkeypatch.setenv("DATALAKE_NATIVE", native)
    for text, names in NO_VALUES.items():
        for name in names:
            for neighbour in ("", '"x"y,1\n'):
                file = opened(
                    "a.csv",
                    contents(f"v,w\n1,1\n{text},2\n{neighbour}".encode()),
                    ReadingOptions(header=True, declared={"v", "w"} if declared else ()),
                )
                types = {"v": named_type(name), "w": pa.int64()}
                if way == "guessed" and not declared:
                    continue
                guess = file.guessed(types) if way == "guessed" else None
                parsed = list(guess[1] if guess is not None else file.rows(types))
                rows = [row for each in parsed for row in each.rows.column("w").to_pylist()]
                bad = [record.line for each in parsed for record in each.bad]
                assert (rows, bad[:1]) == ([1], [3]), (text, name, neighbour)


def test_a_mark_of_byte_order_within_a_file_is_a_letter():
    assert read("\ufeffa,b\n\ufeffx,1\n")[1] == [("\ufeffx", 1)]


@pytest.mark.parametrize(
    ("data", "names", "rows"),
    [
        (",a,b\n0,1,x\n1,2,x\n", ("column_1", "a", "b"), 2),
        ("a,a,b\n1,2,x\n", ("a", "a_2", "b"), 1),
        ("a,b,\n1,x,\n", ("a", "b", "column_3"), 1),
        ("x,,y\nx,1,z\n", ("column_1", "column_2", "column_3"), 2),
        ("x,x\ny,z\n", ("column_1", "column_2"), 2),
    ],
)
def test_a_header_may_have_empty_names_or_equal_ones_if_columns_say_that_it_is_one(data, names, rows):
    types, found, _ = read(data)
    assert (tuple(types), len(found)) == (names, rows)


def test_blocks_hold_what_the_file_holds():
    data = awkward(200).encode()
    for size in (7, 64, 1000, 1 << 20):
        found: list[Block] = list(blocks(io.BytesIO(data), CsvDialect(), size=size))
        assert b"".join(each.data for each in found) == data
        assert found[0].line == 1
