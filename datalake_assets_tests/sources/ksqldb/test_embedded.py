"""Every way to read, over HTTP from the embedded server, exactly against what the server was made from."""

from __future__ import annotations

import datetime as dt
import json
import ssl
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pytest
import trustme

from datalake_assets.core.batches import Batches, ReadRequest, SourceBatch
from datalake_assets.core.partitions import TimeWindow
from datalake_assets.demo.demo_feeds import demo_feeds
from datalake_assets.demo.ksqldb_server.generator import Generator, GeneratorConfig
from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer
from datalake_assets.demo.ksqldb_server.table_data import TableState
from datalake_assets.errors import (
    IncompleteResponse,
    SchemaChanged,
    SourceDataLost,
    SourceRecreated,
    SourceRefused,
    SourceUnavailable,
)
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.sources.ksqldb.failures import ATTEMPTS
from datalake_assets.sources.ksqldb.source import KsqlDB

CONFIG = GeneratorConfig(records=1_200, events_per_day=100)
FEEDS = {feed.name: feed for feed in demo_feeds(dt.date(2025, 1, 1))}
STREAMS = [name for name, feed in FEEDS.items() if feed.kind is FeedKind.STREAM]
TABLES = [name for name, feed in FEEDS.items() if feed.kind is FeedKind.TABLE]
ALL = ReadRequest()
#: Of silence, which a busy machine makes none of.
IDLE_S = 1.0


pytestmark = pytest.mark.usefixtures("no_waits")


@pytest.fixture(scope="module")
def server() -> Iterator[KsqlServer]:
    with KsqlServer(CONFIG) as running:
        yield running


@pytest.fixture
def source(server: KsqlServer) -> Iterator[KsqlDB]:
    opened = KsqlDB(server.url, timeout_s=10)
    yield opened
    opened.close()
    server.faults.clear()


def feed(name: str, *, time_column: str | None = None, **source: Any) -> Feed:
    own = FEEDS[name].source.model_dump() | {"idle_s": IDLE_S} | source
    return Feed(**FEEDS[name].model_dump() | {"source": own, "time_column": time_column, "tiles": ()})


def plain(value: Any, kind: pa.DataType) -> Any:
    """A generated value as Arrow shows it."""
    if value is None:
        return None
    if pa.types.is_struct(kind):
        lowered = {name.lower(): item for name, item in value.items()}
        return {field.name: plain(lowered[field.name], field.type) for field in kind}
    if pa.types.is_map(kind):
        return [[key, plain(item, kind.item_type)] for key, item in value.items()]
    if pa.types.is_list(kind):
        return [plain(item, kind.value_type) for item in value]
    return value


def counted(rows: Iterable[dict[str, Any]]) -> Counter[str]:
    def text(value: object) -> str:
        return value.isoformat() if isinstance(value, dt.date | dt.time) else repr(value)

    return Counter(json.dumps(row, sort_keys=True, default=text) for row in rows)


def truth(stream: str, schema: pa.Schema, config: GeneratorConfig = CONFIG) -> list[dict[str, Any]]:
    rows = ({name.lower(): value for name, value in row.items()} for row in Generator(config).rows(stream.upper()))
    extra = ["rowpartition", "rowoffset"]
    return [
        {field.name: plain(row[field.name], field.type) for field in schema} | {name: row[name] for name in extra}
        for row in rows
    ]


def landed(batches: Iterable[SourceBatch]) -> list[dict[str, Any]]:
    rows = []
    for batch in batches:
        assert not batch.rejected
        numbers = (
            {"rowpartition": batch.source_partitions, "rowoffset": batch.source_offsets}
            if batch.source_offsets is not None
            else {}
        )
        columns = dict(zip(batch.rows.schema.names, batch.rows.columns, strict=True)) | numbers
        rows += pa.table(columns).to_pylist() if columns else []
    return rows


def without_numbers(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in row if name not in {"rowpartition", "rowoffset"}} for row in rows]


def day(number: int) -> TimeWindow:
    start = dt.datetime(2025, 1, 1, tzinfo=dt.UTC) + dt.timedelta(days=number)
    return TimeWindow(start, start + dt.timedelta(days=1))


@pytest.mark.parametrize("name", STREAMS)
def test_stream_is_read_exactly(source: KsqlDB, name: str) -> None:
    batches = source.read(feed(name), ALL)
    rows = landed(batches)
    expected = truth(name, batches.schema)
    numbered = name != "transaction_alerts"
    assert counted(rows) == counted(expected if numbered else without_numbers(expected))


@pytest.mark.parametrize("name", STREAMS)
def test_pulled_stream_is_read_exactly(source: KsqlDB, name: str) -> None:
    batches = source.read(feed(name, mode="pull", offset_columns=None), ALL)
    assert batches.time_column == "rowtime"
    assert counted(landed(batches)) == counted(without_numbers(truth(name, batches.schema)))


