"""A few rounds of `make crash`: an export or a compaction is killed at a drawn operation; no row is lost or doubled."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from datalake_assets.demo.s3_server import S3Server
from datalake_assets_tests.crash.broker_rounds import BrokerRounds
from datalake_assets_tests.crash.change_rounds import ChangeRounds
from datalake_assets_tests.crash.child import (
    CHANGE,
    DLT,
    FILES,
    ICEBERG,
    MARTS,
    MERGE,
    QUEUE,
    SHARDS,
    SINKS,
    SQL,
    TOPIC,
    Forker,
)
from datalake_assets_tests.crash.cli_rounds import CliRounds
from datalake_assets_tests.crash.compact_rounds import CompactRounds
from datalake_assets_tests.crash.compacted_lake import WAYS
from datalake_assets_tests.crash.file_rounds import FileRounds
from datalake_assets_tests.crash.iceberg_rounds import WAYS as WAYS_OF_ICEBERG
from datalake_assets_tests.crash.iceberg_rounds import IcebergRounds
from datalake_assets_tests.crash.mart_rounds import MartRounds
from datalake_assets_tests.crash.merge_rounds import MergeRounds, Sizes
from datalake_assets_tests.crash.queue_rounds import Load, QueueRounds
from datalake_assets_tests.crash.rounds import Rounds
from datalake_assets_tests.crash.shard_rounds import ShardRounds
from datalake_assets_tests.crash.sink_rounds import SinkRounds
from datalake_assets_tests.crash.sql_rounds import SqlRounds, Table
from datalake_assets_tests.crash.topic_rounds import TopicRounds
from datalake_assets_tests.operations.shared_catalogs import ready_rest_catalog
from datalake_assets_tests.sources.kafka.kafka_server import KafkaServer
from datalake_assets_tests.sources.kinesis.kinesis_server import KinesisServer
from datalake_assets_tests.sources.sql.database_servers import Postgres
from datalake_assets_tests.sources.sqs.sqs_server import SqsServer


class Killing(Protocol):
    """Rounds of a campaign; `hits`: how many were killed where."""

    hits: Counter[str]

    def round(self) -> str:
        """One more; what became of it."""


def kill_in_rounds(rounds: Killing, count: int, *, kills: int = 1) -> None:
    """So many rounds, and more where a slow machine was too late to kill as often as it is to be."""
    for number in range(3 * count):
        if number >= count and rounds.hits.total() >= kills:
            break
        rounds.round()
    assert rounds.hits.total() >= kills


@pytest.fixture
def forker(request: pytest.FixtureRequest) -> Iterator[Forker]:
    """Starts the children; with the S3 server's environment where the test asked for that first."""
    with Forker(dict(os.environ)) as started:
        yield started


@pytest.mark.slow
@pytest.mark.xdist_group("killed exports")  # they learn together
def test_killed_export_loses_and_doubles_nothing_on_disk(tmp_path: Path, forker: Forker) -> None:
    rounds = Rounds(str(tmp_path), forker, seed=1)
    rounds.prepare()
    kill_in_rounds(rounds, 8, kills=5)
    rounds.close()


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.xdist_group("killed exports")
def test_killed_export_loses_and_doubles_nothing_on_s3(
    s3_server: S3Server, s3_environment: dict[str, str], s3_lake: str, forker: Forker
) -> None:
    rounds = Rounds(s3_lake, forker, endpoint=s3_server.endpoint, seed=2)
    rounds.prepare()
    kill_in_rounds(rounds, 4, kills=3)
    rounds.close()


@pytest.mark.slow
def test_killed_merge_ends_as_a_dictionary_says(tmp_path: Path) -> None:
    with Forker(dict(os.environ) | {MERGE: "1"}) as forker:
        rounds = MergeRounds(str(tmp_path), forker, seed=4, sizes=Sizes(changes=900, keys=150, batches=3, kills=2))
        rounds.prepare()
        for _ in range(rounds.rounds):
            rounds.round()
    assert rounds.hits.total() >= 4
    rounds.close()


@pytest.mark.slow
def test_killed_deletions_conversions_and_merges_of_others_tables_lose_and_double_nothing(tmp_path: Path) -> None:
    with Forker(dict(os.environ) | {CHANGE: "1"}) as forker:
        rounds = ChangeRounds(str(tmp_path), forker, seed=1)
        kill_in_rounds(rounds, 8, kills=5)


@pytest.mark.slow
@pytest.mark.xdist_group("sqs")
@pytest.mark.parametrize("load", [Load(400, 4), Load(120, 3, fifo=True)], ids=["standard", "fifo"])
def test_killed_workers_of_a_queue_lose_and_double_no_message(
    tmp_path: Path, sqs_server: SqsServer, load: Load
) -> None:
    with Forker(dict(os.environ) | {QUEUE: "1"}) as forker:
        rounds = QueueRounds(str(tmp_path), forker, seed=9, load=load, server=sqs_server)
        rounds.prepare()
        while not rounds.is_done:
            rounds.round()
        rounds.close()
    assert rounds.hits


@pytest.mark.slow
def test_killed_exports_of_files_that_change_lose_double_and_mix_no_row(tmp_path: Path) -> None:
    with Forker(dict(os.environ) | {FILES: "1"}) as forker:
        rounds = FileRounds(str(tmp_path), forker, seed=3)
        rounds.prepare()
        kill_in_rounds(rounds, 6)
        rounds.close()


