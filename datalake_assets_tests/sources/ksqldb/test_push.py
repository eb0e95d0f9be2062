"""Answers to push queries: when they end, which rows they number, and what of them is landed."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pytest

from datalake_assets.core.batches import ReadRequest, SourceBatch
from datalake_assets.errors import IncompleteResponse, InvalidFeed, SourceRefused
from datalake_assets_tests.sources.ksqldb.answers import HEADER, NUMBERED, STREAM, feed, landed, serving, sql_of
from datalake_assets_tests.sources.ksqldb.scripted_server import STREAMED, Answer, description, rows

pytestmark = pytest.mark.usefixtures("no_waits")


def pushed(*numbered: tuple[int, int, int], pause_s: float = 0.0, linger_s: float = 60.0) -> Answer:
    """Rows of (id, source partition, offset), then silence."""

    def body() -> Iterator[bytes]:
        yield f'[{{"header":{{"queryId":"q1","schema":"{NUMBERED}"}}}},\n'.encode()
        for number, partition, offset in numbered:
            time.sleep(pause_s)
            yield json.dumps({"row": {"columns": [number, "x", 0, partition, offset]}}).encode() + b",\n"
        for _ in range(int(linger_s / 0.05)):
            time.sleep(0.05)
            yield b"\n"  # what servers before 0.24 send while nothing happens

    return Answer(body(), content_type=STREAMED)


def numbers(batches: Iterable[SourceBatch]) -> list[tuple[int, int, int]]:
    return [
        row
        for batch in batches
        for row in zip(
            batch.rows.column("id").to_pylist(),
            batch.source_partitions.to_pylist(),
            batch.source_offsets.to_pylist(),
            strict=True,
        )
    ]


def test_push_ends_when_no_row_came_for_the_idle_time() -> None:
    with serving(pushed((1, 0, 0), (2, 0, 1), (3, 1, 0), pause_s=0.1)) as server:
        began = time.monotonic()
        batches = landed(server, feed(mode="offsets"))
        assert time.monotonic() - began < 30  # the server would go on for twice as long
    assert numbers(batches) == [(1, 0, 0), (2, 0, 1), (3, 1, 0)]
    assert batches[0].rows.schema.names == ["id", "t", "rowtime"]
    assert batches[0].source_partitions.type == pa.int32()
    assert sql_of(server) == ["SELECT `ID`, `T`, ROWTIME, ROWPARTITION, ROWOFFSET FROM `S` EMIT CHANGES;"]
    asked = next(request for request in server.requests if request.path == "/query-stream")
    assert asked.body["properties"] == {"auto.offset.reset": "earliest"}
    assert server.requests[-1].path == "/close-query"
    assert server.requests[-1].body == {"queryId": "q1"}


def test_header_and_rows_that_come_in_pieces_are_read_as_if_at_once() -> None:
    def body() -> Iterator[bytes]:
        whole = b"".join(rows(NUMBERED, [1, "x", 0, 0, 0], [2, "y", 0, 0, 1]).body)
        for start in range(0, len(whole), 60):
            yield whole[start : start + 60]
            time.sleep(0.1)  # longer than pieces are waited for

    with serving(lambda _: Answer(body(), content_type=STREAMED)) as server:
        assert numbers(landed(server, feed(mode="offsets", idle_s=60))) == [(1, 0, 0), (2, 0, 1)]


def test_push_that_the_server_ends_keeps_its_rows(caplog: pytest.LogCaptureFixture) -> None:
    with serving(rows(NUMBERED, [1, "x", 0, 0, 0])) as server:
        assert numbers(landed(server, feed(mode="offsets", idle_s=60))) == [(1, 0, 0)]
    assert "not caught up: the server ended the query; what came until then is landed" in caplog.text


@pytest.mark.parametrize(
    "end",
    [b"", b'{"row":{"col', b'{"errorMessage":{"error_code":50000,"message":"boom"}}]'],
)
def test_push_that_breaks_is_incomplete(end: bytes) -> None:
    with serving(rows(NUMBERED, [1, "x", 0, 0, 0], end=end)) as server, pytest.raises(IncompleteResponse):
        landed(server, feed(mode="offsets", idle_s=60))


def test_push_from_a_busy_stream_ends() -> None:
    def body() -> Iterator[bytes]:
        yield f'[{{"header":{{"queryId":"q1","schema":"{NUMBERED}"}}}},\n'.encode()
        for offset in itertools.count():
            now_ms = int(time.time() * 1000) + 5 if offset else 0
            yield json.dumps({"row": {"columns": [offset, "x", now_ms, 0, offset]}}).encode() + b",\n"
            time.sleep(0.02)

    with serving(lambda _: Answer(body(), content_type=STREAMED)) as server:
        offsets = [offset for _, _, offset in numbers(landed(server, feed(mode="offsets")))]
    assert len(offsets) > 5
    assert offsets == list(range(len(offsets)))


def test_rejected_rows_say_where_they_stood() -> None:
    answer = rows(NUMBERED, [1, "x", 0, 0, 7], ["one", "x", 0, 3, 8], ["x", "y", 0, 0, 9], ["x", 0, 0, 9])
    with serving(answer) as server:
        batches = landed(server, feed(mode="offsets", idle_s=60))
    rejected = [row for batch in batches for row in batch.rejected]
    assert [row.position.split("@")[0] for row in rejected] == ["3:8", "0:9", "line:4"]
    assert rejected[0].raw == b'{"row":{"columns":["one", "x", 0, 3, 8]}}'
    assert numbers(batches) == [(1, 0, 7)]


def test_rows_before_the_start_are_left_out_and_rejected_ones_too() -> None:
    answer = rows(NUMBERED, ["bad", "x", 0, 0, 4], [1, "x", 0, 0, 5], [2, "x", 0, 1, 0])
    with serving(answer) as server:
        batches = landed(server, feed(mode="offsets", idle_s=60), ReadRequest(start_offsets={0: 5, 1: 0}))
    assert numbers(batches) == [(1, 0, 5), (2, 1, 0)]
    assert not any(batch.rejected for batch in batches)
    assert sql_of(server)[0].endswith("FROM `S` WHERE (ROWPARTITION <> 0 OR ROWOFFSET >= 4) EMIT CHANGES;")


NUMBERED_COLUMNS = {**STREAM, "P": "INTEGER", "O": "BIGINT"}


def test_offset_columns_are_dropped_unless_renamed() -> None:
    answer = rows("`ID` INTEGER, `T` STRING, `ROWTIME` BIGINT, `P` INTEGER, `O` BIGINT", [1, "x", 0, 2, 5])
    with serving(answer, described=description("S", **NUMBERED_COLUMNS)) as server:
        dropped = landed(server, feed(mode="offsets", offset_columns=("p", "o")))
        kept = landed(server, feed(mode="offsets", offset_columns=("P", "O"), rename={"O": "src_off"}))
    assert numbers(dropped) == numbers(kept) == [(1, 2, 5)]
    assert dropped[0].rows.schema.names == ["id", "t", "rowtime"]
    assert kept[0].rows.schema.names == ["id", "t", "rowtime", "src_off"]


def test_offset_columns_with_nulls_are_refused() -> None:
    answer = rows("`ID` INTEGER, `T` STRING, `ROWTIME` BIGINT, `P` INTEGER, `O` BIGINT", [1, "x", 0, None, 5])
    serve = serving(answer, described=description("S", **NUMBERED_COLUMNS))
    with serve as server, pytest.raises(SourceRefused, match="rows without a number in 'P' or 'O'"):
        landed(server, feed(mode="offsets", offset_columns=("P", "O")))


def test_offset_columns_must_exist() -> None:
    with serving(rows(HEADER)) as server, pytest.raises(InvalidFeed, match="offset column 'P' is no column of S"):
        landed(server, feed(mode="offsets", offset_columns=("P", "O")))
