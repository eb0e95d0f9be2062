"""Whatever is exported first, a range, one day or all, the same rows land once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path

import dagster as dg
import pytest

from datalake_assets.defs.feeds.runner import export_feed
from datalake_assets.demo.demo_feeds import demo_feeds
from datalake_assets.demo.ksqldb_server.generator import GeneratorConfig
from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import load_settings

START = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=6)
DAYS = [f"{START + timedelta(days=day):%Y-%m-%d}" for day in range(4)]
EXPORTS = {"a range": DAYS[1:3], "one day": DAYS[:1], "all": None}


@pytest.fixture(scope="module")
def server() -> Iterator[KsqlServer]:
    with KsqlServer(GeneratorConfig(start=START, records=600, events_per_day=200)) as running:
        yield running


@pytest.mark.parametrize("order", list(permutations(EXPORTS)), ids=", ".join)
@pytest.mark.parametrize("name", ["transaction_alerts", "transaction_flattened"])
def test_the_order_of_exports_does_not_matter(server: KsqlServer, tmp_path: Path, name: str, order: tuple[str]) -> None:
    (tmp_path / "lake").mkdir()
    store = open_store(str(tmp_path / "lake"))
    (feed,) = [each for each in demo_feeds(START.date()) if each.name == name]
    FeedRegistry(store).add(feed)
    settings = load_settings(lake=str(tmp_path / "lake"), ksqldb_url=server.url)
    with dg.DagsterInstance.ephemeral() as instance:
        for export in order:
            assert export_feed(settings, name, partitions=EXPORTS[export], instance=instance).error is None

    found = open_table(store, feed).scan(columns=["rowtime", "transaction_id"]).read_all().to_pylist()
    wanted = list(server.generator.rows(name.upper()))
    assert Counter((row["rowtime"], row["transaction_id"]) for row in found) == Counter(
        (row["ROWTIME"], row["TRANSACTION_ID"]) for row in wanted
    )
    assert Counter(row["rowtime"].date() for row in found) == server.generator.rows_per_day(name.upper())
