from __future__ import annotations

import json
import os
import random
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.sources.ksqldb.columns import arrow_schema
from datalake_assets.sources.ksqldb.decode.response import ResponseError, StreamedRowParser
from datalake_assets.sources.ksqldb.sql_types import Column, KsqlScalar
from datalake_assets_tests.parquet import exact
from datalake_assets_tests.sources.ksqldb.decode.test_rows import expected, fast_from, fuzz, responses

HEADER = b'[{"header":{"queryId":"q1","schema":"`ID` BIGINT KEY, `NAME` STRING"}}'
DELIMITED = b'{"queryId":"q2","columnNames":["ID","NAME"],"columnTypes":["BIGINT","STRING"]}\n'


def parse(*chunks, **options):
    parser = StreamedRowParser(lambda columns: arrow_schema(columns, feed="f"), **options)
    blocks = [block for chunk in chunks for block in parser.feed(chunk)]
    last, end = parser.finish()
    blocks = [block for block in [*blocks, last] if block.lines]
    rows = [list(row.values()) for block in blocks for row in block.table.to_pylist()]
    return rows, [(row.raw, row.line) for block in blocks for row in block.rejected], end


def row(*values):
    return f'{{"row":{{"columns":{json.dumps(values, separators=(",", ":"), ensure_ascii=False)}}}}}'.encode()


def test_parser_reads_a_stream_pull_query():
    rows, rejected, end = parse(HEADER + b",\n" + row(1, "a") + b',\n{"finalMessage":"Query Completed"}]')
    assert (rows, rejected) == ([[1, "a"]], [])
    assert (end.final_message, end.closed, end.partial, end.error) == ("Query Completed", True, False, None)
    assert end.header.query_id == "q1"
    assert end.header.columns == (Column("ID", KsqlScalar("BIGINT"), key=True), Column("NAME", KsqlScalar("STRING")))
    assert not end.header.delimited


def test_parser_reads_a_table_pull_query():
    rows, _, end = parse(HEADER + b",\n" + row(1, "a") + b",\n" + row(2, "b") + b"]")
    assert rows == [[1, "a"], [2, "b"]]
    assert (end.final_message, end.closed, end.rows) == (None, True, 2)


def test_parser_reads_a_response_without_rows():
    rows, _, end = parse(HEADER + b"]")
    assert (rows, end.closed, end.rows) == ([], True, 0)


def test_parser_reads_the_ending_of_old_servers():
    rows, _, end = parse(HEADER + b",\n" + row(1, "a") + b",\n]")
    assert (rows, end.closed, end.final_message, end.partial) == ([[1, "a"]], True, None, False)


def test_parser_skips_keepalives():
    rows, rejected, end = parse(HEADER + b",\n", b"\n", b"\r\n", row(1, "a") + b",\n", b"\n", b"\n")
    assert (rows, rejected) == ([[1, "a"]], [])
    assert not end.closed
    assert not end.partial


def test_parser_counts_tombstones_apart():
    tombstone = b'{"row":{"columns":[10,null],"tombstone":true}},\n'
    rows, rejected, end = parse(HEADER + b",\n" + row(1, "a") + b",\n" + tombstone * 2 + row(2, "b") + b",\n")
    assert (rows, rejected) == ([[1, "a"], [2, "b"]], [])
    assert (end.rows, end.tombstones, end.rejected) == (2, 2, 0)


def test_parser_keeps_tombstones_where_they_are_wanted():
    tombstone = b'{"row":{"columns":[10,null],"tombstone":true}},\n'
    sent = HEADER + b",\n" + row(1, "a") + b",\n" + tombstone + row(2, "b") + b",\n"
    rows, rejected, end = parse(sent, keeps_tombstones=True)
    assert (rows, rejected) == ([[1, "a"], [10, None], [2, "b"]], [])
    assert (end.rows, end.tombstones) == (3, 1)


def test_parser_takes_rows_with_siblings_and_ignores_tokens():
    sibling = b'{"row":{"columns":[1,"a"]},"sourceHost":"h:8088"},\n'
    tokens = b'{"consistencyToken":{"consistencyToken":"x"}},\n{"continuationToken":{"continuationToken":"y"}},\n'
    rows, rejected, end = parse(HEADER + b",\n" + sibling + tokens + b"]")
    assert (rows, rejected, end.error) == ([[1, "a"]], [], None)