@pytest.mark.slow
@pytest.mark.xdist_group("databases")
@pytest.mark.parametrize("cursor", ["id", "given"])
def test_killed_exports_of_a_table_that_grows_lose_and_double_no_row(
    tmp_path: Path, postgres: Postgres, cursor: str
) -> None:
    with Forker(dict(os.environ) | {SQL: "1"}) as forker:
        table = Table(rows=12_000, killed=2, cursor=cursor)
        rounds = SqlRounds(str(tmp_path), forker, seed=6, table=table, server=postgres)
        rounds.prepare()
        while not rounds.is_done:
            rounds.round()
        rounds.close()
    assert rounds.hits


@pytest.mark.slow
def test_killed_exports_of_an_api_that_grows_lose_and_double_no_row(tmp_path: Path) -> None:
    from datalake_assets_tests.crash.dlt_rounds import DltRounds  # noqa: PLC0415  dlt takes a second to import

    with Forker(dict(os.environ) | {DLT: "1"}) as forker:
        rounds = DltRounds(str(tmp_path), forker, seed=2)
        kill_in_rounds(rounds, 4)
        rounds.close()


@pytest.mark.slow
def test_killed_marts_hold_what_their_inputs_say(tmp_path: Path) -> None:
    with Forker(dict(os.environ) | {MARTS: "1"}) as forker:
        rounds = MartRounds(str(tmp_path), forker, seed=5)
        rounds.prepare()
        kill_in_rounds(rounds, 4, kills=3)


@pytest.mark.slow
@pytest.mark.xdist_group("kafka")
def test_killed_exports_of_a_topic_lose_and_double_no_message(tmp_path: Path, kafka_server: KafkaServer) -> None:
    with Forker(dict(os.environ) | {TOPIC: "1"}) as forker:
        rounds = TopicRounds(str(tmp_path), forker, seed=5, server=kafka_server)
        rounds.prepare()
        kill_in_rounds(rounds, 5)
        rounds.close()


@pytest.mark.s3
@pytest.mark.slow
def test_killed_broker_loses_and_doubles_no_message_that_it_keeps_in_s3(tmp_path: Path) -> None:
    rounds = BrokerRounds(str(tmp_path), None, seed=6, kills=2)
    with contextlib.closing(rounds):
        rounds.prepare()
        for _ in range(2):
            rounds.round()
    assert rounds.happened["landed"] >= rounds.happened["acknowledged"] > 0


@pytest.mark.slow
@pytest.mark.xdist_group("kinesis")
def test_killed_exports_of_a_stream_land_each_record_once_while_shards_are_split_and_merged(
    tmp_path: Path, kinesis_server: KinesisServer
) -> None:
    with Forker(dict(os.environ) | {SHARDS: "1"}) as forker:
        rounds = ShardRounds(str(tmp_path), forker, seed=5, server=kinesis_server)
        rounds.prepare()
        kill_in_rounds(rounds, 8)
        rounds.close()
    assert (rounds.happened["splits"], rounds.happened["merges"]) == (1, 1)


@pytest.mark.slow
def test_killed_command_loses_and_doubles_nothing(tmp_path: Path) -> None:
    rounds = CliRounds(str(tmp_path / "lake"), feeds=("transaction_stream", "account_balances"), seed=3)
    rounds.round()
    rounds.close()


@pytest.mark.slow
def test_killed_compaction_loses_and_doubles_nothing_on_disk(tmp_path: Path, forker: Forker) -> None:
    with contextlib.closing(CompactRounds(str(tmp_path), forker, seed=4, ways=WAYS[1:3])) as rounds:
        rounds.prepare()
        kill_in_rounds(rounds, 3)


@pytest.mark.s3
@pytest.mark.slow
def test_killed_compaction_loses_and_doubles_nothing_on_s3(
    s3_server: S3Server, s3_environment: dict[str, str], s3_lake: str, forker: Forker
) -> None:
    compacting = CompactRounds(s3_lake, forker, endpoint=s3_server.endpoint, seed=5, ways=WAYS[:1])
    with contextlib.closing(compacting) as rounds:
        rounds.prepare()
        kill_in_rounds(rounds, 2)


@pytest.mark.slow
def test_killed_upkeep_of_an_iceberg_table_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with Forker(dict(os.environ) | {ICEBERG: "1"}) as forker:
        rounds = IcebergRounds(str(tmp_path), forker, seed=6)
        kill_in_rounds(rounds, 6, kills=3)


@pytest.mark.s3
@pytest.mark.slow
def test_killed_work_on_a_table_of_a_rest_catalog_loses_and_doubles_nothing(
    tmp_path: Path, s3_server: S3Server
) -> None:
    rest = ready_rest_catalog(s3_server).theirs
    with Forker(dict(os.environ) | {ICEBERG: "1"}) as forker:
        rounds = IcebergRounds(str(tmp_path), forker, seed=8, rest=rest, ways=WAYS_OF_ICEBERG[:3])
        kill_in_rounds(rounds, 4, kills=2)


@pytest.mark.slow
def test_killed_export_to_iceberg_tables_loses_and_doubles_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "datalake_assets_tests.crash.iceberg_exports", str(tmp_path), "3", "6"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


@pytest.mark.slow
def test_killed_deliveries_leave_a_sink_with_each_row_once_and_no_other(tmp_path: Path) -> None:
    with Forker(dict(os.environ) | {SINKS: "1"}) as forker:
        rounds = SinkRounds(str(tmp_path), forker, seed=5)
        kill_in_rounds(rounds, 5, kills=3)
        rounds.close()
