"""Silence at the beginning of a push query: a slow start, an empty stream, or nothing that anybody can tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from datalake_assets.core.batches import ReadRequest
from datalake_assets.demo.ksqldb_server.generator import GeneratorConfig
from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer
from datalake_assets.errors import IncompleteResponse, SourceUnavailable
from datalake_assets.sources.ksqldb.source import KsqlDB
from datalake_assets_tests.sources.ksqldb.answers import NUMBERED, feed, landed, serving, sql_of
from datalake_assets_tests.sources.ksqldb.scripted_server import STREAMED, Answer, Request, error, rows

pytestmark = pytest.mark.usefixtures("no_waits")

PUSHED = feed(mode="offsets")
ONE = "SELECT ROWTIME FROM `S` LIMIT 1;"
NO_ROW = rows("`ROWTIME` BIGINT")
A_ROW = rows("`ROWTIME` BIGINT", [0], end=b'{"finalMessage":"Limit Reached"}]')
HEADER = f'[{{"header":{{"queryId":"q1","schema":"{NUMBERED}"}}}},\n'.encode()


def silence(seconds: float = 60) -> Iterator[bytes]:
    yield HEADER
    for _ in range(int(seconds / 0.05)):
        time.sleep(0.05)
        yield b"\n"


def silent_but_for(one_row: Answer, pushed: Callable[[], Answer]) -> Callable[[Request], Answer]:
    return lambda request: one_row if request.body["sql"] == ONE else pushed()


def silent() -> Answer:
    return Answer(silence(), content_type=STREAMED)


def test_an_empty_stream_is_proved_to_be_empty() -> None:
    with serving(silent_but_for(NO_ROW, silent)) as server:
        source, began = KsqlDB(server.url, timeout_s=60), time.monotonic()
        assert list(source.read(PUSHED, ReadRequest())) == []
        assert time.monotonic() - began < 30  # half of what the server is silent for, and of patience
        source.close()
    assert sql_of(server)[1:] == [ONE]
    asked = [request for request in server.requests if request.path == "/query-stream"]
    assert asked[1].body["properties"] == {}


@pytest.mark.parametrize("request_", [ReadRequest(), ReadRequest(start_offsets={0: 7})], ids=["first", "resumed"])
@pytest.mark.parametrize(
    ("one_row", "why"),
    [
        (A_ROW, "although there are rows"),
        (error(40001, "Pull queries on streams are disabled", 400), "the server cannot tell whether there are rows"),
        (rows("`ROWTIME` BIGINT", end=b""), "the server cannot tell whether there are rows"),
    ],
    ids=["rows", "refused", "cut short"],
)
def test_silence_that_is_not_proved_is_an_error(one_row: Answer, why: str, request_: ReadRequest) -> None:
    with serving(silent_but_for(one_row, silent)) as server:
        source = KsqlDB(server.url, timeout_s=1.5)
        with pytest.raises(SourceUnavailable) as raised:
            list(source.read(PUSHED, request_))
        source.close()
    assert "no row came within 1.5 s" in str(raised.value)
    assert why in str(raised.value)
    assert "DATALAKE_KSQLDB_TIMEOUT_S" in str(raised.value)


def test_silence_of_a_server_that_ends_pulls_without_a_word_is_an_error() -> None:
    with serving(silent_but_for(NO_ROW, silent), version="0.24.0") as server:
        source = KsqlDB(server.url, timeout_s=1.5)
        with pytest.raises(SourceUnavailable, match="the server cannot tell whether there are rows"):
            list(source.read(PUSHED, ReadRequest()))
        source.close()
    assert ONE not in sql_of(server)


def test_a_query_that_the_server_ends_before_its_first_row_is_incomplete() -> None:
    incomplete = pytest.raises(IncompleteResponse, match="the server ended the query before it sent a row")
    with serving(silent_but_for(A_ROW, lambda: rows(NUMBERED))) as server, incomplete:
        landed(server, PUSHED)
    with serving(silent_but_for(NO_ROW, lambda: rows(NUMBERED))) as server:
        assert landed(server, PUSHED) == []


def test_a_query_that_the_server_ends_early_says_so() -> None:
    with serving(rows(NUMBERED, [1, "x", 0, 0, 0])) as server:
        source = KsqlDB(server.url, timeout_s=5)
        batches = source.read(PUSHED, ReadRequest())
        assert sum(batch.rows.num_rows for batch in batches) == 1
        source.close()
    assert batches.unfinished.startswith("not caught up: the server ended the query")


@pytest.fixture
def late() -> Iterator[KsqlServer]:
    """Twice as late as the feed's idle time."""
    with KsqlServer(GeneratorConfig(start=datetime(2025, 1, 1, tzinfo=UTC), records=50, events_per_day=100)) as server:
        server.faults.set("late_rows", 2000)
        yield server


def test_rows_that_begin_late_are_waited_for_on_every_run(late: KsqlServer) -> None:
    read = feed(mode="offsets", object="TRANSACTION_STREAM")
    source = KsqlDB(late.url, timeout_s=20)
    ends: dict[int, int] = {}
    for batch in source.read(read, ReadRequest()):
        for partition, offset in zip(
            batch.source_partitions.to_pylist(), batch.source_offsets.to_pylist(), strict=True
        ):
            ends[partition] = offset + 1
    assert sum(ends.values()) == 50
    assert list(source.read(read, ReadRequest(start_offsets=ends))) == []
    behind = {partition: end - 1 for partition, end in ends.items()}
    assert sum(batch.rows.num_rows for batch in source.read(read, ReadRequest(start_offsets=behind))) == len(ends)
    source.close()