def test_parser_reports_the_first_error_and_keeps_the_rows_before_it():
    error = '{"errorMessage":{"@type":"generic_error","error_code":%d,"message":"%s"}},\n'
    text = (
        HEADER + b",\n" + row(1, "a") + b",\n" + (error % (50000, "boom\\nat x")).encode() + (error % (1, "y")).encode()
    )
    rows, _, end = parse(text)
    assert rows == [[1, "a"]]
    assert end.error == ResponseError(50000, "boom at x")
    assert not end.closed


def test_parser_reads_the_delimited_format():
    error = b'{"@type":"generic_error","error_code":50000,"message":"Failure in processing"}\n'
    rows, _, end = parse(DELIMITED + b'[1,"a"]\n[2,"]"]\n' + error)
    assert rows == [[1, "a"], [2, "]"]]
    assert (end.header.delimited, end.header.query_id, end.closed) == (True, "q2", False)
    assert end.error == ResponseError(50000, "Failure in processing")


@pytest.mark.parametrize(
    "tail",
    [
        b'{"row":{"columns":[2,"b',
        b'{"row":{"columns":[2,"b]}}]',
        b'{"row":{"columns":[2,"b"]',
        b'{"row":{"columns":[2,"b"]}',
        b'{"finalMessage":"Query Comp',
    ],
)
def test_parser_takes_no_row_and_no_ending_from_a_cut_line(tail):
    rows, rejected, end = parse(HEADER + b",\n" + row(1, "a") + b",\n" + tail)
    assert (rows, rejected) == ([[1, "a"]], [])
    assert (end.partial, end.closed, end.final_message) == (True, False, None)


@pytest.mark.parametrize("tail", [row(2, "b"), row(2, "b") + b","])
def test_parser_takes_a_whole_last_row_without_newline(tail):
    rows, _, end = parse(HEADER + b",\n" + row(1, "a") + b",\n" + tail)
    assert rows == [[1, "a"], [2, "b"]]
    assert (end.partial, end.closed) == (False, False)


def test_parser_does_not_take_a_broken_line_for_the_ending():
    text = b'[{"header":{"queryId":"q","schema":"`A` ARRAY<INTEGER>"}},\n{"row":{"columns":[[1]\n'
    rows, rejected, end = parse(text)
    assert (rows, rejected, end.closed) == ([], [(b'{"row":{"columns":[[1]', 1)], False)


def test_parser_is_not_closed_when_something_follows_the_bracket():
    _, _, end = parse(HEADER + b",\n" + row(1, "a") + b"]\n" + row(2, "b") + b",\n")
    assert not end.closed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"<html>\n<body>", "does not begin with a header"),
        (b'[{"header":{"queryId":"q","schema":"`A` FOO"}},\n', "near 'FOO': expected a type"),
        (b'{"queryId":"q","columnNames":["A"],"columnTypes":[]}\n', "1 types, found 0"),
        (b"\xff\n", "does not begin with a header"),
    ],
)
def test_parser_reports_what_is_no_response(text, message):
    rows, _, end = parse(text, b'{"row":{"columns":[1]}},\n')
    assert (rows, end.header) == ([], None)
    assert end.error.code is None
    assert message in end.error.message


def test_parser_reports_an_error_in_place_of_a_header():
    _, _, end = parse(b'{"@type":"generic_error","error_code":40001,"message":"no"}')
    assert (end.error, end.header) == (ResponseError(40001, "no"), None)


@pytest.mark.parametrize(("text", "partial"), [(b"", False), (b'[{"header":{"que', True)])
def test_parser_has_no_header_when_the_response_broke_off_before_it(text, partial):
    _, _, end = parse(text)
    assert (end.header, end.partial, end.closed, end.error) == (None, partial, False, None)


def test_parser_gives_up_on_a_line_without_end():
    rows, _, end = parse(HEADER + b",\n", b"[" * 600, b"[" * 600, max_line_bytes=1000)
    assert rows == []
    assert end.error == ResponseError(None, "a line is longer than 1000 bytes")


