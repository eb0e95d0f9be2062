from __future__ import annotations

import datetime as dt
import gc
import json
import os
import random
import threading
from contextlib import contextmanager
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datalake_assets.sources.files.csv_scan import load_scanner
from datalake_assets.sources.ksqldb.columns import arrow_schema
from datalake_assets.sources.ksqldb.decode import rows as rows_module
from datalake_assets.sources.ksqldb.decode.rows import RowDecoder
from datalake_assets.sources.ksqldb.decode.typed import gc_paused
from datalake_assets.sources.ksqldb.sql_types import Column, parse_columns
from datalake_assets_tests.parquet import exact
from datalake_assets_tests.parquet.exact import UTC

EXAMPLES = int(os.environ.get("DATALAKE_FUZZ_EXAMPLES", "40"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@contextmanager
def fast_from(lines):
    """Blocks of this many lines and more go to the fast path."""
    before, rows_module._FEW_LINES = rows_module._FEW_LINES, lines
    try:
        yield
    finally:
        rows_module._FEW_LINES = before


def decoder_for(sql, *, wrapped=False):
    columns = parse_columns(sql)
    return RowDecoder(columns, arrow_schema(columns, feed="f"), wrapped=wrapped)


def framed(text, *, wrapped):
    return (f'{{"row":{{"columns":[{text}]}}}},' if wrapped else f"[{text}]").encode()


def block_of(lines):
    return bytearray(b"".join(line + b"\n" for line in lines))


GOOD = [
    ("BOOLEAN", "true", True),
    ("BOOLEAN", "null", None),
    ("INTEGER", "2147483647", 2**31 - 1),
    ("INTEGER", "-2147483648", -(2**31)),
    ("BIGINT", "9223372036854775807", 2**63 - 1),
    ("BIGINT", "-9223372036854775808", -(2**63)),
    ("DOUBLE", "11.0", 11.0),
    ("DOUBLE", "1.0E10", 1e10),
    ("DOUBLE", "4.9E-324", 5e-324),
    ("DOUBLE", "1.7976931348623157E308", 1.7976931348623157e308),
    ("DOUBLE", '"Infinity"', float("inf")),
    ("DOUBLE", '"-Infinity"', float("-inf")),
    ("DOUBLE", "7", 7.0),
    ("STRING", '""', ""),
    ("STRING", '"null"', "null"),
    ("STRING", '"a\u2028b\u0085c"', "a\u2028b\u0085c"),
    ("STRING", r'"\"\\\/\b\f\n\r\t\u0000\u2603\ud83d\ude00\u0022\u005c"', '"\\/\b\f\n\r\t\0☃😀"\\'),
    ("STRING", '"],[{}:,"', "],[{}:,"),
    ("DECIMAL(4, 2)", "1.50", Decimal("1.50")),
    ("DECIMAL(4, 2)", "-99.99", Decimal("-99.99")),
    ("DECIMAL(4, 2)", "1.500", Decimal("1.50")),
    ("DECIMAL(18, 2)", "1234567890123456.78", Decimal("1234567890123456.78")),
    ("DECIMAL(38, 10)", "1234567890123456789012345678.0123456789", Decimal("1234567890123456789012345678.0123456789")),
    (
        "DECIMAL(50, 10)",
        "12345678901234567890123456789.0123456789",
        Decimal("12345678901234567890123456789.0123456789"),
    ),
    ("BYTES", '"ew=="', b"{"),
    ("BYTES", '""', b""),
    ("BYTES", '"AAEC/f7/"', bytes([0, 1, 2, 253, 254, 255])),
    ("TIMESTAMP", '"1999-11-30T11:00:00.000"', dt.datetime(1999, 11, 30, 11, tzinfo=UTC)),
    ("TIMESTAMP", '"0001-01-01T00:00:00.000"', dt.datetime(1, 1, 1, tzinfo=UTC)),
    ("TIMESTAMP", '"9999-12-31T23:59:59.999"', dt.datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC)),
    ("DATE", '"1970-01-11"', dt.date(1970, 1, 11)),
    ("DATE", '"9999-12-31"', dt.date.max),
    ("TIME", '"00:00:10"', dt.time(0, 0, 10)),
    ("TIME", '"10:00"', dt.time(10)),
    ("ARRAY<STRING>", '["a",null]', ["a", None]),
    ("ARRAY<TIMESTAMP>", '["1999-11-30T11:00:00.000"]', [dt.datetime(1999, 11, 30, 11, tzinfo=UTC)]),
    ("ARRAY<DOUBLE>", '["-Infinity",1]', [float("-inf"), 1.0]),
    ("MAP<STRING, INTEGER>", '{"a":1,"b":null}', [("a", 1), ("b", None)]),
    ("MAP<INTEGER, STRING>", '{"-7":"x"}', [(-7, "x")]),
    ("STRUCT<`T` TIMESTAMP>", '{"T":943959600000}', {"t": dt.datetime(1999, 11, 30, 11, tzinfo=UTC)}),
    ("STRUCT<`D` DATE, `T` TIME>", '{"D":10,"T":36000001}', {"d": dt.date(1970, 1, 11), "t": dt.time(10, 0, 0, 1000)}),
    ("STRUCT<`M` MAP<INTEGER, STRING>>", '{"M":[[1,"a"],[2,null]]}', {"m": [(1, "a"), (2, None)]}),
    ("STRUCT<`M` MAP<STRING, DATE>>", '{"M":{"x":10}}', {"m": [("x", dt.date(1970, 1, 11))]}),
    ("STRUCT<`D` DECIMAL(30, 10)>", '{"D":1.2345678901234567E19}', {"d": Decimal("12345678901234567000.0000000000")}),
    ("STRUCT<`A` STRING, `B` STRING>", '{"B":"x"}', {"a": None, "b": "x"}),
    ("ARRAY<STRUCT<`A` ARRAY<BYTES>>>", '[{"A":["ew==",null]},null]', [{"a": [b"{", None]}, None]),
]

BAD = [
    ("BOOLEAN", '"true"'),
    ("BOOLEAN", "1"),
    ("BOOLEAN", "True"),
    ("BOOLEAN", ""),
    ("BOOLEAN", '""'),
    ("INTEGER", "2147483648"),
    ("INTEGER", "1.0"),
    ("BIGINT", "9223372036854775808"),
    ("BIGINT", '"123"'),
    ("BIGINT", "1e3"),
    ("BIGINT", ""),
    ("BIGINT", '""'),
    ("STRING", ""),
    ("DOUBLE", ""),
    ("TIMESTAMP", '""'),
    ("DECIMAL(4, 2)", ""),
    ("DOUBLE", '"1.5"'),
    ("DOUBLE", "1e400"),
    ("DOUBLE", "NaN"),
    ("STRING", "123"),
    ("STRING", "abc"),
    ("STRING", ' {"a":1}'),
    ("STRING", r'"\uD800"'),
    ("STRING", r'"\x"'),
    ("STRING", '"a"b"'),
    ("DECIMAL(18, 2)", "1.555"),
    ("DECIMAL(4, 2)", "123.4"),
    ("DECIMAL(4, 2)", '"1.50"'),
    ("DECIMAL(50, 2)", "1.555"),
    ("BYTES", '"ew="'),
    ("BYTES", '"e*=="'),
    ("BYTES", '"ew==ew=="'),
    ("TIMESTAMP", '"10000-01-01T00:00:00.000"'),
    ("TIMESTAMP", '"1999-11-30T11:00:00.0001"'),
    ("TIMESTAMP", '"1999-11-30T11:00:00Z"'),
    ("TIMESTAMP", '"0000-01-01T00:00:00.000"'),
    ("TIMESTAMP", "943959600000"),
    ("DATE", '"+10000-01-01"'),
    ("DATE", '"2023-02-29"'),
    ("DATE", '"0000-01-01"'),
    ("TIME", '"24:00"'),
    ("TIME", '"10"'),
    ("TIME", '""'),
    ("BIGINT", "1,2"),
    ("ARRAY<INTEGER>", "[1"),
    ("ARRAY<INTEGER>", '["1"]'),
    ("MAP<STRING, INTEGER>", '{"a":"1"}'),
    ("MAP<INTEGER, STRING>", '{"x":"1"}'),
    ("MAP<BYTES, STRING>", '{"ew==":"1"}'),
    ("STRUCT<`A` STRING>", '{"B":"x"}'),
    ("STRUCT<`T` TIMESTAMP>", '{"T":"1999-11-30T11:00:00.000"}'),
    ("STRUCT<`T` TIMESTAMP>", '{"T":253402300800000}'),
    ("STRUCT<`T` TIME>", '{"T":86400000}'),
    ("STRUCT<`M` MAP<INTEGER, STRING>>", '{"M":[[null,"a"]]}'),
    ("STRUCT<`D` DECIMAL(4, 2)>", '{"D":1.555}'),
]


#: How rows are read: from how many lines on by the fast path, and whether by the scanner.
PATHS = pytest.mark.parametrize("path", [(1, "1"), (1, "0"), (10**9, "0")], ids=["scan", "arrow", "exact"])


@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "array"])
@PATHS
@pytest.mark.parametrize("case", GOOD)
def test_decode_reads_every_type(monkeypatch, case, path, wrapped):
    (sql, text, value), (fast, native) = case, path
    monkeypatch.setenv("DATALAKE_NATIVE", native)
    decoder = decoder_for(f"`C` {sql}", wrapped=wrapped)
    with fast_from(fast):
        decoded = decoder.decode(block_of([framed(text, wrapped=wrapped)] * 3))
    assert decoded.rejected == ()
    assert repr(decoded.table.column(0).to_pylist()) == repr([value] * 3)
    assert decoded.table.schema == decoder.schema


