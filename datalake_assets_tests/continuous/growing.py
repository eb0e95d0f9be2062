"""Streams that grow while a test looks, and what the lake has to have of them, counted without our readers."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from datalake_assets.demo.ksqldb_server.blocks import GeneratorConfig, Pace
from datalake_assets.demo.ksqldb_server.generator import Generator
from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer
from datalake_assets.feed import Feed, parse_feed

#: Every so many rows one is broken.
BROKEN_EVERY = 701


@contextmanager
def growing(events_per_s: int) -> Iterator[KsqlServer]:
    """A server whose streams began just now, and get so many rows a second."""
    now = dt.datetime.now(dt.UTC)
    start = now.replace(hour=0, minute=0, second=0, microsecond=0) - dt.timedelta(days=2)
    config = GeneratorConfig(
        start=start,
        events_per_day=1,
        paces=(Pace(1, now, events_per_s * 86_400, punctual=True, broken_every=BROKEN_EVERY),),
    )
    with KsqlServer(config) as server:
        yield server


def payments(**fields: object) -> Feed:
    """A feed of payments whose rows say where they stood."""
    source = {
        "type": "ksqldb",
        "object": "TRANSACTION_FLATTENED",
        "offset_columns": ["SRC_PART", "SRC_OFF"],
        "rename": {"SRC_PART": "src_part", "SRC_OFF": "src_off"},
    }
    document = {"name": "payments", "kind": "stream", "source": source, **fields}
    return parse_feed(json.dumps(document))


def committed_files(lake: Path, feed: Feed) -> list[str]:
    """The data files that the manifests name."""
    files = []
    for manifest in (lake / "control" / feed.path).rglob("manifest.json"):
        folder = lake / feed.path / manifest.parent.relative_to(lake / "control" / feed.path)
        files += [str(folder / each["name"]) for each in json.loads(manifest.read_bytes())["files"]]
    return files


def rows_of(lake: Path, feed: Feed) -> list[tuple[int, int, int, int, int]]:
    """By source partition: rows, distinct offsets, lowest and highest offset, and their sum; read by DuckDB."""
    query = """SELECT src_part, count(*), count(DISTINCT src_off), max(src_off), sum(src_off)::BIGINT
        FROM read_parquet(?) GROUP BY 1 ORDER BY 1"""
    with duckdb.connect() as connection:
        return connection.execute(query, [committed_files(lake, feed)]).fetchall()


def expected(generator: Generator, highest: list[int]) -> list[tuple[int, int, int, int, int]]:
    """The same of the source's rows up to the highest offset of each source partition, without broken ones."""
    found = []
    count = generator.config.partitions
    for partition, last in enumerate(highest):
        kept = [offset for offset in range(last + 1) if (offset * count + partition) % BROKEN_EVERY != BROKEN_EVERY - 1]
        found.append((partition, len(kept), len(kept), last, sum(kept)))
    return found
