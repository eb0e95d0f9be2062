"""Rows that went to quarantine as ksqlDB sent them are decoded again in the columns that a read has now."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from datalake_assets.core.batches import ReadRequest
from datalake_assets.demo.ksqldb_server.blocks import GeneratorConfig
from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer
from datalake_assets.feed import parse_feed
from datalake_assets.sources.base import DecodesAgain
from datalake_assets.sources.ksqldb.source import KsqlDB
from datalake_assets.sources.ksqldb.statements import described, select

ROWS = 20
FEED = parse_feed(
    json.dumps({"name": "e", "kind": "stream", "source": {"type": "ksqldb", "object": "USER_EVENTS", "idle_s": 1}})
)


@pytest.fixture
def server() -> Iterator[KsqlServer]:
    with KsqlServer(GeneratorConfig(records=ROWS)) as running:
        yield running


@pytest.fixture
def source(server: KsqlServer) -> Iterator[KsqlDB]:
    opened = KsqlDB(server.url)
    yield opened
    opened.close()


def sent(server: KsqlServer, source: KsqlDB, *, wrapped: bool) -> list[bytes]:
    """What the server sends for the feed's query, line by line."""
    columns = described(source._client, "USER_EVENTS").columns
    sql = select([*columns, "ROWTIME", "ROWPARTITION", "ROWOFFSET"], "USER_EVENTS", push=True)
    accept = {"accept": "application/vnd.ksqlapi.delimited.v1"}
    body = {"sql": sql, "properties": {"auto.offset.reset": "earliest"}}
    with httpx.stream("POST", f"{server.url}/query-stream", json=body, headers=accept) as answer:
        received = b""
        for chunk in answer.iter_bytes():  # httpx's lines end at U+2028 too
            received += chunk
            if received.count(b"\n") > ROWS:
                break
    rows = received.split(b"\n")[1 : ROWS + 1]
    return [b'{"row":{"columns":' + row + b"}}" if wrapped else row for row in rows]


@pytest.mark.parametrize("wrapped", [False, True])
def test_rows_are_decoded_as_a_read_decodes_them(server: KsqlServer, source: KsqlDB, *, wrapped: bool):
    assert isinstance(source, DecodesAgain)
    raws = sent(server, source, wrapped=wrapped)

    again = source.decode(FEED, raws)

    (read,) = source.read(FEED, ReadRequest())
    assert again.rows.schema.equals(read.rows.schema, check_metadata=True)
    assert repr(again.rows.to_pylist()) == repr(read.rows.to_pylist())  # equal, NaN too
    assert again.source_partitions.equals(read.source_partitions)
    assert again.source_offsets.equals(read.source_offsets)
    assert again.rejected == ()


def test_rows_that_still_do_not_fit_are_rejected_each_with_its_position(server: KsqlServer, source: KsqlDB):
    first, second, *_ = sent(server, source, wrapped=False)
    values = json.loads(second)
    values[1] = "not a number"

    again = source.decode(FEED, [first, json.dumps(values).encode(), b"junk\nof two lines"])

    assert again.rows.num_rows == 1
    assert {row.position.partition("@")[0] for row in again.rejected} == {f"{values[-2]}:{values[-1]}", "line:3"}


def test_nothing_decodable_is_an_empty_batch(source: KsqlDB):
    again = source.decode(FEED, [b"junk"])
    assert (again.rows.num_rows, len(again.source_offsets), len(again.rejected)) == (0, 0, 1)