@PATHS
@pytest.mark.parametrize(("sql", "text"), BAD)
def test_decode_rejects_what_is_not_of_the_type(monkeypatch, sql, text, path):
    fast, native = path
    monkeypatch.setenv("DATALAKE_NATIVE", native)
    decoder = decoder_for(f"`C` {sql}")
    lines = [b"[null]"] * 100
    lines[41] = framed(text, wrapped=False)
    with fast_from(fast):
        decoded = decoder.decode(block_of(lines), first_line=11)
    assert decoded.table.column(0).null_count == decoded.table.num_rows == 99
    (row,) = decoded.rejected
    assert (row.raw, row.line) == (lines[41], 52)
    assert row.reason
    assert "\n" not in row.reason


def test_decode_takes_the_fast_path_for_plain_rows(monkeypatch):
    decoder = decoder_for("`A` BIGINT, `B` STRING")
    monkeypatch.setattr(decoder, "_exact", lambda *_: pytest.fail("the exact path was taken"))
    lines = [framed(f'{n},"a\\"b\\u2603,{n}"', wrapped=False) for n in range(1000)]
    assert decoder.decode(block_of(lines)).table.num_rows == 1000


@pytest.mark.skipif(load_scanner() is None, reason="no scanner of CSV")
def test_decode_scans_rows_of_all_types_that_the_scanner_knows(monkeypatch):
    types = {sql for sql, *_ in GOOD if "<" not in sql and sql not in {"TIME", "DECIMAL(50, 10)"}}
    good = [(sql, text, value) for sql, text, value in GOOD if sql in types and "Infinity" not in text]
    first = {sql: (text, value) for sql, text, value in reversed(good)}
    decoder = decoder_for(", ".join(f"`C{index}` {sql}" for index, sql in enumerate(first)), wrapped=True)
    monkeypatch.setattr(decoder._flat, "_parse", lambda *_: pytest.fail("Arrow's reader was asked"))
    line = framed(",".join(text for text, _ in first.values()), wrapped=True)
    (row, *_) = decoder.decode(block_of([line] * 100)).table.to_pylist()
    assert repr(list(row.values())) == repr([value for _, value in first.values()])


