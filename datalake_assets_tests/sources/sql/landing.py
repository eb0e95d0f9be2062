"""Feeds of a database, and what an export of them leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from datalake_assets.core.row_texts import QuarantinedRow
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import WriteReport
from datalake_assets.lake.tables import open_table
from datalake_assets.sources.base import SourceSystem

_OF_FEED = ("time_column", "write", "key", "merge", "partition_by", "schema_policy", "start", "format", "lateness")


def feed_of(*, kind: str = "stream", **said: Any) -> Feed:
    """A feed of the table ``t``, unless it says otherwise."""
    own = {name: said.pop(name) for name in _OF_FEED if name in said}
    source = {"type": "sql", **({} if "query" in said or "object" in said else {"object": "t"}), **said}
    return parse_feed(json.dumps({"name": "f", "kind": kind, "source": source, **own}))


def land(
    store: Store, source: SourceSystem, feed: Feed, *, partitions: Sequence[str] | None = None, new_epoch: bool = False
) -> WriteReport:
    """One export."""
    table = open_table(store, feed)
    plan = table.plan(partitions, new_epoch=new_epoch)
    return table.write(source.read(feed, plan.request), partitions=plan.partitions, run_id="test")


def landed(store: Store, feed: Feed, column: str) -> list[Any]:
    """What the lake has of a column."""
    return open_table(store, feed).scan(columns=[column]).read_all()[column].to_pylist()


def quarantine(store: Store, feed: Feed) -> list[tuple[str, QuarantinedRow]]:
    """The rows that were put aside."""
    return list(open_table(store, feed).quarantined())