@pytest.mark.parametrize("name", TABLES)
def test_table_is_read_exactly(source: KsqlDB, name: str) -> None:
    batches = source.read(feed(name), ALL)
    state = TableState(CONFIG, name.upper())
    names = [column.lower() for column, _ in state.spec.columns]
    values = state.rows(CONFIG.records or 0).values()
    expected = [dict(zip(names, row[: len(names)], strict=True)) for row in values]
    kinds = {field.name: field.type for field in batches.schema}
    assert list(kinds) == names
    assert counted(landed(batches)) == counted(
        {name: plain(value, kinds[name]) for name, value in row.items()} for row in expected
    )


@pytest.mark.parametrize("name", ["user_events", "transaction_flattened"])
def test_read_goes_on_from_its_positions(source: KsqlDB, name: str) -> None:
    starts = {0: 50, 1: 300, 2: 299}  # source partition 1 is at its end; 3 was never read
    batches = source.read(feed(name), ReadRequest(start_offsets=starts))
    expected = [row for row in truth(name, batches.schema) if row["rowoffset"] >= starts.get(row["rowpartition"], 0)]
    assert counted(landed(batches)) == counted(expected)


def test_days_add_up(source: KsqlDB) -> None:
    counts = Generator(CONFIG).rows_per_day("TRANSACTION_ALERTS")
    everything: Counter[str] = Counter()
    for number, date in enumerate(counts):
        batches = source.read(feed("transaction_alerts"), ReadRequest(window=day(number)))
        rows = landed(batches)
        assert len(rows) == counts[date]
        assert {row["rowtime"].date() for row in rows} == {date}
        everything += counted(rows)
    assert everything == counted(without_numbers(truth("transaction_alerts", batches.schema)))


@pytest.mark.parametrize("mode", ["pull", "offsets"])
def test_window_is_on_the_time_column(source: KsqlDB, mode: str) -> None:
    read = feed("transaction_stream", time_column="event_time", mode=mode)
    batches = source.read(read, ReadRequest(window=day(3)))
    rows = without_numbers(landed(batches))
    assert "rowtime" not in batches.schema.names
    expected = without_numbers(truth("transaction_stream", batches.schema))
    window = day(3)
    assert counted(rows) == counted(
        row for row in expected if row["event_time"] is not None and window.contains(row["event_time"])
    )
    assert rows


def test_schema_query_serves_the_first_iteration_and_every_iteration_reads_anew(source: KsqlDB) -> None:
    batches = source.read(feed("fraud_scores"), ALL)
    assert batches.schema.names[0] == "user_id"
    assert counted(landed(batches)) == counted(landed(batches))


def test_expired_rows_are_an_alarm() -> None:
    with KsqlServer(GeneratorConfig(records=1_200, retention_rows=400)) as server:
        for name in ("user_events", "transaction_flattened"):
            source = KsqlDB(server.url, timeout_s=4)  # the first is silent for so long, twice, before it is an alarm
            with pytest.raises(SourceDataLost, match="expired before they were read"):
                list(source.read(feed(name), ReadRequest(start_offsets={0: 100})))
            rows = landed(source.read(feed(name), ReadRequest(start_offsets={0: 100}, new_epoch=True)))
            assert len(rows) == 400
            assert landed(source.read(feed(name), ReadRequest(start_offsets=dict.fromkeys(range(4), 300)))) == []
            source.close()


def test_topic_with_fewer_rows_than_landed_is_an_alarm() -> None:
    with KsqlServer(GeneratorConfig(records=400)) as server:
        for name in ("user_events", "transaction_flattened"):
            source = KsqlDB(server.url, timeout_s=4)  # the first is silent for so long, twice, before it is an alarm
            with pytest.raises(SourceRecreated, match="ends at offset"):
                list(source.read(feed(name), ReadRequest(start_offsets={0: 750, 3: 750})))
            batches = source.read(feed(name), ReadRequest(start_offsets={0: 750, 3: 750}, new_epoch=True))
            assert len(landed(batches)) == 400
            assert batches.recreated
            source.close()


ONE_OF_EACH = ["user_events", "transaction_flattened", "transaction_alerts", "fraud_scores"]


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("fault", ["drop_after_rows", "error_after_rows"])
def test_broken_answer_is_incomplete(source: KsqlDB, server: KsqlServer, name: str, fault: Any) -> None:
    server.faults.set(fault, 50, source=name.upper(), times=ATTEMPTS)
    with pytest.raises(IncompleteResponse, match=name.upper()):
        list(source.read(feed(name), ALL))


@pytest.mark.parametrize("name", ["user_events", "transaction_alerts"])
def test_broken_answer_is_read_again(source: KsqlDB, server: KsqlServer, name: str) -> None:
    server.faults.set("drop_after_rows", 50, source=name.upper(), times=1)
    assert len(landed(source.read(feed(name), ALL))) == CONFIG.records