def test_decode_stops_to_scan_what_the_scanner_says_nothing_of():
    decoder = decoder_for("`A` DOUBLE")
    lines = [framed('"Infinity"', wrapped=False)] * 100
    for _ in range(10):
        assert decoder.decode(block_of(lines)).table.column(0).to_pylist() == [float("inf")] * 100
    assert decoder._flat._scanned is None or not decoder._flat._scanned.is_worth_it


@pytest.mark.parametrize("broken", [0, 1, 4999, 9999])
def test_decode_rejects_one_row_of_many(broken):
    decoder = decoder_for("`A` BIGINT", wrapped=True)
    lines = [framed(str(n), wrapped=True) for n in range(10_000)]
    lines[broken] = lines[broken][:-5]
    decoded = decoder.decode(block_of(lines))
    assert [(row.raw, row.line) for row in decoded.rejected] == [(lines[broken], broken + 1)]
    assert decoded.table.column(0).to_pylist() == [n for n in range(10_000) if n != broken]


def test_decode_reads_nothing_from_an_empty_block():
    decoded = decoder_for("`A` BIGINT").decode(bytearray())
    assert (decoded.lines, decoded.table.schema.names) == (0, ["a"])


def test_decode_reads_a_line_longer_than_a_csv_block():
    decoder = decoder_for("`A` STRING")
    lines = [framed('"' + "x" * size + '"', wrapped=False) for size in [3_000_000, *[10] * 100]]
    assert decoder.decode(block_of(lines)).table.column(0)[0].as_py() == "x" * 3_000_000


def test_decode_does_not_let_two_broken_lines_mend_each_other():
    decoder = decoder_for("`A` ARRAY<INTEGER>", wrapped=True)
    lines = [b'{"row":{"columns":[[1,', b'2]]}},{"row":{"columns":[[3]]}},']
    decoded = decoder.decode(block_of(lines))
    assert decoded.table.num_rows == 0
    assert [row.raw for row in decoded.rejected] == [lines[0][:-1], lines[1][:-1]]


def test_decode_checks_the_fast_path_against_the_exact_one(monkeypatch):
    decoder = decoder_for("`A` BIGINT")
    monkeypatch.setattr(decoder._flat, "_finish", lambda column, _: pa.chunked_array([[0] * len(column)]))
    decoded = decoder.decode(block_of([framed(str(n), wrapped=False) for n in range(100)]))
    assert decoded.table.column(0).to_pylist() == list(range(100))


