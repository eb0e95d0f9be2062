"""Reads that are begun before their turn: the rows of an export's own read, or none; and nothing of them is left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from datalake_assets.core.batches import Batches, InMemoryBatches, ReadRequest, RejectedRow, SourceBatch
from datalake_assets.demo.ksqldb_server.generator import GeneratorConfig
from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer
from datalake_assets.errors import IncompleteResponse, SchemaChanged, SourceUnavailable
from datalake_assets.feed import Feed
from datalake_assets.settings import load_settings
from datalake_assets.sources import reads_ahead
from datalake_assets.sources.reads_ahead import MOST_READS, ReadAhead, ReadsAhead
from datalake_assets.sources.systems import connect
from datalake_assets_tests.sources.ksqldb.answers import NUMBERED, serving
from datalake_assets_tests.sources.ksqldb.scripted_server import STREAMED, Answer

#: Longer than anything takes here that is to happen at all.
PATIENCE_S = 60.0
ASKED = ReadRequest(start_offsets={0: 3}, epoch=1)


def feed_of(name: str, **source: object) -> Feed:
    return Feed(name=name, kind="stream", source={"type": "ksqldb", "object": name.upper(), **source})  # type: ignore[arg-type]


def batch_of(*values: int, size: int = 1) -> SourceBatch:
    rows = pa.RecordBatch.from_pydict({"id": list(values), "t": ["x" * size] * len(values)})
    return SourceBatch(rows, pa.array([0] * len(values), pa.int32()), pa.array(values, pa.int64()))


def values(batches: Batches | Sequence[SourceBatch] | ReadAhead) -> list[int]:
    return [value for batch in batches for value in batch.rows.column("id").to_pylist()]


class Scripted:
    """A system whose reads give what a test says, when it says so; the test's thread never waits for more than that.

    Attributes:
        given: Batches that were asked for.
        ended: Set when a read has ended, in whatever way.
        closed: How many connections were closed.
    """

    def __init__(self, *batches: SourceBatch, error: Exception | None = None, unfinished: str = "") -> None:
        self._batches, self._error, self.unfinished = batches, error, unfinished
        self.schema, self.time_column, self.recreated = batch_of(0).rows.schema, "t", False
        self.request = ASKED
        self.given = self.reads = self.closed = 0
        self.goes_on, self.ended = threading.Event(), threading.Event()
        self.goes_on.set()
        self._is_wanted: Callable[[], bool] = lambda: True

    def read_ahead(self, feed: Feed, request: ReadRequest, *, is_wanted: Callable[[], bool]) -> Batches:
        assert request == ASKED
        self.reads += 1
        self._is_wanted = is_wanted
        return self

    def __iter__(self) -> Iterator[SourceBatch]:
        try:
            for batch in self._batches:
                self.given += 1
                yield batch
            while not self.goes_on.wait(0.01):
                if not self._is_wanted():
                    return
            if self._error is not None:
                raise self._error
        finally:
            self.ended.set()

    def acknowledge(self) -> None:
        raise AssertionError("the read of the export is what is acknowledged")

    @contextmanager
    def connect(self, type_: str) -> Iterator[Scripted]:
        assert type_ == "ksqldb"
        yield self
        self.closed += 1


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def begun(system: Scripted, clock: Clock | None = None) -> ReadAhead:
    return ReadAhead(feed_of("s"), ASKED, connect=system.connect, clock=clock or Clock())  # type: ignore[arg-type]


def ahead_of(system: Scripted, *feeds: Feed) -> ReadsAhead:
    return ReadsAhead(feeds or (feed_of("s"),), plan=lambda _: ASKED, connect=system.connect)  # type: ignore[arg-type]


def own(*batches: SourceBatch, request: ReadRequest = ASKED, unfinished: str = "") -> InMemoryBatches:
    return InMemoryBatches(batches or (batch_of(7, 8),), "t", request, unfinished=unfinished)


def test_rows_are_those_of_the_read_that_was_begun() -> None:
    system = Scripted(batch_of(3, 4), batch_of(5), unfinished="not caught up")
    with ahead_of(system) as ahead:
        ahead.begin(0)
        regular = own()
        batches = ahead.instead_of(feed_of("s"), regular)
        assert batches.schema == system.schema
        assert (batches.time_column, batches.request, batches.recreated) == ("t", ASKED, False)
        assert values(batches) == [3, 4, 5]
        assert batches.unfinished == "not caught up"
        batches.acknowledge()
        assert regular.acknowledged
    assert (system.reads, system.closed) == (1, 1)


def test_a_read_that_is_repeated_reads_anew_what_it_says_of_itself_too() -> None:
    system = Scripted(batch_of(3), unfinished="of the first")
    with ahead_of(system) as ahead:
        ahead.begin(0)
        batches = ahead.instead_of(feed_of("s"), own(unfinished="of another"))
        assert [values(batches), batches.unfinished] == [[3], "of the first"]
        assert [values(batches), batches.unfinished] == [[7, 8], "of another"]
        assert [values(batches), batches.unfinished] == [[7, 8], "of another"]
    assert system.reads == 1


def test_a_read_that_is_repeated_with_other_columns_is_refused() -> None:
    system = Scripted(batch_of(3))
    other = SourceBatch(pa.RecordBatch.from_pydict({"id": [1]}), pa.array([0], pa.int32()), pa.array([1], pa.int64()))
    with ahead_of(system) as ahead:
        ahead.begin(0)
        batches = ahead.instead_of(feed_of("s"), own(other))
        assert values(batches) == [3]
        with pytest.raises(SchemaChanged, match="the columns changed while it was being read"):
            list(batches)


def test_an_iteration_that_is_given_up_ends_the_read_that_was_begun() -> None:
    system = Scripted(batch_of(3))
    system.goes_on.clear()
    with ahead_of(system) as ahead:
        ahead.begin(0)
        rows = iter(ahead.instead_of(feed_of("s"), own()))
        assert next(rows).rows.num_rows == 1
        rows.close()  # type: ignore[attr-defined]
        assert system.ended.wait(PATIENCE_S)
    assert system.closed == 1


@pytest.mark.parametrize(
    "now",
    [
        ReadRequest(start_offsets={0: 4}, epoch=1),
        ReadRequest(start_offsets={0: 3}, epoch=2),
        ReadRequest(start_offsets={0: 3}, epoch=1, new_epoch=True),
        ReadRequest(start_offsets={0: 3}, epoch=1, source_id="another"),
    ],
    ids=["moved", "another epoch", "new epoch", "another topic"],
)
def test_a_read_from_elsewhere_than_an_export_would_begin_now_is_ended(now: ReadRequest) -> None:
    system = Scripted(batch_of(3))
    system.goes_on.clear()
    with ahead_of(system) as ahead:
        ahead.begin(0)
        regular = own(request=now)
        assert ahead.instead_of(feed_of("s"), regular) is regular
        assert system.ended.is_set()


def test_a_read_that_has_failed_when_its_turn_comes_is_left_to_the_export() -> None:
    system = Scripted(batch_of(3), error=SourceUnavailable("s", "too many queries"))
    with ahead_of(system) as ahead:
        ahead.begin(0)
        assert system.ended.wait(PATIENCE_S)
        ahead._begun["s"]._thread.join(PATIENCE_S)
        regular = own()
        assert ahead.instead_of(feed_of("s"), regular) is regular


def test_a_plan_that_fails_is_left_to_the_export() -> None:
    def plan(_: Feed) -> ReadRequest:
        raise SourceUnavailable("lake", "gone")

    with ReadsAhead([feed_of("s")], plan=plan, connect=Scripted().connect) as ahead:  # type: ignore[arg-type]
        ahead.begin(0)
        regular = own()
        assert ahead.instead_of(feed_of("s"), regular) is regular


def test_a_failure_after_that_is_the_export_s_after_the_rows_before_it() -> None:
    system = Scripted(batch_of(3), error=SourceUnavailable("s", "it broke"))
    system.goes_on.clear()
    read = begun(system)
    assert read.take(ASKED)
    rows = iter(read)
    assert values([next(rows)]) == [3]
    system.goes_on.set()
    with pytest.raises(SourceUnavailable, match="it broke"):
        next(rows)


def test_a_failure_before_its_columns_are_known_is_the_export_s() -> None:
    waits = threading.Event()

    class Refusing(Scripted):
        def read_ahead(self, feed: Feed, request: ReadRequest, *, is_wanted: Callable[[], bool]) -> Batches:
            assert waits.wait(PATIENCE_S)
            raise SourceUnavailable("s", "refused")

    read = begun(Refusing())
    assert read.take(ASKED)
    waits.set()
    with pytest.raises(SourceUnavailable, match="refused"):
        _ = read.schema


@pytest.mark.parametrize(("age_s", "is_taken"), [(60.0, True), (60.1, False)])
def test_rows_of_a_read_that_ended_long_ago_are_read_anew(age_s: float, *, is_taken: bool) -> None:
    clock, system = Clock(), Scripted(batch_of(3))
    read = begun(system, clock)
    read._thread.join(PATIENCE_S)
    clock.now = age_s
    assert read.take(ASKED) is is_taken
    assert [value for batch in read._batches for value in values([batch])] == ([3] if is_taken else [])


def test_a_read_that_goes_on_is_never_old() -> None:
    clock, system = Clock(), Scripted(batch_of(3))
    system.goes_on.clear()
    read = begun(system, clock)
    clock.now = 3600.0
    assert read.take(ASKED)
    system.goes_on.set()
    assert values(read) == [3]


def test_little_is_read_ahead_and_all_of_it_is_taken() -> None:
    batches = [batch_of(number, size=1 << 19) for number in range(20)]
    system = Scripted(*batches)
    read = begun(system)
    with read._changed:
        assert read._changed.wait_for(lambda: not read._has_room, PATIENCE_S)
    assert system.given <= 4  # two that fill it, one that waits for room, and one that was asked for meanwhile
    assert read.take(ASKED)
    assert values(read) == list(range(20))


def test_rows_that_were_put_aside_take_room_too() -> None:
    aside = SourceBatch(
        batch_of().rows,
        pa.array([], pa.int32()),
        pa.array([], pa.int64()),
        (RejectedRow(b"x" * (1 << 20), "odd", "0:1"),),
    )
    system = Scripted(aside, aside, aside, aside)
    read = begun(system)
    with read._changed:
        assert read._changed.wait_for(lambda: not read._has_room, PATIENCE_S)
    assert system.given <= 2
    assert read.take(ASKED)
    assert sum(len(batch.rejected) for batch in read) == 4


def test_a_read_that_nobody_takes_for_long_lets_its_server_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads_ahead, "_PATIENCE_S", 0.05)
    system = Scripted(*(batch_of(number, size=1 << 20) for number in range(5)))
    system.goes_on.clear()
    read = begun(system)
    assert system.ended.wait(PATIENCE_S)
    read._thread.join(PATIENCE_S)
    assert system.closed == 1
    assert not read._batches
    assert not read.take(ASKED)


def test_a_read_that_was_given_up_never_passes_for_one_that_ended() -> None:
    system = Scripted(batch_of(3), batch_of(4))
    system.goes_on.clear()
    read = begun(system)
    assert read.take(ASKED)
    rows = iter(read)
    assert values([next(rows)]) == [3]
    read.stop()
    assert system.ended.wait(PATIENCE_S)
    with pytest.raises(IncompleteResponse, match="the read was given up"):
        next(rows)


def test_a_system_that_reads_nothing_ahead_is_read_in_its_turn() -> None:
    @contextmanager
    def connect_to(_: str) -> Iterator[object]:
        yield object()

    with ReadsAhead([feed_of("s")], plan=lambda _: ASKED, connect=connect_to) as ahead:  # type: ignore[arg-type]
        ahead.begin(0)
        ahead._begun["s"]._thread.join(PATIENCE_S)
        regular = own()
        assert ahead.instead_of(feed_of("s"), regular) is regular


def test_a_read_that_was_taken_and_never_read_ends_with_its_turn() -> None:
    system = Scripted(*(batch_of(number, size=1 << 20) for number in range(5)))
    with ahead_of(system) as ahead:
        ahead.begin(0)
        assert ahead.instead_of(feed_of("s"), own()).schema == system.schema
        ahead.end(feed_of("s"))
        assert system.ended.wait(PATIENCE_S)


def test_a_few_reads_of_the_next_feeds_go_on_at_once_and_more_when_some_are_taken() -> None:
    system = Scripted(batch_of(3))
    system.goes_on.clear()
    feeds = [feed_of(f"s{number}") for number in range(MOST_READS + 2)]
    feeds.insert(1, feed_of("pulled", mode="pull"))
    with ahead_of(system, *feeds) as ahead:
        ahead.begin(0)
        assert [*ahead._begun] == [feed.name for feed in (feeds[0], *feeds[2 : MOST_READS + 1])]
        ahead.instead_of(feeds[0], own())
        ahead.end(feeds[0])
        ahead.begin(1)
        assert len(ahead._begun) == MOST_READS
        ahead.end(feeds[2])
        ahead.begin(0)
        assert "s0" not in ahead._begun  # none is begun twice
        assert "s1" not in ahead._begun
        threads = [each._thread for each in (*ahead._begun.values(), *ahead._taken.values())]
    assert not any(thread.is_alive() for thread in threads)
    assert system.reads == system.closed


def test_feeds_that_are_far_ahead_are_not_read_yet() -> None:
    far = [*(feed_of(f"p{number}", mode="pull") for number in range(8)), feed_of("s")]
    with ahead_of(Scripted(batch_of(3)), *far) as ahead:
        ahead.begin(0)
        assert not ahead._begun
        ahead.begin(1)
        assert [*ahead._begun] == ["s"]


@pytest.mark.parametrize(
    ("document", "does"),
    [
        ({"mode": "offsets"}, True),
        ({"mode": "pull"}, False),
        ({"mode": "offsets", "offset_columns": ["P", "O"]}, False),
    ],
)
def test_only_push_queries_end_by_silence(document: dict[str, object], *, does: bool) -> None:
    assert feed_of("s", **document).ends_by_silence is does
    table = Feed(name="t", kind="table", source={"type": "ksqldb", "object": "T"})  # type: ignore[arg-type]
    assert not table.ends_by_silence


# of a server that speaks ksqlDB's protocol


@pytest.fixture
def server() -> Iterator[KsqlServer]:
    start = datetime(2025, 1, 1, tzinfo=UTC)
    with KsqlServer(GeneratorConfig(start=start, records=300, events_per_day=100)) as server:
        yield server


def test_a_push_query_that_is_begun_ahead_gives_what_one_gives_in_its_turn(server: KsqlServer) -> None:
    server.faults.set("late_rows", 1500)  # more than the silence that ends it, once rows have come
    feed = feed_of("transaction_stream", idle_s=1)
    settings = load_settings(ksqldb_url=server.url)
    with (
        connect("ksqldb", settings) as source,
        ReadsAhead([feed], plan=lambda _: ReadRequest(), connect=lambda type_: connect(type_, settings)) as ahead,
    ):
        ahead.begin(0)
        regular = source.read(feed, ReadRequest())
        batches = ahead.instead_of(feed, regular)
        assert batches is not regular
        taken = pa.Table.from_batches([batch.rows for batch in batches])
        read = pa.Table.from_batches([batch.rows for batch in regular])
    assert taken.num_rows == 300
    keys = [("transaction_id", "ascending"), ("rowtime", "ascending")]
    assert taken.sort_by(keys).equals(read.sort_by(keys))


@pytest.mark.usefixtures("no_waits")
def test_a_push_query_that_is_not_wanted_any_more_is_ended_at_the_server() -> None:
    def silent() -> Iterator[bytes]:
        yield f'[{{"header":{{"queryId":"q1","schema":"{NUMBERED}"}}}},\n'.encode()
        while not over.wait(0.05):
            yield b"\n"

    over = threading.Event()
    with serving(lambda _: Answer(silent(), content_type=STREAMED)) as server:
        settings = load_settings(ksqldb_url=server.url)
        with ReadsAhead(
            [feed_of("s", idle_s=600)], plan=lambda _: ASKED, connect=lambda t: connect(t, settings)
        ) as ahead:
            ahead.begin(0)
            read = ahead._begun["s"]
            assert read.schema.names == ["id", "t", "rowtime"]
        read._thread.join(PATIENCE_S)
        assert server.requests[-1].path == "/close-query"
        assert server.requests[-1].body == {"queryId": "q1"}
        over.set()
