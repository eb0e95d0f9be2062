"""The generated rows: pure, complete, and known without asking the server."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
from collections import Counter
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.demo.ksqldb_server.generator import Generator, GeneratorConfig
from datalake_assets.demo.ksqldb_server.ksql_errors import InvalidOption
from datalake_assets.demo.ksqldb_server.ksql_types import encode_json
from datalake_assets.demo.ksqldb_server.stream_data import STREAMS
from datalake_assets.demo.ksqldb_server.table_data import TABLES, TableState

START = dt.datetime(2025, 3, 1, tzinfo=dt.UTC)
DAY_S = 86_400
CONFIG = GeneratorConfig(start=START, events_per_day=400, records=4_000)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(CONFIG)


def clock_at(days: float) -> Generator:
    config = GeneratorConfig(start=START, events_per_day=400)
    return Generator(config, clock=lambda: START.timestamp() + days * DAY_S)


@pytest.mark.parametrize("stream", STREAMS)
def test_rows_are_the_same_wherever_a_block_begins(stream: str, generator: Generator) -> None:
    columns = STREAMS[stream].columns
    whole = generator.block(stream, np.arange(4_000))
    part = generator.block(stream, np.array([3_999, 17, 18]))
    for column in columns:
        texts = column.make(whole).fragments()
        assert column.make(part).fragments() == [texts[3_999], texts[17], texts[18]]


def test_rows_never_change_between_versions(generator: Generator) -> None:
    # the digest pins the rows: stored demo lakes would disagree with a server that made others
    digest = hashlib.blake2b(digest_size=8)
    for stream in STREAMS:
        for row in itertools.islice(generator.rows(stream), 500):
            digest.update(repr(row).encode())
    assert digest.hexdigest() == "cff02da78c3ed9bc"


def test_another_seed_gives_other_rows(generator: Generator) -> None:
    other = Generator(GeneratorConfig(seed=8, start=START, events_per_day=400, records=4_000))
    mine, theirs = (list(itertools.islice(g.rows("USER_EVENTS"), 50)) for g in (generator, other))
    assert not {row["EVENT_ID"] for row in mine} & {row["EVENT_ID"] for row in theirs}


@pytest.mark.parametrize("stream", STREAMS)
def test_text_is_the_encoding_of_the_exact_value(stream: str, generator: Generator) -> None:
    block = generator.block(stream, np.arange(4_000))
    for column in STREAMS[stream].columns:
        made = column.make(block)
        assert made.kind == column.kind
        assert made.fragments() == [encode_json(value, column.kind).encode() for value in made.values()]


@pytest.mark.parametrize("stream", STREAMS)
def test_every_stream_has_exactly_the_records_asked_for(stream: str, generator: Generator) -> None:
    rows = list(generator.rows(stream))
    assert len(rows) == 4_000
    assert sum(generator.rows_per_day(stream).values()) == 4_000
    assert Counter(row["ROWTIME"].date() for row in rows) == generator.rows_per_day(stream)
    places = [(row["ROWPARTITION"], row["ROWOFFSET"]) for row in rows]
    assert places == [(index % 4, index // 4) for index in range(4_000)]


@pytest.mark.parametrize("stream", STREAMS)
def test_events_happen_after_the_start_and_some_arrive_late(stream: str, generator: Generator) -> None:
    lateness = []
    for index, row in enumerate(generator.rows(stream)):
        arrival = START + dt.timedelta(milliseconds=index * DAY_S * 1000 // 400)
        assert START <= row["ROWTIME"] <= arrival
        lateness.append(arrival - row["ROWTIME"])
    assert max(lateness) <= dt.timedelta(hours=30)
    assert sum(late > dt.timedelta(days=1) for late in lateness) > 3
    assert sum(late > dt.timedelta(minutes=1) for late in lateness) > 50
    assert sum(late <= dt.timedelta(seconds=30) for late in lateness) > 3_500


def test_producers_send_some_transactions_twice(generator: Generator) -> None:
    rows = list(generator.rows("TRANSACTION_STREAM"))
    twice = {key for key, count in Counter(row["TRANSACTION_ID"] for row in rows).items() if count > 1}
    assert 5 < len(twice) < 60
    for key in twice:
        first, second, *_ = (row for row in rows if row["TRANSACTION_ID"] == key)
        assert first["ROWPARTITION"] == second["ROWPARTITION"]
        assert first["ROWOFFSET"] != second["ROWOFFSET"]
        assert first["AMOUNT"] == second["AMOUNT"]


def test_flattened_rows_are_the_raw_ones(generator: Generator) -> None:
    pairs = zip(generator.rows("TRANSACTION_STREAM"), generator.rows("TRANSACTION_FLATTENED"), strict=True)
    for raw, flat in pairs:
        assert (flat["SRC_PART"], flat["SRC_OFF"]) == (raw["ROWPARTITION"], raw["ROWOFFSET"])
        assert flat["ROWTIME"] == raw["ROWTIME"]
        assert flat["MERCHANT_NAME"] == raw["MERCHANT"]["NAME"]
        shared = raw.keys() & flat.keys()
        assert {name: raw[name] for name in shared} == {name: flat[name] for name in shared}


def test_rows_hold_what_breaks_naive_readers(generator: Generator) -> None:
    rows = list(generator.rows("TRANSACTION_FLATTENED"))
    text = "".join(row["MEMO"] or "" for row in rows)
    assert {"\u2028", "\u0085", '"', "\\", "\n", "🎉"} <= set(text)
    assert any(row["MEMO"] is None for row in rows)
    assert any(row["AMOUNT"] is None for row in rows)
    assert any(row["AMOUNT"] is not None and row["AMOUNT"] < 0 for row in rows)
    big = [row["AMOUNT"] for row in Generator(GeneratorConfig(records=20_000)).rows("TRANSACTION_FLATTENED")]
    assert max(amount for amount in big if amount is not None) > Decimal("9999999999989999.99")
    assert all(row["USER_ID"] > 2**53 for row in rows)


def test_growing_streams_have_the_rows_that_arrived_by_now() -> None:
    assert clock_at(-0.001).count() == 0
    assert clock_at(0).count() == 1
    assert clock_at(1).count() == 401
    assert clock_at(2.5).count() == 1_001


@given(st.integers(1, 10**6), st.integers(0, 10**10))
def test_row_is_counted_exactly_when_it_has_arrived(events_per_day: int, elapsed_ms: int) -> None:
    config = GeneratorConfig(start=START, events_per_day=events_per_day)
    count = config.rows_by(config.start_ms + elapsed_ms)

    def arrival(index: int) -> int:
        return index * DAY_S * 1000 // events_per_day

    assert arrival(count - 1) <= elapsed_ms < arrival(count)
    first = config.first_index_at(config.start_ms + elapsed_ms)
    assert arrival(first) >= elapsed_ms
    assert first == 0 or arrival(first - 1) < elapsed_ms


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 7))
def test_retention_keeps_the_latest_rows(records: int, kept: int, partitions: int) -> None:
    generator = Generator(GeneratorConfig(records=records, retention_rows=kept, partitions=partitions))
    rows = list(generator.rows("TRANSACTION_ALERTS"))
    assert len(rows) == min(records, kept)
    for partition, (low, high) in generator.offsets().items():
        present = [row["ROWOFFSET"] for row in rows if row["ROWPARTITION"] == partition]
        assert present == list(range(low, high))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"start": dt.datetime(2025, 1, 1)}, "start 2025-01-01T00:00:00 must be midnight in UTC"),  # noqa: DTZ001 - wrong
        ({"start": dt.datetime(2025, 1, 1, 1, tzinfo=dt.UTC)}, "must be midnight in UTC"),
        ({"events_per_day": 0}, "events_per_day is 0; it must be at least 1"),
        ({"partitions": 0}, "partitions is 0; it must be at least 1"),
        ({"records": -1}, "records is -1; it must be at least 0"),
    ],
)
def test_config_is_refused_when_it_cannot_work(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        GeneratorConfig(**wrong)  # type: ignore[arg-type]


def test_tables_add_up_the_streams(generator: Generator) -> None:
    rows = list(generator.rows("TRANSACTION_FLATTENED"))
    users = {row[0]: row for row in TableState(CONFIG, "USER_TRANSACTION_SUMMARY").rows(4_000).values()}
    assert {user: row[1] for user, row in users.items()} == Counter(row["USER_ID"] for row in rows)
    sums: dict[int, Decimal] = {}
    for row in rows:
        sums[row["USER_ID"]] = sums.get(row["USER_ID"], Decimal(0)) + (row["AMOUNT"] or 0)
    assert {user: row[2] for user, row in users.items()} == sums
    accounts = {row[0]: row for row in TableState(CONFIG, "ACCOUNT_BALANCES").rows(4_000).values()}
    balances = dict.fromkeys((row["ACCOUNT_ID"] for row in rows), Decimal(0))
    for row in rows:
        if row["STATUS"] == "APPROVED":
            balances[row["ACCOUNT_ID"]] -= row["AMOUNT"] or 0
    assert {account: row[2] for account, row in accounts.items()} == balances
    merchants = TableState(CONFIG, "MERCHANT_SUMMARY").rows(4_000).values()
    assert {row[0]: row[3] for row in merchants} == Counter(row["MERCHANT_ID"] for row in rows)
    declined = Counter(row["MERCHANT_ID"] for row in rows if row["STATUS"] == "DECLINED")
    assert sum(row[4] for row in merchants) == declined.total()


def test_fraud_scores_add_up_the_alerts(generator: Generator) -> None:
    alerts = list(generator.rows("TRANSACTION_ALERTS"))
    scores = {row[0]: row for row in TableState(CONFIG, "FRAUD_SCORES").rows(4_000).values()}
    worst: dict[int, tuple[float, int]] = {}
    for row in alerts:
        worst[row["USER_ID"]] = max(worst.get(row["USER_ID"], (0.0, 0)), (row["SCORE"], row["SEVERITY"]))
    assert {user: (row[3], row[4]) for user, row in scores.items()} == worst
    unseen = Counter(row["USER_ID"] for row in alerts if not row["ACKNOWLEDGED"])
    assert {user: row[2] for user, row in scores.items() if row[2]} == unseen


@pytest.mark.parametrize("table", TABLES)
def test_table_is_the_same_however_it_was_brought_up_to_date(table: str) -> None:
    grown = TableState(CONFIG, table)
    for count in (0, 1, 700, 70_000, 700):
        assert grown.rows(count) == TableState(CONFIG, table).rows(count)


def test_sums_are_exact_beyond_an_int64() -> None:
    config = GeneratorConfig(records=150_000)
    rows = TableState(config, "MERCHANT_SUMMARY").rows(150_000).values()
    amounts = (row["AMOUNT"] or Decimal(0) for row in Generator(config).rows("TRANSACTION_FLATTENED"))
    total = sum(amounts, Decimal(0))
    assert total > Decimal(2**63) / 100
    assert sum((row[5] for row in rows), Decimal(0)) == total