@pytest.mark.parametrize("name", ["transaction_flattened", "transaction_alerts"])
def test_stream_pull_without_its_final_message_is_incomplete(source: KsqlDB, server: KsqlServer, name: str) -> None:
    server.faults.set("no_final_message", source=name.upper(), times=ATTEMPTS)
    with pytest.raises(IncompleteResponse, match="without its completion message"):
        list(source.read(feed(name), ALL))


@pytest.mark.parametrize("name", ["user_events", "transaction_flattened", "transaction_alerts"])
@pytest.mark.parametrize("fault", ["garbage_row", "short_row"])
def test_bad_row_is_rejected_and_the_others_are_read(source: KsqlDB, server: KsqlServer, name: str, fault: Any) -> None:
    server.faults.set(fault, 20, source=name.upper(), times=1)
    batches = list(source.read(feed(name), ALL))
    rejected = [row for batch in batches for row in batch.rejected]
    assert len(rejected) == 1
    assert rejected[0].position.startswith("line:")
    assert CONFIG.records is not None
    assert sum(batch.rows.num_rows for batch in batches) in {CONFIG.records, CONFIG.records - 1}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_server_is_asked_again(source: KsqlDB, server: KsqlServer, status: int) -> None:
    server.faults.set("status", status, times=2)
    assert len(landed(source.read(feed("fraud_scores"), ALL))) > 0


def test_server_that_stays_busy_is_unavailable(source: KsqlDB, server: KsqlServer) -> None:
    server.faults.set("status", 503, times=100)
    with pytest.raises(SourceUnavailable, match="the server is busy"):
        list(source.read(feed("fraud_scores"), ALL))


def test_changed_columns_are_refused_within_a_read(source: KsqlDB, server: KsqlServer) -> None:
    batches = source.read(feed("transaction_alerts"), ALL)
    assert len(list(batches)) > 0
    server.faults.set("schema_change", "drop", source="TRANSACTION_ALERTS")
    with pytest.raises(SchemaChanged):
        list(batches)


def test_discover_knows_what_can_be_landed(source: KsqlDB) -> None:
    found = {item.name: item for item in source.discover()}
    assert {name for name, item in found.items() if item.kind == "stream"} == {name.upper() for name in STREAMS}
    assert {name for name, item in found.items() if item.kind == "table" and not item.note} == {
        name.upper() for name in TABLES
    }
    notes = [item.note for item in found.values() if item.note]
    assert notes
    assert all(note.startswith("not queryable; derive a table") for note in notes)


@pytest.mark.parametrize("name", [*STREAMS, *TABLES])
def test_check_accepts_every_demo_feed(source: KsqlDB, name: str) -> None:
    source.check(feed(name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"object": "NO_SUCH_STREAM"}, "NO_SUCH_STREAM"),
        ({"object": "user_events"}, "user_events"),
        ({"object": "FRAUD_SCORES"}, "it is a table, not a stream"),
        ({"object": "x`y"}, "x`y"),
    ],
)
def test_check_says_what_is_wrong_with_an_object(source: KsqlDB, change: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceRefused, match=message):
        source.check(feed("user_events", **change))


def test_plain_table_is_refused_in_the_servers_words(source: KsqlDB) -> None:
    plain_table = next(item.name for item in source.discover() if item.note)
    with pytest.raises(SourceRefused, match=f"The `{plain_table}` table isn't queryable"):
        source.check(feed("fraud_scores", object=plain_table))


def test_password_is_asked_for() -> None:
    with KsqlServer(CONFIG, auth=("anna", "geheim")) as server:
        known, unknown, nobody = (
            KsqlDB(server.url, user="anna", password="geheim"),
            KsqlDB(server.url, user="anna", password="falsch-1"),
            KsqlDB(server.url),
        )
        assert len(landed(known.read(feed("transaction_alerts"), ALL))) == CONFIG.records
        for source in (unknown, nobody):
            with pytest.raises(SourceRefused, match="wrong user or password") as raised:
                source.check(feed("transaction_alerts"))
            assert "falsch-1" not in str(raised.value)
        for source in (known, unknown, nobody):
            source.close()


def test_tls_is_spoken_with_the_authority() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with KsqlServer(CONFIG, ssl_context=context) as server, authority.cert_pem.tempfile() as ca_file:
        source = KsqlDB(server.url, ca_file=ca_file)
        assert len(landed(source.read(feed("transaction_alerts"), ALL))) == CONFIG.records
        assert len(landed(source.read(feed("user_events"), ALL))) == CONFIG.records  # a thread reads, another closes
        source.close()


def test_read_asks_nothing_before_the_iteration() -> None:
    batches: Batches = KsqlDB("http://127.0.0.1:1").read(feed("user_events"), ALL)
    assert batches.time_column == "rowtime"
    assert batches.request is ALL
    batches.acknowledge()