def test_gc_paused_restores_the_former_state_when_threads_overlap():
    inside, leave = threading.Event(), threading.Event()

    def other():
        with gc_paused():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with gc_paused():
        thread.start()
        assert inside.wait(60)
        assert not gc.isenabled()
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_gc_paused_leaves_a_disabled_collector_disabled():
    gc.disable()
    try:
        with gc_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


# One kind of wrong value per example: the decoder's docstring has what it does if the two kinds add up.
WRONG = [['"5"', '"x"', '"1.5"'], ["5", "true", "[1]", '{"a":1}', "1e999", "abc"]]


@st.composite
def corrupted(draw, line, wrong):
    match draw(st.sampled_from(["cut", "insert", "drop", "value", "append", "swap"])):
        case "cut":
            return line[: draw(st.integers(0, len(line) - 1))]
        case "insert":
            at = draw(st.integers(0, len(line)))
            return (
                line[:at]
                + draw(st.sampled_from([b"[", b"]", b"{", b"}", b",", b'"', b"\\", b"\xff", b"n", b"\\u"]))
                + line[at:]
            )
        case "drop":
            spots = [at for at, octet in enumerate(line) if octet in b'[]{},"']
            at = draw(st.sampled_from(spots))
            return line[:at] + line[at + 1 :]
        case "value":
            head, _, tail = line.partition(b"[")
            return head + b"[" + draw(st.sampled_from(wrong)).encode() + b"," + tail.partition(b",")[2]
        case "append":
            return line.replace(b"]", b"," + draw(st.sampled_from(wrong)).encode() + b"]")
    return b'"' + bytes(reversed(line)) + b'"'


@st.composite
def responses(draw, kinds):
    """Columns, and distinct good and corrupted lines, as many as it takes, in random order."""
    types = draw(st.lists(kinds, min_size=1, max_size=5))
    wrapped, wrong = draw(st.booleans()), draw(st.sampled_from(WRONG))
    rows = draw(st.lists(st.tuples(*map(exact.wire, types)).map(",".join), min_size=1, max_size=6))
    lines = [framed(row, wrapped=wrapped) for row in rows]
    bad = [draw(corrupted(draw(st.sampled_from(lines)), wrong)) for _ in range(draw(st.integers(0, 3)))]
    dice = random.Random(draw(st.integers(0, 2**32)))
    share = dice.choice([0, 0.01, 0.1, 1])
    many = [dice.choice(bad if bad and dice.random() < share else lines) for _ in range(dice.choice([1, 5, 70, 300]))]
    return types, wrapped, many


def expected(types, lines, *, wrapped):
    good, rejected = [], []
    for number, line in enumerate(lines, 1):
        text = line.removesuffix(b",")
        try:
            good.append(exact.read_line(text, types, wrapped=wrapped))
        except exact.Bad:
            rejected.append((text, number))
    return good, rejected


def check_decoding(case, fast):
    types, wrapped, lines = case
    columns = [Column(f"C{index}", kind) for index, kind in enumerate(types)]
    decoder = RowDecoder(columns, arrow_schema(columns, feed="f"), wrapped=wrapped)
    with fast_from(fast):
        decoded = decoder.decode(block_of(lines))
    good, rejected = expected(types, lines, wrapped=wrapped)
    found = [(row.raw, row.line) for row in decoded.rejected]
    assert set(found) ^ set(rejected) == set()
    assert found == rejected
    rows = list(map(list, zip(*decoded.table.to_pydict().values(), strict=True)))
    assert [pair for pair in zip(map(repr, rows), map(repr, good), strict=True) if pair[0] != pair[1]][:1] == []
    decoded.table.validate(full=True)


@fuzz
@given(responses(exact.flat_kinds), st.sampled_from([1, 64]))
def test_decode_agrees_with_the_exact_reader_on_flat_rows(case, fast):
    check_decoding(case, fast)


@fuzz
@given(responses(exact.nested_kinds), st.sampled_from([1, 64]))
def test_decode_agrees_with_the_exact_reader_on_nested_rows(case, fast):
    check_decoding(case, fast)


@pytest.mark.parametrize("padding", [0, 5000], ids=["dense", "sparse"])
@given(st.lists(st.text(alphabet='\\"/\n☃😀a', max_size=6), min_size=1, max_size=5), st.booleans())
def test_decode_reads_escapes_dense_or_sparse(padding, texts, ascii_only):
    decoder = decoder_for("`A` STRING, `B` STRING")
    assert decoder._flat is not None
    pad = "x" * padding
    block = block_of([framed(f'{json.dumps(text, ensure_ascii=ascii_only)},"{pad}"', wrapped=False) for text in texts])
    ends, suffix = decoder._framing(block)
    table = decoder._flat.read(block, ends, suffix=suffix, check=lambda _: None)
    assert table.column(0).to_pylist() == texts