def test_take_gives_the_rows_that_have_arrived():
    parser = StreamedRowParser(lambda columns: arrow_schema(columns, feed="f"))
    assert parser.take().lines == 0
    parser.feed(HEADER + b",\n" + row(1, "a") + b',\n{"row":{"colu')
    assert parser.header is not None
    assert parser.take().table.num_rows == 1
    assert parser.take().lines == 0
    parser.feed(b'mns":[2,"b"]}},\n')
    assert parser.take().table.to_pylist() == [{"id": 2, "name": "b"}]


def test_feed_cuts_one_big_chunk_into_blocks():
    parser = StreamedRowParser(lambda columns: arrow_schema(columns, feed="f"), block_bytes=1000)
    blocks = parser.feed(HEADER + b",\n" + (row(1, "a") + b",\n") * 1000)
    assert len(blocks) > 20
    assert sum(block.lines for block in blocks) + parser.take().lines == 1000


def test_feed_passes_on_what_the_schema_callback_raises():
    class Refused(Exception):
        pass

    def refuse(columns):
        raise Refused

    with pytest.raises(Refused):
        StreamedRowParser(refuse).feed(HEADER + b",\n")


@fuzz
@given(
    responses(st.one_of(exact.flat_kinds, exact.nested_kinds)),
    st.integers(0, 2**32),
    st.sampled_from([1, 64]),
    st.sampled_from([1, 300, 10_000, 1 << 23]),
    st.sampled_from(["1", "0"]),
)
def test_parser_agrees_with_the_exact_reader_however_the_bytes_are_cut(case, seed, fast, block_bytes, native):
    types, wrapped, lines = case
    dice = random.Random(seed)
    noise = [b"", b'{"row":{"columns":[],"tombstone":true}},', b'{"sourceHost":"h"},'] if wrapped else [b""]
    sent = [line for line in lines for line in [*dice.choices(noise, k=dice.random() < 0.02), line]]
    body = header_of(types, wrapped=wrapped) + b"".join(line + b"\n" for line in sent)
    body += b'{"finalMessage":"Query Completed"}]' if wrapped else b""
    with fast_from(fast), patch.dict(os.environ, {"DATALAKE_NATIVE": native}):
        rows, rejected, end = parse(*cut(body, dice), block_bytes=block_bytes)
    good, bad = expected(types, [line for line in lines if line.strip()], wrapped=wrapped)
    assert [(raw.strip(b" ,"), line) for raw, line in rejected] == [(raw.strip(b" ,"), line) for raw, line in bad]
    assert repr(rows) == repr(good)
    assert (end.rows, end.rejected, end.partial, end.error) == (len(good), len(bad), False, None)
    assert end.final_message == ("Query Completed" if wrapped else None)
    assert end.tombstones == sum(b"tombstone" in line for line in sent)


def header_of(types, *, wrapped):
    if wrapped:
        schema = ", ".join(f"`C{index}` {kind}" for index, kind in enumerate(types))
        return b"[" + json.dumps({"header": {"queryId": "q", "schema": schema}}).encode() + b",\n"
    names = [f"C{index}" for index in range(len(types))]
    return json.dumps({"queryId": "q", "columnNames": names, "columnTypes": list(map(str, types))}).encode() + b"\n"


def cut(body, dice):
    size = dice.choice([7, 100, 5000, len(body)])
    spots = sorted(dice.choices(range(len(body) + 1), k=len(body) // size))
    return [body[start:stop] for start, stop in zip([0, *spots], [*spots, len(body)], strict=True)]


def test_parser_holds_a_few_blocks_of_a_long_response():
    parser = StreamedRowParser(lambda columns: arrow_schema(columns, feed="f"), block_bytes=1 << 16)
    parser.feed(HEADER + b",\n")
    chunk = (row(1, "a" * 100) + b",\n") * 1000
    before = pa.total_allocated_bytes()
    for _ in range(200):
        for block in parser.feed(chunk):
            assert block.rejected == ()
    assert len(parser._received._memory) < 2 * len(chunk)
    assert pa.total_allocated_bytes() - before < 4 * len(chunk)
