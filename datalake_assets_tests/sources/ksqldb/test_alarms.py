"""Data that was lost, and topics that were recreated: real alarms, and none where there is nothing to alarm about.

The server answers queries from SQLite, so that what it has is exactly what a test says.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
import stamina

from datalake_assets.core.batches import Batches, ReadRequest
from datalake_assets.errors import SourceDataLost, SourceRecreated, SourceRefused, SourceUnavailable
from datalake_assets.feed import Feed
from datalake_assets.sources.ksqldb.failures import ATTEMPTS
from datalake_assets.sources.ksqldb.source import KsqlDB
from datalake_assets_tests.sources.ksqldb.scripted_server import (
    STREAMED,
    Answer,
    Request,
    ScriptedServer,
    description,
    info,
    scripted,
)

COLUMNS = {"ID": "INTEGER", "P": "INTEGER", "O": "BIGINT"}
PSEUDO = {"ROWTIME": "BIGINT", "ROWPARTITION": "INTEGER", "ROWOFFSET": "BIGINT"}
#: Of silence, which a busy machine makes none of.
IDLE_S = 1.0
PUSH, PULL = None, ("P", "O")
either = pytest.mark.parametrize("offset_columns", [PUSH, PULL], ids=["push", "pull"])

Topic = dict[int, Iterable[int]]


_opened: list[KsqlDB] = []


@pytest.fixture(autouse=True)
def _closed_and_without_waits() -> Iterator[None]:
    with stamina.set_testing(True, attempts=ATTEMPTS):
        yield
    while _opened:
        _opened.pop().close()


@contextmanager
def topic(
    offsets: Topic, *, delay_s: float = 0.0, pause_s: float = 0.0, version: str = "0.29.0", kafka: str = ""
) -> Iterator[ScriptedServer]:
    """Serves a stream with these offsets by source partition; filtered push queries begin late, others pause."""
    running: dict[str, threading.Event] = {}

    def handle(request: Request) -> Answer:
        if request.path == "/close-query":
            running[request.body["queryId"]].set()
        if request.path == "/query-stream":
            return Answer(answer(request.body["sql"]), content_type=STREAMED)
        return {"/info": info(version), "/ksql": description("S", topic=kafka, **COLUMNS)}.get(request.path, Answer())

    def answer(sql: str) -> Iterator[bytes]:
        plain, name = sql.replace(" EMIT CHANGES", ""), f"q{len(running)}"
        closed = running[name] = threading.Event()
        connection = sqlite3.connect(":memory:")
        connection.execute(f"CREATE TABLE S ({', '.join([*COLUMNS, *PSEUDO])})")
        rows = [(p * 1000 + o, p, o, 0, p, o) for p, own in offsets.items() for o in own]
        connection.executemany("INSERT INTO S VALUES (?, ?, ?, ?, ?, ?)", rows)
        cursor = connection.execute(plain)
        names = [column[0] for column in cursor.description]
        schema = ", ".join(f"`{name}` {(COLUMNS | PSEUDO)[name]}" for name in names)
        yield (json.dumps([{"header": {"queryId": name, "schema": schema}}])[:-1] + ",\n").encode()
        if plain != sql and "WHERE" in sql:
            closed.wait(delay_s)
        found = [json.dumps({"row": {"columns": row}}).encode() + b",\n" for row in cursor]
        connection.close()
        yield b"".join(found[:2])
        if "WHERE" not in sql and found[2:]:
            closed.wait(pause_s)
        yield b"".join(found[2:])
        if plain != sql:
            closed.wait(60)
        yield b'{"finalMessage":"Query Completed"}]'

    with scripted(handle) as server:
        yield server


def read(
    server: ScriptedServer, request: ReadRequest, columns: tuple[str, str] | None, timeout_s: float = 5
) -> Batches:
    source = {"object": "S", "offset_columns": columns, "idle_s": IDLE_S}
    _opened.append(KsqlDB(server.url, timeout_s=timeout_s))
    return _opened[-1].read(Feed(name="s", kind="stream", source=source), request)


def positions(batches: Batches) -> list[tuple[int, int]]:
    return [
        at
        for batch in batches
        for at in zip(batch.source_partitions.to_pylist(), batch.source_offsets.to_pylist(), strict=True)
    ]


def queries(server: ScriptedServer) -> int:
    return server.paths().count("/query-stream")


@either
@pytest.mark.parametrize(
    ("offsets", "new"),
    [
        pytest.param({0: range(10), 1: range(5)}, [], id="nothing new"),
        pytest.param({0: range(13), 1: range(5)}, [(0, 10), (0, 11), (0, 12)], id="new rows"),
        pytest.param({0: range(10), 1: range(6), 7: range(2)}, [(1, 5), (7, 0), (7, 1)], id="a new partition"),
        pytest.param({0: range(9, 12), 1: range(4, 6)}, [(0, 10), (0, 11), (1, 5)], id="all but one row expired"),
        pytest.param({0: range(10, 12), 1: range(5, 6)}, [(0, 10), (0, 11), (1, 5)], id="everything landed expired"),
    ],
)
def test_intact_source_is_read_from_the_positions_by_one_query(
    offsets: Topic, new: list[tuple[int, int]], offset_columns: tuple[str, str] | None
) -> None:
    with topic(offsets) as server:
        assert positions(read(server, ReadRequest(start_offsets={0: 10, 1: 5}), offset_columns)) == new
        assert queries(server) == 1


@either
@pytest.mark.parametrize(
    ("offsets", "new"),
    [
        pytest.param({0: [*range(8), 12, 13]}, [(0, 12), (0, 13)], id="compaction left a gap"),
        pytest.param({}, [], id="everything expired and nothing came"),
        pytest.param({1: [3]}, [(1, 3)], id="another partition's rows came"),
    ],
)
def test_doubt_is_settled_by_one_more_query(
    offsets: Topic, new: list[tuple[int, int]], offset_columns: tuple[str, str] | None
) -> None:
    with topic(offsets) as server:
        assert positions(read(server, ReadRequest(start_offsets={0: 10}), offset_columns)) == new
        # a push query's silence from the beginning is looked into as well: is there a row at all?
        assert queries(server) == (3 if offset_columns is PUSH and not offsets else 2)


@either
def test_rows_that_expired_unread_are_an_alarm(offset_columns: tuple[str, str] | None) -> None:
    with topic({0: range(10), 1: range(8, 20)}) as server:
        batches = read(server, ReadRequest(start_offsets={0: 10, 1: 5}), offset_columns)
        with pytest.raises(SourceDataLost) as raised:
            positions(batches)
        assert str(raised.value) == (
            f"{server.url} S: partition 1: rows from offset 5 to 7 expired before they were read; "
            "to go on after the gap, run it again with --new-epoch"
        )
        assert queries(server) == 2


@either
def test_recreated_topic_is_an_alarm(offset_columns: tuple[str, str] | None) -> None:
    with topic({0: range(4), 1: range(20)}) as server:
        batches = read(server, ReadRequest(start_offsets={0: 10, 1: 5}), offset_columns)
        with pytest.raises(SourceRecreated, match=r"partition 0 ends .* --new-epoch"):
            positions(batches)
        assert not batches.recreated
        assert queries(server) == 2


@either
def test_new_epoch_reads_a_recreated_topic_from_its_beginning(offset_columns: tuple[str, str] | None) -> None:
    with topic({0: range(2), 1: range(3)}) as server:
        batches = read(server, ReadRequest(start_offsets={0: 10, 1: 2}, new_epoch=True), offset_columns)
        iterator = iter(batches)
        next(iterator)
        assert batches.recreated
        iterator.close()
        assert positions(batches) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]


@either
def test_new_epoch_reads_what_is_left_where_rows_expired(offset_columns: tuple[str, str] | None) -> None:
    with topic({0: range(15, 17), 1: range(4, 6)}) as server:
        batches = read(server, ReadRequest(start_offsets={0: 10, 1: 5}, new_epoch=True), offset_columns)
        assert positions(batches) == [(0, 15), (0, 16), (1, 4), (1, 5)]
        assert not batches.recreated


def test_a_stream_of_another_topic_is_an_alarm_and_one_of_the_same_is_none() -> None:
    with topic({0: range(5)}, kafka="orders") as server:
        batches = list(read(server, ReadRequest(start_offsets={0: 3}), PUSH))
        assert {each.source_id for each in batches} == {"topic orders"}
        again = ReadRequest(start_offsets={0: 3}, source_id="topic orders")
        assert positions(read(server, again, PUSH)) == [(0, 3), (0, 4)]
        other = ReadRequest(start_offsets={0: 3}, source_id="topic payments")
        with pytest.raises(SourceRecreated, match="what was landed is of topic payments, and it reads topic orders"):
            positions(read(server, other, PUSH))
        assert positions(read(server, other, PULL)) == [(0, 3), (0, 4)]  # columns have the numbers of any topic
        anew = read(server, ReadRequest(start_offsets={0: 3}, source_id="topic payments", new_epoch=True), PUSH)
        assert positions(anew) == [(0, number) for number in range(5)]
        assert anew.recreated
        by_id = read(server, ReadRequest(start_offsets={0: 3}, source_id="6qB1"), PUSH)  # as Kafka read it before
        assert {each.source_id for each in by_id} == {"6qB1"}


@either
def test_rows_out_of_order_are_refused(offset_columns: tuple[str, str] | None) -> None:
    late = pytest.raises(SourceRefused, match="offset 3 of source partition 0 comes after later ones")
    with topic({0: [0, 1, 5, 3], 1: [0, 1, 0, 1]}) as server, late:
        positions(read(server, ReadRequest(), offset_columns))


def test_slow_scan_is_waited_for() -> None:
    with topic({0: range(12)}, delay_s=2 * IDLE_S) as server:
        assert positions(read(server, ReadRequest(start_offsets={0: 10}), PUSH)) == [(0, 10), (0, 11)]
        assert queries(server) == 2


@pytest.mark.parametrize("version", ["0.29.0", "0.24.0"])
def test_scan_that_pauses_is_no_alarm(version: str) -> None:
    """A pause is no end: what was read so far looked like a topic that was made anew, and --new-epoch doubles rows."""
    with topic({0: range(12)}, delay_s=2 * IDLE_S, pause_s=2 * IDLE_S, version=version) as server:
        assert positions(read(server, ReadRequest(start_offsets={0: 10}), PUSH)) == [(0, 10), (0, 11)]
        assert queries(server) == 2


def test_scan_that_never_arrives_is_an_error() -> None:
    with topic({0: range(12)}, delay_s=60) as server:
        batches = read(server, ReadRequest(start_offsets={0: 10}), PUSH, timeout_s=3 * IDLE_S)
        with pytest.raises(SourceUnavailable, match=r"did not reach the position in partitions \[0\]"):
            positions(batches)


@either
def test_first_read_asks_for_everything(offset_columns: tuple[str, str] | None) -> None:
    with topic({0: range(3, 5)}) as server:
        assert positions(read(server, ReadRequest(), offset_columns)) == [(0, 3), (0, 4)]
        assert positions(read(server, ReadRequest(start_offsets={0: 0}), offset_columns)) == [(0, 3), (0, 4)]
        assert queries(server) == 2
